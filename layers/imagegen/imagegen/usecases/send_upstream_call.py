"""Sends one upstream call: by the routes of its model in order, with each attempt on the record before it is sent."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AbandonedError,
    ImagegenError,
    InternalError,
    NothingSpentError,
    OutcomeUnknownError,
    RecordsUnavailableError,
    TryLaterError,
    UpstreamRateLimitedError,
    UpstreamTimeoutError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import Generation, UpstreamAttempt, UpstreamCall
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.upstreams import Route
from imagegen.ports import LONGEST_MESSAGE_DELAY_SECONDS, GenerationStore, ImageProvider, Journal
from imagegen.usecases.tried import tried
from imagegen.usecases.upstream_routes import UpstreamRoutes
from imagegen.usecases.upstream_slots import NoSlotError, UpstreamLimits, pause_for_slot

MOST_SENT = 2  # a call of unknown outcome is repeated once
MOST_MESSAGE = 100  # characters of each attempt's failure: a record has 400 KB for all attempts
TRIES = 3  # of all routes, if they refuse: resellers try other channels themselves, and clients retry too
_FIRST_REFUSAL_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0  # a caller is waiting, so a longer time is reported at once instead
_FIRST_RATE_PAUSE_SECONDS = 2.0
_RATE_PAUSES_OF_DEADLINE = 10  # the longest pause is this part of the deadline, so a record has few attempts
_MOST_DOUBLINGS = 20


class UnfinishedError(Exception):
    """A paid image is not fetched yet, or cannot be looked for now. The next process continues from the record."""


class Waiting(msgspec.Struct, frozen=True):
    """The next round is due after `seconds`: for a task that has not ended, or for a call that was not sent.

    `upstreams` are those of which a call needs a slot.
    """

    seconds: float
    upstreams: frozenset[str] = frozenset()


class AttemptFailedError(Exception):
    """The last attempt of a call has failed, and no further one may be sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class _RefusedError(Exception):
    """An attempt of `call` bought nothing, and another attempt may follow."""

    def __init__(self, call: UpstreamCall, reason: NothingSpentError) -> None:
        super().__init__(reason.code)
        self.call = call
        self.reason = reason


class CallParts(msgspec.Struct, frozen=True, eq=False):
    """What sending needs. `now` gives Unix seconds.

    With `repeat_unknown` a call of unknown outcome is sent once more, else its generation fails.
    """

    routes: UpstreamRoutes
    limits: UpstreamLimits
    records: GenerationStore
    journal: Journal
    repeat_unknown: bool
    now: Callable[[], float]
    sleep: Callable[[float], None] = time.sleep


