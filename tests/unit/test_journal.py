"""What the use cases report to the operators, in which order."""

import pytest

from imagegen.domain.attempts import Attempt
from imagegen.domain.errors import AllowanceSpentError, UpstreamFailedError, UpstreamUnavailableError
from imagegen.domain.generations import Call
from tests.fakes.journal import FakeJournal
from tests.support.in_memory import InMemoryService


@pytest.fixture
def journal(service: InMemoryService) -> FakeJournal:
    service.journal = journal = FakeJournal()
    service.whole_stack = 4
    return journal


def test_a_begun_generation_is_reported_and_its_retry_as_attached(
    service: InMemoryService, journal: FakeJournal
) -> None:
    first = service.submit(Attempt("key")).generation
    assert service.submit(Attempt("key")).attached
    second = service.submit().generation
    assert journal.calls == [("begun", first.id, 0.25), ("attached", first.id), ("begun", second.id, 0.5)]


def test_what_is_read_again_is_no_retry(service: InMemoryService, journal: FakeJournal) -> None:
    for _ in range(2):
        service.submit(generation_id="gen_of-a-line")
    assert [call for call, *_ in journal.calls] == ["begun"]


def test_what_is_refused_is_not_begun(service: InMemoryService, journal: FakeJournal) -> None:
    service.whole_stack = 0
    with pytest.raises(AllowanceSpentError):
        service.submit()
    assert journal.calls == []


def test_work_is_reported_step_by_step(service: InMemoryService, journal: FakeJournal) -> None:
    generation = service.admitted()
    service.now += 7
    service.deliver(generation.id)
    (stored,) = service.record(generation).stored.values()
    assert journal.calls == [
        ("claimed", generation.id, 7),
        ("asked", generation.id, 1),
        ("answered", generation.id, None),
        ("stored", generation.id, stored.length),
    ]


@pytest.mark.parametrize("error", [UpstreamFailedError("no"), UpstreamUnavailableError("no")])
@pytest.mark.parametrize("sent_before", [0, 1])
def test_a_call_that_fails_is_reported_as_the_upstream_failed_it(
    service: InMemoryService, journal: FakeJournal, error: Exception, sent_before: int
) -> None:
    generation = service.admitted()
    if sent_before:
        service.left_behind(generation, Call(generation.image_ids, sent=1))
    service.provider.failures.append(error)
    service.deliver(generation.id)
    assert journal.calls[1:] == [("asked", generation.id, 1), ("answered", generation.id, type(error).__name__)]
