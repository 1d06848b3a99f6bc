"""A caller's actions on its own generations: get, cancel, delete; and the operator's: retry.

Another caller's generation is treated as if it did not exist.
"""

from collections.abc import Callable
from contextlib import suppress

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    DeletionUnfinishedError,
    GenerationCancelledError,
    GenerationEndedError,
    ImageStorageError,
    NothingSpentError,
    RecordsUnavailableError,
    UnknownGenerationError,
)
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation, LostClaimError, Status, Tombstone, is_generation_id, new_owner
from imagegen.ports import GenerationQueue, GenerationStore
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.publish import BatchProgress, PublishGeneration
from imagegen.usecases.quota import QuotaReturns
from imagegen.usecases.submit import SafetyNet

MOST_RETRIES = 8  # of one generation: each may add an attempt to each call, and a record has 400 KB
LEASE_SECONDS = 60.0  # after this time, the generation of a dead worker is taken over


def get_generation(generation_id: str, caller: str, records: GenerationStore) -> Generation:
    """Raises UnknownGenerationError."""
    generation = records.get(generation_id) if is_generation_id(generation_id) else None
    if generation is None or generation.caller != caller:
        raise UnknownGenerationError("There is no such generation.", param="id")
    return generation


class CancelGeneration(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds."""

    records: GenerationStore
    publisher: PublishGeneration
    now: Callable[[], float]

    def cancel(self, generation_id: str, caller: str) -> Generation:
        """Prevents further upstream calls. Images that are paid for and arrive later stay with the generation.

        A second cancellation returns the same as the first. Raises UnknownGenerationError, GenerationEndedError.
        """
        generation = get_generation(generation_id, caller, self.records)
        cancelled = self.records.cancel(generation.id, now=self.now())
        if cancelled is None:
            raise GenerationEndedError("This generation has already ended.", param="id")
        self._publish(cancelled)
        return cancelled

    def stop_unbegun(self, generation: Generation, error: NothingSpentError) -> None:
        """Cancels a generation for this reason if nothing was bought for it and nobody works on it."""
        if any(call.charged for call in generation.calls):
            return
        cancelled = self.records.cancel_unbegun(generation, failure_of(error), now=self.now())
        if cancelled is not None:
            self._publish(cancelled)

    def _publish(self, cancelled: Generation) -> None:
        with suppress(RecordsUnavailableError):  # the message behind the record has it published
            self.publisher.publish(cancelled)


class RetryGeneration(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds."""

    records: GenerationStore
    quota: QuotaReturns
    queue: GenerationQueue
    now: Callable[[], float]

    def retry(self, generation_id: str) -> Generation | None:
        """Queues a failed generation again and returns its record; `None` if it has not failed.

        Returns `None` also after MOST_RETRIES retries. The end must have been published. What was returned to the quota
        is taken again. Raises RecordsUnavailableError: the retry can then be repeated.
        """
        failed = self.records.get(generation_id)
        if failed is None or failed.status is not Status.FAILED or not failed.published:
            return None
        if failed.retries >= MOST_RETRIES:
            return None
        SafetyNet(self.queue, self.now, LEASE_SECONDS).send(failed)
        reserved_at, token = self.now(), new_owner()
        self.quota.reserve_again(failed, now=reserved_at, token=token)
        waiting = self.records.requeue(failed, now=reserved_at)
        if waiting is None:
            self.quota.undo_reserving_again(failed, now=reserved_at, token=token)
        else:
            with suppress(RecordsUnavailableError):  # the safety net brings a worker, but later
                self.queue.send(generation_id, failed.caller, to=failed.queue())
        return waiting


class DeleteGeneration(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds."""

    records: GenerationStore
    queue: GenerationQueue
    publisher: PublishGeneration
    batches: BatchProgress
    deletion: DeleteImages
    now: Callable[[], float]

    def delete(self, generation_id: str, caller: str, deadline: Deadline) -> None:
        """Replaces the record by a tombstone, then deletes the images.

        A message is sent before both. If this process dies, a worker deletes what remains. Raises
        UnknownGenerationError, RecordsUnavailableError, and DeletionUnfinishedError if images remain.
        """
        try:
            get_generation(generation_id, caller, self.records)
        except UnknownGenerationError:
            tombstone = self.records.tombstone(generation_id) if is_generation_id(generation_id) else None
            if tombstone is None or tombstone.caller != caller:
                raise
        else:
            tombstone = self._bury(generation_id, caller)
        try:
            self.deletion.delete(tombstone.id, tombstone.image_ids, tombstone.input_ids, deadline)
        except ImageStorageError as error:
            message = "The generation is deleted. Some of its images are not deleted yet: delete it again to make sure."
            raise DeletionUnfinishedError(message, param="id") from error

    def _bury(self, generation_id: str, caller: str) -> Tombstone:
        """Ends the generation and publishes its end first: afterwards no record exists to publish it from.

        The message is still delayed when the tombstone is written, so the worker that receives it finds the tombstone.
        """
        while True:
            self.records.cancel(generation_id, now=self.now())  # a generation that has ended stays as it is
            ended = get_generation(generation_id, caller, self.records)
            self.publisher.publish(ended)
            SafetyNet(self.queue, self.now, LEASE_SECONDS).send(ended)
            with suppress(LostClaimError):  # an operator retried it in the meantime
                tombstone = self.records.bury(ended, now=self.now())
                self.batches.line_ended(_as_deleted(ended))
                return tombstone


def _as_deleted(generation: Generation) -> Generation:
    failure = failure_of(GenerationCancelledError("The generation was deleted."))
    return msgspec.structs.replace(generation, status=Status.CANCELLED, failure=failure)
