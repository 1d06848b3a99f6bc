"""A bucket in memory."""

import threading
import time
from collections import deque
from collections.abc import Callable

from imagegen.deadline import Deadline
from imagegen.errors import ImageStorageInterruptedError
from imagegen.images import ImageBody, SignedUrl

LINK_SECONDS = 3600

Hook = Callable[[], object]


class FakeImageStore:
    """Passes the contract of `ports.ImageStore`.

    `tries` are the ids of all attempts to save, in order. `failures` are raised in turn, one an attempt, before
    anything is stored; None lets one through. `during_save` runs inside each attempt.
    """

    def __init__(self) -> None:
        self.saved: dict[str, tuple[str, bytes]] = {}
        self.tries: list[str] = []
        self.failures: deque[Exception | None] = deque()
        self.during_save: Hook = lambda: None
        self._lock = threading.Lock()

    def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> None:
        with self._lock:
            self.tries.append(image_id)
            failure = self.failures.popleft() if self.failures else None
        self.during_save()
        if failure is not None:
            raise failure
        if not deadline.remaining():
            raise ImageStorageInterruptedError("There was no time left to store an image.")
        if image_id in self.saved:  # S3 too answers without reading on
            return
        content = b"".join(body.blocks)
        if len(content) != body.length:
            raise AssertionError(f"a body of {body.length} bytes gave {len(content)}")
        with self._lock:
            self.saved.setdefault(image_id, (body.media_type, content))

    def signed_url(self, image_id: str) -> SignedUrl:
        expires_at = int(time.time()) + LINK_SECONDS
        return SignedUrl(f"https://bucket.example/images/{image_id}?expires={expires_at}", expires_at)
