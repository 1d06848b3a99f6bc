"""Submission: repeated requests share a generation, and no crash loses one that was accepted."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.credentials import Caller
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    IdTakenError,
    Origin,
    Status,
    UpstreamAttempt,
    UpstreamCall,
    fingerprint,
    is_generation_id,
)
from imagegen.domain.images import ImageAction, ImageBody, ImageRequest
from imagegen.domain.inputs import GivenImage, new_upload_id
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.routes.results import MOST_HOPS
from imagegen.settings import LONGEST_WAIT_SECONDS
from imagegen.usecases.submit import KEY_SECONDS, RETRY_SECONDS, SAFETY_NET_LEASES, Submission, Submitted
from tests.fakes.input_source import FakeInputSource
from tests.support.hooks import before, raising
from tests.support.in_memory import BASE_URL, LEASE, NOW, REQUEST, InMemoryService
from tests.support.inputs import EDIT, at_hand, by_id, by_url, identified, sized
from tests.support.models import admitted

OTHER = replace(REQUEST, prompt="a dog")
KEYED, PLAIN = RetryIdentity("k"), RetryIdentity()
FIRST, SECOND, THIRD = (RetryIdentity(retry=retry) for retry in range(3))
GIVEN = "gen_" + "A" * 22
LINE = Origin("c", "batch_" + "A" * 22, 1)

# A caller repeats a request with its key, or counts its retries.
REPEATED = pytest.mark.parametrize("identities", [[KEYED] * 3, [FIRST, SECOND, THIRD]], ids=["key", "count"])


def id_of(
    service: InMemoryService, identity: RetryIdentity, request: ImageRequest = REQUEST, *, caller: str = "alice"
) -> str:
    return service.submit(identity, request, caller=caller).generation.id


def messages(service: InMemoryService) -> set[str]:
    """The generations that have a message."""
    return {generation_id for generation_id, _ in service.queue.sent}


def at_once(count: int, do: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def one(_: int) -> Any:
        barrier.wait(60)
        return do()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_a_request_becomes_a_queued_record_with_a_message(service: InMemoryService) -> None:
    submitted = service.submit()
    generation = submitted.generation
    assert (submitted.owner, submitted.attached) == (None, False)
    assert is_generation_id(generation.id)
    assert service.record(generation) == generation
    assert (generation.status, generation.caller, generation.created_at) == (Status.QUEUED, "alice", NOW)
    assert (generation.request, generation.base_url) == (REQUEST, BASE_URL)
    assert service.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES), (generation.id, 0)]
    assert service.queue.callers == {"alice"}


def test_a_request_that_is_worked_on_here_is_claimed_and_its_message_outlasts_its_lease(
    service: InMemoryService,
) -> None:
    """If this process dies, the message is received after the lease."""
    submitted = service.submit(KEYED, work_here=True)
    generation = service.record(submitted.generation)
    assert generation == submitted.generation
    assert (generation.status, generation.owner) == (Status.IN_PROGRESS, submitted.owner)
    assert generation.lease_until == NOW + LEASE
    ((sent, delay),) = service.queue.sent
    assert sent == generation.id
    assert LEASE < delay < 2 * LEASE
    assert service.records.claim(generation.id, "other", now=NOW + LEASE, lease_until=NOW + 99) is None
    assert service.records.claim(generation.id, "other", now=NOW + delay, lease_until=NOW + 99) is not None
    assert service.submit(work_here=True).owner not in (None, submitted.owner)


@pytest.mark.parametrize(
    ("identity", "work_here", "marker"),
    [(KEYED, False, ["hold"]), (FIRST, True, ["mark"]), (SECOND, False, ["attach", "mark"])],
)
def test_writes_have_one_order(
    service: InMemoryService, identity: RetryIdentity, work_here: bool, marker: list[str]
) -> None:
    log = service.keys.asked = service.records.asked
    before(service.counters, "take", lambda *_, **__: log.append("quota"))
    before(service.queue, "send", lambda *_, delay=0, **__: log.append("safety net" if delay else "work message"))
    service.submit(identity, work_here=work_here)
    assert log == [*marker, "quota", "quota", "safety net", "create", *([] if work_here else ["work message"])]


def test_a_slow_safety_net_is_sent_again_before_the_record(service: InMemoryService) -> None:
    half = LEASE * SAFETY_NET_LEASES / 2
    took = [half + 0.1, half - 0.1]
    written: list[int] = []

    def pass_time(*_: Any, **__: Any) -> None:
        service.now += took.pop(0)
        written.append(service.records.asked.count("create"))

    before(service.queue, "send", pass_time)
    submitted = service.submit(work_here=True)
    assert [delay for _, delay in service.queue.sent] == [2 * half, 2 * half]
    assert written == [0, 0]
    lease_begins = NOW + 2 * half  # it begins with the record
    assert submitted.generation.lease_until == pytest.approx(lease_begins + LEASE, abs=0.01)


def test_a_work_message_that_cannot_be_sent_does_not_fail_the_request(service: InMemoryService) -> None:
    service.queue.failures += [None, "before"]
    submitted = service.submit()
    assert service.record(submitted.generation) == submitted.generation
    assert service.queue.sent == [(submitted.generation.id, LEASE * SAFETY_NET_LEASES)]
    assert service.used == {1}


@pytest.mark.parametrize(
    ("port", "answers", "identity", "sent"),
    [
        ("keys", 0, KEYED, 0),
        ("keys", 0, SECOND, 0),
        ("counters", 0, KEYED, 0),
        ("counters", 1, KEYED, 0),
        ("queue", 0, KEYED, 0),
        ("records", 0, KEYED, 1),
    ],
    ids=["key", "retry", "quota", "quota of the stack", "safety net", "record"],
)
@pytest.mark.parametrize("work_here", [False, True])
def test_no_generation_begins_and_no_quota_is_taken_if_a_store_fails_before_the_record(
    service: InMemoryService, port: str, answers: int, identity: RetryIdentity, sent: int, work_here: bool
) -> None:
    getattr(service, port).failures += [*[None] * answers, "before"]
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(identity, work_here=work_here)
    assert service.records.newest("alice", 10) == []
    assert service.used <= {0}
    assert len(messages(service)) == sent
    for generation_id in messages(service):  # no late process can write it
        with pytest.raises(IdTakenError):
            service.records.create(admitted(REQUEST, caller="alice", base_url="", now=NOW, generation_id=generation_id))


def test_quota_stays_taken_if_it_is_unknown_whether_the_record_was_written(service: InMemoryService) -> None:
    service.records.failures += ["after", "before"]  # the record, `void`
    with pytest.raises(errors.SubmissionUncertainError) as uncertain:
        service.submit(FIRST)
    assert service.used == {1}
    again = service.submit(SECOND)
    assert (again.attached, again.generation.id) == (True, uncertain.value.generation_id)


def test_a_record_is_accepted_and_its_message_sent_if_the_answer_to_its_write_is_lost(service: InMemoryService) -> None:
    service.records.failures.append("after")
    submitted = service.submit()
    assert service.record(submitted.generation) == submitted.generation
    assert service.queue.sent[-1] == (submitted.generation.id, 0)
    assert service.used == {1}


# Repeated requests.


@REPEATED
def test_a_repeated_request_attaches_to_the_first(service: InMemoryService, identities: list[RetryIdentity]) -> None:
    first = service.submit(identities[0], work_here=True).generation
    for identity in identities[1:]:
        again = service.submit(identity, work_here=True)
        assert (again.generation, again.attached, again.owner, again.standing) == (first, True, None, None)
    assert messages(service) == {first.id}
    assert service.used == {1}


@REPEATED
@pytest.mark.parametrize(
    ("end", "anew"),
    [
        (Status.CANCELLED, False),
        (errors.UpstreamFailedError("Money may be spent."), False),
        (errors.PromptRejectedError("Nothing is spent."), True),
        ("deleted", True),
    ],
    ids=["cancelled", "spent", "nothing spent", "deleted"],
)
def test_a_retry_of_a_generation_that_cost_nothing_begins_a_new_one(
    service: InMemoryService, identities: list[RetryIdentity], end: Any, anew: bool
) -> None:
    first = service.submit(identities[0]).generation
    if end == "deleted":
        service.buried(first)
    elif end is Status.CANCELLED:
        service.cancel(first.id)
    else:
        service.ended(first, Status.FAILED, failure=failure_of(end))
    again = service.submit(identities[1])
    assert (again.attached, again.generation.id == first.id) == (not anew, not anew)
    assert again.generation.status is (Status.QUEUED if anew else service.record(first).status)
    assert id_of(service, identities[2]) == again.generation.id


@REPEATED
def test_a_marker_of_a_void_record_is_replaced(service: InMemoryService, identities: list[RetryIdentity]) -> None:
    service.records.failures += ["before"]  # the record
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(identities[0])
    (void,) = messages(service)
    anew = service.submit(identities[1])
    assert (anew.attached, anew.generation.id != void) == (False, True)
    assert id_of(service, identities[2]) == anew.generation.id
    assert service.used == {1}


@pytest.mark.parametrize("identity", [KEYED, SECOND])
def test_a_marker_without_a_record_begins_its_generation(service: InMemoryService, identity: RetryIdentity) -> None:
    body = fingerprint(REQUEST)
    if identity is KEYED:
        service.keys.hold("alice", "k", GIVEN, body, now=NOW, expired_before=0)
    else:
        service.keys.mark("alice", body, GIVEN, 0, now=NOW)
    submitted = service.submit(identity)
    assert (submitted.generation.id, submitted.attached) == (GIVEN, False)


@pytest.mark.parametrize(("first", "again", "work_here"), [(KEYED, KEYED, False), (FIRST, SECOND, True)])
def test_a_retry_during_the_submission_shares_its_generation(
    service: InMemoryService, first: RetryIdentity, again: RetryIdentity, work_here: bool
) -> None:
    """It arrives while the first request waits for SQS."""
    retried: list[Any] = []
    retry = partial(service.submit, again, work_here=work_here)
    before(service.queue, "send", lambda *_, **__: retried.append(retry()), once=True)
    submitted = service.submit(first, work_here=work_here)
    assert [each.generation.id for each in retried] == [submitted.generation.id]
    assert (retried[0].attached, submitted.attached, submitted.owner) == (False, True, None)
    assert len(service.records.newest("alice", 10)) == 1
    assert service.used == {1}


# Idempotency keys.


def test_a_key_belongs_to_one_caller_and_one_body_for_any_retry_count(service: InMemoryService) -> None:
    first, *others = (id_of(service, RetryIdentity("k", retry)) for retry in (None, 0, 1, 0, 2))
    assert set(others) == {first}
    assert id_of(service, RetryIdentity("K")) != first
    assert id_of(service, KEYED, OTHER, caller="bob") != first
    sent = len(service.queue.sent)
    with pytest.raises(errors.IdempotencyKeyReusedError) as refused:
        service.submit(KEYED, OTHER)
    assert refused.value.param == "Idempotency-Key"
    assert len(service.queue.sent) == sent


@pytest.mark.parametrize("request_", [REQUEST, OTHER])
def test_a_key_expires_after_a_day_and_any_body_may_reuse_it(service: InMemoryService, request_: ImageRequest) -> None:
    first = id_of(service, KEYED)
    service.now = NOW + KEY_SECONDS
    assert id_of(service, KEYED) == first
    service.now = NOW + KEY_SECONDS + 1
    anew = service.submit(KEYED, request_)
    assert (anew.attached, anew.generation.id != first) == (False, True)
    assert id_of(service, KEYED, request_) == anew.generation.id


@pytest.mark.parametrize("work_here", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_concurrent_requests_with_one_key_share_one_generation(
    service: InMemoryService, work_here: bool, old: bool
) -> None:
    before_it = {id_of(service, KEYED)} if old else set()
    service.now += KEY_SECONDS + 1
    service.each_caller = 1
    submitted = at_once(20, lambda: service.submit(KEYED, work_here=work_here))
    (one,) = {each.generation.id for each in submitted}
    assert sum(not each.attached for each in submitted) == 1
    assert sum(each.owner is not None for each in submitted) == work_here
    assert {each.id for each in service.records.newest("alice", 100)} == {one} | before_it
    assert service.used == {1}  # on each day


def test_a_request_that_loses_a_race_pauses_and_attaches(service: InMemoryService) -> None:
    twins: list[str] = []
    before(service.records, "create", lambda _: twins.append(id_of(service, KEYED)), once=True)
    submitted = service.submit(KEYED, work_here=True)
    assert (submitted.attached, submitted.owner) == (True, None)
    assert [submitted.generation.id] == twins
    (pause,) = service.slept
    assert 0 < pause < 1


def test_a_request_that_loses_every_race_fails(service: InMemoryService) -> None:
    def lost(_: object) -> None:
        raise IdTakenError

    before(service.records, "create", lost)
    with pytest.raises(errors.RecordsUnavailableError):  # no money is spent, so it may be retried
        service.submit(KEYED)


# Retries that callers count.


def test_equal_requests_and_their_counted_retries_stay_apart(service: InMemoryService) -> None:
    firsts = at_once(20, lambda: id_of(service, FIRST))
    assert len(set(firsts)) == 20
    for identity in (SECOND, THIRD):
        assert sorted(at_once(20, partial(id_of, service, identity))) == sorted(firsts)


def test_a_retry_without_a_first_request_begins_a_generation_and_the_next_attaches(service: InMemoryService) -> None:
    began = service.submit(SECOND, work_here=True)
    assert (began.attached, began.owner is None) == (False, False)
    assert id_of(service, THIRD) == began.generation.id


@pytest.mark.parametrize(
    ("identity", "request_", "caller"),
    [
        (PLAIN, REQUEST, "alice"),
        (RetryIdentity("k", 0), REQUEST, "alice"),
        (FIRST, OTHER, "alice"),
        (FIRST, REQUEST, "bob"),
    ],
    ids=["not counted", "with a key", "another body", "another caller"],
)
def test_a_retry_never_attaches_to_another_request(
    service: InMemoryService, identity: RetryIdentity, request_: ImageRequest, caller: str
) -> None:
    """A request with a key is retried with its key. A late retry attaches even if a later one arrived before it."""
    own, other = id_of(service, FIRST), id_of(service, identity, request_, caller=caller)
    assert other != own
    assert id_of(service, THIRD) == own
    assert id_of(service, SECOND) == own
    assert id_of(service, SECOND) not in (own, other)


def test_a_retry_does_not_attach_to_an_old_generation(service: InMemoryService) -> None:
    first = id_of(service, FIRST)
    service.now = NOW + RETRY_SECONDS - 1
    assert id_of(service, SECOND) == first
    service.now = NOW + RETRY_SECONDS + 1
    assert id_of(service, THIRD) != first


def test_a_retry_attaches_however_long_its_request_waited() -> None:
    """A wait may be refused or cut at its last redirect. OpenAI's clients then send the whole request again."""
    waits = 1 + MOST_HOPS
    assert waits * LONGEST_WAIT_SECONDS + 60 < RETRY_SECONDS


