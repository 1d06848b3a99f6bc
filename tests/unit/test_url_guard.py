"""Which URLs of a stranger may be fetched. A resolver in memory stands in for DNS: nothing here connects."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.deadline import Deadline
from imagegen.errors import ImageDownloadError, ImageDownloadInterruptedError, ImagegenError, ImageUrlRefusedError
from imagegen.images import ImageBody
from imagegen.outbound.image_source import HttpImageSource
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
    "EKS credentials": "169.254.170.23",
    "VPC DNS": "169.254.169.253",
    "VPC time": "169.254.169.123",
    "Lambda's runtime API": "169.254.100.1",
    "Lambda's X-Ray daemon": "169.254.79.129",
    "link-local's first": "169.254.0.0",
    "link-local's last": "169.254.255.255",
    "10/8's last": "10.255.255.255",
    "carrier-grade NAT": "100.64.0.1",
    "carrier-grade NAT's first": "100.64.0.0",
    "carrier-grade NAT's end": "100.127.255.254",
    "carrier-grade NAT's last": "100.127.255.255",
    "Alibaba's metadata": "100.100.100.200",
    "this network": "0.0.0.0",
    "this network too": "0.1.2.3",
    "this network's last": "0.255.255.255",
    "broadcast": "255.255.255.255",
    "beside broadcast": "255.255.255.254",
    "multicast": "224.0.0.1",
    "multicast's last": "239.255.255.255",
    "multicast of an organisation": "239.1.1.1",
    "global multicast": "232.1.2.3",
    "reserved": "240.0.0.1",
    "reserved's first": "240.0.0.0",
    "documentation": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "benchmarks": "198.18.0.1",
    "benchmarks' last": "198.19.255.255",
    "IETF assignments": "192.0.0.1",
    "IETF assignments' first": "192.0.0.0",
    "IETF assignments' last": "192.0.0.255",
    "a dummy": "192.0.0.8",
    "port control": "192.0.0.9",
    "TURN": "192.0.0.10",
    "NAT64's own name": "192.0.0.170",
    "Oracle's metadata": "192.0.0.192",
    "6to4 relays": "192.88.99.1",
    "IPv6 loopback": "::1",
    "IPv6 unspecified": "::",
    "IPv6 unique local": "fc00::1",
    "IPv6 unique local's last": "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "IPv6 unique local, EC2 metadata": "fd00:ec2::254",
    "IPv6 unique local, EKS credentials": "fd00:ec2::23",
    "IPv6 unique local, VPC DNS": "fd00:ec2::253",
    "IPv6 unique local, Google's metadata": "fd20:ce::254",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local's last": "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "IPv6 link-local, metadata": "fe80::a9fe:a9fe",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "IPv6 loopback with a zone": "::1%lo",
    "IPv6 site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
    "IPv6 global multicast": "ff0e::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 documentation 2": "3fff::1",
    "IPv6 discard": "100::1",
    "IPv6 benchmarks": "2001:2::1",
    "IPv6 segment routing": "5f00::1",
    "IPv6 that is nobody's": "4000::1",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:169.254.169.254",
    "mapped metadata in hex": "::ffff:a9fe:a9fe",
    "mapped carrier-grade NAT": "::ffff:100.64.0.1",
    "mapped multicast": "::ffff:224.0.0.1",
    "mapped broadcast": "::ffff:255.255.255.255",
    "mapped reserved": "::ffff:240.0.0.1",
    "mapped unspecified": "::ffff:0.0.0.0",
    "mapped benchmarks": "::ffff:198.18.0.1",
    "mapped runtime API": "::ffff:169.254.100.1",
    "mapped 10/8 in hex": "::ffff:a00:1",
    "mapped in full": "0:0:0:0:0:ffff:7f00:1",
    "mapped with a zone": "::ffff:127.0.0.1%lo",
    "compatible loopback": "::127.0.0.1",
    "translated loopback": "::ffff:0:127.0.0.1",
    "NAT64 loopback": "64:ff9b::7f00:1",
    "NAT64 metadata": "64:ff9b::a9fe:a9fe",
    "NAT64 10/8": "64:ff9b::a00:1",
    "NAT64 carrier-grade NAT": "64:ff9b::6440:1",
    "NAT64 of a public address": "64:ff9b::5db8:d822",
    "local NAT64": "64:ff9b:1::7f00:1",
    "local NAT64's last": "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
    "6to4 loopback": "2002:7f00:1::",
    "6to4 10/8": "2002:a00:1::1",
    "6to4 metadata": "2002:a9fe:a9fe::1",
    "6to4 of a public address": "2002:5db8:d822::1",
    "Teredo": "2001::7f00:1",
    "Teredo of a public server": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "ORCHID": "2001:10::1",
    "no address": "images.example",
    "an address with a port": f"{PUBLIC}:443",
    "an address in brackets": f"[{PUBLIC_6}]",
    "an address with a mask": f"{PUBLIC}/32",
    "an address and a space": f"{PUBLIC} ",
    "octal": "0177.0.0.1",
    "zeros ahead": "127.000.000.001",
    "hex": "0x7f.1",
    "decimal": "2130706433",
    "two parts": "127.1",
    "Arabic digits": "\u0661\u0662\u0667.\u0660.\u0660.\u0661",
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
    "https://0X7F.0X1/": "127.0.0.1",
    "https://0x7f.1/": "127.0.0.1",
    "https://0177.1/": "127.0.0.1",
    "https://127.1/": "127.0.0.1",
    "https://127.0.1/": "127.0.0.1",
    "https://127.000.000.001/": "127.0.0.1",
    "https://0/": "0.0.0.0",
    "https://00/": "0.0.0.0",
    "https://10.1/": "10.0.0.1",
    "https://0xac100001/": "172.16.0.1",
    "https://3232235521/": "192.168.0.1",
    "https://1684301000/": "100.100.100.200",
    "https://169.254.79.129:443/": "169.254.79.129",
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
    "https://[::ffff:a9fe:a9fe]/latest/meta-data/": "::ffff:169.254.169.254",
    "https://[0000:0000:0000:0000:0000:0000:0000:0001]/": "::1",
    "https://[fd00:ec2::254]/latest/meta-data/": "fd00:ec2::254",
    "https://127.0.0.1./": "127.0.0.1",
    "https://%31%32%37.0.0.1/": "127.0.0.1",
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


class Recorded:
    """Stands in for the pool: notes where it is told to connect, and answers what it has."""

    def __init__(self, *answers: urllib3.BaseHTTPResponse) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str | None]] = []

    def request(self, _method: str, url: SplitResult, _deadline: Deadline, **more: Any) -> urllib3.BaseHTTPResponse:
        self.asked.append((url.geturl(), more["address"]))
        return self.answers.pop(0)


def test_a_download_connects_to_the_judged_address_although_the_name_leads_elsewhere_by_then() -> None:
    answers = iter([(PUBLIC,), ("127.0.0.1",)])
    pool = Recorded(urllib3.HTTPResponse(b"", status=403))
    guard = UrlGuard(UPSTREAM, lambda _host, _port: next(answers))

    with pytest.raises(ImageDownloadError), open_from(pool, guard):
        pass

    assert pool.asked == [("https://images.example/1.png", PUBLIC)]


def test_a_redirect_to_the_same_name_is_refused_once_the_name_leads_to_this_machine() -> None:
    answers = iter([(PUBLIC,), ("127.0.0.1",)])
    pool = Recorded(urllib3.HTTPResponse(b"", headers={"Location": "/2.png"}, status=302))
    guard = UrlGuard(UPSTREAM, lambda _host, _port: next(answers))

    with pytest.raises(ImageUrlRefusedError), open_from(pool, guard):
        pass

    assert pool.asked == [("https://images.example/1.png", PUBLIC)]


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.100.1", "10.0.0.1", "100.64.0.1", "fd00:ec2::254", "::1"]
)
def test_a_redirect_to_an_address_that_is_not_public_is_not_followed(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    headers = {"Location": f"https://{host}/latest/meta-data/"}
    pool = Recorded(urllib3.HTTPResponse(b"", headers=headers, status=302))
    guard = UrlGuard(UPSTREAM, lambda host, _port: (PUBLIC,) if host == "images.example" else (host,))

    with pytest.raises(ImageUrlRefusedError), open_from(pool, guard):
        pass

    assert pool.asked == [("https://images.example/1.png", PUBLIC)]


def open_from(pool: Recorded, guard: UrlGuard) -> AbstractContextManager[ImageBody]:
    source = HttpImageSource(pool, guard, max_bytes=1000)  # type: ignore[arg-type]  # not one that connects
    return source.open("https://images.example/1.png", Deadline.after(5))


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


# Every range that is not the public internet's, written down once more: Python's own lists differ by its version.
NOT_PUBLIC = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
        *(
            "::/8",
            "100::/8",
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "2001::/32",
            "2001:2::/48",
            "2001:db8::/32",
            "2002::/16",
        ),
        *("3fff::/20", "4000::/2", "8000::/1"),
    )
]
MAPPED = ip_network("::ffff:0:0/96")
ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(NOT_PUBLIC).flatmap(lambda network: st.ip_addresses(network=network)).map(str),
    st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}"),
    st.sampled_from([PUBLIC, PUBLIC_6, "::1%lo", "", "images.example"]) | st.text(max_size=8),
)


def known_to_be_private(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address in MAPPED:
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    return any(address in network for network in NOT_PUBLIC if network.version == address.version)


@given(st.sampled_from(NOT_PUBLIC).flatmap(lambda network: st.ip_addresses(network=network)))
@settings(deadline=None, max_examples=300)
def test_no_address_of_a_range_that_is_not_public_is_public(address: IPv4Address | IPv6Address) -> None:
    if isinstance(address, IPv6Address) and address in MAPPED:
        return  # judged as the IPv4 address that it carries
    assert not is_public(str(address))


PIECES = [
    *("https", "http", "HTTPS", "ftp", "file", "javascript", ":", "//", "/", "\\", "@", "#", "?", "[", "]", "%", "."),
    *("images.example", "api.upstream.example", "127.0.0.1", "localhost", "[::1]", "0x7f.1", "user:password@", ":443"),
    *(":80", ":8443", "/1.png", " ", "\t", "\n", "\0", "\u2460", "\uff0e", "\u3002", "%2f", "%00", "..", "xn--"),
]
URLS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=10).map("".join),
    st.builds("https://{}{}".format, st.text(max_size=20), st.sampled_from(["", "/1.png", ":443/", "/?a#b"])),
)


@given(URLS, st.lists(ADDRESSES, max_size=3))
@settings(deadline=None, max_examples=500)
def test_whatever_the_url_it_is_refused_or_leads_to_a_judged_public_address(url: str, addresses: list[str]) -> None:
    dns = Dns(*addresses)
    try:
        approved = UrlGuard(UPSTREAM, dns).approve(url)
    except ImagegenError:
        return
    parts = approved.url
    assert parts.username is None
    assert parts.password is None
    assert parts.scheme == "https"
    assert parts.port in (None, 443)
    if approved.address is None:
        assert parts.hostname == "api.upstream.example"
        assert dns.asked == []
    else:
        assert dns.asked == [(parts.hostname, 443)]
        assert approved.address in addresses
        assert not any(known_to_be_private(address) for address in addresses)


@given(URLS)
@settings(deadline=None, max_examples=300)
def test_whatever_the_location_a_redirect_leads_to_it_is_refused_or_judged(location: str) -> None:
    def resolver(host: str, _port: int) -> Sequence[str]:
        return (PUBLIC,) if host == "images.example" else ("127.0.0.1",)

    headers = {"Location": location}
    pool = Recorded(
        urllib3.HTTPResponse(b"", headers=headers, status=302),
        *(urllib3.HTTPResponse(b"", status=403) for _ in range(3)),
    )

    with pytest.raises(ImagegenError), open_from(pool, UrlGuard(UPSTREAM, resolver)):
        pass

    for url, address in pool.asked:
        assert urlsplit(url).hostname in ("images.example", "api.upstream.example")
        assert address in (PUBLIC, None)
