"""The slots of the simulated upstreams, behind a network."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imagegen.domain.generations import Status
from imagegen.domain.slots import Slot, Waiter, call_name
from tests.explorer.schedule import Actor
from tests.fakes.slots import FakeUpstreamSlots

if TYPE_CHECKING:
    from tests.explorer.world import World

# A call is sent within this time after it got its slot. Then the slot lasts longer than the call
# (`_SLOT_MARGIN_SECONDS` of usecases/send_upstream_call.py).
SENT_WITHIN_SECONDS = 50.0
THROTTLED = 0.3  # the share of refused calls: these have no slot, the others have one that is not counted


class OpenSlots:
    """Implements `ports.UpstreamSlots`: it never raises. Each call is a point of its actor.

    It may fail before its effect, or its answer may be lost. Then a process that frees a slot brings nobody.
    """

    def __init__(self, world: "World", slots: FakeUpstreamSlots) -> None:
        self._world, self._slots = world, slots
        self._holders: dict[tuple[str, str], Actor] = {}
        # Slots that stay in use until their time: their process had lost its claim, or they could not be freed.
        self.left: set[tuple[str, str]] = set()

    def take(self, at: str, generation_id: str, call: int, *, until: float, count: int = 1) -> Slot | None:
        world = self._world
        uncounted = Slot(at, call_name(generation_id, call), until, count)
        if at not in world.limits:
            return uncounted
        actor = world.schedule.running
        assert actor is not None
        actor.by = actor.next_by = world.now + SENT_WITHIN_SECONDS
        world.step(f"take a slot of {at}", (generation_id,), {})
        actor.counted = False
        fault = world.fault("slots", "take")
        if fault == "before":
            throttled = world.rng.random() < THROTTLED
            world.log("the slots are THROTTLED" if throttled else "the slots CANNOT be counted")
            return None if throttled else uncounted
        slot = self._slots.take(at, generation_id, call, until=until, count=count)
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
        before = self._holders.get((slot.at, slot.call))
        if before is not None and before is not actor:
            before.counted = False
        for each in self._world.asked:
            each.counted &= (each.slots, each.call) != (slot.at, call)
        actor.counted, actor.counted_until = True, slot.until
        self._holders[slot.at, slot.call] = actor
        record = self._world.store._records.get(call[0])
        lost = record is None or record.ended or record.owner != actor.owner
        (self.left.add if lost else self.left.discard)((slot.at, slot.call))

    def wait(self, at: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        return self._brings(f"wait for a slot of {at}", lambda: self._slots.wait(at, waiter, since=since, until=until))

    def leave(self, at: str, generation_id: str, *, since: float, held: bool = False) -> Sequence[Waiter]:
        if at not in self._world.limits:
            return []

        def leave() -> Sequence[Waiter]:
            if held:
                self._uncount(at, generation_id)
            return self._slots.leave(at, generation_id, since=since, held=held)

        in_use = [name for name in self._slots.used[at] if held and name.startswith(generation_id)]
        return self._brings(f"leave {'the slots and ' if held else ''}the list of {at}", leave, (at, in_use))

    def _uncount(self, at: str, generation_id: str) -> None:
        """No longer counts the calls of a generation that has ended.

        But of a cancelled one, its owner's calls and the tasks on its record must keep their slots, if the process that
        frees them has seen these.
        """
        world = self._world
        record = world.store._records.get(generation_id)
        keeps = record is not None and record.status is Status.CANCELLED
        owner, noted = world.schedule.running.sees if world.schedule.running else (None, ())
        working = {actor.name for actor in world.schedule.live if owner and actor.owner == owner}
        for each in world.asked:
            if each.generation_id == generation_id and each.slots == at:
                is_noted = each.task is not None and each.task.id in noted
                if not keeps or not (is_noted or each.actor in working):
                    each.counted = False

    def free(self, slot: Slot) -> Sequence[Waiter]:
        world = self._world
        if slot.at not in world.limits:
            return []
        if actor := world.schedule.running:
            actor.by = math.inf
        return self._brings(f"free a slot of {slot.at}", lambda: self._slots.free(slot), (slot.at, [slot.call]))

    def _brings(
        self, name: str, call: Callable[[], Sequence[Waiter]], frees: tuple[str, Sequence[str]] = ("", ())
    ) -> Sequence[Waiter]:
        world = self._world
        world.step(name, (), {})
        fault = world.fault("slots", name)
        if fault == "before":
            world.log(f"{name} FAILS before its effect")
            self.left |= {(frees[0], each) for each in frees[1]}
            return []
        waiters = call()
        for waiter in waiters:
            world.log(f"a slot is kept for {waiter.generation_id}{', but the answer is LOST' if fault else ''}")
        return [] if fault == "after" else waiters
