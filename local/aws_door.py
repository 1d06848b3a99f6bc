"""A WSGI application in front of moto: enforces the functions' roles, records their calls, injects faults and delays.

moto's own IAM enforcement ignores presigned URLs and resources, so the roles are enforced here. The access key of a
request identifies the function. A request with any other key is an operator's: it may do everything and is not
recorded. The signatures of S3 requests are checked against the secret of the key, and their origins against the
bucket's CORS rules.
"""

import io
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from urllib.request import urlopen
from uuid import uuid4
from xml.etree import ElementTree as ET

from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.session import Session

ACCOUNT = "123456789012"  # moto's default account
REGION = "us-east-1"
CONTROL_PATH = "/_door/"  # bucket names contain no underscore

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_S3_ACTIONS = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_S3_OPERATIONS = _S3_ACTIONS | {"HEAD": "HeadObject"}  # IAM has no action for HeadObject
_S3_STATUSES = {"AccessDenied": "403 Forbidden", "ExpiredToken": "400 Bad Request", "RequestTimeout": "400 Bad Request"}
_SERVICES = ("dynamodb", "events", "s3", "sqs", "ssm")  # the services that the functions call
_PARAMETER_READS = ("GetParameter", "GetParameters", "GetParametersByPath")
# "AWS Systems Manager endpoints and quotas": GetParameter, default throughput, for the account in a region.
_PARAMETER_READS_A_SECOND = 40
# DynamoDB API reference, TransactWriteItems: a ClientRequestToken is valid for 10 minutes.
_TOKEN_SECONDS = 600
# S3 user guide, "Using cross-origin resource sharing (CORS)" and "Troubleshooting CORS".
_CORS_DISABLED = "CORSResponse: CORS is not enabled for this bucket."
_CORS_REFUSED = "CORSResponse: This CORS request is not allowed."
_PREFLIGHT = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"
_UNCOUNTED = "sqs:ReceiveMessage"  # polling is not deterministic
_NOT_EMPTY = {"ExpressionAttributeNames", "ExpressionAttributeValues"}
_DATA = {"Item", "Key", "Keys", "ExclusiveStartKey", *_NOT_EMPTY}  # may contain attributes of any name
_TRANSACTED = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}


@dataclass(frozen=True)
class AwsCall:
    """One action of a function on one resource."""

    function: str
    action: str
    resource: str


@dataclass(frozen=True)
class Fault:
    """Makes the functions' call number `at` fail, including the SDK's retries. Counting starts when the fault is set.

    `when` is `before` or `after` the call's effect. After a failure `after` the effect, retries fail before theirs.
    With `once` only the first try fails, so that the SDK's retry finds the effect of the first try. `error` is a code
    that AWS answers (`InternalServerError`, `ThrottlingException`, S3's `ExpiredToken` and `RequestTimeout`), or
    `hang-up` for a connection that closes without an answer. `service` counts only the calls of one service.
    """

    at: int
    when: str = "before"
    error: str = "InternalServerError"
    once: bool = False
    service: str | None = None


@dataclass(frozen=True)
class _CorsRule:
    methods: list[str]
    origins: list[str]
    headers: list[str]
    exposed: list[str]
    seconds: list[str]  # one number at most

    def admits(self, origin: str, method: str, headers: Iterable[str]) -> bool:
        return (
            method in self.methods
            and any(_matches(allowed, origin) for allowed in self.origins)
            and all(any(_matches(allowed.lower(), name) for allowed in self.headers) for name in headers)
        )

    def answer(self, origin: str, headers: Iterable[str]) -> list[tuple[str, str]]:
        """The headers of S3's answer to a request that the rule admits."""
        everyone = "*" in self.origins
        found = {
            "Access-Control-Allow-Origin": "*" if everyone else origin,
            "Access-Control-Allow-Credentials": "" if everyone else "true",
            "Access-Control-Allow-Methods": ", ".join(self.methods),
            "Access-Control-Allow-Headers": ", ".join(headers),
            "Access-Control-Expose-Headers": ", ".join(self.exposed),
            "Access-Control-Max-Age": "".join(self.seconds),
            "Vary": _PREFLIGHT,
        }
        return [(name, value) for name, value in found.items() if value]


