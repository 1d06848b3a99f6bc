"""What of an upstream's answer is kept, so that it fits on a record whatever the upstream sends."""

import msgspec
import pytest

from imagegen.errors import ImageUrlRefusedError
from imagegen.providers.openai_answers import read_answer

DYNAMODB_ITEM_BYTES = 400 * 1024
LONGEST_PROMPT_BYTES = 32_000 * 6  # of control characters, as JSON


def body(**more: object) -> bytes:
    image = {"url": "https://images.example/1.png", **{name: more.pop(name) for name in ("url",) if name in more}}
    image |= {name: more.pop(name) for name in ("revised_prompt",) if name in more}
    return msgspec.json.encode({"created": 1, "data": [image] * 10, **more})


@pytest.mark.parametrize("revised", ["\U0001f9a6" * 500_000, "\x01" * 500_000, '"' * 500_000])
def test_ten_images_with_all_that_may_be_told_of_them_fit_beside_the_longest_prompt(revised: str) -> None:
    longest = body(
        url="https://images.example/" + "a" * 8_100,
        revised_prompt=revised,
        usage={"note": "u" * 4_000},
        quality="q" * 500_000,
    )
    answer = read_answer(longest, 10)
    kept = [(image.source, image.revised_prompt) for image in answer.images]
    size = len(msgspec.json.encode([kept, answer.details, answer.usage]))
    assert LONGEST_PROMPT_BYTES + size < DYNAMODB_ITEM_BYTES


def test_what_is_told_in_measure_is_kept_whole() -> None:
    answer = read_answer(body(revised_prompt="r" * 2_000, usage={"total_tokens": 7}, quality="high"), 10)
    assert answer.images[0].revised_prompt == "r" * 2_000
    assert (answer.usage, answer.details) == ({"total_tokens": 7}, {"quality": "high"})


def test_a_usage_beyond_measure_is_left_out() -> None:
    assert read_answer(body(usage={"note": "u" * 5_000}), 10).usage is None


@pytest.mark.parametrize("path", ["a" * 8_200, "\x01", "a\nb"])
def test_a_url_beyond_measure_is_refused(path: str) -> None:
    with pytest.raises(ImageUrlRefusedError):
        read_answer(body(url=f"https://images.example/{path}"), 10)
