"""What the use cases need from the outside.

Each has a real twin in `providers`, `outbound` or `aws`, and a fake in the tests that passes the same contract.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from imagegen.deadline import Deadline
from imagegen.images import ImageBody, ImageRequest, SignedUrl, UpstreamAnswer


class ImageProvider(Protocol):
    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        """Asks the upstream for `n` images in one call and answers with exactly `n`.

        Raises a NothingSpentError where no image was bought, else a MoneySpentError. Never asks again once the
        upstream may have been paid.
        """
        ...


class ImageSource(Protocol):
    def open(self, source: str | bytes, deadline: Deadline) -> AbstractContextManager[ImageBody]:
        """Opens an image, given by URL or by its bytes, and tells its type by its first bytes.

        Raises ImageUrlRefusedError, ImageDownloadError, NotAnImageError, ImageTruncatedError, ImageTooLargeError; the
        blocks of the body may still raise these.
        """
        ...


class ImageStore(Protocol):
    def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> None:
        """Stores the image under its id unless one is there already; then that one stays.

        Whatever the body's blocks raise leaves nothing stored. Raises ImageStorageInterruptedError where another try
        may help, else ImageStorageError.
        """
        ...

    def signed_url(self, image_id: str) -> SignedUrl:
        """A fresh URL to fetch the image from, made without any call."""
        ...


class Parameters(Protocol):
    def get(self, name: str, *, fresh: bool = False) -> str | None:
        """The value of a parameter, decrypted, or None where there is none. `fresh` passes by the cache."""
        ...
