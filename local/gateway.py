"""API Gateway: turns HTTP requests into REST proxy events for the functions and enforces the gateway's rules.

Routes, authorizer and gateway responses come from the OpenAPI document that SAM generates from the template.
"""

import json
import os
import queue
import re
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as IntegrationTimeoutError
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local.aws_door import ACCOUNT, REGION, TokenBucket
from local.lambda_host import (
    FunctionError,
    FunctionHost,
    PayloadTooLargeError,
    ResponseStream,
    ThrottledError,
    paced,
)
from local.serving import BrokenStreamError, Reply, Request

# API Gateway developer guide, "Quotas for configuring and running a REST API in API Gateway".
INTEGRATION_SECONDS = 29.0  # integration time-out; higher only by a quota increase
MOST_BODY_BYTES = 10 * 1024 * 1024  # payload size: "HTTP content length exceeded 10485760 bytes."
# The kind of answer for an event over Lambda's limit: a 413 "Request Too Long". If such requests follow one another,
# AWS may answer INTEGRATION_FAILURE in its place (local/README.md).
EVENT_TOO_LARGE = "REQUEST_TOO_LARGE"
# API Gateway developer guide, "Stream the integration response for your proxy integrations in API Gateway".
IDLE_SECONDS = 300.0  # without a byte, for a Regional endpoint
FREE_STREAM_BYTES = 10 * 1024 * 1024
STREAM_BYTES_PER_SECOND = 2 * 1024 * 1024
# API Gateway developer guide, "Set up a Lambda proxy integration with payload response streaming in API Gateway".
DELIMITER = b"\0" * 8  # between the metadata and the body of a streamed response
MOST_METADATA_BYTES = 16 * 1024  # the delimiter must be within them
# API Gateway developer guide, "x-amazon-apigateway-authorizer object": authorizerResultTtlInSeconds.
_DEFAULT_CACHE_SECONDS = 300
_NOT_CALLED = (PayloadTooLargeError, ThrottledError)  # Lambda refused the invocation
_DEFAULT_MEDIA_TYPE = "application/json"  # of a request without a Content-Type
_ANY = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})  # the methods of an ANY route
_API_ID = "local"
# Status and message of the gateway's own answers, unless the template changes them. API Gateway developer guide,
# "Gateway response types for API Gateway".
_DEFAULTS = {
    "ACCESS_DENIED": (403, "User is not authorized to access this resource"),
    "API_CONFIGURATION_ERROR": (500, "Internal server error"),
    "AUTHORIZER_CONFIGURATION_ERROR": (500, "Internal server error"),
    "AUTHORIZER_FAILURE": (500, "Internal server error"),
    "INTEGRATION_FAILURE": (502, "Internal server error"),
    "INTEGRATION_TIMEOUT": (504, "Endpoint request timed out"),
    "INVALID_SIGNATURE": (403, "Authorization header requires 'Credential' parameter."),
    "MISSING_AUTHENTICATION_TOKEN": (403, "Missing Authentication Token"),
    "REQUEST_TOO_LARGE": (413, "Request Too Long"),
    "THROTTLED": (429, "Too Many Requests"),
    "UNAUTHORIZED": (401, "Unauthorized"),
}


@dataclass(frozen=True)
class _Authorizer:
    function: str
    header: str
    expression: re.Pattern[str]
    cache_seconds: float


@dataclass(frozen=True)
class _Route:
    method: str
    resource: str
    pattern: re.Pattern[str]
    function: str
    authorizer: _Authorizer | None
    mock: Mapping[str, str] | None = None  # headers of a preflight's answer, for which no function is called
    stream_seconds: float | None = None  # the time-out of a streaming integration; None for a buffered one


@dataclass(frozen=True)
class _Ids:
    """A caller can set `request` by a header, but not `extended`."""

    request: str
    extended: str = field(default_factory=lambda: b64encode(os.urandom(11)).decode())


