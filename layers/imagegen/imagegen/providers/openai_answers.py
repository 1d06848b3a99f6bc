"""Reads a success of OpenAI's images API, as OpenAI and its resellers send it."""

from base64 import b64decode
from typing import Any

import msgspec

from imagegen.errors import ImageUrlRefusedError, UpstreamAnswerInvalidError, UpstreamTooFewImagesError
from imagegen.images import UpstreamAnswer, UpstreamImage

_DETAILS = ("background", "output_format", "quality", "size")
# What an answer tells is kept on a record of DynamoDB, which holds 400 KB: so ten images and the longest prompt fit. An
# answer that did not would be paid for twice. The longest signed URLs of image hosts have some 2,000 characters.
_MOST_URL = 8_192
_MOST_REVISED_PROMPT = 2_000
_MOST_DETAIL = 100
_MOST_USAGE = 4_096
_URL_SAFE = str.maketrans("-_", "+/")


class _Image(msgspec.Struct):
    url: str | None = None
    b64_json: bytes | None = None  # decoded while it is parsed
    revised_prompt: str | None = None


class _LooseImage(msgspec.Struct):
    url: str | None = None
    b64_json: str | None = None
    revised_prompt: Any = None


class _Answer(msgspec.Struct):
    data: list[_Image]
    background: Any = None
    output_format: Any = None
    quality: Any = None
    size: Any = None
    usage: Any = None


class _LooseAnswer(_Answer):
    data: list[_LooseImage]  # type: ignore[assignment]


def read_answer(body: bytes | bytearray, n: int) -> UpstreamAnswer:
    """Exactly `n` images. Raises UpstreamAnswerInvalidError, UpstreamTooFewImagesError, ImageUrlRefusedError."""
    try:
        answer = _decoded(body)
    except (ValueError, RecursionError):
        raise UpstreamAnswerInvalidError("The image model's answer is not what an images API answers.") from None
    if len(answer.images) < n:
        raise UpstreamTooFewImagesError(f"The image model answered with {len(answer.images)} of {n} images.")
    return UpstreamAnswer(answer.images[:n], answer.details, answer.usage)


def _decoded(body: bytes | bytearray) -> UpstreamAnswer:
    answer: _Answer
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        images = [_image(image.url, image.b64_json, image.revised_prompt) for image in answer.data]
    except msgspec.ValidationError:  # base64 behind a data: prefix, or fields of types that do not matter
        loose = msgspec.json.decode(body, type=_LooseAnswer)
        images = [_image(image.url, _loose_base64(image.b64_json), image.revised_prompt) for image in loose.data]
        answer = loose
    told = ((name, getattr(answer, name)) for name in _DETAILS)
    details = {name: value for name, value in told if isinstance(value, str) and 0 < len(value) <= _MOST_DETAIL}
    usage = answer.usage if isinstance(answer.usage, dict) and answer.usage else None
    if usage and len(msgspec.json.encode(usage)) > _MOST_USAGE:
        usage = None
    return UpstreamAnswer(tuple(image for image in images if image is not None), details, usage)


def _image(url: str | None, content: bytes | None, revised_prompt: Any) -> UpstreamImage | None:
    """An image that is really there: new-api sends all keys, empty strings among them."""
    revised = _told(revised_prompt) if isinstance(revised_prompt, str) else None
    if content:
        return UpstreamImage(content, revised)
    if not url:
        return None
    if url[:5].lower() == "data:":
        return UpstreamImage(_loose_base64(url) or b"", revised)
    if len(url) > _MOST_URL or not url.isprintable():
        raise ImageUrlRefusedError("The image model answered with an image URL that is none; it was not fetched.")
    return UpstreamImage(url, revised)


def _told(revised_prompt: str) -> str | None:
    """Without control characters, each of which takes six bytes as JSON."""
    text = revised_prompt[:_MOST_REVISED_PROMPT]
    return "".join(character if character.isprintable() else " " for character in text) or None


def _loose_base64(text: str | None) -> bytes | None:
    """Base64 with or without a `data:` prefix in front (one-api's Replicate path sends one)."""
    if text and text[:5].lower() == "data:":
        text = text.partition(",")[2]
    return b64decode("".join(text.split()).translate(_URL_SAFE), validate=True) if text else None
