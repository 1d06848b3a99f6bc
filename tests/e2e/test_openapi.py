"""The description held against what the running API answers, both ways."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from jsonschema import Draft202012Validator

from local.serving import Reply
from tests.conftest import ROOT
from tests.e2e.chromium import CHROMIUM, chromium
from tests.e2e.conftest import Service, serve
from tests.e2e.test_inbox import drop, line
from tests.e2e.test_inbox import until_ended as until_batch_ended

# What HTTP and Fetch add to any answer.
OF_THE_PROTOCOL = re.compile(r"content-(type|length)|access-control-.*|vary|x-amzn-.*")
OF_A_PAGE = re.compile(
    r"content-security-policy|cross-origin-.*|permissions-policy|referrer-policy|x-(content|frame)-.*"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve("stage", tmp_path_factory.mktemp("openapi"), {"WaitSeconds": "1"}) as service:
        yield service


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    answer = urllib3.request("GET", f"{service.stack.url}/openapi.json")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    return dict(answer.json())


def closed(schema: Any) -> Any:
    """The same schema, which a field that is not described does not pass."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        shut.setdefault("additionalProperties", False)
    return shut


class Described:
    """Asks, and holds each answer against its description. `seen` are the operations and statuses that came."""

    def __init__(self, service: Service, document: dict[str, Any]) -> None:
        self._service, self._document = service, document
        self._components = closed(copy.deepcopy(document["components"]))
        self.seen: set[tuple[str, int]] = set()

    def __call__(
        self, method: str, path: str, template: str | None = None, body: Any = None, **headers: str
    ) -> dict[str, Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Authorization": f"Bearer {self._service.key}", "Content-Type": "application/json", **sent}
        encoded = None if body is None else json.dumps(body)
        url = f"{self._service.stack.url}{path}"
        answer = urllib3.request(method, url, headers=sent, body=encoded, redirect=False)
        operation = self._document["paths"][template or path.partition("?")[0]][method.lower()]
        response = operation["responses"][str(answer.status)]
        self.seen.add((operation["operationId"], answer.status))
        ours = {name.lower() for name in answer.headers if not OF_THE_PROTOCOL.fullmatch(name.lower())}
        if operation["tags"] == ["Service"]:
            ours = {name for name in ours if not OF_A_PAGE.fullmatch(name)}
        assert ours <= {name.lower() for name in response["headers"]}, (method, path, answer.status)
        if "content" not in response:
            assert not answer.data
            return {}
        media_type = answer.headers["Content-Type"].partition(";")[0]
        schema = response["content"][media_type]["schema"]
        if media_type != "application/json":
            return {}
        Draft202012Validator({**closed(schema), "components": self._components}).validate(answer.json())
        return dict(answer.json())


def refused(code: str, status: int = 400) -> Any:
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": code}
    return lambda _: Reply(status, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})


def test_a_life_is_answered_as_it_is_described(service: Service, document: dict[str, Any]) -> None:
    ask = Described(service, document)
    create, one = "/v1/images/generations", "/v1/images/generations/{generation_id}"
    for model in ("dall-e-3", "gpt-image-1"):
        body = {"prompt": "an otter", "model": model, "response_format": "url"}
        made = ask("POST", create, body=body, Idempotency_Key=model, x_stainless_retry_count="0")
        while "data" not in made:
            made = ask("POST", create, body=body, Idempotency_Key=model, x_stainless_retry_count="0")
    whole = ask("POST", create, body={"prompt": "whole", "response_format": "b64_json"}, x_stainless_retry_count="0")
    assert whole["data"][0]["b64_json"]
    service.upstream.delay = 2
    begun = ask("POST", create, body={"prompt": "slow"}, Prefer="respond-async")
    ask("GET", f"{create}/{begun['id']}/result", f"{one}/result")
    ask("POST", f"{create}/{begun['id']}/cancel", f"{one}/cancel")
    ask("POST", f"{create}/{begun['id']}/cancel", f"{one}/cancel")  # the same again
    ask("GET", f"{create}/{begun['id']}/result", f"{one}/result")
    service.upstream.delay = 0
    ask("POST", create, body={"prompt": "another", "model": "dall-e-3"}, Idempotency_Key="dall-e-3")
    service.upstream.script += [refused("content_policy_violation"), refused("broken", 500)]
    ask("POST", create, body={"prompt": "refused"}, x_stainless_retry_count="0")
    ask("POST", create, body={"prompt": "broken"}, x_stainless_retry_count="0")
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
    ask("GET", "/v1/models")
    ask("GET", "/v1/models/dall-e-3", "/v1/models/{model}")
    ask("GET", "/v1/models/dall-e-9", "/v1/models/{model}")
    ask("GET", "/health")
    until_batch_ended(service, drop(service, line("one", "by file") + "\n" + line("bad", "")))
    batches = ask("GET", "/v1/batches")
    batch = batches["data"][0]["id"]
    assert ask("GET", f"/v1/batches?after={batch}")["data"] == []
    ask("GET", f"/v1/batches/{batch}", "/v1/batches/{batch_id}")
    ask("POST", f"/v1/batches/{batch}/cancel", "/v1/batches/{batch_id}/cancel")
    for page in ("/", "/playground.js", "/playground.css", "/docs", "/openapi.json"):
        ask("GET", page)
    for file in ("docs.js", "swagger-ui.min.css", "nothing"):
        ask("GET", f"/docs/{file}", "/docs/{file}")
    operations = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    assert {operation for operation, _ in ask.seen} == operations
    statuses = {status for operation, status in ask.seen if operation == "createImages"}
    assert statuses >= {200, 202, 400, 401, 413, 415, 422, 424}
    assert {303, 424} <= {status for operation, status in ask.seen if operation == "getResult"}


def test_it_is_rendered_with_nothing_from_elsewhere(service: Service, document: dict[str, Any], tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is there")
    with chromium(tmp_path) as page:
        page.command("Network.enable")
        page.open(f"{service.stack.url}/docs")
        count = sum(len(methods) for methods in document["paths"].values())
        page.until(f"document.querySelectorAll('.opblock').length === {count}")
        page.click(".opblock-post .opblock-summary-control")
        page.until("document.querySelector('.opblock-body .responses-table')")
        assert not page.run("document.querySelector('.errors-wrapper')")
        assert not page.complaints
        asked = [url for url in page.asked if not url.startswith("data:")]
        assert asked
        assert all(url.startswith(f"{service.stack.url}/") for url in asked)


def search_for_deviations(service: Service, *options: str) -> None:
    """Has schemathesis look for an answer that is not as described, as a client that has nothing yet."""
    header = f"--header=Authorization: Bearer {service.stack.keys['other']}"
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={ROOT / 'tests/e2e/schemathesis.toml'}", "run"]
    done = subprocess.run(
        [
            *command,
            f"{service.stack.url}/openapi.json",
            "--request-timeout=60",
            "--no-color",
            header,
            *options,
        ],
        cwd=service.stack.logs,  # it leaves a folder
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            "PYTHONPATH": f"{ROOT}:{ROOT / 'layers/imagegen'}",
            "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]


def test_no_answer_deviates_from_the_description(service: Service) -> None:
    search_for_deviations(service, "--phases=examples,fuzzing", "--max-examples=2", "--generation-deterministic")


@pytest.mark.soak
def test_no_answer_deviates_from_the_description_in_a_long_search(service: Service) -> None:
    search_for_deviations(service, "--phases=examples,coverage,fuzzing,stateful", "--max-examples=100")
