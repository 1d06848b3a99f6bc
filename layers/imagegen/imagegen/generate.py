"""Makes the images of a generation: asks the upstream, stores what comes, writes what is known before what is next."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageInterruptedError,
    MoneySpentError,
    NothingSpentError,
    OutcomeUnknownError,
    PartialGenerationError,
    RecordsUnavailableError,
)
from imagegen.generations import AnsweredImage, Call, CallAnswer, Generation, StoredImage
from imagegen.images import UpstreamAnswer
from imagegen.ports import SILENT, GenerationStore, ImageProvider, ImageSource, ImageStore, Journal

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store what is paid for: a second and a half of pauses in all
MOST_SENT = 2  # a call of unknown outcome is repeated once
_FIRST_PAUSE_SECONDS = 0.2
_INTERRUPTED = (ImageDownloadInterruptedError, ImageStorageInterruptedError)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a generation is made with. `pool` runs as many threads as a request may have images.

    With `repeat_unknown` a call whose outcome nobody knows is sent once more, else its generation fails.
    """

    provider: ImageProvider
    source: ImageSource
    images: ImageStore
    records: GenerationStore
    pool: Executor
    repeat_unknown: bool = True
    journal: Journal = SILENT


def generate(generation: Generation, owner: str, tools: Tools, deadline: Deadline) -> None:
    """Sends the calls that have no answer, and stores what is not stored, all side by side.

    `generation` is the record as `owner` claimed it. Each step is on the record before the next. Raises what the
    upstream call raised where nothing was bought at all; once a call was or may have been paid for, a MoneySpentError
    that carries the ids of the images stored. Raises LostClaimError where the generation has ended or has another
    owner, and RecordsUnavailableError where the record cannot be written: both leave all that is known on it.
    """
    keeper = _Keeper(generation, owner, tools, deadline)
    side_by_side = tools.pool if len(generation.image_ids) > 1 else _ThisThread()
    asking = [side_by_side.submit(keeper.ask, index) for index in range(len(generation.calls))]
    storing: list[Future[None]] = []
    failures: list[BaseException] = []
    for asked in as_completed(asking):
        failure = asked.exception()
        if failure:
            failures.append(failure)
        else:
            storing += [side_by_side.submit(keeper.keep, image_id, url) for image_id, url in asked.result()]
    failures += [failure for stored in storing if (failure := stored.exception())]
    if keeper.unwritten:
        raise keeper.unwritten
    if failures:
        raise _the_failure(failures, keeper.stored_ids(), len(generation.image_ids))


def tried(what: Callable[[], T], deadline: Deadline, again: tuple[type[Exception], ...] = _INTERRUPTED) -> T:
    """What it gives, after some tries where it is interrupted."""
    for attempt in range(1, KEEP_TRIES + 1):
        try:
            return what()
        except again:
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            if attempt == KEEP_TRIES or pause >= deadline.remaining():
                raise
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


