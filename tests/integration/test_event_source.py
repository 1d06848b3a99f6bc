"""The rules of Lambda's SQS event source that the local stack enforces, on moto's queues."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import boto3
import pytest

from local import lambda_host
from local.aws_door import REGION
from local.event_source import EventSource, polling
from local.lambda_host import FunctionError, FunctionHost
from tests.support.stores import ACCESS_KEY, SECRET, Connect
from tests.support.waiting import until

SENDS_ITSELF_THE_NEXT_NUMBER = """
import boto3, os

sqs = boto3.client("sqs")

def handler(event, context):
    (record,) = event["Records"]
    number = int(record["body"])
    if number == 30:
        raise ValueError("enough")
    with open(os.environ["NUMBERS"], "a") as numbers:
        numbers.write(f"{number} ")
    sqs.send_message(QueueUrl=os.environ["QUEUE_URL"], MessageBody=str(number + 1))
"""
Answer = Callable[[dict[str, Any]], Any]


class Function:
    """Stands in for a function's processes: answers each event with `answer`, in its own thread."""

    def __init__(self, answer: Answer, pool: ThreadPoolExecutor) -> None:
        self.events: list[dict[str, Any]] = []
        self._answer, self._pool = answer, pool

    def invoke(self, event: dict[str, Any], _: list[str]) -> Future[bytes]:
        self.events.append(event)
        return self._pool.submit(lambda: json.dumps(self._answer(event)).encode())

    def bodies(self) -> list[str]:
        return [record["body"] for event in self.events for record in event["Records"]]


class Queue:
    def __init__(self, sqs: Any, **attributes: str) -> None:
        self.sqs = sqs
        self.url: str = sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex}", Attributes=attributes)["QueueUrl"]
        self.arn: str = self._attributes()["QueueArn"]

    def _attributes(self) -> dict[str, str]:
        found: dict[str, str] = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return found

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def left(self) -> int:
        """The number of messages in the queue, visible or not."""
        found = self._attributes()
        return sum(int(found[f"ApproximateNumberOfMessages{kind}"]) for kind in ("", "NotVisible"))

    def bodies(self) -> list[str]:
        """Of up to ten messages, which stay visible."""
        found = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [message["Body"] for message in found.get("Messages", [])]


@pytest.fixture(scope="module")
def sqs(aws_url: str) -> Iterator[Any]:
    credentials = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client: Any = boto3.client("sqs", endpoint_url=aws_url, region_name="us-east-1", **credentials)  # type: ignore[call-overload]
    yield client
    client.close()


Poll = Callable[..., AbstractContextManager[Function]]


@pytest.fixture
def poll() -> Iterator[Poll]:
    """Gives a queue's messages to a function with this answer."""
    with ThreadPoolExecutor(10) as pool:

        @contextmanager
        def polled(queue: Queue, answer: Answer, *, batch_size: int = 1, concurrency: int = 5) -> Iterator[Function]:
            function = Function(answer, pool)
            source = EventSource(queue.url, queue.arn, cast("FunctionHost", function), batch_size, concurrency)
            with polling(source, queue.sqs):
                yield function

        yield polled


def fail(_: dict[str, Any]) -> None:
    raise FunctionError("died")


def test_a_message_becomes_an_sqs_event_and_is_deleted_after_success(sqs: Any, poll: Poll) -> None:
    queue = Queue(sqs)
    queue.send("hello")
    with poll(queue, lambda _: None) as function:
        until(lambda: queue.left() == 0)
    ((record,),) = [event["Records"] for event in function.events]
    assert (record["body"], record["eventSource"], record["eventSourceARN"]) == ("hello", "aws:sqs", queue.arn)
    assert record["awsRegion"] == "us-east-1"
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert int(record["attributes"]["SentTimestamp"]) > 1_700_000_000_000


def test_only_failed_messages_of_a_batch_stay_in_the_queue(sqs: Any, poll: Poll) -> None:
    def keep_bad(event: dict[str, Any]) -> dict[str, Any]:
        bad = [record["messageId"] for record in event["Records"] if record["body"] == "bad"]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in bad]}

    queue = Queue(sqs, VisibilityTimeout="900")
    queue.send("good", "bad", "good")
    with poll(queue, keep_bad, batch_size=10) as function:
        until(lambda: queue.left() == 1)
    assert len(function.events) == 1
    assert sorted(function.bodies()) == ["bad", "good", "good"]


def test_a_message_is_redelivered_until_it_is_a_dead_letter(sqs: Any, poll: Poll) -> None:
    dead = Queue(sqs)
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2})
    queue = Queue(sqs, VisibilityTimeout="0", RedrivePolicy=policy)
    queue.send("hopeless")
    with poll(queue, fail) as function:
        until(lambda: dead.left() == 1)
    assert function.bodies() == ["hopeless"] * 2
    assert queue.left() == 0


def test_the_mapping_limits_the_number_of_concurrent_batches(sqs: Any, poll: Poll) -> None:
    two, lock, at_once, most = threading.Barrier(2), threading.Lock(), 0, 0

    def count(_: dict[str, Any]) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        two.wait(60)  # passes only if two are under way at once
        with lock:
            at_once -= 1

    queue = Queue(sqs)
    queue.send(*"abcdef")
    with poll(queue, count, concurrency=2) as function:
        until(lambda: queue.left() == 0)
    assert most == 2
    assert sorted(function.bodies()) == list("abcdef")


@pytest.mark.parametrize(("allows_loops", "rounds"), [(False, 16), (True, 30)])
def test_a_function_that_feeds_its_own_queue_is_stopped_after_16_rounds_unless_it_allows_loops(
    connect: Connect, moto_url: str, tmp_path: Path, allows_loops: bool, rounds: int
) -> None:
    sqs = connect("sqs", moto_url, region=REGION)
    dead = Queue(sqs)
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 1})
    queue, numbers = Queue(sqs, VisibilityTimeout="1", RedrivePolicy=policy), tmp_path / "numbers"
    (tmp_path / "app.py").write_text(SENDS_ITSELF_THE_NEXT_NUMBER)
    aws = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": REGION}
    environment = {**aws, "AWS_ENDPOINT_URL": moto_url, "NUMBERS": str(numbers), "QUEUE_URL": queue.url}
    function = lambda_host.Function(
        "feeds", "app.handler", tmp_path, (), 60, 128, environment, allows_loops=allows_loops
    )
    with closing(FunctionHost(function, tmp_path / "log")) as host:
        host.warm_up()
        queue.send("0")
        with polling(EventSource(queue.url, queue.arn, host, batch_size=1, concurrency=1), sqs):
            until(lambda: str(rounds) in dead.bodies())
    assert numbers.read_text().split() == [str(number) for number in range(rounds)]
