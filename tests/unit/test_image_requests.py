"""Requests with input images, as forms and as JSON: their images, their fields, the refusals. And uploads."""

import json
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3 import encode_multipart_formdata

from imagegen.domain.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.image_format import PNG as PNG_TYPE
from imagegen.domain.images import AskedImages, ImageRequest
from imagegen.domain.inputs import MEDIA_TYPES, GivenImage, InputRules
from imagegen.domain.models import Catalog
from imagegen.providers.catalog import PASSTHROUGH
from imagegen.wire.image_requests import ReadImageRequest, ReadOperation, readers_of
from imagegen.wire.requests import ReadRequest
from imagegen.wire.uploads import read_upload
from tests.support.images import REAL_PNG
from tests.support.models import MODELS, catalog

PNG = REAL_PNG
IMG, UPL = "img_" + "A" * 22, "upl_" + "b_-4" * 5 + "xy"
URL = "https://www.example.com/a.png?x=1&y=%20"
DATA_URL = "data:image/png;base64," + b64encode(PNG).decode()
PROMPT = "Put a hat on it"
GPT, IDEOGRAM, KLING, OWN = "gpt-image-1.5", "ideogram-v3", "kling-v1-5", "own-model"
STYLE, CHARACTER = "style_reference_images", "character_reference_images"
CODES = ["0123abcd", "89abcdef"]
NO_IMAGE = "expected a file, an id such as upl_…, file-… or img_…, a data: URL in base64, or an https URL."
NO_OBJECT = "expected an object with one of image_url and file_id."

File = tuple[str, bytes]
Value = str | bytes | File
Part = tuple[str, Value]
FILE: File = ("a.png", PNG)


def models() -> Catalog:
    """Those of the stack, an alias, and a model that only its upstream knows."""
    known = catalog(1000, {"hat-maker": GPT})
    return replace(known, models={**known.models, OWN: replace(PASSTHROUGH, id=OWN, routes=())})


CATALOG = models()
READERS = readers_of(CATALOG)
OPERATIONS = ReadOperation(ReadRequest(CATALOG), readers_of(CATALOG, from_s3=True))


def form(*parts: Part, operation: str = "edit", read: ReadImageRequest | None = None) -> AskedImages:
    """A text is `str`. `bytes` are a file as OpenAI's client for Python sends it."""
    fields: Any = [(name, ("upload", value) if isinstance(value, bytes) else value) for name, value in parts]
    return (read or READERS[operation])(*encode_multipart_formdata(fields, boundary="b"))


def as_json(operation: str = "edit", /, **fields: Any) -> AskedImages:
    return READERS[operation](json.dumps(fields).encode(), "application/json")


def edit(*parts: Part) -> AskedImages:
    """A form with an image and a prompt, unless `parts` have them."""
    names = {name.removesuffix("[]") for name, _ in parts}
    own: list[Part] = [("prompt", PROMPT), ("image", FILE)]
    return form(*(part for part in own if part[0] not in names), *parts)


def images(asked: AskedImages) -> list[tuple[str, str, object]]:
    """The role, the place and the content or name of each image."""
    return [(each.role, each.name, each.content or each.id or each.url or each.s3_uri) for each in asked.images]


def refusal(act: Callable[[], object]) -> tuple[str, str | None, str]:
    with pytest.raises(InvalidRequestError) as caught:
        act()
    return caught.value.message, caught.value.param, caught.value.code


