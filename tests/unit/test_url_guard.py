"""The guard approves the URLs that may be fetched. A resolver in memory stands in for DNS, and no test connects."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageDownloadError,
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageUrlRefusedError,
)
from imagegen.domain.images import ImageBody
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.url_guard import Approved, UrlGuard, is_public, resolve

UPSTREAM = "https://api.upstream.example/v1"
URL = "https://images.example/1.png"
PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1:248:1893:25c8:1946"
METADATA = "169.254.169.254"


class Dns:
    """Returns the answers in turn, then the last one again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def approve(url: str, *addresses: str, upstream: str = UPSTREAM) -> Approved:
    """Approves the URL if its host has these addresses."""
    return UrlGuard(upstream, Dns(addresses)).approve(url)


# The form of a URL


@pytest.mark.parametrize(
    "url",
    [
        # schemes
        *("http://images.example/1.png", "ftp://images.example/1.png", "file:///etc/passwd"),
        "file://images.example/passwd",
        *("gopher://images.example/1", "javascript:alert(1)", "data:image/png;base64,AAAA"),
        "wss://images.example/1.png",
        *("images.example/1.png", "//images.example/1.png", "/1.png", "", "https:", "https:images.example/1.png"),
        # ports
        *(
            f"https://images.example:{port}/1.png"
            for port in ("80", "8443", "22", "442", "444", "65536", "-1", "https")
        ),
        # credentials
        *("https://user@images.example/1.png", "https://user:password@images.example/1.png"),
        *("https://@images.example/1.png", "https://:@images.example/1.png", "https://a@b@images.example/1.png"),
        "https://api.upstream.example@images.example/1.png",
        "https://user:password@api.upstream.example/1.png",
        # characters
        *("https://images.example/1 .png", f" {URL}", f"{URL} ", f"\x1b{URL}", f"{URL}\nX-Other: 1"),
        f"{URL}\r\nX-Other: 1",
        *("https://images.exam\tple/1.png", "https://images.example\0/1.png", "https://images.example/\x7f1.png"),
        *("https://images.example\\@api.upstream.example/1.png", "https:\\\\images.example\\1.png"),
        "https://images.example/..\\1.png",
        *("https://bilder-für-dich.example/1.png", "https://images.example/é.png", "https://\uff49mages.example/1.png"),
        *("https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/1.png", "https://127\u30020\u30020\u30021/1.png"),
        *("https://images\u00ad.example/1.png", "https://images\u200b.example/1.png"),
        # hosts
        *("https:///1.png", "https://:443/1.png", "https://?1.png", "https://[::1/1.png", "https://::1]/1.png"),
        *("https://[images.example]/1.png", "https://[]/1.png"),
    ],
)
def test_a_hostile_url_is_refused_without_a_look_up(url: str) -> None:
    dns = Dns([PUBLIC])
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, dns).approve(url)
    assert dns.asked == []


@pytest.mark.parametrize(
    ("url", "host"),
    [
        *((URL, "images.example"), ("HTTPS://IMAGES.Example/1.png", "images.example")),
        *((f"https://images.example{rest}", "images.example") for rest in ("", "?1.png", ":443/1.png")),
        *((f"https://{host}/1.png", host) for host in ("images.example.", "xn--bilder-fr-dich-nsb.example", PUBLIC)),
        (f"https://[{PUBLIC_6}]/1.png", PUBLIC_6),
    ],
)
def test_a_host_is_looked_up_exactly_once(url: str, host: str) -> None:
    dns = Dns([PUBLIC, PUBLIC_6], ["127.0.0.1"])
    approved = UrlGuard(UPSTREAM, dns).approve(url)
    assert dns.asked == [(host, 443)]
    assert approved.url.hostname == host
    assert approved.address in (PUBLIC, PUBLIC_6)


@pytest.mark.parametrize(
    "url", ["https://secret-host.example:8443/path?sig=secret", "https://u:secret@a.example/", "secret"]
)
def test_a_refusal_does_not_repeat_the_url(url: str) -> None:
    with pytest.raises(ImageUrlRefusedError) as caught:
        approve(url)
    assert "secret" not in caught.value.message


# Which addresses are public

# All ranges outside the public internet, independent of the product. Python's own lists differ by version.
NOT_PUBLIC = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
        *("::/8", "100::/8", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2001:2::/48", "2001:db8::/32"),
        "2002::/16",
        *("3fff::/20", "4000::/2", "8000::/1"),
    )
]


def known_to_be_private(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in NOT_PUBLIC if network.version == address.version)


