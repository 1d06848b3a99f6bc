"""Whole generations with a fault at every call to records, queue, counters, bus and bucket, one after another.

After the fault, messages are redelivered until all has ended, as SQS does. Then nothing may be lost that was paid for,
every end was published, and no more of the quota is taken than was asked for.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pytest

from imagegen.allowance import Allowance
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageStorageError,
    ImageStorageInterruptedError,
    NothingSpentError,
    RecordsUnavailableError,
    SubmissionUncertainError,
    UpstreamRateLimitedError,
)
from imagegen.failures import cost_money
from imagegen.generate import UnfinishedError
from imagegen.generations import Generation, Status
from imagegen.images import ImageRequest, ResponseFormat
from imagegen.submit import Attempt, Desk, submit
from imagegen.work import Workshop, work, work_on_message
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider

NOW = 1_760_000_000.0
LEASE = 60.0
AT_MOST_SECONDS = 30
MOST_CALLS = 60  # more than any run below makes: asserted
MOST_ROUNDS = 10

LARGE_ANSWER = frozenset({"images.read", "images.save_answer"})  # all images are stored by then: tested on its own

When = Literal["before", "after"]


class Faults:
    """Counts calls to all that is wrapped, and has the k-th of them fail, before or after its effect."""

    def __init__(self, *due: int, when: When = "before") -> None:
        self.due = due
        self.when = when
        self.calls: list[str] = []
        self.failed: list[str] = []
        self.paused = False
        self._lock = threading.Lock()

    @contextmanager
    def around(self, name: str, error: type[Exception]) -> Iterator[None]:
        if self.paused:
            yield
            return
        with self._lock:
            self.calls.append(name)
            fails = len(self.calls) in self.due
            if fails:
                self.failed.append(name)
        if fails and self.when == "before":
            raise error("The injected fault.")
        yield
        if fails:
            raise error("The injected fault.")


class Faulty:
    """Passes every call on to a fake. One that fails after its effect loses what the fake answered or refused."""

    def __init__(self, name: str, fake: object, faults: Faults, error: type[Exception]) -> None:
        self._name = name
        self._fake = fake
        self._faults = faults
        self._error = error

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._fake, name)

        def call(*arguments: Any, **more: Any) -> Any:
            with self._faults.around(f"{self._name}.{name}", self._error):
                return method(*arguments, **more)

        return call


@dataclass
class World:
    """`faults` hit records, queue, counters, bus and bucket; the heartbeat never beats in a run this short."""

    pool: ThreadPoolExecutor
    faults: Faults
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    provider: FakeProvider = field(default_factory=FakeProvider)
    now: float = NOW
    repeat_unknown: bool = True

    def __post_init__(self) -> None:
        source = FakeImageSource(self.provider.files)
        records = cast("FakeGenerationStore", Faulty("records", self.records, self.faults, RecordsUnavailableError))
        queue = cast("FakeGenerationQueue", Faulty("queue", self.queue, self.faults, RecordsUnavailableError))
        images = cast("FakeImageStore", Faulty("images", self.images, self.faults, ImageStorageInterruptedError))
        counters = cast(
            "FakeAllowanceCounters", Faulty("counters", self.counters, self.faults, RecordsUnavailableError)
        )
        bus = cast("FakeEventBus", Faulty("bus", self.bus, self.faults, RecordsUnavailableError))
        allowance = Allowance(counters, each_caller=100, whole_stack=100)
        self.desk = Desk(records, queue, allowance, lambda: self.now, LEASE, lambda _: None)
        self.workshop = Workshop(
            records=records,
            queue=queue,
            counters=counters,
            bus=bus,
            images=images,
            source=source,
            providers={"openai_compatible": self.provider},
            pool=self.pool,
            large_answer=self._large_answer,
            now=lambda: self.now,
            repeat_unknown=self.repeat_unknown,
            lease=LEASE,
            sleep=lambda _: None,
        )

    def _large_answer(self, generation: Generation) -> tuple[int, Iterator[bytes]]:
        """Every answer with bytes is large here, and made of what is stored."""
        contents = []
        for image_id in generation.image_ids:
            with self.workshop.images.read(image_id, Deadline.after(AT_MOST_SECONDS)) as blocks:
                contents.append(b"".join(blocks))
        return sum(map(len, contents)), iter(contents)

    def request(self, run: "Run", attempt: Attempt) -> str | None:
        """What the api function does. None if the caller is answered that nothing was begun."""
        request = ImageRequest("a cat", run.model, run.response_format, run.n)
        try:
            submitted = submit(
                request, attempt, self.desk, caller="alice", base_url="https://x.example", work_here=run.work_here
            )
        except RecordsUnavailableError:
            return None
        except SubmissionUncertainError as uncertain:
            return uncertain.generation_id
        if submitted.owner:
            with suppress(RecordsUnavailableError, UnfinishedError):  # the message brings it back
                work(submitted.generation, submitted.owner, self.workshop, Deadline.after(AT_MOST_SECONDS))
        return submitted.generation.id

    def deliver_all(self) -> None:
        """What SQS does: every message again and again, each time after the lease, until it is done with."""
        waiting = [generation_id for generation_id, _ in self.queue.sent]
        for _ in range(MOST_ROUNDS):
            self.now += 2 * LEASE
            waiting = [generation_id for generation_id in waiting if not self._is_done(generation_id)]
            if not waiting:
                self._assert_every_end_is_published()
                self._assert_no_more_quota_is_taken_than_was_asked_for()
                return
        raise AssertionError("messages come for ever")

    def _is_done(self, generation_id: str) -> bool:
        deadline = Deadline.after(AT_MOST_SECONDS)
        try:
            again = work_on_message(generation_id, self.workshop, deadline, hold=lambda _: None)
        except (RecordsUnavailableError, UnfinishedError, ImageStorageError):
            return False
        return again is None

    def _assert_no_more_quota_is_taken_than_was_asked_for(self) -> None:
        """A fault may leave images taken that were not charged, and never the other way round."""
        charged = sum(
            len(call.image_ids) for generation in self.generations for call in generation.calls if call.charged
        )
        for used in self.counters.used.values():
            assert used >= charged, self.faults.calls
        if not self.faults.failed:
            assert set(self.counters.used.values()) == {charged}, self.faults.calls

    def _assert_every_end_is_published(self) -> None:
        published = {(generation.id, generation.status) for generation in self.bus.ended}
        assert published == {(generation.id, generation.status) for generation in self.generations}, self.faults.calls
        assert all(generation.announced for generation in self.generations), self.faults.calls

    @property
    def generations(self) -> list[Generation]:
        return list(self.records.newest("alice", 100))

    @property
    def bought(self) -> int:
        return sum(call.n for call in self.provider.calls)


@dataclass(frozen=True)
class Run:
    work_here: bool
    n: int
    response_format: ResponseFormat
    model: str = "dall-e-3"

    def __str__(self) -> str:
        return f"{'here' if self.work_here else 'worker'}-{self.model}-{self.n}-{self.response_format}"


RUNS = [
    Run(work_here, n, response_format, model)
    for work_here in (False, True)
    for n, model in ((1, "dall-e-3"), (3, "dall-e-3"), (3, "gpt-image-1.5"))
    for response_format in cast("list[ResponseFormat]", ["url", "b64_json"])
]
EACH_RUN = pytest.mark.parametrize("run", RUNS, ids=str)
EACH_WHEN = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as executor:
        yield executor


def calls_of(pool: ThreadPoolExecutor, run: Run, attempt: Attempt) -> int:
    return len(names_of(pool, run, attempt))


def names_of(pool: ThreadPoolExecutor, run: Run, attempt: Attempt) -> list[str]:
    """The calls that a run makes in which nothing fails."""
    world = World(pool, Faults())
    assert world.request(run, attempt)
    world.deliver_all()
    (generation,) = world.generations
    assert generation.status is Status.COMPLETED
    assert len(world.faults.calls) < MOST_CALLS
    return world.faults.calls


def assert_nothing_is_lost(world: World, broken: str, *, may_fail: bool = False) -> None:
    """What holds of every generation in the end, whatever failed on the way."""
    for generation in world.generations:
        assert generation.status is Status.COMPLETED or (may_fail and generation.status is Status.FAILED), (
            broken,
            generation.failure,
        )
        assert generation.stored_ids == generation.image_ids, broken
        assert set(generation.image_ids) <= set(world.images.saved), broken


def assert_nothing_is_paid_twice(world: World) -> None:
    """But for what the record counts: a call sent again counts its images."""
    counted = sum(
        len(call.image_ids) * max(1, call.sent) if call.sent else 0
        for generation in world.generations
        for call in generation.calls
    )
    assert world.bought <= counted
    asked_for = sum(len(generation.image_ids) for generation in world.generations)
    if all(generation.repeated_calls == 0 for generation in world.generations):
        assert world.bought <= asked_for


@EACH_RUN
@EACH_WHEN
def test_with_a_fault_at_any_one_call_nothing_is_lost_and_nothing_is_paid_twice(
    pool: ThreadPoolExecutor, run: Run, when: When
) -> None:
    attempt = Attempt("k")
    for k in range(1, calls_of(pool, run, attempt) + 1):
        world = World(pool, Faults(k, when=when))
        admitted = world.request(run, attempt)
        world.deliver_all()
        broken = f"call {k}, {world.faults.calls[k - 1]}"
        assert_nothing_is_lost(world, broken, may_fail=world.faults.calls[k - 1] in LARGE_ANSWER)
        assert_nothing_is_paid_twice(world)
        if admitted:
            assert [generation.id for generation in world.generations] == [admitted], broken


@EACH_RUN
@EACH_WHEN
def test_a_hiccup_while_a_large_answer_is_stored_fails_no_generation(
    pool: ThreadPoolExecutor, run: Run, when: When
) -> None:
    """Every image is paid for and stored by then."""
    if run.response_format == "url":
        assert not LARGE_ANSWER & set(names_of(pool, run, Attempt("k")))
        return
    calls = names_of(pool, run, Attempt("k"))
    for k in (k for k, name in enumerate(calls, 1) if name in LARGE_ANSWER):
        world = World(pool, Faults(k, when=when))
        world.request(run, Attempt("k"))
        world.deliver_all()
        assert_nothing_is_lost(world, f"call {k}, {world.faults.calls[k - 1]}")
        assert len(world.images.answers) == 1


@EACH_RUN
@EACH_WHEN
def test_a_caller_that_comes_again_with_its_key_gets_one_generation(
    pool: ThreadPoolExecutor, run: Run, when: When
) -> None:
    attempt = Attempt("k")
    for k in range(1, calls_of(pool, run, attempt) + 1):
        world = World(pool, Faults(k, when=when))
        first = world.request(run, attempt)
        world.faults.paused = True
        second = world.request(run, attempt)
        world.faults.paused = False
        world.deliver_all()
        broken = f"call {k}, {world.faults.calls[k - 1 : k]}"
        (generation,) = world.generations
        assert second == generation.id, broken
        assert first in (None, generation.id), broken
        assert_nothing_is_lost(world, broken, may_fail=bool(LARGE_ANSWER & set(world.faults.calls[k - 1 : k])))
        assert world.bought <= run.n + run.n * generation.repeated_calls, broken


@EACH_RUN
@EACH_WHEN
def test_only_a_fault_right_at_a_call_has_it_sent_again(pool: ThreadPoolExecutor, run: Run, when: When) -> None:
    """An answer of the upstream is never forgotten if its images could be stored or noted."""
    for k in range(1, calls_of(pool, run, Attempt()) + 1):
        world = World(pool, Faults(k, when=when))
        world.request(run, Attempt())
        world.deliver_all()
        name = world.faults.calls[k - 1]
        for generation in world.generations:
            if generation.repeated_calls:
                assert (name, when) == ("records.save_sending", "after"), f"call {k}, {name}"
        assert world.bought <= run.n, f"call {k}, {name}"


@EACH_RUN
@EACH_WHEN
def test_a_request_that_is_refused_leaves_nothing_that_is_paid_for(
    pool: ThreadPoolExecutor, run: Run, when: When
) -> None:
    """Who sent no key and counts no retries comes again with a request that is another."""
    refused = []
    for k in range(1, calls_of(pool, run, Attempt()) + 1):
        world = World(pool, Faults(k, when=when))
        if world.request(run, Attempt()) is None:
            world.deliver_all()
            refused.append(world.faults.calls[k - 1])
            assert world.bought == 0, f"call {k}, {world.faults.calls[k - 1]}"
    assert refused


@EACH_RUN
def test_with_two_faults_nothing_is_lost_and_nothing_is_paid_twice(pool: ThreadPoolExecutor, run: Run) -> None:
    attempt = Attempt("k")
    # A fault makes a run longer, so there are more calls to fail than in a run without.
    calls = calls_of(pool, run, attempt) + 6
    for first in range(1, calls + 1):
        for second in range(first + 1, min(first + 8, calls + 1)):
            world = World(pool, Faults(first, second))
            world.request(run, attempt)
            world.deliver_all()
            failed = [world.faults.calls[k - 1] for k in (first, second) if k <= len(world.faults.calls)]
            broken = f"calls {first} and {second}, {failed}"
            assert_nothing_is_lost(world, broken, may_fail=bool(LARGE_ANSWER & set(failed)))
            assert_nothing_is_paid_twice(world)


@EACH_RUN
@EACH_WHEN
def test_without_repeats_no_fault_has_anything_paid_twice(pool: ThreadPoolExecutor, run: Run, when: When) -> None:
    for k in range(1, calls_of(pool, run, Attempt("k")) + 1):
        world = World(pool, Faults(k, when=when), repeat_unknown=False)
        world.request(run, Attempt("k"))
        world.deliver_all()
        broken = f"call {k}, {world.faults.calls[k - 1]}"
        for generation in world.generations:
            assert generation.ended, broken
            assert generation.repeated_calls == 0, broken
            assert set(world.images.saved) == set(generation.stored_ids), broken
            assert world.bought == len(generation.stored_ids), broken
        assert world.bought <= run.n, broken


@EACH_RUN
@EACH_WHEN
def test_with_a_fault_at_any_one_call_a_refusal_frees_the_key(pool: ThreadPoolExecutor, run: Run, when: When) -> None:
    """The upstream refuses every call. The caller's next request begins anew, and is served."""
    for k in range(1, MOST_CALLS):
        world = World(pool, Faults(k, when=when))
        world.provider.failures.extend([UpstreamRateLimitedError("Later.")] * 20)
        world.request(run, Attempt("k"))
        world.deliver_all()
        if len(world.faults.calls) < k:
            assert k > 4
            return
        broken = f"call {k}, {world.faults.calls[k - 1]}"
        for generation in world.generations:
            assert generation.status is Status.FAILED, broken
            assert generation.failure is not None
            # A call that was sent again after an unknown outcome may have been paid for.
            charged = any(call.charged for call in generation.calls)
            assert cost_money(generation.failure) is charged, broken
            unknown = (("records.save_sending", "after"), ("records.save_refusal", "before"))
            assert not charged or (world.faults.calls[k - 1], when) in unknown, broken
        charged = any(call.charged for generation in world.generations for call in generation.calls)
        world.provider.failures.clear()
        again = world.request(run, Attempt("k"))
        world.deliver_all()
        record = world.records.get(again or "")
        assert record is not None, broken
        assert record.status is (Status.FAILED if charged else Status.COMPLETED), broken
    raise AssertionError("a run without an end")


def test_every_call_of_a_run_is_hit() -> None:
    """What the runs above fail one by one is all there is: no call passes by the faults."""
    with ThreadPoolExecutor(10) as pool:
        world = World(pool, Faults())
        world.request(Run(work_here=False, n=1, response_format="b64_json"), Attempt("k"))
        world.deliver_all()
    hit = set(world.faults.calls)
    assert {"records.hold_key", "counters.take", "queue.send", "records.create", "records.claim"} <= hit
    assert {"records.save_sending", "images.save", "records.save_image", "records.save_answer"} <= hit
    assert {"records.get", "images.read", "images.save_answer", "records.end"} <= hit
    assert {"bus.generation_ended", "records.mark_announced"} <= hit
    assert issubclass(RecordsUnavailableError, NothingSpentError)
