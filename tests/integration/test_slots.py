"""The slots of upstreams: the fake and the real ones, on both emulators of DynamoDB, pass one contract."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from imagegen.domain.slots import KEPT_SECONDS, SAVED_SECONDS, Slot, Waiter
from imagegen.ports import UpstreamSlots
from tests.fakes.slots import FakeUpstreamSlots
from tests.support.stores import NOW, Connect, Table, closed_url
from tests.support.waiting import SECONDS

CALL_SECONDS, LIST_SECONDS = 300.0, 3600.0
Make = Callable[[int], UpstreamSlots]


@pytest.fixture
def clock() -> list[float]:
    return [NOW]


@pytest.fixture
def make(judged: Table | None, clock: list[float]) -> Make:
    """Makes the slots of a process whose upstream "a" has a limit. All share what they keep."""
    if judged:
        return lambda most: judged.slots({"a": most}, lambda: clock[0])
    fake = FakeUpstreamSlots({}, lambda: clock[0])

    def with_limit(most: int) -> UpstreamSlots:
        fake.limits = {"a": most}
        return fake

    return with_limit


def take(
    slots: UpstreamSlots,
    generation: str,
    call: int = 0,
    upstream: str = "a",
    *,
    seconds: float = CALL_SECONDS,
    n: int = 1,
) -> Slot | None:
    clock: Callable[[], float] = slots.now if isinstance(slots, FakeUpstreamSlots) else slots._now  # type: ignore[attr-defined]
    return slots.take(upstream, generation, call, until=clock() + seconds, count=n)


def taken(slots: UpstreamSlots, *generations: str) -> list[Slot]:
    """The slots of generations that all get one."""
    found = [take(slots, generation) for generation in generations]
    assert None not in found
    return [slot for slot in found if slot]


def waits(
    slots: UpstreamSlots, generation: str, since: float = NOW, *, poll: int = 1, n: int = 1
) -> list[tuple[str, int]]:
    waiter = Waiter(generation, "alice", poll, "polls", n)
    return brought(slots.wait("a", waiter, since=since, until=NOW + LIST_SECONDS))


def brought(waiters: Sequence[Waiter]) -> list[tuple[str, int]]:
    assert all((waiter.caller, waiter.queue) == ("alice", "polls") for waiter in waiters)
    return [(waiter.generation_id, waiter.poll) for waiter in waiters]


def free(slots: UpstreamSlots, slot: Slot) -> list[tuple[str, int]]:
    return brought(slots.free(slot))


@pytest.mark.parametrize("most", [1, 3])
def test_an_upstream_has_its_number_of_slots(make: Make, most: int) -> None:
    slots = make(most)
    found = taken(slots, *(f"gen_{number}" for number in range(most)))
    assert [take(slots, "gen_x"), take(slots, "gen_0", 1)] == [None, None]
    assert free(slots, found[0]) == []
    taken(slots, "gen_x")
    assert take(slots, "gen_0") is None


def test_an_upstream_without_a_limit_always_has_a_slot(make: Make) -> None:
    slots = make(1)
    taken(slots, "gen_1")
    for number in range(3):
        found = take(slots, f"gen_{number}", upstream="b")
        assert found
        assert slots.free(found) == []
    assert take(slots, "gen_2") is None


def test_a_successor_takes_the_same_slot_again_and_alone_frees_it(make: Make, clock: list[float]) -> None:
    slots = make(2)
    dead, other = taken(slots, "gen_1", "gen_2")
    clock[0] += CALL_SECONDS - 1
    (successor,) = taken(slots, "gen_1")
    free(slots, dead)
    assert take(slots, "gen_3") is None
    clock[0] += 2  # its process had the slot until now
    taken(slots, "gen_3")
    assert take(slots, "gen_4") is None
    for slot in (successor, successor, other):
        free(slots, slot)
    taken(slots, "gen_4")
    assert take(slots, "gen_5") is None


def test_a_slot_is_free_after_its_time(make: Make, clock: list[float]) -> None:
    slots = make(2)
    dead, _ = taken(slots, "gen_1", "gen_2")
    clock[0] = dead.until
    assert take(slots, "gen_3") is None
    clock[0] += 1
    taken(slots, "gen_3", "gen_1")
    assert [take(slots, "gen_4"), take(slots, "gen_2")] == [None, None]
    free(slots, dead)  # its process was only slow
    assert take(slots, "gen_4") is None


def test_the_first_waiter_gets_the_slot_that_is_freed(make: Make) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    for generation, since in (("gen_c", NOW + 1), ("gen_a", NOW), ("gen_d", NOW + 1.5), ("gen_b", NOW)):
        assert waits(slots, generation, since) == []
    for expected in ("gen_a", "gen_b", "gen_c", "gen_d"):
        assert free(slots, slot) == [(expected, 1)]
        (slot,) = taken(slots, expected)
    assert free(slots, slot) == []


def test_a_generation_is_on_the_list_once_and_is_brought_for_its_latest_round(make: Make) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2", NOW)
    waits(slots, "gen_3", NOW + 1)
    for poll in (2, 3, 2):
        waits(slots, "gen_2", NOW, poll=poll)
    assert free(slots, slot) == [("gen_2", 3)]
    (slot,) = taken(slots, "gen_2")
    assert free(slots, slot) == [("gen_3", 1)]


def test_no_one_else_gets_a_kept_slot(make: Make, clock: list[float]) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    free(slots, slot)
    assert free(slots, slot) == []
    clock[0] += KEPT_SECONDS - 1
    assert [take(slots, "gen_1"), take(slots, "gen_3")] == [None, None]
    (slot,) = taken(slots, "gen_2")
    assert [take(slots, "gen_2", 1), take(slots, "gen_3")] == [None, None]
    free(slots, slot)
    taken(slots, "gen_3")


def test_a_kept_slot_is_free_if_its_generation_does_not_come(make: Make, clock: list[float]) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    free(slots, slot)
    clock[0] += KEPT_SECONDS + 1
    (slot,) = taken(slots, "gen_3")
    assert take(slots, "gen_2") is None
    assert waits(slots, "gen_2", poll=2) == []
    assert free(slots, slot) == [("gen_2", 2)]


def test_a_generation_that_comes_too_late_for_its_kept_slot_is_still_first(make: Make, clock: list[float]) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    waits(slots, "gen_3", NOW + 1)
    free(slots, slot)
    clock[0] += KEPT_SECONDS + 1
    assert waits(slots, "gen_2", poll=2) == [("gen_2", 2)]


def test_a_generation_with_a_kept_slot_takes_no_other(make: Make) -> None:
    slots = make(2)
    for slot in taken(slots, "gen_1", "gen_2"):
        waits(slots, "gen_3")
        free(slots, slot)  # the second one is free, and none is kept again
    taken(slots, "gen_3", "gen_4")
    assert take(slots, "gen_5") is None


def test_a_generation_that_waits_again_gets_one_kept_slot(make: Make) -> None:
    slots = make(2)
    first, second = taken(slots, "gen_1", "gen_2")
    waits(slots, "gen_3")
    free(slots, first)
    assert waits(slots, "gen_3", poll=2) == [("gen_3", 2)]  # a message of round 1 may bring nobody
    waits(slots, "gen_4", NOW + 1)
    assert free(slots, second) == [("gen_4", 1)]


def test_a_slot_that_was_freed_before_the_generation_waited_is_kept_for_it(make: Make) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    assert take(slots, "gen_2") is None
    free(slots, slot)
    assert waits(slots, "gen_2") == [("gen_2", 1)]
    assert take(slots, "gen_3") is None
    taken(slots, "gen_2")


def test_slots_of_dead_processes_are_kept_for_as_many_waiters(make: Make, clock: list[float]) -> None:
    slots = make(3)
    taken(slots, "gen_1", "gen_2")
    clock[0] += CALL_SECONDS / 2
    (living,) = taken(slots, "gen_3")
    for number in range(4, 8):
        waits(slots, f"gen_{number}", NOW + number)
    clock[0] += CALL_SECONDS / 2 + 1
    assert free(slots, living) == [("gen_4", 1), ("gen_5", 1), ("gen_6", 1)]
    assert take(slots, "gen_7") is None


def test_a_generation_that_has_left_or_whose_time_has_passed_is_not_brought(make: Make, clock: list[float]) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    for number in range(2, 5):
        slots.wait("a", Waiter(f"gen_{number}", "alice", 1, "polls"), since=NOW + number, until=clock[0] + 10 * number)
    for _ in range(2):
        slots.leave("a", "gen_3", since=NOW + 3)
    clock[0] += 30
    assert free(slots, slot) == [("gen_4", 1)]
    (slot,) = taken(slots, "gen_4")
    clock[0] -= 30
    assert free(slots, slot) == []


def test_one_that_leaves_gives_its_kept_slot_to_the_next(make: Make) -> None:
    slots = make(1)
    (slot,) = taken(slots, "gen_1")
    for number in (2, 3):
        waits(slots, f"gen_{number}", NOW + number)
    assert free(slots, slot) == [("gen_2", 1)]
    assert brought(slots.leave("a", "gen_2", since=NOW + 2)) == [("gen_3", 1)]
    assert brought(slots.leave("a", "gen_2", since=NOW + 2)) == []
    assert take(slots, "gen_2") is None
    taken(slots, "gen_3")
    assert brought(slots.leave("b", "gen_3", since=NOW)) == []


def test_a_call_takes_all_of_its_slots_or_none(make: Make) -> None:
    slots = make(10)
    eight, one = take(slots, "gen_1", n=8), take(slots, "gen_2", n=1)
    assert eight
    assert one
    assert [take(slots, "gen_3", n=2), take(slots, "gen_1", 1, n=2)] == [None, None]
    free(slots, eight)
    assert take(slots, "gen_1", 1, n=9)
    assert take(slots, "gen_4") is None


def test_a_call_that_needs_more_slots_than_there_are_takes_all(make: Make) -> None:
    slots = make(3)
    slot = take(slots, "gen_1", n=8)
    assert slot
    assert take(slots, "gen_2") is None
    waits(slots, "gen_2", n=9)
    assert free(slots, slot) == [("gen_2", 1)]
    slot = take(slots, "gen_2", n=9)
    assert slot
    assert free(slots, slot) == []
    taken(slots, "gen_3", "gen_4", "gen_5")


def test_a_waiter_is_brought_once_all_slots_that_it_needs_are_free(make: Make) -> None:
    slots = make(4)
    first, second, third, _ = taken(slots, "gen_1", "gen_2", "gen_3", "gen_4")
    waits(slots, "gen_5", NOW, n=3)
    waits(slots, "gen_6", NOW + 1)  # it needs fewer, and may not overtake
    assert [free(slots, slot) for slot in (first, second, third)] == [[], [], [("gen_5", 1)]]
    assert take(slots, "gen_7") is None
    slot = take(slots, "gen_5", n=2)  # the slot that it does not need is free
    assert slot
    taken(slots, "gen_6")


def test_calls_that_need_fewer_slots_do_not_overtake_a_waiter(make: Make, clock: list[float]) -> None:
    slots = make(3)
    held = [take(slots, f"gen_{number}", seconds=3 * SAVED_SECONDS) for number in range(3)]
    waits(slots, "gen_3", NOW, n=3)
    for slot in held[:2]:
        assert slot
        assert free(slots, slot) == []
        clock[0] += SAVED_SECONDS - 1
        assert take(slots, "gen_4") is None
    last = held[2]
    assert last
    assert free(slots, last) == [("gen_3", 1)]
    clock[0] += KEPT_SECONDS + 1
    taken(slots, "gen_4", "gen_5", "gen_6")


def test_slots_that_are_saved_for_long_are_free_again(make: Make, clock: list[float]) -> None:
    slots = make(2)
    first = take(slots, "gen_1", seconds=3 * SAVED_SECONDS)
    assert first
    assert take(slots, "gen_2", seconds=3 * SAVED_SECONDS)
    waits(slots, "gen_3", NOW, n=2)
    assert free(slots, first) == []
    clock[0] += SAVED_SECONDS + 1
    taken(slots, "gen_4")


def test_one_that_leaves_gives_the_slots_that_are_saved_for_it_to_the_next(make: Make) -> None:
    slots = make(2)
    slot, _ = taken(slots, "gen_1", "gen_2")
    waits(slots, "gen_3", NOW, n=2)
    waits(slots, "gen_4", NOW + 1)
    assert free(slots, slot) == []
    assert waits(slots, "gen_3", NOW, poll=2, n=2) == []  # only one of two is saved
    assert brought(slots.leave("a", "gen_3", since=NOW)) == [("gen_4", 1)]


def test_no_slot_is_saved_for_a_waiter_whose_time_has_passed(make: Make, clock: list[float]) -> None:
    slots = make(2)
    slot, _ = taken(slots, "gen_1", "gen_2")
    slots.wait("a", Waiter("gen_3", "alice", 1, "polls", 2), since=NOW, until=NOW + 10)
    waits(slots, "gen_4", NOW + 1)
    clock[0] += 11
    assert free(slots, slot) == [("gen_4", 1)]


def test_a_successor_renews_all_slots_of_its_call(make: Make, clock: list[float]) -> None:
    slots = make(3)
    dead = take(slots, "gen_1", n=2)
    clock[0] += 1
    living = take(slots, "gen_1", n=2)
    assert dead
    assert living
    free(slots, dead)
    assert [take(slots, "gen_2", n=2), take(slots, "gen_1", 1, n=2)] == [None, None]
    free(slots, living)
    assert take(slots, "gen_2", n=3)


@pytest.mark.parametrize("held", [True, False])
def test_one_that_has_ended_gives_the_slots_of_its_calls_to_the_next(make: Make, *, held: bool) -> None:
    slots = make(4)
    for call, n in ((0, 2), (10, 1)):
        assert take(slots, "gen_1", call, n=n)
    taken(slots, "gen_10")
    waits(slots, "gen_2", n=3)
    expected = [("gen_2", 1)] if held else []
    assert brought(slots.leave("a", "gen_1", since=NOW, held=held)) == expected
    assert take(slots, "gen_3") is None


def test_a_lowered_limit_gives_no_slot_until_fewer_are_in_use(make: Make) -> None:
    found = taken(make(4), *(f"gen_{number}" for number in range(4)))
    waits(make(4), "gen_9")
    kept = free(make(4), found.pop())
    assert kept == [("gen_9", 1)]
    slots = make(2)
    taken(slots, "gen_0")  # again
    assert [take(slots, "gen_9"), take(slots, "gen_8")] == [None, None]
    waits(slots, "gen_8")
    assert free(slots, found.pop()) == []
    assert [take(slots, "gen_9"), take(slots, "gen_8")] == [None, None]
    assert free(slots, found.pop()) == []
    assert free(slots, found.pop()) == [("gen_8", 1)]


def test_a_crowd_never_exceeds_the_limit_and_all_are_served(make: Make) -> None:
    """No one comes by itself: each generation that is refused is brought by another one or by its own `wait`."""
    most, crowd = 3, 30
    slots, lock, served = make(most), threading.Lock(), Counter[str]()
    working, busiest = 0, 0
    messages: queue.Queue[str | None] = queue.Queue()
    for number in range(crowd):
        messages.put(f"gen_{number:02}")

    def send(waiters: Sequence[tuple[str, int]]) -> None:
        for generation, _ in waiters:
            messages.put(generation)

    def work() -> None:
        nonlocal working, busiest
        while generation := messages.get(timeout=SECONDS):
            slot = take(slots, generation)
            if slot is None:
                send(waits(slots, generation))
                continue
            with lock:
                working += 1
                busiest = max(busiest, working)
                served[generation] += 1
            with lock:
                working -= 1
            send(free(slots, slot))
            if len(served) == crowd:
                for _ in range(crowd):
                    messages.put(None)

    with ThreadPoolExecutor(crowd) as pool:
        for worker in [pool.submit(work) for _ in range(crowd)]:
            worker.result()
    assert len(served) == crowd
    assert busiest <= most


def test_two_hundred_threads_get_no_slot_twice(make: Make, clock: list[float]) -> None:
    slots = make(7)
    taken(slots, *(f"dead_{number}" for number in range(4)))
    clock[0] += CALL_SECONDS + 1
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda number: take(slots, f"gen_{number}"), range(200)))
    assert sum(slot is not None for slot in found) == 7


# What only DynamoDB can do.


def limited(table: Table, limits: Mapping[str, int] | None = None) -> UpstreamSlots:
    return table.slots(limits or {"a": 1}, lambda: NOW)


def test_a_generation_that_waits_while_a_slot_is_freed_is_brought(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that frees the slot has seen an empty list."""
    slots, query = limited(table), table.client.query
    (slot,) = taken(slots, "gen_1")
    in_between: list[object] = []

    def late(**asked: Any) -> object:
        answer = query(**asked)
        monkeypatch.undo()
        in_between.append(waits(slots, "gen_2"))
        return answer

    monkeypatch.setattr(table.client, "query", late)
    assert free(slots, slot) == [("gen_2", 1)]
    assert in_between == [[]]


