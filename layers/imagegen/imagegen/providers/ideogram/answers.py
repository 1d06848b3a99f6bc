"""Reads the answers of Ideogram."""

import msgspec

from imagegen.domain.errors import ImageFilteredError, MoneySpentError
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.answer_values import (
    MOST_ENTRIES,
    NULL,
    detail_of,
    exactly,
    image_url,
    invalid_answer,
    revised_prompt,
    value_of,
)
from imagegen.providers.lenient_json import decoded


class _Image(msgspec.Struct):
    url: msgspec.Raw = NULL
    prompt: msgspec.Raw = NULL
    resolution: msgspec.Raw = NULL
    seed: msgspec.Raw = NULL
    style_type: msgspec.Raw = NULL
    is_image_safe: msgspec.Raw = NULL


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw]


def read_answer(body: bytes | bytearray, n: int, lost: MoneySpentError | None = None) -> UpstreamImages:
    """Returns exactly `n` images. One that the safety system kept back has an ImageFilteredError: it is charged.

    Raises the first failure if no image is usable, and `lost`, the reason that the rest of the answer did not come.
    """
    answer = decoded(body, _Answer)
    if answer is None:
        raise lost or invalid_answer()
    entries = (value_of(entry, _Image) or _Image() for entry in answer.data[:MOST_ENTRIES])
    return UpstreamImages(exactly([_image(entry) for entry in entries], n, lost))


def _image(image: _Image) -> UpstreamImage:
    if value_of(image.is_image_safe, bool) is False:
        return UpstreamImage(failure=ImageFilteredError("The image model's safety system kept an image back."))
    try:
        source = image_url(value_of(image.url, str) or "")
    except MoneySpentError as failure:
        return UpstreamImage(failure=failure)
    seed = value_of(image.seed, int)
    details: dict[str, str | int] = {"seed": seed} if seed is not None and 0 <= seed < 2**32 else {}
    for name in ("resolution", "style_type"):
        detail = detail_of(getattr(image, name))
        details |= {name: detail} if detail else {}
    return UpstreamImage(source, revised_prompt(value_of(image.prompt, str) or ""), details=details)
