"""Sends messages to the queues: generations, the intake, and the dead letters that an operator must look at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imagegen.domain.errors import RecordsUnavailableError
from imagegen.ports import MESSAGE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from types_boto3_sqs import SQSClient

    from imagegen.domain.queues import WorkQueue


class SqsDeadLetters:
    """Implements `ports.DeadLetters`."""

    def __init__(self, client: Callable[[], SQSClient], queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url

    def put(self, body: str, reason: str) -> None:
        try:
            self._client().send_message(
                QueueUrl=self._queue_url,
                MessageBody=body,
                MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
            )
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise _unavailable() from error


class _SqsQueue:
    def __init__(self, client: Callable[[], SQSClient], queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url

    def _send(self, message: dict[str, str | int], caller: str, delay: float) -> None:
        try:
            self._client().send_message(
                QueueUrl=self._queue_url,
                MessageBody=json.dumps({"version": MESSAGE_VERSION, **message}),
                DelaySeconds=round(delay),
                # So that no caller delays the others (SQS developer guide, "Amazon SQS fair queues").
                MessageGroupId=caller,
            )
        except Exception as error:  # as above
            raise _unavailable() from error

    def extend_visibility(self, receipt: str, seconds: float) -> None:
        self._client().change_message_visibility(
            QueueUrl=self._queue_url, ReceiptHandle=receipt, VisibilityTimeout=round(seconds)
        )


class SqsGenerations(_SqsQueue):
    """Implements `ports.GenerationQueue`. A message is `{"version", "generation_id", "poll"}`.

    `urls` are those of the queues by their names. The messages at hand are of the queue `received_from`.
    """

    def __init__(
        self,
        client: Callable[[], SQSClient],
        urls: Mapping[WorkQueue, str],
        received_from: WorkQueue = "requests",
    ) -> None:
        super().__init__(client, urls[received_from])
        self._queues = {name: _SqsQueue(client, url) for name, url in urls.items()}

    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        self._queues[to]._send({"generation_id": generation_id, "poll": poll}, caller, delay)  # noqa: SLF001


class SqsBatches(_SqsQueue):
    """Implements `ports.BatchQueue`. A message is `{"version", "batch_id"}`."""

    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        self._send({"batch_id": batch_id}, caller, delay)


def _unavailable() -> RecordsUnavailableError:
    return RecordsUnavailableError("The queue of this service is temporarily unavailable.")
