"""What is read of an event that asks for images, and how one is refused."""

import json
from typing import Any

import pytest

from imagegen.errors import AllowanceSpentError, InvalidRequestError, RecordsUnavailableError
from imagegen.images import ImageRequest
from imagegen.openai_wire.request_events import ImagesByEvent, RequestEvent, read_event
from imagegen.reject import reject
from tests.fakes.event_bus import FakeEventBus

CAP = 1000


def body(event_id: object = "e-1", **detail: object) -> str:
    return json.dumps({"version": "0", "id": event_id, "detail-type": "Image Generation Requested", "detail": detail})


def test_a_full_event_is_read() -> None:
    event = read_event(
        body(prompt="a cat", model="dall-e-2", n=3, client="shop-1", custom_id="order 7", idempotency_key="k")
    )
    assert (event.event_id, event.client, event.custom_id) == ("e-1", "shop-1", "order 7")
    assert event.read(prompt_cap=CAP) == ImagesByEvent(
        ImageRequest("a cat", "dall-e-2", "url", n=3), client="shop-1", custom_id="order 7", idempotency_key="k"
    )


def test_what_an_event_does_not_say_has_its_default() -> None:
    images = read_event(body(prompt="a cat", client=None, custom_id=None, idempotency_key=None)).read(prompt_cap=CAP)
    assert (images.client, images.custom_id, images.idempotency_key) == ("events", None, "e-1")
    assert images.request.model == "dall-e-3"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", ""),
        ("client", "Shop"),
        ("client", "-shop"),
        ("client", "a" * 33),
        ("client", "a/b"),
        ("client", "oidc:0"),
        ("client", 7),
        ("client", ["shop"]),
        ("custom_id", ""),
        ("custom_id", "x" * 257),
        ("custom_id", 7),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 256),
        ("idempotency_key", "\n"),
        ("idempotency_key", 7),
        ("prompt", ""),
        ("prompt", "x" * (CAP + 1)),
        ("n", 0),
        ("size", "1x1"),
        ("webhook", "https://x.example"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    event = read_event(body(**{"prompt": "a cat", field: value}))
    with pytest.raises(InvalidRequestError) as refused:
        event.read(prompt_cap=CAP)
    assert refused.value.param == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '"x"',
        "null",
        '{"id": "x"}',
        '{"detail": {}}',
        '{"id": "x", "detail": []}',
        '{"id": "\ud800"}',
    ]
    + [body(event_id) for event_id in ("", "x" * 256, "\n", 7, None)]
    + ["[" * 100_000],
)
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_event(text)


class Aside:
    def __init__(self, *, down: bool = False) -> None:
        self.laid: list[tuple[str, str]] = []
        self._down = down

    def put(self, text: str, reason: str) -> None:
        if self._down:
            raise RecordsUnavailableError("down")
        self.laid.append((text, reason))


def refuse(aside: Aside, bus: FakeEventBus, event: RequestEvent | None, **error: Any) -> None:
    told = {"event_id": event.event_id, "client": event.client, "custom_id": event.custom_id} if event else {}
    nothing = {"event_id": None, "client": None, "custom_id": None}
    reject(InvalidRequestError("Bad size.", param="size"), "the body", aside, bus, **(nothing | told))


def test_what_is_refused_is_laid_aside_with_its_reason_and_told() -> None:
    aside, bus = Aside(), FakeEventBus()
    refuse(aside, bus, read_event(body(prompt="x", client="shop", custom_id="7")))
    assert aside.laid == [("the body", "InvalidRequestError (size): Bad size.")]
    (rejection,) = bus.rejected
    assert (rejection.event_id, rejection.client, rejection.custom_id) == ("e-1", "shop", "7")
    assert (rejection.failure.kind, rejection.failure.param) == ("InvalidRequestError", "size")


def test_what_is_no_event_is_laid_aside_and_not_told() -> None:
    aside, bus = Aside(), FakeEventBus()
    refuse(aside, bus, None)
    assert (len(aside.laid), bus.rejected) == (1, [])


def test_a_long_reason_is_cut() -> None:
    aside = Aside()
    error = AllowanceSpentError("x" * 5000)
    reject(error, "the body", aside, FakeEventBus(), event_id="e", client=None, custom_id=None)
    assert len(aside.laid[0][1]) <= 1000


def test_what_cannot_be_laid_aside_is_not_told_yet() -> None:
    bus = FakeEventBus()
    with pytest.raises(RecordsUnavailableError):
        refuse(Aside(down=True), bus, read_event(body(prompt="x")))
    assert bus.rejected == []


def test_what_cannot_be_told_comes_again() -> None:
    bus = FakeEventBus()
    bus.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        refuse(Aside(), bus, read_event(body(prompt="x")))
