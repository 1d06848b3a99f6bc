"""How the local stack takes the bodies of requests: over the socket, through the gateway and up to Lambda's limit."""

import json
import socket
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import urllib3

from local import gateway, stack
from local.gateway import DELIMITER, MOST_BODY_BYTES, Gateway
from local.lambda_host import MOST_EVENT_BYTES, Function, FunctionHost, ResponseStream
from local.serving import Reply, Request, serving
from tests.support.stores import moto_behind_the_door
from tests.support.waiting import SECONDS

LIMIT = 1_000  # of the server of these tests
LONGEST = b"x" * LIMIT
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
POST = b"POST / HTTP/1.1\r\n"
LENGTH, CHUNKED, EXPECT = b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"


def echo(request: Request) -> Reply:
    return Reply(413) if request.is_too_long else Reply(200, request.body)


@contextmanager
def connected(body_seconds: float = SECONDS) -> Iterator[socket.socket]:
    """A connection to a server that takes LIMIT bytes and sends them back."""
    with ExitStack() as stack:
        port = stack.enter_context(serving(echo, most_body_bytes=LIMIT, body_seconds=body_seconds))
        yield stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))


def answered(connection: socket.socket) -> tuple[int, bytes]:
    with HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read()


def of_length(length: object, body: bytes = b"") -> bytes:
    return POST + LENGTH + str(length).encode() + b"\r\n\r\n" + body


def in_chunks(body: bytes) -> bytes:
    return POST + CHUNKED + b"\r\n" + body


def chunk(block: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block)


# The server.


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (of_length(3, b"abc"), b"abc"),
        (of_length(LIMIT, LONGEST), LONGEST),
        (POST + b"\r\n", b""),
        (in_chunks(b"1\r\na\r\n00002 ;x=y\r\nbc\r\n0\r\n\r\n"), b"abc"),
        (in_chunks(b"0;x\r\nSome: trailer\r\n\r\n"), b""),
        (in_chunks(chunk(LONGEST[1:]) + chunk(b"x") + b"0\r\n\r\n"), LONGEST),
    ],
    ids=lambda value: ascii(value)[-30:],
)
def test_a_body_of_any_framing_arrives_whole_and_the_connection_serves_on(request_: bytes, body: bytes) -> None:
    with connected() as connection:
        for _ in range(2):
            connection.sendall(request_)
            assert answered(connection) == (200, body)


