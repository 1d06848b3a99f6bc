"""Processes die at any moment: every generation ends, and no image that was answered or stored is bought again."""

import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer

import pytest

from local.serving import HungUpError, Reply, Request
from local.upstream import Script
from tests.support.client import EDITS, QUEUED, SMALL, Answer, fetched
from tests.support.pictures import GREEN, first_of, opened, picture, shown_in
from tests.support.world import PARAMETERS, World, running_world

pytestmark = pytest.mark.thorough

CROWD = 4  # generations at once, which all lose their process
UPSTREAM_SECONDS = 1.4  # longer than a request waits


@pytest.fixture(scope="module")
def world_of_long_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("kills"), {**PARAMETERS, "LeaseSeconds": "60"}) as world:
        yield world


def slow(_: Request) -> None:
    Event().wait(UPSTREAM_SECONDS)


@pytest.mark.parametrize("function", ["WorkerFunction", "ApiFunction"])
@pytest.mark.parametrize("is_edit", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["plain", "edit"])
@pytest.mark.parametrize(
    ("fixture", "kills"),
    [
        pytest.param("world", 1, id="short"),
        pytest.param("world_of_long_leases", 20, id="long", marks=pytest.mark.soak),
    ],
)
def test_kills_leave_every_generation_completed_and_paid_for_as_the_record_shows(
    request: pytest.FixtureRequest, prompt: str, fixture: str, kills: int, function: str, is_edit: bool
) -> None:
    world: World = request.getfixturevalue(fixture)
    caller, dice, image = world.caller(), random.Random(7), picture(GREEN)
    # The api function makes the images of those that wait.
    way, statuses = (QUEUED, (200, 202)) if function == "WorkerFunction" else ({}, (200, 303))

    def asked(each: str) -> Answer:
        """A key makes a repetition the same request."""
        if not is_edit:
            return caller.post({**SMALL, "prompt": each}, Idempotency_Key=each, **way)
        parts = ("model", "flux-kontext-pro"), ("prompt", each), ("image", image)
        return caller.form(EDITS, *parts, Idempotency_Key=each, **way)

    def ask(each: str) -> str | None:
        """None: the function died before its answer named a generation."""
        answer = asked(each)
        return answer.headers.get("x-generation-id") if answer.status in statuses else None

    for number in range(kills):
        prompts = [world.will(f"{prompt} {number} {nth}", slow) for nth in range(CROWD)]
        killer = Timer(dice.uniform(0, UPSTREAM_SECONDS + 0.6), world.kill, [function])
        killer.start()
        with ThreadPoolExecutor(CROWD) as pool:
            list(pool.map(ask, prompts))
        killer.join()
        for each in prompts:
            generation_id = ask(each)
            assert generation_id
            generation = caller.until_ended(generation_id, seconds=150)
            assert (generation["status"], len(generation["data"])) == ("completed", 1)
            # A call is paid for again only if its outcome was unknown, and then the record says so.
            assert len(world.calls(each)) <= 1 + generation["repeated_calls"] <= 2
            assert [len(call.get("images", ())) for call in world.calls(each)] == [is_edit] * len(world.calls(each))


def dying(world: World, *, bought: bool) -> Script:
    """A script of the upstream: the worker dies during its call. The task has begun if it is `bought`."""

    def die(_: Reply) -> Reply:
        world.kill()
        raise HungUpError

    return world.upstream.changed(die) if bought else world.killing()


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("kling-v1", "after the submit"),
        ("mj_imagine", "after the submit"),
        ("kling-v1", "download"),
        *(
            pytest.param(model, step, marks=pytest.mark.soak)
            for model, step in [("kling-v1", "submit"), ("kling-v1", "poll"), ("mj_imagine", "download")]
        ),
    ],
)
def test_a_task_is_bought_once_wherever_its_worker_dies(world: World, prompt: str, model: str, step: str) -> None:
    upstream, caller = world.upstream, world.caller()
    scripts = {"poll": upstream.polls_by_prompt, "download": upstream.downloads_by_prompt}.get(step, upstream.by_prompt)
    scripts[prompt].append(dying(world, bought=step == "after the submit"))
    generation = caller.until_ended(caller.begin(model=model, prompt=prompt))
    assert (generation["status"], len(generation["data"])) == ("completed", 1)
    assert scripts[prompt] == deque()
    assert len({charge.task_id for charge in upstream.charged if charge.prompt == prompt}) == 1
    assert generation["repeated_calls"] == ("submit" in step)


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("gpt-image-1.5", "submit"),
        *(  # the task that a submit to Kling began is found
            pytest.param(model, step, marks=pytest.mark.soak)
            for model, step in [
                ("gpt-image-1.5", "after the submit"),
                ("ideogram-v3", "submit"),
                ("ideogram-v3", "after the submit"),
                ("kling-v1-5", "submit"),
                ("mj_imagine", "submit"),
                ("mj_imagine", "after the submit"),
            ]
        ),
    ],
)
def test_a_takeover_of_an_edit_sends_its_image_again(world: World, prompt: str, model: str, step: str) -> None:
    """The image is read from the store: the process that got it is not the one that sends it."""
    caller, image = world.caller(), picture(GREEN)
    world.upstream.by_prompt[prompt].append(dying(world, bought=step == "after the submit"))
    begun = caller.form(EDITS, ("model", model), ("prompt", prompt), ("image", image), **QUEUED)
    generation = caller.until_ended(begun.json["id"])
    assert (generation["status"], len(generation["data"])) == ("completed", 1)
    calls = world.calls(prompt)
    assert len(calls) == 1 + generation["repeated_calls"] == 2
    assert calls == [call for call in world.calls_with(image) if call["prompt"] == prompt]
    made = opened(fetched(generation["data"][0]["permalink"]).content)
    assert shown_in(first_of(made) if model == "mj_imagine" else made, 1) == [GREEN]
