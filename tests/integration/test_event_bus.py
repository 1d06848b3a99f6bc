"""The bus: the fake and the real one, on moto's EventBridge with a queue behind a rule, pass the same contract."""

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from msgspec.structs import replace

from imagegen.aws.events import SOURCE, Described, EventBridgeBus
from imagegen.errors import RecordsUnavailableError
from imagegen.generations import Failure, Generation, Origin, Rejection, Status, admit
from imagegen.images import ImageRequest
from imagegen.openai_wire.events import generation_event, rejection_event
from imagegen.ports import EventBus
from tests.fakes.event_bus import FakeEventBus

if TYPE_CHECKING:
    from types_boto3_events import EventBridgeClient

REGION: Literal["eu-central-1"] = "eu-central-1"
NOW = 1_760_000_000.5
ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
FAILURE = Failure("UpstreamFailedError", "no")


def ended(status: Status = Status.COMPLETED, custom_id: str | None = None) -> Generation:
    request = ImageRequest("a cat", "dall-e-3", "url")
    generation = admit(request, caller="alice", base_url="https://x.example", now=NOW, origin=Origin(custom_id))
    failure = FAILURE if status is Status.FAILED else None
    return replace(generation, status=status, completed_at=NOW + 7, failure=failure)


def rejected() -> Rejection:
    return Rejection(f"event-{uuid4()}", "alice", "order-1", Failure("InvalidRequestError", "no", "size"))


def client_of(url: str) -> "EventBridgeClient":
    return boto3.client(
        "events",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="test",
        config=Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1}),
    )


@dataclass
class OnMoto:
    """A bus with a rule that hands everything on to a queue."""

    url: str
    name: str = field(default_factory=lambda: f"bus-{uuid4().hex}")

    def __post_init__(self) -> None:
        self.events = client_of(self.url)
        self._sqs = boto3.client(
            "sqs",
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="AKIATEST",
            aws_secret_access_key="test",
        )
        self._queue = self._sqs.create_queue(QueueName=self.name)["QueueUrl"]
        attributes = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])["Attributes"]
        self.events.create_event_bus(Name=self.name)
        self.events.put_rule(Name=self.name, EventBusName=self.name, EventPattern='{"account": [{"exists": true}]}')
        targets: Any = [{"Id": "queue", "Arn": attributes["QueueArn"]}]
        self.events.put_targets(Rule=self.name, EventBusName=self.name, Targets=targets)

    def close(self) -> None:
        self.events.remove_targets(Rule=self.name, EventBusName=self.name, Ids=["queue"])
        self.events.delete_rule(Name=self.name, EventBusName=self.name)
        self.events.delete_event_bus(Name=self.name)
        self._sqs.delete_queue(QueueUrl=self._queue)
        self.events.close()
        self._sqs.close()

    def bus(self, client: "EventBridgeClient | None" = None, name: str | None = None) -> EventBridgeBus:
        return EventBridgeBus(
            lambda: client or self.events, name or self.name, ended=generation_event, rejected=rejection_event
        )

    def delivered(self) -> list[dict[str, Any]]:
        """What has come to the queue and was not taken yet."""
        found: list[dict[str, Any]] = []
        while messages := self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(message["Body"]) for message in messages]
        return found


@dataclass
class Twin:
    """`told` gives the ids of what arrived. `failing` gives a bus whose next call fails, before or after its effect."""

    bus: EventBus
    told: Callable[[], list[str]]
    failing: Callable[[Literal["before", "after"]], EventBus]


@pytest.fixture
def on_moto(aws_url: str) -> Iterator[OnMoto]:
    moto = OnMoto(aws_url)
    yield moto
    moto.close()


