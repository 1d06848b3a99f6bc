"""Runs the upstream calls of a generation and stores their images. Each step is on the record before the next."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
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
    OutcomeUnknownError,
    PartialGenerationError,
    RecordsUnavailableError,
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
    UpstreamAttempt,
    UpstreamCall,
    with_extra_calls,
)
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.ports import GenerationStore, ImageProvider, ImageSource, ImageStore, Journal

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store a paid image: one and a half seconds of pauses in all
MOST_SENT = 2  # a call of unknown outcome is repeated once
_FIRST_PAUSE_SECONDS = 0.2
MOST_MESSAGE = 100  # characters of each attempt's failure: a record has 400 KB for all attempts
_OUT_OF_TIME_SECONDS = 1.0  # too little to fetch an image
_INTERRUPTED = (ImageDownloadInterruptedError, ImageStorageInterruptedError)


class UnfinishedError(Exception):
    """A paid image is not fetched yet, or cannot be looked for now. The next process continues from the record."""


class Waiting(msgspec.Struct, frozen=True):
    """At least one task has not ended. The next poll is due after `seconds`."""

    seconds: float


class UpstreamRunner(msgspec.Struct, frozen=True, eq=False):
    """Sends upstream calls, polls their tasks and stores their images.

    `providers` are by the name that a record keeps. `pool` has as many threads as a request may have images.
    `executor` makes a pool of a given size, for the images that one answer contains. With `repeat_unknown` a call of
    unknown outcome is sent once more, else its generation fails. `call_seconds` is how long an upstream call may take.
    `now` gives Unix seconds.
    """

    providers: Mapping[str, ImageProvider]
    source: ImageSource
    images: ImageStore
    records: GenerationStore
    journal: Journal
    pool: Executor
    repeat_unknown: bool
    call_seconds: float
    now: Callable[[], float]
    executor: Callable[[int], Executor] = ThreadPoolExecutor
    sleep: Callable[[float], None] = time.sleep

    def run(
        self, generation: Generation, owner: str, deadline: Deadline, *, may_send: bool = True
    ) -> Failure | Waiting | None:
        """Sends the calls that have no answer, polls those that have a task, and stores what is not stored.

        For each image that is missing from an answer one extra call is sent. `generation` is the record that `owner`
        claimed. Without `may_send` no call is sent, and nothing is bought. Returns `None` if all images are stored,
        `Waiting` if a task has not ended, else the failure. Raises LostClaimError if the generation has ended or has
        another owner, RecordsUnavailableError if the record cannot be written, and UnfinishedError.
        """
        run = _Run(self, generation, owner, deadline, may_send=may_send)
        side_by_side = self.pool if len(generation.image_ids) > 1 else _ThisThread()
        storing: list[Future[None]] = []
        failures: list[BaseException] = []
        waiting: list[float] = []
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
                    waiting.append(result.seconds)
                    continue
                storing += [side_by_side.submit(run.store, image_id, url) for image_id, url in result.to_fetch]
                extra += result.extra
            calls = extra
        failures += [failure for stored in storing if (failure := stored.exception())]
        return run.outcome(failures, waiting)


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
    """The rest of the work of an answered call: images to fetch, by id with their URLs, and extra calls."""

    to_fetch: list[tuple[str, str]]
    extra: tuple[UpstreamCall, ...]


class _AttemptFailedError(Exception):
    """The last attempt of a call has failed, and no further one may be sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class _Run:
    """One process's work on one generation. Its methods run side by side, each on its own call or image."""

    def __init__(
        self, runner: UpstreamRunner, generation: Generation, owner: str, deadline: Deadline, *, may_send: bool
    ) -> None:
        self._runner = runner
        self._provider = runner.providers[generation.provider]
        self._generation = generation
        self._owner = owner
        self._deadline = deadline
        self._may_send = may_send
        self._stored = dict(generation.stored)
        self._unwritten: RecordsUnavailableError | None = None
        self._unusable: list[Failure] = []  # why images of an answer are not usable

    def outcome(self, raised: Sequence[BaseException], waiting: Sequence[float]) -> Failure | Waiting | None:
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
            return Waiting(min(waiting))
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
        return _Answered(to_fetch, tuple(extra))

    def store(self, image_id: str, source: str | bytes) -> None:
        """Fetches and stores one image. If that breaks off, it is fetched again, never bought again.

        Raises a MoneySpentError, LostClaimError, and UnfinishedError if there was no time to fetch it.
        """
        saving = False

        def fetched() -> StoredImage:
            nonlocal saving
            with self._runner.source.open(source, self._deadline) as body:
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
        images = dict.fromkeys(call.image_ids, AnsweredImage())
        answer = UpstreamImages(())
        missing = [image_id for image_id in call.image_ids if image_id not in self._stored]
        if missing:
            task = call.open_task
            # A task gives all images of its call. A new attempt asks for those that are missing.
            asked_for = list(call.image_ids) if task else missing
            call, result = self._poll(call, task) if task else self._start(call, len(missing))
            if isinstance(result, UpstreamTask):
                # A task is polled at least once, however long it took to note it.
                return self._waiting(task, result) if task else Waiting(result.poll_seconds)
            answer = result
            images |= self._take(asked_for, answer)
        noted = CallAnswer(tuple(images[image_id] for image_id in call.image_ids), answer.details, answer.usage)
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
                    self.store(image_id, image.url)

    def _new_attempt(self, call: UpstreamCall) -> UpstreamCall:
        """Notes one more attempt. Raises _AttemptFailedError or a MoneySpentError if none may be sent."""
        if not self._may_send and call.extra:
            raise UpstreamTooFewImagesError("The image model answered with fewer images than it was asked for.")
        # An operator's retry allows one more attempt.
        if call.failed > self._generation.retries:
            raise _AttemptFailedError(_failure_of_last_attempt(call))
        if not self._may_send:
            raise AbandonedError("The image could not be made: every process that worked on it died.")
        repeats = self._runner.repeat_unknown and not call.extra
        most = (MOST_SENT if repeats else 1) + self._generation.retries
        if call.sent - call.refused >= most:
            raise OutcomeUnknownError("The image model was called, but the outcome of the call is not known.")
        if call.extra and self._deadline.remaining() < self._runner.call_seconds:
            raise UnfinishedError  # it could be cut off after it is paid for; the next process has its whole time
        attempt = UpstreamAttempt(self._provider.upstream, self._runner.now())
        call = msgspec.structs.replace(call, attempts=(*call.attempts, attempt))
        self._runner.records.save_attempt(self._generation.id, self._owner, call.number, call.sent, attempt)
        return call

    def _start(self, call: UpstreamCall, n: int) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Sends a new attempt. Returns the call with the attempt, and what the upstream answered."""
        call = self._new_attempt(call)
        started = time.perf_counter()
        self._runner.journal.asked(self._generation, n)
        try:
            result = self._provider.start(self._request(call, n), self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except Exception as error:
            # An unexpected exception may have come after the request was sent.
            is_known = isinstance(error, ImagegenError)
            known = error if is_known else InternalError("The call to the image model broke off.")
            seconds = time.perf_counter() - started
            raise self._attempt_failed(call, call.sent, failure_of(known), seconds) from error
        if isinstance(result, UpstreamImages):
            self._runner.journal.answered(self._generation, time.perf_counter() - started, None)
            return call, result
        attempt = msgspec.structs.replace(call.attempts[-1], task_id=result.id)
        with self._continuing():
            save = partial(self._runner.records.save_task, self._generation.id, call.number, call.sent, result.id)
            self._tried(save, (RecordsUnavailableError,))  # without the id the task is lost, and may be bought again
        return msgspec.structs.replace(call, attempts=(*call.attempts[:-1], attempt)), result

    def _poll(self, call: UpstreamCall, attempt: UpstreamAttempt) -> tuple[UpstreamCall, UpstreamImages | UpstreamTask]:
        """Looks at a task. An unexpected exception does not fail it: another process polls again."""
        n, seconds = len(call.image_ids), self._runner.now() - attempt.sent_at
        try:
            result = self._provider.poll(attempt.task_id or "", self._request(call, n), self._deadline)
            if isinstance(result, UpstreamImages):
                _check_count(result, n)
        except ImagegenError as error:
            number = 1 + call.attempts.index(attempt)
            raise self._attempt_failed(call, number, failure_of(error), seconds) from error
        if isinstance(result, UpstreamImages):
            self._runner.journal.answered(self._generation, seconds, None)
        return call, result

    def _waiting(self, attempt: UpstreamAttempt, task: UpstreamTask) -> Waiting:
        """Raises UpstreamTimeoutError if the task has taken too long. An operator's retry polls the same task."""
        if self._runner.now() - attempt.sent_at >= task.task_seconds:
            raise UpstreamTimeoutError("The image model's task did not end in time.")
        return Waiting(task.poll_seconds)

    def _attempt_failed(self, call: UpstreamCall, number: int, failure: Failure, seconds: float) -> _AttemptFailedError:
        """Notes that the call's attempt `number` failed after `seconds`. Returns the exception to raise."""
        attempts = list(call.attempts)
        attempts[number - 1] = msgspec.structs.replace(attempts[number - 1], failure=failure)
        kept = msgspec.structs.replace(failure, message=failure.message[:MOST_MESSAGE])
        with self._continuing():
            self._runner.records.save_failure(self._generation.id, call.number, number, kept)
        self._runner.journal.answered(self._generation, seconds, failure)
        return _AttemptFailedError(_failure_of_last_attempt(msgspec.structs.replace(call, attempts=tuple(attempts))))

    def _request(self, call: UpstreamCall, n: int) -> UpstreamRequest:
        # Another task may begin only after a task has failed: an attempt may have begun one that is not known.
        reference = f"{self._generation.id}.{call.number}.{call.failed_tasks}"
        return UpstreamRequest(self._generation.request, n, reference)

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

    def _take(self, image_ids: Sequence[str], answer: UpstreamImages) -> dict[str, AnsweredImage]:
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
            storing = {image_id: pool.submit(self.store, image_id, content) for image_id, content in inline.items()}
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
    if failure is None or failure.money_spent or call.sent == call.refused:
        return failure or failure_of(AbandonedError("No attempt was made."))
    return failure_of(
        OutcomeUnknownError(f"The outcome of an earlier call to the image model is not known. {failure.message}")
    )


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
