"""The functions' real handlers, on the events of events/, with moto for AWS and a real HTTP upstream."""

import io
import json
import logging
import os
import re
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
import pytest

from functions.api import app as api_app
from functions.authorizer import app as authorizer_app
from functions.worker import app as worker_app
from imagegen.bootstrap import sdk
from imagegen.bootstrap.api import api
from imagegen.bootstrap.authorizer import authorizer
from imagegen.bootstrap.worker import worker
from imagegen.domain.credentials import BearerKey
from imagegen.domain.errors import IssuerUnavailableError
from imagegen.domain.models import CATALOG
from local.serving import HungUpError, Reply, Request
from local.template import Template
from tests.conftest import ROOT, UPSTREAM_KEY, Upstream
from tests.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer
from tests.fakes.provider import png
from tests.support.lambda_events import Event, example, invoked, over_http

REGION = "us-east-1"
IMAGE_ID, GENERATION_ID = "img_AAECAwQFBgcICQoLDA0ODw", "gen_AAECAwQFBgcICQoLDA0ODw"  # those of the example events
NONE_FAILED: Event = {"batchItemFailures": []}


@cache
def client(service: str) -> Any:
    return sdk.session().client(service)  # type: ignore[call-overload]


SDK = (sdk.session, sdk.dynamodb, sdk.events, sdk.sqs, sdk.ssm, client)


class Stack:
    """A stack in moto, made from the template, with its functions' variables in the environment."""

    def __init__(self, aws_url: str, environment: pytest.MonkeyPatch) -> None:
        runtime = {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": aws_url}
        for name, value in (runtime | {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}).items():
            environment.setenv(name, value)
        parameters = {
            "UpstreamBaseUrl": "http://127.0.0.1:9/v1",  # each test has its own
            "LinkSeconds": "600",
            "MaxImageBytes": "8388608",
            "QuickUpstreamTimeoutSeconds": "20",
            "WaitSeconds": "1",
        }
        self.name, self.key = f"test-{uuid.uuid4().hex[:12]}", BearerKey.new("example")
        resources = self._deployed(parameters)
        for function in ("WorkerFunction", "AuthorizerFunction", "ApiFunction"):  # the last one's come out on top
            configuration = client("lambda").get_function_configuration(FunctionName=resources[function])
            for name, value in configuration["Environment"]["Variables"].items():
                environment.setenv(name, str(value))
        self.bucket, self.table = resources["ImageBucket"], resources["GenerationTable"]
        keys = client("dynamodb").describe_table(TableName=self.table)["Table"]["KeySchema"]
        self.key_names = [each["AttributeName"] for each in keys]
        secret = {"Name": f"/{self.name}/upstream-api-key", "Type": "SecureString", "Value": UPSTREAM_KEY}
        client("ssm").put_parameter(**secret)
        self.put_client(self.key)

    def _deployed(self, parameters: dict[str, str]) -> dict[str, str]:
        template = Template.read(ROOT / "template.yaml", parameters, REGION)
        cloudformation = client("cloudformation")
        cloudformation.create_stack(
            StackName=self.name,
            TemplateBody=json.dumps(template.for_moto("http://127.0.0.1")),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        )
        summaries = cloudformation.list_stack_resources(StackName=self.name)["StackResourceSummaries"]
        return {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in summaries}

    def put_client(self, key: BearerKey, **changes: Any) -> None:
        record = msgspec.json.encode(msgspec.structs.replace(key.record(), **changes)).decode()
        client("ssm").put_parameter(Name=f"/{self.name}/clients/{key.client}", Type="String", Value=record)

    def empty(self) -> None:
        for key in self.stored():
            client("s3").delete_object(Bucket=self.bucket, Key=key)
        dynamodb = client("dynamodb")
        for item in dynamodb.scan(TableName=self.table)["Items"]:
            dynamodb.delete_item(TableName=self.table, Key={name: item[name] for name in self.key_names})

    def stored(self) -> dict[str, bytes]:
        s3 = client("s3")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        return {key: s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}


@dataclass(frozen=True)
class Deployed:
    stack: Stack
    upstream: Upstream

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.upstream.stand_in.calls

    def serve_images(self, *images: bytes) -> None:
        """Has the upstream answer with these, by URL."""
        stand_in, origin = self.upstream.stand_in, self.upstream.base_url.removesuffix("/v1")
        stand_in.files |= {str(number): ("image/png", content) for number, content in enumerate(images)}
        answer = {"created": 1, "data": [{"url": f"{origin}/files/{number}"} for number in range(len(images))]}
        stand_in.script.append(lambda _: Reply(200, json.dumps(answer).encode()))


@contextmanager
def fresh(*caches: Any) -> Iterator[None]:
    """Handlers keep what they built for the life of a process; a block is a process of its own."""
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="module")
def stack(aws_url: str) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as environment, fresh(*SDK):
        yield Stack(aws_url, environment)


