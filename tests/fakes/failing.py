"""Fakes whose calls fail as a test wants it."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from imagegen.domain.errors import RecordsUnavailableError

When = Literal["before", "after"]


class Failing:
    """`failures` apply in turn, one a call: "before" raises RecordsUnavailableError without an effect, "after" with it.

    `None` lets the call through.
    """

    def __init__(self) -> None:
        self.failures: deque[When | None] = deque()
        self._lock = threading.RLock()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Runs one call at a time, with its failure."""
        with self._lock:
            failure = self.failures.popleft() if self.failures else None
            if failure == "before":
                raise RecordsUnavailableError("It could not be reached.")
            try:
                yield
            finally:
                if failure == "after":
                    raise RecordsUnavailableError("The answer was lost.")
