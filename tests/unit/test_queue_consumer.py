"""The handler of every queue: visibility, age, retry delay and partial failures."""

import time
from typing import Any, cast

import msgspec
import pytest

from imagegen.consumers.queue_consumer import FAULT_SECONDS, Message, QueueConsumer
from imagegen.wire.queue_messages import ids_in_message, read_generation_message
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.journal import FakeJournal

LEASE, CLOSING, TURN = 60.0, 15.0, 100.0


class Context:
    def __init__(self, seconds: float) -> None:
        self._milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


class Consumer:
    """A consumer of one queue. `results` are what `take` returns or raises, by the body of a message."""

    def __init__(self, **results: float | Exception | None) -> None:
        self.queue, self.journal, self.taken = FakeGenerationQueue(), FakeJournal(), list[Message]()
        self.results = results
        self.seconds = 900.0

    def take(self, message: Message) -> float | None:
        self.taken.append(message)
        result = self.results[message.body]
        if isinstance(result, Exception):
            raise result
        return result

    def handle(self, *, with_queue: bool = True, receipts: int = 1, age: float = 0) -> set[str]:
        """The ids of the messages that must be received again. The id of a message is its body."""
        sent = str(int((time.time() - age) * 1000))
        attributes = {"ApproximateReceiveCount": str(receipts), "SentTimestamp": sent}
        records = [
            {"messageId": body, "receiptHandle": f"receipt of {body}", "body": body, "attributes": attributes}
            | {"eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:eu-west-1:1:queue"}
            for body in self.results
        ]
        consumer = QueueConsumer(
            self.take, (lambda _: self.queue) if with_queue else None, LEASE, CLOSING, TURN, cast("Any", self.journal)
        )
        answer = consumer.handle({"Records": records}, cast("Any", Context(self.seconds)))
        return {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}


def test_only_messages_that_are_not_done_are_received_again_each_after_its_own_delay() -> None:
    consumer = Consumer(done=None, later=7.0, fault=KeyError("a secret"))
    assert consumer.handle() == {"later", "fault"}
    assert consumer.queue.hidden == [
        ("receipt of done", LEASE),
        ("receipt of later", LEASE),
        ("receipt of later", 7.0),
        ("receipt of fault", LEASE),
        ("receipt of fault", FAULT_SECONDS),
    ]


def test_a_message_is_hidden_before_the_work_on_it_begins() -> None:
    consumer = Consumer(done=None)
    consumer.queue.failures.append("before")
    assert consumer.handle() == {"done"}
    assert consumer.taken == []


def test_a_fault_is_reported_without_its_message_and_waits_longer_with_each_receipt() -> None:
    consumer = Consumer(fault=KeyError("a secret"))
    assert consumer.handle(receipts=12) == {"fault"}
    ((kind, about),) = consumer.journal.calls
    assert (kind, about) == ("interrupted", {"message_id": "fault"})
    assert consumer.queue.hidden[-1] == ("receipt of fault", FAULT_SECONDS * 16)


def test_without_a_queue_a_message_keeps_its_queues_own_visibility_time_out() -> None:
    consumer = Consumer(later=7.0)
    assert consumer.handle(with_queue=False) == {"later"}
    assert consumer.queue.hidden == []


@pytest.mark.parametrize(("remaining", "expected"), [(900.0, TURN), (50.0, 50.0 - CLOSING), (10.0, 0.0)])
def test_the_work_ends_before_the_function_does(remaining: float, expected: float) -> None:
    consumer = Consumer(done=None)
    consumer.seconds = remaining
    consumer.handle(age=30)
    assert consumer.taken[0].until.remaining() == pytest.approx(expected, abs=1)
    assert consumer.taken[0].age == pytest.approx(30, abs=2)


def test_a_message_names_its_generation_and_round_and_one_of_a_later_version_is_not_read() -> None:
    assert read_generation_message('{"version": 1, "generation_id": "gen_1", "poll": 3}') == ("gen_1", 3)
    for wrong in ('{"version": 2, "generation_id": "gen_1", "poll": 3}', '{"generation_id": "gen_1"}', "[]", ""):
        with pytest.raises(msgspec.DecodeError):
            read_generation_message(wrong)


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ('{"version": 9, "generation_id": "gen_1"}', {"generation_id": "gen_1"}),
        ('{"batch_id": "batch_1"}', {"batch_id": "batch_1"}),
        *((body, {}) for body in ("", "[]", "\ud800", "[" * 100_000, '{"generation_id": 7}')),
    ],
    ids=range(7),
)
def test_a_log_line_names_the_ids_of_any_message(body: str, ids: dict[str, str]) -> None:
    assert ids_in_message(body) == ids
