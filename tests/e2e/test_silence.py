"""Canaries through every path: none may be in anything that the stack writes, however talkative it is made.

What a caller is told may repeat its own bad value, as OpenAI does, but no key, no token and no presigned query, other
than in the links that are handed out on purpose. Records hold prompts by design, so the table is asked for keys alone.
"""

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from imagegen.credentials import BearerKey
from local.aws_door import Fault
from local.lambda_host import FunctionHost
from local.serving import HungUpError, Reply, Request
from local.stack import STACK_NAME
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post
from tests.e2e.test_generations import kill_workers

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
AWS_SECRETS = {name: f"canary{uuid.uuid4().hex}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
PRESIGNED = rb"(?i)x-amz-(signature|security-token|credential)"
# Whatever the words around it are, this has no place in a log. The image's id is its capability.
NEVER = (PRESIGNED, rb"img_[A-Za-z0-9_-]{22}", rb"\bsk-", rb"\big_[a-z0-9]", rb"(?i)bearer ")
HANDED_OUT = {"image", "revised prompt"}  # in an answer that brings images
PNG, IEND = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"

FIRST_WORKER, WORKER = "dall-e-3", "gpt-image-1"  # who makes a model's images: the api function, or the worker


def forms(secret: str) -> list[bytes]:
    """The secret as it is, in base64 wherever in a text it may begin, and in hex."""
    raw = secret.encode()
    in_base64 = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, raw.lower(), raw.upper(), *in_base64, raw.hex().encode()]


def found(secrets: Mapping[str, str], text: bytes) -> set[str]:
    return {name for name, secret in secrets.items() if any(form in text for form in forms(secret))}


@dataclass(frozen=True)
class Watched:
    """A stack whose every word is kept. `told` is what queues told the functions, and what these failed with."""

    service: Service
    told: list[str] = field(default_factory=list)

    def keys(self) -> dict[str, str]:
        """What belongs into no answer and no record either, whatever the path."""
        clients = self.service.stack.keys
        hashes = {
            f"hash of {client}'s key": hashlib.sha256(key.encode()).hexdigest() for client, key in clients.items()
        }
        named = {f"{client}'s key": key for client, key in clients.items()}
        return {"the upstream's key": UPSTREAM_KEY, **AWS_SECRETS, **named, **hashes}

    def leaks(self, secrets: Mapping[str, str]) -> dict[str, set[str]]:
        """Which of the secrets are where, by their names."""
        places = {path.name: path.read_bytes() for path in sorted(self.service.stack.logs.iterdir())}
        places["errors and messages"] = "\n".join(self.told).encode()
        leaked = {}
        for place, text in places.items():
            patterns = {pattern.decode() for pattern in NEVER if re.search(pattern, text)}
            if here := found({**secrets, **self.keys()}, text) | patterns:
                leaked[place] = here
        return leaked

    def listen(self) -> None:
        for name, host in self.service.stack.functions.items():
            by_queue = name in ("WorkerFunction", "DeadLetterFunction")
            setattr(host, "invoke", partial(self._invoke, host.invoke, by_queue=by_queue))  # noqa: B010

    def _invoke(self, invoke: Callable[[object], Future[bytes]], event: object, *, by_queue: bool) -> Future[bytes]:
        if by_queue:
            self.told.append(json.dumps(event))
        future = invoke(event)
        future.add_done_callback(lambda done: self.told.append(str(done.exception() or "")))
        return future


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    parameters = {
        "WaitSeconds": "1",
        "LeaseSeconds": "2",
        "UpstreamTimeoutSeconds": "2",
        "QuickUpstreamTimeoutSeconds": "2",
    }
    with serve("source", tmp_path_factory.mktemp("silence"), parameters, {**TALKATIVE, **AWS_SECRETS}) as service:
        watched = Watched(service)
        watched.listen()
        yield watched


