"""Runs the upstream calls of a generation and stores their images. Each step is on the record before the next."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AbandonedError,
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageError,
    ImageStorageInterruptedError,
    InternalError,
    MoneySpentError,
    NothingSpentError,
    OutcomeUnknownError,
    PartialGenerationError,
    RecordsUnavailableError,
    SecretMissingError,
    SecretUnavailableError,
    TryLaterError,
    UpstreamMisconfiguredError,
    UpstreamRateLimitedError,
    UpstreamTimeoutError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    LostClaimError,
    StoredImage,
    Supply,
    UpstreamAttempt,
    UpstreamCall,
    supply_of,
    with_extra_calls,
)
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.models import ImageModel
from imagegen.domain.upstreams import Route
from imagegen.ports import GenerationStore, ImageProvider, ImageSource, ImageStore, Journal
from imagegen.usecases.upstream_slots import NoSlotError, UpstreamLimits, pause_for_slot

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store a paid image: one and a half seconds of pauses in all
MOST_SENT = 2  # a call of unknown outcome is repeated once
_FIRST_PAUSE_SECONDS = 0.2
MOST_MESSAGE = 100  # characters of each attempt's failure: a record has 400 KB for all attempts
TRIES = 3  # of all routes, if they refuse: resellers try other channels themselves, and clients retry too
_FIRST_REFUSAL_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0  # a caller is waiting, so a longer time is reported at once instead
_FIRST_RATE_PAUSE_SECONDS = 2.0
_RATE_PAUSES_OF_DEADLINE = 10  # the longest pause is this part of the deadline, so a record has few attempts
_MOST_DOUBLINGS = 20
LONGEST_MESSAGE_DELAY_SECONDS = 900  # SQS developer guide, "Amazon SQS message quotas"
_OUT_OF_TIME_SECONDS = 1.0  # too little to fetch an image
_INTERRUPTED = (ImageDownloadInterruptedError, ImageStorageInterruptedError)


class UnfinishedError(Exception):
    """A paid image is not fetched yet, or cannot be looked for now. The next process continues from the record."""


class Waiting(msgspec.Struct, frozen=True):
    """The next round is due after `seconds`: for a task that has not ended, or for a call that was not sent.

    `upstreams` are those of which a call needs a slot.
    """

    seconds: float
    upstreams: frozenset[str] = frozenset()


class UpstreamAccess(msgspec.Struct, frozen=True, eq=False):
    """How an upstream is called. `providers` are by the protocol's name, which a record keeps.

    `source` fetches the images that it answers with. `has_key` is whether its key is set; it raises
    SecretUnavailableError. `call_seconds` is how long a call may take. `owner` is the only owner whose models it
    serves, `None` for a reseller.
    """

    providers: Mapping[str, ImageProvider]
    source: ImageSource
    has_key: Callable[[], bool]
    call_seconds: float
    owner: str | None = None

    def serves(self, supply: Supply) -> bool:
        return supply.provider in self.providers and (self.owner is None or supply.owned_by in ("", self.owner))


class UpstreamRunner(msgspec.Struct, frozen=True, eq=False):
    """Sends upstream calls, polls their tasks and stores their images.

    `upstreams` are by name; a record that names no routes is of `default_upstream`. `pool` has as many threads as a
    request may have images. `executor` makes a pool of a given size, for the images that one answer contains. With
    `repeat_unknown` a call of unknown outcome is sent once more, else its generation fails. `now` gives Unix seconds.
    """

    upstreams: Mapping[str, UpstreamAccess]
    default_upstream: str
    limits: UpstreamLimits
    images: ImageStore
    records: GenerationStore
    journal: Journal
    pool: Executor
    repeat_unknown: bool
    now: Callable[[], float]
    executor: Callable[[int], Executor] = ThreadPoolExecutor
    sleep: Callable[[float], None] = time.sleep

    def run(
        self, generation: Generation, owner: str, deadline: Deadline, *, may_send: bool = True
    ) -> Failure | Waiting | None:
        """Sends the calls that have no answer, polls those that have a task, and stores what is not stored.

        For each image that is missing from an answer one extra call is sent. `generation` is the record that `owner`
        claimed. Without `may_send` no call is sent, and nothing is bought. Returns `None` if all images are stored,
        `Waiting` if a task has not ended or a call could not be sent yet, else the failure. Raises LostClaimError if
        the generation has ended or has another owner, RecordsUnavailableError if the record cannot be written, and
        UnfinishedError.
        """
        run = _Run(self, generation, owner, deadline, may_send=may_send)
        side_by_side = self.pool if len(generation.image_ids) > 1 else _ThisThread()
        storing: list[Future[None]] = []
        failures: list[BaseException] = []
        waiting: list[Waiting] = []
        calls: Sequence[UpstreamCall] = generation.calls
        while calls:
            answering = [side_by_side.submit(run.answer, call) for call in calls]
            extra: list[UpstreamCall] = []
            for answered in as_completed(answering):
                failure = answered.exception()
                if failure:
                    failures.append(failure)
                    continue
                result = answered.result()
                if isinstance(result, Waiting):
                    waiting.append(result)
                    continue
                storing += [
                    side_by_side.submit(run.store, image_id, url, result.upstream) for image_id, url in result.to_fetch
                ]
                extra += result.extra
            calls = extra
        failures += [failure for stored in storing if (failure := stored.exception())]
        return run.outcome(failures, waiting)

    def routes(self, supply: Supply) -> Sequence[Route]:
        """The routes that can be used, in order.

        Raises UpstreamMisconfiguredError, SecretMissingError, SecretUnavailableError if there are none.
        """
        routes = [
            route
            for route in supply.routes or (Route(self.default_upstream, supply.like),)
            if route.upstream in self.upstreams and self.upstreams[route.upstream].serves(supply)
        ]
        if not routes:
            raise UpstreamMisconfiguredError("No upstream of this service has the model; its operator must add one.")
        with_key: list[Route] = []
        unknown: SecretUnavailableError | None = None
        for route in routes:
            try:
                with_key += [route] if self.upstreams[route.upstream].has_key() else []
            except SecretUnavailableError as error:
                unknown = error
        if not with_key:
            missing = "This service has no usable key for the image model; its operator must set one."
            raise unknown or SecretMissingError(missing)
        return with_key


def available_upstreams(model: ImageModel, runner: UpstreamRunner) -> Sequence[str]:
    """The upstreams that can be called for a model now, in order."""
    try:
        return [route.upstream for route in runner.routes(supply_of(model))]
    except NothingSpentError:
        return []


def tried(
    step: Callable[[], T],
    deadline: Deadline,
    again: tuple[type[Exception], ...] = _INTERRUPTED,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Returns the step's result. Tries again, a few times, after one of the exceptions `again`."""
    for attempt in range(1, KEEP_TRIES + 1):
        try:
            return step()
        except again:
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            if attempt == KEEP_TRIES or pause >= deadline.remaining():
                raise
        sleep(pause)
    raise AssertionError("the last try returns or raises")