# The images of a form.


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("image", FILE)], [("image", "image", PNG)]),
        ([("image[]", FILE)], [("image", "image", PNG)]),
        ([("image[]", b"1"), ("image[]", b"2")], [("image", "image[0]", b"1"), ("image", "image[1]", b"2")]),
        ([("image", b"1"), ("image", b"2")], [("image", "image[0]", b"1"), ("image", "image[1]", b"2")]),
        ([("image", b"1"), ("image[]", b"2")], [("image", "image[0]", b"1"), ("image", "image[1]", b"2")]),
        ([("mask", b"m"), ("image", b"i")], [("image", "image", b"i"), ("mask", "mask", b"m")]),
        ([("mask[]", b"m"), ("image", b"i")], [("image", "image", b"i"), ("mask", "mask", b"m")]),
        ([("image", UPL)], [("image", "image", UPL)]),
        ([("image[]", IMG), ("image[]", UPL)], [("image", "image[0]", IMG), ("image", "image[1]", UPL)]),
        ([("image", f"  {UPL}\r\n")], [("image", "image", UPL)]),
        ([("image", UPL.encode())], [("image", "image", UPL)]),
        ([("image", b" " + IMG.encode() + b"\n")], [("image", "image", IMG)]),
        ([("image[]", ("upload", UPL.encode())), ("mask", IMG)], [("image", "image", UPL), ("mask", "mask", IMG)]),
        ([("image", UPL.encode() + b" " * 100)], [("image", "image", UPL.encode() + b" " * 100)]),
        ([("image", URL)], [("image", "image", URL)]),
        ([("image", "http://127.0.0.1:8000/a.png")], [("image", "image", "http://127.0.0.1:8000/a.png")]),
        ([("image", DATA_URL)], [("image", "image", PNG)]),
        ([("image", f"DATA:{DATA_URL[5:]}")], [("image", "image", PNG)]),
        ([("image", f"data:image/png;name=a;charset=utf-8{DATA_URL[14:]}")], [("image", "image", PNG)]),
        ([("image", URL.encode())], [("image", "image", URL.encode())]),  # a file is only ever an id or a content
        ([("image", ("a.png", b""))], [("image", "image", None)]),  # it is refused as no image
        ([("image", ("", PNG))], [("image", "image", PNG)]),
        ([("image", FILE), ("image", ""), ("mask", ""), ("mask", ("", b""))], [("image", "image", PNG)]),
        ([], []),
    ],
)
def test_a_form_names_its_images(parts: Sequence[Part], expected: object) -> None:
    before, after = [("prompt", PROMPT), *parts], [*parts, ("prompt", PROMPT)]
    for asked in (form(*before), form(*after)):
        assert images(asked) == expected
        assert asked.request == ImageRequest(PROMPT, GPT, "b64_json", operation="edit")


def test_references_are_images_of_a_role_of_their_own() -> None:
    parts: list[Part] = [(f"{STYLE}[]", b"s1"), (CHARACTER, b"c"), ("image", b"i"), (f"{STYLE}[]", b"s2")]
    asked = form(("model", IDEOGRAM), ("prompt", PROMPT), *parts)
    assert images(asked) == [
        ("image", "image", b"i"),
        (CHARACTER, CHARACTER, b"c"),
        (STYLE, f"{STYLE}[0]", b"s1"),
        (STYLE, f"{STYLE}[1]", b"s2"),
    ]
    assert asked.request.options == {}


def test_the_images_have_one_order_in_every_process_and_in_every_form() -> None:
    """It is part of the fingerprint: a retry that reaches another process must have the same."""
    references = {f"reference_{letter}": 1 for letter in "hgfedcba"}
    model = replace(PASSTHROUGH, id=OWN, inputs={"edit": InputRules(mask=True, references=references)})
    read = ReadImageRequest(ReadRequest(Catalog({OWN: model}, OWN, {}), "edit"))
    roles = ["image", "mask", *sorted(references)]
    backwards: list[Part] = [(role, IMG) for role in reversed(roles)]
    body = json.dumps({"prompt": PROMPT, **dict(backwards)}).encode()
    for asked in (form(("prompt", PROMPT), *backwards, read=read), read(body, "application/json")):
        assert [image.role for image in asked.images] == roles


@pytest.mark.parametrize(
    "name", [f"file-{'a' * 21}", "file_abc", f"inp_{'A' * 22}", f"gen_{'A' * 22}", UPL[:-1], f"{UPL}x"]
)
def test_an_id_that_names_no_upload_and_no_image_is_refused_by_its_place(name: str) -> None:
    """Input images of another request cannot be named."""
    expected = [
        (lambda: edit(("image", name)), "image"),
        (lambda: edit(("image[]", IMG), ("image[]", name)), "image[1]"),
        (lambda: edit(("mask", name)), "mask"),
        (lambda: as_json(prompt=PROMPT, images=[{"file_id": name}]), "images[0]"),
        (lambda: as_json(prompt=PROMPT, images=[{"image_url": IMG}, {"image_url": name}]), "images[1]"),
        (lambda: as_json(prompt=PROMPT, image=name), "image"),
        (lambda: as_json(prompt=PROMPT, image=IMG, mask={"file_id": name}), "mask"),
    ]
    for act, param in expected:
        assert refusal(act) == (f"Invalid '{param}': {NO_IMAGE}", param, "invalid_value")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "otter.png",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://a.example/a.png",
            "s3://bucket/key",
            "//a.example/a",
        ),
        *("https://", "https://a.example/a b.png", "https://a.example/ä.png", "https://a.example/\n/", "https://a\0"),
        *("data:image/png,abc", "data:image/png;base64", "data:", "0", "null"),
        pytest.param(f"https://a.example/{'a' * 8000}", id="too long"),
    ],
)
def test_a_text_that_names_no_image_is_refused(text: str) -> None:
    assert refusal(lambda: edit(("image", text))) == (f"Invalid 'image': {NO_IMAGE}", "image", "invalid_value")