class CallSender:
    """Sends the calls of one generation, for the process `owner`. Its methods run side by side, each on its own call.

    Without `may_send` nothing is bought. If a record cannot be written once something was paid for, the block of
    `continuing` goes on.
    """

    def __init__(
        self,
        parts: CallParts,
        generation: Generation,
        owner: str,
        deadline: Deadline,
        *,
        may_send: bool,
        continuing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._with = parts
        self._generation = generation
        self._owner = owner
        self._deadline = deadline
        self._may_send = may_send
        self._continuing = continuing

    def start(
        self, call: UpstreamCall, n: int, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask | Waiting]:
        """Sends new attempts until one is not refused. Returns the call with them, and what the upstream answered.

        After a refusal that bought nothing and that another upstream may not share, the next route follows at once. If
        all routes refuse, those that may soon be ready are tried a few times more. If one is at its rate limit, or has
        no slot free, the generation waits in the queue instead. `until_noted` ends when the answer is on the record.
        """
        self._check_may_send(call)
        try:
            routes = self._with.routes.usable(self._generation.supply)
        except NothingSpentError as error:
            raise AttemptFailedError(_outcome(call, failure_of(error))) from error
        reason: NothingSpentError | None = None
        for number in range(1, TRIES + 1):
            refused: dict[Route, NothingSpentError] = {}
            full: set[str] = set()
            for route in routes:
                if reason and self._deadline.remaining() < self._with.routes.access(route.upstream).call_seconds:
                    # It could be cut off after it is paid for. The next process has its whole time.
                    return call, self._within_deadline(call, 1.0, failure_of(reason))
                try:
                    return self._send(call, route, n, until_noted)
                except _RefusedError as error:
                    call, reason = error.call, error.reason
                    refused[route] = reason
                except NoSlotError:
                    full.add(route.upstream)
            limited = [error for error in refused.values() if isinstance(error, UpstreamRateLimitedError)]
            if limited:
                return call, self._wait_for_rate(call, limited, frozenset(full))
            if full:
                return call, Waiting(pause_for_slot(self._generation.polls), frozenset(full))
            soon = {route: error for route, error in refused.items() if isinstance(error, TryLaterError)}
            routes, pause = list(soon), _pause(soon.values(), number)
            if not routes or number == TRIES or pause > _LONGEST_PAUSE_SECONDS or pause >= self._deadline.remaining():
                break
            self._with.sleep(pause)
        raise AttemptFailedError(_outcome(call, failure_of(next(iter((*soon.values(), *refused.values()))))))

    def poll(self, call: UpstreamCall, attempt: UpstreamAttempt) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Looks at a task. An unexpected exception does not fail it: another process polls again."""
        n, seconds = len(call.image_ids), self._with.now() - attempt.sent_at
        try:
            request = self._request(call, n, attempt.upstream)
            result = self._provider(attempt.upstream).poll(attempt.task_id or "", request, self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except ImagegenError as error:
            number = 1 + call.attempts.index(attempt)
            call = self._note_failure(call, number, failure_of(error), seconds)
            raise AttemptFailedError(_failure_of_last_attempt(call)) from error
        if isinstance(result, UpstreamImages):
            self._with.journal.answered(self._generation, seconds, None, attempt.upstream)
        return call, result

    def _check_may_send(self, call: UpstreamCall) -> None:
        """Raises AttemptFailedError or a MoneySpentError if no further attempt may be sent."""
        if not self._may_send and call.extra:
            raise UpstreamTooFewImagesError("The image model answered with fewer images than it was asked for.")
        # An operator's retry allows one more attempt.
        if call.failed > self._generation.retries:
            raise AttemptFailedError(_failure_of_last_attempt(call))
        if not self._may_send:
            if call.attempts and call.sent == call.refused:
                raise AttemptFailedError(_failure_of_last_attempt(call))
            raise AbandonedError("The image could not be made: every process that worked on it died.")
        repeats = self._with.repeat_unknown and not call.extra
        most = (MOST_SENT if repeats else 1) + self._generation.retries
        if call.sent - call.refused >= most:
            raise OutcomeUnknownError("The image model was called, but the outcome of the call is not known.")

    def _send(
        self, call: UpstreamCall, route: Route, n: int, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Sends one attempt. Raises _RefusedError if another one may follow, else AttemptFailedError.

        Raises NoSlotError if the upstream has no slot free, before anything is noted. The slot is free again when the
        attempt has failed, or else when its answer is on the record: nothing may come before that.
        """
        if still := self._limited_since(call, route):
            raise _RefusedError(call, still)
        limits, seconds = self._with.limits, self._with.routes.access(route.upstream).call_seconds
        with ExitStack() as slot:
            slot.enter_context(limits.slot(route.upstream, self._generation, call.number, seconds=seconds))
            sent = self._send_in_slot(call, route, n)
            until_noted.push(slot.pop_all())
            return sent

    def _new_attempt(self, call: UpstreamCall, route: Route) -> UpstreamCall:
        """Notes one more attempt, before it is sent."""
        if call.extra and self._deadline.remaining() < self._with.routes.access(route.upstream).call_seconds:
            raise UnfinishedError  # it could be cut off after it is paid for; the next process has its whole time
        attempt = UpstreamAttempt(route.upstream, self._with.now())
        call = msgspec.structs.replace(call, attempts=(*call.attempts, attempt))
        self._with.records.save_attempt(self._generation.id, self._owner, call.number, call.sent, attempt)
        return call

    def _send_in_slot(
        self, call: UpstreamCall, route: Route, n: int
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        call = self._new_attempt(call, route)
        started = time.perf_counter()
        self._with.journal.asked(self._generation, n, route.upstream)
        try:
            result = self._provider(route.upstream).start(self._request(call, n, route.upstream), self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except Exception as error:
            # An unexpected exception may have come after the request was sent.
            is_known = isinstance(error, ImagegenError)
            known = error if is_known else InternalError("The call to the image model broke off.")
            call = self._note_failure(call, call.sent, failure_of(known), time.perf_counter() - started)
            if isinstance(known, NothingSpentError) and known.another_attempt:
                raise _RefusedError(call, known) from error
            raise AttemptFailedError(_failure_of_last_attempt(call)) from error
        if isinstance(result, UpstreamImages):
            self._with.journal.answered(self._generation, time.perf_counter() - started, None, route.upstream)
            return call, result
        attempt = msgspec.structs.replace(call.attempts[-1], task_id=result.id)
        with self._continuing():
            save = partial(self._with.records.save_task, self._generation.id, call.number, call.sent, result.id)
            # Without the id the task is lost, and may be bought again.
            tried(save, self._deadline, (RecordsUnavailableError,), self._with.sleep)
        return msgspec.structs.replace(call, attempts=(*call.attempts[:-1], attempt)), result

    def _limited_since(self, call: UpstreamCall, route: Route) -> UpstreamRateLimitedError | None:
        """The refusal that still holds, if the upstream named a longer time than a message can wait."""
        of_route = [attempt for attempt in call.attempts if attempt.upstream == route.upstream]
        last = of_route[-1] if of_route else None
        if last is None or last.failure is None or last.failure.code != UpstreamRateLimitedError.code:
            return None
        left = last.sent_at + (last.failure.retry_after or 0) - self._with.now()
        if left < 1 or not self._generation.polls:
            return None
        error = UpstreamRateLimitedError(last.failure.message)
        error.retry_after = left
        return error

    def _wait_for_rate(
        self, call: UpstreamCall, refused: Sequence[UpstreamRateLimitedError], full: frozenset[str]
    ) -> Waiting:
        """The pause until the upstreams are asked again. Raises AttemptFailedError if the deadline is sooner."""
        code = UpstreamRateLimitedError.code
        rounds = sum(each.failure is not None and each.failure.code == code for each in call.attempts)
        growing = _FIRST_RATE_PAUSE_SECONDS * 2 ** min(rounds // len(refused) - 1, _MOST_DOUBLINGS)
        longest = self._generation.supply.deadline_seconds / _RATE_PAUSES_OF_DEADLINE
        pause = min(growing, longest) * random.uniform(0.75, 1)
        pause = max(pause, min(error.retry_after or 0 for error in refused))
        failure = msgspec.structs.replace(failure_of(refused[0]), retry_after=pause)
        waiting = self._within_deadline(call, pause, failure)
        return msgspec.structs.replace(waiting, upstreams=full)

    def _within_deadline(self, call: UpstreamCall, pause: float, failure: Failure) -> Waiting:
        """A wait of `pause` seconds. Raises AttemptFailedError with the failure if the deadline is sooner."""
        generation, now = self._generation, self._with.now()
        sent = [generation.first_sent_at or now, *(attempt.sent_at for attempt in call.attempts)]
        first = max(min(sent), generation.reserved_at or 0)
        if now + pause > first + generation.supply.deadline_seconds:
            raise AttemptFailedError(_outcome(call, failure))
        return Waiting(min(pause, LONGEST_MESSAGE_DELAY_SECONDS))

    def until_next_poll(self, attempt: UpstreamAttempt, task: UpstreamTask) -> Waiting:
        """Raises UpstreamTimeoutError if the task has taken too long. An operator's retry polls the same task."""
        if self._with.now() - attempt.sent_at >= task.task_seconds:
            raise UpstreamTimeoutError("The image model's task did not end in time.")
        return Waiting(task.poll_seconds)

    def _note_failure(self, call: UpstreamCall, number: int, failure: Failure, seconds: float) -> UpstreamCall:
        """Notes that the call's attempt `number` failed after `seconds`. Returns the call with the failure."""
        attempts = list(call.attempts)
        attempts[number - 1] = msgspec.structs.replace(attempts[number - 1], failure=failure)
        kept = msgspec.structs.replace(failure, message=failure.message[:MOST_MESSAGE])
        with self._continuing():
            self._with.records.save_failure(self._generation.id, call.number, number, kept)
        self._with.journal.answered(self._generation, seconds, failure, attempts[number - 1].upstream)
        return msgspec.structs.replace(call, attempts=tuple(attempts))

    def _request(self, call: UpstreamCall, n: int, upstream: str) -> UpstreamRequest:
        request, supply = self._generation.request, self._generation.supply
        names = {route.upstream: route.model for route in supply.routes}
        # Another task may begin only after a task has failed: an attempt may have begun one that is not known.
        reference = f"{self._generation.id}.{call.number}.{call.failed_tasks}"
        request = replace(request, options={**supply.defaults, **request.options})
        return UpstreamRequest(request, names.get(upstream, request.model), supply.like, n, reference)

    def _provider(self, upstream: str) -> ImageProvider:
        return self._with.routes.access(upstream).providers[self._generation.supply.provider]


def _failure_of_last_attempt(call: UpstreamCall) -> Failure:
    """Why the call's last attempt failed, or that the outcome of an earlier one is unknown."""
    failure = next((attempt.failure for attempt in reversed(call.attempts) if attempt.failure), None)
    return _outcome(call, failure or failure_of(AbandonedError("No attempt was made.")))


def _outcome(call: UpstreamCall, failure: Failure) -> Failure:
    """The failure of the call's last attempt, or that the outcome of an earlier one is unknown."""
    if failure.money_spent or call.sent == call.refused:
        return failure
    return failure_of(
        OutcomeUnknownError(f"The outcome of an earlier call to the image model is not known. {failure.message}")
    )


def _pause(refused: Iterable[TryLaterError], number: int) -> float:
    """Seconds until the routes are tried again after round `number`: the shortest time that an upstream named."""
    growing = _FIRST_REFUSAL_PAUSE_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1)
    return min((growing if error.retry_after is None else error.retry_after for error in refused), default=growing)


def _check_count(answer: UpstreamImages, n: int) -> None:
    """Raises ValueError if a provider breaks its contract: it is unclear which images came."""
    if len(answer.images) != n:
        raise ValueError(f"{len(answer.images)} images for {n}")
