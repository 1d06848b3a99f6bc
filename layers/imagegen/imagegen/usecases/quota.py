"""How many images each caller, and the whole stack, may make in a day. They are reserved before anything is spent.

A reservation that cannot be returned for certain stays taken until the day (UTC) ends: the quota then allows fewer
images, never more.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from imagegen.domain.errors import QuotaExceededError, RecordsUnavailableError
from imagegen.domain.generations import Generation
from imagegen.domain.quota import Standing
from imagegen.ports import GenerationStore, QuotaCounters

STACK = "*"  # no caller has this name
_DAY_SECONDS = 24 * 3600
_NO_LIMIT = 2**53


class Quota(msgspec.Struct, frozen=True, eq=False):
    """Reserves images. `each_caller` and `whole_stack` are in images a day."""

    counters: QuotaCounters
    each_caller: int
    whole_stack: int

    def reserve(
        self,
        caller: str,
        images: int,
        *,
        now: float,
        token: str,
        may_undo: Callable[[], bool],
        is_repeated: bool,
        own_limit: int | None,
    ) -> Standing:
        """Takes `images` from the caller's and the stack's quota. `own_limit` is the caller's own images a day.

        A second reservation with the same token is the same reservation. Raises QuotaExceededError if either quota
        does not suffice, and RecordsUnavailableError. In both cases the reservation is undone if the counters answer
        and `may_undo` returns `True`; it returns `False` if another request may rely on the same reservation. With
        `is_repeated` the caller repeats the reservation until it succeeds, so a lost answer undoes nothing.
        """
        limit, day = self.each_caller if own_limit is None else own_limit, _day(now)
        reset = _DAY_SECONDS - now % _DAY_SECONDS
        taken, used = self.counters.take(caller, day, images, limit, token=token)
        if not taken:
            left = max(0, limit - used)
            message = f"You asked for {_images(images)}, and have {left} of {limit} left for today."
            raise _exceeded(message, Standing(limit, left, reset))
        try:
            stack_taken, stack_used = self.counters.take(STACK, day, images, self.whole_stack, token=token)
        except RecordsUnavailableError:
            if not is_repeated:
                self._undo_for_caller(caller, day, images, token, may_undo)
            raise
        stack_left = max(0, self.whole_stack - stack_used)
        if not stack_taken:
            self._undo_for_caller(caller, day, images, token, may_undo)
            message = f"You asked for {_images(images)}, and this service has {stack_left} left for today."
            raise _exceeded(message, Standing(limit, min(limit - used + images, stack_left), reset))
        quota_used = stack_used / self.whole_stack if self.whole_stack else 1.0
        return Standing(limit, min(limit - used, stack_left), reset, quota_used)

    def undo(self, caller: str, images: int, *, at: float, token: str) -> None:
        """Undoes the reservation with this token, made at `at` (Unix seconds). Succeeds if it is already undone."""
        _give_back(self.counters, caller, images, at=at, token=token)

    def _undo_for_caller(self, caller: str, day: str, images: int, token: str, may_undo: Callable[[], bool]) -> None:
        with suppress(RecordsUnavailableError):
            if may_undo():
                self.counters.give_back(caller, day, images, token=token)


class QuotaReturns(msgspec.Struct, frozen=True, eq=False):
    """Returns images that were reserved and not charged."""

    counters: QuotaCounters
    records: GenerationStore

    def return_uncharged(self, generation: Generation) -> None:
        """Returns what was reserved for images that certainly were not charged, once however often it is called.

        The record notes it first. If the process dies in between, the images stay taken until the day (UTC) ends.
        Raises RecordsUnavailableError.
        """
        images = generation.unreturned
        if images and self.records.note_returned(generation, images):
            at = generation.created_at if generation.reserved_at is None else generation.reserved_at
            token = f"{generation.id} returned {generation.retries}.{generation.returned}"
            _give_back(self.counters, generation.caller, images, at=at, token=token)

    def reserve_again(self, generation: Generation, *, now: float, token: str) -> None:
        """Takes again what was returned of a generation's reservation, without a limit: an operator asked for it.

        Raises RecordsUnavailableError.
        """
        for who in (generation.caller, STACK) if generation.returned else ():
            self.counters.take(who, _day(now), generation.returned, _NO_LIMIT, token=token)

    def undo_reserving_again(self, generation: Generation, *, now: float, token: str) -> None:
        if generation.returned:
            _give_back(self.counters, generation.caller, generation.returned, at=now, token=token)


def _give_back(counters: QuotaCounters, caller: str, images: int, *, at: float, token: str) -> None:
    for who in (caller, STACK):
        with suppress(RecordsUnavailableError):
            counters.give_back(who, _day(at), images, token=token)


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _exceeded(message: str, standing: Standing) -> QuotaExceededError:
    error = QuotaExceededError(f"{message} The day ends at 00:00 UTC.")
    error.limit, error.remaining, error.reset = standing.limit, standing.remaining, standing.reset
    return error