@pytest.fixture
def deployed(stack: Stack, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    """A stack that holds nothing yet, and a new process of each function."""
    stack.empty()
    monkeypatch.setenv("UPSTREAM_BASE_URL", upstream.base_url)
    with fresh(api, authorizer, worker):
        yield Deployed(stack, upstream)
        for wired in (api, worker):
            if wired.cache_info().currsize:
                wired().workshop.pool.shutdown()


Called = tuple[int, dict[str, str], Any]


def call(event: str | Event, **body: Any) -> Called:
    """Status, headers and decoded body of the api handler's answer; `body` replaces fields of the example's."""
    event = example(event) if isinstance(event, str) else event
    if body:
        event = {**event, "body": json.dumps(json.loads(event["body"]) | body)}
    status, headers, text = over_http(api_app.lambda_handler, event)
    return status, headers, json.loads(text) if text else None


def create(**body: Any) -> Called:
    return call("create-images", **body)


def about(generation_id: str, name: str) -> Event:
    """The example event, about this generation."""
    event: Event = json.loads(json.dumps(example(name)).replace(GENERATION_ID, generation_id))
    return event


def at(name: str, path: str, **context: str) -> Event:
    """The example event, at this path."""
    event = example(name)
    return event | {"path": path, "requestContext": event["requestContext"] | {"path": path, **context}}


def test_a_prompt_becomes_an_image_whose_url_and_permalink_lead_to_the_upstreams_bytes(deployed: Deployed) -> None:
    status, headers, answer = create()

    assert status == 200
    (painted,) = (content for _, content in deployed.upstream.stand_in.files.values())
    (image,) = answer["data"]
    assert deployed.stack.stored() == {f"images/{image['id']}": painted}
    with urlopen(image["url"]) as response:
        assert response.read() == painted
        assert response.headers["Content-Type"] == "image/png"
    assert image["permalink"] == f"https://abc123.execute-api.eu-central-1.amazonaws.com/prod/v1/images/{image['id']}"
    assert answer["id"] == headers["x-generation-id"]
    assert headers["x-request-id"] == "JKJaXmPLvHcESHA="


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_permalink_redirects_to_a_url_signed_for_its_method_without_asking_aws(
    monkeypatch: pytest.MonkeyPatch, stack: Stack, method: Literal["GET", "HEAD"]
) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)  # signed in the same second, they are equal
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    event = example("redirect-to-image")
    event["httpMethod"] = event["requestContext"]["httpMethod"] = method
    with fresh(*SDK):
        status, headers, body = call(event)
        signed = api().workshop.images.signed_url(IMAGE_ID, method)

    assert (status, body, headers["cache-control"]) == (302, None, "no-store")
    assert headers["location"] == signed.url
    location = urlsplit(signed.url)
    assert location.path == f"/{stack.bucket}/images/{IMAGE_ID}"
    assert "X-Amz-Expires=600" in location.query


@pytest.mark.usefixtures("deployed")
def test_links_and_routes_hold_under_a_stage_a_domain_a_base_path_and_a_public_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, path = "https://images.example.com", "/v1/images/generations"
    for prefix, routed, public, base in (
        ("/prod", path, "", f"{own}/prod"),
        ("", path, "", own),
        ("/pictures", f"/pictures{path}", "", f"{own}/pictures"),  # a base path mapping
        ("", path, "https://cdn.example.com/img/", "https://cdn.example.com/img"),
    ):
        monkeypatch.setenv("PUBLIC_BASE_URL", public)
        with fresh(api):
            status, _, answer = call(at("create-images", prefix + path, domainName=own[8:]) | {"path": routed})
            api().workshop.pool.shutdown()
        assert status == 200
        assert answer["data"][0]["permalink"] == f"{base}/v1/images/{answer['data'][0]['id']}"


