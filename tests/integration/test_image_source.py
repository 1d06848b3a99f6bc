"""Downloads on real sockets, from hosts that are slow, broken or hostile; each is the upstream's own origin."""

import gzip
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadError,
    ImageDownloadInterruptedError,
    ImageTooLargeError,
    ImageTruncatedError,
    ImageUrlRefusedError,
    MoneySpentError,
    NotAnImageError,
)
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.reading import BLOCK_BYTES
from imagegen.outbound.url_guard import UrlGuard
from imagegen.version import VERSION
from local.serving import HungUpError, Reply, Request, Responder, serving
from tests.fakes.provider import png

SHORT = 0.4  # seconds: long enough to connect, short enough to wait for
AT_MOST_SECONDS = 3.0  # well past SHORT, well before a host that drips gives up
MAX_BYTES = 4 * 1024 * 1024
SMALL = png("small")
LARGE = png("x" * (5 * BLOCK_BYTES))


@dataclass
class Host:
    """Answers each path as `pages` says. `over` is set when the test ends."""

    port: int
    pages: dict[str, Responder]
    requests: list[Request]
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/1.png") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def has(self, reply: Reply | Responder, path: str = "/1.png") -> None:
        self.pages[path] = (lambda _: reply) if isinstance(reply, Reply) else reply

    def source(self, max_bytes: int = MAX_BYTES) -> HttpImageSource:
        return HttpImageSource(HttpPool(), UrlGuard(f"{self.url('')}/v1", _never_asked), max_bytes=max_bytes)


def _never_asked(host: str, port: int) -> list[str]:
    raise AssertionError(f"nobody may ask where {host}:{port} is")


@pytest.fixture
def host() -> Iterator[Host]:
    yield from a_host()


@pytest.fixture
def canary() -> Iterator[Host]:
    """Another server on this machine, which nothing may reach."""
    yield from a_host()


def a_host() -> Iterator[Host]:
    pages: dict[str, Responder] = {}
    requests: list[Request] = []

    def respond(request: Request) -> Reply:
        requests.append(request)
        page = pages.get(request.target)
        return page(request) if page else Reply(404, b"no such page")

    with serving(respond) as port:
        host = Host(port, pages, requests)
        try:
            yield host
        finally:
            host.over.set()


def blocks_of(source: HttpImageSource, what: str | bytes, *, seconds: float = 10) -> tuple[str, list[bytes]]:
    with source.open(what, Deadline.after(seconds)) as body:
        blocks = list(body.blocks)
        assert sum(len(block) for block in blocks) == body.length
        return body.media_type, blocks


