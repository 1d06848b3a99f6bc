"""The bus: the fake and the real one, on moto's EventBridge with a queue behind a rule, pass the same contract."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from imagegen.aws.events import SOURCE, EventBridgeBatchBus, EventBridgeBus
from imagegen.domain.batches import Batch, InboxFile
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import Failure, Generation, Origin, Rejection, Status, admit
from imagegen.domain.images import ImageRequest
from imagegen.ports import EventBus
from imagegen.wire.events import generation_event, rejection_event
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_store import When
from tests.support.stores import Connect, closed_url

NOW = 1_760_000_000.5


def ended(status: Status = Status.COMPLETED) -> Generation:
    request, origin = ImageRequest("a cat", "dall-e-3", "url"), Origin("Bestellung 7: 注文 🦦")
    generation = admit(request, caller="alice", base_url="https://x.example", now=NOW, origin=origin)
    failure = Failure("UpstreamFailedError", "no") if status is Status.FAILED else None
    return replace(generation, status=status, completed_at=NOW + 7, failure=failure)


def rejected() -> Rejection:
    return Rejection(f"event-{uuid4()}", "alice", "order-1", Failure("InvalidRequestError", "no", "size"))


@dataclass
class OnMoto:
    """A bus with a rule that passes everything on to a queue."""

    events: Any
    sqs: Any
    name: str
    queue: str

    def bus(self, client: Any = None) -> EventBridgeBus:
        return EventBridgeBus(
            lambda: client or self.events, self.name, ended=generation_event, rejected=rejection_event
        )

    def arrived(self) -> list[dict[str, Any]]:
        """What has come to the queue and was not taken yet."""
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
    for name in made:  # moto looks at all rules for each event
        events.remove_targets(Rule=name, EventBusName=name, Ids=["queue"])
        events.delete_rule(Name=name, EventBusName=name)
        events.delete_event_bus(Name=name)


@pytest.fixture
def on_moto(new_bus: Callable[[], OnMoto]) -> OnMoto:
    return new_bus()


@dataclass
class Twin:
    """`arrived` gives ids. `failing` gives a bus whose next call fails, before or after its effect."""

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


# What both promise.


def test_each_end_and_rejection_arrives_as_often_as_it_is_reported(twin: Twin) -> None:
    generations, rejection = [ended(status) for status in (Status.COMPLETED, Status.FAILED)], rejected()
    for generation in (*generations, generations[0]):
        twin.bus.generation_ended(generation)
    twin.bus.request_rejected(rejection)
    ids = [*(each.id for each in generations), generations[0].id, rejection.event_id]
    assert sorted(twin.arrived()) == sorted(ids)


@pytest.mark.parametrize(("when", "arrivals"), [("before", 0), ("after", 1)])
def test_a_bus_that_cannot_be_reached_or_whose_answer_is_lost_says_so(twin: Twin, when: When, arrivals: int) -> None:
    generation = ended()
    with pytest.raises(RecordsUnavailableError):
        twin.failing(when).generation_ended(generation)
    assert twin.arrived() == [generation.id] * arrivals


def test_a_rejection_that_cannot_be_reported_says_so(twin: Twin) -> None:
    with pytest.raises(RecordsUnavailableError):
        twin.failing("before").request_rejected(rejected())
    assert twin.arrived() == []


# What the real one adds.


def test_events_arrive_as_they_were_written_in_an_envelope_of_ours_on_no_other_bus(
    new_bus: Callable[[], OnMoto],
) -> None:
    on_moto, other = new_bus(), new_bus()
    generations, rejection = (
        [ended(status) for status in Status if status.value not in ("queued", "in_progress")],
        rejected(),
    )
    for generation in generations:
        on_moto.bus().generation_ended(generation)
    on_moto.bus().request_rejected(rejection)
    batch = Batch(id="batch_a", caller="alice", file=InboxFile("inbox/alice/a.jsonl", "v", 7), created_at=NOW)
    batches = EventBridgeBatchBus(lambda: on_moto.events, on_moto.name, ended=lambda batch: ("Ended", {"id": batch.id}))
    batches.batch_ended(batch)
    arrived = on_moto.arrived()
    assert {(event["source"], event["region"], *event["resources"]) for event in arrived} == {(SOURCE, "eu-central-1")}
    written = [*map(generation_event, generations), rejection_event(rejection), ("Ended", {"id": "batch_a"})]
    by_text = [(event["detail-type"], event["detail"]) for event in arrived]
    assert sorted(by_text, key=str) == sorted(written, key=str)
    assert other.arrived() == []


def test_an_entry_that_eventbridge_does_not_take_says_so(on_moto: OnMoto) -> None:
    """The call itself succeeds then: only its answer counts what was not taken."""
    bus = EventBridgeBus(
        lambda: on_moto.events, on_moto.name, ended=lambda _: ("", {"id": "gen"}), rejected=rejection_event
    )
    with pytest.raises(RecordsUnavailableError):
        bus.generation_ended(ended())
    assert on_moto.arrived() == []


def test_no_word_of_the_sdk_is_in_what_is_raised(on_moto: OnMoto, connect: Connect) -> None:
    closed = closed_url()
    with pytest.raises(RecordsUnavailableError) as raised:
        on_moto.bus(connect("events", closed)).generation_ended(ended())
    assert closed not in raised.value.message
