"""The use cases over stores in memory, on a clock that the test moves: one service with its callers and workers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from imagegen.domain.batches import AskedBatch, Batch
from imagegen.domain.credentials import Caller
from imagegen.domain.deadline import Deadline
from imagegen.domain.failures import Failure
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    Status,
    StoredImage,
    Tombstone,
    UpstreamAttempt,
    UpstreamCall,
    admit,
    new_owner,
    reserving_money,
)
from imagegen.domain.images import ImageBody, ImageRequest
from imagegen.domain.models import ImageModel
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import BatchBus, FileContents, FileStore, Journal
from imagegen.providers.catalog import PROTOCOLS
from imagegen.usecases.begin_batch import BeginBatch, begin_inbox_batch
from imagegen.usecases.continue_batch import ContinueBatch
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.manage_files import ManageFiles
from imagegen.usecases.manage_generation import (
    LEASE_SECONDS,
    CancelGeneration,
    DeleteGeneration,
    RetryGeneration,
    get_generation,
)
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.publish import BatchProgress, PublishGeneration
from imagegen.usecases.quota import Quota, QuotaReturns
from imagegen.usecases.read_batch import FetchingLines, ReadBatch
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.send_upstream_call import CallParts
from imagegen.usecases.submit import Submission, SubmitGeneration, Submitted
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.usecases.upstream_routes import UpstreamAccess, UpstreamRoutes
from imagegen.usecases.upstream_slots import UpstreamLimits
from imagegen.usecases.validate_batch import ValidateBatch
from imagegen.usecases.work_on_generation import GenerationWorker, LargeAnswer
from imagegen.usecases.write_batch import WriteBatch
from imagegen.wire.batch_requests import check_batch_line, line_readers, read_batch_line
from imagegen.wire.batches import outcome_line, refused_line
from tests.fakes.batches import (
    FakeBatchBus,
    FakeBatchLines,
    FakeBatchQueue,
    FakeBatchStore,
    FakeFileContents,
    FakeFileStore,
)
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.idempotency_keys import FakeIdempotencyKeys
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_source import FakeInputSource
from tests.fakes.input_store import FakeInputStore
from tests.fakes.journal import FakeJournal
from tests.fakes.provider import FakeProvider, png
from tests.fakes.quota_counters import FakeQuotaCounters
from tests.fakes.slots import FakeUpstreamSlots
from tests.support.models import MODELS, read_edit, read_request
from tests.support.same_thread import SameThread

NOW = 1_760_000_000.5
LEASE = LEASE_SECONDS
REQUEST = ImageRequest("a cat", "dall-e-3", "url")
BASE_URL = "https://x.example/v1"
DEADLINE_SECONDS = 10.0
FILE_SECONDS = 30 * 24 * 3600.0

Beat = Callable[[], None]


class StillDeadline(Deadline):
    """`at` is how many seconds remain. They do not pass, however slow the machine is."""

    def remaining(self) -> float:
        return self.at

    def sooner(self, seconds: float) -> Deadline:
        return StillDeadline(min(self.at, seconds))


class GenerationFailed(Exception):  # noqa: N818  # the outcome of a generation, as an exception of the tests
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class _Progress:
    """A BatchProgress that passes each end through `InMemoryService.line_ended`, which a test can hook."""

    def __init__(self, service: "InMemoryService") -> None:
        self._service = service
        self.batches, self.lines, self.queue = service.batches, service.lines, service.batch_queue

    def line_ended(self, generation: Generation) -> None:
        self._service.line_ended(generation)


def batch_continuation(
    progress: BatchProgress,
    submission: SubmitGeneration,
    cancellation: CancelGeneration,
    files: FileStore,
    contents: FileContents,
    bus: BatchBus,
    pool: Executor,
    *,
    inputs: TakeInputs,
    recorded_caller: Callable[[str], Caller | None] = Caller,
    waits_for_quota: bool = False,
) -> ContinueBatch:
    """The intake. The stores and the clock are those of the other parts."""
    reader = ReadBatch(
        batches=progress.batches,
        lines=progress.lines,
        generations=submission.records,
        submission=submission,
        models=submission.models,
        inputs=inputs,
        contents=contents,
        pool=pool,
        base_url=BASE_URL,
        read_line=partial(read_batch_line, read_fields=line_readers(read_request(), read_edit())),
        refusal=refused_line,
        recorded_caller=recorded_caller,
        waits_for_quota=waits_for_quota,
        fetching=FetchingLines(),
        now=submission.now,
    )
    return ContinueBatch(
        batches=progress.batches,
        lines=progress.lines,
        queue=progress.queue,
        validation=ValidateBatch(contents, check_batch_line),
        reader=reader,
        writer=WriteBatch(progress.lines, files, contents, FILE_SECONDS, submission.now),
        progress=progress,
        cancellation=cancellation,
        bus=bus,
        now=submission.now,
        lease=submission.lease,
    )


def attempts(sent: int = 1, refused: int = 0) -> tuple[UpstreamAttempt, ...]:
    """`sent` attempts, of which the first `refused` certainly cost nothing."""
    refusal = Failure("upstream_unavailable", "no", money_spent=False)
    return tuple(UpstreamAttempt("reseller", NOW, failure=refusal if at < refused else None) for at in range(sent))


@dataclass
class InMemoryService:
    """All stores, the upstreams and the clock of a service. A test reads them, replaces them or makes them fail.

    `provider` is that of the reseller, `other_providers` are those of other upstreams by name. `has_key` is whether an
    upstream has a key; it has by default. `concurrency` has the numbers of slots by their name; there is no limit by
    default.

    `visibility` are the extensions of visibility, in seconds, and `line_ends` the generations whose line ended, both in
    order. The heartbeat does not run by itself: while a worker works, `beat` is one beat.
    """

    pool: Executor
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    keys: FakeIdempotencyKeys = field(default_factory=FakeIdempotencyKeys)
    queue: FakeGenerationQueue = field(default_factory=FakeGenerationQueue)
    counters: FakeQuotaCounters = field(default_factory=FakeQuotaCounters)
    bus: FakeEventBus = field(default_factory=FakeEventBus)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    provider: FakeProvider = field(default_factory=FakeProvider)
    other_providers: dict[str, FakeProvider] = field(default_factory=dict)
    has_key: dict[str, bool | Exception] = field(default_factory=dict)
    concurrency: dict[str, int] = field(default_factory=dict)
    batches: FakeBatchStore = field(default_factory=FakeBatchStore)
    batch_queue: FakeBatchQueue = field(default_factory=FakeBatchQueue)
    batch_bus: FakeBatchBus = field(default_factory=FakeBatchBus)
    files: FakeFileContents = field(default_factory=FakeFileContents)
    file_records: FakeFileStore = field(default_factory=FakeFileStore)
    now: float = NOW
    lease: float = LEASE
    each_caller: int = 10_000
    whole_stack: int = 10_000
    own_images_per_day: int | None = None
    own_usd_per_day: int | None = None
    without_key: set[str] = field(default_factory=set)
    waits_for_quota: bool = False
    window: float = 24 * 3600.0
    models: Mapping[str, ImageModel] = field(default_factory=lambda: MODELS)
    repeat_unknown: bool = True
    may_send: bool = True
    call_seconds: float = 0.0
    large_answer: LargeAnswer = lambda _: nullcontext(None)
    journal: Journal = field(default_factory=FakeJournal)
    visibility: list[float] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    line_ends: list[Generation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = FakeImageSource(self.provider.files)
        self.inputs = FakeInputStore(self.images)
        self.slots = FakeUpstreamSlots(self.concurrency, self.clock)
        self.lines = FakeBatchLines(self.batches)
        self.progress = cast("BatchProgress", _Progress(self))
        self.beat: Beat | None = None
        self.heartbeat: Callable[[float, Beat], AbstractContextManager[None]] = self._heartbeat

    @contextmanager
    def _heartbeat(self, _: float, beat: Beat) -> Iterator[None]:
        self.beat = beat
        try:
            yield
        finally:
            self.beat = None

    def line_ended(self, generation: Generation) -> None:
        self.line_ends.append(generation)
        BatchProgress(self.batches, self.lines, self.batch_queue, outcome_line).line_ended(generation)

    def clock(self) -> float:
        return self.now

    def deadline(self, seconds: float = DEADLINE_SECONDS) -> Deadline:
        return StillDeadline(seconds)

    @property
    def quota(self) -> Quota:
        return Quota(self.counters, each_caller=self.each_caller, whole_stack=self.whole_stack)

    @property
    def returns(self) -> QuotaReturns:
        return QuotaReturns(self.counters, self.records)

    @property
    def publisher(self) -> PublishGeneration:
        return PublishGeneration(self.records, self.returns, self.progress, self.bus)

    @property
    def used(self) -> set[int]:
        """How many images are taken from the quotas of the caller and of the stack. One number if they agree."""
        return set(self.counters.used.values())

    @property
    def published(self) -> list[tuple[str, Status]]:
        """The published ends, in order."""
        return [(generation.id, generation.status) for generation in self.bus.ended]

    def caller(self, name: str) -> Caller:
        """A caller with the own quotas, if they are set."""
        return Caller(name, self.own_images_per_day, self.own_usd_per_day)

    def record(self, generation: Generation | str) -> Generation:
        """The record as it is now."""
        found = self.records.get(generation if isinstance(generation, str) else generation.id)
        assert found is not None
        return found

    # What a caller does.

    @property
    def submission(self) -> SubmitGeneration:
        return SubmitGeneration(
            models=self.models,
            keys=self.keys,
            records=self.records,
            queue=self.queue,
            quota=self.quota,
            journal=self.journal,
            now=self.clock,
            lease=self.lease,
            sleep=self.slept.append,
        )

    @property
    def cancellation(self) -> CancelGeneration:
        return CancelGeneration(self.records, self.publisher, self.clock)

    @property
    def deletion(self) -> DeleteGeneration:
        images = DeleteImages(self.images, self.inputs)
        return DeleteGeneration(self.records, self.queue, self.publisher, self.progress, images, self.clock)

    def submit(
        self,
        identity: RetryIdentity = RetryIdentity(),  # noqa: B008  # frozen
        request: ImageRequest = REQUEST,
        *,
        caller: str = "alice",
        work_here: bool = False,
        generation_id: str | None = None,
    ) -> Submitted:
        submission = Submission(
            request, self.caller(caller), BASE_URL, identity=identity, generation_id=generation_id, claim=work_here
        )
        try:
            return self.submission.submit(submission)
        finally:
            self.now += 0.001  # no two begin at the same time

    def see(self, generation_id: str, caller: str = "alice") -> Generation:
        return get_generation(generation_id, caller, self.records)

    def cancel(self, generation_id: str, caller: str = "alice") -> Generation:
        return self.cancellation.cancel(generation_id, caller)

    def delete(self, generation_id: str, caller: str = "alice", *, seconds: float = DEADLINE_SECONDS) -> None:
        self.deletion.delete(generation_id, caller, StillDeadline(seconds))

    # What the operator does.

    def retry(self, generation_id: str) -> Generation | None:
        return RetryGeneration(self.records, self.returns, self.queue, self.clock).retry(generation_id)

    # What a worker does.

    @property
    def runner(self) -> UpstreamRunner:
        upstreams = {name: self._access(name) for name in ("reseller", *self.other_providers)}
        calling = CallParts(
            routes=UpstreamRoutes(upstreams, "reseller"),
            limits=UpstreamLimits(self.slots, self.queue),
            inputs=OpenInputs(self.inputs, None),
            records=self.records,
            journal=self.journal,
            repeat_unknown=self.repeat_unknown,
            now=self.clock,
            sleep=self.slept.append,
        )
        return UpstreamRunner(calling, self.images, self.pool)

    def _has_key(self, upstream: str) -> bool:
        found = self.has_key.get(upstream, True)
        if isinstance(found, Exception):
            raise found
        return found

    def _access(self, upstream: str) -> UpstreamAccess:
        provider = self.other_providers.get(upstream, self.provider)
        providers = dict.fromkeys(PROTOCOLS, provider)
        return UpstreamAccess(providers, self.source, partial(self._has_key, upstream), self.call_seconds)

    @property
    def worker(self) -> GenerationWorker:
        return GenerationWorker(
            records=self.records,
            queue=self.queue,
            images=self.images,
            runner=self.runner,
            publisher=self.publisher,
            deletion=DeleteImages(self.images, self.inputs),
            large_answer=self.large_answer,
            journal=self.journal,
            now=self.clock,
            lease=self.lease,
            heartbeat=self.heartbeat,
        )

    def deliver(self, generation_id: str, poll: int = 0, *, seconds: float = DEADLINE_SECONDS) -> float | None:
        """A worker receives a message. Returns what `GenerationWorker.on_message` returns."""
        deadline = StillDeadline(seconds)
        return self.worker.on_message(generation_id, poll, deadline, extend_visibility=self.visibility.append)

    def work(self, generation: Generation, *, seconds: float = DEADLINE_SECONDS) -> Generation | None:
        """The API function works on a generation that it claimed. It received no message."""
        assert generation.owner
        deadline = StillDeadline(seconds)
        return self.worker.work(
            generation, generation.owner, deadline, poll=0, extend_visibility=self.visibility.append
        )

    def give_up(self, generation_id: str, poll: int = 0, *, seconds: float = DEADLINE_SECONDS) -> float | None:
        """A worker receives the message from the dead-letter queue."""
        return self.worker.give_up(generation_id, poll, StillDeadline(seconds))

    def generate(self, generation: Generation, *, deadline: Deadline | None = None) -> Generation:
        """Makes the images of a claimed generation, without its end. Returns the record. Raises GenerationFailed."""
        assert generation.owner
        until = deadline or StillDeadline(DEADLINE_SECONDS)
        outcome = self.runner.run(generation, generation.owner, until, may_send=self.may_send)
        if isinstance(outcome, Failure):
            raise GenerationFailed(outcome)
        return self.record(generation)

    def publish(self, generation: Generation) -> None:
        self.publisher.publish(generation)

    # States of a generation.

    def admitted(self, request: ImageRequest = REQUEST, *, caller: str = "alice", **fields: Any) -> Generation:
        """A queued generation whose images are taken from the quota. `fields` change the request."""
        request = replace(request, **fields)
        generation = admit(request, self.models[request.model], caller=caller, base_url=BASE_URL, now=self.now)
        generation = generation if self.own_usd_per_day is None else reserving_money(generation)
        self.quota.reserve(generation, self.caller(caller), may_undo=lambda: True, is_repeated=False)
        self.records.create(generation)
        return generation

    def begun(self, **fields: Any) -> Generation:
        """A new generation, claimed."""
        return self.claimed(self.admitted(**fields))

    def claimed(self, generation: Generation) -> Generation:
        """The generation after its next owner has claimed it. The lease of the owner before has ended."""
        self.now += 2 * self.lease
        claimed = self.records.claim(generation.id, new_owner(), now=self.now, lease_until=self.now + self.lease)
        assert claimed is not None
        return claimed

    def noted(self, generation: Generation, *calls: UpstreamCall) -> None:
        """The owner records these calls."""
        assert generation.owner
        for index, call in enumerate(calls):
            for number, attempt in enumerate(call.attempts, 1):
                self.records.save_attempt(generation.id, generation.owner, index, number, attempt)
            if call.answer:
                self.records.save_answer(generation.id, index, call.answer)

    def left_behind(
        self, generation: Generation, *calls: UpstreamCall, stored: Sequence[str] = (), listed: Sequence[str] = ()
    ) -> None:
        """A worker claimed it, recorded these calls and died long ago.

        `stored` are the images that it stored, `listed` those that it listed on the record.
        """
        self.noted(self.claimed(generation), *calls)
        self.store(*stored)
        for image_id in listed:
            self.records.save_image(generation.id, image_id, StoredImage("image/png", len(png(image_id))))
        self.now += 2 * self.lease

    def ended(self, generation: Generation, status: Status = Status.COMPLETED, **end: Any) -> Generation:
        """The owner ends it and releases it. Claims it first if it has no owner."""
        if self.record(generation).owner is None:
            generation = self.claimed(generation)
        owner = cast("str", self.record(generation).owner)
        self.records.end(generation.id, owner, status, now=self.now, **end)
        self.records.release(generation.id, owner)
        return self.record(generation)

    def buried(self, generation: Generation) -> Tombstone:
        """The process that deletes it dies right after it has written the tombstone."""
        self.records.cancel(generation.id, now=self.now)
        return self.records.bury(self.record(generation), now=self.now)

    def store(self, *image_ids: str) -> None:
        for image_id in image_ids:
            content = png(image_id)
            body = ImageBody("image/png", len(content), iter([content]))
            self.images.save(image_id, body, StillDeadline(9), generation_id="gen_1")

    def answer(self, name: str) -> CallAnswer:
        """An answer of the upstream with one image by URL. The URL can be downloaded."""
        url = f"https://images.example/{name}.png"
        self.provider.files[url] = png(name)
        return CallAnswer((AnsweredImage(url, f"a nicer {name}"),))

    # Batches: the intake, and workers that need no upstream.

    @property
    def continuation(self) -> ContinueBatch:
        return batch_continuation(
            self.progress,
            self.submission,
            self.cancellation,
            self.file_records,
            self.files,
            self.batch_bus,
            self.pool,
            inputs=self.taking,
            recorded_caller=self.recorded_caller,
            waits_for_quota=self.waits_for_quota,
        )

    @property
    def taking(self) -> TakeInputs:
        # Lines have a pool of their own: here they run in the pool, and their images in the thread of each.
        return TakeInputs(self.inputs, FakeInputSource(), None, self.records, SameThread())

    def recorded_caller(self, name: str) -> Caller | None:
        return None if name in self.without_key else self.caller(name)

    # Files and batches over HTTP.

    @property
    def managed_files(self) -> ManageFiles:
        return ManageFiles(self.file_records, self.files, SameThread(), FILE_SECONDS, self.clock)

    @property
    def beginning(self) -> BeginBatch:
        return BeginBatch(
            self.batches, self.managed_files, self.batch_queue, self.keys, self.window, self.lease, self.clock
        )

    def give(self, *lines: str, caller: str = "alice", purpose: Purpose = Purpose.BATCH) -> File:
        """A file of the caller with these lines."""
        try:
            return self.managed_files.create(caller, purpose, "a.jsonl", "\n".join(lines).encode())
        finally:
            self.now += 0.001

    def begin_batch(
        self,
        file: File,
        identity: RetryIdentity = RetryIdentity(),  # noqa: B008  # frozen
        *,
        caller: str = "alice",
        endpoint: str = "/v1/images/generations",
    ) -> Batch:
        try:
            return self.beginning.begin(AskedBatch(file.id, endpoint), caller, identity)
        finally:
            self.now += 0.001

    def drop(self, *lines: str) -> Batch:
        content = "\n".join(lines).encode()
        file = StoredObject("inbox/alice/a.jsonl", "v1", len(content))
        self.files.given[file.key] = content
        return begin_inbox_batch("bucket", file, "alice", self.batches, self.file_records, self.now)

    def continue_batch(self, batch: Batch, *, seconds: float = 100) -> float | None:
        return self.continuation.run(batch.id, Deadline.after(seconds), lambda _: None)

    def continue_all(self) -> None:
        """The intake receives each of its messages."""
        while self.batch_queue.sent:
            self.continue_batch(self.batch(self.batch_queue.sent.pop(0)))

    def make(self, generation_id: str, status: Status = Status.COMPLETED) -> None:
        """A worker ends it without a call to the upstream, and publishes the end."""
        owner = new_owner()
        if self.records.claim(generation_id, owner, now=self.now, lease_until=self.now + 1):
            if status is Status.COMPLETED:
                self.records.save_attempt(generation_id, owner, 0, 1, UpstreamAttempt("reseller", self.now))
            self.records.end(generation_id, owner, status, now=self.now)
        if generation := self.records.get(generation_id):
            self.publish(generation)

    def make_all(self) -> None:
        """A worker receives each message of a generation, also the safety net's."""
        for generation_id, _ in self.queue.sent:
            self.make(generation_id)

    def batch(self, batch: Batch | str) -> Batch:
        """The batch as it is now."""
        found = self.batches.get(batch if isinstance(batch, str) else batch.id)
        assert found is not None
        return found

    def written(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output file and of the error file of the file in the inbox."""
        return self._lines("outbox/alice/a.output.jsonl"), self._lines("outbox/alice/a.errors.jsonl")

    def answers(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output file and of the error file of a batch."""
        return self._lines(batch.output_key), self._lines(batch.errors_key)

    def _lines(self, key: str) -> list[dict[str, Any]]:
        return [json.loads(each) for each in self.files.there.get(key, b"").splitlines()]


@contextmanager
def in_memory_service(**options: Any) -> Iterator[InMemoryService]:
    """A service with a pool, which ends with the block."""
    with ThreadPoolExecutor(10) as pool:
        yield InMemoryService(pool, **options)


def batch_line(custom_id: str, **body: Any) -> str:
    body = {"prompt": custom_id, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body})
