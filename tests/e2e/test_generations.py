"""Generations that outlive the request, as clients see them. Leases and waits are shortened by parameters."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import ANY
from urllib.request import urlopen

import openai
import pytest

from local.aws_door import REGION
from local.serving import HungUpError, Reply, Request
from local.stack import CREDENTIALS, ROOT, STACK_NAME
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post
from tests.e2e.test_main_job import SAMPLE

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def quick_lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A stack that waits for a second where AWS has 25, and whose leases last three seconds where they last 60."""
    parameters = {
        "WaitSeconds": "1",
        "LeaseSeconds": "3",
        "UpstreamTimeoutSeconds": "20",
        "QuickUpstreamTimeoutSeconds": "20",
    }
    with serve("source", tmp_path_factory.mktemp("generations"), parameters) as service:
        yield service


@pytest.fixture(autouse=True)
def _clean(quick_lease: Service) -> None:
    upstream = quick_lease.upstream
    upstream.delay = 0
    upstream.calls.clear()
    upstream.script.clear()
    upstream.download_script.clear()


def get(service: Service, path: str, *, key: str = "local", method: str = "GET", body: bytes = b"") -> Any:
    return post(service, body, path=path, method=method, Authorization=f"Bearer {service.stack.keys[key]}")


def until_ended(service: Service, generation_id: str, seconds: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _, _, generation = get(service, f"/images/generations/{generation_id}")
        if generation["status"] in ("completed", "failed", "cancelled"):
            return dict(generation)
        time.sleep(0.2)
    raise AssertionError(f"{generation_id} did not end")


def begin(service: Service, **fields: Any) -> str:
    """Starts a generation without waiting for it."""
    body = json.dumps({"prompt": "later", **fields}).encode()
    status, headers, answer = post(service, body, Prefer="respond-async")
    assert status == 202
    assert headers["location"] == f"generations/{answer['id']}"
    assert headers["preference-applied"] == "respond-async"
    assert headers["retry-after"]
    assert answer["object"] == "image.generation"
    return str(answer["id"])


def slow(seconds: float) -> Callable[[Request], Reply | None]:
    def wait(_: Request) -> None:
        time.sleep(seconds)

    return wait


def test_openais_client_gets_its_image_however_long_it_takes(quick_lease: Service) -> None:
    quick_lease.upstream.script.append(slow(5))
    answer = quick_lease.client(max_retries=0).images.generate(model="gpt-image-1", prompt="patience")
    assert answer.data
    assert answer.data[0].b64_json
    assert len(quick_lease.upstream.calls) == 1


def test_the_api_pages_sample_gets_its_image_however_long_it_takes(quick_lease: Service) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    quick_lease.upstream.script.append(slow(4))
    sample = SAMPLE.format(base_url=quick_lease.base_url, key=quick_lease.key)
    out = subprocess.run(["bash", "-c", f"{sample} --silent"], capture_output=True, text=True, check=True).stdout
    with urlopen(json.loads(out)["data"][0]["url"]) as response:
        assert response.read(8) == b"\x89PNG\r\n\x1a\n"
    assert len(quick_lease.upstream.calls) == 1


def test_a_quick_model_that_turns_slow_is_bought_once(quick_lease: Service) -> None:
    """The gateway hangs up on the first request; the client's retry attaches to the work behind it."""
    quick_lease.upstream.script.append(slow(3))
    body = b'{"prompt": "slow dall-e-3"}'
    results: list[Any] = []
    first = threading.Thread(target=lambda: results.append(post(quick_lease, body, x_stainless_retry_count="0")))
    first.start()
    time.sleep(1)
    status, headers, answer = post_following(quick_lease, body, x_stainless_retry_count="1")
    first.join()
    assert status == 200
    assert headers["x-generation-id"] == results[0][1]["x-generation-id"] == answer["id"]
    assert len(quick_lease.upstream.calls) == 1


def post_following(service: Service, body: bytes, **headers: str) -> Any:
    """As a client that follows redirects."""
    status, got, answer = post(service, body, **headers)
    for _ in range(20):
        if status != 303:
            break
        generation_id = got["x-generation-id"]
        status, got, answer = get(service, f"/images/generations/{generation_id}/result")
    return status, got, answer


def test_two_identical_first_attempts_stay_two_also_when_both_retry(quick_lease: Service) -> None:
    quick_lease.upstream.delay = 1.5
    body = b'{"prompt": "twins"}'

    def client(_: int) -> list[str]:
        attempts = []
        for retry in range(2):
            _, headers, _told = post(quick_lease, body, x_stainless_retry_count=str(retry), Prefer="respond-async")
            attempts.append(headers["x-generation-id"])
        return attempts

    with ThreadPoolExecutor(2) as pool:
        ids = [generation_id for attempts in pool.map(client, range(2)) for generation_id in attempts]
    assert len(set(ids)) == 2
    for generation_id in set(ids):
        assert until_ended(quick_lease, generation_id)["status"] == "completed"
    assert len(quick_lease.upstream.calls) == 2


def test_a_hundred_requests_with_one_idempotency_key_are_one_generation(quick_lease: Service) -> None:
    quick_lease.upstream.delay = 0.5
    body = b'{"prompt": "one of a hundred"}'
    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda _: post_following(quick_lease, body, Idempotency_Key="hundred"), range(100)))
    assert {status for status, _, _ in answers} == {200}
    assert len({answer["id"] for _, _, answer in answers}) == 1
    assert len(quick_lease.upstream.calls) == 1


