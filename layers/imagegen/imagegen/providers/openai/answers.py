"""Reads successful answers of OpenAI's images API, as OpenAI and its resellers send them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise

import msgspec

from imagegen.domain.errors import MoneySpentError
from imagegen.domain.generations import summed_usage
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.answer_values import (
    MOST_ENTRIES,
    NULL,
    detail_of,
    exactly,
    image_bytes,
    image_url,
    invalid_answer,
    revised_prompt,
    usage_of,
    value_of,
)
from imagegen.providers.lenient_json import decoded

_DETAILS = ("background", "output_format", "quality", "size")
_MOST_EVENTS = 10_000  # an image has a few, and reading one takes some 20 microseconds
_BLANK_LINES = re.compile(rb"\n(?:\r?\n)+")
_FIELD = re.compile(rb"(?m)^(data|event): ?([^\r\n]*)")


# Each value is decoded separately, from its place in the body. So an invalid value does not affect the others, and
# base64 is decoded only once, to the bytes of the image.
class _Image(msgspec.Struct):
    url: msgspec.Raw = NULL
    b64_json: msgspec.Raw = NULL
    revised_prompt: msgspec.Raw = NULL


class _Document(_Image):
    """An answer, or an event of a stream, which may itself be an image."""

    type: msgspec.Raw = NULL
    data: list[msgspec.Raw] | None = None
    background: msgspec.Raw = NULL
    output_format: msgspec.Raw = NULL
    quality: msgspec.Raw = NULL
    size: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL


def read_answer(body: bytes | bytearray, n: int, lost: MoneySpentError | None = None) -> UpstreamImages:
    """Returns exactly `n` images, in the order of the answer. An unusable or missing image has a failure.

    If the answer has more than `n`, usable ones are preferred. If none is usable, the first failure is raised:
    UpstreamAnswerInvalidError, ImageUrlRefusedError or UpstreamTooFewImagesError. `lost` is the reason that the rest of
    the answer did not come. It becomes the failure of the missing images.
    """
    documents = _documents(body)
    images: list[UpstreamImage] = []
    usable = 0
    for entry in islice(_once(documents), MOST_ENTRIES):
        images.append(_image(entry))
        usable += images[-1].failure is None
        if usable == n:
            break
    if not images and all(document.data is None for document in documents):
        raise lost or invalid_answer()
    chosen = exactly(images, n, lost)
    details: dict[str, str] = {}
    for document in documents:
        details |= {name: value for name in _DETAILS if (value := detail_of(getattr(document, name)))}
    return UpstreamImages(chosen, details, summed_usage(usage_of(document.usage) for document in documents))


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
            if len(documents) > 1 and (entry.url != NULL or entry.b64_json != NULL):
                source = hash((bytes(entry.url), bytes(entry.b64_json)))
                if source in known:
                    continue
                seen.add(source)
            yield entry


def _entries(document: _Document) -> Iterator[_Image]:
    entries: Iterable[_Image] = [document] if document.url != NULL or document.b64_json != NULL else []
    if document.data is not None:
        entries = (value_of(entry, _Image) or _Image() for entry in document.data)
    for entry in entries:
        for url in value_of(entry.url, list[msgspec.Raw]) or [entry.url]:
            yield msgspec.structs.replace(entry, url=url)


def _image(image: _Image) -> UpstreamImage:
    """Reads an entry. new-api sends all keys, some with empty strings."""
    try:
        source = image_bytes(image.b64_json) or image_url(value_of(image.url, str) or "")
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)
    return UpstreamImage(source, revised_prompt(value_of(image.revised_prompt, str) or ""))
