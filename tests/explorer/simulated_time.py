"""Time that passes only while everything sleeps: tasks are greenlets, and hours of waiting take seconds.

Stands in for the modules `time` and `threading` of the code that it runs.
"""

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet

START = 1_760_000_000.0


class _Wake:
    """Resumes a task once. `by_event` is whether an event did it before the time."""

    def __init__(self, task: greenlet) -> None:
        self.task: greenlet | None = task
        self.by_event = False


class SimulatedTime:
    def __init__(self) -> None:
        self.now = START
        self.Thread = partial(_Thread, self)
        self.Event = partial(_Event, self)
        self._hub = getcurrent()
        self._due: list[tuple[float, int, _Wake]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self._pause(self.wake_at(self.now + seconds, getcurrent()))

    def spawn(self, work: Callable[[], object], delay: float = 0) -> None:
        self.wake_at(self.now + delay, greenlet(work, self._hub))

    def run(self) -> None:
        """Returns when no task has anything left to do."""
        while self._due:
            at, _, wake = heapq.heappop(self._due)
            task, wake.task = wake.task, None
            if task is not None:
                self.now = at
                task.switch()

    def wake_at(self, at: float, task: greenlet) -> _Wake:
        wake = _Wake(task)
        heapq.heappush(self._due, (at, next(self._numbers), wake))
        return wake

    def wake(self, wake: _Wake) -> None:
        if wake.task is not None:
            task, wake.task, wake.by_event = wake.task, None, True
            self.wake_at(self.now, task)

    def _pause(self, wake: _Wake) -> bool:
        self._hub.switch()
        return wake.by_event

    def wait(self, wakes: list[_Wake], timeout: float | None) -> bool:
        wake = _Wake(getcurrent()) if timeout is None else self.wake_at(self.now + timeout, getcurrent())
        wakes.append(wake)
        return self._pause(wake)


class _Event:
    """Stands in for `threading.Event`."""

    def __init__(self, time: SimulatedTime) -> None:
        self._time = time
        self._set = False
        self._waiting: list[_Wake] = []

    def set(self) -> None:
        self._set = True
        for wake in self._waiting:
            self._time.wake(wake)
        self._waiting.clear()

    def wait(self, timeout: float | None = None) -> bool:
        return self._set or self._time.wait(self._waiting, timeout)


class _Thread:
    """Stands in for `threading.Thread`."""

    def __init__(self, time: SimulatedTime, target: Callable[[], object], **_: Any) -> None:
        self._time, self._target = time, target
        self._ended = _Event(time)

    def start(self) -> None:
        self._time.spawn(self._run)

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def _run(self) -> None:
        self._target()
        self._ended.set()