def test_a_request_is_counted_only_with_a_retry_count(service: InMemoryService) -> None:
    identities = (PLAIN, KEYED, FIRST, RetryIdentity("k", 2))
    assert [identity.is_counted for identity in identities] == [False, False, True, True]
    assert id_of(service, PLAIN) != id_of(service, PLAIN)


# Quotas.


def test_a_new_generation_takes_its_images_from_both_quotas(service: InMemoryService) -> None:
    standing = service.submit(request=replace(REQUEST, n=3)).standing
    assert standing is not None
    assert (standing.limit, standing.remaining) == (service.each_caller, service.each_caller - 3)
    assert 0 < standing.reset <= 24 * 3600
    assert service.used == {3}


@pytest.mark.parametrize(("each_caller", "whole_stack"), [(4, 1000), (1000, 4), (0, 0)])
def test_no_generation_begins_over_a_quota(service: InMemoryService, each_caller: int, whole_stack: int) -> None:
    service.each_caller, service.whole_stack = each_caller, whole_stack
    with pytest.raises(errors.QuotaExceededError) as spent:
        service.submit(request=replace(REQUEST, n=5))
    assert spent.value.remaining == min(each_caller, whole_stack)
    assert service.used <= {0}
    assert service.queue.sent == []
    assert service.records.newest("alice", 10) == []


