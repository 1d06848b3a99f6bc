"""Reads a chat completion with an image: as Markdown in its text, or in `message.images`."""

import re
from binascii import a2b_base64
from collections.abc import Iterator
from itertools import chain, islice
from secrets import token_hex

import msgspec

from imagegen.domain.errors import ImageFilteredError, MoneySpentError, UpstreamNoImageError
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.domain.redaction import MOST_CHARACTERS, redacted
from imagegen.providers.answer_values import MOST_ENTRIES, NULL, image_url, invalid_answer, usage_of, value_of
from imagegen.providers.lenient_json import decoded

# The text in the first brackets may have brackets. A `data:` URL may have line breaks.
_MARKDOWN_IMAGE = re.compile(
    r"!\[(?:[^\[\]]++|\[[^\[\]]*+\])*+\]\(\s*+<?((?i:data:)[^)>\"]*+|[^)\s>]++)",
)
# An image in base64. It is taken out of the body before the JSON is decoded, so that it is not copied by each step. One
# that does not end here, for example with an escape inside, stays, and is read like any other `data:` URL.
_DATA_URL = re.compile(rb"data:image/[a-z.+-]{1,20};base64,((?:[A-Za-z0-9+/=_-]++|\\/)++)(?=[)>\"' ]|\\\")")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# The reasons of OpenAI and Gemini for an answer that the safety system cut.
_POLICY_REASONS = frozenset(
    {"content_filter", "safety", "prohibited_content", "blocklist", "recitation", "spii"}
    | {"image_safety", "image_prohibited_content", "image_recitation"}
)


class _Message(msgspec.Struct):
    content: msgspec.Raw = NULL
    images: msgspec.Raw = NULL


class _Choice(msgspec.Struct):
    message: msgspec.Raw = NULL
    finish_reason: msgspec.Raw = NULL
    native_finish_reason: msgspec.Raw = NULL


class _Completion(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: msgspec.Raw = NULL


class _Url(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    """A part of a content, or an entry of `images`."""

    text: msgspec.Raw = NULL
    image_url: msgspec.Raw = NULL


def read_answer(body: bytes | bytearray, lost: MoneySpentError | None = None) -> UpstreamImages:
    """Returns the image. If the answer has several, the first usable one.

    `lost` is the reason that the rest of the answer did not come. Raises a MoneySpentError: ImageFilteredError,
    UpstreamNoImageError, UpstreamAnswerInvalidError, ImageUrlRefusedError, or `lost`.
    """
    contents: dict[str, bytes] = {}
    nonce = token_hex(8)  # so that no URL of the upstream stands for an image that was taken out

    def take_out(found: re.Match[bytes]) -> bytes:
        if len(contents) == MOST_ENTRIES:
            return found[0]
        stand_in = f"data:,{nonce}-{len(contents)}"
        contents[stand_in] = _content(memoryview(body)[slice(*found.span(1))])
        return stand_in.encode()

    completion = decoded(_DATA_URL.sub(take_out, body), _Completion)
    choices = [choice for raw in (completion.choices if completion else []) if (choice := value_of(raw, _Choice))]
    if completion is None or not choices:
        raise lost or invalid_answer()
    text, sources = _text_and_sources(value_of(choices[0].message, _Message) or _Message())
    failure: MoneySpentError | None = None
    # An image that nothing points to is the image too: some resellers send the plain URL.
    for source in islice(chain(sources, contents), MOST_ENTRIES):
        try:
            image = contents[source] if source in contents else image_url(source)
        except MoneySpentError as refused:
            failure = failure or refused
            continue
        if image:
            return UpstreamImages((UpstreamImage(image),), usage=usage_of(completion.usage))
        failure = failure or invalid_answer()
    raise failure or _without_image(choices[0], text, lost)


def _content(base64: memoryview) -> bytes:
    """Returns the bytes of an image, none if they cannot be decoded."""
    try:
        return a2b_base64(base64, strict_mode=True)
    except ValueError:  # perhaps of another dialect
        text = bytes(base64).replace(rb"\/", b"/").translate(_URL_SAFE).rstrip(b"=")
    try:
        return a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return b""


def _text_and_sources(message: _Message) -> tuple[str, Iterator[str]]:
    parts = [value_of(entry, _Part) or _Part(text=entry) for entry in _entries(message.content)]
    images = [value_of(entry, _Part) or _Part(image_url=entry) for entry in _entries(message.images)]
    texts = [value_of(message.content, str) or "", *(value_of(part.text, str) or "" for part in parts)]
    text = "\n".join(filter(None, texts))
    in_text = (found[1].strip() for found in _MARKDOWN_IMAGE.finditer(text))
    return text, chain(in_text, filter(None, map(_source, (*parts, *images))))


def _entries(values: msgspec.Raw) -> list[msgspec.Raw]:
    return value_of(values, list[msgspec.Raw]) or []


def _source(part: _Part) -> str | None:
    url = value_of(part.image_url, _Url)
    return url.url if url else value_of(part.image_url, str)


def _without_image(choice: _Choice, text: str, lost: MoneySpentError | None) -> MoneySpentError:
    reasons = {(value_of(reason, str) or "").lower() for reason in (choice.finish_reason, choice.native_finish_reason)}
    if reasons & _POLICY_REASONS:
        return ImageFilteredError("The image model's safety system kept the image back.", param="prompt")
    if lost:
        return lost
    if text.strip():
        said = " ".join(text.split(maxsplit=MOST_CHARACTERS)[:MOST_CHARACTERS])
        return UpstreamNoImageError(f"The image model answered with text and no image: {redacted(said)}")
    return UpstreamNoImageError("The image model's answer has no image.")