class Walk:
    """One path through the stack, with canaries of its own."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.service = watched.service
        self.stack = watched.service.stack
        self.upstream = watched.service.upstream
        self.secrets: dict[str, str] = {}
        self.answers: list[tuple[int, dict[str, str], dict[str, Any]]] = []

    def __getitem__(self, name: str) -> str:
        """The canary of that name."""
        return self.secrets.setdefault(name, f"canary{uuid.uuid4().hex}")

    def ask(
        self, path: str, body: bytes | Mapping[str, object] = b"", *, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = post(self.service, sent, path=path, method=method, **headers)
        self.answers.append(answer)
        return answer

    def post(self, body: bytes | Mapping[str, object], **headers: str) -> tuple[int, str | None]:
        """The status and the code of the answer to a request for images, followed to its end."""
        status, got, answer = self.ask("/images/generations", body, method="POST", **headers)
        for _ in range(20):
            if status != 303 or "/answers/" in got["location"]:
                break
            status, _, answer = self.ask(f"/images/generations/{got['x-generation-id']}/result")
        return status, answer.get("error", {}).get("code")

    def generate(self, model: str = FIRST_WORKER, **fields: object) -> tuple[int, str | None]:
        """As OpenAI's clients do, so that the api function itself makes images of quick models."""
        body = {"prompt": self["prompt"], "user": self["user"], "model": model, **fields}
        return self.post(body, Idempotency_Key=self["idempotency key"], x_stainless_retry_count="0")

    def generation_id(self) -> str:
        return next(headers["x-generation-id"] for _, headers, _ in self.answers if "x-generation-id" in headers)

    def until_ended(self) -> dict[str, Any]:
        until = time.monotonic() + 40
        while time.monotonic() < until:
            _, _, generation = self.ask(f"/images/generations/{self.generation_id()}")
            if generation.get("status") in ("completed", "failed", "cancelled"):
                return generation
            time.sleep(0.2)
        raise AssertionError("the generation did not end")

    def image(self, size: int = 0) -> bytes:
        return PNG + self["image"].encode() + bytes(size) + self["image"].encode() + IEND

    def base64(self, size: int = 0) -> dict[str, str]:
        return {"b64_json": base64.b64encode(self.image(size)).decode(), "revised_prompt": self["revised prompt"]}

    def url(self, content: bytes | None = None) -> dict[str, str]:
        """An image that is to be downloaded, at a URL that tells a secret as presigned ones do."""
        name = f"{self['file']}.png?X-Amz-Signature={self['image query']}"
        self.upstream.files[name] = ("image/png", self.image() if content is None else content)
        return {"url": f"{self.service.upstream_url.removesuffix('/v1')}/files/{name}"}

    def answered(self, *images: Mapping[str, str]) -> None:
        body = json.dumps({"created": 1, "data": images}).encode()
        self.upstream.script.append(lambda _: Reply(200, body))

    def refused(self, status: int, *, times: int = 1, message: str | None = None, **fields: object) -> None:
        """The upstream says no, and repeats what it should not."""
        told = message or f"no: {self['prompt']} {UPSTREAM_KEY} {self['words']}"
        error = {"message": told, "type": self["type"], "param": self["param"], "code": self["code"], **fields}
        reply = Reply(status, json.dumps({"error": error}).encode(), {"retry-after-ms": "1", "X": self["header"]})
        self.upstream.script.extend([lambda _: reply] * times)

    @contextmanager
    def failing(self, service: str | None, calls: range = range(1, 80), **how: Any) -> Iterator[None]:
        """These calls of the functions to an AWS service fail."""
        self.stack.door.fail(*(Fault(at, service=service, **how) for at in calls))
        try:
            yield
        finally:
            self.stack.door.fail()

    def forget(self, *functions: str) -> None:
        """Ends processes, and the caches in them."""
        for function in functions:
            kill_workers(self.service, function)
        time.sleep(0.3)  # until the host has seen that they are gone


@pytest.fixture
def walk(watched: Watched) -> Walk:
    watched.service.upstream.script.clear()
    watched.service.upstream.download_script.clear()
    return Walk(watched)


Step = Callable[[Walk], None]


# Successes


def with_urls(model: str, walk: Walk) -> None:
    walk.answered({**walk.url(), "revised_prompt": walk["revised prompt"]})
    assert walk.generate(model, response_format="url") == (200, None)


def with_base64(model: str, walk: Walk) -> None:
    walk.answered(walk.base64())
    assert walk.generate(model, response_format="b64_json") == (200, None)


def with_a_data_url(model: str, walk: Walk) -> None:
    walk.answered({"url": f"data:image/png;base64,{walk.base64()['b64_json']}"})
    assert walk.generate(model, response_format="b64_json") == (200, None)


