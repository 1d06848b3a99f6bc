"""Reads and writes the contents of files in S3: below `files/` in the bucket of the images, else in the inbox."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Literal

import urllib3
from urllib3.exceptions import HTTPError

from imagegen.aws.bucket import S3Answer, S3Bucket, s3_answer
from imagegen.domain.batches import LINES_SUFFIX
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import FileUnavailableError, UnknownFileError
from imagegen.domain.files import FILES, StoredObject, attachment
from imagegen.domain.images import SignedUrl
from imagegen.domain.inputs import SignedUpload
from imagegen.outbound.read_deadline import cut_off_at

_NOT_READ = "A file could not be read."
_NOT_WRITTEN = "A file could not be stored."
_NOT_DELETED = "A file could not be deleted."
# The statuses of a HEAD, which has no code. Without s3:ListBucket, S3 answers 403 for a missing key. 400 and 405 mean
# that the version does not exist.
_MISSING = (400, 403, 404, 405)
# The codes for a version that does not exist, is not the id of one, or is a deletion.
_NO_VERSION = ("NoSuchVersion", "InvalidArgument", "MethodNotAllowed")
_TYPE = "application/octet-stream"  # as OpenAI answers; no browser runs it


class S3FileContents:
    """Implements `ports.FileContents`. A file is read in pieces, each by its own request, so no answer stays open.

    Signed URLs are valid for `link_seconds`, and for an upload for `upload_seconds`.
    """

    def __init__(self, *, inbox: S3Bucket, images: S3Bucket, link_seconds: int, upload_seconds: int) -> None:
        self._inbox = inbox
        self._images = images
        self._link_seconds = link_seconds
        self._upload_seconds = upload_seconds

    def find(self, key: str, version: str, deadline: Deadline) -> StoredObject | None:
        try:
            with closing(self._ask("HEAD", StoredObject(key, version, 0), deadline)) as response:
                response.drain_conn()
        except (HTTPError, OSError):
            raise FileUnavailableError(_NOT_READ) from None
        if response.status in _MISSING:
            return None
        length = response.headers.get("Content-Length")
        if response.status != 200 or length is None:
            raise FileUnavailableError(_NOT_READ)
        return StoredObject(key, version, int(length))

    def read(self, file: StoredObject, offset: int, length: int, deadline: Deadline) -> bytes:
        part = {"Range": f"bytes={offset}-{offset + length - 1}"}
        try:
            response = self._ask("GET", file, deadline, part)
            response.decode_content = False  # a caller may upload with a Content-Encoding, which is not signed
            with closing(response), cut_off_at(deadline, response.shutdown):
                content = response.read()
        except (HTTPError, OSError):
            raise FileUnavailableError(_NOT_READ) from None
        if not deadline.remaining():  # cut off: under TLS the content may be ciphertext
            raise FileUnavailableError(_NOT_READ)
        if response.status in (200, 206) and len(content) == length:
            return content
        answer = S3Answer(response.status, content)
        if answer.is_missing or answer.code in _NO_VERSION:
            raise UnknownFileError("The content of this file was deleted, or this service may not read it.")
        raise FileUnavailableError(f"{_NOT_READ} The bucket answered {response.status}.")

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> StoredObject:
        media_type = "application/jsonl" if key.endswith(LINES_SUFFIX) else _TYPE
        headers = {"Content-Type": media_type, "Content-Length": str(length)}
        try:
            answer = self._bucket(key).put(key, blocks, headers, deadline)
        except (HTTPError, OSError):
            raise FileUnavailableError(_NOT_WRITTEN) from None
        if answer.status != 200:
            raise FileUnavailableError(f"{_NOT_WRITTEN} The bucket answered {answer.status}.")
        return StoredObject(key, answer.version, length)

    def delete(self, file: StoredObject, deadline: Deadline) -> None:
        try:
            with closing(self._ask("DELETE", file, deadline)) as response:
                answer = s3_answer(response)
        except (HTTPError, OSError):
            raise FileUnavailableError(_NOT_DELETED) from None
        if answer.status not in (200, 204, 404):
            raise FileUnavailableError(f"{_NOT_DELETED} The bucket answered {answer.status}.")

    def signed_url(self, file: StoredObject, filename: str, method: Literal["GET", "HEAD"]) -> SignedUrl:
        query = _version(file) | {"response-content-disposition": attachment(filename)}
        url = self._bucket(file.key).presigned(method, file.key, self._link_seconds, {}, query)
        return SignedUrl(url, int(time.time()) + self._link_seconds)

    def signed_upload(self, file: StoredObject) -> SignedUpload:
        headers = {"Content-Type": _TYPE, "If-None-Match": "*"}  # create-only: a batch reads the file more than once
        signed = headers | {"Content-Length": str(file.size)}
        url = self._bucket(file.key).presigned("PUT", file.key, self._upload_seconds, signed)
        return SignedUpload(url, headers, int(time.time()) + self._upload_seconds)

    def _bucket(self, key: str) -> S3Bucket:
        return self._images if key.startswith(FILES) else self._inbox

    def _ask(
        self, method: str, file: StoredObject, deadline: Deadline, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        return self._bucket(file.key).ask(method, file.key, deadline, query=_version(file), headers=headers)


def _version(file: StoredObject) -> dict[str, str]:
    return {"versionId": file.version} if file.version else {}
