"""The routes of a model: which upstream is called, what follows a refusal, and what waits in the queue."""

from typing import Any

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError
from imagegen.domain.generations import Generation, Origin, Status
from imagegen.domain.images import ImageRequest
from imagegen.domain.models import LONGEST_DEADLINE_SECONDS
from imagegen.domain.slots import Slot
from imagegen.domain.upstreams import Route
from imagegen.usecases.send_upstream_call import TRIES
from tests.fakes.provider import FakeProvider
from tests.support.hooks import before
from tests.support.in_memory import InMemoryService, StillDeadline
from tests.support.models import MODELS, admitted

TWO_ROUTES = "gpt-image-1.5"  # by OpenAI, then by the reseller
DEADLINE_SECONDS = MODELS["dall-e-3"].deadline_seconds
LIMITED, UNAVAILABLE = errors.UpstreamRateLimitedError("slow down"), errors.UpstreamUnavailableError("not now")
UNREACHABLE, NO_CREDIT = errors.UpstreamUnreachableError("no route"), errors.UpstreamOutOfCreditError("no credit")
KEY_REFUSED, NO_MODEL = errors.UpstreamKeyRefusedError("no"), errors.UpstreamLacksModelError("no", param="model")
NOT_THERE = errors.UpstreamMisconfiguredError("no images here")
FALLS_BACK = [LIMITED, UNAVAILABLE, UNREACHABLE, NO_CREDIT, KEY_REFUSED, NO_MODEL, NOT_THERE]
FINAL = [
    errors.PromptRejectedError("not that"),
    errors.UpstreamRefusedRequestError("no such size"),
    errors.UpstreamFailedError("broke"),
    errors.UpstreamTimeoutError("too slow"),
    errors.UpstreamConnectionLostError("lost"),
    errors.UpstreamAnswerInvalidError("no JSON"),
    KeyError("a bug"),
]


def named(error: Exception) -> str:
    return type(error).__name__


@pytest.fixture
def openai(service: InMemoryService) -> FakeProvider:
    """The upstream of the first route of the model. `service.provider` is that of the second."""
    service.other_providers["openai"] = openai = FakeProvider()
    service.source.files = openai.files = service.provider.files
    return openai


def dies() -> None:
    raise SystemExit


def attempts(service: InMemoryService, generation: Generation) -> list[tuple[str, str | None]]:
    """The attempts on the record: their upstreams and failures."""
    (call,) = service.record(generation).calls
    return [(each.upstream, each.failure.code if each.failure else None) for each in call.attempts]


def delivered(service: InMemoryService, generation: Generation, poll: int = 0) -> Generation:
    service.deliver(generation.id, poll)
    return service.record(generation)


def test_the_first_route_serves_and_the_record_names_it(service: InMemoryService, openai: FakeProvider) -> None:
    generation = service.admitted(model=TWO_ROUTES)
    assert delivered(service, generation).upstreams == ("openai",)
    assert attempts(service, generation) == [("openai", None)]
    assert (len(openai.calls), service.provider.calls) == (1, [])


@pytest.mark.parametrize("failure", FALLS_BACK, ids=named)
def test_the_next_route_follows_at_once_if_nothing_was_bought_and_the_request_is_not_to_blame(
    service: InMemoryService, openai: FakeProvider, failure: ImagegenError
) -> None:
    openai.failures.append(failure)
    generation = service.admitted(model=TWO_ROUTES)
    record = delivered(service, generation)
    assert (record.status, record.upstreams, service.slept) == (Status.COMPLETED, ("reseller",), [])
    assert attempts(service, generation) == [("openai", failure.code), ("reseller", None)]
    assert record.repeated_calls == 0


@pytest.mark.parametrize("failure", FINAL, ids=named)
def test_no_other_route_is_called_after_a_failure_that_may_be_charged_or_is_the_callers(
    service: InMemoryService, openai: FakeProvider, failure: Exception
) -> None:
    openai.failures.append(failure)
    assert delivered(service, service.admitted(model=TWO_ROUTES)).status is Status.FAILED
    assert (len(openai.calls), service.provider.calls) == (1, [])


