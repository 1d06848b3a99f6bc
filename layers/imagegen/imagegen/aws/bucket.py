"""One S3 bucket, driven by presigned requests.

A presigned PUT driven by urllib3 streams a body straight into S3. It costs neither the hashing of the body nor
botocore's request path, which together are most of what `put_object` costs, and presigning needs no S3 client.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageError, ImageStorageInterruptedError
from imagegen.outbound.pool import HttpPool

CALL_SECONDS = 60.0
_MOST_ERROR_BYTES = 16 * 1024  # S3's errors have some hundred
_PASSING_STATUSES = {408, 409, 429}  # 409: another create-only write of the same key is under way
# Those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html with another status that a request which
# is sent and signed anew may not meet again. RequestTimeout: no byte of a PUT came for some 20 s.
_PASSING_CODES = {"ExpiredToken", "IncompleteBody", "RequestTimeTooSkewed", "RequestTimeout", "TokenRefreshRequired"}
_EXPIRED = "Request has expired"  # an AccessDenied: between signing and sending the process may have been frozen


@dataclass(frozen=True, slots=True)
class S3Answer:
    """A status, and what S3 says of it if it is an error. `text` is XML with a code and a message."""

    status: int
    text: bytes = b""

    @property
    def code(self) -> str:
        return self._element("Code")

    @property
    def may_pass(self) -> bool:
        """Whether the same request, sent and signed anew, may be answered otherwise."""
        return (
            self.status >= 500
            or self.status in _PASSING_STATUSES
            or self.code in _PASSING_CODES
            or self._element("Message") == _EXPIRED
        )

    def refusal(self, message: str) -> ImageStorageError:
        """The error to raise for this answer."""
        return ImageStorageInterruptedError(message) if self.may_pass else ImageStorageError(message)

    def _element(self, name: str) -> str:
        _, _, found = self.text.partition(f"<{name}>".encode())
        return found.partition(b"<")[0].decode(errors="replace")


def s3_answer(response: urllib3.BaseHTTPResponse) -> S3Answer:
    """Reads an answer that carries no object. Raises urllib3's HTTPError."""
    text = response.read(_MOST_ERROR_BYTES) if response.status >= 400 else b""
    response.drain_conn()
    return S3Answer(response.status, text)


class S3Bucket:
    """`url` is where the bucket answers, without a slash at the end. Asking and putting raise urllib3's HTTPError."""

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
        """The headers have type and length, and are signed with the rest."""
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
        """The answer, whose body is still to be read."""
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
    """Where a bucket answers: at its own name, or by path under an endpoint that stands in for AWS."""
    if endpoint_url:
        return f"{endpoint_url.rstrip('/')}/{bucket}"
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{bucket}.s3.{region}.{suffix}"
