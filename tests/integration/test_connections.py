"""No byte of one answer is ever read as another caller's answer, whatever a server sends."""

import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import urllib3

from imagegen.deadline import Deadline
from imagegen.errors import ImageDownloadInterruptedError, ImageTooLargeError, MoneySpentError
from imagegen.images import ImageRequest
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.providers.openai_compatible import OpenAICompatibleProvider

SECONDS = 5
MIB = 2**20

Send = Callable[[bytes], None]
Script = Callable[[Send, bytes], bool]  # what follows a request; whether the connection stays open


@dataclass
class Server:
    """`scripts` say how the requests are answered, in order; later ones are answered well."""

    port: int
    scripts: list[Script] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)  # the number of each request's connection
    later: threading.Event = field(default_factory=threading.Event)  # lets a script send what comes late
    late_is_sent: threading.Event = field(default_factory=threading.Event)

    def get(
        self, pool: HttpPool, name: str, *, reuse: bool, body: Sequence[bytes] = (), seconds: float = SECONDS
    ) -> bytes:
        url = urlsplit(f"http://127.0.0.1:{self.port}/{name}")
        method, length = ("PUT", {"Content-Length": str(sum(map(len, body)))}) if body else ("GET", {})
        response = pool.request(
            method, url, Deadline.after(seconds), headers=length, body=iter(body) if body else None, reuse=reuse
        )
        with closing(response):
            return response.read()