def test_an_upstream_without_a_key_costs_no_attempt(service: InMemoryService, openai: FakeProvider) -> None:
    service.has_key["openai"] = False
    generation = service.admitted(model=TWO_ROUTES)
    delivered(service, generation)
    assert attempts(service, generation) == [("reseller", None)]


@pytest.mark.parametrize("unknown", [False, True], ids=["", "an earlier outcome is unknown"])
def test_without_any_key_nothing_is_spent_unless_an_earlier_outcome_is_unknown(
    service: InMemoryService, *, unknown: bool
) -> None:
    generation = service.admitted(model=TWO_ROUTES)
    if unknown:
        service.provider.failures.append(None)
        service.provider.during_call = dies
        with pytest.raises(SystemExit):
            service.deliver(generation.id)
        service.now += 2 * service.lease
    service.has_key["reseller"] = False
    failure = delivered(service, generation).failure
    assert failure
    assert failure.code == (errors.OutcomeUnknownError.code if unknown else errors.SecretMissingError.code)
    assert service.used == ({1} if unknown else {0})


@pytest.mark.parametrize("failure", [UNAVAILABLE, UNREACHABLE], ids=named)
def test_if_all_routes_refuse_those_that_may_soon_be_ready_are_tried_three_times(
    service: InMemoryService, openai: FakeProvider, failure: ImagegenError
) -> None:
    openai.failures.append(NO_CREDIT)
    service.provider.failures.extend([failure] * TRIES)
    record = delivered(service, service.admitted(model=TWO_ROUTES))
    assert (TRIES, len(openai.calls), len(service.provider.calls)) == (3, 1, TRIES)
    assert record.failure
    assert (record.failure.code, record.failure.money_spent) == (failure.code, False)
    assert service.used == {0}
    for pause, longest in zip(service.slept, (0.5, 1), strict=True):
        assert longest / 2 <= pause <= longest


@pytest.mark.parametrize(("seconds", "pauses"), [(0.0, [0.0]), (8.0, [8.0]), (8.1, [])])
def test_the_time_that_an_upstream_names_is_waited_for_unless_it_is_long(
    service: InMemoryService, seconds: float, pauses: list[float]
) -> None:
    busy = errors.UpstreamUnavailableError("not now")
    busy.retry_after = seconds
    service.provider.failures.append(busy)
    record = delivered(service, service.admitted(model=TWO_ROUTES))
    assert (record.status is Status.COMPLETED, service.slept) == (bool(pauses), pauses)
    if not pauses:
        assert record.failure
        assert record.failure.retry_after == seconds


def test_a_pause_does_not_outlast_the_deadline(service: InMemoryService) -> None:
    service.provider.failures.extend([UNAVAILABLE] * 2)
    generation = service.admitted(model=TWO_ROUTES)
    assert service.deliver(generation.id, seconds=0.2) is None
    assert (len(service.provider.calls), service.slept) == (1, [])


def test_a_generation_at_the_rate_limit_of_all_routes_waits_in_the_queue(
    service: InMemoryService, openai: FakeProvider
) -> None:
    openai.failures.append(LIMITED)
    service.provider.failures.append(LIMITED)
    generation = service.admitted(model=TWO_ROUTES)
    record = delivered(service, generation)
    assert (record.status, record.lease_until, record.polls) == (Status.IN_PROGRESS, 0, 1)
    assert (service.slept, service.queue.polls[-1]) == ([], 1)
    _, delay = service.queue.sent[-1]
    assert 1.5 <= delay <= 2
    service.now += delay
    assert delivered(service, generation, 1).upstreams == ("openai",)


def test_the_api_function_releases_a_generation_that_waits_for_its_rate(service: InMemoryService) -> None:
    service.provider.failures.append(LIMITED)
    generation = service.submit(work_here=True).generation
    service.work(generation)
    assert service.record(generation).lease_until == 0
    assert delivered(service, generation, 1).status is Status.COMPLETED


def refused_until_it_ends(service: InMemoryService, generation: Generation) -> list[float]:
    """Delivers the messages of the generation. Returns the pauses before each."""
    pauses: list[float] = []
    for poll in range(100):
        service.provider.failures.append(LIMITED)
        record = delivered(service, generation, poll)
        if record.ended:
            return pauses
        _, delay = service.queue.sent[-1]
        pauses.append(delay)
        service.now += delay
    raise AssertionError("it does not end")


