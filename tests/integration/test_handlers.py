"""The handlers: the example events, links, models, answers and the authorizer's policies.

Hostile requests are in test_hostile_requests.py, and hostile upstreams in test_hostile_upstream.py.
"""

import json
import os
import re
import time
from base64 import b64decode, b64encode
from functools import partial
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
import urllib3

from functions.api import app as api_app
from imagegen.bootstrap.api import api
from imagegen.domain.credentials import BearerKey
from local.aws_door import Fault
from local.gateway import DELIMITER
from local.lambda_host import FunctionError
from local.serving import Reply
from local.upstream import Script
from tests.fakes.issuer import AUDIENCE, running_issuer
from tests.fakes.provider import png
from tests.support.client import GENERATIONS, INLINE, QUEUED, SMALL
from tests.support.in_process import InProcess
from tests.support.lambda_events import Event, example, over_http
from tests.support.models import GENERATING, MODELS
from tests.support.world import answering, refusing

OWN = "https://images.example.com"


def invoked(handlers: InProcess, function: str, event: Event) -> Any:
    return json.loads(handlers.function(f"{function}Function").invoke(event).result())


def api_answer(handlers: InProcess, event: Event) -> tuple[int, dict[str, str], Any]:
    """The status, the headers by their lower-case names, and the decoded body."""
    whole = handlers.function("ApiFunction").invoke_streaming(event).whole()
    prelude, _, body = whole.partition(DELIMITER)
    answer = json.loads(prelude)
    headers = {name.lower(): values[-1] for name, values in answer["multiValueHeaders"].items()}
    return answer["statusCode"], headers, json.loads(body) if body else None


# The example events.


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *(("create-images", 200), ("list-generations", 200), ("list-models", 200), ("get-model", 200), ("health", 200)),
        *(("get-generation", 404), ("get-result", 404), ("post-result", 404), ("cancel-generation", 404)),
        *(("delete-generation", 404), ("redirect-to-image", 302)),
        *(("create-file", 200), ("create-file-upload", 200), ("list-files", 200)),
        *(("get-file", 404), ("get-file-content", 404), ("delete-file", 404)),
        *(("create-batch", 404), ("list-batches", 200), ("get-batch", 404), ("cancel-batch", 404)),
        *(("edit-images", 303), ("vary-image", 400), ("describe-image", 400), ("create-upload", 200)),
    ],
)
def test_the_api_answers_each_example_event(handlers: InProcess, name: str, status: int) -> None:
    answered, headers, answer = api_answer(handlers, example(name))
    assert answered == status
    if name == "create-images":
        assert headers["x-request-id"] == "JKJaXmPLvHcESHA="  # no caller can choose this one
        assert headers["x-generation-id"] == answer["id"]
        link = "https://abc123.execute-api.eu-central-1.amazonaws.com/prod/v1/images/"
        assert [image["permalink"] for image in answer["data"]] == [link + image["id"] for image in answer["data"]]


@pytest.mark.parametrize(
    ("name", "queue", "function"),
    [
        ("work", "GenerationQueue", "Worker"),
        ("work-on-line", "BatchGenerationQueue", "Worker"),
        ("poll", "PollQueue", "Worker"),
        ("give-up", "GenerationDeadLetters", "DeadLetter"),
    ],
)
def test_an_example_message_without_a_record_is_acknowledged(
    handlers: InProcess, name: str, queue: str, function: str
) -> None:
    sqs = handlers.aws("sqs")
    ((url, arn),) = [each for each in handlers.queues[f"{function}Function"] if f":imagegen-{queue}-" in each[1]]
    (record,) = example(name)["Records"]
    handlers.send(queue, record["body"])
    receipt = sqs.receive_message(QueueUrl=url, VisibilityTimeout=60)["Messages"][0]["ReceiptHandle"]
    sent = record["attributes"] | {"SentTimestamp": str(int(time.time() * 1000))}
    event = {"Records": [{**record, "receiptHandle": receipt, "attributes": sent, "eventSourceARN": arn}]}
    assert invoked(handlers, function, event) == {"batchItemFailures": []}
    sqs.delete_message(QueueUrl=url, ReceiptHandle=receipt)


def test_a_body_in_base64_is_decoded(handlers: InProcess) -> None:
    prompt = f"in base64 {uuid4().hex}"

    def answer(body: bytes) -> int:
        encoded = {"isBase64Encoded": True, "body": b64encode(body).decode()}
        return api_answer(handlers, example("create-images") | encoded)[0]

    assert answer(json.dumps({"prompt": prompt}).encode()) == 200
    assert len(handlers.calls(prompt)) == 1
    assert [answer(body) for body in (b'{"prompt": "\xff"}', b"\xff\xfe{}")] == [400, 400]


