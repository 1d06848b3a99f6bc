"""Input images at the URLs of callers: fetched from public https hosts, in bounded bytes and time, without any key."""

import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InvalidImageError
from imagegen.domain.failures import failure_of
from imagegen.outbound.input_source import HttpInputSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import InputSource
from local.serving import HungUpError, Reply, Request, Responder
from tests.fakes.input_source import FakeInputSource
from tests.fakes.provider import png
from tests.support.canary import Canary
from tests.support.images import HTML, SVG
from tests.support.odd_hosts import (
    CHUNKED,
    EACH_DRIP,
    LAST_CHUNK,
    OK,
    ReusableHost,
    SlowHost,
    chunk,
    reusable_host,
    writes,
)
from tests.support.waiting import SECONDS

SMALL, LARGE = png("small"), png("x" * 300_000)
MOST = 4_000_000
REFUSED = "its URL is not on a public https host, or is not valid, so it was not fetched"
NOT_FETCHED = "the image at its URL could not be fetched"
NO_IMAGE = "there is no PNG, JPEG or WebP image at its URL"
ADDRESSES: Mapping[str, tuple[str, ...]] = {
    "public.example": ("198.41.0.4",),
    "private.example": ("10.0.0.1",),
    "local.example": ("127.0.0.1",),
    "metadata.example": ("169.254.169.254",),
    "both.example": ("198.41.0.4", "10.0.0.1"),
    "mapped.example": ("::ffff:10.0.0.1",),
}


def look_up(host: str, _port: int) -> tuple[str, ...]:
    if host in ADDRESSES:
        return ADDRESSES[host]
    if host.replace(".", "").isdigit():
        return (host,)
    raise OSError("no such host")


@dataclass
class Host:
    """The upstream's own origin: the one that may be on this machine. Answers each path by its entry in `pages`."""

    host: ReusableHost
    pages: dict[str, Reply | Responder] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host.respond = self.respond

    def url(self, path: str = "/1.png") -> str:
        return f"http://127.0.0.1:{self.host.port}{path}"

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        page = self.pages.get(request.target, Reply(404, b"no such page"))
        return page if isinstance(page, Reply) else page(request)

    @property
    def source(self) -> HttpInputSource:
        return HttpInputSource(HttpPool(), UrlGuard(self.url("/v1"), look_up))

    def fetch(self, url: str | None = None, most: int = MOST, seconds: float = SECONDS) -> bytes:
        return self.source.fetch(self.url() if url is None else url, most, Deadline.after(seconds))

    def refusal(self, url: str | None = None, most: int = MOST, seconds: float = SECONDS) -> str:
        """Nothing is spent, and the message names neither the URL nor an address."""
        with pytest.raises(InvalidImageError) as caught:
            self.fetch(url, most, seconds)
        assert type(caught.value) is InvalidImageError
        assert (failure_of(caught.value).code, failure_of(caught.value).money_spent) == ("invalid_image", False)
        assert caught.value.__cause__ is None
        assert not any(secret in caught.value.message for secret in ("127.0.0.1", "http:", "example", "png?"))
        return caught.value.message


@pytest.fixture
def web(host: ReusableHost) -> Host:
    return Host(host)


# The contract.


@pytest.fixture(params=["fake", "real"])
def source(request: pytest.FixtureRequest, host: ReusableHost) -> tuple[InputSource, Callable[[str], str]]:
    """A source, and the URL of a path at which it finds an image."""
    if request.param == "fake":
        fake = FakeInputSource()
        fake.files["https://a.example/1.png"] = LARGE
        return fake, lambda path: f"https://a.example{path}"
    web = Host(host, {"/1.png": Reply(200, LARGE)})
    return web.source, web.url


def test_an_image_is_fetched_whole_up_to_the_limit(source: tuple[InputSource, Callable[[str], str]]) -> None:
    fetch, url = source[0].fetch, source[1]
    soon = Deadline.after(SECONDS)
    for most in (len(LARGE), 50_000_000):
        assert fetch(url("/1.png"), most, soon) == LARGE
    for path, most, deadline in (
        ("/1.png", len(LARGE) - 1, soon),
        ("/1.png", 0, soon),
        ("/2.png", MOST, soon),
        ("/1.png", MOST, Deadline.after(0)),
    ):
        with pytest.raises(InvalidImageError):
            fetch(url(path), most, deadline)


