"""No byte of one answer is ever read as another caller's answer, with any bytes that a server sends."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from urllib3 import HTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageDownloadInterruptedError
from imagegen.domain.images import ImageRequest
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import _KEEPIDLE, HttpPool, _Connection
from imagegen.outbound.url_guard import UrlGuard
from imagegen.providers.openai.provider import OpenAIProvider
from imagegen.providers.upstream_api import UpstreamApi
from tests.fakes.provider import png
from tests.support.models import upstream_request
from tests.support.odd_hosts import CHUNKED, LAST_CHUNK, OK
from tests.support.waiting import SECONDS, until

PAUSE = 0.005  # seconds before a server sends a late piece; the client mostly waits for it
SHORT = 0.05  # seconds that a client waits for an answer without an end
MIB = 2**20
HUGE = bytes(20 * MIB)  # more than the buffers of two sockets hold
REUSE = pytest.mark.parametrize("reuse", [False, True], ids=["single use", "reusable"])

Send = Callable[[bytes], None]
Script = Callable[[Send, bytes], bool]  # answers a request for this name; `True` keeps the connection open


@dataclass
class Server:
    """Answers a request by the script of its path, or with `well` if there is none. Reads bodies over 1 MiB afterwards.

    `connections` holds the number of each request's connection, `open` those that neither side closed.
    `is_done` is set after a script.
    """

    port: int
    scripts: dict[str, Script] = field(default_factory=dict)
    connections: list[int] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    is_done: threading.Event = field(default_factory=threading.Event)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(
        self, pool: HttpPool, name: str, *, reuse: bool, body: bytes | None = None, seconds: float = SECONDS
    ) -> bytes:
        url, deadline = urlsplit(f"{self.origin}/{name}"), Deadline.after(seconds)
        method = "POST" if body else "GET"
        with closing(pool.request(method, url, deadline, headers={}, body=body, reuse=reuse)) as response:
            return response.read()

    def own_or_error(self, pool: HttpPool, name: str, *, reuse: bool, seconds: float = SECONDS) -> bool:
        """Returns `True` for the request's own answer and `False` for an error. Fails on any other answer."""
        try:
            got = self.get(pool, name, reuse=reuse, seconds=seconds)
        except HTTPError:
            return False
        assert got == f"the answer to {name}".encode()
        return True

    def wait_until_closed(self, number: int = 0) -> None:
        until(lambda: number not in self.open, what=f"connection {number} is closed")

    def serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as requests:
            while line := requests.readline():
                length = 0
                while (header := requests.readline()).strip():
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                self.connections.append(number)
                name = line.split()[1].strip(b"/")
                script = self.scripts.get(name.decode(), well)
                if length <= MIB:
                    length -= len(requests.read(length))
                try:
                    if not script(connection.sendall, name):
                        break
                finally:
                    if script is not well:
                        self.is_done.set()
                requests.read(length)
        self.open.discard(number)


@pytest.fixture
def server() -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener.getsockname()[1])
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):  # the test is over
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server.open.add(len(threads))
                connections.append(connection)
                threads.append(threading.Thread(target=server.serve, args=(connection, len(threads))))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for connection in connections:
            with suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def answer(name: bytes) -> bytes:
    return ok(b"the answer to " + name)


