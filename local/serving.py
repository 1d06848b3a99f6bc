"""A small HTTP/1.1 server on 127.0.0.1 for all parts of the local stack."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_BODY_BYTES = 64 * 1024 * 1024
_BODY_SECONDS = 60.0  # without a byte of a body that is not whole
_LINGER_SECONDS = 5.0  # without a byte of a body that was refused
_PIECE_BYTES = 1024 * 1024  # read at once; also the maximum of a line between the chunks
_MOST_TRAILERS = 100


@dataclass(frozen=True)
class Request:
    """`target` is the path with the query, as sent. Tests use `connection` to break it.

    A streaming server leaves `body` empty. The responder reads `blocks` as they arrive, then finds the `trailers`.
    `body` is also empty if it `is_too_long` for the server. Then the connection ends after the answer.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: socket.socket
    blocks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    trailers: dict[str, str] = field(default_factory=dict)
    is_too_long: bool = False

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
    most_body_bytes: int
    body_seconds: float

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
        body: bytes | None = b""
        blocks: Iterator[bytes] = iter(())
        if self.server.is_streaming:
            blocks = self._blocks(trailers)
        else:
            try:
                body = self._body(trailers)
            except BrokenStreamError:
                self._send_and_close(Reply(400, b"Bad Request", {"Content-Type": "text/plain"}))
                return
        head = self.command, self.path, self.headers.items()
        request = Request(*head, body or b"", self.connection, blocks, trailers, is_too_long=body is None)
        try:
            reply = self.server.responder(request)
        except HungUpError:
            self._hang_up()
            return
        if request.is_too_long:
            self._send_and_close(reply)
        else:
            self._send(reply)

    def handle_expect_100(self) -> bool:
        """Asks for the body, unless it is too long. Without this answer, curl waits a second before it sends it."""
        with suppress(BrokenStreamError):
            if (self._declared_length() or 0) <= self.server.most_body_bytes:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.wfile.flush()
        return True

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send_and_close(self, reply: Reply) -> None:
        """Answers, then reads and drops what the client is still sending.

        A connection that is closed with unread bytes is reset, so that the client may lose the answer.
        """
        self._send(replace(reply, headers={**reply.headers, "Connection": "close"}))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            left = _MOST_BODY_BYTES
            while left > 0 and (piece := self.connection.recv(_PIECE_BYTES)):
                left -= len(piece)

    def _body(self, trailers: dict[str, str]) -> bytes | None:
        """None if it is longer than the server takes; then a part of it is unread.

        Raises BrokenStreamError if it is malformed, incomplete, or does not come.
        """
        if (self._declared_length() or 0) > self.server.most_body_bytes:
            return None
        body = bytearray()  # a list of the chunks could take many times their size
        self.connection.settimeout(self.server.body_seconds)
        for block in self._blocks(trailers):
            body += block
            if len(body) > self.server.most_body_bytes:
                return None
        self.connection.settimeout(None)
        return bytes(body)

    def _blocks(self, trailers: dict[str, str]) -> Iterator[bytes]:
        """The body in blocks. Raises BrokenStreamError if it is malformed or ends too early."""
        length = self._declared_length()
        if length is not None:
            yield from self._pieces(length)
            return
        while size := self._chunk_size():
            yield from self._pieces(size)
            if self._line():
                raise BrokenStreamError
        for _ in range(_MOST_TRAILERS):
            line = self._line()
            if not line:
                return
            name, _, value = line.partition(":")
            trailers[name.lower()] = value.strip()
        raise BrokenStreamError

    def _declared_length(self) -> int | None:
        """None if the body is chunked. Raises BrokenStreamError if the headers contradict each other or themselves."""
        lengths = {length.strip() for length in self.headers.get_all("Content-Length", [])}
        codings = [coding.strip().lower() for coding in self.headers.get_all("Transfer-Encoding", [])]
        if codings == ["chunked"] and not lengths:
            return None
        length = lengths.pop() if lengths else "0"
        if codings or lengths or not re.fullmatch(r"[0-9]{1,18}", length):
            raise BrokenStreamError
        return int(length)

    def _chunk_size(self) -> int:
        size = re.fullmatch(r"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", self._line())
        if size is None:
            raise BrokenStreamError
        return int(size[1], 16)

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            wanted = min(size, _PIECE_BYTES)
            try:
                piece = self.rfile.read(wanted)
            except OSError:
                raise BrokenStreamError from None
            if len(piece) < wanted:
                raise BrokenStreamError
            size -= wanted
            yield piece

    def _line(self) -> str:
        try:
            line = self.rfile.readline(_PIECE_BYTES)
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
def serving(
    responder: Responder,
    port: int = 0,
    *,
    is_streaming: bool = False,
    most_body_bytes: int = _MOST_BODY_BYTES,
    body_seconds: float = _BODY_SECONDS,
) -> Iterator[int]:
    """Serves until the block ends. Yields the port, a free one if `port` is 0. Raises PortError.

    With `is_streaming` the responder reads the bodies of requests itself. Otherwise a request whose body is malformed,
    ends too early or sends no byte for `body_seconds` is a 400, and a body over `most_body_bytes` is not read.
    """
    try:
        server = _Server(("127.0.0.1", port), _Handler)
    except OSError as error:
        raise PortError(f"cannot listen on port {port} ({error.strerror}): set another with PORT=…") from None
    server.responder, server.is_streaming = responder, is_streaming
    server.most_body_bytes, server.body_seconds = most_body_bytes, body_seconds
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
