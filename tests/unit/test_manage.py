"""What a caller may do with its own generations, and that another's are as if they were not there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from imagegen.allowance import Allowance, release
from imagegen.deadline import Deadline
from imagegen.errors import (
    DeletionUnfinishedError,
    GenerationEndedError,
    ImageStorageError,
    RecordsUnavailableError,
    UnknownGenerationError,
)
from imagegen.generations import Call, Generation, Markers, Status, admit, fingerprint
from imagegen.images import ImageBody, ImageRequest
from imagegen.manage import cancel, delete, see
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import png

NOW = 1_760_000_000.0
REQUEST = ImageRequest("a cat", "dall-e-3", "b64_json", n=2)
BODY = fingerprint(REQUEST)


@dataclass
class World:
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)

    def created(self, markers: Markers | None = None) -> Generation:
        markers = markers or Markers()
        generation = admit(REQUEST, caller="alice", base_url="https://x.example", now=NOW, markers=markers)
        self.records.create(generation, BODY)
        return generation

    def store(self, generation: Generation) -> None:
        for image_id in generation.image_ids:
            content = png(image_id)
            self.images.save(image_id, ImageBody("image/png", len(content), iter([content])), Deadline.after(9))
        self.images.save_answer(generation.id, 2, iter([b"{}"]), Deadline.after(9))

    def see(self, generation_id: str, caller: str = "alice") -> Generation:
        return see(generation_id, caller, self.records)

    def cancel(self, generation_id: str, caller: str = "alice") -> Generation:
        return cancel(generation_id, caller, self.records, self.counters, self.bus, lambda: NOW + 5)

    def delete(self, generation_id: str, caller: str = "alice") -> None:
        until = Deadline.after(9)
        now = lambda: NOW + 5  # noqa: E731
        delete(generation_id, caller, self.records, self.queue, self.counters, self.bus, self.images, now, until)


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


@EACH_ACT
def test_what_was_deleted_is_unknown(world: World, act: Act) -> None:
    generation = world.created()
    world.delete(generation.id)
    with pytest.raises(UnknownGenerationError):
        act(world, generation.id, "alice")


def test_what_waits_is_cancelled(world: World) -> None:
    generation = world.created()
    cancelled = world.cancel(generation.id)
    assert (cancelled.status, cancelled.completed_at) == (Status.CANCELLED, NOW + 5)
    assert world.see(generation.id) == msgspec.structs.replace(cancelled, announced=True)


def test_what_is_in_progress_is_cancelled_and_its_worker_has_lost_it(world: World) -> None:
    generation = world.created()
    world.records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
    assert world.cancel(generation.id).owner is None


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_what_has_ended_cannot_be_cancelled(world: World, status: Status) -> None:
    generation = world.created()
    world.records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
    world.records.end(generation.id, "worker", status, now=NOW)
    with pytest.raises(GenerationEndedError):
        world.cancel(generation.id)
    assert world.see(generation.id).status is status


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


def test_deleting_frees_the_idempotency_key_and_the_retries(world: World) -> None:
    generation = world.created(Markers("k", 0))
    world.delete(generation.id)
    assert world.records.key_holder("alice", "k") is None
    assert world.records.attach_retry("alice", BODY, 1, since=0) is None


def test_what_was_never_stored_is_deleted_all_the_same(world: World) -> None:
    generation = world.created()
    world.delete(generation.id)
    assert world.records.get(generation.id) is None


def test_the_tombstone_comes_before_the_images_go() -> None:
    seen: list[Generation | None] = []

    class Images(FakeImageStore):
        def delete(self, image_id: str, deadline: Deadline) -> None:
            seen.append(world.records.get(generation.id))
            super().delete(image_id, deadline)

    world = World(images=Images())
    generation = world.created()
    world.store(generation)
    world.delete(generation.id)
    assert seen == [None, None]


def test_where_the_record_cannot_be_buried_nothing_is_deleted(world: World) -> None:
    generation = world.created()
    world.store(generation)
    world.records.failures += [None, "before"]
    with pytest.raises(RecordsUnavailableError):
        world.delete(generation.id)
    assert world.records.get(generation.id) == generation
    assert sorted(world.images.saved) == sorted(generation.image_ids)
    assert list(world.images.answers) == [generation.id]


class Stubborn(FakeImageStore):
    """Does not let go of one image."""

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
    world.delete(generation.id)
    assert world.images.saved == {}
    with pytest.raises(UnknownGenerationError):
        world.delete(generation.id)


def test_an_unfinished_deletion_is_nobody_elses(unfinished: tuple[World, Generation]) -> None:
    world, generation = unfinished
    world.images.kept = ""  # type: ignore[attr-defined]
    with pytest.raises(UnknownGenerationError):
        world.delete(generation.id, "bob")
    assert list(world.images.saved) == [generation.image_ids[0]]


def test_a_message_goes_ahead_of_the_tombstone_so_that_no_crash_leaves_images(world: World) -> None:
    generation = world.created()
    world.records.failures += [None, "before"]
    with pytest.raises(RecordsUnavailableError):
        world.delete(generation.id)
    ((sent, delay),) = world.queue.sent
    assert sent == generation.id
    assert delay > 0


def test_where_no_message_can_be_sent_nothing_is_deleted(world: World) -> None:
    generation = world.created()
    world.store(generation)
    world.queue.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.delete(generation.id)
    assert world.see(generation.id) == generation
    assert sorted(world.images.saved) == sorted(generation.image_ids)


# What was reserved.


def reserved(world: World) -> Generation:
    Allowance(world.counters, 10, 10).reserve("alice", REQUEST.n, now=NOW)
    return world.created()


def used(world: World) -> set[int]:
    return set(world.counters.used.values())


ENDINGS = pytest.mark.parametrize("act", [World.cancel, World.delete], ids=["cancel", "delete"])


@ENDINGS
def test_what_ends_before_anything_was_sent_gives_its_images_back_once(world: World, act: Act) -> None:
    generation = reserved(world)
    act(world, generation.id, "alice")
    release(generation, world.records, world.counters)
    assert used(world) == {0}


@ENDINGS
def test_what_was_sent_stays_taken(world: World, act: Act) -> None:
    generation = reserved(world)
    world.records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
    world.records.save_call(generation.id, "worker", 0, Call(generation.calls[0].image_ids, sent=1))
    act(world, generation.id, "alice")
    assert used(world) == {REQUEST.n}


def test_what_is_completed_stays_taken_when_it_is_deleted(world: World) -> None:
    generation = reserved(world)
    world.records.claim(generation.id, "worker", now=NOW, lease_until=NOW + 60)
    world.records.end(generation.id, "worker", Status.COMPLETED, now=NOW)
    world.delete(generation.id)
    assert used(world) == {REQUEST.n}


def test_counters_that_cannot_be_reached_hinder_no_cancelling(world: World) -> None:
    generation = reserved(world)
    world.counters.failures += ["before", "before"]
    assert world.cancel(generation.id).status is Status.CANCELLED
    assert used(world) == {REQUEST.n}
