import json
from dataclasses import fields as fields_of
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.catalog import CATALOG
from imagegen.errors import ImagegenError, InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.images import ImageRequest
from imagegen.openai_wire.requests import MAX_BODY_BYTES, read_image_fields, read_image_request

PROMPT = "A cute baby sea otter"
CAP = 1000

GPT_QUALITIES = {"low", "medium", "high", "auto"}
QUALITIES = {
    "dall-e-2": {"standard"},
    "dall-e-3": {"standard", "hd"},
    "gpt-image-1": GPT_QUALITIES,
    "gpt-image-1-mini": GPT_QUALITIES,
    "gpt-image-1.5": GPT_QUALITIES,
    "gpt-image-2": GPT_QUALITIES,
    "gpt-image-2.5-sunburst": GPT_QUALITIES | {"xhigh", "max"},
    "gpt-image-2.5-flare": GPT_QUALITIES | {"xhigh", "max"},
    "gpt-image-2.6-flare": GPT_QUALITIES,
}
GPT_SIZES = {"1024x1024", "1536x1024", "1024x1536", "auto"}
FLUX_SIZES = {
    *("1024x1024", "1024x576", "1024x768", "1024x512", "512x1024", "512x768"),
    *("1280x960", "960x1280", "768x1366", "768x512", "1366x768", "1344x576"),
}
SIZES = {
    "dall-e-2": {"256x256", "512x512", "1024x1024"},
    "dall-e-3": {"1024x1024", "1792x1024", "1024x1792"},
    "gpt-image-1": GPT_SIZES,
    "gpt-image-1.5": GPT_SIZES,
    "gpt-image-2.6-sunburst": GPT_SIZES,
    "flux": FLUX_SIZES,
    "flux-pro-1.1": FLUX_SIZES,
}
FREE_SIZE_MODELS = ["gpt-image-2", "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare-2026-09-08"]
ONLY_GPT_IMAGE = {
    "background": "opaque",
    "moderation": "low",
    "output_format": "png",
    "output_compression": 100,
    "partial_images": 0,
}

WRONG_FOR_A_STRING = [
    (True, "a boolean"),
    (1, "an integer"),
    (1.5, "a decimal number"),
    ([], "an array"),
    ({"a": 1}, "an object"),
]
WRONG_FOR_AN_INTEGER = [
    (True, "a boolean"),
    (1.0, "a decimal number"),
    ("2", "a string"),
    ([1], "an array"),
    ({}, "an object"),
]
WRONG_FOR_A_BOOLEAN = [
    (1, "an integer"),
    (0.0, "a decimal number"),
    ("true", "a string"),
    ([], "an array"),
    ({}, "an object"),
]


def read(body: bytes, *, cap: int = CAP) -> ImageRequest:
    return read_image_request(body, "application/json", prompt_cap=cap)


def ask(cap: int = CAP, /, **fields: Any) -> ImageRequest:
    return read(json.dumps({"prompt": PROMPT, **fields}).encode(), cap=cap)


