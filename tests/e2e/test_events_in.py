"""Requests by EventBridge: each begins one generation, or is refused with a reason and an event."""

import json
from typing import Any
from uuid import uuid4

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.serving import Reply
from tests.conftest import ROOT
from tests.support.client import SMALL, Client, fetched
from tests.support.pictures import BLUE, GREEN, RED, opened, picture, shown_in
from tests.support.waiting import until
from tests.support.world import EVENT_BUCKET, Subscriber, World

REQUESTED = "Image Generation Requested"
EDIT = {"operation": "edit", "model": "gemini-2.5-flash-image", "size": "1024x1024"}


@pytest.fixture
def bus(world: World) -> Subscriber:
    return world.bus


def put(world: World, **detail: Any) -> str:
    """Puts a request on the bus. Returns its custom_id."""
    custom_id = f"order-{uuid4().hex}"
    world.publish(**{"custom_id": custom_id, **SMALL, **detail})
    return custom_id


def deliver(world: World, detail: Any, event_id: str) -> None:
    """One more delivery by EventBridge."""
    event = {"version": "0", "id": event_id, "detail-type": REQUESTED, "source": "shop", "detail": detail}
    world.send("IntakeQueue", event)


def begun_by(world: World, *event_ids: str) -> set[str]:
    """The generations that these deliveries began, once all deliveries are processed."""

    def taken() -> list[str] | None:
        lines = [line for event_id in set(event_ids) for _, line in world.journal(message="taken", event_id=event_id)]
        return [line["generation_id"] for line in lines] if len(lines) == len(event_ids) else None

    return set(until(taken, what="the end of the deliveries") or ())


def test_an_event_begins_a_generation_of_its_client_whose_end_is_published(
    world: World, bus: Subscriber, caller: Client
) -> None:
    event = bus.first(custom_id=put(world, prompt="by an event", client=caller.name, n=2))
    assert event["detail-type"] == "Image Generation Completed"
    detail = event["detail"]
    assert (detail["client"], detail["model"], len(detail["images"])) == (caller.name, "dall-e-2", 2)
    for image in detail["images"]:
        assert image["permalink"].startswith(f"{world.base_url}/images/")
        assert caller.get(f"/images/{image['id']}").status == 302
    assert caller.see(detail["id"]).status == 200
    assert world.caller().see(detail["id"]).status == 404


def test_the_same_event_delivered_five_times_is_paid_for_once(world: World, bus: Subscriber, prompt: str) -> None:
    event_id = str(uuid4())
    for _ in range(5):
        deliver(world, {**SMALL, "prompt": prompt, "custom_id": prompt}, event_id)
    (generation_id,) = begun_by(world, *[event_id] * 5)
    assert bus.first(id=generation_id)["detail-type"] == "Image Generation Completed"
    assert len(world.calls(prompt)) == 1


def test_the_daily_image_is_made_once_a_day(world: World, bus: Subscriber, prompt: str) -> None:
    schedule = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["DailyImage"]["Properties"]["Target"]
    assert schedule["EventBridgeParameters"]["DetailType"] == REQUESTED
    prompt = f"it's {prompt}"
    written = schedule["Input"]["Fn::Sub"].replace("${DailyImagePrompt}", prompt)
    deliveries = []
    for day in ("2026-11-22", "2026-11-23"):
        for _ in range(2):  # the scheduler puts it on the bus at least once, each time as another event
            due = written.replace("<aws.scheduler.scheduled-time>", f"{day}T06:00:00Z")
            deliveries.append(str(uuid4()))
            deliver(world, json.loads(due), deliveries[-1])
    begun = begun_by(world, *deliveries)
    assert len(begun) == 2
    assert {bus.first(id=each)["detail-type"] for each in begun} == {"Image Generation Completed"}
    assert len(world.calls(prompt)) == 2


