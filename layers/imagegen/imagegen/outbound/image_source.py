"""Opens the images of an upstream's answer: URLs are downloaded, bytes are used as they are."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import IO
from urllib.parse import urljoin

import urllib3

from imagegen.domain import image_format
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageDownloadError,
    ImageDownloadInterruptedError,
    ImageTooLargeError,
)
from imagegen.domain.images import ImageBody
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES, cut_off_at
from imagegen.outbound.url_guard import UrlGuard

_MOST_REDIRECTS = 3
_DOWNLOAD_SECONDS = 60.0  # for one try; a slower host would keep a worker from other generations
_REDIRECTS = {301, 302, 303, 307, 308}
_WORTH_ANOTHER_TRY = {404, 408, 409, 425, 429}  # 404: some upstreams return a URL before the image is there
_SPOOL_IN_MEMORY_BYTES = 64 * 1024
_INTERRUPTED = "An image could not be downloaded from the URL in the image model's answer."


class HttpImageSource:
    """Implements `ports.ImageSource`. No image may be larger than `max_bytes`."""

    def __init__(self, pool: HttpPool, guard: UrlGuard, *, max_bytes: int) -> None:
        self._pool = pool
        self._guard = guard
        self._max_bytes = max_bytes

    @contextmanager
    def open(self, source: str | bytes, deadline: Deadline) -> Iterator[ImageBody]:
        if isinstance(source, bytes):
            yield self._at_hand(source)
            return
        deadline = deadline.sooner(_DOWNLOAD_SECONDS)
        with closing(self._get(source, deadline)) as response, cut_off_at(deadline, response.shutdown):
            declared = response.headers.get("Content-Length", "")
            if declared.isdecimal() and len(declared) < 20 and "Content-Encoding" not in response.headers:
                yield self._streamed(response, int(declared), deadline)
            else:
                with tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES) as file:
                    yield self._spooled(response, file, deadline)

    def _at_hand(self, content: bytes) -> ImageBody:
        self._check_size(len(content))
        kind = image_format.media_type(content[: image_format.HEAD_BYTES])
        return ImageBody(kind, len(content), image_format.checked((content,), kind, len(content)))

    def _get(self, url: str, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        for _ in range(_MOST_REDIRECTS + 1):
            approved = self._guard.approve(url)
            try:
                response = self._pool.request(
                    "GET", approved.url, deadline, headers={"Accept": "image/*"}, address=approved.address
                )
            except Exception:  # noqa: BLE001  # the answer of a host may make a parser raise anything
                raise ImageDownloadInterruptedError(_INTERRUPTED) from None
            if response.status == 200:
                return response
            location = response.headers.get("Location")
            response.close()
            if response.status in _REDIRECTS and location:
                try:
                    url = urljoin(url, location)
                except ValueError:
                    raise ImageDownloadError(_INTERRUPTED) from None
            elif response.status >= 500 or response.status in _WORTH_ANOTHER_TRY:
                raise ImageDownloadInterruptedError(_INTERRUPTED)
            else:
                raise ImageDownloadError(_INTERRUPTED)
        raise ImageDownloadError("The URL of an image in the image model's answer redirects too often.")

    def _streamed(self, response: urllib3.BaseHTTPResponse, length: int, deadline: Deadline) -> ImageBody:
        self._check_size(length)
        first = _read(response, deadline)
        kind = image_format.media_type(first[: image_format.HEAD_BYTES])
        rest = iter(partial(_read, response, deadline), b"")
        # The iterator drops its reference to the first block once it has yielded it.
        return ImageBody(kind, length, image_format.checked(chain(iter([first]), rest), kind, length))

    def _spooled(self, response: urllib3.BaseHTTPResponse, file: IO[bytes], deadline: Deadline) -> ImageBody:
        """Reads the whole image into a file first, because S3 requires its length."""
        length = 0
        while block := _read(response, deadline, decode=True):
            length += len(block)
            self._check_size(length)
            file.write(block)
        file.seek(0)
        kind = image_format.media_type(file.read(image_format.HEAD_BYTES))
        file.seek(0)
        blocks = iter(partial(file.read, BLOCK_BYTES), b"")
        return ImageBody(kind, length, image_format.checked(blocks, kind, length))

    def _check_size(self, length: int) -> None:
        if length > self._max_bytes:
            raise ImageTooLargeError(f"The image model answered with an image over {self._max_bytes} bytes.")


def _read(response: urllib3.BaseHTTPResponse, deadline: Deadline, *, decode: bool = False) -> bytes:
    try:
        block = response.read(BLOCK_BYTES, decode_content=decode)
    except Exception:  # noqa: BLE001  # as above
        raise ImageDownloadInterruptedError(_INTERRUPTED) from None
    if not deadline.remaining():  # cut off: the block looks like the end, or under TLS it is ciphertext
        raise ImageDownloadInterruptedError(_INTERRUPTED)
    return block