def refused(cap: int = CAP, /, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as error:
        ask(cap, **fields)
    return error.value


def told(error: ImagegenError) -> tuple[str, str | None, str | None]:
    return error.message, error.param, error.code


# What is read


def test_a_prompt_alone_is_a_request_for_one_dall_e_3_image_by_url() -> None:
    assert ask() == ImageRequest(prompt=PROMPT, model="dall-e-3", response_format="url", n=1)


def test_the_sample_of_the_ordered_api_page_is_read() -> None:
    body = b'{ "model": "dall-e-3", "prompt": "A cute baby sea otter", "n": 1, "size": "1024x1024" }'
    assert read(body) == ImageRequest(prompt=PROMPT, model="dall-e-3", response_format="url", n=1, size="1024x1024")


def test_every_field_of_dall_e_3_is_read() -> None:
    fields = {
        "model": "dall-e-3",
        "prompt": PROMPT,
        "n": 3,
        "quality": "hd",
        "response_format": "b64_json",
        "style": "natural",
        "user": "user-7",
        "size": "1792x1024",
    }
    request = ask(**fields)
    assert {name: getattr(request, name) for name in fields} == fields


def test_every_field_of_gpt_image_is_read() -> None:
    fields = {
        "model": "gpt-image-1",
        "prompt": PROMPT,
        "n": 10,
        "quality": "high",
        "user": "user-7",
        "size": "1536x1024",
        "background": "opaque",
        "moderation": "low",
        "output_format": "webp",
        "output_compression": 40,
    }
    request = ask(**fields, stream=False, partial_images=0)
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize("model", CATALOG)
def test_every_model_of_the_catalog_can_be_asked_for(model: str) -> None:
    assert ask(model=model).model == model


@pytest.mark.parametrize(
    "field",
    [
        *("model", "n", "quality", "response_format", "style", "user", "size"),
        *ONLY_GPT_IMAGE,
    ],
)
def test_an_explicit_null_is_an_absent_field(field: str) -> None:
    assert ask(**{field: None}) == ask()


def test_a_null_prompt_is_a_missing_prompt() -> None:
    assert told(refused(prompt=None)) == (
        "Missing required parameter: 'prompt'.",
        "prompt",
        "missing_required_parameter",
    )


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    assert read(b'{"prompt": "first", "n": 11, "n": 2, "prompt": "last"}') == ImageRequest(
        prompt="last", model="dall-e-3", response_format="url", n=2
    )


@pytest.mark.parametrize(
    ("model", "default"),
    [
        ("dall-e-2", "url"),
        ("dall-e-3", "url"),
        ("flux", "url"),
        ("flux-pro", "url"),
        ("gpt-image-1", "b64_json"),
        ("gpt-image-2", "b64_json"),
        ("gpt-image-2.5-flare", "b64_json"),
        ("chatgpt-image-latest", "b64_json"),
    ],
)
def test_the_response_format_that_nobody_named_is_that_of_the_family(model: str, default: str) -> None:
    assert ask(model=model).response_format == default


# Types


@pytest.mark.parametrize(("value", "got"), WRONG_FOR_A_STRING)
@pytest.mark.parametrize(
    "field",
    [
        *("prompt", "model", "quality", "response_format", "style", "user", "size"),
        *("background", "moderation", "output_format"),
    ],
)
def test_a_field_that_wants_a_string_takes_nothing_else(field: str, value: object, got: str) -> None:
    assert told(refused(**{"model": "gpt-image-1", field: value})) == (
        f"Invalid type for '{field}': expected a string, but got {got} instead.",
        field,
        "invalid_type",
    )


@pytest.mark.parametrize(("value", "got"), WRONG_FOR_AN_INTEGER)
@pytest.mark.parametrize("field", ["n", "output_compression", "partial_images"])
def test_a_field_that_wants_an_integer_takes_nothing_else(field: str, value: object, got: str) -> None:
    assert told(refused(model="gpt-image-1", **{field: value})) == (
        f"Invalid type for '{field}': expected an integer, but got {got} instead.",
        field,
        "invalid_type",
    )


@pytest.mark.parametrize(("value", "got"), WRONG_FOR_A_BOOLEAN)
def test_stream_takes_nothing_but_a_boolean(value: object, got: str) -> None:
    assert told(refused(model="gpt-image-1", stream=value)) == (
        f"Invalid type for 'stream': expected a boolean, but got {got} instead.",
        "stream",
        "invalid_type",
    )


# n


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "flux"])
@pytest.mark.parametrize("n", [1, 2, 10])
def test_one_to_ten_images_may_be_asked_of_every_model(model: str, n: int) -> None:
    assert ask(model=model, n=n).n == n


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "flux"])
def test_less_than_one_image_is_refused(model: str, n: int) -> None:
    assert told(refused(model=model, n=n)) == (
        f"Invalid 'n': integer below minimum value. Expected a value >= 1, but got {n}.",
        "n",
        "integer_below_min_value",
    )


@pytest.mark.parametrize("n", [11, 2**63])
@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "flux"])
def test_more_than_ten_images_are_refused(model: str, n: int) -> None:
    assert told(refused(model=model, n=n)) == (
        f"Invalid 'n': integer above maximum value. Expected a value <= 10, but got {n}.",
        "n",
        "integer_above_max_value",
    )


