"""Responders of `local.serving` that break HTTP or never finish an answer."""

import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

import pytest

from local.serving import HungUpError, Reply, Request, Responder, serving
from tests.support.waiting import until

T = TypeVar("T")

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_DRIPS = 6000  # about a minute; then the client has waited for too long
_TIME_OUTS = (0.1, 0.5, 2.5, 12.5)  # seconds
# Each is an answer without an end if the second part is repeated.
EACH_DRIP = pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(OK + b"Content-Length: 100000\r\n\r\n", b" ", id="body"),
        pytest.param(OK + b"\r\n", b" ", id="body without a length"),
        pytest.param(CHUNKED, b"1\r\n \r\n", id="chunks"),
        pytest.param(OK + b"X-Slow: ", b"x", id="headers"),
        pytest.param(b"HTTP/1.1", b" ", id="status line"),  # never one with a status in it, wherever it is cut
    ],
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def writes(*parts: bytes) -> Responder:
    """Writes these bytes and hangs up."""

    def respond(request: Request) -> Reply:
        for part in parts:
            request.connection.sendall(part)
        raise HungUpError

    return respond


class ReusableHost:
    """Serves many tests on one port, since starting and ending a server takes time. Each sets its own responder."""

    port: int
    respond: Responder

    def answer(self, request: Request) -> Reply:
        return self.respond(request)


@contextmanager
def reusable_host() -> Iterator[ReusableHost]:
    host = ReusableHost()
    with serving(host.answer) as host.port:
        yield host


class SlowHost:
    """Sends until the client hangs up. `gave_up` is set if the client does not in about a minute."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.gave_up = threading.Event()

    def drips(self, head: bytes, drop: bytes) -> Responder:
        """Sends `drop` again and again, faster than any time-out of a socket. An empty `drop` sends nothing."""

        def respond(request: Request) -> Reply:
            request.connection.sendall(head)
            for _ in range(_DRIPS):
                if self.over.wait(0.01):
                    raise HungUpError
                request.connection.sendall(drop)
            self.gave_up.set()
            raise HungUpError

        return respond

    def cuts(self, attempt: Callable[[float], T], requests: Sized, *, too_soon: Callable[[T], bool]) -> T:
        """The result of an attempt with a time-out in seconds. A slow machine gets a longer one.

        Each attempt makes one request at most, which may come late.
        """
        attempts = 0
        for seconds in _TIME_OUTS:
            attempts += 1
            result = attempt(seconds)
            if not too_soon(result):
                break
        until(lambda: requests, what="a request")
        assert len(requests) <= attempts
        assert not self.gave_up.is_set()
        return result
