"""Begins batches: for a file in the inbox, and for a caller's request over HTTP."""

import hashlib
from collections.abc import Callable
from contextlib import suppress

import msgspec

from imagegen.domain.batches import AskedBatch, Batch, BatchStatus, batch_id_of, new_batch_id
from imagegen.domain.errors import (
    IdempotencyKeyReusedError,
    InvalidRequestError,
    RecordsUnavailableError,
    SubmissionUncertainError,
)
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import BatchQueue, BatchStore, FileStore, IdempotencyKeys
from imagegen.usecases.manage_files import ManageFiles
from imagegen.usecases.submit import KEY_SECONDS, RETRY_SECONDS, send_delayed


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
        batch_id = self._id_of(asked, caller, identity)
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

    def _id_of(self, asked: AskedBatch, caller: str, identity: RetryIdentity) -> str:
        """Looks for the batch that the request repeats, or reserves a new id for it."""
        new_id, now, body = new_batch_id(), self.now(), _fingerprint(asked)
        if identity.idempotency_key:
            holder = self.keys.hold(
                caller, identity.idempotency_key, new_id, body, now=now, expired_before=now - KEY_SECONDS
            )
            if holder.fingerprint != body:
                raise IdempotencyKeyReusedError(
                    "This Idempotency-Key was used with another request. Use a new key for a new request.",
                    param="Idempotency-Key",
                )
            return holder.generation_id
        if identity.retry is not None:
            if identity.retry:
                found = self.keys.attach(caller, body, identity.retry, since=now - RETRY_SECONDS)
                if found:
                    return found
            self.keys.mark(caller, body, new_id, identity.retry, now=now)
        return new_id


def _fingerprint(asked: AskedBatch) -> str:
    """Returns what two requests have in common that repeat each other. It is not that of any request for images."""
    return hashlib.sha256(b"batch:" + msgspec.json.encode(asked, order="deterministic")).hexdigest()
