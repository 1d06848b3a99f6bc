"""The counters of the daily allowances, and of those who wait."""

import time
from calendar import timegm
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from types import SimpleNamespace
from uuid import uuid4

import pytest

from imagegen.aws.allowance import _short, _slot
from imagegen.aws.waiters import DynamoWaiters
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.ports import AllowanceCounters
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.support.stores import JUDGES, NOW, Connect, Table, closed_url

DAY, NEXT_DAY = "2025-10-09", "2025-10-10"

# The allowances: the fake and the real counters, before each judge, pass the same contract.


@pytest.fixture
def counters(judged: Table | None) -> AllowanceCounters:
    return judged.counters if judged else FakeAllowanceCounters()


def take(
    counters: AllowanceCounters, images: int, limit: int = 10, *, who: str = "alice", day: str = DAY, token: str = ""
) -> tuple[bool, int]:
    """Without a token it is a change of its own."""
    return counters.take(who, day, images, limit, token=token or uuid4().hex)


def test_images_are_taken_up_to_the_limit_and_no_further(counters: AllowanceCounters) -> None:
    assert [take(counters, images) for images in (4, 6, 1, 0)] == [(True, 4), (True, 10), (False, 10), (True, 10)]
    assert take(counters, 11) == (False, 10)
    assert take(counters, 1, 11) == (True, 11)


def test_each_who_takes_and_each_day_is_counted_apart(counters: AllowanceCounters) -> None:
    for who, day in (("alice", DAY), ("bob", DAY), ("alice", NEXT_DAY)):
        assert take(counters, 10, who=who, day=day, token="one") == (True, 10)


def test_what_is_given_back_can_be_taken_again_and_no_more_than_that(counters: AllowanceCounters) -> None:
    take(counters, 10)
    counters.give_back("alice", DAY, 4, token="a")
    assert take(counters, 5) == (False, 6)
    for who, images in (("alice", 7), ("nobody", 1)):
        with pytest.raises(RecordsUnavailableError):
            counters.give_back(who, DAY, images, token="b")
    assert take(counters, 4) == (True, 10)


def test_a_change_with_a_known_token_counts_once(counters: AllowanceCounters) -> None:
    take(counters, 3)
    for _ in range(2):
        assert take(counters, 7, token="a") == (True, 10)
    assert take(counters, 7, 6, token="a") == (False, 10)
    for _ in range(2):
        counters.give_back("alice", DAY, 7, token="a")
        assert take(counters, 8) == (False, 3)
    for _ in range(2):
        assert take(counters, 6, token="a") == (True, 9)
    for _ in range(2):
        counters.give_back("alice", DAY, 6, token="a")
        assert take(counters, 8) == (False, 3)


def test_what_was_not_taken_may_be_asked_for_again_with_its_token(counters: AllowanceCounters) -> None:
    take(counters, 8)
    tries = [take(counters, 3, limit, token="a") for limit in (10, 11, 11)]
    assert tries == [(False, 8), (True, 11), (True, 11)]


def test_many_at_once_take_no_more_than_the_limit(counters: AllowanceCounters) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take(counters, 2, 11), range(16)))
    assert (sum(each for each, _ in taken), max(used for _, used in taken)) == (5, 10)


def test_many_at_once_with_one_token_take_once(counters: AllowanceCounters) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: take(counters, 2, token="a"), range(16))) == {(True, 2)}


@pytest.mark.parametrize("table", ["moto"], indirect=True)
def test_a_counter_stays_within_one_write_unit_and_is_forgotten_days_later(table: Table) -> None:
    by_slot = {_slot(_short(str(number))): str(number) for number in range(500)}
    assert len(by_slot) == 40
    take(table.counters, 1_000, 10_000, who="c" * 64)
    for token in by_slot.values():
        take(table.counters, 1, 10_000, who="c" * 64, token=token)
        table.counters.give_back("c" * 64, DAY, 1, token=token)
    (item,) = table.items()
    next_midnight, day = timegm(time.strptime(NEXT_DAY, "%Y-%m-%d")), 24 * 3600
    assert next_midnight + day <= int(item["expires_at"]["N"]) <= next_midnight + 7 * day
    assert len(item) == 4 + 40
    assert sum(len(name) + len(value.get("S") or value["N"]) for name, value in item.items()) <= 1024


