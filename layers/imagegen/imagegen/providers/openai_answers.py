"""Reads a success of OpenAI's images API, as OpenAI and its resellers send it."""

from base64 import b64decode
from bisect import bisect_right
from typing import Any, TypeVar

import msgspec

from imagegen.errors import (
    ImageUrlRefusedError,
    MoneySpentError,
    UpstreamAnswerInvalidError,
    UpstreamTooFewImagesError,
)
from imagegen.images import UpstreamAnswer, UpstreamImage

T = TypeVar("T")

_DETAILS = ("background", "output_format", "quality", "size")
# What is read goes on a record of DynamoDB, which holds 400 KB, in bytes of JSON: so the limits count these. Ten images
# and the longest prompt fit. An answer that did not fit would be paid for twice. The longest signed URLs of image hosts
# have some 2,000 characters.
_MOST_URL = 8_192
_MOST_REVISED_PROMPT = 4_000
_MOST_REVISED_PROMPT_CHARACTERS = 2_000
_MOST_DETAIL = 100
_MOST_USAGE = 4_096
_URL_SAFE = str.maketrans("-_", "+/")
_NULL = msgspec.Raw(b"null")


# Each value is decoded by itself, from where it lies in the body: so one that is invalid spoils no other, and base64 is
# decoded once, to the image's bytes.
class _Image(msgspec.Struct):
    url: msgspec.Raw = _NULL
    b64_json: msgspec.Raw = _NULL
    revised_prompt: msgspec.Raw = _NULL


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw]
    background: msgspec.Raw = _NULL
    output_format: msgspec.Raw = _NULL
    quality: msgspec.Raw = _NULL
    size: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


def read_answer(body: bytes | bytearray, n: int) -> UpstreamAnswer:
    """Exactly `n` images, in the order of the answer. Those that are not usable or missing carry their failure.

    If the answer holds more than `n`, usable ones come first. If none is usable, the first failure is raised:
    UpstreamAnswerInvalidError, ImageUrlRefusedError or UpstreamTooFewImagesError.
    """
    answer = _decoded(body, _Answer)
    if answer is None:
        raise _invalid()
    images: list[UpstreamImage] = []
    usable = 0
    for entry in answer.data:
        images.append(_image(entry))
        usable += images[-1].failure is None
        if usable == n:
            break
    if len(images) > n:
        images = sorted(images, key=lambda image: image.failure is not None)[:n]
    elif len(images) < n:
        few = UpstreamTooFewImagesError(f"The image model answered with {len(images)} of {n} images.")
        images += [UpstreamImage(failure=few)] * (n - len(images))
    if not usable and images[0].failure:
        raise images[0].failure
    details = {name: value for name in _DETAILS if (value := _detail(getattr(answer, name)))}
    return UpstreamAnswer(tuple(images), details, _usage(answer.usage))


def _decoded(raw: bytes | bytearray | msgspec.Raw, type_: type[T]) -> T | None:
    """None if the JSON is invalid or holds another type."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except Exception:  # noqa: BLE001  # the images are paid for, so no part of the answer may end the reading
        return None


def _image(entry: msgspec.Raw) -> UpstreamImage:
    """new-api sends all keys, empty strings among them."""
    image = _decoded(entry, _Image) or _Image()
    try:
        source = _content(image.b64_json) or _url(_decoded(image.url, str) or "")
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)
    return UpstreamImage(source, _revised(_decoded(image.revised_prompt, str) or ""))


def _content(base64: msgspec.Raw) -> bytes | None:
    """The bytes of an image; None if there are none or they cannot be decoded."""
    return _decoded(base64, bytes) or _loose_base64(_decoded(base64, str) or "")


def _url(url: str) -> str | bytes:
    """A URL to fetch, or the bytes of a `data:` URL. Raises ImageUrlRefusedError, UpstreamAnswerInvalidError."""
    if not url:
        raise _invalid()
    if url[:5].lower() == "data:":
        content = _loose_base64(url)
        if not content:
            raise _invalid()
        return content
    if not url.isascii() or not url.isprintable() or " " in url or _size(url) > _MOST_URL:
        raise ImageUrlRefusedError("The image model answered with an image URL that is none; it was not fetched.")
    return url


def _revised(prompt: str) -> str | None:
    """Without control characters, each of which takes six bytes as JSON, and cut to its limits."""
    text = prompt[:_MOST_REVISED_PROMPT_CHARACTERS]
    text = "".join(character if character.isprintable() else " " for character in text)
    ends = range(1, len(text) + 1)
    return text[: bisect_right(ends, _MOST_REVISED_PROMPT, key=lambda end: _size(text[:end]))] or None


def _detail(raw: msgspec.Raw) -> str | None:
    value = _decoded(raw, str)
    return value if value and value.isprintable() and _size(value) <= _MOST_DETAIL else None


def _usage(raw: msgspec.Raw) -> dict[str, Any] | None:
    usage = _decoded(raw, dict[str, Any])
    return usage if usage and _size(usage) <= _MOST_USAGE else None


def _size(value: object) -> int:
    """In bytes of JSON, as a record holds it."""
    return len(msgspec.json.encode(value))


def _loose_base64(text: str) -> bytes | None:
    """Base64 with or without a `data:` prefix in front (as one-api's Replicate path sends). None if it is none."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        return b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
    except ValueError:
        return None


def _invalid() -> UpstreamAnswerInvalidError:
    return UpstreamAnswerInvalidError("The image model's answer is not what an images API answers.")
