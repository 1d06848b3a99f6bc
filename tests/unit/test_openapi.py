import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from imagegen.batches import is_batch_id
from imagegen.catalog import CATALOG
from imagegen.errors import InvalidRequestError, MethodNotAllowedError
from imagegen.generations import is_generation_id
from imagegen.images import is_image_id
from imagegen.openai_wire.errors import ROWS
from imagegen.openai_wire.headers import EXPOSED
from imagegen.openai_wire.openapi import INVALID, openapi_document, told_as
from imagegen.openai_wire.requests import read_image_fields
from imagegen.openai_wire.schemas import BATCH_ID, GENERATION_ID, IMAGE_ID
from imagegen.version import VERSION
from tests.conftest import ROOT

CAP = 1_000
DOCUMENT = openapi_document("/prod", CAP)
SCHEMAS = DOCUMENT["components"]["schemas"]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


REQUEST = validator("CreateImagesRequest")
OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    (path, operation) for path, methods in DOCUMENT["paths"].items() for operation in methods.values()
]


def test_it_is_openapi_and_of_this_version_of_the_project() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []
    assert DOCUMENT["info"]["version"] == VERSION
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_a_server_is_where_the_description_is() -> None:
    assert openapi_document("/prod", CAP)["servers"] == [{"url": "/prod"}]
    assert openapi_document("", CAP)["servers"] == [{"url": "/"}]


def test_names_of_operations_are_good_names_of_functions() -> None:
    names = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", name) for name in names)


def test_an_operation_has_the_parameters_of_its_path_and_its_failures() -> None:
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
    elsewhere = {MethodNotAllowedError}  # no operation has it: its method would be another operation's
    assert {words for failure in ROWS.keys() - elsewhere for words in told_as(failure)} <= described


def test_the_codes_of_a_bad_request_are_those_that_are_raised() -> None:
    wire = ROOT / "layers/imagegen/imagegen/openai_wire"
    raised = re.findall(r'code="(\w+)"', (wire / "requests.py").read_text() + (wire / "headers.py").read_text())
    assert set(INVALID) == set(raised)


def test_every_example_is_of_its_schema() -> None:
    for example in DOCUMENT["components"]["examples"].values():
        validator("ErrorResponse").validate(example["value"])
    for _, operation in OPERATIONS:
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}).get("application/json", {}) for body in bodies):
            for example in content.get("examples", {}).values():
                if "value" in example:
                    validator(content["schema"]["$ref"].rpartition("/")[2]).validate(example["value"])


def test_every_header_that_a_page_may_read_is_described_and_comes_with_some_answer() -> None:
    headers = DOCUMENT["components"]["headers"]
    assert set(EXPOSED.split(", ")) <= set(headers)
    answers = [response for _, operation in OPERATIONS for response in operation["responses"].values()]
    assert {name for answer in answers for name in answer["headers"]} == set(headers)


@pytest.mark.parametrize(
    ("pattern", "is_id", "prefix"),
    [(GENERATION_ID, is_generation_id, "gen"), (IMAGE_ID, is_image_id, "img"), (BATCH_ID, is_batch_id, "batch")],
)
def test_an_id_is_what_its_pattern_says(pattern: str, is_id: Any, prefix: str) -> None:
    tails = ["A" * 22, "-_" * 11, "A" * 21, "A" * 23, "A" * 21 + "!", "A" * 21 + "é", ""]
    for text in [f"{prefix}_{tail}" for tail in tails] + ["other_" + "A" * 22]:
        assert bool(re.search(pattern, text)) == is_id(text), text


SIZES = sorted({size for model in CATALOG.values() for size in model.sizes})
FREE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.sampled_from(["an otter", "", " \n", "x" * CAP, "x" * (CAP + 1), "x" * 32_001, None, 7]),
        "model": st.sampled_from([*CATALOG, None, "other", 1]),
        "n": st.sampled_from([None, 1, 10, 0, 11, "1", 1.5, True]),
        "size": st.sampled_from([None, *SIZES, "auto ", "", "0x16", "123456x16", 512]),
        "quality": st.sampled_from([None, "standard", "hd", "low", "auto", "max", "best", 1]),
        "response_format": st.sampled_from([None, "url", "b64_json", "json"]),
        "style": st.sampled_from([None, "vivid", "natural", "wild"]),
        "user": st.sampled_from([None, "", "u" * 512, "u" * 513, 5]),
        "background": st.sampled_from([None, "transparent", "opaque", "auto", "red"]),
        "moderation": st.sampled_from([None, "low", "auto", "none"]),
        "output_format": st.sampled_from([None, "png", "jpeg", "webp", "gif"]),
        "output_compression": st.sampled_from([None, 0, 99, 100, 101, -1, "50"]),
        "stream": st.sampled_from([None, False, True, "no"]),
        "partial_images": st.sampled_from([None, 0, 1, 4, "0"]),
        "unknown": st.sampled_from([None, "x"]),
    },
)


def accepted(body: dict[str, Any]) -> bool:
    try:
        read_image_fields(body, prompt_cap=CAP)
    except InvalidRequestError:
        return False
    return True


@given(BODIES)
@settings(deadline=None)
def test_a_body_is_described_as_good_if_and_only_if_it_is_taken(body: dict[str, Any]) -> None:
    body.setdefault("prompt", "an otter")
    if body.get("unknown", "x") is None:
        del body["unknown"]  # an unknown field that is null is taken for absent, which no schema says briefly
    described_good, taken = REQUEST.is_valid(body), accepted(body)
    size, model = body.get("size"), CATALOG.get(body.get("model") or "dall-e-3")
    if model and model.free_sizes and isinstance(size, str) and FREE.fullmatch(size) and not model.allows_size(size):
        assert not taken  # multiples and ratios are described in words
    else:
        assert described_good == taken


def test_every_model_has_good_bodies_and_bad_ones() -> None:
    for model in CATALOG:
        good = {"model": model, "prompt": "an otter", "size": CATALOG[model].sizes[0]}
        assert REQUEST.is_valid(good), model
        assert not REQUEST.is_valid(good | {"size": "1x1x1"}), model
        assert not REQUEST.is_valid({"model": model}), model
