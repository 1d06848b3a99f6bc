"""Admission: which requests are one and the same, and that no crash can lose what was admitted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from imagegen.allowance import STACK, Allowance
from imagegen.errors import (
    AllowanceSpentError,
    GenerationCancelledError,
    IdempotencyKeyReusedError,
    PromptRejectedError,
    RecordsUnavailableError,
    SubmissionUncertainError,
    UpstreamFailedError,
)
from imagegen.failures import kept
from imagegen.generations import Generation, IdTakenError, Status, admit, fingerprint, is_generation_id
from imagegen.images import ImageRequest
from imagegen.submit import KEY_SECONDS, RETRY_SECONDS, SAFETY_NET_LEASES, Attempt, Desk, Submitted, submit
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore, When

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_760_000_000.5
LEASE = 60.0
REQUEST = ImageRequest("a cat", "dall-e-3", "url")
OTHER = replace(REQUEST, prompt="a dog")
KEYED = Attempt("k")
PLAIN = Attempt()


@dataclass
class World:
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    each_caller: int = 1000
    whole_stack: int = 1000
    now: float = NOW
    slept: list[float] = field(default_factory=list)

    def submit(
        self,
        attempt: Attempt = PLAIN,
        request: ImageRequest = REQUEST,
        *,
        caller: str = "alice",
        work_here: bool = False,
        generation_id: str | None = None,
    ) -> Submitted:
        allowance = Allowance(self.counters, each_caller=self.each_caller, whole_stack=self.whole_stack)
        desk = Desk(self.records, self.queue, allowance, lambda: self.now, LEASE, self.slept.append)
        try:
            return submit(
                request,
                attempt,
                desk,
                caller=caller,
                base_url="https://x.example/v1",
                work_here=work_here,
                generation_id=generation_id,
            )
        finally:
            self.now += 0.001  # no two are begun at the same time

    @property
    def messages(self) -> list[str]:
        """The generations with messages behind them."""
        return list(dict.fromkeys(generation_id for generation_id, _ in self.queue.sent))

    def id_of(self, attempt: Attempt = PLAIN, request: ImageRequest = REQUEST, *, caller: str = "alice") -> str:
        return self.submit(attempt, request, caller=caller).generation.id

    def record(self, generation_id: str) -> Generation:
        record = self.records.get(generation_id)
        assert record is not None
        return record

    def delete(self, generation_id: str) -> None:
        ended = self.records.cancel(generation_id, now=self.now)
        assert ended is not None
        self.records.bury(ended, now=self.now)

    def fail(self, generation_id: str, error: PromptRejectedError | UpstreamFailedError) -> None:
        self.records.claim(generation_id, "worker", now=self.now, lease_until=self.now + LEASE)
        self.records.end(generation_id, "worker", Status.FAILED, now=self.now, failure=kept(error))


@pytest.fixture
def world() -> World:
    return World()


def test_a_request_becomes_a_waiting_record_with_a_message_behind_it(world: World) -> None:
    submitted = world.submit()
    generation = submitted.generation
    assert (submitted.owner, submitted.attached) == (None, False)
    assert is_generation_id(generation.id)
    assert world.record(generation.id) == generation
    assert (generation.status, generation.caller, generation.created_at) == (Status.QUEUED, "alice", NOW)
    assert (generation.request, generation.base_url) == (REQUEST, "https://x.example/v1")
    assert world.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES), (generation.id, 0)]
    assert world.queue.callers == {"alice"}


@pytest.mark.parametrize("work_here", [False, True])
def test_a_message_comes_after_the_first_lease_also_where_the_first_message_is_lost(
    world: World, work_here: bool
) -> None:
    """A worker that dies at once takes its message along for the queue's whole time-out."""
    generation = world.submit(KEYED, work_here=work_here).generation
    world.records.claim(generation.id, "dies", now=NOW, lease_until=NOW + LEASE)
    sent, delay = world.queue.sent[0]
    assert sent == generation.id
    assert LEASE < delay < 3 * LEASE


