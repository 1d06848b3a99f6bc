"""Begins, continues and cancels batches. One process works on a batch at a time; if it dies, another continues."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from imagegen.domain.batches import Batch, BatchStatus, InboxFile, batch_id_of, is_batch_id, line_generation_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import BatchEndedError, GenerationCancelledError, RecordsUnavailableError, UnknownBatchError
from imagegen.domain.generations import IdTakenError, LostClaimError, new_owner
from imagegen.ports import BatchBus, BatchLines, BatchQueue, BatchStore, GenerationStore, Outbox
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.manage_generation import CancelGeneration
from imagegen.usecases.publish import BatchProgress
from imagegen.usecases.read_batch import CHUNK_LINES, ReadBatch, each_of, in_chunks
from imagegen.usecases.write_batch import write_output


def begin_batch(bucket: str, file: InboxFile, caller: str, batches: BatchStore, now: float) -> Batch:
    """The batch of a file: the same one for every message about that file. Raises RecordsUnavailableError."""
    batch_id = batch_id_of(bucket, file.key, file.version)
    return batches.create(Batch(id=batch_id, caller=caller, file=file, created_at=now))


class ContinueBatch(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds; `lease` is in seconds."""

    batches: BatchStore
    lines: BatchLines
    queue: BatchQueue
    reader: ReadBatch
    progress: BatchProgress
    generations: GenerationStore
    cancellation: CancelGeneration
    outbox: Outbox
    bus: BatchBus
    now: Callable[[], float]
    lease: float

    def run(self, batch_id: str, until: Deadline, extend_visibility: Callable[[float], None]) -> float | None:
        """Does the next work on a batch.

        Returns `None` if the message is done, else the seconds after which it must be received again. `until` is when
        the rest is left to a new message. `extend_visibility` hides the message from other consumers for a number of
        seconds. Raises RecordsUnavailableError and unexpected exceptions: the message must then be received again.
        """
        owner, now = new_owner(), self.now()
        batch = self.batches.claim(batch_id, owner, now=now, lease_until=now + self.lease)
        if batch is None:
            self._without_claim(self.batches.get(batch_id), now)
            return None

        def renew() -> None:
            self._renew(batch_id, owner)
            extend_visibility(self.lease)

        try:
            with heartbeat(self.lease, renew):
                batch = self._continue(batch, owner, until)
        except LostClaimError:
            return self.lease
        finally:
            with suppress(RecordsUnavailableError):  # otherwise the lease ends by itself
                self.batches.release(batch_id, owner)
        if batch.ended:
            self._publish(batch)
        return None

    def _renew(self, batch_id: str, owner: str) -> None:
        self.batches.renew(batch_id, owner, self.now() + self.lease)

    def _without_claim(self, batch: Batch | None, now: float) -> None:
        """Does the rest of the work for a batch that cannot be claimed."""
        if batch is None:
            return
        if batch.ended:
            self._publish(batch)  # the process that ended it may have died before
            return
        # A new message, since the receipts of a message are counted and a large file takes hours.
        self.queue.send(batch.id, batch.caller, delay=max(1.0, batch.lease_until - now))

    def _continue(self, batch: Batch, owner: str, until: Deadline) -> Batch:
        if batch.status is BatchStatus.IN_PROGRESS and batch.total is None:
            batch = self.reader.read(batch, owner, until)
        if batch.status is BatchStatus.CANCELLING:
            self._void_next_lines(batch)
            if not self._cancel_lines(batch, until):
                self.queue.send(batch.id, batch.caller)
                return batch
            batch = self.batches.save_total(batch.id, owner, batch.checkpoint.line)
        if batch.total is None:
            self.queue.send(batch.id, batch.caller)
            return batch
        if batch.status is not BatchStatus.FINALIZING:
            if self.lines.any_pending(batch.id):
                return batch  # the end of the last pending line sends a message
            batch = self.batches.begin_finalizing(batch.id, owner, now=self.now())
        counts = write_output(batch, self.lines, self.outbox, partial(self._renew, batch.id, owner))
        return self.batches.end(batch.id, owner, counts, now=self.now())

    def _publish(self, batch: Batch) -> None:
        if not batch.published:
            self.bus.batch_ended(batch)
            self.batches.mark_published(batch.id)

    def _cancel_lines(self, batch: Batch, until: Deadline) -> bool:
        """Cancels the pending lines. Returns `False` if the time was over before all were cancelled."""
        for chunk in in_chunks(self.lines.pending(batch.id)):
            if not until.remaining():
                return False
            each_of(chunk, lambda pending: self._cancel_line(pending[0], pending[1], batch), self.reader.pool)
        return True

    def _void_next_lines(self, batch: Batch) -> None:
        """Voids the ids of the chunk behind the checkpoint: a reader that lost its claim may be about to begin it."""
        first, now = batch.checkpoint.line + 1, self.now()

        def void(line: int) -> None:
            with suppress(IdTakenError):  # it was deleted
                self.generations.void(line_generation_id(batch.id, line), now=now)

        each_of(range(first, first + CHUNK_LINES), void, self.reader.pool)

    def _cancel_line(self, line: int, custom_id: str, batch: Batch) -> None:
        error = GenerationCancelledError("The batch was cancelled.")
        generation = self.reader.refuse(batch.id, line, custom_id, error)
        if generation is None:
            return
        if generation.ended:
            self.progress.line_ended(generation)
        else:
            self.cancellation.stop(generation)


def get_batch(batch_id: str, caller: str, batches: BatchStore) -> Batch:
    """Raises UnknownBatchError."""
    batch = batches.get(batch_id) if is_batch_id(batch_id) else None
    if batch is None or batch.caller != caller:
        raise UnknownBatchError("There is no such batch.", param="batch_id")
    return batch


def cancel_batch(batch_id: str, caller: str, batches: BatchStore, queue: BatchQueue, now: float) -> Batch:
    """Begins no further line, and has the pending lines cancelled. Raises UnknownBatchError, BatchEndedError."""
    get_batch(batch_id, caller, batches)
    cancelling = batches.begin_cancelling(batch_id, now=now)
    if cancelling is None:
        raise BatchEndedError("All lines of this batch have already ended.", param="batch_id")
    queue.send(batch_id, caller)
    return cancelling
