"""The stand-in upstream on a port, for tests of what a provider sends and of what it makes of each answer."""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import ImageRequest, UpstreamImages, UpstreamTask
from imagegen.outbound.pool import HttpPool
from imagegen.ports import ImageProvider
from imagegen.providers.gemini_chat.provider import GeminiChatProvider
from imagegen.providers.ideogram.provider import IdeogramProvider
from imagegen.providers.kling.provider import KlingProvider
from imagegen.providers.midjourney.provider import MidjourneyProvider
from imagegen.providers.openai.provider import OpenAIProvider
from imagegen.providers.upstream_api import UpstreamApi
from local.serving import HungUpError, Reply, Request
from local.upstream import Script, StandInUpstream
from tests.fakes.parameters import FakeParameters
from tests.support import odd_hosts
from tests.support.models import MODELS, read_request, upstream_request

KEY, ROTATED_KEY = "sk-Q7vXw2LmN8dRtYp4", "sk-Zk3HcB9sFjUa6eGo"
PARAMETER = "/imagegen/upstream-api-key"
URL = "https://images.example/1.png"
PROVIDERS: dict[str, Callable[[UpstreamApi], ImageProvider]] = {
    "openai": OpenAIProvider,
    "gemini-chat": GeminiChatProvider,
    "ideogram": IdeogramProvider,
    "kling": KlingProvider,
    "midjourney": MidjourneyProvider,
}

Error = type[errors.ImagegenError]


@dataclass
class UpstreamHost:
    """`requests` holds every request, paid or not, and `submits` those that might be paid. `base` is a path."""

    port: int
    stand_in: StandInUpstream
    requests: list[Request] = field(default_factory=list)
    submits: list[Request] = field(default_factory=list)
    base: str = "/v1"
    refunds: bool = False
    max_image_bytes: int = 16 * 1024 * 1024
    slow: odd_hosts.SlowHost = field(default_factory=odd_hosts.SlowHost)
    secrets: FakeParameters = field(default_factory=lambda: FakeParameters({PARAMETER: KEY}))
    pool: HttpPool = field(default_factory=HttpPool)

    def respond(self, request: Request) -> Reply:
        self.requests.append(request)
        if request.method == "POST":
            self.submits.append(request)
        return self.stand_in.respond(request)

    def will(self, *scripts: Script) -> None:
        self.stand_in.script.extend(scripts)

    def provider(self, model: str, *, timeout: float = 30) -> ImageProvider:
        api = UpstreamApi(
            self.pool,
            base_url=f"http://127.0.0.1:{self.port}{self.base}",
            is_reseller=True,
            key=lambda fresh: self.secrets.get(PARAMETER, fresh=fresh),
            timeout=timeout,
            max_image_bytes=self.max_image_bytes,
            refunds_failed_tasks=self.refunds,
        )
        return PROVIDERS[MODELS[model].provider](api)

    def start(self, model: str, n: int = 1, *, timeout: float = 30, **fields: Any) -> UpstreamImages | UpstreamTask:
        """Reads a request as a caller sends it, and makes a call for `n` of its images."""
        request = read_fields(model, **fields)
        return self.provider(model, timeout=timeout).start(upstream_request(request, n), Deadline.after(60))

    def rotate_key(self) -> None:
        """The old key stays in the cache."""
        self.secrets.get(PARAMETER)
        self.stand_in.key = self.secrets.values[PARAMETER] = ROTATED_KEY


Host = TypeVar("Host", bound=UpstreamHost)


@contextmanager
def upstream_on(host: odd_hosts.ReusableHost, kind: type[Host]) -> Iterator[Host]:
    upstream = kind(host.port, StandInUpstream(KEY))
    host.respond = upstream.respond
    try:
        yield upstream
    finally:
        upstream.slow.over.set()


def read_fields(model: str, **fields: Any) -> ImageRequest:
    return read_request().fields({"prompt": "a cat", "model": model, **fields})


def failure_of(action: Callable[[], object]) -> errors.ImagegenError:
    with pytest.raises(errors.ImagegenError) as caught:
        action()
    assert_no_key_in(caught.value)
    return caught.value


def assert_no_key_in(error: BaseException) -> None:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    text = "\n".join([*traceback.format_exception(error), *(f"{one} {one!r} {vars(one)}" for one in seen)])
    assert KEY not in text
    assert ROTATED_KEY not in text


# Scripts


def answers(status: int, body: object = b"", **headers: str) -> Script:
    """Answers with a body: JSON if it is not bytes. `Retry_After` becomes Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _: Reply(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def cut_off(script: Script) -> Script:
    """The connection breaks after the last byte of the answer, which declares one more."""

    def respond(request: Request) -> Reply:
        reply = script(request)
        assert reply is not None
        return Reply(reply.status, reply.body, reply.headers, declared_length=len(reply.body) + 1)

    return respond


def hangs_up(_: Request) -> Reply:
    raise HungUpError