def test_what_is_worked_on_here_is_claimed_and_its_message_waits_until_the_lease_is_gone(world: World) -> None:
    submitted = world.submit(KEYED, work_here=True)
    generation = world.record(submitted.generation.id)
    assert generation == submitted.generation
    assert submitted.owner
    assert (generation.status, generation.owner) == (Status.IN_PROGRESS, submitted.owner)
    assert generation.lease_until == NOW + LEASE
    ((sent, delay),) = world.queue.sent
    assert sent == generation.id
    assert delay > LEASE
    assert world.records.claim(generation.id, "other", now=NOW + LEASE, lease_until=NOW + 99) is None
    assert world.records.claim(generation.id, "other", now=NOW + delay, lease_until=NOW + 99) is not None


def test_every_claim_here_has_a_token_of_its_own(world: World) -> None:
    assert len({world.submit(work_here=True).owner for _ in range(20)}) == 20


class HookedQueue(FakeGenerationQueue):
    """`during_send` runs inside each sending, before the message is there."""

    def __init__(self) -> None:
        super().__init__()
        self.during_send: Callable[[float], object] = lambda _: None

    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        self.during_send(delay)
        super().send(generation_id, caller, delay=delay)


class WatchedCounters(FakeAllowanceCounters):
    """`log` is called for each image that is taken."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    def take(self, who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
        self._log.append("quota")
        return super().take(who, day, images, limit, token=token)


@pytest.mark.parametrize("work_here", [False, True])
@pytest.mark.parametrize(
    ("attempt", "marker"),
    [
        (KEYED, ["hold_key"]),
        (Attempt(retry=0), ["mark_attempt"]),
        (Attempt(retry=1), ["attach_attempt", "mark_attempt"]),
    ],
)
def test_the_order_is_marker_quota_safety_net_record_and_work_message(
    attempt: Attempt, marker: list[str], work_here: bool
) -> None:
    queue = HookedQueue()
    world = World(queue=queue)
    log = world.records.asked
    world.counters = WatchedCounters(log)
    queue.during_send = lambda delay: log.append("safety net" if delay else "work message")
    world.submit(attempt, work_here=work_here)
    assert log == [*marker, "quota", "quota", "safety net", "create", *([] if work_here else ["work message"])]


def test_a_safety_net_that_took_more_than_half_its_delay_is_sent_again_before_the_record() -> None:
    queue = HookedQueue()
    world = World(queue=queue)
    half = LEASE * SAFETY_NET_LEASES / 2
    took = [half + 0.1, half - 0.1, 0.0]
    written: list[int] = []

    def pass_time(_: float) -> None:
        world.now += took.pop(0)
        written.append(world.records.asked.count("create"))

    queue.during_send = pass_time
    submitted = world.submit(work_here=True)
    assert [delay for _, delay in queue.sent] == [2 * half, 2 * half]
    assert written == [0, 0]
    assert submitted.generation.lease_until == pytest.approx(
        NOW + 2 * half + LEASE, abs=0.01
    )  # it begins with the record


def test_a_work_message_that_cannot_be_sent_does_not_fail_the_request(world: World) -> None:
    world.queue.failures += [None, "before"]
    submitted = world.submit()
    assert world.record(submitted.generation.id) == submitted.generation
    assert world.queue.sent == [(submitted.generation.id, LEASE * SAFETY_NET_LEASES)]
    assert used(world) == 1


@pytest.mark.parametrize("work_here", [False, True])
def test_where_the_record_cannot_be_written_only_a_message_is_left(world: World, work_here: bool) -> None:
    world.records.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.submit(work_here=work_here)
    assert world.records.newest("alice", 10) == []
    assert len(world.messages) == 1


def test_where_the_message_cannot_be_sent_no_record_is_written(world: World) -> None:
    world.queue.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.submit(KEYED)
    assert world.records.asked == ["hold_key", "void"]


@pytest.mark.parametrize("attempt", [KEYED, Attempt(retry=1)])
def test_where_records_cannot_be_asked_nothing_is_sent(world: World, attempt: Attempt) -> None:
    world.records.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.submit(attempt)
    assert world.queue.sent == []


# Idempotency keys.


def test_the_same_key_and_body_are_one_generation(world: World) -> None:
    first, second = world.submit(KEYED, work_here=True), world.submit(KEYED, work_here=True)
    assert second.generation == first.generation
    assert (second.attached, second.owner) == (True, None)
    assert len(world.messages) == 1


def test_a_repeated_key_gives_the_record_as_it_is_by_now(world: World) -> None:
    generation_id = world.id_of(KEYED)
    world.records.cancel(generation_id, now=NOW + 5)
    assert world.submit(KEYED).generation.status is Status.CANCELLED


def test_a_key_holds_whatever_the_count_of_retries_says(world: World) -> None:
    assert len({world.id_of(Attempt("k", retry)) for retry in (0, 1, 0, 2)}) == 1


def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    world.submit(KEYED)
    with pytest.raises(IdempotencyKeyReusedError) as refused:
        world.submit(KEYED, OTHER)
    assert refused.value.param == "Idempotency-Key"
    assert len(world.messages) == 1


def test_keys_and_callers_are_kept_apart(world: World) -> None:
    ids = {world.id_of(KEYED), world.id_of(Attempt("K")), world.id_of(KEYED, OTHER, caller="bob")}
    assert len(ids) == 3


def test_a_key_holds_for_a_day(world: World) -> None:
    first = world.id_of(KEYED)
    world.now = NOW + KEY_SECONDS
    assert world.id_of(KEYED) == first


@pytest.mark.parametrize("request_", [REQUEST, OTHER])
def test_a_key_older_than_a_day_begins_anew_with_any_body(world: World, request_: ImageRequest) -> None:
    first = world.id_of(KEYED)
    world.now = NOW + KEY_SECONDS + 1
    anew = world.submit(KEYED, request_)
    assert (anew.attached, anew.generation.id != first) == (False, True)
    assert world.id_of(KEYED, request_) == anew.generation.id


def test_a_key_whose_generation_failed_with_nothing_spent_begins_anew(world: World) -> None:
    first = world.id_of(KEYED)
    world.fail(first, PromptRejectedError("no"))
    anew = world.submit(KEYED)
    assert (anew.attached, anew.generation.id != first) == (False, True)
    assert world.id_of(KEYED) == anew.generation.id


def test_a_key_whose_generation_failed_after_spending_tells_the_failure_again(world: World) -> None:
    first = world.id_of(KEYED)
    world.fail(first, UpstreamFailedError("broken"))
    again = world.submit(KEYED)
    assert (again.attached, again.generation.id, again.generation.status) == (True, first, Status.FAILED)


def test_a_key_whose_generation_was_deleted_begins_anew(world: World) -> None:
    first = world.id_of(KEYED)
    world.delete(first)
    anew = world.id_of(KEYED)
    assert anew != first
    assert world.id_of(KEYED) == anew


@pytest.mark.parametrize("work_here", [False, True])
def test_of_a_hundred_at_once_with_one_key_all_get_one_generation(world: World, work_here: bool) -> None:
    barrier = threading.Barrier(100)

    def come(_: int) -> Submitted:
        barrier.wait(30)
        return world.submit(KEYED, work_here=work_here)

    with ThreadPoolExecutor(100) as pool:
        submitted = list(pool.map(come, range(100)))
    assert len({each.generation.id for each in submitted}) == 1
    assert sum(not each.attached for each in submitted) == 1
    assert sum(each.owner is not None for each in submitted) == work_here
    assert len(world.records.newest("alice", 100)) == 1


def test_of_a_hundred_at_once_with_an_old_key_all_get_one_new_generation(world: World) -> None:
    old = world.id_of(KEYED)
    world.now = NOW + KEY_SECONDS + 1
    barrier = threading.Barrier(100)

    def come(_: int) -> str:
        barrier.wait(30)
        return world.id_of(KEYED)

    with ThreadPoolExecutor(100) as pool:
        ids = set(pool.map(come, range(100)))
    assert len(ids) == 1
    assert old not in ids


def test_a_race_that_is_lost_is_slept_over_and_ends_attached() -> None:
    class Late(FakeGenerationStore):
        """Another request takes the key between the look and the write."""

        def create(self, generation: Generation) -> None:
            if not others:
                others.append(generation.id)
                twin = World(self, now=NOW).submit(KEYED)
                others.append(twin.generation.id)
            super().create(generation)

    others: list[str] = []
    world = World(Late())
    submitted = world.submit(KEYED, work_here=True)
    assert (submitted.attached, submitted.owner) == (True, None)
    assert submitted.generation.id == others[1]
    assert len(world.slept) == 1
    assert 0 < world.slept[0] < 1


def test_races_that_are_always_lost_do_not_go_on_for_ever() -> None:
    class Taken(FakeGenerationStore):
        def create(self, generation: Generation) -> None:
            raise IdTakenError

    world = World(Taken())
    with pytest.raises(RecordsUnavailableError):  # nothing is spent, so it may be retried
        world.submit(KEYED)


@pytest.mark.parametrize(("first", "again"), [(KEYED, KEYED), (Attempt(retry=0), Attempt(retry=1))])
@pytest.mark.parametrize("work_here", [False, True])
def test_a_retry_while_the_first_attempt_waits_for_sqs_begins_no_second_generation(
    first: Attempt, again: Attempt, work_here: bool
) -> None:
    queue = HookedQueue()
    world = World(queue=queue)
    retried: list[Submitted] = []

    def retry(_: float) -> None:
        queue.during_send = lambda _: None
        retried.append(world.submit(again, work_here=work_here))

    queue.during_send = retry
    submitted = world.submit(first, work_here=work_here)
    assert [each.generation.id for each in retried] == [submitted.generation.id]
    assert (retried[0].attached, submitted.attached, submitted.owner) == (False, True, None)
    assert len(world.records.newest("alice", 10)) == 1
    assert (used(world), used(world, STACK)) == (1, 1)


@pytest.mark.parametrize("attempt", [KEYED, Attempt(retry=1)])
def test_a_marker_without_a_record_begins_that_same_id(world: World, attempt: Attempt) -> None:
    body = fingerprint(REQUEST)
    if attempt.idempotency_key:
        world.records.hold_key("alice", attempt.idempotency_key, GIVEN, body, now=NOW, expired_before=0)
    else:
        world.records.mark_attempt("alice", body, GIVEN, 0, now=NOW)
    submitted = world.submit(attempt)
    assert (submitted.generation.id, submitted.attached) == (GIVEN, False)


@pytest.mark.parametrize("attempts", [[KEYED] * 3, [Attempt(retry=0), Attempt(retry=1), Attempt(retry=2)]])
def test_a_marker_whose_record_was_voided_is_replaced_by_one_new_id(world: World, attempts: list[Attempt]) -> None:
    world.records.failures += [None, "before"]  # the marker, the record
    with pytest.raises(RecordsUnavailableError):
        world.submit(attempts[0])
    (void,) = world.messages
    anew = world.submit(attempts[1])
    assert (anew.attached, anew.generation.id != void) == (False, True)
    assert world.id_of(attempts[2]) == anew.generation.id
    assert (used(world), used(world, STACK)) == (1, 1)


# Retries that clients count.


def test_a_retry_attaches_to_the_first_attempt(world: World) -> None:
    first = world.id_of(Attempt(retry=0))
    for retry in (1, 2):
        again = world.submit(Attempt(retry=retry), work_here=True)
        assert (again.attached, again.owner, again.generation.id) == (True, None, first)
    assert len(world.messages) == 1


def test_a_late_retry_attaches_although_a_later_one_came_before_it(world: World) -> None:
    first = world.id_of(Attempt(retry=0))
    assert [world.id_of(Attempt(retry=retry)) for retry in (2, 1)] == [first, first]


def test_first_attempts_with_the_same_body_stay_apart_and_so_do_their_retries(world: World) -> None:
    firsts = {world.id_of(Attempt(retry=0)) for _ in range(3)}
    assert len(firsts) == 3
    for retry in (1, 2):
        assert {world.id_of(Attempt(retry=retry)) for _ in range(3)} == firsts


def test_first_attempts_at_once_with_the_same_body_stay_apart(world: World) -> None:
    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(lambda _: world.id_of(Attempt(retry=0)), range(20)))) == 20


def test_a_retry_whose_first_attempt_never_came_begins_one_that_the_next_attaches_to(world: World) -> None:
    began = world.submit(Attempt(retry=1), work_here=True)
    assert (began.attached, began.owner is None) == (False, False)
    assert world.id_of(Attempt(retry=2)) == began.generation.id


def test_a_retry_never_attaches_to_who_does_not_count(world: World) -> None:
    plain = world.id_of(PLAIN)
    assert world.id_of(PLAIN) != plain
    assert world.id_of(Attempt(retry=1)) != plain


def test_a_retry_without_a_key_never_attaches_to_a_generation_with_one(world: World) -> None:
    """Whoever sent a key comes back with it, so this retry is another client's."""
    own, keyed = world.id_of(Attempt(retry=0)), world.id_of(Attempt("k", 0))
    assert world.id_of(Attempt("k", 1)) == keyed
    assert world.id_of(Attempt(retry=1)) == own


