import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from imagegen import VERSION
from imagegen.domain.batches import is_batch_id
from imagegen.domain.errors import InvalidRequestError, MethodNotAllowedError
from imagegen.domain.generations import is_generation_id
from imagegen.domain.images import is_image_id
from imagegen.domain.inputs import Operation, is_upload_id
from imagegen.domain.models import Choice, Decimal, Text, Whole
from imagegen.wire.headers import EXPOSED
from imagegen.wire.image_requests import readers_of
from imagegen.wire.openapi import ERRORS, INVALID, openapi_document, shapes_of
from imagegen.wire.schemas import BATCH_ID, BODIES, GENERATION_ID, IMAGE_ID, UPLOAD_ID
from tests.conftest import ROOT
from tests.support.models import MODELS, catalog, read_request

CAP = 1_000
DOCUMENT = openapi_document("/prod", catalog(CAP, {}))
SCHEMAS = DOCUMENT["components"]["schemas"]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


REQUEST = validator("CreateImagesRequest")
OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    (path, operation) for path, methods in DOCUMENT["paths"].items() for operation in methods.values()
]


def test_the_document_is_openapi_and_has_the_version_of_the_project() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []
    assert DOCUMENT["info"]["version"] == VERSION
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_the_url_of_the_server_is_the_given_path() -> None:
    assert openapi_document("/prod", catalog(CAP, {}))["servers"] == [{"url": "/prod"}]
    assert openapi_document("", catalog(CAP, {}))["servers"] == [{"url": "/"}]


def test_operation_ids_are_valid_names_of_functions() -> None:
    names = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", name) for name in names)


def test_an_operation_describes_its_path_parameters_and_its_failures() -> None:
    for path, operation in OPERATIONS:
        of_path = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert of_path == set(re.findall(r"\{(\w+)\}", path)), path
        for status, response in operation["responses"].items():
            assert "x-request-id" in response["headers"], path
            if int(status) >= 400:
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}, path
                assert content["examples"], path


def test_every_row_of_the_error_table_is_an_example_of_some_operation() -> None:
    examples = DOCUMENT["components"]["examples"]
    described = set()
    for _, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                for name in response["content"]["application/json"]["examples"]:
                    error = examples[name]["value"]["error"]
                    described.add((int(status), error["type"], error["code"]))
    elsewhere = {MethodNotAllowedError}  # no operation answers it: another method is another operation
    answered: set[type[Exception]] = {Exception, *ERRORS}
    assert {shape for failure in answered - elsewhere for shape in shapes_of(failure)} <= described


def test_the_listed_codes_of_a_bad_request_are_those_that_are_raised() -> None:
    wire = ROOT / "layers/imagegen/imagegen/wire"
    readers = ("requests", "image_requests", "forms", "uploads", "headers")
    raised = {code for name in readers for code in re.findall(r'code="(\w+)"', (wire / f"{name}.py").read_text())}
    assert set(INVALID) == raised


def test_every_example_matches_its_schema() -> None:
    for example in DOCUMENT["components"]["examples"].values():
        validator("ErrorResponse").validate(example["value"])
    for _, operation in OPERATIONS:
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}).get("application/json", {}) for body in bodies):
            for example in content.get("examples", {}).values():
                if "value" in example:
                    schema = {**content["schema"], "components": DOCUMENT["components"]}
                    Draft202012Validator(schema).validate(example["value"])


def test_every_exposed_header_is_described_and_some_answer_has_it() -> None:
    headers = DOCUMENT["components"]["headers"]
    assert set(EXPOSED.split(", ")) <= set(headers)
    answers = [response for _, operation in OPERATIONS for response in operation["responses"].values()]
    assert {name for answer in answers for name in answer["headers"]} == set(headers)


@pytest.mark.parametrize(
    ("pattern", "is_id", "prefix"),
    [
        (GENERATION_ID, is_generation_id, "gen"),
        (IMAGE_ID, is_image_id, "img"),
        (UPLOAD_ID, is_upload_id, "upl"),
        (BATCH_ID, is_batch_id, "batch"),
    ],
)
def test_an_id_matches_its_pattern(pattern: str, is_id: Any, prefix: str) -> None:
    tails = ["A" * 22, "-_" * 11, "A" * 21, "A" * 23, "A" * 21 + "!", "A" * 21 + "é", ""]
    for text in [f"{prefix}_{tail}" for tail in tails] + ["other_" + "A" * 22]:
        assert bool(re.search(pattern, text)) == is_id(text), text


