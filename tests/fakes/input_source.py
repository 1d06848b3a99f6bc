"""Image hosts of callers in memory, and buckets that events name."""

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InvalidImageError


class FakeInputSource:
    """Passes the contract of `ports.InputSource`, and stands in for `ports.ObjectSource`.

    `files` are the contents by URL or URI. `fetched` are those that were asked for, with the most bytes, in order.
    """

    def __init__(self, **files: bytes) -> None:
        self.files: dict[str, bytes] = dict(files)
        self.fetched: list[tuple[str, int]] = []

    def fetch(self, url: str, most_bytes: int, deadline: Deadline) -> bytes:
        self.fetched.append((url, most_bytes))
        content = self.files.get(url) if deadline.remaining() else None
        if content is None:
            raise InvalidImageError("the image at its URL could not be fetched")
        if len(content) > most_bytes:
            raise InvalidImageError(f"the image at its URL has over {most_bytes} bytes")
        return content
