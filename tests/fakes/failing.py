"""Fakes whose calls fail when a test says so."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from imagegen.domain.errors import RecordsUnavailableError

When = Literal["before", "after"]


class Failing:
    """`failures` are taken in turn, one a call.

    "before" raises RecordsUnavailableError and changes nothing, "after" raises it when all is done, None lets the call
    through.
    """

    def __init__(self) -> None:
        self.failures: deque[When | None] = deque()
        self._lock = threading.RLock()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """One call at a time, with the failure that is due."""
        with self._lock:
            failure = self.failures.popleft() if self.failures else None
            if failure == "before":
                raise RecordsUnavailableError("It could not be reached.")
            try:
                yield
            finally:
                if failure == "after":
                    raise RecordsUnavailableError("The answer was lost.")
