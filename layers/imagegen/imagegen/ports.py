"""What the use cases need from the outside.

Each has a real twin in `providers`, `outbound` or `aws`, and a fake in the tests that passes the same contract.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from imagegen.domain.batches import Batch, Checkpoint, Counts, EndedLine, InboxFile
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError
from imagegen.domain.generations import CallAnswer, Failure, Generation, Rejection, Status, StoredImage, Tombstone
from imagegen.domain.images import ImageBody, ImageRequest, SignedUrl, UpstreamAnswer


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

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        """A fresh URL to fetch the image from, made without any call. It works for this method alone."""
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

    def signed_answer_url(self, generation_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        """A fresh URL to fetch the stored answer from, made without any call. It works for this method alone."""
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


class GenerationStore(Protocol):
    """The records. Every change is conditional; one that the record's state does not allow raises LostClaimError.

    A change may be repeated by a client library that did not hear of its success: it recognises itself and succeeds
    again. If the store cannot be asked or does not answer, every method raises RecordsUnavailableError.
    """

    def hold_key(
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
        """Gives an Idempotency-Key to a generation, and returns the one that has it then.

        That is another if the key was given to it after `expired_before`, and it is not the generation `replacing`.
        """
        ...

    def mark_attempt(self, caller: str, fingerprint: str, generation_id: str, attempt: int, *, now: float) -> None:
        """Notes that a client which counts its attempts begins this generation with this one; the first is 0."""
        ...

    def attach_attempt(self, caller: str, fingerprint: str, attempt: int, *, since: float) -> str | None:
        """The id of the generation that a client's retry comes back to, None if it is to begin anew.

        It is the newest of the same caller and body, begun after `since`, that no attempt of this count has come to.
        There may be no record of it yet.
        """
        ...

    def create(self, generation: Generation) -> None:
        """Writes the record. Raises IdTakenError if its id is taken, or is void."""
        ...

    def get(self, generation_id: str) -> Generation | None:
        """The record as it is now, None if there is none or it was deleted."""
        ...

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        """The caller's own, newest first, those behind the id `after`."""
        ...

    def claim(self, generation_id: str, owner: str, *, now: float, lease_until: float) -> Generation | None:
        """Takes the generation over if it waits or its lease has ended, and gives it; None if it is not to be had."""
        ...

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        """Extends the lease, also of a cancelled generation whose upstream call still runs."""
        ...

    def let_go(self, generation_id: str, owner: str) -> None:
        """Ends the owner's lease. Succeeds if it has none."""
        ...

    def save_sending(self, generation_id: str, owner: str, index: int, sent: int) -> None:
        """Notes that a call is about to be sent, for the `sent`-th time."""
        ...

    def save_refusal(self, generation_id: str, index: int, sending: int) -> None:
        """Notes that the `sending`-th time bought nothing, also after the generation has ended."""
        ...

    def save_answer(self, generation_id: str, index: int, answer: CallAnswer) -> CallAnswer:
        """Notes what a call gave, also after the generation has ended. The first answer stays, and is given."""
        ...

    def save_image(self, generation_id: str, image_id: str, image: StoredImage) -> None:
        """Notes that an image is stored, also after the generation has ended."""
        ...

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        """Ends it, and gives it as it is then."""
        ...

    def mark_announced(self, generation: Generation) -> None:
        """Notes that the generation's end was published. Succeeds if there is no record."""
        ...

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        """Cancels the generation, and gives it as it is then; None if it was completed, has failed or is not there."""
        ...

    def requeue(self, generation: Generation, *, now: float) -> Generation | None:
        """Lets a failed generation wait again, and gives it; None if its published end is not this one any more."""
        ...

    def void(self, generation_id: str, *, now: float) -> Generation | None:
        """Makes sure that there never is a record of this id; gives the one that is there, None if there is none.

        Raises IdTakenError if it was deleted.
        """
        ...

    def note_returned(self, generation: Generation, images: int) -> bool:
        """Notes that so many more images of the quota are given back. False if that was noted since it was read."""
        ...

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        """Puts a tombstone in the place of a record that has ended, which nobody can work on. It stays for 15 days.

        Raises LostClaimError if the record has not ended, or not as `generation` says.
        """
        ...

    def tombstone(self, generation_id: str) -> Tombstone | None:
        """The tombstone of a deleted generation, None for any other."""
        ...


class AllowanceCounters(Protocol):
    """How many images were taken on a day, by each who takes. Raises RecordsUnavailableError.

    `token` names one logical change. A repetition of it, by a client library that did not hear of its success, changes
    nothing, if it comes before many other changes.
    """

    def take(self, who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
        """Counts so many more if no more than `limit` come together; whether it did, and how many are taken now."""
        ...

    def give_back(self, who: str, day: str, images: int, *, token: str) -> None:
        """Counts so many less."""
        ...


class GenerationQueue(Protocol):
    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        """Has a worker look at the caller's generation after `delay` seconds. Raises RecordsUnavailableError.

        Messages of a caller who sends many wait longer than those of others.
        """
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
        """Notes what became of a line, which is pending no longer.

        What became of a line that ended before changes only until the batch is finalizing.
        """
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
    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        """Has the intake look at the caller's batch after so many seconds. Raises RecordsUnavailableError."""
        ...

    def hold(self, receipt: str, seconds: float) -> None:
        """Keeps a received message from being received again for that long."""
        ...


class Inbox(Protocol):
    def has(self, file: InboxFile, deadline: Deadline) -> bool:
        """Whether there is such a version of an object. Raises ImageStorageInterruptedError."""
        ...

    def read(self, file: InboxFile, offset: int, length: int, deadline: Deadline) -> bytes:
        """So many bytes of a file, all of them. Raises ImageStorageError."""
        ...


class Outbox(Protocol):
    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        """Stores a file of `length` bytes. Raises ImageStorageError."""
        ...

    def delete(self, key: str, deadline: Deadline) -> None:
        """Deletes a file, also if there is none. Raises ImageStorageError."""
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
