"""The use cases report each step to the journal."""

import pytest

from imagegen.domain.errors import ImagegenError, QuotaExceededError, UpstreamFailedError, UpstreamRefusedRequestError
from imagegen.domain.generations import UpstreamCall
from imagegen.domain.retry_identity import RetryIdentity
from tests.fakes.journal import FakeJournal
from tests.support.in_memory import InMemoryService, attempts


@pytest.fixture
def journal(service: InMemoryService) -> FakeJournal:
    service.journal = journal = FakeJournal()
    service.whole_stack = 4
    return journal


def test_a_new_generation_is_reported_and_its_retry_as_attached(service: InMemoryService, journal: FakeJournal) -> None:
    first = service.submit(RetryIdentity("key")).generation
    assert service.submit(RetryIdentity("key")).attached
    second = service.submit().generation
    assert journal.calls == [("begun", first.id, 0.25), ("attached", first.id), ("begun", second.id, 0.5)]


def test_a_line_that_is_read_twice_is_reported_once(service: InMemoryService, journal: FakeJournal) -> None:
    for _ in range(2):
        service.submit(generation_id="gen_of-a-line")
    assert [call for call, *_ in journal.calls] == ["begun"]


def test_a_refused_request_is_not_reported(service: InMemoryService, journal: FakeJournal) -> None:
    service.whole_stack = 0
    with pytest.raises(QuotaExceededError):
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


@pytest.mark.parametrize("error", [UpstreamFailedError("no"), UpstreamRefusedRequestError("no")])
@pytest.mark.parametrize("sent_before", [0, 1])
def test_a_failed_call_is_reported_with_the_failure_of_the_upstream(
    service: InMemoryService, journal: FakeJournal, error: ImagegenError, sent_before: int
) -> None:
    generation = service.admitted()
    if sent_before:
        service.left_behind(generation, UpstreamCall(generation.image_ids, attempts(1)))
    service.provider.failures.append(error)
    service.deliver(generation.id)
    assert journal.calls[1:] == [("asked", generation.id, 1), ("answered", generation.id, error.code)]
