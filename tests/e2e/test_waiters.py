"""Forty of OpenAI's clients at four places to wait. What thousands do is in tests/explorer/test_waiting_crowd.py."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import openai
import pytest

from local.serving import Request
from tests.support.client import SMALL, Client
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, running_world

pytestmark = pytest.mark.thorough

CLIENTS, CALLERS, PLACES = 40, 8, 4
SHARE = 3  # of one caller
PROCESSES = 2 * PLACES + 2  # those that work after their redirect, those that wait, and two that refuse
IMAGE_SECONDS = 2.5  # longer than two waits


@pytest.fixture(scope="module")
def world_of_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    parameters = {**PARAMETERS, "MostWaiters": str(PLACES)}
    with running_world(tmp_path_factory.mktemp("waiters"), parameters, most_processes=PROCESSES) as world:
        yield world


@dataclass(frozen=True)
class Asked:
    """One client. `outcome` is "image" or the code of a refusal."""

    caller: Client
    prompt: str
    outcome: str = ""


def ask(caller: Client, prompt: str, max_retries: int = 0) -> Asked:
    with caller.openai(max_retries=max_retries) as client:
        try:
            answer = client.images.generate(**SMALL, prompt=prompt)
        except openai.RateLimitError as refused:
            return Asked(caller, prompt, str(refused.code))
    assert answer.data
    assert answer.data[0].url
    return Asked(caller, prompt, "image")


def check(world: World, asked: list[Asked]) -> None:
    """Each request was made once or not begun, no wait was refused, and all places are free."""
    assert {each.outcome for each in asked} == {"image", "no_place_to_wait"}
    for each in asked:
        assert len(world.calls(each.prompt)) == (each.outcome == "image")
    for caller in {each.caller.name: each.caller for each in asked}.values():
        made = sum(each.outcome == "image" for each in asked if each.caller == caller)
        assert [each["status"] for each in caller.newest()] == ["completed"] * made
    refusals = [line for _, line in world.journal(code="no_place_to_wait")]
    assert {(line["route"], line["status"]) for line in refusals} == {("POST /v1/images/generations", 429)}
    until(lambda: not held(world), what="all places to be free")


def held(world: World) -> list[str]:
    """The places that are not free. One that was kept for a wait that did not come is free after its time."""
    table = world.stack.functions["ApiFunction"].function.environment["GENERATION_TABLE"]
    key = {"pk": {"S": "places#0"}, "sk": {"S": "places"}}
    item = world.aws("dynamodb").get_item(TableName=table, Key=key)["Item"]
    return [name for name, each in item.items() if "M" in each and float(each["M"]["until"]["N"]) > time.time()]


@pytest.mark.parametrize(("callers", "most"), [(8, PLACES), (1, SHARE)])
def test_each_of_forty_clients_gets_its_image_or_an_early_refusal(
    world_of_four: World, prompt: str, callers: int, most: int
) -> None:
    """No image is made until all others are refused and those that wait were redirected twice."""
    world, other = world_of_four, world_of_four.caller()
    gates = {f"{prompt} {number}": world.hold(f"{prompt} {number}") for number in range(CLIENTS)}
    sharing = [world.caller() for _ in range(callers)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, sharing[number % callers], each) for number, each in enumerate(gates)]

        def begun() -> int:
            return sum(len(world.calls(each)) for each in gates)

        until(lambda: begun() + sum(each.done() for each in asking) == CLIENTS, what="the refusals")
        seen = len(world.answers)

        def redirected() -> bool:
            paths = Counter(path for _, path, status in world.answers[seen:] if status == 303)
            return sum(times > 1 for times in paths.values()) >= begun()

        until(redirected, what="two redirects of each")
        late = ask(other, f"{prompt} late")
        for gate in gates.values():
            gate.open()
    asked = [each.result() for each in asking]
    # A client that was redirected has a second place, since its first process still works.
    assert most / 2 <= sum(each.outcome == "image" for each in asked) <= most
    assert late.outcome == ("image" if callers == 1 else "no_place_to_wait")  # one caller leaves a place to others
    check(world, [*asked, late])

    # What was refused can be had now.
    refused = next(each for each in asked if each.outcome != "image")
    assert ask(refused.caller, refused.prompt).outcome == "image"


@pytest.mark.soak
def test_clients_that_retry_share_the_places(world_of_four: World, prompt: str) -> None:
    """Each asks three times within some 25 s, in which the places serve some of those that were refused."""

    def slow(_: Request) -> None:
        Event().wait(IMAGE_SECONDS)

    world, callers = world_of_four, [world_of_four.caller() for _ in range(CALLERS)]
    prompts = [world.will(f"{prompt} {number}", slow) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = list(pool.map(ask, callers * (CLIENTS // CALLERS), prompts, [2] * CLIENTS))
    assert sum(each.outcome == "image" for each in asked) > PLACES
    check(world, asked)
