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
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import urlopen

import boto3
import msgspec
import pytest

from functions.api import app as api_app
from functions.authorizer import app as authorizer_app
from functions.worker import app as worker_app
from imagegen.bootstrap import sdk
from imagegen.bootstrap.api import api
from imagegen.bootstrap.authorizer import authorizer
from imagegen.bootstrap.worker import worker
from imagegen.credentials import BearerKey
from imagegen.errors import IssuerUnavailableError
from local.serving import HungUpError, Reply, Request
from local.template import Template
from tests.conftest import ROOT, UPSTREAM_KEY, Upstream
from tests.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer

Event = dict[str, Any]
Example = Callable[[str], Event]


@dataclass
class Context:
    """What of Lambda's context the handlers use."""

    milliseconds: int = 30_000
    function_name: str = "api"
    aws_request_id: str = "request"

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


@dataclass(frozen=True)
class Deployed:
    bucket: str
    upstream: Upstream
    aws_url: str
    key: BearerKey
    stack: str

    def client(self, service: str) -> Any:
        return boto3.client(service, endpoint_url=self.aws_url, region_name="us-east-1")  # type: ignore[call-overload]

    def stored(self) -> dict[str, bytes]:
        s3 = self.client("s3")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        return {key: s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}


@contextmanager
def fresh_wiring() -> Iterator[None]:
    """Handlers keep what they built for the life of a process; a test is a process of its own."""
    caches = (api, authorizer, worker, sdk.session, sdk.dynamodb, sdk.events, sdk.sqs, sdk.ssm)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def deployed(aws_url: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    """A stack of its own in moto, made from the template, and its functions' variables in the environment."""
    stack = f"test-{uuid.uuid4().hex[:12]}"
    runtime = {
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": aws_url,
    }
    for name, value in runtime.items():
        monkeypatch.setenv(name, value)
    parameters = {
        "UpstreamBaseUrl": upstream.base_url,
        "LinkSeconds": "600",
        "MaxImageBytes": "8388608",
        "QuickUpstreamTimeoutSeconds": "20",
        "WaitSeconds": "1",
    }
    key = BearerKey.new("example")
    resources = deploy(stack, parameters, aws_url)
    made = Deployed(resources["ImageBucket"], upstream, aws_url, key, stack)
    for function in ("ApiFunction", "AuthorizerFunction", "WorkerFunction"):
        configuration = made.client("lambda").get_function_configuration(FunctionName=resources[function])
        for name, value in configuration["Environment"]["Variables"].items():
            if function != "WorkerFunction" or name not in os.environ:
                monkeypatch.setenv(name, str(value))
    ssm = made.client("ssm")
    ssm.put_parameter(Name=f"/{stack}/upstream-api-key", Type="SecureString", Value=UPSTREAM_KEY)
    record = msgspec.json.encode(key.record()).decode()
    ssm.put_parameter(Name=f"/{stack}/clients/example", Type="String", Value=record)
    with fresh_wiring():
        yield made


def deploy(stack: str, parameters: dict[str, str], aws_url: str) -> dict[str, str]:
    template = Template.read(ROOT / "template.yaml", parameters, "us-east-1")
    cloudformation = boto3.client("cloudformation", endpoint_url=aws_url, region_name="us-east-1")
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=json.dumps(template.for_moto("http://127.0.0.1")),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    summaries = cloudformation.list_stack_resources(StackName=stack)["StackResourceSummaries"]
    return {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in summaries}


def call(event: Event, **body: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and decoded body of the api handler's answer; `body` replaces fields of the example's."""
    if body:
        event = {**event, "body": json.dumps(json.loads(event["body"]) | body)}
    answer = api_app.lambda_handler(event, Context())  # type: ignore[arg-type]
    headers = {name.lower(): values[-1] for name, values in answer["multiValueHeaders"].items()}
    return answer["statusCode"], headers, json.loads(answer["body"]) if answer.get("body") else None


def png(size: int) -> bytes:
    """Bytes of `size` that begin and end as a PNG does, and do not compress."""
    head, tail = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
    return head + os.urandom(size - len(head) - len(tail)) + tail


def test_a_prompt_becomes_an_image_whose_url_and_permalink_lead_to_the_upstreams_bytes(
    deployed: Deployed, example_event: Example
) -> None:
    status, headers, answer = call(example_event("create-images"))

    assert status == 200
    (painted,) = (content for _, content in deployed.upstream.stand_in.files.values())
    (image,) = answer["data"]
    assert deployed.stored() == {f"images/{image['id']}": painted}
    with urlopen(image["url"]) as response:
        assert response.read() == painted
        assert response.headers["Content-Type"] == "image/png"
    assert image["permalink"] == (f"https://abc123.execute-api.eu-central-1.amazonaws.com/prod/v1/images/{image['id']}")
    assert answer["id"] == headers["x-generation-id"]
    assert headers["x-request-id"] == "JKJaXmPLvHcESHA="


def test_a_permalink_redirects_to_a_fresh_url_without_asking_aws(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    status, headers, body = call(example_event("redirect-to-image"))

    assert (status, body) == (302, None)
    assert headers["cache-control"] == "no-store"
    location = urlsplit(headers["location"])
    assert location.path == f"/{deployed.bucket}/images/img_AAECAwQFBgcICQoLDA0ODw"
    assert "X-Amz-Expires=600" in location.query


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_permalink_redirects_to_a_url_signed_for_the_method_that_it_is_asked_by(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch, method: Literal["GET", "HEAD"]
) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)  # signed in the same second, they are equal
    event = example_event("redirect-to-image")
    event["httpMethod"] = event["requestContext"]["httpMethod"] = method
    status, headers, body = call(event)

    assert (status, body) == (302, None)
    signed = api().workshop.images.signed_url("img_AAECAwQFBgcICQoLDA0ODw", method)
    assert headers["location"] == signed.url


@pytest.mark.parametrize(
    ("context_path", "path", "base"),
    [
        ("/prod/v1/images/generations", "/v1/images/generations", "/prod"),
        ("/v1/images/generations", "/v1/images/generations", ""),
        ("/pictures/v1/images/generations", "/pictures/v1/images/generations", "/pictures"),  # a base path mapping
    ],
)
def test_links_and_routes_hold_under_a_stage_a_domain_and_a_base_path(
    deployed: Deployed, example_event: Example, context_path: str, path: str, base: str
) -> None:
    event = example_event("create-images") | {"path": path}
    event["requestContext"] |= {"path": context_path, "domainName": "images.example.com"}
    status, _, answer = call(event)

    assert status == 200
    image = answer["data"][0]
    assert image["permalink"] == f"https://images.example.com{base}/v1/images/{image['id']}"


def test_a_configured_public_base_url_is_the_one_in_links(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBLIC_BASE_URL", "https://cdn.example.com/img/")
    _, _, answer = call(example_event("create-images"))
    image = answer["data"][0]
    assert image["permalink"] == f"https://cdn.example.com/img/v1/images/{image['id']}"


def test_with_durable_urls_every_answer_has_the_permalink_as_url(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_URLS", "true")
    _, _, answer = call(example_event("create-images"))
    _, _, generation = call(about(example_event("get-generation"), answer["id"]))
    _, _, listed = call(example_event("list-generations"))

    for told in (answer, generation, listed["data"][0]):
        (image,) = told["data"]
        assert image["url"] == image["permalink"]
        assert "expires_at" not in image


def test_models_and_health_answer(deployed: Deployed, example_event: Example) -> None:
    status, _, models = call(example_event("list-models"))
    assert (status, models["object"]) == (200, "list")
    assert {"dall-e-2", "dall-e-3", "gpt-image-1", "flux-pro"} <= {model["id"] for model in models["data"]}
    assert call(example_event("health"))[::2] == (200, {"status": "ok"})


def test_one_model_is_openais_object_also_by_an_alias(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_ALIASES", "openai/gpt-image-1=gpt-image-1")
    api.cache_clear()
    event = example_event("get-model")
    status, _, model = call(event)
    assert (status, model["id"], model["object"]) == (200, "gpt-image-1", "model")
    for name, status in (("openai%2Fgpt-image-1", 200), ("gpt-image-9", 404), ("..", 404)):
        path = event["requestContext"]["path"].replace("gpt-image-1", name)
        answer = call(event | {"requestContext": event["requestContext"] | {"path": path}})
        assert answer[0] == status
        assert answer[2] == model if status == 200 else answer[2]["error"]["code"] == "model_not_found"
    path = event["requestContext"]["path"].replace("gpt-image-1", "Flux%2DPro")
    _, _, answer = call(event | {"requestContext": event["requestContext"] | {"path": path}})
    assert "Did you mean 'flux-pro'?" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ('\ufeff{"prompt": "a cat"}', "a cat"),
        ('{"prompt": "cat \\ud83d"}', "cat \ufffd"),
        (
            '{"prompt": "a cat", "model": "flux", "quality": "standard", "style": "vivid", "stream": false}',
            "a cat",
        ),
    ],
)
def test_what_clients_send_is_taken(deployed: Deployed, example_event: Example, body: str, prompt: str) -> None:
    assert call(example_event("create-images") | {"body": body})[0] == 200
    (sent,) = deployed.upstream.stand_in.calls
    assert sent["prompt"] == prompt
    assert not {"quality", "style", "stream"} & set(sent)


@pytest.mark.parametrize("body", [b'{"prompt": "\xff"}', b"\xff\xfe{}"])
def test_bytes_that_are_not_utf_8_are_refused(deployed: Deployed, example_event: Example, body: bytes) -> None:
    encoded = example_event("create-images") | {"isBase64Encoded": True, "body": b64encode(body).decode()}
    assert call(encoded)[0] == 400
    assert deployed.upstream.stand_in.calls == []


def test_a_body_in_base64_is_read_as_well(deployed: Deployed, example_event: Example) -> None:
    event = example_event("create-images")
    encoded = event | {"isBase64Encoded": True, "body": "eyJwcm9tcHQiOiAiYSBjYXQifQ=="}
    assert call(encoded)[0] == 200
    assert deployed.upstream.stand_in.calls[0]["prompt"] == "a cat"


def test_a_route_that_only_sam_local_would_send_is_404(deployed: Deployed, example_event: Example) -> None:
    event = example_event("list-models") | {"path": "/v1/audio", "resource": "/v1/audio"}
    event["requestContext"] |= {"path": "/v1/audio"}
    status, _, answer = call(event)
    assert (status, answer["error"]["code"]) == (404, "unknown_url")


def test_a_missing_secret_is_503_and_calls_nobody(deployed: Deployed, example_event: Example) -> None:
    deployed.client("ssm").delete_parameter(Name=f"/{deployed.stack}/upstream-api-key")
    status, headers, answer = call(example_event("create-images"))
    assert (status, answer["error"]["code"]) == (503, "upstream_key_missing")
    assert headers["x-should-retry"] == "false"
    assert deployed.upstream.stand_in.calls == []


def test_a_function_without_its_settings_answers_in_openais_shape(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGE_BUCKET")
    status, _, answer = call(example_event("create-images"))
    assert status == 500
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "IMAGE_BUCKET" not in json.dumps(answer)


def test_a_bucket_that_is_gone_is_424_after_one_paid_call(deployed: Deployed, example_event: Example) -> None:
    deployed.client("s3").delete_bucket(Bucket=deployed.bucket)
    status, headers, answer = call(example_event("create-images"))
    assert (status, answer["error"]["code"]) == (424, "image_storage_failed")
    assert headers["x-should-retry"] == "false"
    assert len(deployed.upstream.stand_in.calls) == 1


def serve_images(deployed: Deployed, *images: bytes) -> None:
    """Has the upstream answer with these, by URL."""
    upstream = deployed.upstream
    upstream.stand_in.files |= {str(number): ("image/png", content) for number, content in enumerate(images)}
    origin = upstream.base_url.removesuffix("/v1")
    answer = {"created": 1, "data": [{"url": f"{origin}/files/{number}"} for number in range(len(images))]}
    upstream.stand_in.script.append(lambda _: Reply(200, json.dumps(answer).encode()))


def about(example: Event, generation_id: str) -> Event:
    """The example event, about this generation."""
    text = json.dumps(example).replace("gen_AAECAwQFBgcICQoLDA0ODw", generation_id)
    event: Event = json.loads(text)
    return event


def test_images_that_an_upstream_leaves_out_are_asked_for_once_more(deployed: Deployed, example_event: Example) -> None:
    serve_images(deployed, png(1_000))
    status, headers, answer = call(example_event("create-images"), model="dall-e-2", n=3)
    assert (status, len(answer["data"])) == (200, 3)
    assert [sent["n"] for sent in deployed.upstream.stand_in.calls] == [3, 1, 1]
    _, _, generation = call(about(example_event("get-generation"), headers["x-generation-id"]))
    assert (generation["extra_calls"], generation["repeated_calls"]) == (2, 0)


def test_images_that_stay_missing_are_a_424_that_lists_those_that_came(
    deployed: Deployed, example_event: Example
) -> None:
    serve_images(deployed, png(1_000))
    deployed.upstream.stand_in.script += [lambda _: Reply(200, b'{"created": 1, "data": []}')] * 2
    status, headers, answer = call(example_event("create-images"), model="dall-e-2", n=3)
    assert (status, answer["error"]["code"]) == (424, "upstream_too_few_images")
    assert headers["x-should-retry"] == "false"
    assert len(answer["error"]["images"]) == 1
    assert len(deployed.upstream.stand_in.calls) == 3


def test_base64_that_does_not_fit_one_answer_is_stored_whole_and_redirected_to(
    deployed: Deployed, example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png(2_400_000), png(2_400_000)]  # 6.4 MB as base64
    serve_images(deployed, *images)
    status, headers, _ = call(example_event("create-images"), model="dall-e-2", n=2, response_format="b64_json")
    assert (status, headers["location"]) == (303, f"generations/{headers['x-generation-id']}/result")

    event = about(example_event("get-result"), headers["x-generation-id"])
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


def test_who_insists_on_post_gets_the_permalinks_of_an_answer_that_does_not_fit(
    deployed: Deployed, example_event: Example
) -> None:
    image = png(5_000_000)
    serve_images(deployed, image)
    _, headers, _ = call(example_event("create-images"), response_format="b64_json")
    status, _, answer = call(about(example_event("post-result"), headers["x-generation-id"]))
    assert (status, answer["error"]["code"]) == (424, "answer_too_large")
    (image_named,) = answer["error"]["images"]
    assert deployed.stored()[f"images/{image_named['id']}"] == image


def test_base64_that_just_fits_is_answered(deployed: Deployed, example_event: Example) -> None:
    serve_images(deployed, png(4_600_000))
    event = example_event("create-images") | {"body": json.dumps({"prompt": "x", "response_format": "b64_json"})}
    raw = api_app.lambda_handler(event, Context())  # type: ignore[arg-type]
    assert raw["statusCode"] == 200
    assert len(json.dumps(raw).encode()) < 6_291_556


def test_three_of_four_images_are_named_in_the_error_when_one_fails(deployed: Deployed, example_event: Example) -> None:
    def refuse(_: Request) -> Reply:
        error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "content_policy_violation"}
        return Reply(400, json.dumps({"error": error}).encode())

    deployed.upstream.stand_in.script.append(refuse)
    status, headers, answer = call(example_event("create-images"), n=4)

    assert status == 424
    assert answer["error"]["code"] == "content_policy_violation"
    assert {f"images/{image['id']}" for image in answer["error"]["images"]} == set(deployed.stored())
    assert len(answer["error"]["images"]) == 3
    assert headers["x-generation-id"].startswith("gen_")


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
    deployed: Deployed, example_event: Example, everything_logged: io.StringIO
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
    failures = [call(example_event("create-images"), prompt=prompt) for _ in range(3)]
    status, _, answer = call(example_event("create-images"), prompt=prompt)
    call(example_event("redirect-to-image"))

    assert [failure[0] for failure in failures] == [424, 400, 424]
    assert status == 200
    logged = everything_logged.getvalue()
    assert logged.count('"route":"POST /v1/images/generations"') == 4
    for secret in (
        UPSTREAM_KEY,
        prompt,
        "X-Amz-Signature",
        "/files/",
        deployed.upstream.base_url,
        answer["data"][0]["id"],
    ):
        assert secret not in logged, secret
    answered = json.dumps(failures)
    for secret in (UPSTREAM_KEY, "X-Amz", "127.0.0.1"):
        assert secret not in answered, secret


def authorize(event: Event) -> Any:
    return authorizer_app.lambda_handler(event, Context(function_name="authorizer"))  # type: ignore[arg-type]


def test_a_good_key_opens_every_route_of_the_stage(deployed: Deployed, example_event: Example) -> None:
    policy = authorize(example_event("authorize") | {"authorizationToken": f"Bearer {deployed.key.key}"})
    assert policy["principalId"] == "example"
    (statement,) = policy["policyDocument"]["Statement"]
    assert statement == {
        "Action": "execute-api:Invoke",
        "Effect": "Allow",
        "Resource": "arn:aws:execute-api:eu-central-1:123456789012:abc123/prod/*",
    }


def test_any_other_key_is_denied_by_a_policy_that_the_gateway_can_cache(
    deployed: Deployed, example_event: Example
) -> None:
    for token in (example_event("authorize")["authorizationToken"], f"Bearer {BearerKey.new('stranger').key}"):
        policy = authorize(example_event("authorize") | {"authorizationToken": token})
        assert policy["policyDocument"]["Statement"][0]["Effect"] == "Deny"


def test_a_client_s_own_allowance_goes_along_with_its_policy(deployed: Deployed, example_event: Example) -> None:
    key = BearerKey.new("frugal")
    record = msgspec.json.encode(msgspec.structs.replace(key.record(), images_per_day=3)).decode()
    deployed.client("ssm").put_parameter(Name=f"/{deployed.stack}/clients/frugal", Type="String", Value=record)
    policy = authorize(example_event("authorize") | {"authorizationToken": f"Bearer {key.key}"})
    assert policy["context"] == {"images_per_day": 3}
    assert "context" not in authorize(example_event("authorize") | {"authorizationToken": f"Bearer {deployed.key.key}"})


@pytest.fixture
def issuer(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIssuer]:
    """The issuer that the authorizer trusts."""
    with running_issuer() as issuer:
        monkeypatch.setenv("OIDC_ISSUER", issuer.url)
        monkeypatch.setenv("OIDC_AUDIENCE", AUDIENCE)
        yield issuer


def with_token(example_event: Example, token: str) -> Event:
    return example_event("authorize-jwt") | {"authorizationToken": f"Bearer {token}"}


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
def test_a_token_opens_every_route_of_the_stage_to_an_opaque_caller(
    issuer: FakeIssuer, example_event: Example, capsys: pytest.CaptureFixture[str], kid: str
) -> None:
    policy = authorize(with_token(example_event, issuer.token(kid)))
    assert re.fullmatch("oidc:[0-9a-f]{32}", policy["principalId"])
    assert policy["policyDocument"]["Statement"][0]["Effect"] == "Allow"
    assert "context" not in policy
    assert authorize(with_token(example_event, issuer.token(sub="bob")))["principalId"] != policy["principalId"]
    assert "ann@example.org" not in json.dumps(policy) + capsys.readouterr().out


def test_a_key_opens_the_stage_without_a_look_at_the_issuer(
    issuer: FakeIssuer, deployed: Deployed, example_event: Example
) -> None:
    policy = authorize(example_event("authorize") | {"authorizationToken": f"Bearer {deployed.key.key}"})
    assert policy["principalId"] == "example"
    assert issuer.asked == []


def test_a_bad_token_is_denied_by_a_policy(issuer: FakeIssuer, example_event: Example) -> None:
    for token in (issuer.token(aud="other"), example_event("authorize-jwt")["authorizationToken"].split()[1]):
        policy = authorize(with_token(example_event, token))
        assert policy["principalId"] == "unknown"
        assert policy["policyDocument"]["Statement"][0]["Effect"] == "Deny"


def test_an_issuer_that_is_down_is_no_policy_at_all(issuer: FakeIssuer, example_event: Example) -> None:
    issuer.instead[issuer.discovery_path] = lambda _: Reply(503)
    with pytest.raises(IssuerUnavailableError):
        authorize(with_token(example_event, issuer.token()))


@pytest.mark.usefixtures("deployed")
def test_without_an_issuer_a_token_is_denied(example_event: Example) -> None:
    policy = authorize(example_event("authorize-jwt"))
    assert policy["policyDocument"]["Statement"][0]["Effect"] == "Deny"


def sqs_event(example: Event, generation_id: str) -> Event:
    (record,) = example["Records"]
    body = json.dumps({"generation_id": generation_id})
    return {"Records": [{**record, "body": body, "receiptHandle": received(body)}]}


def received(body: str) -> str:
    """A receipt of a message that is really in the queue."""
    sqs, url = boto3.client("sqs"), os.environ["GENERATION_QUEUE_URL"]
    sqs.send_message(QueueUrl=url, MessageBody=body)
    receipt: str = sqs.receive_message(QueueUrl=url, VisibilityTimeout=60)["Messages"][0]["ReceiptHandle"]
    return receipt


def begin(example_event: Example, **body: Any) -> str:
    """A generation that nobody works on yet."""
    event = example_event("create-images")
    event["headers"]["Prefer"] = "respond-async"
    status, headers, answer = call(event, **(body or {"prompt": "later"}))
    assert (status, answer["status"]) == (202, "queued")
    assert headers["location"] == f"generations/{answer['id']}"
    return str(answer["id"])


def test_the_worker_makes_what_its_message_names_and_acknowledges_it(
    deployed: Deployed, example_event: Example
) -> None:
    generation_id = begin(example_event)
    event = sqs_event(example_event("work"), generation_id)
    for _ in range(2):  # a message may come twice
        assert worker_app.lambda_handler(event, Context(60_000)) == {"batchItemFailures": []}  # type: ignore[arg-type]
    status, _, generation = call(about(example_event("get-generation"), generation_id))
    assert (status, generation["status"]) == (200, "completed")
    assert {f"images/{image['id']}" for image in generation["data"]} == set(deployed.stored())
    assert len(deployed.upstream.stand_in.calls) == 1


@pytest.mark.parametrize("way", ["inline", "queued"])
@pytest.mark.parametrize(
    ("headers", "calls", "told"),
    [({"Retry-After": "60"}, 1, "60"), ({"retry-after-ms": "9500"}, 1, "10"), ({"retry-after-ms": "1"}, 3, "1")],
)
def test_of_an_upstream_that_is_rate_limited_each_attempt_asks_at_most_thrice_and_tells_when_to_retry(
    deployed: Deployed, example_event: Example, headers: dict[str, str], calls: int, told: str, way: str
) -> None:
    stand_in = deployed.upstream.stand_in
    stand_in.script += [lambda _: Reply(429, b"{}", headers)] * 9
    for attempt in range(2):
        if way == "inline":
            event = example_event("create-images")
            event["headers"]["x-stainless-retry-count"] = str(attempt)
            status, got, answer = call(event)
        else:
            generation_id = begin(example_event)
            worker_app.lambda_handler(
                sqs_event(example_event("work"), generation_id),
                Context(60_000),  # type: ignore[arg-type]
            )
            status, got, answer = call(about(example_event("get-result"), generation_id))

        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert got["retry-after"] == told
        assert "x-should-retry" not in got
        assert len(stand_in.calls) == calls * (attempt + 1)


@pytest.mark.usefixtures("deployed")
def test_a_message_without_a_record_is_acknowledged_at_its_first_receipt(example_event: Example) -> None:
    event = sqs_event(example_event("work"), "gen_AAECAwQFBgcICQoLDA0ODw")
    event["Records"][0]["attributes"]["SentTimestamp"] = str(int(time.time() * 1000))
    assert worker_app.lambda_handler(event, Context(60_000)) == {"batchItemFailures": []}  # type: ignore[arg-type]
    dead = sqs_event(example_event("give-up"), "gen_AAECAwQFBgcICQoLDA0ODw")
    assert worker_app.dead_letter_handler(dead, Context(60_000)) == {"batchItemFailures": []}  # type: ignore[arg-type]


def test_a_dead_letter_fails_the_generation_that_nobody_works_on(deployed: Deployed, example_event: Example) -> None:
    generation_id = begin(example_event)
    event = sqs_event(example_event("give-up"), generation_id)
    answer = worker_app.dead_letter_handler(event, Context(30_000))  # type: ignore[arg-type]
    assert answer == {"batchItemFailures": []}
    _, _, generation = call(about(example_event("get-generation"), generation_id))
    assert (generation["status"], generation["error"]["code"]) == ("failed", "abandoned")
    assert deployed.upstream.stand_in.calls == []


def test_a_dead_letter_lists_the_images_that_are_stored_and_buys_none(
    deployed: Deployed, example_event: Example
) -> None:
    generation_id = begin(example_event)
    records = worker().workshop.records
    claimed = records.claim(generation_id, "dead", now=time.time() - 9, lease_until=time.time() - 1)
    assert claimed is not None
    records.save_sending(generation_id, "dead", 0, 1)
    (image_id,) = claimed.image_ids
    deployed.client("s3").put_object(
        Bucket=deployed.bucket, Key=f"images/{image_id}", Body=png(100), ContentType="image/png"
    )
    event = sqs_event(example_event("give-up"), generation_id)
    answer = worker_app.dead_letter_handler(event, Context(30_000))  # type: ignore[arg-type]
    assert answer == {"batchItemFailures": []}
    _, _, generation = call(about(example_event("get-generation"), generation_id))
    assert (generation["status"], [image["id"] for image in generation["data"]]) == ("completed", [image_id])
    assert deployed.upstream.stand_in.calls == []


def test_a_generation_is_listed_cancelled_and_deleted(deployed: Deployed, example_event: Example) -> None:
    generation_id = begin(example_event)
    status, _, page = call(example_event("list-generations"))
    assert (status, [each["id"] for each in page["data"]]) == (200, [generation_id])
    status, _, cancelled = call(about(example_event("cancel-generation"), generation_id))
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert call(about(example_event("cancel-generation"), generation_id))[::2] == (200, cancelled)
    for _ in range(2):
        assert call(about(example_event("delete-generation"), generation_id))[0] == 200
    assert call(about(example_event("get-generation"), generation_id))[0] == 404
    worker_app.lambda_handler(
        sqs_event(example_event("work"), generation_id),
        Context(60_000),  # type: ignore[arg-type]
    )
    assert deployed.upstream.stand_in.calls == []
