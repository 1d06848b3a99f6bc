"""Generations that outlive the request, as clients see them."""

import base64
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import ANY

import pytest

from local.aws_door import REGION
from local.serving import Request
from local.stack import CREDENTIALS, STACK_NAME
from local.upstream import Script
from tests.support.client import INLINE, QUEUED, SMALL, Client, fetched
from tests.support.waiting import until
from tests.support.world import World, answering, refusing
from tools import retry

PNG = b"\x89PNG\r\n\x1a\n"


def small(prompt: str, **fields: Any) -> dict[str, Any]:
    return {**SMALL, "prompt": prompt, **fields}


def after_two_redirects(world: World) -> Script:
    """The upstream answers once its client has been redirected twice from now on."""
    seen = len(world.answers)

    def wait(_: Request) -> None:
        until(lambda: [status for _, _, status in world.answers[seen:]].count(303) >= 2, what="two redirects")

    return wait


def test_openais_client_gets_its_image_however_long_it_takes(world: World, caller: Client, prompt: str) -> None:
    world.will(prompt, after_two_redirects(world))
    with caller.openai() as client:
        answer = client.images.generate(model="gpt-image-1", prompt=prompt)
    assert answer.data
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(PNG)
    assert len(world.calls(prompt)) == 1


def test_curl_that_posts_again_wherever_it_is_redirected_gets_its_image(
    world: World, caller: Client, prompt: str
) -> None:
    """As OpenAI's API reference has it: `--request POST` holds for the redirects too."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    world.will(prompt, after_two_redirects(world))
    command = ["curl", "--silent", "--location", "--request", "POST", f"{caller.base_url}/images/generations"]
    headers = ["--header", f"Authorization: Bearer {caller.key}", "--header", "Content-Type: application/json"]
    data = ["--data-raw", json.dumps(small(prompt))]
    out = subprocess.run([*command, *headers, *data], capture_output=True, text=True, check=True).stdout
    assert fetched(json.loads(out)["data"][0]["url"]).content.startswith(PNG)
    assert len(world.calls(prompt)) == 1


def test_a_retry_attaches_to_the_call_that_runs(world: World, caller: Client, prompt: str) -> None:
    gate, body = world.hold(prompt), small(prompt)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(caller.post, body, **INLINE)
        gate.until_reached()
        again = caller.post(body, x_stainless_retry_count="1", **QUEUED)
        gate.open()
    assert (first.result().status, again.status) == (200, 202)
    assert first.result().generation_id == again.generation_id
    assert len(world.calls(prompt)) == 1


def test_many_requests_with_one_idempotency_key_are_one_generation_and_another_body_is_422(
    world: World, caller: Client, prompt: str
) -> None:
    body = small(prompt)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: caller.make(body, Idempotency_Key="many"), range(24)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert caller.post(small(f"another {prompt}"), Idempotency_Key="many").failed == (422, "idempotency_key_reused")
    assert (len(world.calls(prompt)), world.calls(f"another {prompt}")) == (1, [])


def test_a_failure_that_may_have_cost_is_replayed_and_one_that_did_not_is_tried_again(
    world: World, caller: Client, prompt: str
) -> None:
    world.will(prompt, refusing(500), refusing(401))
    for _ in range(2):
        assert caller.make(small(prompt), Idempotency_Key="costly").failed == (424, "upstream_failed")
    assert len(world.calls(prompt)) == 1
    assert [caller.make(small(prompt), Idempotency_Key="free").status for _ in range(2)] == [502, 200]


def test_a_generation_is_begun_seen_and_listed_and_its_links_are_fresh(caller: Client) -> None:
    begun = caller.post(small("first", n=2), Prefer="respond-async, wait=0")
    assert (begun.status, begun.json["object"]) == (202, "image.generation")
    assert begun.headers["location"] == f"generations/{begun.json['id']}"
    assert begun.headers["preference-applied"] == "respond-async, wait=0"
    assert begun.headers["retry-after"]
    generation = caller.until_ended(begun.json["id"])
    assert (generation["status"], len(generation["data"])) == ("completed", 2)
    assert fetched(generation["data"][0]["url"]).status == 200
    later = caller.begin(**SMALL)
    caller.until_ended(later)
    page = caller.get("/images/generations?limit=1").json
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([later], True)
    page = caller.get(f"/images/generations?limit=1&after={later}").json
    assert [each["id"] for each in page["data"]] == [generation["id"]]
    assert caller.get("/images/generations?status=failed&limit=100").json["data"] == []
    assert caller.get("/images/generations?limit=0").status == 400


def test_another_callers_generation_is_not_there(world: World, caller: Client) -> None:
    generation_id, other = caller.begin(**SMALL), world.caller()
    path = f"/images/generations/{generation_id}"
    for method, route in (("GET", ""), ("GET", "/result"), ("POST", "/result"), ("POST", "/cancel"), ("DELETE", "")):
        body = b"" if method == "POST" else None
        assert other.ask(method, path + route, body).failed == (404, "generation_not_found"), (method, route)
    assert caller.until_ended(generation_id)["status"] == "completed"
    assert other.newest() == []


def test_a_cancelled_generation_keeps_the_image_that_is_paid_for_and_still_comes(
    world: World, caller: Client, prompt: str
) -> None:
    gate = world.hold(prompt)
    generation_id = caller.begin(**small(prompt))
    gate.until_reached()
    cancelled = caller.cancel(generation_id)
    assert (cancelled.status, cancelled.json["status"], cancelled.json["data"]) == (200, "cancelled", [])
    gate.open()
    until(lambda: caller.see(generation_id).json["data"], what="the image")
    assert caller.result(generation_id).failed == (424, "generation_cancelled")
    assert caller.cancel(generation_id).json == cancelled.json | {"data": [ANY]}
    assert len(world.calls(prompt)) == 1


def test_a_deleted_generation_is_gone_with_its_images_and_links(world: World, caller: Client) -> None:
    generation_id = caller.begin(**SMALL)
    (image,) = caller.until_ended(generation_id)["data"]
    assert caller.delete(generation_id).json["deleted"] is True
    assert caller.see(generation_id).status == 404
    assert f"images/{image['id']}" not in world.stored()
    assert fetched(image["permalink"]).status == 403  # what S3 answers to a caller that may not list the bucket


def test_a_generation_deleted_while_it_is_made_leaves_no_image(world: World, caller: Client, prompt: str) -> None:
    gate = world.hold(prompt)
    generation_id = caller.begin(**small(prompt))
    gate.until_reached()
    images = {f"images/{image_id}" for image_id in world.record(generation_id).image_ids}
    assert len(images) == 1
    assert caller.delete(generation_id).status == 200
    gate.open()

    def after_the_answer() -> str:
        messages = " ".join(line["message"] for _, line in world.journal(generation_id=generation_id))
        return messages.partition("upstream answered")[2]

    until(lambda: "looked at" in after_the_answer(), what="the end of the work")
    assert not images & world.stored()


def test_what_a_killed_worker_leaves_is_taken_over_and_only_a_call_of_unknown_outcome_is_repeated(
    world: World, caller: Client, prompt: str
) -> None:
    prompts = [f"{prompt}, at the call", f"{prompt}, at the download"]
    gates = [world.hold(prompts[0]), world.hold(prompts[1], download=True)]
    begun = [caller.begin(**small(each)) for each in prompts]
    for gate in gates:
        gate.until_reached()
    world.kill()
    for gate in gates:
        gate.open()
    ended = [caller.until_ended(generation_id) for generation_id in begun]
    assert [generation["status"] for generation in ended] == ["completed"] * 2
    assert [generation["repeated_calls"] for generation in ended] == [1, 0]
    assert [len(world.calls(each)) for each in prompts] == [2, 1]


def test_the_api_function_killed_as_first_worker_is_followed_by_the_worker(
    world: World, caller: Client, prompt: str
) -> None:
    body = small(prompt)
    world.upstream.downloads_by_prompt[prompt].append(world.killing("ApiFunction"))
    assert caller.post(body, Idempotency_Key="first-worker", **INLINE).error
    assert caller.make(body, Idempotency_Key="first-worker").status == 200
    assert len(world.calls(prompt)) == 1


def test_ten_large_images_as_base64_reach_openais_client_byte_for_byte(
    world: World, caller: Client, prompt: str
) -> None:
    """More than Lambda answers by itself: they come from the bucket, by a redirect."""
    images = [PNG + os.urandom(700_000) + b"\0\0\0\0IEND\xaeB`\x82" for _ in range(10)]
    world.will(prompt, answering(*images))
    with caller.openai() as client:
        answer = client.images.generate(model="gpt-image-1", prompt=prompt, n=10)
    assert [base64.b64decode(image.b64_json or "") for image in answer.data or []] == images
    assert len(world.calls(prompt)) == 1


def test_an_operator_has_a_failed_generation_tried_again_on_the_same_record(
    world: World, caller: Client, prompt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.will(prompt, refusing(500))
    generation_id = caller.begin(model="dall-e-3", prompt=prompt, n=2)  # one call for each image
    failed = caller.until_ended(generation_id)
    assert (failed["status"], len(failed["data"])) == ("failed", 1)
    until(lambda: world.record(generation_id).announced, what="the publishing of the failure")

    for name, value in {"AWS_ENDPOINT_URL": world.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["retry", f"--stack={STACK_NAME}", f"--id={generation_id}"])
    assert retry.main() == 0
    assert "1 of 2" in capsys.readouterr().out
    completed = caller.until_ended(generation_id)
    assert completed["status"] == "completed"
    assert {image["id"] for image in failed["data"]} < {image["id"] for image in completed["data"]}
    assert len(world.calls(prompt)) == 3
    assert retry.main() == 1
    assert "cannot be tried again" in capsys.readouterr().err
