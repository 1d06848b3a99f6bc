"""What other systems are told: an operator's rule with a queue behind it, on the bus of a whole stack."""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from local.aws_door import ACCOUNT, REGION, Fault
from local.serving import HungUpError, Reply, Request, serving
from local.stack import CREDENTIALS, STACK_NAME
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post
from tests.e2e.test_generations import begin, get, kill_workers

API, WORKER = "dall-e-3", "gpt-image-1"  # who makes a model's images: the api function, or the worker
MOST_TRIES = 60  # more calls to the bus than any of these tests makes
COMPLETED, FAILED, CANCELLED = (f"Image Generation {end}" for end in ("Completed", "Failed", "Cancelled"))
CANARY = f"canary{uuid.uuid4().hex}"
NEVER = (CANARY, UPSTREAM_KEY, "X-Amz-", "in detail")  # the last is in every revised prompt of the stand-in


class Relay:
    """Stands between the functions and the bus. `script` is done before a call goes on, one entry a call, in order."""

    def __init__(self) -> None:
        self.aws_url = ""
        self.script: deque[Callable[[], None]] = deque()

    def respond(self, request: Request) -> Reply:
        if self.script:
            self.script.popleft()()
        connection = HTTPConnection(urlsplit(self.aws_url).netloc, timeout=30)
        headers = {name: value for name, value in request.headers if name.lower() not in ("host", "content-length")}
        connection.request(request.method, request.target, request.body, headers)
        response = connection.getresponse()
        reply = Reply(response.status, response.read(), {"Content-Type": response.getheader("Content-Type", "")})
        connection.close()
        return reply


