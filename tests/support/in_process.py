"""The functions' real handlers in this process, behind the gateway of the template, over moto and a stand-in upstream.

It starts only threads, so one serves all tests of a worker process. The environment and the wiring of a function are in
place only while it is wired and while it runs: other tests in the process do not see them.
"""

import importlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from imagegen.bootstrap import api, authorizer, intake, sdk, site, worker
from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.ports import GenerationStore
from imagegen.streaming_runtime import StreamedResponse
from imagegen.usecases.wait import wait
from local import stack
from local.event_source import sqs_record
from local.gateway import DELIMITER, Gateway
from local.lambda_host import MOST_EVENT_BYTES, FunctionError, PayloadTooLargeError, ResponseStream, payload_of
from local.lambda_host import Function as Configuration
from local.serving import Request, serving
from local.upstream import StandInUpstream
from tests.conftest import UPSTREAM_KEY
from tests.support.canary import answered, found, keys_and_hashes, leaks
from tests.support.client import Answer, Client, Json
from tests.support.stores import moto_behind_the_door
from tests.support.world import World

URL = "http://127.0.0.1"
PARAMETERS = {"WaitSeconds": "20", "UpstreamTimeoutSeconds": "20"}
AWS_SECRETS = {name: f"canary{uuid4().hex}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
_BOOTSTRAP = {"api": api, "authorizer": authorizer, "intake": intake, "site": site, "worker": worker}
_CLIENTS = ("dynamodb", "events", "sqs", "ssm")
_PAUSES = ("tried._FIRST_PAUSE_SECONDS", "send_upstream_call._FIRST_REFUSAL_PAUSE_SECONDS")
_STAND_INS = ("moto", "werkzeug", "PIL")  # they log in this process too


@dataclass
class Context:
    """The part of Lambda's context that the handlers use."""

    seconds: float
    function_name: str = "function"
    aws_request_id: str = "request"
    begun: float = field(default_factory=time.monotonic)

    def get_remaining_time_in_millis(self) -> int:
        return int((self.begun + self.seconds - time.monotonic()) * 1000)


class Function:
    """Stands in for a FunctionHost. The handler runs in the calling thread, one event at a time."""

    def __init__(self, configuration: Configuration, lock: threading.Lock, out: io.StringIO) -> None:
        """`lock` is one for each module, since its functions share the module's state. They print to `out`."""
        self.function, self._lock, self._out = configuration, lock, out
        self._name = configuration.code.name
        self._module = importlib.import_module(f"functions.{self._name}.app")
        with patch.dict(os.environ, configuration.environment, clear=True):
            session = sdk.session.__wrapped__()
            with patch.object(sdk, "session", lambda: session):
                self._clients = {name: getattr(sdk, name).__wrapped__() for name in _CLIENTS}
                self._credentials = sdk.credentials()
        self.wired = self._wire({})

    def _wire(self, changes: Mapping[str, str]) -> Any:
        parts: dict[str, Any] = {name: (lambda client=client: client) for name, client in self._clients.items()}
        with (
            patch.dict(os.environ, {**self.function.environment, **changes}, clear=True),
            patch.multiple(sdk, credentials=lambda: self._credentials, **parts),
        ):
            build = getattr(_BOOTSTRAP[self._name], self._name).__wrapped__
            return build(Path(str(self._module.__file__)).parent) if self._name == "site" else build()

    @contextmanager
    def changed(self, timeout: int | None = None, **changes: str) -> Iterator[None]:
        """Another time-out and other environment variables during the block."""
        before = self.wired, self.function
        self.wired = self._wire(changes)
        self.function = replace(self.function, timeout=timeout or self.function.timeout)
        try:
            yield
        finally:
            self._end_wiring()
            self.wired, self.function = before

    def invoke(self, event: object) -> "Future[bytes]":
        stream, future = self.invoke_streaming(event), Future[bytes]()
        try:
            future.set_result(stream.whole())
        except FunctionError as error:
            future.set_exception(error)
        return future

    def invoke_streaming(self, event: object) -> ResponseStream:
        payload = payload_of(event)
        if len(payload) > MOST_EVENT_BYTES:
            raise PayloadTooLargeError
        handler = getattr(self._module, self.function.handler.rpartition(".")[2])
        names: dict[str, Any] = {self._name: lambda *_: self.wired}
        stream = ResponseStream()
        waits = patch("imagegen.routes.results.wait", _look_once)
        with self._lock, waits, patch.multiple(_BOOTSTRAP[self._name], **names), redirect_stdout(self._out):
            try:
                _answer(handler(json.loads(payload), Context(self.function.timeout)), stream)
            except Exception as error:  # noqa: BLE001  # as the runtime does
                stream.end(FunctionError(json.dumps({"errorMessage": str(error)})))
        stream.finished.set()
        return stream

    def _end_wiring(self) -> None:
        with suppress(AttributeError):  # the site and the authorizer have no pool
            self.wired.pool.shutdown()

    def close(self) -> None:
        self._end_wiring()
        for client in self._clients.values():
            client.close()


def _look_once(generation_id: str, records: GenerationStore, _until: Deadline) -> Generation | None:
    """Replaces the wait of a request: no worker runs during a request, so there is nothing to wait for."""
    return wait(generation_id, records, Deadline.after(0))


def _answer(answer: StreamedResponse | object, stream: ResponseStream) -> None:
    """Passes on what a handler returned, as Lambda's or the streaming runtime does."""
    if not isinstance(answer, StreamedResponse):
        stream.put(json.dumps(answer).encode())
        stream.end()
        return
    stream.put(json.dumps(answer.metadata).encode() + DELIMITER)
    try:
        for block in answer.body:
            stream.put(block)
    except Exception as error:  # noqa: BLE001
        stream.end(FunctionError(type(error).__name__))
        answer.finish(error)
    else:
        stream.end()
        answer.finish(None)


class InProcess(World):
    """A World without processes and without HTTP between a caller and the functions."""

    def __init__(
        self,
        started: stack.LocalStack,
        upstream: StandInUpstream,
        upstream_url: str,
        gateway: Gateway,
        written: io.StringIO,
    ) -> None:
        super().__init__(started, upstream, upstream_url, [])
        self._gateway = gateway
        self.queues: dict[
            str, list[tuple[str, str]]
        ] = {}  # by the function that receives from them: URL and ARN of each
        self.seen: list[Answer] = []
        self._written = written
        self._keys: dict[str, str] = {}
        self.local, self.other = self.caller("local"), self.caller("other")  # for tests that store nothing
        self._secrets: dict[str, str] = {}
        self._may_be_answered: set[str] = set()

    @contextmanager
    def without_streaming(self) -> Iterator[None]:
        """The service as `STREAMING=off` deploys it."""
        streaming, self._gateway = self._gateway, Gateway(_buffered_api(), self.stack.functions, stage="")
        try:
            with (
                self.function("ApiFunction").changed(STREAMING="off"),
                self.function("WorkerFunction").changed(STREAMING="off"),
            ):
                yield
        finally:
            self._gateway = streaming

    def caller(
        self, name: str | None = None, *, images_per_day: int | None = None, usd_per_day: int | None = None
    ) -> "InProcessClient":
        client = super().caller(name, images_per_day=images_per_day, usd_per_day=usd_per_day)
        self._keys[client.name] = client.key
        return InProcessClient(client.base_url, client.key, client.name, self)

    def function(self, name: str) -> Function:
        function = self.stack.functions[name]
        assert isinstance(function, Function)
        return function

    def request(self, method: str, target: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> Answer:
        """Sends one request to the gateway, with these headers and, if it is missing, a Host."""
        own = list(headers)
        if not any(name == "Host" for name, _ in own):
            own.append(("Host", URL.partition("//")[2]))
        reply = self._gateway.respond(Request(method, target, own, body, None))  # type: ignore[arg-type]
        content = b"" if method == "HEAD" else b"".join(reply.blocks or [reply.body])
        answer = Answer(reply.status, {name.lower(): value for name, value in reply.headers.items()}, content)
        self.seen.append(answer)
        return answer

    def deliver(self, function: str = "WorkerFunction") -> list[Any]:
        """Delivers the messages in the queues of the function, and deletes those that succeed. Returns its answers."""
        sqs, answers = self.aws("sqs"), []
        for url, arn in self.queues[function]:
            while messages := sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=1, MessageSystemAttributeNames=["All"], WaitTimeSeconds=0
            ).get("Messages"):
                event = {"Records": [sqs_record(each, arn) for each in messages]}
                answers.append(json.loads(self.stack.functions[function].invoke(event).result()))
                again = {failure["itemIdentifier"] for failure in answers[-1]["batchItemFailures"]}
                for message in messages:
                    if message["MessageId"] not in again:
                        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return answers

    @contextmanager
    def upstream_key(self, value: str | None) -> Iterator[None]:
        """The upstream's key has this value, or does not exist, during the block."""
        ssm, api = self.aws("ssm"), self.function("ApiFunction")
        name = CONFIGURATION.upstreams[CONFIGURATION.default_upstream].key
        key = {"Name": f"{api.function.environment['UPSTREAM_KEYS_PATH']}/{name}", "Type": "SecureString"}
        ssm.delete_parameter(Name=key["Name"])
        if value is not None:
            ssm.put_parameter(**key, Value=value)
        try:
            with api.changed():  # the new wiring has read no key yet
                yield
        finally:
            ssm.put_parameter(**key, Value=UPSTREAM_KEY, Overwrite=True)

    def secret(self, name: str, *, may_be_answered: bool = False, value: str = "") -> str:
        """A canary of that name, for any place of a request. No log may contain it."""
        if may_be_answered:
            self._may_be_answered.add(name)
        return self._secrets.setdefault(name, value or f"canary{uuid4().hex}")

    def keys(self) -> dict[str, str]:
        """The secrets that no log, no answer and no record may contain."""
        return {"the upstream's key": UPSTREAM_KEY, **AWS_SECRETS, **keys_and_hashes(self._keys)}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """`logs()` has all that is logged at any level and all that functions print. Retries have no pauses."""
        self.forget()
        pauses = [patch(f"imagegen.usecases.{name}", 0.001) for name in _PAUSES]
        root, handler, streams = logging.getLogger(), logging.StreamHandler(self._written), {}
        quiet = {logging.getLogger(name): logging.WARNING for name in _STAND_INS}
        levels = {logger: logger.level for logger in (root, *quiet)}
        for name in _BOOTSTRAP:
            for each in logging.getLogger(name).handlers:
                if isinstance(each, logging.StreamHandler):
                    streams[each] = each.setStream(self._written)
        root.addHandler(handler)
        for logger, level in {root: logging.DEBUG, **quiet}.items():
            logger.setLevel(level)
        for pause in pauses:
            pause.start()
        try:
            yield
        finally:
            for pause in pauses:
                pause.stop()
            for logger, level in levels.items():
                logger.setLevel(level)
            root.removeHandler(handler)
            for each, stream in streams.items():
                each.setStream(stream)

    def logs(self) -> str:
        return self._written.getvalue()

    def forget(self) -> None:
        """Forgets all secrets but the keys, and all that was written and answered."""
        self._written.seek(0)
        self._written.truncate()
        for kept in (self.seen, self._secrets, self._may_be_answered):
            kept.clear()
        self._keys = {client.name: client.key for client in (self.local, self.other)}

    def check_absent(self, text: str) -> None:
        """No key is in a record."""
        leaking = found(self.keys(), text.encode())
        assert not leaking, leaking

    def check_silence(self) -> None:
        """No log contains a secret, and no answer a secret that is not `may_be_answered`."""
        secrets = {name: value for name, value in self._secrets.items() if name not in self._may_be_answered}
        leaking = leaks({**self._secrets, **self.keys()}, self.logs().encode())
        answers = answered({**secrets, **self.keys()}, self.seen)
        if leaking or answers:
            raise AssertionError(f"written: {leaking}, answered: {answers}")

    def close(self) -> None:
        for function in self.stack.functions.values():
            function.close()
        super().close()


@dataclass(frozen=True)
class InProcessClient(Client):
    """A client whose requests go to the gateway without HTTP. The worker runs whenever it looks for a result."""

    service: InProcess = field(default=None, repr=False)  # type: ignore[assignment]

    def ask(self, method: str, path: str, body: Json | bytes | None = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        sent |= {} if body is None else {"Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        target = (path if path.startswith("http") else self.base_url + path).removeprefix(URL)
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.service.request(method, target, [each for each in sent.items() if each[1]], content)

    def result(self, generation_id: str) -> Answer:
        self.service.deliver()
        return super().result(generation_id)

    def see(self, generation_id: str) -> Answer:
        self.service.deliver()
        return super().see(generation_id)


@cache
def _buffered_api() -> dict[str, Any]:
    options = stack.Options("http://127.0.0.1:1/v1", UPSTREAM_KEY, parameters=PARAMETERS, streaming=False)
    return stack.read_template(options).api_body()


@contextmanager
def in_process(logs: Path) -> Iterator[InProcess]:
    """The stack of the template, deployed to moto in this process."""
    upstream = StandInUpstream(UPSTREAM_KEY)
    with ExitStack() as closing:
        upstream_url = f"http://127.0.0.1:{closing.enter_context(serving(upstream.respond))}/v1"
        aws_url = closing.enter_context(moto_behind_the_door(stack.CREDENTIALS["AWS_SECRET_ACCESS_KEY"]))
        options = stack.Options(upstream_url, UPSTREAM_KEY, parameters=PARAMETERS, environment=AWS_SECRETS)
        template = stack.read_template(options)
        deployed = stack.deploy(template, aws_url, URL, {CONFIGURATION.default_upstream: UPSTREAM_KEY}, [])
        locks: dict[Path, threading.Lock] = {}
        functions, written = {}, io.StringIO()
        for name in template.of_type("AWS::Lambda::Function"):
            configuration = stack.deployed_function(template, name, deployed, aws_url, options)
            functions[name] = Function(configuration, locks.setdefault(configuration.code, threading.Lock()), written)
        door, roles = stack.enforce_roles(template, deployed, aws_url, options)
        started = stack.LocalStack(
            url=URL,
            keys={},
            aws_url=aws_url,
            bucket=deployed["ImageBucket"],
            inbox=deployed["InboxBucket"],
            functions=functions,  # type: ignore[arg-type]
            roles=roles,
            door=door,
            logs=logs,
        )
        service = InProcess(
            started, upstream, upstream_url, Gateway(template.api_body(), started.functions, stage=""), written
        )
        closing.callback(service.close)
        for mapping in template.of_type("AWS::Lambda::EventSourceMapping").values():
            url = deployed[mapping["EventSourceArn"]["Fn::GetAtt"][0]]
            attributes = service.aws("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
            queue = url, attributes["Attributes"]["QueueArn"]
            service.queues.setdefault(mapping["FunctionName"]["Ref"], []).append(queue)
        yield service
