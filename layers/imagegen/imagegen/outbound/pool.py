"""The one pooled urllib3 manager that every outgoing call but the AWS SDK's goes through."""

import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import SplitResult

import urllib3

from imagegen.deadline import Deadline

CONNECT_SECONDS = 5.0
# A connection that idled longer may be dead without our knowing: Lambda freezes between requests, and hosts hang up
# after 5 s (Node's default) or more. A paid request sent into a dead connection could not be told from a lost one.
IDLE_SECONDS = 4.0
_CONNECTIONS_A_HOST = 16


class HttpPool:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_used = clock()
        self._manager = urllib3.PoolManager(maxsize=_CONNECTIONS_A_HOST, retries=False)

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
        the Host header, in SNI and in the certificate. Raises urllib3's HTTPError.
        """
        now = self._clock()
        if now - self._last_used > IDLE_SECONDS:
            self._manager.clear()
        self._last_used = now
        host = url.hostname or ""
        pinned = {"server_hostname": host, "assert_hostname": host} if address else None
        pool = self._manager.connection_from_host(address or host, url.port, url.scheme, pool_kwargs=pinned)
        return pool.urlopen(
            method,
            f"{url.path or '/'}?{url.query}" if url.query else url.path or "/",
            body=body,
            headers={"Host": url.netloc, "Accept-Encoding": "identity", **headers},
            retries=False,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, deadline.remaining()), read=deadline.remaining()),
        )
