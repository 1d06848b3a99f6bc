"""Reads SSM Parameter Store through a cache.

By default, an account and region may make 40 GetParameter calls a second (AWS General Reference, "AWS Systems Manager
endpoints and quotas").
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from imagegen.domain.errors import SecretUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ssm import SSMClient

# How long a throttled call is repeated. The tries of the SDK take at most 3 s more, and the authorizer has 10 s.
_THROTTLED_SECONDS = 5.0
_MOST_CACHED = 1000  # names; requests with guessed names must not fill the memory


class SsmParameters:
    """Implements `ports.Parameters`. A missing parameter is cached too, so that guessed names cause no calls.

    The cache of Powertools does not keep missing parameters, and wraps all failures in one exception.
    """

    def __init__(
        self, client: Callable[[], SSMClient], *, cache_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._cached: dict[str, tuple[float, str | None]] = {}
        self._lock = threading.Lock()

    def get(self, name: str, *, fresh: bool = False) -> str | None:
        with self._lock:  # so that parallel threads make one call
            known = self._cached.get(name)
            if known is not None and not fresh and self._clock() - known[0] < self._cache_seconds:
                return known[1]
            value = self._fetch(name)
            if len(self._cached) >= _MOST_CACHED:
                self._cached.clear()
            self._cached[name] = (self._clock(), value)
            return value

    def _fetch(self, name: str) -> str | None:
        client = self._client()
        until = self._clock() + _THROTTLED_SECONDS
        try:
            while True:
                try:
                    return client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
                except client.exceptions.ThrottlingException:  # no pause here: the SDK pauses between its tries
                    if self._clock() >= until:
                        raise
        except client.exceptions.ParameterNotFound:
            return None
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise SecretUnavailableError("A secret of this service is temporarily unavailable.") from error
