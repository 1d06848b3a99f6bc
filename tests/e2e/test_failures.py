"""Failures as real clients and the gateway handle them, and how often the upstream is paid.

All failures of an upstream are in tests/integration/test_hostile_upstream.py.
"""

import json
from uuid import uuid4

import openai
import pytest

from local.gateway import Gateway
from local.serving import Reply, Request
from local.stack import ROOT
from local.template import Template
from tests.support.client import Client
from tests.support.waiting import until
from tests.support.world import World

pytestmark = pytest.mark.thorough


def failing(status: int) -> Reply:
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    return Reply(status, json.dumps({"error": error}).encode(), {"retry-after-ms": "1"})


def test_openais_client_does_not_retry_a_failure_that_may_have_cost_money(world: World, caller: Client) -> None:
    prompt = world.will(f"may have cost {caller.name}", lambda _: failing(500))
    with caller.openai(max_retries=2) as client, pytest.raises(openai.APIStatusError) as failed:
        client.images.generate(model="dall-e-3", prompt=prompt)
    assert failed.value.status_code == 424
    assert failed.value.request_id
    assert len(world.calls(prompt)) == 1


def test_openais_client_retries_a_failure_that_cost_nothing(world: World, caller: Client) -> None:
    prompt = world.will(f"cost nothing {caller.name}", *[lambda _: failing(429)] * 3)
    with caller.openai(max_retries=2) as client:
        assert len(client.images.generate(model="dall-e-3", prompt=prompt).data or []) == 1
    assert len(world.calls(prompt)) == 4


def test_the_work_goes_on_after_the_gateways_504(world: World, caller: Client) -> None:
    template = Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": world.upstream_url}, "us-east-1")
    impatient = Gateway(template.api_body(), world.stack.functions, stage="", idle_seconds=0.5)
    caller.get("/models")  # the authorizer knows the caller
    prompt = f"slow {caller.name}"
    gate = world.hold(prompt)
    headers = [("Authorization", f"Bearer {caller.key}"), ("Content-Type", "application/json"), ("Host", "x")]
    headers.append(("x-stainless-retry-count", "0"))
    body = json.dumps({"prompt": prompt}).encode()
    reply = impatient.respond(Request("POST", "/v1/images/generations", headers, body, None))  # type: ignore[arg-type]
    gate.open()
    assert reply.status == 504
    assert reply.headers["x-should-retry"] == "true"  # the retry attaches
    assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
    (generation,) = caller.newest()
    assert caller.until_ended(generation["id"])["status"] == "completed"
    assert len(world.calls(prompt)) == 1


def test_the_answer_of_a_killed_function_asks_for_a_retry_that_attaches(world: World, caller: Client) -> None:
    prompt = world.will(f"killed {caller.name}", world.killing("ApiFunction"))
    answer = caller.post({"prompt": prompt}, x_stainless_retry_count="0")
    assert answer.status == 424
    assert answer.error["message"]
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "2")
    assert len(world.calls(prompt)) == 1
    until(lambda: caller.newest()[0]["status"] in ("completed", "failed"), what="the end of what was begun")


@pytest.mark.parametrize(
    ("function", "queue", "done"),
    [
        ("WorkerFunction", "GenerationQueue", "looked at"),
        ("DeadLetterFunction", "GenerationDeadLetters", "gave up"),
    ],
)
def test_a_function_that_allows_loops_takes_a_message_however_often_its_chain_came_back(
    world: World, function: str, queue: str, done: str
) -> None:
    """Lambda stops others after 16 invocations in a chain."""
    generation_id = f"gen_{uuid4().hex}"
    trace = f"Root=1-a;Lineage={world.stack.functions[function].function.name}:16"
    world.send(queue, {"version": 1, "generation_id": generation_id, "poll": 0}, trace)
    until(lambda: world.journal(message=done, generation_id=generation_id))