@pytest.mark.parametrize(
    "request_",
    [
        *(of_length(length, b"abc") for length in ("-1", "+3", "3.0", "0x3", "1_0", "", "3, 3", "3 3", "9" * 30)),
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        of_length(4, b"abc"),
        POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        *(POST + b"Transfer-Encoding: %b\r\n\r\nabc" % coding for coding in (b"gzip", b"gzip, chunked", b"identity")),
        *(in_chunks(size + b"\r\na\r\n0\r\n\r\n") for size in (b"-1", b"+1", b"0x1", b"1_", b"x", b"", b"1 1", b";")),
        in_chunks(b"1\r\nab\r\n0\r\n\r\n"),
        in_chunks(b"1\r\na"),
        in_chunks(b"f\r\na"),
        in_chunks(chunk(b"a")),
        in_chunks(b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n"),
        in_chunks(b"0" * 1_100_000),
    ],
    ids=lambda value: ascii(value)[-30:],
)
def test_a_malformed_or_incomplete_body_is_a_400(request_: bytes) -> None:
    with connected() as connection:
        with suppress(OSError):  # the server may have answered before all was sent
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
        assert answered(connection)[0] == 400


@pytest.mark.parametrize("request_", [of_length(4, b"abc"), in_chunks(chunk(b"abc")), in_chunks(b"1")], ids=ascii)
def test_a_body_that_does_not_come_is_a_400_after_a_time(request_: bytes) -> None:
    with connected(body_seconds=0.02) as connection:
        connection.sendall(request_)
        assert answered(connection)[0] == 400


@pytest.mark.parametrize(
    "request_",
    [
        of_length(LIMIT + 1),
        of_length("9" * 18),
        in_chunks(chunk(LONGEST + b"x")),
        in_chunks(b"f" * 15 + b"\r\n" + LONGEST + b"x" * 1_100_000),
    ],
    ids=lambda value: ascii(value)[-30:],
)
def test_a_body_that_is_too_long_is_answered_before_it_has_arrived(request_: bytes) -> None:
    with connected() as connection:
        connection.sendall(request_)
        assert answered(connection) == (413, b"")
        assert connection.recv(1) == b""  # the rest would be taken for the next request


def test_a_body_without_an_end_is_answered_and_cut_off() -> None:
    def send() -> None:
        with suppress(OSError):
            connection.sendall(in_chunks(b""))
            while True:
                connection.sendall(chunk(b"x" * 100_000))

    with connected() as connection:
        sending = Thread(target=send)
        sending.start()
        assert answered(connection)[0] == 413
        sending.join(SECONDS)
        assert not sending.is_alive()


def test_a_client_that_sends_all_before_it_reads_gets_the_answer() -> None:
    """Its connection would be reset if the server closed it with unread bytes."""
    with connected() as connection:
        connection.sendall(of_length(20_000_000, b"x" * 20_000_000))
        assert answered(connection) == (413, b"")


@pytest.mark.parametrize(("head", "body"), [(LENGTH + b"3\r\n", b"abc"), (CHUNKED, chunk(b"abc") + b"0\r\n\r\n")])
def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_at_once(head: bytes, body: bytes) -> None:
    """curl asks for a body over 1 MB, and waits a second for the answer."""
    with connected() as connection:
        connection.sendall(POST + head + EXPECT + b"\r\n")
        assert connection.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        connection.sendall(body)
        assert answered(connection) == (200, b"abc")


@pytest.mark.parametrize(("length", "status"), [(LIMIT + 1, 413), ("x", 400)])
def test_a_client_is_not_asked_for_a_body_that_is_refused(length: object, status: int) -> None:
    with connected() as connection:
        connection.sendall(POST + LENGTH + str(length).encode() + b"\r\n" + EXPECT + b"\r\n")
        assert connection.recv(len(b"HTTP/1.1 413"), socket.MSG_WAITALL) == f"HTTP/1.1 {status}".encode()


# The gateway and Lambda's limit.


class Taking(FunctionHost):
    """Takes what Lambda would pass on, and answers without a process."""

    def __init__(self) -> None:
        super().__init__(Function("own", "app.handler", Path(), (), 60, 128, {}), Path())
        self.payload = b""

    def _run(self, payload: bytes, trace: str, stream: ResponseStream) -> None:
        self.payload = payload
        self._account.end()
        streams = json.loads(payload)["path"] == "/streamed"
        stream.put(b'{"statusCode": 200}' + (DELIMITER if streams else b""))
        stream.end()
        stream.finished.set()


def api(*binary_types: str) -> dict[str, Any]:
    def method(action: str, **options: Any) -> dict[str, Any]:
        uri = {"Fn::Sub": f"arn:aws:apigateway:x:lambda:path/x/functions/${{Own.Arn}}/{action}"}
        responses = {"default": {"statusCode": "200", "responseParameters": {}}}
        return {
            "post": {"x-amazon-apigateway-integration": {"uri": uri, **options}},
            "options": {"x-amazon-apigateway-integration": {"type": "mock", "responses": responses}},
        }

    streamed = method("response-streaming-invocations", responseTransferMode="STREAM", timeoutInMillis=900_000)
    extension = {"x-amazon-apigateway-binary-media-types": list(binary_types)} if binary_types else {}
    paths = {"/streamed": streamed, "/buffered": method("invocations")}
    return {"paths": paths, "x-amazon-apigateway-gateway-responses": {}, **extension}


class Served:
    """A gateway before a function that takes everything."""

    def __init__(self, *binary_types: str) -> None:
        self.function = Taking()
        self._gateway = Gateway(api(*binary_types), {"Own": self.function}, stage="")

    def ask(
        self, body: bytes, content_type: str | None = None, *, path: str = "/buffered", method: str = "POST"
    ) -> tuple[int, str]:
        """The status, and the kind of the gateway's own answer."""
        headers = [("X-Amzn-RequestId", "chosen"), ("User-Agent", "test")]
        headers += [("content-type", content_type)] if content_type is not None else []
        reply = self._gateway.respond(Request(method, path, headers, body, None))  # type: ignore[arg-type]
        return reply.status, reply.headers.get("x-amzn-ErrorType", "")

    def event(self, body: bytes, content_type: str | None = None, *, path: str = "/buffered") -> dict[str, Any]:
        assert self.ask(body, content_type, path=path)[0] == 200
        event: dict[str, Any] = json.loads(self.function.payload)
        return event


BINARY = bytes(range(256))
FORM = "multipart/form-data"
TOO_LARGE = (413, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize("path", ["/buffered", "/streamed"])
@pytest.mark.parametrize(
    "content_type", [FORM, f"{FORM}; boundary=b", f"{FORM};boundary=b", "Multipart/FORM-Data ; b=c"]
)
def test_a_body_of_a_binary_type_arrives_as_base64_whatever_it_contains(content_type: str, path: str) -> None:
    served = Served(FORM)
    for body in (BINARY, b"text", "ü".encode()):
        event = served.event(body, content_type, path=path)
        assert (b64decode(event["body"], validate=True), event["isBase64Encoded"]) == (body, True)
        assert event["headers"]["content-type"] == content_type


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "application/octet-stream", "multipart/form-data2", "multipart/mixed", f"a, {FORM}"],
)
def test_a_body_of_another_type_arrives_as_text_whatever_it_contains(content_type: str | None) -> None:
    served = Served(FORM)
    for body, text in ((b'{"a": "\xc3\xbc"}', '{"a": "ü"}'), (b"a\xff\xc3(b", "a\ufffd\ufffd(b")):
        event = served.event(body, content_type)
        assert (event["body"], event["isBase64Encoded"]) == (text, False)


