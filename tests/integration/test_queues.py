"""The queues: the fake and the real one, on moto, pass one contract."""

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import pytest

from imagegen.aws.sqs import SqsBatches, SqsDeadLetters, SqsGenerations
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.queues import WorkQueue
from imagegen.wire.inbox_messages import read_inbox_message
from imagegen.wire.queue_messages import read_generation_message
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.support.stores import Connect, closed_url

if TYPE_CHECKING:
    from imagegen.ports import GenerationQueue

BATCH_ID = f"batch_{'a' * 22}"


@dataclass
class Sqs:
    client: Any
    url: str

    def __call__(self) -> Any:
        """The queues call this to get their client."""
        return self.client

    @property
    def urls(self) -> dict[WorkQueue, str]:
        return {"requests": self.url, "lines": self.url, "polls": self.url}

    def received(self, **arguments: Any) -> list[Any]:
        found = self.client.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, **arguments)
        return list(found.get("Messages", []))

    def ids(self) -> list[str]:
        return [json.loads(message["Body"])["generation_id"] for message in self.received()]

    def delayed(self) -> int:
        name = "ApproximateNumberOfMessagesDelayed"
        return int(self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])["Attributes"][name])


@pytest.fixture
def sqs(connect: Connect, aws_url: str) -> Sqs:
    client = connect("sqs", aws_url)
    return Sqs(client, client.create_queue(QueueName=f"generations-{uuid4().hex}")["QueueUrl"])


def test_a_message_is_delivered_after_its_delay(sqs: Sqs) -> None:
    fake = FakeGenerationQueue()
    queues: tuple[GenerationQueue, ...] = (fake, SqsGenerations(sqs, sqs.urls))
    for queue in queues:
        queue.send("gen_a", "alice")
        queue.send("gen_b", "alice", delay=60.6)
        queue.send("gen_c", "alice", delay=0.2)
    assert fake.sent == [("gen_a", 0), ("gen_b", 60.6), ("gen_c", 0.2)]
    assert (sorted(sqs.ids()), sqs.delayed()) == (["gen_a", "gen_c"], 1)


def test_a_message_has_its_version_and_poll(sqs: Sqs) -> None:
    fake = FakeGenerationQueue()
    queues: tuple[GenerationQueue, ...] = (fake, SqsGenerations(sqs, sqs.urls))
    for queue in queues:
        queue.send("gen_a", "alice")
        queue.send("gen_a", "alice", poll=3)
    bodies = [message["Body"] for message in sqs.received()]
    assert [json.loads(body) for body in bodies] == [
        {"version": 1, "generation_id": "gen_a", "poll": poll} for poll in fake.polls
    ]
    assert fake.polls == [0, 3]
    assert [read_generation_message(body) for body in bodies] == [("gen_a", 0), ("gen_a", 3)]
    with pytest.raises(msgspec.ValidationError):
        read_generation_message(bodies[0].replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize("to", ["requests", "lines", "polls"])
def test_a_message_goes_to_its_queue(connect: Connect, aws_url: str, to: WorkQueue) -> None:
    client = connect("sqs", aws_url)
    names: tuple[WorkQueue, ...] = ("requests", "lines", "polls")
    queues = {name: Sqs(client, client.create_queue(QueueName=uuid4().hex)["QueueUrl"]) for name in names}
    fake = FakeGenerationQueue()
    urls: dict[WorkQueue, str] = {name: queue.url for name, queue in queues.items()}
    for queue in (SqsGenerations(lambda: client, urls, "lines"), fake):
        queue.send("gen_a", "alice", to=to)
    assert {name: queue.ids() for name, queue in queues.items()} == {
        name: ["gen_a"] if name == to else [] for name in names
    }
    assert fake.queues == [to]


def test_a_batch_message_has_its_version(sqs: Sqs) -> None:
    SqsBatches(sqs, sqs.url).send(BATCH_ID, "alice")
    (message,) = sqs.received()
    body = message["Body"]
    assert json.loads(body) == {"version": 1, "batch_id": BATCH_ID}
    assert read_inbox_message(body) == BATCH_ID
    with pytest.raises(msgspec.ValidationError):
        read_inbox_message(body.replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(("queue", "caller"), [(SqsGenerations, "web"), (SqsBatches, f"oidc:{'0' * 32}")])
def test_a_message_has_its_callers_group(sqs: Sqs, queue: type[SqsGenerations | SqsBatches], caller: str) -> None:
    (SqsGenerations(sqs, sqs.urls) if queue is SqsGenerations else SqsBatches(sqs, sqs.url)).send("gen_a", caller)
    (message,) = sqs.received(MessageSystemAttributeNames=["MessageGroupId"])
    assert message["Attributes"] == {"MessageGroupId": caller}


def test_the_visibility_of_a_message_can_be_extended_and_ended(sqs: Sqs, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, now = SqsGenerations(sqs, sqs.urls), [time.time() * 1000]
    monkeypatch.setattr("moto.sqs.models.unix_time_millis", lambda: now[0])
    queue.send("gen_a", "alice")
    (message,) = sqs.received(VisibilityTimeout=5)
    queue.extend_visibility(message["ReceiptHandle"], 30.4)
    now[0] += 29_999
    assert sqs.ids() == []
    now[0] += 2
    (message,) = sqs.received()
    queue.extend_visibility(message["ReceiptHandle"], 0)
    now[0] += 1
    assert sqs.ids() == ["gen_a"]


def test_a_dead_letter_has_its_body_and_the_reason(sqs: Sqs) -> None:
    SqsDeadLetters(sqs, sqs.url).put('{"odd"', "NotJson")
    (message,) = sqs.received(MessageAttributeNames=["All"])
    assert (message["Body"], message["MessageAttributes"]["reason"]["StringValue"]) == ('{"odd"', "NotJson")


def test_an_unreachable_queue_is_unavailable(connect: Connect) -> None:
    url, fake = closed_url(), FakeGenerationQueue()
    fake.failures += ["before", "after"]
    unreachable = Sqs(connect("sqs", url), f"{url}/queue")
    for queue in (
        SqsGenerations(unreachable, unreachable.urls),
        SqsBatches(unreachable, unreachable.url),
        fake,
        fake,
    ):
        with pytest.raises(RecordsUnavailableError):
            queue.send("gen_a", "alice")
    assert fake.sent == [("gen_a", 0)]
    with pytest.raises(RecordsUnavailableError):
        SqsDeadLetters(unreachable, unreachable.url).put("{}", "NotJson")
    fake.failures.append("before")
    for queue in (SqsGenerations(unreachable, unreachable.urls), fake):
        with pytest.raises(Exception, match=r"could not|Could not"):
            queue.extend_visibility("receipt", 5)
    assert fake.hidden == []
