"""Actors that take turns. Each runs in a thread of its own, and only one at a time: who holds the baton runs."""

import math
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")


class Death(BaseException):  # no error that a program could handle
    """The process of an actor ends here. No code of the product catches it."""


class Actor:
    """One process. With `doomed` it dies at its next point, and at every later one: `finally` blocks do nothing.

    `touched` are the generations that it has named in a call. `beat` is the heartbeat under which it works, and
    `beaten_at` when that came last. `stored_before` are the images that were stored when it began.
    It takes its next step by `next_by`.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.doomed = False
        self.touched: set[str] = set()
        self.stored_before: frozenset[str] = frozenset()
        self.next_by = math.inf
        self.beat: Callable[[], None] | None = None
        self.beaten_at = 0.0
        self.sending: tuple[str, int] = ("", 0)  # the call that it noted last as about to be sent
        self.turn = threading.Lock()
        self.turn.acquire()


class Schedule:
    """Runs actors until `next_actor` gives None. It is asked at each point of an actor, and at each actor's end."""

    def __init__(self, next_actor: Callable[[], Actor | None], died: Callable[[Actor], None]) -> None:
        self.live: list[Actor] = []
        self.running: Actor | None = None
        self.crashes: list[str] = []
        self._next_actor = next_actor
        self._died = died
        self._threads: list[threading.Thread] = []
        self._over = threading.Lock()
        self._over.acquire()
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> None:
        self._pass_on(self._over)
        self._stopped = True
        for actor in list(self.live):
            actor.turn.release()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def spawn(self, name: str, kind: str, work: Callable[[], object]) -> Actor:
        actor = Actor(name, kind)
        thread = threading.Thread(target=self._act, args=(actor, work), name=name, daemon=True)
        self.live.append(actor)
        self._threads.append(thread)
        thread.start()
        return actor

    def point(self) -> None:
        """The running actor may be stopped here, for any time, or for ever."""
        actor = self.running
        if actor is None:
            return
        if not self._stopped and not actor.doomed:
            self._pass_on(actor.turn)
        if self._stopped or actor.doomed:
            raise Death

    def _act(self, actor: Actor, work: Callable[[], object]) -> None:
        actor.turn.acquire()
        try:
            if not self._stopped and not actor.doomed:
                work()
        except Death:
            pass
        except Exception:  # noqa: BLE001  # a use case must raise nothing that its handler does not expect
            self.crashes.append(traceback.format_exc())
        self.live.remove(actor)
        if actor.doomed:
            self._died(actor)
        if not self._stopped:
            self._pass_on(None)

    def _pass_on(self, own: "threading.Lock | None") -> None:
        self.running = None
        try:
            chosen = self._next_actor()
        except BaseException as error:  # noqa: BLE001  # the thread that runs the schedule raises it
            self._error, chosen = error, None
        self.running = chosen
        turn = self._over if chosen is None else chosen.turn
        if turn is own:
            return
        turn.release()
        if own is not None:
            own.acquire()


class _OrderedFuture(Future[T]):
    """`as_completed` gives finished futures in the order of a set: by their hashes. These do not change by run."""

    _numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self._number = next(self._numbers)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SameThread(Executor):
    """Runs what is submitted at once, in the thread of the actor."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = _OrderedFuture()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # the future raises it
            future.set_exception(error)
        return future