def test_callers_have_their_own_quotas_and_share_that_of_the_stack(service: InMemoryService) -> None:
    service.each_caller, service.whole_stack = 2, 3
    service.submit(request=replace(REQUEST, n=2))
    with pytest.raises(errors.QuotaExceededError):
        service.submit()
    service.submit(caller="bob")
    with pytest.raises(errors.QuotaExceededError):
        service.submit(caller="bob")


def test_quotas_begin_anew_each_day(service: InMemoryService) -> None:
    service.each_caller = 1
    service.submit()
    with pytest.raises(errors.QuotaExceededError) as spent:
        service.submit()
    service.now += spent.value.reset - 1
    with pytest.raises(errors.QuotaExceededError):
        service.submit()
    service.now += 1
    service.submit()


@pytest.mark.parametrize("own", [0, 5])
def test_a_callers_own_quota_replaces_the_common_one(service: InMemoryService, own: int) -> None:
    service.each_caller = 2
    submission = Submission(REQUEST, Caller("alice", own), "")
    for _ in range(own):
        service.submission.submit(submission)
    with pytest.raises(errors.QuotaExceededError):
        service.submission.submit(submission)


def test_a_request_attaches_to_its_duplicate_that_took_the_last_of_the_quota(service: InMemoryService) -> None:
    """An event that is delivered twice at once makes one generation, and neither delivery is refused."""
    service.each_caller = 1
    before(service.counters, "take", lambda *_, **__: service.submit(generation_id=GIVEN), once=True)
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {1}


