"""The rules of Lambda's SQS event source that the local stack enforces, on moto's queues."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import boto3
import pytest

from local.event_source import EventSource, polling
from local.lambda_host import FunctionError, FunctionHost

Answer = Callable[[dict[str, Any]], Any]


class Function:
    """In the place of a function's processes: answers each event by `answer`, on a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        self.events: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self._answer = answer
        self._lock = threading.Lock()

    def invoke(self, event: dict[str, Any]) -> Future[bytes]:
        future: Future[bytes] = Future()
        threading.Thread(target=self._run, args=(event, future)).start()
        return future

    def bodies(self) -> list[str]:
        return [record["body"] for event in self.events for record in event["Records"]]

    def _run(self, event: dict[str, Any], future: Future[bytes]) -> None:
        with self._lock:
            self.events.append(event)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        failure: FunctionError | None = None
        answer = b""
        try:
            answer = json.dumps(self._answer(event)).encode()
        except FunctionError as error:
            failure = error
        with self._lock:
            self.at_once -= 1
        if failure:
            future.set_exception(failure)
        else:
            future.set_result(answer)


class Queue:
    def __init__(self, aws_url: str, **attributes: str) -> None:
        credentials = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        self.sqs: Any = boto3.client("sqs", endpoint_url=aws_url, region_name="us-east-1", **credentials)  # type: ignore[call-overload]
        self.url: str = self.sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex}", Attributes=attributes)["QueueUrl"]
        self.arn: str = self.attribute("QueueArn")

    def attribute(self, name: str) -> str:
        value: str = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"][name]
        return value

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def left(self) -> int:
        """Messages that are in the queue, seen or not."""
        return int(self.attribute("ApproximateNumberOfMessages")) + int(
            self.attribute("ApproximateNumberOfMessagesNotVisible")
        )


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    def until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.02)

    return until


@pytest.fixture
def poll() -> Callable[..., Any]:
    def poll(queue: Queue, function: Function, *, batch_size: int = 1, concurrency: int = 5) -> Any:
        source = EventSource(queue.url, queue.arn, cast("FunctionHost", function), batch_size, concurrency)
        return polling(source, queue.sqs)

    return poll


def test_a_message_becomes_an_sqs_event_and_is_deleted_when_the_function_has_dealt_with_it(
    aws_url: str, poll: Any, until: Any
) -> None:
    queue, function = Queue(aws_url), Function(lambda _: None)
    queue.send("hello")
    with poll(queue, function):
        until(lambda: queue.left() == 0)
    ((record,),) = [event["Records"] for event in function.events]
    assert record["body"] == "hello"
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"] == queue.arn
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert int(record["attributes"]["SentTimestamp"]) > 1_700_000_000_000


def test_what_the_function_sends_back_stays_and_the_rest_of_its_batch_goes(aws_url: str, poll: Any, until: Any) -> None:
    def keep_bad(event: dict[str, Any]) -> dict[str, Any]:
        bad = [record["messageId"] for record in event["Records"] if record["body"] == "bad"]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in bad]}

    queue, function = Queue(aws_url, VisibilityTimeout="900"), Function(keep_bad)
    queue.send("good", "bad", "good")
    with poll(queue, function, batch_size=10):
        until(lambda: queue.left() == 1)
    assert sorted(function.bodies()) == ["bad", "good", "good"]


def test_the_messages_of_a_function_that_fails_come_again_when_their_time_has_run_out(
    aws_url: str, poll: Any, until: Any
) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise FunctionError("died")

    queue, function = Queue(aws_url, VisibilityTimeout="1"), Function(fail)
    queue.send("again")
    started = time.monotonic()
    with poll(queue, function):
        until(lambda: len(function.events) == 2)
    assert time.monotonic() - started >= 1


def test_a_message_that_is_never_dealt_with_goes_to_the_dead_letters(aws_url: str, poll: Any, until: Any) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise FunctionError("died")

    dead = Queue(aws_url)
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2})
    queue = Queue(aws_url, VisibilityTimeout="0", RedrivePolicy=policy)
    function = Function(fail)
    queue.send("hopeless")
    with poll(queue, function):
        until(lambda: dead.left() == 1)
    assert len(function.events) == 2
    assert queue.left() == 0


def test_no_more_batches_are_under_way_than_the_mapping_allows(aws_url: str, poll: Any, until: Any) -> None:
    queue, function = Queue(aws_url), Function(lambda _: time.sleep(0.3))
    queue.send(*"abcdef")
    with poll(queue, function, concurrency=2):
        until(lambda: queue.left() == 0)
    assert function.most_at_once == 2
    assert sorted(function.bodies()) == list("abcdef")
