"""Daily allowances in images: never overspent, however many ask at once and whatever DynamoDB does."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from imagegen.credentials import BearerKey
from local.aws_door import Fault
from local.serving import Reply, Request
from local.stack import STACK_NAME
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post

ALLOWED = 50


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"ImagesPerClientPerDay": str(ALLOWED), "LeaseSeconds": "3", "WorkerConcurrency": "2"}
    folder = tmp_path_factory.mktemp("allowance")
    # Eight processes of a function answer two hundred clients, who wait for them: more would only share two cores.
    with serve("source", folder, parameters, most_processes=8, integration_seconds=120) as service:
        yield service


def new_client(service: Service, name: str, images_per_day: int | None = None) -> str:
    """A key of a client of its own, so that no test finds an allowance used up by another."""
    key = BearerKey.new(name)
    record = {"key_sha256": key.record().key_sha256}
    if images_per_day is not None:
        record["images_per_day"] = images_per_day  # type: ignore[assignment]
    service.stack.client("ssm").put_parameter(
        Name=f"/{STACK_NAME}/clients/{name}", Type="String", Value=json.dumps(record)
    )
    return key.key


def ask(service: Service, key: str, **fields: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = {name: fields.pop(name) for name in ("Prefer", "Idempotency_Key") if name in fields}
    body = {"model": "dall-e-2", "size": "256x256", "prompt": "counted", **fields}
    return post(service, json.dumps(body).encode(), Authorization=f"Bearer {key}", **headers)


def ended(service: Service, key: str) -> Counter[str]:
    """How the client's generations ended, by status."""
    statuses: Counter[str] = Counter()
    after = ""
    while True:
        path = f"/images/generations?limit=100{after}"
        _, _, page = post(service, b"", path=path, method="GET", Authorization=f"Bearer {key}")
        for each in page["data"]:
            status, deadline = each["status"], time.monotonic() + 60
            while status in ("queued", "in_progress") and time.monotonic() < deadline:
                time.sleep(0.1)
                path = f"/images/generations/{each['id']}"
                status = post(service, b"", path=path, method="GET", Authorization=f"Bearer {key}")[2]["status"]
            statuses[status] += 1
        if not page["has_more"]:
            return statuses
        after = f"&after={page['last_id']}"


@pytest.mark.parametrize(
    ("asked", "allowed"), [pytest.param(80, 20, id="short"), pytest.param(200, 50, id="long", marks=pytest.mark.soak)]
)
def test_of_many_requests_at_once_exactly_the_allowance_is_generated(
    service: Service, asked: int, allowed: int
) -> None:
    key = new_client(service, f"crowd-of-{asked}", images_per_day=allowed)
    service.upstream.calls.clear()
    with ThreadPoolExecutor(asked) as pool:
        answers = list(pool.map(lambda _: ask(service, key, Prefer="respond-async"), range(asked)))
    assert Counter(status for status, _, _ in answers) == {202: allowed, 429: asked - allowed}
    assert ended(service, key) == {"completed": allowed}
    assert len(service.upstream.calls) == allowed


def test_with_conflicts_and_throttles_no_image_too_many_is_generated(service: Service) -> None:
    """moto makes neither. Clients retry what cost nothing, as OpenAI's do."""
    allowed, asked = 20, 60
    key = new_client(service, "unlucky", images_per_day=allowed)
    service.upstream.calls.clear()
    errors = ["ThrottlingException", "TransactionConflictException", "InternalServerError"]
    faults = [
        Fault(at, "after" if at % 2 else "before", errors[at % 3], once=True, service="dynamodb")
        for at in range(5, 3000, 7)
    ]
    service.stack.door.fail(*faults)

    def retried(number: int) -> int:
        for _ in range(8):
            status, headers, _ = ask(service, key, Prefer="respond-async", Idempotency_Key=f"unlucky {number}")
            if status < 500 or headers.get("x-should-retry") == "false":
                return status
            time.sleep(0.2)
        return status

    with ThreadPoolExecutor(32) as pool:
        statuses = Counter(pool.map(retried, range(asked)))
    service.stack.door.fail()
    generated = ended(service, key)
    assert statuses[202] + statuses[429] >= asked - 5
    # What cannot be given back for certain stays taken: too little is spent then, never too much.
    assert allowed - 10 <= generated["completed"] <= allowed
    assert set(generated) <= {"completed", "failed"}
    assert len(service.upstream.calls) <= allowed + 5  # calls of unknown outcome, each told by its record


def test_an_answer_tells_how_the_client_stands(service: Service) -> None:
    key = new_client(service, "counting")
    status, headers, _ = ask(service, key, n=2)
    assert status == 200
    told = {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}
    assert told.keys() == {f"x-ratelimit-{name}-images" for name in ("limit", "remaining", "reset")}
    assert (told["x-ratelimit-limit-images"], told["x-ratelimit-remaining-images"]) == ("50", "48")
    assert told["x-ratelimit-reset-images"].endswith("s")


def test_over_its_allowance_openais_client_is_told_once_and_nothing_is_spent(service: Service) -> None:
    key = new_client(service, "poor", images_per_day=3)
    service.upstream.calls.clear()
    client = openai.OpenAI(base_url=service.base_url, api_key=key, max_retries=2)
    with pytest.raises(openai.RateLimitError) as refused:
        client.images.generate(model="dall-e-2", size="256x256", prompt="too many", n=4)
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert "4 images" in error.message
    assert error.response.headers["x-ratelimit-limit-images"] == "3"
    assert error.response.headers["x-ratelimit-remaining-images"] == "3"
    assert int(error.response.headers["retry-after"]) > 0
    assert service.upstream.calls == []
    client.images.generate(model="dall-e-2", size="256x256", prompt="enough", n=3)
    with pytest.raises(openai.RateLimitError):
        client.images.generate(model="dall-e-2", size="256x256", prompt="one more")


def test_what_was_refused_upstream_can_be_asked_for_again(service: Service) -> None:
    key = new_client(service, "careful", images_per_day=1)
    refused = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "content_policy_violation"}}'
    service.upstream.script.append(lambda _: Reply(400, refused, {"Content-Type": "application/json"}))
    assert ask(service, key)[0] == 400
    service.upstream.script.append(slow)
    deadline = time.monotonic() + 10  # given back once the refusal is on the record
    while (first := ask(service, key, Prefer="respond-async"))[0] == 429 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert first[0] == 202
    assert ask(service, key)[0] == 429


def slow(_: Request) -> None:
    time.sleep(1)


def test_a_retry_of_the_same_generation_is_not_counted_again(service: Service) -> None:
    key = new_client(service, "once", images_per_day=1)
    answers = [ask(service, key, Idempotency_Key="the same") for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert len({answer["id"] for _, _, answer in answers}) == 1