@pytest.mark.parametrize("between", ["query", "delete_item", "update_item"])
def test_two_processes_that_free_at_once_bring_two_waiters(
    table: Table, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """One of them frees its slot after the other has called `between`."""
    slots, send = limited(table, {"a": 2}), getattr(table.client, between)
    first, second = taken(slots, "gen_1", "gen_2")
    waits(slots, "gen_3")
    waits(slots, "gen_4", NOW + 1)
    found: list[tuple[str, int]] = []

    def late(**asked: Any) -> object:
        answer = send(**asked)
        monkeypatch.undo()
        found.extend(free(slots, second))
        return answer

    monkeypatch.setattr(table.client, between, late)
    found += free(slots, first)
    assert sorted(found) == [("gen_3", 1), ("gen_4", 1)]
    assert take(slots, "gen_5") is None


def test_a_waiter_keeps_its_place_on_the_list_if_its_slot_is_lost_to_another(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW]
    slots, send = table.slots({"a": 2}, lambda: now[0]), table.client.update_item
    taken(slots, "gen_1")
    now[0] += CALL_SECONDS / 2
    (slot,) = taken(slots, "gen_2")
    for number in range(3, 6):
        waits(slots, f"gen_{number}", NOW + number)
    now[0] += CALL_SECONDS / 2 + 1
    late_slots: list[Slot] = []

    def late(**write: Any) -> object:
        monkeypatch.undo()
        late_slots.extend(taken(slots, "gen_1"))  # a successor of the dead process
        return send(**write)

    monkeypatch.setattr(table.client, "update_item", late)
    assert free(slots, slot) == [("gen_3", 1)]
    assert [free(slots, late_slot) for late_slot in late_slots] == [[("gen_4", 1)]]


def test_a_slot_is_freed_even_if_others_are_faster_each_time(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = limited(table)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    monkeypatch.setattr("imagegen.aws.slots._TRIES", 0)
    assert free(slots, slot) == []
    monkeypatch.undo()
    taken(slots, "gen_3")


def test_no_slot_is_given_if_others_are_faster_each_time(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = limited(table)
    take(slots, "gen_1", seconds=-1)  # a dead process: its slot is free at the second try
    monkeypatch.setattr("imagegen.aws.slots._TRIES", 1)
    assert take(slots, "gen_2") is None
    monkeypatch.undo()
    taken(slots, "gen_2")


@pytest.mark.parametrize("broken", ["query", "delete_item"])
def test_a_slot_is_freed_even_if_the_list_cannot_be_read(
    table: Table, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    slots = limited(table)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    monkeypatch.setattr(table.client, broken, None)
    assert free(slots, slot) == []
    taken(slots, "gen_3")


def test_a_waiter_with_a_kept_slot_is_brought_even_if_the_records_then_fail(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW]
    slots, send = table.slots({"a": 2}, lambda: now[0]), table.client.update_item
    slot, _ = taken(slots, "gen_1", "gen_2")
    waits(slots, "gen_3")
    waits(slots, "gen_4", NOW + 1)
    now[0] += CALL_SECONDS + 1

    def last(**write: Any) -> object:
        monkeypatch.setattr(table.client, "update_item", None)
        return send(**write)

    monkeypatch.setattr(table.client, "update_item", last)
    monkeypatch.setattr("imagegen.aws.slots._AT_ONCE", 1)
    assert free(slots, slot) == [("gen_3", 1)]


def test_what_has_ended_leaves_nothing(table: Table) -> None:
    slots = limited(table)
    (slot,) = taken(slots, "gen_1")
    waits(slots, "gen_2")
    (place,) = (item for item in table.items() if "poll" in item)
    assert place["expires_at"] == {"N": str(int(NOW + LIST_SECONDS))}
    free(slots, slot)
    free(slots, *taken(slots, "gen_2"))
    assert table.items() == [{"pk": {"S": "slots#a"}, "sk": {"S": "slots"}, "slots": {"M": {}}}]


def test_every_call_has_a_slot_if_they_cannot_be_counted(connect: Connect) -> None:
    slots = Table(connect("dynamodb", closed_url()), "table").slots({"a": 1})
    first, _ = taken(slots, "gen_1", "gen_2")
    assert (waits(slots, "gen_3"), free(slots, first)) == ([], [])
    assert slots.leave("a", "gen_3", since=NOW) == []


@pytest.mark.parametrize("table", ["moto"], indirect=True)
@pytest.mark.parametrize("code", ["ThrottlingException", "ProvisionedThroughputExceededException"])
def test_a_crowd_gets_no_slot_uncounted(table: Table, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    slots = limited(table)

    def throttled(**_: Any) -> object:
        raise type(code, (Exception,), {})

    monkeypatch.setattr(table.client, "update_item", throttled)
    assert take(slots, "gen_1") is None
    assert take(slots, "gen_1", upstream="b")
