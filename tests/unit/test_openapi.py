import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from imagegen import VERSION
from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Counts, is_batch_id
from imagegen.domain.errors import InvalidRequestError, MethodNotAllowedError
from imagegen.domain.files import MOST_FILE_BYTES, File, Purpose, StoredObject, is_file_id
from imagegen.domain.generations import is_generation_id
from imagegen.domain.images import is_image_id
from imagegen.domain.inputs import MOST_BYTES, Operation, SignedUpload, is_upload_id
from imagegen.domain.models import Choice, Decimal, Text, Whole
from imagegen.wire.batch_requests import read_batch_request
from imagegen.wire.batches import batch_answer, batch_list_answer
from imagegen.wire.files import (
    LONGEST_FILENAME,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    file_answer,
    file_list_answer,
    file_upload_answer,
    read_file_form,
    read_file_upload,
)
from imagegen.wire.headers import EXPOSED
from imagegen.wire.image_requests import readers_of
from imagegen.wire.openapi import ERRORS, INVALID, openapi_document, shapes_of
from imagegen.wire.schemas import BATCH_ID, BODIES, FILE_ID, GENERATION_ID, IMAGE_ID, INPUT_ID, UPLOAD_ID
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
    readers = ("requests", "field_errors", "image_requests", "forms", "uploads", "files", "batch_requests", "headers")
    raised = {code for name in readers for code in re.findall(r'code="(\w+)"', (wire / f"{name}.py").read_text())}
    assert set(INVALID) == raised


def test_no_answer_is_described_with_an_error_that_only_a_line_has() -> None:
    """The code is also that of API Gateway, for a key that it refuses."""
    assert DOCUMENT["components"]["examples"]["invalid_api_key-401"]["summary"] == "Unauthorized"


@pytest.mark.parametrize("code", ["batch_cancelled", "batch_expired"])
def test_only_the_result_of_a_generation_has_the_end_of_its_batch_as_an_error(code: str) -> None:
    having = {
        operation["operationId"]
        for _, operation in OPERATIONS
        for response in operation["responses"].values()
        if f"{code}-409" in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert having == {"getResult", "postResult"}


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
        (GENERATION_ID, is_generation_id, "gen_"),
        (IMAGE_ID, is_image_id, "img_"),
        (UPLOAD_ID, is_upload_id, "upl_"),
        (FILE_ID, is_file_id, "file-"),
        (BATCH_ID, is_batch_id, "batch_"),
    ],
)
def test_an_id_matches_its_pattern(pattern: str, is_id: Any, prefix: str) -> None:
    tails = ["A" * 22, "-_" * 11, "A" * 21, "A" * 23, "A" * 21 + "!", "A" * 21 + "é", ""]
    for text in [f"{prefix}{tail}" for tail in tails] + ["other_" + "A" * 22, f"{prefix[:-1]}.{'A' * 22}"]:
        assert bool(re.search(pattern, text)) == is_id(text), text


@pytest.mark.parametrize("prefix", ["inp_", "upl_", "img_", "file-"])
def test_an_input_image_may_have_each_kind_of_id(prefix: str) -> None:
    assert re.search(INPUT_ID, prefix + "A" * 22)
    assert not re.search(INPUT_ID, prefix[:-1] + "." + "A" * 22)


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


# Files and batches.

