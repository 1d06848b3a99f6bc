"""No byte of one answer is ever read as another caller's answer, whatever a server sends."""

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
from urllib3.exceptions import HTTPError, ProtocolError

from imagegen.deadline import Deadline
from imagegen.errors import ImageDownloadInterruptedError, IssuerUnavailableError, MoneySpentError
from imagegen.images import ImageRequest
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.issuer_keys import IssuerKeys
from imagegen.outbound.pool import _KEEPIDLE, HttpPool, _Connection
from imagegen.outbound.url_guard import UrlGuard
from imagegen.providers.openai_compatible import OpenAICompatibleProvider
from tests.fakes.provider import png

SECONDS = 5.0
PAUSE = 0.05  # seconds before a server sends what comes late
MIB = 2**20
REUSE = pytest.mark.parametrize("reuse", [False, True], ids=["single use", "reusable"])

Send = Callable[[bytes], None]
Script = Callable[[Send, bytes], bool]  # answers a request for this name; whether the connection stays open


@dataclass
class Server:
    """Answers the requests by `scripts`, in order, and all later ones well. Bodies over 1 MiB are read afterwards.

    `connections` holds the number of each request's connection, `open` those that neither side closed.
    `is_done` is set after a script that is not `well`.
    """

    port: int
    scripts: list[Script] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    is_done: threading.Event = field(default_factory=threading.Event)

    def get(
        self, pool: HttpPool, name: str, *, reuse: bool, body: bytes | None = None, seconds: float = SECONDS
    ) -> bytes:
        url = urlsplit(f"http://127.0.0.1:{self.port}/{name}")
        method = "POST" if body else "GET"
        deadline = Deadline.after(seconds)
        with closing(pool.request(method, url, deadline, headers={}, body=body, reuse=reuse)) as response:
            return response.read()

    def own_or_error(self, pool: HttpPool, name: str, *, reuse: bool, seconds: float = SECONDS) -> bool:
        """Whether the answer to the request came and no error. Fails on any other answer."""
        try:
            got = self.get(pool, name, reuse=reuse, seconds=seconds)
        except HTTPError:
            return False
        assert got == f"the answer to {name}".encode()
        return True

    def wait_until_closed(self, number: int = 0) -> None:
        give_up = time.monotonic() + SECONDS
        while number in self.open:
            assert time.monotonic() < give_up
            time.sleep(0.005)


