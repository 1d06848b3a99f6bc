"""Work on a generation: claims and leases, its end and its event, and its messages."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.domain import errors
from imagegen.domain.failures import Failure
from imagegen.domain.failures import failure_of as failure_of_error
from imagegen.domain.generations import AnsweredImage, CallAnswer, Generation, LostClaimError, Status, UpstreamCall
from imagegen.domain.images import ResponseFormat
from imagegen.usecases.delete_images import LONGEST_WRITER_SECONDS
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.send_upstream_call import MOST_SENT, UnfinishedError
from imagegen.usecases.submit import SAFETY_NET_LEASES
from imagegen.usecases.tried import KEEP_TRIES
from tests.fakes.provider import png
from tests.support.hooks import after, before, raising
from tests.support.in_memory import LEASE, NOW, InMemoryService, attempts
from tests.support.waiting import SECONDS, until

NO_ID = "gen_AAAAAAAAAAAAAAAAAAAAAA"
ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
REJECTED, REFUSED = errors.PromptRejectedError("no"), errors.UpstreamRefusedRequestError("no such size")
FAILED, FAULT = errors.UpstreamFailedError("no"), KeyError("a fault")
INTERRUPTED, NOT_STORED = errors.ImageDownloadInterruptedError("no time"), errors.ImageStorageError("no")
BEAT_SECONDS = 0.02
UNKNOWN = errors.OutcomeUnknownError.code

By = Callable[[InMemoryService, str], float | None]
BY_MESSAGE = (InMemoryService.deliver, InMemoryService.give_up)
EACH_MESSAGE = pytest.mark.parametrize("by", BY_MESSAGE, ids=["deliver", "give_up"])


def by_first_worker(service: InMemoryService, generation_id: str) -> None:
    service.work(service.claimed(service.record(generation_id)))


def failure_of(service: InMemoryService, generation: Generation) -> Failure:
    failure = service.record(generation).failure
    assert failure is not None
    return failure


# Messages.


@pytest.mark.parametrize(("n", "response_format"), [(1, "url"), (3, "b64_json")])
def test_a_message_completes_its_generation(service: InMemoryService, n: int, response_format: ResponseFormat) -> None:
    if response_format == "url":
        service.large_answer = large  # an answer of links is never large
    generation = service.admitted(n=n, response_format=response_format)
    service.now += 7
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.completed_at, record.failure) == (Status.COMPLETED, NOW + 7, None)
    assert record.stored_ids == generation.image_ids
    assert sorted(service.images.saved) == sorted(generation.image_ids)
    assert [call.n for call in service.provider.calls] == [1] * n
    assert (record.repeated_calls, service.used, record.published) == (0, {n}, True)
    assert service.bus.ended == [replace(record, published=False)]
    assert service.images.answers == {}


@EACH_MESSAGE
@pytest.mark.parametrize(("left", "again"), [(60.0, 60.0), (12.5, 12.5), (0.25, 1.0), (0.0, 1.0)])
def test_a_message_for_a_leased_generation_is_received_again_when_the_lease_ends(
    service: InMemoryService, left: float, again: float, by: By
) -> None:
    claimed = service.begun()
    service.now += LEASE - left
    assert by(service, claimed.id) == again
    assert service.record(claimed) == claimed
    assert (service.provider.calls, service.published) == ([], [])


@EACH_MESSAGE
@pytest.mark.parametrize("status", ENDS)
def test_a_message_for_an_ended_generation_publishes_its_end_once_and_does_no_more(
    service: InMemoryService, status: Status, by: By
) -> None:
    """The process that ended it died right after that."""
    generation = service.admitted()
    service.left_behind(generation, UpstreamCall((), attempts(1)))
    ended = service.ended(generation, status)
    for _ in range(2):
        assert by(service, generation.id) is None
        assert service.published == [(generation.id, status)]
    assert service.record(generation) == replace(ended, published=True)
    assert service.provider.calls == []


def test_a_message_for_a_cancelled_generation_is_retried_while_images_may_be_stored(service: InMemoryService) -> None:
    claimed = service.begun()
    service.noted(claimed, UpstreamCall((), attempts(1)))
    service.cancel(claimed.id)
    service.now += 20
    assert service.deliver(claimed.id) == LEASE - 20
    service.store(*claimed.image_ids)  # the worker dies before it lists the image
    service.now += LEASE
    assert service.deliver(claimed.id) is None
    assert service.record(claimed).stored_ids == claimed.image_ids


@EACH_MESSAGE
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_unlisted_images_of_an_ended_generation_are_listed(service: InMemoryService, status: Status, by: By) -> None:
    generation = service.admitted(n=3)
    first, second, _ = generation.image_ids
    service.left_behind(generation, UpstreamCall((), attempts(1)), UpstreamCall((), attempts(1)), stored=[first])
    service.ended(generation, status)
    assert by(service, generation.id) is None
    assert service.record(generation).stored_ids == (first,)
    assert service.images.looked_for == [first, second]  # the third was never requested


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "stored later"])
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_an_image_that_only_the_answer_of_another_process_has_is_listed(
    service: InMemoryService, status: Status, *, stored: bool
) -> None:
    """The answer on the record lacks the second image. The call was sent twice, and the other answer had it."""
    generation = service.admitted(n=2, model="dall-e-2")
    missing = AnsweredImage(failure=failure_of_error(errors.UpstreamTooFewImagesError("1 of 2")))
    call = UpstreamCall((), attempts(MOST_SENT), CallAnswer((AnsweredImage(), missing)))
    first, second = generation.image_ids
    service.left_behind(generation, call, stored=[first], listed=[first])
    service.ended(generation, status)
    if not stored:
        assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
    service.store(second)  # its process dies before it lists the image
    service.deliver(generation.id)
    assert service.record(generation).stored_ids == (first, second)
    assert service.deliver(generation.id) is None


@pytest.mark.parametrize(("sent", "status"), [(1, Status.CANCELLED), (MOST_SENT, Status.FAILED)])
def test_an_image_of_an_ended_generation_is_listed_if_only_its_writer_had_the_answer(
    service: InMemoryService, sent: int, status: Status
) -> None:
    """The writer had lost its claim. The owner met the cancellation before it sent the call again, or failed to."""
    generation = service.admitted()
    answer = CallAnswer((AnsweredImage("https://x.example"),))
    service.left_behind(generation, UpstreamCall((), attempts(sent), answer))
    service.ended(generation, status)
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
    service.store(*generation.image_ids)  # its writer cannot list the image
    service.now += LONGEST_WRITER_SECONDS
    assert service.deliver(generation.id) is None
    assert service.record(generation).stored_ids == generation.image_ids


def test_a_message_for_an_ended_generation_is_received_again_if_s3_fails(service: InMemoryService) -> None:
    generation = service.admitted()
    service.left_behind(generation, UpstreamCall((), attempts(1)), stored=generation.image_ids)
    service.ended(generation, Status.FAILED)
    service.images.failures_to_find.append(NOT_STORED)
    with pytest.raises(errors.ImageStorageError):
        service.deliver(generation.id)
    assert service.deliver(generation.id) is None
    assert service.record(generation).stored_ids == generation.image_ids


@EACH_MESSAGE
def test_a_message_without_a_record_is_dropped_at_its_first_receipt(service: InMemoryService, by: By) -> None:
    assert by(service, NO_ID) is None
    assert service.queue.sent == []


@EACH_MESSAGE
def test_a_message_for_a_deleted_generation_deletes_its_images_or_is_retried(service: InMemoryService, by: By) -> None:
    generation = service.admitted(n=2)
    tombstone = service.buried(generation)
    service.store(*generation.image_ids)
    before(service.images, "delete", raising(NOT_STORED, NOT_STORED))
    with pytest.raises(errors.ImageStorageError):
        by(service, generation.id)
    assert sorted(service.images.saved) == sorted(generation.image_ids)
    assert by(service, generation.id) is None
    assert (service.images.saved, service.provider.calls) == ({}, [])
    assert service.records.tombstone(generation.id) == tombstone


@pytest.mark.parametrize("age", [0.0, LONGEST_WRITER_SECONDS - 1, LONGEST_WRITER_SECONDS])
def test_a_deleted_generation_is_swept_again_while_a_writer_may_live(service: InMemoryService, age: float) -> None:
    generation = service.admitted()
    service.buried(generation)
    service.now += age
    assert service.deliver(generation.id) is None
    again = [(generation.id, LONGEST_WRITER_SECONDS)] if age < LONGEST_WRITER_SECONDS else []
    assert service.queue.sent == again


def test_an_image_that_is_stored_after_the_deletion_is_deleted_by_a_later_sweep(service: InMemoryService) -> None:
    generation = service.admitted()
    service.delete(generation.id)
    service.now += service.queue.sent[-1][1]
    assert service.deliver(generation.id) is None
    service.store(*generation.image_ids)
    service.now += service.queue.sent[-1][1]
    assert service.deliver(generation.id) is None
    assert service.images.saved == {}
    assert (len(service.queue.sent), service.queue.callers) == (2, {"alice"})


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_message_is_received_again_if_records_are_unreachable(service: InMemoryService, asked_before: int) -> None:
    claimed = service.begun()
    service.records.failures.extend([None] * asked_before + ["before"])
    with pytest.raises(errors.RecordsUnavailableError):
        service.deliver(claimed.id)


# A worker takes over.


@EACH_MESSAGE
def test_the_next_message_fetches_a_known_url_and_sends_no_call(service: InMemoryService, by: By) -> None:
    claimed = service.begun()
    service.source.failures.extend([INTERRUPTED] * KEEP_TRIES)
    with pytest.raises(UnfinishedError):
        service.work(claimed, seconds=0.9)  # less than the second that a download needs
    assert (service.record(claimed).status, service.published) == (Status.IN_PROGRESS, [])
    service.now += LEASE + 1
    assert by(service, claimed.id) is None
    record = service.record(claimed)
    assert (record.status, record.stored_ids) == (Status.COMPLETED, claimed.image_ids)
    assert (len(service.provider.calls), record.repeated_calls, service.used) == (1, 0, {1})


@pytest.mark.parametrize(
    ("sent", "repeat_unknown", "code"),
    [(MOST_SENT, True, UNKNOWN), (1, False, UNKNOWN), (0, True, errors.ImageStorageError.code)],
    ids=["sent too often", "not to be repeated", "storing broke off"],
)
def test_a_failed_generation_is_looked_at_again_while_an_image_may_still_be_stored(
    service: InMemoryService, sent: int, repeat_unknown: bool, code: str
) -> None:
    service.repeat_unknown = repeat_unknown
    service.images.failures.extend([errors.ImageStorageInterruptedError("no")] * KEEP_TRIES)
    generation = service.admitted(response_format="b64_json")
    service.left_behind(generation, UpstreamCall((), attempts(sent)))
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
    service.now += 100
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS - 100
    service.images.failures.clear()
    service.store(*generation.image_ids)  # its writer dies before it lists the image
    service.now += LONGEST_WRITER_SECONDS - 100
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)
    assert (failure_of(service, generation).code, len(service.provider.calls)) == (code, 0 if sent else 1)


# The heartbeat.


def heartbeats() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"]


@pytest.mark.parametrize("failure", [OSError("no"), errors.RecordsUnavailableError("no")])
def test_a_heartbeat_continues_after_failures_and_stops_with_the_block(failure: Exception) -> None:
    beats: list[str] = []
    fail, enough = raising(failure, failure), threading.Event()

    def beat() -> None:
        beats.append("beat")
        fail()
        enough.set()

    with suppress(KeyError), heartbeat(3 * BEAT_SECONDS, beat):
        assert enough.wait(SECONDS)
        raise FAULT
    assert len(beats) >= 3
    assert heartbeats() == []


def test_a_heartbeat_stops_if_the_claim_is_lost() -> None:
    beats: list[str] = []

    def beat() -> None:
        beats.append("beat")
        raise LostClaimError

    with heartbeat(3 * BEAT_SECONDS, beat):
        until(lambda: not heartbeats(), what="the end of the heartbeat")
    assert beats == ["beat"]


def test_a_heartbeat_renews_the_lease_and_extends_visibility_during_an_upstream_call(service: InMemoryService) -> None:
    service.heartbeat, service.lease = heartbeat, 3 * BEAT_SECONDS
    generation = service.admitted()

    def call() -> None:
        service.now += 1000
        beats = len(service.visibility)
        until(lambda: len(service.visibility) >= beats + 3, what="three beats")  # one may be from before the call

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert service.record(generation).lease_until == service.now + service.lease
    assert set(service.visibility) == {service.lease}
    assert heartbeats() == []


def test_a_beat_does_not_extend_visibility_if_the_claim_is_lost(service: InMemoryService) -> None:
    generation = service.admitted()

    def call() -> None:
        service.claimed(generation)
        assert service.beat
        with pytest.raises(LostClaimError):
            service.beat()

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert (len(service.provider.calls), service.visibility) == (1, [])


def test_a_beat_extends_visibility_for_a_cancelled_generation_during_its_call(service: InMemoryService) -> None:
    """The message is received again only when the image is stored or its writer is dead."""
    generation = service.admitted()

    def call() -> None:
        service.cancel(generation.id)
        assert service.beat
        service.beat()

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert service.visibility == [LEASE]
    assert service.record(generation).lease_until == 0  # released with the work


# Ends.


@pytest.mark.parametrize(
    ("failures", "codes"),
    [
        ([errors.PromptRejectedError("no", code="content_policy_violation")], ["content_policy_violation"]),
        ([FAILED], ["upstream_failed"]),
        ([FAULT], ["internal_error"]),  # possibly after the request was sent
        ([None, REFUSED, None], ["partial_generation", "upstream_refused_request"]),
    ],
    ids=["refused", "failed", "fault", "part"],
)
def test_a_failure_ends_the_record_with_its_cause_and_is_published(
    service: InMemoryService, failures: list[Exception | None], codes: list[str]
) -> None:
    generation = service.admitted(n=len(failures))
    service.provider.failures.extend(failures)
    service.now += 3
    assert service.deliver(generation.id) is None
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, record.completed_at) == (Status.FAILED, NOW + 3)
    assert len(record.stored_ids) == failures.count(None)
    assert [each.code for each in (failure, failure.cause) if each] == codes
    assert [(each.id, each.failure) for each in service.bus.ended] == [(generation.id, failure)]


def test_a_fault_outside_the_upstream_call_leaves_the_generation_to_the_next_worker(service: InMemoryService) -> None:
    before(service, "large_answer", raising(FAULT))
    generation = service.admitted(response_format="b64_json")
    with pytest.raises(KeyError):
        service.deliver(generation.id)
    assert (service.record(generation).status, service.record(generation).failure) == (Status.IN_PROGRESS, None)
    service.now += LEASE + 1
    assert service.deliver(generation.id) is None
    assert (service.record(generation).status, len(service.provider.calls)) == (Status.COMPLETED, 1)


@EACH_MESSAGE
@pytest.mark.parametrize("fails", [before, after])
def test_an_end_that_cannot_be_written_is_left_to_the_next_message(
    service: InMemoryService, fails: Callable[..., None], by: By
) -> None:
    end = Status.FAILED if by is InMemoryService.give_up else Status.COMPLETED
    fails(service.records, "end", raising(errors.RecordsUnavailableError("no")))
    generation = service.admitted()
    with pytest.raises(errors.RecordsUnavailableError):
        by(service, generation.id)
    assert service.record(generation).status is (end if fails is after else Status.IN_PROGRESS)
    assert service.published == []
    service.now += LEASE + 1
    assert by(service, generation.id) is None
    assert service.published == [(generation.id, end)]
    assert len(service.images.saved) == len(service.provider.calls) == (end is Status.COMPLETED)


@pytest.mark.parametrize("by", [*BY_MESSAGE, by_first_worker], ids=["deliver", "give_up", "first worker"])
@pytest.mark.parametrize(("when", "published"), [("before", 1), ("after", 2)])
def test_the_next_message_publishes_an_end_that_could_not_be_published(
    service: InMemoryService, by: By, when: Any, published: int
) -> None:
    generation = service.admitted()
    service.bus.failures.append(when)
    with pytest.raises(errors.RecordsUnavailableError):
        by(service, generation.id)
    status = Status.FAILED if by is InMemoryService.give_up else Status.COMPLETED
    assert (service.record(generation).status, service.record(generation).published) == (status, False)
    assert service.deliver(generation.id) is None
    assert service.published == [(generation.id, status)] * published
    assert len(service.provider.calls) == (status is Status.COMPLETED)


# Cancellations, takeovers and deletions during an upstream call.


def test_a_cancellation_during_a_call_stops_further_calls_and_keeps_its_image(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    service.provider.during_call = lambda: service.cancel(generation.id)
    with ThreadPoolExecutor(1) as service.pool:
        for _ in range(2):
            assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (len(service.provider.calls), record.status, service.used) == (1, Status.CANCELLED, {1})
    assert record.stored_ids == generation.image_ids[:1]


def cancelled(service: InMemoryService, generation: Generation) -> None:
    service.cancel(generation.id)


def cancelled_unpublished(service: InMemoryService, generation: Generation) -> None:
    service.records.cancel(generation.id, now=service.now)


def given_up(service: InMemoryService, generation: Generation) -> None:
    service.now += LEASE + 1
    assert service.give_up(generation.id) == LONGEST_WRITER_SECONDS


Meanwhile = Callable[[InMemoryService, Generation], None]


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
@pytest.mark.parametrize(
    ("meanwhile", "status"),
    [(cancelled, Status.CANCELLED), (cancelled_unpublished, Status.CANCELLED), (given_up, Status.FAILED)],
)
def test_an_image_that_arrives_after_the_end_is_kept_and_the_end_is_published_once(
    service: InMemoryService, meanwhile: Meanwhile, status: Status, response_format: ResponseFormat
) -> None:
    generation = service.admitted(response_format=response_format)
    service.provider.during_call = lambda: meanwhile(service, generation)
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (status, generation.image_ids)
    assert list(service.images.saved) == list(generation.image_ids)
    assert record.calls[0].answer is not None
    assert (len(service.provider.calls), service.used) == (1, {1})
    assert service.published == [(generation.id, status)]


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_a_worker_that_lost_its_claim_lists_its_image_and_leaves_lease_and_end_to_the_owner(
    service: InMemoryService, response_format: ResponseFormat
) -> None:
    generation = service.admitted(response_format=response_format)
    claims: list[Generation] = []
    service.provider.during_call = lambda: claims.append(service.claimed(generation))
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.owner, record.lease_until) == (claims[0].owner, service.now + LEASE)
    assert (record.status, record.stored_ids) == (Status.IN_PROGRESS, generation.image_ids)
    assert (len(service.provider.calls), service.used, service.published) == (1, {1}, [])


@pytest.mark.parametrize("meanwhile", [cancelled, given_up])
def test_a_refusal_after_the_end_returns_quota_once(service: InMemoryService, meanwhile: Meanwhile) -> None:
    generation = service.admitted()
    used: list[set[int]] = []

    def call() -> None:
        meanwhile(service, generation)
        used.append(service.used)

    service.provider.during_call = call
    service.provider.failures.append(REFUSED)
    for _ in range(3):
        assert service.deliver(generation.id) is None
    assert (used, service.used) == ([{1}], {0})
    assert len(service.published) == 1


@pytest.mark.parametrize(("n", "response_format"), [(1, "url"), (3, "b64_json")])
def test_a_writer_deletes_the_images_that_it_stored_after_a_deletion(
    service: InMemoryService, n: int, response_format: ResponseFormat
) -> None:
    generation = service.admitted(n=n, response_format=response_format)
    before(service.images, "save", lambda *_, **__: service.delete(generation.id), once=True)
    assert service.deliver(generation.id) is None
    assert service.images.tries
    assert service.images.saved == {}
    assert service.records.get(generation.id) is None


def test_no_image_is_fetched_if_the_generation_is_deleted_during_its_call(service: InMemoryService) -> None:
    generation = service.admitted()
    service.provider.during_call = lambda: service.delete(generation.id)
    assert service.deliver(generation.id) is None
    assert (service.source.opened, service.images.saved) == ([], {})


# Large answers.


def large(_: Generation) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
    return nullcontext((8, iter([b'{"a": ', b"1}"])))


def test_a_large_answer_is_made_of_the_whole_record_and_stored_before_the_end(service: InMemoryService) -> None:
    service.large_answer = large
    judged: list[Generation] = []
    at_that_time: list[Status] = []
    generation = service.admitted(n=3, response_format="b64_json")
    before(service, "large_answer", judged.append)
    before(service.images, "save_answer", lambda *_: at_that_time.append(service.record(generation).status))
    assert service.deliver(generation.id) is None
    assert [(each.id, each.stored_ids) for each in judged] == [(generation.id, generation.image_ids)]
    assert at_that_time == [Status.IN_PROGRESS]
    assert service.images.answers == {generation.id: b'{"a": 1}'}
    assert service.record(generation).status is Status.COMPLETED


def test_a_large_answer_that_cannot_be_stored_fails_the_generation_and_keeps_images(service: InMemoryService) -> None:
    service.large_answer = large
    before(service.images, "save_answer", raising(NOT_STORED))
    generation = service.admitted(response_format="b64_json")
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert failure_of(service, generation).money_spent
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)


def test_a_large_answer_that_is_stored_after_a_deletion_is_deleted_again(service: InMemoryService) -> None:
    service.large_answer = large
    generation = service.admitted(response_format="b64_json")
    before(service.images, "save_answer", lambda *_: service.delete(generation.id))
    assert service.deliver(generation.id) is None
    assert (service.images.saved, service.images.answers) == ({}, {})


@pytest.mark.parametrize("gone", [InMemoryService.cancel, InMemoryService.delete], ids=["cancelled", "deleted"])
def test_no_large_answer_is_stored_for_a_cancelled_or_deleted_generation(
    service: InMemoryService, gone: Callable[[InMemoryService, str], object]
) -> None:
    """It happens before the whole record is read."""
    service.large_answer = large
    generation = service.admitted(response_format="b64_json")
    before(service.records, "get", lambda _: gone(service, generation.id), once=True)
    assert service.deliver(generation.id) is None
    assert service.images.answers == {}
    assert bool(service.images.saved) is (gone is InMemoryService.cancel)


# Dead letters.


@pytest.mark.parametrize(("sent", "used"), [(None, 0), (0, 0), (1, 1), (2, 1)])
def test_a_dead_letter_fails_its_generation_and_sends_no_call(
    service: InMemoryService, sent: int | None, used: int
) -> None:
    """Its quota is returned only if no call was sent. `None`: no worker ever claimed it."""
    generation = service.admitted()
    if sent is not None:
        service.left_behind(generation, UpstreamCall((), attempts(sent)))
    assert service.give_up(generation.id) == (LONGEST_WRITER_SECONDS if sent else None)
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, failure.code) == (Status.FAILED, errors.AbandonedError.code)
    assert (record.completed_at, service.provider.calls, service.used) == (service.now, [], {used})
    assert failure.money_spent


def test_a_dead_letter_fetches_and_lists_every_paid_image_without_a_call(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    first, second, _ = generation.image_ids
    known, stored, other = (
        UpstreamCall((), attempts(1), service.answer("known")),
        UpstreamCall((), attempts(1)),
        UpstreamCall((), attempts(1), service.answer("other")),
    )
    service.left_behind(generation, known, stored, other, stored=[second])
    assert service.give_up(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.failure) == (Status.COMPLETED, None)
    assert record.stored_ids == generation.image_ids
    assert service.images.saved[first] == ("image/png", png("known"))
    assert (service.provider.calls, record.repeated_calls) == ([], 0)


def test_a_dead_letter_fails_its_generation_with_the_part_that_can_be_fetched(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    service.left_behind(
        generation, UpstreamCall((), attempts(1), service.answer("known")), UpstreamCall((), attempts(1))
    )
    assert service.give_up(generation.id) == LONGEST_WRITER_SECONDS
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids[:1])
    assert failure.cause is not None
    assert (failure.code, failure.cause.code) == (errors.PartialGenerationError.code, errors.AbandonedError.code)
    assert (service.provider.calls, service.used) == ([], {2})  # the third was never sent


@pytest.mark.parametrize("failure", [None, INTERRUPTED], ids=["fetched", "no time"])
def test_a_dead_letter_is_received_again_if_its_generation_is_cancelled(
    service: InMemoryService, failure: Exception | None
) -> None:
    generation = service.admitted()
    service.left_behind(generation, UpstreamCall((), attempts(1), service.answer("known")))
    service.source.failures.extend([failure] * KEEP_TRIES)
    before(service.source, "open", lambda *_: service.cancel(generation.id))
    assert service.give_up(generation.id, seconds=0.9) == 1.0
    assert service.published == [(generation.id, Status.CANCELLED)]


# Quota.


@pytest.mark.parametrize(
    ("failures", "used"),
    [
        ([None, None, None], 3),
        ([None, REJECTED, None], 2),
        ([REFUSED, None, REJECTED], 1),
        ([REJECTED, FAILED, None], 2),
        ([REJECTED] * 3, 0),
        ([FAILED] * 3, 3),
        ([FAULT, REJECTED, None], 2),
    ],
)
def test_quota_is_returned_once_for_images_that_were_certainly_not_charged(
    service: InMemoryService, failures: list[Exception | None], used: int
) -> None:
    service.provider.failures.extend(failures)
    generation = service.admitted(n=3)
    for _ in range(3):
        assert service.deliver(generation.id) is None
    assert service.used == {used}


# An operator's retry.


def test_a_retry_pays_only_for_missing_images(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    service.provider.failures += [None, REFUSED, FAILED]
    service.deliver(generation.id)
    assert service.used == {2}
    waiting = service.retry(generation.id)
    assert waiting is not None
    assert (waiting.status, waiting.failure, service.used) == (Status.QUEUED, None, {3})
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.COMPLETED, generation.image_ids)
    assert (len(service.provider.calls), sum(call.sent for call in record.calls)) == (5, 5)
    assert service.used == {3}
    assert service.published == [(generation.id, Status.FAILED), (generation.id, Status.COMPLETED)]


def test_each_retry_takes_quota_of_its_day_again_and_each_refusal_returns_it_once(service: InMemoryService) -> None:
    generation = service.admitted()
    for day in (1, 2, 3):
        service.provider.failures.append(REJECTED)
        for _ in range(2):
            service.deliver(generation.id)
        assert service.used == {0}
        service.now += 24 * 3600
        service.retry(generation.id)
        assert list(service.counters.used.values()) == [0, 0] * day + [1, 1]
    assert service.deliver(generation.id) is None
    assert service.record(generation).status is Status.COMPLETED
    assert list(service.counters.used.values()) == [0, 0] * 3 + [1, 1]


def test_the_safety_net_starts_a_retry_whose_message_is_lost(service: InMemoryService) -> None:
    generation = service.admitted()
    service.provider.failures.append(FAILED)
    service.deliver(generation.id)
    service.queue.failures += [None, "before"]
    assert service.retry(generation.id) is not None
    assert service.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES)]
    assert service.deliver(generation.id) is None
    assert service.record(generation).status is Status.COMPLETED


def test_a_retry_fetches_an_image_that_the_dead_letter_had_no_time_to_fetch(service: InMemoryService) -> None:
    generation = service.admitted()
    service.left_behind(generation, UpstreamCall((), attempts(1), service.answer("cat")))
    service.source.failures.extend([INTERRUPTED] * KEEP_TRIES)
    assert service.give_up(generation.id, seconds=0.9) is None
    assert service.record(generation).status is Status.FAILED
    assert failure_of(service, generation).code == errors.AbandonedError.code
    assert service.retry(generation.id) is not None
    assert service.deliver(generation.id) is None
    assert (service.record(generation).status, service.provider.calls) == (Status.COMPLETED, [])


def test_a_failure_is_not_retried_before_it_is_published(service: InMemoryService) -> None:
    generation = service.admitted()
    service.provider.failures.append(REJECTED)
    service.bus.failures.append("before")
    with pytest.raises(errors.RecordsUnavailableError):
        service.deliver(generation.id)
    assert service.retry(generation.id) is None
    assert (service.queue.sent, service.record(generation).status) == ([], Status.FAILED)
    assert service.deliver(generation.id) is None
    assert service.retry(generation.id) is not None


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS, Status.COMPLETED, Status.CANCELLED])
def test_only_a_failed_generation_is_retried(service: InMemoryService, status: Status) -> None:
    generation = service.admitted()
    if status is Status.IN_PROGRESS:
        service.claimed(generation)
    elif status is not Status.QUEUED:
        service.ended(generation, status)
        service.deliver(generation.id)
    record, used = service.record(generation), service.used
    assert service.retry(generation.id) is None
    assert (service.record(generation), service.queue.sent, service.used) == (record, [], used)