def test_a_retry_never_attaches_to_another_caller_or_body(world: World) -> None:
    ids = [world.id_of(Attempt(retry=0)), world.id_of(Attempt(retry=1), OTHER)]
    ids.append(world.id_of(Attempt(retry=1), caller="bob"))
    assert len(set(ids)) == 3


def test_a_retry_attaches_to_nothing_old(world: World) -> None:
    first = world.id_of(Attempt(retry=0))
    world.now = NOW + RETRY_SECONDS - 1
    assert world.id_of(Attempt(retry=1)) == first
    world.now = NOW + RETRY_SECONDS + 1
    assert world.id_of(Attempt(retry=2)) != first


def test_a_retry_of_what_failed_with_nothing_spent_begins_anew(world: World) -> None:
    first = world.submit(Attempt(retry=0)).generation
    world.fail(first.id, PromptRejectedError("no"))
    anew = world.submit(Attempt(retry=1))
    assert (anew.attached, anew.generation.id != first.id) == (False, True)
    assert world.id_of(Attempt(retry=2)) == anew.generation.id


def test_a_retry_of_what_failed_after_spending_tells_the_failure_again(world: World) -> None:
    first = world.id_of(Attempt(retry=0))
    world.fail(first, UpstreamFailedError("broken"))
    assert world.id_of(Attempt(retry=1)) == first