def test_an_idempotency_key_with_another_body_is_422(quick_lease: Service) -> None:
    assert post_following(quick_lease, b'{"prompt": "a"}', Idempotency_Key="k1")[0] == 200
    status, _, answer = post(quick_lease, b'{"prompt": "b"}', Idempotency_Key="k1")
    assert (status, answer["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(quick_lease.upstream.calls) == 1


def test_a_failure_that_may_have_cost_is_replayed_and_one_that_did_not_is_tried_again(quick_lease: Service) -> None:
    body = b'{"prompt": "failing"}'
    quick_lease.upstream.script.append(lambda _: Reply(500, b"{}"))
    for _ in range(2):
        status, _, answer = post_following(quick_lease, body, Idempotency_Key="costly")
        assert (status, answer["error"]["code"]) == (424, "upstream_failed")
    assert len(quick_lease.upstream.calls) == 1

    quick_lease.upstream.script.append(lambda _: Reply(401, b"{}"))
    assert post_following(quick_lease, body, Idempotency_Key="free")[0] == 502
    assert post_following(quick_lease, body, Idempotency_Key="free")[0] == 200


def test_prefer_wait_ends_the_wait_early(quick_lease: Service) -> None:
    quick_lease.upstream.delay = 3
    started = time.monotonic()
    status, headers, _ = post(quick_lease, b'{"prompt": "x"}', Prefer="respond-async, wait=0")
    assert status == 202
    assert headers["preference-applied"] == "respond-async, wait=0"
    assert time.monotonic() - started < 2


def test_a_generation_is_seen_listed_and_its_links_are_fresh(quick_lease: Service) -> None:
    generation_id = begin(quick_lease, n=2)
    generation = until_ended(quick_lease, generation_id)
    assert generation["status"] == "completed"
    assert len(generation["data"]) == 2
    with urlopen(generation["data"][0]["url"]) as response:
        assert response.status == 200
    later = begin(quick_lease)
    until_ended(quick_lease, later)
    _, _, page = get(quick_lease, "/images/generations?limit=1")
    assert [each["id"] for each in page["data"]] == [later]
    assert page["has_more"] is True
    _, _, page = get(quick_lease, f"/images/generations?limit=1&after={later}")
    assert [each["id"] for each in page["data"]] == [generation_id]
    assert get(quick_lease, "/images/generations?limit=0")[0] == 400
    assert get(quick_lease, "/images/generations?status=failed&limit=100")[0] == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/result"), ("POST", "/result"), ("POST", "/cancel"), ("DELETE", "")]
)
def test_another_callers_generation_is_not_there(quick_lease: Service, method: str, path: str) -> None:
    generation_id = begin(quick_lease)
    status, _, answer = get(quick_lease, f"/images/generations/{generation_id}{path}", key="other", method=method)
    assert (status, answer["error"]["code"]) == (404, "generation_not_found")
    until_ended(quick_lease, generation_id)
    assert get(quick_lease, "/images/generations", key="other")[2]["data"] == []


def test_a_cancelled_generation_starts_no_further_call_and_says_so(quick_lease: Service) -> None:
    quick_lease.upstream.delay = 5
    generation_id = begin(quick_lease, n=1)
    deadline = time.monotonic() + 20
    while not quick_lease.upstream.calls:  # one that is about to begin is not held back
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status, _, cancelled = get(quick_lease, f"/images/generations/{generation_id}/cancel", method="POST")
    assert (status, cancelled["status"]) == (200, "cancelled")
    deadline = time.monotonic() + 20
    while not (kept := get(quick_lease, f"/images/generations/{generation_id}")[2])["data"]:
        assert time.monotonic() < deadline  # the image that is paid for and still comes
        time.sleep(0.1)
    assert (kept["status"], len(quick_lease.upstream.calls)) == ("cancelled", 1)
    status, _, answer = get(quick_lease, f"/images/generations/{generation_id}/result")
    assert (status, answer["error"]["code"]) == (424, "generation_cancelled")
    assert get(quick_lease, f"/images/generations/{generation_id}/cancel", method="POST")[2] == kept | {
        "data": [kept["data"][0] | {"url": ANY, "expires_at": ANY}]
    }


def test_a_deleted_generation_is_gone_with_its_images_and_links(quick_lease: Service) -> None:
    generation_id = begin(quick_lease)
    (image,) = until_ended(quick_lease, generation_id)["data"]
    assert get(quick_lease, f"/images/generations/{generation_id}", method="DELETE")[2]["deleted"] is True
    assert get(quick_lease, f"/images/generations/{generation_id}")[0] == 404
    assert f"images/{image['id']}" not in quick_lease.stored()
    with pytest.raises(OSError, match="403"):  # S3's own word to whoever may not list the bucket
        urlopen(image["permalink"])


def test_a_generation_deleted_while_it_is_made_leaves_no_image(quick_lease: Service) -> None:
    before = set(quick_lease.stored())
    quick_lease.upstream.delay = 2
    generation_id = begin(quick_lease)
    while not quick_lease.upstream.calls:
        time.sleep(0.05)
    assert get(quick_lease, f"/images/generations/{generation_id}", method="DELETE")[0] == 200
    time.sleep(4)
    assert set(quick_lease.stored()) == before


def kill_workers(service: Service, function: str = "WorkerFunction") -> None:
    for pid in service.stack.functions[function].pids():
        os.kill(pid, 9)


def test_a_killed_workers_generation_is_taken_over_and_its_call_of_unknown_outcome_repeated_once(
    quick_lease: Service,
) -> None:
    def kill(_: Request) -> Reply:
        kill_workers(quick_lease)
        raise HungUpError

    quick_lease.upstream.script.append(kill)
    generation = until_ended(quick_lease, begin(quick_lease))
    assert generation["status"] == "completed"
    assert generation["repeated_calls"] == 1
    assert len(quick_lease.upstream.calls) == 2


def test_what_was_answered_is_not_bought_again_when_the_worker_is_killed_at_the_download(quick_lease: Service) -> None:
    def kill(_: Request) -> Reply:
        kill_workers(quick_lease)
        raise HungUpError

    quick_lease.upstream.download_script.append(kill)
    generation = until_ended(quick_lease, begin(quick_lease))
    assert generation["status"] == "completed"
    assert generation["repeated_calls"] == 0
    assert len(quick_lease.upstream.calls) == 1


def test_the_api_function_killed_as_first_worker_is_followed_by_the_worker(quick_lease: Service) -> None:
    def kill(_: Request) -> Reply:
        kill_workers(quick_lease, "ApiFunction")
        raise HungUpError

    quick_lease.upstream.download_script.append(kill)
    body = b'{"prompt": "first worker"}'
    status, _, answer = post(quick_lease, body, Idempotency_Key="first-worker", x_stainless_retry_count="0")
    assert status == 424
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    status, _, answer = post_following(quick_lease, body, Idempotency_Key="first-worker")
    assert status == 200
    assert len(quick_lease.upstream.calls) == 1


def test_a_message_that_comes_twice_is_one_generation(quick_lease: Service) -> None:
    quick_lease.upstream.delay = 1
    generation_id = begin(quick_lease)
    sqs = quick_lease.stack.client("sqs")
    (queue,) = [url for url in sqs.list_queues()["QueueUrls"] if "-GenerationQueue" in url]
    for _ in range(2):
        sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"generation_id": generation_id}))
    until_ended(quick_lease, generation_id)
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"generation_id": generation_id}))
    deadline, left = time.monotonic() + 30, "?"
    while left != "0":
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
        left = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"][
            "ApproximateNumberOfMessages"
        ]
    assert len(quick_lease.upstream.calls) == 1