def raw(head: bytes, *parts: bytes) -> Responder:
    """Writes an answer by hand and hangs up."""

    def respond(request: Request) -> Reply:
        request.connection.sendall(head.replace(b"\n", b"\r\n"))
        for part in parts:
            request.connection.sendall(part)
        raise HungUpError

    return respond


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class TestWhole:
    def test_bytes_at_hand_need_no_host(self, host: Host) -> None:
        assert blocks_of(host.source(), SMALL) == ("image/png", [SMALL])
        assert host.requests == []

    def test_a_small_image_comes_whole(self, host: Host) -> None:
        host.has(Reply(200, SMALL))

        assert blocks_of(host.source(), host.url()) == ("image/png", [SMALL])

    def test_a_large_image_with_a_length_is_streamed_in_blocks(self, host: Host) -> None:
        host.has(Reply(200, LARGE))

        kind, blocks = blocks_of(host.source(), host.url())

        assert kind == "image/png"
        assert b"".join(blocks) == LARGE
        assert max(len(block) for block in blocks) == BLOCK_BYTES

    def test_an_image_with_a_length_is_handed_on_before_the_host_has_sent_all_of_it(self, host: Host) -> None:
        go_on = threading.Event()

        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE))
            request.connection.sendall(LARGE[: 3 * BLOCK_BYTES])
            assert go_on.wait(AT_MOST_SECONDS)
            request.connection.sendall(LARGE[3 * BLOCK_BYTES :])
            raise HungUpError

        host.has(respond)

        with host.source().open(host.url(), Deadline.after(10)) as body:
            first = next(body.blocks)
            go_on.set()
            assert first + b"".join(body.blocks) == LARGE
            assert body.length == len(LARGE)

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("size", [1000, 100_000])
    def test_chunks_without_a_length_are_gathered_first(self, host: Host, content: bytes, size: int) -> None:
        chunks = [chunk(content[at : at + size]) for at in range(0, len(content), size)]
        host.has(raw(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", *chunks, b"0\r\n\r\n"))

        kind, blocks = blocks_of(host.source(), host.url())

        assert (kind, b"".join(blocks)) == ("image/png", content)

    def test_a_body_that_only_the_connection_s_end_ends_is_gathered_first(self, host: Host) -> None:
        host.has(raw(b"HTTP/1.1 200 OK\n\n", LARGE))

        assert b"".join(blocks_of(host.source(), host.url())[1]) == LARGE

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    def test_a_packed_body_is_unpacked_although_nobody_asked_for_it(self, host: Host, content: bytes) -> None:
        host.has(Reply(200, gzip.compress(content), {"Content-Encoding": "gzip"}))

        kind, blocks = blocks_of(host.source(), host.url())

        assert (kind, b"".join(blocks)) == ("image/png", content)

    @pytest.mark.parametrize("told", ["text/html", "image/webp", "application/octet-stream", ""])
    def test_the_bytes_tell_the_type_and_not_the_host(self, host: Host, told: str) -> None:
        host.has(Reply(200, SMALL, {"Content-Type": told}))

        assert blocks_of(host.source(), host.url())[0] == "image/png"

    def test_the_query_is_sent_as_it_was_given(self, host: Host) -> None:
        path = "/1.png?se=2026-01-01T00%3A00%3A00Z&sig=a%2Bb%2Fc%3D"
        host.has(Reply(200, SMALL), path)

        blocks_of(host.source(), host.url(path))

        assert host.requests[0].target == path

    def test_no_key_and_no_cookie_is_sent_to_an_image_host(self, host: Host) -> None:
        host.has(Reply(302, headers={"Location": "/2.png", "Set-Cookie": "a=b"}))
        host.has(Reply(200, SMALL), "/2.png")

        blocks_of(host.source(), host.url())

        assert len(host.requests) == 2
        for request in host.requests:
            assert request.method == "GET"
            assert {name.lower() for name, _ in request.headers} == {
                "host",
                "accept",
                "accept-encoding",
                "connection",
                "user-agent",
            }
            assert request.header("Accept-Encoding") == "identity"
            assert request.header("User-Agent") == f"imagegen/{VERSION}"


class TestNotWhole:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"<!doctype html><html></html>",
            b'{"error": {}}',
            b"\x89PN",
            b"<svg/>",
            b"BM",
            b"%PDF-1.7",
            b"\0" * 9999,
        ],
        ids=["nothing", "HTML", "JSON", "three bytes", "SVG", "BMP", "PDF", "zeros"],
    )
    @pytest.mark.parametrize("how", ["length", "chunks", "at hand"])
    def test_what_is_no_image_is_refused_before_any_block(self, host: Host, content: bytes, how: str) -> None:
        if how == "length":
            host.has(Reply(200, content, {"Content-Type": "image/png"}))
        else:
            chunks = [chunk(content)] if content else []
            host.has(raw(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", *chunks, b"0\r\n\r\n"))
        what = content if how == "at hand" else host.url()

        with pytest.raises(NotAnImageError), host.source().open(what, Deadline.after(10)):
            pass

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    def test_an_image_that_ends_too_early_keeps_its_last_block_back(self, host: Host, content: bytes) -> None:
        cut = content[:-20]
        host.has(Reply(200, cut))
        got: list[bytes] = []

        with pytest.raises(ImageTruncatedError), host.source().open(host.url(), Deadline.after(10)) as body:
            got.extend(body.blocks)

        assert len(b"".join(got)) < len(cut)

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param((b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(LARGE), LARGE[:-1]), id="length"),
            pytest.param((b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(LARGE), LARGE[:BLOCK_BYTES]), id="a block"),
            pytest.param((b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(LARGE), b""), id="nothing"),
            pytest.param((b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", chunk(LARGE)), id="no last chunk"),
            pytest.param((b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"fffff\r\n" + LARGE[:99]), id="chunk"),
            pytest.param((b"HTTP/1.1 200 OK\n\n", LARGE[:-20]), id="no length"),
            pytest.param((b"HTTP/1.1 200 OK\nContent-Encoding: gzip\n\n", gzip.compress(LARGE)[:99]), id="gzip"),
            pytest.param((b"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 4\n\n", b"nope"), id="no gzip"),
            pytest.param((b"HTTP/1.1 2", b""), id="status line"),
            pytest.param((b"", b""), id="no answer"),
        ],
    )
    def test_a_download_that_breaks_off_may_be_tried_again(self, host: Host, answer: tuple[bytes, bytes]) -> None:
        host.has(raw(*answer))

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(host.source(), host.url())

        assert len(host.requests) == 1

    def test_bytes_at_hand_that_end_too_early_give_no_block(self, host: Host) -> None:
        with host.source().open(SMALL[:-20], Deadline.after(10)) as body, pytest.raises(ImageTruncatedError):
            next(body.blocks)

    def test_a_closed_port_may_be_tried_again(self, host: Host) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            host.port = listener.getsockname()[1]

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(host.source(), host.url())


class TestTooLarge:
    def test_a_length_over_the_limit_is_refused_before_any_byte_is_read(self, host: Host) -> None:
        host.has(lambda request: hangs_after_head(host, request, b"Content-Length: 1001"))
        begun = time.monotonic()

        with pytest.raises(ImageTooLargeError):
            blocks_of(host.source(1000), host.url())

        assert time.monotonic() - begun < AT_MOST_SECONDS

    @pytest.mark.parametrize("length", ["9" * 25, "9" * 5000])
    def test_a_length_beyond_reason_is_refused_or_ignored_and_no_fault_of_ours(self, host: Host, length: str) -> None:
        host.has(raw(f"HTTP/1.1 200 OK\nContent-Length: {length}\n\n".encode(), SMALL))

        with suppress(MoneySpentError):  # and nothing else
            assert blocks_of(host.source(), host.url()) == ("image/png", [SMALL])

    def test_an_image_of_the_limit_passes_and_one_byte_more_does_not(self, host: Host) -> None:
        host.has(Reply(200, LARGE))

        assert b"".join(blocks_of(host.source(len(LARGE)), host.url())[1]) == LARGE
        with pytest.raises(ImageTooLargeError):
            blocks_of(host.source(len(LARGE) - 1), host.url())
        with pytest.raises(ImageTooLargeError):
            blocks_of(host.source(len(LARGE) - 1), LARGE)

    @pytest.mark.parametrize(
        ("head", "block"),
        [
            (b"Transfer-Encoding: chunked", chunk(SMALL + b"\0" * 0x10000)),
            (b"X-Length: none", SMALL + b"\0" * 0x10000),
        ],
        ids=["chunks", "no length"],
    )
    def test_a_body_without_end_is_cut_at_the_limit(self, host: Host, head: bytes, block: bytes) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % head)
            while not host.over.is_set():
                request.connection.sendall(block)
            raise HungUpError

        host.has(respond)

        with pytest.raises(ImageTooLargeError):
            blocks_of(host.source(), host.url())

    def test_a_small_body_that_unpacks_to_a_huge_one_is_cut_at_the_limit(self, host: Host) -> None:
        bomb = gzip.compress(SMALL + b"\0" * 10 * MAX_BYTES)
        assert len(bomb) < MAX_BYTES
        host.has(Reply(200, bomb, {"Content-Encoding": "gzip"}))

        with pytest.raises(ImageTooLargeError):
            blocks_of(host.source(), host.url())


class TestStatus:
    @pytest.mark.parametrize("status", [404, 408, 409, 425, 429, 500, 502, 503, 504])
    def test_a_status_that_may_pass_is_one_try_that_may_be_repeated(self, host: Host, status: int) -> None:
        host.has(Reply(status, SMALL))
        source = host.source()

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(source, host.url())
        assert len(host.requests) == 1

        host.has(Reply(200, SMALL))
        assert blocks_of(source, host.url()) == ("image/png", [SMALL])

    @pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 403, 405, 410, 416, 451])
    def test_a_status_that_will_not_pass_is_final(self, host: Host, status: int) -> None:
        host.has(Reply(status, SMALL if status not in (204, 304) else b""))

        with pytest.raises(ImageDownloadError) as caught:
            blocks_of(host.source(), host.url())

        assert not isinstance(caught.value, ImageDownloadInterruptedError)
        assert len(host.requests) == 1


