"""Canaries through every function: none may be in anything that the stack writes, however talkative it is made.

Each way to answer and to fail is walked in tests/integration, in one process. Here are the processes: their own logs,
the runtime's, and what libraries write in them. Records hold prompts by design.
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
from tests.support.client import INLINE, Answer, Client, fetched
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, running_world

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
QUEUED_MODEL = "gpt-image-1"


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack whose every word is kept."""
    with running_world(tmp_path_factory.mktemp("silence"), PARAMETERS, {**TALKATIVE, **AWS_SECRETS}) as world:
        yield world


class Walk:
    """A path through the stack, with canaries of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, world.caller()
        self.secrets: dict[str, str] = {}
        self.answers: list[Answer] = []
        keys = {**world.stack.keys, self.client.name: self.client.key}
        self.keys = {"the upstream's key": UPSTREAM_KEY, **AWS_SECRETS, **keys_and_hashes(keys)}

    def __getitem__(self, name: str) -> str:
        return self.secrets.setdefault(name, f"canary{uuid4().hex}")

    def make(self, *scripts: Any, client: Client | None = None, **fields: Any) -> Answer:
        """The last answer to a request whose every part is a canary."""
        prompt = self.world.will(self["prompt"], *scripts)
        headers = {"Idempotency_Key": self["idempotency key"], "X_Request_Id": self["header"], **INLINE}
        answer = (client or self.client).make({"prompt": prompt, "user": self["user"], **fields}, **headers)
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


def test_an_image_made_inline_leaves_nothing(walk: Walk) -> None:
    answer = walk.make(walk.naming(content(walk)))
    assert answer.status == 200
    assert fetched(answer.json["data"][0]["permalink"]).content == content(walk)


def test_an_image_made_by_the_worker_and_its_whole_life_leave_nothing(walk: Walk) -> None:
    in_base64 = base64.b64encode(content(walk)).decode()
    reply = Reply(200, json.dumps({"data": [{"b64_json": in_base64}]}).encode())
    answer = walk.make(lambda _: reply, model=QUEUED_MODEL, response_format="url")
    assert answer.status == 200
    walk.answers += [walk.client.see(answer.generation_id), walk.client.cancel(answer.generation_id)]
    walk.answers.append(walk.client.delete(answer.generation_id))
    assert walk.answers[-1].status == 200


@pytest.mark.parametrize("model", ["dall-e-3", QUEUED_MODEL])
def test_an_upstream_that_repeats_secrets_leaves_nothing(walk: Walk, model: str) -> None:
    error = {"message": f"{UPSTREAM_KEY} {walk['words']}", "type": walk["type"], "param": walk["param"]}
    reply = Reply(500, json.dumps({"error": error}).encode(), {"X": walk["header"]})
    assert walk.make(lambda _: reply, model=model).failed == (424, "upstream_failed")


@pytest.mark.parametrize(
    "token",
    [BearerKey.new("local").key, BearerKey.new("nobody").key, f"sk-{uuid4().hex}", f"eyJ{uuid4().hex}.a.b"],
    ids=["a known client", "an unknown client", "another service's", "a token"],
)
def test_a_key_that_is_refused_leaves_nothing(walk: Walk, token: str) -> None:
    walk.secrets["key"] = token
    for scheme in ("Bearer", "Basic"):
        walk.answers.append(walk.client.get("/models", Authorization=f"{scheme} {token}"))
        assert walk.answers[-1].status == 401


@pytest.mark.parametrize(("function", "model"), [("ApiFunction", "dall-e-3"), ("WorkerFunction", QUEUED_MODEL)])
def test_a_function_that_is_killed_at_work_leaves_nothing(walk: Walk, function: str, model: str) -> None:
    walk.make(walk.world.killing(function), walk.naming(content(walk)), model=model, response_format="url")
    answer = walk.make(model=model, response_format="url")  # the gateway's answer for a death names no generation
    assert walk.client.until_ended(answer.generation_id)["status"] == "completed"


def test_what_is_given_up_leaves_nothing(walk: Walk) -> None:
    """As if every attempt at it had died: its message comes among the dead letters, where its images are found."""
    generation_id = walk.make(walk.naming(content(walk))).generation_id
    dynamodb = walk.world.aws("dynamodb")
    dynamodb.update_item(
        TableName=dynamodb.list_tables()["TableNames"][0],
        Key={"pk": {"S": generation_id}, "sk": {"S": "generation"}},
        UpdateExpression="SET #status = :queued, lease_until = :past REMOVE completed_at",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":queued": {"S": "queued"}, ":past": {"N": "1"}},
    )
    walk.world.send("GenerationDeadLetters", {"generation_id": generation_id})
    assert walk.client.until_ended(generation_id)["status"] == "completed"
    log = walk.world.stack.logs / "DeadLetterFunction.log"
    until(lambda: '"gave up"' in log.read_text(), what="the dead letter's line")


@pytest.mark.parametrize("kind", ["event", "messages"])
def test_what_is_no_event_leaves_nothing(walk: Walk, kind: str) -> None:
    """Whatever it is, the runtime writes the error that a function fails with."""
    secret = walk["event"]
    record = {"body": json.dumps({secret: secret}), "receiptHandle": secret, "messageId": "m", "attributes": {}}
    record |= {"eventSource": "aws:sqs", "eventSourceARN": secret, "awsRegion": "us-east-1", "messageAttributes": {}}
    odd = {secret: secret, "headers": {"Authorization": secret}, "body": secret}
    event = odd if kind == "event" else {"Records": [record]}
    for name, host in walk.world.stack.functions.items():
        assert host.invoke(event).exception(timeout=60) or kind == "messages", name


def test_every_function_has_written_so_there_was_something_to_search(walk: Walk) -> None:
    walk.make(walk.naming(content(walk)))
    assert walk.client.until_ended(walk.client.begin(prompt=walk["later"]))["status"] == "completed"
    assert walk.client.get("/models", Authorization="Bearer ig_nobody").status == 401
    walk.client.get("/models", Authorization=f"Bearer {BearerKey.new('nobody').key}")
    for function, line in {"Api": "answered", "Worker": "looked at", "Authorizer": "denied"}.items():
        log = walk.world.stack.logs / f"{function}Function.log"
        until(lambda log=log, line=line: f'"{line}"' in log.read_text(), what=(function, line))  # type: ignore[misc]


def test_what_makes_the_functions_talkative_makes_the_libraries_write_such_secrets(walk: Walk, tmp_path: Path) -> None:
    """Without it, silence would prove nothing."""
    (tmp_path / "app.py").write_text(
        "import boto3, urllib3\n"
        "def lambda_handler(event, context):\n"
        "    urllib3.PoolManager().request('GET', event['url'])\n"
        "    boto3.client('ssm').get_parameter(Name=event['name'], WithDecryption=True)\n"
    )
    function = replace(walk.world.stack.functions["ApiFunction"].function, code=tmp_path, handler="app.lambda_handler")
    host = FunctionHost(function, tmp_path / "talkative.log")
    url = walk.world.serve_file(lambda _: Reply(200, b"x"), query=f"X-Amz-Signature={walk['image query']}")
    try:
        host.invoke({"url": url, "name": f"/{STACK_NAME}/upstream-api-key"}).result(timeout=60)
    finally:
        host.close()
    written = (tmp_path / "talkative.log").read_bytes()
    assert found({**walk.secrets, **walk.keys}, written) >= {"image query", "the upstream's key"}


def test_the_gateway_is_not_to_log_what_passes_through_it() -> None:
    template = (ROOT / "template.yaml").read_text()
    assert not re.search(r"DataTraceEnabled: *[Tt]rue", template)
    assert "$context.path" not in template  # an image's id is its capability