def ok(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def well(send: Send, name: bytes) -> bool:
    send(answer(name))
    return True


def sends(*pieces: bytes, ends: bool = False) -> Script:
    """Sends the pieces at intervals, and hangs up if `ends`. `@` stands for the answer to the request."""

    def script(send: Send, name: bytes) -> bool:
        for number, piece in enumerate(pieces):
            time.sleep(PAUSE if number else 0)
            send(piece.replace(b"@", answer(name)))
        return not ends

    return script


def chunked(size: bytes) -> bytes:
    return CHUNKED + size + b"\r\n{}\r\n" + LAST_CHUNK


def with_length(*lengths: bytes) -> bytes:
    return OK + b"".join(b"Content-Length: %s\r\n" % length for length in lengths) + b"\r\n{}"


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"
STRAY = answer(b"another")

INTERIM = {
    "100": sends(CONTINUE + b"@"),
    "102": sends(PROCESSING + b"@"),
    "103": sends(HINTS + b"@"),
    "199": sends(b"HTTP/1.1 199 Odd\r\n\r\n@"),
    "all, each later": sends(CONTINUE, PROCESSING, HINTS, b"@"),
    "40": sends(HINTS * 40 + b"@"),
}
BROKEN = {
    "41 times 100": sends(CONTINUE * 41 + b"@"),
    "41 times 102, later": sends(PROCESSING * 41, b"@"),
    "101": sends(SWITCHING + b"@"),
    "101, later": sends(SWITCHING, b"@"),
    **{
        f"chunk size {size!r}": sends(chunked(size) + STRAY)
        for size in (b"-1", b"-5", b"+2", b"0_2", b"0x2", b"", b" 2", b"2 2", b"2\r", b"f" * 17, b"2;a\rb", b";a")
    },
    "chunk size without end": sends(chunked(b"2;" + b"a" * 9000) + STRAY),
    **{
        f"length {lengths!r:.20}": sends(with_length(*lengths) + STRAY)
        for lengths in ((b"+2",), (b"-2",), (b"0_2",), (b"x",), (b"2, 3",), (b"2", b"3"), (b"2", b"x"), (b"9" * 5000,))
    },
    "no HTTP": sends(b"ICY 200 OK\r\n\r\n" + STRAY),
}
TOO_MUCH = {
    "bytes behind the body": sends(b"@garbage"),
    "a line break behind the body": sends(b"@\r\n"),
    "bytes behind the body, later": sends(b"@", b"x"),
    "two answers at once": sends(b"@" + STRAY),
    "a second answer later": sends(b"@", STRAY),
    "half an answer, the rest later": sends(b"@" + STRAY[:20], STRAY[20:]),
    "a body shorter than declared": sends(with_length(b"9"), ends=True),
    "lengths and chunks": sends(OK + b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n" + LAST_CHUNK + STRAY),
    "chunks that are no chunks": sends(OK + b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 2\r\n\r\n{}", STRAY),
}
ODD = [
    pytest.param(script, own, id=name)
    for table, own in ((INTERIM, True), (BROKEN, False), (TOO_MUCH, None))
    for name, script in table.items()
]


@REUSE
@pytest.mark.parametrize(("odd", "own"), ODD)
def test_an_odd_answer_never_reaches_another_caller(server: Server, odd: Script, own: bool | None, reuse: bool) -> None:
    pool = HttpPool()
    server.scripts["first"] = odd

    if own is None:  # an error or any body
        with suppress(HTTPError):
            server.get(pool, "first", reuse=reuse)
    else:
        assert server.own_or_error(pool, "first", reuse=reuse) is own
    # On a reusable connection a late answer can be recognised only before the next request.
    if reuse:
        assert server.is_done.wait(SECONDS)

    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.is_done.wait(SECONDS)
    assert server.own_or_error(pool, "third", reuse=reuse)
    assert server.connections[0] != server.connections[1]
    if not reuse:
        server.wait_until_closed()
        assert pool is not None  # the pool still exists, so its end did not close the connection


@pytest.mark.parametrize(
    "well_formed",
    [
        *(chunked(size) for size in (b"2", b"02", b"2;a=b", b"2 ;a", b"0" * 15 + b"2", b'2;a="; b"')),
        *(with_length(*lengths) for lengths in ((b"2",), (b"02",), (b"2 ",), (b"2", b"2"))),
    ],
)
def test_chunk_sizes_and_lengths_are_accepted_in_every_valid_form(server: Server, well_formed: bytes) -> None:
    server.scripts["first"] = sends(well_formed)
    assert server.get(HttpPool(), "first", reuse=True) == b"{}"


@REUSE
@pytest.mark.parametrize("hangs_up", [False, True])
def test_an_answer_before_the_end_of_the_request_ends_the_connection(
    server: Server, reuse: bool, hangs_up: bool
) -> None:
    pool = HttpPool()
    server.scripts["first"] = sends(b"@", ends=hangs_up)
    with suppress(*[HTTPError] * hangs_up):
        assert server.get(pool, "first", reuse=reuse, body=HUGE) == b"the answer to first"
    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.connections == [0, 1]


def test_on_a_used_connection_an_answer_before_the_end_of_the_request_is_an_error(server: Server) -> None:
    """It may be a late answer to the previous request."""
    pool = HttpPool()
    server.get(pool, "first", reuse=True)
    with pytest.raises(ProtocolError):
        server.get(pool, "second", reuse=True, body=HUGE)
    assert server.own_or_error(pool, "third", reuse=True)
    assert server.connections == [0, 0, 1]


@REUSE
def test_an_answer_after_a_time_out_reaches_no_other_caller(server: Server, reuse: bool) -> None:
    pool, go_on = HttpPool(), threading.Event()

    def late(send: Send, name: bytes) -> bool:
        send(PROCESSING)
        assert go_on.wait(SECONDS)
        return well(send, name)

    server.scripts["first"] = late
    while not server.connections:  # a slow machine may need several attempts to send the request in time
        assert not server.own_or_error(pool, "first", reuse=reuse, seconds=SHORT)

    assert server.own_or_error(pool, "second", reuse=reuse)
    go_on.set()
    assert server.is_done.wait(SECONDS)
    assert server.own_or_error(pool, "third", reuse=reuse)
    assert server.connections.count(server.connections[0]) == 1


def test_only_reusable_connections_are_shared(server: Server) -> None:
    pool = HttpPool()
    for reuse in (True, True, False, True, False):
        assert server.own_or_error(pool, "any", reuse=reuse)
    assert server.connections == [0, 0, 1, 0, 2]


@pytest.mark.parametrize("size", [1, MIB])
def test_requests_and_answers_with_bodies_share_a_connection(server: Server, size: int) -> None:
    pool, content = HttpPool(), bytes(size)
    server.scripts |= {"first": sends(ok(content)), "late": sends(b"", chunked(b"2"))}
    for name, expected in {"first": content, "late": b"{}", "any": b"the answer to any"}.items():
        assert server.get(pool, name, reuse=True, body=b"small") == expected
    assert server.connections == [0, 0, 0]


@pytest.mark.parametrize("end", [b"Connection: close\r\n", b""], ids=["says close", "hangs up"])
def test_a_connection_that_the_host_ends_is_not_reused(server: Server, end: bytes) -> None:
    pool = HttpPool()
    server.scripts["first"] = sends(OK + end + b"Content-Length: 2\r\n\r\n{}", ends=not end)
    assert server.get(pool, "first", reuse=True) == b"{}"
    server.wait_until_closed()
    assert server.own_or_error(pool, "second", reuse=True)
    assert server.connections == [0, 1]


@pytest.mark.parametrize("clock", ["monotonic", "time"])
@pytest.mark.parametrize(("pause", "connections"), [(0, [0, 0]), (3.9, [0, 0]), (4, [0, 1]), (-1, [0, 1])])
def test_a_connection_that_was_idle_by_either_clock_is_not_reused(
    server: Server, monkeypatch: pytest.MonkeyPatch, clock: str, pause: float, connections: list[int]
) -> None:
    clocks = SimpleNamespace(monotonic=lambda: 100.0, time=lambda: 100.0)
    monkeypatch.setattr("imagegen.outbound.pool.time", clocks)
    pool = HttpPool()
    assert server.own_or_error(pool, "first", reuse=True)
    setattr(clocks, clock, lambda: 100.0 + pause)
    assert server.own_or_error(pool, "second", reuse=True)
    assert server.connections == connections


@REUSE
def test_a_waiting_connection_is_kept_alive(server: Server, monkeypatch: pytest.MonkeyPatch, reuse: bool) -> None:
    options: list[tuple[int, int]] = []
    getresponse = _Connection.getresponse

    def look(connection: _Connection) -> HTTPResponse:
        tcp, alive = socket.IPPROTO_TCP, connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options.append((alive, connection.sock.getsockopt(tcp, _KEEPIDLE)))
        assert connection.sock.getsockopt(tcp, socket.TCP_NODELAY)
        return getresponse(connection)

    monkeypatch.setattr(_Connection, "getresponse", look)
    assert server.own_or_error(HttpPool(), "first", reuse=reuse)

    ((alive, idle),) = options
    assert alive
    assert 0 < idle <= 120  # the first probe is well before 240 s, with time for a second


PIECES = [b"@", b"@", PROCESSING, HINTS, STRAY, b"x", b"\r\n", OK]
PIECES += [b"Content-Length: 4\r\n\r\n", chunked(b"2"), LAST_CHUNK]


@REUSE
def test_random_pieces_reach_no_other_caller(server: Server, reuse: bool) -> None:
    for seed in range(60):
        pool, chosen = HttpPool(), random.Random(seed)
        pieces = chosen.choices(PIECES, k=chosen.randint(1, 5))
        cut = chosen.randint(0, len(pieces))
        ends = chosen.random() < 0.6  # otherwise the client waits for its time-out if an answer has no end
        server.scripts["first"] = sends(b"".join(pieces[:cut]), b"".join(pieces[cut:]), ends=ends)
        server.is_done.clear()

        try:
            server.get(pool, "first", reuse=reuse, seconds=SHORT)
        except (NewConnectionError, ConnectTimeoutError):
            continue  # on a slow machine: nothing was sent
        except HTTPError:
            pass
        assert server.is_done.wait(SECONDS)
        if ends:
            server.wait_until_closed(server.connections[-1])

        for name in ("second", "third"):
            assert server.own_or_error(pool, name, reuse=reuse), f"seed {seed}"


def test_a_huge_body_after_a_negative_chunk_size_is_not_read(server: Server) -> None:
    sent = 0

    def floods(send: Send, _: bytes) -> bool:
        nonlocal sent
        send(CHUNKED + b"-1\r\n")
        for _i in range(100):
            send(bytes(MIB))
            sent += MIB
        return False

    server.scripts["1.png"] = floods

    with pytest.raises(ImageDownloadInterruptedError):
        download(server)

    assert server.is_done.wait(SECONDS)
    assert sent <= 8 * MIB  # the buffers of two sockets


def download(server: Server) -> bytes:
    source = HttpImageSource(HttpPool(), UrlGuard(server.origin), max_bytes=MIB)
    with source.open(f"{server.origin}/1.png", Deadline.after(SECONDS)) as body:
        return b"".join(body.blocks)


def generate(server: Server) -> str | bytes | None:
    base_url = f"{server.origin}/v1"
    api = UpstreamApi(
        HttpPool(), base_url=base_url, is_reseller=True, key=lambda _: "key", timeout=SECONDS, max_image_bytes=MIB
    )
    call = upstream_request(ImageRequest("a cat", "dall-e-3", "url"), 1)
    return OpenAIProvider(api).start(call, Deadline.after(SECONDS)).images[0].source


@pytest.mark.parametrize("ahead", [CONTINUE, HINTS * 40], ids=["100", "40"])
def test_interim_answers_before_an_upstream_answer_and_an_image_are_skipped(server: Server, ahead: bytes) -> None:
    url, image = f"{server.origin}/1.png", png("a cat")
    server.scripts["v1/images/generations"] = sends(ahead, ok(b'{"data":[{"url":"%s"}]}' % url.encode()))
    server.scripts["1.png"] = sends(ahead, ok(image))
    assert generate(server) == url
    assert download(server) == image
    assert server.connections == [0, 1]