def test_a_retry_of_what_was_deleted_begins_anew(world: World) -> None:
    first = world.id_of(Attempt(retry=0))
    world.delete(first)
    assert world.id_of(Attempt(retry=1)) != first


def test_retries_at_once_never_share_a_generation_or_begin_one_too_many(world: World) -> None:
    firsts = {world.id_of(Attempt(retry=0)) for _ in range(20)}
    with ThreadPoolExecutor(20) as pool:
        again = list(pool.map(lambda _: world.id_of(Attempt(retry=1)), range(20)))
    assert (set(again), len(again)) == (firsts, len(firsts))


@pytest.mark.parametrize(
    ("attempt", "retried", "known"),
    [
        (PLAIN, False, False),
        (KEYED, False, True),  # its retry would be known, but nobody says that there will be one
        (Attempt(retry=0), True, True),
        (Attempt("k", 2), True, True),
    ],
)
def test_a_client_that_tries_again_by_itself_is_known_when_it_does(
    world: World, attempt: Attempt, retried: bool, known: bool
) -> None:
    assert attempt.is_retried is retried
    first = world.id_of(attempt)
    again = Attempt(attempt.idempotency_key, None if attempt.retry is None else attempt.retry + 1)
    assert (world.id_of(again) == first) is known


# The allowance.


