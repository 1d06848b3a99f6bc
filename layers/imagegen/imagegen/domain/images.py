"""What is asked for and what comes back, free of any wire format."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from imagegen.domain.errors import MoneySpentError

ResponseFormat = Literal["url", "b64_json"]

_IMAGE_ID = re.compile(r"img_[A-Za-z0-9_-]{22}")


def new_image_id() -> str:
    """An id that nobody can guess: 128 random bits. Whoever holds it may fetch the image."""
    return f"img_{secrets.token_urlsafe(16)}"


def is_image_id(text: str) -> bool:
    return _IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A valid request: the catalog's rules hold for it. None means that the caller did not say."""

    # What the caller wrote is kept out of repr, and so out of every log that prints one.
    prompt: str = field(repr=False)
    model: str
    response_format: ResponseFormat
    n: int = 1
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    user: str | None = field(default=None, repr=False)
    safety_identifier: str | None = field(default=None, repr=False)
    background: str | None = None
    moderation: str | None = None
    output_format: str | None = None
    output_compression: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamImage:
    """One image that was paid for: a URL to fetch it from, or its bytes, or why it is not usable.

    Exactly one of `source` and `failure` is set.
    """

    source: str | bytes | None = field(default=None, repr=False)
    revised_prompt: str | None = field(default=None, repr=False)
    failure: MoneySpentError | None = None


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """What one upstream call gave.

    `details` holds what OpenAI's response says about all images alike (`background`, `output_format`, `quality`,
    `size`); `usage` holds all of OpenAI's token counts.
    """

    images: tuple[UpstreamImage, ...]
    details: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ImageBody:
    """An image about to be stored: `blocks` yields exactly `length` bytes, or raises.

    The last block comes only once the whole is known to be there and to be an image of `media_type`.
    """

    media_type: str
    length: int
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A URL that works without credentials until `expires_at` (Unix seconds)."""

    url: str = field(repr=False)
    expires_at: int
