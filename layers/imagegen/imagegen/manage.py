"""What a caller may do with its own generations: see, cancel, delete. Another's is as if it were not there."""

from collections.abc import Callable
from functools import partial

from imagegen.deadline import Deadline
from imagegen.errors import GenerationEndedError, ImageStorageError, UnknownGenerationError
from imagegen.generations import Generation, fingerprint, is_generation_id
from imagegen.ports import GenerationStore, ImageStore


def see(generation_id: str, caller: str, records: GenerationStore) -> Generation:
    """Raises UnknownGenerationError."""
    generation = records.get(generation_id) if is_generation_id(generation_id) else None
    if generation is None or generation.caller != caller:
        raise UnknownGenerationError("There is no such generation.", param="id")
    return generation


def cancel(generation_id: str, caller: str, records: GenerationStore, now: Callable[[], float]) -> Generation:
    """No upstream call begins after it; what is stored stays. Raises UnknownGenerationError, GenerationEndedError."""
    see(generation_id, caller, records)
    cancelled = records.cancel(generation_id, now=now())
    if cancelled is None:
        raise GenerationEndedError("This generation has ended already.", param="id")
    return cancelled


def delete(
    generation_id: str,
    caller: str,
    records: GenerationStore,
    images: ImageStore,
    now: Callable[[], float],
    deadline: Deadline,
) -> None:
    """The tombstone first, so that nobody stores anything after it; then the images. Raises UnknownGenerationError."""
    generation = see(generation_id, caller, records)
    records.bury(generation_id, now=now())
    records.release(generation, fingerprint(generation.request))
    delete_images(generation, images, deadline)


def delete_images(generation: Generation, images: ImageStore, deadline: Deadline) -> None:
    """Deletes all that is stored of a generation. What cannot be keeps nothing else; its error comes at the end."""
    deletions = [partial(images.delete, image_id, deadline) for image_id in generation.image_ids]
    failures: list[ImageStorageError] = []
    for deletion in (*deletions, partial(images.delete_answer, generation.id, deadline)):
        try:
            deletion()
        except ImageStorageError as error:
            failures.append(error)
    if failures:
        raise failures[0]