@pytest.mark.parametrize("network", NOT_PUBLIC, ids=str)
def test_exactly_the_addresses_of_private_ranges_are_refused(network: Any) -> None:
    first, last = network[0], network[-1]
    for address in (first, first + 1, network[network.num_addresses // 3], last - 1, last):
        assert not is_public(str(address))
        if isinstance(network, IPv4Network):
            assert not is_public(f"::ffff:{address}")
    if isinstance(network, IPv4Network):
        beside = (number for number in (int(first) - 1, int(last) + 1) if 0 <= number < 2**32)
        for address in map(str, map(IPv4Address, beside)):
            assert is_public(address) is is_public(f"::ffff:{address}") is not known_to_be_private(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, PUBLIC_6, "1.1.1.1", f"::ffff:{PUBLIC}", "2001:4860::1", "2000::", "3ffe::1"]
)
def test_a_public_https_host_is_approved_with_its_address(address: str) -> None:
    approved = approve("https://images.example/1.png?sig=a%2Bb", address)
    assert approved.address == address
    assert approved.url.geturl() == "https://images.example/1.png?sig=a%2Bb"


@pytest.mark.parametrize(
    "address",
    [
        # clouds: metadata, credentials, DNS, Lambda's runtime API and X-Ray daemon, Alibaba, Oracle
        *(METADATA, "169.254.170.2", "169.254.170.23", "169.254.169.253", "169.254.100.1", "169.254.79.129"),
        *("100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe"),
        # addresses that some versions of Python call global, and others in larger ranges
        *("192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.88.99.1", "232.1.2.3", "239.1.1.1"),
        "255.255.255.255",
        *("2001:10::1", "5f00::1", "fc00::1", "fec0::1", "ff02::1", "ff0e::1", "2001:2::1", "3fff::1", "4000::1"),
        # an IPv4 address in an IPv6 one: mapped, compatible, translated, by NAT64, 6to4 and Teredo
        *("::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b::5db8:d822", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:5db8:d822::1", "2001::7f00:1"),
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        # zones
        *("fe80::1%eth0", "::1%lo", "::ffff:127.0.0.1%lo"),
        # no addresses
        *("images.example", f"{PUBLIC}:443", f"[{PUBLIC_6}]", f"{PUBLIC}/32", f"{PUBLIC} ", "0177.0.0.1"),
        "127.000.000.001",
        *("0x7f.1", "2130706433", "127.1", "\u0661\u0662\u0667.\u0660.\u0660.\u0661", ""),
    ],
)
def test_a_host_with_a_private_address_is_refused(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC_6]):
        with pytest.raises(ImageUrlRefusedError):
            approve(URL, *addresses)


def test_a_host_without_an_address_is_refused() -> None:
    with pytest.raises(ImageUrlRefusedError):
        approve(URL)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "0X7F.0X1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0"),
        *("10.1", "0xac100001", "3232235521", "1684301000", "2852039166", "0xA9FEA9FE", "0251.0376.0251.0376"),
        *("169.254.43518", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[fd00:ec2::254]"),
    ],
)
def test_every_spelling_of_a_private_address_is_refused(host: str) -> None:
    """The system's resolver reads decimal, octal, hexadecimal and short forms."""
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, resolve).approve(f"https://{host}/latest/meta-data/")


def test_the_resolver_of_the_system_reads_every_spelling_of_an_address() -> None:
    assert set(resolve("127.0.0.1", 443)) == set(resolve("0x7f000001", 443)) == {"127.0.0.1"}
    assert set(resolve("::1", 443)) == {"::1"}


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", ".example"])
def test_a_host_with_an_impossible_label_is_refused(host: str) -> None:
    """The system's resolver refuses these without a look-up."""
    with pytest.raises(ImageUrlRefusedError):
        UrlGuard(UPSTREAM, resolve).approve(f"https://{host}/1.png")


def test_a_failed_look_up_may_be_retried() -> None:
    def no_answer(host: str, port: int) -> Sequence[str]:
        raise OSError("temporary failure in name resolution")

    with pytest.raises(ImageDownloadInterruptedError):
        UrlGuard(UPSTREAM, no_answer).approve(URL)


# Names whose address changes


class Recorded:
    """Stands in for the pool: notes each request and returns the next answer."""

    def __init__(self, *answers: urllib3.BaseHTTPResponse) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str | None]] = []

    def request(self, _method: str, url: SplitResult, _deadline: Deadline, **more: Any) -> urllib3.BaseHTTPResponse:
        self.asked.append((url.geturl(), more["address"]))
        return self.answers.pop(0)


def open_from(pool: Recorded, guard: UrlGuard) -> AbstractContextManager[ImageBody]:
    source = HttpImageSource(pool, guard, max_bytes=1000)  # type: ignore[arg-type]  # it does not connect
    return source.open(URL, Deadline.after(60))


def redirect(location: str) -> urllib3.BaseHTTPResponse:
    return urllib3.HTTPResponse(b"", headers={"Location": location}, status=302)