def test_an_idempotency_key_takes_precedence_over_the_id_of_the_event(world: World, bus: Subscriber) -> None:
    key = uuid4().hex
    first = put(world, prompt=f"one {key}", idempotency_key=key)
    assert bus.first(custom_id=first)["detail-type"] == "Image Generation Completed"
    event_id = str(uuid4())
    deliver(world, {**SMALL, "prompt": f"one {key}", "idempotency_key": key, "custom_id": first}, event_id)
    another = put(world, prompt=f"another {key}", idempotency_key=key)
    assert bus.first(custom_id=another)["detail"]["error"]["code"] == "idempotency_key_reused"
    assert "idempotency_key_reused" in world.laid_aside(another)
    assert begun_by(world, event_id) == {bus.first(custom_id=first)["detail"]["id"]}
    assert len(world.calls(f"one {key}")) == 1


def test_a_bad_event_becomes_a_dead_letter_with_its_reason_and_a_rejection(
    world: World, bus: Subscriber, prompt: str
) -> None:
    bad = {"size": "1x1", "client": "Not A Client", "idempotency_key": ["a"], "prompt": None}
    sent = {param: put(world, **{"prompt": prompt, param: value}) for param, value in bad.items()}
    for param, custom_id in sent.items():
        event = bus.first(custom_id=custom_id)
        assert (event["detail-type"], event["detail"]["error"]["param"]) == ("Image Generation Rejected", param)
        assert param in world.laid_aside(custom_id)
    assert world.calls(prompt) == []


def test_a_message_that_is_no_event_becomes_a_dead_letter(world: World) -> None:
    unknown = uuid4().hex
    bad_id = {"id": str(uuid4()), "detail-type": REQUESTED, "detail": {"prompt": unknown, "custom_id": [unknown]}}
    for body in (" ", f"{{ {unknown}", f'{{"detail": {{}}, "of": "{unknown}"}}'):
        world.send("IntakeQueue", body)
        assert world.laid_aside(body)
    world.send("IntakeQueue", bad_id)
    assert "custom_id" in world.laid_aside(json.dumps(bad_id))


def test_an_event_over_the_quota_is_refused(world: World, bus: Subscriber) -> None:
    poor = world.caller(images_per_day=1).name
    refused = put(world, prompt="too many", client=poor, n=2)
    event = bus.first(custom_id=refused)
    assert event["detail-type"] == "Image Generation Rejected"
    assert event["detail"]["error"]["code"] == "insufficient_quota"
    assert "insufficient_quota" in world.laid_aside(refused)
    enough = put(world, prompt="enough", client=poor)
    assert bus.first(custom_id=enough)["detail-type"] == "Image Generation Completed"


def test_an_event_edits_images_by_id_by_url_and_by_object(
    world: World, bus: Subscriber, caller: Client, prompt: str
) -> None:
    at_url = picture(GREEN)
    images = [
        {"file_id": caller.upload(picture(RED))},
        {"image_url": world.serve_file(lambda _: Reply(200, at_url, {"Content-Type": "image/png"}))},
        {"s3_uri": world.s3_uri(picture(BLUE))},
    ]
    event = bus.first(custom_id=put(world, prompt=prompt, client=caller.name, images=images, **EDIT))
    assert event["detail-type"] == "Image Generation Completed"
    (image,) = event["detail"]["images"]
    assert shown_in(opened(fetched(image["permalink"]).content), 3) == [RED, GREEN, BLUE]
    inputs = caller.see(event["detail"]["id"]).json["inputs"]
    assert [each["id"][:4] for each in inputs] == ["upl_", "inp_", "inp_"]


def test_an_event_cannot_name_an_image_that_its_client_may_not_have(
    world: World, bus: Subscriber, caller: Client, prompt: str
) -> None:
    bad = [
        {"s3_uri": "s3://another/cat.png"},
        {"s3_uri": f"s3://{EVENT_BUCKET}/missing.png"},
        {"file_id": world.caller().upload(picture())},
        {"image_url": "https://127.0.0.1/cat.png"},
    ]
    sent = [put(world, prompt=prompt, client=caller.name, images=[image], **EDIT) for image in bad]
    for custom_id in sent:
        event = bus.first(custom_id=custom_id)
        assert event["detail-type"] == "Image Generation Rejected"
        error = event["detail"]["error"]
        assert (error["code"], error["param"]) == ("invalid_image", "images[0]")
        assert "invalid_image" in world.laid_aside(custom_id)
    assert (caller.newest(), world.calls(prompt)) == ([], [])
