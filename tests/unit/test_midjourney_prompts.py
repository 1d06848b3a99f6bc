"""The text that Midjourney gets: the caller's prompt, and a flag for each field that the prompt does not set itself."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.images import ImageRequest, UpstreamRequest
from imagegen.providers.aspect_ratios import SIZES
from imagegen.providers.midjourney.models import MODELS as MIDJOURNEY_MODELS
from imagegen.providers.midjourney.prompts import MOST_SEED, misfit, seed_of, text_of
from tests.support.models import MODELS, read_request, upstream_request

MODEL = "mj_imagine"


def call(prompt: str = "a cat", *, number: int = 0, reference: str = "gen_1.0.0", **options: Any) -> UpstreamRequest:
    """A call with these options, which a caller or models.toml has set."""
    request = ImageRequest(prompt, MODEL, "url", options=options)
    return replace(upstream_request(request, reference=reference), number=number)


def refused(prompt: str, **fields: Any) -> str | None:
    """The field that a request is refused for."""
    try:
        read_request().fields({"model": MODEL, "prompt": prompt, **fields})
    except InvalidRequestError as error:
        return error.param
    return None


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, ""),
        ({"aspect_ratio": "21:9"}, " --ar 21:9"),
        ({"style": "raw"}, " --style raw"),
        ({"style": "raw", "aspect_ratio": "4:7"}, " --ar 4:7 --style raw"),
        *(({"size": size}, " --ar 1:1") for size in ("256x256", "512x512", "1024x1024")),
        *(({"size": size}, " --ar 16:9") for size in ("1792x1024", "1280x720")),
        ({"size": "960x1280"}, " --ar 3:4"),
    ],
    ids=str,
)
def test_each_field_becomes_a_flag(options: dict[str, Any], flags: str) -> None:
    assert text_of(call(seed=7, **options)) == f"a cat{flags} --seed 7"


@pytest.mark.parametrize("words", ["dogs", "dogs, red cars", " 獺🦦\n", "dogs --", "well-known - dogs"])
def test_unwanted_words_are_last(words: str) -> None:
    assert text_of(call(negative_prompt=words, seed=7)) == f"a cat --seed 7 --no {words.strip()}"


@pytest.mark.parametrize("words", ["", " \n"])
def test_without_unwanted_words_there_is_no_flag_without_a_value(words: str) -> None:
    assert text_of(call(negative_prompt=words, seed=7)) == "a cat --seed 7"


def test_each_size_has_a_ratio_that_callers_may_name() -> None:
    for size in SIZES:
        ratio = text_of(call(size=size, seed=7)).split()[3]
        assert refused("a cat", aspect_ratio=ratio) is None


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ("a cat --ar 3:2", {"size": "1024x1024"}, "a cat --ar 3:2 --seed 7"),
        ("a cat --aspect 3:2", {"aspect_ratio": "1:1"}, "a cat --aspect 3:2 --seed 7"),
        ("a cat —AR 3:2", {"aspect_ratio": "1:1"}, "a cat —AR 3:2 --seed 7"),
        ("a cat --style raw", {"style": "cute"}, "a cat --style raw --seed 7"),
        ("a cat --no dogs", {"negative_prompt": "cars"}, "a cat --no dogs --seed 7"),
        ("a cat --seed 9", {"size": "1024x1024"}, "a cat --seed 9 --ar 1:1"),
        ("a cat --v 6.1 --raw", {"style": "cute"}, "a cat --v 6.1 --raw --style cute --seed 7"),
        # No flags of Midjourney
        ("a cat--ar 3:2, AR, -- ar", {"aspect_ratio": "1:1"}, "a cat--ar 3:2, AR, -- ar --ar 1:1 --seed 7"),
        (" a cat --\n", {"aspect_ratio": "1:1"}, "a cat -- --ar 1:1 --seed 7"),
    ],
)
def test_a_flag_of_the_prompt_replaces_a_default_of_models_toml(
    prompt: str, options: dict[str, Any], text: str
) -> None:
    assert text_of(call(prompt, seed=7, **options)) == text


@pytest.mark.parametrize(
    ("prompt", "fields", "field"),
    [
        *((f"a cat {flag} 3:2", {"size": "1024x1024"}, "size") for flag in ("--ar", "--aspect", "—ar", "--AR")),
        ("--ar 3:2 a cat", {"aspect_ratio": "3:2"}, "aspect_ratio"),
        ("a cat\n--seed 7", {"seed": 7}, "seed"),
        ("a cat --style raw", {"style": "raw"}, "style"),
        ("a cat\u3000--no dogs", {"negative_prompt": "cars"}, "negative_prompt"),
        ("a cat --seed 7", {"n": 2}, "n"),
        *(("a cat", {"negative_prompt": words}, "negative_prompt") for words in ("--ar 3:2", "dogs —cats", "a --v 7")),
        # Fits
        ("a cat --ar 3:2 --seed 7 --style raw --no dogs --v 7", {"n": 1}, None),
        ("a cat --ar 3:2", {"size": "auto", "style": "vivid", "seed": 7, "negative_prompt": "dogs", "n": 10}, None),
        ("a cat--seed 7, --seedling, —", {"seed": 7, "n": 2}, None),
        ("a cat", {"seed": 4_294_967_295}, None),
        ("a cat", {"seed": 4_294_967_296}, "seed"),
        ("a cat", {"size": "1024x1024", "aspect_ratio": "1:1"}, "aspect_ratio"),
    ],
)
def test_a_field_that_would_double_a_flag_is_refused(prompt: str, fields: dict[str, Any], field: str | None) -> None:
    assert refused(prompt, **fields) == field


def test_the_refusal_names_the_flag() -> None:
    assert misfit("a cat --Aspect 3:2", 1, {"size": "1024x1024"}) == ("size", "the prompt has --aspect already")


# Seeds


def test_without_a_seed_each_call_has_one_of_its_own_that_a_repetition_has_too() -> None:
    seeds = {seed_of(call(reference=f"gen_{index}.0.0")) for index in range(200)}
    assert len(seeds) == 200
    assert all(seed is not None and 0 <= seed <= MOST_SEED for seed in seeds)
    again = replace(call(), repeats=True)
    assert (seed_of(again), text_of(again)) == (seed_of(call()), text_of(call()))


@pytest.mark.parametrize(
    ("seed", "number", "sent"),
    [(0, 0, 0), (0, 9, 9), (7, 1, 8), (MOST_SEED, 0, MOST_SEED), (MOST_SEED, 1, 0), (MOST_SEED - 1, 3, 1)],
)
def test_a_given_seed_is_that_of_the_first_grid(seed: int, number: int, sent: int) -> None:
    grid = call(seed=seed, number=number)
    assert (seed_of(grid), text_of(grid)) == (sent, f"a cat --seed {sent}")


def test_the_seed_of_the_prompt_is_the_seed() -> None:
    assert seed_of(call("a cat --seed 9", seed=7)) is None


# Any prompt

# The grammar of the stand-in upstream: two dashes or a long one before a name, after white space.
FLAG = re.compile(r"(?:^|\s)(?:--|—)([A-Za-z]+)")
NAMES = {"size": "ar", "aspect_ratio": "ar", "style": "style", "seed": "seed", "negative_prompt": "no"}
WORDS = st.lists(
    st.sampled_from(
        ["a", "cat", "--", "—", "--ar 3:2", "—ar", "--Seed 9", "--no", "--v 7", "--style", "\n", "ar", "—é"]
    )
    | st.text(max_size=5),
    min_size=1,
    max_size=8,
).map(" ".join)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "aspect_ratio": st.sampled_from(["1:1", "16:9"]),
        "style": st.just("raw"),
        "seed": st.integers(0, MOST_SEED),
        "negative_prompt": st.text(max_size=20) | WORDS,
    },
) | st.fixed_dictionaries({"size": st.sampled_from(SIZES)})


@given(WORDS, OPTIONS, st.integers(0, 9))
@settings(deadline=None)
def test_a_text_has_no_flag_of_ours_twice_and_ends_with_what_was_asked_for(
    prompt: str, options: Mapping[str, Any], number: int
) -> None:
    assume(prompt.strip())
    assume(misfit("a cat", 1, options) is None)  # the unwanted words have no flags
    own = {name.lower().replace("aspect", "ar") for name in FLAG.findall(prompt)}
    text = text_of(call(prompt, number=number, **options))
    assert text.startswith(prompt.strip())
    added = [name.lower() for name in FLAG.findall(text[len(prompt.strip()) :])]
    wanted = {NAMES[name] for name, value in options.items() if not isinstance(value, str) or value.strip()} | {"seed"}
    assert sorted(added) == sorted(wanted - own)
    if misfit(prompt, 1, options) is None:
        assert not own & {NAMES[name] for name in options}


def test_the_models_have_the_flags_of_their_fields() -> None:
    """A further field of a model needs a flag, else it would be accepted and lost."""
    for model in (each for each in MIDJOURNEY_MODELS if each.generates):
        assert {field.name for field in model.own_fields} == NAMES.keys()
        assert MODELS[model.id].misfit is misfit
