"""Requests that come by EventBridge: each begins one generation, or is refused with its reason and told."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from samtranslator.yaml_helper import yaml_parse

from imagegen.credentials import BearerKey
from local.stack import STACK_NAME
from tests.conftest import ROOT
from tests.e2e.conftest import Service, serve
from tests.e2e.test_generations import get

REQUESTED = "Image Generation Requested"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": "2", "UpstreamTimeoutSeconds": "20"}
    with serve("source", tmp_path_factory.mktemp("events-in"), parameters) as service:
        yield service


@pytest.fixture(scope="module")
def told(service: Service) -> Callable[[str], dict[str, Any]]:
    """Gives the event that was told of a custom_id."""
    events, sqs = service.stack.client("events"), service.stack.client("sqs")
    url = sqs.create_queue(QueueName="subscriber")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="subscriber", EventBusName=STACK_NAME, EventPattern=json.dumps({"source": ["imagegen"]}))
    events.put_targets(Rule="subscriber", EventBusName=STACK_NAME, Targets=[{"Id": "queue", "Arn": arn}])
    seen: dict[str, dict[str, Any]] = {}

    def told(custom_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while custom_id not in seen:
            assert time.monotonic() < deadline, seen
            for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
                event = json.loads(message["Body"])
                seen[event["detail"]["custom_id"]] = event
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return seen[custom_id]

    return told


def put(service: Service, **detail: Any) -> str:
    """Puts a request on the bus; gives its custom_id."""
    custom_id = f"order-{uuid4().hex}"
    entry = {"Source": "shop", "DetailType": REQUESTED, "EventBusName": STACK_NAME}
    detail = {"custom_id": custom_id, "model": "dall-e-2", "size": "256x256", **detail}
    answer = service.stack.client("events").put_events(Entries=[{**entry, "Detail": json.dumps(detail)}])
    assert answer["FailedEntryCount"] == 0
    return custom_id


def queue_url(service: Service, name: str) -> str:
    (url,) = [url for url in service.stack.client("sqs").list_queues()["QueueUrls"] if name in url]
    return str(url)


def deliver(service: Service, detail: Any, event_id: str) -> None:
    """As EventBridge delivers, once more."""
    event = {"version": "0", "id": event_id, "detail-type": REQUESTED, "source": "shop", "detail": detail}
    url = queue_url(service, "IntakeQueue")
    service.stack.client("sqs").send_message(QueueUrl=url, MessageBody=json.dumps(event))


def laid_aside(service: Service) -> tuple[str, str]:
    """The body and the reason of the dead letter that comes next."""
    sqs, url = service.stack.client("sqs"), queue_url(service, "IntakeDeadLetters")
    deadline = time.monotonic() + 20
    while True:
        answer = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], MaxNumberOfMessages=1)
        for message in answer.get("Messages", []):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            return message["Body"], message["MessageAttributes"]["reason"]["StringValue"]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_event_has_its_image_made_and_its_end_told(service: Service, told: Callable[[str], dict[str, Any]]) -> None:
    event = told(put(service, prompt="by an event", client="local", n=2))
    assert event["detail-type"] == "Image Generation Completed"
    detail = event["detail"]
    assert (detail["client"], detail["model"], len(detail["images"])) == ("local", "dall-e-2", 2)
    for image in detail["images"]:
        assert image["permalink"].startswith(f"{service.base_url}/images/")
        assert get(service, f"/images/{image['id']}")[0] == 302
    assert get(service, f"/images/generations/{detail['id']}")[0] == 200
    assert get(service, f"/images/generations/{detail['id']}", key="other")[0] == 404


def test_an_event_without_a_client_is_nobody_elses(service: Service, told: Callable[[str], dict[str, Any]]) -> None:
    detail = told(put(service, prompt="nobody's"))["detail"]
    assert detail["client"] == "events"
    assert get(service, f"/images/generations/{detail['id']}")[0] == 404


def test_the_same_event_delivered_five_times_is_paid_for_once(
    service: Service, told: Callable[[str], dict[str, Any]]
) -> None:
    event_id, custom_id = str(uuid4()), f"five-{uuid4().hex}"
    for _ in range(5):
        deliver(service, {"prompt": "five times", "model": "dall-e-2", "custom_id": custom_id}, event_id)
    assert told(custom_id)["detail-type"] == "Image Generation Completed"
    time.sleep(1)
    assert [call["prompt"] for call in service.upstream.calls].count("five times") == 1


def test_the_daily_image_of_the_template_is_made_once_a_day(service: Service) -> None:
    schedule = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["DailyImage"]["Properties"]["Target"]
    assert schedule["EventBridgeParameters"]["DetailType"] == REQUESTED
    prompt = f"a lighthouse, it's {uuid4().hex}"
    written = schedule["Input"]["Fn::Sub"].replace("${DailyImagePrompt}", prompt)
    for day in ("2026-11-22", "2026-11-23"):
        for _ in range(2):  # the scheduler puts it on the bus at least once, each time as another event
            due = written.replace("<aws.scheduler.scheduled-time>", f"{day}T06:00:00Z")
            deliver(service, json.loads(due), str(uuid4()))
    deadline = time.monotonic() + 30
    while (made := [call["prompt"] for call in service.upstream.calls].count(prompt)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert made == [call["prompt"] for call in service.upstream.calls].count(prompt) == 2


def test_an_idempotency_key_goes_before_the_events_id(service: Service, told: Callable[[str], dict[str, Any]]) -> None:
    key = uuid4().hex
    first = put(service, prompt="one key", idempotency_key=key)
    assert told(first)["detail-type"] == "Image Generation Completed"
    put(service, prompt="one key", idempotency_key=key)
    another = put(service, prompt="another", idempotency_key=key)
    assert told(another)["detail"]["error"]["code"] == "idempotency_key_reused"
    assert "IdempotencyKeyReusedError" in laid_aside(service)[1]
    assert [call["prompt"] for call in service.upstream.calls].count("one key") == 1


@pytest.mark.parametrize(
    ("detail", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "size": "1x1"}, "size"),
        ({"prompt": "x", "webhook": "https://x"}, "webhook"),
        ({"prompt": "x", "client": "Not A Client"}, "client"),
        ({"prompt": "x", "client": 7}, "client"),
        ({"prompt": "x", "idempotency_key": ""}, "idempotency_key"),
        ({"prompt": "x", "idempotency_key": ["a"]}, "idempotency_key"),
        ({"prompt": "x", "n": 11}, "n"),
    ],
)
def test_a_bad_event_is_laid_aside_with_its_reason_and_told(
    service: Service, told: Callable[[str], dict[str, Any]], detail: dict[str, Any], param: str
) -> None:
    custom_id = put(service, **detail)
    event = told(custom_id)
    assert event["detail-type"] == "Image Generation Rejected"
    assert event["detail"]["error"]["param"] == param
    body, reason = laid_aside(service)
    assert json.loads(body)["detail"]["custom_id"] == custom_id
    assert param in reason
    assert service.upstream.calls == []


@pytest.mark.parametrize("body", ["", "{", "[]", '"text"', '{"detail": {}}', '{"id": "x"}', '{"id": 1, "detail": {}}'])
def test_what_is_no_event_is_laid_aside(service: Service, body: str) -> None:
    body = body or " "  # SQS takes no empty message
    service.stack.client("sqs").send_message(QueueUrl=queue_url(service, "IntakeQueue"), MessageBody=body)
    assert laid_aside(service)[0] == body


def test_a_bad_custom_id_is_refused_by_name(service: Service) -> None:
    deliver(service, {"prompt": "x", "custom_id": ["no text"]}, str(uuid4()))
    assert "custom_id" in laid_aside(service)[1]


def test_over_an_allowance_an_event_is_refused_and_told(
    service: Service, told: Callable[[str], dict[str, Any]]
) -> None:
    record = {"key_sha256": BearerKey.new("poor").record().key_sha256, "images_per_day": 1}
    service.stack.client("ssm").put_parameter(
        Name=f"/{STACK_NAME}/clients/poor", Type="String", Value=json.dumps(record)
    )
    event = told(put(service, prompt="too many", client="poor", n=2))
    assert (event["detail-type"], event["detail"]["error"]["code"]) == (
        "Image Generation Rejected",
        "insufficient_quota",
    )
    assert "AllowanceSpentError" in laid_aside(service)[1]
    assert told(put(service, prompt="enough", client="poor"))["detail-type"] == "Image Generation Completed"
