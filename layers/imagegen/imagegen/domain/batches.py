"""Defines a batch: a file of requests in the inbox, its record, and the outcomes of its lines."""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from imagegen.domain.images import ImageRequest

INBOX, OUTBOX = "inbox/", "outbox/"
LINES_SUFFIX = ".jsonl"


class BatchStatus(StrEnum):
    """OpenAI's names, in the order in which a batch goes through them."""

    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


BATCH_ENDED = frozenset({BatchStatus.COMPLETED, BatchStatus.CANCELLED})


class InboxFile(msgspec.Struct, frozen=True):
    """One version of an object below `inbox/`; `size` is in bytes."""

    key: str
    version: str
    size: int


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


@dataclass(frozen=True, slots=True)
class AskedLine:
    """A line of a file. `request` raises an InvalidRequestError if the line's request is not valid."""

    custom_id: str
    request: Callable[[], ImageRequest] = field(repr=False)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are in Unix seconds.

    `total` is the number of lines, once all are read. `counts` is set once it is final. `owner` is the token of the
    process that works on the batch, valid until `lease_until`. `published` is whether its end was published.
    """

    id: str
    caller: str
    file: InboxFile
    created_at: float
    status: BatchStatus = BatchStatus.IN_PROGRESS
    checkpoint: Checkpoint = Checkpoint()
    total: int | None = None
    counts: Counts | None = None
    owner: str | None = None
    lease_until: float = 0.0
    cancelling_at: float | None = None
    finalizing_at: float | None = None
    ended_at: float | None = None
    published: bool = False

    @property
    def ended(self) -> bool:
        return self.status in BATCH_ENDED

    @property
    def output_key(self) -> str:
        return f"{self._outbox_name}.output.jsonl"

    @property
    def errors_key(self) -> str:
        return f"{self._outbox_name}.errors.jsonl"

    @property
    def _outbox_name(self) -> str:
        return OUTBOX + self.file.key.removeprefix(INBOX).removesuffix(LINES_SUFFIX)


def batch_id_of(bucket: str, key: str, version: str) -> str:
    """Returns an id that is equal only for the same version of the same object."""
    return f"batch_{_digest(bucket, key, version)}"


def is_batch_id(text: str) -> bool:
    return re.fullmatch(r"batch_[A-Za-z0-9_-]{22}", text) is not None


def line_generation_id(batch_id: str, line: int) -> str:
    """Returns the id of the generation that a line begins. It is the same each time the line is read."""
    return f"gen_{_digest(batch_id, str(line))}"


def line_id(batch_id: str, line: int) -> str:
    """Returns the id of a line's request, in OpenAI's format."""
    return f"batch_req_{_digest(batch_id, str(line))}"


def _digest(*parts: str) -> str:
    return urlsafe_b64encode(hashlib.sha256("\0".join(parts).encode()).digest()[:16]).rstrip(b"=").decode()
