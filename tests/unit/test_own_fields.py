"""The fields that only models of some protocols have: their values, their bounds, and what excludes what."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import fingerprint
from imagegen.domain.models import Structured
from imagegen.wire.schemas import schemas
from tests.support.models import GENERATING, MODELS, catalog, read_request

GEMINI_2, GEMINI_2_5, GEMINI_3 = "gemini-2.0-flash-exp-image-generation", "gemini-2.5-flash-image", "gemini-3-pro-image"
GEMINI, IDEOGRAM = (GEMINI_2, GEMINI_2_5, GEMINI_3), "ideogram-v3"
NEW_MODELS = (*GEMINI, IDEOGRAM)
SIZES = ["256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "1280x960", "960x1280"]
SIZES += ["1792x1024", "1024x1792", "1280x720", "720x1280"]
GEMINI_RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9", "21:9"]
IDEOGRAM_RATIOS = ["1x3", "3x1", "1x2", "2x1", "9x16", "16x9", "10x16", "16x10"]
IDEOGRAM_RATIOS += ["2x3", "3x2", "3x4", "4x3", "4x5", "5x4", "1x1"]
KLING_RATIOS = ["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3"]
MIDJOURNEY_RATIOS = ["1:1", "1:2", "2:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "4:7", "7:4"]
MIDJOURNEY_RATIOS += ["9:16", "16:9", "9:21", "21:9"]
PALETTE_NAMES = ["EMBER", "FRESH", "JUNGLE", "MAGIC", "MELON", "MOSAIC", "PASTEL", "ULTRAMARINE"]
NO_TEXTS: list[object] = [7, True, ["1K"], {}]
CHOICES = [
    (GEMINI_2_5, "aspect_ratio", GEMINI_RATIOS),
    (GEMINI_3, "aspect_ratio", GEMINI_RATIOS),
    (GEMINI_3, "image_size", ["1K", "2K", "4K"]),
    (IDEOGRAM, "aspect_ratio", IDEOGRAM_RATIOS),
    (IDEOGRAM, "rendering_speed", ["FLASH", "TURBO", "DEFAULT", "QUALITY"]),
    (IDEOGRAM, "magic_prompt", ["AUTO", "ON", "OFF"]),
    (IDEOGRAM, "style_type", ["AUTO", "GENERAL", "REALISTIC", "DESIGN", "FICTION"]),
    ("kling-v1", "aspect_ratio", KLING_RATIOS),
    *((model, "aspect_ratio", [*KLING_RATIOS, "21:9"]) for model in ("kling-v1-5", "kling-v2", "kling-v2-1")),
    *((model, "resolution", ["1k"]) for model in ("kling-v1", "kling-v1-5")),
    *((model, "resolution", ["1k", "2k"]) for model in ("kling-v2", "kling-v2-1")),
    *((model, "aspect_ratio", MIDJOURNEY_RATIOS) for model in ("mj_imagine", "niji")),
]
CODE, COLOR = "0123aBcF", {"color_hex": "#00fFa9", "color_weight": 0.5}
GOOD: dict[str, Any] = {
    "resolution": "1312x736",
    "rendering_speed": "TURBO",
    "magic_prompt": "OFF",
    "negative_prompt": "no dogs, 獺🦦",
    "seed": 7,
    "style_codes": [CODE],
    "color_palette": {"name": "PASTEL"},
}
KLING = ("kling-v1", "kling-v1-5", "kling-v2", "kling-v2-1")
MIDJOURNEY = ("mj_imagine", "niji")
OWNERS = {
    "aspect_ratio": {GEMINI_2_5, GEMINI_3, IDEOGRAM, "flux-kontext-pro", "flux-kontext-max", *KLING, *MIDJOURNEY},
    "image_size": {GEMINI_3},
    "style_type": {IDEOGRAM},
    **{name: {IDEOGRAM} for name in GOOD},
    "resolution": {IDEOGRAM, *KLING},
    "negative_prompt": {IDEOGRAM, *KLING, *MIDJOURNEY},
    "seed": {IDEOGRAM, *MIDJOURNEY},
}
CODES, PALETTE = (GENERATING[IDEOGRAM].fields[name].rule for name in ("style_codes", "color_palette"))

DESCRIBED = Draft202012Validator(schemas(catalog(1_000, {}))["CreateImagesRequest"])


def ask(model: str, **fields: Any) -> dict[str, Any]:
    """The options of a request."""
    body = json.dumps({"prompt": "otter", "model": model, **fields}).encode()
    return dict(read_request()(body, "application/json").options)


def refused(model: str, **fields: Any) -> tuple[str, str | None, str | None]:
    """The message, the field and the code."""
    with pytest.raises(InvalidRequestError) as error:
        ask(model, **fields)
    return error.value.message, error.value.param, error.value.code


@pytest.mark.parametrize(("model", "name", "values"), CHOICES)
def test_a_field_with_choices_accepts_only_them(model: str, name: str, values: list[str]) -> None:
    for value in values:
        assert ask(model, **{name: value}) == {name: value}
    assert ask(model, **{name: None}) == {}
    listed = ", ".join(f"'{value}'" for value in values)
    for other in ("", values[0].swapcase() + " ", "7:1", "auto"):
        words = (f"Invalid value: '{other}'. Supported values are: {listed}.", name, "invalid_value")
        assert refused(model, **{name: other}) == words
    for odd in NO_TEXTS:
        assert refused(model, **{name: odd})[1:] == (name, "invalid_type")


@pytest.mark.parametrize("model", NEW_MODELS)
def test_every_size_with_a_ratio_is_accepted_and_auto_is_the_default(model: str) -> None:
    for size in SIZES:
        if model != GEMINI_2:
            assert ask(model, size=size) == {"size": size}
        elif size == "1024x1024":
            assert ask(model, size=size) == {}
        else:
            assert refused(model, size=size)[1:] == ("size", "invalid_value")
    assert ask(model, size="auto") == {}
    for other in ("1x1", "1:1", "1024x576", "2048x2048", "", "1024X1024"):
        assert refused(model, size=other)[1:] == ("size", "invalid_value")


def test_ideogram_has_its_resolutions() -> None:
    resolutions = GENERATING[IDEOGRAM].choice("resolution").values
    assert len(set(resolutions)) == len(resolutions) == 2 * 34 + 1
    assert {"x".join(reversed(each.split("x"))) for each in resolutions} == set(resolutions)
    for resolution in ("1024x1024", "512x1536", "1536x512", "960x1088", "1088x960"):
        assert ask(IDEOGRAM, resolution=resolution) == {"resolution": resolution}
    for other in ("1792x1024", "1024x1792", "256x256", "auto", ""):
        assert refused(IDEOGRAM, resolution=other)[1:] == ("resolution", "invalid_value")


def test_a_seed_is_a_whole_number_within_its_bounds() -> None:
    for seed in (0, 1, 2_147_483_647):
        assert ask(IDEOGRAM, seed=seed) == {"seed": seed}
    for seed, code in ((-1, "below_min"), (2_147_483_648, "above_max"), (10**400, "above_max")):
        assert refused(IDEOGRAM, seed=seed)[1:] == ("seed", f"integer_{code}_value")
    for odd in (1.5, 1.0, "7", True, [7]):
        assert refused(IDEOGRAM, seed=odd)[1:] == ("seed", "invalid_type")


def test_a_negative_prompt_has_at_most_2000_characters() -> None:
    for text in ("", "no dogs", "🦦" * 2_000):
        assert ask(IDEOGRAM, negative_prompt=text) == {"negative_prompt": text}
    assert refused(IDEOGRAM, negative_prompt="🦦" * 2_001)[1:] == ("negative_prompt", "string_above_max_length")
    assert refused(IDEOGRAM, negative_prompt=["x"])[1:] == ("negative_prompt", "invalid_type")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "style_codes",
            [[CODE], [CODE] * 10, ["00000000", "FFFFFFFF"]],
            [
                *([], [CODE] * 11, CODE, {}, 7, True, [7], [None], [[CODE]], [CODE[1:]], [CODE + "0"], ["0123aBcG"]),
                *(
                    [f"{CODE}\n"],
                    [f"{CODE[1:]}\n"],
                    [f" {CODE[1:]}"],
                    ["\uff10\uff11\uff12\uff13aBcF"],
                    [CODE, "x"],
                    ["0x123456"],
                ),
            ],
        ),
        (
            "color_palette",
            [
                *({"name": name} for name in PALETTE_NAMES),
                *({"members": [COLOR] * count} for count in (1, 16)),
                {"members": [{"color_hex": "#000000"}]},
                *({"members": [COLOR | {"color_weight": weight}]} for weight in (0.05, 1, 1.0)),
            ],
            [
                *({}, [], "PASTEL", 7, True, {"name": "pastel"}, {"name": None}, {"name": ["PASTEL"]}, {"name": ""}),
                *({"members": None}, {"members": []}, {"members": {}}, {"members": [COLOR] * 17}, {"members": [7]}),
                *({"name": "PASTEL", "members": [COLOR]}, {"name": "PASTEL", "x": 1}, {"members": [COLOR], "x": 1}),
                *({"members": [{}]}, {"members": [{"color_weight": 0.5}]}, {"members": [COLOR | {"x": 1}]}),
                *(
                    {"members": [COLOR | {"color_weight": weight}]}
                    for weight in (0, 0.049, 1.001, 2, -1, 10**400, True, None, "0.5", [0.5])
                ),
                *(
                    {"members": [{"color_hex": value}]}
                    for value in ("#00ffa", "#00ffa99", "00ffa9", "#00ffag", "#00ffa9\n", "#00ffa\n", "", None, 7)
                ),
            ],
        ),
    ],
)
def test_a_structured_field_accepts_what_its_schema_describes(name: str, good: list[Any], bad: list[Any]) -> None:
    rule = GENERATING[IDEOGRAM].fields[name].rule
    assert isinstance(rule, Structured)
    described = Draft202012Validator(rule.schema)
    for value in good:
        assert described.is_valid(value), value
        assert ask(IDEOGRAM, **{name: value}) == {name: value}
    for value in bad:
        assert not described.is_valid(value), value
        message = f"Invalid '{name}': expected {rule.summary}."
        assert refused(IDEOGRAM, **{name: value}) == (message, name, "invalid_value")


def test_every_field_of_ideogram_is_kept() -> None:
    assert ask(IDEOGRAM, **GOOD, n=10, user="u-1", quality="auto", style="vivid") == GOOD


# Fields that exclude each other


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        *((model, {"size": "1024x1024"}, {"aspect_ratio": "1:1"}) for model in (GEMINI_2_5, GEMINI_3)),
        (IDEOGRAM, {"size": "1024x1024"}, {"aspect_ratio": "1x1"}),
        (IDEOGRAM, {"size": "1024x1024"}, {"resolution": "1024x1024"}),
        (IDEOGRAM, {"aspect_ratio": "1x1"}, {"resolution": "1024x1024"}),
        (IDEOGRAM, {"style_type": "AUTO"}, {"style_codes": [CODE]}),
    ],
)
def test_of_two_fields_that_exclude_each_other_the_second_is_refused(
    model: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    ((one, other),) = zip(first, second, strict=True)
    words = (f"Invalid '{other}': cannot be combined with '{one}'.", other, "invalid_value")
    assert refused(model, **first, **second) == refused(model, **second, **first) == words
    plain = {"prompt": "otter", "model": model}
    assert not DESCRIBED.is_valid(plain | first | second)
    alone: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (first | {other: None}, first),
        ({one: None} | second, second),
    ]
    if one == "size":
        alone.append(({"size": "auto"} | second, second))
    for fields, kept in alone:
        assert ask(model, **fields) == kept
        assert DESCRIBED.is_valid(plain | fields)


@pytest.mark.parametrize("name", OWNERS)
def test_a_field_of_one_model_is_unknown_to_the_others(name: str) -> None:
    owners = {model.id for model in GENERATING.values() if name in model.fields}
    assert owners == OWNERS[name]
    for model in GENERATING.keys() - owners:
        assert refused(model, **{name: "1:1"}) == (f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    for model in NEW_MODELS:
        for other in ("background", "moderation", "output_format", "output_compression", "image"):
            assert refused(model, **{other: "x"}) == (f"Unknown parameter: '{other}'.", other, "unknown_parameter")


def test_a_field_of_another_operation_is_unknown() -> None:
    others = {name: MODELS[name].fields.keys() - model.fields.keys() for name, model in GENERATING.items()}
    assert {"input_fidelity", "image_weight", "image_fidelity"} <= set().union(*others.values())
    for model, fields in others.items():
        for field in fields:
            words = (f"Unknown parameter: '{field}'.", field, "unknown_parameter")
            assert refused(model, **{field: 1}) == words


# Schemas

DIGITS = st.text("0123abcF\nG", min_size=7, max_size=9)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | DIGITS
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0, 0.05, 1, 1.0, 0.049])
COLORS = st.fixed_dictionaries(
    {}, optional={"color_hex": DIGITS.map("#{}".format) | SCALARS, "color_weight": NUMBERS | SCALARS, "x": SCALARS}
) | st.just(COLOR)
PALETTES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["PASTEL", "pastel", "EMBER\n"]) | SCALARS,
        "members": st.lists(COLORS, max_size=18) | COLORS | SCALARS,
        "x": SCALARS,
    },
)
ANY = st.recursive(
    SCALARS | NUMBERS, lambda inner: st.lists(inner, max_size=12) | st.dictionaries(DIGITS, inner, max_size=3)
)


@given(st.lists(st.just(CODE) | DIGITS | SCALARS, max_size=12) | PALETTES | ANY)
@settings(deadline=None, max_examples=400)
def test_a_structured_rule_and_its_schema_agree_about_any_value(value: object) -> None:
    for rule in (CODES, PALETTE):
        assert isinstance(rule, Structured)
        assert rule.fits(value) == Draft202012Validator(rule.schema).is_valid(value)


PLAUSIBLE = {
    "size": st.sampled_from(["auto", "1024x1024", "1792x1024", "1024x576"]),
    "aspect_ratio": st.sampled_from(["1:1", "1x1", "21:9", "10x16"]),
    "resolution": st.sampled_from(["1024x1024", "512x1536", "auto"]),
    "image_size": st.sampled_from(["1K", "1k"]),
    "rendering_speed": st.sampled_from(["FLASH", "flash"]),
    "magic_prompt": st.sampled_from(["ON", True]),
    "negative_prompt": st.sampled_from(["", "x" * 2_000, "x" * 2_001]),
    "seed": st.sampled_from([0, -1, 2_147_483_647, 2_147_483_648, "7"]),
    "style_type": st.sampled_from(["AUTO", "auto"]),
    "style_codes": st.sampled_from([[CODE], [f"{CODE}\n"], []]),
    "color_palette": st.sampled_from([{"name": "PASTEL"}, {"members": [COLOR]}, {}]),
    "output_format": st.just("png"),
}
REQUESTS = st.builds(
    lambda model, fields: {"prompt": "otter", "model": model, **fields},
    st.sampled_from([*NEW_MODELS, "dall-e-3", "flux"]),
    st.lists(st.sampled_from(sorted(PLAUSIBLE)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: st.none() | PLAUSIBLE[name] for name in names})
    ),
)


@given(REQUESTS)
@settings(deadline=None, max_examples=400)
def test_a_request_is_read_if_and_only_if_the_schema_describes_it(request: dict[str, Any]) -> None:
    refusal = ""
    try:
        read_request().fields(request)
    except InvalidRequestError as error:
        refusal = error.message
    assert DESCRIBED.is_valid(request) == (not refusal), refusal


# Equal requests


def test_equal_requests_have_one_fingerprint_whatever_the_order_and_the_defaults() -> None:
    members: list[dict[str, object]] = [COLOR, {"color_hex": "#000000"}]
    body: dict[str, Any] = {"prompt": "otter", "model": IDEOGRAM, **GOOD, "color_palette": {"members": members}}
    turned: dict[str, Any] = dict(reversed(body.items()))
    turned["color_palette"] = {"members": [dict(reversed(member.items())) for member in members]}
    read = read_request().fields
    assert fingerprint(read(turned)) == fingerprint(read(body))
    for more in ({"n": 1}, {"size": "auto"}, {"response_format": "url"}, {"quality": "auto"}, {"style_type": None}):
        assert fingerprint(read(body | more)) == fingerprint(read(body))
    one, other = ({"prompt": "otter", "model": model} for model in (GEMINI_3, f"{GEMINI_3}-preview"))
    assert fingerprint(read(one)) == fingerprint(read(other))


@pytest.mark.parametrize("name", GOOD)
def test_another_value_of_any_field_has_another_fingerprint(name: str) -> None:
    other = {"negative_prompt": "x", "seed": 8, "style_codes": [CODE, CODE], "color_palette": {"name": "EMBER"}}
    other |= {"resolution": "1024x1024", "rendering_speed": "FLASH", "magic_prompt": "ON"}
    body = {"prompt": "otter", "model": IDEOGRAM, **GOOD}
    read = read_request().fields
    prints = {fingerprint(read(each)) for each in (body, body | {name: other[name]}, body | {name: None})}
    assert len(prints) == 3


def test_the_options_of_a_request_are_the_same_after_they_were_stored() -> None:
    options = ask(IDEOGRAM, **GOOD | {"color_palette": {"members": [COLOR] * 16}, "style_codes": [CODE] * 10})
    assert msgspec.json.decode(msgspec.json.encode(options)) == options
