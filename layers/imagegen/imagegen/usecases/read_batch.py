"""Reads the file of a batch. Each line begins its own generation, or fails alone."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import suppress
from itertools import islice
from typing import TypeVar

import msgspec

from imagegen.domain.batches import AskedLine, Batch, BatchStatus, EndedLine, line_generation_id
from imagegen.domain.credentials import Caller
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    GenerationCancelledError,
    ImagegenError,
    NothingSpentError,
    RecordsUnavailableError,
    RequestTooLargeError,
    SecretUnavailableError,
)
from imagegen.domain.file_lines import MAX_LINE_BYTES, Line, lines_of
from imagegen.domain.generations import Generation, IdTakenError, Origin
from imagegen.domain.images import ImageRequest
from imagegen.ports import BatchLines, BatchStore, GenerationStore, Inbox
from imagegen.usecases.submit import Submission, SubmitGeneration

T = TypeVar("T")

CHUNK_LINES = 50
CHUNK_THREADS = 16  # how many lines of a chunk begin side by side
READ_SECONDS = 30.0  # for one block of the file, even if the time for the batch ends before

# Writes the line of the error file: batch id, line number, custom_id if known, error.
WriteRefusal = Callable[[str, int, str | None, ImagegenError], EndedLine]


class ReadBatch(msgspec.Struct, frozen=True, eq=False):
    """`pool` has CHUNK_THREADS threads. `now` gives Unix seconds.

    `read_line` raises an InvalidRequestError. `caller_named` gives a caller with its own quota.
    """

    batches: BatchStore
    lines: BatchLines
    generations: GenerationStore
    submission: SubmitGeneration
    inbox: Inbox
    pool: Executor
    base_url: str
    read_line: Callable[[bytes], AskedLine]
    refusal: WriteRefusal
    caller_named: Callable[[str], Caller]
    now: Callable[[], float]

    def read(self, batch: Batch, owner: str, until: Deadline) -> Batch:
        """Reads from the checkpoint until the file ends, the batch is cancelled, or the time is over.

        Returns the record; its total is known if the file was read to its end. Raises LostClaimError, and
        RecordsUnavailableError, SecretUnavailableError or ImageStorageError: reading then continues from the
        checkpoint.
        """
        caller = self.caller_named(batch.caller)

        def block(at: int, length: int) -> bytes:
            return self.inbox.read(batch.file, at, length, Deadline.after(READ_SECONDS))

        for chunk in in_chunks(lines_of(block, batch.file.size, batch.checkpoint)):
            each_of(chunk, lambda line: self._take(line, batch, caller), self.pool)  # noqa: B023  # used up here
            batch = self.batches.save_checkpoint(batch.id, owner, chunk[-1].after)
            if batch.status is not BatchStatus.IN_PROGRESS or not until.remaining():
                return batch
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

    def _take(self, line: Line, batch: Batch, caller: Caller) -> None:
        if line.text == b"":
            return
        custom_id: str | None = None
        try:
            if line.text is None:
                raise RequestTooLargeError(f"The line is over {MAX_LINE_BYTES} bytes.")
            asked = self.read_line(line.text)
            custom_id = asked.custom_id
            self._begin(line.number, custom_id, asked.request(), batch, caller)
        except (RecordsUnavailableError, SecretUnavailableError):
            raise
        except (NothingSpentError, GenerationCancelledError) as error:
            self.refuse(batch.id, line.number, custom_id, error)

    def _begin(self, number: int, custom_id: str, request: ImageRequest, batch: Batch, caller: Caller) -> None:
        """Notes the line as pending first: its generation may end before this call returns."""
        if not self.lines.begin(batch.id, number, custom_id):
            return
        submission = Submission(
            request,
            caller,
            self.base_url,
            origin=Origin(custom_id, batch.id, number),
            generation_id=line_generation_id(batch.id, number),
        )
        self.submission.submit(submission)


def in_chunks(each: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(islice(each, CHUNK_LINES)):
        yield chunk


def each_of(chunk: Sequence[T], do: Callable[[T], None], pool: Executor) -> None:
    """Calls `do` for all of them side by side. Raises the first exception after all calls have ended.

    A call that continued in the background could still run when another process has the batch.
    """
    begun = [pool.submit(do, each) for each in chunk]
    wait(begun)
    for done in begun:
        done.result()