@pytest.mark.parametrize("base64", ["a", "ab==c", "ab cd", "ab\ncd", "____", "ä", "=" * 8])
def test_broken_base64_in_a_data_url_is_refused(base64: str) -> None:
    message = "Invalid 'image': expected a data: URL whose base64 is valid."
    assert refusal(lambda: edit(("image", f"data:image/png;base64,{base64}"))) == (message, "image", "invalid_value")


@pytest.mark.parametrize(
    "text",
    ["data:" + ";x" * 500_000, "data:" + ";base64" * 200_000, "data:" + "," * 10**6],
    ids=["parameters", "base64", "commas"],
)
def test_a_hostile_data_url_takes_neither_time_nor_memory(text: str) -> None:
    body, content_type = encode_multipart_formdata([("prompt", PROMPT), ("image", text)])
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(InvalidRequestError):
        READERS["edit"](body, content_type)
    seconds, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (seconds < 2, peak < 10 * len(text)) == (True, True)


# The fields of a form.


@pytest.mark.parametrize(
    ("model", "parts", "options"),
    [
        (GPT, [("n", "2"), ("stream", "false"), ("partial_images", "0")], {}),
        (GPT, [("size", "1024x1024"), ("quality", "high")], {"size": "1024x1024", "quality": "high"}),
        (
            GPT,
            [("output_format", "webp"), ("output_compression", "007")],
            {"output_format": "webp", "output_compression": 7},
        ),
        (GPT, [("input_fidelity", "low"), ("background", "opaque")], {"input_fidelity": "low", "background": "opaque"}),
        (GPT, [("user", "12"), ("safety_identifier", "false")], {"user": "12", "safety_identifier": "false"}),
        (GPT, [("quality", ""), ("size", ""), ("n", ""), ("user", ""), ("style", ""), ("stream", "")], {}),
        (GPT, [("response_format", "url"), ("style", "vivid"), ("quality", "standard")], {}),
        ("gpt-image-2", [("output_format", "gif"), ("frame_count", "3")], {"output_format": "gif", "frame_count": 3}),
        (KLING, [("image_fidelity", "0.25"), ("human_fidelity", "1")], {"image_fidelity": 0.25, "human_fidelity": 1.0}),
        (
            KLING,
            [("image_fidelity", "0"), ("image_reference", "face")],
            {"image_fidelity": 0.0, "image_reference": "face"},
        ),
        (IDEOGRAM, [("seed", "0"), ("image_weight", "100")], {"seed": 0, "image_weight": 100}),
        (IDEOGRAM, [("style_codes", CODES[0])], {"style_codes": CODES[:1]}),
        (IDEOGRAM, [("style_codes", "12345678")], {"style_codes": ["12345678"]}),
        (IDEOGRAM, [("style_codes[]", CODES[0])], {"style_codes": CODES[:1]}),
        (IDEOGRAM, [("style_codes[]", each) for each in CODES], {"style_codes": CODES}),
        (IDEOGRAM, [("style_codes", each) for each in CODES], {"style_codes": CODES}),
        (IDEOGRAM, [("style_codes", json.dumps(CODES))], {"style_codes": CODES}),
        (IDEOGRAM, [("style_codes", "")], {}),
        (IDEOGRAM, [("color_palette", '{"name": "EMBER"}')], {"color_palette": {"name": "EMBER"}}),
        (IDEOGRAM, [("color_palette", "null")], {}),
        ("mj_upscale", [("index", "3")], {"index": 3}),
        ("dall-e-2", [("size", "256x256"), ("user", "u")], {"size": "256x256", "user": "u", "response_format": "url"}),
        (OWN, [("steps", "30"), ("lora[name]", "x"), ("n", "2")], {"steps": "30", "lora[name]": "x"}),
        (OWN, [("markup", "a"), ("size", "9x9"), ("empty", ""), ("stream", "false")], {"markup": "a", "size": "9x9"}),
    ],
)
def test_numbers_and_booleans_of_a_form_are_text(model: str, parts: Sequence[Part], options: Mapping[str, Any]) -> None:
    asked = edit(("model", model), *parts)
    assert asked.request.options == options
    n, response_format = dict(parts).get("n"), dict(parts).get("response_format")
    assert asked.request.n == int(str(n or 1))
    assert asked.request.response_format == (response_format or MODELS.get(model, PASSTHROUGH).default_response_format)


PALETTE = 'expected {"name": …} with one of EMBER'