def with_base64_too_large_for_one_answer(walk: Walk) -> None:
    walk.answered(walk.base64(5_000_000))
    assert walk.generate(WORKER) == (303, None)
    with urlopen(walk.answers[-1][1]["location"]) as answer:
        assert found({"image": walk["image"]}, answer.read())
    status, _, told = walk.ask(f"/images/generations/{walk.generation_id()}/result", method="POST")
    assert (status, told["error"]["code"]) == (424, "answer_too_large")


def begun_seen_listed_linked_and_deleted(walk: Walk) -> None:
    walk.answered(walk.url())
    status, _, _ = walk.ask("/images/generations", {"prompt": walk["prompt"]}, method="POST", Prefer="respond-async")
    assert status == 202
    (image,) = walk.until_ended()["data"]
    assert walk.ask("/images/generations?limit=5")[0] == 200
    assert walk.ask(f"/images/{image['id']}?{walk['query']}", Authorization=walk["authorization"])[0] == 302
    for link in ("permalink", "url"):
        with urlopen(image[link]) as content:
            assert content.read() == walk.image()
    own, path = f"Bearer {walk.stack.keys['other']}", f"/images/generations/{walk.generation_id()}"
    assert walk.ask(path, Authorization=own)[0] == 404
    assert walk.ask(f"{path}/cancel", method="POST")[0] == 409
    assert walk.ask(path, method="DELETE")[0] == 200
    assert walk.ask(path)[0] == 404


def cancelled_at_work(walk: Walk) -> None:
    walk.upstream.script.append(lambda _: time.sleep(1))
    walk.ask("/images/generations", {"prompt": walk["prompt"]}, method="POST", Prefer="respond-async")
    path = f"/images/generations/{walk.generation_id()}"
    assert walk.ask(f"{path}/cancel", method="POST")[0] == 200
    status, _, told = walk.ask(f"{path}/result")
    assert (status, told["error"]["code"]) == (424, "generation_cancelled")
    time.sleep(1.5)


def asked_again(walk: Walk) -> None:
    walk.answered(walk.url())
    assert walk.generate() == (200, None)
    assert walk.generate() == (200, None)
    assert walk.generate(n=2) == (422, "idempotency_key_reused")


# What callers get wrong


def bad_body(body: Callable[[Walk], bytes], status: int, walk: Walk) -> None:
    assert walk.post(body(walk))[0] == status


def bad_field(name: str, walk: Walk) -> None:
    assert walk.post({"prompt": walk["prompt"], name: walk["value"]})[0] == 400


def bad_headers(walk: Walk) -> None:
    said = walk["header"]
    names = (
        "Cookie",
        "Origin",
        "Prefer",
        "Referer",
        "User_Agent",
        "X_Forwarded_For",
        "X_Amzn_Trace_Id",
        "X_Request_Id",
    )
    body = {"prompt": walk["prompt"]}
    walk.answered(walk.url())
    assert walk.post(body, **dict.fromkeys(names, said), x_stainless_retry_count=said) == (200, None)
    assert walk.post(body, Content_Type=said)[0] == 415
    assert walk.post(body, Idempotency_Key=f"{said}\xe9")[0] == 400
    assert walk.post(body, Idempotency_Key=said * 9)[0] == 400


def bad_queries(walk: Walk) -> None:
    asked = walk["query"]
    for query in (f"limit={asked}", f"status={asked}", f"after={asked}", f"api_key={asked}", asked):
        assert walk.ask(f"/images/generations?{query}")[0] in (200, 400)
    for path in ("/models", "/images/generations/gen_none/result"):
        assert walk.ask(f"{path}?hop={asked}&key={asked}")[0] in (200, 404)


def bad_paths(walk: Walk) -> None:
    asked = walk["path"]
    for path in (f"/{asked}", f"/images/{asked}", f"/images/generations/{asked}", f"/images/edits/{asked}/{asked}"):
        for method in ("GET", "POST", "DELETE"):
            assert walk.ask(path, method=method)[0] in (404, 405)
    assert walk.ask(f"/images/img_{asked[-22:]}")[0] == 302  # nobody looks whether there is such an image


def bad_keys(walk: Walk) -> None:
    client = BearerKey.new("local").key
    for name, token in {
        "wrong secret": client,
        "unknown client": BearerKey.new("nobody").key,
        "token": ".".join(f"eyJ{uuid.uuid4().hex}" for _ in range(3)),
        "upstream-like key": f"sk-{uuid.uuid4().hex}",
        "anything": f"canary{uuid.uuid4().hex}",
    }.items():
        walk.secrets[name] = token
        for scheme in ("Bearer", "bearer", "Basic", "Token"):
            assert walk.ask("/models", Authorization=f"{scheme} {token}")[0] == 401