@pytest.mark.parametrize(("n", "code"), [(10**400, "integer_above_max_value"), (-(10**400), "integer_below_min_value")])
def test_a_number_of_four_hundred_digits_is_refused_without_repeating_it(n: int, code: str) -> None:
    error = refused(n=n)
    assert (error.param, error.code) == ("n", code)
    assert error.message.endswith("but got a very large number.")


def test_a_number_of_four_hundred_digits_is_no_string() -> None:
    assert told(refused(user=10**400)) == (
        "Invalid type for 'user': expected a string, but got an integer instead.",
        "user",
        "invalid_type",
    )


def test_a_number_longer_than_python_prints_is_a_refusal_too() -> None:
    with pytest.raises(InvalidRequestError):
        read(b'{"prompt": "otter", "n": 1' + b"0" * 10_000 + b"}")


# prompt


@pytest.mark.parametrize(
    ("model", "cap", "longest"),
    [
        ("dall-e-2", 1000, 1000),
        ("dall-e-3", 1000, 1000),
        ("flux", 1000, 1000),
        ("flux-pro", 1000, 1000),
        ("dall-e-3", 4000, 4000),
        ("dall-e-2", 4000, 1000),
        ("flux", 4000, 4000),
        ("dall-e-3", 32_000, 4000),
        ("dall-e-2", 500, 500),
        ("gpt-image-1", 1000, 32_000),
        ("gpt-image-2", 4000, 32_000),
        ("chatgpt-image-latest", 32_000, 32_000),
    ],
)
def test_a_prompt_over_the_cap_is_refused_with_its_length(model: str, cap: int, longest: int) -> None:
    assert len(ask(cap, model=model, prompt="x" * longest).prompt) == longest
    error = refused(cap, model=model, prompt="x" * (longest + 1))
    assert (error.param, error.code) == ("prompt", "string_above_max_length")
    assert error.message == (
        f"Invalid 'prompt': string too long. Expected a string with maximum length {longest}, "
        f"but got a string with length {longest + 1} instead."
    )


@pytest.mark.parametrize("character", ["ß", "獺", "🦦"])
def test_a_prompt_is_measured_in_characters_and_not_in_bytes(character: str) -> None:
    assert ask(prompt=character * 1000).prompt == character * 1000
    assert refused(prompt=character * 1001).code == "string_above_max_length"


def test_the_longest_prompt_fits_into_a_body_in_its_longest_spelling() -> None:
    longest = "🦦" * 32_000  # twelve bytes each as JSON escapes
    assert ask(model="gpt-image-1", prompt=longest).prompt == longest


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(b"{}")
    assert told(error.value) == (
        "Missing required parameter: 'prompt'.",
        "prompt",
        "missing_required_parameter",
    )


@pytest.mark.parametrize("prompt", ["", " ", "\n\t  \r\n", "\u00a0\u3000"])
def test_a_blank_prompt_is_refused(prompt: str) -> None:
    assert told(refused(prompt=prompt)) == (
        "Invalid 'prompt': expected a text that is not blank.",
        "prompt",
        "empty_string",
    )


def test_a_prompt_is_passed_on_as_it_was_written() -> None:
    prompt = '  An otter,\n"quoted" \\ and 獺🦦  '
    assert ask(prompt=prompt).prompt == prompt


# model


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("openai/gpt-image-1", "gpt-image-1"),
        ("gpt-image-1-2026-04-01", "gpt-image-1"),
        ("azure/gpt-image-1.5-20260401", "gpt-image-1.5"),
        ("DALL-E-3", "dall-e-3"),
        ("dalle-3", "dall-e-3"),
        ("black-forest-labs/flux-pro", "flux-pro"),
        ("x" * 100_000, None),
        ("gemini-3-pro-image", None),
        ("", None),
    ],
)
def test_a_model_that_is_not_known_is_refused_with_the_closest_that_is(name: str, closest: str | None) -> None:
    error = refused(model=name)
    assert (error.param, error.code) == ("model", "model_not_found")
    assert (f"Did you mean '{closest}'?" in error.message) == (closest is not None)
    assert ("Did you mean" in error.message) == (closest is not None)


