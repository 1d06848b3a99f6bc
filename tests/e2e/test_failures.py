"""Bad input, a bad upstream and a bad day, as clients see them. Of every failure: was the upstream paid, how often?"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from local.gateway import Gateway
from local.lambda_host import FunctionHost
from local.serving import HungUpError, Reply, Request
from local.stack import ROOT
from local.template import Template
from tests.conftest import UPSTREAM_KEY
from tests.e2e.conftest import Service

FOUR_KEYS = {"message", "type", "param", "code"}


def post(
    service: Service, body: bytes, *, path: str = "/images/generations", method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    url = urlsplit(service.base_url)
    connection = HTTPConnection(url.netloc, timeout=120)
    sent = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    connection.request(method, url.path + path, body, sent | {k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    answer = json.loads(content) if content else {}
    return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a" * 1001}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "size": "500x500"}, "size"),
        ({"prompt": "x", "model": "dall-e-4"}, "model"),
        ({"prompt": "x", "quality": "best"}, "quality"),
        ({"prompt": "x", "style": "noir"}, "style"),
        ({"prompt": "x", "response_format": "png"}, "response_format"),
        ({"prompt": "x", "steps": 50}, "steps"),
        ({"prompt": "x", "model": "gpt-image-1", "stream": True}, "stream"),
    ],
)
def test_a_bad_field_is_400_with_its_name_and_costs_nothing(
    service: Service, fields: dict[str, object], param: str
) -> None:
    status, headers, answer = post(service, json.dumps(fields).encode())
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, param, "invalid_request_error")
    assert set(answer["error"]) == FOUR_KEYS
    assert headers["x-request-id"]
    assert service.upstream.calls == []


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"{", b"", b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_400(service: Service, body: bytes) -> None:
    status, _, answer = post(service, body)
    assert status == 400
    assert set(answer["error"]) == FOUR_KEYS
    assert service.upstream.calls == []


@pytest.mark.parametrize(
    ("body", "headers", "path", "method", "status"),
    [
        (b"a" * 11_000_000, {}, "/images/generations", "POST", 413),
        (b"a" * 7_000_000, {}, "/images/generations", "POST", 424),  # Lambda takes 6 MB
        (b"a" * 600_000, {}, "/images/generations", "POST", 413),
        (b'{"prompt":"x"}', {"Content_Type": "text/plain"}, "/images/generations", "POST", 415),
        (b"", {}, "/images/edits", "POST", 404),
        (b"", {}, "/images/generations", "PUT", 405),
        (b"", {}, "/images/img_short", "GET", 404),
    ],
)
def test_what_is_not_a_request_of_ours_is_told_so_in_openais_shape(
    service: Service, body: bytes, headers: dict[str, str], path: str, method: str, status: int
) -> None:
    got, sent, answer = post(service, body, path=path, method=method, **headers)
    assert got == status
    assert set(answer["error"]) == FOUR_KEYS
    assert sent["x-request-id"]
    assert service.upstream.calls == []


def error(status: int, *, headers: dict[str, str] | None = None, **fields: object) -> Callable[[Request], Reply]:
    told = {"message": "no", "type": "invalid_request_error", "param": None, "code": None, **fields}
    return lambda _: Reply(status, json.dumps({"error": told}).encode(), headers or {})


def answer(*images: dict[str, str]) -> Callable[[Request], Reply]:
    return lambda _: Reply(200, json.dumps({"created": 1, "data": images}).encode())


def hang(_: Request) -> Reply:
    time.sleep(6)
    raise HungUpError


def hang_up(_: Request) -> Reply:
    raise HungUpError


RETRY_NOW = {"retry-after-ms": "1"}
HTML = "data:text/html;base64,PGh0bWw+PC9odG1sPg=="


@pytest.mark.parametrize(
    ("script", "status", "code", "calls"),
    [
        ([error(400, code="content_policy_violation")], 400, "content_policy_violation", 1),
        ([error(400, code="moderation_blocked", type="image_generation_user_error")], 400, "moderation_blocked", 1),
        ([error(400, param="size")], 400, "upstream_refused_request", 1),
        ([error(401)], 502, "upstream_key_refused", 1),
        ([error(402)], 502, "upstream_out_of_credit", 1),
        ([error(429, headers=RETRY_NOW)] * 3, 429, "rate_limit_exceeded", 3),
        ([error(503, headers=RETRY_NOW)] * 3, 503, "upstream_unavailable", 3),
        ([error(500)], 424, "upstream_failed", 1),
        ([error(524)], 424, "upstream_failed", 1),
        ([hang], 424, "upstream_timeout", 1),
        ([hang_up], 424, "upstream_connection_lost", 1),
        ([lambda _: Reply(200, b"<html>")], 424, "upstream_answer_invalid", 1),
        ([answer()], 424, "upstream_too_few_images", 1),
        ([answer({"b64_json": ""})], 424, "upstream_answer_invalid", 1),
        ([answer({"url": HTML})], 424, "not_an_image", 1),
        ([answer({"url": "http://127.0.0.1:9/x.png"})], 424, "image_url_refused", 1),
        ([answer({"url": "https://localhost/x.png"})], 424, "image_url_refused", 1),
        ([answer({"url": "file:///etc/passwd"})], 424, "image_url_refused", 1),
    ],
)
def test_every_way_that_an_upstream_fails_has_its_answer_and_its_price(
    service: Service, script: list[Callable[[Request], Reply]], status: int, code: str, calls: int
) -> None:
    service.upstream.script += script
    got, headers, told = post(service, b'{"prompt":"x"}')
    assert (got, told["error"]["code"]) == (status, code)
    assert set(told["error"]) == FOUR_KEYS
    assert headers["x-generation-id"].startswith("gen_")
    assert len(service.upstream.calls) == calls
    if status == 424:
        assert headers["x-should-retry"] == "false"


def test_a_limit_that_passes_is_waited_for_and_the_image_comes(service: Service) -> None:
    service.upstream.script += [error(429, headers={"Retry-After": "1"}), error(503, headers=RETRY_NOW)]
    started = time.monotonic()
    status, _, told = post(service, b'{"prompt":"x"}')
    assert (status, len(told["data"])) == (200, 1)
    assert time.monotonic() - started >= 1
    assert len(service.upstream.calls) == 3


@pytest.mark.parametrize(
    ("reply", "code", "downloads"),
    [
        (lambda _: Reply(200, b"<html>not an image</html>"), "not_an_image", 1),
        (lambda _: Reply(200, b"\x89PNG\r\n\x1a\n" + b"x" * 5000), "image_truncated", 4),
        (lambda _: Reply(200, b"\x89PNG\r\n\x1a\n" + b"x" * 50, declared_length=9000), "image_download_failed", 4),
        (lambda _: Reply(200, b"\x89PNG\r\n\x1a\n", declared_length=26_214_401), "image_too_large", 1),
        (lambda _: Reply(403, b""), "image_download_failed", 1),
        (lambda _: Reply(500, b""), "image_download_failed", 4),
        (lambda _: Reply(302, b"", {"Location": "http://127.0.0.1:9/"}), "image_url_refused", 1),
    ],
)
def test_an_image_that_cannot_be_had_is_424_and_bought_once_however_often_it_is_fetched(
    service: Service, reply: Callable[[Request], Reply], code: str, downloads: int
) -> None:
    before = service.stored()
    service.upstream.download_script += [reply] * 4
    status, _, told = post(service, b'{"prompt":"x"}')
    assert (status, told["error"]["code"]) == (424, code)
    assert len(service.upstream.downloads) == downloads
    assert len(service.upstream.calls) == 1
    assert service.stored() == before


def test_a_download_that_breaks_off_is_fetched_again_and_never_bought_again(service: Service) -> None:
    service.upstream.download_script += [
        lambda _: Reply(200, b"\x89PNG\r\n\x1a\n", declared_length=9000),
        lambda _: Reply(503),
    ]
    status, _, told = post(service, b'{"prompt":"x"}')
    assert (status, len(told["data"])) == (200, 1)
    assert len(service.upstream.calls) == 1


def test_openais_client_does_not_pay_again_after_a_failure_that_may_have_cost(service: Service) -> None:
    service.upstream.script.append(error(500))
    with pytest.raises(openai.APIStatusError) as failed:
        service.client(max_retries=2).images.generate(model="dall-e-3", prompt="x")
    assert failed.value.status_code == 424
    assert failed.value.request_id
    assert len(service.upstream.calls) == 1


def test_openais_client_retries_what_cost_nothing_and_gets_its_image(service: Service) -> None:
    service.upstream.script += [error(429, headers=RETRY_NOW)] * 3
    result = service.client(max_retries=2).images.generate(model="dall-e-3", prompt="x")
    assert len(result.data or []) == 1
    assert len(service.upstream.calls) == 4


def test_a_closed_upstream_is_502(service: Service) -> None:
    """Nobody listens at the upstream's address, so nothing can have been bought."""
    function = service.stack.functions["ApiFunction"].function
    closed = {**function.environment, "UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1"}
    other = FunctionHost(replace(function, environment=closed), service.stack.logs / "closed.log")
    try:
        event = json.loads((ROOT / "events/create-images.json").read_text())
        event["headers"]["x-stainless-retry-count"] = "0"
        reply = json.loads(other.invoke(event).result(timeout=30))
    finally:
        other.close()
    assert reply["statusCode"] == 502
    assert json.loads(reply["body"])["error"]["code"] == "upstream_unreachable"


