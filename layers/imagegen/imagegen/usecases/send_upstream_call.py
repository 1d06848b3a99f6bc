"""Sends one upstream call: by the routes of its model in order, with each attempt on the record before it is sent."""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AbandonedError,
    ImagegenError,
    InternalError,
    MoneySpentError,
    NothingSpentError,
    OutcomeUnknownError,
    RecordsUnavailableError,
    TryLaterError,
    UpstreamRateLimitedError,
    UpstreamTaskUnfinishedError,
    UpstreamTaskUnknownError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import Generation, UpstreamAttempt, UpstreamCall
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.slots import Slot, call_name, slots_name
from imagegen.domain.upstreams import Route
from imagegen.ports import LONGEST_MESSAGE_DELAY_SECONDS, GenerationStore, ImageProvider, Journal
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.tried import tried
from imagegen.usecases.upstream_routes import UpstreamRoutes
from imagegen.usecases.upstream_slots import NoSlotError, UpstreamLimits, pause_for_slot

MOST_SENT = 2  # a call of unknown outcome is repeated once
MOST_MESSAGE = 100  # characters of each attempt's failure: a record has 400 KB for all attempts
TRIES = 3  # of all routes, if they refuse: resellers try other channels themselves, and clients retry too
_FIRST_REFUSAL_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0  # a caller is waiting, so a longer time is reported at once instead
_FIRST_RATE_PAUSE_SECONDS = 2.0
_LEAST_OF_PAUSE = 0.75  # the rest is random, so that calls that were refused together come apart
_RATE_PAUSES_OF_DEADLINE = 10  # the longest pause is this part of the deadline, so a record has few attempts
_MOST_DOUBLINGS = 20
_SLOT_MARGIN_SECONDS = 60.0  # for the record before a call and after it
_PAUSE_OF_AGE = 0.25  # a task that has run for a minute is polled every 15 seconds
# From the sending. A submit may take two minutes, and a server may answer before it has seen a task that another began.
_UNKNOWN_TASK_SECONDS = 180.0
_UNKNOWN_TASK_PAUSES_SECONDS = 5.0, 15.0


class UnfinishedError(Exception):
    """A paid image is not fetched yet, or cannot be looked for now. The next process continues from the record."""


