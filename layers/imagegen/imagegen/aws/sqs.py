"""Sends messages to the queues: generations, the intake, and the dead letters that an operator must look at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imagegen.domain.errors import RecordsUnavailableError
from imagegen.ports import MESSAGE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_sqs import SQSClient


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

    Messages are received from `queue_url`. Lines of batches have the queue `batch_queue_url`.
    """

    def __init__(self, client: Callable[[], SQSClient], queue_url: str, *, batch_queue_url: str) -> None:
        super().__init__(client, queue_url)
        self._of_batch = _SqsQueue(client, batch_queue_url)

    def send(self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, of_batch: bool = False) -> None:
        queue = self._of_batch if of_batch else self
        queue._send({"generation_id": generation_id, "poll": poll}, caller, delay)  # noqa: SLF001


class SqsBatches(_SqsQueue):
    """Implements `ports.BatchQueue`. A message is `{"version", "batch_id"}`."""

    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        self._send({"batch_id": batch_id}, caller, delay)


def _unavailable() -> RecordsUnavailableError:
    return RecordsUnavailableError("The queue of this service is temporarily unavailable.")
