"""A crowd of clients in simulated time.

The product's routes, places, waits and workers run. The clock, the stores, the gateway and the clients are fakes.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent
from samtranslator.yaml_helper import yaml_parse

from imagegen.aws.places import DynamoPlaces
from imagegen.bootstrap.api import logger
from imagegen.domain.deadline import Deadline
from imagegen.domain.queues import WorkQueue
from imagegen.routes.generations import GenerationRoutes
from imagegen.routes.middleware import ApiMiddleware
from imagegen.routes.results import Results
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.wait import wait
from local.aws_door import TokenBucket
from tests.conftest import ROOT
from tests.explorer.simulated_time import SimulatedTime
from tests.fakes.dynamo_items import FakeDynamoItems
from tests.support.client import MOST_REDIRECTS
from tests.support.in_memory import InMemoryService
from tests.support.models import read_request
from tests.support.same_thread import SameThread

FUNCTION_SECONDS = 900.0
ROUND_TRIP_SECONDS = 0.05  # a poll in a loop takes no less
IMAGES = "/v1/images/generations"


def patched(patch: pytest.MonkeyPatch, time: SimulatedTime) -> None:
    """The code of the product runs in simulated time."""
    for module in ("imagegen.domain.deadline", "imagegen.aws.places", "local.aws_door"):
        patch.setattr(f"{module}.time", time)
    for module in ("heartbeat", "first_work"):
        patch.setattr(f"imagegen.usecases.{module}.threading", time)
    patch.setattr("imagegen.routes.results.wait", partial(wait, sleep=time.sleep))


class _Service(InMemoryService):
    """The workers and stores, on the simulated clock."""

    time: SimulatedTime

    def clock(self) -> float:
        return self.time.now


class _Queue:
    """Each message brings a worker after its delay."""

    def __init__(self, time: SimulatedTime) -> None:
        self._time = time
        self.deliver: Callable[[str, int], float | None] = lambda *_: None

    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        def receive() -> None:
            again = self.deliver(generation_id, poll)
            if again is not None:
                self._time.spawn(receive, again)

        self._time.spawn(receive, delay)


class _Router:
    """Stands in for the router of one request: Powertools' own holds one request at a time."""

    def __init__(self, event: dict[str, Any], time: SimulatedTime, closing: ExitStack) -> None:
        self.current_event = APIGatewayProxyEvent(event)
        self.context: dict[str, Any] = {"closing": closing}
        self.append_context = self.context.update
        ends = time.now + FUNCTION_SECONDS
        self.lambda_context = SimpleNamespace(get_remaining_time_in_millis=lambda: int((ends - time.now) * 1000))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    code: str | None = None


@dataclass
class Client:
    """One client and what it met. `waits` are the seconds and the status of each request that was not refused."""

    name: str
    asked_at: list[float] = field(default_factory=list)
    waits: list[tuple[float, int]] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    ended: Answer | None = None
    ended_at: float = 0.0

    @property
    def busiest_minute(self) -> int:
        """The most requests in any sixty seconds."""
        most = first = 0
        for last, at in enumerate(self.asked_at):
            while self.asked_at[first] <= at - 60:
                first += 1
            most = max(most, last - first + 1)
        return most


