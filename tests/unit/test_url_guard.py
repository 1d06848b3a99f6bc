"""Which URLs of a stranger may be fetched. A resolver in memory stands in for DNS: nothing here connects."""

from collections.abc import Sequence

import pytest

from imagegen.errors import ImageDownloadInterruptedError, ImageUrlRefusedError
from imagegen.outbound.url_guard import UrlGuard, is_public, resolve

UPSTREAM = "https://api.upstream.example/v1"
PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1:248:1893:25c8:1946"


class Dns:
    """Answers with what it is told for a host, and with what the host spells where it spells an address."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers


HOSTILE_URLS = {
    # schemes
    "http": "http://images.example/1.png",
    "ftp": "ftp://images.example/1.png",
    "file": "file:///etc/passwd",
    "file with a host": "file://images.example/etc/passwd",
    "gopher": "gopher://images.example/1",
    "javascript": "javascript:alert(1)",
    "data": "data:image/png;base64,AAAA",
    "websocket": "wss://images.example/1.png",
    "no scheme": "images.example/1.png",
    "no scheme, two slashes": "//images.example/1.png",
    "a path": "/1.png",
    "nothing": "",
    "a scheme alone": "https:",
    "https without slashes": "https:images.example/1.png",
    # ports
    "port 80": "https://images.example:80/1.png",
    "port 8443": "https://images.example:8443/1.png",
    "port 22": "https://images.example:22/1.png",
    "port 6379": "https://images.example:6379/1.png",
    "port beyond all": "https://images.example:65536/1.png",
    "port below all": "https://images.example:-1/1.png",
    "port no number": "https://images.example:https/1.png",
    # credentials
    "user": "https://user@images.example/1.png",
    "user and password": "https://user:password@images.example/1.png",
    "empty user": "https://@images.example/1.png",
    "the upstream as user": "https://api.upstream.example@images.example/1.png",
    "credentials for the upstream": "https://user:password@api.upstream.example/1.png",
    "two at signs": "https://a@b@images.example/1.png",
    # characters
    "a space": "https://images.example/1 .png",
    "a space before": " https://images.example/1.png",
    "a space after": "https://images.example/1.png ",
    "a tab": "https://images.exam\tple/1.png",
    "a line feed": "https://images.example/1.png\nX-Other: 1",
    "a carriage return": "https://images.example/1.png\r\nX-Other: 1",
    "a null": "https://images.example\0/1.png",
    "an escape": "\x1bhttps://images.example/1.png",
    "a delete": "https://images.example/\x7f1.png",
    "a backslash": "https://images.example\\@api.upstream.example/1.png",
    "backslashes for slashes": "https:\\\\images.example\\1.png",
    "a backslash in the path": "https://images.example/..\\1.png",
    "a non-ASCII host": "https://bilder-für-dich.example/1.png",
    "a full-width host": "https://\uff49mages.example/1.png",
    "a circled host": "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/1.png",
    "an ideographic full stop": "https://127\u30020\u30020\u30021/1.png",
    "a non-ASCII path": "https://images.example/é.png",
    "a soft hyphen": "https://images\u00ad.example/1.png",
    "a zero-width space": "https://images\u200b.example/1.png",
    # hosts
    "no host": "https:///1.png",
    "no host but a port": "https://:443/1.png",
    "no host but a query": "https://?1.png",
    "an open bracket": "https://[::1/1.png",
    "a closed bracket": "https://::1]/1.png",
    "brackets around a name": "https://[images.example]/1.png",
    "brackets around nothing": "https://[]/1.png",
}

PRIVATE_ADDRESSES = {
    "loopback": "127.0.0.1",
    "another loopback": "127.255.255.254",
    "10/8": "10.0.0.1",
    "172.16/12": "172.16.0.1",
    "172.31": "172.31.255.254",
    "192.168/16": "192.168.1.1",
    "EC2 metadata": "169.254.169.254",
    "ECS credentials": "169.254.170.2",
    "VPC DNS": "169.254.169.253",
    "Lambda's runtime API": "169.254.100.1",
    "carrier-grade NAT": "100.64.0.1",
    "carrier-grade NAT's end": "100.127.255.254",
    "this network": "0.0.0.0",
    "this network too": "0.1.2.3",
    "broadcast": "255.255.255.255",
    "multicast": "224.0.0.1",
    "multicast of an organisation": "239.1.1.1",
    "global multicast": "232.1.2.3",
    "reserved": "240.0.0.1",
    "documentation": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "benchmarks": "198.18.0.1",
    "IETF assignments": "192.0.0.1",
    "IPv6 loopback": "::1",
    "IPv6 unspecified": "::",
    "IPv6 unique local": "fc00::1",
    "IPv6 unique local, EC2 metadata": "fd00:ec2::254",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "IPv6 loopback with a zone": "::1%lo",
    "IPv6 site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
    "IPv6 global multicast": "ff0e::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 discard": "100::1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:169.254.169.254",
    "mapped metadata in hex": "::ffff:a9fe:a9fe",
    "mapped carrier-grade NAT": "::ffff:100.64.0.1",
    "mapped multicast": "::ffff:224.0.0.1",
    "compatible loopback": "::127.0.0.1",
    "translated loopback": "::ffff:0:127.0.0.1",
    "NAT64 loopback": "64:ff9b::7f00:1",
    "NAT64 metadata": "64:ff9b::a9fe:a9fe",
    "local NAT64": "64:ff9b:1::7f00:1",
    "6to4 loopback": "2002:7f00:1::",
    "6to4 10/8": "2002:a00:1::1",
    "Teredo": "2001::7f00:1",
    "ORCHID": "2001:10::1",
    "no address": "images.example",
    "an address with a port": f"{PUBLIC}:443",
    "nothing": "",
}

# What the system's resolver makes of these hosts: inet_aton takes decimal, octal, hex and short forms.
SPELLED_ADDRESSES = {
    "https://127.0.0.1/": "127.0.0.1",
    "https://2130706433/": "127.0.0.1",
    "https://0x7f000001/": "127.0.0.1",
    "https://0x7f.0.0.1/": "127.0.0.1",
    "https://0177.0.0.1/": "127.0.0.1",
    "https://017700000001/": "127.0.0.1",
    "https://127.1/": "127.0.0.1",
    "https://0/": "0.0.0.0",
    "https://2852039166/latest/meta-data/": "169.254.169.254",
    "https://0xA9FEA9FE/": "169.254.169.254",
    "https://0251.0376.0251.0376/": "169.254.169.254",
    "https://169.254.43518/": "169.254.169.254",
    "https://169.254.169.254/latest/meta-data/": "169.254.169.254",
    "https://[::1]/": "::1",
    "https://[::]/": "::",
    "https://[::ffff:127.0.0.1]/": "::ffff:127.0.0.1",
    "https://[0:0:0:0:0:ffff:7f00:1]/": "::ffff:127.0.0.1",
    "https://[64:ff9b::7f00:1]/": "64:ff9b::7f00:1",
    "https://[2002:7f00:1::]/": "2002:7f00:1::",
    "https://[fe80::1%25eth0]/": "fe80::1%eth0",
    "https://localhost/": "127.0.0.1",
    "https://LOCALHOST/": "127.0.0.1",
    "https://localhost./": "127.0.0.1",
    "https://sub.localhost/": "127.0.0.1",
    "https://127.0.0.1.nip.example/": "127.0.0.1",
    "https://metadata.internal/": "169.254.169.254",
    "https://127.0.0.1:443/": "127.0.0.1",
}


@pytest.mark.parametrize("url", HOSTILE_URLS.values(), ids=list(HOSTILE_URLS))
def test_a_hostile_url_is_refused_without_asking_where_its_host_is(url: str) -> None:
    dns = Dns(PUBLIC)

    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, dns).approve(url)

    assert dns.asked == []


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES.values(), ids=list(PRIVATE_ADDRESSES))
def test_a_host_at_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, Dns(address)).approve("https://images.example/1.png")


@pytest.mark.parametrize(("url", "address"), SPELLED_ADDRESSES.items())
def test_however_a_private_address_is_spelled_what_it_resolves_to_is_judged(url: str, address: str) -> None:
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, Dns(address)).approve(url)


@pytest.mark.parametrize(
    "addresses",
    [
        (PUBLIC, "127.0.0.1"),
        ("127.0.0.1", PUBLIC),
        (PUBLIC, PUBLIC_6, "169.254.169.254"),
        (PUBLIC_6, "::1"),
        (PUBLIC, "::ffff:10.0.0.1"),
        (PUBLIC, "fe80::1%eth0"),
        (PUBLIC, "nonsense"),
        (),
    ],
    ids=str,
)
def test_one_address_that_is_not_public_among_others_or_none_at_all_is_refused(addresses: tuple[str, ...]) -> None:
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, Dns(*addresses)).approve("https://images.example/1.png")


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_6, "1.1.1.1", "100.63.255.255", "172.32.0.1", f"::ffff:{PUBLIC}"])
def test_a_public_https_host_is_approved_at_its_address(address: str) -> None:
    approved = UrlGuard(UPSTREAM, Dns(address)).approve("https://images.example/1.png?sig=a%2Bb")

    assert approved.address == address
    assert approved.url.geturl() == "https://images.example/1.png?sig=a%2Bb"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://images.example/1.png", "images.example"),
        ("https://IMAGES.Example/1.png", "images.example"),
        ("HTTPS://images.example/1.png", "images.example"),
        ("https://images.example:443/1.png", "images.example"),
        ("https://images.example", "images.example"),
        ("https://images.example?1.png", "images.example"),
        ("https://images.example./1.png", "images.example."),
        ("https://xn--bilder-fr-dich-nsb.example/1.png", "xn--bilder-fr-dich-nsb.example"),
        (f"https://{PUBLIC}/1.png", PUBLIC),
        (f"https://[{PUBLIC_6}]/1.png", PUBLIC_6),
    ],
)
def test_the_resolver_is_asked_exactly_once_for_the_very_host_that_is_connected_to(url: str, host: str) -> None:
    dns = Dns(PUBLIC)

    approved = UrlGuard(UPSTREAM, dns).approve(url)

    assert dns.asked == [(host, 443)]
    assert approved.url.hostname == host


def test_the_approved_address_is_one_of_those_that_were_judged_although_the_next_answer_differs() -> None:
    class Rebinding(Dns):
        def __call__(self, host: str, port: int) -> Sequence[str]:
            super().__call__(host, port)
            return (PUBLIC, PUBLIC_6) if len(self.asked) == 1 else ("127.0.0.1",)

    dns = Rebinding()

    assert UrlGuard(UPSTREAM, dns).approve("https://images.example/1.png").address in (PUBLIC, PUBLIC_6)
    assert len(dns.asked) == 1


def test_each_url_is_judged_anew() -> None:
    dns = Dns(PUBLIC)
    guard = UrlGuard(UPSTREAM, dns)
    guard.approve("https://images.example/1.png")
    dns.answers = ("127.0.0.1",)

    with pytest.raises(ImageUrlRefusedError):
        guard.approve("https://images.example/1.png")


@pytest.mark.parametrize(
    ("upstream", "url"),
    [
        ("https://api.upstream.example/v1", "https://api.upstream.example/files/1.png"),
        ("https://api.upstream.example/v1", "https://api.upstream.example:443/files/1.png"),
        ("https://api.upstream.example:443/v1", "https://api.upstream.example/files/1.png"),
        ("https://api.upstream.example/v1", "https://API.Upstream.Example/files/1.png"),
        ("https://api.upstream.example/v1", "HTTPS://api.upstream.example"),
        ("https://api.upstream.example:8443/v1", "https://api.upstream.example:8443/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8001/files/1.png"),
        ("http://127.0.0.1/v1", "http://127.0.0.1:80/files/1.png"),
        ("http://127.0.0.1:80/v1", "http://127.0.0.1/files/1.png"),
        ("http://localhost:8001", "http://localhost:8001/files/1.png"),
        ("http://[::1]:8001/v1", "http://[::1]:8001/files/1.png"),
    ],
)
def test_the_upstream_s_own_origin_is_approved_without_asking_where_it_is(upstream: str, url: str) -> None:
    dns = Dns("127.0.0.1")

    approved = UrlGuard(upstream, dns).approve(url)

    assert approved.address is None
    assert dns.asked == []


@pytest.mark.parametrize(
    ("upstream", "url"),
    [
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8002/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1/files/1.png"),
        ("http://127.0.0.1:8001/v1", "https://127.0.0.1:8001/files/1.png"),
        ("http://127.0.0.1:8001/v1", "https://127.0.0.1/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://localhost:8001/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.2:8001/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://[::ffff:127.0.0.1]:8001/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://2130706433:8001/files/1.png"),
        ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8001@evil.example/1.png"),
        ("http://127.0.0.1:8001/v1", "http://evil@127.0.0.1:8001/1.png"),
        ("https://api.upstream.example/v1", "http://api.upstream.example/files/1.png"),
        ("https://api.upstream.example/v1", "http://api.upstream.example:443/files/1.png"),
        ("https://api.upstream.example/v1", "https://api.upstream.example:8443/files/1.png"),
        ("https://api.upstream.example:8443/v1", "https://api.upstream.example/files/1.png"),
        ("https://api.upstream.example/v1", "https://api.upstream.example.evil.example/1.png"),
    ],
)
def test_what_only_looks_like_the_upstream_s_own_origin_is_judged_as_a_stranger(upstream: str, url: str) -> None:
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(upstream, Dns("127.0.0.1")).approve(url)


def test_a_host_that_does_not_resolve_just_now_may_be_tried_again() -> None:
    def no_answer(host: str, port: int) -> Sequence[str]:
        raise OSError("temporary failure in name resolution")

    with pytest.raises(ImageDownloadInterruptedError):
        UrlGuard(UPSTREAM, no_answer).approve("https://images.example/1.png")


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", ".example"])
def test_a_host_with_an_impossible_label_is_refused(host: str) -> None:
    """The system's resolver gives up on these before it asks anybody."""
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, resolve).approve(f"https://{host}/1.png")


def test_the_system_s_resolver_gives_every_spelling_of_an_address_as_an_address() -> None:
    assert set(resolve("127.0.0.1", 443)) == {"127.0.0.1"}
    assert set(resolve("0x7f000001", 443)) == {"127.0.0.1"}
    assert set(resolve("::1", 443)) == {"::1"}


@pytest.mark.parametrize(
    "url", ["https://secret-host.example:8443/path?sig=secret", "https://u:secret@host.example/", "secret"]
)
def test_a_refusal_does_not_repeat_the_url(url: str) -> None:
    with pytest.raises(ImageUrlRefusedError) as caught:
        UrlGuard(UPSTREAM, Dns()).approve(url)

    assert "secret" not in caught.value.message
