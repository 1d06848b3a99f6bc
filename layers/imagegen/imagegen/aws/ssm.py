"""SSM Parameter Store, cached: it serves 40 GetParameter calls a second to a whole account by default."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from imagegen.domain.errors import SecretUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ssm import SSMClient

# How long throttled calls are begun anew. The SDK's own tries take 3 s more at most, and the authorizer has 10 s.
_THROTTLED_SECONDS = 5.0
_MOST_CACHED = 1000  # names; a guesser must not fill the memory


class SsmParameters:
    """Implements `ports.Parameters`. That a parameter is missing is cached too, so that guesses cost nothing.

    Powertools' own cache knows no missing parameter and wraps every failure alike, hence this one.
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
        with self._lock:  # one call, however many threads ask
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
                except client.exceptions.ThrottlingException:  # the SDK has paused between its tries
                    if self._clock() >= until:
                        raise
        except client.exceptions.ParameterNotFound:
            return None
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise SecretUnavailableError("A secret of this service could not be read just now.") from error
