"""Reads the values in answers of upstreams that every protocol has: images, prompts, details and token counts."""

from base64 import b64decode
from bisect import bisect_right
from math import ceil
from typing import Any, TypeVar

import msgspec

from imagegen.domain.errors import (
    ImageUrlRefusedError,
    MoneySpentError,
    UpstreamAnswerInvalidError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.images import UpstreamImage

T = TypeVar("T")

NULL = msgspec.Raw(b"null")
# The most entries of an answer that are tried for its images, at most ten. Each unusable one takes a kilobyte.
MOST_ENTRIES = 100
# The limits are in bytes of JSON, because the values are stored as JSON in an item of at most 400 KB (DynamoDB
# developer guide, "Quotas in Amazon DynamoDB"). Ten images and the longest prompt fit. An answer that did not fit would
# be paid for twice. The longest signed URLs of image hosts have some 2,000 characters.
_MOST_URL = 8_192
_MOST_REVISED_PROMPT = 4_000
_MOST_REVISED_PROMPT_CHARACTERS = 2_000
_MOST_DETAIL = 100
_MOST_TOKENS = 10**9
_URL_SAFE = str.maketrans("-_", "+/")


def value_of(raw: msgspec.Raw, type_: type[T]) -> T | None:
    """Returns `None` if the JSON is invalid or has another type."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except Exception:  # noqa: BLE001  # the images are paid for, so no value may end the reading
        return None


def image_bytes(base64: msgspec.Raw) -> bytes | None:
    """Returns the bytes of an image, `None` if there are none or they cannot be decoded."""
    return value_of(base64, bytes) or loose_base64(value_of(base64, str) or "")


def image_url(url: str) -> str | bytes:
    """Returns a URL, or the bytes of a `data:` URL. Raises ImageUrlRefusedError, UpstreamAnswerInvalidError."""
    if not url:
        raise invalid_answer()
    if url.lstrip()[:5].lower() == "data:":
        content = loose_base64(url)
        if not content:
            raise invalid_answer()
        return content
    if not url.isascii() or not url.isprintable() or " " in url or _size(url) > _MOST_URL:
        raise ImageUrlRefusedError("The image model answered with an image URL that is not valid; it was not fetched.")
    return url


def revised_prompt(prompt: str) -> str | None:
    """Returns the prompt, cut to its limits, without control characters: each takes six bytes as JSON."""
    text = prompt[:_MOST_REVISED_PROMPT_CHARACTERS]
    text = "".join(character if character.isprintable() else " " for character in text)
    ends = range(1, len(text) + 1)
    return text[: bisect_right(ends, _MOST_REVISED_PROMPT, key=lambda end: _size(text[:end]))] or None


def detail_of(raw: msgspec.Raw) -> str | None:
    value = value_of(raw, str)
    return value if value and value.isprintable() and _size(value) <= _MOST_DETAIL else None


def usage_of(raw: msgspec.Raw) -> dict[str, Any] | None:
    """Returns the token counts of OpenAI's images API, read by their names there or in a chat.

    `None` if a required count is missing. new-api sends both names of a count, with zero for the one it does not use.
    """
    counted = _members(raw)
    of_input = _members(counted.get("input_tokens_details", NULL)) or _members(
        counted.get("prompt_tokens_details", NULL)
    )
    of_output = _members(counted.get("output_tokens_details", NULL))
    input_tokens = _tokens(counted, "input_tokens", "prompt_tokens")
    output_tokens = _tokens(counted, "output_tokens", "completion_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    image_tokens = _tokens(of_input, "image_tokens") or 0
    usage: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": _tokens(counted, "total_tokens") or input_tokens + output_tokens,
        "input_tokens_details": {
            "text_tokens": _tokens(of_input, "text_tokens") or max(0, input_tokens - image_tokens),
            "image_tokens": image_tokens,
        },
    }
    made = {name: _tokens(of_output, name) for name in ("text_tokens", "image_tokens")}
    return usage if None in made.values() else usage | {"output_tokens_details": made}


def _members(raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    return value_of(raw, dict[str, msgspec.Raw]) or {}


def _tokens(counted: dict[str, msgspec.Raw], *names: str) -> int | None:
    """Returns a count by any of its names, rounded up. `None` if there is none from 0 to a billion."""
    counts = [value_of(counted.get(name, NULL), float) for name in names]
    return max((ceil(count) for count in counts if count is not None and 0 <= count <= _MOST_TOKENS), default=None)


def _size(value: object) -> int:
    """Returns the size of a value in bytes of JSON, as it is stored."""
    return len(msgspec.json.encode(value))


def loose_base64(text: str) -> bytes | None:
    """Decodes base64 of any dialect, also after a `data:` prefix (one-api with Replicate). `None` if it is invalid."""
    text = "".join(text.split()).translate(_URL_SAFE)
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    text = text.rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def exactly(images: list[UpstreamImage], n: int, lost: MoneySpentError | None) -> tuple[UpstreamImage, ...]:
    """Returns `n` images in the order of the answer. If the answer has more, usable ones are preferred.

    A missing image has the failure `lost`, the reason that the rest of the answer did not come, or
    UpstreamTooFewImagesError. Raises the first failure if no image is usable.
    """
    if len(images) > n:
        images = sorted(images, key=lambda image: image.failure is not None)[:n]
    elif len(images) < n:
        missing = lost or UpstreamTooFewImagesError(f"The image model answered with {len(images)} of {n} images.")
        images = images + [UpstreamImage(failure=missing)] * (n - len(images))
    if images[0].failure and all(image.failure for image in images):
        raise images[0].failure
    return tuple(images)


def invalid_answer() -> UpstreamAnswerInvalidError:
    return UpstreamAnswerInvalidError("The image model's answer is not a valid answer of an images API.")
