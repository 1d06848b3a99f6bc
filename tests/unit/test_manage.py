"""What a caller may do with its own generations, and that another's are as if they were not there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from imagegen.allowance import Allowance
from imagegen.announce import announce
from imagegen.deadline import Deadline
from imagegen.errors import (
    DeletionUnfinishedError,
    GenerationEndedError,
    ImageStorageError,
    PromptRejectedError,
    RecordsUnavailableError,
    UnknownGenerationError,
)
from imagegen.failures import kept
from imagegen.generations import Generation, LostClaimError, Status, Tombstone, admit
from imagegen.images import ImageBody, ImageRequest
from imagegen.manage import LEASE_SECONDS, cancel, delete, retry, see
from imagegen.submit import SAFETY_NET_LEASES
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import png

NOW = 1_760_000_000.0
REQUEST = ImageRequest("a cat", "dall-e-3", "b64_json", n=2)


@dataclass
class World:
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)
    now: float = NOW + 5
    settled: list[Generation] = field(default_factory=list)

    def created(self) -> Generation:
        generation = admit(REQUEST, caller="alice", base_url="https://x.example", now=NOW)
        allowance = Allowance(self.counters, 10, 10)
        allowance.reserve("alice", REQUEST.n, now=NOW, token=generation.id, may_undo=lambda: True)
        self.records.create(generation)
        return generation

    def sent(self, generation: Generation) -> None:
        """A worker has asked the upstream for the first image."""
        self.records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
        self.records.save_sending(generation.id, "worker", 0, 1)

    def ended(self, status: Status, *, announced: bool = False) -> Generation:
        """All of its images were made, unless it has failed; then the first was."""
        generation = self.created()
        self.sent(generation)
        if status is Status.COMPLETED:
            self.records.save_sending(generation.id, "worker", 1, 1)
        failure = kept(PromptRejectedError("no")) if status is Status.FAILED else None
        ended = self.records.end(generation.id, "worker", status, now=NOW, failure=failure)
        if announced:
            announce(ended, self.records, self.counters, self.bus, self.settled.append)
        return self.see(generation.id)

    def store(self, generation: Generation) -> None:
        for image_id in generation.image_ids:
            content = png(image_id)
            self.images.save(image_id, ImageBody("image/png", len(content), iter([content])), Deadline.after(9))
        self.images.save_answer(generation.id, 2, iter([b"{}"]), Deadline.after(9))

    def see(self, generation_id: str, caller: str = "alice") -> Generation:
        return see(generation_id, caller, self.records)

    def cancel(self, generation_id: str, caller: str = "alice") -> Generation:
        now = lambda: self.now  # noqa: E731
        return cancel(generation_id, caller, self.records, self.counters, self.bus, now, self.settled.append)

    def delete(self, generation_id: str, caller: str = "alice") -> None:
        now, until = lambda: self.now, Deadline.after(9)
        records, images, settle = self.records, self.images, self.settled.append
        delete(generation_id, caller, records, self.queue, self.counters, self.bus, images, now, until, settle)

    def retry(self, generation_id: str) -> Generation | None:
        return retry(generation_id, self.records, self.counters, self.queue, lambda: self.now)


Act = Callable[[World, str, str], object]
ACTS: Sequence[Act] = (World.see, World.cancel, World.delete)
EACH_ACT = pytest.mark.parametrize("act", ACTS, ids=["see", "cancel", "delete"])


@pytest.fixture
def world() -> World:
    return World()


def test_a_caller_sees_its_own(world: World) -> None:
    generation = world.created()
    assert world.see(generation.id) == generation


@EACH_ACT
def test_anothers_is_as_if_it_were_not_there(world: World, act: Act) -> None:
    generation = world.created()
    world.store(generation)
    with pytest.raises(UnknownGenerationError) as anothers:
        act(world, generation.id, "bob")
    with pytest.raises(UnknownGenerationError) as absent:
        act(world, "gen_AAAAAAAAAAAAAAAAAAAAAA", "bob")
    assert (anothers.value.message, anothers.value.param) == (absent.value.message, absent.value.param)
    assert world.records.get(generation.id) == generation
    assert sorted(world.images.saved) == sorted(generation.image_ids)


@EACH_ACT
@pytest.mark.parametrize(
    "generation_id", ["", "gen_", "key#alice#x", "gen_" + "A" * 21, "gen_" + "A" * 23, "gen_" + "Ä" * 22]
)
def test_what_is_no_id_is_never_looked_up(world: World, act: Act, generation_id: str) -> None:
    with pytest.raises(UnknownGenerationError):
        act(world, generation_id, "alice")
    assert world.records.asked == []


@pytest.mark.parametrize("act", [World.see, World.cancel], ids=["see", "cancel"])
def test_what_was_deleted_is_unknown(world: World, act: Act) -> None:
    generation = world.created()
    world.delete(generation.id)
    with pytest.raises(UnknownGenerationError):
        act(world, generation.id, "alice")


def test_what_waits_is_cancelled(world: World) -> None:
    generation = world.created()
    cancelled = world.cancel(generation.id)
    assert (cancelled.status, cancelled.completed_at) == (Status.CANCELLED, NOW + 5)
    assert world.see(generation.id) == msgspec.structs.replace(cancelled, announced=True, returned=REQUEST.n)


def test_a_second_cancellation_answers_the_same(world: World) -> None:
    generation = world.created()
    world.sent(generation)
    first = world.cancel(generation.id)
    world.now += 100
    second = world.cancel(generation.id)
    assert msgspec.structs.replace(second, announced=first.announced, returned=first.returned) == first
    assert len(world.bus.ended) == 1


def test_what_is_in_progress_is_cancelled_and_its_worker_sends_no_further_call(world: World) -> None:
    generation = world.created()
    world.sent(generation)
    assert world.cancel(generation.id).status is Status.CANCELLED
    with pytest.raises(LostClaimError):
        world.records.save_sending(generation.id, "worker", 1, 1)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_what_was_completed_or_has_failed_cannot_be_cancelled(world: World, status: Status) -> None:
    generation = world.ended(status)
    with pytest.raises(GenerationEndedError):
        world.cancel(generation.id)
    assert world.see(generation.id) == generation


def test_cancelling_leaves_what_is_stored(world: World) -> None:
    generation = world.created()
    world.store(generation)
    world.cancel(generation.id)
    assert sorted(world.images.saved) == sorted(generation.image_ids)


def test_deleting_takes_the_record_the_images_and_the_answer(world: World) -> None:
    generation, other = world.created(), world.created()
    world.store(generation)
    world.store(other)
    world.delete(generation.id)
    assert world.records.get(generation.id) is None
    assert sorted(world.images.saved) == sorted(other.image_ids)
    assert list(world.images.answers) == [other.id]
    assert list(world.records.newest("alice", 10)) == [other]


def test_what_was_never_stored_is_deleted_all_the_same(world: World) -> None:
    generation = world.created()
    world.delete(generation.id)
    assert world.records.get(generation.id) is None


def test_the_tombstone_comes_before_the_images_go() -> None:
    seen: list[Generation | None] = []

    class Images(FakeImageStore):
        def delete(self, image_id: str, deadline: Deadline) -> None:
            seen.append(desk.records.get(generation.id))
            super().delete(image_id, deadline)

    desk = World(images=Images())
    generation = desk.created()
    desk.store(generation)
    desk.delete(generation.id)
    assert seen == [None, None]


@pytest.mark.parametrize("status", [None, Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_the_end_is_published_before_the_tombstone(status: Status | None) -> None:
    """Afterwards there is no record to publish it from."""
    at_that_time: list[Generation] = []

    class Bus(FakeEventBus):
        def generation_ended(self, generation: Generation) -> None:
            super().generation_ended(generation)
            at_that_time.append(desk.see(generation.id))

    desk = World(bus=Bus())
    generation = desk.created() if status is None else desk.ended(status)
    desk.delete(generation.id)
    assert [each.status for each in desk.bus.ended] == [status or Status.CANCELLED]
    assert [each.status for each in at_that_time] == [status or Status.CANCELLED]
    assert desk.records.tombstone(generation.id) is not None


@pytest.mark.parametrize("faulty", ["queue", "bus", "bury"])
def test_a_deletion_that_cannot_be_begun_leaves_the_generation_and_can_be_asked_for_again(faulty: str) -> None:
    class Records(FakeGenerationStore):
        failing = faulty == "bury"

        def bury(self, generation: Generation, *, now: float) -> Tombstone:
            if self.failing:
                raise RecordsUnavailableError("no")
            return super().bury(generation, now=now)

    desk = World(records=Records())
    if faulty == "queue":
        desk.queue.failures.append("before")
    if faulty == "bus":
        desk.bus.failures.append("before")
    generation = desk.created()
    desk.store(generation)
    with pytest.raises(RecordsUnavailableError):
        desk.delete(generation.id)
    assert desk.see(generation.id).status is Status.CANCELLED
    assert sorted(desk.images.saved) == sorted(generation.image_ids)
    assert list(desk.images.answers) == [generation.id]
    desk.records.failing = False  # type: ignore[attr-defined]
    desk.delete(generation.id)
    assert (desk.images.saved, desk.images.answers) == ({}, {})
    assert [each.id for each in desk.bus.ended] == [generation.id]


@pytest.mark.parametrize("announced", [False, True])
def test_a_completed_generation_reads_as_deleted_if_its_deletion_dies_right_after_the_tombstone(
    announced: bool,
) -> None:
    desk = World()
    generation = desk.ended(Status.COMPLETED, announced=announced)
    desk.store(generation)

    class Dying(list[Generation]):
        def append(self, generation: Generation) -> None:
            if desk.records.tombstone(generation.id):
                raise RecordsUnavailableError("no")
            super().append(generation)

    desk.settled = Dying(desk.settled)
    with pytest.raises(RecordsUnavailableError):
        desk.delete(generation.id)
    with pytest.raises(UnknownGenerationError):
        desk.see(generation.id)
    assert [each.status for each in desk.settled] == [Status.COMPLETED]
    assert desk.queue.sent == [(generation.id, LEASE_SECONDS * SAFETY_NET_LEASES)]  # whose receiver deletes the images
    assert desk.queue.callers == {"alice"}


def test_a_new_attempt_that_begins_during_a_deletion_is_cancelled_and_deleted_too() -> None:
    class Bus(FakeEventBus):
        def generation_ended(self, generation: Generation) -> None:
            super().generation_ended(generation)
            if len(self.ended) == 1:
                desk.records.mark_announced(generation)
                assert desk.retry(generation.id) is not None

    desk = World(bus=Bus())
    generation = desk.ended(Status.FAILED)
    desk.delete(generation.id)
    assert desk.records.get(generation.id) is None
    assert [each.status for each in desk.bus.ended] == [Status.FAILED, Status.CANCELLED]


class Stubborn(FakeImageStore):
    """Refuses to delete one image."""

    kept = ""

    def delete(self, image_id: str, deadline: Deadline) -> None:
        if image_id == self.kept:
            raise ImageStorageError("no")
        super().delete(image_id, deadline)


@pytest.fixture
def unfinished() -> tuple[World, Generation]:
    """A generation that is deleted but for its first image."""
    images = Stubborn()
    world = World(images=images)
    generation = world.created()
    world.store(generation)
    images.kept = generation.image_ids[0]
    with pytest.raises(DeletionUnfinishedError):
        world.delete(generation.id)
    assert list(images.saved) == [generation.image_ids[0]]
    assert images.answers == {}
    return world, generation


def test_a_deletion_that_is_unfinished_can_be_asked_for_again(unfinished: tuple[World, Generation]) -> None:
    world, generation = unfinished
    with pytest.raises(DeletionUnfinishedError):
        world.delete(generation.id)
    world.images.kept = ""  # type: ignore[attr-defined]
    for _ in range(2):
        world.delete(generation.id)
        assert world.images.saved == {}
    assert len(world.queue.sent) == 1


def test_an_unfinished_deletion_is_nobody_elses(unfinished: tuple[World, Generation]) -> None:
    world, generation = unfinished
    world.images.kept = ""  # type: ignore[attr-defined]
    with pytest.raises(UnknownGenerationError):
        world.delete(generation.id, "bob")
    assert list(world.images.saved) == [generation.image_ids[0]]


def test_the_message_of_a_deletion_is_sent_when_nothing_slow_is_left_before_the_tombstone() -> None:
    class SlowBus(FakeEventBus):
        def generation_ended(self, generation: Generation) -> None:
            assert desk.queue.sent == []  # it would be received before there is a tombstone
            super().generation_ended(generation)

    desk = World(bus=SlowBus())
    generation = desk.created()
    desk.delete(generation.id)
    assert desk.queue.sent == [(generation.id, LEASE_SECONDS * SAFETY_NET_LEASES)]


def test_a_message_goes_ahead_of_the_tombstone_so_that_no_crash_leaves_images() -> None:
    sent: list[list[tuple[str, float]]] = []

    class Records(FakeGenerationStore):
        def bury(self, generation: Generation, *, now: float) -> Tombstone:
            sent.append(list(desk.queue.sent))
            return super().bury(generation, now=now)

    desk = World(records=Records())
    generation = desk.created()
    desk.delete(generation.id)
    assert sent == [[(generation.id, LEASE_SECONDS * SAFETY_NET_LEASES)]]


# What was reserved.


def used(world: World) -> set[int]:
    return set(world.counters.used.values())


ENDINGS = pytest.mark.parametrize("act", [World.cancel, World.delete], ids=["cancel", "delete"])


@ENDINGS
def test_what_ends_before_anything_was_sent_gives_its_images_back_once(world: World, act: Act) -> None:
    generation = world.created()
    for _ in range(2):
        act(world, generation.id, "alice")
        assert used(world) == {0}


@ENDINGS
def test_only_what_was_sent_stays_taken(world: World, act: Act) -> None:
    generation = world.created()
    world.sent(generation)
    act(world, generation.id, "alice")
    assert used(world) == {1}


def test_what_is_completed_stays_taken_when_it_is_deleted(world: World) -> None:
    world.delete(world.ended(Status.COMPLETED).id)
    assert used(world) == {REQUEST.n}


def test_counters_that_cannot_be_reached_hinder_no_cancelling(world: World) -> None:
    generation = world.created()
    world.counters.failures += ["before", "before"]
    assert world.cancel(generation.id).status is Status.CANCELLED
    assert used(world) == {REQUEST.n}


# An operator's retry. What becomes of it is in test_work.


class Recorded(World):
    """`steps` are what a retry does, in order; the step that `failing` names fails before its effect."""

    def __init__(self, failing: str | None = None) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.failed = self.ended(Status.FAILED, announced=True)
        self.record_of_steps(failing)

    def record_of_steps(self, failing: str | None) -> None:
        world, records, queue, counters = self, self.records, self.queue, self.counters

        def step(name: str) -> None:
            world.steps.append(name)
            if name == failing:
                raise RecordsUnavailableError("no")

        class Records(FakeGenerationStore):
            def get(self, generation_id: str) -> Generation | None:
                return records.get(generation_id)

            def requeue(self, generation: Generation, *, now: float) -> Generation | None:
                step("requeue")
                return records.requeue(generation, now=now)

        class Queue(FakeGenerationQueue):
            def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
                step("safety net" if delay else "work message")
                queue.send(generation_id, caller, delay=delay)
                self.callers.add(caller)

        class Counters(FakeAllowanceCounters):
            def take(self, who: str, day: str, images: int, limit: int, *, token: str) -> tuple[bool, int]:
                step(f"quota of {who}")
                return counters.take(who, day, images, limit, token=token)

            def give_back(self, who: str, day: str, images: int, *, token: str) -> None:
                counters.give_back(who, day, images, token=token)

        self.records, self.queue, self.counters = Records(), Queue(), Counters()
        self.queue.sent, self.counters.used = queue.sent, counters.used


def test_a_retry_sends_the_safety_net_then_takes_quota_requeues_and_sends_the_work_message() -> None:
    world = Recorded()
    assert used(world) == {1}
    waiting = world.retry(world.failed.id)
    assert waiting is not None
    assert world.steps == ["safety net", "quota of alice", "quota of *", "requeue", "work message"]
    assert world.queue.sent == [(waiting.id, LEASE_SECONDS * SAFETY_NET_LEASES), (waiting.id, 0)]
    assert world.queue.callers == {"alice"}
    assert (waiting.status, waiting.retries, waiting.reserved_at) == (Status.QUEUED, 1, world.now)
    assert used(world) == {REQUEST.n}


@pytest.mark.parametrize("failing", ["safety net", "quota of alice", "quota of *", "requeue"])
def test_a_retry_that_cannot_be_begun_is_refused_and_leaves_the_failure(failing: str) -> None:
    world = Recorded(failing)
    with pytest.raises(RecordsUnavailableError):
        world.retry(world.failed.id)
    assert world.steps[-1] == failing
    assert world.see(world.failed.id) == world.failed


def test_of_two_retries_at_once_one_counts_and_takes_quota_once() -> None:
    second: list[Generation | None] = []

    class Queue(FakeGenerationQueue):
        def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
            super().send(generation_id, caller, delay=delay)
            if len(self.sent) == 1:
                second.append(desk.retry(generation_id))

    desk = World(queue=Queue())
    generation = desk.ended(Status.FAILED, announced=True)
    assert desk.retry(generation.id) is None
    assert [each.retries for each in second if each] == [1]
    assert used(desk) == {REQUEST.n}


def test_what_is_not_there_is_not_retried(world: World) -> None:
    assert world.retry("gen_AAAAAAAAAAAAAAAAAAAAAA") is None
    assert world.queue.sent == []
