"""The slots of the simulated upstreams, behind a network."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imagegen.domain.slots import Slot, Waiter
from tests.explorer.schedule import Actor
from tests.fakes.slots import FakeUpstreamSlots

if TYPE_CHECKING:
    from tests.explorer.world import World

# A call is sent within this time after it got its slot. Then the slot lasts longer than the call (`_MARGIN_SECONDS` of
# usecases/upstream_slots.py).
SENT_WITHIN_SECONDS = 50.0
THROTTLED = 0.3  # the share of refused calls: these have no slot, the others have one that is not counted


class OpenSlots:
    """Implements `ports.UpstreamSlots`: it never raises. Each call is a point of its actor.

    It may fail before its effect, or its answer may be lost. Then a process that frees a slot brings nobody.
    """

    def __init__(self, world: "World", slots: FakeUpstreamSlots) -> None:
        self._world, self._slots = world, slots
        self._holders: dict[tuple[str, str], Actor] = {}

    def take(self, upstream: str, generation_id: str, call: int, *, seconds: float) -> Slot | None:
        world = self._world
        uncounted = Slot(upstream, f"{generation_id}#{call}", world.now + seconds)
        if upstream not in world.limits:
            return uncounted
        actor = world.step(f"take a slot of {upstream}", (generation_id,), {})
        actor.by = actor.next_by = world.now + SENT_WITHIN_SECONDS
        actor.counted = False
        fault = world.fault("slots", "take")
        if fault == "before":
            throttled = world.rng.random() < THROTTLED
            world.log("the slots are THROTTLED" if throttled else "the slots CANNOT be counted")
            return None if throttled else uncounted
        slot = self._slots.take(upstream, generation_id, call, seconds=seconds)
        if slot:
            self._count(slot, actor, (generation_id, call))
        if fault == "after":
            world.log("a slot is taken, but the answer is LOST" if slot else "the slots CANNOT be counted")
            return slot or uncounted
        world.log("has a slot" if slot else "no slot is free")
        if slot is None:
            actor.by = actor.next_by = math.inf
        return slot

    def _count(self, slot: Slot, actor: Actor, call: tuple[str, int]) -> None:
        """Counts the call of the actor, and no longer that of another process which had the same slot."""
        before = self._holders.get((slot.upstream, slot.call))
        if before is not None and before is not actor:
            before.counted = False
        for each in self._world.asked:
            each.counted &= (each.upstream, each.call) != (slot.upstream, call)
        actor.counted = True
        self._holders[slot.upstream, slot.call] = actor

    def wait(self, upstream: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        return self._brings(
            f"wait for a slot of {upstream}", lambda: self._slots.wait(upstream, waiter, since=since, until=until)
        )

    def leave(self, upstream: str, generation_id: str, *, since: float) -> Sequence[Waiter]:
        if upstream not in self._world.limits:
            return []
        name = f"leave the list of {upstream}"
        return self._brings(name, lambda: self._slots.leave(upstream, generation_id, since=since))

    def free(self, slot: Slot) -> Sequence[Waiter]:
        world = self._world
        if slot.upstream not in world.limits:
            return []
        if actor := world.schedule.running:
            actor.by = math.inf
        return self._brings(f"free a slot of {slot.upstream}", lambda: self._slots.free(slot))

    def _brings(self, name: str, call: Callable[[], Sequence[Waiter]]) -> Sequence[Waiter]:
        world = self._world
        world.step(name, (), {})
        fault = world.fault("slots", name)
        if fault == "before":
            world.log(f"{name} FAILS before its effect")
            return []
        waiters = call()
        for waiter in waiters:
            world.log(f"a slot is kept for {waiter.generation_id}{', but the answer is LOST' if fault else ''}")
        return [] if fault == "after" else waiters
