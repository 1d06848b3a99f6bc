"""Reads requests for files and answers with OpenAI's File objects."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from imagegen.domain.errors import UnsupportedMediaTypeError
from imagegen.domain.files import MOST_FILE_BYTES, File, Purpose, is_file_id
from imagegen.domain.inputs import MOST_BYTES, SignedUpload
from imagegen.wire.field_errors import invalid, missing, unknown
from imagegen.wire.forms import FormPart, read_form
from imagegen.wire.headers import Page, read_page
from imagegen.wire.requests import media_type_of
from imagegen.wire.uploads import read_upload_body

MOST_LISTED_FILES = 10_000  # what OpenAI's clients may ask for; a page has fewer
PURPOSES = (Purpose.BATCH, Purpose.VISION)  # of a caller's file
LONGEST_FILENAME = 255  # characters
SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 2_592_000  # of `expires_after`, as OpenAI
_MOST_BYTES = {Purpose.BATCH: MOST_FILE_BYTES, Purpose.VISION: MOST_BYTES}


class AskedFile(msgspec.Struct, frozen=True):
    """A file that a caller sends, or will upload. `seconds` is how long it is kept at most, `None` if not said."""

    purpose: Purpose
    filename: str
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class FilePage:
    page: Page
    purpose: Purpose | None
    oldest_first: bool


def read_file_form(body: bytes, content_type: str | None) -> tuple[AskedFile, bytes]:
    """Returns the file and its content. Raises InvalidRequestError, UnsupportedMediaTypeError."""
    if media_type_of(content_type) != "multipart/form-data":
        raise UnsupportedMediaTypeError("Unsupported content type: the request body must be multipart/form-data.")
    parts: dict[str, FormPart] = {}
    for part in read_form(body, content_type or ""):
        if part.name in parts:
            raise invalid(part.name, "one value, but it is there more than once")
        parts[part.name] = part
    file = parts.pop("file", None)
    if "filename" in parts:  # the name is that of the file
        raise unknown("filename")
    texts: dict[str, Any] = {name: _text(part) for name, part in parts.items()}
    if file is None:
        raise missing("file")
    if file.filename is None:
        raise invalid("file", "a file, but got text")
    if not file.content:
        raise invalid("file", "a file that is not empty")
    anchor, seconds = (texts.pop(f"expires_after[{name}]", None) for name in ("anchor", "seconds"))
    if seconds is not None or anchor is not None:
        is_whole = isinstance(seconds, str) and re.fullmatch(r"[0-9]{1,9}", seconds)
        texts["expires_after"] = {"anchor": anchor, "seconds": int(seconds) if is_whole else seconds}
    return _asked({"filename": file.filename or "file", **texts}), file.content


def read_file_upload(body: bytes, content_type: str | None) -> tuple[AskedFile, int]:
    """Returns the file and its size in bytes. Raises InvalidRequestError, UnsupportedMediaTypeError.

    Raises RequestTooLargeError if the body is larger than any valid one: it may be the file itself.
    """
    fields = {name: value for name, value in read_upload_body(body, content_type, "file").items() if value is not None}
    size = fields.pop("bytes", None)
    asked = _asked(fields)
    most = _MOST_BYTES[asked.purpose]
    if size is None:
        raise missing("bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
        raise invalid("bytes", f"a whole number from 1 to {most}")
    return asked, size


def _asked(fields: Mapping[str, Any]) -> AskedFile:
    left = dict(fields)
    purpose, filename, expires = (left.pop(name, None) for name in ("purpose", "filename", "expires_after"))
    for name in left:
        raise unknown(name)
    if purpose is None:
        raise missing("purpose")
    if purpose not in PURPOSES:
        raise invalid("purpose", f"one of {', '.join(PURPOSES)}")
    if filename is None:
        raise missing("filename")
    name = filename.replace("\\", "/").rpartition("/")[2] if isinstance(filename, str) else ""
    if not 1 <= len(name) <= LONGEST_FILENAME or not name.isprintable():
        raise invalid("filename", f"a name of 1 to {LONGEST_FILENAME} printable characters")
    return AskedFile(Purpose(purpose), name, None if expires is None else read_expiry("expires_after", expires))


def read_expiry(name: str, expires: Any) -> int:
    """Reads OpenAI's object that says how many seconds a file is kept. Raises InvalidRequestError."""
    seconds = expires.get("seconds") if isinstance(expires, dict) else None
    fits = isinstance(seconds, int) and SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS
    if seconds is None or not fits or expires.get("anchor") != "created_at":
        raise invalid(
            name,
            f"the anchor 'created_at' and a whole number of seconds from {SHORTEST_SECONDS} to {LONGEST_SECONDS}",
        )
    return int(seconds)


def read_file_page(query: Mapping[str, str]) -> FilePage:
    """Reads `limit`, `after`, `purpose` and `order` of a list. Raises InvalidRequestError."""
    purpose, order = query.get("purpose"), query.get("order", "desc")
    if purpose is not None and purpose not in list(Purpose):
        raise invalid("purpose", f"one of {', '.join(Purpose)}")
    if order not in ("asc", "desc"):
        raise invalid("order", "asc or desc")
    page = read_page(
        {name: query[name] for name in ("limit", "after") if name in query}, is_file_id, most=MOST_LISTED_FILES
    )
    return FilePage(page, Purpose(purpose) if purpose else None, order == "asc")


def file_answer(file: File) -> dict[str, Any]:
    """Returns OpenAI's File object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.object.size,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose.value,
        "status": "processed",
        "status_details": None,
    }


def file_list_answer(files: Sequence[File], *, more: bool) -> dict[str, Any]:
    """Returns OpenAI's list object."""
    return {
        "object": "list",
        "data": [file_answer(file) for file in files],
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
        "has_more": more,
    }


def file_upload_answer(file: File, upload: SignedUpload) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file.upload",
        "purpose": file.purpose.value,
        "filename": file.filename,
        "bytes": file.object.size,
        "method": "PUT",
        "url": upload.url,
        "headers": dict(upload.headers),
        "expires_at": upload.expires_at,
    }


def _text(part: FormPart) -> str:
    if part.filename is not None:
        raise invalid(part.name, "text, but got a file")
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise invalid(part.name, "text in UTF-8") from None
