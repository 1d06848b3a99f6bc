"""The places to wait: the fake and the real ones, on both emulators of DynamoDB, pass one contract."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.aws.places import DynamoPlaces
from imagegen.domain.places import KEPT_SECONDS, PLACE_SECONDS, Place
from imagegen.ports import Places
from imagegen.usecases.wait import place_to_wait
from tests.fakes.dynamo_items import FakeDynamoItems
from tests.fakes.places import FakePlaces
from tests.support.stores import JUDGES, NOW, Connect, Table, closed_url

Make = Callable[..., Places]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOW]
    monkeypatch.setattr("imagegen.aws.places.time", SimpleNamespace(time=lambda: now[0]))
    return now


@pytest.fixture(params=["places in memory", "items in memory", *JUDGES])
def make(request: pytest.FixtureRequest, clock: list[float]) -> Iterator[Make]:
    if request.param == "places in memory":
        yield lambda most, share=100: FakePlaces(most, share, lambda: clock[0])
        return
    if request.param == "items in memory":
        items: Any = FakeDynamoItems()
        yield lambda most, share=100: DynamoPlaces(lambda: items, "table", most=most, share=share)
        return
    table: Table = request.getfixturevalue(f"{request.param}_table")
    yield made_on(table)
    table.clear()


def made_on(table: Table) -> Make:
    return lambda most, share=100: DynamoPlaces(lambda: table.client, table.name, most=most, share=share)


def taken(places: Places, *callers: str) -> list[Place]:
    """The places of callers who all get one."""
    found = [places.take(caller) for caller in callers]
    assert None not in found
    return [place for place in found if place]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_places_of_the_stack_are_limited(make: Make, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many are counted in groups, of which each is used up."""
    monkeypatch.setattr("imagegen.aws.places._GROUP", 3)
    places = make(most)
    assert sum(places.take(f"caller-{number}") is not None for number in range(most + 3)) == most


@pytest.mark.parametrize(("most", "share", "own"), [(1, 90, 1), (2, 90, 1), (10, 90, 9), (10, 5, 1), (4, 100, 4)])
def test_a_caller_has_its_share_rounded_down_and_at_least_one(make: Make, most: int, share: int, own: int) -> None:
    places = make(most, share)
    assert sum(places.take("alice") is not None for _ in range(most + 1)) == own
    assert (places.take("bob") is not None) == (own < most)


def test_a_freed_place_can_be_taken_again_by_its_caller_and_by_others(make: Make) -> None:
    places = make(2, 50)
    alice, bob = taken(places, "alice", "bob")
    assert places.take("carol") is None
    places.free(alice)
    assert places.take("bob") is None  # has its share
    (carol,) = taken(places, "carol")
    for place in (bob, carol):
        places.free(place)
    taken(places, "bob", "alice")


def test_a_place_is_freed_once(make: Make) -> None:
    places = make(2)
    first, _ = taken(places, "alice", "alice")
    for _ in range(3):
        places.free(first)
    taken(places, "alice")
    assert places.take("alice") is None


def test_nothing_remains_of_callers_that_have_gone(table: Table) -> None:
    """The item would otherwise grow with every caller there ever was."""
    places = made_on(table)(50)
    for place in taken(places, *(f"caller-{number}" for number in range(20))):
        places.free(place)
    (item,) = table.items()
    assert item == {"pk": {"S": "places#0"}, "sk": {"S": "places"}, "used": {"N": "0"}}


def test_a_place_whose_process_died_is_free_after_its_time(make: Make, clock: list[float]) -> None:
    places = make(2)
    dead, living = taken(places, "alice", "bob")
    clock[0] += PLACE_SECONDS / 2
    places.renew(living)
    assert places.take("carol") is None
    clock[0] += PLACE_SECONDS / 2 + 1
    (carol,) = taken(places, "carol")
    assert places.take("dave") is None
    places.free(dead)  # its process was only slow
    assert places.take("dave") is None
    for place in (living, carol):
        places.free(place)
    taken(places, "alice", "alice")


def test_a_caller_s_dead_place_frees_its_share(make: Make, clock: list[float]) -> None:
    places = make(10, 10)
    taken(places, "alice")
    assert places.take("alice") is None
    clock[0] += PLACE_SECONDS + 1
    taken(places, "alice")


def test_renewing_a_place_that_was_freed_takes_none(make: Make, clock: list[float]) -> None:
    places = make(1)
    (slow,) = taken(places, "alice")
    clock[0] += PLACE_SECONDS + 1
    taken(places, "bob")
    places.renew(slow)
    assert places.take("carol") is None


def test_a_kept_place_goes_to_the_next_wait_for_its_generation(make: Make) -> None:
    places = make(1)
    (first,) = taken(places, "alice")
    places.keep("alice", "gen_1")
    places.keep("alice", "gen_1")
    places.free(first)
    assert [places.take("alice", "gen_2"), places.take("bob")] == [None, None]
    continued = places.take("alice", "gen_1")
    assert continued is not None
    assert places.take("alice", "gen_1") is None
    places.free(continued)
    taken(places, "bob")


