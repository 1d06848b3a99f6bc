"""Converts images for upstream calls, with errors that a caller understands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from imagegen.domain.errors import InvalidImageError
from imagegen.domain.inputs import MaskKind
from imagegen.imaging.conversion import UnusableImageError, black_mask, converted, transparent_mask


class PillowConverter:
    """Implements `ports.ImageConverter`."""

    def convert(self, content: bytes, media_types: Sequence[str]) -> tuple[str, bytes]:
        with _explaining():
            return converted(content, media_types)

    def mask(self, content: bytes, kind: MaskKind) -> bytes:
        with _explaining():
            return transparent_mask(content) if kind == "transparent" else black_mask(content)


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except UnusableImageError as error:
        raise InvalidImageError(str(error)) from None