def test_behind_the_gateways_504_the_work_goes_on_and_ends_stored(service: Service) -> None:
    before = set(service.stored())
    template = Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": service.upstream_url}, "us-east-1")
    impatient = Gateway(template.api_body(), service.stack.functions, stage="", integration_seconds=0.5)
    service.upstream.script.append(lambda _: time.sleep(1.5))
    headers = [("Authorization", f"Bearer {service.key}"), ("Content-Type", "application/json"), ("Host", "x")]

    reply = impatient.respond(
        Request("POST", "/v1/images/generations", headers, b'{"prompt":"slow"}', None)  # type: ignore[arg-type]
    )

    assert reply.status == 504
    assert reply.headers["x-should-retry"] == "true"  # the retry attaches
    assert set(json.loads(reply.body)["error"]) == FOUR_KEYS
    deadline = time.monotonic() + 60  # only a failure takes so long
    while set(service.stored()) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(set(service.stored()) - before) == 1
    assert len(service.upstream.calls) == 1


def test_a_function_that_is_killed_at_work_is_424_and_only_clients_whose_retries_attach_are_asked_to_retry(
    service: Service,
) -> None:
    def kill(_: Request) -> Reply:
        for pid in service.stack.functions["ApiFunction"].pids():
            os.kill(pid, 9)
        raise HungUpError

    service.upstream.script.append(kill)
    status, headers, told = post(service, b'{"prompt":"x"}')
    assert (status, headers["x-should-retry"], headers["retry-after"]) == (424, "true", "2")
    assert set(told["error"]) == FOUR_KEYS
    assert len(service.upstream.calls) == 1