def test_a_kept_place_is_found_in_any_group(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.aws.places._GROUP", 1)
    places = made_on(table)(4)
    taken(places, *["alice"] * 4)
    for number in range(8):
        assert places.take("alice", f"gen_{number}") is None
        places.keep("alice", f"gen_{number}")
        assert places.take("alice", f"gen_{number}") is not None


def test_a_place_is_kept_beyond_the_limit_and_new_requests_wait_for_both_to_end(make: Make) -> None:
    """The process works on after its redirect, and the client that was redirected waits elsewhere."""
    places = make(1)
    (working,) = taken(places, "alice")
    places.keep("alice", "gen_1")
    waiting = places.take("alice", "gen_1")
    assert waiting is not None
    places.free(waiting)
    assert places.take("bob") is None
    places.free(working)
    taken(places, "bob")


def test_the_kept_places_of_one_caller_take_no_place_from_others(make: Make, clock: list[float]) -> None:
    """Its processes work on after their redirects, so each of its requests has two places."""
    places = make(4, 50)
    working = taken(places, "alice", "alice")
    for number in range(2):
        places.keep("alice", f"gen_{number}")
    (bob,) = taken(places, "bob")
    first = places.take("alice", "gen_0")
    assert first is not None
    for place in (first, bob):
        places.free(place)
    places.free(working[0])
    assert places.take("alice") is None  # one works, and one is kept
    taken(places, "bob", "bob")
    assert places.take("carol") is None
    clock[0] += KEPT_SECONDS + 1
    taken(places, "carol")
    assert places.take("alice") is None  # one still works, and is counted
    places.free(working[1])
    taken(places, "alice")


def test_two_places_of_one_caller_that_end_at_once_are_both_freed(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one beyond its share is freed by another number, unless the other has ended just then."""
    places, send = made_on(table)(2, 50), table.client.update_item
    (working,) = taken(places, "alice")
    places.keep("alice", "gen_1")
    waiting = places.take("alice", "gen_1")
    assert waiting is not None

    def late(**write: Any) -> object:
        if "#beyond :less" in write["UpdateExpression"]:
            monkeypatch.undo()
            places.free(working)
        return send(**write)

    monkeypatch.setattr(table.client, "update_item", late)
    places.free(waiting)
    assert table.client.update_item == send
    (item,) = table.items()
    assert item == {"pk": {"S": "places#0"}, "sk": {"S": "places"}, "used": {"N": "0"}}


def test_a_kept_place_that_nobody_comes_for_is_free_after_its_time(make: Make, clock: list[float]) -> None:
    places = make(1)
    (first,) = taken(places, "alice")
    places.keep("alice", "gen_1")
    places.free(first)
    clock[0] += KEPT_SECONDS - 1
    assert places.take("bob") is None
    clock[0] += 2
    taken(places, "bob")


def test_concurrent_requests_get_no_place_twice(make: Make) -> None:
    places, barrier = make(6, 50), Barrier(12)

    def take(number: int) -> str | None:
        barrier.wait(60)
        place = places.take(("alice", "bob", "carol")[number % 3])
        return place.caller if place else None

    with ThreadPoolExecutor(12) as pool:
        callers = Counter(pool.map(take, range(12)))
    assert callers[None] == 6
    assert max(count for caller, count in callers.items() if caller) <= 3


def test_a_lost_answer_takes_no_second_place(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats a write whose answer was lost. The repetition finds its own place."""
    send = table.client.update_item

    def twice(**write: Any) -> object:
        send(**write)
        return send(**write)

    places = made_on(table)(2)
    monkeypatch.setattr(table.client, "update_item", twice)
    (first,) = taken(places, "alice")
    places.keep("alice", "gen_1")
    second = places.take("alice", "gen_1")
    assert second is not None
    places.free(first)
    places.free(second)
    monkeypatch.undo()
    (item,) = table.items()
    assert (item["used"], [name for name in item if "#" in name]) == ({"N": "0"}, [])


def test_a_block_has_a_place_until_it_ends_or_fails(make: Make) -> None:
    places = make(1)

    def wait(_: object) -> None:
        with place_to_wait(places, "alice") as found:
            assert found
            with place_to_wait(places, "bob") as second:
                assert not second
            raise KeyError

    for attempt in range(2):
        with pytest.raises(KeyError):
            wait(attempt)


@pytest.mark.parametrize("why", ["closed port", *JUDGES])
def test_every_request_may_wait_if_places_cannot_be_counted(
    connect: Connect, request: pytest.FixtureRequest, why: str
) -> None:
    """An emulator answers that the table does not exist."""
    url = closed_url() if why == "closed port" else request.getfixturevalue(f"{why}_url")
    places = DynamoPlaces(lambda: connect("dynamodb", url), "no-such-table", most=1, share=100)
    with ExitStack() as waiting:
        assert [waiting.enter_context(place_to_wait(places, "alice")) for _ in range(2)] == [True, True]
        places.keep("alice", "gen_1")
