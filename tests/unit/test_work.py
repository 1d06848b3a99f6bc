"""Work on a generation: who may, for how long, what is published of its end, and what its messages become."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.domain import errors
from imagegen.domain.failures import cost_money
from imagegen.domain.generations import Call, Failure, Generation, LostClaimError, Status, StoredImage
from imagegen.domain.images import ResponseFormat
from imagegen.usecases.generate import KEEP_TRIES, MOST_SENT, UnfinishedError
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.manage import LONGEST_WRITER_SECONDS
from imagegen.usecases.submit import SAFETY_NET_LEASES
from tests.fakes.provider import png
from tests.support.hooks import after, before, raising
from tests.support.in_memory import LEASE, NOW, InMemoryService
from tests.support.waiting import SECONDS, until

NO_ID = "gen_AAAAAAAAAAAAAAAAAAAAAA"
ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
REJECTED, RATE_LIMITED = errors.PromptRejectedError("no"), errors.UpstreamRateLimitedError("later")
FAILED, FAULT = errors.UpstreamFailedError("no"), KeyError("a fault")
INTERRUPTED, NOT_STORED = errors.ImageDownloadInterruptedError("no time"), errors.ImageStorageError("no")
BEAT_SECONDS = 0.02
UNKNOWN = "OutcomeUnknownError"

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
def test_a_message_has_its_generation_made(service: InMemoryService, n: int, response_format: ResponseFormat) -> None:
    if response_format == "url":
        service.large_answer = large  # which an answer of links never is
    generation = service.admitted(n=n, response_format=response_format)
    service.now += 7
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.completed_at, record.failure) == (Status.COMPLETED, NOW + 7, None)
    assert record.stored_ids == generation.image_ids
    assert sorted(service.images.saved) == sorted(generation.image_ids)
    assert [call.n for call in service.provider.calls] == [1] * n
    assert (record.repeated_calls, service.used, record.announced) == (0, {n}, True)
    assert service.bus.ended == [replace(record, announced=False)]
    assert service.images.answers == {}


@EACH_MESSAGE
@pytest.mark.parametrize(("left", "again"), [(60.0, 60.0), (12.5, 12.5), (0.25, 1.0), (0.0, 1.0)])
def test_a_message_that_meets_a_live_lease_comes_again_when_the_lease_ends(
    service: InMemoryService, left: float, again: float, by: By
) -> None:
    claimed = service.begun()
    service.now += LEASE - left
    assert by(service, claimed.id) == again
    assert service.record(claimed) == claimed
    assert (service.provider.calls, service.published) == ([], [])


def test_a_message_that_comes_twice_at_once_is_worked_on_once(service: InMemoryService) -> None:
    generation = service.admitted()
    again: list[float | None] = []
    service.provider.during_call = lambda: again.append(service.deliver(generation.id))
    assert service.deliver(generation.id) is None
    assert again == [LEASE]
    assert (len(service.provider.calls), service.record(generation).status) == (1, Status.COMPLETED)


@EACH_MESSAGE
@pytest.mark.parametrize("status", ENDS)
def test_a_message_for_what_has_ended_publishes_the_end_once_and_does_no_more(
    service: InMemoryService, status: Status, by: By
) -> None:
    """The process that ended it died right after."""
    generation = service.admitted()
    service.left_behind(generation, Call((), sent=1))
    ended = service.ended(generation, status)
    for _ in range(2):
        assert by(service, generation.id) is None
        assert service.published == [(generation.id, status)]
    assert service.record(generation) == replace(ended, announced=True)
    assert service.provider.calls == []


def test_a_message_for_what_is_cancelled_comes_again_while_a_worker_may_still_store_its_images(
    service: InMemoryService,
) -> None:
    claimed = service.begun()
    service.noted(claimed, Call((), sent=1))
    service.cancel(claimed.id)
    service.now += 20
    assert service.deliver(claimed.id) == LEASE - 20
    service.store(*claimed.image_ids)  # and the worker dies before it can note it
    service.now += LEASE
    assert service.deliver(claimed.id) is None
    assert service.record(claimed).stored_ids == claimed.image_ids


@EACH_MESSAGE
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_unlisted_images_of_an_ended_generation_are_listed(service: InMemoryService, status: Status, by: By) -> None:
    generation = service.admitted(n=3)
    first, second, _ = generation.image_ids
    service.left_behind(generation, Call((), sent=1), Call((), sent=1), stored=[first])
    service.ended(generation, status)
    assert by(service, generation.id) is None
    assert service.record(generation).stored_ids == (first,)
    assert service.images.looked_for == [first, second]  # the third was never asked for


def test_while_it_is_unknown_what_is_stored_of_an_ended_one_its_message_comes_again(
    service: InMemoryService,
) -> None:
    generation = service.admitted()
    service.left_behind(generation, Call((), sent=1), stored=generation.image_ids)
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
def test_a_message_for_what_was_deleted_deletes_what_is_left_or_comes_again(service: InMemoryService, by: By) -> None:
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


def test_an_image_that_a_writer_stores_after_the_deletion_before_it_dies_is_swept(service: InMemoryService) -> None:
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
def test_if_records_cannot_be_asked_the_message_comes_again(service: InMemoryService, asked_before: int) -> None:
    claimed = service.begun()
    service.records.failures.extend([None] * asked_before + ["before"])
    with pytest.raises(errors.RecordsUnavailableError):
        service.deliver(claimed.id)


# A worker takes over.


@pytest.mark.parametrize(
    ("sent", "answered", "stored", "bought"),
    [(0, False, False, 1), (1, True, False, 0), (1, False, True, 0), (1, False, False, 1)],
    ids=["not begun", "answered", "stored", "unknown"],
)
def test_what_a_dead_worker_left_is_finished_and_only_what_is_not_there_is_bought(
    service: InMemoryService, sent: int, answered: bool, stored: bool, bought: int
) -> None:
    generation = service.admitted()
    (image_id,) = generation.image_ids
    call = Call((), sent, answer=service.answer("cat") if answered else None)
    service.left_behind(generation, call, stored=[image_id] if stored else [])
    dead = service.record(generation).owner
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.repeated_calls) == (Status.COMPLETED, int(sent and bought))
    assert record.owner != dead
    assert len(service.provider.calls) == bought
    content = png("cat" if answered else image_id if stored else "1-1")
    assert service.images.saved == {image_id: ("image/png", content)}
    assert record.stored == {image_id: StoredImage("image/png", len(content))}
    if answered:
        assert record.revised_prompt(image_id) == "a nicer cat"


@EACH_MESSAGE
def test_a_url_that_there_was_no_time_to_fetch_is_fetched_by_the_next_message_and_not_bought_again(
    service: InMemoryService, by: By
) -> None:
    claimed = service.begun()
    service.source.failures.extend([INTERRUPTED] * KEEP_TRIES)
    with pytest.raises(UnfinishedError):
        service.work(claimed, seconds=0.9)  # under the second that a download is given
    assert (service.record(claimed).status, service.published) == (Status.IN_PROGRESS, [])
    service.now += LEASE + 1
    assert by(service, claimed.id) is None
    record = service.record(claimed)
    assert (record.status, record.stored_ids) == (Status.COMPLETED, claimed.image_ids)
    assert (len(service.provider.calls), record.repeated_calls, service.used) == (1, 0, {1})


@pytest.mark.parametrize(
    ("sent", "repeat_unknown", "kind"),
    [(MOST_SENT, True, UNKNOWN), (1, False, UNKNOWN), (0, True, "ImageStorageInterruptedError")],
    ids=["sent too often", "not to be repeated", "storing broke off"],
)
def test_what_fails_although_an_image_may_still_be_stored_is_looked_at_again_and_lists_it(
    service: InMemoryService, sent: int, repeat_unknown: bool, kind: str
) -> None:
    service.repeat_unknown = repeat_unknown
    service.images.failures.extend([errors.ImageStorageInterruptedError("no")] * KEEP_TRIES)
    generation = service.admitted(response_format="b64_json")
    service.left_behind(generation, Call((), sent))
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
    service.now += 100
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS - 100
    service.images.failures.clear()
    service.store(*generation.image_ids)  # and its writer dies before it can note it
    service.now += LONGEST_WRITER_SECONDS - 100
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)
    assert (failure_of(service, generation).kind, len(service.provider.calls)) == (kind, 0 if sent else 1)


def test_a_repeated_call_that_is_refused_leaves_it_unknown_whether_the_first_was_paid(service: InMemoryService) -> None:
    generation = service.admitted()
    service.left_behind(generation, Call((), sent=1))
    service.provider.failures.append(RATE_LIMITED)
    assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
    assert (service.record(generation).calls[0].refused, service.used) == (1, {1})
    assert cost_money(failure_of(service, generation))


# The heartbeat.


def hearts() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"]


@pytest.mark.parametrize("failure", [OSError("no"), errors.RecordsUnavailableError("no")])
def test_a_heart_beats_on_after_failures_and_stops_with_the_block(failure: Exception) -> None:
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
    assert hearts() == []


def test_a_heart_stops_if_the_claim_is_lost() -> None:
    beats: list[str] = []

    def beat() -> None:
        beats.append("beat")
        raise LostClaimError

    with heartbeat(3 * BEAT_SECONDS, beat):
        until(lambda: not hearts(), what="the end of the heartbeat")
    assert beats == ["beat"]


def test_a_heartbeat_renews_the_lease_and_holds_the_message_while_the_upstream_works(service: InMemoryService) -> None:
    service.heartbeat, service.lease = heartbeat, 3 * BEAT_SECONDS
    generation = service.admitted()

    def call() -> None:
        service.now += 1000
        beats = len(service.held)
        until(lambda: len(service.held) >= beats + 3, what="three beats")  # one may be of the time before

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert service.record(generation).lease_until == service.now + service.lease
    assert set(service.held) == {service.lease}
    assert hearts() == []


def test_a_beat_holds_no_message_if_the_claim_is_lost(service: InMemoryService) -> None:
    generation = service.admitted()

    def call() -> None:
        service.claimed(generation)
        assert service.beat
        with pytest.raises(LostClaimError):
            service.beat()

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert (len(service.provider.calls), service.held) == (1, [])


def test_a_beat_holds_the_message_of_what_is_cancelled_while_its_upstream_call_runs(service: InMemoryService) -> None:
    """Its message comes again only when the image is stored, or its writer is dead."""
    generation = service.admitted()

    def call() -> None:
        service.cancel(generation.id)
        assert service.beat
        service.beat()

    service.provider.during_call = call
    assert service.deliver(generation.id) is None
    assert service.held == [LEASE]
    assert service.record(generation).lease_until == 0  # ended with the work


def test_work_without_a_message_holds_none(service: InMemoryService) -> None:
    claimed = service.begun()
    service.provider.during_call = lambda: service.beat and service.beat()
    assert service.work(claimed)
    assert service.record(claimed).status is Status.COMPLETED
    assert "renew" in service.records.asked
    assert (service.queue.held, service.held) == ([], [])


# Ends.


@pytest.mark.parametrize(
    ("failures", "kinds"),
    [
        ([errors.PromptRejectedError("no", code="content_policy_violation")], ["PromptRejectedError"]),
        ([FAILED], ["UpstreamFailedError"]),
        ([FAULT], ["InternalError"]),  # it may have come after the request was sent
        ([None, RATE_LIMITED, None], ["PartialGenerationError", "UpstreamRateLimitedError"]),
    ],
    ids=["refused", "failed", "fault", "part"],
)
def test_a_failure_ends_the_record_with_its_cause_and_is_published(
    service: InMemoryService, failures: list[Exception | None], kinds: list[str]
) -> None:
    generation = service.admitted(n=len(failures))
    service.provider.failures.extend(failures)
    service.now += 3
    assert service.deliver(generation.id) is None
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, record.completed_at) == (Status.FAILED, NOW + 3)
    assert len(record.stored_ids) == failures.count(None)
    assert [each.kind for each in (failure, failure.cause) if each] == kinds
    assert failure.code == getattr(failures[0], "code", None)
    assert [(each.id, each.failure) for each in service.bus.ended] == [(generation.id, failure)]


def test_a_fault_outside_of_the_upstream_call_leaves_the_generation_to_the_next(service: InMemoryService) -> None:
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
def test_an_end_that_cannot_be_written_is_raised_and_left_to_the_next(
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
def test_an_end_that_could_not_be_published_is_published_by_the_next_message(
    service: InMemoryService, by: By, when: Any, published: int
) -> None:
    generation = service.admitted()
    service.bus.failures.append(when)
    with pytest.raises(errors.RecordsUnavailableError):
        by(service, generation.id)
    status = Status.FAILED if by is InMemoryService.give_up else Status.COMPLETED
    assert (service.record(generation).status, service.record(generation).announced) == (status, False)
    assert service.deliver(generation.id) is None
    assert service.published == [(generation.id, status)] * published
    assert len(service.provider.calls) == (status is Status.COMPLETED)


# Cancelled, taken over or deleted while the upstream works.


def test_cancelling_while_the_upstream_works_sends_no_further_call_and_keeps_the_image_that_comes(
    service: InMemoryService,
) -> None:
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
def test_an_image_that_still_comes_is_kept_and_listed_and_the_end_is_published_once(
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
def test_who_lost_the_claim_to_another_worker_lists_its_image_and_leaves_the_lease_and_the_end_to_it(
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
def test_a_refusal_that_comes_after_the_end_returns_quota_once(service: InMemoryService, meanwhile: Meanwhile) -> None:
    generation = service.admitted()
    used: list[set[int]] = []

    def call() -> None:
        meanwhile(service, generation)
        used.append(service.used)

    service.provider.during_call = call
    service.provider.failures.append(RATE_LIMITED)
    for _ in range(3):
        assert service.deliver(generation.id) is None
    assert (used, service.used) == ([{1}], {0})
    assert len(service.published) == 1


@pytest.mark.parametrize(("n", "response_format"), [(1, "url"), (3, "b64_json")])
def test_what_is_stored_after_a_deletion_is_deleted_by_its_writer(
    service: InMemoryService, n: int, response_format: ResponseFormat
) -> None:
    generation = service.admitted(n=n, response_format=response_format)
    before(service.images, "save", lambda *_: service.delete(generation.id), once=True)
    assert service.deliver(generation.id) is None
    assert service.images.tries
    assert service.images.saved == {}
    assert service.records.get(generation.id) is None


def test_nothing_is_fetched_for_what_was_deleted_while_the_upstream_worked(service: InMemoryService) -> None:
    generation = service.admitted()
    service.provider.during_call = lambda: service.delete(generation.id)
    assert service.deliver(generation.id) is None
    assert (service.source.opened, service.images.saved) == ([], {})


# Large answers.


def large(_: Generation) -> tuple[int, Iterator[bytes]]:
    return 8, iter([b'{"a": ', b"1}"])


def test_a_large_answer_is_judged_by_the_whole_record_and_stored_before_its_end(
    service: InMemoryService,
) -> None:
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


def test_a_large_answer_that_cannot_be_stored_fails_the_work_and_keeps_its_images(
    service: InMemoryService,
) -> None:
    service.large_answer = large
    before(service.images, "save_answer", raising(NOT_STORED))
    generation = service.admitted(response_format="b64_json")
    assert service.deliver(generation.id) is None
    record = service.record(generation)
    assert cost_money(failure_of(service, generation))
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)


def test_a_large_answer_that_is_stored_after_a_deletion_is_deleted_again(service: InMemoryService) -> None:
    service.large_answer = large
    generation = service.admitted(response_format="b64_json")
    before(service.images, "save_answer", lambda *_: service.delete(generation.id))
    assert service.deliver(generation.id) is None
    assert (service.images.saved, service.images.answers) == ({}, {})


@pytest.mark.parametrize("gone", [InMemoryService.cancel, InMemoryService.delete], ids=["cancelled", "deleted"])
def test_no_large_answer_is_stored_for_what_is_cancelled_or_deleted(
    service: InMemoryService, gone: Callable[[InMemoryService, str], object]
) -> None:
    """The caller is faster than the look at the whole record."""
    service.large_answer = large
    generation = service.admitted(response_format="b64_json")
    before(service.records, "get", lambda _: gone(service, generation.id), once=True)
    assert service.deliver(generation.id) is None
    assert service.images.answers == {}
    assert bool(service.images.saved) is (gone is InMemoryService.cancel)


# Dead letters.


@pytest.mark.parametrize(("sent", "used"), [(None, 0), (0, 0), (1, 1), (2, 1)])
def test_what_every_attempt_died_on_fails_unbought(service: InMemoryService, sent: int | None, used: int) -> None:
    """Its quota is returned only if nothing was sent. None: nobody ever claimed it."""
    generation = service.admitted()
    if sent is not None:
        service.left_behind(generation, Call((), sent))
    assert service.give_up(generation.id) == (LONGEST_WRITER_SECONDS if sent else None)
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, failure.kind) == (Status.FAILED, "AbandonedError")
    assert (record.completed_at, service.provider.calls, service.used) == (service.now, [], {used})
    assert cost_money(failure)


def test_what_is_known_to_be_paid_for_is_fetched_and_listed_and_nothing_is_bought(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    first, second, _ = generation.image_ids
    known, stored, other = Call((), 1, 0, service.answer("known")), Call((), 1), Call((), 1, 0, service.answer("other"))
    service.left_behind(generation, known, stored, other, stored=[second])
    assert service.give_up(generation.id) is None
    record = service.record(generation)
    assert (record.status, record.failure) == (Status.COMPLETED, None)
    assert record.stored_ids == generation.image_ids
    assert service.images.saved[first] == ("image/png", png("known"))
    assert (service.provider.calls, record.repeated_calls) == ([], 0)


def test_what_can_be_fetched_in_part_is_given_up_with_this_part(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    service.left_behind(generation, Call((), 1, 0, service.answer("known")), Call((), 1))
    assert service.give_up(generation.id) == LONGEST_WRITER_SECONDS
    record, failure = service.record(generation), failure_of(service, generation)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids[:1])
    assert failure.cause is not None
    assert (failure.kind, failure.cause.kind) == ("PartialGenerationError", "AbandonedError")
    assert (service.provider.calls, service.used) == ([], {2})  # the third was never sent


@pytest.mark.parametrize("failure", [None, INTERRUPTED], ids=["fetched", "no time"])
def test_what_is_cancelled_when_given_up_comes_again(service: InMemoryService, failure: Exception | None) -> None:
    generation = service.admitted()
    service.left_behind(generation, Call((), 1, 0, service.answer("known")))
    service.source.failures.extend([failure] * KEEP_TRIES)
    before(service.source, "open", lambda *_: service.cancel(generation.id))
    assert service.give_up(generation.id, seconds=0.9) == 1.0
    assert service.published == [(generation.id, Status.CANCELLED)]


# What was reserved.


@pytest.mark.parametrize(
    ("failures", "used"),
    [
        ([None, None, None], 3),
        ([None, REJECTED, None], 2),
        ([RATE_LIMITED, None, REJECTED], 1),
        ([REJECTED, FAILED, None], 2),
        ([REJECTED] * 3, 0),
        ([FAILED] * 3, 3),
        ([FAULT, REJECTED, None], 2),
    ],
)
def test_what_certainly_was_not_charged_is_returned_once_and_nothing_else(
    service: InMemoryService, failures: list[Exception | None], used: int
) -> None:
    service.provider.failures.extend(failures)
    generation = service.admitted(n=3)
    for _ in range(3):
        assert service.deliver(generation.id) is None
    assert service.used == {used}


# An operator's retry.


def test_a_retry_buys_only_what_is_missing(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    service.provider.failures += [None, RATE_LIMITED, FAILED]
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


def test_each_retry_allows_one_more_sending_and_all_are_counted(service: InMemoryService) -> None:
    generation = service.admitted()
    for retries, sent in enumerate((2, 3, 4)):
        assert not retries or service.retry(generation.id)
        while (claimed := service.claimed(generation)).calls[0].sent < sent:  # as often as workers die in it
            assert claimed.owner
            service.records.save_sending(claimed.id, claimed.owner, 0, claimed.calls[0].sent + 1)
        service.now += LEASE + 1
        assert service.deliver(generation.id) == LONGEST_WRITER_SECONDS
        record = service.record(generation)
        assert (failure_of(service, generation).kind, record.calls[0].sent) == (UNKNOWN, sent)
        assert (record.retries, record.repeated_calls) == (retries, sent - 1)
    assert service.provider.calls == []
    assert service.retry(generation.id) is not None
    assert service.deliver(generation.id) is None
    assert (service.record(generation).status, service.record(generation).repeated_calls) == (Status.COMPLETED, 4)
    assert (len(service.provider.calls), service.used) == (1, {1})


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


def test_a_retry_whose_message_is_lost_is_brought_by_the_safety_net(service: InMemoryService) -> None:
    generation = service.admitted()
    service.provider.failures.append(FAILED)
    service.deliver(generation.id)
    service.queue.failures += [None, "before"]
    assert service.retry(generation.id) is not None
    assert service.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES)]
    assert service.deliver(generation.id) is None
    assert service.record(generation).status is Status.COMPLETED


def test_a_retry_fetches_what_the_dead_letters_had_no_time_to_fetch(service: InMemoryService) -> None:
    generation = service.admitted()
    service.left_behind(generation, Call((), 1, 0, service.answer("cat")))
    service.source.failures.extend([INTERRUPTED] * KEEP_TRIES)
    assert service.give_up(generation.id, seconds=0.9) is None
    assert service.record(generation).status is Status.FAILED
    assert failure_of(service, generation).kind == "AbandonedError"
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
def test_only_what_has_failed_is_retried(service: InMemoryService, status: Status) -> None:
    generation = service.admitted()
    if status is Status.IN_PROGRESS:
        service.claimed(generation)
    elif status is not Status.QUEUED:
        service.ended(generation, status)
        service.deliver(generation.id)
    record, used = service.record(generation), service.used
    assert service.retry(generation.id) is None
    assert (service.record(generation), service.queue.sent, service.used) == (record, [], used)
