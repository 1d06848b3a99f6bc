"""The use cases over stores in memory, on a clock that the test moves: one service, with its clients and workers."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from imagegen.domain.attempts import Attempt
from imagegen.domain.batches import Batch, InboxFile
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Generation,
    Status,
    StoredImage,
    Tombstone,
    admit,
    new_owner,
)
from imagegen.domain.images import ImageBody, ImageRequest
from imagegen.ports import SILENT, Journal
from imagegen.usecases.carry_on import BatchShop, begin, carry_on
from imagegen.usecases.generate import Tools, generate
from imagegen.usecases.manage import LEASE_SECONDS, cancel, delete, retry, see
from imagegen.usecases.publish import Ledger, Settle, announce
from imagegen.usecases.quota import Allowance
from imagegen.usecases.read_batch import Reader
from imagegen.usecases.submit import Desk, Submitted, submit
from imagegen.usecases.work import LargeAnswer, Workshop, give_up, work, work_on_message
from imagegen.wire.batches import outcome_line, read_batch_line, refused_line
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.batches import FakeBatchBus, FakeBatchLines, FakeBatchQueue, FakeBatchStore, FakeFiles
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider, png

NOW = 1_760_000_000.5
LEASE = LEASE_SECONDS
REQUEST = ImageRequest("a cat", "dall-e-3", "url")
BASE_URL = "https://x.example/v1"
DEADLINE_SECONDS = 10.0

Beat = Callable[[], None]


class StillDeadline(Deadline):
    """Comes no nearer by itself, however slow the machine is: `at` is how many seconds remain."""

    def remaining(self) -> float:
        return self.at


@dataclass
class InMemoryService:
    """All stores, the upstream and the clock of a service. A test reads and replaces them, or has them fail.

    No heart beats by itself: while a worker works, `beat` is what its heartbeat does.
    """

    pool: Executor
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeAllowanceCounters = field(default_factory=FakeAllowanceCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    provider: FakeProvider = field(default_factory=FakeProvider)
    batches: FakeBatchStore = field(default_factory=FakeBatchStore)
    batch_queue: FakeBatchQueue = field(default_factory=FakeBatchQueue)
    batch_bus: FakeBatchBus = field(default_factory=FakeBatchBus)
    files: FakeFiles = field(default_factory=FakeFiles)
    now: float = NOW
    lease: float = LEASE
    each_caller: int = 10_000
    whole_stack: int = 10_000
    own_images_per_day: int | None = None
    repeat_unknown: bool = True
    may_send: bool = True
    call_seconds: float = 0.0
    large_answer: LargeAnswer = lambda _: None
    journal: Journal = SILENT
    held: list[float] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    settled: list[Generation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = FakeImageSource(self.provider.files)
        self.lines = FakeBatchLines(self.batches)
        self.ledger = Ledger(self.batches, self.lines, self.batch_queue, outcome_line)
        self.settle: Settle = self._settle
        self.beat: Beat | None = None
        self.heartbeat: Callable[[float, Beat], AbstractContextManager[None]] = self._heartbeat

    def _settle(self, generation: Generation) -> None:
        self.settled.append(generation)
        self.ledger.settle(generation)

    @contextmanager
    def _heartbeat(self, _: float, beat: Beat) -> Iterator[None]:
        self.beat = beat
        try:
            yield
        finally:
            self.beat = None

    def clock(self) -> float:
        return self.now

    def deadline(self, seconds: float = DEADLINE_SECONDS) -> Deadline:
        return StillDeadline(seconds)

    @property
    def allowance(self) -> Allowance:
        return Allowance(self.counters, each_caller=self.each_caller, whole_stack=self.whole_stack)

    @property
    def used(self) -> set[int]:
        """How many images of the quota are taken: by the caller and by the stack, which must agree."""
        return set(self.counters.used.values())

    @property
    def published(self) -> list[tuple[str, Status]]:
        """The ends that are on the bus, in order."""
        return [(generation.id, generation.status) for generation in self.bus.ended]

    def record(self, generation: Generation | str) -> Generation:
        """As it is now."""
        found = self.records.get(generation if isinstance(generation, str) else generation.id)
        assert found is not None
        return found

    # What a client does.

    @property
    def desk(self) -> Desk:
        return Desk(self.records, self.queue, self.allowance, self.clock, self.lease, self.slept.append, self.journal)

    def submit(
        self,
        attempt: Attempt = Attempt(),  # noqa: B008  # frozen
        request: ImageRequest = REQUEST,
        *,
        caller: str = "alice",
        work_here: bool = False,
        generation_id: str | None = None,
    ) -> Submitted:
        try:
            return submit(
                request,
                attempt,
                self.desk,
                caller=caller,
                base_url=BASE_URL,
                work_here=work_here,
                generation_id=generation_id,
            )
        finally:
            self.now += 0.001  # no two are begun at the same time

    def see(self, generation_id: str, caller: str = "alice") -> Generation:
        return see(generation_id, caller, self.records)

    def cancel(self, generation_id: str, caller: str = "alice") -> Generation:
        return cancel(generation_id, caller, self.records, self.counters, self.bus, self.clock, self.settle)

    def delete(self, generation_id: str, caller: str = "alice", *, seconds: float = DEADLINE_SECONDS) -> None:
        stores = (self.records, self.queue, self.counters, self.bus, self.images)
        delete(generation_id, caller, *stores, self.clock, StillDeadline(seconds), self.settle)

    # What the operator does.

    def retry(self, generation_id: str) -> Generation | None:
        return retry(generation_id, self.records, self.counters, self.queue, self.clock)

    # What a worker does.

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
            now=self.clock,
            repeat_unknown=self.repeat_unknown,
            call_seconds=self.call_seconds,
            lease=self.lease,
            settle=self.settle,
            sleep=self.slept.append,
            journal=self.journal,
            heartbeat=self.heartbeat,
        )

    def deliver(self, generation_id: str, *, seconds: float = DEADLINE_SECONDS) -> float | None:
        """A worker receives a message. Gives what `work_on_message` gives."""
        return work_on_message(generation_id, self.workshop, StillDeadline(seconds), hold=self.held.append)

    def work(self, generation: Generation, *, seconds: float = DEADLINE_SECONDS) -> Generation | None:
        """A process that received no message works on a generation that it claimed."""
        assert generation.owner
        return work(generation, generation.owner, self.workshop, StillDeadline(seconds))

    def give_up(self, generation_id: str, *, seconds: float = DEADLINE_SECONDS) -> float | None:
        """The message is a dead letter."""
        return give_up(generation_id, self.workshop, StillDeadline(seconds))

    def generate(self, generation: Generation, *, deadline: Deadline | None = None) -> Generation:
        """Makes the images of a claimed generation, without its end. Gives the record afterwards."""
        tools = Tools(
            *(self.provider, self.source, self.images, self.records, self.pool),
            repeat_unknown=self.repeat_unknown,
            may_send=self.may_send,
            call_seconds=self.call_seconds,
            sleep=self.slept.append,
        )
        assert generation.owner
        generate(generation, generation.owner, tools, deadline or StillDeadline(DEADLINE_SECONDS))
        return self.record(generation)

    def announce(self, generation: Generation) -> None:
        announce(generation, self.records, self.counters, self.bus, self.settle)

    # How a generation may stand.

    def admitted(self, request: ImageRequest = REQUEST, *, caller: str = "alice", **fields: Any) -> Generation:
        """With its images taken from the quota, as it is when its message comes. `fields` change the request."""
        request = replace(request, **fields)
        generation = admit(request, caller=caller, base_url=BASE_URL, now=self.now)
        self.allowance.reserve(caller, request.n, now=self.now, token=generation.id, may_undo=lambda: True)
        self.records.create(generation)
        return generation

    def begun(self, **fields: Any) -> Generation:
        """A new one, claimed."""
        return self.claimed(self.admitted(**fields))

    def claimed(self, generation: Generation) -> Generation:
        """As its next owner finds it, once the lease of the one before has ended. Its own begins now."""
        self.now += 2 * self.lease
        claimed = self.records.claim(generation.id, new_owner(), now=self.now, lease_until=self.now + self.lease)
        assert claimed is not None
        return claimed

    def noted(self, generation: Generation, *calls: Call) -> None:
        """Its owner notes these calls."""
        assert generation.owner
        for index, call in enumerate(calls):
            for sending in range(1, call.sent + 1):
                self.records.save_sending(generation.id, generation.owner, index, sending)
            for sending in range(1, call.refused + 1):
                self.records.save_refusal(generation.id, index, sending)
            if call.answer:
                self.records.save_answer(generation.id, index, call.answer)

    def left_behind(
        self, generation: Generation, *calls: Call, stored: Sequence[str] = (), listed: Sequence[str] = ()
    ) -> None:
        """A worker claimed it, noted these calls and died, long ago.

        `stored` are the images that it stored, `listed` those of which the record says so.
        """
        self.noted(self.claimed(generation), *calls)
        self.store(*stored)
        for image_id in listed:
            self.records.save_image(generation.id, image_id, StoredImage("image/png", len(png(image_id))))
        self.now += 2 * self.lease

    def ended(self, generation: Generation, status: Status = Status.COMPLETED, **end: Any) -> Generation:
        """Its owner ends it, claimed or not before, and is gone."""
        if self.record(generation).owner is None:
            generation = self.claimed(generation)
        owner = cast("str", self.record(generation).owner)
        self.records.end(generation.id, owner, status, now=self.now, **end)
        self.records.let_go(generation.id, owner)
        return self.record(generation)

    def buried(self, generation: Generation) -> Tombstone:
        """The process that deletes it dies right after it has put the tombstone."""
        self.records.cancel(generation.id, now=self.now)
        return self.records.bury(self.record(generation), now=self.now)

    def store(self, *image_ids: str) -> None:
        for image_id in image_ids:
            content = png(image_id)
            self.images.save(image_id, ImageBody("image/png", len(content), iter([content])), StillDeadline(9))

    def answer(self, name: str) -> CallAnswer:
        """An upstream's answer that names one image by URL, which is there."""
        url = f"https://images.example/{name}.png"
        self.provider.files[url] = png(name)
        return CallAnswer((AnsweredImage(url, f"a nicer {name}"),))

    # Batches: the intake, and workers that make all images at once.

    @property
    def shop(self) -> BatchShop:
        reader = Reader(
            desk=self.desk,
            ledger=self.ledger,
            inbox=self.files,
            pool=self.pool,
            base_url=BASE_URL,
            read_line=partial(read_batch_line, prompt_cap=1000),
            refusal=refused_line,
            own_images_per_day=lambda _: self.own_images_per_day,
        )
        return BatchShop(reader, self.counters, self.bus, self.batch_bus, self.files)

    def drop(self, *lines: str) -> Batch:
        self.files.content = "\n".join(lines).encode()
        file = InboxFile("inbox/alice/a.jsonl", "v1", len(self.files.content))
        return begin("bucket", file, "alice", self.batches, self.now)

    def carry_on(self, batch: Batch, *, seconds: float = 100) -> float | None:
        return carry_on(batch.id, self.shop, Deadline.after(seconds), lambda _: None)

    def carry_on_all(self) -> None:
        """Receives each message of the intake."""
        while self.batch_queue.sent:
            self.carry_on(self.batch(self.batch_queue.sent.pop(0)))

    def make(self, generation_id: str, status: Status = Status.COMPLETED) -> None:
        """A worker makes it without the upstream, and announces its end."""
        if self.records.claim(generation_id, "w", now=self.now, lease_until=self.now + 1):
            if status is Status.COMPLETED:
                self.records.save_sending(generation_id, "w", 0, 1)
            self.records.end(generation_id, "w", status, now=self.now)
        if generation := self.records.get(generation_id):
            self.announce(generation)

    def make_all(self) -> None:
        """Each message behind a generation is worked on, and the safety net's after it."""
        for generation_id, _ in self.queue.sent:
            self.make(generation_id)

    def batch(self, batch: Batch | str) -> Batch:
        """As it is now."""
        found = self.batches.get(batch if isinstance(batch, str) else batch.id)
        assert found is not None
        return found

    def written(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output and of the errors of the batch."""
        output, errors = (self.files.there.get(f"outbox/alice/a.{kind}.jsonl", b"") for kind in ("output", "errors"))
        return [json.loads(each) for each in output.splitlines()], [json.loads(each) for each in errors.splitlines()]


@contextmanager
def in_memory_service(**options: Any) -> Iterator[InMemoryService]:
    """With a pool that ends with the block."""
    with ThreadPoolExecutor(10) as pool:
        yield InMemoryService(pool, **options)


def batch_line(custom_id: str, **body: Any) -> str:
    body = {"prompt": custom_id, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body})
