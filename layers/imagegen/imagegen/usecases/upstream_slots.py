"""Limits the calls that each upstream works on at once, over all processes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import Generation
from imagegen.domain.slots import Waiter
from imagegen.ports import LONGEST_MESSAGE_DELAY_SECONDS, GenerationQueue, UpstreamSlots

_MARGIN_SECONDS = 60.0  # for the record before a call and after it
_LISTED_SECONDS = 1_000.0  # longer than the longest pause, after which the generation puts itself on the list again
_FIRST_PAUSE_SECONDS = 30.0


class NoSlotError(Exception):
    """The upstream works on as many calls as it may. None was sent."""


class UpstreamLimits(msgspec.Struct, frozen=True, eq=False):
    """`queue` takes the messages of generations that have waited for a slot."""

    slots: UpstreamSlots
    queue: GenerationQueue

    @contextmanager
    def slot(self, upstream: str, generation: Generation, call: int, *, seconds: float) -> Iterator[None]:
        """Holds a slot for one call of at most `seconds` during the block. Raises NoSlotError."""
        slot = self.slots.take(upstream, generation.id, call, seconds=seconds + _MARGIN_SECONDS)
        if slot is None:
            raise NoSlotError
        self.leave(generation)
        try:
            yield
        except Exception:
            self._bring(self.slots.free(slot))
            raise
        self._bring(self.slots.free(slot))

    def leave(self, generation: Generation) -> None:
        """Removes a generation from the waiting lists of its routes: it has a slot of one of them, or has ended.

        Otherwise its message would be sent in vain later, and bring nobody else to the slot that is kept for it.
        """
        if generation.polls:
            for route in generation.supply.routes:
                self._bring(self.slots.leave(route.upstream, generation.id, since=generation.created_at))

    def wait(self, generation: Generation, poll: int, upstreams: Iterable[str], *, now: float) -> None:
        """Puts a generation on the waiting lists. The process that frees a slot sends the message of round `poll`."""
        waiter = Waiter(generation.id, generation.caller, poll, generation.of_batch)
        for upstream in sorted(upstreams):
            self._bring(self.slots.wait(upstream, waiter, since=generation.created_at, until=now + _LISTED_SECONDS))

    def hand_over(self, generation_id: str, upstreams: Iterable[str]) -> None:
        """Lets others have the slots that are kept for a generation that was deleted."""
        for upstream in upstreams:
            self._bring(self.slots.leave(upstream, generation_id, since=0))

    def _bring(self, waiters: Sequence[Waiter]) -> None:
        for each in waiters:
            with suppress(RecordsUnavailableError):  # it comes by itself, after its pause
                self.queue.send(each.generation_id, each.caller, poll=each.poll, of_batch=each.of_batch)


def pause_for_slot(rounds: int) -> float:
    """Seconds after which a generation comes by itself if it has waited for `rounds` rounds and nobody brought it."""
    return min(LONGEST_MESSAGE_DELAY_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(rounds, 10))
