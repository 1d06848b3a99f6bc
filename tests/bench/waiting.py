"""A synchronous request on the local stack: its latency, the memory of the function that waits, the cost of a minute.

The function runs as deployed, under the streaming runtime. Prices are those of us-east-1 (AWS Lambda pricing, arm64;
Amazon DynamoDB pricing, on-demand tables).
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest
from imagegen.usecases.wait import wait
from tests.bench import sink
from tests.bench.figure import Figure, compare
from tests.bench.memory import peak_growth
from tests.bench.memory_of import LARGEST
from tests.fakes.generation_store import FakeGenerationStore
from tests.support.client import INLINE, SMALL, Client
from tests.support.models import admitted
from tests.support.waiting import until
from tests.support.world import World, running_world

_GB_SECOND = 0.0000133334
_READ = 0.125e-6  # of 4 KB, strongly consistent
_WRITE = 0.625e-6  # of 1 KB
_WRITES_PER_MINUTE = 60 / 40 + 60 / 20  # the place is renewed every 40 s, the claim of a generation every 20 s
_BUDGET_DOLLARS = 0.0007  # a minute
_ROUNDS = 15


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as logs, running_world(Path(logs)) as world:
        memory_size = world.stack.functions["ApiFunction"].function.memory
        caller = world.caller()
        yield compare(
            "a synchronous request / the same through queue and worker",
            lambda: _milliseconds(lambda: _in_one_request(caller)),
            lambda: _milliseconds(lambda: _by_the_worker(caller)),
            rounds=_ROUNDS,
            budget=1.0,
        )
        waiting = _waiting_bytes(world)
    yield Figure("memory of a waiting function / its memory size", waiting / 2**20, memory_size, 0.2, "MiB")
    with sink.running() as port:
        largest = statistics.median(peak_growth(LARGEST, port) for _ in range(3))
    name = "memory of the api function, ten 25 MiB images in one upstream answer / its memory size"
    yield Figure(name, (waiting + largest) / 2**20, memory_size, 1.0, "MiB")
    minute = memory_size / 1024 * 60 * _GB_SECOND + _reads_per_minute() * _READ + _WRITES_PER_MINUTE * _WRITE
    yield Figure("cost of a minute's wait / its budget", minute * 1000, _BUDGET_DOLLARS * 1000, 1.02, "$/1000")


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _in_one_request(caller: Client) -> None:
    answer = caller.make({**SMALL, "prompt": uuid4().hex}, **INLINE)
    if answer.status != 200:
        raise RuntimeError(answer.content)


def _by_the_worker(caller: Client) -> None:
    answer = caller.result(caller.begin(**SMALL, prompt=uuid4().hex))
    if answer.status != 200:
        raise RuntimeError(answer.content)


def _waiting_bytes(world: World) -> int:
    """The resident memory of an api function whose request waits for the upstream."""
    caller, prompt = world.caller(), uuid4().hex
    gate = world.hold(prompt)
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(caller.post, {**SMALL, "prompt": prompt})
        gate.until_reached()
        largest = max(_resident(pid) for pid in world.stack.functions["ApiFunction"].pids())
        gate.open()
        until(asked.done, what="the answer")
    return largest


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def _reads_per_minute() -> float:
    """Of the record, by a wait for a generation that another process makes. From the second minute on."""
    records, waited = _CountedReads(), 0.0
    generation = admitted(
        ImageRequest(prompt="x", model="dall-e-2", response_format="url"),
        caller="bench",
        base_url="https://bench",
        now=time.time(),
    )
    records.create(generation)
    reads = {}

    class _OverError(Exception):
        pass

    def sleep(seconds: float) -> None:
        nonlocal waited
        waited += seconds
        reads[int(waited // 60)] = records.reads
        if waited > 600:
            raise _OverError

    try:
        wait(generation.id, records, Deadline.after(3600), sleep)
    except _OverError:
        return (reads[9] - reads[0]) / 9
    raise AssertionError("the wait ended")


class _CountedReads(FakeGenerationStore):
    reads = 0

    def get(self, generation_id: str):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().get(generation_id)
