"""Multipart forms, as the stand-in upstream reads them."""

import email.policy
from email.message import Message
from email.parser import BytesHeaderParser

from msgspec import Struct

from local.serving import Request

_MOST_HEAD_BYTES = 16 * 1024


class Part(Struct, frozen=True):
    """A field of a form. A text has no `filename`. `media_type` is empty if the field does not declare it."""

    name: str
    filename: str | None
    media_type: str
    content: bytes

    def text(self) -> str | None:
        """The content as text. None if the field is a file, or not UTF-8."""
        try:
            return self.content.decode() if self.filename is None else None
        except UnicodeDecodeError:
            return None


def media_type_of(request: Request) -> str:
    return _media_type(request.header("Content-Type") or "")


def read_form(request: Request) -> list[Part] | None:
    """The fields in their order. None if the body is not a valid form.

    The time is linear in the length of the body. A form begins with its boundary: there is no preamble.
    """
    body, boundary = request.body, _boundary(request)
    delimiter = f"\r\n--{boundary}".encode("latin-1")
    if not boundary or not body.startswith(delimiter[2:]):
        return None
    parts: list[Part] = []
    at = len(delimiter) - 2
    while not body.startswith(b"--", at):
        end = body.find(delimiter, at)
        part = _part(body, at + 2, end) if body.startswith(b"\r\n", at) and end >= 0 else None
        if part is None:
            return None
        parts.append(part)
        at = end + len(delimiter)
    return parts


def _boundary(request: Request) -> str | None:
    head = Message()
    head["Content-Type"] = request.header("Content-Type") or ""
    return head.get_boundary()


def _part(body: bytes, start: int, end: int) -> Part | None:
    blank = body.find(b"\r\n\r\n", start, min(end, start + _MOST_HEAD_BYTES))
    if blank < 0:
        return None
    head = BytesHeaderParser(policy=email.policy.compat32).parsebytes(body[start:blank])
    name = head.get_param("name", header="content-disposition")
    if not isinstance(name, str) or head.get_content_disposition() != "form-data":
        return None
    return Part(name, head.get_filename(), _media_type(str(head["Content-Type"] or "")), body[blank + 4 : end])


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()