def test_an_alias_that_the_operator_lists_is_its_model() -> None:
    aliases = {"openai/gpt-image-1": "gpt-image-1", "dall-e-2": "dall-e-3"}
    fields = {"prompt": "otter", "model": "openai/gpt-image-1"}
    assert read_image_fields(fields, prompt_cap=CAP, aliases=aliases).model == "gpt-image-1"
    # A model's own name is never another's.
    assert read_image_fields(fields | {"model": "dall-e-2"}, prompt_cap=CAP, aliases=aliases).model == "dall-e-2"


@pytest.mark.parametrize(
    ("size", "model"),
    [("1024x1024", "dall-e-3"), ("256x256", "dall-e-2"), ("1536x1024", "gpt-image-1"), ("1024x576", "flux-pro")],
)
def test_without_a_model_the_size_decides(size: str, model: str) -> None:
    assert ask(size=size).model == model
    assert ask(size=size, model=None).model == model


def test_a_size_that_others_have_is_refused_with_their_names() -> None:
    message = refused(model="dall-e-3", size="256x256").message
    assert message.endswith("Models with this size are: 'dall-e-2'.")
    assert "Models with" not in refused(model="dall-e-3", size="1x1").message


@pytest.mark.parametrize("size", ["512x512", "640x1008", "816x800"])
def test_what_is_smaller_than_the_model_makes_is_refused(size: str) -> None:
    error = refused(model="gpt-image-2", size=size)
    assert error.param == "size"
    assert "655360" in error.message
    assert ask(model="gpt-image-2", size="640x1024").size == "640x1024"


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    error = refused(model="dall-e-9")
    assert (error.param, error.code) == ("model", "model_not_found")
    assert error.message.startswith("The model 'dall-e-9' does not exist.")
    assert all(f"'{model}'" in error.message for model in CATALOG)


@pytest.mark.parametrize("model", ["", "DALL-E-3", " dall-e-3", "dall-e-3\n", "gpt-image"])
def test_a_model_is_named_exactly(model: str) -> None:
    assert refused(model=model).code == "model_not_found"


def test_a_long_value_is_not_sent_back_whole() -> None:
    assert "x" * 65 not in refused(model="x" * 100_000).message
    assert "x" * 65 not in refused(size="x" * 100_000).message
    assert "x" * 65 not in refused(**{"x" * 100_000: 1}).message


# size


@pytest.mark.parametrize("size", sorted(set().union(*SIZES.values())))
@pytest.mark.parametrize("model", SIZES)
def test_a_model_makes_its_own_sizes_and_no_others(model: str, size: str) -> None:
    if size in SIZES[model]:
        assert ask(model=model, size=size).size == size
    else:
        error = refused(model=model, size=size)
        assert (error.param, error.code) == ("size", "invalid_value")
        assert error.message.startswith(f"Invalid value: '{size}'. Supported values are: ")
        assert all(f"'{known}'" in error.message for known in SIZES[model])


def test_a_size_is_refused_with_the_sizes_in_openai_s_words() -> None:
    sizes = "'256x256', '512x512', '1024x1024'. Models with this size are: 'dall-e-3'"
    message = f"Invalid value: '1792x1024'. Supported values are: {sizes}."
    assert told(refused(model="dall-e-2", size="1792x1024")) == (message, "size", "invalid_value")


@pytest.mark.parametrize("model", ["dall-e-3", "gpt-image-1", "gpt-image-2", "flux"])
@pytest.mark.parametrize("size", ["", "1024", "1024X1024", "1024x1024 ", " 1024x1024", "x", "1024x1024x1024", "large"])
def test_what_only_looks_like_a_size_is_refused(model: str, size: str) -> None:
    error = refused(model=model, size=size)
    assert (error.param, error.code) == ("size", "invalid_value")