@pytest.mark.parametrize(
    ("model", "parts", "param", "code", "words"),
    [
        (GPT, [("n", "1"), ("n", "2")], "n", "invalid_value", "expected one value, but it is there more than once."),
        (GPT, [("prompt", "a"), ("prompt", "a")], "prompt", "invalid_value", "more than once"),
        (GPT, [("user", ""), ("user", "")], "user", "invalid_value", "more than once"),
        (OWN, [("steps", "1"), ("steps", "2")], "steps", "invalid_value", "more than once"),
        (OWN, [("tags[]", "1"), ("tags[]", "2")], "tags[]", "invalid_value", "more than once"),
        (IDEOGRAM, [("color_palette", "{}"), ("color_palette", "{}")], "color_palette", "invalid_value", "more than"),
        (IDEOGRAM, [("style_codes", CODES[0]), ("style_codes[]", CODES[1])], "style_codes", "invalid_value", "both"),
        (IDEOGRAM, [("style_codes[]", CODES[0]), ("style_codes", CODES[1])], "style_codes", "invalid_value", "both"),
        (IDEOGRAM, [("style_codes[]", ""), ("style_codes[]", CODES[0])], "style_codes", "invalid_value", "a list of 1"),
        (IDEOGRAM, [("style_codes", "[1]")], "style_codes", "invalid_value", "a list of 1"),
        (IDEOGRAM, [("style_codes", '{"a": 1}')], "style_codes", "invalid_value", "a list of 1"),
        (IDEOGRAM, [("color_palette", "EMBER")], "color_palette", "invalid_value", PALETTE),
        (IDEOGRAM, [("color_palette", "{")], "color_palette", "invalid_value", PALETTE),
        (IDEOGRAM, [("color_palette", "[" * 100_000)], "color_palette", "invalid_value", PALETTE),
        (IDEOGRAM, [("color_palette[name]", "EMBER")], "color_palette", "invalid_value", "its JSON as one text"),
        (IDEOGRAM, [("color_palette[members][][color_hex]", "#fff")], "color_palette", "invalid_value", "as one text"),
        (IDEOGRAM, [("color_palette[]", "{}")], "color_palette[]", "unknown_parameter", "Unknown parameter"),
        (GPT, [("svg[model]", "x")], "svg[model]", "unknown_parameter", "Unknown parameter: 'svg[model]'."),
        (GPT, [("svg[reasoning][effort]", "low")], "svg[reasoning][effort]", "unknown_parameter", "Unknown parameter"),
        (GPT, [("n[]", "2")], "n[]", "unknown_parameter", "Unknown parameter: 'n[]'."),
        (GPT, [("model[]", GPT)], "model[]", "unknown_parameter", "Unknown parameter"),
        (GPT, [("[]", "a")], "[]", "unknown_parameter", "Unknown parameter"),
        (GPT, [("markup", "a")], "markup", "unknown_parameter", "Unknown parameter: 'markup'."),
        (GPT, [("moderation", "low")], "moderation", "unknown_parameter", "Unknown parameter"),  # not of edits
        (GPT, [("images", IMG)], "images", "invalid_value", "as 'image' or 'image[]'"),  # of the JSON
        ("gpt-image-2", [("input_fidelity", "high")], "input_fidelity", "unknown_parameter", "Unknown parameter"),
        (GPT, [("image_weight", "1")], "image_weight", "unknown_parameter", "Unknown parameter"),
        (GPT, [("n", "0")], "n", "integer_below_min_value", "Expected a value >= 1, but got 0."),
        (GPT, [("n", "11")], "n", "integer_above_max_value", "Expected a value <= 10, but got 11."),
        (GPT, [("n", "9" * 18)], "n", "integer_above_max_value", "Expected a value <= 10"),
        *(
            (GPT, [("n", text)], "n", "invalid_type", "expected an integer")
            for text in ("two", "+1", "1e0", "0x1", "1_0", " 1", "1.0", "\uff12", "\u0663", "true", "-", "9" * 5000)
        ),
        (KLING, [("image_fidelity", "1.5")], "image_fidelity", "invalid_value", "a number from 0 to 1, but got 1.5."),
        (KLING, [("image_fidelity", "0,5")], "image_fidelity", "invalid_type", "expected a number"),
        (KLING, [("image_fidelity", "nan")], "image_fidelity", "invalid_type", "expected a number"),
        (GPT, [("stream", "true")], "stream", "unsupported_value", "Streaming is not supported here."),
        (GPT, [("stream", "True")], "stream", "invalid_type", "expected a boolean"),
        (GPT, [("partial_images", "2")], "partial_images", "unsupported_value", "Streaming"),
        (GPT, [("partial_images", "4")], "partial_images", "integer_above_max_value", "<= 3"),
        (GPT, [("partial_images", "x")], "partial_images", "invalid_type", "expected an integer"),
        (GPT, [("prompt", "")], "prompt", "empty_string", "expected a string that is not blank"),
        (GPT, [("prompt", " \n")], "prompt", "empty_string", "not blank"),
        ("dall-e-2", [("prompt", "x" * 1001)], "prompt", "string_above_max_length", "maximum length 1000"),
        (GPT, [("quality", "best")], "quality", "invalid_value", "Supported values are: 'low'"),
        (GPT, [("size", "1x1")], "size", "invalid_value", "Supported values are"),
        (IDEOGRAM, [("size", "512x512"), ("mask", FILE)], "size", "invalid_value", "it cannot be combined with 'mask'"),
        (IDEOGRAM, [("style_type", "AUTO"), (STYLE, FILE)], "style_type", "invalid_value", f"combined with '{STYLE}'"),
        ("mj_upscale", [], "index", "missing_required_parameter", "Missing required parameter: 'index'."),
        (GPT, [("markup", FILE)], "markup", "unknown_parameter", "Unknown parameter: 'markup'."),
        (GPT, [("file", FILE)], "file", "unknown_parameter", "Unknown parameter: 'file'."),
        (GPT, [("", FILE)], None, "invalid_request", "a part has no name"),
        (GPT, [("prompt", FILE)], "prompt", "invalid_value", "expected text, but got a file."),
        (GPT, [("n", FILE)], "n", "invalid_value", "expected text, but got a file."),
        (OWN, [("steps", FILE)], "steps", "unknown_parameter", "Unknown parameter: 'steps'."),
        (GPT, [("x" * 100, "a")], "x" * 64 + "…", "unknown_parameter", "Unknown parameter"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_form_is_refused_by_its_name(
    model: str, parts: Sequence[Part], param: str, code: str, words: str
) -> None:
    message, *rest = refusal(lambda: edit(("model", model), *parts))
    assert rest == [param, code]
    assert words in message
    assert len(message) < 500


def test_text_that_is_not_utf8_is_refused_by_its_place() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    for parts, param in (
        ([(b"prompt", b"\xff")], "prompt"),
        ([(b"prompt", b"a"), (b"image[]", UPL.encode()), (b"image[]", b"\x89PNG")], "image[1]"),
    ):
        body = b"".join(head % part for part in parts) + b"--b--\r\n"
        message = f"Invalid '{param}': expected text in UTF-8."
        words = refusal(lambda body=body: READERS["edit"](body, "multipart/form-data; boundary=b"))  # type: ignore[misc]
        assert words == (message, param, "invalid_value")


# Models and operations.


@pytest.mark.parametrize(
    ("model", "path"), [("dall-e-3", "generations"), ("flux", "generations"), ("mj_describe", "descriptions")]
)
def test_a_model_that_cannot_edit_is_refused_with_those_that_can(model: str, path: str) -> None:
    for act in (lambda: edit(("model", model)), lambda: as_json(prompt=PROMPT, model=model, image=IMG)):
        message, *rest = refusal(act)
        assert rest == ["model", "invalid_value"]
        start, _, able = message.partition(" Models for /v1/images/edits are: ")
        assert start == f"The model '{model}' is for '/v1/images/{path}'."
        expected = [name for name, each in CATALOG.models.items() if "edit" in each.operations]
        assert able == ", ".join(f"'{name}'" for name in expected) + "."
        assert {"gpt-image-1.5", "dall-e-2", IDEOGRAM, "mj_blend"} <= set(expected)


@pytest.mark.parametrize(
    ("operation", "fields", "model"),
    [
        ("edit", {}, GPT),
        ("edit", {"model": ""}, GPT),
        ("edit", {"size": "512x512"}, "dall-e-2"),
        ("edit", {"model": "hat-maker"}, GPT),
        ("edit", {"model": "gemini-2.5-flash-image-preview"}, "gemini-2.5-flash-image"),
        ("variation", {}, "dall-e-2"),
        ("variation", {"model": "dall-e-2", "prompt": "has no effect"}, "dall-e-2"),
        ("describe", {}, "mj_describe"),
    ],
)
def test_a_request_names_its_model_or_gets_that_of_its_operation(
    operation: str, fields: dict[str, str], model: str
) -> None:
    prompt = {"prompt": PROMPT} if operation == "edit" else {}
    in_form = form(*({**prompt, **fields}).items(), ("image", IMG), operation=operation)
    given = {name: value or None for name, value in fields.items()}
    for asked in (in_form, as_json(operation, **{**prompt, **given}, image=IMG)):
        assert (asked.request.model, asked.request.operation) == (model, operation)
        assert asked.request.prompt == prompt.get("prompt", "")
        assert images(asked) == [("image", "image", IMG)]


@pytest.mark.parametrize(
    ("operation", "fields", "param", "code"),
    [
        ("edit", {"model": "gpt-image-1,5"}, "model", "model_not_found"),
        ("edit", {"model": 7}, "model", "invalid_type"),
        ("edit", {"prompt": None}, "prompt", "missing_required_parameter"),
        ("edit", {"operation": "edit"}, "operation", "unknown_parameter"),
        ("edit", {"moderation": "low"}, "moderation", "unknown_parameter"),
        ("edit", {"mask": IMG, "markup": {"file_id": IMG}}, "markup", "unknown_parameter"),
        ("variation", {"model": GPT}, "model", "invalid_value"),
        ("variation", {"quality": "hd"}, "quality", "invalid_value"),
        ("variation", {"input_fidelity": "high"}, "input_fidelity", "unknown_parameter"),
        ("describe", {"model": "mj_imagine"}, "model", "invalid_value"),
        ("describe", {"n": 2}, "n", "integer_above_max_value"),
        ("describe", {"size": "1024x1024"}, "size", "unknown_parameter"),
        ("describe", {"index": 1}, "index", "unknown_parameter"),
    ],
)
def test_an_operation_has_its_own_models_and_fields(
    operation: str, fields: dict[str, Any], param: str, code: str
) -> None:
    words = refusal(lambda: as_json(operation, **{"prompt": PROMPT, "image": IMG, **fields}))
    assert words[1:] == (param, code)


def test_without_a_model_for_an_operation_its_requests_are_refused() -> None:
    readers = readers_of(Catalog({"dall-e-3": MODELS["dall-e-3"]}, "dall-e-3", {}))
    for operation, read in readers.items():
        words = refusal(lambda read=read: read(b"{}", "application/json"))  # type: ignore[misc]
        assert words == ("No model of this service can do this.", "model", "model_not_found"), operation


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/png", "application/x-www-form-urlencoded"])
def test_a_body_that_is_neither_a_form_nor_json_is_not_supported(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaTypeError) as caught:
        READERS["edit"](PNG, content_type)
    assert "multipart/form-data or application/json" in caught.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 1000, b'{"prompt": "a"} x'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    message, param, _ = refusal(lambda: READERS["edit"](body, "Application/JSON; charset=utf-8"))
    assert (param, "JSON" in message) == (None, True)


# The images of JSON.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"images": [{"image_url": URL}, {"file_id": UPL}]},
            [("image", "images[0]", URL), ("image", "images[1]", UPL)],
        ),
        ({"images": [{"image_url": DATA_URL}]}, [("image", "images[0]", PNG)]),
        ({"images": [{"image_url": IMG}]}, [("image", "images[0]", IMG)]),
        ({"images": [{"file_id": IMG, "image_url": None}]}, [("image", "images[0]", IMG)]),
        ({"images": [IMG, {"file_id": UPL}]}, [("image", "images[0]", IMG), ("image", "images[1]", UPL)]),
        ({"images": {"file_id": IMG}}, [("image", "images", IMG)]),
        ({"images": IMG}, [("image", "images", IMG)]),
        ({"image": f" {URL} "}, [("image", "image", URL)]),
        ({"image": [IMG, UPL]}, [("image", "image[0]", IMG), ("image", "image[1]", UPL)]),
        ({"image": UPL, "images": [IMG]}, [("image", "images[0]", IMG), ("image", "image", UPL)]),
        ({"mask": {"file_id": UPL}, "images": [IMG]}, [("image", "images[0]", IMG), ("mask", "mask", UPL)]),
        ({"mask": None, "image": None, "images": []}, []),
        ({}, []),
    ],
)
def test_json_names_its_images(fields: dict[str, Any], expected: object) -> None:
    asked = as_json(prompt=PROMPT, **fields)
    assert images(asked) == expected
    assert asked.request == ImageRequest(PROMPT, GPT, "b64_json", operation="edit")


