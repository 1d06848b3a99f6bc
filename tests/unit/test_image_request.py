"""The body of `POST /v1/images/generations`: the fields that are read, and the refusals in OpenAI's words."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imagegen.domain.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.images import ImageRequest
from imagegen.domain.models import Choice, Decimal, Text, Whole
from imagegen.wire.errors import CODELESS
from imagegen.wire.requests import MAX_BODY_BYTES, ReadRequest
from tests.support.models import GENERATING, MODELS, catalog, read_request

PROMPT = "A cute baby sea otter"
CAP = 1000

FAMILIES = ("dall-e-2", "dall-e-3", "gpt-image-1", "flux")
SIZES = {
    "dall-e-2": ["256x256", "512x512", "1024x1024"],
    "dall-e-3": ["1024x1024", "1792x1024", "1024x1792"],
    "gpt-image-1": ["1024x1024", "1536x1024", "1024x1536", "auto"],
    "flux": [
        *("1024x1024", "1024x576", "1024x768", "1024x512", "512x1024", "512x768"),
        *("1280x960", "960x1280", "768x1366", "768x512", "1366x768", "1344x576"),
    ],
}
QUALITIES = {
    "dall-e-2": ["standard"],
    "dall-e-3": ["standard", "hd"],
    "gpt-image-1": ["low", "medium", "high", "auto"],
    "gpt-image-2.5-flare": ["low", "medium", "high", "xhigh", "max", "auto"],
    "flux": [],
}
ONLY_GPT_IMAGE = {
    "background": "opaque",
    "moderation": "low",
    "output_format": "png",
    "output_compression": 100,
    "partial_images": 0,
}
STRINGS = ("prompt", "model", "quality", "response_format", "style", "user", "safety_identifier", "size")
KINDS = dict.fromkeys((*STRINGS, "background", "moderation", "output_format"), "a string") | {
    **dict.fromkeys(("n", "output_compression", "partial_images"), "an integer"),
    "stream": "a boolean",
}
VALUES = [
    *((True, "a boolean"), (1, "an integer"), (0, "an integer"), (1.0, "a decimal number"), (0.0, "a decimal number")),
    *(("2", "a string"), ([], "an array"), ([1], "an array"), ({}, "an object"), ({"a": 1}, "an object")),
]

Words = tuple[str, str | None, str | None]  # message, param, code
MISSING: Words = ("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
BLANK: Words = ("Invalid 'prompt': expected a string that is not blank.", "prompt", "empty_string")
LARGE = 10**400  # too many digits for an answer


def read(body: bytes, *, cap: int = CAP) -> ImageRequest:
    return read_request(cap)(body, "application/json")


def ask(cap: int = CAP, /, **fields: Any) -> ImageRequest:
    return read(json.dumps({"prompt": PROMPT, **fields}).encode(), cap=cap)


def chosen(request: ImageRequest) -> dict[str, object]:
    """The options without the response format, which DALL·E always has."""
    return {name: value for name, value in request.options.items() if name != "response_format"}


def words_of(body: bytes, *, cap: int = CAP) -> Words:
    with pytest.raises(InvalidRequestError) as error:
        read(body, cap=cap)
    return error.value.message, error.value.param, error.value.code


def refused(cap: int = CAP, /, **fields: Any) -> Words:
    return words_of(json.dumps({"prompt": PROMPT, **fields}).encode(), cap=cap)


def out_of_bounds(name: str, bound: str, value: object) -> Words:
    side = "below minimum" if bound.startswith(">") else "above maximum"
    message = f"Invalid '{name}': integer {side} value. Expected a value {bound}, but got {value}."
    return message, name, f"integer_{side.removesuffix('imum').replace(' ', '_')}_value"


def too_long(name: str, longest: int, length: int) -> Words:
    words = f"Invalid '{name}': string too long. Expected a string with maximum length {longest}, but got"
    return f"{words} a string with length {length} instead.", name, "string_above_max_length"


def wrong_type(name: str, kind: str, got: str) -> Words:
    return f"Invalid type for '{name}': expected {kind}, but got {got} instead.", name, "invalid_type"


def unsupported(name: str, value: str, *supported: str, more: str = "") -> Words:
    listed = ", ".join(f"'{each}'" for each in supported)
    return f"Invalid value: '{value}'. Supported values are: {listed}{more}.", name, "invalid_value"


def unknown(name: str) -> Words:
    return f"Unknown parameter: '{name}'.", name, "unknown_parameter"


# Fields


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (b'{"prompt": "otter"}', {}),
        (
            b'{ "model": "dall-e-3", "prompt": "otter", "n": 1, "size": "1024x1024" }',
            {"options": {"size": "1024x1024", "response_format": "url"}},
        ),
        (b'{"prompt": "first", "n": 11, "n": 2, "prompt": "otter"}', {"n": 2}),
        (b'\xef\xbb\xbf{"prompt": "otter"}', {}),
    ],
    ids=["a prompt alone", "openai's sample", "the last of two", "a byte order mark"],
)
def test_a_body_is_read(body: bytes, changes: Any) -> None:
    assert read(body) == replace(
        ImageRequest("otter", "dall-e-3", "url", options={"response_format": "url"}), **changes
    )


@pytest.mark.parametrize(
    ("fields", "also"),
    [
        ({"model": "dall-e-3", "n": 3, "quality": "hd", "style": "natural", "size": "1792x1024"}, {}),
        (
            {"model": "gpt-image-1", "n": 10, "quality": "high", "size": "1536x1024", "background": "opaque"}
            | {"moderation": "low", "output_format": "webp", "output_compression": 40},
            {"stream": False, "partial_images": 0},
        ),
    ],
    ids=["dall-e-3", "gpt-image-1"],
)
def test_every_field_of_a_family_is_read(fields: dict[str, Any], also: dict[str, Any]) -> None:
    fields |= {
        "prompt": '  An otter,\n"quoted" \\ and 獺🦦  ',
        "response_format": "b64_json",
        "user": "user-7",
        "safety_identifier": "user-8",
    }
    request = ask(**fields, **also)
    own = {name: value for name, value in fields.items() if MODELS[fields["model"]].fields.get(name)}
    unsent = {name for name in own if not MODELS[fields["model"]].fields[name].sent}
    assert request.options == {name: value for name, value in own.items() if name not in unsent}
    rest = ("prompt", "model", "n", "response_format")
    assert {name: getattr(request, name) for name in rest} == {name: fields[name] for name in rest}


def test_an_explicit_null_is_an_absent_field() -> None:
    assert ask(**dict.fromkeys(KINDS.keys() - {"prompt"})) == ask()
    assert refused(prompt=None) == words_of(b"{}") == MISSING


@pytest.mark.parametrize(("model", "default"), [*zip(FAMILIES, ("url", "url", "b64_json", "url"), strict=True)])
def test_each_family_has_its_default_response_format(model: str, default: str) -> None:
    assert ask(model=model).response_format == default
    for response_format in ("url", "b64_json"):
        assert ask(model=model, response_format=response_format).response_format == response_format


@pytest.mark.parametrize(("field", "kind"), KINDS.items(), ids=KINDS)
def test_a_value_of_another_type_is_refused(field: str, kind: str) -> None:
    for value, got in VALUES:
        if got != kind:
            assert refused(**{"model": "gpt-image-1", field: value}) == wrong_type(field, kind, got)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 0}, out_of_bounds("n", ">= 1", 0)),
        ({"n": -1}, out_of_bounds("n", ">= 1", -1)),
        ({"n": 11}, out_of_bounds("n", "<= 10", 11)),
        ({"n": 2**63}, out_of_bounds("n", "<= 10", 2**63)),
        ({"n": LARGE}, out_of_bounds("n", "<= 10", "a very large number")),
        ({"n": -LARGE}, out_of_bounds("n", ">= 1", "a very large number")),
        ({"user": LARGE}, wrong_type("user", "a string", "an integer")),
        *(({"prompt": blank}, BLANK) for blank in ("", " ", "\n\t  \r\n", "\u00a0\u3000")),
        ({"user": "x" * 513}, too_long("user", 512, 513)),
        ({"model": "flux", "safety_identifier": "x" * 513}, too_long("safety_identifier", 512, 513)),
        ({"response_format": "base64"}, unsupported("response_format", "base64", "url", "b64_json")),
        ({"response_format": ""}, unsupported("response_format", "", "url", "b64_json")),
        ({"response_format": "URL"}, unsupported("response_format", "URL", "url", "b64_json")),
        ({"style": "dramatic"}, unsupported("style", "dramatic", "vivid", "natural")),
        ({"style": ""}, unsupported("style", "", "vivid", "natural")),
        ({"model": "flux", "style": "Vivid"}, unsupported("style", "Vivid", "vivid")),
        ({"model": "flux", "quality": "hd"}, unsupported("quality", "hd", "standard", "auto")),
        ({"model": "dall-e-3", "stream": True}, ("Streaming is not supported here.", "stream", "unsupported_value")),
        *(
            ({"model": "gpt-image-1", name: value}, ("Streaming is not supported here.", name, "unsupported_value"))
            for name, value in (("stream", True), ("partial_images", 1), ("partial_images", 3))
        ),
        *(
            ({"model": "gpt-image-1", "output_format": "jpeg", words[1]: value}, words)
            for value, words in (
                (-1, out_of_bounds("output_compression", ">= 0", -1)),
                (101, out_of_bounds("output_compression", "<= 100", 101)),
                (-1, out_of_bounds("partial_images", ">= 0", -1)),
                (4, out_of_bounds("partial_images", "<= 3", 4)),
            )
        ),
        *(({"model": "dall-e-2", name: 1}, unknown(name)) for name in ("foo", "Prompt", "n ", "image", "", "seed")),
        *(({"model": model, "foo": 1}, unknown("foo")) for model in FAMILIES),
    ],
)
def test_a_field_is_refused_in_openai_s_words(fields: dict[str, Any], words: Words) -> None:
    assert refused(**fields) == words


def test_a_number_with_more_digits_than_python_prints_is_refused() -> None:
    words_of(b'{"prompt": "otter", "n": 1' + b"0" * 10_000 + b"}")


# prompt


@pytest.mark.parametrize(
    ("model", "cap", "longest"),
    [
        *(("dall-e-2", 200, 200), ("dall-e-2", 4000, 1000), ("dall-e-3", 1000, 1000), ("dall-e-3", 32_000, 4000)),
        *(
            ("flux", 4000, 4000),
            ("flux", 32_000, 32_000),
            ("gpt-image-1", 1000, 32_000),
            ("gpt-image-1", 50_000, 32_000),
        ),
    ],
)
def test_a_prompt_over_the_cap_is_refused_with_its_length(model: str, cap: int, longest: int) -> None:
    """The cap is in characters, not in bytes. The longest prompt fits into a body in its longest spelling."""
    for character in "x🦦":  # the second has twelve bytes as JSON escapes
        assert ask(cap, model=model, prompt=character * longest).prompt == character * longest
        words = too_long("prompt", longest, longest + 1)
        assert refused(cap, model=model, prompt=character * (longest + 1)) == words


# model


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("openai/gpt-image-1", "gpt-image-1"),
        ("gpt-image-1-2026-04-01", "gpt-image-1"),
        ("azure/gpt-image-1.5-20260401", "gpt-image-1.5"),
        ("DALL-E-3", "dall-e-3"),
        (" dall-e-3", "dall-e-3"),
        ("dall-e-3\n", "dall-e-3"),
        ("dalle-3", "dall-e-3"),
        ("black-forest-labs/flux-pro", "flux-pro"),
        ("x" * 100_000, None),
        ("stable-diffusion-3", None),
        ("", None),
    ],
    ids=lambda name: name and name[:30],
)
def test_the_refusal_of_an_unknown_model_names_the_closest_and_all_that_generate(
    name: str, closest: str | None
) -> None:
    shown = name if len(name) <= 64 else f"{name[:64]}…"
    hint = f" Did you mean '{closest}'?" if closest else ""
    known = ", ".join(f"'{model}'" for model in GENERATING)
    message = f"The model '{shown}' does not exist.{hint} Supported models are: {known}."
    assert refused(model=name) == (message, "model", "model_not_found")


def test_the_refusal_of_a_model_that_only_changes_images_says_where_it_belongs_and_which_generate() -> None:
    able = ", ".join(f"'{model}'" for model in GENERATING)
    for model, path in (("mj_upscale", "edits"), ("mj_describe", "descriptions")):
        message = f"The model '{model}' is for '/v1/images/{path}'. Models for /v1/images/generations are: {able}."
        assert refused(model=model) == (message, "model", "invalid_value")


def test_an_alias_stands_for_its_model() -> None:
    aliases = {"openai/gpt-image-1": "gpt-image-1", "dall-e-2": "dall-e-3"}
    fields = {"prompt": "otter", "model": "openai/gpt-image-1"}
    read = ReadRequest(catalog(CAP, aliases)).fields
    assert read(fields).model == "gpt-image-1"
    # An alias does not replace the name of a model.
    assert read(fields | {"model": "dall-e-2"}).model == "dall-e-2"


@pytest.mark.parametrize(
    ("size", "model"),
    [("1024x1024", "dall-e-3"), ("256x256", "dall-e-2"), ("1536x1024", "gpt-image-1"), ("1024x576", "flux-pro")],
)
def test_without_a_model_the_size_chooses_the_model(size: str, model: str) -> None:
    assert ask(size=size).model == ask(size=size, model=None).model == model


def test_a_refusal_shortens_a_long_value() -> None:
    assert "x" * 65 not in refused(size="x" * 100_000)[0]
    message, param, _ = refused(**{"x" * 100_000: 1})
    assert message == f"Unknown parameter: '{param}'."
    assert param == "x" * 64 + "…"


# size


@pytest.mark.parametrize("model", SIZES)
def test_a_model_accepts_only_its_own_sizes(model: str) -> None:
    for size in sorted(set().union(*SIZES.values())):
        if size in SIZES[model]:
            assert ask(model=model, size=size).options["size"] == size
        else:
            message, param, code = refused(model=model, size=size)
            listed = ", ".join(f"'{known}'" for known in SIZES[model])
            assert message.startswith(f"Invalid value: '{size}'. Supported values are: {listed}. Models with this size")
            assert (param, code) == ("size", "invalid_value")


def test_the_refusal_of_a_size_lists_the_sizes_of_the_model_and_the_models_of_the_size() -> None:
    others = ", ".join(f"'{name}'" for name, model in GENERATING.items() if "1792x1024" in model.sizes)
    elsewhere = f". Models with this size are: {others}"
    words = unsupported("size", "1792x1024", *SIZES["dall-e-2"], more=elsewhere)
    assert refused(model="dall-e-2", size="1792x1024") == words
    bounds = (
        ", and any WIDTHxHEIGHT in multiples of 16, at most 3840 long and 3:1, of 655360 to 8294400 pixels."
        " GET /v1/models lists the sizes of all models"
    )
    words = unsupported("size", "1000x1000", *SIZES["gpt-image-1"], more=bounds)
    assert refused(model="gpt-image-2", size="1000x1000") == words


def test_gpt_image_2_accepts_any_size_within_its_bounds() -> None:
    plain = ("1536x864", "1040x1024", "2560x1440")
    smallest, largest, widest = "640x1024", ("3840x2160", "2160x3840", "2880x2880"), ("3840x1280", "1280x3840")
    for size in (*SIZES["gpt-image-1"], *plain, smallest, *largest, *widest, "1536x512", "512x1536"):
        assert ask(model="gpt-image-2", size=size).options["size"] == size


@pytest.mark.parametrize(
    ("reason", "sizes"),
    [
        ("not in multiples of 16", ["1000x1000", "1024x1025", "1025x1024", "1032x1024", "1024x1032"]),
        ("too few pixels", ["512x512", "640x1008", "816x800"]),
        ("an edge too long", ["3856x2144", "2144x3856"]),
        ("too many pixels", ["3840x2176", "2176x3840", "2896x2880"]),
        ("more than 3:1", ["1552x512", "512x1552", "3840x1264", "1264x3840"]),
        ("no numbers", ["", "1024", "x", "large", "1024x1024x1024", "1024X1024", "1024x1024 ", " 1024x1024"]),
        ("not plain", ["0x0", "0x1024", "-1024x1024", "01024x1024", "1024.0x1024", "1e3x1024", "1024\u00d71024"]),
        ("not ASCII", ["1\u06602\u0664x1024", "1024x1\uff1024", "1\u09e62\u09eax1\u09e62\u09ea"]),
        ("far too large", ["99999999999999999999x99999999999999999999"]),
    ],
)
def test_a_size_outside_the_bounds_is_refused(reason: str, sizes: list[str]) -> None:
    for size in sizes:
        for model in ("gpt-image-2", "dall-e-3"):
            assert refused(model=model, size=size)[1:] == ("size", "invalid_value"), size


# quality, style


@pytest.mark.parametrize("model", QUALITIES)
def test_a_model_accepts_its_own_qualities_and_those_that_mean_its_default(model: str) -> None:
    supported = [*QUALITIES[model], *(each for each in ("standard", "auto") if each not in QUALITIES[model])]
    for quality in ("low", "medium", "high", "xhigh", "max", "hd"):
        if quality in QUALITIES[model]:
            assert ask(model=model, quality=quality).options["quality"] == quality
        else:
            assert refused(model=model, quality=quality) == unsupported("quality", quality, *supported)
    for quality in ("standard", "auto"):  # clients send these to every model as its default
        is_sent = quality in QUALITIES[model] and model != "dall-e-2"
        assert chosen(ask(model=model, quality=quality)) == ({"quality": quality} if is_sent else {})


@pytest.mark.parametrize("model", FAMILIES)
def test_a_model_without_styles_accepts_vivid_and_does_not_send_it(model: str) -> None:
    if model == "dall-e-3":
        assert [ask(model=model, style=style).options["style"] for style in ("vivid", "natural")] == [
            "vivid",
            "natural",
        ]
    else:
        assert chosen(ask(model=model, style="vivid")) == {}
        assert refused(model=model, style="natural") == unsupported("style", "natural", "vivid")


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_accepts_a_user_no_stream_and_one_to_ten_images(model: str) -> None:
    assert [ask(model=model, n=n).n for n in (1, 2, 10)] == [1, 2, 10]
    sent_to = {"user": ("dall-e-2", "dall-e-3", "gpt-image-1"), "safety_identifier": ("gpt-image-1",)}
    for name, models in sent_to.items():
        given = {name: "x" * 512}
        assert chosen(ask(model=model, stream=False, **given)) == (given if model in models else {})


def test_every_model_refuses_svg_because_it_could_run_scripts_in_a_browser() -> None:
    assert {refused(model=model, output_format="svg")[1] for model in GENERATING} == {"output_format"}


# Fields of GPT image models


@pytest.mark.parametrize("field", ONLY_GPT_IMAGE)
def test_a_field_of_gpt_image_alone_is_unknown_for_other_models(field: str) -> None:
    given = {field: ONLY_GPT_IMAGE[field]}
    assert ask(model="gpt-image-1", **given).model == "gpt-image-1"
    for model in ("dall-e-2", "dall-e-3", "flux"):
        assert refused(model=model, **given) == unknown(field)


@pytest.mark.parametrize(
    ("field", "supported"),
    [
        ("background", ["transparent", "opaque", "auto"]),
        ("moderation", ["low", "auto"]),
        ("output_format", ["png", "jpeg", "webp"]),
    ],
)
def test_gpt_image_accepts_only_supported_values(field: str, supported: list[str]) -> None:
    for value in supported:
        assert chosen(ask(model="gpt-image-1", **{field: value})) == {field: value}
    assert refused(model="gpt-image-1", **{field: "gif"}) == unsupported(field, "gif", *supported)


@pytest.mark.parametrize(
    ("output_format", "transparent", "compressions"),
    [("png", True, [100]), (None, True, [100]), ("webp", True, [0, 1, 99, 100]), ("jpeg", False, [0, 1, 99, 100])],
)
def test_the_output_format_decides_which_background_and_compression_are_accepted(
    output_format: str | None, transparent: bool, compressions: list[int]
) -> None:
    asked = {"model": "gpt-image-1", "output_format": output_format}
    if transparent:
        assert ask(**asked, background="transparent").options["background"] == "transparent"
    else:
        assert refused(**asked, background="transparent")[1:] == ("background", "invalid_value")
    for compression in (0, 1, 99, 100):
        if compression in compressions:
            assert ask(**asked, output_compression=compression).options["output_compression"] == compression
        else:
            words = refused(**asked, output_compression=compression)
            assert words[1:] == ("output_compression", "invalid_value")


# The body


@pytest.mark.parametrize(
    ("body", "got"),
    [
        *((b"[]", "an array"), (b'[{"prompt": "otter"}]', "an array"), (b"1", "an integer"), (b"null", "null")),
        *((b"1.5", "a decimal number"), (b'"otter"', "a string"), (b"true", "a boolean")),
    ],
)
def test_a_body_that_is_not_an_object_is_refused(body: bytes, got: str) -> None:
    assert words_of(body) == (f"Invalid body: expected a JSON object, but got {got} instead.", None, CODELESS)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"   ", b"{", b'{"prompt": "otter"', b'{"prompt": "otter",}', b"{'prompt': 'otter'}"),
        *(b'{"prompt": "otter"} {}', b"prompt=otter", b"\xff", b'{"prompt": "\xff\xfe"}', b'{"prompt": "otter\n"}'),
        b'{"\xff": 1, "prompt": "otter"}',
        *(b'{"prompt": "otter", "n": %s}' % number for number in (b"NaN", b"Infinity", b"1e999")),
        '{"prompt": "otter"}'.encode("utf-16"),
        '{"prompt": "\ud83e"}'.encode("utf-8", "surrogatepass"),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"prompt":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_cannot_be_parsed_is_refused(body: bytes) -> None:
    assert words_of(body) == ("We could not parse the JSON body of your request.", None, CODELESS)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (rb"an \ud83e otter", "an \ufffd otter"),
        (rb"an otter \udda6", "an otter \ufffd"),
        (rb"\udda6\ud83e", "\ufffd\ufffd"),
        (rb"\ud83e\u0041 and more", "\ufffdA and more"),
        (rb"\ud83e\udda6", "🦦"),
        (rb"\ud83e\udda6\ud83e", "🦦\ufffd"),  # a whole pair, then half of one
        (rb"\\\ud83e", "\\\ufffd"),  # a backslash, then half of a pair
        (rb"\\ud83e\ud83e", "\\ud83e\ufffd"),  # a backslash and letters, then half of a pair
        (rb"\ud83e\n\udda6", "\ufffd\n\ufffd"),
        (rb"\ud83e" * 500, "\ufffd" * 500),
    ],
    ids=range(10),
)
def test_half_a_surrogate_pair_is_replaced(text: bytes, prompt: str) -> None:
    request = read(b'{"prompt": "%s", "user": "%s"}' % (text, text))
    assert request.prompt == request.options["user"] == prompt
    message, param, _ = words_of(b'{"%s": "otter", "prompt": "otter"}' % text)
    assert f"{message}{param}".encode()


def test_a_body_at_the_byte_limit_is_read_and_one_byte_more_is_refused() -> None:
    body = json.dumps({"prompt": PROMPT}).encode()
    assert read(body.ljust(MAX_BODY_BYTES)).prompt == PROMPT
    with pytest.raises(RequestTooLargeError, match=str(MAX_BODY_BYTES)):
        read(body.ljust(MAX_BODY_BYTES + 1))


def test_json_is_the_only_accepted_content_type_with_or_without_a_charset() -> None:
    plain, body = "application/json", b'{"prompt": "otter"}'
    parameters = ("; charset=utf-8", ";charset=UTF-8", " ; charset=utf-8")
    for content_type in (plain, "Application/JSON", *(plain + each for each in parameters)):
        assert read_request(CAP)(body, content_type).prompt == "otter"
    others = (None, "", ";", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    lookalikes = ("application/jsonl", "application/json, text/plain", "text/plain; application/json", "json", "*/*")
    for other in (*others, *lookalikes):
        with pytest.raises(UnsupportedMediaTypeError, match="application/json"):
            read_request(CAP)(body, other)


# Any body

TEXT = st.text(st.characters(), max_size=20)  # includes lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.integers(-(10**500), 10**500),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
KNOWN_FIELDS = ["prompt", "model", *catalog(CAP, {}).fields, "stream", "partial_images"]
OF_SEVERAL = ["1024x1024", "1792x1024", "auto", "256x256", "1536x864", "standard", "hd", "high", "xhigh", "vivid"]
OF_FEW = ["natural", "url", "b64_json", "transparent", "opaque", "low", "png", "jpeg", "webp", PROMPT]
PLAUSIBLE = st.sampled_from([*MODELS, *OF_SEVERAL, *OF_FEW]) | st.integers(-1, 101)
FIELDS = st.dictionaries(st.sampled_from(KNOWN_FIELDS), PLAUSIBLE | JSON)
ONE_FIELD_OF_A_GOOD_REQUEST = st.builds(
    lambda model, field, value: {"prompt": PROMPT, "model": model, field: value},
    *(st.sampled_from(sorted(GENERATING)), st.sampled_from(KNOWN_FIELDS), PLAUSIBLE | JSON),
)


@given(JSON.map(json.dumps).map(str.encode) | st.binary() | st.text().map(str.encode))
@settings(deadline=None, max_examples=60)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    check_read_or_refused(body)


@given(FIELDS | ONE_FIELD_OF_A_GOOD_REQUEST)
@settings(deadline=None, max_examples=100)
def test_any_value_of_any_field_is_read_or_refused(fields: dict[str, object]) -> None:
    check_read_or_refused(json.dumps(fields).encode())


def check_read_or_refused(body: bytes) -> None:
    refusal: InvalidRequestError | None = None
    try:
        request = read(body)
    except InvalidRequestError as error:
        refusal = error
    if refusal:
        assert len(refusal.message.encode()) < 2000
        assert len((refusal.param or "").encode()) < 300
        return
    model = GENERATING[request.model]
    assert 1 <= request.n <= 10
    assert 1 <= len(request.prompt) <= model.prompt_limit
    assert request.prompt.encode()
    assert request.response_format in ("url", "b64_json")
    for name, value in request.options.items():
        rule = model.fields[name].rule
        assert model.fields[name].sent
        if isinstance(rule, Choice):
            assert rule.allows(str(value))
        elif isinstance(rule, Whole):
            assert rule.least <= int(value) <= rule.most
        elif isinstance(rule, Decimal):
            assert rule.least <= float(value) <= rule.most
        elif isinstance(rule, Text):
            assert len(str(value)) <= rule.longest
        else:
            assert Draft202012Validator(rule.schema).is_valid(value)


@pytest.mark.parametrize(("field", "value"), [("frame_count", 4), ("frame_duration_ms", 100)])
def test_frames_are_of_a_gif_of_a_newer_model(field: str, value: int) -> None:
    asked = {"model": "gpt-image-2.5-flare", field: value}
    assert ask(**asked, output_format="gif").options[field] == value
    for output_format in ({}, {"output_format": "png"}):
        assert refused(**asked, **output_format)[1:] == (field, "invalid_value")
    assert refused(**asked | {"model": "gpt-image-1.5"})[1:] == (field, "unknown_parameter")
    words = refused(model="gpt-image-2.5-flare", background="transparent", output_format="gif")
    assert words[1:] == ("background", "invalid_value")
