"""Stores images in S3 and makes presigned URLs for them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Literal

import urllib3
from botocore.credentials import Credentials, ReadOnlyCredentials
from urllib3.exceptions import HTTPError

from imagegen.aws.bucket import S3Bucket, read_answer, read_blocks
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageInterruptedError, MoneySpentError
from imagegen.domain.generations import StoredImage
from imagegen.domain.images import ImageBody, SignedUrl
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import cut_off_at

GENERATION_ID = "x-amz-meta-generation-id"  # of the generation that made an image; not secret, unlike the image's id
_STORED_ALREADY = 412
_NOT_STORED = "An image was made but could not be stored."
_NOT_READ = "A stored image could not be read."
_NOT_DELETED = "An image could not be deleted."


class S3ImageStore:
    """Implements `ports.ImageStore`.

    `bucket_url` is the address of the bucket, without a slash at the end. `link_seconds` is how long a signed URL is
    valid: at most seven days (S3 API reference, "Authenticating Requests: Using Query Parameters"), and no longer than
    the credentials that sign it.
    """

    def __init__(
        self,
        pool: HttpPool,
        *,
        bucket_url: str,
        region: str,
        credentials: Callable[[], Credentials | ReadOnlyCredentials],
        link_seconds: int,
    ) -> None:
        self._bucket = S3Bucket(pool, url=bucket_url, region=region, credentials=credentials)
        self._link_seconds = link_seconds

    def save(self, image_id: str, body: ImageBody, deadline: Deadline, *, generation_id: str) -> bool:
        create_only = {"If-None-Match": "*", GENERATION_ID: generation_id}
        return self._put(image_key(image_id), body.media_type, body.length, body.blocks, deadline, create_only)

    def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        self._put(_answer_key(generation_id), "application/json", length, blocks, deadline, {})

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return self._signed(image_key(image_id), method)

    def signed_answer_url(self, generation_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return self._signed(_answer_key(generation_id), method)

    def find(self, image_id: str, deadline: Deadline) -> StoredImage | None:
        # GET with one byte: an answer to HEAD has no body, so its 403 does not say whether the image is missing.
        with closing(self._ask("GET", image_key(image_id), deadline, {"Range": "bytes=0-0"})) as response:
            answer = read_answer(response, _not_read)
            if answer.status == 206:
                length = response.headers["Content-Range"].rpartition("/")[2]
                return StoredImage(response.headers["Content-Type"], int(length))
            if answer.is_missing:
                return None
            raise _not_read()

    @contextmanager
    def read(self, image_id: str, deadline: Deadline, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        part = {"Range": f"bytes={offset}-"} if offset else {}
        with (
            closing(self._ask("GET", image_key(image_id), deadline, part)) as response,
            cut_off_at(deadline, response.shutdown),
        ):
            if response.status != (206 if offset else 200):
                raise read_answer(response, _not_read).refusal(_NOT_READ)
            yield read_blocks(response, deadline, _not_read)

    def delete(self, image_id: str, deadline: Deadline) -> None:
        self._delete(image_key(image_id), deadline)

    def delete_answer(self, generation_id: str, deadline: Deadline) -> None:
        self._delete(_answer_key(generation_id), deadline)

    def _put(
        self,
        key: str,
        media_type: str,
        length: int,
        blocks: Iterator[bytes],
        deadline: Deadline,
        more: Mapping[str, str],
    ) -> bool:
        """Stores an object with `more` headers. Returns `False` if their condition did not hold."""
        headers = {"Content-Type": media_type, "Content-Length": str(length), **more}
        try:
            answer = self._bucket.put(key, blocks, headers, deadline)
        except MoneySpentError:  # from the blocks
            raise
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_STORED) from None
        if answer.status in (200, _STORED_ALREADY):
            return answer.status == 200
        raise answer.refusal(f"{_NOT_STORED} The image bucket answered {answer.status}.")

    def _delete(self, key: str, deadline: Deadline) -> None:
        with closing(self._ask("DELETE", key, deadline)) as response:
            answer = read_answer(response, _not_read)
            if answer.status not in (200, 204, 404):
                raise answer.refusal(_NOT_DELETED)

    def _ask(
        self, method: str, key: str, deadline: Deadline, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._bucket.ask(method, key, deadline, headers=headers)
        except (HTTPError, OSError):
            raise _not_read() from None

    def _signed(self, key: str, method: str = "GET") -> SignedUrl:
        now = int(time.time())
        return SignedUrl(self._bucket.presigned(method, key, self._link_seconds, {}), now + self._link_seconds)


def image_key(image_id: str) -> str:
    return f"images/{image_id}"


def _answer_key(generation_id: str) -> str:
    return f"answers/{generation_id}.json"


def _not_read() -> ImageStorageInterruptedError:
    return ImageStorageInterruptedError(_NOT_READ)