def only_images_example_is_public(host: str, _port: int) -> Sequence[str]:
    return [PUBLIC] if host == "images.example" else [host]


def test_a_download_connects_to_the_approved_address_although_the_name_has_changed() -> None:
    pool = Recorded(urllib3.HTTPResponse(b"", status=403))
    with pytest.raises(ImageDownloadError), open_from(pool, UrlGuard(UPSTREAM, Dns([PUBLIC], ["127.0.0.1"]))):
        pass
    assert pool.asked == [(URL, PUBLIC)]


def test_a_redirect_to_the_same_name_is_refused_if_the_name_now_leads_to_this_machine() -> None:
    pool = Recorded(redirect("/2.png"))
    with pytest.raises(ImageUrlRefusedError), open_from(pool, UrlGuard(UPSTREAM, Dns([PUBLIC], ["127.0.0.1"]))):
        pass
    assert pool.asked == [(URL, PUBLIC)]


@pytest.mark.parametrize("host", [METADATA, "169.254.100.1", "10.0.0.1", "100.64.0.1", "[fd00:ec2::254]", "[::1]"])
def test_a_redirect_to_a_private_address_is_refused(host: str) -> None:
    pool = Recorded(redirect(f"https://{host}/latest/meta-data/"))
    with pytest.raises(ImageUrlRefusedError), open_from(pool, UrlGuard(UPSTREAM, only_images_example_is_public)):
        pass
    assert pool.asked == [(URL, PUBLIC)]


# The upstream's own origin


LOCAL = "http://127.0.0.1:8001/v1"
API = "https://api.upstream.example"


@pytest.mark.parametrize(
    ("upstream", "url"),
    [
        *((UPSTREAM, url) for url in (f"{API}/files/1.png", f"{API}:443/1.png", "HTTPS://API.Upstream.Example")),
        *((f"{API}:443/v1", f"{API}/files/1.png"), (f"{API}:8443/v1", f"{API}:8443/files/1.png")),
        *((LOCAL, "http://127.0.0.1:8001/files/1.png"), ("http://127.0.0.1/v1", "http://127.0.0.1:80/files/1.png")),
        ("http://127.0.0.1:80/v1", "http://127.0.0.1/1.png"),
        ("http://localhost:8001", "http://localhost:8001/1.png"),
        ("http://[::1]:8001/v1", "http://[::1]:8001/files/1.png"),
    ],
)
def test_the_origin_of_the_upstream_is_approved_without_a_look_up(upstream: str, url: str) -> None:
    dns = Dns(["127.0.0.1"])
    assert UrlGuard(upstream, dns).approve(url) == Approved(urlsplit(url), None)
    assert dns.asked == []


@pytest.mark.parametrize(
    ("upstream", "url"),
    [
        *(
            (LOCAL, f"http://{host}/1.png")
            for host in ("127.0.0.1", "127.0.0.1:8002", "localhost:8001", "127.0.0.2:8001")
        ),
        *((LOCAL, f"http://{host}:8001/1.png") for host in ("[::ffff:127.0.0.1]", "2130706433", "evil@127.0.0.1")),
        *((LOCAL, url) for url in ("https://127.0.0.1:8001/1.png", "http://127.0.0.1:8001@evil.example/1.png")),
        *((UPSTREAM, f"http://api.upstream.example{port}/files/1.png") for port in ("", ":443")),
        *((UPSTREAM, f"{API}{rest}") for rest in (":8443/files/1.png", ".evil.example/1.png")),
        *((LOCAL, "https://127.0.0.1/1.png"), (f"{API}:8443/v1", f"{API}/files/1.png")),
    ],
)
def test_an_origin_that_resembles_the_upstreams_is_refused(upstream: str, url: str) -> None:
    with pytest.raises(ImageUrlRefusedError):
        approve(url, "127.0.0.1", upstream=upstream)


# Any URL

ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(NOT_PUBLIC).flatmap(lambda network: st.ip_addresses(network=network)).map(str),
    st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}"),
    st.sampled_from([PUBLIC, PUBLIC_6, "::1%lo", "", "images.example"]) | st.text(max_size=8),
)
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
@settings(deadline=None, max_examples=150)
def test_any_url_is_refused_or_leads_to_an_approved_public_address(url: str, addresses: list[str]) -> None:
    dns = Dns(addresses)
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
@settings(deadline=None, max_examples=100)
def test_any_redirect_is_refused_or_leads_to_an_approved_address(location: str) -> None:
    pool = Recorded(redirect(location), urllib3.HTTPResponse(b"", status=403))
    with pytest.raises(ImagegenError), open_from(pool, UrlGuard(UPSTREAM, only_images_example_is_public)):
        pass
    for url, address in pool.asked:
        assert urlsplit(url).hostname in ("images.example", "api.upstream.example")
        assert address in (PUBLIC, None)
