"""A parameter store in memory."""

from collections import deque


class FakeParameters:
    """Passes the contract of `ports.Parameters`, and caches for ever.

    `values` may change at any time. `asked` are the names of all calls, in order, each with `fresh`. `failures` are
    raised in turn, one a call; `None` lets one through.
    """

    def __init__(self, values: dict[str, str] | None = None) -> None:
        self.values = {} if values is None else values
        self.asked: list[tuple[str, bool]] = []
        self.failures: deque[Exception | None] = deque()
        self._cached: dict[str, str | None] = {}

    def get(self, name: str, *, fresh: bool = False) -> str | None:
        self.asked.append((name, fresh))
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        if fresh or name not in self._cached:
            self._cached[name] = self.values.get(name)
        return self._cached[name]
