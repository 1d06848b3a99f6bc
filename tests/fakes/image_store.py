"""A bucket in memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageError, ImageStorageInterruptedError
from imagegen.domain.generations import StoredImage
from imagegen.domain.images import ImageBody, SignedUrl

LINK_SECONDS = 3600
BLOCK_BYTES = 32  # the smallest image has several blocks, and base64 must carry bytes over from each

Hook = Callable[[], object]


class FakeImageStore:
    """Passes the contract of `ports.ImageStore`.

    `saved` are the images by image id, `made_by` their generations, `answers` the answers by generation id. `tries` are
    the ids of all calls of `save`, in order, and `looked_for` those of `find`. `failures` are raised in turn, one for
    each `save`, before anything is stored; `failures_to_find` likewise. `None` lets one through. `during_save` runs
    inside each `save`.
    """

    def __init__(self) -> None:
        self.saved: dict[str, tuple[str, bytes]] = {}
        self.made_by: dict[str, str] = {}
        self.answers: dict[str, bytes] = {}
        self.tries: list[str] = []
        self.looked_for: list[str] = []
        self.failures: deque[Exception | None] = deque()
        self.failures_to_find: deque[Exception | None] = deque()
        self.during_save: Hook = lambda: None
        self._lock = threading.Lock()

    def save(self, image_id: str, body: ImageBody, deadline: Deadline, *, generation_id: str) -> bool:
        with self._lock:
            self.tries.append(image_id)
            failure = self.failures.popleft() if self.failures else None
        self.during_save()
        if failure is not None:
            raise failure
        _in_time(deadline)
        if image_id in self.saved:  # like S3, without reading the body
            return False
        content = (body.media_type, _whole(body.blocks, body.length))
        with self._lock:
            is_first = self.saved.setdefault(image_id, content) is content
            if is_first:
                self.made_by[image_id] = generation_id
            return is_first

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return _signed(f"images/{image_id}")

    def find(self, image_id: str, deadline: Deadline) -> StoredImage | None:
        with self._lock:
            self.looked_for.append(image_id)
            failure = self.failures_to_find.popleft() if self.failures_to_find else None
        if failure is not None:
            raise failure
        _in_time(deadline)
        found = self.saved.get(image_id)
        return None if found is None else StoredImage(found[0], len(found[1]))

    @contextmanager
    def read(self, image_id: str, deadline: Deadline, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        _in_time(deadline)
        if image_id not in self.saved:
            raise ImageStorageError("A stored image could not be read.")
        yield _blocks(self.saved[image_id][1][offset:], deadline)

    def delete(self, image_id: str, deadline: Deadline) -> None:
        _in_time(deadline)
        self.saved.pop(image_id, None)

    def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        _in_time(deadline)
        self.answers[generation_id] = _whole(blocks, length)

    def signed_answer_url(self, generation_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return _signed(f"answers/{generation_id}.json")

    def delete_answer(self, generation_id: str, deadline: Deadline) -> None:
        _in_time(deadline)
        self.answers.pop(generation_id, None)


def _in_time(deadline: Deadline) -> None:
    if not deadline.remaining():
        raise ImageStorageInterruptedError("There was no time left to ask the bucket.")


def _whole(blocks: Iterator[bytes], length: int) -> bytes:
    content = b"".join(blocks)
    if len(content) != length:
        raise AssertionError(f"a body of {length} bytes gave {len(content)}")
    return content


def _blocks(content: bytes, deadline: Deadline) -> Iterator[bytes]:
    for at in range(0, len(content), BLOCK_BYTES):
        _in_time(deadline)
        yield content[at : at + BLOCK_BYTES]


def _signed(path: str) -> SignedUrl:
    expires_at = int(time.time()) + LINK_SECONDS
    return SignedUrl(f"https://bucket.example/{path}?expires={expires_at}", expires_at)