@pytest.mark.parametrize("model", FREE_SIZE_MODELS)
@pytest.mark.parametrize(
    "size",
    [
        *sorted(GPT_SIZES),
        "1536x864",
        "1040x1024",
        "2560x1440",
        *("3840x2160", "2160x3840"),  # the largest
        "2880x2880",  # as many pixels
        *("3840x1280", "1280x3840", "1536x512", "512x1536"),  # 3:1
    ],
)
def test_gpt_image_2_makes_any_size_within_its_bounds(model: str, size: str) -> None:
    assert ask(model=model, size=size).size == size


@pytest.mark.parametrize("model", FREE_SIZE_MODELS)
@pytest.mark.parametrize(
    "size",
    [
        *("1000x1000", "1024x1025", "1025x1024", "1032x1024"),  # not in multiples of 16
        *("3856x2144", "2144x3856"),  # an edge too long
        *("3840x2176", "2176x3840", "2896x2880"),  # too many pixels
        *("1552x512", "512x1552", "3840x1264", "1264x3840"),  # more than 3:1
        *("0x0", "0x1024", "-1024x1024", "01024x1024", "1024.0x1024", "1e3x1024", "1024\u00d71024"),
        "99999999999999999999x99999999999999999999",
    ],
)
def test_gpt_image_2_makes_no_size_out_of_its_bounds(model: str, size: str) -> None:
    error = refused(model=model, size=size)
    assert (error.param, error.code) == ("size", "invalid_value")


@pytest.mark.parametrize("size", ["1\u06602\u0664x1024", "1024x1\uff1024", "1\u09e62\u09eax1\u09e62\u09ea"])
def test_a_size_is_written_in_ascii_digits(size: str) -> None:
    assert refused(model="gpt-image-2", size=size).param == "size"


def test_the_bounds_of_free_sizes_are_told() -> None:
    message = refused(model="gpt-image-2", size="1000x1000").message
    bounds = "and any WIDTHxHEIGHT in multiples of 16, at most 3840 long and 3:1, of 655360 to 8294400 pixels"
    assert message.endswith(f"'auto', {bounds}. GET /v1/models lists all models' sizes.")


# quality, style, response_format, user


@pytest.mark.parametrize("quality", sorted(set().union(*QUALITIES.values()) - {"standard", "auto"}))
@pytest.mark.parametrize("model", QUALITIES)
def test_a_model_has_its_own_qualities_and_no_others(model: str, quality: str) -> None:
    if quality in QUALITIES[model]:
        assert ask(model=model, quality=quality).quality == quality
    else:
        error = refused(model=model, quality=quality)
        assert (error.param, error.code) == ("quality", "invalid_value")
        assert error.message.startswith(f"Invalid value: '{quality}'. Supported values are: ")
        assert all(f"'{known}'" in error.message for known in QUALITIES[model])


@pytest.mark.parametrize("model", ["flux", "flux-dev", "flux-pro", "flux-pro-1.1"])
def test_flux_has_no_quality_but_the_default(model: str) -> None:
    assert told(refused(model=model, quality="hd")) == (
        "Invalid value: 'hd'. Supported values are: 'standard', 'auto'.",
        "quality",
        "invalid_value",
    )
    assert refused(model=model, quality=7).code == "invalid_type"


@pytest.mark.parametrize("quality", ["standard", "auto"])
@pytest.mark.parametrize("model", CATALOG)
def test_a_quality_that_clients_send_for_every_model_names_the_default(model: str, quality: str) -> None:
    known = quality in CATALOG[model].qualities
    assert ask(model=model, quality=quality).quality == (quality if known else None)


@pytest.mark.parametrize("model", CATALOG)
def test_a_style_that_clients_send_for_every_model_names_the_default(model: str) -> None:
    if CATALOG[model].styles:
        assert [ask(model=model, style=style).style for style in ("vivid", "natural")] == ["vivid", "natural"]
    else:
        assert ask(model=model, style="vivid").style is None
        assert refused(model=model, style="natural").param == "style"


@pytest.mark.parametrize("model", CATALOG)
def test_a_stream_is_refused_on_every_model_and_none_is_accepted(model: str) -> None:
    assert ask(model=model, stream=False).model == model
    assert (refused(model=model, stream=True).param, refused(model=model, stream="no").param) == ("stream", "stream")