def test_ten_large_images_as_base64_reach_openais_client_byte_for_byte(quick_lease: Service) -> None:
    head, tail = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
    images = [head + os.urandom(4_000_000) + tail for _ in range(10)]
    encoded = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    quick_lease.upstream.script.append(lambda _: Reply(200, json.dumps({"created": 1, "data": encoded}).encode()))
    answer = quick_lease.client(max_retries=0).images.generate(model="gpt-image-1", prompt="ten", n=10)
    assert [base64.b64decode(image.b64_json or "") for image in answer.data or []] == images
    assert len(quick_lease.upstream.calls) == 1


def test_who_insists_on_post_gets_the_links_of_a_large_answer(quick_lease: Service) -> None:
    image = b"\x89PNG\r\n\x1a\n" + os.urandom(5_000_000) + b"\0\0\0\0IEND\xaeB`\x82"
    reply = json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(image).decode()}]}).encode()
    quick_lease.upstream.script.append(lambda _: Reply(200, reply))
    generation_id = begin(quick_lease, response_format="b64_json")
    until_ended(quick_lease, generation_id)
    status, _, answer = get(quick_lease, f"/images/generations/{generation_id}/result", method="POST")
    assert (status, answer["error"]["code"]) == (424, "answer_too_large")
    with urlopen(answer["error"]["images"][0]["permalink"]) as response:
        assert response.read() == image


