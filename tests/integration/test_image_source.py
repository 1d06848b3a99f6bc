"""Downloads over real sockets from slow, broken and hostile hosts. Each host is the origin of the upstream."""

import gzip
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from imagegen import VERSION
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES
from imagegen.outbound.url_guard import UrlGuard
from local.serving import HungUpError, Reply, Request, Responder
from tests.fakes.provider import png
from tests.support import odd_hosts
from tests.support.moved_clock import MovedClock
from tests.support.odd_hosts import CHUNKED, LAST_CHUNK, OK, chunk, writes
from tests.support.waiting import SECONDS, until

MAX_BYTES = 4 * 1024 * 1024
SMALL = png("small")
LARGE = png("x" * (5 * BLOCK_BYTES))
LARGE_HEAD = OK + b"Content-Length: %d\r\n\r\n" % len(LARGE)
SOON = Deadline.after(3600)
GZIPPED = OK + b"Content-Encoding: gzip\r\n"


@dataclass
class Host:
    """Answers each path by its entry in `pages`."""

    port: int
    pages: dict[str, Responder] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    slow: odd_hosts.SlowHost = field(default_factory=odd_hosts.SlowHost)

    def url(self, path: str = "/1.png") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def has(self, reply: Reply | Responder, path: str = "/1.png") -> None:
        self.pages[path] = (lambda _: reply) if isinstance(reply, Reply) else reply

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        page = self.pages.get(request.target)
        return page(request) if page else Reply(404, b"no such page")

    def source(self, max_bytes: int = MAX_BYTES) -> HttpImageSource:
        return HttpImageSource(HttpPool(), UrlGuard(f"{self.url('')}/v1", _no_look_up), max_bytes=max_bytes)

    def image(self, path: str = "/1.png", *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
        """Downloads a PNG."""
        kind, blocks = blocks_of(self.source(max_bytes), self.url(path), seconds=seconds)
        assert kind == "image/png"
        return b"".join(blocks)

    def failure(self, path: str = "/1.png", **more: float) -> type[Exception]:
        with pytest.raises(errors.MoneySpentError) as caught:
            self.image(path, **more)  # type: ignore[arg-type]
        return type(caught.value)


def _no_look_up(host: str, port: int) -> list[str]:
    raise AssertionError(f"{host}:{port} was looked up")


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[list[odd_hosts.ReusableHost]]:
    with odd_hosts.reusable_host() as one, odd_hosts.reusable_host() as other:
        yield [one, other]


@pytest.fixture
def host(two_hosts: list[odd_hosts.ReusableHost]) -> Iterator[Host]:
    host = Host(two_hosts[0].port)
    two_hosts[0].respond = host.respond
    yield host
    host.slow.over.set()


@pytest.fixture
def canary(two_hosts: list[odd_hosts.ReusableHost]) -> Iterator[Host]:
    """Another server on this machine, which must receive no request."""
    canary = Host(two_hosts[1].port)
    two_hosts[1].respond = canary.respond
    canary.has(Reply(200, SMALL))
    yield canary
    assert canary.requests == []


def blocks_of(source: HttpImageSource, url: str | bytes, *, seconds: float = SECONDS) -> tuple[str, list[bytes]]:
    with source.open(url, Deadline.after(seconds)) as body:
        blocks = list(body.blocks)
        assert sum(len(block) for block in blocks) == body.length
        return body.media_type, blocks


def in_chunks(content: bytes, size: int) -> Responder:
    return writes(CHUNKED, *(chunk(content[at : at + size]) for at in range(0, len(content), size)), LAST_CHUNK)


class TestWhole:
    def test_a_large_image_is_streamed_in_blocks(self, host: Host) -> None:
        host.has(Reply(200, LARGE))
        kind, blocks = blocks_of(host.source(), host.url())
        assert (kind, b"".join(blocks)) == ("image/png", LARGE)
        assert max(len(block) for block in blocks) == BLOCK_BYTES

    def test_the_first_block_is_available_before_the_host_sends_the_rest(self, host: Host) -> None:
        go_on = threading.Event()

        def respond(request: Request) -> Reply:
            request.connection.sendall(LARGE_HEAD + LARGE[: 3 * BLOCK_BYTES])
            assert go_on.wait(SECONDS)
            return writes(LARGE[3 * BLOCK_BYTES :])(request)

        host.has(respond)

        with host.source().open(host.url(), SOON) as body:
            first = next(body.blocks)
            go_on.set()
            assert first + b"".join(body.blocks) == LARGE
            assert body.length == len(LARGE)

    @pytest.mark.parametrize(
        ("reply", "content"),
        [
            pytest.param(Reply(200, SMALL), SMALL, id="small"),
            pytest.param(Reply(200, SMALL, {"Content-Type": "text/html"}), SMALL, id="wrong type"),
            pytest.param(Reply(200, SMALL, {"Content-Type": ""}), SMALL, id="no type"),
            pytest.param(in_chunks(SMALL, 1000), SMALL, id="small, in chunks"),
            pytest.param(in_chunks(LARGE, 1000), LARGE, id="large, in small chunks"),
            pytest.param(in_chunks(LARGE, 100_000), LARGE, id="large, in large chunks"),
            pytest.param(writes(OK + b"\r\n", LARGE), LARGE, id="without a length"),
            pytest.param(Reply(200, gzip.compress(SMALL), {"Content-Encoding": "gzip"}), SMALL, id="small, gzip"),
            pytest.param(Reply(200, gzip.compress(LARGE), {"Content-Encoding": "gzip"}), LARGE, id="large, gzip"),
        ],
    )
    def test_an_image_is_whole_in_each_encoding(self, host: Host, reply: Reply | Responder, content: bytes) -> None:
        host.has(reply)
        assert host.image() == content

    def test_the_query_is_sent_unchanged(self, host: Host) -> None:
        path = "/1.png?se=2026-01-01T00%3A00%3A00Z&sig=a%2Bb%2Fc%3D"
        host.has(Reply(200, SMALL), path)
        assert host.image(path) == SMALL
        assert host.requests[0].target == path

    def test_no_key_or_cookie_is_sent_to_an_image_host(self, host: Host) -> None:
        host.has(Reply(302, headers={"Location": "/2.png", "Set-Cookie": "a=b"}))
        host.has(Reply(200, SMALL), "/2.png")
        host.image()
        assert len(host.requests) == 2
        for request in host.requests:
            assert (request.method, request.header("Accept")) == ("GET", "image/*")
            names = sorted(name.lower() for name, _ in request.headers)
            assert names == ["accept", "accept-encoding", "connection", "host", "user-agent"]
            assert request.header("Accept-Encoding") == "identity"
            assert request.header("User-Agent") == f"imagegen/{VERSION}"


BROKEN_OFF = [
    *([LARGE_HEAD, LARGE[:-1]], [LARGE_HEAD, LARGE[:BLOCK_BYTES]], [LARGE_HEAD], [b"HTTP/1.1 2"], []),
    *([CHUNKED, chunk(LARGE)], [CHUNKED, b"fffff\r\n" + LARGE[:99]]),
    [GZIPPED + b"Content-Length: 4\r\n\r\n", b"nope"],
]


def to(location: str, status: int = 302) -> Reply:
    return Reply(status, headers={"Location": location})


class TestNotWhole:
    @pytest.mark.parametrize("content", [b"", b"\x89PN", b"<!doctype html>" * 99], ids=["nothing", "3 bytes", "HTML"])
    @pytest.mark.parametrize("how", ["length", "chunks", "bytes"])
    def test_content_that_is_no_image_is_refused_before_any_block(self, host: Host, content: bytes, how: str) -> None:
        chunks = chunk(content) if content else b""
        in_chunks = writes(CHUNKED, chunks, LAST_CHUNK)
        host.has(in_chunks if how == "chunks" else Reply(200, content, {"Content-Type": "image/png"}))
        source = content if how == "bytes" else host.url()
        with pytest.raises(errors.NotAnImageError), host.source().open(source, SOON):
            pass

    @pytest.mark.parametrize("cut", [SMALL[:-20], LARGE[:-20]], ids=["small", "large"])
    def test_a_truncated_image_never_gives_its_last_block(self, host: Host, cut: bytes) -> None:
        host.has(Reply(200, cut))
        got: list[bytes] = []
        with pytest.raises(errors.ImageTruncatedError), host.source().open(host.url(), SOON) as body:
            got.extend(body.blocks)
        assert len(b"".join(got)) < len(cut)

    @pytest.mark.parametrize(
        ("reply", "error"),
        [
            # Another attempt may succeed.
            *((writes(*parts), errors.ImageDownloadInterruptedError) for parts in BROKEN_OFF),
            *((Reply(status, SMALL), errors.ImageDownloadInterruptedError) for status in (404, 408, 409, 425, 429)),
            *((Reply(status, SMALL), errors.ImageDownloadInterruptedError) for status in (500, 502, 503, 504)),
            (writes(OK + b"\r\n", LARGE[:-20]), errors.ImageTruncatedError),
            (writes(GZIPPED + b"\r\n", gzip.compress(LARGE)[:99]), errors.ImageTruncatedError),
            # No other attempt will succeed.
            *((Reply(status, SMALL), errors.ImageDownloadError) for status in (201, 206, 400, 401, 403, 405, 410, 416)),
            *((Reply(status), errors.ImageDownloadError) for status in (204, 302, 304, 451)),
            *((to(location), errors.ImageDownloadError) for location in ("", "http://[::1")),
            *((to(location), errors.ImageUrlRefusedError) for location in ("https://host:8443/", "file:///etc/passwd")),
            (to("https://u:p@images.example/"), errors.ImageUrlRefusedError),
        ],
    )
    def test_an_incomplete_answer_is_not_retried(
        self, host: Host, reply: Reply | Responder, error: type[Exception]
    ) -> None:
        host.has(reply)
        assert host.failure() is error
        assert len(host.requests) == 1

    def test_a_closed_port_can_be_retried(self, host: Host) -> None:
        with socket.socket() as bound_but_not_listening:
            bound_but_not_listening.bind(("127.0.0.1", 0))
            host.port = bound_but_not_listening.getsockname()[1]
            assert host.failure() is errors.ImageDownloadInterruptedError


class TestTooLarge:
    def test_a_length_over_the_limit_is_refused_before_any_byte_is_read(self, host: Host) -> None:
        host.has(host.slow.drips(OK + b"Content-Length: 1001\r\n\r\n", b""))
        assert host.failure(max_bytes=1000) is errors.ImageTooLargeError
        assert not host.slow.gave_up.is_set()

    @pytest.mark.parametrize("digits", [25, 5000])
    def test_an_absurd_length_is_refused_or_ignored(self, host: Host, digits: int) -> None:
        host.has(writes(OK + b"Content-Length: %s\r\n\r\n" % (b"9" * digits), SMALL))
        with suppress(errors.MoneySpentError):
            assert host.image() == SMALL

    def test_an_image_can_be_as_large_as_the_limit(self, host: Host) -> None:
        host.has(Reply(200, LARGE))
        assert host.image(max_bytes=len(LARGE)) == LARGE
        assert host.failure(max_bytes=len(LARGE) - 1) is errors.ImageTooLargeError
        with pytest.raises(errors.ImageTooLargeError):
            blocks_of(host.source(len(LARGE) - 1), LARGE)

    @pytest.mark.parametrize(("head", "ends"), [(CHUNKED, chunk), (OK + b"\r\n", bytes)], ids=["chunks", "no length"])
    def test_a_body_without_end_is_cut_at_the_limit(self, host: Host, head: bytes, ends: type[bytes]) -> None:
        host.has(host.slow.drips(head + ends(SMALL), ends(bytes(2**20))))
        assert host.failure() is errors.ImageTooLargeError
        assert not host.slow.gave_up.is_set()

    def test_a_compressed_body_is_cut_at_the_limit(self, host: Host) -> None:
        bomb = gzip.compress(SMALL + bytes(2**20))
        host.has(Reply(200, bomb, {"Content-Encoding": "gzip"}))
        assert len(bomb) < 2**18
        assert host.failure(max_bytes=2**18) is errors.ImageTooLargeError


class TestRedirect:
    @pytest.mark.parametrize(
        ("status", "location"),
        [
            *((status, "/2.png") for status in (301, 302, 303, 307, 308)),
            *((302, location) for location in ("2.png", "../2.png", "//{origin}/2.png", "http://{origin}/2.png")),
        ],
    )
    def test_a_redirect_within_the_origin_is_followed(self, host: Host, status: int, location: str) -> None:
        host.has(to(location.format(origin=f"127.0.0.1:{host.port}"), status))
        host.has(Reply(200, SMALL), "/2.png")
        assert host.image() == SMALL

    def test_at_most_three_redirects_are_followed(self, host: Host) -> None:
        for hop in range(4):
            host.has(to(f"/{hop + 1}"), f"/{hop}")
        host.has(Reply(200, SMALL), "/4")
        assert host.image("/1") == SMALL
        host.requests.clear()
        assert host.failure("/0") is errors.ImageDownloadError
        assert [request.target for request in host.requests] == ["/0", "/1", "/2", "/3"]

    def test_a_redirect_to_another_port_is_refused(self, host: Host, canary: Host) -> None:
        host.has(to(canary.url()))
        host.has(to("/1.png"), "/0.png")
        assert host.failure() is errors.ImageUrlRefusedError
        assert host.failure("/0.png") is errors.ImageUrlRefusedError


class TestTooSlow:
    @pytest.fixture
    def two_hosts(self) -> Iterator[list[odd_hosts.ReusableHost]]:
        """Not shared, since a request may arrive after the test."""
        with odd_hosts.reusable_host() as host:
            yield [host]

    def cut(self, host: Host, head: bytes, drop: bytes) -> None:
        host.has(host.slow.drips(head, drop))
        failure = host.slow.cuts(
            lambda seconds: host.failure(seconds=seconds), host.requests, too_soon=lambda _: not host.requests
        )
        assert failure is errors.ImageDownloadInterruptedError

    @odd_hosts.EACH_DRIP
    def test_a_host_that_drips_is_cut_at_the_deadline(self, host: Host, head: bytes, drop: bytes) -> None:
        self.cut(host, head, drop)

    def test_a_host_that_hangs_is_cut_at_the_deadline(self, host: Host) -> None:
        self.cut(host, OK + b"Content-Length: 1000\r\n\r\n", b"")

    def test_without_time_left_nothing_is_fetched(self, host: Host) -> None:
        host.has(Reply(200, SMALL))
        assert host.failure(seconds=0) is errors.ImageDownloadInterruptedError
        assert host.requests == []

    def test_a_deadline_after_a_reset_raises_only_in_the_reader(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing catches an exception in a timer's thread: pytest fails, and Lambda logs it."""
        clock = MovedClock(monkeypatch)
        opened, was_reset = threading.Event(), threading.Event()

        def respond(request: Request) -> Reply:
            request.connection.sendall(LARGE_HEAD + LARGE[: 2 * BLOCK_BYTES])
            assert opened.wait(SECONDS)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
            was_reset.set()
            raise HungUpError

        host.has(respond)

        with host.source().open(host.url(), SOON) as body:
            opened.set()
            assert was_reset.wait(SECONDS)
            clock.move(SECONDS)
            with pytest.raises(errors.ImageDownloadInterruptedError):
                list(body.blocks)


class TestConnections:
    def test_a_connection_whose_reader_failed_is_closed_and_not_reused(self, host: Host) -> None:
        host.has(Reply(200, LARGE * 10))
        source = host.source(len(LARGE) * 10)
        with pytest.raises(ZeroDivisionError), source.open(host.url(), SOON) as body:
            assert next(body.blocks)[0] / 0
        until(lambda: host.requests[0].connection.fileno() == -1, what="the host's end of the connection is closed")
        host.has(Reply(200, SMALL))
        assert blocks_of(source, host.url()) == ("image/png", [SMALL])
        assert host.requests[0].connection is not host.requests[1].connection

    def test_ten_downloads_run_concurrently(self, host: Host) -> None:
        together = threading.Barrier(10)

        def respond(_: Request) -> Reply:
            together.wait(SECONDS)
            return Reply(200, SMALL)

        host.has(respond)
        source = host.source()
        with ThreadPoolExecutor(10) as pool:
            assert list(pool.map(lambda _: blocks_of(source, host.url()), range(10))) == [("image/png", [SMALL])] * 10
