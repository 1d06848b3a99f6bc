"""What the use cases need from the outside.

Each has a real twin in `providers`, `outbound` or `aws`, and a fake in the tests that passes the same contract.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from imagegen.batches import Batch, Checkpoint, Counts, EndedLine, InboxFile
from imagegen.deadline import Deadline
from imagegen.errors import ImagegenError
from imagegen.generations import Call, Failure, Generation, Rejection, Status, StoredImage, Tombstone
from imagegen.images import ImageBody, ImageRequest, SignedUrl, UpstreamAnswer


class ImageProvider(Protocol):
    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        """Asks the upstream for `n` images in one call and answers with exactly `n`.

        Raises a NothingSpentError where no image was bought, else a MoneySpentError. Never asks again once the
        upstream may have been paid.
        """
        ...


class ImageSource(Protocol):
    def open(self, source: str | bytes, deadline: Deadline) -> AbstractContextManager[ImageBody]:
        """Opens an image, given by URL or by its bytes, and tells its type by its first bytes.

        Raises ImageUrlRefusedError, ImageDownloadError, NotAnImageError, ImageTruncatedError, ImageTooLargeError; the
        blocks of the body may still raise these.
        """
        ...


class ImageStore(Protocol):
    def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> bool:
        """Stores the image under its id; False where one is there already, which stays.

        Whatever the body's blocks raise leaves nothing stored. Raises ImageStorageInterruptedError where another try
        may help, else ImageStorageError.
        """
        ...

    def signed_url(self, image_id: str) -> SignedUrl:
        """A fresh URL to fetch the image from, made without any call."""
        ...

    def find(self, image_id: str, deadline: Deadline) -> StoredImage | None:
        """What is stored under the id, if anything is. Raises ImageStorageError."""
        ...

    def read(self, image_id: str, deadline: Deadline) -> AbstractContextManager[Iterator[bytes]]:
        """The blocks of a stored image. Raises ImageStorageError, also while they are read."""
        ...

    def delete(self, image_id: str, deadline: Deadline) -> None:
        """Deletes the image, and is content where there is none. Raises ImageStorageError."""
        ...

    def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        """Stores an answer too large to be given directly, `length` bytes of JSON. Raises ImageStorageError."""
        ...

    def signed_answer_url(self, generation_id: str) -> SignedUrl:
        """A fresh URL to fetch the stored answer from, made without any call."""
        ...

    def delete_answer(self, generation_id: str, deadline: Deadline) -> None:
        """Deletes the stored answer, and is content where there is none. Raises ImageStorageError."""
        ...


class KeyHolder(Protocol):
    """The generation that an Idempotency-Key belongs to, and what its request was."""

    @property
    def generation_id(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def created_at(self) -> float: ...


class GenerationStore(Protocol):
    """The records. Every change is conditional; one that the record's state does not allow raises LostClaimError.

    Where the store cannot be asked or does not answer, every method raises RecordsUnavailableError.
    """

    def create(self, generation: Generation, fingerprint: str, *, replacing: str | None = None) -> None:
        """Writes the record together with its markers.

        Raises MarkerTakenError where its Idempotency-Key is taken by another generation than `replacing`, or its id is.
        """
        ...

    def get(self, generation_id: str) -> Generation | None:
        """The record as it is now, None where there is none or it was deleted."""
        ...

    def key_holder(self, caller: str, idempotency_key: str) -> KeyHolder | None: ...

    def attach_retry(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
        """The id of the generation that a client's retry comes back to, None where it is to begin anew.

        It is the newest of the same caller and body, begun after `since`, that was seen by fewer than `retry`
        retries; from now on it counts as seen by `retry`. Where that one was released, the retry begins anew.
        """
        ...

    def release(self, generation: Generation, fingerprint: str) -> None:
        """Lets go of the generation's markers, so that a retry begins anew."""
        ...

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        """The caller's own, newest first, those behind the id `after`."""
        ...

    def claim(self, generation_id: str, owner: str, *, now: float, lease_until: float) -> Generation | None:
        """Takes the generation over where it waits or its lease is gone, and gives it; None where it is not to be had.

        An owner's second claim succeeds like its first, since a client library may repeat a write.
        """
        ...

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None: ...

    def save_call(self, generation_id: str, owner: str, index: int, call: Call) -> None: ...

    def save_image(self, generation_id: str, owner: str, image_id: str, image: StoredImage) -> None: ...

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        """Ends it, and gives it as it is then."""
        ...

    def mark_announced(self, generation: Generation) -> None:
        """Notes that the generation's end was told, and is content where there is none."""
        ...

    def fail_abandoned(self, generation_id: str, failure: Failure, *, now: float) -> bool:
        """Fails a generation that has not ended and whose lease is gone; False where it is not so."""
        ...

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        """Cancels what has not ended, and gives it as it is then; None where it had ended."""
        ...

    def requeue(self, generation_id: str) -> Generation | None:
        """Lets a failed generation wait again, its unanswered calls as if never sent; None where it has not failed."""
        ...

    def void(self, generation_id: str, *, now: float) -> bool:
        """Makes sure that a record which may have been written never will be; False where it was."""
        ...

    def release_reservation(self, generation_id: str) -> bool:
        """Notes that the images reserved for the generation are free again; True the first time only."""
        ...

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        """Puts a tombstone in the record's place, which nobody can work on; it goes by itself."""
        ...

    def tombstone(self, generation_id: str) -> Tombstone | None:
        """The tombstone of a generation whose images may still be there, None for any other."""
        ...

    def all_deleted(self, tombstone: Tombstone) -> None:
        """Notes that nothing is left of the generation's images."""
        ...