@pytest.mark.parametrize("model", CATALOG)
def test_an_svg_is_refused_since_it_would_run_scripts_where_it_is_shown(model: str) -> None:
    assert refused(model=model, output_format="svg").param == "output_format"


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
@pytest.mark.parametrize("model", CATALOG)
def test_a_response_format_is_accepted_on_every_model(model: str, response_format: str) -> None:
    assert ask(model=model, response_format=response_format).response_format == response_format


@pytest.mark.parametrize("value", ["dramatic", "", "Vivid"])
@pytest.mark.parametrize(("model", "supported"), [("dall-e-3", "'vivid', 'natural'"), ("flux", "'vivid'")])
def test_an_unsupported_style_is_refused_with_the_supported_ones(model: str, value: str, supported: str) -> None:
    assert told(refused(model=model, style=value)) == (
        f"Invalid value: '{value}'. Supported values are: {supported}.",
        "style",
        "invalid_value",
    )


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "flux"])
@pytest.mark.parametrize(
    ("field", "value", "supported"),
    [
        ("response_format", "base64", "'url', 'b64_json'"),
        ("response_format", "", "'url', 'b64_json'"),
        ("response_format", "URL", "'url', 'b64_json'"),
    ],
)
def test_an_unsupported_value_is_refused_with_the_supported_ones(
    model: str, field: str, value: str, supported: str
) -> None:
    assert told(refused(model=model, **{field: value})) == (
        f"Invalid value: '{value}'. Supported values are: {supported}.",
        field,
        "invalid_value",
    )


@pytest.mark.parametrize("model", CATALOG)
def test_a_user_is_accepted_on_every_model(model: str) -> None:
    assert ask(model=model, user="user-7").user == "user-7"
    assert ask(model=model, safety_identifier="user-7").safety_identifier == "user-7"
    assert refused(model=model, safety_identifier="x" * 513).code == "string_above_max_length"


# What only GPT image models know


@pytest.mark.parametrize("field", ONLY_GPT_IMAGE)
@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "flux"])
def test_what_only_gpt_image_knows_is_unknown_elsewhere(model: str, field: str) -> None:
    assert ask(model="gpt-image-1", **{field: ONLY_GPT_IMAGE[field]}).model == "gpt-image-1"
    assert told(refused(model=model, **{field: ONLY_GPT_IMAGE[field]})) == (
        f"Unknown parameter: '{field}'.",
        field,
        "unknown_parameter",
    )


@pytest.mark.parametrize(
    ("field", "supported"),
    [
        ("background", ["transparent", "opaque", "auto"]),
        ("moderation", ["low", "auto"]),
        ("output_format", ["png", "jpeg", "webp"]),
    ],
)
def test_gpt_image_takes_the_supported_values_and_no_others(field: str, supported: list[str]) -> None:
    for value in supported:
        assert getattr(ask(model="gpt-image-1", **{field: value}), field) == value
    assert told(refused(model="gpt-image-1", **{field: "gif"})) == (
        "Invalid value: 'gif'. Supported values are: " + ", ".join(f"'{value}'" for value in supported) + ".",
        field,
        "invalid_value",
    )


@pytest.mark.parametrize("output_format", ["png", "webp", None])
def test_a_transparent_background_goes_with_a_format_that_has_one(output_format: str | None) -> None:
    request = ask(model="gpt-image-1", background="transparent", output_format=output_format)
    assert (request.background, request.output_format) == ("transparent", output_format)


def test_a_transparent_jpeg_is_refused() -> None:
    error = refused(model="gpt-image-1", background="transparent", output_format="jpeg")
    assert (error.param, error.code) == ("background", "invalid_value")


@pytest.mark.parametrize("compression", [0, 1, 99, 100])
@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_jpeg_and_webp_are_compressed_as_asked(output_format: str, compression: int) -> None:
    request = ask(model="gpt-image-1", output_format=output_format, output_compression=compression)
    assert request.output_compression == compression


@pytest.mark.parametrize("compression", [0, 1, 99])
@pytest.mark.parametrize("output_format", ["png", None])
def test_compression_needs_jpeg_or_webp(output_format: str | None, compression: int) -> None:
    error = refused(model="gpt-image-1", output_format=output_format, output_compression=compression)
    assert (error.param, error.code) == ("output_compression", "invalid_value")