def test_without_binary_types_or_a_body_nothing_is_base64() -> None:
    assert Served().event(b"a\xff", FORM)["isBase64Encoded"] is False
    event = Served(FORM).event(b"", FORM)
    assert (event["body"], event["isBase64Encoded"]) == (None, False)


@pytest.mark.parametrize(
    ("kind", "content_type", "is_binary"),
    [
        ("image/*", "image/png", True),
        ("image/*", "images/png", False),
        ("*/*", "image/png", True),
        ("*/*", None, True),  # taken for JSON
        ("application/json", None, True),
    ],
)
def test_a_binary_type_can_have_stars(kind: str, content_type: str | None, is_binary: bool) -> None:
    assert Served(kind).event(b"a", content_type)["isBase64Encoded"] is is_binary


def test_a_preflight_is_answered_unless_its_type_is_binary() -> None:
    assert Served(FORM).ask(b"", method="OPTIONS") == (200, "")
    assert Served("*/*").ask(b"", method="OPTIONS") == (500, "API_CONFIGURATION_ERROR")


def test_a_body_over_10_mb_is_refused_before_anything_else_is_looked_at() -> None:
    served, body = Served(), bytes(bytearray(b"x") * MOST_BODY_BYTES)
    assert MOST_BODY_BYTES == 10_485_760
    for path, method, otherwise in (
        ("/nothing", "POST", (403, "MISSING_AUTHENTICATION_TOKEN")),
        ("/buffered", "OPTIONS", (200, "")),
        ("/buffered", "POST", TOO_LARGE),  # by Lambda, which takes less
    ):
        assert served.ask(body, path=path, method=method) == otherwise
        assert served.ask(body + b"x", path=path, method=method) == TOO_LARGE


