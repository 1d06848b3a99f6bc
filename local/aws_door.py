"""What stands between the functions and moto: records who calls what, enforces roles, breaks and delays calls.

moto's own IAM enforcement knows no presigned URL and no resource, so the functions' roles are enforced here. A function
is told by its access key. Whoever has another key is an operator, who may do everything and is not recorded. The
signatures of S3's requests are checked by the key's secret.
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

from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.session import Session

from local.gateway import TokenBucket

ACCOUNT = "123456789012"  # moto's
REGION = "us-east-1"
CONTROL_PATH = "/_door/"  # no bucket's name begins like that

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_S3_ACTIONS = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_S3_OPERATIONS = _S3_ACTIONS | {"HEAD": "HeadObject"}  # by their names in the API, which differ from IAM's
_S3_STATUSES = {"AccessDenied": "403 Forbidden", "ExpiredToken": "400 Bad Request", "RequestTimeout": "400 Bad Request"}
_SERVICES = ("dynamodb", "events", "s3", "sqs", "ssm")  # those that the product calls
_PARAMETER_READS = ("GetParameter", "GetParameters", "GetParametersByPath")
_PARAMETER_READS_A_SECOND = 40  # an account's, unless it pays for more
_UNCOUNTED = "sqs:ReceiveMessage"  # comes at its own pace, whatever else happens
_NOT_EMPTY = {"ExpressionAttributeNames", "ExpressionAttributeValues"}
_DATA = {"Item", "Key", "Keys", "ExclusiveStartKey", *_NOT_EMPTY}  # whose attributes may have any name
_TOKEN_SECONDS = 600  # how long DynamoDB knows the token of a transaction
_TRANSACTED = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}


@dataclass(frozen=True)
class AwsCall:
    """One action on one resource, by the name of the function that called."""

    function: str
    action: str
    resource: str


@dataclass(frozen=True)
class Fault:
    """The functions' call numbered `at` from now on, the SDK's repetitions of it included, fails.

    `before` or `after` its effect; of a call that fails after it, the repetitions fail before theirs. With `once` only
    the first try fails, so that the SDK's own repetition meets what the first has done. Errors are what AWS answers:
    `InternalServerError`, `ThrottlingException`, S3's `ExpiredToken` and `RequestTimeout`; `hang-up` is no answer.
    """

    at: int
    when: str = "before"
    error: str = "InternalServerError"
    once: bool = False
    service: str | None = None


def read_delays(text: str) -> dict[str, int]:
    """Milliseconds by service, or by service and operation, from `dynamodb=100,sqs.SendMessage=20`.

    Raises ValueError with what is wrong.
    """
    delays = {}
    for each in text.split(",") if text else ():
        name, _, milliseconds = each.strip().partition("=")
        service, _, operation = name.partition(".")
        if service not in _SERVICES:
            raise ValueError(f"AWS_DELAYS has {each!r}, which names none of {', '.join(_SERVICES)}")
        if operation not in ("", *_operations(service)):
            raise ValueError(f"AWS_DELAYS has {each!r}, which names no operation that is delayed: write it as AWS does")
        if not re.fullmatch(r"[0-9]{1,5}", milliseconds):
            raise ValueError(f"AWS_DELAYS has {each!r}, which has no whole number of milliseconds, such as {name}=100")
        delays[name] = int(milliseconds)
    return delays


def _operations(service: str) -> Iterable[str]:
    if service == "s3":
        return _S3_OPERATIONS.values()
    operations: list[str] = Session().get_service_model(service).operation_names
    return operations


class AwsDoor:
    """A WSGI application around moto's. Paths under `CONTROL_PATH` tell it what to do. `secret` is the operators'."""

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
        self._transactions: dict[str, tuple[float, dict[str, Any]]] = {}  # by their tokens, with when they were made
        self._delays: dict[str, int] = {}
        self._parameter_reads = TokenBucket(_PARAMETER_READS_A_SECOND, _PARAMETER_READS_A_SECOND)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL_PATH):
            return self._control(path.removeprefix(CONTROL_PATH), environ, start_response)
        key, service = _credential(environ)
        time.sleep(self._delay(service, environ))
        if environ["REQUEST_METHOD"] == "OPTIONS":  # a browser's preflight has neither signature nor role
            return self._passed_on(environ, start_response)
        if service in ("s3", "") and (refusal := _signature_refusal(environ, self._secrets.get(key, self._secret))):
            return _s3_error(environ, start_response, *refusal)
        if service == "ssm" and _operation(service, environ) in _PARAMETER_READS and not self._parameter_reads.take():
            return _refusal(service, environ, start_response, "ThrottlingException", "Rate exceeded")
        if key in self._roles:
            return self._by_role(*self._roles[key], service, environ, start_response)
        return self._passed_on(environ, start_response)

    def _by_role(
        self,
        name: str,
        statements: list[dict[str, Any]],
        service: str,
        environ: Environ,
        start_response: Callable[..., Any],
    ) -> Iterable[bytes]:
        """A function's call, whose role allows it or not, and which may meet a fault."""
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
            else self._hiding_what_is_missing(environ, start)
        )
        if fault:
            deque(answer, maxlen=0)
            environ["wsgi.input"] = io.BytesIO()  # it has been read
            return _failed(fault, service, environ, start_response)
        return answer

    def _passed_on(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Moto locks nothing, where DynamoDB's writes are atomic: its requests go one by one, others side by side."""
        if environ.get("HTTP_X_AMZ_TARGET") == "AWSEvents.PutEvents":
            return self._put_events(environ, start_response)
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            return self._app(environ, start_response)
        asked = json.loads(_body(environ) or b"{}")
        if empty := _empty_argument(asked):
            message = f"{empty} must not be empty"
            return _refusal("dynamodb", environ, start_response, "ValidationException", message)
        with self._one_at_a_time:
            if "ClientRequestToken" in asked:
                return self._transacted_once(asked, environ, start_response)
            return list(self._app(environ, start_response))

    def _put_events(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """An event for a bus that is not there is lost, and that is a success; moto refuses it."""
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
        self, asked: dict[str, Any], environ: Environ, start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Moto does not look at a transaction's token: with DynamoDB the same transaction has no effect again."""
        token, now = asked.pop("ClientRequestToken"), time.monotonic()
        done_at, done = self._transactions.get(token, (0.0, None))
        if done is not None and now - done_at < _TOKEN_SECONDS:
            if done != asked:
                message = "The token was used with other parameters"
                return _refusal("dynamodb", environ, start_response, "IdempotentParameterMismatchException", message)
            start_response("200 OK", [("Content-Type", "application/x-amz-json-1.0")])
            return [b"{}"]

        def start(status: str, *rest: Any) -> Any:
            if status.startswith("200"):
                self._transactions[token] = now, asked
            return start_response(status, *rest)

        return list(self._app(environ, start))

    def _hiding_what_is_missing(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """S3 says 403 and not 404 of a missing object to whoever may not list its bucket."""
        begun: list[Any] = []
        answer = self._passed_on(environ, lambda *begin: begun.extend(begin))
        if begun[0].startswith("404") and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return _s3_error(environ, start_response, "403 Forbidden", "AccessDenied", "Access Denied")
        start_response(*begun)
        return answer

    def _delay(self, service: str, environ: Environ) -> float:
        """Seconds. The delay of an operation takes the place of its service's."""
        name = f"{service}.{_operation(service, environ)}"
        return self._delays.get(name, self._delays.get(service, 0)) / 1000

    def _fault(self, service: str, environ: Environ) -> tuple[Fault | None, bool]:
        """The fault that this request meets, and whether it is the first try at its call."""
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


def _credential(environ: Environ) -> tuple[str, str]:
    """The access key and the service that a request is signed for, by header or by query."""
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
    """What IAM would be asked: actions, each with its resource's ARN."""
    if service == "s3":
        path = unquote(environ["PATH_INFO"]).lstrip("/")
        action = _S3_ACTIONS[environ["REQUEST_METHOD"]]
        versioned = "versionId" in parse_qs(environ.get("QUERY_STRING", ""))
        yield f"s3:{action}{'Version' if versioned else ''}", f"arn:aws:s3:::{path}"
        return
    if "HTTP_X_AMZ_TARGET" not in environ:  # CloudFormation and others that are asked by a form
        yield f"{service}:{parse_qs(_body(environ).decode()).get('Action', [''])[0]}", "*"
        return
    operation = _operation(service, environ)
    asked = json.loads(_body(environ) or b"{}")
    if service == "dynamodb" and operation == "TransactWriteItems":
        for item in asked["TransactItems"]:
            ((kind, details),) = item.items()
            yield f"dynamodb:{_TRANSACTED[kind]}", _arn("dynamodb", f"table/{details['TableName']}")
    elif service == "dynamodb":
        index = f"/index/{asked['IndexName']}" if "IndexName" in asked else ""
        for table in asked.get("RequestItems") or [asked["TableName"]]:
            yield f"dynamodb:{operation}", _arn("dynamodb", f"table/{table}{index}")
    elif service == "sqs":
        yield f"sqs:{operation}", _arn("sqs", urlsplit(asked["QueueUrl"]).path.rpartition("/")[2])
    elif service == "events":
        for entry in asked["Entries"]:
            yield f"events:{operation}", _arn("events", f"event-bus/{entry['EventBusName']}")
    elif service == "ssm":
        yield f"ssm:{operation}", _arn("ssm", f"parameter/{asked['Name'].lstrip('/')}")
    else:
        yield f"{service}:{operation}", "*"


def _empty_argument(asked: Any) -> str | None:
    """The name of an argument that DynamoDB refuses if it is there and empty, and that moto mostly accepts."""
    if isinstance(asked, dict):
        for name, value in asked.items():
            if name in _NOT_EMPTY and not value:
                return str(name)
            if name not in _DATA and (found := _empty_argument(value)):
                return found
    elif isinstance(asked, list):
        return next((found for each in asked if (found := _empty_argument(each))), None)
    return None


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _body(environ: Environ) -> bytes:
    """The body, left there to be read again. Those of the services that are asked in JSON are small."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


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
    _body(environ)  # whoever is still sending would not listen
    start_response(status, [("Content-Type", "application/xml")])
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]


def _signature_refusal(environ: Environ, secret: str) -> tuple[str, str, str] | None:
    """Status, code and message of S3's refusal of a request by its signature, None if the signature is good."""
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
    if fields.get("Signature") == _signature(signer, fields, environ, secret):
        return None
    return "403 Forbidden", "SignatureDoesNotMatch", "The signature does not match the request"


def _signature(kind: type[SigV4Auth], fields: Mapping[str, str], environ: Environ, secret: str) -> str:
    """The signature of the request as it came, by whoever and when it says it was signed."""
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
    """What the stack and its tests tell the door, from another process. `aws_url` is where the door stands."""

    def __init__(self, aws_url: str) -> None:
        self._url = f"{aws_url}{CONTROL_PATH}"

    def let_in(self, roles: Mapping[str, Mapping[str, Any]]) -> None:
        """Binds each access key to `{"function": its name, "statements": of its role's policies}`.

        `secret` may be there too, if it is not the operators'.
        """
        self._tell("roles", roles)

    def calls(self) -> set[AwsCall]:
        """What the functions have called so far."""
        return {AwsCall(**call) for call in self._tell("calls", None)}

    def fail(self, *faults: Fault) -> int:
        """Has these calls fail, and no others from now on; gives how many calls were counted since the last time."""
        return int(self._tell("faults", [asdict(fault) for fault in faults]))

    def delay(self, milliseconds: Mapping[str, int]) -> None:
        """Has calls come so much later, whoever makes them: by service, or by service and operation."""
        self._tell("delays", milliseconds)

    def _tell(self, what: str, message: object) -> Any:
        with urlopen(f"{self._url}{what}", json.dumps(message).encode()) as answer:  # noqa: S310  # our own
            return json.load(answer)