@pytest.mark.parametrize("output_format", ["png", None])
def test_a_compression_that_compresses_nothing_goes_with_every_format(output_format: str | None) -> None:
    assert ask(model="gpt-image-1", output_format=output_format, output_compression=100).output_compression == 100


@pytest.mark.parametrize(
    ("field", "value", "code", "bound"),
    [
        ("output_compression", -1, "integer_below_min_value", ">= 0"),
        ("output_compression", 101, "integer_above_max_value", "<= 100"),
        ("partial_images", -1, "integer_below_min_value", ">= 0"),
        ("partial_images", 4, "integer_above_max_value", "<= 3"),
    ],
)
def test_an_integer_out_of_bounds_is_refused_with_the_bound(field: str, value: int, code: str, bound: str) -> None:
    error = refused(model="gpt-image-1", output_format="jpeg", **{field: value})
    assert (error.param, error.code) == (field, code)
    assert error.message.endswith(f"Expected a value {bound}, but got {value}.")


@pytest.mark.parametrize(("field", "value"), [("stream", True), ("partial_images", 1), ("partial_images", 3)])
def test_streaming_is_refused(field: str, value: object) -> None:
    assert told(refused(model="gpt-image-1", **{field: value})) == (
        "Streaming is not supported here.",
        field,
        "unsupported_value",
    )


# Fields nobody knows


@pytest.mark.parametrize("field", ["foo", "Prompt", "n ", "image", "", "seed"])
@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "flux"])
def test_an_unknown_field_is_refused_by_its_name(model: str, field: str) -> None:
    assert told(refused(model=model, **{field: 1})) == (f"Unknown parameter: '{field}'.", field, "unknown_parameter")


# The body


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b"[]", "an array"),
        (b'[{"prompt": "otter"}]', "an array"),
        (b"1", "an integer"),
        (b"1.5", "a decimal number"),
        (b'"otter"', "a string"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, got: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(body)
    assert told(error.value) == (f"Invalid body: expected a JSON object, but got {got} instead.", None, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"prompt": "otter"',
        b'{"prompt": "otter",}',
        b"{'prompt': 'otter'}",
        b'{"prompt": "otter"} {}',
        b"prompt=otter",
        b"\xff",
        b'{"prompt": "\xff\xfe"}',
        b'{"\xff": 1, "prompt": "otter"}',
        b'{"prompt": "otter", "n": NaN}',
        b'{"prompt": "otter", "n": Infinity}',
        b'{"prompt": "otter", "n": 1e999}',
        b'{"prompt": "otter\n"}',
        '{"prompt": "otter"}'.encode("utf-16"),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"prompt":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_cannot_be_parsed_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(body)
    assert told(error.value) == ("We could not parse the JSON body of your request.", None, None)


@pytest.mark.parametrize(
    "escaped", [rb"\ud800", rb"an \ud83e otter", rb"an otter \udda6", rb"\udda6\ud83e", rb"\ud83e\u0041 and more"]
)
def test_half_a_surrogate_pair_is_replaced(escaped: bytes) -> None:
    request = read(b'{"prompt": "%s", "user": "%s"}' % (escaped, escaped))
    assert request.prompt == request.user
    assert "\ufffd" in request.prompt
    assert request.prompt.encode()
    with pytest.raises(InvalidRequestError) as error:
        read(b'{"%s": "otter"}' % escaped)
    assert error.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (rb"\ud83e\udda6\ud83e", "\U0001f9a6\ufffd"),  # a whole pair stays, and half of one goes
        (rb"\\\ud83e", "\\\ufffd"),  # a backslash, then half of a pair
        (rb"\\ud83e\ud83e", "\\ud83e\ufffd"),  # a backslash and letters, then half of a pair
        (rb"\ud83e\n\udda6", "\ufffd\n\ufffd"),
        (rb"\ud83e" * 500, "\ufffd" * 500),
    ],
)
def test_only_half_a_pair_is_replaced(text: bytes, prompt: str) -> None:
    assert read(b'{"prompt": "%s"}' % text).prompt == prompt


