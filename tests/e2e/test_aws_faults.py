"""DynamoDB, SQS, S3 or the bus fails at single calls of a generation in turn.

Nothing is lost, the record shows what is paid twice, and no record stays in progress.
"""

from typing import Any

import pytest

from local.aws_door import Fault
from tests.support.client import INLINE, SMALL, Client
from tests.support.waiting import until
from tests.support.world import World

pytestmark = pytest.mark.thorough

MOST_CALLS = 100  # more than any of these generations makes, with the messages of the one before: asserted
SHORT_STEP = 6  # of the calls in turn; with every one of them, a fault at each port is tested without processes
LONG = pytest.mark.soak
KINDS = [
    pytest.param({}, SHORT_STEP, id="before-or-after"),
    pytest.param({}, 1, id="before-or-after-each", marks=LONG),
    pytest.param({"when": "before"}, 1, id="before", marks=LONG),
    pytest.param({"when": "after"}, 1, id="after", marks=LONG),
    # The SDK repeats these by itself, and the repetition meets what the first try has done.
    pytest.param({"when": "after", "once": True}, 1, id="after-once", marks=LONG),
    pytest.param({"when": "after", "error": "hang-up", "once": True}, 1, id="answer-lost", marks=LONG),
    pytest.param({"when": "before", "error": "ThrottlingException"}, 1, id="throttled", marks=LONG),
    pytest.param({"when": "before", "error": "hang-up"}, 1, id="hang-up", marks=LONG),
]
PATHS = [pytest.param({}, id="worker"), pytest.param(INLINE, id="api")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kind", "step"), KINDS)
def test_a_fault_at_any_call_leaves_the_images_made_and_paid_for_as_the_record_shows(
    world: World, caller: Client, prompt: str, path: dict[str, str], kind: dict[str, Any], step: int
) -> None:
    for turn, at in enumerate(range(1, MOST_CALLS, step)):
        asked = f"{prompt} {at}"
        try:
            world.stack.door.fail(Fault(at, **({"when": "after" if turn % 2 else "before"} | kind)))
            generation_id = asked_until_answered(caller, asked, path)
        finally:
            counted = world.stack.door.fail()
        generation = caller.until_ended(generation_id)
        assert generation["status"] == "completed", (at, generation)
        assert len(generation["data"]) == 1
        # An intent that is on the record, but whose writer got no answer to that, was never sent.
        assert 1 <= len(world.calls(asked)) <= 1 + generation["repeated_calls"], (at, generation)
        assert generation["repeated_calls"] <= 1
        if counted < at:
            break
    else:
        raise AssertionError("there are calls that had no fault")


def asked_until_answered(caller: Client, prompt: str, headers: dict[str, str]) -> str:
    """The id of the generation. The caller sends a key and retries as OpenAI's clients do."""

    def asked() -> str | None:
        answer = caller.make({**SMALL, "prompt": prompt}, Idempotency_Key=prompt, **headers)
        retried = answer.status in (408, 409, 429) or (
            answer.status >= 500 and answer.headers.get("x-should-retry") != "false"
        )
        assert retried or answer.status in (200, 424), answer.content
        return None if retried else answer.generation_id

    return until(asked) or ""
