"""Reads successful answers of OpenAI's images API, as OpenAI and its resellers send them."""

import re
from base64 import b64decode
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from math import ceil
from typing import Any, TypeVar

import msgspec

from imagegen.domain.errors import (
    ImageUrlRefusedError,
    MoneySpentError,
    UpstreamAnswerInvalidError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.generations import summed_usage
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.lenient_json import decoded

T = TypeVar("T")

_DETAILS = ("background", "output_format", "quality", "size")
# The limits are in bytes of JSON, because the values are stored as JSON in an item of at most 400 KB (DynamoDB
# developer guide, "Quotas in Amazon DynamoDB"). Ten images and the longest prompt fit. An answer that did not fit would
# be paid for twice. The longest signed URLs of image hosts have some 2,000 characters.
_MOST_URL = 8_192
_MOST_REVISED_PROMPT = 4_000
_MOST_REVISED_PROMPT_CHARACTERS = 2_000
_MOST_DETAIL = 100
_MOST_TOKENS = 10**9
_URL_SAFE = str.maketrans("-_", "+/")
_NULL = msgspec.Raw(b"null")
_MOST_EVENTS = 10_000  # an image has a few, and reading one takes some 20 microseconds
_BLANK_LINES = re.compile(rb"\n(?:\r?\n)+")
_FIELD = re.compile(rb"(?m)^(data|event): ?([^\r\n]*)")


# Each value is decoded separately, from its place in the body. So an invalid value does not affect the others, and
# base64 is decoded only once, to the bytes of the image.
class _Image(msgspec.Struct):
    url: msgspec.Raw = _NULL
    b64_json: msgspec.Raw = _NULL
    revised_prompt: msgspec.Raw = _NULL


class _Document(_Image):
    """An answer, or an event of a stream, which may itself be an image."""

    type: msgspec.Raw = _NULL
    data: list[msgspec.Raw] | None = None
    background: msgspec.Raw = _NULL
    output_format: msgspec.Raw = _NULL
    quality: msgspec.Raw = _NULL
    size: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


def read_answer(body: bytes | bytearray, n: int, lost: MoneySpentError | None = None) -> UpstreamImages:
    """Returns exactly `n` images, in the order of the answer. An unusable or missing image has a failure.

    If the answer has more than `n`, usable ones are preferred. If none is usable, the first failure is raised:
    UpstreamAnswerInvalidError, ImageUrlRefusedError or UpstreamTooFewImagesError. `lost` is the reason that the rest of
    the answer did not come. It becomes the failure of the missing images.
    """
    documents = _documents(body)
    images: list[UpstreamImage] = []
    usable = 0
    for entry in _once(documents):
        images.append(_image(entry))
        usable += images[-1].failure is None
        if usable == n:
            break
    if not images and all(document.data is None for document in documents):
        raise lost or _invalid()
    if len(images) > n:
        images = sorted(images, key=lambda image: image.failure is not None)[:n]
    elif len(images) < n:
        missing = lost or UpstreamTooFewImagesError(f"The image model answered with {len(images)} of {n} images.")
        images += [UpstreamImage(failure=missing)] * (n - len(images))
    if not usable and images[0].failure:
        raise images[0].failure
    details: dict[str, str] = {}
    for document in documents:
        details |= {name: value for name in _DETAILS if (value := _detail(getattr(document, name)))}
    return UpstreamImages(tuple(images), details, summed_usage(_usage(document.usage) for document in documents))


def _documents(body: bytes | bytearray) -> list[_Document]:
    """Returns the JSON at the beginning of a body and, if it lists no image, the events of a stream.

    Some resellers stream although the request did not say so, and some append an event to the JSON.
    """
    answer = decoded(body, _Document)
    if answer is not None and answer.data:
        return [answer]
    return [*([answer] if answer else []), *_events(body)]


def _events(stream: bytes | bytearray) -> Iterator[_Document]:
    """Yields the events except those of unfinished images. A stream that was cut gives each event with whole JSON."""
    view = memoryview(stream)
    ends = (blank.end() for blank in _BLANK_LINES.finditer(stream))
    for start, end in islice(pairwise(chain([0], ends, [len(stream)])), _MOST_EVENTS):
        fields = list(_FIELD.finditer(stream, start, end))
        lines = [view[slice(*field.span(2))] for field in fields if field[1] == b"data"]
        kinds = [field[2] for field in fields if field[1] == b"event"]
        for event in _data(lines):
            if not any(b"partial_image" in kind for kind in (*kinds, bytes(event.type))):
                yield event


def _data(lines: Sequence[memoryview]) -> Iterator[_Document]:
    """Yields the value of an event's lines, or one value for each line, as in a stream without blank lines."""
    by_line = [event for line in lines if (event := decoded(line, _Document)) is not None]
    if len(by_line) == len(lines):
        yield from by_line
    elif (event := decoded(b"\n".join(lines), _Document)) is not None:
        yield event


def _once(documents: Sequence[_Document]) -> Iterator[_Image]:
    """Yields the entries of all documents, each once. Some streams repeat all images in the last event."""
    seen: set[int] = set()
    for document in documents:
        known = frozenset(seen)
        for entry in _entries(document):
            if len(documents) > 1 and (entry.url != _NULL or entry.b64_json != _NULL):
                source = hash((bytes(entry.url), bytes(entry.b64_json)))
                if source in known:
                    continue
                seen.add(source)
            yield entry


def _entries(document: _Document) -> Iterator[_Image]:
    entries: Iterable[_Image] = [document] if document.url != _NULL or document.b64_json != _NULL else []
    if document.data is not None:
        entries = (_decoded(entry, _Image) or _Image() for entry in document.data)
    for entry in entries:
        for url in _decoded(entry.url, list[msgspec.Raw]) or [entry.url]:
            yield msgspec.structs.replace(entry, url=url)


def _decoded(raw: msgspec.Raw, type_: type[T]) -> T | None:
    """Returns `None` if the JSON is invalid or has another type."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except Exception:  # noqa: BLE001  # the images are paid for, so no value may end the reading
        return None


def _image(image: _Image) -> UpstreamImage:
    """Reads an entry. new-api sends all keys, some with empty strings."""
    try:
        source = _content(image.b64_json) or _url(_decoded(image.url, str) or "")
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)
    return UpstreamImage(source, _revised(_decoded(image.revised_prompt, str) or ""))


def _content(base64: msgspec.Raw) -> bytes | None:
    """Returns the bytes of an image, `None` if there are none or they cannot be decoded."""
    return _decoded(base64, bytes) or _loose_base64(_decoded(base64, str) or "")


def _url(url: str) -> str | bytes:
    """Returns a URL, or the bytes of a `data:` URL. Raises ImageUrlRefusedError, UpstreamAnswerInvalidError."""
    if not url:
        raise _invalid()
    if url.lstrip()[:5].lower() == "data:":
        content = _loose_base64(url)
        if not content:
            raise _invalid()
        return content
    if not url.isascii() or not url.isprintable() or " " in url or _size(url) > _MOST_URL:
        raise ImageUrlRefusedError("The image model answered with an image URL that is not valid; it was not fetched.")
    return url


def _revised(prompt: str) -> str | None:
    """Returns the prompt, cut to its limits, without control characters: each takes six bytes as JSON."""
    text = prompt[:_MOST_REVISED_PROMPT_CHARACTERS]
    text = "".join(character if character.isprintable() else " " for character in text)
    ends = range(1, len(text) + 1)
    return text[: bisect_right(ends, _MOST_REVISED_PROMPT, key=lambda end: _size(text[:end]))] or None


def _detail(raw: msgspec.Raw) -> str | None:
    value = _decoded(raw, str)
    return value if value and value.isprintable() and _size(value) <= _MOST_DETAIL else None


def _usage(raw: msgspec.Raw) -> dict[str, Any] | None:
    """Returns the token counts of OpenAI's images API, read by their names there or in a chat.

    `None` if a required count is missing. new-api sends both names of a count, with zero for the one it does not use.
    """
    counted = _members(raw)
    of_input = _members(counted.get("input_tokens_details", _NULL)) or _members(
        counted.get("prompt_tokens_details", _NULL)
    )
    of_output = _members(counted.get("output_tokens_details", _NULL))
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
    return _decoded(raw, dict[str, msgspec.Raw]) or {}


def _tokens(counted: dict[str, msgspec.Raw], *names: str) -> int | None:
    """Returns a count by any of its names, rounded up. `None` if there is none from 0 to a billion."""
    counts = [_decoded(counted.get(name, _NULL), float) for name in names]
    return max((ceil(count) for count in counts if count is not None and 0 <= count <= _MOST_TOKENS), default=None)


def _size(value: object) -> int:
    """Returns the size of a value in bytes of JSON, as it is stored."""
    return len(msgspec.json.encode(value))


def _loose_base64(text: str) -> bytes | None:
    """Decodes base64 of any dialect, also after a `data:` prefix (one-api with Replicate). `None` if it is invalid."""
    text = "".join(text.split()).translate(_URL_SAFE)
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    text = text.rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


def _invalid() -> UpstreamAnswerInvalidError:
    return UpstreamAnswerInvalidError("The image model's answer is not a valid answer of an images API.")