@contextmanager
def serving() -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener.getsockname()[1])
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connections.append(listener.accept()[0])
                number = len(threads)
                threads.append(threading.Thread(target=_serve, args=(server, connections[-1], number), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        server.later.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connection in connections:
            with suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _serve(server: Server, connection: socket.socket, number: int) -> None:
    with connection, connection.makefile("rb") as requests, suppress(OSError):  # the client hung up
        open_ = True
        while open_ and (line := requests.readline()):
            length = 0
            while (header := requests.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            server.connections.append(number)
            script = server.scripts.pop(0) if server.scripts else well
            open_ = script(connection.sendall, line.split()[1].strip(b"/"))
            requests.read(length)


def answer(name: bytes, *, extra: bytes = b"") -> bytes:
    body = b"the answer to " + name
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s" % (len(body), body, extra)


def well(send: Send, name: bytes) -> bool:
    send(answer(name))
    return True


def sends(*pieces: bytes, stays: bool = True) -> Callable[[Server], Script]:
    """These pieces, one a segment; `@` at the beginning stands for the answer. Then the connection `stays` open."""

    def script(send: Send, name: bytes) -> bool:
        for piece in pieces:
            send(answer(name) + piece[1:] if piece[:1] == b"@" else piece)
        return stays

    return lambda _: script


def with_late(first: bytes, late: bytes) -> Callable[[Server], Script]:
    """The second piece comes when the test says so."""

    def made(server: Server) -> Script:
        def script(send: Send, name: bytes) -> bool:
            send(answer(name) if first == b"@" else first)
            server.later.wait(SECONDS)
            try:
                send(answer(name) if late == b"@" else late)
            finally:
                server.late_is_sent.set()
            return True

        return script

    return made


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
STRAY = answer(b"nobody")
ODD = {
    "100": sends(b"HTTP/1.1 100 Continue\r\n\r\n", b"@"),
    "102": sends(b"HTTP/1.1 102 Processing\r\n\r\n", b"@"),
    "103 twice": sends(HINTS, HINTS, b"@"),
    "21 interim answers": sends(HINTS * 21, b"@"),
    "21 times 100": sends(b"HTTP/1.1 100 Continue\r\n\r\n" * 21, b"@"),
    "101": sends(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"@"),
    "bytes behind the body": sends(b"@garbage"),
    "two answers at once": sends(b"@" + STRAY),
    "a body shorter than announced": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nshort", stays=False),
    "a chunk of negative size": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with a sign": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with an underscore": sends(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0_2\r\n{}\r\n0\r\n\r\n"
    ),
    "no chunk size": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n"),
    "a length with a sign": sends(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", STRAY),
    "two lengths": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}", STRAY),
    "no HTTP": sends(b"ICY 200 OK\r\n\r\n"),
}
LATE = {
    "an answer a while after 102": with_late(b"HTTP/1.1 102 Processing\r\n\r\n", b"@"),
    "a second answer a while after the first": with_late(b"@", STRAY),
    "an answer a while after 101": with_late(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"@"),
}


def own_or_error(server: Server, pool: HttpPool, name: str, *, reuse: bool) -> bytes | None:
    """The answer to the request, or None after an error."""
    try:
        got = server.get(pool, name, reuse=reuse)
    except urllib3.exceptions.HTTPError:
        return None
    assert got == f"the answer to {name}".encode()
    return got


@pytest.mark.parametrize("reuse", [False, True], ids=["single", "reused"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_the_next_caller_gets_its_own_answer_after_an_odd_one(odd: Callable[[Server], Script], reuse: bool) -> None:
    with serving() as server:
        pool = HttpPool()
        server.scripts.append(odd(server))

        own_or_error(server, pool, "first", reuse=reuse)

        for name in ("second", "third"):
            assert own_or_error(server, pool, name, reuse=reuse)
        assert server.connections[0] != server.connections[1]


@pytest.mark.parametrize("late", LATE.values(), ids=LATE.keys())
@pytest.mark.parametrize("before", [True, False], ids=["before the next request", "after it"])
def test_what_comes_late_reaches_no_other_caller(late: Callable[[Server], Script], before: bool) -> None:
    with serving() as server:
        pool = HttpPool()
        server.scripts.append(late(server))
        first = threading.Thread(target=own_or_error, args=(server, pool, "first"), kwargs={"reuse": False})
        first.start()
        while not server.connections:
            first.join(0.01)
        if before:
            server.later.set()
            server.late_is_sent.wait(SECONDS)

        assert own_or_error(server, pool, "second", reuse=False)

        server.later.set()
        first.join()
        assert own_or_error(server, pool, "third", reuse=False)


@pytest.mark.parametrize("answers", [1, 2, 20])
def test_the_real_answer_behind_interim_ones_counts(answers: int) -> None:
    with serving() as server:
        server.scripts.append(sends(HINTS * answers, b"@")(server))

        assert own_or_error(server, HttpPool(), "first", reuse=False)


def test_an_answer_that_comes_before_the_request_is_sent_ends_the_connection() -> None:
    with serving() as server:
        pool = HttpPool()

        with suppress(urllib3.exceptions.HTTPError):
            server.get(pool, "first", reuse=True, body=[b"x" * MIB] * 40)

        assert own_or_error(server, pool, "second", reuse=True)
        assert server.connections[0] != server.connections[1]


def test_good_answers_share_a_connection_only_if_that_is_asked_for() -> None:
    with serving() as server:
        pool = HttpPool()
        for reuse in (True, True, True, False, False):
            assert own_or_error(server, pool, "any", reuse=reuse)

    assert server.connections == [0, 0, 0, 1, 2]


def test_an_answer_that_says_close_ends_the_connection() -> None:
    with serving() as server:
        pool = HttpPool()
        server.scripts.append(sends(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")(server))
        server.get(pool, "first", reuse=True)

        assert own_or_error(server, pool, "second", reuse=True)
    assert server.connections == [0, 1]


@pytest.mark.parametrize("reuse", [False, True], ids=["single", "reused"])
def test_pieces_picked_by_a_seed_never_reach_another_caller(reuse: bool) -> None:
    pieces = [
        HINTS,
        STRAY,
        b"x",
        b"\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"Content-Length: 4\r\n\r\n",
        b"0\r\n\r\n",
    ]
    with serving() as server:
        for seed in range(100):
            pool, chosen = HttpPool(), random.Random(seed)
            segment = b"".join(chosen.choices(pieces, k=chosen.randint(1, 5)))
            server.scripts.append(
                sends(b"@" + segment if chosen.random() < 0.5 else segment, stays=seed % 5 == 0)(server)
            )

            with suppress(urllib3.exceptions.HTTPError):
                server.get(pool, "first", reuse=reuse, seconds=0.1)
            server.scripts.clear()

            for name in ("second", "third"):
                assert own_or_error(server, pool, name, reuse=reuse), f"seed {seed}"


@pytest.mark.parametrize(
    "odd", [name for name in ODD if "chunk" in name or name in ("101", "21 interim answers", "two lengths", "no HTTP")]
)
def test_an_odd_answer_to_a_paid_call_may_have_been_paid(odd: str) -> None:
    with serving() as server:
        server.scripts.append(ODD[odd](server))
        provider = OpenAICompatibleProvider(
            HttpPool(),
            base_url=f"http://127.0.0.1:{server.port}/v1",
            key=lambda _: "key",
            timeout=SECONDS,
            max_image_bytes=MIB,
        )

        with pytest.raises(MoneySpentError):
            provider.generate(ImageRequest("a cat", "dall-e-3", "url"), 1, Deadline.after(SECONDS))

        assert len(server.connections) == 1


def test_a_chunk_size_that_no_server_should_send_does_not_pass_by_the_limit_of_an_image() -> None:
    sent = 0

    def floods(send: Send, _: bytes) -> bool:
        nonlocal sent
        send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _i in range(200):
            send(b"\0" * MIB)
            sent += 1
        return False

    with serving() as server:
        server.scripts.append(floods)
        base = f"http://127.0.0.1:{server.port}/v1"
        source = HttpImageSource(HttpPool(), UrlGuard(base), max_bytes=MIB)

        with (
            pytest.raises((ImageDownloadInterruptedError, ImageTooLargeError)),
            source.open(base, Deadline.after(SECONDS)),
        ):
            pass

    assert sent < 20  # what the sockets hold
