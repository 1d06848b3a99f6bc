"""The time-outs without streaming: 25 s of waiting, 29 s at the gateway, leases of a minute. For `make soak`."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from local.serving import Request
from tests.support.client import Client
from tests.support.programs import sample
from tests.support.world import running_world


def url_by_openai(caller: Client, prompt: str, model: str) -> str | None:
    client = caller.openai(max_retries=2)
    (image,) = client.images.generate(model=model, prompt=prompt, response_format="url").data or []
    return image.url


CASES: list[tuple[float, Callable[[Client, str], str | None]]] = [
    (75, lambda caller, prompt: url_by_openai(caller, prompt, "gpt-image-1")),
    (75, lambda caller, prompt: json.loads(sample(caller, prompt))["data"][0]["url"]),
    (33, lambda caller, prompt: url_by_openai(caller, prompt, "dall-e-3")),  # longer than the gateway waits
]


@pytest.mark.soak
def test_clients_wait_for_a_slow_upstream_that_is_paid_once(tmp_path: Path) -> None:
    with running_world(tmp_path, {}, streaming=False) as world, ThreadPoolExecutor() as together:

        def made(seconds: float, ask: Callable[[Client, str], str | None]) -> tuple[bool, int]:
            def slow(_: Request) -> None:
                Event().wait(seconds)

            prompt = world.will(uuid4().hex, slow)
            return bool(ask(world.caller(), prompt)), len(world.calls(prompt))

        assert list(together.map(made, *zip(*CASES, strict=True))) == [(True, 1)] * 3
