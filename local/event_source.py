"""Lambda's SQS event source: receives messages, invokes the function, and deletes the messages that it processed."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from local.lambda_host import FunctionError, FunctionHost, RecursiveInvocationError, ThrottledError

_LONG_POLL_SECONDS = 2
_PAUSE_SECONDS = 0.1
# Lambda developer guide, "Using Lambda with Amazon SQS": a mapping starts with five concurrent batches. Lambda raises
# this number under load; this event source does not.
DEFAULT_CONCURRENCY = 5


@dataclass(frozen=True)
class EventSource:
    """One mapping of the template. `concurrency` is the maximum number of batches at once."""

    queue_url: str
    queue_arn: str
    function: FunctionHost
    batch_size: int
    concurrency: int


@contextmanager
def polling(source: EventSource, sqs: Any) -> Iterator[None]:
    """Polls until the block ends. Does not wait for running batches."""
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
    except Exception:  # noqa: BLE001  # moto is unreachable, or the stack is closing
        time.sleep(_PAUSE_SECONDS)
        return []
    messages: list[dict[str, Any]] = answer.get("Messages", [])
    return messages


def _invoke(source: EventSource, sqs: Any, messages: list[dict[str, Any]], free: threading.Semaphore) -> None:
    try:
        event = {"Records": [sqs_record(message, source.queue_arn) for message in messages]}
        traces = [trace for message in messages if (trace := message["Attributes"].get("AWSTraceHeader"))]
        try:
            answer = json.loads(_invoked(source.function, event, traces))
            again = {failure["itemIdentifier"] for failure in (answer or {}).get("batchItemFailures", [])}
        except (FunctionError, RecursiveInvocationError, AttributeError, KeyError, TypeError, ValueError):
            return  # the messages become visible again after their visibility time-out
        for message in messages:
            if message["MessageId"] not in again:
                sqs.delete_message(QueueUrl=source.queue_url, ReceiptHandle=message["ReceiptHandle"])
    except Exception:  # noqa: BLE001, S110  # as in _receive
        pass
    finally:
        free.release()


def _invoked(function: FunctionHost, event: object, traces: list[str]) -> bytes:
    """The function's answer. Tries again while the account is at its limit of concurrent executions, as Lambda does."""
    while True:
        try:
            return function.invoke(event, traces).result()
        except ThrottledError:
            time.sleep(_PAUSE_SECONDS)


def sqs_record(message: dict[str, Any], queue_arn: str) -> dict[str, Any]:
    """A message as a record of Lambda's SQS event."""
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