def test_json_has_references_too() -> None:
    asked = as_json(model=IDEOGRAM, prompt=PROMPT, image=IMG, **{STYLE: [IMG, {"file_id": UPL}], CHARACTER: URL})
    assert images(asked)[1:] == [(CHARACTER, CHARACTER, URL), (STYLE, f"{STYLE}[0]", IMG), (STYLE, f"{STYLE}[1]", UPL)]


@pytest.mark.parametrize(
    ("value", "place", "expected"),
    [
        *((value, "", NO_OBJECT) for value in (0, 7, 1.5, True, False, {}, {"url": URL}, {"image_url": None})),
        *(([value], "[0]", NO_OBJECT) for value in (7, None, True, {}, [], [IMG], {"b64_json": "AAAA"})),
        ([{"image_url": URL, "file_id": IMG}], "[0]", NO_OBJECT),
        ([{"image_url": URL, "detail": "high"}], "[0]", NO_OBJECT),
        ([IMG, {"image_url": {"url": URL}}], "[1]", NO_OBJECT),
        ([{"file_id": 7}], "[0]", NO_OBJECT),
        ([{"file_id": [IMG]}], "[0]", NO_OBJECT),
        ([IMG, ""], "[1]", NO_IMAGE),
        ("", "", NO_IMAGE),
        ({"image_url": "data:image/png;base64,ä"}, "", "expected a data: URL whose base64 is valid."),
        ([{"s3_uri": "s3://b/k"}], "[0]", "expected image_url or file_id; only events can name objects of S3."),
        ([IMG] * 65, "", "expected at most 64 images."),
    ],
)
@pytest.mark.parametrize("name", ["images", "image", "mask", STYLE])
def test_a_wrong_image_in_json_is_refused_by_its_place(name: str, value: object, place: str, expected: str) -> None:
    message = f"Invalid '{name}{place}': {expected}"
    assert refusal(lambda: as_json(prompt=PROMPT, **{name: value})) == (message, f"{name}{place}", "invalid_value")


