"""Defines a batch: a file of requests, its record, and the outcomes of its lines."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from imagegen.domain.errors import BatchCancelledError, BatchExpiredError, NothingSpentError
from imagegen.domain.files import StoredObject, object_key
from imagegen.domain.ids import derived_id
from imagegen.domain.images import AskedImages

INBOX, OUTBOX = "inbox/", "outbox/"
LINES_SUFFIX = ".jsonl"
MOST_LINES = 50_000  # of a batch over HTTP, as OpenAI


class BatchStatus(StrEnum):
    """OpenAI's names, in the order in which a batch goes through them. A file of the inbox is not validated."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


BATCH_ENDED = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class BatchProblem(msgspec.Struct, frozen=True):
    """Why a batch failed before any line began. `line` counts from 1; `None` if the whole file is meant."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Checkpoint(msgspec.Struct, frozen=True):
    """The position up to which a file is read: the next byte, and the number of lines before it.

    `in_long_line` means that the position is within a line that is too long and not counted yet.
    """

    offset: int = 0
    line: int = 0
    in_long_line: bool = False


class Counts(msgspec.Struct, frozen=True):
    completed: int
    failed: int


class EndedLine(msgspec.Struct, frozen=True):
    """A line's outcome. `text` is its line in the output file if `completed`, else in the error file."""

    completed: bool
    text: str


class AskedBatch(msgspec.Struct, frozen=True):
    """A request for a batch. `output_seconds` is how long its files are kept at most, `None` if not said."""

    input_file_id: str
    endpoint: str
    metadata: Mapping[str, str] | None = None
    output_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class AskedLine:
    """A line of a file. `request` raises an InvalidRequestError if the line's request is not valid."""

    custom_id: str
    request: Callable[[], AskedImages] = field(repr=False)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are in Unix seconds.

    A batch over HTTP has an `endpoint`, to which each line goes, and the id of the file that its caller gave. Its
    output is kept for at most `output_seconds`, if its caller said so. After `expires_at` no further line begins;
    `expiring_at` is when a process first saw that. `validated` is the number of lines of a valid file. `problems` are
    why a batch failed. `wake_at` is when a delayed message arrives.

    `total` is the number of lines, once all are read. `counts` is set once it is final. `owner` is the token of the
    process that works on the batch, valid until `lease_until`. `published` is whether its end was published.
    """

    id: str
    caller: str
    file: StoredObject
    created_at: float
    endpoint: str | None = None
    given_file_id: str | None = None
    metadata: Mapping[str, str] | None = None
    output_seconds: int | None = None
    expires_at: float | None = None
    status: BatchStatus = BatchStatus.IN_PROGRESS
    checkpoint: Checkpoint = Checkpoint()
    validated: int | None = None
    problems: tuple[BatchProblem, ...] = ()
    total: int | None = None
    counts: Counts | None = None
    owner: str | None = None
    lease_until: float = 0.0
    wake_at: float = 0.0
    begun_at: float | None = None
    expiring_at: float | None = None
    cancelling_at: float | None = None
    finalizing_at: float | None = None
    ended_at: float | None = None
    published: bool = False

    @property
    def ended(self) -> bool:
        return self.status in BATCH_ENDED

    @property
    def is_of_inbox(self) -> bool:
        return self.endpoint is None

    @property
    def is_valid(self) -> bool:
        """Whether lines may have begun. A file of the inbox is not validated."""
        return self.is_of_inbox or self.validated is not None

    @property
    def stopped_by(self) -> NothingSpentError | None:
        """Why no further line begins, `None` as long as lines begin."""
        if self.cancelling_at is not None:
            return BatchCancelledError("This request was not begun before the batch was cancelled.")
        if self.expiring_at is not None:
            return BatchExpiredError("This request was not begun before the completion window ended.")
        return None

    @property
    def end_status(self) -> BatchStatus:
        """How a batch ends once all of its lines have ended."""
        if self.cancelling_at is not None:
            return BatchStatus.CANCELLED
        return BatchStatus.COMPLETED if self.expiring_at is None else BatchStatus.EXPIRED

    def is_over(self, now: float) -> bool:
        """Whether the completion window has ended."""
        return self.expires_at is not None and now >= self.expires_at

    @property
    def input_file_id(self) -> str:
        return self.given_file_id or derived_id("file-", self.id, "input")

    @property
    def output_file_id(self) -> str:
        return derived_id("file-", self.id, "output")

    @property
    def error_file_id(self) -> str:
        return derived_id("file-", self.id, "errors")

    @property
    def output_key(self) -> str:
        if not self.is_of_inbox:
            return object_key(self.caller, self.output_file_id)
        return f"{self._outbox_name}.output.jsonl"

    @property
    def errors_key(self) -> str:
        if not self.is_of_inbox:
            return object_key(self.caller, self.error_file_id)
        return f"{self._outbox_name}.errors.jsonl"

    @property
    def _outbox_name(self) -> str:
        return OUTBOX + self.file.key.removeprefix(INBOX).removesuffix(LINES_SUFFIX)


def new_batch_id() -> str:
    return f"batch_{secrets.token_urlsafe(16)}"


def batch_id_of(bucket: str, key: str, version: str) -> str:
    """Returns an id that is equal only for the same version of the same object."""
    return derived_id("batch_", bucket, key, version)


def is_batch_id(text: str) -> bool:
    return re.fullmatch(r"batch_[A-Za-z0-9_-]{22}", text) is not None


def line_generation_id(batch_id: str, line: int) -> str:
    """Returns the id of the generation that a line begins. It is the same each time the line is read."""
    return derived_id("gen_", batch_id, str(line))


def line_id(batch_id: str, line: int) -> str:
    """Returns the id of a line's request, in OpenAI's format."""
    return derived_id("batch_req_", batch_id, str(line))
