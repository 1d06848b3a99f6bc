"""The interfaces that use cases need from outside.

Each has an implementation in `providers`, `outbound` or `aws`, and a fake in the tests that passes the same contract.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from imagegen.domain.batches import Batch, BatchProblem, Checkpoint, Counts, EndedLine
from imagegen.domain.deadline import Deadline
from imagegen.domain.failures import Failure
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.domain.generations import (
    CallAnswer,
    Generation,
    Rejection,
    Status,
    StoredImage,
    Tombstone,
    UpstreamAttempt,
)
from imagegen.domain.images import ImageBody, SignedUrl, UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import MaskKind, ReadInput, SignedUpload
from imagegen.domain.money import Spending
from imagegen.domain.places import Place
from imagegen.domain.queues import WorkQueue
from imagegen.domain.slots import Slot, Waiter


class ImageProvider(Protocol):
    """Speaks a protocol with one upstream."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        """Sends one call. Returns exactly `call.n` images, or a task that gives them later.

        Raises a NothingSpentError if no image was bought, else a MoneySpentError. Does not send again once the upstream
        may have been paid.
        """
        ...

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:
        """Looks for the task that an earlier call with this reference began. Buys nothing.

        Returns `None` if there is none, or if the upstream cannot look for it. Raises UpstreamUnavailableError if it
        did not answer: the task may exist.
        """
        ...

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        """Looks at a task. Returns its `call.n` images, or the task if it has not ended or cannot be looked at now.

        Raises a NothingSpentError if the task failed and is certainly not charged, else a MoneySpentError.
        """
        ...


class ImageSource(Protocol):
    def open(self, source: str | bytes, deadline: Deadline) -> AbstractContextManager[ImageBody]:
        """Opens an image, given as a URL or as bytes. Its first bytes determine its type.

        Raises ImageUrlRefusedError, ImageDownloadError, NotAnImageError, ImageTruncatedError, ImageTooLargeError; the
        blocks of the body may raise these too.
        """
        ...


class ImageStore(Protocol):
    def save(self, image_id: str, body: ImageBody, deadline: Deadline, *, generation_id: str) -> bool:
        """Stores an image of a generation. Returns `False`, and changes nothing, if the id is already stored.

        If the body's blocks raise, nothing is stored. Raises ImageStorageInterruptedError if another try may succeed,
        else ImageStorageError.
        """
        ...

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        """Signs a new URL for the image, valid for this method only. Makes no call."""
        ...

    def find(self, image_id: str, deadline: Deadline) -> StoredImage | None:
        """The stored image's type and length, `None` if it is not stored. Raises ImageStorageError."""
        ...

    def read(self, image_id: str, deadline: Deadline, *, offset: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """The blocks of a stored image, from the byte `offset` on. Opening and reading may raise ImageStorageError."""
        ...

    def delete(self, image_id: str, deadline: Deadline) -> None:
        """Deletes the image. Succeeds if it does not exist. Raises ImageStorageError."""
        ...

    def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        """Stores an answer that is too large for Lambda, `length` bytes of JSON. Raises ImageStorageError."""
        ...

    def signed_answer_url(self, generation_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        """Signs a new URL for the stored answer, valid for this method only. Makes no call."""
        ...

    def delete_answer(self, generation_id: str, deadline: Deadline) -> None:
        """Deletes the stored answer. Succeeds if it does not exist. Raises ImageStorageError."""
        ...


class InputStore(Protocol):
    """The input images. Every method raises InputUnavailableError if the store does not answer."""

    def save(self, input_id: str, media_type: str, content: bytes | memoryview, deadline: Deadline) -> None:
        """Stores an image that came inside a request."""
        ...

    def read(
        self, image_id: str, caller: str, deadline: Deadline, *, offset: int = 0
    ) -> AbstractContextManager[ReadInput | None]:
        """Opens an input, an upload of the caller or an image made here, from the byte `offset` on.

        `None` if it does not exist. Its blocks raise InputUnavailableError if reading breaks off.
        """
        ...

    def delete(self, input_id: str, deadline: Deadline) -> None:
        """Deletes an image that came inside a request. Succeeds if it does not exist."""
        ...

    def signed_upload(self, upload_id: str, caller: str, media_type: str, length: int) -> SignedUpload:
        """Signs a PUT of an object with exactly this type and length, which works once. Makes no call."""
        ...


class InputSource(Protocol):
    def fetch(self, url: str, most_bytes: int, deadline: Deadline) -> bytes:
        """The image at an untrusted URL. Raises InvalidImageError, which says why it was not fetched."""
        ...


class ObjectSource(Protocol):
    def fetch(self, s3_uri: str, most_bytes: int, deadline: Deadline) -> bytes:
        """The object of a bucket that the stack may read. Raises InvalidImageError, InputUnavailableError."""
        ...


class ImageConverter(Protocol):
    """Changes the format of images. Raises InvalidImageError if the image cannot be used so."""

    def convert(self, content: bytes, media_types: Sequence[str]) -> tuple[str, bytes]:
        """Returns the image in one of the media types, and that type."""
        ...

    def mask(self, content: bytes, kind: MaskKind) -> bytes:
        """Returns a mask of either kind as a PNG of this kind, which marks the same pixels."""
        ...


class KeyHolder(Protocol):
    """The generation that has an Idempotency-Key, and the fingerprint of its request."""

    @property
    def generation_id(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


class IdempotencyKeys(Protocol):
    """Which generation a repeated request attaches to. Every method raises RecordsUnavailableError.

    The SDK may repeat a write whose answer was lost. The repetition recognises its own write and succeeds.
    """

    def hold(
        self,
        caller: str,
        idempotency_key: str,
        generation_id: str,
        fingerprint: str,
        *,
        now: float,
        expired_before: float,
        replacing: str | None = None,
    ) -> KeyHolder:
        """Gives the key to a generation, and returns the generation that has it afterwards.

        That is another one if it got the key after `expired_before` and is not the generation `replacing`.
        """
        ...

    def find(self, caller: str, idempotency_key: str, *, expired_before: float) -> str | None:
        """Returns the id of the generation that got the key after `expired_before`, `None` if there is none."""
        ...

    def mark(self, caller: str, fingerprint: str, generation_id: str, retry: int, *, now: float) -> None:
        """Notes that a client that counts its retries begins this generation with its retry `retry` (first try: 0)."""
        ...

    def attach(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
        """The id of the generation that a client's retry belongs to, `None` if it must begin a new one.

        It is the newest one of the same caller and body, begun after `since`, to which no retry with this count has
        attached. Its record may not exist yet.
        """
        ...


class GenerationStore(Protocol):
    """The records. Every change is conditional. A change that the record's state forbids raises LostClaimError.

    The SDK may repeat a change whose answer was lost. The repetition recognises its own change and succeeds. Every
    method raises RecordsUnavailableError if the store does not answer.
    """

    def create(self, generation: Generation) -> None:
        """Writes the record. Raises IdTakenError if its id is taken or void."""
        ...

    def get(self, generation_id: str) -> Generation | None:
        """The record as it is now, `None` if it does not exist or was deleted."""
        ...

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        """The caller's generations, newest first, that follow the id `after`."""
        ...

    def claim(
        self, generation_id: str, owner: str, *, now: float, lease_until: float, poll: int = 0
    ) -> Generation | None:
        """Claims the generation if it is queued or its lease has ended. Returns `None` if it cannot be claimed.

        A cancelled generation can be claimed for polling its open tasks. A generation whose round of polling is later
        than `poll` cannot be claimed: another message is responsible for it.
        """
        ...

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        """Extends the lease, also of a cancelled generation whose upstream call still runs."""
        ...

    def release(self, generation_id: str, owner: str) -> None:
        """Ends the owner's lease. Succeeds if the owner has none."""
        ...

    def await_poll(self, generation_id: str, owner: str, poll: int, progress: int | None = None) -> None:
        """Ends the owner's lease until the message of the round of polling `poll` arrives. Notes the progress."""
        ...

    def save_attempt(self, generation_id: str, owner: str, call: int, number: int, attempt: UpstreamAttempt) -> None:
        """Notes an attempt before it is sent. `number` counts the attempts of the call from 1."""
        ...

    def save_task(self, generation_id: str, call: int, number: int, task_id: str) -> None:
        """Notes the task of an attempt, also after the generation has ended."""
        ...

    def save_failure(
        self, generation_id: str, call: int, number: int, failure: Failure, *, of_task: bool = False
    ) -> None:
        """Notes why an attempt failed, or its task, also after the generation has ended. The first failure stays.

        That of an attempt is not noted if it has a task, which another process has found in the meantime.
        """
        ...

    def save_answer(self, generation_id: str, call: int, answer: CallAnswer) -> CallAnswer:
        """Notes a call's answer, also after the generation has ended. Returns the first answer, which stays."""
        ...

    def save_image(self, generation_id: str, image_id: str, image: StoredImage) -> None:
        """Notes that an image is stored, also after the generation has ended."""
        ...

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        """Ends the generation. Returns its new record."""
        ...

    def mark_published(self, generation: Generation) -> None:
        """Notes that the generation's end was published. Succeeds if the record does not exist."""
        ...

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        """Cancels the generation and returns its record; `None` if it was completed, has failed or does not exist."""
        ...

    def cancel_unbegun(self, generation: Generation, failure: Failure, *, now: float) -> Generation | None:
        """Cancels a generation for this reason and returns its record; `None` if it has changed or is worked on.

        Nothing was bought for `generation` when it was read. It has changed if a call was sent since then. It is worked
        on if it has a valid lease.
        """
        ...

    def requeue(self, generation: Generation, *, now: float) -> Generation | None:
        """Queues a failed generation again and returns its record; `None` if its published end has changed."""
        ...

    def void(self, generation_id: str, *, now: float) -> Generation | None:
        """Makes sure that this id never gets a record. Returns the record if it exists already.

        Raises IdTakenError if it was deleted.
        """
        ...

    def note_returned(self, generation: Generation, images: int) -> bool:
        """Notes that `images` more are returned to the quota. Returns `False` if another process noted it first."""
        ...

    def note_spending(self, generation: Generation, spending: Spending) -> bool:
        """Notes the next spending of the generation. Returns `False` if another process changed it first.

        Returns `False` also if the record does not exist.
        """
        ...

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        """Replaces the record of an ended generation by a tombstone, which stays for 15 days.

        Raises LostClaimError if the record has not ended, or has changed since `generation` was read.
        """
        ...

    def tombstone(self, generation_id: str) -> Tombstone | None:
        """The tombstone of a deleted generation, `None` for any other."""
        ...


class QuotaCounters(Protocol):
    """How much each caller, and the stack, took on a day, in any unit. Raises RecordsUnavailableError.

    `token` names one logical change. If the SDK repeats a change whose answer was lost, the repetition changes nothing,
    provided that it does not come after many other changes.
    """

    def take(self, who: str, day: str, amount: int, limit: int, *, token: str) -> tuple[bool, int]:
        """Adds `amount` if the sum stays within `limit`. Returns whether it did, and the sum afterwards."""
        ...

    def give_back(self, who: str, day: str, amount: int, *, token: str) -> None:
        """Subtracts `amount`."""
        ...


LONGEST_MESSAGE_DELAY_SECONDS = 900  # SQS developer guide, "Amazon SQS message quotas"
MESSAGE_VERSION = 1  # every message carries it; a process leaves messages of a later version to a later process


class MessageQueue(Protocol):
    """A queue whose messages a consumer is working on."""

    def extend_visibility(self, receipt: str, seconds: float) -> None:
        """Hides a received message from other consumers for `seconds` from now."""
        ...


class GenerationQueue(MessageQueue, Protocol):
    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        """Sends a message that brings a worker to the generation after `delay` seconds.

        `poll` is the round that the message is for. Each queue `to` has workers of its own. Messages of a caller with
        many messages wait longer than those of others. Raises RecordsUnavailableError.
        """
        ...


class Places(Protocol):
    """The places to wait, of the stack and of each caller. Each is one execution that waits. Never raises.

    If the places cannot be counted, there is always one, unless too many ask at once.
    """

    def take(self, caller: str, generation_id: str | None = None) -> Place | None:
        """A place for PLACE_SECONDS, `None` if the stack or the caller has none free.

        With `generation_id`, the place that `keep` kept for that generation is taken if there is one.
        """
        ...

    def renew(self, place: Place) -> None:
        """Holds the place for another PLACE_SECONDS."""
        ...

    def keep(self, caller: str, generation_id: str) -> None:
        """Keeps a place for the next wait for the generation, for KEPT_SECONDS, even beyond the number of places.

        What exceeds the caller's share takes no place from others.
        """
        ...

    def free(self, place: Place) -> None: ...


class UpstreamSlots(Protocol):
    """The calls that each upstream may work on at once, and the generations that wait for a slot. Never raises.

    `at` names an upstream and a protocol (`domain.slots`). One without a limit always has a slot. A call may need more
    slots than one; if it needs more than there are, it needs all. If the slots cannot be counted, there is always one,
    unless too many ask at once. A caller of `wait` and `free` sends each waiter that they return its message at once: a
    slot is kept for it for KEPT_SECONDS. Such a message can get lost with its process, so a waiter also comes by
    itself, after a pause.
    """

    def take(self, at: str, generation_id: str, call: int, *, until: float, count: int = 1) -> Slot | None:
        """The slots for the generation's call number `call`, until the time `until`; `None` if too few are free.

        If the call has slots, these are renewed, and only the new ones can be freed: a successor takes over the call of
        a process that died. Slots that are kept for the generation are taken first.
        """
        ...

    def wait(self, at: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        """Puts a generation on the waiting list after `take` returned `None`. Returns the waiters that now have a slot.

        That may be the generation itself, because a slot has become free meanwhile, or was kept for it in its round
        before. The earliest `since` comes first, also if the next one needs fewer slots: what is free is saved for it
        for SAVED_SECONDS. `since` is the same in each round of a generation. After `until` it is no longer on the list.
        """
        ...

    def leave(self, at: str, generation_id: str, *, since: float, held: bool = False) -> Sequence[Waiter]:
        """Removes a generation from the waiting list: it has ended, or has a slot of this or another upstream.

        Slots that are kept for it are kept for the first waiters instead, with `held` also those of its calls. Returns
        the waiters that now have a slot. Succeeds if it is not on the list.
        """
        ...

    def free(self, slot: Slot) -> Sequence[Waiter]:
        """Frees the slot, once. Keeps it for the first waiter, and returns the waiters that now have a slot.

        These are no longer on the waiting list. There is more than one if slots of dead processes were free too.
        """
        ...


class BatchStore(Protocol):
    """The records of batches. A change that the record's state forbids raises LostClaimError.

    Every method raises RecordsUnavailableError if the store does not answer.
    """

    def create(self, batch: Batch) -> Batch:
        """Writes the record unless it exists. Returns the record that exists afterwards."""
        ...

    def get(self, batch_id: str) -> Batch | None: ...

    def newest(self, caller: str, limit: int, *, after: str | None = None) -> Sequence[Batch]:
        """The caller's batches, newest first, that follow the id `after`."""
        ...

    def claim(self, batch_id: str, owner: str, *, now: float, lease_until: float) -> Batch | None:
        """Claims a batch that has not ended and has no valid lease. Returns `None` if it cannot be claimed."""
        ...

    def renew(self, batch_id: str, owner: str, lease_until: float) -> None: ...

    def release(self, batch_id: str, owner: str) -> None:
        """Ends the owner's lease. Succeeds if the owner has none."""
        ...

    def begin_lines(self, batch_id: str, owner: str, lines: int, *, now: float) -> Batch:
        """Notes that the file is valid and how many lines it has. Its lines begin, unless the batch was cancelled."""
        ...

    def fail(self, batch_id: str, owner: str, problems: Sequence[BatchProblem], *, now: float) -> Batch:
        """Ends a batch whose file is not valid, unless it was cancelled. Returns its record."""
        ...

    def save_wake(self, batch_id: str, owner: str, wake_at: float) -> None:
        """Notes when a delayed message arrives."""
        ...

    def save_checkpoint(self, batch_id: str, owner: str, checkpoint: Checkpoint) -> Batch: ...

    def save_total(self, batch_id: str, owner: str, total: int) -> Batch:
        """Notes the number of lines, unless it is already known."""
        ...

    def begin_cancelling(self, batch_id: str, *, now: float) -> Batch | None:
        """Starts cancelling the batch and returns its record; `None` if all of its lines have ended."""
        ...

    def begin_expiring(self, batch_id: str, owner: str, *, now: float) -> Batch:
        """Notes that the completion window has ended."""
        ...

    def begin_finalizing(self, batch_id: str, owner: str, *, now: float) -> Batch: ...

    def end(self, batch_id: str, owner: str, counts: Counts, *, now: float) -> Batch:
        """Ends the batch: as cancelled or expired if it was being cancelled or expired, else as completed.

        Returns its new record.
        """
        ...

    def mark_published(self, batch_id: str) -> None: ...


class BatchLines(Protocol):
    """The lines of batches. A line is pending or has ended. Raises RecordsUnavailableError."""

    def begin(self, batch_id: str, line: int, custom_id: str) -> bool:
        """Notes that a line is pending. Returns `False` if it has ended: it is then not pending again."""
        ...

    def end(self, batch_id: str, line: int, ended: EndedLine) -> None:
        """Notes how the generation of a line ended. The line is no longer pending.

        The outcome of an ended line changes only until the batch is finalizing.
        """
        ...

    def refuse(self, batch_id: str, line: int, ended: EndedLine) -> None:
        """Notes how a line ended that has no generation. It is no longer pending. An outcome that it has stays."""
        ...

    def pending(self, batch_id: str) -> Iterator[tuple[int, str]]:
        """The lines that are pending now, each with its custom_id."""
        ...

    def any_pending(self, batch_id: str) -> bool: ...

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        """All lines that have ended, in the order of the file."""
        ...

    def counts(self, batch_id: str) -> Counts:
        """How many lines have ended so far."""
        ...


class BatchQueue(MessageQueue, Protocol):
    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        """Sends a message that brings the intake to the batch after `delay` seconds. Raises RecordsUnavailableError."""
        ...


class FileContents(Protocol):
    """The objects of files, in the inbox and in the bucket of the images. Raises FileUnavailableError."""

    def find(self, key: str, version: str, deadline: Deadline) -> StoredObject | None:
        """The object, `None` if it does not exist."""
        ...

    def read(self, file: StoredObject, offset: int, length: int, deadline: Deadline) -> bytes:
        """Exactly `length` bytes of a file. Raises UnknownFileError if it does not exist."""
        ...

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> StoredObject:
        """Stores a file of `length` bytes."""
        ...

    def delete(self, file: StoredObject, deadline: Deadline) -> None:
        """Deletes a file. Succeeds if it does not exist. Without a version, the inbox hides the file and keeps it."""
        ...

    def signed_url(self, file: StoredObject, filename: str, method: Literal["GET", "HEAD"]) -> SignedUrl:
        """Signs a new URL for the file, which a browser stores under its name. Makes no call."""
        ...

    def signed_upload(self, file: StoredObject) -> SignedUpload:
        """Signs a PUT of an object with exactly this size, which works once. Makes no call."""
        ...


class FileStore(Protocol):
    """The records of files. Every method raises RecordsUnavailableError if the store does not answer."""

    def create(self, file: File) -> File:
        """Writes the record unless it exists. Returns the record that exists afterwards."""
        ...

    def get(self, file_id: str) -> File | None: ...

    def newest(
        self,
        caller: str,
        limit: int,
        *,
        after: str | None = None,
        purpose: Purpose | None = None,
        oldest_first: bool = False,
    ) -> Sequence[File]:
        """The caller's files, newest first or oldest first, that follow the id `after`."""
        ...

    def mark_uploaded(self, file_id: str) -> None:
        """Notes that the content of an upload was seen. Succeeds if the record does not exist."""
        ...

    def delete(self, file_id: str) -> None:
        """Deletes the record. Succeeds if it does not exist."""
        ...


class BatchBus(Protocol):
    def batch_ended(self, batch: Batch) -> None:
        """Publishes a batch's end, at least once. Raises RecordsUnavailableError."""
        ...


class EventBus(Protocol):
    """Publishes events for the team's other systems. Raises RecordsUnavailableError."""

    def generation_ended(self, generation: Generation) -> None:
        """Publishes a generation's end, at least once."""
        ...

    def request_rejected(self, rejection: Rejection) -> None:
        """Publishes that a request that came as an event began no generation."""
        ...


class Journal(Protocol):
    """Reports the progress of generations to operators, as log lines and metrics. Never raises."""

    def begun(self, generation: Generation, *, quota_used: float) -> None:
        """`quota_used` is the share of the stack's images of the day that is reserved now; 1.0 is all."""
        ...

    def attached(self, generation: Generation) -> None:
        """A request was answered with the generation that it repeats."""
        ...

    def claimed(self, generation: Generation, *, age: float) -> None:
        """A worker claimed the generation, `age` seconds after it was created."""
        ...

    def asked(self, generation: Generation, n: int, upstream: str) -> None:
        """A call for `n` images is about to be sent to the upstream."""
        ...

    def answered(self, generation: Generation, seconds: float, failure: Failure | None, upstream: str) -> None:
        """A call was answered by the upstream after `seconds`, or failed."""
        ...

    def stored(self, generation: Generation, image: StoredImage) -> None: ...

    def broke_off(self, trace: Sequence[str], **about: str) -> None:
        """An answer broke off after its status was sent. `about` identifies the generation."""
        ...

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        """An unexpected exception stopped the work; another message continues it. `about` identifies the work."""
        ...


class DeadLetters(Protocol):
    def put(self, body: str, reason: str) -> None:
        """Puts a message aside for a person. Raises RecordsUnavailableError."""
        ...


class Parameters(Protocol):
    def get(self, name: str, *, fresh: bool = False) -> str | None:
        """A parameter's decrypted value, `None` if it does not exist. `fresh` bypasses the cache.

        Raises SecretUnavailableError.
        """
        ...


class TokenVerifier(Protocol):
    """Verifies the tokens of one issuer."""

    @property
    def issuer(self) -> str: ...

    def subject(self, token: str) -> str | None:
        """The subject of a valid token, `None` for any other token.

        Raises IssuerUnavailableError if the token cannot be checked now.
        """
        ...