@pytest.mark.usefixtures("deployed")
def test_with_durable_urls_every_answer_has_the_permalink_as_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_URLS", "true")
    _, _, answer = create()
    _, _, generation = call(about(answer["id"], "get-generation"))
    _, _, listed = call("list-generations")
    for shown in (answer, generation, listed["data"][0]):
        (image,) = shown["data"]
        assert image["url"] == image["permalink"]
        assert "expires_at" not in image


@pytest.mark.usefixtures("deployed")
def test_health_and_models_answer_and_every_provider_of_a_model_is_wired() -> None:
    assert call("health")[::2] == (200, {"status": "ok"})
    status, _, models = call("list-models")
    assert (status, models["object"]) == (200, "list")
    assert [model["id"] for model in models["data"]] == list(CATALOG)
    assert {model.provider for model in CATALOG.values()} == set(api().workshop.providers)


@pytest.mark.usefixtures("deployed")
def test_one_model_is_openais_object_also_by_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ALIASES", "openai/gpt-image-1=gpt-image-1")
    status, _, model = call("get-model")
    assert (status, model["id"], model["object"]) == (200, "gpt-image-1", "model")
    assert call(at("get-model", "/prod/v1/models/openai%2Fgpt-image-1"))[::2] == (200, model)
    for name in ("gpt-image-9", "..", "Flux%2DPro"):
        status, _, answer = call(at("get-model", f"/prod/v1/models/{name}"))
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "Did you mean 'flux-pro'?" in answer["error"]["message"]


def test_what_clients_send_is_taken(deployed: Deployed) -> None:
    defaults = '{"prompt": "defaults", "model": "flux", "quality": "standard", "style": "vivid", "stream": false}'
    encoded = {"isBase64Encoded": True, "body": b64encode(b'{"prompt": "base64"}').decode()}
    for event in ({"body": '\ufeff{"prompt": "half \\ud83d"}'}, {"body": defaults}, encoded):
        assert call(example("create-images") | event)[0] == 200
    assert [sent["prompt"] for sent in deployed.calls] == ["half \ufffd", "defaults", "base64"]
    assert not {"quality", "style", "stream"} & set().union(*deployed.calls)


def test_what_no_client_should_send_is_refused_before_the_upstream_is_called(deployed: Deployed) -> None:
    for body in (b'{"prompt": "\xff"}', b"\xff\xfe{}"):
        encoded = {"isBase64Encoded": True, "body": b64encode(body).decode()}
        assert call(example("create-images") | encoded)[0] == 400
    # Only `sam local` would send this one.
    status, _, answer = call(at("list-models", "/v1/audio") | {"resource": "/v1/audio"})
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    assert deployed.calls == []


@pytest.mark.parametrize(
    ("name", "value", "status", "code", "calls"),
    [
        ("UPSTREAM_API_KEY_PARAMETER", "/not/there", 503, "upstream_key_missing", 0),
        ("IMAGE_BUCKET", "not-there", 424, "image_storage_failed", 1),
        ("IMAGE_BUCKET", "", 500, "internal_error", 0),
    ],
)
def test_what_the_stack_misses_is_an_error_in_openais_shape(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: int, code: str, calls: int
) -> None:
    if value:
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.delenv(name)
    answered, headers, answer = create()
    assert (answered, answer["error"]["code"]) == (status, code)
    assert headers.get("x-should-retry") == (None if status == 500 else "false")
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert name not in json.dumps(answer)
    assert len(deployed.calls) == calls


