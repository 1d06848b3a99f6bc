"""Runs the upstream calls of a generation and stores their images. Each step is on the record before the next."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImagegenError,
    ImageStorageError,
    ImageStorageInterruptedError,
    InternalError,
    MoneySpentError,
    PartialGenerationError,
    RecordsUnavailableError,
)
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    LostClaimError,
    StoredImage,
    UpstreamCall,
    with_extra_calls,
)
from imagegen.domain.images import UpstreamImages, UpstreamTask
from imagegen.ports import ImageStore
from imagegen.usecases.send_upstream_call import AttemptFailedError, CallParts, CallSender, UnfinishedError, Waiting
from imagegen.usecases.tried import INTERRUPTED, tried

T = TypeVar("T")

_OUT_OF_TIME_SECONDS = 1.0  # too little to fetch an image


class UpstreamRunner(msgspec.Struct, frozen=True, eq=False):
    """Sends upstream calls, polls their tasks and stores their images.

    `pool` has as many threads as a request may have images. `executor` makes a pool of a given size, for the images
    that one answer contains.
    """

    calling: CallParts
    images: ImageStore
    pool: Executor
    executor: Callable[[int], Executor] = ThreadPoolExecutor

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
        later: list[tuple[str, str, str | None]] = []
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
                found = [(image_id, url, result.upstream) for image_id, url in result.to_fetch]
                if result.is_known and not _is_power_of_two(generation.polls):
                    later += found
                else:
                    storing += [side_by_side.submit(run.store, *each) for each in found]
                extra += result.extra
            calls = extra
        if not waiting:
            storing += [side_by_side.submit(run.store, *each) for each in later]
        failures += [failure for stored in storing if (failure := stored.exception())]
        return run.outcome(failures, waiting)


class _Answered(msgspec.Struct, frozen=True):
    """The rest of the work of a call that `upstream` answered: images to fetch, by id and URL, and extra calls.

    `is_known` is whether the answer is of an earlier round or process. Such images are not fetched again in each round
    that polls the task of another call: a task has hundreds of rounds, and an image may be lost for good.
    """

    to_fetch: list[tuple[str, str]]
    upstream: str | None
    extra: tuple[UpstreamCall, ...]
    is_known: bool


class _Run:
    """One process's work on one generation. Its methods run side by side, each on its own call or image."""

    def __init__(
        self, runner: UpstreamRunner, generation: Generation, owner: str, deadline: Deadline, *, may_send: bool
    ) -> None:
        self._runner = runner
        self._calling = runner.calling
        self._generation = generation
        self._deadline = deadline
        self._sender = CallSender(
            runner.calling, generation, owner, deadline, may_send=may_send, continuing=self._continuing
        )
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
            if isinstance(error, AttemptFailedError):
                failures.append(error.failure)
            elif isinstance(error, ImagegenError) and not isinstance(error, RecordsUnavailableError):
                failures.append(failure_of(error))
            elif isinstance(error, LostClaimError):
                lost = error
            else:
                raise error
        if waiting:  # also if the claim is lost: a cancellation stops one call, and the task of another is paid for
            return self._together(waiting)
        if lost:
            raise lost
        return self._combined([*failures, *self._unusable])

    def _together(self, waiting: Sequence[Waiting]) -> Waiting:
        """One wait for all calls. Each call counts the same in the progress, and one that has ended counts as done."""
        slots: dict[str, int] = {}
        for each in waiting:
            slots |= {at: max(count, slots.get(at, 0)) for at, count in each.slots.items()}
        known = [each.progress for each in waiting if each.progress is not None]
        calls = max(len(waiting), sum(not call.extra for call in self._generation.calls))
        progress = (100 * (calls - len(waiting)) + sum(known)) // calls if known else None
        return Waiting(min(each.seconds for each in waiting), slots, progress)

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
        is_known = call.answer is not None
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
            elif not image.texts:
                self._unusable.append(failure_of(ImageStorageError("An image was made but is not stored.")))
        return _Answered(to_fetch, answer.upstream, tuple(extra), is_known)

    def store(self, image_id: str, source: str | bytes, upstream: str | None) -> None:
        """Fetches and stores one image of an upstream's answer. If that breaks off, it is fetched, never bought, again.

        Raises a MoneySpentError, LostClaimError, and UnfinishedError if there was no time to fetch it.
        """
        saving = False

        def fetched() -> StoredImage:
            nonlocal saving
            with self._calling.routes.access(upstream).source.open(source, self._deadline) as body:
                saving = True
                saved = self._runner.images.save(image_id, body, self._deadline, generation_id=self._generation.id)
                stored = StoredImage(body.media_type, body.length)
            # An image that was already stored may differ from this one.
            return stored if saved else self._runner.images.find(image_id, self._deadline) or stored

        by_url = isinstance(source, str)
        try:
            stored = self._tried(fetched, INTERRUPTED if by_url else (ImageStorageInterruptedError,))
        except Exception as fault:
            found = self._find_after_lost_answer(image_id, by_url=by_url) if saving else None
            if found is None:
                if by_url and isinstance(fault, INTERRUPTED) and self._deadline.remaining() < _OUT_OF_TIME_SECONDS:
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
            self._calling.records.save_image(self._generation.id, image_id, stored)
        self._calling.journal.stored(self._generation, stored)

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
        answer, upstream, task_id = UpstreamImages(()), None, ""
        missing = [image_id for image_id in call.image_ids if image_id not in self._stored]
        if missing:
            task = call.open_task
            # A task gives all images of its call. A new attempt asks for those that are missing.
            asked_for = list(call.image_ids) if task else missing
            call, result = (
                self._sender.poll(call, task, until_noted)
                if task
                else self._sender.start(call, len(missing), until_noted)
            )
            if isinstance(result, Waiting):
                return result
            if isinstance(result, UpstreamTask):
                return self._sender.until_first_poll(result)
            upstream, task_id = (task or call.attempts[-1]).upstream, (task.task_id or "") if task else ""
            answer = result
            images |= self._take(asked_for, answer, upstream)
        noted = CallAnswer(
            images=tuple(images[image_id] for image_id in call.image_ids),
            details=answer.details,
            usage=answer.usage,
            upstream=upstream,
            task_id=task_id,
            account=answer.account,
        )
        with self._continuing():
            first = self._calling.records.save_answer(self._generation.id, call.number, noted)
            self._store_what_it_lacks(call, first, noted)
            return first
        return noted

    def _store_what_it_lacks(self, call: UpstreamCall, first: CallAnswer, later: CallAnswer) -> None:
        """Stores images that a later answer has and the answer on the record lacks: then no extra call is sent."""
        for image_id, known, image in zip(call.image_ids, first.images, later.images, strict=True):
            if known.missing and image.url and image_id not in self._stored:
                with suppress(MoneySpentError):
                    self.store(image_id, image.url, later.upstream)

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
            taken[image_id] = AnsweredImage(
                url, image.revised_prompt, failure, image.details, image.actions, image.texts
            )
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

    def _tried(self, step: Callable[[], T], again: tuple[type[Exception], ...] = INTERRUPTED) -> T:
        return tried(step, self._deadline, again, self._calling.sleep)


def _is_power_of_two(rounds: int) -> bool:
    """Also for no rounds."""
    return rounds & (rounds - 1) == 0


class _ThisThread(Executor):
    """Runs what is submitted at once. For a single image, a thread costs more than it gives."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # the future raises it
            future.set_exception(error)
        return future
