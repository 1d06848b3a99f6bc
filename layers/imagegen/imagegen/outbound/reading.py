"""Ends the reading of an answer at a deadline that a slow sender cannot stretch."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from imagegen.domain.deadline import Deadline

BLOCK_BYTES = 128 * 1024  # three of them are alive for each of ten images at once; smaller ones cost time


class _Watchdog:
    """Shuts down what is still being read at its time. One thread serves every read, since starting one is dear."""

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
            elif self._due[0][1] == number:  # earlier than what the thread sleeps for
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
                    with suppress(RuntimeError, ValueError, OSError):  # read to its end just now
                        shut_down()


_watchdog = _Watchdog()


@contextmanager
def cut_off_at(deadline: Deadline, shut_down: Callable[[], object]) -> Iterator[None]:
    """Calls `shut_down` when the deadline comes within the block. A socket's own time-out starts anew with every byte.

    What is read afterwards may be anything: who reads must look at the deadline.
    """
    number = _watchdog.watch(deadline, shut_down)
    try:
        yield
    finally:
        _watchdog.forget(number)