class _Answered(msgspec.Struct, frozen=True):
    """The rest of the work of a call that `upstream` answered: images to fetch, by id and URL, and extra calls."""

    to_fetch: list[tuple[str, str]]
    upstream: str | None
    extra: tuple[UpstreamCall, ...]


class _AttemptFailedError(Exception):
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


class _Run:
    """One process's work on one generation. Its methods run side by side, each on its own call or image."""

    def __init__(
        self, runner: UpstreamRunner, generation: Generation, owner: str, deadline: Deadline, *, may_send: bool
    ) -> None:
        self._runner = runner
        self._generation = generation
        self._owner = owner
        self._deadline = deadline
        self._may_send = may_send
        self._stored = dict(generation.stored)
        self._unwritten: RecordsUnavailableError | None = None
        self._unusable: list[Failure] = []  # why images of an answer are not usable

    def outcome(self, raised: Sequence[BaseException], waiting: Sequence[Waiting]) -> Failure | Waiting | None:
        """The outcome of the run. Raises what must bring another process: it may still end well."""
        if self._unwritten:
            raise self._unwritten
        failures: list[Failure] = []
        lost: LostClaimError | None = None
        for error in raised:
            if isinstance(error, _AttemptFailedError):
                failures.append(error.failure)
            elif isinstance(error, ImagegenError) and not isinstance(error, RecordsUnavailableError):
                failures.append(failure_of(error))
            elif isinstance(error, LostClaimError):
                lost = error
            else:
                raise error
        if waiting:  # also if the claim is lost: a cancellation stops one call, and the task of another is paid for
            return Waiting(
                min(each.seconds for each in waiting), frozenset().union(*(each.upstreams for each in waiting))
            )
        if lost:
            raise lost
        return self._combined([*failures, *self._unusable])

    def _combined(self, failures: Sequence[Failure]) -> Failure | None:
        """One failure for all. A call that may have been paid for outweighs one that was not."""
        if not failures:
            return None
        cause = next((failure for failure in failures if failure.money_spent), failures[0])
        stored = sum(image_id in self._stored for image_id in self._generation.image_ids)
        if not stored:
            return cause
        wanted = len(self._generation.image_ids)
        partial_error = PartialGenerationError(f"{stored} of {wanted} images were made and stored. {cause.message}")
        return msgspec.structs.replace(failure_of(partial_error), cause=cause)

    def answer(self, call: UpstreamCall) -> _Answered | Waiting:
        """Gets the answer of a call: from the record, from its task, or from the upstream."""
        if call.sent or call.extra:  # a late answer to the call before may have brought the image of an extra one
            self._find_stored(call)
        answer = call.answer or self._new_answer(call)
        if isinstance(answer, Waiting):
            return answer
        call, *extra = with_extra_calls([msgspec.structs.replace(call, answer=answer)])
        answer = call.answer or answer
        to_fetch: list[tuple[str, str]] = []
        for image_id, image in zip(call.image_ids, answer.images, strict=True):
            if image_id in self._stored:
                continue
            if image.failure:
                self._unusable.append(image.failure)
            elif image.url:
                to_fetch.append((image_id, image.url))
            else:
                self._unusable.append(failure_of(ImageStorageError("An image was made but is not stored.")))
        return _Answered(to_fetch, answer.upstream, tuple(extra))

    def store(self, image_id: str, source: str | bytes, upstream: str | None) -> None:
        """Fetches and stores one image of an upstream's answer. If that breaks off, it is fetched, never bought, again.

        Raises a MoneySpentError, LostClaimError, and UnfinishedError if there was no time to fetch it.
        """
        saving = False

        def fetched() -> StoredImage:
            nonlocal saving
            with self._access(upstream).source.open(source, self._deadline) as body:
                saving = True
                saved = self._runner.images.save(image_id, body, self._deadline)
                stored = StoredImage(body.media_type, body.length)
            # An image that was already stored may differ from this one.
            return stored if saved else self._runner.images.find(image_id, self._deadline) or stored

        by_url = isinstance(source, str)
        try:
            stored = self._tried(fetched, _INTERRUPTED if by_url else (ImageStorageInterruptedError,))
        except Exception as fault:
            found = self._find_after_lost_answer(image_id, by_url=by_url) if saving else None
            if found is None:
                if by_url and isinstance(fault, _INTERRUPTED) and self._deadline.remaining() < _OUT_OF_TIME_SECONDS:
                    raise UnfinishedError from fault
                if isinstance(fault, ImagegenError):
                    raise
                # The image is paid for: another process must not buy it again.
                raise InternalError("An image was made but could not be stored.") from fault
            stored = found
        self._note_stored(image_id, stored)

    def _find_after_lost_answer(self, image_id: str, *, by_url: bool) -> StoredImage | None:
        """The image, if it was stored and only the answer of S3 was lost.

        Raises UnfinishedError if that is not known, and the image can be fetched again.
        """
        try:
            return self._runner.images.find(image_id, self._deadline)
        except ImageStorageError as unknown:
            if by_url:
                raise UnfinishedError from unknown
            return None

    def _note_stored(self, image_id: str, stored: StoredImage) -> None:
        self._stored[image_id] = stored
        with self._continuing():
            self._runner.records.save_image(self._generation.id, image_id, stored)
        self._runner.journal.stored(self._generation, stored)

    @contextmanager
    def _continuing(self) -> Iterator[None]:
        """Continues if a record cannot be written, so that paid images are stored. A successor finds them in S3."""
        try:
            yield
        except RecordsUnavailableError as error:
            self._unwritten = error

    def _new_answer(self, call: UpstreamCall) -> CallAnswer | Waiting:
        """The answer, noted on the record: its images are found in S3, or come from the upstream."""
        with ExitStack() as until_noted:
            return self._noted_answer(call, until_noted)

    def _noted_answer(self, call: UpstreamCall, until_noted: ExitStack) -> CallAnswer | Waiting:
        images = dict.fromkeys(call.image_ids, AnsweredImage())
        answer, upstream = UpstreamImages(()), None
        missing = [image_id for image_id in call.image_ids if image_id not in self._stored]
        if missing:
            task = call.open_task
            # A task gives all images of its call. A new attempt asks for those that are missing.
            asked_for = list(call.image_ids) if task else missing
            call, result = self._poll(call, task) if task else self._start(call, len(missing), until_noted)
            if isinstance(result, Waiting):
                return result
            upstream = (task or call.attempts[-1]).upstream
            if isinstance(result, UpstreamTask):
                # A task is polled at least once, however long it took to note it.
                return self._waiting(task, result) if task else Waiting(result.poll_seconds)
            answer = result
            images |= self._take(asked_for, answer, upstream)
        noted = CallAnswer(
            tuple(images[image_id] for image_id in call.image_ids), answer.details, answer.usage, upstream
        )
        with self._continuing():
            first = self._runner.records.save_answer(self._generation.id, call.number, noted)
            self._store_what_it_lacks(call, first, noted)
            return first
        return noted

    def _store_what_it_lacks(self, call: UpstreamCall, first: CallAnswer, later: CallAnswer) -> None:
        """Stores images that a later answer has and the answer on the record lacks: then no extra call is sent."""
        for image_id, known, image in zip(call.image_ids, first.images, later.images, strict=True):
            if known.missing and image.url and image_id not in self._stored:
                with suppress(MoneySpentError):
                    self.store(image_id, image.url, later.upstream)

    def _access(self, upstream: str | None) -> UpstreamAccess:
        """The upstream of this name, the default one if there is none: it is no longer configured, or not known."""
        upstreams = self._runner.upstreams
        return upstreams.get(upstream or "", upstreams[self._runner.default_upstream])

    def _provider(self, upstream: str) -> ImageProvider:
        return self._access(upstream).providers[self._generation.supply.provider]

    def _check_may_send(self, call: UpstreamCall) -> None:
        """Raises _AttemptFailedError or a MoneySpentError if no further attempt may be sent."""
        if not self._may_send and call.extra:
            raise UpstreamTooFewImagesError("The image model answered with fewer images than it was asked for.")
        # An operator's retry allows one more attempt.
        if call.failed > self._generation.retries:
            raise _AttemptFailedError(_failure_of_last_attempt(call))
        if not self._may_send:
            if call.attempts and call.sent == call.refused:
                raise _AttemptFailedError(_failure_of_last_attempt(call))
            raise AbandonedError("The image could not be made: every process that worked on it died.")
        repeats = self._runner.repeat_unknown and not call.extra
        most = (MOST_SENT if repeats else 1) + self._generation.retries
        if call.sent - call.refused >= most:
            raise OutcomeUnknownError("The image model was called, but the outcome of the call is not known.")

    def _new_attempt(self, call: UpstreamCall, route: Route) -> UpstreamCall:
        """Notes one more attempt, before it is sent."""
        if call.extra and self._deadline.remaining() < self._access(route.upstream).call_seconds:
            raise UnfinishedError  # it could be cut off after it is paid for; the next process has its whole time
        attempt = UpstreamAttempt(route.upstream, self._runner.now())
        call = msgspec.structs.replace(call, attempts=(*call.attempts, attempt))
        self._runner.records.save_attempt(self._generation.id, self._owner, call.number, call.sent, attempt)
        return call

    def _start(
        self, call: UpstreamCall, n: int, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask | Waiting]:
        """Sends new attempts until one is not refused. Returns the call with them, and what the upstream answered.

        After a refusal that bought nothing and that another upstream may not share, the next route follows at once. If
        all routes refuse, those that may soon be ready are tried a few times more. If one is at its rate limit, or has
        no slot free, the generation waits in the queue instead. `until_noted` ends when the answer is on the record.
        """
        self._check_may_send(call)
        try:
            routes = self._runner.routes(self._generation.supply)
        except NothingSpentError as error:
            raise _AttemptFailedError(_outcome(call, failure_of(error))) from error
        reason: NothingSpentError | None = None
        for number in range(1, TRIES + 1):
            refused: dict[Route, NothingSpentError] = {}
            full: set[str] = set()
            for route in routes:
                if reason and self._deadline.remaining() < self._access(route.upstream).call_seconds:
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
            self._runner.sleep(pause)
        raise _AttemptFailedError(_outcome(call, failure_of(next(iter((*soon.values(), *refused.values()))))))

    def _send(
        self, call: UpstreamCall, route: Route, n: int, until_noted: ExitStack
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Sends one attempt. Raises _RefusedError if another one may follow, else _AttemptFailedError.

        Raises NoSlotError if the upstream has no slot free, before anything is noted. The slot is free again when the
        attempt has failed, or else when its answer is on the record: nothing may come before that.
        """
        if still := self._limited_since(call, route):
            raise _RefusedError(call, still)
        limits, seconds = self._runner.limits, self._access(route.upstream).call_seconds
        with ExitStack() as slot:
            slot.enter_context(limits.slot(route.upstream, self._generation, call.number, seconds=seconds))
            sent = self._send_in_slot(call, route, n)
            until_noted.push(slot.pop_all())
            return sent

    def _send_in_slot(
        self, call: UpstreamCall, route: Route, n: int
    ) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        call = self._new_attempt(call, route)
        started = time.perf_counter()
        self._runner.journal.asked(self._generation, n, route.upstream)
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
            raise _AttemptFailedError(_failure_of_last_attempt(call)) from error
        if isinstance(result, UpstreamImages):
            self._runner.journal.answered(self._generation, time.perf_counter() - started, None, route.upstream)
            return call, result
        attempt = msgspec.structs.replace(call.attempts[-1], task_id=result.id)
        with self._continuing():
            save = partial(self._runner.records.save_task, self._generation.id, call.number, call.sent, result.id)
            self._tried(save, (RecordsUnavailableError,))  # without the id the task is lost, and may be bought again
        return msgspec.structs.replace(call, attempts=(*call.attempts[:-1], attempt)), result

    def _limited_since(self, call: UpstreamCall, route: Route) -> UpstreamRateLimitedError | None:
        """The refusal that still holds, if the upstream named a longer time than a message can wait."""
        of_route = [attempt for attempt in call.attempts if attempt.upstream == route.upstream]
        last = of_route[-1] if of_route else None
        if last is None or last.failure is None or last.failure.code != UpstreamRateLimitedError.code:
            return None
        left = last.sent_at + (last.failure.retry_after or 0) - self._runner.now()
        if left < 1 or not self._generation.polls:
            return None
        error = UpstreamRateLimitedError(last.failure.message)
        error.retry_after = left
        return error

    def _wait_for_rate(
        self, call: UpstreamCall, refused: Sequence[UpstreamRateLimitedError], full: frozenset[str]
    ) -> Waiting:
        """The pause until the upstreams are asked again. Raises _AttemptFailedError if the deadline is sooner."""
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
        """A wait of `pause` seconds. Raises _AttemptFailedError with the failure if the deadline is sooner."""
        generation, now = self._generation, self._runner.now()
        sent = [generation.first_sent_at or now, *(attempt.sent_at for attempt in call.attempts)]
        first = max(min(sent), generation.reserved_at or 0)
        if now + pause > first + generation.supply.deadline_seconds:
            raise _AttemptFailedError(_outcome(call, failure))
        return Waiting(min(pause, LONGEST_MESSAGE_DELAY_SECONDS))

    def _poll(self, call: UpstreamCall, attempt: UpstreamAttempt) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Looks at a task. An unexpected exception does not fail it: another process polls again."""
        n, seconds = len(call.image_ids), self._runner.now() - attempt.sent_at
        try:
            request = self._request(call, n, attempt.upstream)
            result = self._provider(attempt.upstream).poll(attempt.task_id or "", request, self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except ImagegenError as error:
            number = 1 + call.attempts.index(attempt)
            call = self._note_failure(call, number, failure_of(error), seconds)
            raise _AttemptFailedError(_failure_of_last_attempt(call)) from error
        if isinstance(result, UpstreamImages):
            self._runner.journal.answered(self._generation, seconds, None, attempt.upstream)
        return call, result

    def _waiting(self, attempt: UpstreamAttempt, task: UpstreamTask) -> Waiting:
        """Raises UpstreamTimeoutError if the task has taken too long. An operator's retry polls the same task."""
        if self._runner.now() - attempt.sent_at >= task.task_seconds:
            raise UpstreamTimeoutError("The image model's task did not end in time.")
        return Waiting(task.poll_seconds)

    def _note_failure(self, call: UpstreamCall, number: int, failure: Failure, seconds: float) -> UpstreamCall:
        """Notes that the call's attempt `number` failed after `seconds`. Returns the call with the failure."""
        attempts = list(call.attempts)
        attempts[number - 1] = msgspec.structs.replace(attempts[number - 1], failure=failure)
        kept = msgspec.structs.replace(failure, message=failure.message[:MOST_MESSAGE])
        with self._continuing():
            self._runner.records.save_failure(self._generation.id, call.number, number, kept)
        self._runner.journal.answered(self._generation, seconds, failure, attempts[number - 1].upstream)
        return msgspec.structs.replace(call, attempts=tuple(attempts))

    def _request(self, call: UpstreamCall, n: int, upstream: str) -> UpstreamRequest:
        request, supply = self._generation.request, self._generation.supply
        names = {route.upstream: route.model for route in supply.routes}
        # Another task may begin only after a task has failed: an attempt may have begun one that is not known.
        reference = f"{self._generation.id}.{call.number}.{call.failed_tasks}"
        request = replace(request, options={**supply.defaults, **request.options})
        return UpstreamRequest(request, names.get(upstream, request.model), supply.like, n, reference)

    def _find_stored(self, call: UpstreamCall) -> None:
        """Finds images that another process stored but died before it noted them."""
        for image_id in call.image_ids:
            if image_id in self._stored:
                continue
            try:
                found = self._tried(partial(self._runner.images.find, image_id, self._deadline))
            except ImageStorageError as unknown:  # to end now, or to call again, would lose what may be stored
                raise UnfinishedError from unknown
            if found is not None:
                self._note_stored(image_id, found)

    def _take(self, image_ids: Sequence[str], answer: UpstreamImages, upstream: str) -> dict[str, AnsweredImage]:
        """The images of an answer. Those that came as bytes are stored before the answer is noted."""
        taken: dict[str, AnsweredImage] = {}
        inline: dict[str, bytes] = {}
        for image_id, image in zip(image_ids, answer.images, strict=True):
            if image_id in self._stored:
                continue
            url = image.source if isinstance(image.source, str) else None
            failure = failure_of(image.failure) if image.failure else None
            taken[image_id] = AnsweredImage(url, image.revised_prompt, failure, image.details)
            if isinstance(image.source, bytes):
                inline[image_id] = image.source
        if not inline:
            return taken
        with self._runner.executor(len(inline)) if len(inline) > 1 else _ThisThread() as pool:
            storing = {
                image_id: pool.submit(self.store, image_id, content, upstream) for image_id, content in inline.items()
            }
        for image_id, stored in storing.items():
            try:
                stored.result()
            except MoneySpentError as error:  # the others are kept, and this one is not asked for again
                taken[image_id] = msgspec.structs.replace(taken[image_id], failure=failure_of(error))
        return taken

    def _tried(self, step: Callable[[], T], again: tuple[type[Exception], ...] = _INTERRUPTED) -> T:
        return tried(step, self._deadline, again, self._runner.sleep)


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


class _ThisThread(Executor):
    """Runs what is submitted at once. For a single image, a thread costs more than it gives."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # the future raises it
            future.set_exception(error)
        return future
