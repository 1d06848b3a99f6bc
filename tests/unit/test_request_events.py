"""An event that requests images is read or refused."""

import json
from dataclasses import dataclass, field

import pytest

from imagegen.domain.errors import InvalidRequestError, RecordsUnavailableError
from imagegen.domain.images import AskedImages, ImageRequest
from imagegen.domain.inputs import GivenImage
from imagegen.usecases.submit import RejectEvent
from imagegen.wire.request_events import ImagesByEvent, read_event
from tests.fakes.event_bus import FakeEventBus
from tests.support.models import read_operation

CAP = 1000
READ_FIELDS = read_operation(CAP).fields


def body(event_id: object = "e-1", **detail: object) -> str:
    return json.dumps({"version": "0", "id": event_id, "detail-type": "Image Generation Requested", "detail": detail})


def test_a_full_event_is_read() -> None:
    own = {"client": "shop-1", "custom_id": "order 7", "idempotency_key": "k"}
    event = read_event(body(prompt="a cat", model="dall-e-2", n=3, **own))
    assert (event.event_id, event.caller, event.custom_id) == ("e-1", "shop-1", "order 7")
    request = ImageRequest("a cat", "dall-e-2", "url", n=3, options={"response_format": "url"})
    assert event.read(READ_FIELDS) == ImagesByEvent(AskedImages(request, ()), "shop-1", "order 7", "k")


def test_an_event_names_its_operation_and_its_images() -> None:
    upload, s3_uri = f"upl_{'x' * 22}", "s3://orders/7.png"
    event = read_event(body(operation="edit", prompt="a hat", images=[{"file_id": upload}, {"s3_uri": s3_uri}]))
    asked = event.read(READ_FIELDS).asked
    assert (asked.request.operation, asked.request.model) == ("edit", "gpt-image-1.5")
    assert asked.images == [
        GivenImage("image", "images[0]", id=upload),
        GivenImage("image", "images[1]", s3_uri=s3_uri),
    ]


def test_a_missing_field_has_its_default() -> None:
    images = read_event(body(prompt="a cat", client=None, custom_id=None, idempotency_key=None)).read(READ_FIELDS)
    assert (images.caller, images.custom_id, images.idempotency_key) == ("events", None, "e-1")
    assert images.asked.request.model == "dall-e-3"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("client", ["", "Shop", "-shop", "a" * 33, "a/b", "oidc:0", 7, ["shop"]]),
        ("custom_id", ["", "x" * 257, 7]),
        ("idempotency_key", ["", "x" * 256, "\n", 7]),
        ("prompt", ["", "x" * (CAP + 1)]),
        ("n", [0]),
        ("size", ["1x1"]),
        ("operation", ["", "describing", 7]),
        ("images", [[]]),
        ("webhook", ["https://x.example"]),
    ],
)
def test_a_bad_field_is_named(field: str, values: list[object]) -> None:
    for value in values:
        event = read_event(body(**{"prompt": "a cat", field: value}))
        with pytest.raises(InvalidRequestError) as refused:
            event.read(READ_FIELDS)
        assert refused.value.param == field


NO_JSON = ["", "{", '{"id": "\ud800"}', "[" * 100_000]
NO_EVENTS = ["[]", "7", '"x"', "null", '{"id": "x"}', '{"detail": {}}', '{"id": "x", "detail": []}']


@pytest.mark.parametrize("text", [*NO_JSON, *NO_EVENTS, *map(body, ("", "x" * 256, "\n", 7, None))], ids=range(16))
def test_a_body_that_is_not_an_event_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_event(text)


@dataclass
class FakeDeadLetters:
    """`put_aside` are the messages with their reasons."""

    down: bool = False
    put_aside: list[tuple[str, str]] = field(default_factory=list)

    def put(self, text: str, reason: str) -> None:
        if self.down:
            raise RecordsUnavailableError("down")
        self.put_aside.append((text, reason))


def refuse(
    letters: FakeDeadLetters, bus: FakeEventBus, message: str = "Bad size.", event_id: str | None = "e-1"
) -> None:
    error = InvalidRequestError(message, param="size")
    RejectEvent(letters, bus).reject(error, "the body", event_id=event_id, caller="shop", custom_id="7")


def test_a_refused_event_becomes_a_dead_letter_and_a_rejection_if_it_has_an_id() -> None:
    dead_letters, bus = FakeDeadLetters(), FakeEventBus()
    refuse(dead_letters, bus)
    assert dead_letters.put_aside == [("the body", "invalid_request (size): Bad size.")]
    (rejection,) = bus.rejected
    assert (rejection.event_id, rejection.caller, rejection.custom_id) == ("e-1", "shop", "7")
    assert (rejection.failure.code, rejection.failure.param) == ("invalid_request", "size")
    refuse(dead_letters, bus, event_id=None)
    assert (len(dead_letters.put_aside), bus.rejected) == (2, [rejection])


def test_a_long_reason_is_cut_to_the_limit_of_sqs() -> None:
    dead_letters = FakeDeadLetters()
    refuse(dead_letters, FakeEventBus(), "\n" + "x" * 5000)
    ((_, reason),) = dead_letters.put_aside
    assert (len(reason), reason.isprintable()) == (1000, True)


@pytest.mark.parametrize("down", ["dead letters", "bus"])
def test_an_incomplete_rejection_raises_so_that_its_message_is_received_again(down: str) -> None:
    bus = FakeEventBus()
    if down == "bus":
        bus.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        refuse(FakeDeadLetters(down=down == "dead letters"), bus)
    assert bus.rejected == []
