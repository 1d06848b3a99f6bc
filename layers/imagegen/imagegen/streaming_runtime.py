"""A Lambda runtime whose handler streams its response and may work on afterwards.

Lambda's own runtime for Python cannot stream (decision 0025). This one speaks only the Runtime API (Lambda developer
guide, "Using the Lambda runtime API for custom runtimes" and "Building a custom runtime"). The program
`streaming-runtime` starts it.
"""

import base64
import http.client
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from imagegen.domain.redacted_traceback import redacted_traceback

_API = "/2018-06-01/runtime"
_CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
_DELIMITER = (
    b"\0" * 8
)  # between the metadata and the body (API Gateway developer guide, "Lambda proxy integration ...")
_SILENT_SECONDS = 300.0  # to send one block; API Gateway cuts a response that is silent for so long
_ERROR_TYPE, _ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"


class StreamedResponse(msgspec.Struct, frozen=True, eq=False):
    """What a handler returns.

    `metadata` has the status code and the headers as API Gateway expects them. `finish` is called when the body has
    been sent, with the exception that broke it or `None`. Lambda sends the next event after it has returned.
    """

    metadata: Mapping[str, Any]
    body: Iterator[bytes]
    finish: Callable[[Exception | None], None]


Handler = Callable[[dict[str, Any], "Context"], StreamedResponse]


class Context:
    """The context that a handler is given, as Lambda's own runtime makes it.

    `deadline` is in milliseconds of Unix time.
    """

    identity = None
    client_context = None

    def __init__(self, environ: Mapping[str, str], request_id: str, arn: str, deadline: int) -> None:
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.invoked_function_arn = arn
        self.aws_request_id = request_id
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self._deadline - int(time.time() * 1000))


class RuntimeApi:
    """The Runtime API at `address`, a host and a port."""

    def __init__(self, address: str) -> None:
        self._address = address

    def next(self) -> tuple[http.client.HTTPMessage, bytes]:
        """Waits for the next event. Returns the headers and the event as JSON."""
        connection = http.client.HTTPConnection(self._address)  # without a time-out: the environment may be frozen
        try:
            connection.request("GET", f"{_API}/invocation/next")
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise ConnectionError(f"the Runtime API answered {response.status}")
            return response.headers, body
        finally:
            connection.close()

    def stream(self, request_id: str, response: StreamedResponse) -> Exception | None:
        """Sends a response block by block. Returns the exception that broke it, which the trailers report."""
        connection = http.client.HTTPConnection(self._address, timeout=_SILENT_SECONDS)
        try:
            connection.putrequest("POST", f"{_API}/invocation/{request_id}/response")
            connection.putheader("Content-Type", _CONTENT_TYPE)
            connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("Trailer", f"{_ERROR_TYPE}, {_ERROR_BODY}")
            connection.endheaders()
            _send_chunk(connection, json.dumps(response.metadata).encode() + _DELIMITER)
            broken = _send_body(connection, response.body)
            trailers = _trailers(broken) if broken else ""
            connection.send(f"0\r\n{trailers}\r\n".encode())
            answer = connection.getresponse()
            answer.read()
            if answer.status >= http.HTTPStatus.BAD_REQUEST and broken is None:
                broken = ConnectionError(f"the Runtime API answered {answer.status}")
        except (OSError, http.client.HTTPException) as error:  # the response was cut: for its size, for example
            return error
        finally:
            connection.close()
        return broken

    def fail(self, path: str, error: BaseException) -> None:
        """Reports an error of the handler or, with the path `init`, of the start. Its message is left out."""
        kind = type(error).__name__
        body = {"errorType": kind, "errorMessage": "", "stackTrace": redacted_traceback(error)}
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request("POST", f"{_API}/{path}/error", json.dumps(body), {_ERROR_TYPE: kind})
            connection.getresponse().read()
        finally:
            connection.close()


def serve(api: RuntimeApi, handler: Handler, environ: Mapping[str, str]) -> None:
    """Handles events until the process ends."""
    while True:
        headers, event = api.next()
        request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        trace_id = headers["Lambda-Runtime-Trace-Id"]
        if trace_id:
            os.environ["_X_AMZN_TRACE_ID"] = trace_id
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        deadline = int(headers["Lambda-Runtime-Deadline-Ms"])
        context = Context(environ, request_id, headers["Lambda-Runtime-Invoked-Function-Arn"] or "", deadline)
        try:
            response = handler(json.loads(event), context)
        except Exception as error:  # noqa: BLE001  # one event must not end the process
            _log("the handler failed", request_id, error)
            api.fail(f"invocation/{request_id}", error)
            continue
        broken = api.stream(request_id, response)
        if broken:
            _log("the response broke off", request_id, broken)
        try:
            response.finish(broken)
        except Exception as error:  # noqa: BLE001  # likewise
            _log("the work after the response failed", request_id, error)


def main() -> None:
    """Loads the handler and serves it. Ends the process if the handler cannot be loaded."""
    # For libraries: in the form of Lambda's own runtime, less the request's id. The product's loggers have handlers.
    logging.Formatter.converter = time.gmtime
    line = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(message)s"
    logging.basicConfig(stream=sys.stdout, format=line, datefmt="%Y-%m-%dT%H:%M:%S")
    api = RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"])
    module, _, name = os.environ["_HANDLER"].rpartition(".")
    try:
        handler = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001  # whatever it is, Lambda must know
        _log("the function did not start", "", error)
        api.fail("init", error)
        sys.exit(1)
    serve(api, handler, os.environ)


def _send_body(connection: http.client.HTTPConnection, blocks: Iterator[bytes]) -> Exception | None:
    """Returns the exception with which the blocks ended early. Raises what the connection raises."""
    while True:
        try:
            block = next(blocks, None)
        except Exception as error:  # noqa: BLE001  # after the status, only the trailers can report it
            return error
        if block is None:
            return None
        if block:
            _send_chunk(connection, block)


def _send_chunk(connection: http.client.HTTPConnection, block: bytes) -> None:
    connection.send(b"%x\r\n%b\r\n" % (len(block), block))


def _trailers(error: Exception) -> str:
    kind = type(error).__name__
    body = base64.b64encode(json.dumps({"errorType": kind, "errorMessage": ""}).encode()).decode()
    return f"{_ERROR_TYPE}: {kind}\r\n{_ERROR_BODY}: {body}\r\n"


def _log(message: str, request_id: str, error: Exception) -> None:
    line = {"level": "ERROR", "message": message, "function_request_id": request_id, "trace": redacted_traceback(error)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
