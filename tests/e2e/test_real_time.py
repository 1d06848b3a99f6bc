"""The time-outs as they are on AWS: 25 s of waiting, 29 s at the gateway, leases of a minute. For `make soak`."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from local.serving import Request
from tests.support.client import Client
from tests.support.programs import sample
from tests.support.world import running_world

SLOW, OVER_THE_GATEWAYS_TIME = 75, 33  # seconds


def by_openais_client(model: str) -> Callable[[Client, str], Any]:
    def ask(caller: Client, prompt: str) -> Any:
        client = caller.openai(max_retries=2)
        return client.images.generate(model=model, prompt=prompt, response_format="url").to_dict()

    return ask


def by_the_api_pages_sample(caller: Client, prompt: str) -> Any:
    return json.loads(sample(caller, prompt))


@pytest.mark.soak
def test_clients_wait_for_a_slow_upstream_and_pay_once(tmp_path: Path) -> None:
    cases = [
        (by_openais_client("gpt-image-1"), SLOW),
        (by_the_api_pages_sample, SLOW),
        (by_openais_client("dall-e-3"), OVER_THE_GATEWAYS_TIME),
    ]
    with running_world(tmp_path, {}) as world, ThreadPoolExecutor() as together:

        def made(ask: Callable[[Client, str], Any], seconds: float) -> tuple[int, int]:
            def slow(_: Request) -> None:
                Event().wait(seconds)

            prompt = world.will(uuid4().hex, slow)
            answer = ask(world.caller(), prompt)
            return len([image["url"] for image in answer["data"]]), len(world.calls(prompt))

        assert list(together.map(made, *zip(*cases, strict=True))) == [(1, 1)] * 3