@pytest.mark.parametrize("missing", [False, True], ids=["then they come", "they stay missing"])
def test_images_that_an_upstream_leaves_out_are_asked_for_once_more(deployed: Deployed, missing: bool) -> None:
    deployed.serve_images(png("1"))
    if missing:
        deployed.upstream.stand_in.script += [lambda _: Reply(200, b'{"created": 1, "data": []}')] * 2
    status, headers, answer = create(model="dall-e-2", n=3)
    assert [sent["n"] for sent in deployed.calls] == [3, 1, 1]
    _, _, generation = call(about(headers["x-generation-id"], "get-generation"))
    assert (generation["extra_calls"], generation["repeated_calls"]) == (2, 0)
    if missing:
        assert (status, answer["error"]["code"]) == (424, "upstream_too_few_images")
        assert (headers["x-should-retry"], len(answer["error"]["images"])) == ("false", 1)
    else:
        assert (status, len(answer["data"])) == (200, 3)


def test_three_of_four_images_are_named_in_the_error_when_one_fails(deployed: Deployed) -> None:
    refusal = b'{"error": {"message": "no", "type": "x", "param": null, "code": "content_policy_violation"}}'
    deployed.upstream.stand_in.script.append(lambda _: Reply(400, refusal))
    status, headers, answer = create(n=4)
    assert (status, answer["error"]["code"]) == (424, "content_policy_violation")
    assert {f"images/{image['id']}" for image in answer["error"]["images"]} == set(deployed.stack.stored())
    assert len(answer["error"]["images"]) == 3
    assert headers["x-generation-id"].startswith("gen_")


def test_base64_that_does_not_fit_one_answer_is_stored_whole_and_redirected_to(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png("1" * 2_400_000), png("2" * 2_400_000)]  # 6.4 MB as base64
    deployed.serve_images(*images)
    status, headers, _ = create(model="dall-e-2", n=2, response_format="b64_json")
    assert (status, headers["location"]) == (303, f"generations/{headers['x-generation-id']}/result")

    event = about(headers["x-generation-id"], "get-result")
    status, headers, _ = call(event)
    assert status == 303
    with urlopen(headers["location"]) as response:
        answer = json.loads(response.read())
    assert [b64decode(image["b64_json"]) for image in answer["data"]] == images

    now = datetime.now(UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)
    event["httpMethod"] = event["requestContext"]["httpMethod"] = "HEAD"
    signed = api().workshop.images.signed_answer_url(headers["x-generation-id"], "HEAD")
    assert call(event)[1]["location"] == signed.url

    # A client that insists on POST gets the permalinks.
    status, _, answer = call(about(headers["x-generation-id"], "post-result"))
    assert (status, answer["error"]["code"]) == (424, "answer_too_large")
    stored = deployed.stack.stored()
    assert [stored[f"images/{image['id']}"] for image in answer["error"]["images"]] == images


def test_base64_that_just_fits_is_answered(deployed: Deployed) -> None:
    deployed.serve_images(png("1" * 4_600_000))
    event = example("create-images") | {"body": '{"prompt": "x", "response_format": "b64_json"}'}
    raw = invoked(api_app.lambda_handler, event)
    assert raw["statusCode"] == 200
    assert len(json.dumps(raw).encode()) < 6_291_556


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All that any logger writes at the lowest level, our own function's logger included."""
    written = io.StringIO()
    ours = logging.getLogger("api").handlers[0]
    assert isinstance(ours, logging.StreamHandler)
    stdout = ours.setStream(written)
    root, handler = logging.getLogger(), logging.StreamHandler(written)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.setLevel(level)
    root.removeHandler(handler)
    ours.setStream(stdout)