def test_lambda_takes_events_of_6_mb_as_they_are_sent() -> None:
    """The JSON of the event counts: UTF-8 without spaces."""
    served = Served()
    served.event(b"a")
    left = MOST_EVENT_BYTES - len(served.function.payload) + len("a")
    for character in ("a", "ü", "\N{GRINNING FACE}"):
        size = len(character.encode())
        body = character * (left // size) + "a" * (left % size)
        served.event(body.encode())
        assert len(served.function.payload) == MOST_EVENT_BYTES
        assert served.ask(f"{body}a".encode()) == TOO_LARGE
    assert served.ask(b'"' * (left // 2 + 1)) == TOO_LARGE  # each is two bytes of JSON


@pytest.mark.parametrize("path", ["/buffered", "/streamed"])
def test_a_form_takes_four_bytes_of_an_event_for_three_of_its_own(path: str) -> None:
    served = Served(FORM)
    served.event(b"abc", FORM, path=path)
    left = MOST_EVENT_BYTES - len(served.function.payload) + 4
    largest = bytearray(b"\xff") * (left // 4 * 3)
    served.event(bytes(largest), FORM, path=path)
    assert MOST_EVENT_BYTES - 4 < len(served.function.payload) <= MOST_EVENT_BYTES
    assert served.ask(bytes(largest + b"\xff"), FORM, path=path) == TOO_LARGE


def test_the_answer_to_an_event_over_6_mb_is_chosen_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS has two answers."""
    assert Served(FORM).ask(b"x" * 5_000_000, FORM) == TOO_LARGE
    monkeypatch.setattr(gateway, "EVENT_TOO_LARGE", "INTEGRATION_FAILURE")
    assert Served(FORM).ask(b"x" * 5_000_000, FORM) == (502, "INTEGRATION_FAILURE")


def test_a_form_passes_over_the_socket_up_to_10_mb_and_in_chunks() -> None:
    """With the limit of the gateway, as the stack serves it."""
    taking = Taking()
    served = Gateway(api(FORM), {"Own": taking}, stage="")
    head = b"POST /buffered HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    form = BINARY * 4_000
    with ExitStack() as stack:
        port = stack.enter_context(serving(served.respond, most_body_bytes=MOST_BODY_BYTES))
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
        for sent in (
            b"Content-Length: %d\r\n\r\n%b" % (len(form), form),
            CHUNKED + b"\r\n" + chunk(form) + b"0\r\n\r\n",
        ):
            connection.sendall(head + sent)
            assert answered(connection)[0] == 200
            assert b64decode(json.loads(taking.payload)["body"]) == form
        for length in (MOST_BODY_BYTES, MOST_BODY_BYTES + 1):  # the first reaches Lambda, and the connection serves on
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (length, b"x" * length))
            assert answered(connection)[0] == 413
        assert connection.recv(1) == b""


# Uploads to the bucket of the template.


def test_the_buckets_of_the_local_stack_have_the_templates_cors_rules() -> None:
    page, deployed = "https://app.example.com", {"ImageBucket": "made-here", "InboxBucket": "dropped-here"}
    options = stack.Options("https://api.example.com/v1", None, parameters={"CorsOrigin": page})
    with moto_behind_the_door(stack.CREDENTIALS["AWS_SECRET_ACCESS_KEY"]) as url:
        for bucket in deployed.values():
            stack._client("s3", url).create_bucket(Bucket=bucket)
        stack._configure_buckets(stack.read_template(options), deployed, url)

        def preflight(bucket: str, origin: str, method: str, headers: str) -> int:
            asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
            return urllib3.request("OPTIONS", f"{url}/{bucket}/a", headers={"Origin": origin, **asked}).status

        of_upload = "content-type,if-none-match"
        assert preflight("made-here", page, "PUT", of_upload) == 200
        assert preflight("made-here", page, "PUT", f"{of_upload},authorization") == 403
        assert preflight("made-here", "https://other.example.com", "PUT", of_upload) == 403
        assert preflight("made-here", "null", "GET", "range") == 200  # a link, after a redirect
        assert preflight("dropped-here", page, "PUT", of_upload) == 403
