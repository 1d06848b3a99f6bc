"""The running API answers as its description says, and the description has no more than that."""

import copy
import os
import re
import subprocess
import sys
from base64 import b64encode
from typing import Any
from uuid import uuid4

import pytest
import urllib3
from jsonschema import Draft202012Validator

from tests.conftest import ROOT
from tests.support.chromium import Page
from tests.support.client import INLINE, QUEUED, SMALL, Client, Json, fetched
from tests.support.pictures import picture
from tests.support.world import World, batch_line, refusing

pytestmark = pytest.mark.thorough

# Headers that HTTP and Fetch add to any answer.
OF_THE_PROTOCOL = re.compile(r"content-(type|length)|access-control-.*|vary|x-amzn-.*")
OF_A_PAGE = re.compile(
    r"content-security-policy|cross-origin-.*|permissions-policy|referrer-policy|x-(content|frame)-.*"
)


@pytest.fixture(scope="module")
def document(staged_world: World) -> Json:
    answer = fetched(f"{staged_world.stack.url}/openapi.json")
    assert answer.headers["access-control-allow-origin"] == "*"
    return dict(answer.json)


def closed(schema: Any) -> Any:
    """The same schema, which refuses a field that it does not describe."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        shut.setdefault("additionalProperties", False)
    return shut


class Described:
    """Sends requests, and checks each answer by its description. `seen` are the operations with their statuses."""

    def __init__(self, client: Client, document: Json) -> None:
        self._client, self._document = client, document
        self._root = client.base_url.removesuffix("/v1")
        self._components = closed(copy.deepcopy(document["components"]))
        self.seen: set[tuple[str, int]] = set()

    def __call__(
        self, method: str, path: str, template: str = "", body: Json | bytes | None = None, **headers: str
    ) -> Json:
        answer = self._client.ask(method, self._root + path, body, **headers)
        operation = self._document["paths"][template or path.partition("?")[0]][method.lower()]
        response = operation["responses"][str(answer.status)]
        self.seen.add((operation["operationId"], answer.status))
        own = {name for name in answer.headers if not OF_THE_PROTOCOL.fullmatch(name)}
        if operation["tags"] == ["Service"]:
            own = {name for name in own if not OF_A_PAGE.fullmatch(name)}
        assert own <= {name.lower() for name in response["headers"]}, (method, path, answer.status)
        if "content" not in response:
            assert not answer.content
            return {}
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = response["content"][media_type]["schema"]
        if media_type != "application/json":
            return {}
        Draft202012Validator({**closed(schema), "components": self._components}).validate(answer.json)
        return dict(answer.json)


RUNNING: Json = {"status": "queued"}
# By operation: its path, and a model with the further fields of a request.
WITH_IMAGES: dict[str, tuple[str, Json]] = {
    "createEdit": ("/v1/images/edits", {"model": "gpt-image-1", "prompt": "a hat", "response_format": "url"}),
    "createVariation": ("/v1/images/variations", SMALL),
    "createDescription": ("/v1/images/descriptions", {"model": "mj_describe"}),
}


def check_requests_with_images(ask: Described) -> None:
    content = picture(side=64)
    begun = ask("POST", "/v1/images/uploads", body={"bytes": len(content), "media_type": "image/png"})
    assert urllib3.request("PUT", begun["url"], body=content, headers=begun["headers"]).status == 200
    for body in ({"bytes": 0, "media_type": "image/png"}, {"bytes": 9, "media_type": "image/png", "x": "x" * 5_000}):
        ask("POST", "/v1/images/uploads", body=body)
    ask("POST", "/v1/images/uploads", body=content, Content_Type="image/png")
    ask("POST", "/v1/images/uploads", body={}, Authorization="Bearer ig_local_wrong")
    one, by_url = "/v1/images/generations/{generation_id}", f"data:image/png;base64,{b64encode(content).decode()}"
    for operation, (path, fields) in WITH_IMAGES.items():
        made: Json = RUNNING
        while "status" in made:  # a redirect has the generation
            body = {**fields, "images": [{"image_url": by_url}]}
            made = ask("POST", path, body=body, Idempotency_Key=operation)
        for image in (("image.png", content), by_url, begun["id"]):
            form, media_type = urllib3.encode_multipart_formdata([*fields.items(), ("image", image)])
            made = ask("POST", path, body=form, Content_Type=media_type, **QUEUED)
            shown = ask("GET", f"/v1/images/generations/{made['id']}", one)
            assert [each["bytes"] for each in shown["inputs"]] == [len(content)]
        while "status" in made:
            made = ask("GET", f"/v1/images/generations/{made['id']}/result", f"{one}/result")
        assert ask("GET", f"/v1/images/generations/{made['id']}", one)["data"]
        ask("POST", path, body=fields)
        ask("POST", path, body=b"x", Content_Type="text/plain")
        ask("POST", path, body=fields, Authorization="Bearer ig_local_wrong")
        assert {200, 202, 400, 401, 415} <= {status for each, status in ask.seen if each == operation}, operation
    assert {200, 400, 401, 413, 415} <= {status for each, status in ask.seen if each == "createUpload"}


def check_files_and_batches(ask: Described, caller: Client, lines: str) -> None:
    one = "/v1/files/{file_id}"
    form, media_type = urllib3.encode_multipart_formdata([("purpose", "batch"), ("file", ("a.jsonl", lines))])
    file = ask("POST", "/v1/files", body=form, Content_Type=media_type)["id"]
    ask("POST", "/v1/files", body={"purpose": "batch"})
    upload = {"purpose": "vision", "filename": "a.png", "bytes": 3}
    for body in (upload, upload | {"bytes": 0}):
        ask("POST", "/v1/files/uploads", body=body)
    for query in ("", "?order=asc&purpose=batch&limit=1", "?limit=0"):
        ask("GET", f"/v1/files{query}")
    asked = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    for body in (asked, asked | {"completion_window": "1h"}, asked | {"input_file_id": f"file-{'A' * 22}"}):
        ask("POST", "/v1/batches", body=body, Idempotency_Key=str(body))
    form, media_type = urllib3.encode_multipart_formdata([("purpose", "vision"), ("file", ("a.png", picture()))])
    image = ask("POST", "/v1/files", body=form, Content_Type=media_type)["id"]
    for each in (file, image, "file-x"):
        ask("GET", f"/v1/files/{each}", one)
        ask("GET", f"/v1/files/{each}/content", f"{one}/content")
        ask("DELETE", f"/v1/files/{each}", one)
    for batch in ask("GET", "/v1/batches")["data"]:
        caller.until_ended_batch(batch["id"])
        ask("GET", f"/v1/batches/{batch['id']}", "/v1/batches/{batch_id}")
        ask("POST", f"/v1/batches/{batch['id']}/cancel", "/v1/batches/{batch_id}/cancel")
    assert ask("GET", f"/v1/batches?after={batch['id']}")["data"] == []
    ask("GET", "/v1/batches/batch_x", "/v1/batches/{batch_id}")
    assert {200, 302, 404} <= {status for each, status in ask.seen if each == "getFileContent"}


def test_each_answer_of_a_whole_life_is_described(staged_world: World, document: Json) -> None:
    caller, run = staged_world.caller(), uuid4().hex
    ask = Described(caller, document)
    create, one = "/v1/images/generations", "/v1/images/generations/{generation_id}"
    made: Json = RUNNING
    for model in ("dall-e-3", "gpt-image-1"):
        body, made = {"prompt": "an otter", "model": model, "response_format": "url"}, RUNNING
        while "status" in made:  # a redirect has the generation
            made = ask("POST", create, body=body, Idempotency_Key=model, **INLINE)
    whole = ask("POST", create, body={**SMALL, "prompt": "whole", "response_format": "b64_json"}, **INLINE)
    while "status" in whole:
        whole = ask("GET", f"{create}/{whole['id']}/result", f"{one}/result")
    assert whole["data"][0]["b64_json"]
    gate = staged_world.hold(run)
    begun = ask("POST", create, body={"prompt": run}, **QUEUED)
    ask("GET", f"{create}/{begun['id']}/result", f"{one}/result")
    for _ in range(2):
        ask("POST", f"{create}/{begun['id']}/cancel", f"{one}/cancel")
    ask("GET", f"{create}/{begun['id']}/result", f"{one}/result")
    gate.open()
    ask("POST", create, body={"prompt": "another", "model": "dall-e-3"}, Idempotency_Key="dall-e-3")
    for script in (refusing(code="content_policy_violation"), refusing(500, code="broken")):
        answer = ask("POST", create, body={"prompt": staged_world.will(f"{uuid4()}", script)}, **INLINE)
        while "id" in answer:
            answer = ask("GET", f"{create}/{answer['id']}/result", f"{one}/result")
    ask("POST", create, body={"prompt": ""})
    ask("POST", create, body={"prompt": "x"}, Content_Type="text/plain")
    ask("POST", create, body={"prompt": "x"}, Authorization="Bearer ig_local_wrong")
    ask("POST", create, body={"prompt": "x" * 600_000})
    listed = ask("GET", f"{create}?limit=2")
    ask("GET", f"{create}?limit=2&after={listed['last_id']}")
    ask("GET", f"{create}?limit=0")
    ask("GET", f"{create}/{made['id']}", one)
    ask("POST", f"{create}/{made['id']}/result", f"{one}/result")
    ask("GET", f"/v1/images/{made['data'][0]['id']}", "/v1/images/{image_id}")
    ask("GET", "/v1/images/img_x", "/v1/images/{image_id}")
    ask("DELETE", f"{create}/{made['id']}", one)
    ask("GET", f"{create}/{made['id']}", one)
    check_requests_with_images(ask)
    for name in ("dall-e-3", "dall-e-9"):
        ask("GET", f"/v1/models/{name}", "/v1/models/{model}")
    lines = batch_line("one", "by file") + "\n" + batch_line("bad", "")
    caller.until_batch_ended(staged_world.drop(lines, caller.name))
    check_files_and_batches(ask, caller, lines)
    for page in ("/health", "/v1/models", "/", "/playground.js", "/playground.css", "/docs", "/openapi.json"):
        ask("GET", page)
    for name in ("docs.js", "swagger-ui.min.css", "nothing"):
        ask("GET", f"/docs/{name}", "/docs/{file}")
    operations = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    assert {operation for operation, _ in ask.seen} == operations
    statuses = {status for operation, status in ask.seen if operation == "createImages"}
    assert statuses >= {200, 202, 400, 401, 413, 415, 422, 424}
    assert {303, 424} <= {status for operation, status in ask.seen if operation == "getResult"}


def test_the_docs_page_renders_every_operation_from_this_origin_alone(
    staged_world: World, document: Json, page: Page
) -> None:
    page.open(f"{staged_world.stack.url}/docs")
    count = sum(len(methods) for methods in document["paths"].values())
    page.until(f"$$('.opblock').length === {count}")
    page.click(".opblock-post .opblock-summary-control")
    page.until("$('.opblock-body .responses-table')")
    assert not page.run("$('.errors-wrapper')")
    assert not page.complaints
    assert page.asked
    assert all(url.startswith(f"{staged_world.stack.url}/") for url in page.asked)


SHORT = "--phases=examples,fuzzing --max-examples=2 --generation-deterministic"
LONG = "--phases=examples,coverage,fuzzing,stateful --max-examples=100"
# Only a real image makes a request with images valid.
UNTOUCHED = "/v1/images/(edits|variations|descriptions)$"


@pytest.mark.parametrize("options", [SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["short", "long"])
def test_schemathesis_finds_no_answer_that_is_not_described(staged_world: World, options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'layers/imagegen'}"
    environment["SCHEMATHESIS_HOOKS"] = "tests.e2e.schemathesis_hooks"
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={ROOT / 'tests/e2e/schemathesis.toml'}", "run"]
    command += [f"{staged_world.stack.url}/openapi.json", "--request-timeout=60", "--no-color", *options.split()]
    command += [f"--header=Authorization: Bearer {staged_world.caller().key}", f"--exclude-path-regex={UNTOUCHED}"]
    folder = staged_world.stack.logs  # it leaves a folder there
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
