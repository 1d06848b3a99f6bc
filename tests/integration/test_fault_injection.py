"""Whole generations with a fault at every call to records, queue, counters, bus and bucket, one after another.

After the fault, messages are redelivered until all has ended, as SQS does. Then nothing may be lost that was paid for,
every end was published, and no more of the quota is taken than was asked for.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from imagegen.domain.attempts import Attempt
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageStorageError,
    ImageStorageInterruptedError,
    NothingSpentError,
    RecordsUnavailableError,
    SubmissionUncertainError,
    UpstreamRateLimitedError,
)
from imagegen.domain.failures import cost_money
from imagegen.domain.generations import Generation, Status
from imagegen.domain.images import ImageRequest, ResponseFormat
from imagegen.usecases.generate import UnfinishedError
from imagegen.usecases.work import work
from tests.support.in_memory import LEASE, InMemoryService

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


@dataclass
class Faulty:
    """Passes every call on to a fake. One that fails after its effect loses what the fake answered or refused."""

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

    def __str__(self) -> str:
        return f"{'here' if self.work_here else 'worker'}-{self.model}-{self.n}-{self.response_format}"


class World:
    """`faults` hit records, queue, counters, bus and bucket; the heartbeat never beats in a run this short.

    `service` works with all of them; the rest of it, such as the fakes behind the faults, is for looking at.
    """

    def __init__(self, pool: Executor, *due: int, when: When = "before", repeat_unknown: bool = True) -> None:
        self.faults = Faults(*due, when=when)
        self.service = InMemoryService(pool, repeat_unknown=repeat_unknown, large_answer=self._large_answer)
        self.records, self.counters, self.bus = self.service.records, self.service.counters, self.service.bus
        self.images, self.provider, self.sent = self.service.images, self.service.provider, self.service.queue.sent
        for name in ("records", "queue", "counters", "bus", "images"):
            error = ImageStorageInterruptedError if name == "images" else RecordsUnavailableError
            setattr(self.service, name, Faulty(name, getattr(self.service, name), self.faults, error))

    def _large_answer(self, generation: Generation) -> tuple[int, Iterator[bytes]]:
        """Every answer with bytes is large here, and made of what is stored."""
        contents = []
        for image_id in generation.image_ids:
            with self.service.images.read(image_id, Deadline.after(AT_MOST_SECONDS)) as blocks:
                contents.append(b"".join(blocks))
        return sum(map(len, contents)), iter(contents)

    def request(self, run: Run, attempt: Attempt) -> str | None:
        """What the api function does. None if the caller is answered that nothing was begun."""
        request = ImageRequest("a cat", run.model, run.response_format, run.n)
        try:
            submitted = self.service.submit(attempt, request, work_here=run.work_here)
        except RecordsUnavailableError:
            return None
        except SubmissionUncertainError as uncertain:
            return uncertain.generation_id
        if submitted.owner:
            with suppress(RecordsUnavailableError, UnfinishedError):  # the message brings it back
                work(submitted.generation, submitted.owner, self.service.workshop, Deadline.after(AT_MOST_SECONDS))
        return submitted.generation.id

    def deliver_all(self) -> None:
        """What SQS does: every message again and again, each time after the lease, until it is done with."""
        waiting = [generation_id for generation_id, _ in self.sent]
        for _ in range(MOST_ROUNDS):
            self.service.now += 2 * LEASE
            waiting = [generation_id for generation_id in waiting if not self._is_done(generation_id)]
            if not waiting:
                self._assert_every_end_is_published()
                self._assert_no_more_quota_is_taken_than_was_asked_for()
                return
        raise AssertionError("messages come for ever")

    def _is_done(self, generation_id: str) -> bool:
        try:
            return self.service.deliver(generation_id, seconds=AT_MOST_SECONDS) is None
        except (RecordsUnavailableError, UnfinishedError, ImageStorageError):
            return False

    def _assert_no_more_quota_is_taken_than_was_asked_for(self) -> None:
        """A fault may leave images taken that were not charged, and never the other way round."""
        charged = sum(
            len(call.image_ids) for generation in self.generations for call in generation.calls if call.charged
        )
        assert all(used >= charged for used in self.counters.used.values()), self.faults.calls
        if not self.faults.failed:
            assert set(self.counters.used.values()) == {charged}, self.faults.calls

    def _assert_every_end_is_published(self) -> None:
        published = {(generation.id, generation.status) for generation in self.bus.ended}
        assert published == {(generation.id, generation.status) for generation in self.generations}, self.faults.calls
        assert all(generation.announced for generation in self.generations), self.faults.calls
        assert {generation.id for generation in self.service.settled} == {id_ for id_, _ in published}, self.broken

    def assert_nothing_is_lost_or_paid_twice(self) -> None:
        """What holds in the end, whatever failed on the way. A call that was sent again counts its images again."""
        may_fail = bool(LARGE_ANSWER & set(self.faults.failed))
        counted = 0
        for generation in self.generations:
            completed = generation.status is Status.COMPLETED
            assert completed or (may_fail and generation.status is Status.FAILED), (self.broken, generation.failure)
            assert generation.stored_ids == generation.image_ids, self.broken
            assert set(generation.image_ids) <= set(self.images.saved), self.broken
            counted += sum(len(call.image_ids) * call.sent for call in generation.calls)
        assert self.bought <= counted, self.broken
        if not any(generation.repeated_calls for generation in self.generations):
            assert self.bought <= sum(len(generation.image_ids) for generation in self.generations), self.broken

    @property
    def broken(self) -> str:
        calls = [(k, self.faults.calls[k - 1]) for k in self.faults.due if k <= len(self.faults.calls)]
        return f"calls that failed {self.faults.when} their effect: {calls}"

    @property
    def generations(self) -> list[Generation]:
        return list(self.records.newest("alice", 100))

    @property
    def bought(self) -> int:
        return sum(call.n for call in self.provider.calls)


# Three calls of an image each, one call of three images, and one image; each here and by a worker, in either format.
RUNS = [
    *(Run(work_here, 3, "b64_json") for work_here in (False, True)),
    *(Run(work_here, 3, "url", "gpt-image-1.5") for work_here in (False, True)),
    *(Run(work_here=False, n=1, response_format="url"), Run(work_here=True, n=1, response_format="b64_json")),
]
EACH_RUN = pytest.mark.parametrize("run", RUNS, ids=str)
EACH_WHEN = pytest.mark.parametrize("when", ["before", "after"])
KEYED = Attempt("k")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as executor:
        yield executor


def calls_of(pool: Executor, run: Run, attempt: Attempt = KEYED) -> list[str]:
    """The calls that a run makes in which nothing fails."""
    world = World(pool)
    assert world.request(run, attempt)
    world.deliver_all()
    (generation,) = world.generations
    assert generation.status is Status.COMPLETED
    assert len(world.faults.calls) < MOST_CALLS
    return world.faults.calls


def worlds(pool: Executor, run: Run, when: When, attempt: Attempt = KEYED, **more: Any) -> Iterator[World]:
    """With a fault at each of the calls of the run, one after another."""
    for k in range(1, len(calls_of(pool, run, attempt)) + 1):
        yield World(pool, k, when=when, **more)


@EACH_RUN
@EACH_WHEN
@pytest.mark.parametrize("attempt", [KEYED, Attempt()], ids=["key", "no key"])
def test_with_a_fault_at_any_one_call_nothing_is_lost_and_nothing_is_paid_twice(
    pool: Executor, run: Run, when: When, attempt: Attempt
) -> None:
    """An answer of the upstream is never forgotten if its images could be stored or noted.

    A client that sends no key and no retry count begins another generation when it repeats its request.
    """
    refused = False
    for world in worlds(pool, run, when, attempt):
        admitted = world.request(run, attempt)
        world.deliver_all()
        world.assert_nothing_is_lost_or_paid_twice()
        assert world.bought <= run.n, world.broken
        if any(generation.repeated_calls for generation in world.generations):
            assert (world.faults.failed, when) == (["records.save_sending"], "after"), world.broken
        if admitted:
            assert [generation.id for generation in world.generations] == [admitted], world.broken
        elif attempt != KEYED:
            refused = True
            assert world.bought == 0, world.broken
    assert refused or attempt == KEYED


@EACH_RUN
@EACH_WHEN
def test_a_hiccup_while_a_large_answer_is_stored_fails_no_generation(pool: Executor, run: Run, when: When) -> None:
    """Every image is paid for and stored by then."""
    due = [k for k, name in enumerate(calls_of(pool, run), 1) if name in LARGE_ANSWER]
    assert bool(due) is (run.response_format == "b64_json")
    for k in due:
        world = World(pool, k, when=when)
        world.request(run, KEYED)
        world.deliver_all()
        assert all(generation.status is Status.COMPLETED for generation in world.generations), world.broken
        world.assert_nothing_is_lost_or_paid_twice()
        assert len(world.images.answers) == 1


@EACH_RUN
@EACH_WHEN
def test_a_caller_that_comes_again_with_its_key_gets_one_generation(pool: Executor, run: Run, when: When) -> None:
    for world in worlds(pool, run, when):
        first = world.request(run, KEYED)
        world.faults.paused = True
        second = world.request(run, KEYED)
        world.faults.paused = False
        world.deliver_all()
        (generation,) = world.generations
        assert second == generation.id, world.broken
        assert first in (None, generation.id), world.broken
        world.assert_nothing_is_lost_or_paid_twice()


@EACH_RUN
def test_with_two_faults_nothing_is_lost_and_nothing_is_paid_twice(pool: Executor, run: Run) -> None:
    # A fault makes a run longer, so there are more calls to fail than in a run without.
    calls = len(calls_of(pool, run)) + 6
    for first in range(1, calls + 1):
        for second in range(first + 1, min(first + 8, calls + 1)):
            world = World(pool, first, second)
            world.request(run, KEYED)
            world.deliver_all()
            world.assert_nothing_is_lost_or_paid_twice()


@EACH_RUN
@EACH_WHEN
def test_without_repeats_no_fault_has_anything_paid_twice(pool: Executor, run: Run, when: When) -> None:
    for world in worlds(pool, run, when, repeat_unknown=False):
        world.request(run, KEYED)
        world.deliver_all()
        for generation in world.generations:
            assert generation.ended, world.broken
            assert generation.repeated_calls == 0, world.broken
            assert set(world.images.saved) == set(generation.stored_ids), world.broken
            assert world.bought == len(generation.stored_ids), world.broken
        assert world.bought <= run.n, world.broken


@EACH_RUN
@EACH_WHEN
def test_with_a_fault_at_any_one_call_a_refusal_frees_the_key(pool: Executor, run: Run, when: When) -> None:
    """The upstream refuses every call. The caller's next request begins anew, and is served."""
    for k in range(1, MOST_CALLS):
        world = World(pool, k, when=when)
        world.provider.failures.extend([UpstreamRateLimitedError("Later.")] * 20)
        world.request(run, KEYED)
        world.deliver_all()
        if len(world.faults.calls) < k:
            assert k > 4
            return
        for generation in world.generations:
            assert generation.status is Status.FAILED, world.broken
            assert generation.failure is not None
            # A call that was sent again after an unknown outcome may have been paid for.
            charged = any(call.charged for call in generation.calls)
            assert cost_money(generation.failure) is charged, world.broken
            unknown = (("records.save_sending", "after"), ("records.save_refusal", "before"))
            assert not charged or (world.faults.calls[k - 1], when) in unknown, world.broken
        charged = any(call.charged for generation in world.generations for call in generation.calls)
        world.provider.failures.clear()
        again = world.request(run, KEYED)
        world.deliver_all()
        record = world.records.get(again or "")
        assert record is not None, world.broken
        assert record.status is (Status.FAILED if charged else Status.COMPLETED), world.broken
    raise AssertionError("a run without an end")


def test_every_call_of_a_run_is_hit(pool: Executor) -> None:
    """What the runs above fail one by one is all there is: no call passes by the faults."""
    assert set(calls_of(pool, Run(work_here=False, n=1, response_format="b64_json"))) >= {
        *("records.hold_key", "counters.take", "queue.send", "records.create", "records.claim", "records.save_sending"),
        *("images.save", "records.save_image", "records.save_answer", "records.get", "images.read"),
        *("images.save_answer", "records.end", "bus.generation_ended", "records.mark_announced"),
    }
    assert issubclass(RecordsUnavailableError, NothingSpentError)
