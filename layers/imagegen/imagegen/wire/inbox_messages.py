"""Reads what the intake is told of its inbox: that a file was dropped, or that a batch is to be carried on."""

from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote_plus

import msgspec

from imagegen.domain.batches import INBOX, LINES_SUFFIX, InboxFile, is_batch_id
from imagegen.domain.credentials import is_client_name
from imagegen.domain.errors import InvalidRequestError

DEFAULT_CLIENT = "inbox"
REQUEST_SUFFIX = ".json"
MOST_KEY_BYTES = 1024 - len("outbox/.output.jsonl") + len("inbox/.jsonl")  # S3 takes 1,024


@dataclass(frozen=True, slots=True)
class DroppedFile:
    """A file as S3 tells of it."""

    event_id: str
    bucket: str
    file: InboxFile

    @property
    def client(self) -> str | None:
        """None if the folder that it lies in is no client's."""
        folder, slash, _ = self.file.key.removeprefix(INBOX).partition("/")
        if not slash:
            return DEFAULT_CLIENT
        return folder if is_client_name(folder) else None

    def decoded(self) -> Self | None:
        """The same with its key read as S3's other notifications have it, URL-encoded; None if that changes nothing."""
        key = unquote_plus(self.file.key)
        return None if key == self.file.key else replace(self, file=msgspec.structs.replace(self.file, key=key))

    @property
    def is_folder(self) -> bool:
        """What S3's console makes to show a folder."""
        return self.file.key.endswith("/")

    @property
    def is_batch(self) -> bool:
        return self.file.key.endswith(LINES_SUFFIX)

    def owner(self) -> str:
        """Whose file it is. Raises InvalidRequestError where it is nobody's or of no kind that we take."""
        if self.client is None:
            raise _invalid("a folder named as a client: 1 to 32 of a-z, 0-9 and -, beginning with a letter or a digit")
        if not self.file.key.endswith((LINES_SUFFIX, REQUEST_SUFFIX)):
            raise _invalid(f"a name that ends in {LINES_SUFFIX} or {REQUEST_SUFFIX}")
        if self.is_batch and len(self.file.key.encode()) > MOST_KEY_BYTES:
            raise _invalid(f"at most {MOST_KEY_BYTES} bytes, since the key of its output is longer")
        return self.client


def read_inbox_message(body: str) -> DroppedFile | str | None:
    """A file, or the id of a batch that is to be carried on; None where a message is neither."""
    try:
        message = msgspec.json.decode(body.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    batch_id = message.get("batch_id")
    if isinstance(batch_id, str) and is_batch_id(batch_id):
        return batch_id
    if (message.get("source"), message.get("detail-type")) != ("aws.s3", "Object Created"):
        return None
    try:
        event = msgspec.convert(message, _S3Event)
    except msgspec.ValidationError:
        return None
    told = event.detail.object
    return DroppedFile(event.id, event.detail.bucket.name, told.file)


class _Object(msgspec.Struct):
    key: str
    size: int
    version_id: str = msgspec.field(name="version-id")

    @property
    def file(self) -> InboxFile:
        return InboxFile(self.key, self.version_id, self.size)


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
