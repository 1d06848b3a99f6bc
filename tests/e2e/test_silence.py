"""No secret is in anything that the processes of a stack write at the most talkative settings.

tests/integration covers each way to answer and to fail, in one process. Here are the processes: their own logs,
the runtime's, and the lines of libraries. Records hold prompts by design.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from imagegen.domain.credentials import BearerKey
from local.lambda_host import FunctionHost
from local.serving import Reply
from local.stack import STACK_NAME
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.fakes.provider import png
from tests.support.canary import answered, found, keys_and_hashes, leaks
from tests.support.client import Answer, fetched
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, running_world

pytestmark = pytest.mark.thorough

TALKATIVE = {
    "AWS_LAMBDA_LOG_FORMAT": "JSON",
    "AWS_LAMBDA_LOG_LEVEL": "DEBUG",  # the root logger's, and so every library's
    "LOG_LEVEL": "DEBUG",
    "POWERTOOLS_DEBUG": "true",
    "POWERTOOLS_DEV": "true",
    "POWERTOOLS_LOGGER_LOG_EVENT": "true",
    "POWERTOOLS_LOGGER_SAMPLE_RATE": "1",
    "POWERTOOLS_LOG_LEVEL": "DEBUG",
    "PYTHONWARNINGS": "always",
}
AWS_SECRETS = {name: f"canary{uuid4().hex}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
BY_WORKER = "respond-async"


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack that logs as much as it can."""
    with running_world(tmp_path_factory.mktemp("silence"), PARAMETERS, {**TALKATIVE, **AWS_SECRETS}) as world:
        yield world


