"""The rules of Lambda and API Gateway for streamed responses that the local stack enforces."""

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from local import gateway, lambda_host
from local.gateway import DELIMITER, MOST_METADATA_BYTES, Gateway
from local.lambda_host import Account, Function, FunctionError, FunctionHost, ResponseStream, ThrottledError, paced
from local.serving import BrokenStreamError, Reply, Request, serving
from tests.conftest import ROOT
from tests.support.waiting import SECONDS, until

MB = 1024 * 1024
PRELUDE = b'{"statusCode": 200}' + DELIMITER
WHOLE = ([PRELUDE, b"one", b"two"], None)  # what `read` returns
METADATA = b'{"statusCode": 201, "headers": {"X-Own": "yes"}}'
HANDLER = """
import json, os, time
from imagegen.streaming_runtime import StreamedResponse

def gate(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def handler(event, context):
    wanted = json.loads(event["body"] or "{}")

    def body():
        for block in wanted["blocks"]:
            yield block.encode()
            if "gate" in wanted:
                gate(wanted["gate"])
        if "fail" in wanted:
            raise ValueError(wanted["fail"])
        if "die" in wanted:
            os._exit(3)

    def finish(broken):
        if "outcome" in wanted:
            with open(wanted["outcome"], "w") as file:
                file.write(type(broken).__name__)
        if "work" in wanted:
            gate(wanted["work"])

    return StreamedResponse({"statusCode": 200}, body(), finish)

def buffered(event, context):
    return {"statusCode": 200, "body": "{}"}
"""


# Lambda.


Start = Callable[..., FunctionHost]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    code, layer = tmp_path_factory.mktemp("code"), ROOT / "layers" / "imagegen"
    (code / "app.py").write_text(HANDLER)
    with ExitStack() as stack:

        def start(streaming: str = "on", *, timeout: int = 60, account: Account | None = None) -> FunctionHost:
            environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/python/imagegen/streaming-runtime", "STREAMING": streaming}
            handler = "app.handler" if streaming == "on" else "app.buffered"
            function = Function("streams", handler, code, (layer,), timeout, 128, environment)
            return stack.enter_context(closing(FunctionHost(function, code / "log", account=account)))

        yield start


@pytest.fixture(scope="module")
def streams(start: Start) -> FunctionHost:
    """A function that the tests share."""
    return start()


def ask(host: FunctionHost, **wanted: Any) -> ResponseStream:
    return host.invoke_streaming({"body": json.dumps({"blocks": ["one", "two"], **wanted})})


def read(stream: ResponseStream) -> tuple[list[bytes], str | None]:
    """The blocks that still come, and the error at the end."""
    blocks = []
    try:
        while (block := stream.next(SECONDS)) is not None:
            blocks.append(block)
    except FunctionError as error:
        return blocks, str(error)
    return blocks, None


def test_blocks_arrive_as_they_are_made(streams: FunctionHost, tmp_path: Path) -> None:
    release = tmp_path / "release"
    stream = ask(streams, gate=str(release))
    assert stream.next(SECONDS) == PRELUDE
    assert stream.next(SECONDS) == b"one"  # the second is not made before `release` is there
    release.touch()
    assert read(stream) == ([b"two"], None)


def test_an_environment_is_busy_until_it_asks_for_its_next_event(start: Start, tmp_path: Path) -> None:
    host, release = start(account=Account(1)), tmp_path / "release"
    stream = ask(host, work=str(release))
    assert read(stream) == WHOLE  # the response has ended, and the function works on
    (pid,) = host.pids()
    with pytest.raises(ThrottledError):
        ask(host)
    release.touch()
    assert stream.finished.wait(SECONDS)
    assert read(ask(host)) == WHOLE
    assert host.pids() == [pid]