SIZES = sorted({size for model in MODELS.values() for size in model.sizes})
FREE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
VALUES: dict[str, list[Any]] = {
    "prompt": ["an otter", "", " \n", "x" * CAP, "x" * (CAP + 1), "x" * 32_001, None, 7],
    "model": [*MODELS, None, "other", 1],
    "n": [None, 1, 10, 0, 11, "1", 1.5, True],
    "size": [None, *SIZES, "1536x864", "1000x1000", "auto ", "", "0x16", "123456x16", 512],
    "quality": [None, "standard", "hd", "low", "auto", "max", "best", 1],
    "response_format": [None, "url", "b64_json", "json"],
    "style": [None, "vivid", "natural", "wild"],
    "user": [None, "", "u" * 512, "u" * 513, 5],
    "background": [None, "transparent", "opaque", "auto", "red"],
    "moderation": [None, "low", "auto", "none"],
    "output_format": [None, "png", "jpeg", "webp", "gif"],
    "output_compression": [None, 0, 99, 100, 101, -1, "50"],
    "stream": [None, False, True, "no"],
    "partial_images": [None, 0, 1, 4, "0"],
    "unknown": ["x"],  # null counts as absent, which a schema cannot say briefly
}


def accepted(body: dict[str, Any]) -> bool:
    try:
        read_request(CAP).fields(body)
    except InvalidRequestError:
        return False
    return True


def check(body: dict[str, Any]) -> None:
    """The schema accepts a body if and only if the service does."""
    body.setdefault("prompt", "an otter")
    size, model = body.get("size"), MODELS.get(body.get("model") or "dall-e-3")
    sizes = model.choice("size") if model else Choice(())
    if sizes.free and isinstance(size, str) and FREE.fullmatch(size) and not sizes.allows(size):
        assert not accepted(body), body  # multiples and ratios are only in the description
    else:
        assert REQUEST.is_valid(body) == accepted(body), body


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2.5-flare", "flux", None])
def test_the_schema_accepts_a_field_if_and_only_if_the_service_does(model: str | None) -> None:
    for name, values in VALUES.items():
        for value in values:
            check({"model": model, name: value})


def test_the_schema_accepts_fields_without_a_model_if_and_only_if_the_service_does() -> None:
    for size in ("1024x1024", "256x256", "1536x1024", "1024x576", "auto"):
        for named in ({}, {"model": None}, {"model": "gpt-image-1"}, {"model": "flux"}):
            for quality in ("hd", "low", "max"):
                check({"size": size, "quality": quality, **named})
            for name in ("background", "style", "output_format"):
                check({"size": size, name: VALUES[name][2], **named})


def test_the_schema_accepts_compression_and_transparency_if_and_only_if_the_service_does() -> None:
    for output_format in VALUES["output_format"]:
        for name in ("output_compression", "background"):
            for value in VALUES[name]:
                check({"model": "gpt-image-1", "output_format": output_format, name: value})


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}))
@settings(deadline=None, max_examples=50)
def test_the_schema_accepts_fields_together_if_and_only_if_the_service_does(body: dict[str, Any]) -> None:
    check(body)


def values_of(rule: object) -> list[Any]:
    if isinstance(rule, Choice):
        return list(rule.values)
    return [rule.least, rule.most] if isinstance(rule, Whole | Decimal) else ["x"] if isinstance(rule, Text) else []


@pytest.mark.parametrize("operation", BODIES)
def test_a_request_with_images_that_the_service_accepts_is_described(operation: Operation) -> None:
    described, read = validator(f"Create{BODIES[operation]}Request"), readers_of(catalog(CAP, {}))[operation].fields
    formats = {"output_compression": "webp", "frame_count": "gif", "frame_duration_ms": "gif"}
    images = [{"image_url": "https://i.example/1.png"}, {"file_id": f"upl_{'x' * 22}"}]
    for model in catalog(CAP, {}).doing(operation).models.values():
        rules = model.inputs[operation]
        whole: dict[str, Any] = {"model": model.id, "prompt": "an otter", "images": images[: rules.most]}
        whole |= {"index": 1} if "index" in model.fields else {}
        roles = [*rules.references, *(["mask"] if rules.mask else [])]
        bodies = [whole, *(whole | {role: images[0] if role == "mask" else images[:1]} for role in roles)]
        for name, field in model.fields.items():
            also = {"output_format": formats[name]} if name in formats else {}
            bodies += [whole | also | {name: value} for value in values_of(field.rule)]
        for body in bodies:
            assert read(body).request.operation == operation
            described.validate(body)