class TestRedirect:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("location", ["/2.png", "2.png", "../2.png", "//{origin}/2.png", "http://{origin}/2.png"])
    def test_a_redirect_within_the_upstream_s_own_origin_is_followed(
        self, host: Host, status: int, location: str
    ) -> None:
        host.has(Reply(status, headers={"Location": location.format(origin=f"127.0.0.1:{host.port}")}))
        host.has(Reply(200, SMALL), "/2.png")

        assert blocks_of(host.source(), host.url()) == ("image/png", [SMALL])

    @pytest.mark.parametrize("hops", [1, 2, 3])
    def test_up_to_three_redirects_are_followed(self, host: Host, hops: int) -> None:
        for hop in range(hops):
            host.has(Reply(302, headers={"Location": f"/{hop + 1}"}), f"/{hop}")
        host.has(Reply(200, SMALL), f"/{hops}")

        assert blocks_of(host.source(), host.url("/0")) == ("image/png", [SMALL])

    def test_four_redirects_are_too_many(self, host: Host) -> None:
        for hop in range(4):
            host.has(Reply(302, headers={"Location": f"/{hop + 1}"}), f"/{hop}")
        host.has(Reply(200, SMALL), "/4")

        with pytest.raises(ImageDownloadError) as caught:
            blocks_of(host.source(), host.url("/0"))

        assert not isinstance(caught.value, ImageDownloadInterruptedError)
        assert [request.target for request in host.requests] == ["/0", "/1", "/2", "/3"]

    def test_a_loop_ends(self, host: Host) -> None:
        host.has(Reply(302, headers={"Location": "/1.png"}))

        with pytest.raises(ImageDownloadError):
            blocks_of(host.source(), host.url())

        assert len(host.requests) == 4

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_to_another_port_of_this_machine_is_not_followed(
        self, host: Host, canary: Host, status: int
    ) -> None:
        canary.has(Reply(200, SMALL))
        host.has(Reply(status, headers={"Location": canary.url()}))

        with pytest.raises(ImageUrlRefusedError):
            blocks_of(host.source(), host.url())

        assert canary.requests == []

    def test_a_second_redirect_is_judged_as_the_first(self, host: Host, canary: Host) -> None:
        canary.has(Reply(200, SMALL))
        host.has(Reply(302, headers={"Location": "/2.png"}))
        host.has(Reply(302, headers={"Location": canary.url()}), "/2.png")

        with pytest.raises(ImageUrlRefusedError):
            blocks_of(host.source(), host.url())

        assert canary.requests == []

    def test_an_image_on_another_port_of_this_machine_is_not_fetched(self, host: Host, canary: Host) -> None:
        canary.has(Reply(200, SMALL))

        with pytest.raises(ImageUrlRefusedError):
            blocks_of(host.source(), canary.url())

        assert canary.requests == []

    @pytest.mark.parametrize("location", ["https://host:8443/", "file:///etc/passwd", "https://u:p@images.example/"])
    def test_a_redirect_to_what_may_not_be_fetched_is_refused(self, host: Host, location: str) -> None:
        host.has(Reply(302, headers={"Location": location}))

        with pytest.raises(ImageUrlRefusedError):
            blocks_of(host.source(), host.url())

    @pytest.mark.parametrize("headers", [{}, {"Location": ""}, {"Location": "http://[::1"}])
    def test_a_redirect_to_nowhere_is_final(self, host: Host, headers: dict[str, str]) -> None:
        host.has(Reply(302, headers=headers))

        with pytest.raises((ImageDownloadError, ImageUrlRefusedError)) as caught:
            blocks_of(host.source(), host.url())

        assert not isinstance(caught.value, ImageDownloadInterruptedError)
        assert len(host.requests) == 1


