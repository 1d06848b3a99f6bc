"""One S3 bucket, driven by presigned requests.

A presigned PUT driven by urllib3 streams a body straight into S3. It costs neither the hashing of the body nor
botocore's request path, which together are most of what `put_object` costs, and presigning needs no S3 client.
"""

from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials

from imagegen.deadline import Deadline
from imagegen.outbound.pool import HttpPool

CALL_SECONDS = 60.0


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

    def put(self, key: str, blocks: Iterator[bytes], headers: Mapping[str, str], deadline: Deadline) -> int:
        """The status of the answer. The headers tell type and length, and are signed with the rest."""
        url = self.presigned("PUT", key, int(CALL_SECONDS), headers)
        response = self._pool.request(
            "PUT", urlsplit(url), deadline.sooner(CALL_SECONDS), body=blocks, headers=headers, reuse=True
        )
        status = response.status
        response.drain_conn()
        return status

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