class Walk:
    """A path through the stack, with secrets of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, world.caller()
        self.secrets: dict[str, str] = {}
        self.answers: list[Answer] = []
        keys = {**world.stack.keys, self.client.name: self.client.key}
        self.keys = {"the upstream's key": UPSTREAM_KEY, **AWS_SECRETS, **keys_and_hashes(keys)}

    def __getitem__(self, name: str) -> str:
        return self.secrets.setdefault(name, f"canary{uuid4().hex}")

    def make(self, *scripts: Any, prefer: str = "", **fields: Any) -> Answer:
        """The last answer to a request that consists of secrets."""
        prompt = self.world.will(self["prompt"], *scripts)
        headers = {"Idempotency_Key": self["idempotency key"], "X_Request_Id": self["header"], "Prefer": prefer}
        answer = self.client.make({"prompt": prompt, "user": self["user"], **fields}, **headers)
        self.answers.append(answer)
        return answer

    def naming(self, content: bytes) -> Any:
        url = self.world.serve_file(lambda _: Reply(200, content), query=f"X-Amz-Signature={self['image query']}")
        return lambda _: Reply(200, json.dumps({"data": [{"url": url}]}).encode(), {"X": self["header"]})

    def check(self) -> None:
        for path in sorted(self.world.stack.logs.iterdir()):
            leaking = leaks({**self.secrets, **self.keys}, path.read_bytes())
            assert not leaking, (path.name, leaking)
        assert answered({**self.secrets, **self.keys}, self.answers) == []


@pytest.fixture
def walk(talkative: World) -> Iterator[Walk]:
    walk = Walk(talkative)
    yield walk
    walk.check()


def content(walk: Walk) -> bytes:
    return png(walk["image"])


def test_no_log_shows_an_image_that_the_api_makes(walk: Walk) -> None:
    answer = walk.make(walk.naming(content(walk)))
    assert answer.status == 200
    assert fetched(answer.json["data"][0]["permalink"]).content == content(walk)


def test_no_log_shows_the_whole_life_of_an_image_of_the_worker(walk: Walk) -> None:
    in_base64 = base64.b64encode(content(walk)).decode()
    reply = Reply(200, json.dumps({"data": [{"b64_json": in_base64}]}).encode())
    answer = walk.make(lambda _: reply, response_format="url", prefer=BY_WORKER)
    walk.client.until_ended(answer.generation_id)
    walk.answers.append(walk.client.result(answer.generation_id))
    assert walk.answers[-1].status == 200
    walk.answers += [walk.client.see(answer.generation_id), walk.client.cancel(answer.generation_id)]
    walk.answers.append(walk.client.delete(answer.generation_id))
    assert walk.answers[-1].status == 200


@pytest.mark.parametrize(("function", "prefer"), [("ApiFunction", ""), ("WorkerFunction", BY_WORKER)])
def test_no_log_shows_the_work_of_a_killed_function(walk: Walk, function: str, prefer: str) -> None:
    walk.make(walk.world.killing(function), walk.naming(content(walk)), prefer=prefer)
    answer = walk.make(prefer=BY_WORKER)  # the gateway's answer for a death names no generation
    assert walk.client.until_ended(answer.generation_id)["status"] == "completed"


@pytest.mark.parametrize("kind", ["event", "messages"])
def test_no_log_shows_an_event_that_a_function_cannot_read(walk: Walk, kind: str) -> None:
    """The runtime writes the error that a function fails with."""
    secret = walk["event"]
    record = {"body": json.dumps({secret: secret}), "receiptHandle": secret, "messageId": "m", "attributes": {}}
    record |= {"eventSource": "aws:sqs", "eventSourceARN": secret, "awsRegion": "us-east-1", "messageAttributes": {}}
    odd = {secret: secret, "headers": {"Authorization": secret}, "body": secret}
    event = odd if kind == "event" else {"Records": [record]}
    for name, host in walk.world.stack.functions.items():
        assert host.invoke(event).exception(timeout=60) or kind == "messages", name


def test_each_function_logs_its_lines_but_no_key_that_it_refuses(walk: Walk) -> None:
    walk.make(walk.naming(content(walk)))
    assert walk.client.until_ended(walk.client.begin(prompt=walk["later"]))["status"] == "completed"
    assert walk.client.get("/models", Authorization="Bearer ig_nobody").status == 401
    for token in (BearerKey.new("local").key, BearerKey.new("nobody").key, f"eyJ{uuid4().hex}.a.b"):
        walk.secrets[f"key {token[:6]}"] = token
        assert walk.client.get("/models", Authorization=f"Bearer {token}").status == 401
    for function, line in {"Api": "answered", "Worker": "looked at", "Authorizer": "denied"}.items():
        log = walk.world.stack.logs / f"{function}Function.log"
        until(lambda log=log, line=line: f'"{line}"' in log.read_text(), what=(function, line))  # type: ignore[misc]


def test_at_these_settings_libraries_do_write_secrets(walk: Walk, tmp_path: Path) -> None:
    """Otherwise silence would prove nothing."""
    (tmp_path / "app.py").write_text(
        "import boto3, urllib3\n"
        "def lambda_handler(event, context):\n"
        "    urllib3.PoolManager().request('GET', event['url'])\n"
        "    boto3.client('ssm').get_parameter(Name=event['name'], WithDecryption=True)\n"
    )
    api = walk.world.stack.functions["ApiFunction"].function
    environment = {**api.environment, "STREAMING": "off"}
    function = replace(api, code=tmp_path, handler="app.lambda_handler", environment=environment)
    host = FunctionHost(function, tmp_path / "talkative.log")
    url = walk.world.serve_file(lambda _: Reply(200, b"x"), query=f"X-Amz-Signature={walk['image query']}")
    try:
        host.invoke({"url": url, "name": f"/{STACK_NAME}/upstreams/upstream-api-key"}).result(timeout=60)
    finally:
        host.close()
    written = (tmp_path / "talkative.log").read_bytes()
    assert found({**walk.secrets, **walk.keys}, written) >= {"image query", "the upstream's key"}


def test_the_template_has_the_gateway_log_no_body_and_no_path() -> None:
    template = (ROOT / "template.yaml").read_text()
    assert not re.search(r"DataTraceEnabled: *[Tt]rue", template)
    assert "$context.path" not in template  # an image's id is its capability