SOME_FILE = "file-" + "A" * 22
EXPIRES = {"anchor": "created_at", "seconds": SHORTEST_SECONDS}
EXPIRIES: list[Any] = [
    *(None, {}, "created_at", {"anchor": "created_at"}, {"seconds": SHORTEST_SECONDS}, EXPIRES | {"anchor": "now"}),
    *(
        EXPIRES | {"seconds": each}
        for each in (SHORTEST_SECONDS - 1, LONGEST_SECONDS, LONGEST_SECONDS + 1, "3600", True)
    ),
]
# By schema: what reads the body, a valid body, and the values of its fields.
BODIES_OF_JSON: dict[str, tuple[Callable[[bytes, str], object], dict[str, Any], dict[str, list[Any]]]] = {
    "CreateFileUploadRequest": (
        read_file_upload,
        {"purpose": "batch", "filename": "a.jsonl", "bytes": 7},
        {
            "purpose": [None, "batch", "vision", "batch_output", "fine-tune", "", 7],
            "filename": [None, "", "a", "ä b", "x" * LONGEST_FILENAME, "x" * (LONGEST_FILENAME + 1), 7],
            "bytes": [None, 0, 1, MOST_BYTES, MOST_BYTES + 1, MOST_FILE_BYTES, MOST_FILE_BYTES + 1, "7", 7.5, True],
            "expires_after": EXPIRIES,
            "unknown": [None, "x"],
        },
    ),
    "CreateBatchRequest": (
        read_batch_request,
        {"input_file_id": SOME_FILE, "endpoint": "/v1/images/edits", "completion_window": "24h"},
        {
            "input_file_id": [None, SOME_FILE, SOME_FILE + "A", "upl_" + "A" * 22, "", 7],
            "endpoint": [None, "/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "", 7],
            "completion_window": [None, "24h", "1h", 24],
            "metadata": [
                *(None, {}, {"": ""}, {"a": 7}, {"a": None}, [], "a"),
                *({"k" * length: "v"} for length in (64, 65)),
                *({"k": "v" * length} for length in (512, 513)),
                *({str(number): "v" for number in range(count)} for count in (16, 17)),
            ],
            "unknown": [None, "x"],
        },
    ),
}


def is_read(read: Callable[[bytes, str], object], body: bytes, media_type: str) -> bool:
    try:
        read(body, media_type)
    except InvalidRequestError:
        return False
    return True


@pytest.mark.parametrize("name", BODIES_OF_JSON)
def test_the_schema_of_a_file_or_a_batch_accepts_a_body_if_and_only_if_the_service_does(name: str) -> None:
    (read, valid, values), schema = BODIES_OF_JSON[name], validator(name)
    bodies = [valid | {field: value} for field, each in values.items() for value in each]
    bodies += [{key: value for key, value in valid.items() if key != field} for field in valid]
    bodies += [body | {"purpose": "vision"} for body in bodies if "purpose" in valid]
    assert schema.is_valid(valid)
    for body in bodies:
        assert schema.is_valid(body) == is_read(read, json.dumps(body).encode(), "application/json"), body


ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"purpose": "vision"}, {"purpose": "batch_output"}, {"purpose": None}, {"file": None}, {"file": ""}),
        *({"unknown": "x"}, {"bytes": "7"}, {ANCHOR: "created_at"}, {SECONDS: SHORTEST_SECONDS}),
        {ANCHOR: "now", SECONDS: SHORTEST_SECONDS},
        *(
            {ANCHOR: "created_at", SECONDS: seconds}
            for seconds in (SHORTEST_SECONDS - 1, SHORTEST_SECONDS, LONGEST_SECONDS, LONGEST_SECONDS + 1)
        ),
    ],
    ids=repr,
)
def test_the_schema_of_a_form_with_a_file_accepts_it_if_and_only_if_the_service_does(changes: dict[str, Any]) -> None:
    fields = {"purpose": "batch", "file": "{}"} | changes
    form = {name: value for name, value in fields.items() if value is not None}
    filename = {"file": '; filename="a.jsonl"'}
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"{filename.get(name, "")}\r\n\r\n{value}\r\n'
        for name, value in form.items()
    ]
    body = f"{''.join(parts)}--x--\r\n".encode()
    assert validator("CreateFileForm").is_valid(form) == is_read(
        read_file_form, body, "multipart/form-data; boundary=x"
    )


def check_answer(name: str, answer: dict[str, Any]) -> None:
    """The answer is valid, and has no field that is not described."""
    validator(name).validate(answer)
    assert set(answer) <= set(SCHEMAS[name]["properties"])


def test_the_answers_about_a_file_are_described() -> None:
    of_inbox = StoredObject("inbox/alice/a.jsonl", "v1", 7)
    files = [
        File(
            id=SOME_FILE, caller="alice", purpose=purpose, filename="a", object=of_inbox, created_at=1.5, expires_at=end
        )
        for purpose in Purpose
        for end in (None, 2.5)
    ]
    for file in files:
        check_answer("File", file_answer(file))
    for listed, more in ((files, True), ([], False)):
        check_answer("FileList", file_list_answer(listed, more=more))
    upload = SignedUpload("https://images.s3.amazonaws.com/files/a?b", {"If-None-Match": "*"}, 3)
    check_answer("FileUpload", file_upload_answer(files[0], upload))


@pytest.mark.parametrize("status", BatchStatus)
@pytest.mark.parametrize("endpoint", [None, "/v1/images/edits"], ids=["inbox", "HTTP"])
@pytest.mark.parametrize("metadata", [None, {"a": "b"}], ids=["bare", "metadata"])
def test_the_answers_about_a_batch_are_described(
    status: BatchStatus, endpoint: str | None, metadata: dict[str, str] | None
) -> None:
    problems = (BatchProblem("empty_file", "The file has no line."), BatchProblem("invalid_url", "No.", 3, "url"))
    over_http = {"given_file_id": SOME_FILE, "metadata": metadata, "expires_at": 9.5} if endpoint else {}
    batch = Batch(
        id="batch_" + "A" * 22,
        caller="alice",
        file=StoredObject("inbox/alice/a.jsonl", "v1", 7),
        created_at=1.5,
        endpoint=endpoint,
        status=status,
        problems=problems if status is BatchStatus.FAILED else (),
        begun_at=2.5,
        cancelling_at=3.5,
        finalizing_at=4.5,
        ended_at=5.5,
        **over_http,  # type: ignore[arg-type]
    )
    answer = batch_answer(batch, Counts(2, 1))
    check_answer("Batch", answer)
    check_answer("BatchList", batch_list_answer([(batch, Counts(2, 1))], more=True))
    if answer["errors"]:
        check_answer("BatchErrors", answer["errors"])
