"""Reads and writes one S3 bucket by presigned requests.

With a presigned PUT, urllib3 streams a body into S3. This avoids the hashing of the body and botocore's request path,
which together take most of the time of `put_object`. Presigning needs no S3 client.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from urllib3.exceptions import HTTPError

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, ImageStorageError, ImageStorageInterruptedError
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import BLOCK_BYTES

CALL_SECONDS = 60.0
_MOST_ERROR_BYTES = 16 * 1024  # the errors of S3 have some hundred bytes
_PASSING_STATUSES = {408, 409, 429}  # 409: another create-only write of the same key is under way
# Codes with another status after which a newly signed request may succeed (S3 API reference, "Error responses").
# RequestTimeout: S3 received no byte of a PUT for some 20 s; AWS documents no time.
_PASSING_CODES = {"ExpiredToken", "IncompleteBody", "RequestTimeTooSkewed", "RequestTimeout", "TokenRefreshRequired"}
_EXPIRED = "Request has expired"  # of an AccessDenied: Lambda may have frozen the process between signing and sending


@dataclass(frozen=True, slots=True)
class S3Answer:
    """The status of an answer. `text` is the body of an error: XML with a code and a message.

    `version` is that of the object in a bucket with versions, "" in any other.
    """

    status: int
    text: bytes = b""
    version: str = ""

    @property
    def code(self) -> str:
        return self._element("Code")

    @property
    def is_missing(self) -> bool:
        """`True` if there is no such object. Without s3:ListBucket, S3 answers AccessDenied for a missing key."""
        return self.status == 404 or (self.code == "AccessDenied" and not self.may_pass)

    @property
    def may_pass(self) -> bool:
        """`True` if the same request, newly signed, may succeed."""
        return (
            self.status >= 500
            or self.status in _PASSING_STATUSES
            or self.code in _PASSING_CODES
            or self._element("Message") == _EXPIRED
        )

    def refusal(self, message: str) -> ImageStorageError:
        """Returns the error to raise for this answer."""
        return ImageStorageInterruptedError(message) if self.may_pass else ImageStorageError(message)

    def _element(self, name: str) -> str:
        _, _, found = self.text.partition(f"<{name}>".encode())
        return found.partition(b"<")[0].decode(errors="replace")


def s3_answer(response: urllib3.BaseHTTPResponse) -> S3Answer:
    """Reads an answer without an object. Raises urllib3's HTTPError."""
    text = response.read(_MOST_ERROR_BYTES) if response.status >= 400 else b""
    response.drain_conn()
    return S3Answer(response.status, text, response.headers.get("x-amz-version-id", ""))


def read_answer(response: urllib3.BaseHTTPResponse, broken: Callable[[], ImagegenError]) -> S3Answer:
    """Reads an answer without an object. Raises what `broken` returns if the connection breaks off."""
    try:
        return s3_answer(response)
    except (HTTPError, OSError):
        raise broken() from None


def read_blocks(
    response: urllib3.BaseHTTPResponse, deadline: Deadline, broken: Callable[[], ImagegenError]
) -> Iterator[bytes]:
    """Yields the content of an object. Raises what `broken` returns if reading breaks off."""
    while True:
        try:
            block = response.read(BLOCK_BYTES)
        except (HTTPError, OSError):
            raise broken() from None
        if not deadline.remaining():  # cut off: under TLS the block may be ciphertext
            raise broken()
        if not block:
            return
        yield block


class S3Bucket:
    """`url` is the address of the bucket, without a slash at the end. `put` and `ask` raise urllib3's HTTPError."""

    def __init__(
        self,
        pool: HttpPool,
        *,
        url: str,
        region: str,
        credentials: Callable[[], Credentials | ReadOnlyCredentials],
    ) -> None:
        self._pool = pool
        self._url = url
        self._region = region
        self._credentials = credentials

    def put(self, key: str, blocks: Iterator[bytes], headers: Mapping[str, str], deadline: Deadline) -> S3Answer:
        """Stores an object. `headers` must have the content type and length; they are signed."""
        url = self.presigned("PUT", key, int(CALL_SECONDS), headers)
        response = self._pool.request(
            "PUT", urlsplit(url), deadline.sooner(CALL_SECONDS), body=blocks, headers=headers, reuse=True
        )
        return s3_answer(response)

    def ask(
        self,
        method: str,
        key: str,
        deadline: Deadline,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Returns the answer, with its body unread. The caller must close it."""
        url = self.presigned(method, key, int(CALL_SECONDS), headers or {}, query or {})
        return self._pool.request(
            method, urlsplit(url), deadline.sooner(CALL_SECONDS), headers=headers or {}, reuse=True
        )

    def presigned(
        self, method: str, key: str, seconds: int, headers: Mapping[str, str], query: Mapping[str, str] | None = None
    ) -> str:
        url = f"{self._url}/{quote(key)}" + (f"?{urlencode(query)}" if query else "")
        request = AWSRequest(method=method, url=url, headers=dict(headers))
        S3SigV4QueryAuth(self._credentials(), "s3", self._region, expires=seconds).add_auth(request)
        return str(request.url)


def bucket_url(bucket: str, region: str, endpoint_url: str | None) -> str:
    """Returns the address of a bucket: its own host, or a path under `endpoint_url` if a stand-in replaces AWS."""
    if endpoint_url:
        return f"{endpoint_url.rstrip('/')}/{bucket}"
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{bucket}.s3.{region}.{suffix}"
