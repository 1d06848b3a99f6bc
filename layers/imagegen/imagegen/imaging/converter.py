"""Converts images for upstream calls, with errors that a caller understands."""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from imagegen.domain.errors import InvalidImageError
from imagegen.domain.inputs import MaskKind
from imagegen.imaging.conversion import UnusableImageError, black_mask, converted, transparent_mask

T = TypeVar("T")


class PillowConverter:
    """Implements `ports.ImageConverter`."""

    def convert(self, content: bytes, media_types: Sequence[str]) -> tuple[str, bytes]:
        return _explained(partial(converted, content, media_types))

    def mask(self, content: bytes, kind: MaskKind) -> bytes:
        return _explained(partial(transparent_mask if kind == "transparent" else black_mask, content))


def _explained(convert: Callable[[], T]) -> T:
    """Releases the pixels of a failed conversion at once: the frames of its traceback would keep them."""
    try:
        return convert()
    except UnusableImageError as error:
        reason, failed = str(error), error.__context__ or error
        for each in (error, failed):
            traceback.clear_frames(each.__traceback__)
    raise InvalidImageError(reason)
