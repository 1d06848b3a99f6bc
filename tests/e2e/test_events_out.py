"""The events that other systems get by a rule on the bus, from processes that fail and die."""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from local.aws_door import Fault
from tests.conftest import ROOT
from tests.support.client import INLINE, SMALL, Client, fetched
from tests.support.programs import needs, operator
from tests.support.waiting import until
from tests.support.world import Subscriber, World

pytestmark = pytest.mark.thorough

MOST_TRIES = 200  # more calls to the bus than any of these tests makes
COMPLETED, CANCELLED = "Image Generation Completed", "Image Generation Cancelled"
CANARY = f"canary{uuid4().hex}"
# Which function makes the image. The upstream revises the prompts of dall-e-3.
MAKERS = {"ApiFunction": ("dall-e-3", INLINE), "WorkerFunction": ("gpt-image-1", {})}


@pytest.fixture
def prompt(prompt: str) -> str:
    return f"{CANARY} {prompt}"


@pytest.fixture
def bus(world: World) -> Iterator[Subscriber]:
    """No event holds a prompt, a user, an idempotency key, or a word of the upstream."""
    yield world.bus
    assert [event for event in world.bus.events() if CANARY in json.dumps(event)] == []


def asked(caller: Client, maker: str, prompt: str, **fields: Any) -> tuple[int, str, Any]:
    """The status, the generation's id and the answer."""
    model, headers = MAKERS[maker]
    body = {"prompt": prompt, "user": CANARY, "model": model, "response_format": "url", **fields}
    answer = caller.make(body, Idempotency_Key=f"{CANARY}{uuid4().hex}", **headers)
    return answer.status, answer.generation_id, answer.json


@contextmanager
def failing(world: World) -> Iterator[None]:
    """Every call to the bus fails before its effect."""
    try:
        world.stack.door.fail(*(Fault(at, service="events") for at in range(1, MOST_TRIES)))
        yield
    finally:
        world.stack.door.fail()


@pytest.mark.parametrize("maker", MAKERS)
def test_a_completed_generation_is_published_once_with_links_that_work(
    world: World, bus: Subscriber, caller: Client, prompt: str, maker: str
) -> None:
    status, generation_id, answer = asked(caller, maker, prompt, n=2)
    assert status == 200
    event = bus.first(id=generation_id)
    detail = event["detail"]
    assert (event["detail-type"], detail["client"], detail["n"]) == (COMPLETED, caller.name, 2)
    assert detail["model"] == MAKERS[maker][0]
    assert [image["id"] for image in detail["images"]] == [image["id"] for image in answer["data"]]
    for image in detail["images"]:
        assert image["media_type"] == "image/png"
        assert fetched(image["permalink"]).content.startswith(b"\x89PNG\r\n\x1a\n")
    if maker == "ApiFunction":  # the worker meets it by the safety net, a lease and a half later
        until(lambda: world.journal(message="looked at", generation_id=generation_id), what="the second message")
    assert len(bus.events(id=generation_id)) == 1


def test_the_sdk_publishes_again_if_the_answer_is_lost(
    world: World, bus: Subscriber, caller: Client, prompt: str
) -> None:
    try:
        world.stack.door.fail(Fault(1, "after", once=True, service="events"))
        status, generation_id, _ = asked(caller, "ApiFunction", prompt)
    finally:
        world.stack.door.fail()
    assert status == 200
    until(lambda: [event["detail-type"] for event in bus.events(id=generation_id)] == [COMPLETED] * 2)


def test_an_end_whose_publishing_failed_is_published_later(
    world: World, bus: Subscriber, caller: Client, prompt: str
) -> None:
    gate = world.hold(f"cancelled {prompt}")
    with failing(world):
        for_later = caller.begin(prompt=f"cancelled {prompt}", **SMALL)
        gate.until_reached()
        assert caller.cancel(for_later).json["status"] == "cancelled"
        made = [asked(caller, maker, f"{maker} {prompt}") for maker in MAKERS]
        assert [(status, len(answer["data"])) for status, _, answer in made] == [(200, 1)] * 2
        assert not any(bus.events(id=each) for each in (for_later, *(generation_id for _, generation_id, _ in made)))
        for _, generation_id, _ in made:  # the answer may come before the attempt to publish
            until(partial(world.journal, message="interrupted", generation_id=generation_id), what="the failure")
    gate.open()
    assert bus.first(id=for_later)["detail-type"] == CANCELLED
    for _, generation_id, _ in made:
        assert bus.first(id=generation_id)["detail-type"] == COMPLETED
    assert [len(world.calls(f"{maker} {prompt}")) for maker in MAKERS] == [1, 1]


def test_another_process_publishes_if_one_is_killed_before_it_published(
    world: World, bus: Subscriber, caller: Client, prompt: str
) -> None:
    with failing(world), ThreadPoolExecutor(2) as pool:
        for model, headers in MAKERS.values():
            pool.submit(caller.post, {"prompt": f"{model} {prompt}", "model": model}, **headers)
        until(lambda: [each["status"] for each in caller.newest()] == ["completed"] * 2, what="both ends")
        for maker in MAKERS:
            world.kill(maker)
    for generation in caller.newest():
        event = bus.first(id=generation["id"])
        assert (event["detail-type"], event["detail"]["repeated_calls"]) == (COMPLETED, 0)
        assert len(world.calls(f"{generation['model']} {prompt}")) == 1


def test_make_verify_fails_without_a_bus(world: World) -> None:
    """AWS answers success to an event for a bus that does not exist."""
    needs("make")
    only_the_bus = {"PYTEST_ADDOPTS": "-k bus --ignore-glob=*/test_[!d]*.py"}  # of the deployed stack's tests
    environment = os.environ | operator(world) | {"KEY": world.caller().key} | only_the_bus
    command = ["make", "--old-file=.venv/ready", "verify", f"BASE_URL={world.base_url}", "STACK=without-a-bus"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ResourceNotFoundException" in done.stdout
    assert "1 failed" in done.stdout