def test_the_pauses_grow_until_the_deadline_and_then_the_caller_may_retry(service: InMemoryService) -> None:
    generation = service.admitted(model=TWO_ROUTES)
    began = service.now
    pauses = refused_until_it_ends(service, generation)
    longest = DEADLINE_SECONDS / 10
    assert DEADLINE_SECONDS - 2 * longest < service.now - began <= DEADLINE_SECONDS
    assert pauses[0] < pauses[1] < pauses[2]
    assert max(pauses) <= longest
    assert len(pauses) < 25  # a record has room for their attempts
    failure = service.record(generation).failure
    assert failure
    assert (failure.code, failure.money_spent) == (LIMITED.code, False)
    assert failure.retry_after
    assert service.used == {0}


@pytest.mark.parametrize(("seconds", "waits"), [(30.0, True), (DEADLINE_SECONDS + 1.0, False)])
def test_the_named_time_of_a_rate_limit_is_waited_for_within_the_deadline(
    service: InMemoryService, seconds: float, *, waits: bool
) -> None:
    limited = errors.UpstreamRateLimitedError("slow down")
    limited.retry_after = seconds
    service.provider.failures.append(limited)
    record = delivered(service, service.admitted(model=TWO_ROUTES))
    if waits:
        assert service.queue.sent[-1][1] == seconds
    else:
        assert record.failure
        assert record.failure.retry_after == seconds
    assert record.ended is not waits


def test_the_deadline_counts_from_the_first_call_and_not_from_the_request(service: InMemoryService) -> None:
    generation = service.admitted(model=TWO_ROUTES)
    service.now += 10 * DEADLINE_SECONDS  # a long queue
    service.provider.failures.append(LIMITED)
    assert not delivered(service, generation).ended


def test_the_call_of_one_image_waits_and_the_others_are_kept(service: InMemoryService) -> None:
    service.provider.failures.extend([None, LIMITED, None])
    generation = service.admitted(n=3)
    assert len(delivered(service, generation).stored) == 2
    assert delivered(service, generation, 1).status is Status.COMPLETED
    assert len(service.provider.calls) == 4


def test_a_cancelled_generation_is_not_sent_again(service: InMemoryService) -> None:
    service.provider.failures.append(LIMITED)
    generation = service.admitted(model=TWO_ROUTES)
    delivered(service, generation)
    service.cancel(generation.id)
    assert delivered(service, generation, 1).status is Status.CANCELLED
    assert len(service.provider.calls) == 1
    assert service.used == {0}


def test_a_message_that_comes_twice_asks_once(service: InMemoryService) -> None:
    service.provider.failures.extend([LIMITED, LIMITED])
    generation = service.admitted(model=TWO_ROUTES)
    delivered(service, generation)
    delivered(service, generation, 1)
    delivered(service, generation, 1)  # the round has passed
    assert len(service.provider.calls) == 2


def test_a_successor_goes_on_with_the_routes_after_a_refusal(service: InMemoryService, openai: FakeProvider) -> None:
    """The process died between the refusal of one route and the call of the next."""
    openai.failures.append(NO_CREDIT)
    service.provider.failures.append(None)
    service.provider.during_call = dies
    generation = service.admitted(model=TWO_ROUTES)
    with pytest.raises(SystemExit):
        service.deliver(generation.id)
    service.now += 2 * service.lease
    record = delivered(service, generation)
    assert (record.status, record.repeated_calls) == (Status.COMPLETED, 1)


def test_a_record_without_routes_is_of_the_default_upstream(service: InMemoryService, openai: FakeProvider) -> None:
    """As a version before this wrote it."""
    generation = service.admitted(model=TWO_ROUTES)
    service.records._records[generation.id] = msgspec.structs.replace(
        generation, supply=msgspec.structs.replace(generation.supply, routes=(), owned_by="")
    )
    assert delivered(service, generation).upstreams == ("reseller",)


