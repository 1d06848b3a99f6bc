"""Daily quotas in images and in money: no race and no fault of DynamoDB overspends one."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from local.aws_door import Fault
from tests.support.client import QUEUED, SMALL, Client
from tests.support.waiting import until
from tests.support.world import World

CALLERS = 16
PRICE = 16_000  # millionths of a dollar for the image of SMALL, in models.toml


def ended(caller: Client) -> Counter[str]:
    """The number of the caller's generations by their final status."""
    statuses: Counter[str] = Counter()
    path = "/images/generations?limit=100"
    while True:
        page = caller.get(path).json
        statuses.update(caller.until_ended(each["id"])["status"] for each in page["data"])
        if not page["has_more"]:
            return statuses
        path = f"/images/generations?limit=100&after={page['last_id']}"


@pytest.mark.parametrize(
    ("asked", "allowed"), [pytest.param(32, 8, id="short"), pytest.param(200, 50, id="long", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize(("unit", "amount"), [("images_per_day", 1), ("usd_per_day", PRICE)], ids=["images", "money"])
def test_many_requests_at_once_generate_exactly_the_quota(
    world: World, prompt: str, asked: int, allowed: int, unit: str, amount: int
) -> None:
    caller, body = world.caller(**{unit: allowed * amount}), {**SMALL, "prompt": prompt}  # type: ignore[arg-type]
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda _: caller.post(body, **QUEUED).status, range(asked)))
    assert Counter(answers) == {202: allowed, 429: asked - allowed}
    assert ended(caller) == {"completed": allowed}
    assert len(world.calls(prompt)) == allowed


@pytest.mark.thorough
def test_conflicts_and_throttles_generate_no_image_over_the_quota(world: World, prompt: str) -> None:
    """moto makes neither. The caller retries what cost nothing, as OpenAI's clients do."""
    allowed, asked = 8, 24
    caller, body = world.caller(images_per_day=allowed), {**SMALL, "prompt": prompt}
    errors = ["ThrottlingException", "TransactionConflictException", "InternalServerError"]
    whens = ["before", "after"]
    faults = [Fault(at, whens[at % 2], errors[at % 3], once=True, service="dynamodb") for at in range(5, 3000, 7)]

    def retried(number: int) -> int:
        def answered() -> int | None:
            answer = caller.post(body, Idempotency_Key=f"unlucky {number}", **QUEUED)
            return None if answer.status >= 500 and answer.headers.get("x-should-retry") != "false" else answer.status

        return until(answered) or 0

    try:
        world.stack.door.fail(*faults)
        with ThreadPoolExecutor(CALLERS) as pool:
            statuses = Counter(pool.map(retried, range(asked)))
    finally:
        world.stack.door.fail()
    assert sum(statuses.values()) == asked
    assert statuses[202] + statuses[429] >= asked - 5
    generated = ended(caller)
    # If it is unknown whether quota was returned, it stays taken: too little is spent then, never too much.
    assert allowed - 5 <= generated["completed"] <= allowed
    assert set(generated) <= {"completed", "failed"}
    assert len(world.calls(prompt)) <= allowed + 5  # calls of unknown outcome, which the records show


def test_openais_client_is_refused_once_over_its_quota_and_spends_nothing(world: World, prompt: str) -> None:
    caller, asked = world.caller(images_per_day=3), len(world.answers)
    with caller.openai(max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.generate(model="dall-e-2", size="256x256", prompt=prompt, n=4)
        error = refused.value
        assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
        assert "4 images" in error.message
        assert error.response.headers["x-ratelimit-limit-images"] == "3"
        assert error.response.headers["x-ratelimit-remaining-images"] == "3"
        assert int(error.response.headers["retry-after"]) > 0
        assert [status for *_, status in world.answers[asked:]] == [429]
        assert world.calls(prompt) == []
        made = caller.post({**SMALL, "prompt": "enough", "n": 3}, **QUEUED)
        assert made.headers["x-ratelimit-limit-images"] == "3"
        assert made.headers["x-ratelimit-remaining-images"] == "0"
        with pytest.raises(openai.RateLimitError):
            client.images.generate(model="dall-e-2", size="256x256", prompt="one more")
