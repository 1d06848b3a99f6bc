"""AWS's services answer at different speeds, and no request may pay for it with a message that comes too early."""

import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import Service

CALLERS = 8
MOST_BEHIND_SECONDS = 5.0
SLOW = {"dynamodb": 100}
# A worker has looked for a record, and dropped its message, before a record that begins to be written then is there.
SLOWEST_TO_WRITE = {"dynamodb": 100, "dynamodb.PutItem": 400}


@pytest.mark.parametrize(
    ("delays", "requests"),
    [
        pytest.param(SLOWEST_TO_WRITE, 40, id="short"),
        pytest.param(SLOWEST_TO_WRITE, 200, id="slow-to-write", marks=pytest.mark.soak),
        pytest.param(SLOW, 200, id="slow", marks=pytest.mark.soak),
    ],
)
def test_no_queued_request_waits_for_its_safety_net_while_dynamodb_is_slow_and_sqs_is_not(
    service: Service, delays: Mapping[str, int], requests: int
) -> None:
    client = service.client(max_retries=0)

    def seconds(number: int) -> float:
        begun = time.monotonic()
        client.images.generate(model="gpt-image-1", prompt=f"slow records {number}", response_format="url")  # queued
        return time.monotonic() - begun

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(seconds, range(-CALLERS, 0)))  # starts the functions' processes, which takes seconds here
        service.stack.door.delay(delays)
        try:
            took = list(callers.map(seconds, range(requests)))
        finally:
            service.stack.door.delay({})

    assert max(took) - statistics.median(took) < MOST_BEHIND_SECONDS, sorted(took)[-5:]
