"""The rules of Lambda and API Gateway that the local stack enforces; local/README.md lists them."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from local.gateway import MOST_BODY_BYTES, Gateway
from local.lambda_host import (
    MOST_PAYLOAD_BYTES,
    Account,
    Function,
    FunctionError,
    FunctionHost,
    PayloadTooLargeError,
    ThrottledError,
)
from local.serving import Reply, Request

HANDLERS = """
import json, os, sys, time

def echo(event, context):
    return {"pid": os.getpid(), "event": event, "left": context.get_remaining_time_in_millis()}

def slow(event, context):
    time.sleep(event["seconds"])
    open(os.environ["MARK"], "w").close()
    return "done"

def dies(event, context):
    os._exit(3)

def fails(event, context):
    raise ValueError("told by the function")

def big(event, context):
    return "x" * event["bytes"]

def environment(event, context):
    return dict(os.environ)

def proxy(event, context):
    wanted = json.loads(event["body"] or "{}")
    time.sleep(wanted.get("sleep", 0))
    while "wait" in wanted and not os.path.exists(wanted["wait"]):
        time.sleep(0.01)
    if wanted.get("die"):
        os._exit(1)
    if "answer" in wanted:
        return wanted["answer"]
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(event)}

def authorizer(event, context):
    with open(os.environ["MARK"], "a") as mark:
        mark.write("x")
    token = event["authorizationToken"]
    if token == "error":
        raise RuntimeError("broken")
    if token == "refuse":
        raise Exception("Unauthorized")
    effect = "Deny" if token == "bad" else "Allow"
    told = {"context": {"n": 5, "b": True, "t": "x"}, "nested": {"n": {"a": 1}}}
    context = {"context": told[token]} if token in told else {}
    api, stage, *_ = event["methodArn"].split("/")
    return {"principalId": "me", "policyDocument": {"Version": "2012-10-17", "Statement": [
        {"Action": "execute-api:Invoke", "Effect": effect, "Resource": f"{api}/{stage}/*"}]}, **context}
