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
from imagegen.domain.images import ImageRequest, UpstreamImage, UpstreamImages, UpstreamRequest, UpstreamTask

Hook = Callable[[], object]


@dataclass(frozen=True)
class Call:
    request: ImageRequest
    n: int
    deadline: Deadline
    reference: str
    repeats: bool = False


class FakeProvider:
    """Passes the contract of `ports.ImageProvider`.

    `calls` are those that reached the upstream. `files` are the images that were answered by URL, for a
    FakeImageSource. `failures` are raised in turn, one a call; `None` lets a call through. `during_call` runs inside
    each call. With `polls` a call is answered with a task, which ends at that poll, or fails then with `fails`. Until
    then it has the `progress`. A repeated call with the same reference is answered with the same task.
    """

    poll_seconds = longest_pause = 5.0

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = {}
        self.failures: deque[Exception | None] = deque()
        self.during_call: Hook = lambda: None
        self.details: dict[str, str] = {}
        self.usage: dict[str, Any] | None = None
        self.polls = 0
        self.finds = False
        self.fails: Exception | None = None
        self.progress: int | None = None
        self.polled: list[str] = []
        self._lock = threading.Lock()

    @property
    def tasks(self) -> set[str]:
        return {f"task of {call.reference}" for call in self.calls} if self.polls else set()

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        if not deadline.remaining():
            raise UpstreamUnreachableError("There was no time left to ask.")
        request, n = call.request, call.n
        with self._lock:
            self.calls.append(Call(request, n, deadline, call.reference, call.repeats))
            number = len(self.calls)
            failure = self.failures.popleft() if self.failures else None
        self.during_call()
        if failure is not None:
            raise failure
        if self.polls:
            return self._task(f"task of {call.reference}")
        return self._images(request, n, str(number))

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:
        """The task of an earlier call with the same reference, with `finds`."""
        task = f"task of {call.reference}"
        return self._task(task) if self.finds and task in self.tasks and deadline.remaining() else None

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        assert task_id in self.tasks
        with self._lock:
            self.polled.append(task_id)
            ended = self.polled.count(task_id) >= self.polls
        self.during_call()
        if not ended or not deadline.remaining():
            return self._task(task_id)
        if self.fails is not None:
            raise self.fails
        return self._images(call.request, call.n, task_id)

    def _task(self, task_id: str) -> UpstreamTask:
        return UpstreamTask(task_id, self.poll_seconds, self.longest_pause, self.progress)

    def _images(self, request: ImageRequest, n: int, name: str) -> UpstreamImages:
        images = tuple(self._image(request, f"{name}-{index}") for index in range(1, n + 1))
        return UpstreamImages(images, self.details, self.usage)

    def _image(self, request: ImageRequest, name: str) -> UpstreamImage:
        content = png(name)
        revised = f"{request.prompt}, {name}"
        if request.response_format == "b64_json":
            return UpstreamImage(content, revised)
        url = f"https://images.example/{name.replace(' ', '-')}.png"
        self.files[url] = content
        return UpstreamImage(url, revised)


def png(label: str) -> bytes:
    """A whole PNG of one pixel with `label` in it: each label gives another image, a long one a large image."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"tEXt", b"label\0" + label.encode()),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
