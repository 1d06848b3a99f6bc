"""Reads a chat completion with an image: as Markdown in its text, or in `message.images`."""

import re
from base64 import b64decode

import msgspec

from imagegen.domain.errors import ImageFilteredError, MoneySpentError, UpstreamNoImageError
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.domain.redaction import redacted
from imagegen.providers.answer_values import NULL, exactly, image_url, invalid_answer, usage_of, value_of
from imagegen.providers.lenient_json import decoded

# The text in the first brackets may have brackets.
_MARKDOWN_IMAGE = re.compile(r"!\[(?:[^\[\]]++|\[[^\[\]]*+\])*+\]\(\s*+<?([^)\s>]++)")
# An image in base64. It is taken out of the body before the JSON is decoded, so that it is not copied by each step.
_DATA_URL = re.compile(rb"data:image/[a-z.+-]{1,20};base64,((?:[A-Za-z0-9+/=_-]++|\\/)+)")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_TAKEN_OUT = re.compile(r"data:,(\d+)")
# The reasons of OpenAI and Gemini for an answer that the safety system cut.
_POLICY_REASONS = frozenset(
    {"content_filter", "safety", "prohibited_content", "blocklist", "recitation", "spii"}
    | {"image_safety", "image_prohibited_content", "image_recitation"}
)
_MOST_TEXT = 500  # characters of the text in place of an image


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
    contents: list[bytes] = []

    def take_out(found: re.Match[bytes]) -> bytes:
        text = found[1].replace(rb"\/", b"/").translate(_URL_SAFE).rstrip(b"=")
        try:
            contents.append(b64decode(text + b"=" * (-len(text) % 4), validate=True))
        except ValueError:
            contents.append(b"")
        return b"data:,%d" % (len(contents) - 1)

    completion = decoded(_DATA_URL.sub(take_out, body), _Completion)
    choices = [choice for raw in (completion.choices if completion else []) if (choice := value_of(raw, _Choice))]
    if completion is None or not choices:
        raise lost or invalid_answer()
    message = value_of(choices[0].message, _Message) or _Message()
    text, sources = _text_and_sources(message)
    images = [_image(source, contents) for source in sources]
    if not images:
        raise _without_image(choices[0], text, lost)
    return UpstreamImages(exactly(images, 1, lost), usage=usage_of(completion.usage))


def _text_and_sources(message: _Message) -> tuple[str, list[str]]:
    parts = value_of(message.content, list[_Part]) or []
    texts = [value_of(message.content, str) or "", *(value_of(part.text, str) or "" for part in parts)]
    text = "\n".join(filter(None, texts))
    sources = [found[1] for found in _MARKDOWN_IMAGE.finditer(text)]
    for part in (*parts, *(value_of(message.images, list[_Part]) or [])):
        url = value_of(part.image_url, _Url)
        source = url.url if url else value_of(part.image_url, str)
        sources += [source] if source else []
    return text, sources


def _image(source: str, contents: list[bytes]) -> UpstreamImage:
    taken_out = _TAKEN_OUT.fullmatch(source)
    try:
        if taken_out and int(taken_out[1]) < len(contents):
            return UpstreamImage(contents[int(taken_out[1])]) if contents[int(taken_out[1])] else _unusable()
        return UpstreamImage(image_url(source))
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)


def _unusable() -> UpstreamImage:
    return UpstreamImage(failure=invalid_answer())


def _without_image(choice: _Choice, text: str, lost: MoneySpentError | None) -> MoneySpentError:
    reasons = {(value_of(reason, str) or "").lower() for reason in (choice.finish_reason, choice.native_finish_reason)}
    if reasons & _POLICY_REASONS:
        return ImageFilteredError("The image model's safety system kept the image back.", param="prompt")
    if lost:
        return lost
    if text.strip():
        said = " ".join(text.split())[:_MOST_TEXT]
        return UpstreamNoImageError(f"The image model answered with text and no image: {redacted(said)}")
    return UpstreamNoImageError("The image model's answer has no image.")