def used(world: World, who: str = "alice") -> int:
    return sum(images for (each, _), images in world.counters.used.items() if each == who)


def test_a_new_generation_takes_its_images_from_both_allowances(world: World) -> None:
    standing = world.submit(request=replace(REQUEST, n=3)).standing
    assert standing is not None
    assert (standing.limit, standing.remaining) == (1000, 997)
    assert 0 < standing.reset <= 24 * 3600
    assert (used(world), used(world, STACK)) == (3, 3)


@pytest.mark.parametrize("again", [KEYED, Attempt(retry=1)])
def test_what_attaches_takes_nothing(world: World, again: Attempt) -> None:
    world.submit(KEYED if again is KEYED else Attempt(retry=0))
    assert world.submit(again).standing is None
    assert used(world) == 1


@pytest.mark.parametrize(("each_caller", "whole_stack"), [(4, 1000), (1000, 4), (0, 0)])
def test_over_an_allowance_nothing_is_begun_and_nothing_taken(each_caller: int, whole_stack: int) -> None:
    world = World(each_caller=each_caller, whole_stack=whole_stack)
    with pytest.raises(AllowanceSpentError) as spent:
        world.submit(request=replace(REQUEST, n=5))
    assert spent.value.remaining == min(each_caller, whole_stack)
    assert (used(world), used(world, STACK)) == (0, 0)
    assert world.queue.sent == []
    assert world.records.newest("alice", 10) == []