class TestTooSlow:
    @pytest.mark.parametrize(
        ("head", "drop"),
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + SMALL, b"\0", id="body"),
            pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + SMALL, b"\0", id="body without a length"),
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n\0\r\n", id="chunks"),
            pytest.param(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", id="headers"),
            pytest.param(b"HTTP/1.1 ", b"2", id="status line"),
        ],
    )
    def test_a_host_that_drips_is_cut_at_the_deadline(self, host: Host, head: bytes, drop: bytes) -> None:
        def respond(request: Request) -> Reply:
            request.connection.sendall(head)
            give_up = time.monotonic() + 2 * AT_MOST_SECONDS
            while time.monotonic() < give_up and not host.over.wait(0.03):
                request.connection.sendall(drop)
            raise HungUpError

        host.has(respond)
        begun = time.monotonic()

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(host.source(), host.url(), seconds=SHORT)

        assert time.monotonic() - begun < AT_MOST_SECONDS

    def test_a_host_that_hangs_is_given_up_at_the_deadline(self, host: Host) -> None:
        host.has(lambda request: hangs_after_head(host, request, b"Content-Length: 1000"))
        begun = time.monotonic()

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(host.source(), host.url(), seconds=SHORT)

        assert time.monotonic() - begun < AT_MOST_SECONDS

    def test_with_no_time_left_nothing_is_fetched(self, host: Host) -> None:
        host.has(Reply(200, SMALL))

        with pytest.raises(ImageDownloadInterruptedError):
            blocks_of(host.source(), host.url(), seconds=0)

        assert host.requests == []

    def test_a_connection_that_was_reset_before_the_deadline_makes_no_noise_when_the_deadline_comes(
        self, host: Host
    ) -> None:
        """Nobody catches what a timer's thread raises: pytest and Lambda's log would both show it."""
        was_reset = threading.Event()

        def respond(request: Request) -> Reply:
            request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + LARGE[:BLOCK_BYTES])
            sent.wait(AT_MOST_SECONDS)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
            was_reset.set()
            raise HungUpError

        sent = threading.Event()
        host.has(respond)
        deadline = Deadline.after(SHORT)

        with host.source().open(host.url(), deadline) as body:
            sent.set()
            assert was_reset.wait(AT_MOST_SECONDS)
            time.sleep(deadline.remaining() + 0.1)
            with pytest.raises(ImageDownloadInterruptedError):
                list(body.blocks)