def test_the_api_function_refuses_a_resource_that_the_gateway_does_not_have(handlers: InProcess) -> None:
    """Only `sam local` sends such an event."""
    event = example("list-models") | {"path": "/v1/audio", "resource": "/v1/audio"}
    event["requestContext"]["path"] = "/prod/v1/audio"
    status, _, answer = api_answer(handlers, event)
    assert (status, answer["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("script", "cost", "basis"),
    [
        (None, "0.032", "image"),
        (refusing(code="content_policy_violation"), "0", "image"),
        (lambda _: Reply(500, b"{}"), "0.032", "unknown"),
    ],
    ids=["completed", "refused", "perhaps charged"],
)
@pytest.mark.parametrize("made_by", [INLINE, QUEUED], ids=["api", "worker"])
def test_every_answer_with_a_result_or_a_failure_has_the_cost(
    handlers: InProcess, script: Script | None, cost: str, basis: str, made_by: dict[str, str]
) -> None:
    caller = handlers.caller()
    prompt = handlers.will(f"cost {uuid4().hex}", *([script] if script else []))
    begun = caller.ask("POST", GENERATIONS, {**SMALL, "prompt": prompt, "n": 2}, Idempotency_Key="cost", **made_by)
    assert ("x-imagegen-cost" in begun.headers) == (made_by is INLINE)
    shown = caller.see(begun.generation_id).json
    assert shown["cost"] == {"usd": float(cost), "basis": basis}
    assert shown["upstream"] == (None if script else "reseller")
    assert caller.result(begun.generation_id).headers["x-imagegen-cost"] == cost


def test_a_quota_in_money_is_shown_and_settled_and_refuses_models_without_a_price(handlers: InProcess) -> None:
    caller = handlers.caller(usd_per_day=50_000)
    body = {**SMALL, "prompt": f"money {uuid4().hex}"}
    made, more = caller.post(body, **INLINE), caller.post({**body, "n": 2}, **INLINE)
    of_money = [
        (each.headers["x-ratelimit-limit-usd"], each.headers["x-ratelimit-remaining-usd"]) for each in (made, more)
    ]
    assert of_money == [("0.05", "0.034"), ("0.05", "0.002")]
    over = caller.post(body, **INLINE)
    assert over.failed == (429, "insufficient_quota")
    assert over.headers["x-ratelimit-remaining-usd"] == "0.002"
    unpriced = caller.post({"prompt": body["prompt"], "model": "flux"}, **INLINE)
    assert (unpriced.failed, unpriced.error["param"]) == ((400, "model_has_no_price"), "model")

    refused = handlers.will(f"refused {uuid4().hex}", refusing(code="content_policy_violation"))
    thrifty = handlers.caller(usd_per_day=16_000)
    assert thrifty.post({**body, "prompt": refused}, **INLINE).status == 400
    assert thrifty.post(body, **INLINE).status == 200  # what the refusal had reserved was returned
    assert thrifty.post(body, **INLINE).status == 429


# Missing resources and settings.


def test_a_missing_bucket_is_an_error_after_one_upstream_call(handlers: InProcess) -> None:
    prompt = f"no bucket {uuid4().hex}"
    with handlers.function("ApiFunction").changed(IMAGE_BUCKET="not-there"):
        answer = handlers.local.make({"prompt": prompt}, **INLINE)
    assert answer.failed == (424, "image_storage_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert b"not-there" not in answer.content
    assert len(handlers.calls(prompt)) == 1


def test_without_its_settings_the_api_returns_an_error_in_openais_shape() -> None:
    api.cache_clear()
    with patch.dict(os.environ, clear=True):
        status, headers, body = over_http(api_app.lambda_handler, example("create-images"))
    error = json.loads(body)["error"]
    assert (status, error["code"], set(error)) == (500, "internal_error", {"message", "type", "param", "code"})
    assert "x-should-retry" not in headers
    assert "IMAGE_BUCKET" not in body


# Links.


@pytest.mark.parametrize(
    ("path", "routed", "public", "base"),
    [
        ("/prod/v1/images/generations", "", "", f"{OWN}/prod"),
        ("/v1/images/generations", "", "", OWN),
        ("/pictures/v1/images/generations", "/pictures", "", f"{OWN}/pictures"),  # a base path mapping
        ("/v1/images/generations", "", "https://cdn.example.com/img/", "https://cdn.example.com/img"),
    ],
)
def test_a_permalink_has_the_base_url_of_the_request_or_the_public_one(
    handlers: InProcess, path: str, routed: str, public: str, base: str
) -> None:
    event = example("create-images")
    event["path"] = routed + "/v1/images/generations"
    event["requestContext"] |= {"path": path, "domainName": OWN.removeprefix("https://")}
    with handlers.function("ApiFunction").changed(PUBLIC_BASE_URL=public):
        status, _, answer = api_answer(handlers, event)
    assert status == 200
    assert answer["data"][0]["permalink"] == f"{base}/v1/images/{answer['data'][0]['id']}"


@pytest.mark.parametrize(("method", "other"), [("GET", "HEAD"), ("HEAD", "GET")])
def test_a_permalink_redirects_to_a_url_for_its_method(handlers: InProcess, method: str, other: str) -> None:
    (image,) = handlers.local.make({"prompt": "otter"}, **INLINE).json["data"]
    with handlers.function("ApiFunction").changed(LINK_SECONDS="600"):
        handlers.stack.door.fail(*(Fault(at) for at in range(1, 20)))
        answer = handlers.local.ask(method, f"/images/{image['id']}")
        assert handlers.stack.door.fail() == 0
    location = answer.headers["location"]
    assert (answer.status, answer.content, answer.headers["cache-control"]) == (302, b"", "no-store")
    assert urlsplit(location).path == f"/{handlers.stack.bucket}/images/{image['id']}"
    assert parse_qs(urlsplit(location).query)["X-Amz-Expires"] == ["600"]
    assert [urllib3.request(each, location).status for each in (method, other)] == [200, 403]


def test_with_durable_urls_every_url_is_a_permalink(handlers: InProcess) -> None:
    local = handlers.local
    with handlers.function("ApiFunction").changed(DURABLE_URLS="true"):
        answer = local.make({"prompt": "otter"}, **INLINE).json
        for shown in (answer, local.see(answer["id"]).json, local.newest(1)[0]):
            (image,) = shown["data"]
            assert image["url"] == image["permalink"]
            assert "expires_at" not in image


# Models.


def test_every_model_is_listed_and_those_that_generate_make_an_image(handlers: InProcess) -> None:
    """One model of each provider that answers at once."""
    models = handlers.local.get("/models").json
    assert (models["object"], [model["id"] for model in models["data"]]) == ("list", list(MODELS))
    for name in {model.provider: name for name, model in GENERATING.items() if not model.by_task}.values():
        assert handlers.local.make({"prompt": "otter", "model": name}, **INLINE).status == 200


def test_a_model_is_openais_object_also_by_an_alias(handlers: InProcess) -> None:
    model = handlers.local.get("/models/gemini-2.5-flash-image")
    assert model.json.items() >= {"id": "gemini-2.5-flash-image", "object": "model", "upstreams": ["reseller"]}.items()
    assert handlers.local.get("/models/gemini-2.5-flash-image-preview").json == model.json
    answers = [handlers.local.get(f"/models/{name}") for name in ("gpt-image-9", "..", "Flux%2DPro")]
    assert [answer.failed for answer in answers] == [(404, "model_not_found")] * 3
    assert "Did you mean 'flux-pro'?" in answers[-1].error["message"]


# Answers.


def test_a_generation_is_queued_and_listed_by_pages(handlers: InProcess) -> None:
    caller, prefer = handlers.caller(), "respond-async, wait=0"
    begun = caller.post({"prompt": "first", "n": 2}, Prefer=prefer)
    assert (begun.status, begun.json["object"], begun.json["status"]) == (202, "image.generation", "queued")
    assert begun.headers["location"] == f"generations/{begun.json['id']}"
    assert (begun.headers["preference-applied"], begun.headers["retry-after"]) == (prefer, "2")
    first = caller.until_ended(begun.json["id"])
    assert (first["status"], len(first["data"])) == ("completed", 2)
    later = caller.begin()
    pages = [caller.get(f"{GENERATIONS}?limit=1{after}").json for after in ("", f"&after={later}")]
    assert [[each["id"] for each in page["data"]] for page in pages] == [[later], [first["id"]]]
    assert [page["has_more"] for page in pages] == [True, False]
    statuses = ("queued", "completed", "failed")
    listed = [caller.get(f"{GENERATIONS}?status={status}").json["data"] for status in statuses]
    assert [[each["id"] for each in page] for page in listed] == [[later], [first["id"]], []]
    assert caller.cancel(later).status == 200


def test_base64_of_any_size_is_in_the_answer(handlers: InProcess) -> None:
    secrets = [handlers.secret(name, may_be_answered=True) for name in ("one", "other")]
    images = [png(secret + "x" * 2_600_000) for secret in secrets]  # 7 MB as base64: too large for a buffered answer
    prompt = handlers.will(handlers.secret("prompt"), answering(*images))
    body = {"model": "dall-e-2", "prompt": prompt, "n": 2, "response_format": "b64_json"}
    answer = handlers.local.post(body, **INLINE)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(answer.content)))
    assert [b64decode(image["b64_json"]) for image in answer.json["data"]] == images