# Which URLs are fetched.


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://{host}/a.png" for host in ("private.example", "local.example", "metadata.example", "both.example")),
        *("https://mapped.example/a.png", "https://127.0.0.1/a.png", "https://169.254.169.254/latest/meta-data/"),
        *("http://public.example/a.png", "https://public.example:8443/a.png", "https://key@public.example/a.png"),
        *("ftp://public.example/a.png", "file:///etc/passwd", "https:///a.png", "https://[::1/a.png", "a.png", ""),
        *("https://public.example/a b.png", "https://public.example\\@127.0.0.1/", "https://public.example/ä.png"),
    ],
)
def test_a_url_that_is_not_on_a_public_https_host_is_refused_without_a_request(web: Host, url: str) -> None:
    assert web.refusal(url) == REFUSED
    assert web.requests == []


@pytest.mark.parametrize("origin", ["http://127.0.0.1", "https://127.0.0.1", "http://127.1", "https://local.example"])
def test_another_server_of_this_machine_gets_no_request(web: Host, canary: Canary, origin: str) -> None:
    """Neither directly nor by a redirect from the upstream's origin."""
    url = f"{origin}:{canary.port}/1.png"
    web.pages["/1.png"] = Reply(302, headers={"Location": url})
    assert (web.refusal(url), web.refusal()) == (REFUSED, REFUSED)


def test_a_host_that_is_not_found_is_no_fault_of_the_guard(web: Host) -> None:
    assert web.refusal("https://none.example/a.png") == NOT_FETCHED


@pytest.mark.parametrize(
    "location",
    [
        *("https://private.example/a.png", "https://local.example/", "http://public.example/a.png", "//10.0.0.1/a.png"),
        *("http://127.0.0.1:1/a.png", "https://127.0.0.1/a.png", "file:///etc/passwd", "https://user@public.example/"),
    ],
)
def test_a_redirect_is_checked_again(web: Host, location: str) -> None:
    web.pages["/1.png"] = Reply(302, headers={"Location": location})
    assert web.refusal() == REFUSED
    assert [request.target for request in web.requests] == ["/1.png"]


def test_a_redirect_within_the_origin_is_followed_and_never_with_a_key(web: Host) -> None:
    web.pages["/1.png"] = Reply(302, headers={"Location": "/2.png?sig=a%2Bb", "Set-Cookie": "a=b"})
    web.pages["/2.png?sig=a%2Bb"] = Reply(200, SMALL)
    assert web.fetch() == SMALL
    assert [(request.method, request.target) for request in web.requests] == [
        ("GET", "/1.png"),
        ("GET", "/2.png?sig=a%2Bb"),
    ]
    for request in web.requests:
        names = sorted(name.lower() for name, _ in request.headers)
        assert names == ["accept", "accept-encoding", "connection", "host", "user-agent"]


def test_redirects_end(web: Host) -> None:
    web.pages["/1.png"] = Reply(302, headers={"Location": "/1.png"})
    assert web.refusal() == NOT_FETCHED
    assert len(web.requests) == 4


