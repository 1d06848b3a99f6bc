"""Work on a generation: who may, for how long, what is published of its end, and what its messages become."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from imagegen.allowance import Allowance
from imagegen.deadline import Deadline
from imagegen.errors import (
    AbandonedError,
    ImageDownloadInterruptedError,
    ImageStorageError,
    ImageStorageInterruptedError,
    InternalError,
    OutcomeUnknownError,
    PartialGenerationError,
    PromptRejectedError,
    RecordsUnavailableError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
)
from imagegen.failures import cost_money
from imagegen.generate import KEEP_TRIES, MOST_SENT, UnfinishedError
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Generation,
    Status,
    StoredImage,
    Tombstone,
    admit,
)
from imagegen.images import ImageBody, ImageRequest, ResponseFormat
from imagegen.manage import LEASE_SECONDS, LONGEST_WRITER_SECONDS, cancel, delete, retry
from imagegen.submit import SAFETY_NET_LEASES
from imagegen.work import LargeAnswer, Workshop, give_up, work, work_on_message
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider, png

NOW = 1_760_000_000.0
LEASE = LEASE_SECONDS
NO_ID = "gen_AAAAAAAAAAAAAAAAAAAAAA"
AT_MOST_SECONDS = 10  # only ever waited for in full where a test fails
BEAT_SECONDS = 0.02


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
            sleep=lambda _: None,
        )

    def admitted(self, *, n: int = 1, response_format: ResponseFormat = "url", model: str = "dall-e-3") -> Generation:
        """With its images taken from the quota, as it is when its message comes."""
        request = ImageRequest("a cat", model, response_format, n)
        generation = admit(request, caller="alice", base_url="https://x.example", now=NOW)
        allowance = Allowance(self.counters, 100, 100)
        allowance.reserve("alice", n, now=NOW, token=generation.id, may_undo=lambda: True)
        self.records.create(generation)
        return generation

    def left(self, generation: Generation, *calls: Call) -> None:
        """A worker claimed it, noted these calls, and died long ago."""
        self.records.claim(generation.id, "dead", now=NOW - 100, lease_until=NOW - 1)
        for index, call in enumerate(calls):
            if call.sent:
                self.records.save_sending(generation.id, "dead", index, call.sent)
            for sending in range(1, call.refused + 1):
                self.records.save_refusal(generation.id, index, sending)
            if call.answer:
                self.records.save_answer(generation.id, index, call.answer)

    def store(self, *image_ids: str) -> None:
        for image_id in image_ids:
            content = png(image_id)
            self.images.save(image_id, ImageBody("image/png", len(content), iter([content])), Deadline.after(9))

    def answer(self, name: str) -> CallAnswer:
        """An answer that names one image by URL, which is there."""
        url = f"https://images.example/{name}.png"
        self.provider.files[url] = png(name)
        return CallAnswer((AnsweredImage(url, f"a nicer {name}"),))

    def deliver(self, generation_id: str, *, seconds: float = AT_MOST_SECONDS) -> float | None:
        return work_on_message(generation_id, self.workshop, Deadline.after(seconds), hold=self.held.append)

    def give_up(self, generation_id: str, *, seconds: float = AT_MOST_SECONDS) -> float | None:
        return give_up(generation_id, self.workshop, Deadline.after(seconds))

    def cancel(self, generation: Generation) -> None:
        now = lambda: self.now  # noqa: E731
        cancel(generation.id, "alice", self.records, self.counters, self.bus, now, lambda _: None)

    def delete(self, generation: Generation) -> None:
        delete(
            generation.id,
            "alice",
            self.records,
            self.queue,
            self.counters,
            self.bus,
            self.images,
            lambda: self.now,
            Deadline.after(AT_MOST_SECONDS),
            lambda _: None,
        )

    def buried(self, generation: Generation) -> Tombstone:
        """The process that deletes it died right after it had put the tombstone."""
        self.records.cancel(generation.id, now=self.now)
        return self.records.bury(self.record(generation), now=self.now)

    def retry(self, generation: Generation) -> Generation | None:
        return retry(generation.id, self.records, self.counters, self.queue, lambda: self.now)

    @property
    def used(self) -> set[int]:
        """How many images of the quota are taken: by the caller and by the stack, which must agree."""
        return set(self.counters.used.values())

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
def test_a_message_for_what_has_ended_is_done_with(world: World, status: Status) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    world.records.end(generation.id, "other", status, now=NOW)
    world.records.let_go(generation.id, "other")
    assert world.deliver(generation.id) is None
    assert (world.provider.calls, world.record(generation).status) == ([], status)


def test_a_message_for_what_is_cancelled_comes_again_while_a_worker_may_still_store_its_images(world: World) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    world.records.save_sending(generation.id, "other", 0, 1)
    world.cancel(generation)
    world.now += 20
    assert world.deliver(generation.id) == LEASE - 20
    world.store(*generation.image_ids)  # and dies before it can note it
    world.now += LEASE
    assert world.deliver(generation.id) is None
    assert world.record(generation).stored_ids == generation.image_ids


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
@pytest.mark.parametrize("by", [World.deliver, World.give_up])
def test_images_of_an_ended_generation_that_nobody_listed_are_listed(
    world: World, status: Status, by: Callable[[World, str], float | None]
) -> None:
    generation = world.admitted(n=3)
    world.left(generation, *(Call(call.image_ids, sent=1) for call in generation.calls[:2]))
    world.records.end(generation.id, "dead", status, now=NOW)
    world.store(generation.image_ids[0])
    assert by(world, generation.id) is None
    assert world.record(generation).stored_ids == generation.image_ids[:1]
    assert world.images.looked_for == list(generation.image_ids[:2])  # the third was never asked for


def test_where_it_is_unknown_what_is_stored_of_an_ended_generation_the_message_comes_again(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, sent=1))
    world.records.end(generation.id, "dead", Status.FAILED, now=NOW)
    world.store(*generation.image_ids)
    world.images.failures_to_find.append(ImageStorageError("no"))
    with pytest.raises(ImageStorageError):
        world.deliver(generation.id)
    assert world.deliver(generation.id) is None
    assert world.record(generation).stored_ids == generation.image_ids


@pytest.mark.parametrize("by", [World.deliver, World.give_up])
def test_a_message_without_a_record_is_dropped_at_its_first_receipt(
    world: World, by: Callable[[World, str], float | None]
) -> None:
    assert by(world, NO_ID) is None
    assert world.queue.sent == []


@pytest.mark.parametrize("by", [World.deliver, World.give_up])
def test_a_message_for_what_was_deleted_deletes_what_is_left(
    world: World, by: Callable[[World, str], float | None]
) -> None:
    generation = world.admitted(n=2)
    tombstone = world.buried(generation)
    world.store(*generation.image_ids)
    assert by(world, generation.id) is None
    assert world.images.saved == {}
    assert world.provider.calls == []
    assert world.records.tombstone(generation.id) == tombstone


@pytest.mark.parametrize("by", [World.deliver, World.give_up])
def test_a_deletion_that_s3_refuses_is_finished_by_the_next_receipt(
    pool: ThreadPoolExecutor, by: Callable[[World, str], float | None]
) -> None:
    class Images(FakeImageStore):
        refusing = True

        def delete(self, image_id: str, deadline: Deadline) -> None:
            if self.refusing:
                raise ImageStorageError("no")
            super().delete(image_id, deadline)

    images = Images()
    world = World(pool, images=images)
    generation = world.admitted()
    world.buried(generation)
    world.store(*generation.image_ids)
    with pytest.raises(ImageStorageError):
        by(world, generation.id)
    assert list(images.saved) == list(generation.image_ids)
    images.refusing = False
    assert by(world, generation.id) is None
    assert images.saved == {}


@pytest.mark.parametrize("age", [0.0, LONGEST_WRITER_SECONDS - 1, LONGEST_WRITER_SECONDS])
def test_a_deleted_generation_is_swept_again_while_a_writer_may_live(world: World, age: float) -> None:
    generation = world.admitted()
    world.buried(generation)
    world.now += age
    assert world.deliver(generation.id) is None
    again = [(generation.id, LONGEST_WRITER_SECONDS)] if age < LONGEST_WRITER_SECONDS else []
    assert world.queue.sent == again


def test_an_image_that_a_writer_stores_after_the_deletion_before_it_dies_is_swept(world: World) -> None:
    generation = world.admitted()
    world.delete(generation)
    ((_, delay),) = world.queue.sent
    world.now += delay
    assert world.deliver(generation.id) is None
    world.store(*generation.image_ids)
    _, (_, delay) = world.queue.sent
    world.now += delay
    assert world.deliver(generation.id) is None
    assert world.images.saved == {}
    assert len(world.queue.sent) == 2
    assert world.queue.callers == {generation.caller}


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
    world.left(generation, Call(generation.image_ids, 1, 0, world.answer("cat")))
    assert world.deliver(generation.id) is None
    assert world.provider.calls == []
    assert world.images.saved[generation.image_ids[0]] == ("image/png", png("cat"))
    assert world.record(generation).revised_prompt(generation.image_ids[0]) == "a nicer cat"


@pytest.mark.parametrize(
    "interruption", [ImageDownloadInterruptedError("no time"), ImageStorageInterruptedError("no time")]
)
@pytest.mark.parametrize("by", [World.deliver, World.give_up])
def test_a_url_that_there_was_no_time_to_fetch_is_fetched_by_the_next_message_and_not_bought_again(
    world: World, interruption: Exception, by: Callable[[World, str], float | None]
) -> None:
    generation = world.admitted()
    claimed = world.records.claim(generation.id, "api", now=NOW, lease_until=NOW + LEASE)
    assert claimed is not None
    failures = (
        world.source.failures if isinstance(interruption, ImageDownloadInterruptedError) else world.images.failures
    )
    failures.extend([interruption] * KEEP_TRIES)
    with pytest.raises(UnfinishedError):
        work(claimed, "api", world.workshop, Deadline.after(0.9))  # under the second that a download is given
    failures.clear()
    assert (world.record(generation).status, world.bus.ended) == (Status.IN_PROGRESS, [])
    world.now += LEASE + 1
    assert by(world, generation.id) is None
    record = world.record(generation)
    assert (record.status, record.stored_ids) == (Status.COMPLETED, generation.image_ids)
    assert (len(world.provider.calls), record.repeated_calls, world.used) == (1, 0, {1})


def test_what_was_stored_is_found_and_not_bought_again(world: World) -> None:
    generation = world.admitted(response_format="b64_json")
    world.left(generation, Call(generation.image_ids, 1))
    (image_id,) = generation.image_ids
    world.store(image_id)
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (world.provider.calls, record.status) == ([], Status.COMPLETED)
    assert record.stored == {image_id: StoredImage("image/png", len(png(image_id)))}


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
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, sent))
    assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, OutcomeUnknownError.__name__)
    assert world.provider.calls == []


def test_a_repeated_call_that_is_refused_leaves_it_unknown_whether_the_first_was_paid(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, 1))
    world.provider.failures.append(UpstreamRateLimitedError("Later."))
    assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS
    record = world.record(generation)
    assert record.failure is not None
    assert cost_money(record.failure)


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
    assert work_on_message(generation.id, world.workshop, deadline, hold=hold) is None
    assert world.record(generation).status is Status.COMPLETED


def test_a_heartbeat_stops_when_the_claim_is_lost(world: World) -> None:
    world.lease = 3 * BEAT_SECONDS
    generation = world.admitted()

    def call() -> None:
        world.records.claim(generation.id, "other", now=NOW + 2 * LEASE, lease_until=NOW + 3 * LEASE)
        until = time.monotonic() + AT_MOST_SECONDS
        while "renew" not in world.records.asked and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(6 * BEAT_SECONDS)

    world.provider.during_call = call
    world.deliver(generation.id)
    assert world.records.asked.count("renew") == 1
    assert world.held == []


def test_a_heartbeat_holds_a_cancelled_generation_while_its_upstream_call_runs(world: World) -> None:
    """Its message comes again only when the image is stored, or its writer is dead."""
    generation = beating(world)
    call = world.provider.during_call

    def cancelled() -> None:
        world.cancel(generation)
        call()

    world.provider.during_call = cancelled
    assert world.deliver(generation.id) is None
    assert len(world.held) >= 3
    assert world.record(generation).lease_until == 0  # ended with the work


@pytest.mark.parametrize("failure", [None, UpstreamFailedError("no"), KeyError("a fault")])
def test_a_heartbeat_ends_with_the_work(world: World, failure: Exception | None) -> None:
    world.lease = 3 * BEAT_SECONDS
    generation = world.admitted()
    world.provider.failures.append(failure)
    world.deliver(generation.id)
    assert [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"] == []


def test_work_that_is_done_here_holds_no_message(world: World) -> None:
    generation = world.admitted()
    claimed = world.records.claim(generation.id, "api", now=NOW, lease_until=NOW + LEASE)
    assert claimed is not None
    work(claimed, "api", world.workshop, Deadline.after(AT_MOST_SECONDS))
    assert world.record(generation).status is Status.COMPLETED
    assert (world.queue.held, world.held) == ([], [])


# Ends.


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (PromptRejectedError("no", code="content_policy_violation"), PromptRejectedError),
        (UpstreamFailedError("no"), UpstreamFailedError),
        (KeyError("a fault"), InternalError),  # it may have come after the request was sent
    ],
)
def test_a_failure_ends_the_record(world: World, failure: Exception, kind: type[Exception]) -> None:
    generation = world.admitted()
    world.provider.failures.append(failure)
    world.now += 3
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.completed_at) == (Status.FAILED, NOW + 3)
    assert (record.failure.kind, record.failure.code) == (kind.__name__, getattr(failure, "code", None))


def test_a_part_that_is_missing_is_named_with_its_cause(world: World) -> None:
    generation = world.admitted(n=3)
    world.provider.failures += [None, UpstreamRateLimitedError("Later."), None]
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert record.failure.cause is not None
    assert record.failure.kind == PartialGenerationError.__name__
    assert record.failure.cause.kind == "UpstreamRateLimitedError"
    assert (record.status, len(record.stored_ids)) == (Status.FAILED, 2)


def test_a_fault_outside_of_the_upstream_call_leaves_the_generation_to_the_next(world: World) -> None:
    def broken(_: Generation) -> None:
        raise KeyError("a fault")

    world.large_answer = broken
    generation = world.admitted(response_format="b64_json")
    with pytest.raises(KeyError):
        world.deliver(generation.id)
    assert (world.record(generation).status, world.record(generation).failure) == (Status.IN_PROGRESS, None)
    world.large_answer = lambda _: None
    world.now += LEASE + 1
    assert world.deliver(generation.id) is None
    assert (world.record(generation).status, len(world.provider.calls)) == (Status.COMPLETED, 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_that_cannot_be_written_is_raised(world: World, when: str) -> None:
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


def test_cancelling_while_the_upstream_works_sends_no_further_call_and_keeps_the_image_that_comes(
    world: World,
) -> None:
    generation = world.admitted(n=3)
    world.provider.during_call = lambda: world.cancel(generation)
    with ThreadPoolExecutor(1) as one_by_one:
        world.pool = one_by_one
        for _ in range(2):
            assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (len(world.provider.calls), record.status, world.used) == (1, Status.CANCELLED, {1})
    assert record.stored_ids == generation.image_ids[:1]


def meanwhile_cancelled(world: World, generation: Generation) -> None:
    world.cancel(generation)


def meanwhile_taken_over(world: World, generation: Generation) -> None:
    world.records.claim(generation.id, "other", now=NOW + LEASE + 1, lease_until=NOW + 200)


def meanwhile_given_up(world: World, generation: Generation) -> None:
    world.now += LEASE + 1
    assert world.give_up(generation.id) == LONGEST_WRITER_SECONDS


MEANWHILE = pytest.mark.parametrize(
    ("meanwhile", "status"),
    [
        (meanwhile_cancelled, Status.CANCELLED),
        (meanwhile_taken_over, Status.IN_PROGRESS),
        (meanwhile_given_up, Status.FAILED),
    ],
)


@MEANWHILE
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_an_image_that_still_comes_is_kept_and_listed(
    world: World,
    meanwhile: Callable[[World, Generation], None],
    status: Status,
    response_format: ResponseFormat,
) -> None:
    generation = world.admitted(response_format=response_format)
    world.provider.during_call = lambda: meanwhile(world, generation)
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.stored_ids) == (status, generation.image_ids)
    assert list(world.images.saved) == list(generation.image_ids)
    assert record.calls[0].answer is not None
    assert (len(world.provider.calls), world.used) == (1, {1})


def test_who_lost_the_claim_to_another_worker_leaves_the_lease_to_it(world: World) -> None:
    generation = world.admitted()
    world.provider.during_call = lambda: meanwhile_taken_over(world, generation)
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.owner, record.lease_until, world.bus.ended) == ("other", NOW + 200, [])


def test_an_image_is_listed_whose_writer_died_after_the_generation_had_ended(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, MOST_SENT))
    assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS
    world.now += 100
    assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS - 100
    world.images.save(generation.image_ids[0], ImageBody("image/png", 3, iter([b"abc"])), Deadline.after(9))
    world.now += LONGEST_WRITER_SECONDS - 100
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)


@pytest.mark.parametrize("meanwhile", [meanwhile_cancelled, meanwhile_given_up])
def test_a_refusal_that_comes_after_the_end_returns_the_quota_once(
    world: World, meanwhile: Callable[[World, Generation], None]
) -> None:
    generation = world.admitted()
    used: list[set[int]] = []

    def call() -> None:
        meanwhile(world, generation)
        used.append(world.used)

    world.provider.during_call = call
    world.provider.failures.append(UpstreamRateLimitedError("Later."))
    for _ in range(3):
        assert world.deliver(generation.id) is None
    assert (used, world.used) == ([{1}], {0})
    assert len(world.bus.ended) == 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_what_is_stored_after_a_deletion_is_deleted_by_its_writer(
    world: World, n: int, response_format: ResponseFormat
) -> None:
    generation = world.admitted(n=n, response_format=response_format)
    once = threading.Lock()

    def deleted() -> None:
        if once.acquire(blocking=False):
            world.delete(generation)

    world.images.during_save = deleted
    assert world.deliver(generation.id) is None
    assert world.images.tries
    assert world.images.saved == {}
    assert world.records.get(generation.id) is None


def test_nothing_is_fetched_for_what_was_deleted_while_the_upstream_worked(world: World) -> None:
    generation = world.admitted()
    world.provider.during_call = lambda: world.delete(generation)
    assert world.deliver(generation.id) is None
    assert (world.source.opened, world.images.saved) == ([], {})


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
    generation = world.admitted(response_format="b64_json")
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert record.failure is not None
    assert cost_money(record.failure)
    assert (record.status, record.stored_ids) == (Status.FAILED, generation.image_ids)


def test_a_large_answer_that_is_stored_after_a_deletion_is_deleted_again(pool: ThreadPoolExecutor) -> None:
    class Images(FakeImageStore):
        def save_answer(self, generation_id: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
            world.delete(generation)
            super().save_answer(generation_id, length, blocks, deadline)

    world = World(pool, images=Images(), large_answer=large)
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
            self.cancel(generation_id, now=NOW)
            if gone == "deleted":
                world.delete(generation)
            return super().get(generation_id)

    taken: list[str] = []
    world = World(pool, records=Records(), large_answer=large)
    generation = world.admitted(response_format="b64_json")
    assert world.deliver(generation.id) is None
    assert taken == [generation.id]
    assert world.images.answers == {}
    assert bool(world.images.saved) is (gone == "cancelled")


# Dead letters.


@pytest.mark.parametrize(("sent", "used"), [(0, 0), (1, 1), (2, 1)])
def test_what_every_attempt_died_on_is_failed_and_not_bought(world: World, sent: int, used: int) -> None:
    """Its quota is returned only if nothing was sent."""
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, sent))
    assert world.give_up(generation.id) == (LONGEST_WRITER_SECONDS if sent else None)
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, AbandonedError.__name__)
    assert (record.completed_at, world.provider.calls, world.used) == (NOW, [], {used})
    assert cost_money(record.failure)


def test_what_nobody_ever_claimed_is_failed(world: World) -> None:
    generation = world.admitted()
    assert world.give_up(generation.id) is None
    assert (world.record(generation).status, world.used) == (Status.FAILED, {0})


def test_what_is_known_to_be_paid_for_is_fetched_and_listed_and_nothing_is_bought(world: World) -> None:
    generation = world.admitted(n=3)
    first, second, third = generation.calls
    world.left(
        generation,
        Call(first.image_ids, 1, 0, world.answer("known")),
        Call(second.image_ids, 1),
        Call(third.image_ids, 1, 0, world.answer("other")),
    )
    world.store(*second.image_ids)
    assert world.give_up(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.failure) == (Status.COMPLETED, None)
    assert record.stored_ids == generation.image_ids
    assert world.images.saved[first.image_ids[0]] == ("image/png", png("known"))
    assert (world.provider.calls, record.repeated_calls) == ([], 0)


def test_what_can_be_fetched_in_part_is_given_up_with_this_part(world: World) -> None:
    generation = world.admitted(n=3)
    first, second, _ = generation.calls
    world.left(generation, Call(first.image_ids, 1, 0, world.answer("known")), Call(second.image_ids, 1))
    assert world.give_up(generation.id) == LONGEST_WRITER_SECONDS
    record = world.record(generation)
    assert record.failure is not None
    assert record.failure.cause is not None
    assert (record.status, record.stored_ids) == (Status.FAILED, first.image_ids)
    assert (record.failure.kind, record.failure.cause.kind) == ("PartialGenerationError", "AbandonedError")
    assert (world.provider.calls, world.used) == ([], {2})  # the third was never sent


@pytest.mark.parametrize(("left", "again"), [(60.0, 60.0), (0.5, 1.0)])
def test_what_somebody_works_on_is_not_given_up(world: World, left: float, again: float) -> None:
    generation = world.admitted()
    world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + left)
    assert world.give_up(generation.id) == pytest.approx(again)
    assert world.record(generation).status is Status.IN_PROGRESS


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_what_has_ended_is_not_given_up(world: World, status: Status) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, 1))
    world.records.end(generation.id, "dead", status, now=NOW)
    before = world.record(generation)
    assert world.give_up(generation.id) is None
    assert world.record(generation) == replace(before, announced=True)


# What was reserved.


@pytest.mark.parametrize(
    ("failures", "used"),
    [
        ([None, None, None], 3),
        ([None, PromptRejectedError("no"), None], 2),
        ([UpstreamRateLimitedError("later"), None, PromptRejectedError("no")], 1),
        ([PromptRejectedError("no"), UpstreamFailedError("broken"), None], 2),
        ([PromptRejectedError("no")] * 3, 0),
        ([UpstreamFailedError("broken")] * 3, 3),
        ([KeyError("a fault"), PromptRejectedError("no"), None], 2),
    ],
)
def test_what_certainly_was_not_charged_is_returned_once_and_nothing_else(
    world: World, failures: list[Exception | None], used: int
) -> None:
    world.provider.failures.extend(failures)
    generation = world.admitted(n=3)
    for _ in range(3):
        assert world.deliver(generation.id) is None
    assert world.used == {used}


def test_a_refusal_after_a_call_of_unknown_outcome_returns_nothing(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, 1))
    world.provider.failures.append(UpstreamRateLimitedError("Later."))
    assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS
    assert (world.record(generation).calls[0].refused, world.used) == (1, {1})


# An operator's retry.


def test_a_retry_buys_only_what_is_missing(world: World) -> None:
    generation = world.admitted(n=3)
    world.provider.failures += [None, UpstreamRateLimitedError("Later."), UpstreamFailedError("no")]
    world.deliver(generation.id)
    assert world.used == {2}
    waiting = world.retry(generation)
    assert waiting is not None
    assert (waiting.status, waiting.failure, world.used) == (Status.QUEUED, None, {3})
    assert world.deliver(generation.id) is None
    record = world.record(generation)
    assert (record.status, record.stored_ids) == (Status.COMPLETED, generation.image_ids)
    assert (len(world.provider.calls), sum(call.sent for call in record.calls)) == (5, 5)
    assert (world.used, [each.status for each in world.bus.ended]) == ({3}, [Status.FAILED, Status.COMPLETED])


def test_each_retry_allows_one_more_sending_and_all_are_counted(world: World) -> None:
    generation = world.admitted()
    for retries, sent in enumerate((2, 3, 4)):
        if retries:
            assert world.retry(generation) is not None
        for _ in range(3):  # as often as workers die in it
            claimed = world.records.claim(generation.id, "dying", now=world.now, lease_until=world.now)
            world.now += 1
            if claimed and claimed.calls[0].sent < sent:
                world.records.save_sending(generation.id, "dying", 0, claimed.calls[0].sent + 1)
        assert world.deliver(generation.id) == LONGEST_WRITER_SECONDS
        record = world.record(generation)
        assert record.failure is not None
        assert (record.failure.kind, record.calls[0].sent) == ("OutcomeUnknownError", sent)
        assert (record.retries, record.repeated_calls) == (retries, sent - 1)
    assert world.provider.calls == []
    assert world.retry(generation) is not None
    assert world.deliver(generation.id) is None
    assert (world.record(generation).status, world.record(generation).repeated_calls) == (Status.COMPLETED, 4)
    assert (len(world.provider.calls), world.used) == (1, {1})


def test_quota_is_taken_again_by_each_retry_and_returned_by_each_refusal(world: World) -> None:
    generation = world.admitted()
    for _ in range(3):
        world.provider.failures.append(PromptRejectedError("no"))
        for _ in range(2):
            world.deliver(generation.id)
        assert world.used == {0}
        world.retry(generation)
        assert world.used == {1}
    assert world.deliver(generation.id) is None
    assert (world.record(generation).status, world.used) == (Status.COMPLETED, {1})


def test_what_is_returned_after_a_retry_goes_to_the_day_on_which_it_was_taken_again(world: World) -> None:
    generation = world.admitted()
    world.provider.failures += [PromptRejectedError("no")] * 2
    world.deliver(generation.id)
    world.now += 24 * 3600
    world.retry(generation)
    assert sorted(world.counters.used.values()) == [0, 0, 1, 1]
    world.deliver(generation.id)
    assert world.used == {0}


def test_a_retry_whose_message_is_lost_is_brought_by_the_safety_net(world: World) -> None:
    generation = world.admitted()
    world.provider.failures.append(UpstreamFailedError("no"))
    world.deliver(generation.id)
    world.queue.failures += [None, "before"]
    assert world.retry(generation) is not None
    assert world.queue.sent == [(generation.id, LEASE * SAFETY_NET_LEASES)]
    assert world.deliver(generation.id) is None
    assert world.record(generation).status is Status.COMPLETED


def test_a_retry_fetches_what_the_dead_letters_had_no_time_to_fetch(world: World) -> None:
    generation = world.admitted()
    world.left(generation, Call(generation.image_ids, 1, 0, world.answer("cat")))
    world.source.failures.extend([ImageDownloadInterruptedError("no time")] * KEEP_TRIES)
    assert world.give_up(generation.id, seconds=0.9) is None
    world.source.failures.clear()
    record = world.record(generation)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.FAILED, AbandonedError.__name__)
    assert world.retry(generation) is not None
    assert world.deliver(generation.id) is None
    assert (world.record(generation).status, world.provider.calls) == (Status.COMPLETED, [])


def test_a_failure_is_not_retried_before_it_is_published(world: World) -> None:
    generation = world.admitted()
    world.provider.failures.append(PromptRejectedError("no"))
    world.bus.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        world.deliver(generation.id)
    assert world.retry(generation) is None
    assert (world.queue.sent, world.record(generation).status) == ([], Status.FAILED)
    assert world.deliver(generation.id) is None
    assert world.retry(generation) is not None


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS, Status.COMPLETED, Status.CANCELLED])
def test_only_what_has_failed_is_retried(world: World, status: Status) -> None:
    generation = world.admitted()
    if status is not Status.QUEUED:
        world.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    if status not in (Status.QUEUED, Status.IN_PROGRESS):
        world.records.end(generation.id, "other", status, now=NOW)
        world.deliver(generation.id)
    before, used = world.record(generation), world.used
    assert world.retry(generation) is None
    assert (world.record(generation), world.queue.sent, world.used) == (before, [], used)