def test_a_key_that_cannot_be_read_now_takes_only_its_route_away(
    service: InMemoryService, openai: FakeProvider
) -> None:
    service.has_key["openai"] = errors.SecretUnavailableError("no answer")
    assert service.runner.calling.routes.available(MODELS[TWO_ROUTES]) == ["reseller"]
    assert delivered(service, service.admitted(model=TWO_ROUTES)).upstreams == ("reseller",)
    service.has_key["reseller"] = False
    assert service.runner.calling.routes.available(MODELS[TWO_ROUTES]) == []
    failure = delivered(service, service.admitted(model=TWO_ROUTES)).failure
    assert failure
    assert failure.code == errors.SecretUnavailableError.code


def test_a_time_that_is_longer_than_a_message_can_wait_is_waited_for(service: InMemoryService) -> None:
    limited = errors.UpstreamRateLimitedError("slow down")
    limited.retry_after = 3600
    service.provider.failures.append(limited)
    generation = with_deadline(service, 7200)
    for poll in range(5):
        delivered(service, generation, poll)
        service.now += service.queue.sent[-1][1]
    assert [delay for _, delay in service.queue.sent] == [900] * 4
    assert [call.n for call in service.provider.calls] == [1, 1]


def with_deadline(service: InMemoryService, seconds: int, **fields: Any) -> Generation:
    generation = service.admitted(model="dall-e-3", **fields)
    routes = (Route("openai", "dall-e-3"), Route("reseller", "dall-e-3"))
    supply = msgspec.structs.replace(generation.supply, routes=routes, deadline_seconds=seconds)
    service.records._records[generation.id] = msgspec.structs.replace(generation, supply=supply)
    return generation


def test_a_record_has_room_for_all_attempts_until_the_longest_deadline(
    service: InMemoryService, openai: FakeProvider
) -> None:
    generation = with_deadline(service, LONGEST_DEADLINE_SECONDS, n=10)
    for poll in range(100):
        for provider in (openai, service.provider):
            provider.failures.extend([LIMITED] * 10)
        if (record := delivered(service, generation, poll)).ended:
            break
        service.now += service.queue.sent[-1][1]
    assert record.ended
    assert sum(len(msgspec.json.encode(call)) for call in record.calls) < 150_000  # of 400 KB


def test_a_late_fallback_is_left_to_a_process_that_has_time_for_it(
    service: InMemoryService, openai: FakeProvider
) -> None:
    service.call_seconds = 600
    left = [885.0]

    class Falling(StillDeadline):
        def remaining(self) -> float:
            return left[0]

    openai.failures.append(UNAVAILABLE)
    openai.during_call = lambda: left.__setitem__(0, 300.0)  # the refusal took long
    generation = service.admitted(model=TWO_ROUTES)
    service.worker.on_message(generation.id, 0, Falling(1), extend_visibility=lambda _: None)
    assert service.provider.calls == []
    assert service.queue.sent[-1][1] == 1
    assert delivered(service, generation, 1).status is Status.COMPLETED


def test_giving_up_a_generation_that_waits_for_its_rate_spent_nothing(service: InMemoryService) -> None:
    service.provider.failures.append(LIMITED)
    generation = service.admitted(model=TWO_ROUTES)
    delivered(service, generation)
    service.give_up(generation.id, 1)
    failure = service.record(generation).failure
    assert failure
    assert (failure.code, failure.money_spent) == (LIMITED.code, False)


def test_a_line_of_a_batch_keeps_its_own_workers(service: InMemoryService) -> None:
    service.provider.failures.append(LIMITED)
    generation = service.admitted(model=TWO_ROUTES)
    of_batch = msgspec.structs.replace(generation, origin=Origin(batch_id="batch_1", line=1))
    service.records._records[generation.id] = of_batch
    delivered(service, generation)
    assert service.queue.queues[-1] == "lines"


def test_nobody_waits_for_a_line_of_a_batch_so_it_has_the_longest_deadline() -> None:
    of_http, of_batch = (
        admitted(ImageRequest("a cat", TWO_ROUTES, "url"), caller="alice", base_url="", now=0, origin=origin)
        for origin in (Origin(), Origin(batch_id="batch_1", line=1))
    )
    assert of_http.supply.deadline_seconds == DEADLINE_SECONDS
    assert of_batch.supply.deadline_seconds == LONGEST_DEADLINE_SECONDS


# An upstream with a limit of calls at once.