def test_an_address_is_looked_up_once_and_connected_to(web: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a second answer of the name server changes nothing."""
    looked_up: list[str] = []
    connected: list[str | None] = []
    pool = HttpPool()

    def resolve(host: str, _port: int) -> tuple[str, ...]:
        looked_up.append(host)
        return ("198.41.0.4",)

    def request(*_: object, address: str | None = None, **__: object) -> None:
        connected.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(pool, "request", request)
    fetching = HttpInputSource(pool, UrlGuard(web.url("/v1"), resolve))
    with pytest.raises(InvalidImageError):
        fetching.fetch("https://public.example/a.png", MOST, Deadline.after(SECONDS))
    assert (looked_up, connected) == (["public.example"], ["198.41.0.4"])


# What is at a URL.


def in_chunks(content: bytes) -> Responder:
    parts = (chunk(content[at : at + 50_000]) for at in range(0, len(content), 50_000))
    return writes(CHUNKED, *parts, LAST_CHUNK)


GZIP = {"Content-Encoding": "gzip"}
BOMB = gzip.compress(SMALL + bytes(MOST))


@pytest.mark.parametrize(
    ("page", "content"),
    [
        (Reply(200, SMALL, {"Content-Type": "text/html"}), SMALL),
        (Reply(200, LARGE), LARGE),
        (in_chunks(LARGE), LARGE),
        (writes(OK + b"\r\n", LARGE), LARGE),
        (Reply(200, gzip.compress(LARGE), GZIP), LARGE),
    ],
    ids=["wrong type", "large", "in chunks", "without a length", "gzip"],
)
def test_an_image_is_whole_in_each_encoding(web: Host, page: Reply | Responder, content: bytes) -> None:
    web.pages["/1.png"] = page
    assert web.fetch() == content


@pytest.mark.parametrize(
    ("page", "most", "reason"),
    [
        (Reply(200, LARGE), len(LARGE) - 1, f"over {len(LARGE) - 1} bytes"),
        (in_chunks(LARGE), len(LARGE) - 1, f"over {len(LARGE) - 1} bytes"),
        (writes(OK + b"\r\n", LARGE), len(LARGE) - 1, f"over {len(LARGE) - 1} bytes"),
        (Reply(200, SMALL, declared_length=10**15), MOST, "over 4000000 bytes"),
        (Reply(200, BOMB, GZIP), MOST, "over 4000000 bytes"),
        (Reply(200, b""), MOST, NO_IMAGE),
        (Reply(200, HTML), MOST, NO_IMAGE),
        (Reply(200, SVG), MOST, NO_IMAGE),
        (Reply(200, SMALL[:-12]), MOST, NOT_FETCHED),
        (Reply(200, LARGE[:-12]), MOST, NOT_FETCHED),
        (Reply(200, LARGE, declared_length=len(LARGE) + 1), MOST, NOT_FETCHED),
        (Reply(200, SMALL, GZIP), MOST, NOT_FETCHED),
        (Reply(404), MOST, NOT_FETCHED),
        (Reply(403), MOST, NOT_FETCHED),
        (Reply(500), MOST, NOT_FETCHED),
        (Reply(204), MOST, NOT_FETCHED),
        (Reply(304), MOST, NOT_FETCHED),
        (Reply(302, headers={"Location": "http://[::1"}), MOST, NOT_FETCHED),
        (writes(b"garbage\r\n\r\n"), MOST, NOT_FETCHED),
        (writes(OK + b"Content-Length: -5\r\n\r\n"), MOST, NOT_FETCHED),
        (writes(CHUNKED, b"zz\r\n"), MOST, NOT_FETCHED),
        (writes(), MOST, NOT_FETCHED),
    ],
)  # fmt: skip
def test_what_is_no_whole_image_within_the_limit_is_refused(
    web: Host, page: Reply | Responder, most: int, reason: str
) -> None:
    web.pages["/1.png"] = page
    assert reason in web.refusal(most=most)
    assert len(web.requests) == 1


def test_an_image_that_is_declared_too_large_is_not_read(web: Host) -> None:
    def respond(request: Request) -> Reply:
        request.connection.sendall(OK + b"Content-Length: 50000001\r\n\r\n")
        request.connection.settimeout(SECONDS)
        assert request.connection.recv(1) == b""  # the client has hung up
        raise HungUpError

    web.pages["/1.png"] = respond
    begun = time.monotonic()
    assert "over 50000000 bytes" in web.refusal(most=50_000_000)
    assert time.monotonic() - begun < SECONDS


# How long it may take.


@pytest.fixture
def own_web() -> Iterator[Host]:
    """Not shared, since a request may arrive after the test."""
    with reusable_host() as host:
        yield Host(host)


@EACH_DRIP
def test_a_host_that_drips_is_cut_at_the_deadline(own_web: Host, head: bytes, drop: bytes) -> None:
    slow = SlowHost()
    own_web.pages["/1.png"] = slow.drips(head, drop)
    try:
        reason = slow.cuts(
            lambda seconds: own_web.refusal(seconds=seconds), own_web.requests, too_soon=lambda _: not own_web.requests
        )
    finally:
        slow.over.set()
    assert reason == NOT_FETCHED


def test_a_redirect_has_no_time_of_its_own(own_web: Host) -> None:
    slow = SlowHost()
    own_web.pages["/1.png"] = Reply(302, headers={"Location": "/2.png"})
    own_web.pages["/2.png"] = slow.drips(OK + b"Content-Length: 1000\r\n\r\n", b"")
    try:
        begun = time.monotonic()
        assert own_web.refusal(seconds=0.3) == NOT_FETCHED
        assert time.monotonic() - begun < SECONDS / 2
    finally:
        slow.over.set()
