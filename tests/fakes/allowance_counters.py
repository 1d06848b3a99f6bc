"""The counters of the daily allowances in memory."""

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from imagegen.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from tests.fakes.generation_store import When

_KEPT_TOKENS = 40  # as many as the real item keeps


class FakeAllowanceCounters:
    """Passes the contract of `ports.AllowanceCounters`.

    `used` is by who takes and by day. `failures` are taken in turn, one a call, as in FakeGenerationStore.
    """

    def __init__(self) -> None:
        self.used: Counter[tuple[str, str]] = Counter()
        self.failures: deque[When | None] = deque()
        self._changed: dict[tuple[str, str], dict[str, str]] = {}
        self._lock = threading.Lock()

    def take(self, who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
        with self._lock:
            failure = self._failure()
            repeated = self._last(who, day, token) == "taken"
            taken = images <= limit and (repeated or self.used[who, day] + images <= limit)
            if taken and not repeated:
                self.used[who, day] += images
                self._note(who, day, token, "taken")
            _fail(failure)
            return taken, self.used[who, day]

    def give_back(self, who: str, day: str, images: int, *, token: str) -> None:
        with self._lock:
            failure = self._failure()
            if self._last(who, day, token) != "given back":
                if self.used[who, day] < images:
                    raise RecordsUnavailableError("There is less than that.")
                self.used[who, day] -= images
                self._note(who, day, token, "given back")
            _fail(failure)

    def _last(self, who: str, day: str, token: str) -> str | None:
        return self._changed.get((who, day), {}).get(token)

    def _note(self, who: str, day: str, token: str, change: str) -> None:
        changed = self._changed.setdefault((who, day), {})
        changed[token] = change
        if len(changed) > _KEPT_TOKENS:
            del changed[next(iter(changed))]

    def _failure(self) -> "When | None":
        failure = self.failures.popleft() if self.failures else None
        if failure == "before":
            raise RecordsUnavailableError("The counters could not be reached.")
        return failure


def _fail(failure: "When | None") -> None:
    if failure == "after":
        raise RecordsUnavailableError("The answer of the counters was lost.")