class Subscriber:
    """A queue of an operator's, with all that comes to it, by the id of the generation."""

    def __init__(self, service: Service) -> None:
        self._events, self._sqs = service.stack.client("events"), service.stack.client("sqs")
        self._name = f"subscriber-{uuid.uuid4().hex}"
        self._queue = self._sqs.create_queue(QueueName=self._name)["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])["Attributes"]
        pattern = json.dumps({"source": ["imagegen"]})
        self._events.put_rule(Name=self._name, EventBusName=STACK_NAME, EventPattern=pattern)
        targets = [{"Id": "queue", "Arn": arn["QueueArn"]}]
        self._events.put_targets(Rule=self._name, EventBusName=STACK_NAME, Targets=targets)
        self._all: list[dict[str, Any]] = []

    def close(self) -> None:
        self._events.remove_targets(Rule=self._name, EventBusName=STACK_NAME, Ids=["queue"])
        self._events.delete_rule(Name=self._name, EventBusName=STACK_NAME)
        self._sqs.delete_queue(QueueUrl=self._queue)

    def events(self, generation_id: str) -> list[dict[str, Any]]:
        while messages := self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
                self._all.append(checked(message["Body"]))
        return [event for event in self._all if event["detail"]["id"] == generation_id]

    def wait(self, generation_id: str, seconds: float = 20) -> dict[str, Any]:
        """The first event of that generation."""
        deadline = time.monotonic() + seconds
        while not (found := self.events(generation_id)):
            assert time.monotonic() < deadline, f"{generation_id} was not told"
            time.sleep(0.05)
        return found[0]


def checked(body: str) -> dict[str, Any]:
    """Whatever is delivered is valid by its schema, and holds no canary."""
    event: dict[str, Any] = {"account": ACCOUNT, **json.loads(body)}  # which moto leaves out
    name = event["detail-type"].lower().replace(" ", "-")
    schema = json.loads((ROOT / f"events/schemas/{name}.json").read_text())
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(event)
    assert [canary for canary in NEVER if canary in body] == []
    return event


@pytest.fixture(scope="module")
def relay() -> Relay:
    return Relay()


@pytest.fixture(scope="module")
def service(relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": "2", "WaitSeconds": "2", "UpstreamTimeoutSeconds": "20"}
    with serving(relay.respond) as port:
        environment = {"AWS_ENDPOINT_URL_EVENTBRIDGE": f"http://127.0.0.1:{port}"}
        with serve("source", tmp_path_factory.mktemp("events-out"), parameters, environment) as service:
            relay.aws_url = service.stack.aws_url
            yield service


@pytest.fixture
def subscriber(service: Service, relay: Relay) -> Iterator[Subscriber]:
    subscriber = Subscriber(service)
    service.upstream.delay = 0
    yield subscriber
    service.stack.door.fail()
    relay.script.clear()
    subscriber.close()


def generate(service: Service, model: str, **fields: Any) -> tuple[int, str, dict[str, Any]]:
    """The status, the generation's id and the answer that a client gets which follows redirects."""
    body = {"prompt": f"{CANARY} otter", "user": CANARY, "model": model, "response_format": "url", **fields}
    # As OpenAI's clients do, so that the api function itself makes images of quick models.
    asked = {"Idempotency_Key": f"{CANARY}{uuid.uuid4().hex}", "x_stainless_retry_count": "0"}
    status, headers, answer = post(service, json.dumps(body).encode(), **asked)
    generation_id = headers["x-generation-id"]
    for _ in range(20):
        if status != 303:
            break
        status, _, answer = get(service, f"/images/generations/{generation_id}/result")
    return status, generation_id, answer


def gone(when: str) -> list[Fault]:
    """Every call to the bus fails from now on."""
    return [Fault(at, when, service="events") for at in range(1, MOST_TRIES)]


# What is told.


@pytest.mark.parametrize("model", [API, WORKER])
def test_a_completed_generation_is_told_with_links_that_work(
    service: Service, subscriber: Subscriber, model: str
) -> None:
    status, generation_id, answer = generate(service, model, n=2)
    assert status == 200
    event = subscriber.wait(generation_id)
    assert event["detail-type"] == COMPLETED
    detail = event["detail"]
    assert (detail["client"], detail["model"], detail["n"]) == ("local", model, 2)
    assert [image["id"] for image in detail["images"]] == [image["id"] for image in answer["data"]]
    for image in detail["images"]:
        link = urlsplit(image["permalink"])
        connection = HTTPConnection(link.netloc, timeout=30)
        connection.request("GET", link.path)  # without a key
        response = connection.getresponse()
        assert response.status == 302
        with urlopen(response.headers["Location"]) as found:
            assert (found.read(8), image["media_type"]) == (b"\x89PNG\r\n\x1a\n", "image/png")
        connection.close()


@pytest.mark.parametrize("model", [API, WORKER])
def test_a_failed_generation_is_told_with_its_code_and_without_the_upstreams_words(
    service: Service, subscriber: Subscriber, model: str
) -> None:
    refusal = {"message": f"No {CANARY}", "type": CANARY, "param": "size", "code": CANARY}
    service.upstream.script.append(lambda _: Reply(400, json.dumps({"error": refusal}).encode()))
    status, generation_id, _ = generate(service, model)
    assert status == 400
    event = subscriber.wait(generation_id)
    assert event["detail-type"] == FAILED
    assert event["detail"]["images"] == []
    assert event["detail"]["error"] == {
        "type": "invalid_request_error",
        "code": "upstream_refused_request",
        "param": "size",
    }


def test_a_generation_that_failed_in_part_is_told_with_what_is_stored(service: Service, subscriber: Subscriber) -> None:
    refusal = {"message": CANARY, "type": CANARY, "code": "content_policy_violation"}
    service.upstream.script.append(lambda _: Reply(400, json.dumps({"error": refusal}).encode()))
    status, generation_id, answer = generate(service, API, n=2)
    assert status == 424
    event = subscriber.wait(generation_id)
    assert (event["detail-type"], event["detail"]["error"]["code"]) == (FAILED, "content_policy_violation")
    assert [image["id"] for image in event["detail"]["images"]] == [image["id"] for image in answer["error"]["images"]]


@pytest.mark.parametrize(("act", "method"), [("/cancel", "POST"), ("", "DELETE")], ids=["cancel", "delete"])
def test_a_cancelled_or_deleted_generation_is_told(
    service: Service, subscriber: Subscriber, act: str, method: str
) -> None:
    service.upstream.delay = 1
    generation_id = begin(service, prompt=CANARY, user=CANARY)
    assert get(service, f"/images/generations/{generation_id}{act}", method=method)[0] == 200
    event = subscriber.wait(generation_id, seconds=1)
    assert event["detail-type"] == CANCELLED
    assert (event["detail"]["images"], event["detail"]["error"]) == ([], None)


def test_without_any_fault_an_end_is_told_once(service: Service, subscriber: Subscriber) -> None:
    _, generation_id, _ = generate(service, API)
    subscriber.wait(generation_id)
    time.sleep(4)  # the second message comes a lease and a half later
    assert len(subscriber.events(generation_id)) == 1


# A bus that fails.


@pytest.mark.parametrize("model", [API, WORKER])
@pytest.mark.parametrize(("when", "told"), [("before", 1), ("after", 2)])
def test_a_call_that_fails_once_is_repeated_by_the_sdk(
    service: Service, subscriber: Subscriber, model: str, when: str, told: int
) -> None:
    service.stack.door.fail(Fault(1, when, once=True, service="events"))
    status, generation_id, _ = generate(service, model)
    assert status == 200
    subscriber.wait(generation_id)
    until(lambda: len(subscriber.events(generation_id)) == told)
    assert {event["detail-type"] for event in subscriber.events(generation_id)} == {COMPLETED}


@pytest.mark.parametrize("model", [API, WORKER])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_completed_generation_whose_announcement_failed_is_announced_later(
    service: Service, subscriber: Subscriber, model: str, when: str
) -> None:
    service.stack.door.fail(*gone(when))
    status, generation_id, answer = generate(service, model)
    assert (status, len(answer["data"])) == (200, 1)
    told = len(subscriber.events(generation_id))
    assert told == 0 or when == "after"
    service.stack.door.fail()
    until(lambda: len(subscriber.events(generation_id)) > told)
    assert subscriber.events(generation_id)[-1]["detail-type"] == COMPLETED
    assert len(service.upstream.calls) == 1


def test_a_cancelled_generation_whose_announcement_failed_is_announced_later(
    service: Service, subscriber: Subscriber
) -> None:
    service.upstream.delay = 1
    service.stack.door.fail(*gone("before"))
    generation_id = begin(service, prompt=CANARY)
    status, _, cancelled = get(service, f"/images/generations/{generation_id}/cancel", method="POST")
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert subscriber.events(generation_id) == []
    service.stack.door.fail()
    assert subscriber.wait(generation_id)["detail-type"] == CANCELLED


@pytest.mark.parametrize(
    ("model", "function"), [(API, "ApiFunction"), (WORKER, "WorkerFunction")], ids=["api", "worker"]
)
def test_who_is_killed_between_storing_and_announcing_is_followed_by_one_who_announces(
    service: Service, subscriber: Subscriber, relay: Relay, model: str, function: str
) -> None:
    seen = []

    def kill() -> None:
        kill_workers(service, function)
        time.sleep(0.3)  # until the host has seen that they are gone, and sends them nothing more
        seen.append(newest(service))
        raise HungUpError

    relay.script.append(kill)
    body = json.dumps({"prompt": CANARY, "model": model}).encode()
    if model == API:  # which dies with the request
        assert post(service, body, x_stainless_retry_count="0")[0] == 424
    else:
        assert post(service, body, Prefer="respond-async")[0] == 202
    event = subscriber.wait(newest(service)["id"])
    assert event["detail-type"] == COMPLETED
    until(lambda: bool(seen))
    assert [(each["id"], each["status"]) for each in seen] == [(event["detail"]["id"], "completed")]
    assert (event["detail"]["repeated_calls"], len(service.upstream.calls)) == (0, 1)


def newest(service: Service) -> dict[str, Any]:
    """The generation that was begun last."""
    (generation,) = get(service, "/images/generations?limit=1")[2]["data"]
    return dict(generation)


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_its_bus_an_end_is_lost_without_a_word_and_make_verify_says_so(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not there")
    with serve("source", tmp_path) as service:
        aws = {"AWS_ENDPOINT_URL": service.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}
        command = ["make", "--old-file=.venv/ready", "verify", f"BASE_URL={service.base_url}", f"STACK={STACK_NAME}"]

        def verify() -> subprocess.CompletedProcess[str]:
            environment = os.environ | aws | {"KEY": service.key, "PYTEST_ADDOPTS": "-k bus"}
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

        done = verify()
        assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
        service.stack.client("events").delete_event_bus(Name=STACK_NAME)
        assert service.client(max_retries=0).images.generate(model=API, prompt="an otter").data
        done = verify()
        assert done.returncode != 0
        assert "ResourceNotFoundException" in done.stdout
