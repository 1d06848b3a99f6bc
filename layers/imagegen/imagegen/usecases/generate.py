"""Makes the images of a generation: asks the upstream, stores what comes, writes what is known before what is next."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    UpstreamTooFewImagesError,
)
from imagegen.domain.failures import kept, raised_again
from imagegen.domain.generations import AnsweredImage, Call, CallAnswer, Generation, StoredImage, with_extra_calls
from imagegen.domain.images import UpstreamAnswer
from imagegen.ports import SILENT, GenerationStore, ImageProvider, ImageSource, ImageStore, Journal

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store what is paid for: a second and a half of pauses in all
MOST_SENT = 2  # a call of unknown outcome is repeated once
_FIRST_PAUSE_SECONDS = 0.2
_OUT_OF_TIME_SECONDS = 1.0  # too little to fetch an image in
_INTERRUPTED = (ImageDownloadInterruptedError, ImageStorageInterruptedError)


class UnfinishedError(Exception):
    """What is paid for is not all fetched, or cannot be looked for now. The next attempt goes on with what is known."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a generation is made with. `pool` runs as many threads as a request may have images.

    `executor` makes a pool of so many threads, to store the images that one answer brings along. With `repeat_unknown`
    a call whose outcome is unknown is sent once more, else its generation fails. Without `may_send` no call is sent.
    `call_seconds` is how long an upstream call may take.
    """

    provider: ImageProvider
    source: ImageSource
    images: ImageStore
    records: GenerationStore
    pool: Executor
    repeat_unknown: bool = True
    may_send: bool = True
    call_seconds: float = 0.0
    journal: Journal = SILENT
    executor: Callable[[int], Executor] = ThreadPoolExecutor
    sleep: Callable[[float], None] = time.sleep


def generate(generation: Generation, owner: str, tools: Tools, deadline: Deadline) -> None:
    """Sends the calls that have no answer, and stores what is not stored, all side by side.

    For each image that is missing from an answer a further call is sent, once.

    `generation` is the record as `owner` claimed it. Each step is on the record before the next. Raises what the
    upstream call raised where nothing was bought at all; once a call was or may have been paid for, a MoneySpentError
    that carries the ids of the images stored. Raises LostClaimError if the generation has ended or has another owner,
    RecordsUnavailableError if the record cannot be written, and UnfinishedError: all leave what is known on it.
    """
    keeper = _Keeper(generation, owner, tools, deadline)
    side_by_side = tools.pool if len(generation.image_ids) > 1 else _ThisThread()
    storing: list[Future[None]] = []
    failures: list[BaseException] = []
    calls: Sequence[Call] = generation.calls
    while calls:
        asking = [side_by_side.submit(keeper.ask, call) for call in calls]
        extra: list[Call] = []
        for asked in as_completed(asking):
            failure = asked.exception()
            if failure:
                failures.append(failure)
            else:
                answered = asked.result()
                storing += [side_by_side.submit(keeper.keep, image_id, url) for image_id, url in answered.wanted]
                extra += answered.extra
        calls = extra
    failures += [failure for stored in storing if (failure := stored.exception())]
    failures += keeper.broken
    if keeper.unwritten:
        raise keeper.unwritten
    if failures:
        raise _the_failure(failures, keeper.stored_ids(), len(generation.image_ids))


def tried(
    what: Callable[[], T],
    deadline: Deadline,
    again: tuple[type[Exception], ...] = _INTERRUPTED,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What it gives, after some tries where it is interrupted."""
    for attempt in range(1, KEEP_TRIES + 1):
        try:
            return what()
        except again:
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            if attempt == KEEP_TRIES or pause >= deadline.remaining():
                raise
        sleep(pause)
    raise AssertionError("the last try returns or raises")


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a call left to do: images to fetch, by id with their URLs, and calls for images that did not come."""

    wanted: list[tuple[str, str]]
    extra: tuple[Call, ...]


class _Keeper:
    """One generation at work. Its methods run side by side, each on its own call or image."""

    def __init__(self, generation: Generation, owner: str, tools: Tools, deadline: Deadline) -> None:
        self._generation = generation
        self._owner = owner
        self._tools = tools
        self._deadline = deadline
        self._stored = dict(generation.stored)
        self.unwritten: RecordsUnavailableError | None = None
        self.broken: list[ImagegenError] = []  # why images that were answered are not usable

    def stored_ids(self) -> tuple[str, ...]:
        return tuple(image_id for image_id in self._generation.image_ids if image_id in self._stored)

    def ask(self, call: Call) -> _Answered:
        """Has the call answered."""
        if call.sent or call.extra:  # a late answer to the call before may have brought the image of an extra one
            self._find_stored(call)
        answer = call.answer or self._answered(call)
        call, *extra = with_extra_calls([msgspec.structs.replace(call, answer=answer)])
        answer = call.answer or answer
        wanted: list[tuple[str, str]] = []
        for image_id, image in zip(call.image_ids, answer.images, strict=True):
            if image_id in self._stored:
                continue
            if image.failure:
                self.broken.append(raised_again(image.failure))
            elif image.url:
                wanted.append((image_id, image.url))
            else:
                self.broken.append(ImageStorageError("An image was made but is not stored."))
        return _Answered(wanted, tuple(extra))

    def keep(self, image_id: str, source: str | bytes) -> None:
        """Fetches and stores one image; what breaks off is fetched again, never bought again.

        Raises a MoneySpentError, LostClaimError, and UnfinishedError if there was no time to fetch it.
        """
        saving = False

        def fetched() -> StoredImage:
            nonlocal saving
            with self._tools.source.open(source, self._deadline) as body:
                saving = True
                saved = self._tools.images.save(image_id, body, self._deadline)
                stored = StoredImage(body.media_type, body.length)
            # An image that was there already may be another than this one.
            return stored if saved else self._tools.images.find(image_id, self._deadline) or stored

        by_url = isinstance(source, str)
        try:
            stored = self._tried(fetched, _INTERRUPTED if by_url else (ImageStorageInterruptedError,))
        except Exception as fault:
            found = self._stored_all_the_same(image_id, by_url=by_url) if saving else None
            if found is None:
                if by_url and isinstance(fault, _INTERRUPTED) and self._deadline.remaining() < _OUT_OF_TIME_SECONDS:
                    raise UnfinishedError from fault
                if isinstance(fault, ImagegenError):
                    raise
                # The image is paid for: another attempt must not buy it again.
                raise InternalError("An image was made but could not be stored.") from fault
            stored = found
        self._note_stored(image_id, stored)

    def _stored_all_the_same(self, image_id: str, *, by_url: bool) -> StoredImage | None:
        """The image, if a save stored it and only its answer was lost.

        Raises UnfinishedError if that is not known, and the image can be fetched again.
        """
        try:
            return self._tools.images.find(image_id, self._deadline)
        except ImageStorageError as unknown:
            if by_url:
                raise UnfinishedError from unknown
            return None

    def _note_stored(self, image_id: str, stored: StoredImage) -> None:
        self._stored[image_id] = stored
        with self._going_on():
            self._tools.records.save_image(self._generation.id, image_id, stored)
        self._tools.journal.stored(self._generation, stored)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """If a record cannot be written, what is paid for is stored all the same: a successor finds it in S3."""
        try:
            yield
        except RecordsUnavailableError as error:
            self.unwritten = error

    def _answered(self, call: Call) -> CallAnswer:
        """What the call gave, noted on the record: found to be stored already, or asked for."""
        missing = [image_id for image_id in call.image_ids if image_id not in self._stored]
        images = dict.fromkeys(call.image_ids, AnsweredImage())
        answer = UpstreamAnswer(())
        if missing:
            call = self._about_to_send(call)
            answer = self._asked(call, len(missing))
            images |= self._taken(missing, answer)
        noted = CallAnswer(tuple(images[image_id] for image_id in call.image_ids), answer.details, answer.usage)
        with self._going_on():
            first = self._tools.records.save_answer(self._generation.id, call.number, noted)
            self._keep_what_it_lacks(call, first, noted)
            return first
        return noted

    def _keep_what_it_lacks(self, call: Call, first: CallAnswer, later: CallAnswer) -> None:
        """Stores the images that a later answer has and the one on the record has not: then no extra call is sent."""
        for image_id, known, image in zip(call.image_ids, first.images, later.images, strict=True):
            if known.missing and image.url and image_id not in self._stored:
                with suppress(MoneySpentError):
                    self.keep(image_id, image.url)

    def _about_to_send(self, call: Call) -> Call:
        """The call, noted as sent once more. Raises a MoneySpentError if it must not be."""
        if not self._tools.may_send and call.extra:
            raise UpstreamTooFewImagesError("The image model answered with fewer images than it was asked for.")
        if not self._tools.may_send:
            raise AbandonedError("The image could not be made: every attempt at it died.")
        repeats = self._tools.repeat_unknown and not call.extra
        most = (MOST_SENT if repeats else 1) + self._generation.retries
        if call.sent - call.refused >= most:
            raise OutcomeUnknownError("The image model was asked, but what became of it is not known.")
        if call.extra and self._deadline.remaining() < self._tools.call_seconds:
            raise UnfinishedError  # it could be cut off after it is paid for; the next process has its whole time
        call = msgspec.structs.replace(call, sent=call.sent + 1)
        self._tools.records.save_sending(self._generation.id, self._owner, call.number, call.sent)
        return call

    def _asked(self, call: Call, n: int) -> UpstreamAnswer:
        """What the upstream answers. Raises NothingSpentError if no sending of this call bought anything."""
        journal, started = self._tools.journal, time.perf_counter()
        journal.asked(self._generation, n)
        error: ImagegenError | None = None
        try:
            return _exactly(n, self._tools.provider.generate(self._generation.request, n, self._deadline))
        except NothingSpentError as refused:
            error = refused
            with self._going_on():
                self._tools.records.save_refusal(self._generation.id, call.number, call.sent)
            if call.sent - call.refused == 1:
                raise
            raise OutcomeUnknownError(
                f"What became of an earlier call to the image model is not known. {refused.message}"
            ) from refused
        except ImagegenError as failed:
            error = failed
            raise
        except Exception as fault:  # it may have come after the request was sent
            error = InternalError("The call to the image model broke off.")
            raise error from fault
        finally:
            journal.answered(self._generation, time.perf_counter() - started, error)

    def _find_stored(self, call: Call) -> None:
        """Looks for what a predecessor stored but died before it could note it."""
        for image_id in call.image_ids:
            if image_id in self._stored:
                continue
            try:
                found = self._tried(partial(self._tools.images.find, image_id, self._deadline))
            except ImageStorageError as unknown:  # to end now, or to ask again, would lose what may be there
                raise UnfinishedError from unknown
            if found is not None:
                self._note_stored(image_id, found)

    def _taken(self, image_ids: list[str], answer: UpstreamAnswer) -> dict[str, AnsweredImage]:
        """What a call gave. An image that came as bytes is stored before the answer is noted: it is nowhere else."""
        taken: dict[str, AnsweredImage] = {}
        inline: dict[str, bytes] = {}
        for image_id, image in zip(image_ids, answer.images, strict=True):
            url = image.source if isinstance(image.source, str) else None
            failure = kept(image.failure) if image.failure else None
            taken[image_id] = AnsweredImage(url, image.revised_prompt, failure)
            if isinstance(image.source, bytes):
                inline[image_id] = image.source
        if not inline:
            return taken
        with self._tools.executor(len(inline)) if len(inline) > 1 else _ThisThread() as pool:
            storing = {image_id: pool.submit(self.keep, image_id, content) for image_id, content in inline.items()}
        for image_id, stored in storing.items():
            try:
                stored.result()
            except MoneySpentError as error:  # the others are kept, and this one is not asked for again
                taken[image_id] = msgspec.structs.replace(taken[image_id], failure=kept(error))
        return taken

    def _tried(self, what: Callable[[], T], again: tuple[type[Exception], ...] = _INTERRUPTED) -> T:
        return tried(what, self._deadline, again, self._tools.sleep)


def _exactly(n: int, answer: UpstreamAnswer) -> UpstreamAnswer:
    """Raises ValueError if a provider breaks its contract: it is unclear which images came."""
    if len(answer.images) != n:
        raise ValueError(f"{len(answer.images)} images for {n}")
    return answer


class _ThisThread(Executor):
    """Runs what is submitted at once: for a single image, handing over to a thread costs more than it gives."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # the future raises it
            future.set_exception(error)
        return future


def _the_failure(failures: list[BaseException], stored_ids: tuple[str, ...], n: int) -> BaseException:
    """The one that tells what happened. A fault of ours goes first: another attempt may still end well.

    Then a call that may have been paid for outweighs one that was not.
    """
    for failure in failures:
        if not isinstance(failure, ImagegenError) or isinstance(failure, RecordsUnavailableError):
            return failure
    told = [failure for failure in failures if isinstance(failure, ImagegenError)]
    cause = next((failure for failure in told if isinstance(failure, MoneySpentError)), told[0])
    if not stored_ids:
        return cause
    error = PartialGenerationError(f"{len(stored_ids)} of {n} images were made and stored. {cause.message}")
    error.__cause__ = cause
    error.images = stored_ids
    return error
