"""Ends the reading of an answer at a deadline that a slow sender cannot extend."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from imagegen.domain.deadline import Deadline

BLOCK_BYTES = 128 * 1024  # up to three are in memory for each of ten images; smaller blocks take more time


class _Watchdog:
    """Shuts down reads at their deadlines. One thread serves all reads, because starting a thread is expensive."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._watched: set[int] = set()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline, shut_down: Callable[[], object]) -> int:
        with self._changed:
            number = next(self._numbers)
            self._watched.add(number)
            heapq.heappush(self._due, (deadline.at, number, shut_down))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            elif self._due[0][1] == number:  # before the time until which the thread sleeps
                self._changed.notify()
            return number

    def forget(self, number: int) -> None:
        with self._changed:
            self._watched.discard(number)
            while self._due and self._due[0][1] not in self._watched:
                heapq.heappop(self._due)

    def _run(self) -> None:
        with self._changed:
            while True:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, number, shut_down = heapq.heappop(self._due)
                if number in self._watched:
                    with suppress(RuntimeError, ValueError, OSError):  # the read has just ended
                        shut_down()


_watchdog = _Watchdog()


@contextmanager
def cut_off_at(deadline: Deadline, shut_down: Callable[[], object]) -> Iterator[None]:
    """Calls `shut_down` if the deadline passes inside the block. A socket's own time-out restarts with every byte.

    After that a read may return anything, so the reading code must check the deadline.
    """
    number = _watchdog.watch(deadline, shut_down)
    try:
        yield
    finally:
        _watchdog.forget(number)
