"""Reads a form: the multipart/form-data (RFC 7578) of a request with images. Refuses malformed and hostile forms."""

import re
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec

from imagegen.domain.errors import InvalidRequestError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from multipart import MultipartSegment  # type: ignore[import-untyped]

_MOST_PARTS = 64  # 16 images, a mask, references and the fields
_MOST_HEADERS = 8  # of a part; RFC 7578, section 4.8, allows three
# Of a part. A file name of 255 characters takes up to 765 bytes in UTF-8, and 2,295 more as `filename*`.
_MOST_HEADER_BYTES = 8 * 1024
_LONGEST_NAME = 128  # bytes; the longest name of a field, `svg[reasoning][effort]`, has 22
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, section 5.1.1
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab, which may stand in a header
_TRANSFER_ENCODINGS = ("7bit", "8bit", "binary")  # those that leave the content as it is (RFC 2045, section 6.2)
_UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")
_TOO_MANY_HEADERS = f"a part has over {_MOST_HEADERS} headers, or over {_MOST_HEADER_BYTES} bytes of headers"


class FormPart(msgspec.Struct, frozen=True):
    """A part of a form. `filename` is `None` for a text, whose content is then meant as UTF-8, but is not checked.

    `media_type` is in lower case and has no parameters. It is "" if the part names none.
    """

    name: str
    content: bytes
    filename: str | None
    media_type: str

    def __repr__(self) -> str:
        """Leaves out what the caller sent, and so keeps it out of logs."""
        return f"FormPart({self.name!r})"


def read_form(body: bytes, content_type: str) -> list[FormPart]:
    """Returns the parts in their order. Names may repeat. What stands before and after the parts is ignored.

    The content of each part is copied once, so a form takes twice its size. Raises InvalidRequestError,
    UnsupportedMediaTypeError.
    """
    from multipart import MultipartError, ParserLimitReached, PushMultipartParser  # noqa: PLC0415  # takes 10 ms

    boundary = _boundary(content_type)
    parser = PushMultipartParser(
        boundary, max_header_size=_MOST_HEADER_BYTES, max_header_count=_MOST_HEADERS, strict=True
    )
    parts: list[FormPart] = []
    try:
        with parser:
            events = parser.parse(body)  # of each part: its headers, its content if it has any, None
            for headers in events:
                if len(parts) == _MOST_PARTS:
                    raise _refused(f"it has over {_MOST_PARTS} parts")
                _check_headers(headers)
                parts.append(_part(headers, b"".join(takewhile(lambda event: event is not None, events))))
    except ParserLimitReached:
        raise _refused(_TOO_MANY_HEADERS) from None
    except MultipartError as error:
        raise _refused(str(error.args[0])) from None
    return parts


def _boundary(content_type: str) -> str:
    from multipart import parse_options_header  # noqa: PLC0415  # as above

    media_type, options = parse_options_header(content_type)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaTypeError("Unsupported content type: the request body must be multipart/form-data.")
    boundary = options.get("boundary")
    if not boundary:
        raise _refused("its content type has no boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise _refused("its boundary is not of 1 to 70 characters that RFC 2046 allows")
    return str(boundary)


def _check_headers(part: "MultipartSegment") -> None:
    headers = dict(part.headerlist)
    if len(headers) < len(part.headerlist):
        raise _refused("a part has a header twice")
    if sum(len(f"{name}: {value}".encode()) for name, value in headers.items()) > _MOST_HEADER_BYTES:
        raise _refused(_TOO_MANY_HEADERS)
    # The two names may have been percent-encoded in their header.
    if any(_CONTROL.search(text) for text in (*headers.values(), part.name, part.filename or "")):
        raise _refused("a header of a part has control characters")
    if not part.name:
        raise _refused("a part has no name")
    if len(part.name.encode()) > _LONGEST_NAME:
        raise _refused(f"the name of a part is over {_LONGEST_NAME} bytes")
    # RFC 7578, section 4.2, forbids `filename*`. Clients that send it send `filename` too.
    if part.filename is None and "filename*" in headers["Content-Disposition"].lower():
        raise _refused("a part has a 'filename*' without a 'filename'")
    # RFC 7578, section 4.7, deprecates the header: a form carries bytes as they are.
    if headers.get("Content-Transfer-Encoding", "binary").strip().lower() not in _TRANSFER_ENCODINGS:
        raise _refused("a part has a Content-Transfer-Encoding other than 7bit, 8bit or binary")
    # RFC 7578, section 4.3, deprecates multipart/mixed: several files are several parts with one name.
    if (part.content_type or "").startswith("multipart/"):
        raise _refused("a part consists of parts")


def _part(headers: "MultipartSegment", content: bytes) -> FormPart:
    if headers.filename is None:
        content = _utf8(content, (headers.charset or "utf-8").lower())
    return FormPart(headers.name, content, headers.filename, headers.content_type or "")


def _utf8(text: bytes, charset: str) -> bytes:
    """Returns a text in UTF-8. Apache's HttpClient for Java sends texts as ISO-8859-1, and says so."""
    if charset in _UTF8:
        return text
    if charset == "iso-8859-1":
        return text.decode("iso-8859-1").encode()
    raise _refused("the charset of a text is neither UTF-8 nor ISO-8859-1")


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"We could not parse the form of your request: {reason[0].lower()}{reason[1:]}.")