def test_the_time_out_kills_a_function_in_the_middle_of_its_response_or_after_it(start: Start, tmp_path: Path) -> None:
    host, never = start(timeout=2), str(tmp_path / "never")
    broken, whole = ask(host, gate=never), ask(host, work=never)
    assert read(broken) == ([PRELUDE, b"one"], "Task timed out after 2 seconds")
    assert read(whole) == WHOLE
    for stream in (broken, whole):
        assert stream.finished.wait(SECONDS)
    assert host.pids() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fail": "sk-secret"}, r'ValueError: {"errorType": "ValueError", "errorMessage": ""}'),
        ({"die": True}, r"exited: the process ended with 3|the response broke off"),
    ],
)
def test_a_response_that_breaks_off_ends_with_an_error(
    streams: FunctionHost, fault: dict[str, Any], words: str
) -> None:
    blocks, error = read(ask(streams, **fault))
    assert blocks == WHOLE[0][: len(blocks)]
    assert error
    assert re.fullmatch(words, error)


def test_a_response_over_the_size_limit_is_cut_there(
    streams: FunctionHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lambda_host.MOST_STREAM_BYTES == 200 * MB
    outcome, body = tmp_path / "outcome", ["x" * 500, "y" * 500]
    exact = len(PRELUDE) + 1000
    for limit, error in ((exact - 1, "Function.ResponseSizeTooLarge"), (exact, None)):
        monkeypatch.setattr(lambda_host, "MOST_STREAM_BYTES", limit)
        stream = ask(streams, blocks=body, outcome=str(outcome))
        blocks, why = read(stream)
        assert b"".join(blocks) == (PRELUDE + "".join(body).encode())[:limit]
        assert why == error
        assert stream.finished.wait(SECONDS)
        assert (outcome.read_text() == "NoneType") == (error is None)  # the function learns of it too


class Clock:
    """A clock on which only sleep passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self, blocks: Iterator[bytes], free: int, rate: float) -> Iterator[bytes]:
        return paced(blocks, free, rate, self.sleep, lambda: self.now)


@pytest.mark.parametrize(
    ("sizes", "seconds_to_make_one", "seconds"),
    [
        ([1] * 6, 0.0, 0.0),
        ([1] * 10, 0.0, 2.0),
        ([4, 4, 4], 0.0, 3.0),
        ([10], 0.0, 2.0),
        ([1] * 200, 0.0, 97.0),
        ([1] * 10, 1.0, 10.5),  # made at less than the rate: only the first paced block waits
    ],
)
def test_a_stream_is_paced_after_its_free_bytes(sizes: list[int], seconds_to_make_one: float, seconds: float) -> None:
    clock = Clock()

    def made() -> Iterator[bytes]:
        for size in sizes:
            clock.sleep(seconds_to_make_one)
            yield b"x" * size

    assert [len(block) for block in clock.pace(made(), 6, 2)] == sizes
    assert clock.now == pytest.approx(seconds)


def test_lambda_paces_after_6_mb_and_the_gateway_after_10(monkeypatch: pytest.MonkeyPatch) -> None:
    of_lambda, of_gateway, stream, block = Clock(), Clock(), ResponseStream(), b"x" * MB
    monkeypatch.setattr(lambda_host, "paced", of_lambda.pace)
    monkeypatch.setattr(gateway, "paced", of_gateway.pace)
    stream.put(METADATA + DELIMITER)
    sent = Request("POST", "/", [], b"", None, repeat(block, 14))  # type: ignore[arg-type]
    lambda_host._stream_on(sent, stream)
    assert of_lambda.now == pytest.approx((14 - 6) / 2)
    reply = respond(stream)
    assert b"".join(reply.blocks or ()) == block * 14
    assert of_gateway.now == pytest.approx((14 - 10) / 2)


# The gateway, before functions whose responses the tests write.


class Written:
    """Stands in for a FunctionHost. Its responses are these streams, one after another."""

    def __init__(self, *streams: ResponseStream) -> None:
        self._streams = list(streams)

    def invoke_streaming(self, event: object) -> ResponseStream:
        return self._streams.pop(0)


def api(milliseconds: int = 900_000, action: str = "response-streaming-invocations") -> dict[str, Any]:
    def method(action: str, **options: Any) -> dict[str, Any]:
        uri = {"Fn::Sub": f"arn:aws:apigateway:x:lambda:path/x/functions/${{Own.Arn}}/{action}"}
        return {"x-amazon-apigateway-any-method": {"x-amazon-apigateway-integration": {"uri": uri, **options}}}

    streamed = method(action, responseTransferMode="STREAM", timeoutInMillis=milliseconds)
    paths = {"/streamed": streamed, "/buffered": method("invocations")}
    return {"paths": paths, "x-amazon-apigateway-gateway-responses": {}}


def gateway_before(*functions: Any, milliseconds: int = 900_000, idle_seconds: float = SECONDS) -> Gateway:
    (function,) = functions
    return Gateway(api(milliseconds), {"Own": function}, stage="", idle_seconds=idle_seconds)


def respond(stream: ResponseStream, **options: Any) -> Reply:
    return asked(gateway_before(Written(stream), **options))


def asked(gateway: Gateway, target: str = "/streamed") -> Reply:
    return gateway.respond(Request("GET", target, [], b"", None))  # type: ignore[arg-type]


def stream_of(*blocks: bytes, error: FunctionError | None = None, is_open: bool = False) -> ResponseStream:
    stream = ResponseStream()
    for block in blocks:
        stream.put(block)
    if not is_open:
        stream.end(error)
    return stream


@contextmanager
def client_of(*streams: ResponseStream, **options: Any) -> Iterator[http.client.HTTPConnection]:
    with (
        serving(gateway_before(Written(*streams), **options).respond) as port,
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as client,
    ):
        yield client


def test_a_block_reaches_the_client_as_it_is_made_and_unencoded() -> None:
    stream = stream_of(METADATA[:9], METADATA[9:] + DELIMITER[:3], DELIMITER[3:] + b"one", is_open=True)
    with client_of(stream) as client:
        client.request("GET", "/streamed", headers={"Accept-Encoding": "gzip, deflate, br"})
        response = client.getresponse()
        assert (response.status, response.getheader("X-Own")) == (201, "yes")
        assert response.getheader("Content-Encoding") is None
        assert response.read1(100) == b"one"
        stream.put(b"two")
        assert response.read1(100) == b"two"
        stream.end()
        assert response.read() == b""


def test_nothing_reaches_the_client_before_the_delimiter() -> None:
    stream = stream_of(METADATA, DELIMITER[:7], is_open=True)
    with ThreadPoolExecutor(1) as client:
        reply = client.submit(respond, stream)
        until(stream._items.empty)  # the gateway has read all that was written
        assert not reply.done()
        stream.put(DELIMITER[7:])
        assert reply.result(SECONDS).status == 201


@pytest.mark.parametrize(
    "stream",
    [
        stream_of(),
        stream_of(METADATA),
        stream_of(b'{"statusCode": 200, "headers": {}, "body": "{}"}'),  # the answer of a buffered integration
        stream_of(METADATA + DELIMITER[:7] + b"body"),
        stream_of(b"no JSON" + DELIMITER),
        stream_of(b"[]" + DELIMITER),
        stream_of(b"{}" + DELIMITER),  # no status
        stream_of(METADATA.ljust(MOST_METADATA_BYTES - 7) + DELIMITER),
        stream_of(METADATA.ljust(MOST_METADATA_BYTES), is_open=True),
        stream_of(METADATA, error=FunctionError("ValueError")),
    ],
    ids=lambda stream: "",
)
def test_a_response_that_does_not_begin_with_metadata_is_a_502(stream: ResponseStream) -> None:
    reply = respond(stream)
    assert (reply.status, reply.headers["x-amzn-ErrorType"]) == (502, "INTEGRATION_FAILURE")


def test_metadata_may_be_16_kb_long() -> None:
    assert respond(stream_of(METADATA.ljust(MOST_METADATA_BYTES - 8) + DELIMITER)).status == 201


def test_an_integration_and_its_function_must_agree_on_streaming(start: Start, streams: FunctionHost) -> None:
    answers = {"/streamed": 200, "/buffered": 502}
    assert {target: asked(gateway_before(streams), target).status for target in answers} == answers
    answers = {"/streamed": 502, "/buffered": 200}
    assert {target: asked(gateway_before(start("off")), target).status for target in answers} == answers
    with pytest.raises(ValueError, match="InvokeWithResponseStream"):
        Gateway(api(action="invocations"), {}, stage="")


@pytest.mark.parametrize("limit", [{"idle_seconds": 0.02}, {"milliseconds": 20}])
def test_a_time_out_before_the_status_is_a_504_and_after_it_cuts_the_response(limit: dict[str, Any]) -> None:
    reply = respond(stream_of(METADATA, is_open=True), **limit)
    assert (reply.status, reply.headers["x-amzn-ErrorType"]) == (504, "INTEGRATION_TIMEOUT")
    reply = respond(stream_of(METADATA + DELIMITER + b"one", is_open=True), **limit)
    assert reply.status == 201
    assert reply.blocks is not None
    assert next(reply.blocks) == b"one"
    with pytest.raises(BrokenStreamError):
        next(reply.blocks)


def test_the_time_out_of_the_integration_cuts_a_response_that_is_never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("local.gateway.time", SimpleNamespace(**{**vars(time), "monotonic": lambda: clock.now}))
    reply = respond(stream_of(METADATA + DELIMITER, b"one", b"two", b"three"), milliseconds=900_000)
    assert reply.blocks is not None
    assert [next(reply.blocks), next(reply.blocks)] == [b"", b"one"]
    clock.now = 899.0
    assert next(reply.blocks) == b"two"
    clock.now = 901.0
    with pytest.raises(BrokenStreamError):
        next(reply.blocks)


@pytest.mark.parametrize("headers", ["{}", '{"Content-Length": "9"}'])
@pytest.mark.parametrize("fault", [{"error": FunctionError("ValueError")}, {"is_open": True}])
def test_a_client_sees_that_a_response_broke_off(headers: str, fault: dict[str, Any]) -> None:
    """With a Content-Length or chunked. A function that fails, or falls silent."""
    metadata = f'{{"statusCode": 200, "headers": {headers}}}'.encode()
    with client_of(stream_of(metadata + DELIMITER, b"one", **fault), idle_seconds=0.02) as client:
        client.request("GET", "/streamed")
        response = client.getresponse()
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead) as broken:
            response.read()
        assert broken.value.partial == b"one"


def test_a_client_sees_that_a_response_is_shorter_than_declared() -> None:
    metadata = b'{"statusCode": 200, "headers": {"Content-Length": "4"}}'
    with client_of(stream_of(metadata + DELIMITER, b"one")) as client:
        client.request("GET", "/streamed")
        with pytest.raises(http.client.IncompleteRead):
            client.getresponse().read()


def test_a_declared_length_is_passed_on_and_a_head_has_no_body() -> None:
    metadata = b'{"statusCode": 200, "headers": {"content-length": "6"}}' + DELIMITER
    with client_of(*(stream_of(metadata, b"one", b"two") for _ in range(3))) as client:
        client.connect()
        client.auto_open = 0  # one connection serves all: no byte is left over
        for method, body in (("GET", b"onetwo"), ("HEAD", b""), ("GET", b"onetwo")):
            client.request(method, "/streamed")
            response = client.getresponse()
            assert (response.getheader("Content-Length"), response.getheader("Transfer-Encoding")) == ("6", None)
            assert response.read() == body
