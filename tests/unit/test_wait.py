"""Waiting for an end: often at first, then less often, never past the deadline."""

from dataclasses import dataclass, field

import pytest

from imagegen.deadline import Deadline
from imagegen.errors import RecordsUnavailableError
from imagegen.generations import ENDED, Generation, Status, admit
from imagegen.images import ImageRequest
from imagegen.wait import wait
from tests.fakes.generation_store import FakeGenerationStore

NOW = 1_760_000_000.0


@dataclass
class Clock:
    """Moves only while somebody sleeps."""

    at: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("imagegen.deadline.time.monotonic", clock)
    return clock


@pytest.fixture
def records() -> FakeGenerationStore:
    return FakeGenerationStore()


def claimed(records: FakeGenerationStore) -> Generation:
    request = ImageRequest("a cat", "dall-e-3", "url")
    generation = admit(request, caller="alice", base_url="https://x.example", now=NOW)
    records.create(generation)
    found = records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
    assert found is not None
    return found


@pytest.mark.parametrize("status", sorted(ENDED))
def test_what_has_ended_is_given_at_once(records: FakeGenerationStore, clock: Clock, status: Status) -> None:
    generation = claimed(records)
    records.end(generation.id, "worker", status, now=NOW)
    found = wait(generation.id, records, Deadline.after(25), clock.sleep)
    assert found is not None
    assert (found.status, clock.slept) == (status, [])


def test_what_is_not_there_is_not_waited_for(records: FakeGenerationStore, clock: Clock) -> None:
    assert wait("gen_x", records, Deadline.after(25), clock.sleep) is None
    assert clock.slept == []


def test_an_end_is_seen_at_the_next_look(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            records.end(generation.id, "worker", Status.COMPLETED, now=NOW)

    found = wait(generation.id, records, Deadline.after(25), sleep)
    assert found is not None
    assert found.status is Status.COMPLETED
    assert len(clock.slept) == 3


def test_a_deletion_ends_the_wait(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        ended = records.cancel(generation.id, now=NOW)
        assert ended is not None
        records.bury(ended, now=NOW)

    assert wait(generation.id, records, Deadline.after(25), sleep) is None
    assert len(clock.slept) == 1


def test_pauses_grow_up_to_less_than_a_second(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)
    wait(generation.id, records, Deadline.after(25), clock.sleep)
    *pauses, _ = clock.slept
    assert pauses[0] <= 0.5
    assert pauses == sorted(pauses)
    assert 0.5 < pauses[-1] < 1
    assert len(records.asked) < 45


def test_at_the_deadline_it_is_given_as_it_is_then(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)
    found = wait(generation.id, records, Deadline.after(25), clock.sleep)
    assert found == generation
    assert sum(clock.slept) == pytest.approx(25)


def test_there_is_a_last_look_at_the_deadline(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.at >= 1000.1:
            records.end(generation.id, "worker", Status.COMPLETED, now=NOW)

    found = wait(generation.id, records, Deadline.after(0.1), sleep)
    assert found is not None
    assert found.status is Status.COMPLETED


def test_without_time_there_is_one_look(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)
    assert wait(generation.id, records, Deadline.after(0), clock.sleep) == generation
    assert clock.slept == []


def test_records_that_cannot_be_asked_are_told(records: FakeGenerationStore, clock: Clock) -> None:
    generation = claimed(records)
    records.failures += [None, "before"]
    with pytest.raises(RecordsUnavailableError):
        wait(generation.id, records, Deadline.after(25), clock.sleep)