class Crowd:
    """The service with its gateway, and its clients. An image takes `image_seconds`.

    `rate` and `burst` are the gateway's for each route, `busy` is how many executions of the api function run, and
    `most_busy` the most that ran at once.
    """

    def __init__(
        self,
        time: SimulatedTime,
        *,
        most: int,
        image_seconds: float,
        wait_seconds: float = 230.0,
        share: int = 90,
        rate: float = 50.0,
        burst: int = 100,
        first_worker: bool = True,
    ) -> None:
        self.time, self.image_seconds, self.wait_seconds = time, image_seconds, wait_seconds
        self.clients: list[Client] = []
        self.busy = self.most_busy = 0
        self._buckets = defaultdict[str, TokenBucket](lambda: TokenBucket(rate, burst))
        queue = _Queue(time)
        self.service = _Service(SameThread(), queue=cast("Any", queue), call_seconds=600.0)
        self.service.time, self.service.heartbeat = time, heartbeat
        self.service.provider.during_call = lambda: time.sleep(image_seconds)
        self.items = FakeDynamoItems()
        self.places = DynamoPlaces(lambda: cast("Any", self.items), "table", most=most, share=share)
        results = Results(
            records=self.service.records,
            images=self.service.images,
            places=self.places,
            durable_urls=True,
            streaming=True,
        )
        worker = self.service.worker
        queue.deliver = lambda id_, poll: worker.on_message(
            id_, poll, Deadline.after(FUNCTION_SECONDS), extend_visibility=lambda _: None
        )
        self._routes = partial(
            GenerationRoutes,
            submission=self.service.submission,
            worker=worker,
            cancellation=self.service.cancellation,
            deletion=self.service.deletion,
            records=self.service.records,
            places=self.places,
            results=results,
            journal=self.service.journal,
            read_request=read_request(),
            read_images={},
            inputs=cast("Any", None),  # nobody of the crowd sends images
            public_base_url="",
            wait_seconds=wait_seconds,
            api_is_first_worker=first_worker,
            streaming=True,
        )
        self._middleware = ApiMiddleware(logger, cors_origin="", public_base_url="")
        self._throttled_headers = _headers_of_throttled()

    # What is between a client and the routes.

    def ask(self, client: Client, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The answer to a request, when it comes. The function may work on."""
        self.time.sleep(ROUND_TRIP_SECONDS)
        asked_at = self.time.now
        client.asked_at.append(asked_at)
        resource = f"{method} {'result' if '/result' in path else 'generations'}"
        if not self._buckets[resource].take():
            answer = Answer(429, self._throttled_headers, "rate_limit_exceeded")
        else:
            answer = self._invoke(client, path, body, headers)
        if answer.code:
            client.codes[answer.code] += 1
        else:
            client.waits.append((self.time.now - asked_at, answer.status))
        return answer

    def _invoke(self, client: Client, path: str, body: Any, headers: dict[str, str]) -> Answer:
        answered, answers = self.time.Event(), list[Answer]()

        def function() -> None:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            with ExitStack() as closing:
                answers.append(self._handle(client, path, body, headers, closing))
                answered.set()
            self.busy -= 1

        self.time.spawn(function)
        answered.wait()
        return answers[0]

    def _handle(self, client: Client, path: str, body: Any, headers: dict[str, str], closing: ExitStack) -> Answer:
        location, _, query = path.partition("?")
        context = {"domainName": "x.example", "path": location, "authorizer": {"principalId": client.name}}
        event = {
            "path": location,
            "resource": location,
            "headers": {"Content-Type": "application/json", **headers},
            "body": body and json.dumps(body),
            "queryStringParameters": dict(each.split("=") for each in query.split("&") if each) or None,
            "requestContext": context,
        }
        router = _Router(event, self.time, closing)
        routes = self._routes(router=cast("Any", router))

        def route(_: object) -> Response[Any]:
            return routes.result(location.split("/")[-2]) if location.endswith("/result") else routes.create()

        chain = self._middleware.errors
        response = self._middleware.headers(cast("Any", router), lambda app: chain(app, route))
        headers = {name.lower(): str(value) for name, value in response.headers.items()}
        code = json.loads(cast("str", response.body))["error"]["code"] if response.status_code >= 400 else None
        return Answer(response.status_code, headers, code)

    # Clients.

    def client(self, name: str, work: Callable[["Crowd", Client], None], *, delay: float = 0) -> Client:
        client = Client(name)
        self.clients.append(client)
        self.time.spawn(lambda: work(self, client), delay)
        return client

    def follow(self, client: Client, answer: Answer) -> Answer:
        for _ in range(MOST_REDIRECTS):
            if answer.status != 303:
                break
            query = answer.headers["location"].partition("?")[2]
            path = f"{IMAGES}/{answer.headers['x-generation-id']}/result"
            answer = self.ask(client, "GET", f"{path}?{query}")
        return answer


def openai_client(max_retries: int, **body: Any) -> Callable[[Crowd, Client], None]:
    """As OpenAI's Python client: see `_should_retry` and `_calculate_retry_timeout` in openai's `_base_client.py`."""

    def work(crowd: Crowd, client: Client) -> None:
        asked = {"prompt": f"of {id(client)}", "model": "dall-e-3", **body}
        for attempt in range(max_retries + 1):
            count = {"x-stainless-retry-count": str(attempt)}
            answer = crowd.follow(client, crowd.ask(client, "POST", IMAGES, asked, **count))
            client.ended, client.ended_at = answer, crowd.time.now
            if not _is_retried(answer):
                return
            if attempt < max_retries:
                backoff = min(0.5 * 2.0 ** min(attempt, 1000), 8.0) * (1 - 0.25 * random.random())
                crowd.time.sleep(float(answer.headers.get("retry-after", backoff)))

    return work


def _is_retried(answer: Answer) -> bool:
    should = answer.headers.get("x-should-retry")
    return should == "true" if should else answer.status in (408, 409, 429) or answer.status >= 500


def _headers_of_throttled() -> dict[str, str]:
    """The gateway's own 429 as the template has it."""
    api = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["Api"]["Properties"]
    headers = api["GatewayResponses"]["THROTTLED"]["ResponseParameters"]["Headers"]
    return {name.lower(): value.strip("'") for name, value in headers.items() if isinstance(value, str)}
