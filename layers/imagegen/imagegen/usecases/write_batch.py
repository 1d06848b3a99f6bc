"""Writes the output file and the error file of a batch, and their records."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO

import msgspec

from imagegen.domain.batches import Batch, Counts
from imagegen.domain.deadline import Deadline
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.ports import BatchLines, FileContents, FileStore

_SPOOLED_BYTES = 1024 * 1024  # larger files go to disk
_BLOCK_BYTES = 128 * 1024
_STORING_SECONDS = 120.0


class WriteBatch(msgspec.Struct, frozen=True, eq=False):
    """`file_seconds` is how long a file of a batch over HTTP is kept. `now` gives Unix seconds."""

    lines: BatchLines
    files: FileStore
    contents: FileContents
    file_seconds: float
    now: Callable[[], float]

    def write(self, batch: Batch, keep_claim: Callable[[], None]) -> Counts:
        """Writes each file that has a line, and counts the lines.

        The batch is finalizing: its lines no longer change. `keep_claim` is called before each file and raises
        LostClaimError if the claim is lost, since a later batch may have files of the same name. A file without a line
        is deleted: a file of that name is from an earlier batch, or from a process that died. Raises
        RecordsUnavailableError, FileUnavailableError.
        """
        completed = failed = 0
        with ExitStack() as closing:
            output, errors = (closing.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES)) for _ in range(2))
            for line in self.lines.ended(batch.id):
                (output if line.completed else errors).write(line.text.encode() + b"\n")
                completed, failed = completed + line.completed, failed + (not line.completed)
            for file_id, key, file in (
                (batch.output_file_id, batch.output_key, output),
                (batch.error_file_id, batch.errors_key, errors),
            ):
                keep_claim()
                length, until = file.tell(), Deadline.after(_STORING_SECONDS)
                if length:
                    file.seek(0)
                    self._record(batch, file_id, self.contents.save(key, length, _blocks(file), until))
                else:
                    self.contents.delete(StoredObject(key, "", 0), until)
        return Counts(completed, failed)

    def _record(self, batch: Batch, file_id: str, stored: StoredObject) -> None:
        now, seconds = self.now(), min(self.file_seconds, batch.output_seconds or self.file_seconds)
        kind = "output" if file_id == batch.output_file_id else "error"
        self.files.create(
            File(
                id=file_id,
                caller=batch.caller,
                purpose=Purpose.BATCH_OUTPUT,
                filename=f"{batch.id}_{kind}.jsonl",
                object=stored,
                created_at=now,
                expires_at=None if batch.is_of_inbox else float(int(now + seconds)),
            )
        )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block
