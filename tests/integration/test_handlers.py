"""The functions' real handlers, on the events of events/, with moto for AWS and a real HTTP upstream."""

import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import boto3
import msgspec
import pytest

from functions.api import app as api_app
from functions.authorizer import app as authorizer_app
from imagegen.bootstrap import sdk
from imagegen.bootstrap.api import api
from imagegen.bootstrap.authorizer import authorizer
from imagegen.credentials import BearerKey
from local.serving import HungUpError, Reply, Request
from tests.conftest import UPSTREAM_KEY, Upstream

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
    caches = (api, authorizer, sdk.session, sdk.ssm)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def deployed(aws_url: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    stack = f"test-{uuid.uuid4().hex[:12]}"
    environment = {
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": aws_url,
        "CLIENTS_PATH": f"/{stack}/clients",
        "IMAGE_BUCKET": stack,
        "LINK_SECONDS": "600",
        "MAX_IMAGE_BYTES": "8388608",
        "PROMPT_MAX_CHARACTERS": "1000",
        "PUBLIC_BASE_URL": "",
        "UPSTREAM_API_KEY_PARAMETER": f"/{stack}/upstream-api-key",
        "UPSTREAM_BASE_URL": upstream.base_url,
        "UPSTREAM_TIMEOUT_SECONDS": "20",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    key = BearerKey.new("example")
    made = Deployed(stack, upstream, aws_url, key, stack)
    made.client("s3").create_bucket(Bucket=stack)
    ssm = made.client("ssm")
    ssm.put_parameter(Name=f"/{stack}/upstream-api-key", Type="SecureString", Value=UPSTREAM_KEY)
    record = msgspec.json.encode(key.record()).decode()
    ssm.put_parameter(Name=f"/{stack}/clients/example", Type="String", Value=record)
    with fresh_wiring():
        yield made


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
    assert headers["x-request-id"] == "6f3b6f0e-4a53-4d0c-9d0b-6d5c3f1d2a10"


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


def test_models_and_health_answer(deployed: Deployed, example_event: Example) -> None:
    status, _, models = call(example_event("list-models"))
    assert (status, models["object"]) == (200, "list")
    assert {"dall-e-2", "dall-e-3", "gpt-image-1", "flux-pro"} <= {model["id"] for model in models["data"]}
    assert call(example_event("health"))[::2] == (200, {"status": "ok"})


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


def answer_with(images: list[dict[str, str]]) -> Callable[[Request], Reply]:
    return lambda _: Reply(200, json.dumps({"created": 1, "data": images}).encode())


def test_base64_that_does_not_fit_one_answer_is_424_with_every_permalink(
    deployed: Deployed, example_event: Example
) -> None:
    upstream = deployed.upstream
    images = {f"{number}": png(2_400_000) for number in range(2)}  # 2 x 3.2 MB of base64
    upstream.stand_in.files |= {name: ("image/png", content) for name, content in images.items()}
    origin = upstream.base_url.removesuffix("/v1")
    upstream.stand_in.script.append(answer_with([{"url": f"{origin}/files/{name}"} for name in images]))

    status, _, answer = call(
        example_event("create-images"), model="dall-e-2", n=2, response_format="b64_json", size="1024x1024"
    )

    assert (status, answer["error"]["code"]) == (424, "answer_too_large")
    stored = deployed.stored()
    assert [stored[f"images/{image['id']}"] for image in answer["error"]["images"]] == list(images.values())
    assert all(image["permalink"].endswith(image["id"]) for image in answer["error"]["images"])


def test_base64_that_just_fits_is_answered(deployed: Deployed, example_event: Example) -> None:
    content = png(4_700_000)
    deployed.upstream.stand_in.files["big"] = ("image/png", content)
    origin = deployed.upstream.base_url.removesuffix("/v1")
    deployed.upstream.stand_in.script.append(answer_with([{"url": f"{origin}/files/big"}]))
    event = example_event("create-images")
    raw = api_app.lambda_handler(
        event | {"body": json.dumps({"prompt": "x", "response_format": "b64_json"})},
        Context(),  # type: ignore[arg-type]
    )
    assert raw["statusCode"] == 200
    assert len(json.dumps(raw).encode()) < 6_291_556


def test_three_of_four_images_are_told_in_the_error_when_one_fails(deployed: Deployed, example_event: Example) -> None:
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
    told = json.dumps(failures)
    for secret in (UPSTREAM_KEY, "X-Amz", "127.0.0.1"):
        assert secret not in told, secret


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