class _RefusedError(Exception):
    """The gateway answers the request itself, with the gateway response `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Gateway:
    """Answers HTTP requests through the functions.

    `stage` is the first path segment, empty as behind a custom domain. `throttle` is the rate and the burst of each
    method of each resource. A stream that sends no byte for `idle_seconds` is cut.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        functions: Mapping[str, FunctionHost],
        *,
        stage: str,
        on_answer: Callable[[str, str, int, float], None] = lambda *_: None,
        integration_seconds: float = INTEGRATION_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        throttle: tuple[float, int] | None = None,
    ) -> None:
        self._resources = _resources(body)
        self._responses = body["x-amazon-apigateway-gateway-responses"]
        self._binary_types = [kind.lower() for kind in body.get("x-amazon-apigateway-binary-media-types", [])]
        self._functions = functions
        self._prefix = f"/{stage}" if stage else ""
        self._stage = stage or "local"
        self._on_answer = on_answer
        self._integration_seconds = integration_seconds
        self._idle_seconds = idle_seconds
        self._throttle = throttle
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._policies: dict[str, tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def respond(self, request: Request) -> Reply:
        started = time.monotonic()
        ids = _Ids(request.header("X-Amzn-RequestId") or str(uuid.uuid4()))
        try:
            reply = self._respond(request, ids)
        except _RefusedError as refused:
            reply = self._gateway_response(refused.kind, ids)
        self._on_answer(request.method, urlsplit(request.target).path, reply.status, time.monotonic() - started)
        return reply

    def _respond(self, request: Request, ids: "_Ids") -> Reply:
        if request.is_too_long or len(request.body) > MOST_BODY_BYTES:
            raise _RefusedError("REQUEST_TOO_LARGE")
        path = urlsplit(request.target).path
        route, parameters = self._route(request, path)
        if self._throttle and not self._bucket(route, *self._throttle).take():
            raise _RefusedError("THROTTLED")
        if route.mock is not None:
            if self._is_binary(request):  # the template of a mock integration takes only text
                raise _RefusedError("API_CONFIGURATION_ERROR")
            return Reply(200, b"{}", {"Content-Type": "application/json", **route.mock})
        policy = self._authorized(route, request, path.removeprefix(self._prefix))
        event = self._event(request, route, parameters, ids, policy)
        try:
            if route.stream_seconds is not None:
                return self._streamed(self._functions[route.function].invoke_streaming(event), route.stream_seconds)
            future = self._functions[route.function].invoke(event)
            answer = json.loads(future.result(timeout=self._integration_seconds))
            return _reply(answer)
        except (IntegrationTimeoutError, queue.Empty):  # the function continues
            raise _RefusedError("INTEGRATION_TIMEOUT") from None
        except PayloadTooLargeError:
            raise _RefusedError(EVENT_TOO_LARGE) from None
        except (ThrottledError, FunctionError, AttributeError, ValueError, TypeError, KeyError):
            raise _RefusedError("INTEGRATION_FAILURE") from None

    def _streamed(self, stream: ResponseStream, seconds: float) -> Reply:
        """The answer as soon as its metadata has arrived. Raises queue.Empty at a time-out."""
        until = time.monotonic() + seconds
        begun = b""
        while DELIMITER not in begun[:MOST_METADATA_BYTES]:
            block = self._next(stream, until) if len(begun) < MOST_METADATA_BYTES else None
            if block is None:
                raise ValueError("no metadata")
            begun += block
        metadata, _, first = begun.partition(DELIMITER)
        reply = _reply(json.loads(metadata))
        blocks = paced(self._rest(first, stream, until), FREE_STREAM_BYTES, STREAM_BYTES_PER_SECOND)
        return Reply(reply.status, headers=reply.headers, blocks=blocks)

    def _rest(self, first: bytes, stream: ResponseStream, until: float) -> Iterator[bytes]:
        block: bytes | None = first
        try:
            while block is not None:
                yield block
                block = self._next(stream, until)
        except (FunctionError, queue.Empty):
            raise BrokenStreamError from None

    def _next(self, stream: ResponseStream, until: float) -> bytes | None:
        left = until - time.monotonic()
        if left <= 0:
            raise queue.Empty
        return stream.next(min(self._idle_seconds, left))

    def _bucket(self, route: _Route, rate: float, burst: int) -> TokenBucket:
        """The bucket of one method of one resource."""
        with self._lock:
            return self._buckets.setdefault((route.resource, route.method), TokenBucket(rate, burst))

    def _route(self, request: Request, path: str) -> tuple[_Route, dict[str, str]]:
        """Selects the most specific resource, then its method. Ignores trailing slashes."""
        own = path.removeprefix(self._prefix).rstrip("/") or "/"
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            for routes in self._resources:
                if match := routes[0].pattern.fullmatch(own):
                    route = _with_method(routes, request.method)
                    if route is None:
                        break
                    return route, {name: unquote(value) for name, value in match.groupdict().items()}
        # Without a route, API Gateway reads the Authorization header as an AWS signature.
        raise _RefusedError("INVALID_SIGNATURE" if request.header("Authorization") else "MISSING_AUTHENTICATION_TOKEN")

    def _authorized(self, route: _Route, request: Request, path: str) -> dict[str, Any] | None:
        """The policy that allows the request; None for a route without an authorizer."""
        authorizer = route.authorizer
        if authorizer is None:
            return None
        token = request.header(authorizer.header)
        if not token or not authorizer.expression.search(token):
            raise _RefusedError("UNAUTHORIZED")
        arn = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{_API_ID}/{self._stage}/{route.method}{path}"
        policy = self._policy(authorizer, token, arn)
        if not _allows(policy, arn):
            raise _RefusedError("ACCESS_DENIED")
        return policy

    def _policy(self, authorizer: _Authorizer, token: str, arn: str) -> dict[str, Any]:
        with self._lock:
            known = self._policies.get(token)
        if known and time.monotonic() < known[0]:
            return known[1]
        event = {"type": "TOKEN", "methodArn": arn, "authorizationToken": token}
        try:
            answer = self._functions[authorizer.function].invoke(event).result(timeout=self._integration_seconds)
            policy: dict[str, Any] = json.loads(answer)
            policy["policyDocument"]["Statement"]
            _authorizer_context(policy)
        except FunctionError as error:
            raise _RefusedError("UNAUTHORIZED" if '"Unauthorized"' in str(error) else "AUTHORIZER_FAILURE") from None
        except (*_NOT_CALLED, IntegrationTimeoutError):
            raise _RefusedError("AUTHORIZER_FAILURE") from None
        except (ValueError, TypeError, KeyError):
            raise _RefusedError("AUTHORIZER_CONFIGURATION_ERROR") from None
        with self._lock:
            self._policies[token] = (time.monotonic() + authorizer.cache_seconds, policy)
        return policy

    def _is_binary(self, request: Request) -> bool:
        """Decided by the media type alone: neither its parameters nor the content count."""
        media_type = (request.header("Content-Type") or _DEFAULT_MEDIA_TYPE).partition(";")[0].strip().lower()
        return any(fnmatchcase(media_type, kind) for kind in self._binary_types)

    def _body(self, request: Request) -> tuple[str | None, bool]:
        """The body for the event, and whether it is base64. Text is not: bytes that are no UTF-8 are lost."""
        if not request.body:
            return None, False
        if self._is_binary(request):
            return b64encode(request.body).decode(), True
        return request.body.decode("utf-8", "replace"), False

    def _event(
        self,
        request: Request,
        route: _Route,
        parameters: dict[str, str],
        ids: "_Ids",
        policy: dict[str, Any] | None,
    ) -> dict[str, Any]:
        url = urlsplit(request.target)
        host = request.header("Host") or ""
        forwarded = [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Port", "80")]
        headers = [pair for pair in request.headers if not pair[0].lower().startswith("x-forwarded-")] + forwarded
        query = parse_qs(url.query, keep_blank_values=True)
        body, is_base64 = self._body(request)
        return {
            "resource": route.resource,
            "path": url.path.removeprefix(self._prefix),
            "httpMethod": request.method,
            "headers": dict(headers),
            "multiValueHeaders": {name: [v for n, v in headers if n == name] for name, _ in headers},
            "queryStringParameters": {name: values[-1] for name, values in query.items()} or None,
            "multiValueQueryStringParameters": query or None,
            "pathParameters": parameters or None,
            "stageVariables": None,
            "requestContext": {
                "accountId": ACCOUNT,
                "apiId": _API_ID,
                "authorizer": {**_authorizer_context(policy), "integrationLatency": 0} if policy else None,
                "domainName": host,
                "domainPrefix": host.partition(".")[0],
                "extendedRequestId": ids.extended,
                "httpMethod": request.method,
                "identity": {"sourceIp": "127.0.0.1", "userAgent": request.header("User-Agent")},
                "path": url.path,
                "protocol": "HTTP/1.1",
                "requestId": ids.request,
                "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
                "requestTimeEpoch": int(time.time() * 1000),
                "resourceId": "local",
                "resourcePath": route.resource,
                "stage": self._stage,
            },
            "body": body,
            "isBase64Encoded": is_base64,
        }

    def _gateway_response(self, kind: str, ids: "_Ids") -> Reply:
        status, message = _DEFAULTS[kind]
        response = self._responses.get(kind) or self._responses.get(f"DEFAULT_{status // 100}XX") or {}
        values = {
            "context.error.messageString": json.dumps(message),
            "context.error.message": message,
            "context.error.responseType": kind,
            "context.extendedRequestId": ids.extended,
            "context.requestId": ids.request,
        }
        template = response.get("responseTemplates", {}).get(
            "application/json", '{"message":$context.error.messageString}'
        )
        body = re.sub(r"\$(context(?:\.\w+)+)", lambda match: values[match[1]], template)
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": kind, "x-amzn-RequestId": ids.request}
        for name, value in response.get("responseParameters", {}).items():
            literal = re.fullmatch(r"'(.*)'", value)
            headers[name.removeprefix("gatewayresponse.header.")] = literal[1] if literal else values[value]
        return Reply(int(response.get("statusCode", status)), body.encode(), headers)


def _resources(body: Mapping[str, Any]) -> list[list[_Route]]:
    """The routes of each resource of the OpenAPI document, most specific resource first."""
    authorizers = {
        name: _authorizer(scheme) for name, scheme in body.get("components", {}).get("securitySchemes", {}).items()
    }
    resources = []
    for resource, methods in sorted(body["paths"].items(), key=lambda item: _generality(item[0])):
        pattern = _pattern(resource)
        routes: list[_Route] = []
        resources.append(routes)
        for name, operation in methods.items():
            method = "ANY" if name == "x-amazon-apigateway-any-method" else name.upper()
            integration = operation["x-amazon-apigateway-integration"]
            if integration.get("type") == "mock":
                headers = integration["responses"]["default"]["responseParameters"].items()
                mock = {name.removeprefix("method.response.header."): value.strip("'") for name, value in headers}
                routes.append(_Route(method, resource, pattern, "", None, mock))
                continue
            function = _function_of(integration["uri"])
            security = [name for rule in operation.get("security", []) for name in rule]
            authorizer = next((authorizers[name] for name in security if name in authorizers), None)
            routes.append(
                _Route(method, resource, pattern, function, authorizer, stream_seconds=_stream_seconds(integration))
            )
    return resources


def _stream_seconds(integration: Mapping[str, Any]) -> float | None:
    """The time-out of a streaming integration. Both its mode and its URI say that it streams."""
    if integration.get("responseTransferMode", "BUFFERED") != "STREAM":
        return None
    if not str(integration["uri"]).count("/response-streaming-invocations"):
        raise ValueError("a streaming integration needs the URI of InvokeWithResponseStream")
    return float(integration.get("timeoutInMillis", INTEGRATION_SECONDS * 1000)) / 1000


def _generality(resource: str) -> list[int]:
    """A sort key. In each segment, API Gateway prefers fixed text to a parameter and a parameter to a greedy one."""
    return [2 if segment.endswith("+}") else int(segment.startswith("{")) for segment in resource.split("/")]


def _pattern(resource: str) -> re.Pattern[str]:
    one = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(resource))
    return re.compile(re.sub(r"\\\{(\w+)\\\+\\\}", r"(?P<\1>.+)", one))


def _with_method(routes: list[_Route], method: str) -> _Route | None:
    by_method = {route.method: route for route in routes}
    return by_method.get(method) or (by_method.get("ANY") if method in _ANY else None)


def _authorizer(scheme: Mapping[str, Any]) -> _Authorizer:
    extension = scheme["x-amazon-apigateway-authorizer"]
    return _Authorizer(
        function=_function_of(extension["authorizerUri"]),
        header=scheme["name"],
        expression=re.compile(extension.get("identityValidationExpression", ".*")),
        cache_seconds=extension.get("authorizerResultTtlInSeconds", _DEFAULT_CACHE_SECONDS),
    )


def _function_of(uri: Mapping[str, Any]) -> str:
    """The logical id of the function in an integration's URI."""
    sub = uri["Fn::Sub"]
    if isinstance(sub, list):
        return str(sub[1]["__FunctionArn__"]["Fn::GetAtt"][0])
    match = re.search(r"\$\{(\w+)\.Arn\}", sub)
    if match is None:
        raise ValueError(f"no function in {sub}")
    return match[1]


def _allows(policy: Mapping[str, Any], arn: str) -> bool:
    effects = {
        statement["Effect"]
        for statement in policy["policyDocument"]["Statement"]
        if fnmatchcase(arn, statement["Resource"])
    }
    return effects == {"Allow"}


def _authorizer_context(policy: Mapping[str, Any]) -> dict[str, str]:
    """The authorizer's context and principal for the function. API Gateway converts values to text."""
    context = dict(policy.get("context") or {})
    if not all(isinstance(value, str | int | float) for value in context.values()):
        raise ValueError("a context may contain only text, numbers and booleans")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in context.items()}
    return {**texts, "principalId": str(policy["principalId"])}


def _reply(answer: Mapping[str, Any]) -> Reply:
    """The HTTP answer for a function's proxy answer. Raises if API Gateway would reject the proxy answer."""
    headers = {name: str(value) for name, value in (answer.get("headers") or {}).items()}
    headers |= {name: ",".join(map(str, values)) for name, values in (answer.get("multiValueHeaders") or {}).items()}
    headers.setdefault("Content-Type", "application/json")
    return Reply(int(answer["statusCode"]), (answer.get("body") or "").encode(), headers)
