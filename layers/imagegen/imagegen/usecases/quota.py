"""How many images may be made in a day, by each caller and by the whole stack: reserved before anything is spent.

A reservation that cannot be given back for certain stays taken until the day (UTC) ends: too little is spent then,
never too much.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from imagegen.domain.errors import AllowanceSpentError, RecordsUnavailableError
from imagegen.domain.generations import Generation
from imagegen.domain.quota import Standing
from imagegen.ports import AllowanceCounters, GenerationStore

STACK = "*"  # no caller is called so
_DAY_SECONDS = 24 * 3600
_NO_LIMIT = 2**53


@dataclass(frozen=True, slots=True)
class Allowance:
    """`each_caller` and `whole_stack` are in images a day."""

    counters: AllowanceCounters
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
        comes_again: bool = False,
        own: int | None = None,
    ) -> Standing:
        """Takes so many images from both allowances; `own` is the caller's if it has one of its own.

        A second reservation with the same token is the same reservation. Raises AllowanceSpentError if either does not
        suffice, and RecordsUnavailableError: nothing is taken then, as far as the counters can be reached. First
        `may_undo` is asked; it is false if another request may rely on the same reservation. With `comes_again` the
        reservation is made again until it is certain, so what was taken stays taken if an answer is lost.
        """
        limit, day, reset = self.each_caller if own is None else own, _day(now), _DAY_SECONDS - now % _DAY_SECONDS
        taken, used = self.counters.take(caller, day, images, limit, token=token)
        if not taken:
            left = max(0, limit - used)
            message = f"You asked for {_images(images)}, and have {left} of {limit} left for today."
            raise _spent(message, Standing(limit, left, reset))
        try:
            stack_taken, stack_used = self.counters.take(STACK, day, images, self.whole_stack, token=token)
        except RecordsUnavailableError:
            if not comes_again:
                self._give_back_one(caller, day, images, token, may_undo)
            raise
        stack_left = max(0, self.whole_stack - stack_used)
        if not stack_taken:
            self._give_back_one(caller, day, images, token, may_undo)
            message = f"You asked for {_images(images)}, and this service has {stack_left} left for today."
            raise _spent(message, Standing(limit, min(limit - used + images, stack_left), reset))
        quota_used = stack_used / self.whole_stack if self.whole_stack else 1.0
        return Standing(limit, min(limit - used, stack_left), reset, quota_used)

    def give_back(self, caller: str, images: int, *, at: float, token: str) -> None:
        """Undoes a reservation made at `at` (Unix seconds), once for a token."""
        _give_back(self.counters, caller, images, at=at, token=token)

    def _give_back_one(self, caller: str, day: str, images: int, token: str, may_undo: Callable[[], bool]) -> None:
        with suppress(RecordsUnavailableError):
            if may_undo():
                self.counters.give_back(caller, day, images, token=token)


def reserve_again(counters: AllowanceCounters, generation: Generation, *, now: float, token: str) -> None:
    """Takes what was returned of a generation's reservation, whatever is left: an operator wants it made after all.

    Raises RecordsUnavailableError.
    """
    for who in (generation.caller, STACK) if generation.returned else ():
        counters.take(who, _day(now), generation.returned, _NO_LIMIT, token=token)


def undo_reserving_again(counters: AllowanceCounters, generation: Generation, *, now: float, token: str) -> None:
    if generation.returned:
        _give_back(counters, generation.caller, generation.returned, at=now, token=token)


def return_uncharged(generation: Generation, records: GenerationStore, counters: AllowanceCounters) -> None:
    """Gives back what was reserved for images that certainly were not charged, once however often it is called.

    The record notes it first: a process that dies in between leaves the images taken until the day (UTC) ends. Raises
    RecordsUnavailableError.
    """
    images = generation.unreturned
    if images and records.note_returned(generation, images):
        at = generation.created_at if generation.reserved_at is None else generation.reserved_at
        token = f"{generation.id} returned {generation.retries}.{generation.returned}"
        _give_back(counters, generation.caller, images, at=at, token=token)


def _give_back(counters: AllowanceCounters, caller: str, images: int, *, at: float, token: str) -> None:
    for who in (caller, STACK):
        with suppress(RecordsUnavailableError):
            counters.give_back(who, _day(at), images, token=token)


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _spent(message: str, standing: Standing) -> AllowanceSpentError:
    error = AllowanceSpentError(f"{message} The day ends at 00:00 UTC.")
    error.limit, error.remaining, error.reset = standing.limit, standing.remaining, standing.reset
    return error
