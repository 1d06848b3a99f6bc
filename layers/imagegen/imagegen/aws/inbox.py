"""Reads files of requests from the inbox bucket, and writes files of results to it."""

from collections.abc import Iterator
from contextlib import closing

from urllib3.exceptions import HTTPError

from imagegen.aws.bucket import S3Answer, S3Bucket, s3_answer
from imagegen.domain.batches import InboxFile
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageInterruptedError
from imagegen.outbound.read_deadline import cut_off_at

_NOT_READ = "A file in the inbox could not be read."
_NOT_WRITTEN = "A file could not be written to the outbox."


class S3Inbox:
    """Implements `ports.Inbox`. A file is read in pieces, each by its own request, so no answer stays open."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket

    def has(self, file: InboxFile, deadline: Deadline) -> bool:
        try:
            with closing(self._bucket.ask("HEAD", file.key, deadline, query={"versionId": file.version})) as response:
                response.drain_conn()
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_READ) from None
        # Without s3:ListBucket, S3 answers 403 for a missing key. 400 and 405 mean that the version does not exist.
        if response.status not in (200, 400, 403, 404, 405):
            raise ImageStorageInterruptedError(_NOT_READ)
        return response.status == 200

    def read(self, file: InboxFile, offset: int, length: int, deadline: Deadline) -> bytes:
        try:
            response = self._bucket.ask(
                "GET",
                file.key,
                deadline,
                query={"versionId": file.version},
                headers={"Range": f"bytes={offset}-{offset + length - 1}"},
            )
            with closing(response), cut_off_at(deadline, response.shutdown):
                content = response.read()
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_READ) from None
        if response.status not in (200, 206) or len(content) != length:
            raise S3Answer(response.status, content).refusal(f"{_NOT_READ} The bucket answered {response.status}.")
        return content


class S3Outbox:
    """Implements `ports.Outbox`."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        headers = {"Content-Type": "application/jsonl", "Content-Length": str(length)}
        try:
            answer = self._bucket.put(key, blocks, headers, deadline)
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_WRITTEN) from None
        if answer.status != 200:
            raise answer.refusal(f"{_NOT_WRITTEN} The bucket answered {answer.status}.")

    def delete(self, key: str, deadline: Deadline) -> None:
        try:
            with closing(self._bucket.ask("DELETE", key, deadline)) as response:
                answer = s3_answer(response)
        except (HTTPError, OSError):
            raise ImageStorageInterruptedError(_NOT_WRITTEN) from None
        if answer.status not in (200, 204):
            raise answer.refusal(f"{_NOT_WRITTEN} The bucket answered {answer.status}.")