def read_delays(text: str) -> dict[str, int]:
    """Milliseconds by service, or by service and operation, from `dynamodb=100,sqs.SendMessage=20`.

    Raises ValueError with the reason.
    """
    delays = {}
    for each in text.split(",") if text else ():
        name, _, milliseconds = each.strip().partition("=")
        service, _, operation = name.partition(".")
        if service not in _SERVICES:
            raise ValueError(f"AWS_DELAYS has {each!r}: the service must be one of {', '.join(_SERVICES)}")
        if operation not in ("", *_operations(service)):
            raise ValueError(f"AWS_DELAYS has {each!r}: the operation is unknown or cannot be delayed")
        if not re.fullmatch(r"[0-9]{1,5}", milliseconds):
            raise ValueError(f"AWS_DELAYS has {each!r}: give whole milliseconds, for example {name}=100")
        delays[name] = int(milliseconds)
    return delays


def _operations(service: str) -> Iterable[str]:
    if service == "s3":
        return _S3_OPERATIONS.values()
    operations: list[str] = Session().get_service_model(service).operation_names
    return operations


class TokenBucket:
    """Allows `rate` requests a second in the long run and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._tokens, self._at = min(self._burst, self._tokens + (now - self._at) * self._rate), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class AwsDoor:
    """Wraps moto's WSGI application. `secret` is the operators'. `DoorControl` uses the paths under `CONTROL_PATH`."""

    def __init__(self, app: WsgiApp, secret: str) -> None:
        self._app = app
        self._secret = secret
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._roles: dict[str, tuple[str, list[dict[str, Any]]]] = {}
        self._secrets: dict[str, str] = {}
        self._calls: set[AwsCall] = set()
        self._numbers: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._broken: dict[str, Fault] = {}
        self._transactions: dict[str, tuple[float, dict[str, Any]]] = {}  # by token: time and request
        self._delays: dict[str, int] = {}
        self._parameter_reads = TokenBucket(_PARAMETER_READS_A_SECOND, _PARAMETER_READS_A_SECOND)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL_PATH):
            return self._control(path.removeprefix(CONTROL_PATH), environ, start_response)
        key, service = _credential(environ)
        time.sleep(self._delay(service, environ))
        if environ["REQUEST_METHOD"] == "OPTIONS":  # a preflight has no signature
            return self._preflight(environ, start_response)
        if service in ("s3", ""):
            start_response = self._with_cors_headers(environ, start_response)
        if service in ("s3", "") and (refusal := _signature_refusal(environ, self._secrets.get(key, self._secret))):
            return _s3_error(environ, start_response, *refusal)
        if service == "ssm" and _operation(service, environ) in _PARAMETER_READS and not self._parameter_reads.take():
            return _refusal(service, environ, start_response, "ThrottlingException", "Rate exceeded")
        if key in self._roles:
            return self._by_role(*self._roles[key], service, environ, start_response)
        return self._passed_on(environ, start_response)

    def _preflight(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """S3's answer. moto admits every origin, method and header."""
        origin, method = (environ.get(f"HTTP_{name}") for name in ("ORIGIN", "ACCESS_CONTROL_REQUEST_METHOD"))
        if not origin or not method:
            message = "Insufficient information. Origin and Access-Control-Request-Method are needed."
            return _s3_error(environ, start_response, "400 Bad Request", "BadRequest", message)
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "").lower()
        headers = [name.strip() for name in asked.split(",") if name.strip()]
        rules = self._cors_rules(environ)
        rule = next((each for each in rules if each.admits(origin, method, headers)), None)
        if rule is None:
            message = _CORS_REFUSED if rules else _CORS_DISABLED
            return _s3_error(environ, start_response, "403 Forbidden", "AccessForbidden", message)
        start_response("200 OK", [*rule.answer(origin, headers), ("Content-Length", "0")])
        return []

    def _with_cors_headers(self, environ: Environ, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Replaces moto's headers for a web page by those of the bucket's rules. S3 refuses no origin: browsers do."""
        origin, method = environ.get("HTTP_ORIGIN", ""), environ["REQUEST_METHOD"]
        rules = self._cors_rules(environ) if origin else ()
        own = next((rule.answer(origin, ()) for rule in rules if rule.admits(origin, method, ())), [])

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            return start_response(status, kept + own, *rest)

        return start

    def _cors_rules(self, environ: Environ) -> list[_CorsRule]:
        """The rules of the request's bucket, as moto keeps them; an empty list without such a bucket."""
        bucket = environ["PATH_INFO"].lstrip("/").partition("/")[0]
        host = {name: value for name, value in environ.items() if not name.startswith(("HTTP_", "CONTENT_"))}
        url = {"PATH_INFO": f"/{bucket}", "QUERY_STRING": "cors", "RAW_URI": f"/{bucket}?cors"}
        asking = {**host, **url, "REQUEST_METHOD": "GET", "HTTP_HOST": environ["HTTP_HOST"], "wsgi.input": io.BytesIO()}
        started: list[Any] = []
        answer = b"".join(self._app(asking, lambda *start: started.extend(start)))
        if not started[0].startswith("200"):
            return []
        fields = ("AllowedMethod", "AllowedOrigin", "AllowedHeader", "ExposeHeader", "MaxAgeSeconds")
        return [
            _CorsRule(*([element.text or "" for element in rule.findall(f"{{*}}{name}")] for name in fields))
            for rule in ET.fromstring(answer).findall("{*}CORSRule")  # noqa: S314  # moto wrote it
        ]

    def _by_role(
        self,
        name: str,
        statements: list[dict[str, Any]],
        service: str,
        environ: Environ,
        start_response: Callable[..., Any],
    ) -> Iterable[bytes]:
        """Handles a function's call: checks its role and injects a fault if one is due."""
        calls = [AwsCall(name, action, resource) for action, resource in _actions(service, environ)]
        with self._lock:
            self._calls.update(calls)
        for call in calls:
            if not _allowed(statements, call):
                return _refusal(service, environ, start_response, "AccessDeniedException", f"{call} is not granted")
        counted = not any(call.action == _UNCOUNTED for call in calls)
        fault, first = self._fault(service, environ) if counted else (None, True)
        if fault and (fault.when == "before" or not first):
            return _failed(fault, service, environ, start_response)
        may_list = any(_allowed(statements, AwsCall(name, "s3:ListBucket", call.resource)) for call in calls)
        start = (lambda *_: None) if fault else start_response
        answer = (
            self._passed_on(environ, start)
            if service != "s3" or may_list
            else self._hiding_missing_objects(environ, start)
        )
        if fault:
            deque(answer, maxlen=0)
            environ["wsgi.input"] = io.BytesIO()  # moto has read the body
            return _failed(fault, service, environ, start_response)
        return answer

    def _passed_on(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serializes DynamoDB's requests, because moto has no locks and DynamoDB's writes are atomic."""
        if environ.get("HTTP_X_AMZ_TARGET") == "AmazonSQS.SendMessage":
            _keep_trace(environ)
        if environ.get("HTTP_X_AMZ_TARGET") == "AWSEvents.PutEvents":
            return self._put_events(environ, start_response)
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            return self._app(environ, start_response)
        arguments = json.loads(_body(environ) or b"{}")
        if empty := _empty_argument(arguments):
            message = f"{empty} must not be empty"
            return _refusal("dynamodb", environ, start_response, "ValidationException", message)
        with self._one_at_a_time:
            if "ClientRequestToken" in arguments:
                return self._transacted_once(arguments, environ, start_response)
            return list(self._app(environ, start_response))

    def _put_events(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """EventBridge reports success for an event to a bus that does not exist, and drops it. moto refuses it."""
        entries = json.loads(_body(environ))["Entries"]
        started: list[Any] = []
        answer = b"".join(self._app(environ, lambda *start: started.append(start)))
        if b"ResourceNotFoundException" in answer:
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
            return [
                json.dumps({"FailedEntryCount": 0, "Entries": [{"EventId": str(uuid4())} for _ in entries]}).encode()
            ]
        start_response(*started[0])
        return [answer]

    def _transacted_once(
        self, arguments: dict[str, Any], environ: Environ, start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """DynamoDB applies a transaction with the same token only once. moto ignores the token."""
        token, now = arguments.pop("ClientRequestToken"), time.monotonic()
        done_at, done = self._transactions.get(token, (0.0, None))
        if done is not None and now - done_at < _TOKEN_SECONDS:
            if done != arguments:
                message = "The token was used with other parameters"
                return _refusal("dynamodb", environ, start_response, "IdempotentParameterMismatchException", message)
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.0")])
            return [b"{}"]

        def start(status: str, *rest: Any) -> Any:
            if status.startswith("200"):
                self._transactions[token] = now, arguments
            return start_response(status, *rest)

        return list(self._app(environ, start))

    def _hiding_missing_objects(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Without s3:ListBucket, S3 answers 403 instead of 404 for a missing object."""
        begun: list[Any] = []
        answer = self._passed_on(environ, lambda *begin: begun.extend(begin))
        if begun[0].startswith("404") and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return _s3_error(environ, start_response, "403 Forbidden", "AccessDenied", "Access Denied")
        start_response(*begun)
        return answer

    def _delay(self, service: str, environ: Environ) -> float:
        """The delay in seconds. An operation's own delay replaces that of its service."""
        name = f"{service}.{_operation(service, environ)}"
        return self._delays.get(name, self._delays.get(service, 0)) / 1000

    def _fault(self, service: str, environ: Environ) -> tuple[Fault | None, bool]:
        """The fault for this request, if any, and whether the request is the first try of its call."""
        invocation = environ.get("HTTP_AMZ_SDK_INVOCATION_ID", "")
        with self._lock:
            if invocation in self._broken:
                fault = self._broken[invocation]
                return (None if fault.once else fault), False
            for name in ("", service):
                self._numbers[name] = self._numbers.get(name, 0) + 1
            for fault in self._faults:
                if fault.service in (None, service) and self._numbers[fault.service or ""] == fault.at:
                    if invocation:
                        self._broken[invocation] = fault
                    return fault, True
        return None, True

    def _control(self, what: str, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = json.loads(_body(environ) or b"null")
        answer: Any = None
        with self._lock:
            if what == "roles":
                self._roles = {key: (role["function"], role["statements"]) for key, role in body.items()}
                self._secrets = {key: role["secret"] for key, role in body.items() if "secret" in role}
            elif what == "calls":
                answer = [asdict(call) for call in self._calls]
            elif what == "delays":
                self._delays = body
            elif what == "faults":
                answer = self._numbers.get("", 0)
                self._faults = [Fault(**fault) for fault in body]
                self._numbers.clear()
                self._broken.clear()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]


def _matches(pattern: str, text: str) -> bool:
    """A pattern of a CORS rule may contain one star."""
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == text
    return text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)


def _credential(environ: Environ) -> tuple[str, str]:
    """The access key and the service in the signature of a request, which is in the header or in the query."""
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0]
    if not scope:
        scope = parse_qs(environ.get("QUERY_STRING", "")).get("X-Amz-Credential", [""])[0]
    key, _, rest = scope.partition("/")
    return key, rest.split("/")[2] if rest.count("/") >= 2 else ""