# Submissions with an id.


def test_concurrent_requests_for_one_id_make_one_generation_and_take_quota_once(service: InMemoryService) -> None:
    submitted = at_once(8, lambda: service.submit(generation_id=GIVEN))
    assert [each.attached for each in submitted].count(False) == 1
    assert {each.generation.id for each in submitted} == {GIVEN}
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {REQUEST.n}


def test_a_lost_answer_of_a_counter_returns_no_quota_of_a_concurrent_request(service: InMemoryService) -> None:
    def read_by_another_meanwhile(*_: Any, **__: Any) -> None:
        service.counters.failures += [None] * 3 + ["after"]  # two of the other request, and the second of its own
        service.submit(generation_id=GIVEN)

    before(service.counters, "take", read_by_another_meanwhile, once=True)
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(generation_id=GIVEN)
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {1}


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_try_creates_or_finds_an_id_that_could_not_be_written(service: InMemoryService, when: Any) -> None:
    service.records.failures += [None, when]  # the first reads whether it exists
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(generation_id=GIVEN)
    assert service.submit(generation_id=GIVEN).attached == (when == "after")
    assert service.record(GIVEN).status is Status.QUEUED


@pytest.mark.parametrize("deleted", [True, False])
def test_a_void_id_of_a_line_is_reported_as_cancelled_and_takes_no_quota(
    service: InMemoryService, deleted: bool
) -> None:
    line = Submission(REQUEST, service.caller("alice"), BASE_URL, origin=LINE, generation_id=GIVEN)
    if deleted:
        service.buried(service.submission.submit(line).generation)
    else:
        service.records.void(GIVEN, now=NOW)
    used = service.used
    with pytest.raises(errors.GenerationCancelledError):
        service.submission.submit(line)
    assert service.used == (used or {0})


