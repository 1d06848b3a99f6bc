"""The input images of a bucket in memory."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError
from imagegen.domain.files import is_file_id
from imagegen.domain.images import is_image_id
from imagegen.domain.inputs import ReadInput, SignedUpload, is_upload_id
from tests.fakes.image_store import BLOCK_BYTES, LINK_SECONDS, FakeImageStore


class FakeInputStore:
    """Passes the contract of `ports.InputStore`. Images made here are those of `images`.

    `saved` are the inputs by id, `uploads` the uploads and files by caller and id. Each of `breaks` ends one reading
    after so many bytes.
    """

    def __init__(self, images: FakeImageStore) -> None:
        self.images = images
        self.saved: dict[str, bytes] = {}
        self.uploads: dict[tuple[str, str], bytes] = {}
        self.breaks: deque[int] = deque()
        self.failures: deque[Exception | None] = deque()

    def save(self, input_id: str, media_type: str, content: bytes | memoryview, deadline: Deadline) -> None:
        if self.failures and (failure := self.failures.popleft()):
            raise failure
        _in_time(deadline)
        self.saved[input_id] = bytes(content)

    @contextmanager
    def read(self, image_id: str, caller: str, deadline: Deadline, *, offset: int = 0) -> Iterator[ReadInput | None]:
        _in_time(deadline)
        if is_image_id(image_id):
            found = self.images.saved.get(image_id, (None, None))[1]
        elif is_upload_id(image_id) or is_file_id(image_id):
            found = self.uploads.get((caller, image_id))
        else:
            found = self.saved.get(image_id)
        if found is None:
            yield None
            return
        breaks_at = self.breaks.popleft() if self.breaks else None
        yield ReadInput(len(found), self._blocks(found, offset, breaks_at), self.images.made_by.get(image_id, ""))

    def delete(self, input_id: str, deadline: Deadline) -> None:
        _in_time(deadline)
        self.saved.pop(input_id, None)

    def signed_upload(self, upload_id: str, caller: str, media_type: str, length: int) -> SignedUpload:
        url = f"https://bucket.example/inputs/{upload_id}"
        return SignedUpload(url, {"Content-Type": media_type, "If-None-Match": "*"}, int(time.time()) + LINK_SECONDS)

    @staticmethod
    def _blocks(content: bytes, offset: int, breaks_at: int | None) -> Iterator[bytes]:
        for at in range(offset, len(content), BLOCK_BYTES):
            if breaks_at is not None and at - offset >= breaks_at:
                raise InputUnavailableError("An input image could not be read. Please try again.")
            yield content[at : at + BLOCK_BYTES]


def _in_time(deadline: Deadline) -> None:
    if not deadline.remaining():
        raise InputUnavailableError("There was no time left to ask the bucket.")