def test_no_secret_and_no_prompt_reaches_a_log_line_or_an_error_at_any_level(
    deployed: Deployed, everything_logged: io.StringIO
) -> None:
    prompt = "canary-prompt-31337"
    leaking = {"error": {"message": f"bad key {UPSTREAM_KEY} at http://127.0.0.1/secret?X-Amz=1"}}

    def hang_up(_: Request) -> Reply:
        raise HungUpError

    deployed.upstream.stand_in.script += [
        lambda _: Reply(500, f"{UPSTREAM_KEY} {prompt}".encode()),
        lambda _: Reply(400, json.dumps(leaking).encode()),
        hang_up,
    ]
    failures = [create(prompt=prompt) for _ in range(3)]
    status, _, answer = create(prompt=prompt)
    call("redirect-to-image")

    assert [failure[0] for failure in failures] == [424, 400, 424]
    assert status == 200
    logged, answered = everything_logged.getvalue(), json.dumps(failures)
    assert logged.count('"route":"POST /v1/images/generations"') == 4
    of_image = ("X-Amz-Signature", "/files/", answer["data"][0]["id"])
    assert [each for each in (UPSTREAM_KEY, prompt, deployed.upstream.base_url, *of_image) if each in logged] == []
    assert [each for each in (UPSTREAM_KEY, "X-Amz", "127.0.0.1") if each in answered] == []


def authorize(token: str, name: str = "authorize") -> Any:
    event = example(name) | {"authorizationToken": f"Bearer {token}"}
    return invoked(authorizer_app.lambda_handler, event, "authorizer")


def effect(policy: Any) -> str:
    return str(policy["policyDocument"]["Statement"][0]["Effect"])


def test_a_key_opens_every_route_of_the_stage_and_brings_its_own_allowance(deployed: Deployed) -> None:
    policy = authorize(deployed.stack.key.key)
    resource = "arn:aws:execute-api:eu-central-1:123456789012:abc123/prod/*"
    statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    assert policy == {"principalId": "example", "policyDocument": document}
    frugal = BearerKey.new("frugal")
    deployed.stack.put_client(frugal, images_per_day=3)
    assert authorize(frugal.key)["context"] == {"images_per_day": 3}


@pytest.mark.usefixtures("deployed")
def test_any_other_credential_is_denied_by_a_policy_that_the_gateway_can_cache() -> None:
    examples = [example(name)["authorizationToken"].split()[1] for name in ("authorize", "authorize-jwt")]
    for other in (*examples, BearerKey.new("stranger").key):  # no issuer is trusted
        assert effect(authorize(other)) == "Deny"


@pytest.fixture
def issuer(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIssuer]:
    """The issuer that the authorizer trusts."""
    with running_issuer() as issuer:
        monkeypatch.setenv("OIDC_ISSUER", issuer.url)
        monkeypatch.setenv("OIDC_AUDIENCE", AUDIENCE)
        yield issuer