def test_the_fields_of_json_have_their_types() -> None:
    fields = {"style_codes": CODES, "color_palette": {"name": "EMBER"}, "seed": 7, "n": 2, "stream": False}
    asked = as_json(model=IDEOGRAM, prompt=PROMPT, image=IMG, **fields)
    assert (asked.request.n, asked.request.options) == (2, {name: fields[name] for name in list(fields)[:3]})
    assert refusal(lambda: as_json(prompt=PROMPT, image=IMG, n="2"))[1:] == ("n", "invalid_type")
    own = {"steps": 30, "lora": {"name": "x"}, "markup": None}
    assert as_json(model=OWN, prompt=PROMPT, image=IMG, **own).request.options == {"steps": 30, "lora": {"name": "x"}}


# Events.


@pytest.mark.parametrize(
    ("fields", "operation", "expected"),
    [
        ({"prompt": PROMPT}, "generate", []),
        ({"prompt": PROMPT, "operation": None}, "generate", []),
        ({"prompt": PROMPT, "operation": "generate"}, "generate", []),
        (
            {"prompt": PROMPT, "operation": "edit", "image": {"s3_uri": "s3://b/k"}},
            "edit",
            [("image", "image", "s3://b/k")],
        ),
        ({"prompt": PROMPT, "operation": "edit", "images": [IMG]}, "edit", [("image", "images[0]", IMG)]),
        (
            {"operation": "variation", "images": [{"s3_uri": "s3://b/k"}]},
            "variation",
            [("image", "images[0]", "s3://b/k")],
        ),
        ({"operation": "describe", "image": URL}, "describe", [("image", "image", URL)]),
    ],
)
def test_an_event_names_its_operation(fields: dict[str, Any], operation: str, expected: object) -> None:
    asked = OPERATIONS.fields(fields)
    assert (asked.request.operation, images(asked)) == (operation, expected)