def record_that_nobody_can_read(walk: Walk) -> None:
    key = BearerKey.new(f"odd-{uuid.uuid4().hex[:8]}")
    walk.secrets["key"] = key.key
    value = f'{{"key_sha256": "{walk["record"]}'
    walk.stack.client("ssm").put_parameter(Name=f"/{STACK_NAME}/clients/{key.client}", Type="String", Value=value)
    assert walk.ask("/models", Authorization=f"Bearer {key.key}")[0] == 401


def client_without_an_allowance(walk: Walk) -> None:
    key = BearerKey.new(f"poor-{uuid.uuid4().hex[:8]}")
    walk.secrets["key"] = key.key
    value = json.dumps({"key_sha256": key.record().key_sha256, "images_per_day": 0})
    walk.stack.client("ssm").put_parameter(Name=f"/{STACK_NAME}/clients/{key.client}", Type="String", Value=value)
    walk.post({"prompt": walk["prompt"]}, Authorization=f"Bearer {key.key}")


# What upstreams get wrong


def refusal(status: int, code: str | None, told: tuple[int, str], model: str, walk: Walk) -> None:
    walk.refused(status, times=3, **({"code": code} if code else {}))
    assert walk.generate(model) == told


def refusal_that_tells(what: Callable[[Walk], str], walk: Walk) -> None:
    walk.refused(400, message=f"The request failed: {what(walk)}")
    assert walk.generate() == (400, "upstream_refused_request")


def answer_that_is_none(body: Callable[[Walk], bytes], code: str, model: str, walk: Walk) -> None:
    reply = Reply(200, body(walk), {"X": walk["header"]})
    walk.upstream.script.append(lambda _: reply)
    assert walk.generate(model) == (424, code)


def no_answer(reply: Callable[[Request], Reply], code: str, model: str, walk: Walk) -> None:
    walk.upstream.script.append(reply)
    assert walk.generate(model) == (424, code)


def hang(_: Request) -> Reply:
    time.sleep(3)
    raise HungUpError


def hang_up(_: Request) -> Reply:
    raise HungUpError


def nobody_there(walk: Walk) -> None:
    function = walk.stack.functions["ApiFunction"].function
    closed = {**function.environment, "UPSTREAM_BASE_URL": f"http://127.0.0.1:9/v1/{walk['base URL']}"}
    event = json.loads((ROOT / "events/create-images.json").read_text())
    event["headers"]["Idempotency-Key"] = walk["idempotency key"]
    event["body"] = json.dumps({"prompt": walk["prompt"]})
    other = FunctionHost(replace(function, environment=closed), walk.stack.logs / "closed.log")
    try:
        answer = json.loads(other.invoke(event).result(timeout=30))
    finally:
        other.close()
    walk.answers.append((answer["statusCode"], {}, json.loads(answer["body"])))
    assert json.loads(answer["body"])["error"]["code"] == "upstream_unreachable"


def image_url(url: Callable[[Walk], str], code: str, model: str, walk: Walk) -> None:
    walk.answered({"url": url(walk)})
    assert walk.generate(model) == (424, code)


def download(reply: Callable[[Walk], Reply], code: str, model: str, walk: Walk) -> None:
    answer = reply(walk)
    walk.answered(walk.url())
    walk.upstream.download_script.extend([lambda _: answer] * 4)
    assert walk.generate(model) == (424, code)


def one_of_two_refused(walk: Walk) -> None:
    walk.answered(walk.url())
    walk.refused(400)
    assert walk.generate(n=2) == (424, "upstream_refused_request")
    assert walk.answers[-1][2]["error"]["images"]


# What breaks on our side


def aws_service_gone(service: str, how: Mapping[str, Any], model: str, walk: Walk) -> None:
    for _ in range(3):
        walk.answered(walk.base64())
    with walk.failing(service, **how):
        assert walk.generate(model)[0] in (424, 503)


def aws_call_lost(at: int, when: str, model: str, walk: Walk) -> None:
    for _ in range(3):
        walk.answered(walk.url())
    with walk.failing(None, range(at, at + 1), when=when):
        walk.generate(model)
        time.sleep(1)
    walk.generate(model)
    walk.until_ended()


