"""Processes that die at any moment: nothing is stuck, nothing that was answered or stored is bought again."""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Service, serve
from tests.e2e.test_generations import begin, post_following, until_ended

UPSTREAM_SECONDS = 0.6


@pytest.fixture(
    scope="module", params=[pytest.param(3, id="short"), pytest.param(60, id="long", marks=pytest.mark.soak)]
)
def lease(request: pytest.FixtureRequest) -> int:
    seconds: int = request.param
    return seconds


@pytest.fixture(scope="module")
def service(lease: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": str(lease), "UpstreamTimeoutSeconds": "20", "WaitSeconds": "2"}
    with serve("source", tmp_path_factory.mktemp("kills"), parameters) as service:
        service.upstream.delay = UPSTREAM_SECONDS
        yield service


@pytest.mark.parametrize("function", ["WorkerFunction", "ApiFunction"])
def test_however_often_its_process_is_killed_every_generation_ends_completed_and_is_paid_for_as_the_record_says(
    service: Service, lease: int, function: str
) -> None:
    kills = 20 if lease == 60 else 3
    dice = random.Random(7)
    repeated: Counter[int] = Counter()
    for number in range(kills):
        service.upstream.calls.clear()
        moment = dice.uniform(0, UPSTREAM_SECONDS + 0.6)
        if function == "WorkerFunction":
            generation_id = begin(service, prompt=f"killed {function} {number}")
            kill_at(service, function, moment)
        else:
            generation_id = begun_by_the_api(service, f"killed {function} {number}", moment)
        generation = until_ended(service, generation_id, seconds=120)
        assert generation["status"] == "completed"
        assert len(generation["data"]) == 1
        # A call is paid again only where its outcome was unknown, and then the record says so.
        assert len(service.upstream.calls) <= 1 + generation["repeated_calls"]
        repeated[generation["repeated_calls"]] += 1
    assert set(repeated) <= {0, 1}
    print(f"{function}: {kills} kills, {repeated[1]} calls of unknown outcome repeated")  # noqa: T201


def kill_at(service: Service, function: str, moment: float) -> None:
    time.sleep(moment)
    for pid in service.stack.functions[function].pids():
        os.kill(pid, 9)
    time.sleep(0.3)  # until the host has seen that they are gone, and sends them nothing more


def begun_by_the_api(service: Service, prompt: str, moment: float) -> str:
    """A generation whose first worker, the api function, is killed; the client's retry finds it."""
    killer = threading.Thread(target=kill_at, args=(service, "ApiFunction", moment))
    killer.start()
    body = json.dumps({"prompt": prompt}).encode()
    post_following(service, body, Idempotency_Key=prompt, x_stainless_retry_count="0")
    killer.join()
    status, headers, _ = post_following(service, body, Idempotency_Key=prompt, x_stainless_retry_count="0")
    assert status in (200, 303)
    return str(headers["x-generation-id"])
