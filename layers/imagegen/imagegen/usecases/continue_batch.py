"""Continues and cancels batches. One process works on a batch at a time; if it dies, another continues."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from imagegen.domain.batches import Batch, BatchStatus, is_batch_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    BatchEndedError,
    NothingSpentError,
    QuotaExceededError,
    RecordsUnavailableError,
    UnknownBatchError,
)
from imagegen.domain.generations import LostClaimError, new_owner
from imagegen.ports import LONGEST_MESSAGE_DELAY_SECONDS, BatchBus, BatchLines, BatchQueue, BatchStore
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.manage_generation import CancelGeneration
from imagegen.usecases.publish import BatchProgress
from imagegen.usecases.read_batch import ReadBatch, each_of, in_chunks
from imagegen.usecases.validate_batch import ValidateBatch
from imagegen.usecases.write_batch import WriteBatch

STOPPED_SECONDS = 30.0  # between two looks at the lines that still run when a batch was stopped


class ContinueBatch(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds; `lease` is in seconds."""

    batches: BatchStore
    lines: BatchLines
    queue: BatchQueue
    validation: ValidateBatch
    reader: ReadBatch
    writer: WriteBatch
    progress: BatchProgress
    cancellation: CancelGeneration
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
        if batch.status is BatchStatus.VALIDATING and batch.endpoint is not None:
            batch = self._validate(batch, batch.endpoint, owner)
        if batch.status is BatchStatus.CANCELLING and not batch.is_valid:
            # Its lines are not known, and may be any number: each line of a stopped batch takes writes.
            batch = self.batches.save_total(batch.id, owner, 0)
        if not batch.ended and batch.total is None:
            batch = self._read(batch, owner, until)
        if batch.ended or batch.total is None:
            return batch
        if batch.status is not BatchStatus.FINALIZING:
            if not self._are_lines_over(batch, owner, until):
                return batch
            batch = self.batches.begin_finalizing(batch.id, owner, now=self.now())
        counts = self.writer.write(batch, partial(self._renew, batch.id, owner))
        return self.batches.end(batch.id, owner, counts, now=self.now())

    def _validate(self, batch: Batch, endpoint: str, owner: str) -> Batch:
        """Begins the lines of a valid file, or ends the batch, unless it was cancelled meanwhile."""
        lines, problems = self.validation.validate(batch, endpoint)
        if problems:
            return self.batches.fail(batch.id, owner, problems, now=self.now())
        return self.batches.begin_lines(batch.id, owner, lines, now=self.now())

    def _read(self, batch: Batch, owner: str, until: Deadline) -> Batch:
        """Reads the file to its end, or sends a message to continue."""
        while batch.total is None:
            batch = self._expired_if_over(batch, owner)
            try:
                batch = self.reader.read(batch, owner, until)
            except QuotaExceededError as error:
                self._wake(batch, owner, error.reset)
                break
            if batch.total is None and not until.remaining():
                self.queue.send(batch.id, batch.caller)
                break
        return batch

    def _are_lines_over(self, batch: Batch, owner: str, until: Deadline) -> bool:
        """Ends the lines of a stopped batch that have not begun. Returns `False` if lines run, or are still to end."""
        if not self.lines.any_pending(batch.id):
            return True
        batch = self._expired_if_over(batch, owner)
        if batch.stopped_by:
            if not self._stop_lines(batch, batch.stopped_by, until):
                self.queue.send(batch.id, batch.caller)
                return False
            if not self.lines.any_pending(batch.id):
                return True
        # The end of the last pending line sends a message. These come in addition.
        if batch.stopped_by:
            self._wake(batch, owner, STOPPED_SECONDS)
        elif batch.expires_at is not None:
            self._wake(batch, owner, math.inf)
        return False

    def _expired_if_over(self, batch: Batch, owner: str) -> Batch:
        if batch.stopped_by or not batch.is_over(self.now()):
            return batch
        return self.batches.begin_expiring(batch.id, owner, now=self.now())

    def _wake(self, batch: Batch, owner: str, seconds: float) -> None:
        """Sends a message that arrives after this time, or when the window ends, unless one arrives by then anyway.

        The message goes first: if the process dies in between, there are two, and the second one sends no further one.
        """
        now = self.now()
        if batch.expires_at is not None and not batch.stopped_by:
            seconds = min(seconds, batch.expires_at - now)
        delay = math.ceil(min(max(1.0, seconds), LONGEST_MESSAGE_DELAY_SECONDS))
        # One in the first half does not count: it may be this message, come early by the clock of this process.
        if now + delay / 2 < batch.wake_at <= now + delay:
            return
        self.queue.send(batch.id, batch.caller, delay=delay)
        self.batches.save_wake(batch.id, owner, now + delay)

    def _publish(self, batch: Batch) -> None:
        if not batch.published:
            self.bus.batch_ended(batch)
            self.batches.mark_published(batch.id)

    def _stop_lines(self, batch: Batch, error: NothingSpentError, until: Deadline) -> bool:
        """Ends the pending lines that have not begun, at least a chunk. Returns `False` if the time was over before."""
        for chunk in in_chunks(self.lines.pending(batch.id)):
            each_of(chunk, lambda pending: self._stop_line(batch.id, *pending, error), self.reader.pool)
            if not until.remaining():
                return False
        return True

    def _stop_line(self, batch_id: str, line: int, custom_id: str, error: NothingSpentError) -> None:
        generation = self.reader.refuse(batch_id, line, custom_id, error)
        if generation is None:
            return
        if generation.ended:
            self.progress.line_ended(generation)
        else:
            self.cancellation.stop_unbegun(generation, error)


def get_batch(batch_id: str, caller: str, batches: BatchStore) -> Batch:
    """Raises UnknownBatchError."""
    batch = batches.get(batch_id) if is_batch_id(batch_id) else None
    if batch is None or batch.caller != caller:
        raise UnknownBatchError("There is no such batch.", param="batch_id")
    return batch


def cancel_batch(batch_id: str, caller: str, batches: BatchStore, queue: BatchQueue, now: float) -> Batch:
    """Begins no further line. Lines that have begun are waited for. Raises UnknownBatchError, BatchEndedError."""
    get_batch(batch_id, caller, batches)
    cancelling = batches.begin_cancelling(batch_id, now=now)
    if cancelling is None:
        raise BatchEndedError("All lines of this batch have already ended.", param="batch_id")
    queue.send(batch_id, caller)
    return cancelling