class AllowanceCounters(Protocol):
    """How many images were taken on a day, by each who takes. Raises RecordsUnavailableError."""

    def take(self, who: str, day: str, images: int, limit: int) -> tuple[bool, int]:
        """Counts so many more where no more than `limit` come together; whether it did, and how many are taken now."""
        ...

    def give_back(self, who: str, day: str, images: int) -> None:
        """Counts so many less. It is never repeated, so it may have happened though it raises."""
        ...


class GenerationQueue(Protocol):
    def send(self, generation_id: str, *, delay: float = 0) -> None:
        """Has a worker look at the generation after `delay` seconds. Raises RecordsUnavailableError."""
        ...

    def hold(self, receipt: str, seconds: float) -> None:
        """Keeps a received message from being received again for that long."""
        ...


class BatchStore(Protocol):
    """The records of batches. A change that the record's state does not allow raises LostClaimError.

    Where the store cannot be asked or does not answer, every method raises RecordsUnavailableError.
    """

    def create(self, batch: Batch) -> Batch:
        """Writes the record unless there is one of that id already; gives the one that is there."""
        ...

    def get(self, batch_id: str) -> Batch | None: ...

    def newest(self, caller: str, limit: int, *, after: str | None = None) -> Sequence[Batch]:
        """The caller's own, newest first, those behind the id `after`."""
        ...

    def claim(self, batch_id: str, owner: str, *, now: float, lease_until: float) -> Batch | None:
        """Takes a batch that has not ended and nobody is at work on, and gives it; None where it is not to be had."""
        ...

    def renew(self, batch_id: str, owner: str, lease_until: float) -> None: ...

    def let_go(self, batch_id: str, owner: str) -> None:
        """Ends a claim before its lease does, and is content where it is no more."""
        ...

    def save_checkpoint(self, batch_id: str, owner: str, checkpoint: Checkpoint) -> Batch: ...

    def save_total(self, batch_id: str, owner: str, total: int) -> Batch:
        """Notes how many lines there are, unless that is known already."""
        ...

    def begin_cancelling(self, batch_id: str, *, now: float) -> Batch | None:
        """Asks whoever works on it to stop, and gives it; None where all of its lines have ended."""
        ...

    def begin_finalizing(self, batch_id: str, owner: str, *, now: float) -> Batch: ...

    def end(self, batch_id: str, owner: str, counts: Counts, *, now: float) -> Batch:
        """Ends it as completed, or as cancelled where that was asked for, and gives it as it is then."""
        ...

    def mark_announced(self, batch_id: str) -> None: ...


