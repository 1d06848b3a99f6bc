"""Stores input images in S3, below a prefix of their own, and makes presigned URLs for uploads.

| key | |
|---|---|
| `inputs/<inp_…>` | an image that came inside a request |
| `inputs/<hash of the caller>/<upl_…>` | an upload: another caller's id leads to no object |
| `files/<hash of the caller>/<file-…>` | a file, which `aws/files.py` stores |
| `images/<img_…>` | an image made here, which is read where it is |
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import urllib3
from botocore.credentials import Credentials, ReadOnlyCredentials
from urllib3.exceptions import HTTPError

from imagegen.aws.bucket import S3Bucket, read_answer, read_blocks
from imagegen.aws.image_store import GENERATION_ID, image_key
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError
from imagegen.domain.files import caller_folder, is_file_id, object_key
from imagegen.domain.images import is_image_id
from imagegen.domain.inputs import ReadInput, SignedUpload, is_upload_id
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES, cut_off_at

_NOT_STORED = "An input image could not be stored. Please try again."
_NOT_DELETED = "An input image could not be deleted."


class S3InputStore:
    """Implements `ports.InputStore`. `upload_seconds` is how long a signed upload is valid."""

    def __init__(
        self,
        pool: HttpPool,
        *,
        bucket_url: str,
        region: str,
        credentials: Callable[[], Credentials | ReadOnlyCredentials],
        upload_seconds: int,
    ) -> None:
        self._bucket = S3Bucket(pool, url=bucket_url, region=region, credentials=credentials)
        self._upload_seconds = upload_seconds

    def save(self, input_id: str, media_type: str, content: bytes | memoryview, deadline: Deadline) -> None:
        headers = {"Content-Type": media_type, "Content-Length": str(len(content))}
        blocks = (bytes(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))
        try:
            answer = self._bucket.put(_key(input_id, ""), blocks, headers, deadline)
        except (HTTPError, OSError):
            raise InputUnavailableError(_NOT_STORED) from None
        if answer.status != 200:
            raise InputUnavailableError(_NOT_STORED)

    @contextmanager
    def read(self, image_id: str, caller: str, deadline: Deadline, *, offset: int = 0) -> Iterator[ReadInput | None]:
        part = {"Range": f"bytes={offset}-"} if offset else {}
        with (
            closing(self._ask("GET", _key(image_id, caller), deadline, part)) as response,
            cut_off_at(deadline, response.shutdown),
        ):
            if response.status != (206 if offset else 200):
                if not read_answer(response, _not_read).is_missing:
                    raise _not_read()
                yield None
                return
            length = response.headers.get("Content-Length")
            if length is None:  # the connection broke off within the headers
                raise _not_read()
            response.decode_content = False  # a caller may upload with a Content-Encoding, which is not signed
            blocks = read_blocks(response, deadline, _not_read)
            yield ReadInput(offset + int(length), blocks, response.headers.get(GENERATION_ID, ""))

    def delete(self, input_id: str, deadline: Deadline) -> None:
        with closing(self._ask("DELETE", _key(input_id, ""), deadline, {})) as response:
            if read_answer(response, _not_read).status not in (200, 204, 404):
                raise InputUnavailableError(_NOT_DELETED)

    def signed_upload(self, upload_id: str, caller: str, media_type: str, length: int) -> SignedUpload:
        # Create-only: what was checked and is part of a fingerprint cannot be replaced.
        headers = {"Content-Type": media_type, "If-None-Match": "*"}
        signed = headers | {"Content-Length": str(length)}
        now = int(time.time())
        url = self._bucket.presigned("PUT", _key(upload_id, caller), self._upload_seconds, signed)
        return SignedUpload(url, headers, now + self._upload_seconds)

    def _ask(self, method: str, key: str, deadline: Deadline, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            return self._bucket.ask(method, key, deadline, headers=headers)
        except (HTTPError, OSError):
            raise _not_read() from None


def _key(image_id: str, caller: str) -> str:
    if is_image_id(image_id):
        return image_key(image_id)
    if is_file_id(image_id):
        return object_key(caller, image_id)
    if is_upload_id(image_id):
        return f"inputs/{caller_folder(caller)}/{image_id}"
    return f"inputs/{image_id}"


def _not_read() -> InputUnavailableError:
    return InputUnavailableError("An input image could not be read. Please try again.")
