"""What a caller may do with its own generations: see, cancel, delete. Another's is as if it were not there."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    DeletionUnfinishedError,
    GenerationCancelledError,
    GenerationEndedError,
    ImageStorageError,
    RecordsUnavailableError,
    UnknownGenerationError,
)
from imagegen.domain.failures import kept
from imagegen.domain.generations import Generation, LostClaimError, Status, Tombstone, is_generation_id, new_owner
from imagegen.ports import AllowanceCounters, EventBus, GenerationQueue, GenerationStore, ImageStore
from imagegen.usecases.publish import Settle, announce
from imagegen.usecases.quota import reserve_again, undo_reserving_again
from imagegen.usecases.submit import send_safety_net

LEASE_SECONDS = 60.0  # a dead worker's generation is taken over after it
LONGEST_WRITER_SECONDS = 900.0  # Lambda's longest time-out, and SQS's longest delay


def see(generation_id: str, caller: str, records: GenerationStore) -> Generation:
    """Raises UnknownGenerationError."""
    generation = records.get(generation_id) if is_generation_id(generation_id) else None
    if generation is None or generation.caller != caller:
        raise UnknownGenerationError("There is no such generation.", param="id")
    return generation


def cancel(
    generation_id: str,
    caller: str,
    records: GenerationStore,
    counters: AllowanceCounters,
    bus: EventBus,
    now: Callable[[], float],
    settle: Settle,
) -> Generation:
    """Begins no further upstream call. Images that are paid for and still come stay with the generation.

    A second cancellation gives the same as the first. Raises UnknownGenerationError, GenerationEndedError.
    """
    cancelled = stop(see(generation_id, caller, records), records, counters, bus, now, settle)
    if cancelled is None:
        raise GenerationEndedError("This generation has ended already.", param="id")
    return cancelled


def stop(
    generation: Generation,
    records: GenerationStore,
    counters: AllowanceCounters,
    bus: EventBus,
    now: Callable[[], float],
    settle: Settle,
) -> Generation | None:
    """Cancels a generation, and gives it as it is then; None if it was completed or has failed."""
    cancelled = records.cancel(generation.id, now=now())
    if cancelled:
        with suppress(RecordsUnavailableError):  # the message behind the record has it published
            announce(cancelled, records, counters, bus, settle)
    return cancelled


def retry(
    generation_id: str,
    records: GenerationStore,
    counters: AllowanceCounters,
    queue: GenerationQueue,
    now: Callable[[], float],
) -> Generation | None:
    """A new attempt at a failed generation, and the generation as it is then; None if it has not failed.

    Its end must have been published. What was returned of its quota is taken again. Raises RecordsUnavailableError: it
    can be asked for again then.
    """
    failed = records.get(generation_id)
    if failed is None or failed.status is not Status.FAILED or not failed.announced:
        return None
    send_safety_net(failed, queue, now, LEASE_SECONDS)
    reserved_at, token = now(), new_owner()
    reserve_again(counters, failed, now=reserved_at, token=token)
    waiting = records.requeue(failed, now=reserved_at)
    if waiting is None:
        undo_reserving_again(counters, failed, now=reserved_at, token=token)
    else:
        with suppress(RecordsUnavailableError):  # the safety net brings a worker, only later
            queue.send(generation_id, failed.caller)
    return waiting


def delete(
    generation_id: str,
    caller: str,
    records: GenerationStore,
    queue: GenerationQueue,
    counters: AllowanceCounters,
    bus: EventBus,
    images: ImageStore,
    now: Callable[[], float],
    deadline: Deadline,
    settle: Settle,
) -> None:
    """Puts a tombstone in the record's place, then deletes the images.

    A message goes ahead of both. If this process dies, a worker deletes what is left. Raises UnknownGenerationError,
    RecordsUnavailableError, and DeletionUnfinishedError if images are left.
    """
    try:
        see(generation_id, caller, records)
    except UnknownGenerationError:
        tombstone = records.tombstone(generation_id) if is_generation_id(generation_id) else None
        if tombstone is None or tombstone.caller != caller:
            raise
    else:
        tombstone = _buried(generation_id, caller, records, queue, counters, bus, now, settle)
    try:
        delete_images(tombstone.id, tombstone.image_ids, images, deadline)
    except ImageStorageError as error:
        message = "The generation is deleted, but not all of its images yet. They will be; ask again to make sure."
        raise DeletionUnfinishedError(message, param="id") from error


def _buried(
    generation_id: str,
    caller: str,
    records: GenerationStore,
    queue: GenerationQueue,
    counters: AllowanceCounters,
    bus: EventBus,
    now: Callable[[], float],
    settle: Settle,
) -> Tombstone:
    """Ends the generation and publishes the end first: afterwards there is no record to publish it from.

    The message still sleeps when the tombstone is written, so that who receives it finds the tombstone.
    """
    while True:
        records.cancel(generation_id, now=now())  # what has ended stays as it is
        ended = see(generation_id, caller, records)
        announce(ended, records, counters, bus, settle)
        send_safety_net(ended, queue, now, LEASE_SECONDS)
        with suppress(LostClaimError):  # an operator began a new attempt meanwhile
            tombstone = records.bury(ended, now=now())
            settle(_as_deleted(ended))
            return tombstone


def _as_deleted(generation: Generation) -> Generation:
    failure = kept(GenerationCancelledError("The generation was deleted."))
    return msgspec.structs.replace(generation, status=Status.CANCELLED, failure=failure)


def sweep(tombstone: Tombstone, images: ImageStore, queue: GenerationQueue, now: float, deadline: Deadline) -> None:
    """Deletes what is left of a deleted generation, and once more when no process can store anything any more.

    Raises ImageStorageError, RecordsUnavailableError.
    """
    delete_images(tombstone.id, tombstone.image_ids, images, deadline)
    if now - tombstone.buried_at < LONGEST_WRITER_SECONDS:
        queue.send(tombstone.id, tombstone.caller, delay=LONGEST_WRITER_SECONDS)


def delete_images(generation_id: str, image_ids: Sequence[str], images: ImageStore, deadline: Deadline) -> None:
    """Deletes all that is stored of a generation. What cannot be keeps nothing else; its error comes at the end."""
    deletions = [partial(images.delete, image_id, deadline) for image_id in image_ids]
    failures: list[ImageStorageError] = []
    for deletion in (*deletions, partial(images.delete_answer, generation_id, deadline)):
        try:
            deletion()
        except ImageStorageError as error:
            failures.append(error)
    if failures:
        raise failures[0]