def test_without_streaming_base64_over_the_limit_is_stored_and_redirected_to(buffered: InProcess) -> None:
    images = [png(buffered.secret(name) + "x" * 2_400_000) for name in ("one", "other")]  # 6.4 MB as base64
    prompt = buffered.will(buffered.secret("prompt"), answering(*images))
    body = {"model": "dall-e-2", "prompt": prompt, "n": 2, "response_format": "b64_json"}
    first = buffered.local.post(body, **INLINE)
    path = f"{GENERATIONS}/{first.generation_id}/result"
    assert (first.status, first.headers["location"]) == (303, f"generations/{first.generation_id}/result")
    for method in ("GET", "HEAD"):
        answer = buffered.local.ask(method, path)
        assert (answer.status, answer.headers["cache-control"]) == (303, "no-store")
        stored = urllib3.request(method, answer.headers["location"])
        assert stored.status == 200
        if method == "GET":
            assert [b64decode(image["b64_json"]) for image in stored.json()["data"]] == images

    # POST gets the permalinks instead.
    insisting = buffered.local.ask("POST", path, b"")
    assert insisting.failed == (424, "answer_too_large")
    assert [buffered.content(f"images/{image['id']}") for image in insisting.error["images"]] == images


def test_without_streaming_base64_up_to_the_limit_is_in_the_answer(buffered: InProcess) -> None:
    content = png("1" * 4_600_000)
    prompt = buffered.will(f"fits {uuid4().hex}", answering(content))
    answer = buffered.local.make({"prompt": prompt, "response_format": "b64_json"}, **INLINE)
    assert b64decode(answer.json["data"][0]["b64_json"]) == content


