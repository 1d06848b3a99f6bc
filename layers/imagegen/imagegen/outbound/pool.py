"""Opens and reuses the connections of all HTTP calls except those of the AWS SDK, and reads the answers."""

import http.client
import re
import socket
import time
from collections.abc import Iterable, Mapping
from functools import partial
from io import BufferedReader
from ssl import SSLContext, SSLWantReadError
from typing import Any
from urllib.parse import SplitResult

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, SSLError
from urllib3.util.ssl_ import create_urllib3_context

from imagegen import VERSION
from imagegen.domain.deadline import Deadline
from imagegen.outbound.read_deadline import cut_off_at

CONNECT_SECONDS = 5.0
STALL_SECONDS = 60.0  # in which a host must take some bytes of a request
USER_AGENT = f"imagegen/{VERSION}"  # Cloudflare refuses the default names of HTTP libraries
# A connection that idled longer may be dead: Lambda freezes the process between requests, and hosts close connections
# after 5 s (Node's default) or more. A request that is sent on a dead connection is lost.
IDLE_SECONDS = 4.0
_CONNECTIONS_A_HOST = 16
# While a slow model works, a connection is silent. NAT gateways and load balancers drop it after 350 s (VPC user
# guide, "Troubleshoot NAT gateways"), other networks after 240 s.
_KEEPALIVE_SECONDS = 60
_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", 0x10)  # macOS has another name for it
_SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, _KEEPIDLE, _KEEPALIVE_SECONDS),
]
# RFC 9110 sets no limit. RFC 2518 suggests a 102 after 20 s: 40 of them cover 800 s, and a call may take 600 s.
_MOST_INTERIM_ANSWERS = 40
_MOST_CHUNK_LINE_BYTES = 4096  # a chunk size has 16 digits at most; the rest is for extensions
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?\r\n")  # RFC 9112, 7.1
_LENGTH = re.compile(r"[0-9]{1,18}")  # 18 digits fit into 64 bits


class HttpPool:
    """Sends requests. One pool serves a whole process."""

    def __init__(self) -> None:
        self._single_use = urllib3.PoolManager(retries=False, socket_options=_SOCKET_OPTIONS)
        self._single_use.pool_classes_by_scheme = {"http": _SingleUsePool, "https": _SingleUseTlsPool}
        self._kept = urllib3.PoolManager(maxsize=_CONNECTIONS_A_HOST, retries=False, socket_options=_SOCKET_OPTIONS)
        self._kept.pool_classes_by_scheme = {"http": _KeptPool, "https": _KeptTlsPool}
        self._tls: SSLContext | None = None

    def request(
        self,
        method: str,
        url: SplitResult,
        deadline: Deadline,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str],
        address: str | None = None,
        reuse: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """Sends one request, without retries and redirects. The body of the returned answer is unread.

        The request gets a connection of its own, which is closed after the answer, so late bytes of one answer never
        reach another caller. With `reuse`, the request may use the connection of an earlier one and leave it for a
        later one: only for hosts that are trusted to send no such bytes.

        `address` is the IP address to connect to, instead of a lookup of the host in DNS. The name of the host is still
        used in the Host header, in SNI and for the certificate. Raises urllib3's HTTPError: NewConnectionError and
        ConnectTimeoutError mean that nothing was sent, all others that the request may have been sent.
        """
        left = deadline.remaining()
        if not left:
            raise ConnectTimeoutError("no time is left to connect")
        host = url.hostname or ""
        options: dict[str, Any] = {"server_hostname": host, "assert_hostname": host} if address else {}
        if url.scheme == "https":
            options["ssl_context"] = self._tls_context()
        manager = self._kept if reuse else self._single_use
        pool = manager.connection_from_host(address or host, url.port, url.scheme, pool_kwargs=options)
        own = {} if reuse else {"Connection": "close"}
        return pool.urlopen(
            method,
            f"{url.path or '/'}?{url.query}" if url.query else url.path or "/",
            body=body,
            headers={"Host": url.netloc, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **own, **headers},
            retries=False,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(total=left, connect=min(CONNECT_SECONDS, left)),
        )

    def _tls_context(self) -> SSLContext:
        """Returns one context for all connections.

        urllib3 would load the trusted certificates for each connection, which takes 40 ms and 0.8 MB. For a
        connection to a given address, urllib3 switches the context's check of the host's name off, and from then on
        checks the name of every connection itself.
        """
        if self._tls is None:
            context = create_urllib3_context()
            context.load_default_certs()
            self._tls = context
        return self._tls


