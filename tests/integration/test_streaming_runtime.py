"""The streaming runtime against a Runtime API on a real socket."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from aws_lambda_powertools.logging.lambda_context import build_lambda_context_model
from awslambdaric.lambda_context import LambdaContext  # type: ignore[import-untyped]

from imagegen import streaming_runtime
from imagegen.streaming_runtime import Context, RuntimeApi, StreamedResponse, serve
from local.lambda_host import Function, FunctionHost
from local.serving import HungUpError, Reply, Request, serving
from tests.conftest import ROOT
from tests.support.waiting import SECONDS

LAYER = ROOT / "layers" / "imagegen"
WRAPPER = LAYER / "imagegen" / "streaming-runtime"
SECRET = "sk-canary-of-the-runtime"
METADATA = {"statusCode": 200, "headers": {"Content-Type": "text/plain"}}
ARN = "arn:aws:lambda:us-east-1:123456789012:function:api"
DEADLINE = 1_760_000_000_000
ERROR_TYPE, ERROR_BODY = "lambda-runtime-function-error-type", "lambda-runtime-function-error-body"


@dataclass
class Post:
    target: str
    headers: dict[str, str]
    blocks: list[bytes]
    trailers: dict[str, str]

    def json(self) -> Any:
        return json.loads(b"".join(self.blocks))


@dataclass
class Api:
    """A Runtime API that hands out `events`, then hangs up. `seen` is what happened, in order.

    It cuts a response after `cut_after` blocks, or answers it with `status`.
    """

    events: list[bytes]
    traces: list[str] = field(default_factory=list)
    cut_after: int | None = None
    status: int = 202
    seen: list[str] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    received: Event = field(default_factory=Event)

    def respond(self, request: Request) -> Reply:
        if request.target == "/2018-06-01/runtime/invocation/next":
            return self._next()
        post = Post(request.target, {name.lower(): value for name, value in request.headers}, [], request.trailers)
        self.posts.append(post)
        self.seen.append(request.target.rpartition("/")[2])
        for block in request.blocks:
            post.blocks.append(block)
            self.received.set()
            if len(post.blocks) == self.cut_after:
                self.cut_after = None
                raise HungUpError
        status, self.status = self.status, 202
        return Reply(status, b'{"status":"OK"}')

    def _next(self) -> Reply:
        self.seen.append("next")
        if not self.events:
            raise HungUpError
        headers = {
            "Lambda-Runtime-Aws-Request-Id": f"request-{self.seen.count('next')}",
            "Lambda-Runtime-Deadline-Ms": str(DEADLINE),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
        }
        if self.traces:
            headers |= {"Lambda-Runtime-Trace-Id": trace} if (trace := self.traces.pop(0)) else {}
        return Reply(200, self.events.pop(0), headers)


Handler = Callable[[dict[str, Any], Context], StreamedResponse]


def serve_all(api: Api, handler: Handler) -> None:
    """Serves the events of the Runtime API until it hangs up."""
    with serving(api.respond, is_streaming=True) as port, pytest.raises(ConnectionError):
        serve(RuntimeApi(f"127.0.0.1:{port}"), handler, os.environ)


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "")  # restored afterwards


def answering(body: Callable[[], Iterator[bytes]], finish: Callable[[Exception | None], None]) -> Handler:
    """A handler whose first answer has this body and whose later answers are whole."""
    bodies = iter([body])

    def handler(event: dict[str, Any], context: Context) -> StreamedResponse:
        return StreamedResponse(METADATA, next(bodies, lambda: iter([b"whole"]))(), finish)

    return handler


def was_whole(post: Post) -> bool:
    return (post.blocks[1:], post.trailers) == ([b"whole"], {})


def faults(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """The lines of the log. None holds the secret."""
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    return [json.loads(line) for line in out.splitlines()]


def test_a_response_is_sent_block_by_block_as_it_is_made() -> None:
    api = Api([b"{}"])
    ended: list[Exception | None] = []

    def body() -> Iterator[bytes]:
        assert api.received.wait(SECONDS)  # the metadata has arrived
        api.received.clear()
        yield b"one"
        assert api.received.wait(SECONDS)
        yield b""  # as a chunk, it would end the response
        yield b"two" * 100_000

    serve_all(api, answering(body, ended.append))
    (post,) = api.posts
    prelude, *blocks = post.blocks
    assert post.target == "/2018-06-01/runtime/invocation/request-1/response"
    assert post.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
    assert post.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert post.headers["transfer-encoding"] == "chunked"
    assert post.headers["trailer"].lower().split(", ") == [ERROR_TYPE, ERROR_BODY]
    assert prelude.endswith(b"\0" * 8)
    assert json.loads(prelude[:-8]) == METADATA
    assert blocks == [b"one", b"two" * 100_000]
    assert post.trailers == {}
    assert ended == [None]


def test_the_next_event_is_asked_for_after_finish_has_returned() -> None:
    api = Api([b"{}", b"{}"])
    serve_all(api, answering(lambda: iter([b"whole"]), lambda _: api.seen.append("finished")))
    assert api.seen == ["next", "response", "finished"] * 2 + ["next"]


@pytest.mark.parametrize("error", [ValueError(SECRET), ConnectionResetError(SECRET)])
def test_a_body_that_fails_is_reported_in_the_trailers(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api([b"{}", b"{}"])
    ended: list[Exception | None] = []

    def body() -> Iterator[bytes]:
        yield b"one"
        raise error

    serve_all(api, answering(body, ended.append))
    broken, next_one = api.posts
    kind = type(error).__name__
    assert broken.blocks[1:] == [b"one"]
    assert broken.trailers.keys() == {ERROR_TYPE, ERROR_BODY}
    assert broken.trailers[ERROR_TYPE] == kind
    assert json.loads(base64.b64decode(broken.trailers[ERROR_BODY])) == {"errorType": kind, "errorMessage": ""}
    assert ended == [error, None]
    assert was_whole(next_one)
    (line,) = faults(capsys)
    assert (line["level"], line["function_request_id"]) == ("ERROR", "request-1")
    assert [trace.partition(":")[0] for trace in line["trace"]] == [f"builtins.{kind}"]


@pytest.mark.parametrize(("event", "kind"), [(b'{"fail": true}', "ValueError"), (b"not JSON", "JSONDecodeError")])
def test_a_handler_that_fails_is_reported_and_the_next_event_is_handled(
    event: bytes, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(event: dict[str, Any], context: Context) -> StreamedResponse:
        if event.get("fail"):
            raise ValueError(SECRET)
        return StreamedResponse(METADATA, iter([b"whole"]), lambda _: None)

    api = Api([event, b"{}"])
    serve_all(api, handler)
    failed, next_one = api.posts
    assert failed.target == "/2018-06-01/runtime/invocation/request-1/error"
    assert failed.headers[ERROR_TYPE] == kind
    assert (failed.json()["errorType"], failed.json()["errorMessage"]) == (kind, "")
    assert SECRET.encode() not in b"".join(failed.blocks)
    assert was_whole(next_one)
    (line,) = faults(capsys)
    assert (line["level"], line["function_request_id"]) == ("ERROR", "request-1")


@pytest.mark.parametrize(
    ("refusal", "body", "words"),
    [
        ({"cut_after": 2}, repeat(b"x" * 100_000), ""),  # as at Lambda's size limit
        ({"status": 413}, [b"one"], "413"),
    ],
)
def test_finish_is_given_the_reason_if_the_runtime_api_refuses_a_response(
    refusal: dict[str, int], body: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[Exception | None] = []
    api = Api([b"{}", b"{}"], **refusal)  # type: ignore[arg-type]
    serve_all(api, answering(lambda: iter(body), ended.append))
    assert isinstance(ended[0], OSError)
    assert words in str(ended[0])
    assert ended[1:] == [None]
    assert was_whole(api.posts[1])
    assert [line["function_request_id"] for line in faults(capsys)] == ["request-1"]


def test_a_finish_that_fails_does_not_end_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    def finish(broken: Exception | None) -> None:
        raise RuntimeError(SECRET)

    api = Api([b"{}", b"{}"])
    serve_all(api, answering(lambda: iter([b"whole"]), finish))
    assert [was_whole(post) for post in api.posts] == [True, True]
    assert [line["function_request_id"] for line in faults(capsys)] == ["request-1", "request-2"]


def test_a_handler_sees_the_trace_of_its_own_event_only() -> None:
    traces: list[str | None] = []

    def handler(event: dict[str, Any], context: Context) -> StreamedResponse:
        traces.append(os.environ.get("_X_AMZN_TRACE_ID"))
        return StreamedResponse(METADATA, iter(()), lambda _: None)

    serve_all(Api([b"{}"] * 3, traces=["Root=1-a", "", "Root=1-b"]), handler)
    assert traces == ["Root=1-a", None, "Root=1-b"]


@pytest.mark.parametrize("left", [1500, -1500])
def test_the_context_is_that_of_lambdas_own_runtime(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("FUNCTION_NAME", "FUNCTION_VERSION", "FUNCTION_MEMORY_SIZE", "LOG_GROUP_NAME", "LOG_STREAM_NAME")
    for name in names:
        monkeypatch.setenv(f"AWS_LAMBDA_{name}", f"the {name}")
    clock = SimpleNamespace(time=lambda: (DEADLINE - left) / 1000)
    monkeypatch.setattr("imagegen.streaming_runtime.time", clock)
    monkeypatch.setattr("awslambdaric.lambda_context.time", clock)
    found: list[Context] = []

    def handler(event: dict[str, Any], context: Context) -> StreamedResponse:
        found.append(context)
        return StreamedResponse(METADATA, iter(()), lambda _: None)

    serve_all(Api([b"{}"]), handler)
    (own,), theirs = found, LambdaContext("request-1", None, None, DEADLINE, ARN)
    # An API has neither a mobile client, nor an identity, nor tenants. `log` and `w3c` serve other programs.
    unused = {"identity", "tenant_id"}
    public = {name for name in vars(theirs) if not name.startswith("_")} - unused
    assert len(public) > len(names)
    assert {name: getattr(own, name) for name in public} == {name: getattr(theirs, name) for name in public}
    assert own.get_remaining_time_in_millis() == theirs.get_remaining_time_in_millis() == max(0, left)
    assert vars(build_lambda_context_model(own)) == vars(build_lambda_context_model(theirs))


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        ("runtime_fails.handler", "RuntimeError"),
        ("runtime_is_missing.handler", "ModuleNotFoundError"),
        ("json.is_missing", "AttributeError"),
        ("without_a_module", "ValueError"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_reported_and_ends(
    handler: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runtime_fails.py").write_text(f"raise RuntimeError({SECRET!r})")
    monkeypatch.syspath_prepend(tmp_path)
    api = Api([])
    with serving(api.respond, is_streaming=True) as port:
        monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", f"127.0.0.1:{port}")
        monkeypatch.setenv("_HANDLER", handler)
        with pytest.raises(SystemExit) as end:
            streaming_runtime.main()
    assert end.value.code == 1
    assert api.seen == ["error"]
    (post,) = api.posts
    assert (post.target, post.headers[ERROR_TYPE]) == ("/2018-06-01/runtime/init/error", kind)
    assert (post.json()["errorType"], post.json()["errorMessage"]) == (kind, "")
    assert SECRET.encode() not in b"".join(post.blocks)
    (line,) = faults(capsys)
    assert line["trace"][0].startswith(("builtins.", kind))


# The program that starts it.


def wrapped(command: list[str], **environment: str) -> Any:
    done = subprocess.run([WRAPPER, *command], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """A program that prints its arguments and its import path."""
    program = tmp_path / "interpreter"
    program.write_text(
        f'#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ.get("PYTHONPATH")]))\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("off", [{"STREAMING": "off"}, {"STREAMING": ""}, {}])
def test_without_streaming_lambdas_own_command_runs_unchanged(interpreter: str, off: dict[str, str]) -> None:
    command = [interpreter, "/var/runtime/boot strap.py", "$HOME", "*"]
    assert wrapped(command, PYTHONPATH="/own", **off) == [command[1:], "/own"]


def test_with_streaming_the_runtime_runs_in_lambdas_interpreter(interpreter: str) -> None:
    arguments, path = wrapped(
        [interpreter, "/var/runtime/bootstrap.py"],
        STREAMING="on",
        PYTHONPATH=str(ROOT),  # the interpreter of this test needs nothing from it
        LAMBDA_RUNTIME_DIR="/var/runtime",
    )
    assert arguments == ["-u", "-m", "imagegen.streaming_runtime"]
    assert path.split(":") == [str(LAYER), str(ROOT), "/var/runtime"]


LOGS = """
import logging
import os
from aws_lambda_powertools.logging import Logger
from imagegen.aws.cloudwatch import CloudWatchJournal
from imagegen.streaming_runtime import StreamedResponse

