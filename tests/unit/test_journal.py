"""What the use cases tell the operators, in which order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from imagegen.allowance import Allowance
from imagegen.deadline import Deadline
from imagegen.errors import AllowanceSpentError, UpstreamFailedError, UpstreamUnavailableError
from imagegen.generations import Call
from imagegen.submit import Attempt, Desk, Submitted, submit
from imagegen.work import work_on_message
from tests.fakes.journal import FakeJournal
from tests.unit import test_submit, test_work
from tests.unit.test_work import NOW

KEYED = Attempt("key")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.generate._FIRST_PAUSE_SECONDS", 0)


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture
def worker() -> Iterator[test_work.World]:
    with ThreadPoolExecutor(10) as pool:
        yield test_work.World(pool)


def submitted(
    world: test_submit.World, journal: FakeJournal, attempt: Attempt = KEYED, generation_id: str | None = None
) -> Submitted:
    allowance = Allowance(world.counters, each_caller=10, whole_stack=4)
    desk = Desk(world.records, world.queue, allowance, lambda: NOW, 60, journal=journal)
    request = test_submit.REQUEST
    return submit(
        request, attempt, desk, caller="alice", base_url="https://x", work_here=False, generation_id=generation_id
    )


def delivered(world: test_work.World, journal: FakeJournal, generation_id: str) -> None:
    shop = replace(world.workshop, journal=journal)
    work_on_message(generation_id, shop, Deadline.after(10), hold=lambda _: None)


def test_a_begun_generation_is_told_with_what_is_reserved_and_a_retry_that_attaches_as_such(
    journal: FakeJournal,
) -> None:
    world = test_submit.World()
    first = submitted(world, journal).generation
    assert submitted(world, journal).attached
    second = submitted(world, journal, Attempt()).generation
    assert journal.told == [
        ("begun", first.id, 0.25),
        ("attached", first.id),
        ("begun", second.id, 0.5),
    ]


def test_what_is_read_again_is_no_retry(journal: FakeJournal) -> None:
    world = test_submit.World()
    for _ in range(2):
        submitted(world, journal, Attempt(), generation_id="gen_of-a-line")
    assert [told[0] for told in journal.told] == ["begun"]


def test_what_is_refused_is_not_begun(journal: FakeJournal) -> None:
    world = test_submit.World()
    for _ in range(4):
        submitted(world, journal, Attempt())
    with pytest.raises(AllowanceSpentError):
        submitted(world, journal, Attempt())
    assert [told[0] for told in journal.told] == ["begun"] * 4


def test_work_is_told_step_by_step(worker: test_work.World, journal: FakeJournal) -> None:
    generation = worker.admitted()
    worker.now += 7
    delivered(worker, journal, generation.id)
    (stored,) = worker.record(generation).stored.values()
    assert journal.told == [
        ("claimed", generation.id, 7),
        ("asked", generation.id, 1),
        ("answered", generation.id, None),
        ("stored", generation.id, stored.length),
    ]


@pytest.mark.parametrize("error", [UpstreamFailedError("no"), UpstreamUnavailableError("no")])
@pytest.mark.parametrize("sent_before", [0, 1])
def test_a_call_that_fails_is_told_as_the_upstream_failed_it(
    worker: test_work.World, journal: FakeJournal, error: Exception, sent_before: int
) -> None:
    generation = worker.admitted()
    if sent_before:
        worker.left(generation, Call(generation.image_ids, sent=1))
    worker.provider.failures.append(error)
    delivered(worker, journal, generation.id)
    assert journal.told[1:] == [("asked", generation.id, 1), ("answered", generation.id, type(error).__name__)]
