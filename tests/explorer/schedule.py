"""Actors that take turns, each in its own greenlet: one runs until its next point, then another may."""

import math
import traceback
from collections.abc import Callable

from greenlet import getcurrent, greenlet


class Death(BaseException):  # not an Exception: no code of the product catches it
    """The process of an actor ends here."""


class Actor:
    """One process. With `doomed` it dies at its next point and at every later one: `finally` blocks have no effect.

    `touched` are the generations that its calls named. `beat` is its heartbeat, and `beaten_at` the time of the last
    beat. `stored_before` are the images that were stored when it began. It takes its next step by `next_by`, and each
    step by `by`. `sending` is the call whose attempt it recorded last, `attempt` the number of that and `sent_at` its
    time. `counted` is whether its slots for that are counted, until `counted_until`. It claimed a generation at
    `claimed_at`, with the open tasks `known_tasks`. It could not claim one for the round `refused_round` of its
    message, and it knows that the generation `stale` is in a later round. In the record it `sees` the owner, unless its
    lease has ended, and the open tasks.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.doomed = False
        self.touched: set[str] = set()
        self.stored_before: frozenset[str] = frozenset()
        self.next_by = math.inf
        self.beat: Callable[[], None] | None = None
        self.beaten_at = 0.0
        self.by = math.inf
        self.owner: str | None = None  # the token of its claim
        self.claimed_at = 0.0
        self.known_tasks: frozenset[str] = frozenset()
        self.sending: tuple[str, int] = ("", 0)
        self.attempt = 0
        self.sent_at = 0.0
        self.counted = False
        self.counted_until = 0.0
        self.refused_round: int | None = None
        self.stale = ""
        self.sees: tuple[str | None, frozenset[str]] = None, frozenset()


class Schedule:
    """Runs actors until `next_actor`, called at each point and at each end of an actor, returns `None`."""

    def __init__(self, next_actor: Callable[[], Actor | None], died: Callable[[Actor], None]) -> None:
        self.live: list[Actor] = []
        self.running: Actor | None = None
        self.crashes: list[str] = []
        self._next_actor = next_actor
        self._died = died
        self._greenlets: dict[Actor, greenlet] = {}
        self._scheduler: greenlet | None = None
        self._stopped = False

    def run(self) -> None:
        self._scheduler = getcurrent()
        try:
            while actor := self._next_actor():
                self._turn(actor)
        finally:
            self._stopped = True
            for actor in list(self.live):
                self._turn(actor)

    def spawn(self, name: str, kind: str, work: Callable[[], object]) -> Actor:
        actor = Actor(name, kind)
        self.live.append(actor)
        self._greenlets[actor] = greenlet(lambda: self._act(actor, work), self._scheduler)
        return actor

    def point(self) -> None:
        """The running actor may stop here, for any time or for ever."""
        actor = self.running
        if actor is None:
            return
        if not self._stopped and not actor.doomed:
            assert self._scheduler is not None
            self._scheduler.switch()
        if self._stopped or actor.doomed:
            raise Death

    def _turn(self, actor: Actor) -> None:
        self.running = actor
        self._greenlets[actor].switch()
        self.running = None

    def _act(self, actor: Actor, work: Callable[[], object]) -> None:
        try:
            if not self._stopped and not actor.doomed:
                work()
        except Death:
            pass
        except Exception:  # noqa: BLE001  # a use case must raise only errors that its handler expects
            self.crashes.append(traceback.format_exc())
        self.live.remove(actor)
        if actor.doomed:
            self._died(actor)