def test_one_callers_allowance_is_not_anothers_but_the_stacks_is(world: World) -> None:
    world.each_caller, world.whole_stack = 2, 3
    world.submit(request=replace(REQUEST, n=2))
    with pytest.raises(AllowanceSpentError):
        world.submit()
    world.submit(caller="bob")
    with pytest.raises(AllowanceSpentError):
        world.submit(caller="bob")


def test_the_allowance_begins_anew_with_the_day(world: World) -> None:
    world.each_caller = 1
    world.submit()
    with pytest.raises(AllowanceSpentError) as spent:
        world.submit()
    world.now += spent.value.reset - 1
    with pytest.raises(AllowanceSpentError):
        world.submit()
    world.now += 1
    world.submit()


@pytest.mark.parametrize("own", [0, 5])
def test_a_callers_own_allowance_goes_before_everybodys(world: World, own: int) -> None:
    desk = Desk(world.records, world.queue, Allowance(world.counters, 2, 100), lambda: NOW, LEASE)

    def one() -> Submitted:
        return submit(REQUEST, PLAIN, desk, caller="a", base_url="", work_here=False, images_per_day=own)

    for _ in range(own):
        one()
    with pytest.raises(AllowanceSpentError):
        one()


def test_where_the_last_of_an_allowance_went_to_the_same_request_it_attaches(world: World) -> None:
    """An event that is delivered twice at once is one generation, and refused to nobody."""
    generation_id = f"gen_{'t' * 22}"
    twins: list[str] = []
    take = world.counters.take

    def taken_by_the_twin(who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
        if not twins:
            twins.append(generation_id)
            world.submit(generation_id=generation_id)
        return take(who, day, images, limit, token=token)

    world.each_caller = 1
    world.counters.take = taken_by_the_twin  # type: ignore[method-assign]
    assert world.submit(generation_id=generation_id).attached
    assert used(world) == 1


def test_with_many_at_once_exactly_the_allowance_is_begun(world: World) -> None:
    world.each_caller = 50

    def one(_: int) -> bool:
        try:
            world.submit()
        except AllowanceSpentError:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(one, range(200))) == 50
    assert len(world.records.newest("alice", 1000)) == used(world) == 50


def test_a_race_for_the_last_of_an_allowance_with_one_key_is_won_once_and_joined_by_all(world: World) -> None:
    world.each_caller = 1
    barrier = threading.Barrier(10)

    def one(_: int) -> str:
        barrier.wait(10)
        return world.id_of(KEYED)

    with ThreadPoolExecutor(10) as pool:
        assert len(set(pool.map(one, range(10)))) == 1
    assert used(world) == 1


def test_where_no_message_can_be_sent_the_reservation_is_given_back(world: World) -> None:
    world.queue.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.submit()
    assert (used(world), used(world, STACK)) == (0, 0)


