"""Reads the file of a batch: each line begins its own generation, or fails at once and stops no other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from imagegen.domain.attempts import Attempt
from imagegen.domain.batches import AskedLine, Batch, BatchStatus, EndedLine, line_generation_id
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
from imagegen.domain.generations import Origin
from imagegen.domain.images import ImageRequest
from imagegen.ports import Inbox
from imagegen.usecases.publish import Ledger
from imagegen.usecases.submit import Desk, submit

T = TypeVar("T")

CHUNK_LINES = 50
CHUNK_THREADS = 16  # how many of them are begun side by side
READ_SECONDS = 30.0  # a block of the file, also where our time runs out meanwhile: it is little, and no fault


@dataclass(frozen=True, slots=True)
class Reader:
    """What reading needs. `read_line` raises an InvalidRequestError; `refusal` writes the line that tells an error.

    `own_images_per_day` is a caller's own allowance.
    """

    desk: Desk
    ledger: Ledger
    inbox: Inbox
    pool: Executor
    base_url: str
    read_line: Callable[[bytes], AskedLine]
    refusal: Callable[[str, int, str | None, ImagegenError], EndedLine]
    own_images_per_day: Callable[[str], int | None]


def read_on(batch: Batch, owner: str, reader: Reader, until: Deadline) -> Batch:
    """Reads from the checkpoint until the end, until it is cancelled or until there is no time left.

    Gives the batch as it is then; its total is known where the file is read to its end. Raises LostClaimError, and
    RecordsUnavailableError, SecretUnavailableError or ImageStorageError: then it goes on from the checkpoint.
    """
    own = reader.own_images_per_day(batch.caller)
    file, size = batch.file, batch.file.size

    def read(at: int, length: int) -> bytes:
        return reader.inbox.read(file, at, length, Deadline.after(READ_SECONDS))

    lines = lines_of(read, size, batch.checkpoint)
    # Only what comes right behind a checkpoint can have been read before.
    first = batch.checkpoint.line + 1
    ended = reader.ledger.lines.ended_among(batch.id, first, first + CHUNK_LINES - 1)
    for chunk in in_chunks(lines):
        each_of(chunk, lambda line: _take(line, batch, reader, own, ended), reader.pool)  # noqa: B023  # used up here
        batch = reader.ledger.batches.save_checkpoint(batch.id, owner, chunk[-1].after)
        ended = frozenset()
        if batch.status is not BatchStatus.IN_PROGRESS or not until.remaining():
            return batch
    return reader.ledger.batches.save_total(batch.id, owner, batch.checkpoint.line)


def in_chunks(each: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(islice(each, CHUNK_LINES)):
        yield chunk


def each_of(chunk: Sequence[T], do: Callable[[T], None], pool: Executor) -> None:
    """Does it for all of them side by side. Raises what one of them raised, once none is at work any more.

    Whoever went on behind our back would do so when the batch is another's, or when Lambda thaws this process.
    """
    begun = [pool.submit(do, each) for each in chunk]
    wait(begun)
    for done in begun:
        done.result()


def _take(line: Line, batch: Batch, reader: Reader, own: int | None, ended: frozenset[int]) -> None:
    if line.text == b"":
        return
    if line.number in ended:
        reader.ledger.lines.forget_pending(batch.id, line.number)  # whoever noted it late may have died since
        return
    custom_id: str | None = None
    try:
        if line.text is None:
            raise RequestTooLargeError(f"The line is over {MAX_LINE_BYTES} bytes.")
        asked = reader.read_line(line.text)
        custom_id = asked.custom_id
        _begin(line.number, custom_id, asked.request(), batch, reader, own)
    except (RecordsUnavailableError, SecretUnavailableError):
        raise
    except (NothingSpentError, GenerationCancelledError) as error:
        reader.ledger.lines.end(batch.id, line.number, reader.refusal(batch.id, line.number, custom_id, error))


def _begin(number: int, custom_id: str, request: ImageRequest, batch: Batch, reader: Reader, own: int | None) -> None:
    """Pending first: a generation may end before we hear that it has begun."""
    reader.ledger.lines.begin(batch.id, number, custom_id)
    submitted = submit(
        request,
        Attempt(),
        reader.desk,
        caller=batch.caller,
        base_url=reader.base_url,
        work_here=False,
        images_per_day=own,
        origin=Origin(custom_id, batch.id, number),
        generation_id=line_generation_id(batch.id, number),
    )
    if submitted.attached and submitted.generation.ended:
        reader.ledger.settle(submitted.generation)  # it was settled before we noted once more that it is pending
