"""The one pooled urllib3 manager that every outgoing call but the AWS SDK's goes through."""

import socket
import time
from collections.abc import Iterable, Mapping
from functools import partial
from ssl import SSLContext
from typing import Any
from urllib.parse import SplitResult

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, SSLError
from urllib3.util.ssl_ import create_urllib3_context

from imagegen.deadline import Deadline
from imagegen.outbound.reading import cut_off_at

CONNECT_SECONDS = 5.0
# A connection that idled longer may be dead without our knowing: Lambda freezes between requests, and hosts hang up
# after 5 s (Node's default) or more. A paid request sent into a dead connection could not be told from a lost one.
IDLE_SECONDS = 4.0
_CONNECTIONS_A_HOST = 16


class HttpPool:
    def __init__(self) -> None:
        self._manager = urllib3.PoolManager(maxsize=_CONNECTIONS_A_HOST, retries=False)
        self._manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
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
    ) -> urllib3.BaseHTTPResponse:
        """One request, no retry, no redirect; the body of the answer is still to be read.

        `address` is the IP address to connect to in place of asking DNS for the host, whose name is still the one in
        the Host header, in SNI and in the certificate. Raises urllib3's HTTPError: NewConnectionError and
        ConnectTimeoutError mean that nothing was sent, any other that it may have been.
        """
        left = deadline.remaining()
        if not left:
            raise ConnectTimeoutError("there is no time left to connect in")
        host = url.hostname or ""
        options: dict[str, Any] = {"server_hostname": host, "assert_hostname": host} if address else {}
        if url.scheme == "https":
            options["ssl_context"] = self._tls_context()
        pool = self._manager.connection_from_host(address or host, url.port, url.scheme, pool_kwargs=options)
        return pool.urlopen(
            method,
            f"{url.path or '/'}?{url.query}" if url.query else url.path or "/",
            body=body,
            headers={"Host": url.netloc, "Accept-Encoding": "identity", **headers},
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


class _Careful(HTTPConnection):
    """A connection that tells what was not sent, is not used again when it may be dead, and keeps to its time."""

    _last_used = 0.0

    @property
    def is_connected(self) -> bool:
        return super().is_connected and time.monotonic() - self._last_used < IDLE_SECONDS

    def connect(self) -> None:
        try:
            super().connect()
        except (OSError, SSLError, ValueError) as error:  # a time-out, TLS, a certificate for another name
            raise NewConnectionError(self, "no connection came about") from error

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