def test_a_byte_order_mark_is_passed_over() -> None:
    assert read(b'\xef\xbb\xbf{"prompt": "otter"}').prompt == "otter"


def test_a_surrogate_encoded_as_bytes_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        read('{"prompt": "\ud83e"}'.encode("utf-8", "surrogatepass"))


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert read(rb'{"prompt": "\ud83e\udda6"}').prompt == "🦦"


def test_a_body_at_the_byte_limit_is_read_and_one_byte_more_is_refused() -> None:
    body = json.dumps({"prompt": PROMPT}).encode()
    assert read(body.ljust(MAX_BODY_BYTES)).prompt == PROMPT
    with pytest.raises(RequestTooLargeError, match=str(MAX_BODY_BYTES)):
        read(body.ljust(MAX_BODY_BYTES + 1))


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json ; charset=utf-8",
        "Application/JSON",
    ],
)
def test_json_is_taken_with_or_without_a_charset(content_type: str) -> None:
    assert read_image_request(b'{"prompt": "otter"}', content_type, prompt_cap=CAP).prompt == "otter"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        ";",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonl",
        "application/json, text/plain",
        "json",
        "*/*",
    ],
)
def test_any_other_content_type_is_refused(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="application/json"):
        read_image_request(b'{"prompt": "otter"}', content_type, prompt_cap=CAP)


# Whatever comes

TEXT = st.text(st.characters(), max_size=20)  # lone surrogates among them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.integers(-(10**500), 10**500),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
KNOWN_FIELDS = [field.name for field in fields_of(ImageRequest)] + ["stream", "partial_images"]
PLAUSIBLE = st.sampled_from(
    sorted(
        {
            *CATALOG,
            *("1024x1024", "1792x1024", "auto", "256x256", "1536x864"),
            *("standard", "hd", "high", "xhigh", "vivid", "natural", "url", "b64_json"),
            *("transparent", "opaque", "low", "png", "jpeg", "webp", PROMPT),
        }
    )
) | st.integers(-1, 101)
ANYTHING_UNDER_KNOWN_FIELDS = st.dictionaries(st.sampled_from(KNOWN_FIELDS), PLAUSIBLE | JSON)
ONE_FIELD_OF_A_GOOD_REQUEST = st.builds(
    lambda model, field, value: {"prompt": PROMPT, "model": model, field: value},
    st.sampled_from(sorted(CATALOG)),
    st.sampled_from(KNOWN_FIELDS),
    PLAUSIBLE | JSON,
)


def check_read_or_refused(body: bytes) -> None:
    refusal: ImagegenError | None = None
    request: ImageRequest | None = None
    try:
        request = read(body)
    except (InvalidRequestError, UnsupportedMediaTypeError, RequestTooLargeError) as error:
        refusal = error
    if refusal is not None:
        assert len(refusal.message.encode()) < 2000
        assert len((refusal.param or "").encode()) < 300
    if request is not None:
        check_allowed(request)


def check_allowed(request: ImageRequest) -> None:
    model = CATALOG[request.model]
    assert 1 <= request.n <= 10
    assert 1 <= len(request.prompt) <= model.longest_prompt(CAP)
    assert request.prompt.encode()
    assert request.size is None or model.allows_size(request.size)
    assert request.response_format in ("url", "b64_json")
    assert request.quality is None or request.quality in model.qualities
    assert request.output_compression is None or 0 <= request.output_compression <= 100


@given(JSON)
@settings(deadline=None)
def test_any_json_value_is_read_or_refused(value: object) -> None:
    check_read_or_refused(json.dumps(value).encode())


@given(st.binary() | st.text().map(str.encode))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    check_read_or_refused(body)


@given(ANYTHING_UNDER_KNOWN_FIELDS | ONE_FIELD_OF_A_GOOD_REQUEST)
@settings(deadline=None, max_examples=300)
def test_any_value_of_any_field_is_read_or_refused(fields: dict[str, object]) -> None:
    check_read_or_refused(json.dumps(fields).encode())