"""
Start = Callable[..., FunctionHost]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def start(tmp_path: Path, mark: Path) -> Iterator[Start]:
    (tmp_path / "app.py").write_text(HANDLERS)
    hosts = []

    def start(handler: str, account: Account | None = None, *, timeout: int = 20) -> FunctionHost:
        function = Function(handler, f"app.{handler}", tmp_path, (), timeout, 128, {"MARK": str(mark), "MINE": "yes"})
        hosts.append(FunctionHost(function, tmp_path / "log", account=account))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


def result(host: FunctionHost, event: object) -> Any:
    return json.loads(host.invoke(event).result(timeout=30))


def test_a_function_gets_its_event_and_its_deadline(start: Start) -> None:
    answer = result(start("echo", timeout=7), {"a": ["ü"]})
    assert answer["event"] == {"a": ["ü"]}
    assert 5000 < answer["left"] <= 7000


def test_a_process_takes_the_next_event_when_it_is_free(start: Start) -> None:
    host = start("echo")
    assert result(host, 1)["pid"] == result(host, 2)["pid"]


@pytest.mark.parametrize("path", ["/", "/2018-06-01/runtime/invocation/another/response"])
def test_what_strangers_post_is_not_taken_for_an_answer(start: Start, path: str) -> None:
    host = start("environment")
    runtime_api = result(host, {})["AWS_LAMBDA_RUNTIME_API"]
    with pytest.raises(HTTPError, match="400"):
        urlopen(f"http://{runtime_api}{path}", b'"not an answer"')
    assert result(host, {})["AWS_LAMBDA_RUNTIME_API"] == runtime_api


def test_a_process_takes_one_event_at_a_time_so_more_start_on_demand(start: Start) -> None:
    host = start("slow")
    futures = [host.invoke({"seconds": 1.5}) for _ in range(3)]
    time.sleep(0.2)
    assert len(host.pids()) == 3
    assert [json.loads(future.result(30)) for future in futures] == ["done"] * 3


def test_a_function_over_its_time_out_is_killed(start: Start, mark: Path) -> None:
    host = start("slow", timeout=1)
    with pytest.raises(FunctionError, match="timed out after 1"):
        host.invoke({"seconds": 2.0}).result(timeout=10)
    time.sleep(1.2)
    assert not mark.exists()


def test_a_process_that_dies_fails_its_event_and_the_next_gets_a_new_one(start: Start) -> None:
    host = start("dies")
    for _ in range(2):
        with pytest.raises(FunctionError, match="exited"):
            host.invoke({}).result(timeout=30)


def test_an_error_of_the_function_is_told_as_such(start: Start) -> None:
    with pytest.raises(FunctionError, match="told by the function"):
        start("fails").invoke({}).result(timeout=30)


def test_an_event_over_6_mb_is_refused_before_the_function_is_called(start: Start) -> None:
    with pytest.raises(PayloadTooLargeError):
        start("echo").invoke("x" * MOST_PAYLOAD_BYTES)


def test_an_answer_over_6_mb_is_a_failure(start: Start) -> None:
    host = start("big")
    assert len(result(host, {"bytes": MOST_PAYLOAD_BYTES - 2})) == MOST_PAYLOAD_BYTES - 2
    with pytest.raises(FunctionError):
        host.invoke({"bytes": MOST_PAYLOAD_BYTES + 1}).result(timeout=30)


def test_a_function_sees_lambdas_environment_and_nothing_of_this_machines(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THIS_MACHINE", "1")
    environment = result(start("environment"), {})
    assert environment["MINE"] == "yes"
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == "environment"
    assert "SECRET_OF_THIS_MACHINE" not in environment
    assert "HOME" not in environment


def test_closing_ends_every_process_also_a_busy_one(start: Start, mark: Path) -> None:
    host = start("slow")
    future = host.invoke({"seconds": 2.0})
    time.sleep(1.0)
    (pid,) = host.pids()
    host.close()
    with pytest.raises(FunctionError):
        future.result(timeout=5)
    assert not Path(f"/proc/{pid}").exists() or not mark.exists()


def body(ttl: int = 100) -> dict[str, Any]:
    def uri(function: str) -> dict[str, str]:
        return {"Fn::Sub": f"arn:aws:apigateway:x:lambda:path/functions/${{{function}.Arn}}/invocations"}

    def operation(security: str) -> dict[str, Any]:
        return {"x-amazon-apigateway-integration": {"uri": uri("Proxy")}, "security": [{security: []}]}

    allowed = {"method.response.header.Access-Control-Allow-Origin": "'https://page.example'"}
    responses = {"default": {"statusCode": "200", "responseParameters": allowed}}
    preflight = {"x-amazon-apigateway-integration": {"type": "mock", "responses": responses}}
    template = '{"message":$context.error.messageString,"kind":"$context.error.responseType"}'
    return {
        "paths": {
            "/open": {"post": operation("NONE"), "get": operation("NONE")},
            "/closed": {"get": operation("Key")},
            "/things/{thing}": {"get": operation("NONE"), "options": preflight},
            "/things/fixed": {"get": operation("NONE")},
            "/things/{proxy+}": {"x-amazon-apigateway-any-method": operation("NONE")},
            "/things/fixed/{other}": {"get": operation("NONE")},
        },
        "components": {
            "securitySchemes": {
                "Key": {
                    "name": "Authorization",
                    "x-amazon-apigateway-authorizer": {
                        "authorizerUri": uri("Authorizer"),
                        "authorizerResultTtlInSeconds": ttl,
                        "identityValidationExpression": "^[a-z]+$",
                    },
                }
            }
        },
        "x-amazon-apigateway-gateway-responses": {
            "ACCESS_DENIED": {
                "statusCode": 401,
                "responseTemplates": {"application/json": template},
                "responseParameters": {
                    "gatewayresponse.header.x-request-id": "context.extendedRequestId",
                    "gatewayresponse.header.x-fixed": "'fixed'",
                },
            },
            "DEFAULT_5XX": {"responseTemplates": {"application/json": template}},
        },
    }


@pytest.fixture
def gateway(start: Start) -> Callable[..., Gateway]:
    def make(
        *, stage: str = "", ttl: int = 100, seconds: float = 20, throttle: tuple[float, int] | None = None
    ) -> Gateway:
        functions = {"Proxy": start("proxy"), "Authorizer": start("authorizer")}
        return Gateway(body(ttl), functions, stage=stage, integration_seconds=seconds, throttle=throttle)

    return make


def ask(
    gateway: Gateway,
    method: str,
    target: str,
    content: bytes = b"",
    token: str | None = None,
    request_id: str | None = None,
) -> Reply:
    headers = [("Host", "127.0.0.1:1234"), ("X-Forwarded-For", "6.6.6.6"), ("X-Two", "a"), ("X-Two", "b")]
    if token is not None:
        headers.append(("Authorization", token))
    if request_id is not None:
        headers.append(("x-amzn-requestid", request_id))
    left, right = socket.socketpair()
    with left, right:
        return gateway.respond(Request(method, target, headers, content, left))


def test_a_caller_may_choose_the_request_id_and_not_the_extended_one(gateway: Callable[..., Gateway]) -> None:
    served = gateway()
    chosen = [json.loads(ask(served, "GET", "/open", request_id="chosen").body)["requestContext"] for _ in range(2)]
    assert [told["requestId"] for told in chosen] == ["chosen", "chosen"]
    assert len({told["extendedRequestId"] for told in chosen} | {"chosen"}) == 3
    own = json.loads(ask(served, "GET", "/open").body)["requestContext"]
    assert own["requestId"] != own["extendedRequestId"]
    refused = ask(served, "GET", "/closed", token="bad", request_id="chosen")
    assert refused.headers["x-amzn-RequestId"] == "chosen"
    assert "chosen" not in refused.headers["x-request-id"]


def test_each_method_of_each_resource_is_throttled_by_itself(gateway: Callable[..., Gateway]) -> None:
    impatient = gateway(throttle=(0.001, 1))
    asked = [("GET", "/open"), ("POST", "/open"), ("GET", "/things/a"), ("GET", "/things/fixed"), ("GET", "/things/b")]
    answers = [ask(impatient, method, path, b"{}" if method == "POST" else b"") for method, path in asked]
    assert [reply.status for reply in answers] == [200, 200, 200, 200, 429]


def test_what_comes_too_fast_is_throttled_and_let_in_again_later(gateway: Callable[..., Gateway]) -> None:
    impatient = gateway(throttle=(4, 2))
    answers = [ask(impatient, "GET", "/open") for _ in range(4)]
    assert [reply.status for reply in answers] == [200, 200, 429, 429]
    assert answers[-1].headers["x-amzn-ErrorType"] == "THROTTLED"
    time.sleep(0.3)
    assert ask(impatient, "GET", "/open").status == 200


def test_a_preflight_is_answered_by_the_gateway_itself_and_without_a_key(gateway: Callable[..., Gateway]) -> None:
    reply = ask(gateway(), "OPTIONS", "/things/a")
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")


def test_a_request_becomes_a_rest_proxy_event(gateway: Callable[..., Gateway]) -> None:
    reply = ask(gateway(stage="prod"), "GET", "/prod/things/a%20b?q=1&q=2&empty=")
    event = json.loads(reply.body)
    assert event["resource"] == "/things/{thing}"
    assert event["path"] == "/things/a%20b"
    assert event["pathParameters"] == {"thing": "a b"}
    assert event["queryStringParameters"] == {"q": "2", "empty": ""}
    assert event["multiValueQueryStringParameters"] == {"q": ["1", "2"], "empty": [""]}
    assert event["multiValueHeaders"]["X-Two"] == ["a", "b"]
    assert event["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert event["body"] is None
    assert event["requestContext"]["path"] == "/prod/things/a%20b"
    assert event["requestContext"]["stage"] == "prod"


def test_a_fixed_path_is_preferred_to_one_with_a_parameter(gateway: Callable[..., Gateway]) -> None:
    assert json.loads(ask(gateway(), "GET", "/things/fixed").body)["resource"] == "/things/fixed"


@pytest.mark.parametrize(
    ("method", "target", "resource", "parameters"),
    [
        ("GET", "/things/a", "/things/{thing}", {"thing": "a"}),
        ("GET", "/things/a/", "/things/{thing}", {"thing": "a"}),
        ("PUT", "/things/a/b/c/", "/things/{proxy+}", {"proxy": "a/b/c"}),
        ("GET", "/things/fixed/x", "/things/fixed/{other}", {"other": "x"}),
        ("GET", "/things/fixed/x/y", "/things/{proxy+}", {"proxy": "fixed/x/y"}),
    ],
)
def test_the_most_specific_resource_is_picked(
    gateway: Callable[..., Gateway], method: str, target: str, resource: str, parameters: dict[str, str]
) -> None:
    event = json.loads(ask(gateway(), method, target).body)
    assert (event["resource"], event["pathParameters"], event["path"]) == (resource, parameters, target)


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/nope"), ("DELETE", "/open"), ("PUT", "/things/fixed"), ("TRACE", "/things/a/b")]
)
def test_an_unknown_path_or_method_is_the_gateways_403(
    gateway: Callable[..., Gateway], method: str, target: str
) -> None:
    served = gateway()
    for token, kind in ((None, "MISSING_AUTHENTICATION_TOKEN"), ("good", "INVALID_SIGNATURE")):
        reply = ask(served, method, target, token=token)
        assert (reply.status, reply.headers["x-amzn-ErrorType"]) == (403, kind)


def test_outside_the_stage_there_is_nothing(gateway: Callable[..., Gateway]) -> None:
    assert ask(gateway(stage="prod"), "GET", "/open").status == 403


def test_the_gateway_hangs_up_and_the_function_goes_on(gateway: Callable[..., Gateway]) -> None:
    served = gateway(seconds=20)
    assert ask(served, "POST", "/open", b"{}").status == 200  # warm
    served._integration_seconds = 0.3
    started = time.monotonic()
    reply = ask(served, "POST", "/open", b'{"sleep": 1}')
    assert time.monotonic() - started < 0.9
    assert (reply.status, json.loads(reply.body)["kind"]) == (504, "INTEGRATION_TIMEOUT")
    (pid,) = served._functions["Proxy"].pids()
    time.sleep(1)
    served._integration_seconds = 20
    assert ask(served, "POST", "/open", b"{}").status == 200
    assert served._functions["Proxy"].pids() == [pid]


def test_a_body_over_10_mb_is_413_and_one_that_lambda_does_not_take_fails(gateway: Callable[..., Gateway]) -> None:
    served = gateway()
    assert ask(served, "POST", "/open", b"a" * (MOST_BODY_BYTES + 1)).status == 413
    reply = ask(served, "POST", "/open", b"a" * MOST_PAYLOAD_BYTES)
    assert (reply.status, json.loads(reply.body)["kind"]) == (502, "INTEGRATION_FAILURE")


def test_beyond_the_accounts_executions_a_function_is_not_called(start: Start, mark: Path) -> None:
    account = Account(2)
    functions = {"Proxy": start("proxy", account), "Authorizer": start("authorizer", account)}
    served = Gateway(body(), functions, stage="")
    release = mark.parent / "release"
    waiting = [functions["Proxy"].invoke({"body": json.dumps({"wait": str(release)})}) for _ in range(2)]

    reply = ask(served, "POST", "/open", b"{}")
    assert (reply.status, json.loads(reply.body)["kind"]) == (502, "INTEGRATION_FAILURE")
    assert ask(served, "GET", "/closed", token="good").headers["x-amzn-ErrorType"] == "AUTHORIZER_FAILURE"
    with pytest.raises(ThrottledError):
        functions["Proxy"].invoke({})

    release.touch()
    for future in waiting:
        future.result(timeout=20)
    deadline = time.monotonic() + 20
    while ask(served, "POST", "/open", b"{}").status != 200:  # an execution ends a moment after its answer
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "wanted",
    [{"die": True}, {"answer": {"body": "no status"}}, {"answer": "text"}, {"answer": {"statusCode": "x"}}],
)
def test_a_function_that_dies_or_answers_nonsense_is_502(gateway: Callable[..., Gateway], wanted: object) -> None:
    reply = ask(gateway(), "POST", "/open", json.dumps(wanted).encode())
    assert (reply.status, json.loads(reply.body)["kind"]) == (502, "INTEGRATION_FAILURE")


@pytest.mark.parametrize(
    ("token", "status", "kind"),
    [
        ("good", 200, None),
        ("bad", 401, "ACCESS_DENIED"),  # 403 but for the template's word
        ("refuse", 401, "UNAUTHORIZED"),
        ("error", 500, "AUTHORIZER_FAILURE"),
        ("nested", 500, "AUTHORIZER_CONFIGURATION_ERROR"),
        (None, 401, "UNAUTHORIZED"),
        ("NOT-MATCHING", 401, "UNAUTHORIZED"),
    ],
)
def test_the_authorizer_decides(
    gateway: Callable[..., Gateway], token: str | None, status: int, kind: str | None
) -> None:
    reply = ask(gateway(), "GET", "/closed", token=token)
    assert (reply.status, reply.headers.get("x-amzn-ErrorType")) == (status, kind)
    if kind == "ACCESS_DENIED":
        assert reply.headers["x-fixed"] == "fixed"
        assert len(reply.headers["x-request-id"]) == 16


@pytest.mark.parametrize(("token", "told"), [("good", {}), ("context", {"n": "5", "b": "true", "t": "x"})])
def test_what_the_authorizer_tells_goes_to_the_function_as_text(
    gateway: Callable[..., Gateway], token: str, told: dict[str, str]
) -> None:
    event = json.loads(ask(gateway(), "GET", "/closed", token=token).body)
    assert event["requestContext"]["authorizer"] == {"principalId": "me", "integrationLatency": 0, **told}


def test_the_authorizers_word_is_cached_by_the_token_as_long_as_the_template_says(
    gateway: Callable[..., Gateway], mark: Path
) -> None:
    cached = gateway(ttl=100)
    for _ in range(3):
        assert ask(cached, "GET", "/closed", token="good").status == 200
        assert ask(cached, "GET", "/closed", token="bad").status == 401
    assert mark.read_text() == "xx"
    uncached = gateway(ttl=0)
    for _ in range(2):
        ask(uncached, "GET", "/closed", token="good")
    assert mark.read_text() == "xxxx"


def test_a_token_that_does_not_match_never_reaches_the_authorizer(gateway: Callable[..., Gateway], mark: Path) -> None:
    ask(gateway(), "GET", "/closed", token="1")
    assert not mark.exists()


def test_many_requests_at_once_are_answered_by_as_many_processes(gateway: Callable[..., Gateway]) -> None:
    served = gateway()
    replies: list[Reply] = []
    threads = [
        threading.Thread(target=lambda: replies.append(ask(served, "POST", "/open", b'{"sleep": 1}'))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 8
    assert len(served._functions["Proxy"].pids()) == 8
