"""What a caller may do with its own generations: see, cancel, delete. Another's is as if it were not there."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from imagegen.allowance import nothing_was_sent, release
from imagegen.announce import Settle, announce
from imagegen.deadline import Deadline
from imagegen.errors import (
    DeletionUnfinishedError,
    GenerationCancelledError,
    GenerationEndedError,
    ImageStorageError,
    RecordsUnavailableError,
    UnknownGenerationError,
)
from imagegen.failures import kept
from imagegen.generations import Generation, Status, Tombstone, fingerprint, is_generation_id
from imagegen.ports import AllowanceCounters, EventBus, GenerationQueue, GenerationStore, ImageStore

UNFINISHED_SECONDS = 60.0  # by then whoever deletes has finished, or has died


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
    settle: Settle = lambda _: None,
) -> Generation:
    """No upstream call begins after it; what is stored stays. Raises UnknownGenerationError, GenerationEndedError."""
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
    """Cancels a generation, and gives it as it is then; None where it has ended."""
    cancelled = None if generation.ended else records.cancel(generation.id, now=now())
    if cancelled:
        if nothing_was_sent(cancelled):
            release(cancelled, records, counters)
        with suppress(RecordsUnavailableError):  # the message behind the record will have it told
            announce(cancelled, records, bus, settle)
    return cancelled


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
    settle: Settle = lambda _: None,
) -> None:
    """The tombstone first, so that nobody stores anything after it; then the images.

    A message goes ahead of both: should we fail or die, a worker deletes what is left. Raises UnknownGenerationError,
    and DeletionUnfinishedError where images are left.
    """
    try:
        generation = see(generation_id, caller, records)
    except UnknownGenerationError:
        tombstone = records.tombstone(generation_id) if is_generation_id(generation_id) else None
        if tombstone is None or tombstone.caller != caller:
            raise
    else:
        queue.send(generation_id, delay=UNFINISHED_SECONDS)
        if stop(generation, records, counters, bus, now, settle) is None:
            with suppress(RecordsUnavailableError):  # whoever ended it may have died before it was told
                announce(generation, records, bus, settle)
        settle(_as_deleted(generation))  # while whoever dies here is followed by one who finds the record
        tombstone = records.bury(generation, now=now())
        records.release(generation, fingerprint(generation.request))
    try:
        finish_deletion(tombstone, records, images, deadline)
    except ImageStorageError as error:
        message = "The generation is deleted, but not all of its images yet. They will be; ask again to make sure."
        raise DeletionUnfinishedError(message, param="id") from error


def _as_deleted(generation: Generation) -> Generation:
    failure = kept(GenerationCancelledError("The generation was deleted."))
    return msgspec.structs.replace(generation, status=Status.CANCELLED, failure=failure)


def finish_deletion(tombstone: Tombstone, records: GenerationStore, images: ImageStore, deadline: Deadline) -> None:
    """Deletes what is left of a generation, and notes it. Raises ImageStorageError."""
    delete_images(tombstone.id, tombstone.image_ids, images, deadline)
    records.all_deleted(tombstone)


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
