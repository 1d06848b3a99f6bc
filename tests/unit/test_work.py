"""Work on a generation: who may, for how long, what is told of its end, and what its messages become."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from imagegen.allowance import Allowance
from imagegen.deadline import Deadline
from imagegen.errors import (
    AbandonedError,
    ImageStorageError,
    OutcomeUnknownError,
    PartialGenerationError,
    PromptRejectedError,
    RecordsUnavailableError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
)
from imagegen.failures import cost_money
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Generation,
    Markers,
    Status,
    StoredImage,
    admit,
    fingerprint,
)
from imagegen.images import ImageBody, ImageRequest, ResponseFormat
from imagegen.work import ORPHAN_SECONDS, LargeAnswer, Workshop, give_up, work, work_on_message
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider, png

NOW = 1_760_000_000.0
LEASE = 60.0
AT_MOST_SECONDS = 10  # only ever waited for in full where a test fails
BEAT_SECONDS = 0.02


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.generate._FIRST_PAUSE_SECONDS", 0)


@dataclass
class World:
    pool: ThreadPoolExecutor
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    provider: FakeProvider = field(default_factory=FakeProvider)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)
    held: list[float] = field(default_factory=list)
    now: float = NOW
    lease: float = LEASE
    repeat_unknown: bool = True
    large_answer: LargeAnswer = lambda _: None

    def __post_init__(self) -> None:
        self.source = FakeImageSource(self.provider.files)

    @property
    def workshop(self) -> Workshop:
        return Workshop(
            records=self.records,
            queue=self.queue,
            counters=self.counters,
            bus=self.bus,
            images=self.images,
            source=self.source,
            providers={"openai_compatible": self.provider},
            pool=self.pool,
            large_answer=self.large_answer,
            now=lambda: self.now,
            repeat_unknown=self.repeat_unknown,
            lease=self.lease,
        )

    def admitted(
        self, *, n: int = 1, response_format: ResponseFormat = "url", key: str | None = None, retry: int | None = None
    ) -> Generation:
        request = ImageRequest("a cat", "dall-e-3", response_format, n)
        markers = Markers(key, retry)
        generation = admit(request, caller="alice", base_url="https://x.example", now=NOW, markers=markers)
        self.records.create(generation, fingerprint(request))
        return generation

    def left(self, generation: Generation, *calls: Call) -> None:
        """A worker claimed it, wrote down these calls, and died long ago."""
        self.records.claim(generation.id, "dead", now=NOW - 100, lease_until=NOW - 1)
        for index, call in enumerate(calls):
            self.records.save_call(generation.id, "dead", index, call)

    def deliver(self, generation_id: str, *, sent_at: float = NOW) -> float | None:
        return work_on_message(
            generation_id, self.workshop, Deadline.after(AT_MOST_SECONDS), sent_at=sent_at, hold=self.held.append
        )

    def record(self, generation: Generation) -> Generation:
        found = self.records.get(generation.id)
        assert found is not None
        return found


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as executor:
        yield executor


@pytest.fixture
def world(pool: ThreadPoolExecutor) -> World:
    return World(pool)


# Messages.


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_a_message_has_its_generation_made(world: World, n: int, response_format: ResponseFormat) -> None:
    generation = world.admitted(n=n, response_format=response_format)
    world.now += 7
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.completed_at, record.failure) == (Status.COMPLETED, NOW + 7, None)
    assert record.stored_ids == generation.image_ids
    assert sorted(world.images.saved) == sorted(generation.image_ids)
    assert [call.n for call in world.provider.calls] == [1] * n
    assert record.repeated_calls == 0


@pytest.mark.parametrize(("left", "again"), [(60.0, 60.0), (12.5, 12.5), (0.2, 1.0), (0.0, 1.0)])
def test_a_message_that_meets_a_live_lease_comes_again_when_the_lease_ends(
    world: World, left: float, again: float
) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + left)
    assert world.deliver(generation.id) == pytest.approx(again)
    assert world.provider.calls == []
    assert world.record(generation).owner == "other"


def test_a_message_that_comes_twice_at_once_is_worked_on_once(world: World) -> None:
    generation = world.admitted()
    again: list[float | None] = []
    world.provider.during_call = lambda: again.append(world.deliver(generation.id))
    assert world.deliver(generation.id) is None
    assert again == [LEASE]
    assert len(world.provider.calls) == 1
    assert world.record(generation).status is Status.COMPLETED


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_a_message_for_what_has_ended_has_done_its_duty(world: World, status: Status) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    world.records.end(generation.id, "other", status, now=NOW)
    assert world.deliver(generation.id) is None
    assert (world.provider.calls, world.record(generation).status) == ([], status)


@pytest.mark.parametrize("age", [0.0, 1.0, ORPHAN_SECONDS])
def test_a_message_that_comes_before_its_record_comes_again_soon(world: World, age: float) -> None:
    again = world.deliver("gen_AAAAAAAAAAAAAAAAAAAAAA", sent_at=NOW - age)
    assert again is not None
    assert 0 < again < LEASE


def test_a_message_whose_record_never_came_is_dropped(world: World) -> None:
    assert world.deliver("gen_AAAAAAAAAAAAAAAAAAAAAA", sent_at=NOW - ORPHAN_SECONDS - 0.1) is None


def test_a_message_for_what_was_deleted_deletes_what_is_left(world: World) -> None:
    generation = world.admitted()
    for image_id in generation.image_ids:
        world.images.save(image_id, ImageBody("image/png", 3, iter([b"png"])), Deadline.after(9))
    world.records.bury(generation, now=NOW)
    assert world.deliver(generation.id) is None
    assert world.images.saved == {}
    assert world.records.tombstone(generation.id) is None
    assert world.provider.calls == []


def test_a_message_for_what_cannot_be_deleted_comes_again(pool: ThreadPoolExecutor) -> None:
    class Images(FakeImageStore):
        def delete(self, image_id: str, deadline: Deadline) -> None:
            raise ImageStorageError("no")

    world = World(pool, images=Images())
    generation = world.admitted()
    world.records.bury(generation, now=NOW)
    with pytest.raises(ImageStorageError):
        world.deliver(generation.id)
    assert world.records.tombstone(generation.id) is not None


@pytest.mark.parametrize("asked_before", [0, 1])
def test_where_records_cannot_be_asked_the_message_comes_again(world: World, asked_before: int) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    world.records.failures.extend([None] * asked_before + ["before"])
    with pytest.raises(RecordsUnavailableError):
        world.deliver(generation.id)


# Taking over.


def test_what_nobody_had_begun_is_begun_after_the_lease(world: World) -> None:
    generation = world.admitted()
    world.left(generation)
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.repeated_calls) == (Status.COMPLETED, 0)
    assert record.owner != "dead"


def test_what_was_answered_is_fetched_and_not_bought_again(world: World) -> None:
    generation = world.admitted()
    world.provider.files["https://images.example/paid.png"] = png("paid")
    answer = CallAnswer((AnsweredImage("https://images.example/paid.png", "a nicer cat"),))
    world.left(generation, Call(generation.image_ids, 1, answer))
    assert world.deliver(generation.id) is None
    assert world.provider.calls == []
    assert world.images.saved[generation.image_ids[0]] == ("image/png", png("paid"))
    assert world.record(generation).revised_prompt(generation.image_ids[0]) == "a nicer cat"


def test_what_was_stored_is_found_and_not_bought_again(world: World) -> None:
    generation = world.admitted(response_format="b64_json")
    world.left(generation, Call(generation.image_ids, 1))
    content = png("stored")
    body = ImageBody("image/png", len(content), iter([content]))
    world.images.save(generation.image_ids[0], body, Deadline.after(9))
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (world.provider.calls, record.status) == ([], Status.COMPLETED)
    assert record.stored == {generation.image_ids[0]: StoredImage("image/png", len(content))}


def test_a_call_of_unknown_outcome_is_sent_once_more_and_counted(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, 1))
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (len(world.provider.calls), record.repeated_calls, record.status) == (1, 1, Status.COMPLETED)


@pytest.mark.parametrize(("sent", "repeat_unknown"), [(2, True), (1, False)])
def test_a_call_of_unknown_outcome_that_is_not_to_be_repeated_fails_its_generation(
    world: World, sent: int, repeat_unknown: bool
) -> None:
    world.repeat_unknown = repeat_unknown
    generation = world.admitted(key="k")
    world.left(generation, Call(generation.image_ids, sent))
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, OutcomeUnknownError.__name__)
    assert world.provider.calls == []
    assert world.records.key_holder("alice", "k") is not None


def test_a_repeated_call_that_is_refused_leaves_it_unknown_whether_the_first_was_paid(world: World) -> None:
    generation = world.admitted(key="k")
    world.left(generation, Call(generation.image_ids, 1))
    world.provider.failures.append(UpstreamRateLimitedError("Later."))
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert cost_money(record.failure)
    assert world.records.key_holder("alice", "k") is not None


# The heartbeat.


def beating(world: World, beats: int = 3) -> Generation:
    """A generation whose upstream answers only after so many beats."""
    world.lease = 3 * BEAT_SECONDS
    enough = threading.Event()

    class Hold(list[float]):
        def append(self, seconds: float) -> None:
            super().append(seconds)
            if len(self) == beats:
                enough.set()

    world.held = Hold()

    def call() -> None:
        world.now += 1000
        assert enough.wait(AT_MOST_SECONDS)

    world.provider.during_call = call
    return world.admitted()


def test_a_heartbeat_renews_the_lease_and_holds_the_message(world: World) -> None:
    generation = beating(world)
    assert world.deliver(generation.id) is None
    assert world.record(generation).lease_until == world.now + world.lease
    assert world.records.asked.count("renew") >= 3
    assert set(world.held) == {world.lease}


def test_a_heartbeat_that_finds_no_records_beats_on(pool: ThreadPoolExecutor) -> None:
    class Flaky(FakeGenerationStore):
        def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
            tries.append(lease_until)
            if len(tries) <= 2:
                raise RecordsUnavailableError("no")
            super().renew(generation_id, owner, lease_until)

    tries: list[float] = []
    world = World(pool, records=Flaky())
    generation = beating(world, beats=1)
    assert world.deliver(generation.id) is None
    assert len(tries) >= 3
    assert world.record(generation).status is Status.COMPLETED


def test_a_message_that_cannot_be_held_hinders_nothing(world: World) -> None:
    generation = world.admitted()
    world.lease = 3 * BEAT_SECONDS
    tried = threading.Event()

    def hold(_: float) -> None:
        tried.set()
        raise OSError("no")

    def call() -> None:
        assert tried.wait(AT_MOST_SECONDS)

    world.provider.during_call = call
    deadline = Deadline.after(AT_MOST_SECONDS)
    assert work_on_message(generation.id, world.workshop, deadline, sent_at=NOW, hold=hold) is None
    assert world.record(generation).status is Status.COMPLETED


def test_a_heartbeat_stops_when_the_claim_is_lost(world: World) -> None:
    world.lease = 3 * BEAT_SECONDS
    generation = world.admitted()

    def call() -> None:
        world.records.cancel(generation.id, now=NOW)
        until = time.monotonic() + AT_MOST_SECONDS
        while "renew" not in world.records.asked and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(6 * BEAT_SECONDS)

    world.provider.during_call = call
    world.deliver(generation.id)
    assert world.records.asked.count("renew") == 1
    assert world.held == []


@pytest.mark.parametrize("failure", [None, UpstreamFailedError("no"), KeyError("a fault of ours")])
def test_a_heartbeat_ends_with_the_work(world: World, failure: Exception | None) -> None:
    world.lease = 3 * BEAT_SECONDS
    generation = world.admitted()
    world.provider.failures.append(failure)
    try:
        world.deliver(generation.id)
    except KeyError:
        assert isinstance(failure, KeyError)
    assert [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"] == []


def test_work_that_is_done_here_holds_no_message(world: World) -> None:
    generation = world.admitted()
    claimed = world.records.claim(generation.id, "api", now=NOW, lease_until=NOW + LEASE)
    assert claimed is not None
    work(claimed, "api", world.workshop, Deadline.after(AT_MOST_SECONDS))
    assert world.record(generation).status is Status.COMPLETED
    assert (world.queue.held, world.held) == ([], [])


# Ends.


def test_a_failure_with_nothing_spent_ends_the_record_and_frees_the_key(world: World) -> None:
    generation = world.admitted(key="k", retry=0)
    world.provider.failures.append(PromptRejectedError("no", code="content_policy_violation"))
    world.now += 3
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.completed_at) == (Status.FAILED, NOW + 3)
    assert (record.failure.kind, record.failure.code) == ("PromptRejectedError", "content_policy_violation")
    assert world.records.key_holder("alice", "k") is None
    assert world.records.attach_retry("alice", fingerprint(generation.request), 1, since=0) is None


def test_a_failure_after_spending_ends_the_record_and_keeps_the_key(world: World) -> None:
    generation = world.admitted(key="k", retry=0)
    world.provider.failures.append(UpstreamFailedError("no"))
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, "UpstreamFailedError")
    holder = world.records.key_holder("alice", "k")
    assert holder is not None
    assert holder.generation_id == generation.id
    body = fingerprint(generation.request)
    assert world.records.attach_retry("alice", body, 1, since=0) == generation.id


def test_a_part_that_is_missing_is_told_with_its_cause_and_keeps_the_key(world: World) -> None:
    generation = world.admitted(n=3, key="k")
    world.provider.failures += [None, UpstreamRateLimitedError("Later."), None]
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert record.failure.cause is not None
    assert record.failure.kind == PartialGenerationError.__name__
    assert record.failure.cause.kind == "UpstreamRateLimitedError"
    assert (record.status, len(record.stored_ids)) == (Status.FAILED, 2)
    assert world.records.key_holder("alice", "k") is not None


def test_a_fault_of_ours_leaves_the_generation_to_the_next(world: World) -> None:
    generation = world.admitted()
    world.provider.failures.append(KeyError("a fault of ours"))
    with pytest.raises(KeyError):
        world.deliver(generation.id)
    record = world.record(generation)
    assert (record.status, record.calls[0].sent, record.failure) == (Status.IN_PROGRESS, 1, None)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_that_cannot_be_written_is_told(world: World, when: str) -> None:
    class Endless(FakeGenerationStore):
        def end(self, *arguments: object, **more: object) -> Generation:
            if when == "after":
                super().end(*arguments, **more)  # type: ignore[arg-type]
            raise RecordsUnavailableError("no")

    world.records = Endless()
    generation = world.admitted()
    with pytest.raises(RecordsUnavailableError):
        world.deliver(generation.id)
    assert len(world.images.saved) == 1
    assert world.record(generation).status is (Status.COMPLETED if when == "after" else Status.IN_PROGRESS)
    assert len(world.provider.calls) == 1


# Cancelled and deleted while the upstream works.


def test_cancelling_while_the_upstream_works_sends_no_further_call(world: World) -> None:
    generation = world.admitted(n=3)
    world.provider.during_call = lambda: world.records.cancel(generation.id, now=NOW)
    with ThreadPoolExecutor(1) as one_by_one:
        world.pool = one_by_one
        assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (len(world.provider.calls), record.status, record.owner) == (1, Status.CANCELLED, None)
    assert world.deliver(generation.id) is None
    assert len(world.provider.calls) == 1


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_what_is_cancelled_stays_cancelled_when_its_answer_comes(world: World, response_format: ResponseFormat) -> None:
    generation = world.admitted(response_format=response_format)
    cancelled: list[Generation | None] = []
    world.provider.during_call = lambda: cancelled.append(world.records.cancel(generation.id, now=NOW))
    assert world.deliver(generation.id) is None
    assert [replace(world.record(generation), announced=False)] == cancelled


def test_what_is_cancelled_keeps_what_was_stored(world: World) -> None:
    generation = world.admitted(response_format="b64_json")
    world.provider.during_call = lambda: world.records.cancel(generation.id, now=NOW)
    world.deliver(generation.id)
    assert list(world.images.saved) == list(generation.image_ids)


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_stored_after_a_deletion_is_deleted_again(world: World, n: int) -> None:
    generation = world.admitted(n=n, response_format="b64_json")
    world.provider.during_call = lambda: world.records.bury(generation, now=NOW)
    assert world.deliver(generation.id) is None
    assert world.images.tries
    assert world.images.saved == {}
    assert world.records.get(generation.id) is None


def test_images_fetched_after_a_deletion_are_deleted_again(world: World) -> None:
    generation = world.admitted()
    world.images.during_save = lambda: world.records.bury(generation, now=NOW)
    assert world.deliver(generation.id) is None
    assert world.images.tries == list(generation.image_ids)
    assert world.images.saved == {}


def test_who_lost_the_claim_to_another_worker_leaves_all_to_it(world: World) -> None:
    generation = world.admitted(response_format="b64_json")

    def taken_over() -> None:
        world.records.claim(generation.id, "other", now=NOW + LEASE + 1, lease_until=NOW + 200)

    world.provider.during_call = taken_over
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.owner) == (Status.IN_PROGRESS, "other")
    assert list(world.images.saved) == list(generation.image_ids)


# Large answers.


def large(_: Generation) -> tuple[int, Iterator[bytes]]:
    return 8, iter([b'{"a": ', b"1}"])


def test_a_large_answer_is_stored_before_the_record_ends(pool: ThreadPoolExecutor) -> None:
    at_that_time: list[Generation] = []

    class Images(FakeImageStore):
        def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
            at_that_time.append(world.record(generation))
            super().save_answer(generation_id, length, blocks, deadline)

    world = World(pool, images=Images(), large_answer=large)
    generation = world.admitted(n=3, response_format="b64_json")
    assert world.deliver(generation.id) is None
    (record,) = at_that_time
    assert (record.status, record.stored_ids) == (Status.IN_PROGRESS, generation.image_ids)
    assert world.images.answers == {generation.id: b'{"a": 1}'}
    assert world.record(generation).status is Status.COMPLETED


def test_whether_an_answer_is_large_is_judged_by_the_whole_record(world: World) -> None:
    judged: list[Generation] = []

    def judge(generation: Generation) -> None:
        judged.append(generation)

    world.large_answer = judge
    generation = world.admitted(n=3, response_format="b64_json")
    world.deliver(generation.id)
    assert [(each.id, each.stored_ids) for each in judged] == [(generation.id, generation.image_ids)]
    assert world.images.answers == {}


def test_an_answer_of_links_is_never_large(world: World) -> None:
    world.large_answer = large
    generation = world.admitted()
    world.deliver(generation.id)
    assert world.images.answers == {}


def test_a_large_answer_that_cannot_be_stored_fails_the_generation_and_keeps_its_images(
    pool: ThreadPoolExecutor,
) -> None:
    class Images(FakeImageStore):
        def save_answer(self, *arguments: object) -> None:
            raise ImageStorageError("no")

    world = World(pool, images=Images(), large_answer=large)
    generation = world.admitted(response_format="b64_json", key="k")
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert cost_money(record.failure)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)
    assert world.records.key_holder("alice", "k") is not None


def test_a_large_answer_that_is_stored_after_a_deletion_is_deleted_again(pool: ThreadPoolExecutor) -> None:
    class Images(FakeImageStore):
        def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
            records.bury(generation, now=NOW)
            super().save_answer(generation_id, length, blocks, deadline)

    records = FakeGenerationStore()
    world = World(pool, records, Images(), large_answer=large)
    generation = world.admitted(response_format="b64_json")
    assert world.deliver(generation.id) is None
    assert world.images.saved == {}
    assert world.images.answers == {}


@pytest.mark.parametrize("gone", ["cancelled", "deleted"])
def test_no_large_answer_is_stored_for_what_is_cancelled_or_deleted(pool: ThreadPoolExecutor, gone: str) -> None:
    class Records(FakeGenerationStore):
        """The caller is faster than the look at the whole record."""

        def get(self, generation_id: str) -> Generation | None:
            if generation_id in taken:
                return super().get(generation_id)
            taken.append(generation_id)
            if gone == "cancelled":
                self.cancel(generation_id, now=NOW)
            else:
                self.bury(generation, now=NOW)
            return super().get(generation_id)

    taken: list[str] = []
    world = World(pool, records=Records(), large_answer=large)
    generation = world.admitted(response_format="b64_json")
    assert world.deliver(generation.id) is None
    assert taken == [generation.id]
    assert world.images.answers == {}
    assert bool(world.images.saved) is (gone == "cancelled")


# Dead letters.


def test_what_every_attempt_died_on_is_failed(world: World) -> None:
    generation = world.admitted(key="k")
    world.left(generation, Call(generation.image_ids, 1))
    assert give_up(generation.id, world.workshop) is None
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, AbandonedError.__name__)
    assert (record.completed_at, record.owner) == (NOW, None)
    assert cost_money(record.failure)
    assert world.records.key_holder("alice", "k") is not None


def test_what_nobody_ever_claimed_is_failed(world: World) -> None:
    generation = world.admitted()
    assert give_up(generation.id, world.workshop) is None
    assert world.record(generation).status is Status.FAILED


@pytest.mark.parametrize(("left", "again"), [(60.0, 60.0), (0.5, 1.0)])
def test_what_somebody_works_on_is_not_given_up(world: World, left: float, again: float) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + left)
    assert give_up(generation.id, world.workshop) == pytest.approx(again)
    assert world.record(generation).status is Status.IN_PROGRESS


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_what_has_ended_is_not_given_up(world: World, status: Status) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW - 1)
    world.records.end(generation.id, "other", status, now=NOW)
    before = world.record(generation)
    assert give_up(generation.id, world.workshop) is None
    assert world.record(generation) == replace(before, announced=True)


def test_what_is_not_there_is_not_given_up(world: World) -> None:
    assert give_up("gen_AAAAAAAAAAAAAAAAAAAAAA", world.workshop) is None


# What was reserved.


def used_after(world: World, generation: Generation) -> set[int]:
    Allowance(world.counters, 10, 10).reserve("alice", generation.request.n, now=generation.created_at)
    for _ in range(2):
        world.deliver(generation.id)
    return set(world.counters.used.values())


@pytest.mark.parametrize(
    ("failure", "used"),
    [(PromptRejectedError("no"), 0), (UpstreamRateLimitedError("later"), 0), (UpstreamFailedError("broken"), 1)],
)
def test_what_nothing_was_spent_on_gives_its_images_back(world: World, failure: Exception, used: int) -> None:
    world.provider.failures.append(failure)
    assert used_after(world, world.admitted(n=1)) == {used}


def test_what_is_completed_stays_taken(world: World) -> None:
    assert used_after(world, world.admitted(n=2)) == {2}


@pytest.mark.parametrize(("sent", "used"), [(0, 0), (1, 1)])
def test_what_is_given_up_gives_its_images_back_where_nothing_was_sent(world: World, sent: int, used: int) -> None:
    generation = world.admitted(n=1)
    Allowance(world.counters, 10, 10).reserve("alice", 1, now=generation.created_at)
    world.left(generation, Call(generation.calls[0].image_ids, sent=sent))
    assert give_up(generation.id, world.workshop) is None
    assert set(world.counters.used.values()) == {used}
