"""A small HTTP/1.1 server on 127.0.0.1 for all parts of the local stack."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """`target` is the path with the query, as sent. Tests use `connection` to break it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: socket.socket

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True)
class Reply:
    """`declared_length` replaces the body's length in Content-Length."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    declared_length: int | None = None


class PortError(Exception):
    """The server cannot listen on the port. The message says what to do."""


class HungUpError(Exception):
    """Raised by a responder to close the connection without an answer."""


Responder = Callable[[Request], Reply]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # tests open hundreds of connections at once
    responder: Responder

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
        try:
            reply = self.server.responder(
                Request(self.command, self.path, self.headers.items(), self._body(), self.connection)
            )
        except HungUpError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(reply)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MOST_BODY_BYTES))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _send(self, reply: Reply) -> None:
        length = len(reply.body) if reply.declared_length is None else reply.declared_length
        self.send_response_only(reply.status)
        for name, value in {"Content-Length": str(length), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()
        if length != len(reply.body):
            self.close_connection = True


@contextmanager
def serving(responder: Responder, port: int = 0) -> Iterator[int]:
    """Serves until the block ends. Yields the port, a free one if `port` is 0. Raises PortError."""
    try:
        server = _Server(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise PortError(f"cannot listen on port {port} ({error.strerror}): set another with PORT=…") from None
    server.responder = responder
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
