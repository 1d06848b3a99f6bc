"""Admission: which requests are the same one, and that no crash can lose what was admitted."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.attempts import Attempt
from imagegen.domain.failures import kept
from imagegen.domain.generations import IdTakenError, Status, admit, fingerprint, is_generation_id
from imagegen.domain.images import ImageRequest
from imagegen.usecases.submit import KEY_SECONDS, RETRY_SECONDS, SAFETY_NET_LEASES, submit
from tests.support.hooks import before
from tests.support.in_memory import BASE_URL, LEASE, NOW, REQUEST, InMemoryService

OTHER = replace(REQUEST, prompt="a dog")
KEYED, PLAIN = Attempt("k"), Attempt()
FIRST, SECOND, THIRD = (Attempt(retry=retry) for retry in range(3))
GIVEN = "gen_" + "A" * 22

# A client repeats a request with its key, or counts its retries.
REPEATED = pytest.mark.parametrize("attempts", [[KEYED] * 3, [FIRST, SECOND, THIRD]], ids=["key", "count"])


def id_of(service: InMemoryService, attempt: Attempt, request: ImageRequest = REQUEST, *, caller: str = "alice") -> str:
    return service.submit(attempt, request, caller=caller).generation.id


def messages(service: InMemoryService) -> set[str]:
    """The generations with messages behind them."""
    return {generation_id for generation_id, _ in service.queue.sent}


def at_once(count: int, do: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def one(_: int) -> Any:
        barrier.wait(60)
        return do()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_a_request_becomes_a_waiting_record_with_a_message_behind_it(service: InMemoryService) -> None:
    submitted = service.submit()
    generation = submitted.generation
    assert (submitted.owner, submitted.attached) == (None, False)
    assert is_generation_id(generation.id)
    assert service.record(generation) == generation
    assert (generation.status, generation.caller, generation.created_at) == (Status.QUEUED, "alice", NOW)
    assert (generation.request, generation.base_url) == (REQUEST, BASE_URL)
    assert service.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES), (generation.id, 0)]
    assert service.queue.callers == {"alice"}


def test_what_is_worked_on_here_is_claimed_and_its_message_outlasts_the_lease(service: InMemoryService) -> None:
    """A worker that dies at once takes its message along for the queue's whole time-out."""
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
    ("attempt", "work_here", "marker"),
    [
        (KEYED, False, ["hold_key"]),
        (FIRST, True, ["mark_attempt"]),
        (SECOND, False, ["attach_attempt", "mark_attempt"]),
    ],
)
def test_writes_come_in_one_order(
    service: InMemoryService, attempt: Attempt, work_here: bool, marker: list[str]
) -> None:
    log = service.records.asked
    before(service.counters, "take", lambda *_, **__: log.append("quota"))
    before(service.queue, "send", lambda *_, delay=0: log.append("safety net" if delay else "work message"))
    service.submit(attempt, work_here=work_here)
    assert log == [*marker, "quota", "quota", "safety net", "create", *([] if work_here else ["work message"])]


def test_a_safety_net_that_took_long_is_sent_again_before_the_record(service: InMemoryService) -> None:
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
    lease_begins = NOW + 2 * half  # with the record
    assert submitted.generation.lease_until == pytest.approx(lease_begins + LEASE, abs=0.01)


def test_a_work_message_that_cannot_be_sent_does_not_fail_the_request(service: InMemoryService) -> None:
    service.queue.failures += [None, "before"]
    submitted = service.submit()
    assert service.record(submitted.generation) == submitted.generation
    assert service.queue.sent == [(submitted.generation.id, LEASE * SAFETY_NET_LEASES)]
    assert service.used == {1}


@pytest.mark.parametrize(
    ("port", "answers", "attempt", "sent"),
    [
        ("records", 0, KEYED, 0),
        ("records", 0, SECOND, 0),
        ("counters", 0, KEYED, 0),
        ("counters", 1, KEYED, 0),
        ("queue", 0, KEYED, 0),
        ("records", 1, KEYED, 1),
    ],
    ids=["key", "retry", "quota", "quota of the stack", "safety net", "record"],
)
@pytest.mark.parametrize("work_here", [False, True])
def test_if_a_store_fails_before_the_record_nothing_begins_and_nothing_is_taken(
    service: InMemoryService, port: str, answers: int, attempt: Attempt, sent: int, work_here: bool
) -> None:
    getattr(service, port).failures += [*[None] * answers, "before"]
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(attempt, work_here=work_here)
    assert service.records.newest("alice", 10) == []
    assert service.used <= {0}
    assert len(messages(service)) == sent
    for generation_id in messages(service):  # no process that is late can write it
        with pytest.raises(IdTakenError):
            service.records.create(admit(REQUEST, caller="alice", base_url="", now=NOW, generation_id=generation_id))


