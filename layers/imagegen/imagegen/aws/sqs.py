"""The queues: behind every generation, before the intake, and aside for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imagegen.domain.errors import RecordsUnavailableError

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
        except Exception as error:  # likewise
            raise RecordsUnavailableError("The queue of this service could not be reached just now.") from error


class _SqsQueue:
    """Messages that hold an id and nothing else, under the name `field`."""

    def __init__(self, client: Callable[[], SQSClient], queue_url: str, field: str) -> None:
        self._client = client
        self._queue_url = queue_url
        self._field = field

    def _send(self, value: str, caller: str, delay: float) -> None:
        try:
            self._client().send_message(
                QueueUrl=self._queue_url,
                MessageBody=json.dumps({self._field: value}),
                DelaySeconds=round(delay),
                MessageGroupId=caller,  # what makes a standard queue fair between callers
            )
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise RecordsUnavailableError("The queue of this service could not be reached just now.") from error

    def hold(self, receipt: str, seconds: float) -> None:
        self._client().change_message_visibility(
            QueueUrl=self._queue_url, ReceiptHandle=receipt, VisibilityTimeout=round(seconds)
        )


class SqsGenerations(_SqsQueue):
    """Implements `ports.GenerationQueue`. A message is `{"generation_id": …}`."""

    def __init__(self, client: Callable[[], SQSClient], queue_url: str) -> None:
        super().__init__(client, queue_url, "generation_id")

    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        self._send(generation_id, caller, delay)


class SqsBatches(_SqsQueue):
    """Implements `ports.BatchQueue`. A message is `{"batch_id": …}`."""

    def __init__(self, client: Callable[[], SQSClient], queue_url: str) -> None:
        super().__init__(client, queue_url, "batch_id")

    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        self._send(batch_id, caller, delay)