def test_nothing_secret_is_in_what_the_functions_wrote(service: Service) -> None:
    prompt = "canary-prompt-4711"
    post(service, json.dumps({"prompt": prompt}).encode())
    service.upstream.script.append(error(500, message=f"{UPSTREAM_KEY} {prompt}"))
    status, _, told = post(service, json.dumps({"prompt": prompt}).encode())
    logs = service.logs()
    assert "POST /v1/images/generations" in logs
    for secret in (UPSTREAM_KEY, prompt, "X-Amz-Signature", service.upstream_url, "/files/", service.key):
        assert secret not in logs, secret
    assert UPSTREAM_KEY not in json.dumps(told)
    assert status == 424


@pytest.mark.parametrize("way", ["inline", "queued"])
@pytest.mark.parametrize("interim", ["102 Processing", "103 Early Hints"])
def test_an_answer_behind_an_interim_one_reaches_the_caller_whose_it_is_and_no_other(
    service: Service, interim: str, way: str
) -> None:
    def interim_first(request: Request) -> None:
        request.connection.sendall(f"HTTP/1.1 {interim}\r\n\r\n".encode())
        time.sleep(0.3)  # the upstream is at work

    retries = {"x_stainless_retry_count": "0"} if way == "inline" else {}
    service.upstream.script.append(interim_first)

    prompts: list[str] = []
    for key, prompt in ((service.key, f"first {interim} {way}"), (service.stack.keys["other"], f"second {interim}")):
        body = json.dumps({"model": "dall-e-3", "prompt": prompt}).encode()
        status, headers, answer = post(service, body, Authorization=f"Bearer {key}", **retries)
        if status == 303:
            path = f"/images/{headers['location']}"
            status, _, answer = post(service, b"", path=path, method="GET", Authorization=f"Bearer {key}")
        assert status == 200, answer
        prompts.append(answer["data"][0]["revised_prompt"])

    assert prompts == [f"first {interim} {way}, in detail", f"second {interim}, in detail"]
    assert len(service.upstream.calls) == 2
