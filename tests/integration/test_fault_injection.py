"""Whole generations with a fault at each call to records, keys, queue, counters, bus and bucket in turn.

After the fault, messages are redelivered until all generations have ended, as SQS does. Then every paid image is
stored, every end is published, and the quota covers every charged image.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageStorageError,
    ImageStorageInterruptedError,
    NothingSpentError,
    RecordsUnavailableError,
    SubmissionUncertainError,
    UpstreamRefusedRequestError,
)
from imagegen.domain.generations import Generation, Status
from imagegen.domain.images import ImageRequest, ResponseFormat
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.usecases.send_upstream_call import UnfinishedError
from tests.support.in_memory import LEASE, InMemoryService

AT_MOST_SECONDS = 30
MOST_CALLS = 60  # more than any run below makes, which a test checks
MOST_ROUNDS = 10

LARGE_ANSWER = frozenset({"images.read", "images.save_answer"})  # all images are stored by then

When = Literal["before", "after"]


class Faults:
    """Counts the calls to all wrapped fakes. The calls whose numbers are `due` fail, before or after their effect."""

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


@dataclass
class Faulty:
    """Passes each call to a fake. A call that fails after its effect loses the fake's answer or error."""

    _name: str
    _fake: object
    _faults: Faults
    _error: type[Exception]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._fake, name)

        def call(*arguments: Any, **more: Any) -> Any:
            with self._faults.around(f"{self._name}.{name}", self._error):
                return method(*arguments, **more)

        return call


@dataclass(frozen=True)
class Run:
    work_here: bool
    n: int
    response_format: ResponseFormat
    model: str = "dall-e-3"
    polls: int = 0  # the polls until the upstream's task ends; 0: it answers with images

    def __str__(self) -> str:
        task = f"-task of {self.polls} polls" if self.polls else ""
        return f"{'here' if self.work_here else 'worker'}-{self.model}-{self.n}-{self.response_format}{task}"


