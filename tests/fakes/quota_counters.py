"""The counters of the daily quotas in memory."""

from collections import Counter

from imagegen.domain.errors import RecordsUnavailableError
from tests.fakes.failing import Failing

_KEPT_TOKENS = 40  # as many as the real item keeps


class FakeQuotaCounters(Failing):
    """Passes the contract of `ports.QuotaCounters`. `used` is by caller, or the whole stack, and by day."""

    def __init__(self) -> None:
        super().__init__()
        self.used: Counter[tuple[str, str]] = Counter()
        self._changed: dict[tuple[str, str], dict[str, str]] = {}

    def take(self, who: str, day: str, amount: int, limit: int, *, token: str) -> tuple[bool, int]:
        with self._asked():
            repeated = self._last(who, day, token) == "taken"
            taken = amount <= limit and (repeated or self.used[who, day] + amount <= limit)
            if taken and not repeated:
                self.used[who, day] += amount
                self._note(who, day, token, "taken")
            return taken, self.used[who, day]

    def give_back(self, who: str, day: str, amount: int, *, token: str) -> None:
        with self._asked():
            if self._last(who, day, token) != "given back":
                if self.used[who, day] < amount:
                    raise RecordsUnavailableError("There is less than that.")
                self.used[who, day] -= amount
                self._note(who, day, token, "given back")

    def _last(self, who: str, day: str, token: str) -> str | None:
        return self._changed.get((who, day), {}).get(token)

    def _note(self, who: str, day: str, token: str, change: str) -> None:
        changed = self._changed.setdefault((who, day), {})
        changed[token] = change
        if len(changed) > _KEPT_TOKENS:
            del changed[next(iter(changed))]
