"""Begins batches: for a file in the inbox, and for a caller's request over HTTP."""

import hashlib
from collections.abc import Callable
from contextlib import suppress

import msgspec

from imagegen.domain.batches import AskedBatch, Batch, BatchStatus, batch_id_of, new_batch_id
from imagegen.domain.errors import (
    InvalidRequestError,
    RecordsUnavailableError,
    SubmissionUncertainError,
)
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import BatchQueue, BatchStore, FileStore, IdempotencyKeys
from imagegen.usecases.manage_files import ManageFiles
from imagegen.usecases.submit import reserved_id, send_delayed


def begin_inbox_batch(
    bucket: str, file: StoredObject, caller: str, batches: BatchStore, files: FileStore, now: float
) -> Batch:
    """The batch of a file in the inbox: the same one for every message about that file.

    Raises RecordsUnavailableError.
    """
    batch = Batch(id=batch_id_of(bucket, file.key, file.version), caller=caller, file=file, created_at=now)
    files.create(
        File(
            id=batch.input_file_id,
            caller=caller,
            purpose=Purpose.BATCH,
            filename=file.key.rpartition("/")[2],
            object=file,
            created_at=now,
        )
    )
    return batches.create(batch)


class BeginBatch(msgspec.Struct, frozen=True, eq=False):
    """Begins a batch over HTTP. `window` and `lease` are in seconds, `now` gives Unix seconds."""

    batches: BatchStore
    files: ManageFiles
    queue: BatchQueue
    keys: IdempotencyKeys
    window: float
    lease: float
    now: Callable[[], float]

    def begin(self, asked: AskedBatch, caller: str, identity: RetryIdentity) -> Batch:
        """The batch of a request: the one that it repeats, or a new one with a message behind it.

        Raises UnknownFileError, FileUnavailableError, InvalidRequestError, IdempotencyKeyReusedError,
        RecordsUnavailableError, and SubmissionUncertainError if the batch may have begun.
        """
        batch_id = reserved_id(self.keys, caller, identity, _fingerprint(asked), new_batch_id(), self.now())
        if identity != RetryIdentity():
            begun = self.batches.get(batch_id)
            if begun is not None:  # its file may be deleted since
                return begun
        file = self.files.get(asked.input_file_id, caller, param="input_file_id")
        if file.purpose is not Purpose.BATCH:
            raise InvalidRequestError(
                f"Invalid 'input_file_id': expected a file with the purpose '{Purpose.BATCH}'.",
                param="input_file_id",
                code="invalid_value",
            )
        now = self.now()
        batch = Batch(
            id=batch_id,
            caller=caller,
            file=file.object,
            created_at=now,
            endpoint=asked.endpoint,
            given_file_id=file.id,
            metadata=asked.metadata,
            output_seconds=asked.output_seconds,
            expires_at=now + self.window,
            status=BatchStatus.VALIDATING,
        )
        # If this process dies before its last message, the delayed one finds the record.
        send_delayed(lambda delay: self.queue.send(batch.id, caller, delay=delay), self.now, self.lease)
        created = self._create(batch)
        with suppress(RecordsUnavailableError):  # the delayed message brings the intake, but later
            self.queue.send(batch.id, caller)
        return created

    def _create(self, batch: Batch) -> Batch:
        try:
            return self.batches.create(batch)
        except RecordsUnavailableError as error:
            raise SubmissionUncertainError(
                "The batch may have been created. List your batches before you create it again. A retry with the same "
                "Idempotency-Key, or by an OpenAI client, attaches to it."
            ) from error


def _fingerprint(asked: AskedBatch) -> str:
    """Returns what two requests have in common that repeat each other. It is not that of any request for images."""
    return hashlib.sha256(b"batch:" + msgspec.json.encode(asked, order="deterministic")).hexdigest()
