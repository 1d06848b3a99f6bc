"""What a generation cost: what its price says about what was bought, and the most where that is not known."""

from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.domain.cost import Basis, Cost, cost_of
from imagegen.domain.failures import Failure
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    Supply,
    UpstreamAttempt,
    UpstreamCall,
    with_extra_calls,
)
from imagegen.domain.images import ImageRequest
from imagegen.domain.money import ImagePrice, Price, TokenPrice

REFUSED = Failure("rate_limit_exceeded", "no", money_spent=False)
FAILED = Failure("upstream_failed", "no", money_spent=True)
MISSING = Failure("upstream_too_few_images", "no", money_spent=True)
FILTERED = Failure("content_policy_violation", "no", money_spent=True)
PLAIN = ImagePrice(40_000)
# The narrowed price of a request that sets neither.
BY_SIZE_AND_QUALITY = ImagePrice(
    {"1024x1024": {"low": 9_000, "high": 133_000}, "1536x1024": {"low": 13_000, "high": 200_000}}, ("size", "quality")
)
TOKENS = TokenPrice(text_input=5_000_000, image_input=10_000_000, output=40_000_000, most=250_000)
USAGE = {"input_tokens": 30, "output_tokens": 4_000, "input_tokens_details": {"text_tokens": 20, "image_tokens": 10}}
BAD_COUNTS: list[Any] = [None, "many", -1, 1.5, 10**400, {}]
OF_USAGE = 100 + 100 + 160_000


def generation(*calls: UpstreamCall, price: Price | None) -> Generation:
    return Generation(
        id="gen_1",
        caller="alice",
        request=ImageRequest("a cat", "dall-e-3", "url"),
        created_at=0.0,
        base_url="https://x.example/v1",
        supply=Supply("openai", "dall-e-3", price=price),
        calls=with_extra_calls(calls),
    )


def attempt(failure: Failure | None = None, task: str | None = None) -> UpstreamAttempt:
    return UpstreamAttempt("fake", 1.0, task, failure)


def answer(*failures: Failure | None, usage: Any = None, **details: str) -> CallAnswer:
    """An answer with an image for each failure, `None` for a usable one."""
    return CallAnswer(tuple(AnsweredImage(failure=each) for each in failures), details, usage, "fake")


def call(n: int, *attempts: UpstreamAttempt, answered: CallAnswer | None = None, number: int = 0) -> UpstreamCall:
    return UpstreamCall(tuple(f"img_{number}_{place}" for place in range(n)), attempts, answered, number)


SENT = attempt()
ONE = call(1, SENT, answered=answer(None))


@pytest.mark.parametrize(
    ("calls", "images", "unknown"),
    [
        pytest.param([call(2)], 0, 0, id="not sent"),
        pytest.param([call(2, attempt(REFUSED))], 0, 0, id="refused"),
        pytest.param([call(2, attempt(REFUSED), SENT, answered=answer(None, None))], 2, 0, id="refused, then answered"),
        pytest.param([call(2, SENT)], 0, 2, id="no answer"),
        pytest.param([call(2, attempt(FAILED))], 0, 2, id="failed, perhaps charged"),
        pytest.param([call(2, SENT, SENT, answered=answer(None, None))], 2, 2, id="repeated"),
        pytest.param([call(2, SENT, attempt(REFUSED))], 0, 2, id="a repetition refused"),
        pytest.param([call(2, SENT, answered=answer(None, FILTERED))], 2, 0, id="an image filtered"),
        pytest.param([call(2, SENT, answered=answer(FILTERED, FILTERED))], 2, 0, id="all images filtered"),
        pytest.param([call(3, SENT, answered=answer(None, MISSING, None))], 2, 0, id="an image missing"),
        pytest.param(
            [call(3, SENT, SENT, answered=answer(None, MISSING, None))], 2, 3, id="missing after a repetition"
        ),
        pytest.param([call(1, attempt(task="t"), attempt(task="t"))], 0, 1, id="one task twice"),
        pytest.param([call(1, attempt(task="t"), attempt(REFUSED, "t"))], 0, 0, id="a task that bought nothing"),
        pytest.param([call(1, attempt(FAILED, "t"), attempt(task="u"), answered=answer(None))], 1, 1, id="two tasks"),
        pytest.param([call(1, attempt(task="t"), SENT)], 0, 2, id="a task, and an attempt without"),
        pytest.param([ONE, call(3, attempt(REFUSED), number=1)], 1, 0, id="one call of two refused"),
        pytest.param([ONE, call(3, SENT, number=1)], 1, 3, id="one call of two without an answer"),
        pytest.param([call(1, answered=answer(None))], 1, 0, id="found in storage"),
    ],
)
def test_a_cost_counts_what_came_and_what_may_have_been_bought(
    calls: list[UpstreamCall], images: int, unknown: int
) -> None:
    cost = cost_of(generation(*calls, price=PLAIN))
    assert cost == Cost(40_000 * (images + unknown), "unknown" if unknown else "image")
    priced_by_tokens = generation(*calls, price=replace(TOKENS, most=40_000))
    assert cost_of(priced_by_tokens).micros == 40_000 * (images + unknown)  # without usage, the most is counted
    assert cost_of(generation(*calls, price=None)) == Cost(None, "unknown")