def serve(server: Server, connection: socket.socket, number: int) -> None:
    with suppress(OSError), connection, connection.makefile("rb") as requests:
        while line := requests.readline():
            length = 0
            while (header := requests.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            server.connections.append(number)
            script = server.scripts.pop(0) if server.scripts else well
            if length <= MIB:
                length -= len(requests.read(length))
            try:
                if not script(connection.sendall, line.split()[1].strip(b"/")):
                    break
            finally:
                if script is not well:
                    server.is_done.set()
            requests.read(length)
    server.open.discard(number)


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
                threads.append(threading.Thread(target=serve, args=(server, connection, len(threads))))
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
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def well(send: Send, name: bytes) -> bool:
    send(answer(name))
    return True


def sends(*pieces: bytes) -> Script:
    """Sends the pieces at intervals. `@` stands for the answer to the request."""

    def script(send: Send, name: bytes) -> bool:
        for number, piece in enumerate(pieces):
            time.sleep(PAUSE if number else 0)
            send(piece.replace(b"@", answer(name)))
        return True

    return script


def hangs_up_after(*pieces: bytes) -> Script:
    script = sends(*pieces)
    return lambda send, name: not script(send, name)


def chunked(size: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n{}\r\n0\r\n\r\n" % size


def with_length(*lengths: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n%s\r\n{}" % b"".join(b"Content-Length: %s\r\n" % length for length in lengths)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"
STRAY = answer(b"nobody")

INTERIM = {
    "100": sends(CONTINUE + b"@"),
    "102": sends(PROCESSING + b"@"),
    "103": sends(HINTS + b"@"),
    "199": sends(b"HTTP/1.1 199 Odd\r\n\r\n@"),
    "100, later": sends(CONTINUE, b"@"),
    "102, later": sends(PROCESSING, b"@"),
    "103, later": sends(HINTS, b"@"),
    "all, each later": sends(CONTINUE, PROCESSING, HINTS, b"@"),
    "20": sends(HINTS * 20 + b"@"),
}
BROKEN = {
    "21 times 100": sends(CONTINUE * 21 + b"@"),
    "21 times 102, later": sends(PROCESSING * 21, b"@"),
    "101": sends(SWITCHING + b"@"),
    "101, later": sends(SWITCHING, b"@"),
    **{
        f"chunk size {size!r}": sends(chunked(size) + STRAY)
        for size in (b"-1", b"-5", b"+2", b"0_2", b"0x2", b"", b" 2", b"2 2", b"2\r", b"f" * 17, b"2;a\rb", b";a")
    },
    "chunk size without end": sends(chunked(b"2;" + b"a" * 9000) + STRAY),
    **{
        f"length {lengths!r}": sends(with_length(*lengths) + STRAY)
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
    "a body shorter than announced": hangs_up_after(with_length(b"9")),
    "lengths and chunks": sends(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n0\r\n\r\n" + STRAY
    ),
    "chunks that are no chunks": sends(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 2\r\n\r\n{}", STRAY
    ),
}
ODD = {**INTERIM, **BROKEN, **TOO_MUCH}


@REUSE
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_the_next_caller_gets_its_own_answer_after_an_odd_one(server: Server, odd: Script, reuse: bool) -> None:
    pool = HttpPool()
    server.scripts.append(odd)

    with suppress(HTTPError):
        server.get(pool, "first", reuse=reuse)
    # On a reusable connection a late answer can be recognised only if it comes before the next request.
    if reuse:
        assert server.is_done.wait(SECONDS)

    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.is_done.wait(SECONDS)
    assert server.own_or_error(pool, "third", reuse=reuse)
    assert server.connections[0] != server.connections[1]


@REUSE
@pytest.mark.parametrize("interim", INTERIM.values(), ids=INTERIM.keys())
def test_the_answer_behind_up_to_20_interim_ones_counts(server: Server, interim: Script, reuse: bool) -> None:
    server.scripts.append(interim)

    assert server.own_or_error(HttpPool(), "first", reuse=reuse)


@REUSE
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_that_breaks_the_rules_is_an_error(server: Server, broken: Script, reuse: bool) -> None:
    server.scripts.append(broken)

    assert not server.own_or_error(HttpPool(), "first", reuse=reuse)


@pytest.mark.parametrize("size", [b"2", b"02", b"2;a=b", b"2 ;a", b"0" * 15 + b"2", b'2;a="; b"'])
def test_a_chunk_size_may_have_zeros_ahead_and_extensions_behind(server: Server, size: bytes) -> None:
    server.scripts.append(sends(chunked(size)))

    assert server.get(HttpPool(), "first", reuse=True) == b"{}"


@pytest.mark.parametrize("lengths", [(b"2",), (b"02",), (b"2 ",), (b"2", b"2")])
def test_a_length_may_be_repeated(server: Server, lengths: tuple[bytes, ...]) -> None:
    server.scripts.append(sends(with_length(*lengths)))

    assert server.get(HttpPool(), "first", reuse=True) == b"{}"


@REUSE
def test_an_answer_that_comes_before_the_request_is_sent_counts_and_ends_the_connection(
    server: Server, reuse: bool
) -> None:
    pool = HttpPool()

    assert server.get(pool, "first", reuse=reuse, body=bytes(20 * MIB)) == b"the answer to first"

    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.connections == [0, 1]


def test_on_a_used_connection_an_answer_that_comes_before_the_request_is_sent_is_an_error(server: Server) -> None:
    """It may be a late one to the request before."""
    pool = HttpPool()
    server.get(pool, "first", reuse=True)

    with pytest.raises(ProtocolError):
        server.get(pool, "second", reuse=True, body=bytes(20 * MIB))

    assert server.own_or_error(pool, "third", reuse=True)
    assert server.connections == [0, 0, 1]


@REUSE
def test_a_host_that_hangs_up_while_it_is_sent_to_ends_the_connection(server: Server, reuse: bool) -> None:
    pool = HttpPool()
    server.scripts.append(hangs_up_after(b"@"))

    with suppress(HTTPError):
        assert server.get(pool, "first", reuse=reuse, body=bytes(20 * MIB)) == b"the answer to first"

    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.connections == [0, 1]


@REUSE
def test_the_answer_that_comes_after_a_time_out_reaches_no_other_caller(server: Server, reuse: bool) -> None:
    pool = HttpPool()
    server.scripts.append(INTERIM["102, later"])

    assert not server.own_or_error(pool, "first", reuse=reuse, seconds=PAUSE / 2)

    assert server.own_or_error(pool, "second", reuse=reuse)
    assert server.is_done.wait(SECONDS)
    assert server.own_or_error(pool, "third", reuse=reuse)
    assert server.connections[:2] == [0, 1]


def test_connections_are_shared_only_where_that_is_asked_for(server: Server) -> None:
    pool = HttpPool()

    for reuse in (True, True, False, True, False):
        assert server.own_or_error(pool, "any", reuse=reuse)

    assert server.connections == [0, 0, 1, 0, 2]


@pytest.mark.parametrize("size", [1, 100_000, MIB])
def test_a_connection_is_shared_by_requests_and_answers_with_bodies(server: Server, size: int) -> None:
    pool = HttpPool()
    content = bytes(size)

    def takes_its_time(send: Send, name: bytes) -> bool:
        time.sleep(PAUSE)
        send(chunked(b"2"))
        return True

    server.scripts.extend([sends(ok(content)), takes_its_time])
    for expected in (content, b"{}", b"the answer to any"):
        assert server.get(pool, "any", reuse=True, body=b"small") == expected

    assert server.connections == [0, 0, 0]


@pytest.mark.parametrize("end", [b"Connection: close\r\n", b""], ids=["says close", "hangs up"])
def test_a_connection_that_the_host_ends_is_not_used_again(server: Server, end: bytes) -> None:
    pool = HttpPool()
    reply = b"HTTP/1.1 200 OK\r\n%sContent-Length: 2\r\n\r\n{}" % end
    server.scripts.append(sends(reply) if end else hangs_up_after(reply))

    assert server.get(pool, "first", reuse=True) == b"{}"
    server.wait_until_closed()

    assert server.own_or_error(pool, "second", reuse=True)
    assert server.connections == [0, 1]


def test_a_connection_that_idled_is_not_used_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.outbound.pool.IDLE_SECONDS", 0)
    pool = HttpPool()

    for name in ("first", "second"):
        assert server.own_or_error(pool, name, reuse=True)

    assert server.connections == [0, 1]


@pytest.mark.parametrize("clock", ["monotonic", "time"])
@pytest.mark.parametrize(("pause", "connections"), [(3, [0, 0]), (5, [0, 1]), (-1, [0, 1])])
def test_a_connection_that_slept_through_a_freeze_by_either_clock_is_not_used_again(
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
def test_a_connection_that_waits_for_its_answer_is_kept_alive(
    server: Server, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
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
    assert 0 < idle <= 120  # a first sign well before 240 s, and time for a second


@pytest.mark.parametrize("script", [well, *INTERIM.values(), *BROKEN.values()], ids=["well", *INTERIM, *BROKEN])
def test_a_connection_for_a_single_use_is_closed_after_the_answer(server: Server, script: Script) -> None:
    pool = HttpPool()
    server.scripts.append(script)

    server.own_or_error(pool, "first", reuse=False)

    server.wait_until_closed()
    assert pool is not None  # it is not its end that closed the connection


PIECES = (b"@", b"@", PROCESSING, HINTS, STRAY, b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n", b"Content-Length: 4\r\n\r\n")


@REUSE
def test_pieces_picked_by_a_seed_reach_no_other_caller(server: Server, reuse: bool) -> None:
    for seed in range(150):
        pool, chosen = HttpPool(), random.Random(seed)
        pieces = chosen.choices((*PIECES, chunked(b"2"), b"0\r\n\r\n"), k=chosen.randint(1, 5))
        cut = chosen.randint(0, len(pieces))
        stays_open = chosen.random() < 0.3  # the client waits for its time-out where an answer has no end
        server.is_done.clear()

        def script(
            send: Send, name: bytes, pieces: list[bytes] = pieces, cut: int = cut, stays_open: bool = stays_open
        ) -> bool:
            for part in (pieces[:cut], pieces[cut:]):
                send(b"".join(part).replace(b"@", answer(name)))
            return stays_open

        server.scripts.append(script)

        with suppress(HTTPError):
            server.get(pool, "first", reuse=reuse, seconds=PAUSE)
        assert server.is_done.wait(SECONDS)
        if not stays_open:
            server.wait_until_closed(server.connections[-1])

        for name in ("second", "third"):
            assert server.own_or_error(pool, name, reuse=reuse), f"seed {seed}"


def test_a_huge_body_behind_a_negative_chunk_size_is_not_read(server: Server) -> None:
    sent = 0

    def floods(send: Send, _: bytes) -> bool:
        nonlocal sent
        send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _i in range(100):
            send(bytes(MIB))
            sent += MIB
        return False

    server.scripts.append(floods)

    with pytest.raises(ImageDownloadInterruptedError):
        download(server)

    assert server.is_done.wait(SECONDS)
    assert sent <= 8 * MIB  # what the buffers of two sockets hold


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_image_host_and_an_issuer_that_break_the_rules_end_in_their_own_errors(
    server: Server, broken: Script
) -> None:
    server.scripts.extend([broken, broken])

    with pytest.raises(ImageDownloadInterruptedError):
        download(server)
    with pytest.raises(IssuerUnavailableError):
        IssuerKeys(HttpPool(), f"http://127.0.0.1:{server.port}").find("key", "RS256")


def download(server: Server) -> bytes:
    origin = f"http://127.0.0.1:{server.port}"
    source = HttpImageSource(HttpPool(), UrlGuard(origin), max_bytes=MIB)
    with source.open(f"{origin}/1.png", Deadline.after(SECONDS)) as body:
        return b"".join(body.blocks)


def generate(server: Server) -> str | bytes | None:
    provider = OpenAICompatibleProvider(
        HttpPool(),
        base_url=f"http://127.0.0.1:{server.port}/v1",
        key=lambda _: "key",
        timeout=SECONDS,
        max_image_bytes=MIB,
    )
    return provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, Deadline.after(SECONDS)).images[0].source


@pytest.mark.parametrize("ahead", [CONTINUE, PROCESSING, HINTS, HINTS * 20], ids=["100", "102", "103", "20"])
def test_interim_answers_before_a_paid_one_and_before_its_image_are_skipped(server: Server, ahead: bytes) -> None:
    url, image = f"http://127.0.0.1:{server.port}/1.png", png("a cat")
    server.scripts.extend([sends(ahead, ok(b'{"data":[{"url":"%s"}]}' % url.encode())), sends(ahead, ok(image))])

    assert generate(server) == url
    assert download(server) == image
    assert server.connections == [0, 1]


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_to_a_paid_call_that_breaks_the_rules_may_have_been_paid(server: Server, broken: Script) -> None:
    server.scripts.append(broken)

    with pytest.raises(MoneySpentError):
        generate(server)

    assert len(server.connections) == 1