class TestConnections:
    def test_a_connection_that_was_left_in_the_middle_is_closed_and_not_used_again(self, host: Host) -> None:
        host.has(Reply(200, LARGE))
        source = host.source()

        with source.open(host.url(), Deadline.after(10)) as body:
            next(body.blocks)

        assert b"".join(blocks_of(source, host.url())[1]) == LARGE
        first, second = host.requests
        assert first.connection is not second.connection

    def test_a_connection_whose_reader_failed_is_not_used_again(self, host: Host) -> None:
        host.has(Reply(200, LARGE))
        source = host.source()

        with pytest.raises(KeyError), source.open(host.url(), Deadline.after(10)):
            raise KeyError

        assert b"".join(blocks_of(source, host.url())[1]) == LARGE
        assert host.requests[0].connection is not host.requests[1].connection

    def test_ten_downloads_run_side_by_side(self, host: Host) -> None:
        together = threading.Barrier(10)

        def respond(_: Request) -> Reply:
            together.wait(AT_MOST_SECONDS)
            return Reply(200, SMALL)

        host.has(respond)
        source = host.source()
        got: list[tuple[str, list[bytes]]] = []
        threads = [threading.Thread(target=lambda: got.append(blocks_of(source, host.url()))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert got == [("image/png", [SMALL])] * 10


def hangs_after_head(host: Host, request: Request, header: bytes) -> Reply:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % header)
    host.over.wait(2 * AT_MOST_SECONDS)
    raise HungUpError