def _operation(service: str, environ: Environ) -> str:
    if service == "s3":
        return _S3_OPERATIONS.get(environ["REQUEST_METHOD"], "")
    return str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]


def _actions(service: str, environ: Environ) -> Iterator[tuple[str, str]]:  # noqa: C901  # a row for each service
    """The actions that IAM would check, each with the ARN of its resource."""
    if service == "s3":
        path = unquote(environ["PATH_INFO"]).lstrip("/")
        action = _S3_ACTIONS[environ["REQUEST_METHOD"]]
        versioned = "versionId" in parse_qs(environ.get("QUERY_STRING", ""))
        yield f"s3:{action}{'Version' if versioned else ''}", f"arn:aws:s3:::{path}"
        return
    if "HTTP_X_AMZ_TARGET" not in environ:  # CloudFormation and other services with form-encoded requests
        yield f"{service}:{parse_qs(_body(environ).decode()).get('Action', [''])[0]}", "*"
        return
    operation = _operation(service, environ)
    arguments = json.loads(_body(environ) or b"{}")
    if service == "dynamodb" and operation == "TransactWriteItems":
        for item in arguments["TransactItems"]:
            ((kind, details),) = item.items()
            yield f"dynamodb:{_TRANSACTED[kind]}", _arn("dynamodb", f"table/{details['TableName']}")
    elif service == "dynamodb":
        index = f"/index/{arguments['IndexName']}" if "IndexName" in arguments else ""
        for table in arguments.get("RequestItems") or [arguments["TableName"]]:
            yield f"dynamodb:{operation}", _arn("dynamodb", f"table/{table}{index}")
    elif service == "sqs":
        yield f"sqs:{operation}", _arn("sqs", urlsplit(arguments["QueueUrl"]).path.rpartition("/")[2])
    elif service == "events":
        for entry in arguments["Entries"]:
            yield f"events:{operation}", _arn("events", f"event-bus/{entry['EventBusName']}")
    elif service == "ssm":
        yield f"ssm:{operation}", _arn("ssm", f"parameter/{arguments['Name'].lstrip('/')}")
    else:
        yield f"{service}:{operation}", "*"


