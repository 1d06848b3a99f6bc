"""DynamoDB, SQS or S3 fails at each single call of a generation in turn, at moto's own port.

Nothing is lost, nothing is paid twice unannounced, no record stays in progress.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from local.aws_door import Fault
from tests.e2e.conftest import Service, serve
from tests.e2e.test_generations import get, post_following, until_ended

MOST_CALLS = 60  # more than any of these generations makes: asserted
LONG = pytest.mark.soak
KINDS = [
    pytest.param({}, id="before-or-after"),
    pytest.param({"when": "before"}, id="before", marks=LONG),
    pytest.param({"when": "after"}, id="after", marks=LONG),
    # The SDK repeats these by itself, and the repetition meets what the first try has done.
    pytest.param({"when": "after", "once": True}, id="after-once", marks=LONG),
    pytest.param({"when": "after", "error": "hang-up", "once": True}, id="answer-lost", marks=LONG),
    pytest.param({"when": "before", "error": "ThrottlingException"}, id="throttled", marks=LONG),
    pytest.param({"when": "before", "error": "hang-up"}, id="hang-up", marks=LONG),
]
PATHS = [pytest.param("gpt-image-1", id="worker"), pytest.param("dall-e-3", id="api")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": "1", "WaitSeconds": "2", "UpstreamTimeoutSeconds": "20"}
    with serve("source", tmp_path_factory.mktemp("aws-faults"), parameters) as service:
        yield service


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_whichever_call_fails_the_images_are_made_and_paid_for_as_the_record_says(
    service: Service, model: str, kind: dict[str, Any]
) -> None:
    ends: Counter[str] = Counter()
    for at in range(1, MOST_CALLS):
        service.upstream.calls.clear()
        when = "before" if at % 2 else "after"
        service.stack.door.fail(Fault(at, **({"when": when} | kind)))
        generation_id = asked_until_answered(service, model, f"{kind} {at} {model}")
        counted = service.stack.door.fail()
        generation = until_ended(service, generation_id)
        assert generation["status"] == "completed", (at, generation)
        assert len(generation["data"]) == 1
        # An intent that is on the record, but whose writer was not told so, was never sent.
        assert 1 <= len(service.upstream.calls) <= 1 + generation["repeated_calls"], (at, generation)
        assert generation["repeated_calls"] <= 1
        ends[f"{generation['repeated_calls']} repeated"] += 1
        if counted < at:
            break
    else:
        raise AssertionError("there are calls that had no fault")
    print(f"{model} {kind}: {at - 1} calls, {dict(ends)}")  # noqa: T201


def asked_until_answered(service: Service, model: str, prompt: str) -> str:
    """The id of the generation that a client with a key gets in the end, retrying as OpenAI's clients do."""
    body = json.dumps({"prompt": prompt, "model": model}).encode()
    for _ in range(8):
        status, headers, answer = post_following(service, body, Idempotency_Key=prompt, x_stainless_retry_count="0")
        if status == 200:
            return str(headers["x-generation-id"])
        retried = status in (408, 409, 429) or (status >= 500 and headers.get("x-should-retry") != "false")
        if not retried:
            assert status == 424, answer
            return str(headers["x-generation-id"])
        time.sleep(0.2)
    raise AssertionError(answer)


def test_a_deletion_that_fails_in_the_bucket_is_told_and_finished_when_asked_again(service: Service) -> None:
    service.stack.door.fail()
    generation_id = asked_until_answered(service, "gpt-image-1", "deleted twice")
    path = f"/images/generations/{generation_id}"
    (image,) = get(service, path)[2]["data"]
    service.stack.door.fail(Fault(1, service="s3"))
    status, _, answer = get(service, path, method="DELETE")
    assert (status, answer["error"]["code"]) == (503, "deletion_unfinished")
    assert get(service, path)[0] == 404
    assert get(service, path, method="DELETE")[0] == 200
    assert f"images/{image['id']}" not in service.stored()
    assert get(service, path, method="DELETE")[0] == 200  # as long as its tombstone stays


@pytest.mark.parametrize("error", ["ExpiredToken", "RequestTimeout"])
def test_an_image_whose_upload_s3_cuts_or_refuses_as_too_late_is_stored_by_another_try(
    service: Service, error: str
) -> None:
    service.upstream.calls.clear()
    service.stack.door.fail(Fault(1, error=error, service="s3"))
    generation = until_ended(service, asked_until_answered(service, "gpt-image-1", f"stored after {error}"))
    assert generation["status"] == "completed"
    assert len(service.upstream.calls) == 1
    assert f"images/{generation['data'][0]['id']}" in service.stored()
    assert service.stack.door.fail() > 1
