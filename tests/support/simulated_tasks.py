"""The use cases with a real provider whose upstream answers with tasks, in simulated time.

The upstream is the stand-in, called without a network. A message is delivered when its delay is over, and a delivery
takes no time.
"""

import heapq
import io
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.queues import WorkQueue
from imagegen.providers.upstream_api import UpstreamApi
from local.serving import Request
from local.upstream import StandInUpstream
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.provider import png
from tests.support.in_memory import InMemoryService, in_memory_service

KEY = "sk-simulated-tasks-1"


class _Pool:
    """Stands for `outbound.pool.HttpPool`: calls the upstream directly."""

    def __init__(self, upstream: StandInUpstream, counted: Counter[str]) -> None:
        self._upstream, self._counted = upstream, counted
        self._connection = socket.socket()
        self._connection.close()

    def request(
        self,
        method: str,
        url: SplitResult,
        _: Deadline,
        *,
        headers: Mapping[str, str],
        body: Iterable[bytes] = (),
        **__: Any,
    ) -> urllib3.BaseHTTPResponse:
        self._counted[f"upstream {method}"] += 1
        sent = [*headers.items(), ("Host", url.netloc), ("User-Agent", "imagegen")]
        reply = self._upstream.respond(Request(method, url.path, sent, b"".join(body), self._connection))
        return urllib3.HTTPResponse(
            io.BytesIO(reply.body), reply.headers, reply.status, preload_content=False, decode_content=False
        )


class _AnyImage(dict[str, bytes]):
    """The files of every image host."""

    def get(self, url: str, _: object = None) -> bytes:
        return png(url)


class _Queue(FakeGenerationQueue):
    def __init__(self, service: InMemoryService, counted: Counter[str]) -> None:
        super().__init__()
        self._service, self._counted = service, counted
        self.due: list[tuple[float, int, str, int]] = []

    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        super().send(generation_id, caller, delay=delay, poll=poll, to=to)
        self._counted[f"{to} sent"] += 1
        heapq.heappush(self.due, (self._service.now + round(delay), len(self.sent), generation_id, poll))


class _Counted:
    """A store that counts its calls."""

    def __init__(self, store: Any, name: str, counted: Counter[str]) -> None:
        self._store, self._name, self._counted = store, name, counted

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._counted[f"{self._name}.{name}"] += 1
            return found(*args, **kwargs)

        return counted


@dataclass
class SimulatedTasks:
    """`counted` are the calls of the records, slots, queues and upstream. `ends` is when each generation ended."""

    service: InMemoryService
    upstream: StandInUpstream
    queue: _Queue
    counted: Counter[str]
    ends: dict[str, float] = field(default_factory=dict)

    def begin(self, count: int, **fields: Any) -> list[Generation]:
        """Admits `count` generations at once, each with a prompt of its own and a message."""
        admitted = []
        for number in range(count):
            self.service.now += 0.001  # no two begin at the same time
            admitted.append(self.service.admitted(**fields, prompt=f"picture {number}"))
            self.queue.send(admitted[-1].id, admitted[-1].caller)
        return admitted

    def run(self, generations: Iterable[Generation], *, until: float | None = None) -> None:
        """Delivers messages until all generations have ended, or until this time."""
        left = {generation.id for generation in generations}
        while left and self.queue.due and (until is None or self.queue.due[0][0] <= until):
            due, _, generation_id, poll = heapq.heappop(self.queue.due)
            self.service.now = max(self.service.now, due)
            self.counted["deliveries"] += 1
            again = self.service.deliver(generation_id, poll)
            if again is not None:
                heapq.heappush(self.queue.due, (self.service.now + again, 0, generation_id, poll))
            if self.service.record(generation_id).ended:
                left.discard(generation_id)
                self.ends.setdefault(generation_id, self.service.now)


@contextmanager
def simulated_tasks(provider: Callable[[UpstreamApi], Any], *, task_seconds: float) -> Iterator[SimulatedTasks]:
    with in_memory_service() as service:
        counted: Counter[str] = Counter()
        upstream = StandInUpstream(KEY, now=service.clock)
        upstream.task_seconds = task_seconds
        api = UpstreamApi(
            _Pool(upstream, counted),  # type: ignore[arg-type]
            base_url="http://127.0.0.1:1/v1",
            is_reseller=True,
            key=lambda _: KEY,
            timeout=60,
            max_image_bytes=2**20,
        )
        service.provider = provider(api)
        service.source.files = _AnyImage()
        queue = _Queue(service, counted)
        service.queue = queue
        service.records = _Counted(service.records, "records", counted)  # type: ignore[assignment]
        service.slots = _Counted(service.slots, "slots", counted)  # type: ignore[assignment]
        yield SimulatedTasks(service, upstream, queue, counted)