def deletion_that_fails(walk: Walk) -> None:
    walk.answered(walk.url())
    assert walk.generate() == (200, None)
    path = f"/images/generations/{walk.generation_id()}"
    with walk.failing("s3"):
        status, _, told = walk.ask(path, method="DELETE")
    assert (status, told["error"]["code"]) == (503, "deletion_unfinished")
    assert walk.ask(path, method="DELETE")[0] == 200


def link_of_a_broken_bucket(walk: Walk) -> None:
    walk.answered(walk.base64())
    assert walk.generate(response_format="b64_json") == (200, None)
    with walk.failing("s3"):
        assert walk.ask(f"/images/generations/{walk.generation_id()}/result")[0] == 424


def secrets_gone(walk: Walk) -> None:
    with walk.failing("ssm"):
        walk.forget("ApiFunction", "AuthorizerFunction")
        status, _, told = walk.ask("/models", Authorization=f"Bearer   {walk.service.key}")
        assert (status, told["error"]["code"]) == (503, "authorizer_unavailable")
    assert walk.ask("/models")[0] == 200
    with walk.failing("ssm"):
        assert walk.generate() == (503, "secret_unavailable")


def upstream_key_that_no_header_can_carry(walk: Walk) -> None:
    put = partial(
        walk.stack.client("ssm").put_parameter,
        Name=f"/{STACK_NAME}/upstream-api-key",
        Type="SecureString",
        Overwrite=True,
    )
    put(Value=f"{walk['key']} {walk['rest of the key']}")
    try:
        walk.forget("ApiFunction")
        assert walk.generate() == (503, "upstream_key_missing")
    finally:
        put(Value=UPSTREAM_KEY)
        walk.forget("ApiFunction")


def killed(function: str, model: str, walk: Walk) -> None:
    def kill(_: Request) -> Reply:
        kill_workers(walk.service, function)
        raise HungUpError

    walk.upstream.script.append(kill)
    walk.answered(walk.url())
    walk.generate(model)
    walk.generate(model)  # the gateway's answer for a function that died names no generation
    assert walk.until_ended()["status"] == "completed"


def queue(walk: Walk, name: str) -> tuple[Any, str]:
    sqs = walk.stack.client("sqs")
    (url,) = [url for url in sqs.list_queues()["QueueUrls"] if f"-{name}" in url]
    return sqs, url


def given_up(walk: Walk) -> None:
    """As if every attempt at it had died: its message comes among the dead letters, where its images are found."""
    walk.answered(walk.url())
    assert walk.generate() == (200, None)
    dynamodb = walk.stack.client("dynamodb")
    dynamodb.update_item(
        TableName=dynamodb.list_tables()["TableNames"][0],
        Key={"pk": {"S": walk.generation_id()}, "sk": {"S": "generation"}},
        UpdateExpression="SET #status = :queued, lease_until = :past REMOVE completed_at",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":queued": {"S": "queued"}, ":past": {"N": "1"}},
    )
    sqs, url = queue(walk, "GenerationDeadLetters")
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"generation_id": walk.generation_id()}))
    assert walk.until_ended()["status"] == "completed"


def messages_that_are_none(walk: Walk) -> None:
    for name in ("GenerationQueue", "GenerationDeadLetters"):
        sqs, url = queue(walk, name)
        for body in (walk["message"], json.dumps([walk["message"]]), json.dumps({walk["message"]: walk["message"]})):
            sqs.send_message(QueueUrl=url, MessageBody=body)
        until = time.monotonic() + 10
        while sum(walk["message"] in told for told in walk.watched.told) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        sqs.purge_queue(QueueUrl=url)
        assert any(walk["message"] in told for told in walk.watched.told)
        walk.watched.told.clear()  # the canary is our own here


def events_that_are_none(walk: Walk) -> None:
    event = {walk["event"]: walk["event"], "headers": {"Authorization": walk["event"]}, "body": walk["event"]}
    for name, host in walk.stack.functions.items():
        sound = FunctionHost(host.function, walk.stack.logs / "events.log")
        try:
            assert sound.invoke(event).exception(timeout=30), name
        finally:
            sound.close()


def no_png(walk: Walk) -> Reply:
    return Reply(200, f"<html>{walk['page']}".encode(), {"X": walk["header"]})


