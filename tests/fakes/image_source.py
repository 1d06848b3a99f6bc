"""Image hosts in memory."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from imagegen.domain import image_format
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageDownloadInterruptedError
from imagegen.domain.images import ImageBody

BLOCK_BYTES = 32  # the smallest image has several blocks


class FakeImageSource:
    """Passes the contract of `ports.ImageSource`.

    `files` are the contents by URL. `opened` are the requested sources, in order. `failures` are raised in turn, one a
    call of `open`, and `failures_in_body` one a body, after its first block. `None` lets one through.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {} if files is None else files
        self.opened: list[str | bytes] = []
        self.failures: deque[Exception | None] = deque()
        self.failures_in_body: deque[Exception | None] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, source: str | bytes, deadline: Deadline) -> Iterator[ImageBody]:
        with self._lock:
            self.opened.append(source)
            failure = self.failures.popleft() if self.failures else None
            failure_in_body = self.failures_in_body.popleft() if self.failures_in_body else None
        if failure is not None:
            raise failure
        content = source if isinstance(source, bytes) else self.files.get(source)
        if content is None or (isinstance(source, str) and not deadline.remaining()):
            raise ImageDownloadInterruptedError("An image could not be downloaded.")
        kind = image_format.media_type(content[: image_format.HEAD_BYTES])
        blocks = image_format.checked(_blocks(content, failure_in_body), kind, len(content))
        yield ImageBody(kind, len(content), blocks)


def _blocks(content: bytes, failure: Exception | None) -> Iterator[bytes]:
    for at in range(0, len(content), BLOCK_BYTES):
        if at and failure is not None:
            raise failure
        yield content[at : at + BLOCK_BYTES]
