"""A caller may see, cancel and delete its own generations. For other callers these do not exist."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.domain import errors
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import Generation, LostClaimError, Status, UpstreamCall
from imagegen.domain.images import new_image_id
from imagegen.domain.inputs import new_upload_id
from imagegen.usecases.manage_generation import LEASE_SECONDS
from imagegen.usecases.submit import SAFETY_NET_LEASES, Submission
from tests.support.hooks import after, before, raising
from tests.support.in_memory import BASE_URL, InMemoryService, attempts
from tests.support.inputs import EDIT, at_hand, by_id, identified, sized

N = 2  # images of each generation, in a call each
SAFETY_NET = LEASE_SECONDS * SAFETY_NET_LEASES
NO_RECORDS, NOT_DELETED = errors.RecordsUnavailableError("no"), errors.ImageStorageError("no")

Act = Callable[[InMemoryService, str, str], object]
SEE, CANCEL, DELETE = InMemoryService.see, InMemoryService.cancel, InMemoryService.delete


def each(*acts: Act) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("act", acts, ids=[act.__name__ for act in acts])


def created(service: InMemoryService, *, stored: bool = False) -> Generation:
    generation = service.admitted(n=N, response_format="b64_json")
    if stored:
        store(service, generation)
    return generation


def store(service: InMemoryService, generation: Generation) -> None:
    service.store(*generation.image_ids)
    service.images.save_answer(generation.id, 2, iter([b"{}"]), service.deadline())


def ended(service: InMemoryService, status: Status, *, published: bool = False) -> Generation:
    """With all of its images, or with the first one if it failed."""
    generation = created(service)
    service.left_behind(generation, *[UpstreamCall((), attempts(1))] * (N if status is Status.COMPLETED else 1))
    failure = failure_of(errors.PromptRejectedError("no")) if status is Status.FAILED else None
    generation = service.ended(generation, status, failure=failure)
    if published:
        service.publish(generation)
    return service.record(generation)


@each(SEE, CANCEL, DELETE)
def test_the_generation_of_another_caller_is_answered_like_a_missing_one(service: InMemoryService, act: Act) -> None:
    generation = created(service, stored=True)
    with pytest.raises(errors.UnknownGenerationError) as anothers:
        act(service, generation.id, "bob")
    with pytest.raises(errors.UnknownGenerationError) as absent:
        act(service, "gen_AAAAAAAAAAAAAAAAAAAAAA", "bob")
    assert (anothers.value.message, anothers.value.param) == (absent.value.message, absent.value.param)
    assert service.record(generation) == generation
    assert sorted(service.images.saved) == sorted(generation.image_ids)


@each(SEE, CANCEL, DELETE)
@pytest.mark.parametrize(
    "generation_id", ["", "gen_", "key#alice#x", "gen_" + "A" * 21, "gen_" + "A" * 23, "gen_" + "Ä" * 22]
)
def test_text_that_is_not_an_id_is_not_looked_up(service: InMemoryService, act: Act, generation_id: str) -> None:
    with pytest.raises(errors.UnknownGenerationError):
        act(service, generation_id, "alice")
    assert service.records.asked == []


@each(SEE, CANCEL)
def test_a_deleted_generation_is_unknown(service: InMemoryService, act: Act) -> None:
    generation = created(service)  # no image of it was ever stored
    service.delete(generation.id)
    with pytest.raises(errors.UnknownGenerationError):
        act(service, generation.id, "alice")


# Cancelling.


def test_a_queued_generation_is_cancelled_and_published_at_once_and_keeps_its_images(service: InMemoryService) -> None:
    generation = created(service, stored=True)
    service.now += 5
    cancelled = service.cancel(generation.id)
    assert (cancelled.status, cancelled.completed_at) == (Status.CANCELLED, service.now)
    assert service.bus.ended == [cancelled]  # the same as in the answer
    assert service.see(generation.id) == replace(cancelled, published=True, returned=N)
    assert sorted(service.images.saved) == sorted(generation.image_ids)


def test_a_running_generation_is_cancelled_once_and_its_worker_sends_no_further_call(service: InMemoryService) -> None:
    claimed = service.claimed(created(service))
    service.noted(claimed, UpstreamCall((), attempts(1)))
    first = service.cancel(claimed.id)
    assert first.status is Status.CANCELLED
    with pytest.raises(LostClaimError):
        service.noted(claimed, UpstreamCall((), attempts=attempts(2)))
    service.now += 100
    second = service.cancel(claimed.id)
    assert replace(second, published=first.published, returned=first.returned) == first
    assert len(service.published) == 1


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_a_completed_or_failed_generation_cannot_be_cancelled(service: InMemoryService, status: Status) -> None:
    generation = ended(service, status)
    with pytest.raises(errors.GenerationEndedError):
        service.cancel(generation.id)
    assert service.see(generation.id) == generation


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cancellation_survives_a_failing_bus_and_a_message_publishes_it(service: InMemoryService, when: Any) -> None:
    generation = created(service)
    service.bus.failures.append(when)
    assert service.cancel(generation.id).status is Status.CANCELLED
    assert service.deliver(generation.id) is None
    assert service.published[-1] == (generation.id, Status.CANCELLED)
    assert service.record(generation).published


# Deleting.


def test_a_deletion_removes_the_record_the_images_and_the_answer(service: InMemoryService) -> None:
    generation, other = created(service, stored=True), created(service, stored=True)
    service.delete(generation.id)
    assert service.records.get(generation.id) is None
    assert sorted(service.images.saved) == sorted(other.image_ids)
    assert list(service.images.answers) == [other.id]
    assert list(service.records.newest("alice", 10)) == [other]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("status", [None, Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_a_deletion_publishes_sends_a_message_writes_the_tombstone_and_deletes_the_images(
    service: InMemoryService, status: Status | None, published: bool
) -> None:
    """After the tombstone there is no record to publish. The message comes right before it: after it, a crash would
    leave images; long before it, the message would be received too early.
    """
    generation = ended(service, status, published=published) if status else created(service)
    store(service, generation)
    steps: list[str] = []
    before(service.bus, "generation_ended", lambda _: steps.append(f"end of {service.see(generation.id).status}"))
    before(service.queue, "send", lambda *_, **__: steps.append("message"))
    before(service.records, "bury", lambda *_, **__: steps.append("tombstone"))
    before(service.images, "delete", lambda *_: steps.append("image"))
    service.delete(generation.id)
    end = f"end of {status or Status.CANCELLED}"
    assert steps == [*([] if status and published else [end]), "message", "tombstone", "image", "image"]
    assert service.published == [(generation.id, status or Status.CANCELLED)]
    assert service.queue.sent == [(generation.id, SAFETY_NET)]
    assert service.records.tombstone(generation.id) is not None


@pytest.mark.parametrize(("port", "method"), [("queue", "send"), ("bus", "generation_ended"), ("records", "bury")])
def test_a_deletion_that_cannot_begin_leaves_the_generation_and_can_be_repeated(
    service: InMemoryService, port: str, method: str
) -> None:
    before(getattr(service, port), method, raising(NO_RECORDS))
    generation = created(service, stored=True)
    with pytest.raises(errors.RecordsUnavailableError):
        service.delete(generation.id)
    assert service.see(generation.id).status is Status.CANCELLED
    assert sorted(service.images.saved) == sorted(generation.image_ids)
    assert list(service.images.answers) == [generation.id]
    service.delete(generation.id)
    assert (service.images.saved, service.images.answers) == ({}, {})
    assert service.published == [(generation.id, Status.CANCELLED)]


@pytest.mark.parametrize("published", [False, True])
def test_a_generation_is_deleted_as_soon_as_its_tombstone_is_written(service: InMemoryService, published: bool) -> None:
    generation = ended(service, Status.COMPLETED, published=published)
    after(service.records, "bury", raising(NO_RECORDS))
    with pytest.raises(errors.RecordsUnavailableError):
        service.delete(generation.id)
    with pytest.raises(errors.UnknownGenerationError):
        service.see(generation.id)
    assert [each.status for each in service.line_ends] == [Status.COMPLETED]
    assert service.queue.sent == [(generation.id, SAFETY_NET)]  # its receiver deletes the images
    assert service.queue.callers == {"alice"}


def test_the_line_of_a_deleted_generation_ends_as_cancelled(service: InMemoryService) -> None:
    service.delete(ended(service, Status.COMPLETED, published=True).id)
    ended_line = service.line_ends[-1]
    assert ended_line.failure is not None
    assert (ended_line.status, ended_line.failure.code) == (Status.CANCELLED, errors.GenerationCancelledError.code)


def test_a_retry_that_begins_during_a_deletion_is_cancelled_and_deleted_too(service: InMemoryService) -> None:
    generation = ended(service, Status.FAILED)

    def retried(published: Generation) -> None:
        if len(service.published) == 1:
            service.records.mark_published(published)
            assert service.retry(generation.id) is not None

    after(service.bus, "generation_ended", retried)
    service.delete(generation.id)
    assert service.records.get(generation.id) is None
    assert service.published == [(generation.id, Status.FAILED), (generation.id, Status.CANCELLED)]


def test_only_its_caller_can_repeat_an_unfinished_deletion(service: InMemoryService) -> None:
    generation = created(service, stored=True)
    first = list(generation.image_ids[:1])
    before(service.images, "delete", raising(NOT_DELETED, None, NOT_DELETED))
    for _ in range(2):
        with pytest.raises(errors.DeletionUnfinishedError) as unfinished:
            service.delete(generation.id)
        assert unfinished.value.param == "id"
        assert (list(service.images.saved), service.images.answers) == (first, {})
    with pytest.raises(errors.UnknownGenerationError):
        service.delete(generation.id, "bob")
    assert list(service.images.saved) == first
    for _ in range(2):
        service.delete(generation.id)
        assert service.images.saved == {}
    assert len(service.queue.sent) == 1


# Quota.


@each(CANCEL, DELETE)
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_end_returns_quota_once_for_images_that_were_not_sent(service: InMemoryService, act: Act, sent: int) -> None:
    generation = created(service)
    service.left_behind(generation, *[UpstreamCall((), attempts(1))] * sent)
    for _ in range(2):
        act(service, generation.id, "alice")
        assert service.used == {sent}


def test_a_cancellation_succeeds_if_the_counters_are_unreachable(service: InMemoryService) -> None:
    generation = created(service)
    service.counters.failures += ["before", "before"]
    assert service.cancel(generation.id).status is Status.CANCELLED
    assert service.used == {N}


# An operator's retry. test_work_on_generation.py has the work on it.


def steps_of_a_retry(service: InMemoryService, failing: str | None = None) -> list[str]:
    """The steps of a retry, in order. The step `failing` fails before its effect."""
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)
        if name == failing:
            raise NO_RECORDS

    before(service.queue, "send", lambda *_, delay=0, **__: step("safety net" if delay else "work message"))
    before(service.counters, "take", lambda name, *_, **__: step(f"quota of {name}"))
    before(service.records, "requeue", lambda *_, **__: step("requeue"))
    return steps


def test_a_retry_sends_the_safety_net_takes_quota_requeues_and_sends_the_message(service: InMemoryService) -> None:
    failed = ended(service, Status.FAILED, published=True)
    assert service.used == {1}
    steps = steps_of_a_retry(service)
    waiting = service.retry(failed.id)
    assert waiting is not None
    assert steps == ["safety net", "quota of alice", "quota of *", "requeue", "work message"]
    assert service.queue.sent == [(failed.id, SAFETY_NET), (failed.id, 0)]
    assert service.queue.callers == {"alice"}
    assert (waiting.status, waiting.retries, waiting.reserved_at) == (Status.QUEUED, 1, service.now)
    assert service.used == {N}


@pytest.mark.parametrize("failing", ["safety net", "quota of alice", "quota of *", "requeue"])
def test_a_retry_that_cannot_begin_leaves_the_failure(service: InMemoryService, failing: str) -> None:
    failed = ended(service, Status.FAILED, published=True)
    steps = steps_of_a_retry(service, failing)
    with pytest.raises(errors.RecordsUnavailableError):
        service.retry(failed.id)
    assert steps[-1] == failing
    assert service.see(failed.id) == failed


def test_only_one_of_two_concurrent_retries_succeeds_and_takes_quota(service: InMemoryService) -> None:
    failed = ended(service, Status.FAILED, published=True)
    second: list[Generation | None] = []
    before(service.queue, "send", lambda *_, **__: second.append(service.retry(failed.id)), once=True)
    assert service.retry(failed.id) is None
    assert [waiting.retries for waiting in second if waiting] == [1]
    assert service.used == {N}


def test_a_missing_generation_is_not_retried(service: InMemoryService) -> None:
    assert service.retry("gen_AAAAAAAAAAAAAAAAAAAAAA") is None
    assert service.queue.sent == []


# Input images.


def edited(service: InMemoryService) -> tuple[Generation, list[str]]:
    """A queued generation from a picture that came inside the request, an upload and an image made here.

    And the ids of the three.
    """
    upload_id, image_id = new_upload_id(), new_image_id()
    service.inputs.uploads["alice", upload_id] = sized(label="uploaded")
    service.store(image_id)
    given = [at_hand(sized(label="sent")), by_id(upload_id), by_id(image_id)]
    inputs = identified(service, given)
    submission = Submission(EDIT, service.caller("alice"), BASE_URL, inputs=inputs)
    generation = service.submission.submit(submission).generation
    return generation, [image.id for image in generation.request.inputs]


def test_a_deletion_removes_only_the_inputs_that_came_inside_the_request(service: InMemoryService) -> None:
    (generation, (own, upload_id, image_id)), (_, (of_another, *_)) = edited(service), edited(service)
    assert set(service.inputs.saved) == {own, of_another}
    asked: list[str] = []
    before(service.inputs, "delete", lambda input_id, _: asked.append(input_id))
    service.delete(generation.id)
    assert asked == [own]
    assert list(service.inputs.saved) == [of_another]
    assert ("alice", upload_id) in service.inputs.uploads
    assert image_id in service.images.saved


def test_a_tombstone_keeps_the_ids_of_the_inputs_and_a_sweep_deletes_them_again(service: InMemoryService) -> None:
    generation, (own, upload_id, image_id) = edited(service)
    service.delete(generation.id)
    tombstone = service.records.tombstone(generation.id)
    assert tombstone is not None
    assert (tombstone.input_ids, tombstone.image_ids) == ((own,), generation.image_ids)
    service.inputs.saved[own] = sized()  # a write that was on its way
    service.deliver(generation.id)
    assert service.inputs.saved == {}
    assert ("alice", upload_id) in service.inputs.uploads
    assert image_id in service.images.saved


def test_a_process_that_dies_after_the_tombstone_leaves_the_inputs_to_a_sweep(service: InMemoryService) -> None:
    generation, (own, *_) = edited(service)
    service.buried(generation)
    assert list(service.inputs.saved) == [own]
    service.deliver(generation.id)
    assert service.inputs.saved == {}


def test_a_deletion_is_unfinished_while_an_input_cannot_be_deleted(service: InMemoryService) -> None:
    generation, (own, *_) = edited(service)
    service.store(*generation.image_ids)
    before(service.inputs, "delete", raising(*[errors.InputUnavailableError("no")] * 2))
    with pytest.raises(errors.DeletionUnfinishedError):
        service.delete(generation.id)
    assert list(service.inputs.saved) == [own]
    assert set(generation.image_ids).isdisjoint(service.images.saved)
    with pytest.raises(errors.ImageStorageError):  # the sweep tries again later
        service.deliver(generation.id)
    service.delete(generation.id)
    assert service.inputs.saved == {}


def test_a_worker_whose_generation_is_deleted_meanwhile_deletes_its_inputs(service: InMemoryService) -> None:
    generation, (own, *_) = edited(service)
    service.provider.during_call = lambda: service.buried(generation)
    service.deliver(generation.id)
    assert own not in service.inputs.saved
    assert set(generation.image_ids).isdisjoint(service.images.saved)
    assert len(service.inputs.uploads) == 1