class _Keeper:
    """One generation at work. Its methods run side by side, each on its own call or image."""

    def __init__(self, generation: Generation, owner: str, tools: Tools, deadline: Deadline) -> None:
        self._generation = generation
        self._owner = owner
        self._tools = tools
        self._deadline = deadline
        self._stored = dict(generation.stored)
        self.unwritten: RecordsUnavailableError | None = None

    def stored_ids(self) -> tuple[str, ...]:
        return tuple(image_id for image_id in self._generation.image_ids if image_id in self._stored)

    def ask(self, index: int) -> list[tuple[str, str]]:
        """Has the call answered; gives the ids and URLs of images that are still to be fetched."""
        call = self._generation.calls[index]
        if call.sent:
            self._find_stored(call)
        if call.answer is None:
            call = self._answered(index, call)
        images = zip(call.image_ids, call.answer.images if call.answer else (), strict=True)
        return [(image_id, image.url) for image_id, image in images if image.url and image_id not in self._stored]

    def keep(self, image_id: str, source: str | bytes) -> None:
        """Fetches and stores one image; what breaks off is fetched again, never bought again."""

        def kept() -> StoredImage:
            with self._tools.source.open(source, self._deadline) as body:
                saved = self._tools.images.save(image_id, body, self._deadline)
                stored = StoredImage(body.media_type, body.length)
            # An image that was there already may be another than this one.
            return stored if saved else self._tools.images.find(image_id, self._deadline) or stored

        again = _INTERRUPTED if isinstance(source, str) else (ImageStorageInterruptedError,)
        self._note_stored(image_id, tried(kept, self._deadline, again))

    def _note_stored(self, image_id: str, stored: StoredImage) -> None:
        self._stored[image_id] = stored
        with self._going_on():
            self._tools.records.save_image(self._generation.id, self._owner, image_id, stored)
        self._tools.journal.stored(self._generation, stored)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Where a record cannot be written, what is paid for is stored all the same: a successor finds it in S3."""
        try:
            yield
        except RecordsUnavailableError as error:
            self.unwritten = error

    def _answered(self, index: int, call: Call) -> Call:
        """The call with its answer on the record: found to be stored already, or asked for."""
        missing = [image_id for image_id in call.image_ids if image_id not in self._stored]
        images = dict.fromkeys(call.image_ids, AnsweredImage())
        answer = UpstreamAnswer(())
        if missing:
            if call.sent >= (MOST_SENT if self._tools.repeat_unknown else 1):
                raise OutcomeUnknownError("The image model was asked, but what became of it is not known.")
            call = msgspec.structs.replace(call, sent=call.sent + 1)
            self._save(index, call)
            answer = self._asked(call, len(missing))
            images |= self._taken(missing, answer)
        call = msgspec.structs.replace(
            call,
            answer=CallAnswer(tuple(images[image_id] for image_id in call.image_ids), answer.details, answer.usage),
        )
        with self._going_on():
            self._save(index, call)
        return call

    def _asked(self, call: Call, n: int) -> UpstreamAnswer:
        journal, started = self._tools.journal, time.perf_counter()
        journal.asked(self._generation, n)
        try:
            answer = self._tools.provider.generate(self._generation.request, n, self._deadline)
        except ImagegenError as refused:
            journal.answered(self._generation, time.perf_counter() - started, refused)
            if call.sent == 1 or not isinstance(refused, NothingSpentError):
                raise
            # This time nothing was bought; of the time before nobody knows.
            error = OutcomeUnknownError(
                f"What became of an earlier call to the image model is not known. {refused.message}"
            )
            raise error from refused
        journal.answered(self._generation, time.perf_counter() - started, None)
        return answer

    def _find_stored(self, call: Call) -> None:
        """Looks for what a predecessor stored but died before it could note it."""
        for image_id in call.image_ids:
            if image_id in self._stored:
                continue
            found = tried(partial(self._tools.images.find, image_id, self._deadline), self._deadline)
            if found is not None:
                self._note_stored(image_id, found)

    def _taken(self, image_ids: list[str], answer: UpstreamAnswer) -> dict[str, AnsweredImage]:
        """What a call gave. An image that came as bytes is stored before the answer is noted: it is nowhere else."""
        taken: dict[str, AnsweredImage] = {}
        inline: list[tuple[str, bytes]] = []
        for image_id, image in zip(image_ids, answer.images, strict=True):
            if isinstance(image.source, bytes):
                inline.append((image_id, image.source))
                taken[image_id] = AnsweredImage(revised_prompt=image.revised_prompt)
            else:
                taken[image_id] = AnsweredImage(url=image.source, revised_prompt=image.revised_prompt)
        if len(inline) == 1:
            self.keep(*inline[0])
        elif inline:
            with ThreadPoolExecutor(len(inline)) as pool:
                stored = [pool.submit(self.keep, image_id, content) for image_id, content in inline]
            for each in stored:
                each.result()
        return taken

    def _save(self, index: int, call: Call) -> None:
        self._tools.records.save_call(self._generation.id, self._owner, index, call)


class _ThisThread(Executor):
    """Runs what is submitted at once: for a single image, handing over to a thread costs more than it gives."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # it is the future's to tell
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