logger = Logger(service="logs")
logger.info("started")

@logger.inject_lambda_context
def handler(event, context):
    logging.getLogger("library").warning("odd")
    logger.info("answered", extra={"text": "\\u00fc\\nnext"})
    try:
        raise ValueError("caught")
    except ValueError:
        logger.exception("failed")
    CloudWatchJournal("logs", "stack").broke_off([], generation_id="gen_1")
    return StreamedResponse({}, iter(()), lambda _: None) if os.environ["STREAMING"] == "on" else {}
"""
OF_ONE_RUN = re.compile(r'"(timestamp|Timestamp|function_request_id|xray_trace_id)": ?("[^"]+"|[0-9]+)')
BY_LIBRARY = re.compile(r"\[WARNING\]\t[-0-9]{10}T[:0-9]{8}\.[0-9]{3}Z\t(?:[-0-9a-f]{36}\t)?odd")


def logged(folder: Path, streaming: str) -> list[str]:
    log = folder / f"{streaming}.log"
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/python/imagegen/streaming-runtime", "STREAMING": streaming}
    function = Function("logs", "app.handler", folder, (LAYER,), 60, 128, environment)
    with closing(FunctionHost(function, log)) as host:
        host.invoke({}).result(SECONDS)
        return OF_ONE_RUN.sub(r'"\1": 0', log.read_text()).splitlines()


def test_log_lines_are_those_under_lambdas_own_runtime(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(LOGS)
    lines = logged(tmp_path, "on")
    other = logged(tmp_path, "off")
    for each in (lines, other):
        assert BY_LIBRARY.fullmatch(each.pop(1))
    assert [json.loads(line)["message"] for line in lines] == ["started", "answered", "failed", "answer broke off"]
    assert lines == other
