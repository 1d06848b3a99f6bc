"""AWS's services answer at different speeds. No request may wait longer because its message came too early."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.client import SMALL, Client
from tests.support.world import World

pytestmark = pytest.mark.thorough

CALLERS = 4
SLOW = {"dynamodb": 100}
# A worker has looked for a record, and dropped its message, before a record that begins to be written then is there.
SLOWEST_TO_WRITE = {"dynamodb": 100, "dynamodb.PutItem": 1000}


@pytest.mark.parametrize(
    ("delays", "requests"),
    [
        pytest.param(SLOWEST_TO_WRITE, 2 * CALLERS, id="short"),
        pytest.param(SLOWEST_TO_WRITE, 200, id="slow-to-write", marks=pytest.mark.soak),
        pytest.param(SLOW, 200, id="slow", marks=pytest.mark.soak),
    ],
)
def test_no_request_waits_for_its_safety_net_if_only_dynamodb_is_slow(
    world: World, caller: Client, delays: Mapping[str, int], requests: int
) -> None:
    with ThreadPoolExecutor(CALLERS) as callers:
        for generation_id in list(callers.map(lambda _: caller.begin(**SMALL), range(CALLERS))):
            caller.until_ended(generation_id)  # the processes have started, and would drop a message at once
        world.stack.door.delay(delays)
        try:
            begun = list(callers.map(lambda _: caller.begin(**SMALL), range(requests)))
        finally:
            world.stack.door.delay({})
    for generation_id in begun:
        assert caller.until_ended(generation_id)["status"] == "completed"
        messages = [line["message"] for _, line in world.journal(generation_id=generation_id)]
        # The first message that a worker looks at finds the record, and is no safety net, which comes a lease later.
        assert "looked at" not in messages[: messages.index("claimed")], messages
