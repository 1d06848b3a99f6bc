"""Runs a Lambda function under AWS's runtime interface client, in processes that handle one event at a time."""

import base64
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from local.aws_door import ACCOUNT, REGION
from local.serving import BrokenStreamError, HungUpError, Reply, Request, serving

# Lambda developer guide, "Lambda quotas", gives 6 MB each for request and answer of a synchronous invocation. The exact
# numbers are in Lambda's error messages: "Request must be smaller than 6291456 bytes for the InvokeFunction operation"
# and "Exceeded maximum allowed payload size (6291556 bytes)".
MOST_EVENT_BYTES = 6_291_456
MOST_ANSWER_BYTES = 6_291_556
# Lambda developer guide, "Response streaming for Lambda functions", bandwidth and size limits.
MOST_STREAM_BYTES = 200 * 1024 * 1024
FREE_STREAM_BYTES = 6 * 1024 * 1024
STREAM_BYTES_PER_SECOND = 2 * 1024 * 1024
# Lambda developer guide, "Use Lambda recursive loop detection to prevent infinite loops": "approximately 16 times".
MOST_INVOCATIONS_IN_CHAIN = 16
MOST_PROCESSES = 64  # default for a function; further events wait for a free process
_FINISHING_SECONDS = 0.2  # an environment that has answered usually asks for its next event within this time
_INIT_SECONDS = 30.0  # Lambda's limit is 10 s; starting all functions at once on a loaded machine takes longer
_LINK = re.compile(r"([\w-]+):([0-9]+)")
_PREFIX = "/2018-06-01/runtime"


class FunctionError(Exception):
    """The function failed, was killed, or gave an answer that Lambda does not accept."""


class PayloadTooLargeError(Exception):
    """The event is larger than Lambda's limit. The function was not called."""


class ThrottledError(Exception):
    """The account is at its limit of concurrent executions. The function was not called."""


class RecursiveInvocationError(Exception):
    """The chain of requests has invoked the function too often. The function was not called."""


class Account:
    """Limits the concurrent executions of all functions together. None means no limit."""

    def __init__(self, most_executions: int | None = None) -> None:
        self._most = most_executions
        self._executions = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Raises ThrottledError."""
        with self._lock:
            if self._most is not None and self._executions >= self._most:
                raise ThrottledError
            self._executions += 1

    def end(self) -> None:
        with self._lock:
            self._executions -= 1


@dataclass(frozen=True)
class Function:
    """The configuration of a function. `layers` are added to the import path.

    With `allows_loops`, a chain of requests may invoke it any number of times.
    """

    name: str
    handler: str
    code: Path
    layers: tuple[Path, ...]
    timeout: int
    memory: int
    environment: Mapping[str, str] = field(repr=False)
    python: str = sys.executable
    allows_loops: bool = False


def paced(
    blocks: Iterator[bytes],
    free: int,
    rate: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """The blocks: the first `free` bytes at once, the rest at `rate` bytes a second."""
    sent, began = 0, 0.0
    for block in blocks:
        yield block
        if sent <= free < sent + len(block):
            began = clock()
        sent += len(block)
        if sent > free:
            sleep(max(0.0, began + (sent - free) / rate - clock()))


class ResponseStream:
    """The response of an invocation, block by block."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[bytes | FunctionError | None] = queue.SimpleQueue()
        self.finished = threading.Event()  # the environment is free again, or has ended

    def put(self, block: bytes) -> None:
        self._items.put(block)

    def end(self, error: FunctionError | None = None) -> None:
        """What comes after the first end is ignored."""
        self._items.put(error)

    def next(self, timeout: float | None = None) -> bytes | None:
        """The next block, `None` after the last. Raises queue.Empty after `timeout` seconds, and FunctionError."""
        item = self._items.get(timeout=timeout)
        if isinstance(item, FunctionError):
            raise item
        return item

    def whole(self) -> bytes:
        """The response of a buffered invocation, once the environment is free again. Raises FunctionError."""
        blocks = []
        try:
            while (block := self.next()) is not None:
                blocks.append(block)
        finally:
            self.finished.wait()
        body = b"".join(blocks)
        if len(body) > MOST_ANSWER_BYTES:
            raise FunctionError("Function.ResponseSizeTooLarge")
        return body


