"""Reads the file of a batch. Each line begins its own generation, or fails alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from contextlib import nullcontext, suppress
from functools import partial
from itertools import islice, takewhile
from threading import Semaphore
from typing import TypeVar

import msgspec

from imagegen.domain.batches import AskedLine, Batch, Checkpoint, EndedLine, line_generation_id
from imagegen.domain.credentials import Caller, is_caller_name
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    CallerRemovedError,
    GenerationCancelledError,
    ImagegenError,
    InputUnavailableError,
    NothingSpentError,
    QuotaExceededError,
    RecordsUnavailableError,
    RequestTooLargeError,
    SecretUnavailableError,
    UnknownFileError,
)
from imagegen.domain.file_lines import MAX_LINE_BYTES, Line, ReadBytes, lines_of
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import Generation, IdTakenError, Origin
from imagegen.domain.images import AskedImages
from imagegen.domain.models import ImageModel
from imagegen.ports import BatchLines, BatchStore, FileContents, GenerationStore
from imagegen.usecases.submit import Submission, SubmitGeneration
from imagegen.usecases.take_inputs import TakeInputs

T = TypeVar("T")

CHUNK_LINES = 50
CHUNK_THREADS = 16  # how many lines of a chunk begin side by side
READ_SECONDS = 30.0  # for one block of the file, even if the time for the batch ends before
_MOST_FETCHING = 4  # lines that fetch images from URLs side by side, 50 MB each: the intake has 1 GB

# Writes the line of the error file: batch id, line number, custom_id if known, error.
WriteRefusal = Callable[[str, int, str | None, ImagegenError], EndedLine]


class FetchingLines:
    """Limits how many lines hold images from URLs in memory at once."""

    def __init__(self) -> None:
        self._free = Semaphore(_MOST_FETCHING)

    def place_for(self, asked: AskedImages) -> "Semaphore | nullcontext[None]":
        return self._free if any(image.url for image in asked.images) else nullcontext()


class ReadBatch(msgspec.Struct, frozen=True, eq=False):
    """`pool` has CHUNK_THREADS threads, and is not that of `inputs`. `now` gives Unix seconds.

    `read_line` raises an InvalidRequestError. `recorded_caller` gives a caller with its own quota, `None` if it has no
    record. With `waits_for_quota`, a line that exceeds a quota begins later, else it fails.
    """

    batches: BatchStore
    lines: BatchLines
    generations: GenerationStore
    submission: SubmitGeneration
    models: Mapping[str, ImageModel]
    inputs: TakeInputs
    contents: FileContents
    pool: Executor
    base_url: str
    read_line: Callable[[bytes], AskedLine]
    refusal: WriteRefusal
    recorded_caller: Callable[[str], Caller | None]
    waits_for_quota: bool
    fetching: FetchingLines
    now: Callable[[], float]

    def read(self, batch: Batch, owner: str, until: Deadline) -> Batch:
        """Reads from the checkpoint until the file ends, the batch is stopped, or the time is over.

        The lines of a batch that was stopped before are refused. Returns the record; its total is known if the file was
        read to its end. Raises LostClaimError, QuotaExceededError if a line waits for the quota, and
        RecordsUnavailableError, SecretUnavailableError, InputUnavailableError or FileUnavailableError: reading then
        continues from the checkpoint.
        """
        caller = self._caller_of(batch)
        removed = None if caller else CallerRemovedError("The API key of this batch was deleted.")
        take = partial(self._take, batch=batch, caller=caller, refusal=batch.stopped_by or removed)
        try:
            lines = lines_of(blocks_of(batch.file, self.contents), batch.file.size, batch.checkpoint)
            # The upload's URL works again after the file is deleted: no more lines begin than were validated.
            most = math.inf if batch.validated is None else batch.validated
            for chunk in in_chunks(takewhile(lambda line: line.number <= most, lines)):
                each_of(chunk, take, self.pool)
                was_stopped = batch.stopped_by is not None
                batch = self.batches.save_checkpoint(batch.id, owner, chunk[-1].after)
                is_stopped = batch.stopped_by is not None
                if batch.checkpoint.offset == batch.file.size:
                    break
                if is_stopped is not was_stopped or not until.remaining():
                    return batch
                if not is_stopped and batch.is_over(self.now()):
                    return batch
        except UnknownFileError as gone:
            batch = self._refuse_rest(batch, owner, gone)
        return self.batches.save_total(batch.id, owner, batch.checkpoint.line)

    def refuse(self, batch_id: str, line: int, custom_id: str | None, error: ImagegenError) -> Generation | None:
        """Ends a line without a generation. Returns the generation if it has one: the line ends when that ends.

        The id of its generation is made void first: another process may have begun it, or be about to.
        """
        with suppress(IdTakenError):  # it was deleted
            generation = self.generations.void(line_generation_id(batch_id, line), now=self.now())
            if generation is not None:
                return generation
        self.lines.refuse(batch_id, line, self.refusal(batch_id, line, custom_id, error))
        return None

    def _caller_of(self, batch: Batch) -> Caller | None:
        """The caller with its own quota. `None` if its key was deleted."""
        recorded = self.recorded_caller(batch.caller)
        # A caller with a token never has a record, and one of the inbox needs none.
        needs_record = not batch.is_of_inbox and is_caller_name(batch.caller)
        return recorded or (None if needs_record else Caller(batch.caller))

    def _refuse_rest(self, batch: Batch, owner: str, gone: UnknownFileError) -> Batch:
        """Refuses the lines behind the checkpoint of a file that no longer exists.

        Their number is known if the file was validated. Else there is one refusal for all.
        """
        begun_before = ((line, name) for line, name in self.lines.pending(batch.id) if line > batch.checkpoint.line)
        for waiting in in_chunks(begun_before):  # of a process that died, or they wait for the quota
            each_of(waiting, lambda line: self.refuse(batch.id, *line, gone), self.pool)
        last = batch.validated or batch.checkpoint.line + 1
        for chunk in in_chunks(iter(range(batch.checkpoint.line + 1, last + 1))):
            each_of(chunk, lambda number: self.refuse(batch.id, number, None, gone), self.pool)  # noqa: B023  # used up here
            batch = self.batches.save_checkpoint(batch.id, owner, Checkpoint(batch.checkpoint.offset, chunk[-1]))
        return batch

    def _take(self, line: Line, *, batch: Batch, caller: Caller | None, refusal: ImagegenError | None) -> None:
        """Begins the generation of a line, or refuses the line. With a `refusal`, no line begins."""
        if line.text == b"":
            return
        custom_id: str | None = None
        try:
            if line.text is None:
                raise RequestTooLargeError(f"The line is over {MAX_LINE_BYTES} bytes.")
            line_asked = self.read_line(line.text)
            custom_id = line_asked.custom_id
            if refusal is None and caller is not None:
                self._begin(line.number, custom_id, line_asked.request(), batch, caller)
        except (RecordsUnavailableError, SecretUnavailableError, InputUnavailableError):
            raise
        except (NothingSpentError, GenerationCancelledError) as error:
            is_later = isinstance(error, QuotaExceededError) and self.waits_for_quota and not error.is_above_limit
            if is_later:
                raise
            refusal = refusal or error
        if refusal is not None:
            self.refuse(batch.id, line.number, custom_id, refusal)

    def _begin(self, number: int, custom_id: str, asked: AskedImages, batch: Batch, caller: Caller) -> None:
        """Notes the line as pending first: its generation may end before this call returns."""
        if not self.lines.begin(batch.id, number, custom_id):
            return
        submission = Submission(
            asked.request,
            caller,
            self.base_url,
            origin=Origin(custom_id, batch.id, number),
            generation_id=line_generation_id(batch.id, number),
            waits_for_quota=self.waits_for_quota,
        )
        model = self.models[asked.request.model]
        with self.fetching.place_for(asked):
            self.submission.submit_with(lambda: self.inputs.of(asked, model, caller.name), submission)


def blocks_of(file: StoredObject, contents: FileContents) -> ReadBytes:
    """Reads a file in pieces, each in its own time."""
    return lambda at, length: contents.read(file, at, length, Deadline.after(READ_SECONDS))


def in_chunks(each: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(islice(each, CHUNK_LINES)):
        yield chunk


def each_of(chunk: Sequence[T], do: Callable[[T], object], pool: Executor) -> None:
    """Calls `do` for all of them side by side. Raises the first exception after all calls have ended.

    A call that continued in the background could still run when another process has the batch.
    """
    begun = [pool.submit(do, each) for each in chunk]
    wait(begun)
    for done in begun:
        done.result()
