"""Writes the output file and the error file of a batch."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO

from imagegen.domain.batches import Batch, Counts
from imagegen.domain.deadline import Deadline
from imagegen.ports import BatchLines, Outbox

_SPOOLED_BYTES = 1024 * 1024  # larger files go to disk
_BLOCK_BYTES = 128 * 1024
_STORING_SECONDS = 120.0


def write_output(batch: Batch, lines: BatchLines, outbox: Outbox, keep_claim: Callable[[], None]) -> Counts:
    """Writes each file that has a line, and counts the lines.

    The batch is finalizing: its lines no longer change. `keep_claim` is called before each file and raises
    LostClaimError if the claim is lost, since a later batch may have files of the same name. A file without a line is
    deleted: a file of that name is from an earlier batch, or from a process that died. Raises RecordsUnavailableError,
    ImageStorageError.
    """
    completed = failed = 0
    with ExitStack() as closing:
        output, errors = (closing.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES)) for _ in range(2))
        for line in lines.ended(batch.id):
            (output if line.completed else errors).write(line.text.encode() + b"\n")
            completed, failed = completed + line.completed, failed + (not line.completed)
        for key, file in ((batch.output_key, output), (batch.errors_key, errors)):
            keep_claim()
            length, until = file.tell(), Deadline.after(_STORING_SECONDS)
            if length:
                file.seek(0)
                outbox.save(key, length, _blocks(file), until)
            else:
                outbox.delete(key, until)
    return Counts(completed, failed)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block