def test_if_it_is_unknown_whether_a_record_was_written_the_reservation_stays(service: InMemoryService) -> None:
    service.records.failures += [None, "after", "before"]  # the marker, the record, `void`
    with pytest.raises(errors.SubmissionUncertainError) as uncertain:
        service.submit(FIRST)
    assert service.used == {1}
    again = service.submit(SECOND)
    assert (again.attached, again.generation.id) == (True, uncertain.value.generation_id)


def test_a_record_whose_answer_was_lost_is_accepted_with_its_work_message(service: InMemoryService) -> None:
    service.records.failures.append("after")
    submitted = service.submit()
    assert service.record(submitted.generation) == submitted.generation
    assert service.queue.sent[-1] == (submitted.generation.id, 0)
    assert service.used == {1}


# Repeated requests.


@REPEATED
def test_a_repeated_request_attaches_to_the_first(service: InMemoryService, attempts: list[Attempt]) -> None:
    first = service.submit(attempts[0], work_here=True).generation
    for attempt in attempts[1:]:
        again = service.submit(attempt, work_here=True)
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
def test_what_cost_nothing_begins_anew(service: InMemoryService, attempts: list[Attempt], end: Any, anew: bool) -> None:
    first = service.submit(attempts[0]).generation
    if end == "deleted":
        service.buried(first)
    elif end is Status.CANCELLED:
        service.cancel(first.id)
    else:
        service.ended(first, Status.FAILED, failure=kept(end))
    again = service.submit(attempts[1])
    assert (again.attached, again.generation.id == first.id) == (not anew, not anew)
    assert again.generation.status is (Status.QUEUED if anew else service.record(first).status)
    assert id_of(service, attempts[2]) == again.generation.id


@REPEATED
def test_a_marker_of_a_void_record_is_replaced(service: InMemoryService, attempts: list[Attempt]) -> None:
    service.records.failures += [None, "before"]  # the marker, the record
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(attempts[0])
    (void,) = messages(service)
    anew = service.submit(attempts[1])
    assert (anew.attached, anew.generation.id != void) == (False, True)
    assert id_of(service, attempts[2]) == anew.generation.id
    assert service.used == {1}


@pytest.mark.parametrize("attempt", [KEYED, SECOND])
def test_a_marker_without_a_record_begins_that_same_id(service: InMemoryService, attempt: Attempt) -> None:
    body = fingerprint(REQUEST)
    if attempt is KEYED:
        service.records.hold_key("alice", "k", GIVEN, body, now=NOW, expired_before=0)
    else:
        service.records.mark_attempt("alice", body, GIVEN, 0, now=NOW)
    submitted = service.submit(attempt)
    assert (submitted.generation.id, submitted.attached) == (GIVEN, False)


@pytest.mark.parametrize(("first", "again", "work_here"), [(KEYED, KEYED, False), (FIRST, SECOND, True)])
def test_a_retry_meanwhile_attaches(service: InMemoryService, first: Attempt, again: Attempt, work_here: bool) -> None:
    """It comes while the first attempt waits for SQS."""
    retried: list[Any] = []
    retry = partial(service.submit, again, work_here=work_here)
    before(service.queue, "send", lambda *_, **__: retried.append(retry()), once=True)
    submitted = service.submit(first, work_here=work_here)
    assert [each.generation.id for each in retried] == [submitted.generation.id]
    assert (retried[0].attached, submitted.attached, submitted.owner) == (False, True, None)
    assert len(service.records.newest("alice", 10)) == 1
    assert service.used == {1}


# Idempotency keys.


def test_a_key_is_one_callers_for_one_body_whatever_the_count_of_retries_says(service: InMemoryService) -> None:
    first, *others = (id_of(service, Attempt("k", retry)) for retry in (None, 0, 1, 0, 2))
    assert set(others) == {first}
    assert id_of(service, Attempt("K")) != first
    assert id_of(service, KEYED, OTHER, caller="bob") != first
    sent = len(service.queue.sent)
    with pytest.raises(errors.IdempotencyKeyReusedError) as refused:
        service.submit(KEYED, OTHER)
    assert refused.value.param == "Idempotency-Key"
    assert len(service.queue.sent) == sent