@pytest.mark.parametrize("operation", ["", "edits", "EDIT", 0, 7, False, True, [], ["edit"], {}, {"a": 1}])
def test_an_event_with_an_unknown_operation_is_refused(operation: object) -> None:
    expected = (
        "Invalid 'operation': expected one of generate, edit, variation, describe.",
        "operation",
        "invalid_value",
    )
    assert refusal(lambda: OPERATIONS.fields({"prompt": PROMPT, "operation": operation})) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"images": [IMG]}, "images"),
        ({"image": IMG}, "image"),
        ({"mask": IMG}, "mask"),
        ({"operation": "edit", "image": "s3://b/k"}, "image"),
        ({"operation": "edit", "image": {"s3_uri": 7}}, "image"),
        ({"operation": "edit", "image": {"s3_uri": "s3://b/k", "file_id": IMG}}, "image"),
    ],
)
def test_an_event_with_an_image_in_the_wrong_place_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(lambda: OPERATIONS.fields({"prompt": PROMPT, **fields}))[1] == param


def test_reading_changes_no_given_value() -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "operation": "edit", "images": [{"file_id": IMG}], "n": 2}
    before = json.dumps(fields)
    OPERATIONS.fields(fields)
    assert json.dumps(fields) == before


def test_neither_the_prompt_nor_a_content_is_in_a_repr() -> None:
    shown = repr(
        as_json(prompt="a secret", images=[{"image_url": DATA_URL}, {"image_url": "https://a.example/s?sig=s"}])
    )
    assert not any(secret in shown for secret in ("a secret", "PNG", "sig=s"))


# Uploads.

