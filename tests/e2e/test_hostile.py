"""Hostile input that HTTP, Lambda's runtime or the gateway's server handle in their own way, and one of each family.

The families are in tests/integration/test_hostile_*: there they meet the same handlers, without processes and HTTP.
"""

import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

import pytest

from local.serving import Reply
from tests.support.canary import Canary
from tests.support.client import INLINE, QUEUED, Client
from tests.support.images import REAL_PNG, SVG
from tests.support.world import World, answering


@pytest.fixture
def canary() -> Iterator[Canary]:
    canary = Canary(REAL_PNG)
    yield canary
    canary.close()
    assert canary.heard == []


@pytest.mark.parametrize("way", [INLINE, QUEUED], ids=["inline", "queued"])
@pytest.mark.parametrize("kind", ["URL", "redirect", "content"])
def test_an_image_of_a_hostile_upstream_is_neither_fetched_nor_stored_nor_bought_again(
    world: World, caller: Client, canary: Canary, kind: str, way: dict[str, str]
) -> None:
    url = f"http://127.0.0.1:{canary.port}/1.png?sig=secret"
    if kind == "redirect":
        url = world.serve_file(lambda _, url=url: Reply(302, headers={"Location": url}))  # type: ignore[misc]
    elif kind == "content":
        url = world.serve_file(lambda _: Reply(200, SVG, {"Content-Type": "image/png"}))
    prompt = world.will(f"hostile {caller.name}", answering({"url": url}))
    answer = caller.post({"prompt": prompt}, **way)
    generation = caller.until_ended(answer.generation_id)
    code = "not_an_image" if kind == "content" else "image_url_refused"
    assert caller.result(answer.generation_id).failed == (424, code)
    assert (generation["status"], generation["data"]) == ("failed", [])
    assert len(world.calls(prompt)) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/images/generations", b"\xff\xfe", {}, 400),
        ("POST", "/images/generations", b'{"prompt":"x"}', {"Idempotency_Key": "\xe9"}, 400),
        ("POST", "/images/generations", b"a" * 7_000_000, {}, 413),  # Lambda takes 6 MB
        ("POST", "/images/generations", b"a" * 11_000_000, {}, 413),
        ("GET", "/images/generations/..%2f..%2fmodels", None, {}, 404),
        ("GET", "/images/generations?limit=%D9%A1", None, {}, 400),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_hostile_request_is_refused_in_openais_shape(
    caller: Client, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    answer = caller.ask(method, path, body, **headers)
    assert answer.status == status
    assert answer.error["message"]
    assert caller.newest() == []


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/v1/models"])
def test_head_has_the_headers_of_get_and_no_body(world: World, caller: Client, path: str) -> None:
    head, get = (caller.ask(method, world.stack.url + path) for method in ("HEAD", "GET"))
    assert (head.status, head.content) == (200, b"")
    assert get.content
    for name in ("content-type", "content-length", "access-control-allow-origin"):
        assert head.headers.get(name) == get.headers.get(name)
    missing = caller.ask("HEAD", "/nothing")
    assert (missing.status, missing.content) == (404, b"")
    assert missing.headers["x-request-id"]


POST = b"POST /v1/images/generations HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /v1/models HTTP/x.y\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nauthorization\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + b"X: y\r\n" * 1_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        POST + b"Content-Length: x\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
        POST + b"Content-Length: 99\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x",
        b"",
    ],
    ids=lambda data: ascii(data)[-30:],
)
def test_broken_http_is_refused_and_the_stack_serves_on(world: World, caller: Client, data: bytes) -> None:
    """AWS answers these itself. Here the server may hang up."""
    gateway = urlsplit(world.base_url)
    with socket.create_connection((gateway.hostname or "", gateway.port or 0), timeout=30) as connection:
        with suppress(OSError):  # it may have answered before all was sent
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with HTTPResponse(connection) as response, suppress(HTTPException, ConnectionError):
            response.begin()
            assert 400 <= response.status < 500
    assert caller.ask("GET", f"{world.stack.url}/health", Authorization="").status == 200