@pytest.mark.parametrize("request_", [REQUEST, OTHER])
def test_a_key_holds_for_a_day_and_then_any_body_begins_anew(service: InMemoryService, request_: ImageRequest) -> None:
    first = id_of(service, KEYED)
    service.now = NOW + KEY_SECONDS
    assert id_of(service, KEYED) == first
    service.now = NOW + KEY_SECONDS + 1
    anew = service.submit(KEYED, request_)
    assert (anew.attached, anew.generation.id != first) == (False, True)
    assert id_of(service, KEYED, request_) == anew.generation.id


@pytest.mark.parametrize("work_here", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_many_at_once_share_one_generation(service: InMemoryService, work_here: bool, old: bool) -> None:
    before_it = {id_of(service, KEYED)} if old else set()
    service.now += KEY_SECONDS + 1
    service.each_caller = 1
    submitted = at_once(20, lambda: service.submit(KEYED, work_here=work_here))
    (one,) = {each.generation.id for each in submitted}
    assert sum(not each.attached for each in submitted) == 1
    assert sum(each.owner is not None for each in submitted) == work_here
    assert {each.id for each in service.records.newest("alice", 100)} == {one} | before_it
    assert service.used == {1}  # each day


def test_a_race_that_is_lost_is_slept_over_and_ends_attached(service: InMemoryService) -> None:
    twins: list[str] = []
    before(service.records, "create", lambda _: twins.append(id_of(service, KEYED)), once=True)
    submitted = service.submit(KEYED, work_here=True)
    assert (submitted.attached, submitted.owner) == (True, None)
    assert [submitted.generation.id] == twins
    (pause,) = service.slept
    assert 0 < pause < 1


def test_races_that_are_always_lost_end(service: InMemoryService) -> None:
    def lost(_: object) -> None:
        raise IdTakenError

    before(service.records, "create", lost)
    with pytest.raises(errors.RecordsUnavailableError):  # nothing is spent, so it may be retried
        service.submit(KEYED)


# Retries that clients count.


def test_first_attempts_with_the_same_body_stay_apart_and_so_do_their_retries(service: InMemoryService) -> None:
    firsts = at_once(20, lambda: id_of(service, FIRST))
    assert len(set(firsts)) == 20
    for attempt in (SECOND, THIRD):
        assert sorted(at_once(20, partial(id_of, service, attempt))) == sorted(firsts)


def test_a_retry_whose_first_attempt_never_came_begins_one_that_the_next_attaches_to(service: InMemoryService) -> None:
    began = service.submit(SECOND, work_here=True)
    assert (began.attached, began.owner is None) == (False, False)
    assert id_of(service, THIRD) == began.generation.id


@pytest.mark.parametrize(
    ("attempt", "request_", "caller"),
    [(PLAIN, REQUEST, "alice"), (Attempt("k", 0), REQUEST, "alice"), (FIRST, OTHER, "alice"), (FIRST, REQUEST, "bob")],
    ids=["not counted", "with a key", "another body", "another caller"],
)
def test_a_retry_never_attaches_to_another_request(
    service: InMemoryService, attempt: Attempt, request_: ImageRequest, caller: str
) -> None:
    """A client that sent a key comes back with it. A late retry attaches although a later one came before it."""
    own, other = id_of(service, FIRST), id_of(service, attempt, request_, caller=caller)
    assert other != own
    assert id_of(service, THIRD) == own
    assert id_of(service, SECOND) == own
    assert id_of(service, SECOND) not in (own, other)


def test_a_retry_attaches_to_nothing_old(service: InMemoryService) -> None:
    first = id_of(service, FIRST)
    service.now = NOW + RETRY_SECONDS - 1
    assert id_of(service, SECOND) == first
    service.now = NOW + RETRY_SECONDS + 1
    assert id_of(service, THIRD) != first


def test_only_a_client_that_counts_is_known_to_try_again_by_itself(service: InMemoryService) -> None:
    attempts = (PLAIN, KEYED, FIRST, Attempt("k", 2))
    assert [attempt.is_retried for attempt in attempts] == [False, False, True, True]
    assert id_of(service, PLAIN) != id_of(service, PLAIN)


# The allowance.


def test_a_new_generation_takes_its_images_from_both_allowances(service: InMemoryService) -> None:
    standing = service.submit(request=replace(REQUEST, n=3)).standing
    assert standing is not None
    assert (standing.limit, standing.remaining) == (service.each_caller, service.each_caller - 3)
    assert 0 < standing.reset <= 24 * 3600
    assert service.used == {3}


@pytest.mark.parametrize(("each_caller", "whole_stack"), [(4, 1000), (1000, 4), (0, 0)])
def test_over_an_allowance_nothing_is_begun(service: InMemoryService, each_caller: int, whole_stack: int) -> None:
    service.each_caller, service.whole_stack = each_caller, whole_stack
    with pytest.raises(errors.AllowanceSpentError) as spent:
        service.submit(request=replace(REQUEST, n=5))
    assert spent.value.remaining == min(each_caller, whole_stack)
    assert service.used <= {0}
    assert service.queue.sent == []
    assert service.records.newest("alice", 10) == []


def test_one_callers_allowance_is_not_anothers_but_the_stacks_is(service: InMemoryService) -> None:
    service.each_caller, service.whole_stack = 2, 3
    service.submit(request=replace(REQUEST, n=2))
    with pytest.raises(errors.AllowanceSpentError):
        service.submit()
    service.submit(caller="bob")
    with pytest.raises(errors.AllowanceSpentError):
        service.submit(caller="bob")


def test_the_allowance_begins_anew_with_the_day(service: InMemoryService) -> None:
    service.each_caller = 1
    service.submit()
    with pytest.raises(errors.AllowanceSpentError) as spent:
        service.submit()
    service.now += spent.value.reset - 1
    with pytest.raises(errors.AllowanceSpentError):
        service.submit()
    service.now += 1
    service.submit()


@pytest.mark.parametrize("own", [0, 5])
def test_a_callers_own_allowance_goes_before_everybodys(service: InMemoryService, own: int) -> None:
    service.each_caller = 2
    one = partial(submit, REQUEST, PLAIN, service.desk, base_url="", work_here=False, images_per_day=own)
    for _ in range(own):
        one(caller="alice")
    with pytest.raises(errors.AllowanceSpentError):
        one(caller="alice")


def test_a_request_attaches_to_its_twin_that_took_the_last_of_the_allowance(service: InMemoryService) -> None:
    """An event that is delivered twice at once is one generation, and neither delivery is refused."""
    service.each_caller = 1
    before(service.counters, "take", lambda *_, **__: service.submit(generation_id=GIVEN), once=True)
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {1}


def test_with_many_at_once_exactly_the_allowance_is_begun(service: InMemoryService) -> None:
    service.each_caller = 10

    def one() -> None:
        with suppress(errors.AllowanceSpentError):
            service.submit()

    at_once(40, one)
    assert len(service.records.newest("alice", 100)) == 10
    assert service.used == {10}


# Under an id that is given.


def test_however_often_it_is_asked_for_one_id_is_one_generation_with_one_reservation(service: InMemoryService) -> None:
    submitted = at_once(8, lambda: service.submit(generation_id=GIVEN))
    assert [each.attached for each in submitted].count(False) == 1
    assert {each.generation.id for each in submitted} == {GIVEN}
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {REQUEST.n}


def test_a_reader_whose_counter_loses_its_answer_leaves_anothers_reservation(service: InMemoryService) -> None:
    def read_by_another_meanwhile(*_: Any, **__: Any) -> None:
        service.counters.failures += [None] * 3 + ["after"]  # the other's two, and the second of its own
        service.submit(generation_id=GIVEN)

    before(service.counters, "take", read_by_another_meanwhile, once=True)
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(generation_id=GIVEN)
    assert service.submit(generation_id=GIVEN).attached
    assert service.used == {1}


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_try_begins_or_finds_a_given_id_that_could_not_be_written(service: InMemoryService, when: Any) -> None:
    service.records.failures += [None, when]  # the first is the look whether it is there
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(generation_id=GIVEN)
    assert service.submit(generation_id=GIVEN).attached == (when == "after")
    assert service.record(GIVEN).status is Status.QUEUED


@pytest.mark.parametrize("deleted", [True, False])
def test_a_given_id_that_is_void_is_cancelled_and_costs_no_quota(service: InMemoryService, deleted: bool) -> None:
    if deleted:
        service.buried(service.submit(generation_id=GIVEN).generation)
    else:
        service.records.void(GIVEN, now=NOW)
    used = service.used
    with pytest.raises(errors.GenerationCancelledError):
        service.submit(generation_id=GIVEN)
    assert service.used == (used or {0})
