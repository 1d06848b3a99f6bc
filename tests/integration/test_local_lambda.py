"""The rules of Lambda and API Gateway that the local stack enforces; local/README.md lists them."""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from local import lambda_host
from local.aws_door import TokenBucket
from local.gateway import MOST_BODY_BYTES, Gateway
from local.lambda_host import MOST_ANSWER_BYTES, MOST_EVENT_BYTES, FunctionError, FunctionHost, RecursiveInvocationError
from local.serving import Reply, Request
from tests.support.waiting import until

HANDLERS = """
import json, os, time

def echo(event, context):
    trace = os.environ["_X_AMZN_TRACE_ID"]
    return {"pid": os.getpid(), "event": event, "left": context.get_remaining_time_in_millis(), "trace": trace}

def does(event, context):
    if event.get("stop"):
        time.sleep(600)
    if event.get("die"):
        os._exit(3)
    if event.get("fail"):
        raise ValueError("said by the function")
    return "x" * event["bytes"] if "bytes" in event else dict(os.environ)

def proxy(event, context):
    wanted = json.loads(event["body"] or "{}")
    if "begun" in wanted:
        open(wanted["begun"], "a").close()
    while "wait" in wanted and not os.path.exists(wanted["wait"]):
        time.sleep(0.01)
    if wanted.get("die"):
        os._exit(1)
    if "answer" in wanted:
        return wanted["answer"]
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(event)}

def authorizer(event, context):
    token = event["authorizationToken"]
    with open(os.environ["MARK"], "a") as mark:
        mark.write(token + " ")
    if token == "error":
        raise RuntimeError("broken")
    if token == "refuse":
        raise Exception("Unauthorized")
    effect = "Deny" if token == "bad" else "Allow"
    contexts = {"context": {"n": 5, "b": True, "t": "x"}, "nested": {"n": {"a": 1}}}
    context = {"context": contexts[token]} if token in contexts else {}
    api, stage, *_ = event["methodArn"].split("/")
    return {"principalId": "me", "policyDocument": {"Version": "2012-10-17", "Statement": [
        {"Action": "execute-api:Invoke", "Effect": effect, "Resource": f"{api}/{stage}/*"}]}, **context}
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "app.py").write_text(HANDLERS)
    return folder


Start = Callable[..., FunctionHost]


@pytest.fixture(scope="module")
def start(code: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(handler: str, account: lambda_host.Account | None = None, *, timeout: int = 60) -> FunctionHost:
            environment = {"MARK": str(code / "mark"), "MINE": "yes"}
            function = lambda_host.Function(handler, f"app.{handler}", code, (), timeout, 128, environment)
            return stack.enter_context(closing(FunctionHost(function, code / "log", account=account)))

        yield start


@pytest.fixture(scope="module")
def does(start: Start) -> FunctionHost:
    """A function that the tests share."""
    return start("does")


def result(host: FunctionHost, event: object, *traces: str) -> Any:
    return json.loads(host.invoke(event, traces).result(timeout=60))


def test_a_process_gets_events_with_deadlines_one_after_another(start: Start) -> None:
    host = start("echo", timeout=700)
    first, second = result(host, {"a": ["ü"]}), result(host, 2)
    assert first["event"] == {"a": ["ü"]}
    assert 600_000 < first["left"] <= 700_000
    assert [first["pid"]] == [second["pid"]] == host.pids()


@pytest.mark.parametrize("path", ["/", "/2018-06-01/runtime/invocation/another/response"])
def test_a_post_of_another_process_is_not_an_answer(does: FunctionHost, path: str) -> None:
    runtime_api = result(does, {})["AWS_LAMBDA_RUNTIME_API"]
    with pytest.raises(HTTPError, match="400") as refused:
        urlopen(f"http://{runtime_api}{path}", b'"not an answer"')
    refused.value.close()
    assert result(does, {})["AWS_LAMBDA_RUNTIME_API"] == runtime_api


@pytest.mark.parametrize("by", ["its time-out", "closing"])
def test_a_busy_process_is_killed(start: Start, by: str) -> None:
    host = start("does", timeout=1 if by == "its time-out" else 60)
    host.warm_up()
    (pid,) = host.pids()
    future = host.invoke({"stop": True})
    if by == "closing":
        host.close()
    with pytest.raises(FunctionError, match="timed out after 1" if by == "its time-out" else "exited|closing"):
        future.result(timeout=60)
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_failing_or_dying_process_fails_its_event_and_a_dead_one_is_replaced(does: FunctionHost) -> None:
    before = result(does, {})["AWS_LAMBDA_RUNTIME_API"]
    for wanted, words in (({"fail": True}, "said by the function"), ({"die": True}, "exited")):
        with pytest.raises(FunctionError, match=words):
            does.invoke(wanted).result(timeout=60)
    assert result(does, {})["AWS_LAMBDA_RUNTIME_API"] != before


def test_a_chain_of_requests_invokes_each_function_16_times(start: Start, does: FunctionHost) -> None:
    echo, first = start("echo"), result(does, {})["_X_AMZN_TRACE_ID"]
    trace = first
    for _ in range(15):
        trace = result(does, {}, result(echo, {}, trace)["trace"])["_X_AMZN_TRACE_ID"]
    assert result(echo, {}, trace)  # its 16th invocation
    for traces in ([trace, first], [first, trace]):
        with pytest.raises(RecursiveInvocationError):
            does.invoke({}, traces)
    for traces in ([first] * 16, []):  # short chains, and a new one
        assert result(does, {}, *traces)


def test_an_event_over_6_mb_is_refused_and_an_answer_over_6_mb_fails(does: FunctionHost) -> None:
    with pytest.raises(lambda_host.PayloadTooLargeError):
        does.invoke("x" * (MOST_EVENT_BYTES - 1))
    assert len(result(does, {"bytes": MOST_ANSWER_BYTES - 2})) == MOST_ANSWER_BYTES - 2
    with pytest.raises(FunctionError):
        does.invoke({"bytes": MOST_ANSWER_BYTES - 1}).result(timeout=60)


def test_a_function_has_only_lambdas_environment(does: FunctionHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THIS_MACHINE", "1")
    environment = result(does, {})
    assert (environment["MINE"], environment["AWS_LAMBDA_FUNCTION_NAME"]) == ("yes", "does")
    assert not {"SECRET_OF_THIS_MACHINE", "HOME"} & environment.keys()


# The gateway.


def body(ttl: int = 100) -> dict[str, Any]:
    def uri(function: str) -> dict[str, str]:
        return {"Fn::Sub": f"arn:aws:apigateway:x:lambda:path/functions/${{{function}.Arn}}/invocations"}

    def operation(security: str = "NONE") -> dict[str, Any]:
        return {"x-amazon-apigateway-integration": {"uri": uri("Proxy")}, "security": [{security: []}]}

    allowed = {"method.response.header.Access-Control-Allow-Origin": "'https://page.example'"}
    responses = {"default": {"statusCode": "200", "responseParameters": allowed}}
    preflight = {"x-amazon-apigateway-integration": {"type": "mock", "responses": responses}}
    template = {"application/json": '{"message":$context.error.messageString,"kind":"$context.error.responseType"}'}
    headers = {
        "gatewayresponse.header.x-request-id": "context.extendedRequestId",
        "gatewayresponse.header.x-fixed": "'fixed'",
    }
    authorizer = {
        "authorizerUri": uri("Authorizer"),
        "authorizerResultTtlInSeconds": ttl,
        "identityValidationExpression": "^[a-z]+$",
    }
    return {
        "paths": {
            "/open": {"post": operation(), "get": operation()},
            "/closed": {"get": operation("Key")},
            "/things/{thing}": {"get": operation(), "options": preflight},
            "/things/fixed": {"get": operation()},
            "/things/{proxy+}": {"x-amazon-apigateway-any-method": operation()},
            "/things/fixed/{other}": {"get": operation()},
        },
        "components": {
            "securitySchemes": {"Key": {"name": "Authorization", "x-amazon-apigateway-authorizer": authorizer}}
        },
        "x-amazon-apigateway-gateway-responses": {
            "ACCESS_DENIED": {"statusCode": 401, "responseTemplates": template, "responseParameters": headers},
            "DEFAULT_5XX": {"responseTemplates": template},
        },
    }


@pytest.fixture(scope="module")
def functions(start: Start) -> Mapping[str, FunctionHost]:
    """The functions behind every gateway of these tests."""
    return {"Proxy": start("proxy"), "Authorizer": start("authorizer")}


@pytest.fixture
def mark(code: Path) -> Path:
    """The tokens that the authorizer received."""
    (code / "mark").write_text("")
    return code / "mark"


Make = Callable[..., Gateway]


@pytest.fixture
def make(functions: Mapping[str, FunctionHost]) -> Make:
    def make(*, stage: str = "", ttl: int = 100, **options: Any) -> Gateway:
        return Gateway(body(ttl), functions, stage=stage, integration_seconds=options.pop("seconds", 60), **options)

    return make


@pytest.fixture
def gateway(make: Make) -> Gateway:
    return make()


def send(gateway: Gateway, method: str, target: str, content: bytes = b"", **more: str | None) -> Reply:
    headers = [("Host", "127.0.0.1:1234"), ("X-Forwarded-For", "6.6.6.6"), ("X-Two", "a"), ("X-Two", "b")]
    names = {"token": "Authorization", "request_id": "x-amzn-requestid"}
    headers += [(names[name], value) for name, value in more.items() if value is not None]
    left, right = socket.socketpair()
    with left, right:
        return gateway.respond(Request(method, target, headers, content, left))


def do(gateway: Gateway, **wanted: Any) -> Reply:
    return send(gateway, "POST", "/open", json.dumps(wanted).encode())


def event_of(gateway: Gateway, method: str, target: str, **more: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(send(gateway, method, target, b"", **more).body)
    return event


def test_a_caller_can_choose_only_the_request_id_not_the_extended_one(gateway: Gateway) -> None:
    chosen = [event_of(gateway, "GET", "/open", request_id="chosen")["requestContext"] for _ in range(2)]
    assert [context["requestId"] for context in chosen] == ["chosen", "chosen"]
    assert len({context["extendedRequestId"] for context in chosen} | {"chosen"}) == 3
    own = event_of(gateway, "GET", "/open")["requestContext"]
    assert own["requestId"] != own["extendedRequestId"]
    refused = send(gateway, "GET", "/closed", token="bad", request_id="chosen")
    assert refused.headers["x-amzn-RequestId"] == "chosen"
    assert "chosen" not in refused.headers["x-request-id"]


def test_each_method_of_each_resource_has_its_own_throttle(make: Make) -> None:
    impatient = make(throttle=(0.001, 1))
    requests = [
        ("GET", "/open"),
        ("POST", "/open"),
        ("GET", "/things/a"),
        ("GET", "/things/fixed"),
        ("GET", "/things/b"),
    ]
    answers = [send(impatient, method, path, b"{}" if method == "POST" else b"") for method, path in requests]
    assert [reply.status for reply in answers] == [200, 200, 200, 200, 429]
    assert answers[-1].headers["x-amzn-ErrorType"] == "THROTTLED"


def test_a_throttle_recovers_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("local.aws_door.time", SimpleNamespace(monotonic=lambda: now))
    bucket = TokenBucket(4, 2)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now += 0.24
    assert not bucket.take()
    now += 0.02
    assert [bucket.take() for _ in range(2)] == [True, False]
    now += 100  # not more than the burst
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_a_request_becomes_a_rest_proxy_event(make: Make) -> None:
    event = event_of(make(stage="prod"), "GET", "/prod/things/a%20b?q=1&q=2&empty=")
    assert (event["resource"], event["path"]) == ("/things/{thing}", "/things/a%20b")
    assert event["pathParameters"] == {"thing": "a b"}
    assert event["queryStringParameters"] == {"q": "2", "empty": ""}
    assert event["multiValueQueryStringParameters"] == {"q": ["1", "2"], "empty": [""]}
    assert event["multiValueHeaders"]["X-Two"] == ["a", "b"]
    assert event["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert event["body"] is None
    assert (event["requestContext"]["path"], event["requestContext"]["stage"]) == ("/prod/things/a%20b", "prod")


def test_the_gateway_answers_preflights_and_unknown_routes_itself(gateway: Gateway, make: Make) -> None:
    reply = send(gateway, "OPTIONS", "/things/a")
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")
    for method, target in (("GET", "/nope"), ("DELETE", "/open"), ("PUT", "/things/fixed"), ("TRACE", "/things/a/b")):
        for token, kind in ((None, "MISSING_AUTHENTICATION_TOKEN"), ("good", "INVALID_SIGNATURE")):
            reply = send(gateway, method, target, token=token)
            assert (reply.status, reply.headers["x-amzn-ErrorType"]) == (403, kind)
    assert send(make(stage="prod"), "GET", "/open").status == 403  # outside the stage


@pytest.mark.parametrize(
    ("method", "target", "resource", "parameters"),
    [
        ("GET", "/things/fixed", "/things/fixed", None),
        ("GET", "/things/a", "/things/{thing}", {"thing": "a"}),
        ("GET", "/things/a/", "/things/{thing}", {"thing": "a"}),
        ("PUT", "/things/a/b/c/", "/things/{proxy+}", {"proxy": "a/b/c"}),
        ("GET", "/things/fixed/x", "/things/fixed/{other}", {"other": "x"}),
        ("GET", "/things/fixed/x/y", "/things/{proxy+}", {"proxy": "fixed/x/y"}),
    ],
)
def test_the_most_specific_resource_wins(
    gateway: Gateway, method: str, target: str, resource: str, parameters: dict[str, str] | None
) -> None:
    event = event_of(gateway, method, target)
    assert (event["resource"], event["pathParameters"], event["path"]) == (resource, parameters, target)


def test_after_a_gateway_time_out_the_function_continues(make: Make, start: Start, tmp_path: Path) -> None:
    proxy, release, ended = start("proxy"), tmp_path / "release", tmp_path / "ended"
    proxy.warm_up()
    (pid,) = proxy.pids()
    impatient = Gateway(body(), {"Proxy": proxy}, stage="", integration_seconds=0.05)
    reply = do(impatient, wait=str(release))
    assert (reply.status, json.loads(reply.body)["kind"]) == (504, "INTEGRATION_TIMEOUT")
    release.touch()
    until(lambda: proxy.pids() == [pid] and proxy._idle)
    patient = Gateway(body(), {"Proxy": proxy}, stage="", integration_seconds=60)
    assert do(patient, begun=str(ended)).status == 200
    assert proxy.pids() == [pid]


def test_beyond_the_accounts_concurrency_a_function_is_not_called(start: Start, tmp_path: Path) -> None:
    account, release = lambda_host.Account(2), tmp_path / "release"
    proxy = start("proxy", account)
    served = Gateway(body(), {"Proxy": proxy, "Authorizer": start("authorizer", account)}, stage="")
    waiting = [proxy.invoke({"body": json.dumps({"wait": str(release)})}) for _ in range(2)]

    reply = do(served)
    assert (reply.status, json.loads(reply.body)["kind"]) == (502, "INTEGRATION_FAILURE")
    assert send(served, "GET", "/closed", token="good").headers["x-amzn-ErrorType"] == "AUTHORIZER_FAILURE"
    with pytest.raises(lambda_host.ThrottledError):
        proxy.invoke({})

    release.touch()
    for future in waiting:
        future.result(timeout=60)
    until(lambda: do(served).status == 200)  # an execution ends a moment after its answer


def test_a_payload_that_lambda_or_the_gateway_refuses_fails(gateway: Gateway) -> None:
    nonsense = [{"die": True}, *({"answer": each} for each in ({"body": "no status"}, "text", {"statusCode": "x"}))]
    for wanted in nonsense:
        reply = send(gateway, "POST", "/open", json.dumps(wanted).encode())
        assert (reply.status, json.loads(reply.body)["kind"]) == (502, "INTEGRATION_FAILURE")
    for length in (MOST_EVENT_BYTES, MOST_BODY_BYTES + 1):  # too large for Lambda, and for the gateway
        reply = send(gateway, "POST", "/open", b"a" * length)
        assert (reply.status, reply.headers["x-amzn-ErrorType"]) == (413, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    ("token", "status", "kind"),
    [
        ("good", 200, None),
        ("bad", 401, "ACCESS_DENIED"),  # the template replaces 403
        ("refuse", 401, "UNAUTHORIZED"),
        ("error", 500, "AUTHORIZER_FAILURE"),
        ("nested", 500, "AUTHORIZER_CONFIGURATION_ERROR"),
        (None, 401, "UNAUTHORIZED"),
        ("NOT-MATCHING", 401, "UNAUTHORIZED"),
        ("1", 401, "UNAUTHORIZED"),
    ],
)
def test_the_authorizer_decides(gateway: Gateway, mark: Path, token: str | None, status: int, kind: str | None) -> None:
    reply = send(gateway, "GET", "/closed", token=token)
    assert (reply.status, reply.headers.get("x-amzn-ErrorType")) == (status, kind)
    if kind == "ACCESS_DENIED":
        assert reply.headers["x-fixed"] == "fixed"
        assert len(reply.headers["x-request-id"]) == 16
    # A token that does not match the expression never reaches the authorizer.
    assert mark.read_text().split() == ([token] if token and token.islower() else [])


def test_the_authorizers_context_is_text_in_the_event(gateway: Gateway) -> None:
    for token, context in (("good", {}), ("context", {"n": "5", "b": "true", "t": "x"})):
        event = event_of(gateway, "GET", "/closed", token=token)
        assert event["requestContext"]["authorizer"] == {"principalId": "me", "integrationLatency": 0, **context}


def test_a_policy_is_cached_by_token_for_the_templates_time(make: Make, mark: Path) -> None:
    cached, uncached = make(ttl=100), make(ttl=0)
    for _ in range(3):
        assert send(cached, "GET", "/closed", token="good").status == 200
        assert send(cached, "GET", "/closed", token="bad").status == 401
    assert mark.read_text().split() == ["good", "bad"]
    for _ in range(2):
        send(uncached, "GET", "/closed", token="good")
    assert mark.read_text().split() == ["good", "bad", "good", "good"]


def test_concurrent_requests_get_a_process_each(
    make: Make, functions: Mapping[str, FunctionHost], tmp_path: Path
) -> None:
    """A process takes one event at a time, so more processes start on demand."""
    served, release = make(), tmp_path / "release"
    begun = [tmp_path / str(number) for number in range(4)]
    with ThreadPoolExecutor(4) as clients:
        replies = [clients.submit(do, served, begun=str(mine), wait=str(release)) for mine in begun]
        until(lambda: all(mine.exists() for mine in begun))
        assert len(functions["Proxy"].pids()) == 4
        release.touch()
    assert [reply.result().status for reply in replies] == [200] * 4
