"""The use cases keep the invariants for any order of their steps, with any failures between them.

A failing run prints its steps and the command that repeats it. EXPLORER_SEEDS is a number of seeds, or FIRST:LAST
without the last.
"""

import os
from collections.abc import Iterator

import pytest

from tests.explorer.invariants import broken, broken_in_batch
from tests.explorer.scenarios import BATCHES, REQUESTS, Scenario
from tests.explorer.world import BatchWorld, World, patched

LONG = 20_000


class Playing:
    """The world of the current run, for the patched functions of the product."""

    world: World | None = None


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Playing]:
    playing = Playing()
    patched(monkeypatch, lambda: playing.world)
    yield playing
    playing.world = None


def seeds(count: int) -> range:
    first, _, last = os.environ.get("EXPLORER_SEEDS", str(count)).rpartition(":")
    return range(int(first or 0), int(last))


def explore(playing: Playing, kind: str, name: str, scenario: Scenario, count: int) -> None:
    for seed in seeds(count):
        if kind == "requests":
            playing.world = world = World(scenario, seed)
            world.run()
            wrong = broken(world)
        else:
            playing.world = batch_world = BatchWorld(scenario, seed)
            batch_world.run()
            wrong = broken_in_batch(batch_world)
        assert not wrong, report(playing.world, f"test_{kind}_keep_the_invariants[{name}]", wrong)


def report(world: World, test: str, wrong: list[str]) -> str:
    again = f"EXPLORER_SEEDS={world.seed}:{world.seed + 1} .venv/bin/pytest '{__file__}::{test}'"
    steps = [f"{at:9.3f} s  {actor:<16} {what}" for at, actor, what in world.lines]
    return "\n".join([again, *wrong, *steps])


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_keep_the_invariants(name: str, playing: Playing) -> None:
    explore(playing, "requests", name, REQUESTS[name], REQUESTS[name].seeds)


@pytest.mark.parametrize("name", BATCHES)
def test_batches_keep_the_invariants(name: str, playing: Playing) -> None:
    explore(playing, "batches", name, BATCHES[name], BATCHES[name].seeds)


@pytest.mark.soak
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_keep_the_invariants_for_long(name: str, playing: Playing) -> None:
    explore(playing, "requests", name, REQUESTS[name], LONG)


@pytest.mark.soak
@pytest.mark.parametrize("name", BATCHES)
def test_batches_keep_the_invariants_for_long(name: str, playing: Playing) -> None:
    explore(playing, "batches", name, BATCHES[name], LONG)
