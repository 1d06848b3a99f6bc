"""Images in S3, stored and handed out through presigned URLs.

A presigned PUT driven by urllib3 streams an upstream's body straight into S3. It costs neither the hashing of the body
nor botocore's request path, which together are most of what `put_object` costs, and presigning needs no S3 client.
"""

import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from urllib3.exceptions import HTTPError

from imagegen.deadline import Deadline
from imagegen.errors import ImageStorageError, ImageStorageInterruptedError, MoneySpentError
from imagegen.images import ImageBody, SignedUrl
from imagegen.outbound.pool import HttpPool

_PUT_SECONDS = 60.0
_STORED_ALREADY = 412
_WORTH_ANOTHER_TRY = {408, 409, 429}  # 409: another create-only write of the same key is under way
_NOT_STORED = "An image was made but could not be stored."


class S3ImageStore:
    """Implements `ports.ImageStore`.

    `bucket_url` is where the bucket answers, without a slash at the end. `link_seconds` is how long a signed URL works:
    at most seven days (a limit of S3), and no longer than the credentials that sign it.
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
        self._pool = pool
        self._bucket_url = bucket_url
        self._region = region
        self._credentials = credentials
        self._link_seconds = link_seconds

    def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> None:
        headers = {
            "Content-Type": body.media_type,
            "Content-Length": str(body.length),
            "If-None-Match": "*",  # create-only
        }
        url = self._presigned("PUT", image_id, int(_PUT_SECONDS), headers)
        try:
            response = self._pool.request(
                "PUT", urlsplit(url), deadline.sooner(_PUT_SECONDS), body=body.blocks, headers=headers
            )
            status = response.status
            response.drain_conn()
        except MoneySpentError:  # from the body's blocks
            raise
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_STORED) from None
        if status in (200, _STORED_ALREADY):
            return
        if status >= 500 or status in _WORTH_ANOTHER_TRY:
            raise ImageStorageInterruptedError(_NOT_STORED)
        raise ImageStorageError(f"{_NOT_STORED} The image bucket answered {status}.")

    def signed_url(self, image_id: str) -> SignedUrl:
        now = int(time.time())
        return SignedUrl(self._presigned("GET", image_id, self._link_seconds, {}), now + self._link_seconds)

    def _presigned(self, method: str, image_id: str, seconds: int, headers: Mapping[str, str]) -> str:
        request = AWSRequest(method=method, url=f"{self._bucket_url}/images/{quote(image_id)}", headers=dict(headers))
        S3SigV4QueryAuth(self._credentials(), "s3", self._region, expires=seconds).add_auth(request)
        return str(request.url)


def bucket_url(bucket: str, region: str, endpoint_url: str | None) -> str:
    """Where a bucket answers: at its own name, or by path under an endpoint that stands in for AWS."""
    if endpoint_url:
        return f"{endpoint_url.rstrip('/')}/{bucket}"
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{bucket}.s3.{region}.{suffix}"