NO_LENGTHS: list[object] = [0, -1, 50_000_001, 10**30, 1.0, "1", True, [], {}]
NO_TYPES: list[object] = ["", "image/gif", "image/svg+xml", "IMAGE/PNG", "image/png\r\nX: 1", 7, [PNG_TYPE], {}]


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("length", [1, 50_000_000])
def test_an_upload_has_a_type_and_a_length(media_type: str, length: int) -> None:
    body = json.dumps({"bytes": length, "media_type": media_type}).encode()
    assert read_upload(body, "application/json; charset=utf-8") == (media_type, length)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"bytes": None}, "bytes", "missing_required_parameter"),
        ({"media_type": None}, "media_type", "missing_required_parameter"),
        *(({"bytes": value}, "bytes", "invalid_value") for value in NO_LENGTHS),
        *(({"media_type": value}, "media_type", "invalid_value") for value in NO_TYPES),
        ({"filename": "a.png"}, "filename", "unknown_parameter"),
        ({"x" * 1000: 1}, "x" * 64, "unknown_parameter"),
    ],
)
def test_a_wrong_upload_is_refused_by_its_field(fields: dict[str, Any], param: str, code: str) -> None:
    body = json.dumps({"bytes": 7, "media_type": PNG_TYPE, **fields}).encode()
    message, *rest = refusal(lambda: read_upload(body, "application/json"))
    assert (rest, len(message) < 200) == ([param, code], True)


def test_an_upload_that_is_the_image_itself_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedMediaTypeError) as unsupported:
        read_upload(PNG, "image/png")
    with pytest.raises(RequestTooLargeError) as too_large:
        read_upload(PNG * 1000, "application/json")
    assert all("sent to the URL in the answer" in each.value.message for each in (unsupported, too_large))
    for body in (b"", b"[]", b"null", PNG):
        assert refusal(lambda body=body: read_upload(body, "application/json"))[1] is None  # type: ignore[misc]


# Anything.

NAMES = st.sampled_from(
    [
        *("prompt", "model", "images", "image", "mask", STYLE, CHARACTER, "markup", "stream", "partial_images"),
        *("operation", "a", "", "image[]", "svg[model]", *CATALOG.fields),
    ]
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        *CATALOG.models,
        IMG,
        UPL,
        URL,
        DATA_URL,
        "s3://b/k",
        "2",
        "0.5",
        "true",
        "[]",
        '["0123abcd"]',
        "1024x1024",
        PROMPT,
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image_url", "file_id", "s3_uri", "name"]) | st.text(max_size=3), below, max_size=2
        )
    ),
    max_leaves=6,
)
GOOD = {"prompt": PROMPT, "image": IMG}


def check_read_or_refused(act: Callable[[], AskedImages], names: set[str]) -> None:
    """A refusal names a field of the request, or one that it lacks; or none if it is about all."""
    try:
        asked = act()
    except InvalidRequestError as error:
        param, message = error.param, error.message
    else:
        param, message = None, ""
        assert isinstance(asked, AskedImages)
        assert all(isinstance(image, GivenImage) for image in asked.images)
    known = {"prompt", "model", "index", *names, *(name.removesuffix("[]") for name in names)}
    assert param is None or param in known or param.partition("[")[0] in known
    assert len(message) < 1500


@given(st.sampled_from(list(READERS)), st.dictionaries(NAMES, JSON, max_size=3), st.booleans())
@settings(deadline=None, max_examples=100)
def test_any_json_is_read_or_refused(operation: str, fields: dict[str, Any], is_good: bool) -> None:
    body = {**(GOOD if is_good else {}), **fields}
    check_read_or_refused(lambda: READERS[operation](json.dumps(body).encode(), "application/json"), set(body))


@given(
    st.dictionaries(NAMES | st.just("operation"), JSON, max_size=3), st.sampled_from([None, "edit", "describe", "x"])
)
@settings(deadline=None, max_examples=60)
def test_any_event_is_read_or_refused(fields: dict[str, Any], operation: str | None) -> None:
    body = {**GOOD, "operation": operation, **fields}
    check_read_or_refused(lambda: OPERATIONS.fields(json.loads(json.dumps(body))), set(body))


FORM_NAMES = NAMES.filter(bool)


@given(
    st.sampled_from(list(READERS)),
    st.lists(
        st.tuples(FORM_NAMES, TEXTS | st.tuples(st.sampled_from(["", "a.png"]), st.binary(max_size=30))), max_size=5
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_any_form_is_read_or_refused(operation: str, parts: list[Part], is_good: bool) -> None:
    whole = [*(GOOD.items() if is_good else ()), *parts]
    check_read_or_refused(lambda: form(*whole, operation=operation), {name for name, _ in whole})
