"""Waiting for the end of a generation, and the pauses before a failed message is received again."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from imagegen.consumers.queue_consumer import retry_delay
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import ENDED, Generation, Status
from imagegen.usecases.wait import wait
from tests.support.in_memory import InMemoryService
from tests.support.limits import MOST_RECEIPTS

START = 1000.0


@dataclass
class Waiting:
    """A claimed generation to wait for. The clock moves only in pauses, and `meanwhile` runs in each."""

    service: InMemoryService
    generation: Generation
    now: float = START
    pauses: list[float] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.meanwhile()

    def wait(self, seconds: float = 25) -> Generation | None:
        return wait(self.generation.id, self.service.records, Deadline.after(seconds), self.sleep)


@pytest.fixture
def waiting(service: InMemoryService, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    waiting = Waiting(service, service.claimed(service.admitted()))
    monkeypatch.setattr("imagegen.domain.deadline.time.monotonic", lambda: waiting.now)
    service.records.asked.clear()
    return waiting


@pytest.mark.parametrize("status", sorted(ENDED))
def test_an_ended_generation_is_returned_at_once(waiting: Waiting, status: Status) -> None:
    ended = waiting.service.ended(waiting.generation, status)
    assert ended.status is status
    assert (waiting.wait(), waiting.pauses) == (ended, [])


def test_a_missing_generation_is_not_waited_for(waiting: Waiting) -> None:
    waiting.service.buried(waiting.generation)
    assert (waiting.wait(), waiting.pauses) == (None, [])


def test_an_end_is_seen_at_the_next_read(waiting: Waiting) -> None:
    waiting.meanwhile = lambda: len(waiting.pauses) == 3 and waiting.service.ended(waiting.generation)
    assert waiting.wait() == waiting.service.record(waiting.generation)
    assert len(waiting.pauses) == 3


def test_a_deletion_ends_the_wait(waiting: Waiting) -> None:
    waiting.meanwhile = lambda: waiting.service.buried(waiting.generation)
    assert waiting.wait() is None
    assert len(waiting.pauses) == 1


@pytest.mark.parametrize("seconds", [0.5, 2, 5, 30, 60, 230])
def test_an_end_is_noticed_soon_for_the_time_waited(waiting: Waiting, seconds: float) -> None:
    """The pause in which an end falls is at most twice the lag that half of the waits may have."""
    waiting.wait(240)
    ends = list(itertools.accumulate(waiting.pauses))
    pause = next(pause for pause, end in zip(waiting.pauses, ends, strict=True) if end >= seconds)
    assert pause / 2 <= max(0.15, 0.05 * seconds) * 1.1  # the jitter


def test_a_wait_reads_the_record_at_most_60_times_in_its_first_minute_and_20_times_in_each_other(
    waiting: Waiting,
) -> None:
    assert waiting.wait(230) == waiting.generation
    assert sum(waiting.pauses) == pytest.approx(230)
    ends = list(itertools.accumulate(waiting.pauses))
    reads = [sum(minute * 60 < end <= minute * 60 + 60 for end in ends) for minute in range(4)]
    assert reads[0] < 60
    assert max(reads[1:]) <= 20
    assert min(reads[:3]) > 10


def test_two_waits_do_not_read_together(waiting: Waiting) -> None:
    waiting.wait(20)
    first, waiting.pauses = waiting.pauses, []
    waiting.wait(20)
    assert first != waiting.pauses


def test_the_record_is_read_once_more_at_the_deadline(waiting: Waiting) -> None:
    waiting.meanwhile = lambda: waiting.now >= START + 0.1 and waiting.service.ended(waiting.generation)
    ended = waiting.wait(0.1)
    assert ended is not None
    assert ended.status is Status.COMPLETED


def test_without_time_the_record_is_read_once(waiting: Waiting) -> None:
    assert (waiting.wait(0), waiting.pauses) == (waiting.generation, [])


def test_unreachable_records_are_an_error(waiting: Waiting) -> None:
    waiting.service.records.failures += [None, "before"]
    with pytest.raises(RecordsUnavailableError):
        waiting.wait()


def test_a_message_is_received_soon_at_first_and_outlasts_an_outage_of_15_minutes() -> None:
    pauses = [retry_delay(receipts) for receipts in range(1, MOST_RECEIPTS)]
    assert pauses[:8] == [5] * 8
    assert pauses == sorted(pauses)
    assert max(pauses) == 120
    assert sum(pauses) > 900
    assert retry_delay(100_000) == 120
