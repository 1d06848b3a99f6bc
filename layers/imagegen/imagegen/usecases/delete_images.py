"""Deletes the images of a deleted generation, and the input images that came inside its request."""

from collections.abc import Sequence
from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageError, ImageStorageInterruptedError, InputUnavailableError
from imagegen.domain.generations import Tombstone
from imagegen.ports import GenerationQueue, ImageStore, InputStore

LONGEST_WRITER_SECONDS = 900.0  # the longest time-out of a Lambda function, and the longest delay of an SQS message


class DeleteImages(msgspec.Struct, frozen=True, eq=False):
    images: ImageStore
    inputs: InputStore

    def delete(
        self, generation_id: str, image_ids: Sequence[str], input_ids: Sequence[str], deadline: Deadline
    ) -> None:
        """Deletes everything stored for a generation. Raises the first ImageStorageError after it has tried all."""
        deletions = [partial(self.images.delete, image_id, deadline) for image_id in image_ids]
        deletions += [partial(self.inputs.delete, input_id, deadline) for input_id in input_ids]
        failures: list[ImageStorageError] = []
        for deletion in (*deletions, partial(self.images.delete_answer, generation_id, deadline)):
            try:
                deletion()
            except ImageStorageError as error:
                failures.append(error)
            except InputUnavailableError as error:
                failures.append(ImageStorageInterruptedError(error.message))
        if failures:
            raise failures[0]

    def sweep(self, tombstone: Tombstone, queue: GenerationQueue, now: float, deadline: Deadline) -> None:
        """Deletes what remains of a deleted generation, and again when no process can store anything any more.

        Raises ImageStorageError, RecordsUnavailableError.
        """
        self.delete(tombstone.id, tombstone.image_ids, tombstone.input_ids, deadline)
        if now - tombstone.buried_at < LONGEST_WRITER_SECONDS:
            queue.send(tombstone.id, tombstone.caller, delay=LONGEST_WRITER_SECONDS)
