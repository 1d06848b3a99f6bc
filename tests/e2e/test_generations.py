"""Generations that outlive the request, as callers see them: what only processes and real clients show."""

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from local.serving import Reply, Request
from local.stack import STACK_NAME
from local.upstream import Script
from tests.support.client import INLINE, SMALL, Client, fetched
from tests.support.programs import Done, called, operator, sample
from tests.support.waiting import SECONDS, until
from tests.support.world import World, answering, refusing
from tools import retry

PNG = b"\x89PNG\r\n\x1a\n"


def small(prompt: str, **fields: Any) -> dict[str, Any]:
    return {**SMALL, "prompt": prompt, **fields}


def after_two_redirects(world: World) -> Script:
    """The upstream answers after two more redirects of a caller."""
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


def test_curl_that_posts_to_each_redirect_gets_its_image(world: World, caller: Client, prompt: str) -> None:
    """In the sample of OpenAI's API reference, `--request POST` holds for the redirects too."""
    world.will(prompt, after_two_redirects(world))
    out = sample(caller, prompt)
    assert fetched(json.loads(out)["data"][0]["url"]).content.startswith(PNG)
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


def test_another_worker_takes_over_from_a_killed_one_and_repeats_only_a_call_of_unknown_outcome(
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


def test_the_worker_takes_over_from_a_killed_api_function(world: World, caller: Client, prompt: str) -> None:
    body = small(prompt)
    kill, killed = world.killing("ApiFunction"), Event()

    def killing(request: Request) -> Reply | None:
        try:
            return kill(request)
        finally:
            killed.set()

    world.upstream.downloads_by_prompt[prompt].append(killing)
    assert caller.post(body, Idempotency_Key="first-worker", **INLINE).status in (303, 424)  # it may work on and die
    assert killed.wait(SECONDS)  # the next request must not die with it
    assert caller.make(body, Idempotency_Key="first-worker").status == 200
    assert len(world.calls(prompt)) == 1


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_an_image_is_made_after_its_redirect_by_the_same_process_or_if_it_dies_by_a_worker(
    world: World, caller: Client, prompt: str, dies: bool
) -> None:
    gate = world.hold(prompt)
    answer = caller.post(small(prompt))
    assert (answer.status, len(world.calls(prompt))) == (303, 1)
    if dies:
        world.kill("ApiFunction")
    gate.open()
    ended = caller.until_ended(answer.generation_id)
    assert (ended["status"], ended["repeated_calls"], len(world.calls(prompt))) == ("completed", dies, 1 + dies)
    ((maker, _),) = world.journal(message="stored", generation_id=answer.generation_id)
    assert maker == ("WorkerFunction" if dies else "ApiFunction")


def test_ten_large_images_as_base64_reach_openais_client_byte_for_byte(
    world: World, caller: Client, prompt: str
) -> None:
    """More than a buffered answer may have."""
    images = [PNG + os.urandom(700_000) + b"\0\0\0\0IEND\xaeB`\x82" for _ in range(10)]
    world.will(prompt, answering(*images))
    with caller.openai() as client:
        answer = client.images.generate(model="gpt-image-1", prompt=prompt, n=10)
    assert [base64.b64decode(image.b64_json or "") for image in answer.data or []] == images
    assert len(world.calls(prompt)) == 1


def test_make_retry_completes_a_failed_generation(world: World, caller: Client, prompt: str) -> None:
    world.will(prompt, refusing(500))
    generation_id = caller.begin(model="dall-e-3", prompt=prompt, n=2)  # one call for each image
    failed = caller.until_ended(generation_id)
    assert (failed["status"], len(failed["data"])) == ("failed", 1)
    until(lambda: world.record(generation_id).published, what="the publishing of the failure")

    def retried() -> Done:
        return called(retry.main, f"--stack={STACK_NAME}", f"--id={generation_id}", **operator(world))

    done = retried()
    assert (done.returncode, "1 of 2" in done.stdout) == (0, True)
    completed = caller.until_ended(generation_id)
    assert completed["status"] == "completed"
    assert {image["id"] for image in failed["data"]} < {image["id"] for image in completed["data"]}
    assert len(world.calls(prompt)) == 3
    done = retried()
    assert (done.returncode, "cannot be tried again" in done.stderr) == (1, True)