@pytest.mark.parametrize(
    ("attempts", "answered", "images", "basis"),
    [
        ((), None, 2, "image"),
        ((SENT,), answer(None), 3, "image"),
        ((SENT,), None, 3, "unknown"),
        ((attempt(REFUSED),), None, 2, "image"),
    ],
    ids=["not sent", "answered", "unknown", "refused"],
)
def test_an_extra_call_is_counted_beside_the_call_before(
    attempts: tuple[UpstreamAttempt, ...], answered: CallAnswer | None, images: int, basis: Basis
) -> None:
    before = generation(call(3, SENT, answered=answer(None, MISSING, None)), price=PLAIN)
    whole, extra = before.calls
    after = replace(before, calls=(whole, replace(extra, attempts=attempts, answer=answered)))
    assert cost_of(after) == Cost(40_000 * images, basis)


@pytest.mark.parametrize(
    ("details", "cost"),
    [
        ({"size": "1024x1024", "quality": "low"}, Cost(9_000, "image")),
        ({"size": "1024x1024"}, Cost(133_000, "unknown")),
        ({"quality": "low"}, Cost(13_000, "unknown")),
        ({"size": "1600x1024", "quality": "high"}, Cost(200_000, "unknown")),
        ({}, Cost(200_000, "unknown")),
    ],
    ids=["both", "size", "quality", "a size without a price", "none"],
)
def test_the_details_of_an_answer_narrow_the_price_and_the_rest_counts_as_the_most(
    details: dict[str, str], cost: Cost
) -> None:
    answered = call(1, SENT, answered=answer(None, **details))
    assert cost_of(generation(answered, price=BY_SIZE_AND_QUALITY)) == cost


def test_the_details_of_an_image_narrow_its_price() -> None:
    images = (AnsweredImage(details={"size": "1024x1024", "seed": 7}), AnsweredImage(details={"size": "1536x1024"}))
    answered = call(2, SENT, answered=CallAnswer(images, {"quality": "low"}))
    assert cost_of(generation(answered, price=BY_SIZE_AND_QUALITY)) == Cost(22_000, "image")


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (USAGE, Cost(OF_USAGE, "usage")),
        ({"input_tokens": 30, "output_tokens": 0}, Cost(150, "usage")),
        ({"input_tokens": 0, "output_tokens": 100_000}, Cost(4_000_000, "usage")),  # above the most of an image
        *((USAGE | {"output_tokens": bad}, Cost(500_000, "unknown")) for bad in BAD_COUNTS),
        (USAGE | {"input_tokens_details": {"text_tokens": 3}}, Cost(500_000, "unknown")),
        (USAGE | {"input_tokens_details": [7]}, Cost(150 + 160_000, "usage")),
        (None, Cost(500_000, "unknown")),
    ],
)
def test_a_price_by_tokens_counts_the_usage_or_else_the_most_for_each_image(
    usage: dict[str, Any] | None, cost: Cost
) -> None:
    assert cost_of(generation(call(2, SENT, answered=answer(None, None, usage=usage)), price=TOKENS)) == cost


def test_usage_is_rounded_up_once_for_all_calls() -> None:
    price = TokenPrice(text_input=400_000, image_input=0, output=0, most=1)  # 0.4 of a millionth for a token
    calls = [
        call(1, SENT, answered=answer(None, usage={"input_tokens": 1, "output_tokens": 5}), number=number)
        for number in range(3)
    ]
    assert cost_of(generation(*calls, price=price)) == Cost(2, "usage")
    assert cost_of(generation(*calls, call(1, SENT, number=3), price=price)) == Cost(3, "unknown")