def _empty_argument(arguments: Any) -> str | None:
    """The name of an argument that is empty, which DynamoDB refuses and moto mostly accepts."""
    if isinstance(arguments, dict):
        for name, value in arguments.items():
            if name in _NOT_EMPTY and not value:
                return str(name)
            if name not in _DATA and (found := _empty_argument(value)):
                return found
    elif isinstance(arguments, list):
        return next((found for each in arguments if (found := _empty_argument(each))), None)
    return None


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _body(environ: Environ) -> bytes:
    """Reads the body and puts it back."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _keep_trace(environ: Environ) -> None:
    """SQS keeps a trace header as an attribute of the message, which moto does not.

    An attribute that the sender has set overrides the header (X-Ray developer guide, "Amazon SQS and AWS X-Ray").
    """
    if header := environ.get("HTTP_X_AMZN_TRACE_ID"):
        arguments = json.loads(_body(environ))
        kept = {"AWSTraceHeader": {"DataType": "String", "StringValue": header}}
        arguments["MessageSystemAttributes"] = kept | arguments.get("MessageSystemAttributes", {})
        body = json.dumps(arguments).encode()
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))


def _allowed(statements: Iterable[Mapping[str, Any]], call: AwsCall) -> bool:
    return any(
        call.action.lower() in (action.lower() for action in _listed(statement["Action"]))
        and any(fnmatchcase(call.resource, pattern) for pattern in _listed(statement["Resource"]))
        for statement in statements
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _failed(fault: Fault, service: str, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    if fault.error == "hang-up":
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return _refusal(service, environ, start_response, fault.error, "injected")


def _refusal(
    service: str, environ: Environ, start_response: Callable[..., Any], code: str, message: str
) -> Iterable[bytes]:
    if service == "s3":
        code = code.removesuffix("Exception")
        return _s3_error(environ, start_response, _S3_STATUSES.get(code, "500 Internal Server Error"), code, message)
    if "HTTP_X_AMZ_TARGET" not in environ:
        start_response("403 Forbidden", [("Content-Type", "text/xml")])
        text = f"<Error><Code>{code.removesuffix('Exception')}</Code><Message>{message}</Message></Error>"
        return [f"<ErrorResponse>{text}</ErrorResponse>".encode()]
    server_fault = code == "InternalServerError"
    start_response(
        "500 Internal Server Error" if server_fault else "400 Bad Request",
        [("Content-Type", "application/x-amz-json-1.0")],
    )
    return [json.dumps({"__type": f"com.amazonaws#{code}", "message": message}).encode()]


def _s3_error(
    environ: Environ, start_response: Callable[..., Any], status: str, code: str, message: str
) -> Iterable[bytes]:
    _body(environ)  # a client that is still sending would not read the answer
    start_response(status, [("Content-Type", "application/xml")])
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]


def _signature_refusal(environ: Environ, secret: str) -> tuple[str, str, str] | None:
    """Status, code and message of S3's refusal; None if the signature is valid."""
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    header = environ.get("HTTP_AUTHORIZATION", "")
    signer: type[SigV4Auth] = S3SigV4QueryAuth
    if "X-Amz-Algorithm" not in query:
        if not header:
            return "403 Forbidden", "AccessDenied", "Access Denied"
        fields = dict(field.strip().partition("=")[::2] for field in header.partition(" ")[2].split(","))
        fields["Date"] = environ.get("HTTP_X_AMZ_DATE", "")
        signer = S3SigV4Auth
    elif header:
        return "400 Bad Request", "InvalidArgument", "Only one auth mechanism allowed"
    else:
        fields = {name.removeprefix("X-Amz-"): value for name, value in query.items()}
        try:
            signed_at = datetime.strptime(fields["Date"], SIGV4_TIMESTAMP).replace(tzinfo=UTC)
            expires_at = signed_at + timedelta(seconds=int(fields["Expires"]))
        except (KeyError, ValueError):
            return "400 Bad Request", "AuthorizationQueryParametersError", "X-Amz-Date and X-Amz-Expires are needed"
        if expires_at < datetime.now(UTC):
            return "403 Forbidden", "AccessDenied", "Request has expired"
    if unsigned := _unsigned_headers(fields, environ):
        code, message = "AccessDenied", f"There were headers present in the request which were not signed: {unsigned}"
    elif fields.get("Signature") != _signature(signer, fields, environ, secret):
        code, message = "SignatureDoesNotMatch", "The signature does not match the request"
    else:
        return None
    return "403 Forbidden", code, message