def test_counters_that_cannot_be_asked_say_so(connect: Connect) -> None:
    counters = Table(connect("dynamodb", closed_url()), "table").counters
    for ask in (
        lambda: take(counters, 1, 1),
        lambda: take(counters, 2, 1),
        lambda: counters.give_back("alice", DAY, 1, token="a"),
    ):
        with pytest.raises(RecordsUnavailableError):
            ask()


# Those who wait.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is for those who wait, so that no half minute ends in the middle of a test."""
    now = [NOW]
    monkeypatch.setattr("imagegen.aws.waiters.time", SimpleNamespace(time=lambda: now[0]))
    return now


@pytest.fixture
def waiters(table: Table, clock: list[float]) -> DynamoWaiters:
    return DynamoWaiters(lambda: table.client, table.name, most=3)


def rooms(waiters: DynamoWaiters, number: int) -> list[bool]:
    """Of those who come one after the other and wait together."""
    with ExitStack() as stack:
        return [stack.enter_context(waiters.one()) for _ in range(number)]


def test_so_many_may_wait_and_no_more(waiters: DynamoWaiters) -> None:
    assert rooms(waiters, 5) == [True, True, True, False, False]


def test_who_has_waited_makes_room_and_who_was_refused_does_not(waiters: DynamoWaiters) -> None:
    with waiters.one(), waiters.one():
        with waiters.one():
            assert rooms(waiters, 1) + rooms(waiters, 1) == [False, False]
        assert rooms(waiters, 2) == [True, False]


def test_who_fails_while_waiting_makes_room(waiters: DynamoWaiters) -> None:
    def wait_and_fail() -> None:
        with waiters.one() as room:
            raise KeyError(room)

    for _ in range(4):
        with pytest.raises(KeyError, match="True"):
            wait_and_fail()


def test_who_came_in_the_half_minute_before_still_counts_and_is_counted_down_there(
    waiters: DynamoWaiters, clock: list[float]
) -> None:
    with waiters.one(), waiters.one():
        clock[0] += 30
        assert rooms(waiters, 3) == [True, False, False]
    assert rooms(waiters, 4) == [True, True, True, False]


def test_who_died_while_waiting_is_forgotten_within_a_minute(waiters: DynamoWaiters, clock: list[float]) -> None:
    with waiters.one(), waiters.one(), waiters.one():
        clock[0] += 30
        assert rooms(waiters, 1) == [False]
        clock[0] += 30
        assert rooms(waiters, 1) == [True]


def test_many_at_once_are_counted_right(waiters: DynamoWaiters) -> None:
    barrier = Barrier(8)

    def come(_: int) -> bool:
        barrier.wait(60)
        with waiters.one() as room:
            barrier.wait(60)
            return room

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(come, range(8))) == 3


def test_a_count_is_forgotten_in_time(table: Table, waiters: DynamoWaiters) -> None:
    with waiters.one():
        (item,) = table.items()
    assert NOW + 60 < int(item["expires_at"]["N"]) < NOW + 3600
    assert "caller" not in item


@pytest.mark.parametrize("why", ["closed port", *JUDGES])
def test_there_is_room_if_it_cannot_be_counted(connect: Connect, request: pytest.FixtureRequest, why: str) -> None:
    """A judge refuses, since there is no such table."""
    url = closed_url() if why == "closed port" else request.getfixturevalue(f"{why}_url")
    waiters = DynamoWaiters(lambda: connect("dynamodb", url), "no-such-table", most=1)
    assert rooms(waiters, 2) == [True, True]
