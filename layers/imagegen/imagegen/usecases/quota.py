"""How many images each caller, and the whole stack, may make in a day, and how much money a caller may spend.

Both are reserved before anything is spent. A reservation that cannot be returned for certain stays taken until the day
(UTC) ends: the quota then allows less, never more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from imagegen.domain.cost import cost_of
from imagegen.domain.credentials import Caller
from imagegen.domain.errors import QuotaExceededError, RecordsUnavailableError
from imagegen.domain.generations import Generation
from imagegen.domain.money import Spending, usd_text
from imagegen.domain.quota import Standing
from imagegen.ports import GenerationStore, QuotaCounters

STACK = "*"  # no caller has this name
_DAY_SECONDS = 24 * 3600
_NO_LIMIT = 2**53
_SETTLEMENTS = 3  # tries, each after another process has changed the record


class _Share(msgspec.Struct, frozen=True):
    """A part of a reservation: `amount` of the quota `limit` of the counter `who`. `token` identifies it."""

    who: str
    amount: int
    limit: int
    token: str


class Quota(msgspec.Struct, frozen=True, eq=False):
    """Reserves images and money. `each_caller` and `whole_stack` are in images a day."""

    counters: QuotaCounters
    each_caller: int
    whole_stack: int

    def reserve(
        self, generation: Generation, caller: Caller, *, may_undo: Callable[[], bool], is_repeated: bool
    ) -> Standing:
        """Takes a new generation's images from the caller's and the stack's quota, and its spending from the caller's.

        A second reservation for the same generation is the same reservation. Raises QuotaExceededError if a quota does
        not suffice, and RecordsUnavailableError. In both cases the reservation is undone if the counters answer and
        `may_undo` returns `True`; it returns `False` if another request may rely on the same reservation. With
        `is_repeated` the caller repeats the reservation until it succeeds, so a lost answer undoes nothing.
        """
        day, shares = _day(generation.created_at), self._shares(generation, caller)
        used: dict[str, int] = {}
        for place, share in enumerate(shares):
            try:
                is_taken, used[share.who] = self.counters.take(
                    share.who, day, share.amount, share.limit, token=share.token
                )
            except RecordsUnavailableError:
                if not is_repeated:
                    self._undo(shares[:place], day, may_undo)
                raise
            if not is_taken:
                self._undo(shares[:place], day, may_undo)
                before = {each.who: used[each.who] - each.amount for each in shares[:place]}
                raise _exceeded(generation, caller, share, shares, {**used, **before})
        return _standing(generation, caller, shares, used)

    def undo(self, generation: Generation) -> None:
        """Undoes the reservation of a new generation. Succeeds if it is already undone."""
        day = _day(generation.created_at)
        for who, amount, token in _reserved(generation):
            _give_back(self.counters, who, day, amount, token)

    def _shares(self, generation: Generation, caller: Caller) -> Sequence[_Share]:
        # A quota in money replaces the common one in images. The caller's images are counted all the same, so that they
        # are always returned to a counter that has them.
        common = self.each_caller if caller.usd_per_day is None else self.whole_stack
        own = common if caller.images_per_day is None else caller.images_per_day
        limits = {generation.caller: own, _money_of(generation): caller.usd_per_day or 0, STACK: self.whole_stack}
        return [_Share(who, amount, limits[who], token) for who, amount, token in _reserved(generation)]

    def _undo(self, shares: Sequence[_Share], day: str, may_undo: Callable[[], bool]) -> None:
        with suppress(RecordsUnavailableError):
            if shares and may_undo():
                for share in shares:
                    _give_back(self.counters, share.who, day, share.amount, share.token)


class QuotaReturns(msgspec.Struct, frozen=True, eq=False):
    """Returns what was reserved and not charged, and takes what was charged beyond."""

    counters: QuotaCounters
    records: GenerationStore

    def return_uncharged(self, generation: Generation) -> None:
        """Returns what was reserved for images that certainly were not charged, once however often it is called.

        The record notes it first. If the process dies in between, the images stay taken until the day (UTC) ends.
        Raises RecordsUnavailableError.
        """
        images = generation.unreturned
        if images and self.records.note_returned(generation, images):
            token = f"{generation.id} returned {generation.retries}.{generation.returned}"
            for who in (generation.caller, STACK):
                _give_back(self.counters, who, _day_of(generation), images, token)

    def settle(self, generation: Generation) -> None:
        """Makes the caller's quota in money hold what an ended generation cost, once however often it is called.

        What is returned is noted on the record first, as above. What was charged beyond the reservation is taken first,
        without a limit: if the process dies in between, the next one takes it with the same token. If another process
        settles at the same time, the cost is read again. Raises RecordsUnavailableError.
        """
        current: Generation | None = generation
        for _ in range(_SETTLEMENTS):
            if current is None or current.spending is None or not current.ended:
                return
            cost = cost_of(current)
            settled = current.spending.settled(cost.micros or 0)  # what has a spending has a price
            if settled == current.spending or self._note(current, current.spending, settled):
                return
            current = self.records.get(generation.id)

    def _note(self, generation: Generation, known: Spending, settled: Spending) -> bool:
        """Changes the counter and the record. Returns `False` if another process changed the record first."""
        who, day, more = _money_of(generation), _day_of(generation), settled.taken - known.taken
        token = f"{generation.id} settled {settled.changes} {settled.taken}"
        if more < 0:
            is_noted = self.records.note_spending(generation, settled)
            if is_noted:
                _give_back(self.counters, who, day, -more, token)
            return is_noted
        self.counters.take(who, day, more, _NO_LIMIT, token=token)
        if self.records.note_spending(generation, settled):
            return True
        current = self.records.get(generation.id)
        other = current.spending if current else None
        # The same change by another process took the same, with the same token. Without a record that is not known.
        if other is not None and other.changes == settled.changes and other != settled:
            _give_back(self.counters, who, day, more, token)
        return False

    def reserve_again(self, generation: Generation, *, now: float, token: str) -> None:
        """Takes again what was returned of a generation's reservation, without a limit: an operator asked for it.

        Raises RecordsUnavailableError.
        """
        for who, amount in _returned(generation):
            self.counters.take(who, _day(now), amount, _NO_LIMIT, token=token)

    def undo_reserving_again(self, generation: Generation, *, now: float, token: str) -> None:
        for who, amount in _returned(generation):
            _give_back(self.counters, who, _day(now), amount, token)


def _reserved(generation: Generation) -> Sequence[tuple[str, int, str]]:
    """Returns what a new generation reserves: the counters, the amounts, and the tokens of the changes."""
    n, spending = generation.request.n, generation.spending
    images = [(who, n, generation.id) for who in (generation.caller, STACK)]
    if spending is None:
        return images
    # With the amount: after a change of the price, a repetition is another change.
    money = (_money_of(generation), spending.reserved, f"{generation.id} {spending.reserved}")
    return [images[0], money, images[1]]


def _returned(generation: Generation) -> Sequence[tuple[str, int]]:
    """Returns what was given back of the reservation, by counter."""
    spending = generation.spending
    amounts = [(who, generation.returned) for who in (generation.caller, STACK)]
    amounts += [(_money_of(generation), spending.returned)] if spending else []
    return [(who, amount) for who, amount in amounts if amount]


def _money_of(generation: Generation) -> str:
    """Returns the name of the counter of the caller's money. No caller has this name."""
    return f"usd:{generation.caller}"