def test_a_slot_is_held_until_the_answer_is_on_the_record(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 1
    generation = service.admitted(model=TWO_ROUTES)
    answers: list[object] = []
    before(service.slots, "free", lambda _: answers.append(service.record(generation).calls[0].answer))
    delivered(service, generation)
    assert len(answers) == 1
    assert answers[0] is not None


@pytest.mark.parametrize("end", ["cancelled", "deleted"])
def test_a_generation_that_has_ended_passes_its_slot_on(service: InMemoryService, end: str) -> None:
    service.concurrency["reseller/openai"] = 1
    other = at_work(service)
    first = service.admitted(model=TWO_ROUTES)
    service.now += 1
    second = service.admitted(model=TWO_ROUTES)
    for generation in (first, second):
        delivered(service, generation)
    service.cancel(first.id)
    if end == "deleted":
        service.delete(first.id)
    slot = service.slots.take("reseller/openai", other.id, 0, until=service.now + 600)
    assert slot
    service.runner.calling.limits._bring(service.slots.free(slot))
    assert service.queue.sent[-1] == (first.id, 0)
    service.deliver(first.id, 1)
    assert (second.id, 0) in service.queue.sent


def test_one_that_was_served_elsewhere_leaves_the_waiting_list(service: InMemoryService, openai: FakeProvider) -> None:
    service.concurrency["openai/openai"] = 0
    service.provider.failures.append(LIMITED)
    generation = service.admitted(model=TWO_ROUTES)
    delivered(service, generation)
    assert service.slots.waiting["openai/openai"]
    assert delivered(service, generation, 1).status is Status.COMPLETED
    assert not service.slots.waiting["openai/openai"]


def test_a_full_route_hides_no_rate_limit(service: InMemoryService, openai: FakeProvider) -> None:
    service.concurrency["openai/openai"] = 0
    generation = service.admitted(model=TWO_ROUTES)
    began = service.now
    refused_until_it_ends(service, generation)
    assert service.now - began <= DEADLINE_SECONDS
    failure = service.record(generation).failure
    assert failure
    assert failure.code == LIMITED.code


def at_work(service: InMemoryService) -> Generation:
    """A generation whose call another process has sent. It holds a slot."""
    generation = service.admitted(model=TWO_ROUTES)
    assert service.slots.take("reseller/openai", generation.id, 0, until=service.now + 600)
    return generation


def test_a_generation_without_a_slot_waits_in_the_queue_and_costs_no_attempt(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 1
    other = at_work(service)
    generation = service.admitted(model=TWO_ROUTES)
    record = delivered(service, generation)
    assert (record.polls, record.lease_until, attempts(service, generation)) == (1, 0, [])
    assert service.queue.sent[-1] == (generation.id, 30)

    (slot,) = [slot] if (slot := service.slots.take("reseller/openai", other.id, 0, until=service.now + 600)) else []
    service.runner.calling.limits._bring(service.slots.free(slot))
    assert (service.queue.sent[-1], service.queue.polls[-1]) == ((generation.id, 0), 1)  # it is brought at once
    newcomer = service.admitted(model=TWO_ROUTES)
    assert delivered(service, newcomer).polls == 1  # the slot is kept
    assert delivered(service, generation, 1).status is Status.COMPLETED
    assert (service.queue.sent[-1], service.queue.polls[-1]) == ((newcomer.id, 0), 1)


def test_the_next_route_serves_if_the_first_has_no_slot(service: InMemoryService, openai: FakeProvider) -> None:
    service.concurrency["openai/openai"] = 0
    generation = service.admitted(model=TWO_ROUTES)
    assert delivered(service, generation).upstreams == ("reseller",)
    assert attempts(service, generation) == [("reseller", None)]


@pytest.mark.parametrize("failure", [None, UNAVAILABLE, errors.UpstreamFailedError("broke"), KeyError("bug")])
def test_a_slot_is_free_after_every_outcome(service: InMemoryService, failure: Exception | None) -> None:
    service.concurrency["reseller/openai"] = 1
    service.provider.failures.extend([failure] * TRIES)
    delivered(service, service.admitted(model=TWO_ROUTES))
    assert service.slots.used["reseller/openai"] == {}


def test_as_many_calls_of_a_generation_run_as_there_are_slots(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 2
    generation = service.admitted(n=5)
    rounds = 0
    while not (record := delivered(service, generation, rounds)).ended:
        rounds += 1
        assert rounds < 5
    assert (record.status, len(service.provider.calls)) == (Status.COMPLETED, 5)


def test_the_pauses_of_one_that_nobody_brings_grow(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 0
    generation = service.admitted(model=TWO_ROUTES)
    for poll in range(7):
        delivered(service, generation, poll)
    assert [delay for _, delay in service.queue.sent] == [30, 60, 120, 240, 480, 900, 900]


def test_a_successor_takes_the_slot_of_a_process_that_died(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 1
    service.provider.failures.append(None)
    service.provider.during_call = dies
    generation = service.admitted(model=TWO_ROUTES)
    with pytest.raises(SystemExit):
        service.deliver(generation.id)
    service.provider.during_call = lambda: None
    service.now += 2 * service.lease
    assert delivered(service, generation).status is Status.COMPLETED


# A generation that waits for several upstreams takes the slot of one. The others are for those behind it.


def waiting(service: InMemoryService, count: int) -> list[Generation]:
    """Generations that wait for both upstreams of their model, which each work on the call of another generation."""
    service.concurrency.update({"openai/openai": 1, "reseller/openai": 1})
    for upstream in ("openai", "reseller"):
        assert service.slots.take(f"{upstream}/openai", f"at {upstream}", 0, until=service.now + 600)
    generations = []
    for _ in range(count):
        service.now += 1  # the first one is the first on the lists
        generations.append(service.admitted(model=TWO_ROUTES))
        delivered(service, generations[-1])
    return generations


def freed(service: InMemoryService, *upstreams: str) -> None:
    for upstream in upstreams:
        slot = Slot(f"{upstream}/openai", f"at {upstream}#0", service.now + 600)
        service.slots.used[slot.at][slot.call] = slot.until, 1
        service.runner.calling.limits._bring(service.slots.free(slot))


def last_brought(service: InMemoryService) -> tuple[str, float]:
    return service.queue.sent[-1]


@pytest.mark.parametrize("kept", [True, False], ids=["both slots are kept for the first", "the other is freed later"])
def test_one_that_has_a_slot_leaves_the_lists_of_all_its_upstreams(
    service: InMemoryService, openai: FakeProvider, *, kept: bool
) -> None:
    first, second = waiting(service, 2)
    freed(service, "openai", *(["reseller"] if kept else []))
    assert last_brought(service) == (first.id, 0)

    def meanwhile() -> None:
        if not kept:
            freed(service, "reseller")
        assert last_brought(service) == (second.id, 0)
        assert delivered(service, second, 1).upstreams == ("reseller",)

    openai.during_call = meanwhile
    assert delivered(service, first, 1).upstreams == ("openai",)
    assert service.record(second).status is Status.COMPLETED


def test_one_that_was_cancelled_is_brought_once_and_the_next_follows(
    service: InMemoryService, openai: FakeProvider
) -> None:
    first, second = waiting(service, 2)
    service.cancel(first.id)
    freed(service, "openai")
    assert last_brought(service) == (first.id, 0)
    delivered(service, first, 1)
    assert last_brought(service) == (second.id, 0)
    assert delivered(service, second, 1).upstreams == ("openai",)


def test_a_request_gets_a_slot_before_the_lines_of_a_file_that_came_earlier(service: InMemoryService) -> None:
    service.concurrency["reseller/openai"] = 1
    other = at_work(service)
    line = service.admitted(model=TWO_ROUTES)
    of_batch = msgspec.structs.replace(line, origin=Origin(batch_id="batch_1", line=1))
    service.records._records[line.id] = of_batch
    delivered(service, of_batch)
    service.now += 60
    request = service.admitted(model=TWO_ROUTES)
    delivered(service, request)
    slot = service.slots.take("reseller/openai", other.id, 0, until=service.now + 600)
    assert slot
    service.runner.calling.limits.free(slot)
    assert service.queue.sent[-1] == (request.id, 0)
    assert delivered(service, request, 1).status is Status.COMPLETED
    assert service.queue.sent[-1] == (line.id, 0)