class _Answer(http.client.HTTPResponse):
    """Reads an answer strictly by RFC 9112. Raises HTTPException if the answer breaks the rules.

    `left_nothing` is `True` if no further byte waited after the last byte was read.
    """

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        begun: BufferedReader | None = None,
    ) -> None:
        """`begun` is a reader of the socket that has already read the first bytes of the answer."""
        super().__init__(sock, debuglevel, method, url)
        if begun is not None:
            self.fp.close()
            self.fp = begun
        self._sock = sock
        self._interim = 0
        self.left_nothing = False

    def begin(self) -> None:
        super().begin()
        lengths = {value.strip(" \t") for value in self.headers.get_all("Content-Length", [])}
        # http.client uses the first of several, and int() accepts "+5" and "1_0".
        if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
            raise http.client.HTTPException("the answer's Content-Length is invalid")
        if self._interim or (lengths and "Transfer-Encoding" in self.headers):
            self.will_close = True  # then http.client does not keep the connection

    def _read_status(self) -> tuple[str, int, str]:
        """Overrides a private method: http.client skips only status 100, without a limit, and has no other hook."""
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200:
                return version, status, reason
            self._interim += 1
            if status == 101 or self._interim > _MOST_INTERIM_ANSWERS:
                raise http.client.HTTPException(f"no final answer, but {status}")
            http.client.parse_headers(self.fp)

    def _read_next_chunk_size(self) -> int:
        """Overrides a private method: http.client reads a size by int(), which accepts "-1", "+5", "1_0" and "0x5"."""
        match = _CHUNK_LINE.fullmatch(self.fp.readline(_MOST_CHUNK_LINE_BYTES))
        if not match:
            raise http.client.HTTPException("a chunk's size is invalid")
        return int(match[1], 16)

    def _close_conn(self) -> None:
        """Overrides a private method, in which http.client drops unread bytes of its reader."""
        self.left_nothing = not self.will_close and not _has_bytes(self._sock, self.fp)
        super()._close_conn()  # type: ignore[misc]


def _has_bytes(sock: socket.socket, reader: BufferedReader) -> bool:
    """Returns whether bytes wait in the reader, in TLS or on the socket. Does not block and consumes nothing.

    A readable TLS socket is no proof of data: it may hold a session ticket.
    """
    try:
        timeout = sock.gettimeout()
        sock.settimeout(0)
        try:
            return bool(reader.peek(1))
        finally:
            sock.settimeout(timeout)
    except SSLWantReadError:
        return False
    except (OSError, ValueError):  # reset, or closed
        return True


def _clocks() -> tuple[float, float]:
    """Returns both clocks. While Lambda freezes the process, either may stop: the second one until it is set again."""
    return time.monotonic(), time.time()


class _Connection(HTTPConnection):
    """A connection that raises NewConnectionError if nothing was sent, and that keeps its time-out."""

    response_class = _Answer

    def connect(self) -> None:
        try:
            super().connect()
        except (OSError, SSLError, ValueError) as error:  # such as a time-out, or a certificate for another name
            raise NewConnectionError(self, "no connection was made") from error
        self.sock.settimeout(STALL_SECONDS)  # urllib3 would keep the time-out of connecting until all is sent

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # the signature of urllib3
        with cut_off_at(Deadline.after(self.timeout or 0), partial(self.sock.shutdown, socket.SHUT_RD)):
            return super().getresponse()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _KeptConnection(_Connection):
    """A connection that is used again only if its last answer was complete and nothing else has arrived.

    urllib3 closes it if an answer was not read to its end or raised an error.
    """

    _answer: _Answer | None = None
    _early: BufferedReader | None = None  # has the first bytes of an answer that came before its request was sent
    _is_spoilt = False
    _used_at = (0.0, 0.0)

    @property
    def is_connected(self) -> bool:
        return (
            super().is_connected
            and not self._is_spoilt
            and self._answer is not None
            and self._answer.left_nothing
            and all(0 <= now - then < IDLE_SECONDS for then, now in zip(self._used_at, _clocks(), strict=True))
        )

    def connect(self) -> None:
        self._answer, self._is_spoilt = None, False
        super().connect()

    def close(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early.close()
        super().close()

    def send(self, data: Any) -> None:
        """Sends the last byte separately, to detect an answer that comes before the request is complete."""
        if self.sock is None:
            self.connect()
        view = memoryview(data)
        try:
            if len(view) > 1:
                super().send(view[:-1])
            self._look_for_early_answer()
            super().send(view[-1:])
        except OSError:  # if the host closes the connection during the sending, urllib3 still reads an answer
            self._is_spoilt = True
            raise

    def _look_for_early_answer(self) -> None:
        if self._early is not None:
            return
        reader = self.sock.makefile("rb")
        if not _has_bytes(self.sock, reader):
            reader.close()
            return
        self._early, self._is_spoilt = reader, True
        if self._answer is not None:  # it may answer the request before
            raise http.client.HTTPException("an answer came before its request was sent")

    def response_class(  # type: ignore[override]  # http.client only calls it
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> _Answer:
        early, self._early = self._early, None
        self._answer = _Answer(sock, debuglevel, method, url, early)
        return self._answer

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # the signature of urllib3
        response = super().getresponse()
        self._used_at = _clocks()
        return response


class _KeptTlsConnection(_KeptConnection, _TlsConnection):
    pass


class _SingleUsePool(HTTPConnectionPool):
    """Overrides private methods: urllib3 has no pool that keeps no connection, and a size of 0 means no limit."""

    ConnectionCls = _Connection

    def _get_conn(self, timeout: float | None = None) -> Any:  # noqa: ARG002  # the signature of urllib3
        return self._new_conn()

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()


class _SingleUseTlsPool(_SingleUsePool, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _KeptPool(HTTPConnectionPool):
    ConnectionCls = _KeptConnection


class _KeptTlsPool(HTTPSConnectionPool):
    ConnectionCls = _KeptTlsConnection