class Waiting(msgspec.Struct, frozen=True):
    """The next round is due after `seconds`: for a task that has not ended, or for a call that was not sent.

    `slots` are the slots that a call needs, by their name. `progress` is that of the task, in per cent.
    """

    seconds: float
    slots: Mapping[str, int] = {}
    progress: int | None = None


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
    inputs: OpenInputs
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

        If none may be sent, looks for the task of an earlier one. `until_noted` ends when the answer is on the record.
        """
        try:
            self._check_may_send(call)
        except (AttemptFailedError, MoneySpentError):
            if found := self._found(call, n):
                return found
            raise
        return self._by_routes(call, n, until_noted)

    def _by_routes(
        self, call: UpstreamCall, n: int, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask | Waiting]:
        """Sends new attempts by the routes of the model.

        After a refusal that bought nothing and that another upstream may not share, the next route follows at once. If
        all routes refuse, those that may soon be ready are tried a few times more. If one is at its rate limit, or has
        no slot free, the generation waits in the queue instead.
        """
        routes, sent = self._routes(call), call.sent
        reason: NothingSpentError | None = None
        for number in range(1, TRIES + 1):
            refused: dict[Route, NothingSpentError] = {}
            full: dict[str, int] = {}
            for route in routes:
                if reason and self._deadline.remaining() < self._with.routes.access(route.upstream).call_seconds:
                    # It could be cut off after it is paid for. The next process has its whole time.
                    return call, self._within_deadline(call, 1.0, failure_of(reason))
                try:
                    return self._send(call, route, n, until_noted)
                except _RefusedError as error:
                    call, reason = error.call, error.reason
                    refused[route] = reason
                except NoSlotError as error:
                    full |= error.needed
            limited = [error for error in refused.values() if isinstance(error, UpstreamRateLimitedError)]
            if limited:
                return call, self._wait_for_rate(call, limited, full, holds=call.sent == sent)
            if full:
                return call, Waiting(pause_for_slot(self._generation.polls), full)
            soon = {route: error for route, error in refused.items() if isinstance(error, TryLaterError)}
            routes, pause = list(soon), _pause(soon.values(), number)
            if not routes or number == TRIES or pause > _LONGEST_PAUSE_SECONDS or pause >= self._deadline.remaining():
                break
            self._with.sleep(pause)
        raise AttemptFailedError(_outcome(call, failure_of(next(iter((*soon.values(), *refused.values()))))))

    def poll(
        self, call: UpstreamCall, attempt: UpstreamAttempt, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | Waiting]:
        """Looks at a task. Returns its images, or the pause until the next poll.

        An unexpected exception does not fail the task: another process polls again. The slots of the task are free
        again when it has failed, or else when `until_noted` ends.
        """
        if not self._with.routes.knows(attempt.upstream, self._generation.supply.provider):
            raise OutcomeUnknownError("The upstream that makes the image is no longer configured.")
        n, seconds = len(call.image_ids), self._with.now() - attempt.sent_at
        request = self._request(call, n, attempt.upstream)
        try:
            result = self._provider(attempt.upstream).poll(attempt.task_id or "", request, self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except ImagegenError as error:
            if not isinstance(error, UpstreamTaskUnknownError) or seconds >= _UNKNOWN_TASK_SECONDS:
                number = 1 + call.attempts.index(attempt)
                call = self._note_failure(call, number, failure_of(error), seconds)
                self._with.limits.free(self._slot_of_task(call, attempt, n))
                raise AttemptFailedError(_failure_of_last_attempt(call)) from error
            result = UpstreamTask(attempt.task_id or "", *_UNKNOWN_TASK_PAUSES_SECONDS)
        if isinstance(result, UpstreamTask):
            return call, self._until_next_poll(attempt, result)
        self._with.journal.answered(self._generation, seconds, None, attempt.upstream)
        until_noted.callback(self._with.limits.free, self._slot_of_task(call, attempt, n))
        return call, result

    def _found(self, call: UpstreamCall, n: int) -> tuple[UpstreamCall, UpstreamTask] | None:
        """The task that a process began which died before it noted it, if the upstream can look for it."""
        unknown, supply = call.unknown, self._generation.supply
        if unknown is None or unknown.failure or not self._with.routes.knows(unknown.upstream, supply.provider):
            return None
        try:
            task = self._provider(unknown.upstream).find(self._request(call, n, unknown.upstream), self._deadline)
        except ImagegenError:
            return None
        return (self._with_task(call, unknown, task), task) if task else None

    def _routes(self, call: UpstreamCall) -> Sequence[Route]:
        """The routes that may be tried, in order. Raises AttemptFailedError if there are none.

        An upstream with tasks may recognise the repetition of a call whose outcome is unknown. Another one would make
        and charge the images again, so nothing is sent if that upstream cannot be used now. In the rounds for the task
        of another call, a route is tried a few times in all. Raises OutcomeUnknownError.
        """
        try:
            routes = self._with.routes.usable(self._generation.supply)
        except NothingSpentError as error:
            raise AttemptFailedError(_outcome(call, failure_of(error))) from error
        if self._has_task:
            most = TRIES * (1 + self._generation.retries)
            routes = [route for route in routes if _refusals(call, route) < most]
            if not routes:
                raise AttemptFailedError(_failure_of_last_attempt(call))
        if not self._generation.supply.by_task or call.unknown is None:
            return routes
        same = [route for route in routes if route.upstream == call.unknown.upstream]
        if not same:
            raise OutcomeUnknownError("The upstream that was called before cannot be called again now.")
        return same

    @property
    def _has_task(self) -> bool:
        """Whether this round is also for the task of a call. A task has hundreds of rounds, and a record has 400 KB."""
        return any(call.open_task for call in self._generation.calls)

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
        attempt or its task has failed, or else when its answer is on the record: nothing may come before that.
        """
        if still := self._limited_since(call, route):
            raise _RefusedError(call, still)
        limits, attempt = self._with.limits, UpstreamAttempt(route.upstream, self._with.now())
        until = self._slot_until(attempt)
        slot = limits.take(route.upstream, self._generation, call.number, n, until=until)
        try:
            call, result = self._send_in_slot(call, route, n, attempt)
        except Exception:
            limits.free(slot)
            raise
        if isinstance(result, UpstreamImages):
            until_noted.callback(limits.free, slot)
        return call, result

    def _slot_until(self, attempt: UpstreamAttempt) -> float:
        """The latest time at which the upstream works on an attempt. It follows from the record, for any process."""
        supply = self._generation.supply
        seconds = supply.task_seconds if supply.by_task else self._with.routes.access(attempt.upstream).call_seconds
        return attempt.sent_at + seconds + _SLOT_MARGIN_SECONDS

    def _slot_of_task(self, call: UpstreamCall, task: UpstreamAttempt, n: int) -> Slot:
        generation = self._generation
        at, name = slots_name(task.upstream, generation.supply.provider), call_name(generation.id, call.number)
        return Slot(at, name, self._slot_until(task), n if generation.supply.slot_per_image else 1)

    def _new_attempt(self, call: UpstreamCall, route: Route, attempt: UpstreamAttempt) -> UpstreamCall:
        """Notes one more attempt, before it is sent."""
        if call.extra and self._deadline.remaining() < self._with.routes.access(route.upstream).call_seconds:
            raise UnfinishedError  # it could be cut off after it is paid for; the next process has its whole time
        call = msgspec.structs.replace(call, attempts=(*call.attempts, attempt))
        self._with.records.save_attempt(self._generation.id, self._owner, call.number, call.sent, attempt)
        return call

    def _send_in_slot(
        self, call: UpstreamCall, route: Route, n: int, attempt: UpstreamAttempt
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        repeats = call.unknown is not None
        call = self._new_attempt(call, route, attempt)
        started = time.perf_counter()
        self._with.journal.asked(self._generation, n, route.upstream)
        try:
            request = self._request(call, n, route.upstream, repeats=repeats)
            result = self._provider(route.upstream).start(request, self._deadline)
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
        call = self._with_task(call, attempt, result)
        if call.open_task is None:  # an upstream that recognises equal calls would answer each with this failed task
            raise AttemptFailedError(_failure_of_last_attempt(call))
        return call, result

    def _with_task(self, call: UpstreamCall, attempt: UpstreamAttempt, task: UpstreamTask) -> UpstreamCall:
        """Notes the task of an attempt. Returns the call with it."""
        place = call.attempts.index(attempt)
        with self._continuing():
            save = partial(self._with.records.save_task, self._generation.id, call.number, place + 1, task.id)
            # Without the id the task is lost, and may be bought again.
            tried(save, self._deadline, (RecordsUnavailableError,), self._with.sleep)
        attempts = list(call.attempts)
        attempts[place] = msgspec.structs.replace(attempt, task_id=task.id)
        return msgspec.structs.replace(call, attempts=tuple(attempts))

    def _limited_since(self, call: UpstreamCall, route: Route) -> UpstreamRateLimitedError | None:
        """The refusal that still holds. `None` if the route may be tried.

        One may hold because the upstream named a longer time than a message can wait, or because this round is for the
        task of another call, which is polled more often.
        """
        of_route = [attempt for attempt in call.attempts if attempt.upstream == route.upstream]
        last = of_route[-1] if of_route else None
        if last is None or last.failure is None or last.failure.code != UpstreamRateLimitedError.code:
            return None
        pause = last.failure.retry_after or 0
        if self._has_task:
            pause = max(pause, _LEAST_OF_PAUSE * self._growing_pause(_limited(of_route)))
        left = last.sent_at + pause - self._with.now()
        if left < 1 or not self._generation.polls:
            return None
        error = UpstreamRateLimitedError(last.failure.message)
        error.retry_after = left
        return error

    def _wait_for_rate(
        self, call: UpstreamCall, refused: Sequence[UpstreamRateLimitedError], full: Mapping[str, int], *, holds: bool
    ) -> Waiting:
        """The pause until the upstreams are asked again. Raises AttemptFailedError if the deadline is sooner.

        `holds` is whether the refusals are those of an earlier round.
        """
        pause = min(error.retry_after or 0 for error in refused)
        if not holds:
            growing = self._growing_pause(_limited(call.attempts) // len(refused))
            pause = max(pause, growing * random.uniform(_LEAST_OF_PAUSE, 1))
        failure = msgspec.structs.replace(failure_of(refused[0]), retry_after=pause)
        waiting = self._within_deadline(call, pause, failure)
        return msgspec.structs.replace(waiting, slots=full)

    def _growing_pause(self, refusals: int) -> float:
        growing = _FIRST_RATE_PAUSE_SECONDS * 2 ** min(refusals - 1, _MOST_DOUBLINGS)
        return float(min(growing, self._generation.supply.deadline_seconds / _RATE_PAUSES_OF_DEADLINE))

    def _within_deadline(self, call: UpstreamCall, pause: float, failure: Failure) -> Waiting:
        """A wait of `pause` seconds. Raises AttemptFailedError with the failure if the deadline is sooner."""
        generation, now = self._generation, self._with.now()
        sent = [generation.first_sent_at or now, *(attempt.sent_at for attempt in call.attempts)]
        first = max(min(sent), generation.reserved_at or 0)
        if now + pause > first + generation.supply.deadline_seconds:
            raise AttemptFailedError(_outcome(call, failure))
        return Waiting(min(pause, LONGEST_MESSAGE_DELAY_SECONDS))

    def until_first_poll(self, task: UpstreamTask) -> Waiting:
        """A task is polled at least once, however long it took to note it."""
        return Waiting(task.first_pause, progress=task.progress)

    def _until_next_poll(self, attempt: UpstreamAttempt, task: UpstreamTask) -> Waiting:
        """Raises UpstreamTaskUnfinishedError after the deadline. An operator's retry polls for as long again."""
        generation, now = self._generation, self._with.now()
        if now - max(attempt.sent_at, generation.reserved_at or 0) >= generation.supply.task_seconds:
            raise UpstreamTaskUnfinishedError("The image model did not end its task in time.")
        pause = min(task.longest_pause, _PAUSE_OF_AGE * (now - attempt.sent_at)) * random.uniform(0.75, 1)
        return Waiting(max(task.first_pause, pause), progress=task.progress)

    def _note_failure(self, call: UpstreamCall, number: int, failure: Failure, seconds: float) -> UpstreamCall:
        """Notes that the call's attempt `number` failed after `seconds`. Returns the call with the failure."""
        attempts = list(call.attempts)
        attempts[number - 1] = msgspec.structs.replace(attempts[number - 1], failure=failure)
        kept = msgspec.structs.replace(failure, message=failure.message[:MOST_MESSAGE])
        with self._continuing():
            of_task = attempts[number - 1].task_id is not None
            self._with.records.save_failure(self._generation.id, call.number, number, kept, of_task=of_task)
        self._with.journal.answered(self._generation, seconds, failure, attempts[number - 1].upstream)
        return msgspec.structs.replace(call, attempts=tuple(attempts))

    def _request(self, call: UpstreamCall, n: int, upstream: str, *, repeats: bool = False) -> UpstreamRequest:
        request, supply = self._generation.request, self._generation.supply
        names = {route.upstream: route.model for route in supply.routes}
        # Another task may begin only after a task has failed: an attempt may have begun one that is not known.
        reference = f"{self._generation.id}.{call.number}.{call.failed_tasks}"
        request = replace(request, options={**supply.defaults, **request.options})
        return UpstreamRequest(
            request,
            names.get(upstream, request.model),
            supply.like,
            n,
            reference,
            number=call.number,
            mode=supply.mode,
            repeats=repeats,
            inputs=self._with.inputs.of(self._generation),
            parent=supply.parent,
        )

    def _provider(self, upstream: str) -> ImageProvider:
        return self._with.routes.access(upstream).providers[self._generation.supply.provider]


def _limited(attempts: Iterable[UpstreamAttempt]) -> int:
    """How many attempts met a rate limit."""
    return sum(each.failure is not None and each.failure.code == UpstreamRateLimitedError.code for each in attempts)


def _refusals(call: UpstreamCall, route: Route) -> int:
    """How many attempts by a route bought nothing, for another reason than a rate limit."""
    failures = [each.failure for each in call.attempts if each.upstream == route.upstream and each.failure]
    return sum(each.another_attempt and each.code != UpstreamRateLimitedError.code for each in failures)


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
