"""Tasks of the stand-in upstream: they progress by the clock, lazily, when somebody looks at them."""

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct

from local.serving import Reply, Responder

Asked = TypeVar("Asked")


class Fate(Struct, frozen=True):
    """How a task ends. `reason` is why it does not succeed. Polls do not find a task that is not known."""

    status: Literal["succeeded", "failed", "cancelled", "running"] = "succeeded"
    reason: str = ""
    is_known: bool = True
    has_urls: bool = True


SUCCEEDS = Fate()
NEVER_ENDS = Fate("running")
FORGOTTEN = Fate(is_known=False)
WITHOUT_URL = Fate(has_urls=False)


def failing(reason: str) -> Fate:
    return Fate("failed", reason)


@dataclass(eq=False)
class Task(Generic[Asked]):
    """`seconds` is how long it runs once it has begun. `urls` are those of its images so far, by a name."""

    id: str
    prompt: str
    asked: Asked
    submitted: float
    seconds: float
    slots: int = 1
    indexes: tuple[int, ...] = (1,)
    urls: dict[str, str] = field(default_factory=dict)
    fate: Fate = SUCCEEDS
    began: float = math.inf

    @property
    def ends(self) -> float:
        return math.inf if self.fate.status == "running" else self.began + self.seconds

    def has_ended(self, now: float) -> bool:
        return self.ends <= now

    def done(self, now: float) -> float:
        """The part of the work that is done: 0 before the task has begun, 1 when it has ended, less than 1 before."""
        if self.has_ended(now):
            return 1.0
        return 0.0 if math.isinf(self.began) else min(0.99, (now - self.began) / max(self.seconds, 1e-9))


class Charge(Struct, frozen=True):
    """What an accepted submit was charged, and what was refunded of it."""

    protocol: str
    task_id: str
    prompt: str
    units: int
    refunded: int


class Tasks(Generic[Asked]):
    """The tasks of an account: `running` slots at once (None: no limit), and `queued` tasks that wait.

    A waiting task begins when an earlier one ends, at that time, even if nobody looks then. Callers hold `lock`.
    """

    def __init__(self, *, running: int | None, queued: int) -> None:
        self.running = running
        self.queued = queued
        self.refused = 0
        self.all: dict[str, Task[Asked]] = {}
        self.lock = threading.RLock()
        self._bought: list[tuple[Task[Asked], int]] = []
        self._running: list[Task[Asked]] = []
        self._waiting: deque[Task[Asked]] = deque()

    def add(self, task: Task[Asked], now: float) -> int | None:
        """How many tasks wait with this one: 0 if it begins now. None if there is no room."""
        self.settle(now)
        if not self._has_room(task) and len(self._waiting) >= self.queued:
            self.refused += 1
            return None
        self.all[task.id] = task
        self._waiting.append(task)
        self._begin(now)
        return len(self._waiting)

    def known(self, now: float) -> list[Task[Asked]]:
        """The tasks that polls find."""
        self.settle(now)
        return [task for task in self.all.values() if task.fate.is_known]

    def find(self, task_id: str, now: float) -> Task[Asked] | None:
        self.settle(now)
        task = self.all.get(task_id)
        return task if task and task.fate.is_known else None

    def settle(self, now: float) -> None:
        """Ends and begins what was due by now, in order."""
        while (first := min(self._running, key=lambda task: task.ends, default=None)) and first.has_ended(now):
            self._running.remove(first)
            self._begin(first.ends)
        self._begin(now)

    def charge(self, task: Task[Asked], units: int) -> None:
        self._bought.append((task, units))

    def charges(self, protocol: str, now: float, *, refunds: bool) -> list[Charge]:
        """All charges. A task that failed is refunded in full if the upstream refunds; a cancelled one is not."""
        with self.lock:
            self.settle(now)
            return [
                Charge(protocol, task.id, task.prompt, units, units if refunds and _has_failed(task, now) else 0)
                for task, units in self._bought
            ]

    def _begin(self, now: float) -> None:
        while self._waiting and self._has_room(self._waiting[0]):
            task = self._waiting.popleft()
            task.began = now
            self._running.append(task)

    def _has_room(self, task: Task[Asked]) -> bool:
        return self.running is None or sum(each.slots for each in self._running) + task.slots <= self.running


def _has_failed(task: Task[Any], now: float) -> bool:
    return task.fate.status == "failed" and task.has_ended(now)


def milliseconds(seconds: float) -> int:
    """A Unix time in milliseconds; 0 for a time that has not come."""
    return 0 if math.isinf(seconds) else round(seconds * 1000)


# Scripts for polls


def html_page(status: int = 200) -> Responder:
    """A page of a proxy in front of the upstream."""
    return lambda _: Reply(status, b"<!doctype html><title>Just a moment...</title>", {"Content-Type": "text/html"})


def too_many_requests(retry_after: int = 1) -> Responder:
    return lambda _: Reply(429, b"", {"Retry-After": str(retry_after)})


def unavailable() -> Responder:
    return lambda _: Reply(503)


def cut_off_json() -> Responder:
    """The JSON ends too early."""
    return lambda _: Reply(200, b'{"code":0,"data":{"task_status":"succ', {"Content-Type": "application/json"})
