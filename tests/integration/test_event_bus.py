"""The bus: the fake and the real one, on moto's EventBridge with a queue behind a rule, pass one contract."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from imagegen.aws.events import SOURCE, EventBridgeBatchBus, EventBridgeBus
from imagegen.domain.batches import Batch
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.failures import Failure
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import Generation, Origin, Rejection, Status
from imagegen.domain.images import ImageRequest
from imagegen.ports import EventBus
from imagegen.wire.events import generation_event, rejection_event
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_store import When
from tests.support.models import admitted
from tests.support.stores import Connect, closed_url

NOW = 1_760_000_000.5


def ended(status: Status = Status.COMPLETED) -> Generation:
    request, origin = ImageRequest("a cat", "dall-e-3", "url"), Origin("Bestellung 7: 注文 🦦")
    generation = admitted(request, caller="alice", base_url="https://x.example", now=NOW, origin=origin)
    failure = Failure("upstream_failed", "no", money_spent=True) if status is Status.FAILED else None
    return replace(generation, status=status, completed_at=NOW + 7, failure=failure)


def rejected() -> Rejection:
    failure = Failure("invalid_request", "no", money_spent=False, param="size")
    return Rejection(f"event-{uuid4()}", "alice", "order-1", failure)


@dataclass
class OnMoto:
    """A bus with a rule that sends every event to a queue."""

    events: Any
    sqs: Any
    name: str
    queue: str

    def bus(self, client: Any = None) -> EventBridgeBus:
        return EventBridgeBus(
            lambda: client or self.events, self.name, ended=generation_event, rejected=rejection_event
        )

    def arrived(self) -> list[dict[str, Any]]:
        """The new events in the queue."""
        found: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(message["Body"]) for message in messages]
        return found


@pytest.fixture
def new_bus(connect: Connect, aws_url: str) -> Iterator[Callable[[], OnMoto]]:
    events, sqs, made = connect("events", aws_url), connect("sqs", aws_url), list[str]()

    def new_bus() -> OnMoto:
        name = f"bus-{uuid4().hex}"
        queue = sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        events.create_event_bus(Name=name)
        events.put_rule(Name=name, EventBusName=name, EventPattern='{"account": [{"exists": true}]}')
        events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "queue", "Arn": arn}])
        made.append(name)
        return OnMoto(events, sqs, name, queue)

    yield new_bus
    for name in made:  # moto checks all rules for each event
        events.remove_targets(Rule=name, EventBusName=name, Ids=["queue"])
        events.delete_rule(Name=name, EventBusName=name)
        events.delete_event_bus(Name=name)


@pytest.fixture
def on_moto(new_bus: Callable[[], OnMoto]) -> OnMoto:
    return new_bus()


@dataclass
class Twin:
    """`arrived` returns ids. `failing` returns a bus whose next call fails, before or after its effect."""

    bus: EventBus
    arrived: Callable[[], list[str]]
    failing: Callable[[When], EventBus]


@pytest.fixture(params=["fake", "eventbridge"])
def twin(request: pytest.FixtureRequest, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Twin:
    if request.param == "fake":
        fake = FakeEventBus()

        def fails(when: When) -> EventBus:
            fake.failures.append(when)
            return fake

        return Twin(fake, lambda: [each.id for each in fake.ended] + [each.event_id for each in fake.rejected], fails)
    moto: OnMoto = request.getfixturevalue("on_moto")

    def broken(when: When) -> EventBus:
        if when == "before":
            return moto.bus(connect("events", closed_url()))
        put = moto.events.put_events
        monkeypatch.setattr(moto.events, "put_events", lambda **entries: put(**entries) and 1 / 0)
        return moto.bus()

    def arrived() -> list[str]:
        details = [event["detail"] for event in moto.arrived()]
        return [detail.get("id") or detail["event_id"] for detail in details]

    return Twin(moto.bus(), arrived, broken)


# Both buses.


def test_each_end_and_rejection_arrives_as_often_as_it_is_published(twin: Twin) -> None:
    generations, rejection = [ended(status) for status in (Status.COMPLETED, Status.FAILED)], rejected()
    for generation in (*generations, generations[0]):
        twin.bus.generation_ended(generation)
    twin.bus.request_rejected(rejection)
    ids = [*(each.id for each in generations), generations[0].id, rejection.event_id]
    assert sorted(twin.arrived()) == sorted(ids)


@pytest.mark.parametrize(("when", "arrivals"), [("before", 0), ("after", 1)])
def test_an_unreachable_bus_or_a_lost_answer_is_an_error(twin: Twin, when: When, arrivals: int) -> None:
    generation = ended()
    with pytest.raises(RecordsUnavailableError) as raised:
        twin.failing(when).generation_ended(generation)
    assert "127.0.0.1" not in raised.value.message
    with pytest.raises(RecordsUnavailableError):
        twin.failing("before").request_rejected(rejected())
    assert twin.arrived() == [generation.id] * arrivals


# The real bus.


def test_events_arrive_unchanged_with_their_source_on_one_bus(new_bus: Callable[[], OnMoto]) -> None:
    on_moto, other = new_bus(), new_bus()
    generations, rejection = (
        [ended(status) for status in Status if status.value not in ("queued", "in_progress")],
        rejected(),
    )
    for generation in generations:
        on_moto.bus().generation_ended(generation)
    on_moto.bus().request_rejected(rejection)
    batch = Batch(id="batch_a", caller="alice", file=StoredObject("inbox/alice/a.jsonl", "v", 7), created_at=NOW)
    batches = EventBridgeBatchBus(lambda: on_moto.events, on_moto.name, ended=lambda batch: ("Ended", {"id": batch.id}))
    batches.batch_ended(batch)
    arrived = on_moto.arrived()
    assert {(event["source"], event["region"], *event["resources"]) for event in arrived} == {(SOURCE, "eu-central-1")}
    written = [*map(generation_event, generations), rejection_event(rejection), ("Ended", {"id": "batch_a"})]
    by_text = [(event["detail-type"], event["detail"]) for event in arrived]
    assert sorted(by_text, key=str) == sorted(written, key=str)
    assert other.arrived() == []


def test_an_entry_that_eventbridge_refuses_is_an_error(on_moto: OnMoto) -> None:
    """The call succeeds, and only its answer has the number of failed entries."""
    bus = EventBridgeBus(
        lambda: on_moto.events, on_moto.name, ended=lambda _: ("", {"id": "gen"}), rejected=rejection_event
    )
    with pytest.raises(RecordsUnavailableError):
        bus.generation_ended(ended())
    assert on_moto.arrived() == []