PATHS: dict[str, Step] = {
    "the oversized answer": with_base64_too_large_for_one_answer,
    "a generation's whole life": begun_seen_listed_linked_and_deleted,
    "a cancellation": cancelled_at_work,
    "a retry": asked_again,
    "bad headers": bad_headers,
    "bad queries": bad_queries,
    "bad paths": bad_paths,
    "bad keys": bad_keys,
    "a client's record unreadable": record_that_nobody_can_read,
    "a client without an allowance": client_without_an_allowance,
    "an upstream that is not there": nobody_there,
    "one of two refused": one_of_two_refused,
    "a deletion that fails": deletion_that_fails,
    "a stored image unreadable": link_of_a_broken_bucket,
    "no secrets": secrets_gone,
    "an unusable upstream key": upstream_key_that_no_header_can_carry,
    "the api function killed": partial(killed, "ApiFunction", FIRST_WORKER),
    "the worker killed": partial(killed, "WorkerFunction", WORKER),
    "given up": given_up,
    "messages that are none": messages_that_are_none,
    "events that are none": events_that_are_none,
}
PATHS |= {
    f"a bad {name}": partial(bad_field, name)
    for name in ("model", "n", "size", "quality", "style", "response_format", "background", "unknown")
}
PATHS |= {
    "an unknown field": partial(bad_body, lambda w: json.dumps({"prompt": "x", w["name"]: 1}).encode(), 400),
    "too long a prompt": partial(bad_body, lambda w: json.dumps({"prompt": w["prompt"] * 40}).encode(), 400),
    "a prompt of a wrong type": partial(bad_body, lambda w: json.dumps({"prompt": [w["prompt"]]}).encode(), 400),
    "a body that is no JSON": partial(bad_body, lambda w: f'{{"prompt":"{w["prompt"]}'.encode(), 400),
    "a body that is no object": partial(bad_body, lambda w: json.dumps([w["prompt"]]).encode(), 400),
    "a body that is no text": partial(bad_body, lambda w: w["prompt"].encode() + b"\xff\xfe", 400),
    "a body over our limit": partial(bad_body, lambda w: (w["prompt"] * 20_000).encode(), 413),
    "a body over Lambda's limit": partial(bad_body, lambda w: (w["prompt"] * 200_000).encode(), 424),
    "a body over the gateway's limit": partial(bad_body, lambda w: (w["prompt"] * 300_000).encode(), 413),
}
PATHS |= {
    f"a refusal that tells {name}": partial(refusal_that_tells, what)
    for name, what in {
        "the key": lambda w: f"{UPSTREAM_KEY}, '{UPSTREAM_KEY}', Bearer {UPSTREAM_KEY}.",
        "a caller's key": lambda w: f"{w.service.key}.",
        "a presigned URL": lambda w: f"https://host/x.png?X-Amz-Signature={w['query']}&X-Amz-Credential=x.",
        "a presigned query": lambda w: f"/x.png?X-Amz-Signature={w['query']}&X-Amz-Credential=x.",
        "a token": lambda w: w.secrets.setdefault("token", ".".join(f"eyJ{uuid.uuid4().hex}" for _ in range(3))),
    }.items()
}
for model_, who in ((FIRST_WORKER, "api"), (WORKER, "worker")):
    PATHS |= {
        f"URLs by the {who}": partial(with_urls, model_),
        f"base64 by the {who}": partial(with_base64, model_),
        f"a data URL by the {who}": partial(with_a_data_url, model_),
        f"a time-out at the {who}": partial(no_answer, hang, "upstream_timeout", model_),
        f"a drop at the {who}": partial(no_answer, hang_up, "upstream_connection_lost", model_),
    }
    PATHS |= {
        f"upstream's {status} {code or ''} at the {who}": partial(refusal, status, code, told, model_)
        for status, code, told in (
            (400, None, (400, "upstream_refused_request")),
            (400, "content_policy_violation", (400, "content_policy_violation")),
            (400, "moderation_blocked", (400, "moderation_blocked")),
            (401, None, (502, "upstream_key_refused")),
            (402, None, (502, "upstream_out_of_credit")),
            (404, None, (502, "upstream_misconfigured")),
            (429, None, (429, "rate_limit_exceeded")),
            (500, None, (424, "upstream_failed")),
            (503, None, (503, "upstream_unavailable")),
        )
    }
    PATHS |= {
        f"an answer with {name} at the {who}": partial(answer_that_is_none, body, code, model_)
        for name, body, code in (
            ("a page", lambda w: f"<html>{w['page']}".encode(), "upstream_answer_invalid"),
            (
                "other JSON",
                lambda w: json.dumps({"data": w["page"], "usage": w["page"]}).encode(),
                "upstream_answer_invalid",
            ),
            ("no images", lambda w: json.dumps({"data": [{w["name"]: w["page"]}]}).encode(), "upstream_answer_invalid"),
            (
                "bad base64",
                lambda w: json.dumps({"data": [{"b64_json": f"{w['b']}!"}]}).encode(),
                "upstream_answer_invalid",
            ),
            (
                "base64 of a page",
                lambda w: json.dumps({"data": [{"b64_json": base64.b64encode(w["b"].encode()).decode()}]}).encode(),
                "not_an_image",
            ),
        )
    }
    PATHS |= {
        f"an image URL {name} at the {who}": partial(image_url, url, "image_url_refused", model_)
        for name, url in (
            ("of another port", lambda w: f"http://127.0.0.1:9/{w['url']}?X-Amz-Signature={w['query']}"),
            ("of this machine", lambda w: f"https://localhost/{w['url']}?sig={w['query']}"),
            ("with credentials", lambda w: f"https://{w['user']}:{w['password']}@127.0.0.1/"),
            ("without a host", lambda w: f"file:///{w['url']}"),
            ("that is none", lambda w: f"https://[{w['url']}/"),
            ("with odd characters", lambda w: f"https://127.0.0.1/{w['url']} \u00e9"),
            ("with too long a name", lambda w: f"https://{w['url']}{w['url']}.example/"),
        )
    }
    PATHS |= {
        f"a download that {name} at the {who}": partial(download, reply, code, model_)
        for name, reply, code in (
            ("is no image", no_png, "not_an_image"),
            ("is half an image", lambda w: Reply(200, w.image(5000)[:-8]), "image_truncated"),
            ("breaks off", lambda w: Reply(200, w.image(), declared_length=9000), "image_download_failed"),
            ("is too large", lambda w: Reply(200, w.image(), declared_length=26_214_401), "image_too_large"),
            ("is forbidden", lambda w: replace(no_png(w), status=403), "image_download_failed"),
            ("fails", lambda w: replace(no_png(w), status=500), "image_download_failed"),
            (
                "leads elsewhere",
                lambda w: Reply(302, b"", {"Location": f"http://127.0.0.1:9/?X-Amz-Signature={w['elsewhere']}"}),
                "image_url_refused",
            ),
        )
    }
    PATHS |= {
        f"{service} {name} at the {who}": partial(aws_service_gone, service, how, model_)
        for service in ("s3", "dynamodb", "sqs")
        for name, how in {"failing": {}, "hanging up": {"error": "hang-up"}}.items()
    }
    PATHS |= {
        f"AWS call {at} failing {when} its effect at the {who}": partial(aws_call_lost, at, when, model_)
        for at, when in ((2, "before"), (4, "after"), (6, "before"), (8, "after"))
    }

