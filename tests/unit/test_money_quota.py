"""Quotas in money: the highest price is reserved at admission, and what was charged is settled at the end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    Status,
    UpstreamAttempt,
    UpstreamCall,
)
from imagegen.domain.money import Spending, TokenPrice
from imagegen.wire.errors import answer_error
from tests.support.hooks import after, before, raising
from tests.support.in_memory import NOW, REQUEST, InMemoryService, attempts
from tests.support.models import MODELS

DAY, PRICE, LIMIT = "2025-10-09", 40_000, 1_000_000
NEXT_DAY = "2025-10-10"
GIVEN = "gen_AAAAAAAAAAAAAAAAAAAAAA"
MOST = 100_000
TOKENS = TokenPrice(text_input=0, image_input=0, output=10_000_000, most=MOST)  # 10 millionths of a dollar for a token
REFUSED = failure_of(errors.UpstreamRateLimitedError("no"))
FAILED = failure_of(errors.UpstreamFailedError("no"))
NO_RECORDS = errors.RecordsUnavailableError("They do not answer.")


@pytest.fixture
def service(service: InMemoryService) -> InMemoryService:
    """A service whose callers have a quota of a dollar a day. One model has a price by tokens."""
    service.own_usd_per_day = LIMIT
    service.models = {**MODELS, "gpt-image-1": replace(MODELS["gpt-image-1"], price=TOKENS)}
    return service


def spent(service: InMemoryService, day: str = DAY) -> int:
    return service.counters.used["usd:alice", day]


def images(service: InMemoryService) -> set[int]:
    """The images that are taken from the caller's quota and from the stack's."""
    return {service.counters.used[who, DAY] for who in ("alice", "*")}


# Admission.


@pytest.mark.parametrize(
    ("model", "options", "reserved"),
    [
        ("dall-e-3", {}, 2 * 40_000),
        ("dall-e-3", {"quality": "hd", "size": "1792x1024"}, 2 * 120_000),
        ("gpt-image-1.5", {"size": "1024x1024"}, 2 * 133_000),
        ("gpt-image-1", {}, 2 * MOST),
    ],
    ids=["defaults", "options", "a quality that the upstream chooses", "tokens"],
)
def test_the_highest_price_of_all_images_is_reserved(
    service: InMemoryService, model: str, options: dict[str, str], reserved: int
) -> None:
    submitted = service.submit(request=replace(REQUEST, model=model, n=2, options=options))
    assert service.record(submitted.generation).spending == Spending(reserved, reserved)
    assert (spent(service), images(service)) == (reserved, {2})
    assert submitted.standing is not None
    assert (submitted.standing.usd_limit, submitted.standing.usd_remaining) == (LIMIT, LIMIT - reserved)


def test_a_caller_without_a_quota_in_money_spends_none(service: InMemoryService) -> None:
    service.own_usd_per_day = None
    submitted = service.submit(request=replace(REQUEST, model="flux"))
    assert service.record(submitted.generation).spending is None
    assert submitted.standing is not None
    assert (submitted.standing.usd_limit, submitted.standing.usd_remaining) == (None, None)
    assert {who for who, _ in service.counters.used} == {"alice", "*"}


def test_no_generation_begins_over_a_quota_in_money(service: InMemoryService) -> None:
    service.own_usd_per_day = 3 * PRICE - 1
    service.submit()
    with pytest.raises(errors.QuotaExceededError) as refused:
        service.submit(request=replace(REQUEST, n=2))
    assert refused.value.message == (
        "Your request may cost up to 0.08 USD, and you have 0.079999 of 0.119999 USD left for today. "
        "The day ends at 00:00 UTC."
    )
    assert (spent(service), images(service), len(service.records.newest("alice", 10))) == (PRICE, {1}, 1)
    answer = answer_error(refused.value, str)
    assert (answer.status, answer.body["error"]["code"]) == (429, "insufficient_quota")
    assert answer.headers["x-ratelimit-limit-usd"] == "0.119999"
    assert answer.headers["x-ratelimit-remaining-usd"] == "0.079999"
    assert answer.headers["x-ratelimit-remaining-images"] == str(service.whole_stack - 1)
    service.submit()


@pytest.mark.parametrize("given", [None, GIVEN], ids=["http", "a given id"])
def test_a_model_without_a_price_is_refused_by_name_before_anything_is_begun(
    service: InMemoryService, given: str | None
) -> None:
    with pytest.raises(errors.ModelHasNoPriceError, match="'flux'") as refused:
        service.submit(request=replace(REQUEST, model="flux"), generation_id=given)
    answer = answer_error(refused.value, str)
    assert (answer.status, answer.body["error"]["param"], answer.body["error"]["code"]) == (
        *(400, "model"),
        "model_has_no_price",
    )
    assert (service.counters.used, service.queue.sent, service.records.newest("alice", 10)) == ({}, [], [])


@pytest.mark.parametrize(
    ("own_images", "own_usd", "each_caller", "whole_stack", "admitted"),
    [
        *((None, 9 * PRICE, 2, 100, 9), (None, 9 * PRICE, 100, 2, 2)),  # the common quota of callers does not apply
        *((3, 9 * PRICE, 2, 100, 3), (9, 3 * PRICE, 2, 100, 3), (9, 0, 100, 100, 0)),
    ],
)
def test_quotas_in_images_and_in_money_hold_together(
    service: InMemoryService, own_images: int | None, own_usd: int, each_caller: int, whole_stack: int, admitted: int
) -> None:
    service.own_images_per_day, service.own_usd_per_day = own_images, own_usd
    service.each_caller, service.whole_stack = each_caller, whole_stack
    for _ in range(admitted):
        service.submit()
    with pytest.raises(errors.QuotaExceededError):
        service.submit()
    assert (spent(service), images(service)) == (admitted * PRICE, {admitted})


@pytest.mark.parametrize(
    ("failures", "left"),
    [
        (["before"], (0, 0, 0)),
        ([None, "before"], (0, 0, 0)),
        ([None, None, "before"], (0, 0, 0)),
        # If it is not known whether the counter changed, it stays as it is until the day ends.
        ([None, "after"], (0, PRICE, 0)),
        ([None, None, "after"], (0, 0, 1)),
        ([None, None, "before", "before"], (1, 0, 0)),
    ],
)
def test_a_reservation_is_undone_as_far_as_the_counters_answer(
    service: InMemoryService, failures: Sequence[Any], left: tuple[int, int, int]
) -> None:
    service.counters.failures.extend(failures)
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit()
    used = service.counters.used
    assert (used["alice", DAY], used["usd:alice", DAY], used["*", DAY]) == left
    assert service.records.newest("alice", 10) == []


def test_a_reservation_is_undone_if_the_record_cannot_be_written(service: InMemoryService) -> None:
    before(service.records, "create", raising(NO_RECORDS))
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit()
    assert (spent(service), images(service)) == (0, {0})


def test_a_repeated_request_for_an_id_takes_money_once(service: InMemoryService) -> None:
    service.counters.failures += [None, "after"]
    with pytest.raises(errors.RecordsUnavailableError):
        service.submit(generation_id=GIVEN)
    assert not service.submit(generation_id=GIVEN).attached
    assert service.submit(generation_id=GIVEN).attached
    assert (spent(service), images(service)) == (PRICE, {1})


# Settlement.


def ended(
    service: InMemoryService, *calls: UpstreamCall, status: Status = Status.COMPLETED, **fields: Any
) -> Generation:
    generation = service.admitted(**fields)
    service.left_behind(generation, *calls)
    return service.ended(generation, status)


def answered(n: int = 1, sent: int = 1, **answer: Any) -> UpstreamCall:
    return UpstreamCall((), attempts(sent), CallAnswer(tuple(AnsweredImage() for _ in range(n)), **answer))


def of_tokens(count: int) -> UpstreamCall:
    return answered(usage={"input_tokens": 0, "output_tokens": count})


@pytest.mark.parametrize(
    ("fields", "calls", "cost"),
    [
        ({}, [answered()], PRICE),
        ({}, [], 0),
        ({}, [UpstreamCall((), attempts(2, refused=2))], 0),
        ({}, [UpstreamCall((), attempts(1))], PRICE),
        ({}, [answered(sent=2)], 2 * PRICE),
        ({"n": 3}, [answered(), UpstreamCall((), attempts(1, refused=1)), UpstreamCall((), attempts(1))], 2 * PRICE),
        ({"model": "gpt-image-1"}, [of_tokens(4_000)], 40_000),
        ({"model": "gpt-image-1"}, [of_tokens(25_000)], 250_000),
        ({"model": "gpt-image-1"}, [answered()], MOST),
    ],
    ids=["answered", "not sent", "refused", "unknown", "repeated", "in part", "tokens", "tokens above max", "no usage"],
)
def test_the_counter_holds_what_was_charged_after_the_end_however_often_it_is_published(
    service: InMemoryService, fields: dict[str, Any], calls: list[UpstreamCall], cost: int
) -> None:
    generation = ended(service, *calls, **fields)
    for view in (generation, generation, service.record(generation)):  # two processes may have read the same end
        service.publish(view)
        assert spent(service) == cost
    spending = service.record(generation).spending
    assert spending is not None
    assert (spending.taken, spending.changes) == (cost, int(cost != spending.reserved))


def test_money_is_settled_on_the_day_of_its_reservation(service: InMemoryService) -> None:
    generation = ended(service, of_tokens(25_000), model="gpt-image-1")
    service.now += 24 * 3600
    service.publish(generation)
    refused = service.admitted()
    service.publish(service.ended(refused, Status.FAILED))
    assert (spent(service), spent(service, NEXT_DAY)) == (250_000, 0)


def test_nothing_is_settled_before_the_end_or_without_a_quota_in_money(service: InMemoryService) -> None:
    service.publish(service.claimed(service.admitted()))
    assert spent(service) == PRICE
    service.own_usd_per_day = None
    service.publish(ended(service, model="flux"))
    assert "note_spending" not in service.records.asked


LESS, MORE = (of_tokens(4_000), 40_000), (of_tokens(25_000), 250_000)


@pytest.mark.parametrize(
    ("outcome", "port", "when", "at_first", "at_last"),
    [
        (LESS, "note_spending", "before", MOST, 40_000),
        (LESS, "note_spending", "after", MOST, MOST),  # noted and perhaps not given back: it stays taken
        (LESS, "give_back", "before", MOST, MOST),
        (LESS, "give_back", "after", 40_000, 40_000),
        (MORE, "take", "before", MOST, 250_000),
        (MORE, "take", "after", 250_000, 250_000),
        (MORE, "note_spending", "before", 250_000, 250_000),
        (MORE, "note_spending", "after", 250_000, 250_000),
    ],
)
def test_a_death_during_a_settlement_allows_less_and_never_more(
    service: InMemoryService, outcome: tuple[UpstreamCall, int], port: str, when: str, at_first: int, at_last: int
) -> None:
    generation = ended(service, outcome[0], model="gpt-image-1")
    hook = before if when == "before" else after
    hook(service.records if port == "note_spending" else service.counters, port, raising(NO_RECORDS))
    try:
        service.publish(generation)
    except errors.RecordsUnavailableError:
        assert not service.published
    assert spent(service) == at_first
    for _ in range(2):
        service.publish(service.record(generation))
    assert spent(service) == at_last
    spending = service.record(generation).spending
    assert spending is not None
    assert spending.taken == outcome[1]


@pytest.mark.parametrize("outcome", [LESS, MORE], ids=["less", "more"])
def test_two_processes_that_settle_the_same_cost_settle_it_once(
    service: InMemoryService, outcome: tuple[UpstreamCall, int]
) -> None:
    generation = ended(service, outcome[0], model="gpt-image-1")
    before(service.records, "note_spending", lambda *_: service.publish(generation), once=True)
    service.publish(generation)
    assert spent(service) == outcome[1]


@pytest.mark.parametrize("late", [4_000, 12_000, 25_000], ids=["less", "a little more", "more"])
@pytest.mark.parametrize("early", [True, False], ids=["the early view is first", "the late view is first"])
def test_processes_that_saw_different_costs_settle_the_latest(service: InMemoryService, late: int, early: bool) -> None:
    """A cancelled generation ends before its call is answered."""
    calls = (UpstreamCall((), attempts(2)),)
    cancelled = ended(service, *calls, status=Status.CANCELLED, model="gpt-image-1")
    service.records.save_answer(cancelled.id, 0, of_tokens(late).answer or CallAnswer(()))
    views = [cancelled, service.record(cancelled)]
    first, second = views if early else reversed(views)
    before(service.records, "note_spending", lambda *_: service.returns.settle(first), once=True)
    service.returns.settle(second)
    service.returns.settle(service.record(cancelled))
    assert spent(service) == 10 * late + MOST  # one attempt was answered, and the other is unknown
    spending = service.record(cancelled).spending
    assert spending is not None
    assert spending.taken == spent(service)


def test_a_settlement_of_a_deleted_generation_stays(service: InMemoryService) -> None:
    generation = ended(service, MORE[0], model="gpt-image-1")

    def delete(*_: object) -> None:
        service.publish(generation)
        service.buried(generation)

    before(service.records, "note_spending", delete, once=True)
    service.publish(generation)
    assert spent(service) == MORE[1]


def test_money_of_a_call_that_is_refused_after_a_cancellation_is_returned_then(service: InMemoryService) -> None:
    cancelled = ended(service, UpstreamCall((), attempts(1)), status=Status.CANCELLED)
    service.publish(cancelled)
    assert spent(service) == PRICE
    service.records.save_failure(cancelled.id, 0, 1, REFUSED)
    for _ in range(2):
        service.publish(service.record(cancelled))
        assert spent(service) == 0


# An operator's retry.


def failed_and_retried(service: InMemoryService, *calls: UpstreamCall, n: int) -> Generation:
    """On the next day."""
    generation = ended(service, *calls, status=Status.FAILED, n=n)
    service.publish(generation)
    service.now = NOW + 24 * 3600
    waiting = service.retry(generation.id)
    assert waiting is not None
    return waiting


def tried(service: InMemoryService, waiting: Generation, call: int, *failures: Any) -> None:
    """The next attempt at a call ends with the failure, or is answered without one."""
    claimed = service.claimed(waiting)
    assert claimed.owner
    number = claimed.calls[call].sent + 1
    service.records.save_attempt(waiting.id, claimed.owner, call, number, UpstreamAttempt("reseller", service.now))
    for failure in failures:
        service.records.save_failure(waiting.id, call, number, failure)
    if not failures:
        service.records.save_answer(waiting.id, call, CallAnswer((AnsweredImage(),)))
    status = Status.FAILED if failures else Status.COMPLETED
    service.publish(service.ended(claimed, status))


REFUSAL, FAILURE = (
    UpstreamCall((), (UpstreamAttempt("reseller", NOW, failure=failure),)) for failure in (REFUSED, FAILED)
)


@pytest.mark.parametrize(
    ("before_it", "outcome", "first_day", "reserved", "second_day"),
    [
        ([answered(), REFUSAL], [], PRICE, PRICE, PRICE),
        ([answered(), REFUSAL], [REFUSED], PRICE, PRICE, 0),
        ([answered(), FAILURE], [], 2 * PRICE, 0, PRICE),
        ([answered(), FAILURE], [REFUSED], 2 * PRICE, 0, 0),
        ([REFUSAL, REFUSAL], [], 0, 2 * PRICE, PRICE),
    ],
    ids=["refused", "refused twice", "perhaps charged", "perhaps charged, then refused", "all refused"],
)
def test_a_retry_reserves_again_what_was_returned_and_settles_it_on_its_own_day(
    service: InMemoryService,
    before_it: list[UpstreamCall],
    outcome: list[Any],
    first_day: int,
    reserved: int,
    second_day: int,
) -> None:
    waiting = failed_and_retried(service, *before_it, n=2)
    assert (spent(service), spent(service, NEXT_DAY)) == (first_day, reserved)
    tried(service, waiting, 1, *outcome)
    for _ in range(2):
        service.publish(service.record(waiting))
        assert (spent(service), spent(service, NEXT_DAY)) == (first_day, second_day)


def test_a_retry_that_was_not_accepted_takes_no_money(service: InMemoryService) -> None:
    generation = ended(service, REFUSAL, status=Status.FAILED)
    service.publish(generation)
    second: list[Generation | None] = []
    before(service.queue, "send", lambda *_, **__: second.append(service.retry(generation.id)), once=True)
    assert service.retry(generation.id) is None
    assert second[0] is not None
    assert (spent(service), images(service)) == (PRICE, {1})


def test_a_settlement_that_a_retry_overtakes_changes_nothing(service: InMemoryService) -> None:
    """The process that settles has read the record before the retry began."""
    generation = ended(service, REFUSAL, status=Status.FAILED)
    service.publish(generation)
    stale = service.record(generation)
    service.retry(generation.id)
    calls = (msgspec.structs.replace(stale.calls[0], attempts=attempts(5)),)
    for view in (stale, msgspec.structs.replace(stale, calls=calls)):
        service.returns.settle(view)
        assert spent(service) == PRICE
