"""Midjourney's prompts that would cost more than the request says, or that lose their seed."""

from typing import Any

import pytest

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.images import ImageRequest, UpstreamRequest
from imagegen.providers.midjourney.prompts import text_of
from imagegen.wire.requests import ReadRequest


def read(prompt: str, **fields: Any) -> ImageRequest:
    return ReadRequest(CONFIGURATION.catalog).fields({"model": "mj_imagine", "prompt": prompt, **fields})


def sent(prompt: str, **fields: Any) -> str:
    return text_of(UpstreamRequest(read(prompt, **fields), "mj_imagine", "mj_imagine", 1, "gen_x.0.0"))


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "param"),
    [
        ("a cat --repeat 40", None, "prompt"),
        ("a cat --R 10", None, "prompt"),
        ("a cat,--r 10", None, "prompt"),
        ("a cat\n—repeat 10", None, "prompt"),
        ("a cat --turbo", None, "prompt"),
        ("a cat --fast", None, "prompt"),
        ("a cat --relax --ar 1:1", None, "prompt"),
        ("a {red, blue} cat", None, "prompt"),
        ("a {red {{big}} , blue} cat", None, "prompt"),
        (r"a {red\, white, blue} cat", None, "prompt"),
        ("a cat", "{dogs, birds}", "negative_prompt"),
        ("a cat", "dogs,--repeat 10", "negative_prompt"),
        ("a cat", "dogs —ar 1:2", "negative_prompt"),
    ],
)
def test_a_prompt_that_changes_the_price_is_refused(prompt: str, negative_prompt: str | None, param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(prompt, negative_prompt=negative_prompt)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat --raw --v 6.1",
        "a car—fast and red",
        "a cat --relaxing",
        r"a {red\, blue} cat",
        "a {red} cat, asleep",
    ],
)
def test_other_flags_and_texts_are_sent(prompt: str) -> None:
    assert sent(prompt).startswith(prompt.strip())


def test_a_flag_that_only_begins_like_a_seed_replaces_none() -> None:
    assert " --seed " in sent("a cat --seed2 5")
    assert sent("a cat --seed 5").count("--seed") == 1


def test_a_blank_negative_prompt_is_no_flag_without_a_value() -> None:
    assert "--no" not in sent("a cat", negative_prompt="  ")
