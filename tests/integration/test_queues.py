"""The queues: the fake and the real one, on moto, pass the same contract."""

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from imagegen.aws.sqs import SqsBatches, SqsDeadLetters, SqsGenerations
from imagegen.domain.errors import RecordsUnavailableError
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.support.stores import Connect, closed_url

if TYPE_CHECKING:
    from imagegen.ports import GenerationQueue


@dataclass
class Sqs:
    client: Any
    url: str

    def __call__(self) -> Any:
        """Gives the client, as the queues ask for it."""
        return self.client

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


def test_what_is_sent_is_delivered_after_its_delay(sqs: Sqs) -> None:
    fake = FakeGenerationQueue()
    queues: tuple[GenerationQueue, ...] = (fake, SqsGenerations(sqs, sqs.url))
    for queue in queues:
        queue.send("gen_a", "alice")
        queue.send("gen_b", "alice", delay=60.6)
        queue.send("gen_c", "alice", delay=0.2)
    assert fake.sent == [("gen_a", 0), ("gen_b", 60.6), ("gen_c", 0.2)]
    assert (sorted(sqs.ids()), sqs.delayed()) == (["gen_a", "gen_c"], 1)


@pytest.mark.parametrize(("queue", "caller"), [(SqsGenerations, "web"), (SqsBatches, f"oidc:{'0' * 32}")])
def test_a_message_carries_its_caller_so_that_the_queue_is_fair(
    sqs: Sqs, queue: type[SqsGenerations | SqsBatches], caller: str
) -> None:
    queue(sqs, sqs.url).send("gen_a", caller)
    (message,) = sqs.received(MessageSystemAttributeNames=["MessageGroupId"])
    assert message["Attributes"] == {"MessageGroupId": caller}


def test_a_held_message_is_not_received_again_until_then(sqs: Sqs, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, now = SqsGenerations(sqs, sqs.url), [time.time() * 1000]
    monkeypatch.setattr("moto.sqs.models.unix_time_millis", lambda: now[0])
    queue.send("gen_a", "alice")
    (message,) = sqs.received(VisibilityTimeout=5)
    queue.hold(message["ReceiptHandle"], 30.4)
    now[0] += 29_999
    assert sqs.ids() == []
    now[0] += 2
    assert sqs.ids() == ["gen_a"]


def test_a_message_that_is_held_no_longer_is_received_at_once(sqs: Sqs) -> None:
    queue = SqsGenerations(sqs, sqs.url)
    queue.send("gen_a", "alice")
    (message,) = sqs.received()
    queue.hold(message["ReceiptHandle"], 0)
    assert sqs.ids() == ["gen_a"]


def test_a_dead_letter_is_as_it_was_with_the_reason(sqs: Sqs) -> None:
    SqsDeadLetters(sqs, sqs.url).put('{"odd"', "NotJson")
    (message,) = sqs.received(MessageAttributeNames=["All"])
    assert (message["Body"], message["MessageAttributes"]["reason"]["StringValue"]) == ('{"odd"', "NotJson")


def test_a_queue_that_cannot_be_reached_is_unavailable(connect: Connect) -> None:
    url, fake = closed_url(), FakeGenerationQueue()
    fake.failures += ["before", "after"]
    nobody = Sqs(connect("sqs", url), f"{url}/queue")
    for queue in (SqsGenerations(nobody, nobody.url), SqsBatches(nobody, nobody.url), fake, fake):
        with pytest.raises(RecordsUnavailableError):
            queue.send("gen_a", "alice")
    assert fake.sent == [("gen_a", 0)]
    with pytest.raises(RecordsUnavailableError):
        SqsDeadLetters(nobody, nobody.url).put("{}", "NotJson")
    fake.failures.append("before")
    for queue in (SqsGenerations(nobody, nobody.url), fake):
        with pytest.raises(Exception, match=r"could not|Could not"):
            queue.hold("receipt", 5)
    assert fake.held == []