@pytest.mark.parametrize("sent", [INLINE, {}], ids=["inline", "queued"])
def test_a_rate_limit_beyond_the_deadline_is_answered_with_its_time(handlers: InProcess, sent: dict[str, str]) -> None:
    prompt = handlers.will(f"limited {uuid4().hex}", *[lambda _: Reply(429, b"{}", {"Retry-After": "601"})] * 9)
    for attempt in (1, 2):
        answer = handlers.local.make({"prompt": prompt}, **sent)
        assert answer.failed == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "601"
        assert "x-should-retry" not in answer.headers
        assert len(handlers.calls(prompt)) == attempt


# The authorizer's policies.


def policy(handlers: InProcess, token: str, name: str = "authorize") -> Any:
    event = example(name) | {"authorizationToken": f"Bearer {token}"}
    return invoked(handlers, "Authorizer", event)


def effect(policy: Any) -> str:
    return str(policy["policyDocument"]["Statement"][0]["Effect"])


def test_a_key_allows_every_route_of_the_stage_and_has_its_quota(handlers: InProcess) -> None:
    resource = "arn:aws:execute-api:eu-central-1:123456789012:abc123/prod/*"
    statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    assert policy(handlers, handlers.local.key) == {"principalId": "local", "policyDocument": document}
    assert policy(handlers, handlers.caller(images_per_day=3).key)["context"] == {"images_per_day": 3}
    both = handlers.caller(images_per_day=3, usd_per_day=0).key
    assert policy(handlers, both)["context"] == {"images_per_day": 3, "usd_per_day": 0}


def test_any_other_credential_gets_a_policy_that_denies(handlers: InProcess) -> None:
    examples = [example(name)["authorizationToken"].split()[1] for name in ("authorize", "authorize-jwt")]
    for other in (*examples, BearerKey.new("unknown").key):  # no issuer is trusted
        assert effect(policy(handlers, other)) == "Deny"


def test_a_token_allows_every_route_of_the_stage_to_an_opaque_caller(handlers: InProcess) -> None:
    subject = handlers.secret("subject")
    with running_issuer() as issuer:
        function = handlers.function("AuthorizerFunction")
        trusting = partial(function.changed, OIDC_ISSUER=issuer.url, OIDC_AUDIENCE=AUDIENCE)
        with trusting():
            assert policy(handlers, handlers.local.key)["principalId"] == "local"
            assert issuer.asked == []  # a key needs no call to the issuer
            tokens = issuer.token(sub=subject), issuer.token("ec-1", sub="bob")
            good = [policy(handlers, token, "authorize-jwt") for token in tokens]
            for each in good:
                assert re.fullmatch("oidc:[0-9a-f]{32}", each["principalId"])
                assert (effect(each), "context" in each) == ("Allow", False)
            assert good[0]["principalId"] != good[1]["principalId"]
            assert subject not in json.dumps(good)
            bad = policy(handlers, issuer.token(aud="other"), "authorize-jwt")
            assert (bad["principalId"], effect(bad)) == ("unknown", "Deny")
        issuer.instead[issuer.discovery_path] = lambda _: Reply(503)
        with trusting(), pytest.raises(FunctionError):
            policy(handlers, issuer.token(), "authorize-jwt")  # without the issuer there is no policy