def test_three_of_four_images_are_on_the_record_when_one_is_refused(quick_lease: Service) -> None:
    refusal = {"error": {"message": "no", "type": "x", "param": None, "code": "content_policy_violation"}}
    quick_lease.upstream.script.append(lambda _: Reply(400, json.dumps(refusal).encode()))
    with pytest.raises(openai.APIStatusError) as failed:
        quick_lease.client().images.generate(model="dall-e-3", prompt="four", n=4)
    assert (failed.value.status_code, failed.value.code) == (424, "content_policy_violation")
    generation = get(quick_lease, f"/images/generations/{failed.value.response.headers['x-generation-id']}")[2]
    assert generation["status"] == "failed"
    assert generation["error"]["code"] == "content_policy_violation"
    assert len(generation["data"]) == 3
    assert len(quick_lease.upstream.calls) == 4


def test_an_operator_has_a_failed_generation_tried_again_on_the_same_record(quick_lease: Service) -> None:
    quick_lease.upstream.script.append(lambda _: Reply(500, b"{}"))
    generation_id = begin(quick_lease, n=2)
    failed = until_ended(quick_lease, generation_id)
    assert (failed["status"], len(failed["data"])) == ("failed", 1)

    environment = {"AWS_ENDPOINT_URL": quick_lease.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}
    command = [sys.executable, "-m", "tools.retry", f"--stack={STACK_NAME}", f"--id={generation_id}"]

    def retry() -> subprocess.CompletedProcess[str]:
        env = os.environ | environment
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    deadline = time.monotonic() + 20
    while (retried := retry()).returncode:  # its end is not published yet
        assert time.monotonic() < deadline
    assert "1 of 2" in retried.stdout
    completed = until_ended(quick_lease, generation_id)
    assert completed["status"] == "completed"
    assert {image["id"] for image in failed["data"]} < {image["id"] for image in completed["data"]}
    assert len(quick_lease.upstream.calls) == 3
    again = retry()
    assert (again.returncode, "cannot be tried again" in again.stderr) == (1, True)
