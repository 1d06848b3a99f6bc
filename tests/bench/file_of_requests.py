"""The intake reads a file of the inbox and writes its output. The stores keep nothing: only the intake is measured."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from imagegen.domain.batches import EndedLine
from imagegen.domain.deadline import Deadline
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import Generation
from imagegen.domain.queues import WorkQueue
from imagegen.usecases.begin_batch import begin_inbox_batch
from imagegen.usecases.manage_generation import CancelGeneration
from imagegen.usecases.publish import BatchProgress, PublishGeneration
from imagegen.usecases.quota import Quota, QuotaReturns
from imagegen.usecases.read_batch import CHUNK_THREADS
from imagegen.usecases.submit import SubmitGeneration
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.wire.batches import outcome_line
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
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_source import FakeInputSource
from tests.fakes.input_store import FakeInputStore
from tests.fakes.journal import FakeJournal
from tests.fakes.quota_counters import FakeQuotaCounters
from tests.support.in_memory import batch_continuation
from tests.support.models import MODELS
from tests.support.same_thread import SameThread

_BODY = {"model": "dall-e-3", "prompt": "x" * 900}
_FIELDS = {"custom_id": "line", "method": "POST", "url": "/v1/images/generations", "body": _BODY}
LINE = json.dumps(_FIELDS).encode() + b"\n"
_SECONDS = 600.0


class _Records(FakeGenerationStore):
    def create(self, generation: Generation) -> None:
        pass

    def get(self, generation_id: str) -> Generation | None:
        return None


class _Journal(FakeJournal):
    def begun(self, generation: Generation, *, quota_used: float) -> None:
        pass


class _Queue(FakeGenerationQueue):
    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        pass


class _Lines(FakeBatchLines):
    """No line is pending. The answer to each line is as long as the line."""

    def __init__(self, batches: FakeBatchStore, count: int) -> None:
        super().__init__(batches)
        self._count = count

    def begin(self, batch_id: str, line: int, custom_id: str) -> bool:
        return True

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        return repeat(EndedLine(completed=True, text="x" * (len(LINE) - 1)), self._count)


class _Files(FakeFileContents):
    def read(self, file: StoredObject, offset: int, length: int, deadline: Deadline) -> bytes:
        start = offset % len(LINE)
        return (LINE * (length // len(LINE) + 2))[start : start + length]

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> StoredObject:
        if sum(map(len, blocks)) != length:
            raise AssertionError("a file does not have the declared length")
        return StoredObject(key, "1", length)


def run(count: int) -> None:
    """Reads a file of `count` lines to its end and writes its output."""
    batches, files, records, queue = FakeBatchStore(), _Files(), _Records(), _Queue()
    lines, bus = _Lines(batches, count), FakeEventBus()
    progress = BatchProgress(batches, lines, FakeBatchQueue(), outcome_line)
    returns = QuotaReturns(FakeQuotaCounters(), records)
    submission = SubmitGeneration(
        models=MODELS,
        keys=FakeIdempotencyKeys(),
        records=records,
        queue=queue,
        quota=Quota(FakeQuotaCounters(), count, count),
        journal=_Journal(),
        now=lambda: 1.0,
        lease=60.0,
    )
    with ThreadPoolExecutor(CHUNK_THREADS) as pool:
        publisher = PublishGeneration(records, returns, progress, bus)
        cancellation = CancelGeneration(records, publisher, lambda: 1.0)
        inputs = TakeInputs(FakeInputStore(FakeImageStore()), FakeInputSource(), None, records, SameThread())
        continuation = batch_continuation(
            progress, submission, cancellation, FakeFileStore(), files, FakeBatchBus(), pool, inputs=inputs
        )
        file = StoredObject("inbox/bench/file.jsonl", "1", count * len(LINE))
        batch = begin_inbox_batch("bucket", file, "bench", batches, FakeFileStore(), 0.0)
        continuation.run(batch.id, Deadline.after(_SECONDS), lambda _: None)
    ended = batches.get(batch.id)
    if ended is None or ended.counts is None or ended.counts.completed != count:
        raise AssertionError("the file was not read to its end")