def test_a_refused_request_undoes_no_reservation_of_its_duplicate(service: InMemoryService) -> None:
    """One file, whose message is delivered twice at once. The stack's quota suffices only for one delivery."""
    service.whole_stack = 0

    def begun_meanwhile(*_: Any, **__: Any) -> None:
        service.whole_stack = 1
        service.submit(generation_id=GIVEN)

    def stop_at_the_second(*_: Any, **__: Any) -> None:
        before(service.counters, "take", begun_meanwhile, once=True)

    before(service.counters, "take", stop_at_the_second, once=True)
    with pytest.raises(errors.QuotaExceededError):
        service.submit(generation_id=GIVEN)
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {1}


def test_a_refused_file_begins_one_generation_once_the_quota_suffices(service: InMemoryService) -> None:
    service.whole_stack = 0
    for _ in range(2):
        with pytest.raises(errors.QuotaExceededError):
            service.submit(generation_id=GIVEN)
        assert service.used == {0}
    service.whole_stack = 2
    begun = service.submit(generation_id=GIVEN)
    assert not begun.attached
    again = service.submit(generation_id=GIVEN)
    assert (again.attached, again.generation.id) == (True, begun.generation.id)
    assert service.used == {1}
    service.buried(begun.generation)
    with pytest.raises(errors.GenerationCancelledError):
        service.submit(generation_id=GIVEN)