class World:
    """`faults` hit records, keys, queue, counters, bus and bucket; the heartbeat never beats in a run this short.

    `service` uses the faulty fakes. The other attributes are the fakes themselves, for assertions.
    """

    def __init__(self, pool: Executor, *due: int, when: When = "before", repeat_unknown: bool = True) -> None:
        self.faults = Faults(*due, when=when)
        self.service = InMemoryService(pool, repeat_unknown=repeat_unknown, large_answer=self._large_answer)
        self.records, self.counters, self.bus = self.service.records, self.service.counters, self.service.bus
        self.images, self.provider, self.queue = self.service.images, self.service.provider, self.service.queue
        for name in ("records", "keys", "queue", "counters", "bus", "images"):
            error = ImageStorageInterruptedError if name == "images" else RecordsUnavailableError
            setattr(self.service, name, Faulty(name, getattr(self.service, name), self.faults, error))

    @contextmanager
    def _large_answer(self, generation: Generation) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Every answer with bytes is large here, and consists of the stored images."""
        contents = []
        for image_id in generation.image_ids:
            with self.service.images.read(image_id, Deadline.after(AT_MOST_SECONDS)) as blocks:
                contents.append(b"".join(blocks))
        yield sum(map(len, contents)), iter(contents)

    def request(self, run: Run, identity: RetryIdentity) -> str | None:
        """Acts as the api function. Returns None if the answer says that no generation was begun."""
        request = ImageRequest("a cat", run.model, run.response_format, run.n)
        self.provider.polls = run.polls
        try:
            submitted = self.service.submit(identity, request, work_here=run.work_here)
        except RecordsUnavailableError:
            return None
        except SubmissionUncertainError as uncertain:
            return uncertain.generation_id
        if submitted.owner:
            with suppress(RecordsUnavailableError, UnfinishedError):  # the message is redelivered
                self.service.work(submitted.generation, seconds=AT_MOST_SECONDS)
        return submitted.generation.id

    def deliver_all(self) -> None:
        """Acts as SQS: redelivers each message after its lease until it is acknowledged."""
        done: set[int] = set()
        for _ in range(MOST_ROUNDS):
            self.service.now += 2 * LEASE
            for number, ((generation_id, _), poll) in enumerate([*zip(self.queue.sent, self.queue.polls, strict=True)]):
                if number not in done and self._is_done(generation_id, poll):
                    done.add(number)
            if len(done) == len(self.queue.sent):
                self._assert_every_end_is_published()
                self._assert_the_quota_covers_every_charged_image()
                return
        raise AssertionError("some messages are never acknowledged")

    def _is_done(self, generation_id: str, poll: int) -> bool:
        try:
            return self.service.deliver(generation_id, poll, seconds=AT_MOST_SECONDS) is None
        except (RecordsUnavailableError, UnfinishedError, ImageStorageError):
            return False

    def _assert_the_quota_covers_every_charged_image(self) -> None:
        """After a fault, the quota may count images that were not charged. It counts every charged image."""
        charged = sum(
            len(call.image_ids) for generation in self.generations for call in generation.calls if call.charged
        )
        assert all(used >= charged for used in self.counters.used.values()), self.faults.calls
        if not self.faults.failed:
            assert set(self.counters.used.values()) == {charged}, self.faults.calls

    def _assert_every_end_is_published(self) -> None:
        published = {(generation.id, generation.status) for generation in self.bus.ended}
        assert published == {(generation.id, generation.status) for generation in self.generations}, self.faults.calls
        assert all(generation.published for generation in self.generations), self.faults.calls
        assert {generation.id for generation in self.service.line_ends} == {id_ for id_, _ in published}, self.broken

    def assert_nothing_is_lost_or_charged_twice(self) -> None:
        """Holds at the end, with any fault. A repeated upstream call counts its images once more."""
        may_fail = bool(LARGE_ANSWER & set(self.faults.failed))
        counted = 0
        for generation in self.generations:
            completed = generation.status is Status.COMPLETED
            assert completed or (may_fail and generation.status is Status.FAILED), (self.broken, generation.failure)
            assert generation.stored_ids == generation.image_ids, self.broken
            assert set(generation.image_ids) <= set(self.images.saved), self.broken
            counted += sum(len(call.image_ids) * call.sent for call in generation.calls)
        assert self.charged_images <= counted, self.broken
        if not any(generation.repeated_calls for generation in self.generations):
            assert self.charged_images <= sum(len(generation.image_ids) for generation in self.generations), self.broken

    @property
    def broken(self) -> str:
        calls = [(k, self.faults.calls[k - 1]) for k in self.faults.due if k <= len(self.faults.calls)]
        return f"calls that failed {self.faults.when} their effect: {calls}"

    @property
    def generations(self) -> list[Generation]:
        return list(self.records.newest("alice", 100))

    @property
    def charged_images(self) -> int:
        """An upstream with tasks recognises a repeated call, and charges it once."""
        if self.provider.polls:
            return sum({call.reference: call.n for call in self.provider.calls}.values())
        return sum(call.n for call in self.provider.calls)


# Three calls of one image, one call of three images, and one image: by the api function or by a worker, in either
# format. Three tasks and one task, each polled twice.
RUNS = [
    *(Run(work_here, 3, "b64_json") for work_here in (False, True)),
    *(Run(work_here, 3, "url", "gpt-image-1.5") for work_here in (False, True)),
    *(Run(work_here=False, n=1, response_format="url"), Run(work_here=True, n=1, response_format="b64_json")),
    *(
        Run(work_here=True, n=3, response_format="url", polls=2),
        Run(work_here=False, n=1, response_format="url", polls=2),
    ),
]
EACH_RUN = pytest.mark.parametrize("run", RUNS, ids=str)
EACH_WHEN = pytest.mark.parametrize("when", ["before", "after"])
KEYED = RetryIdentity("k")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as executor:
        yield executor


def calls_of(pool: Executor, run: Run, identity: RetryIdentity = KEYED) -> list[str]:
    """The calls of a run without a fault."""
    world = World(pool)
    assert world.request(run, identity)
    world.deliver_all()
    (generation,) = world.generations
    assert generation.status is Status.COMPLETED
    assert len(world.faults.calls) < MOST_CALLS
    return world.faults.calls


def worlds(pool: Executor, run: Run, when: When, identity: RetryIdentity = KEYED, **more: Any) -> Iterator[World]:
    """One world for each call of the run, in which that call fails."""
    for k in range(1, len(calls_of(pool, run, identity)) + 1):
        yield World(pool, k, when=when, **more)


@EACH_RUN
@EACH_WHEN
@pytest.mark.parametrize("identity", [KEYED, RetryIdentity()], ids=["key", "no key"])
def test_one_fault_loses_nothing_and_charges_nothing_twice(
    pool: Executor, run: Run, when: When, identity: RetryIdentity
) -> None:
    """Without a key and a retry count, a repeated request begins another generation."""
    refused = False
    for world in worlds(pool, run, when, identity):
        admitted = world.request(run, identity)
        world.deliver_all()
        world.assert_nothing_is_lost_or_charged_twice()
        assert world.charged_images <= run.n, world.broken
        if any(generation.repeated_calls for generation in world.generations):
            assert (world.faults.failed, when) == (["records.save_attempt"], "after"), world.broken
        if admitted:
            assert [generation.id for generation in world.generations] == [admitted], world.broken
        elif identity != KEYED:
            refused = True
            assert world.charged_images == 0, world.broken
    assert refused or identity == KEYED


@EACH_RUN
@EACH_WHEN
def test_a_fault_while_a_large_answer_is_stored_fails_no_generation(pool: Executor, run: Run, when: When) -> None:
    """Every image is charged and stored by then."""
    due = [k for k, name in enumerate(calls_of(pool, run), 1) if name in LARGE_ANSWER]
    assert bool(due) is (run.response_format == "b64_json")
    for k in due:
        world = World(pool, k, when=when)
        world.request(run, KEYED)
        world.deliver_all()
        assert all(generation.status is Status.COMPLETED for generation in world.generations), world.broken
        world.assert_nothing_is_lost_or_charged_twice()
        assert len(world.images.answers) == 1


@EACH_RUN
@EACH_WHEN
def test_a_repeated_request_with_its_key_gets_one_generation(pool: Executor, run: Run, when: When) -> None:
    for world in worlds(pool, run, when):
        first = world.request(run, KEYED)
        world.faults.paused = True
        second = world.request(run, KEYED)
        world.faults.paused = False
        world.deliver_all()
        (generation,) = world.generations
        assert second == generation.id, world.broken
        assert first in (None, generation.id), world.broken
        world.assert_nothing_is_lost_or_charged_twice()


@EACH_RUN
def test_two_faults_lose_nothing_and_charge_nothing_twice(pool: Executor, run: Run) -> None:
    # A fault makes a run longer, so more calls can fail than in a run without one.
    calls = len(calls_of(pool, run)) + 6
    for first in range(1, calls + 1):
        for second in range(first + 1, min(first + 8, calls + 1)):
            world = World(pool, first, second)
            world.request(run, KEYED)
            world.deliver_all()
            world.assert_nothing_is_lost_or_charged_twice()


@EACH_RUN
@EACH_WHEN
def test_without_repeated_calls_no_fault_charges_anything_twice(pool: Executor, run: Run, when: When) -> None:
    for world in worlds(pool, run, when, repeat_unknown=False):
        world.request(run, KEYED)
        world.deliver_all()
        for generation in world.generations:
            assert generation.ended, world.broken
            assert generation.repeated_calls == 0, world.broken
            assert set(world.images.saved) == set(generation.stored_ids), world.broken
            assert world.charged_images == len(generation.stored_ids), world.broken
        assert world.charged_images <= run.n, world.broken


@EACH_RUN
@EACH_WHEN
def test_after_one_fault_a_refusal_still_frees_the_key(pool: Executor, run: Run, when: When) -> None:
    """The upstream refuses every call. The caller's next request begins a new generation, which completes."""
    for k in range(1, MOST_CALLS):
        world = World(pool, k, when=when)
        world.provider.failures.extend([UpstreamRefusedRequestError("No such size.")] * 20)
        world.request(run, KEYED)
        world.deliver_all()
        if len(world.faults.calls) < k:
            assert k > 4
            return
        for generation in world.generations:
            assert generation.status is Status.FAILED, world.broken
            assert generation.failure is not None
            # A call that is repeated after an unknown outcome may have been charged.
            charged = any(call.charged for call in generation.calls)
            assert generation.failure.money_spent is charged, world.broken
            unknown = (("records.save_attempt", "after"), ("records.save_failure", "before"))
            assert not charged or (world.faults.calls[k - 1], when) in unknown, world.broken
        charged = any(call.charged for generation in world.generations for call in generation.calls)
        world.provider.failures.clear()
        repeated = world.request(run, KEYED)
        world.deliver_all()
        record = world.records.get(repeated or "")
        assert record is not None, world.broken
        assert record.status is (Status.FAILED if charged else Status.COMPLETED), world.broken
    raise AssertionError("the run has more calls than MOST_CALLS")


def test_every_call_of_a_run_can_fail(pool: Executor) -> None:
    """No call bypasses the faults."""
    run = Run(work_here=False, n=1, response_format="b64_json", polls=2)
    assert set(calls_of(pool, run)) >= {
        *("records.save_task", "records.await_poll"),
        *("keys.hold", "counters.take", "queue.send", "records.create", "records.claim", "records.save_attempt"),
        *("images.save", "records.save_image", "records.save_answer", "records.get", "images.read"),
        *("images.save_answer", "records.end", "bus.generation_ended", "records.mark_published"),
    }
    assert issubclass(RecordsUnavailableError, NothingSpentError)
