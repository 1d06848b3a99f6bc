"""An upstream in memory."""

import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import UpstreamUnreachableError
from imagegen.domain.images import ImageRequest, UpstreamAnswer, UpstreamImage

Hook = Callable[[], object]


@dataclass(frozen=True)
class Call:
    request: ImageRequest
    n: int
    deadline: Deadline


class FakeProvider:
    """Passes the contract of `ports.ImageProvider`.

    `calls` are those that reached the upstream. `files` holds the images that were answered by URL, for a
    FakeImageSource. `failures` are raised in turn, one a call; None lets a call through. `during_call` runs inside
    each call.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = {}
        self.failures: deque[Exception | None] = deque()
        self.during_call: Hook = lambda: None
        self.details: dict[str, str] = {}
        self.usage: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        if not deadline.remaining():
            raise UpstreamUnreachableError("There was no time left to ask.")
        with self._lock:
            self.calls.append(Call(request, n, deadline))
            number = len(self.calls)
            failure = self.failures.popleft() if self.failures else None
        self.during_call()
        if failure is not None:
            raise failure
        images = tuple(self._image(request, f"{number}-{index}") for index in range(1, n + 1))
        return UpstreamAnswer(images, self.details, self.usage)

    def _image(self, request: ImageRequest, name: str) -> UpstreamImage:
        content = png(name)
        revised = f"{request.prompt}, {name}"
        if request.response_format == "b64_json":
            return UpstreamImage(content, revised)
        url = f"https://images.example/{name}.png"
        self.files[url] = content
        return UpstreamImage(url, revised)


def png(label: str) -> bytes:
    """A whole PNG of one pixel that carries `label`: no two are alike, and a long one makes a large image."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"tEXt", b"label\0" + label.encode()),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
