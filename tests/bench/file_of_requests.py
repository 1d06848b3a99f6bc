"""The intake validates and reads a file of a batch, and writes its output. The stores keep nothing of a line."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from imagegen.domain.batches import Batch, BatchStatus, EndedLine, new_batch_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.files import StoredObject, new_file_id
from imagegen.domain.generations import Generation
from imagegen.domain.queues import WorkQueue
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
_FIELDS = {"custom_id": "%09d", "method": "POST", "url": "/v1/images/generations", "body": _BODY}
_LINE = json.dumps(_FIELDS) + "\n"
LINE_BYTES = len(_LINE % 0)
_SECONDS = 600.0


class _Records(FakeGenerationStore):
    def create(self, generation: Generation) -> None:
        pass

    def get(self, generation_id: str) -> Generation | None:
        return None


class _Counters(FakeQuotaCounters):
    def take(self, who: str, day: str, amount: int, limit: int, *, token: str) -> tuple[bool, int]:
        return True, amount


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
        return repeat(EndedLine(completed=True, text="x" * (LINE_BYTES - 1)), self._count)


class _Files(FakeFileContents):
    def read(self, file: StoredObject, offset: int, length: int, deadline: Deadline) -> bytes:
        first, start = divmod(offset, LINE_BYTES)
        lines = range(first, first + length // LINE_BYTES + 2)
        return "".join([_LINE % number for number in lines]).encode()[start : start + length]

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> StoredObject:
        if sum(map(len, blocks)) != length:
            raise AssertionError("a file does not have the declared length")
        return StoredObject(key, "1", length)


def run(count: int) -> None:
    """Reads a file of `count` lines to its end and writes its output."""
    batches, files, records, queue = FakeBatchStore(), _Files(), _Records(), _Queue()
    lines, bus = _Lines(batches, count), FakeEventBus()
    progress = BatchProgress(batches, lines, FakeBatchQueue(), outcome_line)
    returns = QuotaReturns(_Counters(), records)
    submission = SubmitGeneration(
        models=MODELS,
        keys=FakeIdempotencyKeys(),
        records=records,
        queue=queue,
        quota=Quota(_Counters(), count, count),
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
        batch = Batch(
            id=new_batch_id(),
            caller="oidc:bench",
            file=StoredObject("files/bench", "", count * LINE_BYTES),
            created_at=0.0,
            endpoint="/v1/images/generations",
            given_file_id=new_file_id(),
            status=BatchStatus.VALIDATING,
        )
        batches.create(batch)
        continuation.run(batch.id, Deadline.after(_SECONDS), lambda _: None)
    ended = batches.get(batch.id)
    if ended is None or ended.counts is None or ended.counts.completed != count:
        raise AssertionError("the file was not read to its end")