# What a caller's own bad value may come back in, as OpenAI has it; an upstream's reason is passed on, without keys.
REPEATED = {
    **{f"a bad {name}": {"value"} for name in ("model", "size", "quality", "style", "response_format")},
    "an unknown field": {"name"},
    **{f"upstream's 400  at the {who}": {"prompt", "words"} for who in ("api", "worker")},
    "one of two refused": {"prompt", "words"},
}


def without_links(value: Any) -> Any:
    """An answer without the presigned URLs that it is there to bring."""
    if isinstance(value, list):
        return [without_links(each) for each in value]
    if isinstance(value, dict):
        return {k: without_links(v) for k, v in value.items() if not (k == "url" and "permalink" in value)}
    return value


def secrets_told(walk: Walk, repeated: set[str]) -> list[tuple[int, set[str]]]:
    told = []
    for status, headers, answer in walk.answers:
        plain = {name: value for name, value in headers.items() if not (name == "location" and status in (302, 303))}
        text = json.dumps([plain, without_links(answer)]).encode()
        allowed = HANDED_OUT if status < 400 else repeated
        secrets = {name: secret for name, secret in walk.secrets.items() if name not in allowed}
        if here := found({**secrets, **walk.watched.keys()}, text) | set(map(repr, re.findall(PRESIGNED, text))):
            told.append((status, here))
    return told