# Input images.


PICTURE, OTHER_PICTURE = sized(label="picture"), sized(label="other")
PICTURE_URL = "https://a.example/1.png"
NOT_STORED = errors.InputUnavailableError("no")


def edit(
    service: InMemoryService,
    identity: RetryIdentity = PLAIN,
    given: Sequence[GivenImage] = (at_hand(PICTURE),),
    *,
    request: ImageRequest = EDIT,
    caller: str = "alice",
    web: FakeInputSource | None = None,
) -> Submitted:
    inputs = identified(service, given, model=request.model, caller=caller, web=web)
    submission = Submission(request, service.caller(caller), BASE_URL, identity=identity, inputs=inputs)
    try:
        return service.submission.submit(submission)
    finally:
        service.now += 0.001


def check_only_recorded_inputs_are_stored(service: InMemoryService) -> None:
    recorded = [image_id for each in service.records.newest("alice", 100) for image_id in each.own_input_ids]
    assert sorted(service.inputs.saved) == sorted(recorded)


def an_upload(service: InMemoryService, content: bytes = PICTURE) -> str:
    upload_id = new_upload_id()
    service.inputs.uploads["alice", upload_id] = content
    return upload_id


def test_the_images_of_a_new_generation_are_stored_before_its_quota_and_are_on_its_record(
    service: InMemoryService,
) -> None:
    log = service.keys.asked = service.records.asked
    before(service.inputs, "save", lambda *_: log.append("image"))
    before(service.counters, "take", lambda *_, **__: log.append("quota"))
    before(service.queue, "send", lambda *_, delay=0, **__: log.append("safety net" if delay else "work message"))
    upload_id = an_upload(service, OTHER_PICTURE)
    submitted = edit(service, KEYED, [at_hand(PICTURE), by_id(upload_id, name="image[1]")])
    assert log == ["hold", "image", "quota", "quota", "safety net", "create", "work message"]
    generation = service.record(submitted.generation)
    assert generation == submitted.generation
    first, second = generation.request.inputs
    assert (service.inputs.saved, second.id) == ({first.id: PICTURE}, upload_id)
    assert generation.own_input_ids == (first.id,)
    assert replace(generation.request, inputs=()) == EDIT
    assert generation.supply.parent is None


@REPEATED
def test_a_retry_attaches_by_what_is_in_its_images_and_stores_nothing(
    service: InMemoryService, identities: list[RetryIdentity]
) -> None:
    first = edit(service, identities[0])
    saved = dict(service.inputs.saved)
    before(service.inputs, "save", raising(AssertionError("it was stored again")))
    for identity, given in zip(identities[1:], (at_hand(PICTURE), by_id(an_upload(service))), strict=True):
        again = edit(service, identity, [given])
        assert (again.attached, again.generation) == (True, first.generation)
    assert service.inputs.saved == saved
    assert service.used == {1}


def again(service: InMemoryService, upload_id: str, identity: RetryIdentity, request: ImageRequest) -> Submitted:
    """Submits a request, whose upload may be gone."""
    submission = Submission(request, service.caller("alice"), BASE_URL, identity=identity)
    return service.submission.submit_with(lambda: identified(service, [by_id(upload_id)]), submission)


def test_a_retry_attaches_by_its_key_if_its_upload_is_gone(service: InMemoryService) -> None:
    upload_id = an_upload(service)
    first = edit(service, KEYED, [by_id(upload_id)])
    service.inputs.uploads.clear()
    attached = again(service, upload_id, KEYED, EDIT)
    assert (attached.generation, attached.attached) == (first.generation, True)
    assert service.used == {1}
    for identity, request in ((PLAIN, EDIT), (RetryIdentity("other"), EDIT), (KEYED, replace(EDIT, prompt="a scarf"))):
        with pytest.raises(errors.InvalidImageError):
            again(service, upload_id, identity, request)
    service.now += KEY_SECONDS + 1
    with pytest.raises(errors.InvalidImageError):
        again(service, upload_id, KEYED, EDIT)


def test_a_request_whose_upload_is_gone_does_not_repeat_a_free_failure(service: InMemoryService) -> None:
    upload_id = an_upload(service)
    first = edit(service, KEYED, [by_id(upload_id)]).generation
    service.ended(first, Status.FAILED, failure=failure_of(NOT_STORED))
    service.inputs.uploads.clear()
    with pytest.raises(errors.InvalidImageError):
        again(service, upload_id, KEYED, EDIT)


