"""The one door through which every outgoing HTTP call goes, but those of the AWS SDK."""

import http.client
import re
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from ssl import SSLContext
from typing import Any
from urllib.parse import SplitResult

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, SSLError
from urllib3.util.ssl_ import create_urllib3_context
from urllib3.util.wait import wait_for_read

from imagegen.deadline import Deadline
from imagegen.outbound.reading import cut_off_at

CONNECT_SECONDS = 5.0
# A connection that idled longer may be dead without our knowing: Lambda freezes between requests, and hosts hang up
# after 5 s (Node's default) or more. A paid request sent into a dead connection could not be told from a lost one.
IDLE_SECONDS = 4.0
_CONNECTIONS_A_HOST = 16


_MOST_INTERIM_ANSWERS = 20
_MOST_CHUNK_LINE_BYTES = 4096


class HttpPool:
    """A request to a stranger has a connection of its own, so that no late byte of one answer is read as another's."""

    def __init__(self) -> None:
        self._kept = urllib3.PoolManager(maxsize=_CONNECTIONS_A_HOST, retries=False)
        self._kept.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        self._single = urllib3.PoolManager(maxsize=_CONNECTIONS_A_HOST, retries=False)
        self._single.pool_classes_by_scheme = {"http": _SingleHttpPool, "https": _SingleHttpsPool}
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
        """One request, no retry, no redirect; the body of the answer is still to be read.

        `address` is the IP address to connect to in place of asking DNS for the host, whose name is still the one in
        the Host header, in SNI and in the certificate. With `reuse` the connection may have carried another request and
        may carry another one: only for a host that is trusted, S3. Raises urllib3's HTTPError: NewConnectionError and
        ConnectTimeoutError mean that nothing was sent, any other that it may have been.
        """
        left = deadline.remaining()
        if not left:
            raise ConnectTimeoutError("there is no time left to connect in")
        host = url.hostname or ""
        options: dict[str, Any] = {"server_hostname": host, "assert_hostname": host} if address else {}
        if url.scheme == "https":
            options["ssl_context"] = self._tls_context()
        manager = self._kept if reuse else self._single
        connection = {} if reuse else {"Connection": "close"}
        pool = manager.connection_from_host(address or host, url.port, url.scheme, pool_kwargs=options)
        return pool.urlopen(
            method,
            f"{url.path or '/'}?{url.query}" if url.query else url.path or "/",
            body=body,
            headers={"Host": url.netloc, "Accept-Encoding": "identity", **connection, **headers},
            retries=False,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(total=left, connect=min(CONNECT_SECONDS, left)),
        )

    def _tls_context(self) -> SSLContext:
        """One for all connections: urllib3 would load the trusted certificates anew for each, 40 ms and 0.8 MB a time.

        For a pinned connection urllib3 turns the context's own check of the name off, and then matches the name of
        every connection itself.
        """
        if self._tls is None:
            context = create_urllib3_context()
            context.load_default_certs()
            self._tls = context
        return self._tls


class _Answer(http.client.HTTPResponse):
    """An answer that is read as strictly as RFC 9112 has it, in all that could mix up two answers.

    http.client skips only `100`, without end, takes `-1` for the size of a chunk, and drops what lies behind a body in
    its buffer. There is no public place to change that.
    """

    clean = True  # no interim answer came, and no byte behind the body

    def __init__(self, sock: socket.socket, **more: Any) -> None:
        super().__init__(sock, **more)
        self._socket = sock

    def begin(self) -> None:
        super().begin()
        lengths = {length.strip() for length in self.headers.get_all("Content-Length", [])}
        if len(lengths) > 1 or not all(re.fullmatch(r"[0-9]{1,18}", length) for length in lengths):
            raise http.client.HTTPException("no usable Content-Length")

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM_ANSWERS + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == http.client.SWITCHING_PROTOCOLS:
                raise http.client.HTTPException("the server switched to another protocol")
            if not 100 <= status < 200:
                return version, status, reason
            self.clean = False
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("too many interim answers")

    def _read_next_chunk_size(self) -> int:
        found = re.fullmatch(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[^\n]*)?\r?\n", self.fp.readline(_MOST_CHUNK_LINE_BYTES))
        if found is None:
            raise http.client.HTTPException("no size of a chunk")
        return int(found[1], 16)

    def _close_conn(self) -> None:
        timeout = self._socket.gettimeout()
        with suppress(OSError, ValueError):  # nothing there, or the socket is closed
            self._socket.settimeout(0)
            self.clean = self.clean and not self.fp.peek()
        with suppress(OSError):
            self._socket.settimeout(timeout)
        super()._close_conn()  # type: ignore[misc]


class _Careful(HTTPConnection):
    """A connection that says what was not sent, keeps to its time, and is used again only if nothing is left on it."""

    _last_used = 0.0
    _sent_whole = _early = False
    _answer: _Answer | None = None

    @property
    def is_connected(self) -> bool:
        answer = self._answer
        clean = answer is not None and answer.isclosed() and answer.clean and self._sent_whole
        return clean and super().is_connected and time.monotonic() - self._last_used < IDLE_SECONDS

    def connect(self) -> None:
        try:
            super().connect()
        except (OSError, SSLError, ValueError) as error:  # a time-out, TLS, a certificate for another name
            raise NewConnectionError(self, "no connection came about") from error

    def request(self, *arguments: Any, **more: Any) -> None:
        self._sent_whole, self._answer, self._early = False, None, False
        super().request(*arguments, **more)
        self._sent_whole = not self._early

    def send(self, data: Any) -> None:
        # What is there to be read before the last block is sent answers a request that the server has not read.
        self._early = self._early or (self.sock is not None and wait_for_read(self.sock, timeout=0))
        super().send(data)

    def response_class(self, sock: socket.socket, **more: Any) -> _Answer:  # type: ignore[override]  # http.client calls it
        self._answer = _Answer(sock, **more)
        return self._answer

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        with cut_off_at(Deadline.after(self.timeout or 0), partial(self.sock.shutdown, socket.SHUT_RD)):
            response = super().getresponse()
        self._last_used = time.monotonic()
        return response


class _CarefulTls(_Careful, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Careful


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _CarefulTls


class _Single(HTTPConnectionPool):
    """A pool whose connections are closed once their answer is read."""

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(conn)


class _SingleHttpPool(_Single, _HttpPool):
    pass


class _SingleHttpsPool(_Single, _HttpsPool):
    pass
