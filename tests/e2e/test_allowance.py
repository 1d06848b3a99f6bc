"""Daily allowances in images: never overspent, however many ask at once and whatever DynamoDB does."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from local.aws_door import Fault
from tests.support.client import QUEUED, SMALL, Client
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, refusing

CALLERS = 16


def ended(caller: Client) -> Counter[str]:
    """How the client's generations ended, by status."""
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
def test_of_many_requests_at_once_exactly_the_allowance_is_generated(
    world: World, prompt: str, asked: int, allowed: int
) -> None:
    caller, body = world.caller(images_per_day=allowed), {**SMALL, "prompt": prompt}
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda _: caller.post(body, **QUEUED).status, range(asked)))
    assert Counter(answers) == {202: allowed, 429: asked - allowed}
    assert ended(caller) == {"completed": allowed}
    assert len(world.calls(prompt)) == allowed


def test_with_conflicts_and_throttles_no_image_too_many_is_generated(world: World, prompt: str) -> None:
    """moto makes neither. Clients retry what cost nothing, as OpenAI's do."""
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
    # What cannot be given back for certain stays taken: too little is spent then, never too much.
    assert allowed - 5 <= generated["completed"] <= allowed
    assert set(generated) <= {"completed", "failed"}
    assert len(world.calls(prompt)) <= allowed + 5  # calls of unknown outcome, each of which its record has


def test_an_answer_says_how_the_client_stands(caller: Client) -> None:
    answer = caller.make({**SMALL, "prompt": "counted", "n": 2})
    standing = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    limit = int(PARAMETERS["ImagesPerClientPerDay"])
    assert standing.pop("x-ratelimit-reset-images").endswith("s")
    assert standing == {"x-ratelimit-limit-images": str(limit), "x-ratelimit-remaining-images": str(limit - 2)}


def test_over_its_allowance_openais_client_is_refused_once_and_nothing_is_spent(world: World, prompt: str) -> None:
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
        client.images.generate(model="dall-e-2", size="256x256", prompt="enough", n=3)
        with pytest.raises(openai.RateLimitError):
            client.images.generate(model="dall-e-2", size="256x256", prompt="one more")


def test_what_the_upstream_refused_can_be_asked_for_again_and_a_retry_is_not_counted(world: World, prompt: str) -> None:
    world.will(prompt, refusing(code="content_policy_violation"))
    caller, body = world.caller(images_per_day=1), {**SMALL, "prompt": prompt}
    assert caller.make(body).status == 400

    def asked_again() -> str | None:  # given back once the refusal is on the record
        answer = caller.make(body, Idempotency_Key="the same")
        return answer.generation_id if answer.status == 200 else None

    generation_id = until(asked_again)
    assert caller.make(body, Idempotency_Key="the same").generation_id == generation_id
    assert caller.make(body).status == 429