@REPEATED
def test_a_retry_attaches_by_a_url_whose_content_is_gone(
    service: InMemoryService, identities: list[RetryIdentity]
) -> None:
    web = FakeInputSource(**{PICTURE_URL: PICTURE})
    first = edit(service, identities[0], [by_url(PICTURE_URL)], web=web)
    web.files.clear()
    for identity in identities[1:]:
        assert edit(service, identity, [by_url(PICTURE_URL)], web=web).generation == first.generation
    assert len(web.fetched) == 1
    check_only_recorded_inputs_are_stored(service)


def test_a_key_with_another_picture_order_or_way_of_a_url_is_refused_and_stores_nothing(
    service: InMemoryService,
) -> None:
    web = FakeInputSource(**{PICTURE_URL: PICTURE})
    first = [at_hand(PICTURE), at_hand(OTHER_PICTURE, name="image[1]")]
    edit(service, KEYED, first)
    saved = dict(service.inputs.saved)
    for given in (
        [*reversed(first)],
        first[:1],
        [by_url(PICTURE_URL), first[1]],
        [first[0], by_id(an_upload(service))],
    ):
        with pytest.raises(errors.IdempotencyKeyReusedError):
            edit(service, KEYED, given, web=web)
    assert (service.inputs.saved, web.fetched) == (saved, [])


def test_a_key_belongs_to_a_request_with_images_or_without(service: InMemoryService) -> None:
    service.submit(KEYED, replace(EDIT, operation="generate"))
    with pytest.raises(errors.IdempotencyKeyReusedError):
        edit(service, KEYED)
    assert service.inputs.saved == {}


@pytest.mark.parametrize(
    "failure",
    [NOT_STORED, errors.InvalidImageError("broken"), errors.UnsupportedMediaTypeError("GIF")],
    ids=lambda failure: failure.code,
)
@REPEATED
def test_images_that_cannot_be_kept_spend_no_quota_and_the_retry_begins_the_generation(
    service: InMemoryService, identities: list[RetryIdentity], failure: errors.NothingSpentError
) -> None:
    web = FakeInputSource(**{PICTURE_URL: PICTURE})
    given = [at_hand(OTHER_PICTURE), by_url(PICTURE_URL, name="image[1]")]
    if failure is NOT_STORED:
        service.inputs.failures += [None, failure]
    else:
        before(web, "fetch", raising(failure))
    with pytest.raises(type(failure)):
        edit(service, identities[0], given, web=web)
    assert (service.inputs.saved, service.counters.used, service.queue.sent) == ({}, {}, [])
    assert service.records.newest("alice", 10) == []
    begun = edit(service, identities[1], given, web=web)
    assert (begun.attached, len(service.inputs.saved), service.used) == (False, 2, {1})
    check_only_recorded_inputs_are_stored(service)
    assert edit(service, identities[2], given, web=web).generation == begun.generation


@pytest.mark.parametrize("refusal", ["images", "money", "no price"])
def test_a_refused_request_leaves_no_image_behind(service: InMemoryService, refusal: str) -> None:
    request = EDIT
    if refusal == "images":
        service.each_caller = 0
    else:
        service.own_usd_per_day = 1
        request = replace(EDIT, model="chatgpt-image-latest") if refusal == "no price" else EDIT
    upload_id = an_upload(service)
    kind = errors.ModelHasNoPriceError if refusal == "no price" else errors.QuotaExceededError
    for _ in range(2):
        with pytest.raises(kind):
            edit(service, KEYED, [at_hand(PICTURE), by_id(upload_id)], request=request)
        assert service.inputs.saved == {}
    assert list(service.inputs.uploads.values()) == [PICTURE]
    service.each_caller, service.own_usd_per_day = 10, None
    edit(service, KEYED, [at_hand(PICTURE), by_id(upload_id)], request=request)
    check_only_recorded_inputs_are_stored(service)