@pytest.mark.parametrize("name", PATHS)
def test_no_path_leaves_a_secret_in_what_the_stack_writes_or_tells(walk: Walk, name: str) -> None:
    PATHS[name](walk)
    assert walk.watched.leaks(walk.secrets) == {}
    assert secrets_told(walk, REPEATED.get(name, set())) == []


def test_every_function_has_written_so_there_was_something_to_search(walk: Walk) -> None:
    given_up(walk)
    assert walk.post({"prompt": walk["prompt"], "model": WORKER}) == (200, None)
    bad_keys(walk)
    lines = {"Api": "answered", "Worker": "looked at", "DeadLetter": "gave up", "Authorizer": "denied"}
    for function, line in lines.items():
        assert f'"{line}"' in (walk.stack.logs / f"{function}Function.log").read_text(), function


def test_the_table_and_the_parameters_hold_no_key(walk: Walk) -> None:
    walk.refused(400)
    walk.generate()
    dynamodb, ssm = walk.stack.client("dynamodb"), walk.stack.client("ssm")
    (table,) = dynamodb.list_tables()["TableNames"]
    items = [item for page in dynamodb.get_paginator("scan").paginate(TableName=table) for item in page["Items"]]
    assert any(walk.generation_id() in json.dumps(item) for item in items)
    assert found(walk.watched.keys(), json.dumps(items).encode()) == set()
    clients = ssm.get_parameters_by_path(Path=f"/{STACK_NAME}/clients", WithDecryption=True)["Parameters"]
    kept = {name: key for name, key in walk.watched.keys().items() if not name.startswith("hash")}
    assert found(kept, repr(clients).encode()) == set()


@pytest.mark.parametrize("name", ["ApiFunction", "WorkerFunction", "DeadLetterFunction", "AuthorizerFunction"])
def test_powertools_developer_mode_makes_no_function_write_its_event(walk: Walk, name: str, tmp_path: Path) -> None:
    """Whoever turns it on to find a fault would otherwise have every key and prompt in the log."""
    api = json.loads((ROOT / "events/create-images.json").read_text())
    api["headers"] |= {"Authorization": f"Bearer {walk['key']}", "Idempotency-Key": walk["idempotency key"]}
    api["body"] = json.dumps({"prompt": walk["prompt"]})
    work = json.loads((ROOT / "events/work.json").read_text())
    work["Records"][0]["messageAttributes"] = {"x": {"stringValue": walk["attribute"]}}
    authorize = json.loads((ROOT / "events/authorize.json").read_text())
    authorize["authorizationToken"] = f"Bearer {walk['key']}"
    event = {"ApiFunction": api, "AuthorizerFunction": authorize}.get(name, work)
    function = walk.stack.functions[name].function
    developing = replace(function, environment={**function.environment, "POWERTOOLS_DEV": "true"})
    host = FunctionHost(developing, tmp_path / "developing.log")
    try:
        host.invoke(event).result(timeout=30)
    finally:
        host.close()
    assert found({**walk.secrets, **walk.watched.keys()}, (tmp_path / "developing.log").read_bytes()) == set()


def test_what_makes_the_functions_talkative_makes_the_libraries_write_such_secrets(walk: Walk, tmp_path: Path) -> None:
    """Without it, silence would prove nothing."""
    (tmp_path / "app.py").write_text(
        "import boto3, urllib3\n"
        "def lambda_handler(event, context):\n"
        "    urllib3.PoolManager().request('GET', event['url'])\n"
        "    boto3.client('ssm').get_parameter(Name=event['name'], WithDecryption=True)\n"
    )
    function = replace(walk.stack.functions["ApiFunction"].function, code=tmp_path, handler="app.lambda_handler")
    host = FunctionHost(function, tmp_path / "talkative.log")
    try:
        event = {"url": walk.url()["url"], "name": f"/{STACK_NAME}/upstream-api-key"}
        host.invoke(event).result(timeout=30)
    finally:
        host.close()
    written = (tmp_path / "talkative.log").read_bytes()
    assert found({**walk.secrets, **walk.watched.keys()}, written) >= {"image query", "the upstream's key"}


def test_the_gateway_is_not_told_to_log_what_passes_through_it() -> None:
    template = (ROOT / "template.yaml").read_text()
    assert not re.search(r"DataTraceEnabled: *[Tt]rue", template)
    assert "$context.path" not in template  # an image's id is its capability
