"""Fetches input images from the URLs of callers."""

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageError,
    MoneySpentError,
    NotAnImageError,
)
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard


class HttpInputSource:
    """Implements `ports.InputSource`. No key is sent. `guard` decides which URLs may be fetched."""

    def __init__(self, pool: HttpPool, guard: UrlGuard) -> None:
        self._pool = pool
        self._guard = guard

    def fetch(self, url: str, most_bytes: int, deadline: Deadline) -> bytes:
        source = HttpImageSource(self._pool, self._guard, max_bytes=most_bytes)
        try:
            with source.open(url, deadline) as body:
                return b"".join(body.blocks)
        except MoneySpentError as error:  # the source is made for images that were paid for
            raise InvalidImageError(_reason(error, most_bytes)) from None


def _reason(error: MoneySpentError, most_bytes: int) -> str:
    if isinstance(error, ImageUrlRefusedError):
        return "its URL is not on a public https host, or is not valid, so it was not fetched"
    if isinstance(error, ImageTooLargeError):
        return f"the image at its URL has over {most_bytes} bytes, the most that may be fetched for it"
    if isinstance(error, NotAnImageError):
        return "there is no PNG, JPEG or WebP image at its URL"
    return "the image at its URL could not be fetched"
