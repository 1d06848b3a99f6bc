"""A file in the inbox, carried from its first line to its output by the intake's own code, which writes to nowhere."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat

from imagegen.domain.batches import EndedLine, InboxFile
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.usecases.carry_on import BatchShop, begin, carry_on
from imagegen.usecases.publish import Ledger
from imagegen.usecases.quota import Allowance
from imagegen.usecases.read_batch import CHUNK_THREADS, Reader
from imagegen.usecases.submit import Desk
from imagegen.wire.batches import outcome_line, read_batch_line, refused_line
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.batches import FakeBatchBus, FakeBatchLines, FakeBatchQueue, FakeBatchStore
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore

_BODY = {"model": "dall-e-3", "prompt": "x" * 900}
_FIELDS = {"custom_id": "line", "method": "POST", "url": "/v1/images/generations", "body": _BODY}
LINE = json.dumps(_FIELDS).encode() + b"\n"
_SECONDS = 600.0


class _Records(FakeGenerationStore):
    def create(self, generation: Generation) -> None:
        pass


class _Queue(FakeGenerationQueue):
    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        pass


class _Lines(FakeBatchLines):
    """None is pending, and each has ended with as many bytes as it began with."""

    def __init__(self, batches: FakeBatchStore, count: int) -> None:
        super().__init__(batches)
        self._count = count

    def begin(self, batch_id: str, line: int, custom_id: str) -> None:
        pass

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        return repeat(EndedLine(completed=True, text="x" * (len(LINE) - 1)), self._count)


class _Files:
    def has(self, file: InboxFile, deadline: Deadline) -> bool:
        return True

    def read(self, file: InboxFile, offset: int, length: int, deadline: Deadline) -> bytes:
        start = offset % len(LINE)
        return (LINE * (length // len(LINE) + 2))[start : start + length]

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> None:
        if sum(map(len, blocks)) != length:
            raise AssertionError("a file is not as long as it was said to be")

    def delete(self, key: str, deadline: Deadline) -> None:
        pass


def carry(count: int) -> None:
    """Carries a file of so many lines on until it has ended."""
    batches, files = FakeBatchStore(), _Files()
    ledger = Ledger(batches, _Lines(batches, count), FakeBatchQueue(), outcome_line)
    allowance = Allowance(FakeAllowanceCounters(), count, count)
    with ThreadPoolExecutor(CHUNK_THREADS) as pool:
        reader = Reader(
            desk=Desk(records=_Records(), queue=_Queue(), allowance=allowance, now=lambda: 1.0, lease=60.0),
            ledger=ledger,
            inbox=files,
            pool=pool,
            base_url="https://bench.example",
            read_line=partial(read_batch_line, prompt_cap=1000),
            refusal=refused_line,
            own_images_per_day=lambda _: None,
        )
        shop = BatchShop(reader, FakeAllowanceCounters(), FakeEventBus(), FakeBatchBus(), files)
        file = InboxFile("inbox/bench/file.jsonl", "1", count * len(LINE))
        batch = begin("bucket", file, "bench", ledger.batches, 0.0)
        carry_on(batch.id, shop, Deadline.after(_SECONDS), lambda _: None)
    ended = ledger.batches.get(batch.id)
    if ended is None or ended.counts is None or ended.counts.completed != count:
        raise AssertionError("the file was not carried to its end")
