"""Reads objects of other buckets, which events name as input images."""

import re
from collections.abc import Callable, Collection
from contextlib import closing

from botocore.credentials import Credentials, ReadOnlyCredentials
from urllib3.exceptions import HTTPError

from imagegen.aws.bucket import S3Bucket, bucket_url, read_answer, read_blocks
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError, InvalidImageError
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.read_deadline import cut_off_at

_S3_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.{1,1024})", re.DOTALL)
_LONGEST_KEY = 1024  # bytes of UTF-8 (S3 user guide, "Naming Amazon S3 objects"); S3 refuses a longer one with a 400


class S3Objects:
    """Implements `ports.ObjectSource`. Only the `buckets` may be read, which are in the region of the stack."""

    def __init__(
        self,
        pool: HttpPool,
        *,
        buckets: Collection[str],
        region: str,
        endpoint_url: str | None,
        credentials: Callable[[], Credentials | ReadOnlyCredentials],
    ) -> None:
        self._pool = pool
        self._buckets = buckets
        self._region = region
        self._endpoint_url = endpoint_url
        self._credentials = credentials

    def fetch(self, s3_uri: str, most_bytes: int, deadline: Deadline) -> bytes:
        match = _S3_URI.fullmatch(s3_uri)
        if match is None or match[1] not in self._buckets or len(match[2].encode()) > _LONGEST_KEY:
            raise InvalidImageError("expected s3://BUCKET/KEY with a bucket that this stack may read")
        url = bucket_url(match[1], self._region, self._endpoint_url)
        bucket = S3Bucket(self._pool, url=url, region=self._region, credentials=self._credentials)
        try:
            response = bucket.ask("GET", match[2], deadline)
        except (HTTPError, OSError):
            raise _not_read() from None
        with closing(response), cut_off_at(deadline, response.shutdown):
            if response.status != 200:
                if read_answer(response, _not_read).is_missing:
                    raise InvalidImageError("there is no such object, or this stack may not read it")
                raise _not_read()
            length = response.headers.get("Content-Length")
            if length is None:  # the connection broke off within the headers
                raise _not_read()
            if int(length) > most_bytes:
                raise InvalidImageError(f"it has over {most_bytes} bytes")
            response.decode_content = False  # the length is that of the stored bytes, which is limited
            return b"".join(read_blocks(response, deadline, _not_read))


def _not_read() -> InputUnavailableError:
    return InputUnavailableError("An object of S3 could not be read. Please try again.")