def test_a_token_opens_every_route_of_the_stage_to_an_opaque_caller(
    issuer: FakeIssuer, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    assert authorize(stack.key.key)["principalId"] == "example"
    assert issuer.asked == []  # a key needs no look at the issuer
    tokens = (issuer.token(), issuer.token("ec-1", sub="bob"))
    good = [authorize(token, "authorize-jwt") for token in tokens]
    for policy in good:
        assert re.fullmatch("oidc:[0-9a-f]{32}", policy["principalId"])
        assert effect(policy) == "Allow"
        assert "context" not in policy
    assert good[0]["principalId"] != good[1]["principalId"]
    assert "ann@example.org" not in json.dumps(good) + capsys.readouterr().out
    bad = authorize(issuer.token(aud="other"), "authorize-jwt")
    assert (bad["principalId"], effect(bad)) == ("unknown", "Deny")
    authorizer.cache_clear()  # an issuer that is down is no policy at all
    issuer.instead[issuer.discovery_path] = lambda _: Reply(503)
    with pytest.raises(IssuerUnavailableError):
        authorize(issuer.token(), "authorize-jwt")


def received(generation_id: str, name: str = "work") -> Event:
    """The event of a message that is really in the queue, and has just been received."""
    body = json.dumps({"generation_id": generation_id})
    sqs, url = sdk.sqs(), os.environ["GENERATION_QUEUE_URL"]
    sqs.send_message(QueueUrl=url, MessageBody=body)
    receipt = sqs.receive_message(QueueUrl=url, VisibilityTimeout=60)["Messages"][0]["ReceiptHandle"]
    (record,) = example(name)["Records"]
    return {"Records": [{**record, "body": body, "receiptHandle": receipt}]}


def work(event: Event, handler: Callable[..., Any] = worker_app.lambda_handler) -> None:
    assert invoked(handler, event, "worker") == NONE_FAILED


def give_up(generation_id: str) -> None:
    work(received(generation_id, "give-up"), worker_app.dead_letter_handler)


def begin(**body: Any) -> str:
    """A generation that nothing works on yet."""
    event = example("create-images")
    event["headers"]["Prefer"] = "respond-async"
    status, headers, answer = call(event, **(body or {"prompt": "later"}))
    assert (status, answer["status"]) == (202, "queued")
    assert headers["location"] == f"generations/{answer['id']}"
    return str(answer["id"])


def test_the_worker_makes_what_its_message_names_and_acknowledges_it(deployed: Deployed) -> None:
    generation_id = begin()
    event = received(generation_id)
    for _ in range(2):  # a message may come twice
        work(event)
    status, _, generation = call(about(generation_id, "get-generation"))
    assert (status, generation["status"]) == (200, "completed")
    assert {f"images/{image['id']}" for image in generation["data"]} == set(deployed.stack.stored())
    assert len(deployed.calls) == 1


@pytest.mark.parametrize("way", ["inline", "queued"])
@pytest.mark.parametrize(
    ("headers", "calls", "seconds"),
    [({"Retry-After": "60"}, 1, "60"), ({"retry-after-ms": "9500"}, 1, "10"), ({"retry-after-ms": "1"}, 3, "1")],
)
def test_of_an_upstream_that_is_rate_limited_each_attempt_asks_at_most_thrice_and_says_when_to_retry(
    deployed: Deployed, headers: dict[str, str], calls: int, seconds: str, way: str
) -> None:
    deployed.upstream.stand_in.script += [lambda _: Reply(429, b"{}", headers)] * 9
    for attempt in range(2):
        if way == "inline":
            event = example("create-images")
            event["headers"]["x-stainless-retry-count"] = str(attempt)
            status, got, answer = call(event)
        else:
            generation_id = begin()
            work(received(generation_id))
            status, got, answer = call(about(generation_id, "get-result"))
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert got["retry-after"] == seconds
        assert "x-should-retry" not in got
        assert len(deployed.calls) == calls * (attempt + 1)


@pytest.mark.usefixtures("deployed")
def test_a_message_without_a_record_is_acknowledged_at_its_first_receipt() -> None:
    event = received(GENERATION_ID)
    event["Records"][0]["attributes"]["SentTimestamp"] = str(int(time.time() * 1000))
    work(event)
    give_up(GENERATION_ID)


@pytest.mark.parametrize("there", [False, True], ids=["nothing is stored", "all is stored"])
def test_a_dead_letter_ends_the_generation_by_what_is_stored_and_buys_nothing(deployed: Deployed, there: bool) -> None:
    generation_id = begin()
    image_ids: list[str] = []
    if there:
        records = worker().workshop.records
        claimed = records.claim(generation_id, "dead", now=time.time() - 9, lease_until=time.time() - 1)
        assert claimed is not None
        records.save_sending(generation_id, "dead", 0, 1)
        image_ids = list(claimed.image_ids)
        stored = {"Bucket": deployed.stack.bucket, "Key": f"images/{image_ids[0]}", "ContentType": "image/png"}
        client("s3").put_object(**stored, Body=png("1"))
    give_up(generation_id)
    _, _, generation = call(about(generation_id, "get-generation"))
    assert [image["id"] for image in generation["data"]] == image_ids
    code = generation["error"] and generation["error"]["code"]
    assert (generation["status"], code) == (("completed", None) if there else ("failed", "abandoned"))
    assert deployed.calls == []


def test_a_generation_is_listed_cancelled_and_deleted(deployed: Deployed) -> None:
    generation_id = begin()
    status, _, page = call("list-generations")
    assert (status, [each["id"] for each in page["data"]]) == (200, [generation_id])
    status, _, cancelled = call(about(generation_id, "cancel-generation"))
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert call(about(generation_id, "cancel-generation"))[::2] == (200, cancelled)
    for _ in range(2):
        assert call(about(generation_id, "delete-generation"))[0] == 200
    assert call(about(generation_id, "get-generation"))[0] == 404
    work(received(generation_id))
    assert deployed.calls == []