class _Process:
    """One execution environment: a process and the Runtime API that it polls."""

    def __init__(self, function: Function, log: Path) -> None:
        self._function = function
        self._events: queue.SimpleQueue[tuple[str, bytes, str] | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # `None`, or why the process ended
        self._stream = ResponseStream()
        self._deadline_ms = 0
        self._request_id = ""
        self._responded = 0.0  # on the clock of `time.monotonic`
        self._polling = threading.Event()
        self._closing = ExitStack()
        port = self._closing.enter_context(serving(self._runtime_api, is_streaming=True))
        environment = {
            **_lambda_environment(function, port),
            **function.environment,
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*_wrapper(function), function.python, "-m", "awslambdaric", function.handler],
                cwd=function.code,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C must reach only the stack, which ends its processes
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_until_polling(self) -> None:
        if not self._polling.wait(_INIT_SECONDS):
            raise FunctionError("did not start in time")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_finishing(self) -> bool:
        """The process has just responded, and has probably nothing left to do."""
        return time.monotonic() - self._responded < _FINISHING_SECONDS

    def run(self, event: bytes, trace: str, stream: ResponseStream) -> None:
        """Handles one event. Returns when the process asks for the next event: it may work on after its response.

        Kills the process at the function's time-out. `trace` is the event's trace header.
        """
        try:
            self.wait_until_polling()
        except FunctionError as error:
            stream.end(error)
            return
        self._deadline_ms = int((time.time() + self._function.timeout) * 1000)
        self._request_id, self._stream = str(uuid.uuid4()), stream
        self._events.put((self._request_id, event, trace))
        try:
            why = self._ended.get(timeout=self._function.timeout)
        except queue.Empty:
            why = f"Task timed out after {self._function.timeout} seconds"
            stream.end(FunctionError(why))  # before the process ends, which breaks its response off
            self.kill()
        stream.end(FunctionError(why) if why else None)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._events.put(None)
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._closing.close()

    def _watch(self) -> None:
        code = self._process.wait()
        self._ended.put(f"exited: the process ended with {code}")
        self._events.put(None)
        self._polling.set()

    def _runtime_api(self, request: Request) -> Reply:
        if request.target == f"{_PREFIX}/invocation/next":
            if self._request_id:
                self._request_id = ""
                self._ended.put(None)
            self._polling.set()
            return self._next_event()
        path, _, kind = request.target.rpartition("/")
        # Anything else would be used as the answer to this event, and every later answer would go to the wrong event.
        if path not in (f"{_PREFIX}/invocation/{self._request_id}", f"{_PREFIX}/init"):
            for _ in request.blocks:
                pass
            return Reply(400, b'{"errorType":"InvalidRequestID"}', {"Content-Type": "application/json"})
        stream = self._stream
        if kind != "response":
            body = b"".join(request.blocks)
            stream.end(FunctionError(f"{kind}: {body[:2000].decode(errors='replace')}"))
        elif request.header("Lambda-Runtime-Function-Response-Mode") == "streaming":
            _stream_on(request, stream)
        else:
            stream.put(b"".join(request.blocks))
            stream.end()
        self._responded = time.monotonic()
        return Reply(202, b'{"status":"OK"}', {"Content-Type": "application/json"})

    def _next_event(self) -> Reply:
        event = self._events.get()
        if event is None:
            raise HungUpError
        return Reply(
            200,
            event[1],
            {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": event[0],
                "Lambda-Runtime-Deadline-Ms": str(self._deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": _arn(self._function),
                "Lambda-Runtime-Trace-Id": event[2],
            },
        )


def _stream_on(request: Request, stream: ResponseStream) -> None:
    """Passes on a streamed response as it comes.

    Raises HungUpError at the size limit, where AWS's runtime interface emulator stops reading too (directinvoke.go).
    """
    left = MOST_STREAM_BYTES
    try:
        for block in paced(request.blocks, FREE_STREAM_BYTES, STREAM_BYTES_PER_SECOND):
            stream.put(block[:left])
            left -= len(block)
            if left < 0:
                stream.end(FunctionError("Function.ResponseSizeTooLarge"))
                raise HungUpError
    except BrokenStreamError:
        stream.end(FunctionError("the response broke off"))
        return
    kind = request.trailers.get("lambda-runtime-function-error-type")
    body = base64.b64decode(request.trailers.get("lambda-runtime-function-error-body", ""))
    stream.end(FunctionError(f"{kind}: {body[:2000].decode(errors='replace')}") if kind else None)


class FunctionHost:
    """The processes of one function. Starts another process when all are busy."""

    def __init__(
        self,
        function: Function,
        log: Path,
        most_processes: int = MOST_PROCESSES,
        account: Account | None = None,
    ) -> None:
        self.function = function
        self._account = account or Account()
        self._log = log
        self._most_processes = most_processes
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._changed = threading.Condition()
        self._closed = False

    def warm_up(self) -> None:
        """Starts one process. Raises FunctionError if the function does not start."""
        process = _Process(self.function, self._log)
        try:
            process.wait_until_polling()
        except FunctionError:
            process.close()
            raise
        if not process.alive:
            process.close()
            raise FunctionError(f"{self.function.name} does not start: see {self._log}")
        with self._changed:
            self._idle.append(process)

    def invoke(self, event: object, traces: Iterable[str] = ()) -> "Future[bytes]":
        """A future of the answer or of a FunctionError. Itself raises what `invoke_streaming` raises."""
        stream = self.invoke_streaming(event, traces)
        future: Future[bytes] = Future()

        def collect() -> None:
            try:
                future.set_result(stream.whole())
            except FunctionError as error:
                future.set_exception(error)

        threading.Thread(target=collect, daemon=True).start()
        return future

    def invoke_streaming(self, event: object, traces: Iterable[str] = ()) -> ResponseStream:
        """The response as it comes. `traces` are the trace headers of the requests that caused the event.

        Raises PayloadTooLargeError, RecursiveInvocationError and ThrottledError.
        """
        payload = payload_of(event)
        if len(payload) > MOST_EVENT_BYTES:
            raise PayloadTooLargeError
        trace = _trace(self.function, traces)
        self._account.begin()
        stream = ResponseStream()
        threading.Thread(target=self._run, args=(payload, trace, stream), daemon=True).start()
        return stream

    def pids(self) -> list[int]:
        """The ids of the living processes, the idle ones first. Waits for those that will be idle at once."""
        with self._changed:
            self._changed.wait_for(lambda: not any(each.is_finishing for each in self._busy), _FINISHING_SECONDS)
            return [process.pid for process in (*self._idle, *self._busy) if process.alive]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            processes = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
            self._changed.notify_all()
        closers = [threading.Thread(target=process.close) for process in processes]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    def _run(self, payload: bytes, trace: str, stream: ResponseStream) -> None:
        process = self._take()
        try:
            if process is None:
                stream.end(FunctionError("the stack is closing"))
                return
            process.run(payload, trace, stream)
            self._give_back(process)
        finally:
            self._account.end()
            stream.finished.set()

    def _take(self) -> _Process | None:
        with self._changed:
            if not self._idle and any(process.is_finishing for process in self._busy):
                self._changed.wait(_FINISHING_SECONDS)
            while not self._closed and not self._idle and len(self._busy) >= self._most_processes:
                self._changed.wait()
            while not self._closed and self._idle:
                process = self._idle.pop()
                if process.alive:
                    self._busy.add(process)
                    return process
                process.close()
            if self._closed:
                return None
            process = _Process(self.function, self._log)
            self._busy.add(process)
            return process

    def _give_back(self, process: _Process) -> None:
        with self._changed:
            if process not in self._busy:
                return
            self._busy.discard(process)
            if process.alive:
                self._idle.append(process)
            self._changed.notify()
        if not process.alive:
            process.close()


def payload_of(event: object) -> bytes:
    """The JSON of an event, as short as AWS's."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _trace(function: Function, traces: Iterable[str]) -> str:
    """The trace header of the invocation that continues the chains of requests with these trace headers.

    AWS keeps the count in the header's field `Lineage`, in a format that it does not document. Here it has the number
    of invocations of each function in the chain. Raises RecursiveInvocationError.
    """
    lineage = Counter[str]()
    for each in traces:
        lineage |= Counter({name: int(count) for name, count in _LINK.findall(each.partition("Lineage=")[2])})
    if lineage[function.name] >= MOST_INVOCATIONS_IN_CHAIN and not function.allows_loops:
        raise RecursiveInvocationError
    lineage[function.name] += 1
    links = ",".join(f"{name}:{count}" for name, count in lineage.items())
    return f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0;Lineage={links}"


def _wrapper(function: Function) -> list[str]:
    """The program that starts instead of the runtime and is given the runtime's command line, if there is one.

    Lambda has the function's code in /var/task and its layers in /opt.
    """
    wrapper = function.environment.get("AWS_LAMBDA_EXEC_WRAPPER")
    if not wrapper:
        return []
    folder, _, name = wrapper.removeprefix("/opt/").partition("/")
    roots = {"python": function.layers}.get(folder, ())
    return [str(next(path for root in roots if (path := root / name).is_file()))]


def _lambda_environment(function: Function, port: int) -> dict[str, str]:
    """The variables that Lambda sets. Passes on only PATH and coverage's variables of this machine's environment."""
    return {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/local/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": uuid.uuid4().hex,
        "LAMBDA_TASK_ROOT": str(function.code),
        "_HANDLER": function.handler,
        "PATH": os.environ.get("PATH", ""),
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PYTHONPATH": os.pathsep.join(str(layer) for layer in function.layers),
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
    }


def _arn(function: Function) -> str:
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function.name}"
