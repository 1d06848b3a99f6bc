"""Lambda's SQS event source on one machine: receives, invokes, and deletes what the function does not send back."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from local.lambda_host import FunctionError, FunctionHost, ThrottledError

_LONG_POLL_SECONDS = 2
_PAUSE_SECONDS = 0.1  # after a look that failed


@dataclass(frozen=True)
class EventSource:
    """One mapping of the template. At most `concurrency` batches are under way at once."""

    queue_url: str
    queue_arn: str
    function: FunctionHost
    batch_size: int
    concurrency: int


@contextmanager
def polling(source: EventSource, sqs: Any) -> Iterator[None]:
    """Polls until the block is left. What is under way then is not waited for, as when a machine dies."""
    ending = threading.Event()
    threading.Thread(target=_poll, args=(source, sqs, ending), daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def _poll(source: EventSource, sqs: Any, ending: threading.Event) -> None:
    free = threading.Semaphore(source.concurrency)
    while not ending.is_set():
        if not free.acquire(timeout=_PAUSE_SECONDS):
            continue
        messages = _receive(source, sqs)
        if not messages:
            free.release()
            continue
        threading.Thread(target=_invoke, args=(source, sqs, messages, free), daemon=True).start()


def _receive(source: EventSource, sqs: Any) -> list[dict[str, Any]]:
    try:
        answer = sqs.receive_message(
            QueueUrl=source.queue_url,
            MaxNumberOfMessages=source.batch_size,
            WaitTimeSeconds=_LONG_POLL_SECONDS,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
    except Exception:  # noqa: BLE001  # AWS is not to be had just now, or the stack is closing
        time.sleep(_PAUSE_SECONDS)
        return []
    messages: list[dict[str, Any]] = answer.get("Messages", [])
    return messages


def _invoke(source: EventSource, sqs: Any, messages: list[dict[str, Any]], free: threading.Semaphore) -> None:
    try:
        event = {"Records": [_record(message, source.queue_arn) for message in messages]}
        try:
            answer = json.loads(_invoked(source.function, event))
            again = {failure["itemIdentifier"] for failure in (answer or {}).get("batchItemFailures", [])}
        except (FunctionError, AttributeError, KeyError, TypeError, ValueError):
            return  # all of them come again when their visibility time-out has run out
        for message in messages:
            if message["MessageId"] not in again:
                sqs.delete_message(QueueUrl=source.queue_url, ReceiptHandle=message["ReceiptHandle"])
    except Exception:  # noqa: BLE001, S110  # likewise
        pass
    finally:
        free.release()


def _invoked(function: FunctionHost, event: object) -> bytes:
    """The function's answer. As long as the account has no execution for it, Lambda tries again."""
    while True:
        try:
            return function.invoke(event).result()
        except ThrottledError:
            time.sleep(_PAUSE_SECONDS)


def _record(message: dict[str, Any], queue_arn: str) -> dict[str, Any]:
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message["Attributes"],
        "messageAttributes": {},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": queue_arn.split(":")[3],
    }
