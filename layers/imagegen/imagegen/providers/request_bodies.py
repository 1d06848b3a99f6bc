"""Makes the bodies of upstream calls with input images, which are read while they are sent."""

import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from imagegen.domain.base64_blocks import base64_blocks, base64_length
from imagegen.domain.deadline import Deadline
from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.inputs import InputContent, MaskKind, UpstreamInput

_EXTENSIONS: Mapping[str, str] = {PNG: "png", JPEG: "jpg", WEBP: "webp"}
_NAME_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # HTML Standard, "Multipart form data"


class UpstreamBody(msgspec.Struct, frozen=True):
    """The body of a call: `length` bytes, in blocks. It can be sent once."""

    content_type: str
    length: int
    blocks: Generator[bytes, None, None]


class Base64Image:
    """An image as a JSON string: its base64 after the prefix.

    Not a dataclass, because msgspec would encode its fields.
    """

    def __init__(self, content: InputContent, prefix: str = "") -> None:
        self.content = content
        self.prefix = prefix


def opened(
    inputs: Iterable[UpstreamInput],
    closing: ExitStack,
    deadline: Deadline,
    media_types: Sequence[str],
    *,
    mask: MaskKind | None = None,
) -> list[InputContent]:
    """Returns the contents of the inputs in one of the media types, until `closing` ends.

    `mask` is the kind that the upstream takes, if the inputs are masks. Raises InvalidImageError,
    InputUnavailableError.
    """
    return [closing.enter_context(each.open(deadline, media_types, mask)) for each in inputs]


def data_url(content: InputContent) -> Base64Image:
    return Base64Image(content, f"data:{content.media_type};base64,")


def json_body(value: Any) -> UpstreamBody:
    """Returns a JSON value, in which each Base64Image is a string."""
    mark = secrets.token_hex(16)  # random, so no text of the caller contains it
    images: list[Base64Image] = []

    def encode(image: Any) -> str:
        if not isinstance(image, Base64Image):
            raise TypeError(f"not JSON: {type(image)}")
        images.append(image)
        return image.prefix + mark

    frame = msgspec.json.encode(value, enc_hook=encode).split(mark.encode())
    length = sum(map(len, frame)) + sum(base64_length(image.content.length) for image in images)

    def blocks() -> Generator[bytes, None, None]:
        yield frame[0]
        for image, text in zip(images, frame[1:], strict=True):
            yield from base64_blocks(image.content.blocks())
            yield text

    return UpstreamBody("application/json", length, blocks())


def form_body(fields: Sequence[tuple[str, str | InputContent]]) -> UpstreamBody:
    """Returns a form (RFC 7578). Images are files with a name that says their type."""
    boundary = secrets.token_hex(16)
    parts: list[bytes | InputContent] = []
    for name, value in fields:
        disposition = f'Content-Disposition: form-data; name="{name.translate(_NAME_ESCAPES)}"'
        if isinstance(value, InputContent):
            file = f'; filename="image.{_EXTENSIONS[value.media_type]}"\r\nContent-Type: {value.media_type}'
            parts += [f"--{boundary}\r\n{disposition}{file}\r\n\r\n".encode(), value, b"\r\n"]
        else:
            parts.append(f"--{boundary}\r\n{disposition}\r\n\r\n{value}\r\n".encode())
    parts.append(f"--{boundary}--\r\n".encode())

    def blocks() -> Generator[bytes, None, None]:
        for part in parts:
            if isinstance(part, InputContent):
                yield from part.blocks()
            else:
                yield part

    length = sum(part.length if isinstance(part, InputContent) else len(part) for part in parts)
    return UpstreamBody(f"multipart/form-data; boundary={boundary}", length, blocks())