@pytest.mark.parametrize("port", ["counters", "queue", "records"])
def test_an_image_stays_if_a_store_does_not_answer_and_the_retry_has_images_of_its_own(
    service: InMemoryService, port: str
) -> None:
    """The record may exist. What no record names is deleted by the bucket's rule."""
    getattr(service, port).failures.append("before")
    with pytest.raises(errors.RecordsUnavailableError):
        edit(service, KEYED)
    assert list(service.inputs.saved.values()) == [PICTURE]
    begun = edit(service, KEYED).generation
    assert set(begun.own_input_ids) < set(service.inputs.saved)


def test_the_images_of_a_record_that_may_have_been_written_stay(service: InMemoryService) -> None:
    service.records.failures += ["after", "before"]  # the record, `void`
    with pytest.raises(errors.SubmissionUncertainError) as uncertain:
        edit(service, KEYED)
    check_only_recorded_inputs_are_stored(service)
    again = edit(service, KEYED)
    assert (again.attached, again.generation.id) == (True, uncertain.value.generation_id)
    check_only_recorded_inputs_are_stored(service)


def test_the_images_stay_if_the_answer_to_the_write_of_the_record_is_lost(service: InMemoryService) -> None:
    service.records.failures.append("after")
    assert not edit(service, KEYED).attached
    assert len(service.inputs.saved) == 1
    check_only_recorded_inputs_are_stored(service)


def test_concurrent_first_tries_with_one_key_share_a_generation_and_keep_only_its_images(
    service: InMemoryService,
) -> None:
    service.each_caller = 1
    barrier, save = threading.Barrier(4), service.inputs.save

    def save_together(*arguments: Any) -> None:
        barrier.wait(60)  # all have looked for the generation, and found none
        save(*arguments)

    service.inputs.save = save_together  # type: ignore[assignment,method-assign]
    submitted = at_once(4, lambda: edit(service, KEYED))
    assert len({each.generation.id for each in submitted}) == 1
    assert sum(not each.attached for each in submitted) == 1
    assert (len(service.inputs.saved), service.used) == (1, {1})
    check_only_recorded_inputs_are_stored(service)


@pytest.mark.parametrize("when", ["safety net", "record"])
def test_a_request_that_loses_a_race_discards_its_images_and_not_those_of_the_winner(
    service: InMemoryService, when: str
) -> None:
    twins: list[Submitted] = []
    port, method = (service.queue, "send") if when == "safety net" else (service.records, "create")
    before(port, method, lambda *_, **__: twins.append(edit(service, KEYED)), once=True)
    submitted = edit(service, KEYED)
    assert (submitted.attached, [submitted.generation.id]) == (True, [each.generation.id for each in twins])
    assert len(service.inputs.saved) == 1
    check_only_recorded_inputs_are_stored(service)


@REPEATED
def test_a_retry_of_an_edit_that_cost_nothing_stores_its_images_for_the_new_generation(
    service: InMemoryService, identities: list[RetryIdentity]
) -> None:
    first = edit(service, identities[0]).generation
    service.ended(first, Status.FAILED, failure=failure_of(errors.PromptRejectedError("no")))
    anew = edit(service, identities[1])
    assert (anew.attached, anew.generation.id != first.id) == (False, True)
    assert set(anew.generation.own_input_ids).isdisjoint(first.own_input_ids)
    assert len(service.inputs.saved) == 2
    check_only_recorded_inputs_are_stored(service)


def test_the_task_that_made_an_image_is_on_the_record(service: InMemoryService) -> None:
    made = service.begun(model="mj_imagine")
    answer = CallAnswer(
        (AnsweredImage("https://a.example/g", actions=(ImageAction("reroll"),)),), upstream="reseller", task_id="task-7"
    )
    service.noted(made, UpstreamCall((), (UpstreamAttempt("reseller", NOW),), answer))
    (image_id,) = made.image_ids
    body = ImageBody("image/png", len(PICTURE), iter([PICTURE]))
    service.images.save(image_id, body, service.deadline(), generation_id=made.id)
    reroll = ImageRequest("", "mj_reroll", "url", operation="edit")
    generation = edit(service, KEYED, [by_id(image_id)], request=reroll).generation
    parent = service.record(generation).supply.parent
    assert parent is not None
    assert (parent.upstream, parent.task_id) == ("reseller", "task-7")
    assert [route.upstream for route in generation.supply.routes] == ["reseller"]
    assert generation.own_input_ids == ()