class BatchLines(Protocol):
    """The lines of batches, of which each either is pending or has ended. Raises RecordsUnavailableError."""

    def begin(self, batch_id: str, line: int, custom_id: str) -> None:
        """Notes that a line is pending."""
        ...

    def end(self, batch_id: str, line: int, ended: EndedLine) -> None:
        """Notes what became of a line, which is pending no longer."""
        ...

    def forget_pending(self, batch_id: str, line: int) -> None:
        """A line that has ended is pending no longer."""
        ...

    def pending(self, batch_id: str) -> Iterator[tuple[int, str]]:
        """The lines that are pending now, each with its custom_id."""
        ...

    def any_pending(self, batch_id: str) -> bool: ...

    def ended_among(self, batch_id: str, first: int, last: int) -> frozenset[int]:
        """Which lines from `first` to `last` have ended."""
        ...

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        """All lines that have ended, in the order of the file."""
        ...

    def counts(self, batch_id: str) -> Counts:
        """How many lines have ended so far."""
        ...


class BatchQueue(Protocol):
    def send(self, batch_id: str, *, delay: float = 0) -> None:
        """Has the intake look at the batch after so many seconds. Raises RecordsUnavailableError."""
        ...

    def hold(self, receipt: str, seconds: float) -> None:
        """Keeps a received message from being received again for that long."""
        ...


class Inbox(Protocol):
    def read(self, file: InboxFile, offset: int, length: int, deadline: Deadline) -> bytes:
        """So many bytes of a file, all of them. Raises ImageStorageError."""
        ...


class Outbox(Protocol):
    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        """Stores a file of `length` bytes. Raises ImageStorageError."""
        ...


class BatchBus(Protocol):
    def batch_ended(self, batch: Batch) -> None:
        """Tells how a batch ended; it may be told more than once. Raises RecordsUnavailableError."""
        ...


class EventBus(Protocol):
    """Tells the team's other systems. Raises RecordsUnavailableError."""

    def generation_ended(self, generation: Generation) -> None:
        """Tells how a generation ended; it may be told more than once."""
        ...

    def request_rejected(self, rejection: Rejection) -> None:
        """Tells that a request which came as an event began no generation."""
        ...


class Journal(Protocol):
    """Tells the operators what happens to generations, in log lines and metrics. It never raises."""

    def begun(self, generation: Generation, *, quota_used: float) -> None:
        """`quota_used` is which part of the whole stack's images of the day is reserved now, 1.0 being all."""
        ...

    def attached(self, generation: Generation) -> None:
        """A request came back to the generation that it repeats."""
        ...

    def claimed(self, generation: Generation, *, age: float) -> None:
        """A worker has it from a message; `age` is in seconds."""
        ...

    def asked(self, generation: Generation, n: int) -> None:
        """The upstream is about to be asked for `n` images."""
        ...

    def answered(self, generation: Generation, seconds: float, error: ImagegenError | None) -> None:
        """The upstream has answered, after so long, or has failed to."""
        ...

    def stored(self, generation: Generation, image: StoredImage) -> None: ...

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        """A fault of ours stopped what was at work; a message brings another. `about` names what it was about."""
        ...


class _SilentJournal:
    def begun(self, generation: Generation, *, quota_used: float) -> None: ...
    def attached(self, generation: Generation) -> None: ...
    def claimed(self, generation: Generation, *, age: float) -> None: ...
    def asked(self, generation: Generation, n: int) -> None: ...
    def answered(self, generation: Generation, seconds: float, error: ImagegenError | None) -> None: ...
    def stored(self, generation: Generation, image: StoredImage) -> None: ...
    def interrupted(self, trace: Sequence[str], **about: str) -> None: ...


SILENT: Journal = _SilentJournal()


class DeadLetters(Protocol):
    def put(self, body: str, reason: str) -> None:
        """Lays a message aside for a person to look at. Raises RecordsUnavailableError."""
        ...


class Parameters(Protocol):
    def get(self, name: str, *, fresh: bool = False) -> str | None:
        """The value of a parameter, decrypted, or None where there is none. `fresh` passes by the cache."""
        ...


class TokenVerifier(Protocol):
    """Knows whom the tokens of one issuer speak of."""

    @property
    def issuer(self) -> str: ...

    def subject(self, token: str) -> str | None:
        """Who a good token speaks of, by the issuer's own name; None for any other token.

        Raises IssuerUnavailableError where nobody can tell whether it is good.
        """
        ...
