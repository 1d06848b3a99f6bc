"""A thousand tasks of an upstream in flight: the calls of a minute, counted in simulated time, and their price.

The baseline is a function of the worker's size that waits for the task. Prices are those of us-east-1 (AWS Lambda
pricing, arm64; Amazon SQS pricing, standard queues; Amazon DynamoDB pricing, on-demand tables).
"""

from collections.abc import Iterator
from math import ceil

import msgspec

from imagegen.aws.generations import DynamoGenerations
from imagegen.domain.generations import Generation
from imagegen.providers.midjourney.provider import MidjourneyProvider
from local.template import Template
from tests.bench.figure import Figure
from tests.conftest import ROOT
from tests.support.simulated_tasks import simulated_tasks

TASKS, MINUTES = 1_000, 3
_POLL_SECONDS = 0.4  # of a function: a reseller answers in some 300 ms, two writes take some 20 ms
_GB_SECOND = 0.0000133334
_INVOCATION = 0.2e-6
_MESSAGE_REQUEST = 0.4e-6
_REQUESTS_PER_MESSAGE = 4  # send, receive, change the visibility, delete
_WRITE = 0.625e-6  # of 1 KB
_WRITES_PER_POLL = 2  # the claim, and its end with the number of the next round


def measure() -> Iterator[Figure]:
    size = _worker_gigabytes()
    with simulated_tasks(MidjourneyProvider, task_seconds=3_000) as tasks:
        tasks.upstream.midjourney.running = TASKS
        generations = tasks.begin(TASKS, model="mj_imagine")
        began = tasks.service.now
        tasks.run(generations, until=began + 60)  # the pauses grow at first
        before = tasks.counted.copy()
        tasks.run(generations, until=began + 60 * (MINUTES + 1))
        counted = tasks.counted - before
        kilobytes = ceil(_record_bytes(tasks.service.record(generations[0])) / 1024)
    polls = counted["upstream GET"] / TASKS / MINUTES
    calls = {name: counted[name] for name in ("deliveries", "polls sent", "records.claim", "records.await_poll")}
    if set(calls.values()) != {counted["upstream GET"]} or counted["slots.take"]:
        raise RuntimeError(f"a poll makes other calls: {counted}")
    poll = (
        _INVOCATION
        + size * _POLL_SECONDS * _GB_SECOND
        + _REQUESTS_PER_MESSAGE * _MESSAGE_REQUEST
        + _WRITES_PER_POLL * kilobytes * _WRITE
    )
    yield Figure("polls of a task in a minute / every 15 s", polls, 4, 1.35, "polls")
    waiting = size * 60 * _GB_SECOND
    yield Figure("cost of a minute of a task / of a function that waits", polls * poll * 1e6, waiting * 1e6, 0.1, "$/M")


def _worker_gigabytes() -> float:
    properties = Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": "https://x.example"}, "us-east-1").document
    return float(properties["Resources"]["WorkerFunction"]["Properties"]["MemorySize"]) / 1024


def _record_bytes(generation: Generation) -> int:
    """The size of the item in DynamoDB, about: its attributes as text, with the first attempt."""
    item = DynamoGenerations(lambda: None, "table", retention_seconds=0)._record(generation)  # type: ignore[arg-type, return-value]
    return len(msgspec.json.encode(item)) + len(msgspec.json.encode(generation.calls[0].attempts))