def _give_back(counters: QuotaCounters, who: str, day: str, amount: int, token: str) -> None:
    with suppress(RecordsUnavailableError):
        counters.give_back(who, day, amount, token=token)


def _day_of(generation: Generation) -> str:
    """Returns the day of the last reservation."""
    return _day(generation.created_at if generation.reserved_at is None else generation.reserved_at)


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _standing(generation: Generation, caller: Caller, shares: Sequence[_Share], used: Mapping[str, int]) -> Standing:
    """Returns the caller's standing. `used` is by counter, as far as it is known."""
    left = {share.who: max(0, share.limit - used[share.who]) for share in shares if share.who in used}
    money = _money_of(generation)
    stack = next(share for share in shares if share.who == STACK)
    return Standing(
        limit=next(share.limit for share in shares if share.who == generation.caller),
        remaining=min(left[who] for who in (generation.caller, STACK) if who in left),
        reset=_DAY_SECONDS - generation.created_at % _DAY_SECONDS,
        quota_used=used[STACK] / stack.limit if stack.limit and STACK in used else 1.0,
        usd_limit=caller.usd_per_day,
        usd_remaining=left.get(money, caller.usd_per_day),
    )


def _exceeded(
    generation: Generation, caller: Caller, share: _Share, shares: Sequence[_Share], used: Mapping[str, int]
) -> QuotaExceededError:
    """Returns the refusal of a reservation for which `share` has not enough left."""
    asked, left = _images(share.amount), max(0, share.limit - used[share.who])
    if share.who == STACK:
        message = f"You asked for {asked}, and this service has {left} left for today."
    elif share.who == generation.caller:
        message = f"You asked for {asked}, and have {left} of {share.limit} left for today."
    else:
        amounts = [usd_text(amount) for amount in (share.amount, left, share.limit)]
        message = "Your request may cost up to {} USD, and you have {} of {} USD left for today.".format(*amounts)
    error = QuotaExceededError(f"{message} The day ends at 00:00 UTC.")
    error.is_above_limit = share.amount > share.limit
    standing = _standing(generation, caller, shares, used)
    error.limit, error.remaining, error.reset = standing.limit, standing.remaining, standing.reset
    error.usd_limit, error.usd_remaining = standing.usd_limit, standing.usd_remaining
    return error