@pytest.fixture
def nobody_listens() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=["fake", "eventbridge"])
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    if request.param == "fake":
        fake = FakeEventBus()

        def failing(when: Literal["before", "after"]) -> EventBus:
            fake.failures.append(when)
            return fake

        yield Twin(fake, lambda: [each.id for each in fake.ended] + [each.event_id for each in fake.rejected], failing)
        return
    moto: OnMoto = request.getfixturevalue("on_moto")
    broken: list[EventBridgeClient] = []

    def broken_bus(when: Literal["before", "after"]) -> EventBus:
        broken.append(client_of(moto.url if when == "after" else request.getfixturevalue("nobody_listens")))
        broken[-1].meta.events.register("after-call.events.PutEvents", lose_the_answer)
        return moto.bus(broken[-1])

    def told() -> list[str]:
        details = [event["detail"] for event in moto.delivered()]
        return [detail.get("id") or detail["event_id"] for detail in details]

    yield Twin(moto.bus(), told, broken_bus)
    for client in broken:
        client.close()


def lose_the_answer(**_: object) -> None:
    raise OSError("the connection broke")


# What both promise.


def test_every_end_that_is_told_arrives(twin: Twin) -> None:
    generations = [ended(status) for status in ENDS]
    for generation in generations:
        twin.bus.generation_ended(generation)
    assert sorted(twin.told()) == sorted(generation.id for generation in generations)


def test_a_rejection_that_is_told_arrives(twin: Twin) -> None:
    rejection = rejected()
    twin.bus.request_rejected(rejection)
    assert twin.told() == [rejection.event_id]


def test_what_is_told_twice_arrives_twice(twin: Twin) -> None:
    generation = ended()
    twin.bus.generation_ended(generation)
    twin.bus.generation_ended(generation)
    assert twin.told() == [generation.id] * 2


@pytest.mark.parametrize(("when", "arrived"), [("before", 0), ("after", 1)])
def test_a_bus_that_cannot_be_reached_or_whose_answer_is_lost_says_so(
    twin: Twin, when: Literal["before", "after"], arrived: int
) -> None:
    generation = ended()
    with pytest.raises(RecordsUnavailableError):
        twin.failing(when).generation_ended(generation)
    assert twin.told() == [generation.id] * arrived


def test_a_rejection_that_cannot_be_told_says_so(twin: Twin) -> None:
    with pytest.raises(RecordsUnavailableError):
        twin.failing("before").request_rejected(rejected())
    assert twin.told() == []


# What the real one adds.


@pytest.mark.parametrize("status", ENDS)
def test_an_event_arrives_as_it_was_written_in_an_envelope_of_ours(on_moto: OnMoto, status: Status) -> None:
    generation = ended(status, custom_id="Bestellung 7: 注文 🦦")
    on_moto.bus().generation_ended(generation)
    (event,) = on_moto.delivered()
    assert (event["source"], event["region"], event["resources"]) == (SOURCE, REGION, [])
    assert (event["detail-type"], event["detail"]) == generation_event(generation)


def test_a_rejection_arrives_as_it_was_written(on_moto: OnMoto) -> None:
    rejection = rejected()
    on_moto.bus().request_rejected(rejection)
    (event,) = on_moto.delivered()
    assert (event["source"], event["detail-type"], event["detail"]) == (SOURCE, *rejection_event(rejection))


def test_no_other_bus_is_told(on_moto: OnMoto, aws_url: str) -> None:
    other = OnMoto(aws_url)
    try:
        on_moto.bus().generation_ended(ended())
        assert other.delivered() == []
    finally:
        other.close()


def test_an_entry_that_eventbridge_does_not_take_says_so(on_moto: OnMoto) -> None:
    """The call itself succeeds then: only its answer counts what was not taken."""

    def untyped(_: Generation) -> Described:
        return "", {"id": "gen"}

    bus = EventBridgeBus(lambda: on_moto.events, on_moto.name, ended=untyped, rejected=rejection_event)
    with pytest.raises(RecordsUnavailableError):
        bus.generation_ended(ended())
    assert on_moto.delivered() == []


def test_no_word_of_the_sdk_is_in_what_is_raised(on_moto: OnMoto, nobody_listens: str) -> None:
    with pytest.raises(RecordsUnavailableError) as raised:
        on_moto.bus(client_of(nobody_listens)).generation_ended(ended())
    assert nobody_listens not in raised.value.message
