"""Defines files: what a caller sends or gets under an id, the record, and the object in S3 that has the content."""

import hashlib
import re
import secrets
from enum import StrEnum
from urllib.parse import quote

import msgspec

FILES = "files/"  # the prefix of the objects of files that came or go over HTTP
MOST_FILE_BYTES = 200 * 1024 * 1024  # OpenAI's limit for the input file of a batch
_ID = re.compile(r"file-[A-Za-z0-9_-]{22}")


class Purpose(StrEnum):
    """OpenAI's names. A caller's file has one of the first two."""

    BATCH = "batch"
    VISION = "vision"
    BATCH_OUTPUT = "batch_output"


class StoredObject(msgspec.Struct, frozen=True):
    """An object in S3; `size` is in bytes. Objects below `files/` are in the bucket of the images, others in the inbox.

    `version` is "" in the bucket of the images, where no object is overwritten.
    """

    key: str
    version: str
    size: int


class File(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are in Unix seconds. `expires_at`, a whole one, is when the file ends; `None` if it has no end.

    `is_uploaded` is `False` until the content of an upload was seen.
    """

    id: str
    caller: str
    purpose: Purpose
    filename: str
    object: StoredObject
    created_at: float
    expires_at: float | None = None
    is_uploaded: bool = True


def new_file_id() -> str:
    return f"file-{secrets.token_urlsafe(16)}"


def is_file_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def caller_folder(caller: str) -> str:
    """Returns the caller's part of a key. A caller with a token has a name with characters that no key should have."""
    return hashlib.sha256(caller.encode()).hexdigest()[:32]


def object_key(caller: str, file_id: str) -> str:
    """Returns the key of a file's content. Another caller's id leads to no object."""
    return f"{FILES}{caller_folder(caller)}/{file_id}"


def attachment(filename: str) -> str:
    """Returns the value of `Content-Disposition` with which a browser stores a file (RFC 6266)."""
    return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
