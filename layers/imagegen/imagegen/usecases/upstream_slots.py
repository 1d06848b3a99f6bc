"""Limits the calls that each upstream works on at once, over all processes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import Generation, Status
from imagegen.domain.slots import Slot, Waiter, slots_name
from imagegen.ports import LONGEST_MESSAGE_DELAY_SECONDS, GenerationQueue, UpstreamSlots

_LISTED_SECONDS = 1_000.0  # longer than the longest pause, after which the generation puts itself on the list again
_FIRST_PAUSE_SECONDS = 30.0
_LINE_SECONDS = 3_600.0  # a batch's line waits as if it had come later, so that HTTP requests do not wait behind a file


class NoSlotError(Exception):
    """The upstream works on as many calls as it may. None was sent. `needed` are the slots by their name."""

    def __init__(self, at: str, count: int) -> None:
        super().__init__()
        self.needed = {at: count}


class UpstreamLimits(msgspec.Struct, frozen=True, eq=False):
    """`queue` takes the messages of generations that have waited for a slot."""

    slots: UpstreamSlots
    queue: GenerationQueue

    def take(self, upstream: str, generation: Generation, call: int, n: int, *, until: float) -> Slot:
        """The slots for one call for `n` images, until the time `until`. Raises NoSlotError."""
        at = slots_name(upstream, generation.supply.provider)
        count = n if generation.supply.slot_per_image else 1
        slot = self.slots.take(at, generation.id, call, until=until, count=count)
        if slot is None:
            raise NoSlotError(at, count)
        if generation.polls:  # else its message would find no work, and the slot kept for it would stay unused
            self._leave(generation, held=False)
        return slot

    def free(self, slot: Slot) -> None:
        self._bring(self.slots.free(slot))

    def leave(self, generation: Generation, *, held: bool) -> None:
        """Lets others have the slots of a generation that has ended: those kept for it, and with `held` all others.

        The tasks of a cancelled one still run, and have their slots until the last one has ended.
        """
        if generation.polls or generation.supply.by_task:
            runs = generation.status is Status.CANCELLED and any(call.open_task for call in generation.calls)
            self._leave(generation, held=held and not runs)

    def wait(self, generation: Generation, poll: int, needed: Mapping[str, int], *, now: float) -> None:
        """Puts a generation on the waiting lists. The process that frees a slot sends the message of round `poll`."""
        for at, count in sorted(needed.items()):
            waiter = Waiter(generation.id, generation.caller, poll, generation.queue(poll), count)
            self._bring(self.slots.wait(at, waiter, since=_since(generation), until=now + _LISTED_SECONDS))

    def hand_over(self, generation_id: str, names: Iterable[str]) -> None:
        """Lets others have the slots of a generation that was deleted. `names` are those of all slots."""
        for at in names:
            self._bring(self.slots.leave(at, generation_id, since=0, held=True))

    def _leave(self, generation: Generation, *, held: bool) -> None:
        for route in generation.supply.routes:
            at = slots_name(route.upstream, generation.supply.provider)
            self._bring(self.slots.leave(at, generation.id, since=_since(generation), held=held))

    def _bring(self, waiters: Sequence[Waiter]) -> None:
        for each in waiters:
            with suppress(RecordsUnavailableError):  # it comes by itself, after its pause
                self.queue.send(each.generation_id, each.caller, poll=each.poll, to=each.queue)


def _since(generation: Generation) -> float:
    return generation.created_at + (0 if generation.origin.batch_id is None else _LINE_SECONDS)


def pause_for_slot(rounds: int) -> float:
    """Seconds after which a generation comes by itself if it has waited for `rounds` rounds and nobody brought it."""
    return min(LONGEST_MESSAGE_DELAY_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(rounds, 10))