def test_where_no_record_was_written_none_ever_will_be_and_the_reservation_is_given_back(world: World) -> None:
    world.records.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.submit()
    (generation_id,) = world.messages
    late = admit(REQUEST, caller="alice", base_url="", now=NOW, generation_id=generation_id)
    with pytest.raises(IdTakenError):
        world.records.create(late)
    assert (used(world), used(world, STACK)) == (0, 0)


def test_where_nobody_knows_whether_a_record_was_written_the_reservation_stays(world: World) -> None:
    first = Attempt(retry=0)
    world.records.failures += [None, "after", "before"]  # the marker, the record, `void`
    with pytest.raises(SubmissionUncertainError) as uncertain:
        world.submit(first)
    assert (used(world), used(world, STACK)) == (1, 1)
    again = world.submit(Attempt(retry=1))
    assert (again.attached, again.generation.id) == (True, uncertain.value.generation_id)


def test_a_record_whose_answer_was_lost_is_accepted_with_its_work_message(world: World) -> None:
    world.records.failures.append("after")
    submitted = world.submit()
    assert world.record(submitted.generation.id) == submitted.generation
    assert world.queue.sent[-1] == (submitted.generation.id, 0)
    assert used(world) == 1


@pytest.mark.parametrize("failures", [["before"], [None, "before"]])
def test_where_an_allowance_cannot_be_asked_nothing_is_begun_and_nothing_taken(
    world: World, failures: list[When | None]
) -> None:
    world.counters.failures += failures
    with pytest.raises(RecordsUnavailableError):
        world.submit()
    assert (used(world), used(world, STACK)) == (0, 0)
    assert world.records.newest("alice", 10) == []


# Under an id that is given.

GIVEN = "gen_" + "A" * 22


def test_however_often_it_is_asked_for_one_id_is_one_generation_with_one_reservation(world: World) -> None:
    submitted = [world.submit(generation_id=GIVEN) for _ in range(5)]
    assert [each.attached for each in submitted] == [False, True, True, True, True]
    assert {each.generation.id for each in submitted} == {GIVEN}
    assert set(world.counters.used.values()) == {REQUEST.n}


def test_a_reader_whose_counter_loses_its_answer_leaves_the_reservation_of_another_reader(world: World) -> None:
    take = world.counters.take

    def read_by_another_meanwhile(who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
        if who == STACK:
            world.counters.take = take  # type: ignore[method-assign]
            world.submit(generation_id=GIVEN)
            take(who, day, images, limit, token=token)
            raise RecordsUnavailableError("The answer was lost.")
        return take(who, day, images, limit, token=token)

    world.counters.take = read_by_another_meanwhile  # type: ignore[method-assign]
    with pytest.raises(RecordsUnavailableError):
        world.submit(generation_id=GIVEN)
    assert world.submit(generation_id=GIVEN).attached
    assert (used(world), used(world, STACK)) == (1, 1)


def test_asked_for_at_once_one_id_is_one_generation_with_one_reservation(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        submitted = list(pool.map(lambda _: world.submit(generation_id=GIVEN), range(8)))
    assert [each.attached for each in submitted].count(False) == 1
    assert set(world.counters.used.values()) == {REQUEST.n}


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_the_record_of_a_given_id_cannot_be_written_the_next_try_begins_or_finds_it(
    world: World, when: When
) -> None:
    world.records.failures.extend((None, when))  # the one is the look whether it is there
    with pytest.raises(RecordsUnavailableError):
        world.submit(generation_id=GIVEN)
    assert world.submit(generation_id=GIVEN).attached == (when == "after")
    assert world.record(GIVEN).status is Status.QUEUED


@pytest.mark.parametrize("deleted", [True, False])
def test_a_given_id_that_is_void_is_cancelled_and_costs_no_quota(world: World, deleted: bool) -> None:
    if deleted:
        world.submit(generation_id=GIVEN)
        world.delete(GIVEN)
    else:
        world.records.void(GIVEN, now=NOW)
    before = used(world)
    with pytest.raises(GenerationCancelledError):
        world.submit(generation_id=GIVEN)
    assert (used(world), used(world, STACK)) == (before, before)
