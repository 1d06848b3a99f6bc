"""Tasks of upstreams: each is polled until it ends, for any order of deaths, cancellations and messages."""

import threading

import pytest

from imagegen.domain import errors
from imagegen.domain.generations import Status
from imagegen.usecases.delete_images import LONGEST_WRITER_SECONDS
from imagegen.usecases.tried import KEEP_TRIES
from tests.support.hooks import after, before, raising
from tests.support.in_memory import LEASE, InMemoryService
from tests.support.waiting import SECONDS

REFUNDED = errors.UpstreamUnavailableError("The task failed and is not charged.")


def test_a_task_is_polled_even_if_recording_it_takes_as_long_as_it_may_run(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    before(
        service.records, "save_task", lambda *_: setattr(service, "now", service.now + service.provider.task_seconds)
    )
    assert service.deliver(generation.id) is None
    assert service.record(generation).status is Status.IN_PROGRESS
    assert service.deliver(generation.id, 1) is None
    assert service.record(generation).status is Status.COMPLETED


def test_a_message_for_a_cancelled_task_is_received_again_if_its_lease_ends(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    service.deliver(generation.id)
    service.cancel(generation.id)
    service.records.claim(generation.id, "dies", now=service.now, lease_until=service.now + LEASE, poll=1)
    before(service.records, "get", lambda _: setattr(service, "now", service.now + 2 * LEASE), once=True)
    assert service.deliver(generation.id, 1) == 1.0
    assert service.provider.polled == []
    assert service.deliver(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.CANCELLED, generation.image_ids)


def test_a_cancellation_that_stops_one_call_leaves_the_task_of_another_to_a_poll(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted(n=2)
    noted = threading.Event()
    after(service.records, "save_task", lambda *_: noted.set())

    def cancel_the_second_call(generation_id: str, _owner: str, call: int, *_: object) -> None:
        if call == 1:
            assert noted.wait(SECONDS)
            service.cancel(generation_id)

    before(service.records, "save_attempt", cancel_the_second_call)
    assert service.deliver(generation.id) is None
    assert (service.queue.polls[-1], service.record(generation).polls) == (1, 1)
    assert service.deliver(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.CANCELLED, generation.image_ids[:1])


def test_giving_up_a_cancelled_generation_stores_the_images_of_its_task(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    service.deliver(generation.id)
    service.cancel(generation.id)
    assert service.give_up(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids, record.lease_until) == (Status.CANCELLED, generation.image_ids, 0)


def test_a_task_that_two_attempts_began_fails_once(service: InMemoryService) -> None:
    """The first process records the task after the second: it is slow and has lost its claim."""
    service.provider.polls = 1
    generation = service.admitted()
    fault = errors.RecordsUnavailableError("no answer")
    before(service.records, "save_task", raising(*[fault] * KEEP_TRIES))
    for _ in range(2):
        try:
            service.deliver(generation.id)
        except errors.RecordsUnavailableError:
            service.now += 2 * LEASE
    (task,) = service.provider.tasks
    service.records.save_task(generation.id, 0, 1, task)
    service.provider.fails = REFUNDED
    assert service.deliver(generation.id, 1) is None
    failed = service.record(generation)
    assert failed.failure is not None
    assert (failed.failure.code, failed.calls[0].sent, service.used) == (REFUNDED.code, 2, {0})

    service.provider.fails = None
    service.retry(generation.id)
    service.deliver(generation.id)
    assert len(service.provider.tasks) == 2
    service.deliver(generation.id, 1)
    assert (service.record(generation).status, service.used) == (Status.COMPLETED, {1})


@pytest.mark.parametrize(
    ("status", "is_answered"), [(Status.FAILED, False), (Status.FAILED, True), (Status.CANCELLED, True)]
)
def test_images_that_a_process_without_a_claim_still_stores_are_listed(
    service: InMemoryService, status: Status, is_answered: bool
) -> None:
    """Another process sees the task run for too long, while the first, which is slow, already has the images."""
    service.provider.polls = 9
    generation = service.admitted()
    service.deliver(generation.id)
    service.now += service.provider.task_seconds
    if status is Status.CANCELLED:
        service.cancel(generation.id)

    def answer(*_: object) -> None:
        if is_answered:
            service.records.save_answer(generation.id, 0, service.answer("slow"))

    service.provider.during_call = answer
    assert service.deliver(generation.id, 1) == LONGEST_WRITER_SECONDS
    assert service.record(generation).status is status
    service.store(*generation.image_ids)
    service.now += LONGEST_WRITER_SECONDS
    assert service.deliver(generation.id, 1) is None
    assert service.record(generation).stored_ids == generation.image_ids


def test_a_retry_of_a_call_whose_answer_was_lost_finds_the_task_that_it_began(service: InMemoryService) -> None:
    service.provider.polls = 1
    service.provider.failures.append(errors.UpstreamConnectionLostError("lost"))
    generation = service.admitted()
    service.deliver(generation.id)
    assert service.record(generation).status is Status.FAILED
    service.retry(generation.id)
    service.deliver(generation.id)
    service.deliver(generation.id, 1)
    assert service.record(generation).status is Status.COMPLETED
    assert len(service.provider.tasks) == 1
