"""A small HTTP/1.1 server on 127.0.0.1 for all parts of the local stack."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """`target` is the path with the query, as sent. Tests use `connection` to break it.

    A streaming server leaves `body` empty. The responder reads `blocks` as they arrive, then finds the `trailers`.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: socket.socket
    blocks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    trailers: dict[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True)
class Reply:
    """`declared_length` replaces the body's length in Content-Length.

    `blocks` replaces `body`: they are sent as they come, chunked unless `headers` has a Content-Length. The connection
    ends early if the iterator raises BrokenStreamError, or if the blocks have another length than the declared one.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    declared_length: int | None = None
    blocks: Iterator[bytes] | None = None


class PortError(Exception):
    """The server cannot listen on the port. The message says what to do."""


class HungUpError(Exception):
    """Raised by a responder to close the connection without an answer."""


class BrokenStreamError(Exception):
    """The rest of a streamed body does not come."""


Responder = Callable[[Request], Reply]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # tests open hundreds of connections at once
    responder: Responder
    is_streaming: bool

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline:
            self.close_connection = True
            return
        if not self.parse_request():
            return
        trailers: dict[str, str] = {}
        blocks: Iterator[bytes] = iter(())
        if self.server.is_streaming:
            body, blocks = b"", self._blocks(trailers)
        else:
            body = b"".join(self._blocks(trailers))
        request = Request(self.command, self.path, self.headers.items(), body, self.connection, blocks, trailers)
        try:
            reply = self.server.responder(request)
        except HungUpError:
            self._hang_up()
            return
        self._send(reply)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _blocks(self, trailers: dict[str, str]) -> Iterator[bytes]:
        """The body in blocks. Raises BrokenStreamError if it ends too early."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MOST_BODY_BYTES))
            return
        while size := int(self._line().partition(";")[0], 16):
            try:
                block = self.rfile.read(size)
            except OSError:
                raise BrokenStreamError from None
            if len(block) < size:
                raise BrokenStreamError
            yield block
            self._line()
        while line := self._line():
            name, _, value = line.partition(":")
            trailers[name.lower()] = value.strip()

    def _line(self) -> str:
        try:
            line = self.rfile.readline()
        except OSError:
            raise BrokenStreamError from None
        if not line.endswith(b"\n"):
            raise BrokenStreamError
        return line.strip().decode("latin-1")

    def _send(self, reply: Reply) -> None:
        headers = dict(reply.headers)
        if reply.blocks is None:
            headers = {"Content-Length": str(_length(reply)), **headers}
        declared = next((int(value) for name, value in headers.items() if name.lower() == "content-length"), None)
        self.send_response_only(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if declared is None:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command != "HEAD":
            if reply.blocks is None:
                self.wfile.write(reply.body)
            elif not self._send_blocks(reply.blocks, declared):
                self._hang_up()
                return
        self.wfile.flush()
        if reply.blocks is None and _length(reply) != len(reply.body):
            self.close_connection = True

    def _send_blocks(self, blocks: Iterator[bytes], declared: int | None) -> bool:
        """Returns whether the body is whole. Chunked if no length is declared."""
        self.wfile.flush()  # the status and the headers: the first block may come later
        sent = 0
        try:
            for block in blocks:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if declared is None and block else block)
                self.wfile.flush()
                sent += len(block)
        except BrokenStreamError:
            return False
        if declared is None:
            self.wfile.write(b"0\r\n\r\n")
        return declared in (None, sent)


def _length(reply: Reply) -> int:
    return len(reply.body) if reply.declared_length is None else reply.declared_length


@contextmanager
def serving(responder: Responder, port: int = 0, *, is_streaming: bool = False) -> Iterator[int]:
    """Serves until the block ends. Yields the port, a free one if `port` is 0. Raises PortError.

    With `is_streaming` the responder reads the bodies of requests itself.
    """
    try:
        server = _Server(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise PortError(f"cannot listen on port {port} ({error.strerror}): set another with PORT=…") from None
    server.responder, server.is_streaming = responder, is_streaming
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