def _unsigned_headers(fields: Mapping[str, str], environ: Environ) -> str:
    """S3 accepts unsigned headers, but of its own only the hash of the body."""
    own = {name[5:].replace("_", "-").lower() for name in environ if name.startswith("HTTP_X_AMZ_")}
    return ", ".join(sorted(own - {*fields.get("SignedHeaders", "").split(";"), "x-amz-content-sha256"}))


def _signature(kind: type[SigV4Auth], fields: Mapping[str, str], environ: Environ, secret: str) -> str:
    """The signature that the request should have, for the key and the time that it names."""
    key, _, scope = fields.get("Credential", "").partition("/")
    signed = {name: _header(name, environ) for name in fields.get("SignedHeaders", "").split(";")}
    path = quote(environ["PATH_INFO"].encode("latin-1"), safe="/~")
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    query.pop("X-Amz-Signature", None)
    request = AWSRequest(
        environ["REQUEST_METHOD"],
        f"http://{environ['HTTP_HOST']}{path}",
        signed,
        params=query,
    )
    request.context["timestamp"] = fields["Date"]
    signer = kind(Credentials(key, secret), "s3", "".join(scope.split("/")[1:2]))
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def _header(name: str, environ: Environ) -> str:
    variable = name.upper().replace("-", "_")
    return str(environ.get(variable if variable in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{variable}", ""))


class DoorControl:
    """Controls the `AwsDoor` at `aws_url` from another process."""

    def __init__(self, aws_url: str) -> None:
        self._url = f"{aws_url}{CONTROL_PATH}"

    def let_in(self, roles: Mapping[str, Mapping[str, Any]]) -> None:
        """Sets the role of each access key: `{"function": name, "statements": [...]}`.

        `"secret"` is optional and replaces the operators' secret.
        """
        self._post("roles", roles)

    def calls(self) -> set[AwsCall]:
        """All calls of the functions so far."""
        return {AwsCall(**call) for call in self._post("calls", None)}

    def fail(self, *faults: Fault) -> int:
        """Replaces all faults by these. Returns the number of calls since the last time."""
        return int(self._post("faults", [asdict(fault) for fault in faults]))

    def delay(self, milliseconds: Mapping[str, int]) -> None:
        """Delays all calls, by service (`s3`) or by service and operation (`s3.PutObject`)."""
        self._post("delays", milliseconds)

    def _post(self, what: str, message: object) -> Any:
        with urlopen(f"{self._url}{what}", json.dumps(message).encode()) as answer:  # noqa: S310  # a local URL
            return json.load(answer)
