"""Reads the messages of the intake's queue: new files in the inbox, and batches to continue."""

from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote_plus

import msgspec

from imagegen.domain.batches import INBOX, LINES_SUFFIX, is_batch_id
from imagegen.domain.credentials import is_caller_name
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.files import StoredObject
from imagegen.wire.queue_messages import QueueMessage

DEFAULT_CALLER = "inbox"
REQUEST_SUFFIX = ".json"
# A key has at most 1,024 bytes (S3 user guide, "Naming Amazon S3 objects").
MOST_KEY_BYTES = 1024 - len("outbox/.output.jsonl") + len("inbox/.jsonl")


@dataclass(frozen=True, slots=True)
class DroppedFile:
    """A file in the inbox, from an event of S3."""

    event_id: str
    bucket: str
    file: StoredObject

    @property
    def caller(self) -> str | None:
        """The caller whose folder has the file. `None` if the folder's name is not that of a caller."""
        folder, slash, _ = self.file.key.removeprefix(INBOX).partition("/")
        if not slash:
            return DEFAULT_CALLER
        return folder if is_caller_name(folder) else None

    def decoded(self) -> Self | None:
        """Returns the file with its key URL-decoded, as some S3 notifications encode it. `None` if nothing changes."""
        key = unquote_plus(self.file.key)
        return None if key == self.file.key else replace(self, file=msgspec.structs.replace(self.file, key=key))

    @property
    def is_folder(self) -> bool:
        """`True` if the object is the placeholder of a folder, which the S3 console creates."""
        return self.file.key.endswith("/")

    @property
    def is_batch(self) -> bool:
        return self.file.key.endswith(LINES_SUFFIX)

    def owner(self) -> str:
        """Returns the caller. Raises InvalidRequestError if there is none, or if the file's name is not accepted."""
        if self.caller is None:
            raise _invalid("a folder with a caller's name: 1 to 32 of a-z, 0-9 and -, first a letter or a digit")
        if not self.file.key.endswith((LINES_SUFFIX, REQUEST_SUFFIX)):
            raise _invalid(f"a name that ends in {LINES_SUFFIX} or {REQUEST_SUFFIX}")
        if self.is_batch and len(self.file.key.encode()) > MOST_KEY_BYTES:
            raise _invalid(f"at most {MOST_KEY_BYTES} bytes, because the key of its output is longer")
        return self.caller


def read_inbox_message(body: str) -> DroppedFile | str | None:
    """Returns a file, or the id of a batch to continue. `None` if the message is neither.

    Raises msgspec.ValidationError if a later version of this service sent it.
    """
    try:
        message = msgspec.json.decode(body.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    batch_id = message.get("batch_id")
    if isinstance(batch_id, str) and is_batch_id(batch_id):
        msgspec.convert(message, QueueMessage)
        return batch_id
    if (message.get("source"), message.get("detail-type")) != ("aws.s3", "Object Created"):
        return None
    try:
        event = msgspec.convert(message, _S3Event)
    except msgspec.ValidationError:
        return None
    return DroppedFile(event.id, event.detail.bucket.name, event.detail.object.file)


class _Object(msgspec.Struct):
    key: str
    size: int
    version_id: str = msgspec.field(name="version-id")

    @property
    def file(self) -> StoredObject:
        return StoredObject(self.key, self.version_id, self.size)


class _Bucket(msgspec.Struct):
    name: str


class _Detail(msgspec.Struct):
    bucket: _Bucket
    object: _Object


class _S3Event(msgspec.Struct):
    id: str
    detail: _Detail


def _invalid(expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid 'key': expected {expected}.", param="key", code="invalid_value")
