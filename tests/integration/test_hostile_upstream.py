"""Answers of a hostile upstream, through the handlers.

Only approved hosts are called, no image is charged twice, only images are stored, and no error quotes the answer.
"""

import gzip
import json
import threading
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.usecases.send_upstream_call import TRIES
from imagegen.usecases.tried import KEEP_TRIES
from local.serving import HungUpError, Reply, Request
from local.upstream import Script
from tests.conftest import UPSTREAM_KEY
from tests.fakes.provider import png
from tests.support.canary import Canary
from tests.support.client import INLINE, Answer, fetched
from tests.support.images import HTML, PNG_HEAD, REAL_PNG, SVG
from tests.support.in_process import InProcess
from tests.support.odd_hosts import writes
from tests.support.world import answering

SECRET = "s3cr3t-of-a-signed-url"
PAGE = f"/1.png?sig={SECRET}"
MAX_IMAGE_BYTES = 26_214_400
INLINE_MODEL, QUEUED_MODEL = "dall-e-3", "gpt-image-1"  # the api function makes the images of quick models itself


@pytest.fixture
def fill(handlers: InProcess, canary: Canary) -> Callable[[str], str]:
    """Fills the addresses of this machine's servers into a text."""
    upstream, aws = handlers.upstream_url.split("/")[2], handlers.stack.aws_url.partition("//")[2]
    values = {
        "{canary}": f"127.0.0.1:{canary.port}",
        "{canary_port}": str(canary.port),
        "{upstream}": upstream,
        "{upstream_port}": upstream.partition(":")[2],
        "{aws}": aws,
    }

    def filled(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    return filled


def saying(answer: object, status: int = 200, **headers: str) -> Script:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return lambda _: Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def hang_up(_: Request) -> Reply:
    raise HungUpError


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set at the end of the test, to stop an endless answer."""
    event = threading.Event()
    yield event
    event.set()


def opened(handlers: InProcess, url: str) -> bytes:
    """The content that the api function stores."""
    source = handlers.function("ApiFunction").wired.worker.runner.calling.routes.upstreams["reseller"].source
    with source.open(url, Deadline.after(10)) as body:
        return b"".join(body.blocks)


# -------------------------------------------------------------------------------------- URLs

# The system's resolver returns this machine's address for each of these.
THIS_MACHINE = [
    *("127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "0.0.0.0", "0", "localhost", "LOCALHOST"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
]
# These are refused before a DNS query: no public host has such a name.
NOWHERE = [
    *("localhost.", "127.0.0.1.", "[::1%25lo]", "[127.0.0.1]", "\uff11\uff12\uff17.\uff10.\uff10.\uff11"),
    *("127\u30020\u30020\u30021", "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54", "local\u00adhost"),
    *("local\u200bhost", "%31%32%37%2e%30%2e%30%2e%31", "127.0.0.1%00.invalid", "127.0.0.1%3a{canary_port}"),
    *("127.0.0.1\0.invalid", "127.0.\t0.1", "127.0.0.1\n"),
]
REFUSED_URLS = [
    *(f"https://{host}{PAGE}" for host in THIS_MACHINE),  # refused only for their host
    *(f"http://{host}:{{canary_port}}{PAGE}" for host in ["127.0.0.1", "2130706433", "localhost", *NOWHERE]),
    *(f"https://{{canary}}{PAGE}", f"https://127.0.0.1:22{PAGE}", f"https://127.0.0.1:65536{PAGE}"),
    *(f"https://127.0.0.1:https{PAGE}", f"http://{{upstream}}:{{canary_port}}{PAGE}", "http://127.0.0.1:\uff18\uff10/"),
    # These only look like the upstream.
    *(f"https://{{upstream}}{PAGE}", f"http://localhost:{{upstream_port}}{PAGE}"),
    *(f"http://[::ffff:127.0.0.1]:{{upstream_port}}{PAGE}", f"http://2130706433:{{upstream_port}}{PAGE}"),
    *(f"http://{{upstream}}@{{canary}}{PAGE}", f"http://127.0.0.1:{SECRET}@{{canary}}{PAGE}"),
    *(f"http://{{upstream}}%40{{canary}}{PAGE}", f"http://{{upstream}};@{{canary}}{PAGE}"),
    *(f"http://{{canary}}#@{{upstream}}{PAGE}", f"http://{{canary}}?@{{upstream}}{PAGE}"),
    *(f"http://{{upstream}}\\@{{canary}}{PAGE}", f"http://{{canary}}\\@{{upstream}}{PAGE}"),
    *(f"http://user:{SECRET}@{{upstream}}{PAGE}", f"http://@{{upstream}}{PAGE}"),
    f"http://{{upstream}}/\r\nHost: {{canary}}\r\n\r\n{PAGE}",
    f"http://{{aws}}/latest/meta-data/{SECRET}",
    # Schemes, slashes and lengths are in tests/unit/test_url_guard.py.
]


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: ascii(url)[:60])
def test_a_hostile_url_is_refused(handlers: InProcess, fill: Callable[[str], str], url: str) -> None:
    with pytest.raises(errors.ImageUrlRefusedError):
        opened(handlers, fill(url))


def test_the_canary_serves_an_image_and_records_the_request(canary: Canary) -> None:
    """Otherwise an empty list would prove nothing."""
    with urlopen(f"http://127.0.0.1:{canary.port}/") as response:
        assert response.read() == REAL_PNG
    assert canary.heard
    canary.heard.clear()


@pytest.mark.parametrize(
    "url",
    [
        f"http://{{upstream}}/#@{{canary}}{PAGE}",
        f"http://{{upstream}}//{{canary}}{PAGE}",
        f"http://{{upstream}}/http://{{canary}}{PAGE}",
        f"http://{{upstream}}/?url=http://{{canary}}{PAGE}",
        f"http://{{upstream}}/files/../..//{{canary}}{PAGE}",
        f"http://{{upstream}}/files/%0d%0aHost:%20{{canary}}%0d%0a{SECRET}",
        f"http://{{upstream}}/v1/images/generations?{SECRET}",
        f"http://{{upstream}}/files/{'a' * 6_000}{SECRET}",
    ],
    ids=lambda url: url[:50],
)
def test_a_url_that_only_looks_like_another_hosts_gives_no_image(
    handlers: InProcess, fill: Callable[[str], str], url: str
) -> None:
    with pytest.raises(errors.ImageDownloadError):
        opened(handlers, fill(url))


LOCATIONS = [
    *(f"http://{{canary}}{PAGE}", f"https://{{canary}}{PAGE}", f"//{{canary}}{PAGE}", f"\\\\{{canary}}{PAGE}"),
    *(f"/\\{{canary}}{PAGE}", f"http://{{upstream}}@{{canary}}{PAGE}", f"http://{{upstream}}\\@{{canary}}{PAGE}"),
    *(f"http://127.0.0\t.1:{{canary_port}}{PAGE}", f"http://localhost:{{upstream_port}}{PAGE}", "http://{aws}/"),
    *("https://127.0.0.1/", "https://0x7f.1/", "https://[::ffff:7f00:1]/", "http://127.0.0.1:99999/"),
    *("file:///etc/passwd", "javascript:alert(1)", "data:image/png;base64,iVBORw0KGgo="),
]


@pytest.mark.parametrize(
    ("location", "status"),
    [
        *((each, 302) for each in [*LOCATIONS, f"http:{{canary}}{PAGE}"]),
        *((LOCATIONS[0], status) for status in (301, 303, 307, 308)),
    ],
)
def test_a_hostile_redirect_is_refused(
    handlers: InProcess, fill: Callable[[str], str], location: str, status: int
) -> None:
    url = handlers.serve_file(lambda _: Reply(status, headers={"Location": fill(location)}))
    relative = location.startswith("http:{")  # to the upstream itself
    with pytest.raises(errors.ImageDownloadError if relative else errors.ImageUrlRefusedError):
        opened(handlers, url)


# ---------------------------------------------------------------------------------- contents


def http(content: bytes, *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """An HTTP answer. `length` replaces the content's own length; None omits it."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: image/png", *headers]
    lines += [] if length is None else [f"Content-Length: {len(content) if length < 0 else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


GZIPPED = "Content-Encoding: gzip"
BOMB = gzip.compress(PNG_HEAD + bytes(100_000_000))  # a tenth of a megabyte
LOCATION = "Location: http://{canary}/"
NO_IMAGE, TOO_LARGE, CUT = errors.NotAnImageError, errors.ImageTooLargeError, errors.ImageTruncatedError
FAILED, REFUSED = errors.ImageDownloadInterruptedError, errors.ImageDownloadError
CONTENTS: dict[str, tuple[bytes, type[errors.ImagegenError]]] = {
    "SVG as PNG": (http(SVG), NO_IMAGE),
    "SVG compressed": (http(gzip.compress(SVG), GZIPPED), NO_IMAGE),
    "HTML with a PNG behind it": (http(HTML + REAL_PNG), NO_IMAGE),
    "HTML that redirects": (http(b'<meta http-equiv="refresh" content="0;url=http://{canary}/">'), NO_IMAGE),
    "XML with an entity": (http(b'<!DOCTYPE x [<!ENTITY e SYSTEM "http://{canary}/">]><x>&e;</x>'), NO_IMAGE),
    "an unknown compression": (http(zlib.compress(REAL_PNG), "Content-Encoding: x-unknown"), NO_IMAGE),
    "only the head of a PNG": (http(PNG_HEAD), CUT),
    "the head of a JPEG and HTML": (http(b"\xff\xd8\xff\xe0" + HTML), CUT),
    "the head of a GIF and a script": (http(b"GIF89a=0;alert(1)//"), CUT),
    "the head of a longer WebP": (http(b"RIFF\xff\xff\xff\x7fWEBPVP8 "), CUT),
    "a PNG longer than its length": (http(REAL_PNG, length=20), CUT),
    "a bomb in a bomb": (http(gzip.compress(BOMB), "Content-Encoding: gzip, gzip"), TOO_LARGE),
    "a chunk larger than all": (
        http(b"ffffffffffffffff\r\n" + PNG_HEAD, "Transfer-Encoding: chunked", length=None),
        FAILED,
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", FAILED),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", FAILED),
    "a refusal that names the canary": (http(b"", LOCATION, status="404 Not Found"), FAILED),
    "a choice that names the canary": (http(b"", LOCATION, status="300 Multiple Choices"), REFUSED),
}


@pytest.mark.parametrize(("content", "error"), CONTENTS.values(), ids=list(CONTENTS))
def test_content_that_is_no_image_is_refused(
    handlers: InProcess, fill: Callable[[str], str], content: bytes, error: type[errors.ImagegenError]
) -> None:
    answer = content.replace(b"{canary}", fill("{canary}").encode())
    with pytest.raises(errors.ImagegenError) as raised:
        opened(handlers, handlers.serve_file(writes(answer)))
    assert type(raised.value) is error


# ----------------------------------------------------------------------- failures and costs


@dataclass(frozen=True)
class Failure:
    """The upstream's answer to each call, the answer to the caller, and the number of upstream calls and downloads.

    Bytes are JSON of a status, a body and headers. Text is the HTTP answer to the download of the image. In both, the
    caller may read `{words}`. No other value in braces may be in an answer or a log.
    """

    script: Script | bytes | str
    status: int
    code: str
    calls: int = 1
    downloads: int = 0


def refusal(status: int, code: str | None = None, **headers: str) -> bytes:
    message = f"no: {UPSTREAM_KEY}, 'Bearer {UPSTREAM_KEY}' {{key}}. {{token}} {{words}} at https://h/?sig={{secret}}."
    error = {"message": message, "type": "{secret}", "param": "{secret}", "code": code}
    return json.dumps([status, {"error": error}, headers]).encode()


def images(*data: object, **more: object) -> bytes:
    return json.dumps([200, {"created": 1, "data": data, **more}, {"X": "{secret}"}]).encode()


def page(content: bytes, *headers: str, **how: Any) -> str:
    return http(content, *headers, **how).decode("latin-1")


NOT_DOWNLOADED = ("image_download_failed", 1)
INVALID = (424, "upstream_answer_invalid")
RETRY_NOW = {"retry-after-ms": "1"}
RETRY_AFTER_THE_DEADLINE = {"retry-after": "3600"}
FAILURES: dict[str, Failure] = {
    # Refusals. tests/unit/test_refusals.py has their meanings.
    "400": Failure(refusal(400), 400, "upstream_refused_request"),
    "400 for the policy": Failure(refusal(400, "content_policy_violation"), 400, "content_policy_violation"),
    "401": Failure(refusal(401), 502, "upstream_key_refused"),
    "429": Failure(refusal(429, **RETRY_AFTER_THE_DEADLINE), 429, "rate_limit_exceeded"),
    "500": Failure(refusal(500), 424, "upstream_failed"),
    "503": Failure(refusal(503, **RETRY_NOW), 503, "upstream_unavailable", TRIES),
    **{
        f"{status} to the canary": Failure(refusal(status, Location="http://{canary}/"), 502, "upstream_misconfigured")
        for status in (301, 307)
    },
    "a drop": Failure(hang_up, 424, "upstream_connection_lost"),
    # Answers.
    "a page": Failure(lambda _: Reply(200, b"<html>" + SECRET.encode()), *INVALID),
    "other JSON": Failure(images(data="{secret}", usage="{secret}"), *INVALID),
    "no image": Failure(images(), 424, "upstream_too_few_images"),
    "an image that is none": Failure(images({"{secret}": "{secret}"}), *INVALID),
    "bad base64": Failure(images({"b64_json": "{secret}!"}), *INVALID),
    "SVG as base64": Failure(images({"b64_json": b64encode(SVG).decode()}), 424, "not_an_image"),
    "HTML in a data URL": Failure(images({"url": "data:text/html;base64,PGh0bWw+PC9odG1sPg=="}), 424, "not_an_image"),
    "a deep image": Failure(lambda _: Reply(200, b'{"data":[{"url":' + b"[" * 100_000), *INVALID),
    "a bomb": Failure(lambda _: Reply(200, BOMB, {"Content-Encoding": "gzip"}), 424, "upstream_answer_too_large"),
    # URLs.
    **{
        f"a URL {name}": Failure(images({"url": url}), 424, "image_url_refused")
        for name, url in {
            "of the canary": "http://{canary}/{secret}?X-Amz-Signature={secret}",
            "of this machine": "https://localhost/{secret}?sig={secret}",
            "with credentials": "https://{secret}:{secret}@127.0.0.1/",
            "of a file": "file:///{secret}",
            "that is none": "https://[{secret}/",
            "with odd characters": "https://127.0.0.1/{secret} \u00e9",
            "with a surrogate": "https://127.0.0.1/{secret}\ud800",
            "too long for a record": "http://{canary}/{secret}" + "a" * 500_000,
        }.items()
    },
    "a URL in a list": Failure(images({"url": ["http://{canary}/"]}), 424, "image_url_refused"),
    **{
        f"{name} too long for a record": Failure(images(image, **more), 424, "image_url_refused")
        for name, image, more in (
            ("a revised prompt", {"url": "http://{canary}/", "revised_prompt": "r" * 500_000}, {}),
            ("a usage", {"url": "http://{canary}/"}, {"usage": {"note": "u" * 500_000}}),
        )
    },
    # Downloads.
    "a file of HTML": Failure(page(b"<html>{secret}", "X: {secret}"), 424, "not_an_image", 1, 1),
    "half a file": Failure(page(REAL_PNG[:-6]), 424, "image_truncated", 1, KEEP_TRIES),
    "a file that breaks off": Failure(page(REAL_PNG, length=9_000), 424, *NOT_DOWNLOADED, KEEP_TRIES),
    "a file too large": Failure(page(REAL_PNG, length=MAX_IMAGE_BYTES + 1), 424, "image_too_large", 1, 1),
    "a file that is forbidden": Failure(page(b"{secret}", status="403 No"), 424, *NOT_DOWNLOADED, 1),
    "a file that fails": Failure(page(b"{secret}", status="500 No"), 424, *NOT_DOWNLOADED, KEEP_TRIES),
    "a file elsewhere": Failure(
        page(b"", f"{LOCATION}?sig={{secret}}", status="302 No"), 424, "image_url_refused", 1, 1
    ),
    "a file at itself": Failure(page(b"", "Location: {itself}", status="302 No"), 424, *NOT_DOWNLOADED, 4),
}
BY_THE_WORKER = [
    *("400", "429", "500", "a drop", "a page", "bad base64", "a URL of the canary", "a URL with credentials"),
    *("a file of HTML", "half a file", "a file that is forbidden", "a file elsewhere"),
]


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "inline") for name in FAILURES), *((name, "queued") for name in BY_THE_WORKER)]
)
def test_each_failure_of_an_upstream_has_its_error_and_calls(
    handlers: InProcess, fill: Callable[[str], str], name: str, way: str
) -> None:
    failure, words = FAILURES[name], "words" if FAILURES[name].code == "upstream_refused_request" else "secret"
    values = {
        "{secret}": handlers.secret("secret"),
        "{words}": handlers.secret(words, may_be_answered=words == "words"),
        "{token}": handlers.secret("token", value=".".join(f"eyJ{uuid4().hex}" for _ in range(3))),
        "{key}": handlers.local.key,
    }

    def filled(text: str) -> str:
        for each, value in values.items():
            text = text.replace(each, value)
        return fill(text)

    handlers.secret("URL", value=SECRET)
    url, script = "", failure.script
    if isinstance(script, bytes):
        status, body, headers = json.loads(filled(script.decode()))
        script = saying(body, status, **headers)
    elif isinstance(script, str):
        content = script
        url = handlers.serve_file(
            lambda request: writes(filled(content).replace("{itself}", url).encode("latin-1"))(request)  # noqa: PLW0108
        )
        script = answering({"url": url})
    prompt, stored = handlers.secret("prompt"), handlers.stored()
    handlers.will(prompt, *[script] * TRIES)

    caller = handlers.local
    sent = INLINE if way == "inline" else {}
    answer = caller.make(
        {"prompt": prompt, "user": handlers.secret("user")}, Idempotency_Key=handlers.secret("idempotency key"), **sent
    )

    assert answer.failed == (failure.status, failure.code)
    assert len(handlers.calls(prompt)) == failure.calls
    assert answer.generation_id.startswith("gen_")
    assert "images" not in answer.error
    assert (answer.headers.get("x-should-retry") == "false") == (failure.status in (424, 502))
    downloads = [each for each in handlers.upstream.downloads if url.endswith(each.target)] if url else []
    assert len(downloads) == failure.downloads
    for download in downloads:
        assert not {name.lower() for name, _ in download.headers} & {"authorization", "cookie", "referer"}
    assert handlers.stored() == stored
    generation = caller.see(answer.generation_id).json
    assert (generation["status"], generation["data"]) == ("failed", [])


def test_after_a_time_out_the_upstream_is_not_called_again(handlers: InProcess, over: threading.Event) -> None:
    def hang(_: Request) -> Reply:
        over.wait(20)
        raise HungUpError

    prompt = handlers.will(handlers.secret("prompt"), hang)
    with handlers.function("ApiFunction").changed(UPSTREAM_TIMEOUT_SECONDS="1"):
        assert handlers.local.make({"prompt": prompt}, **INLINE).failed == (424, "upstream_timeout")
    assert len(handlers.calls(prompt)) == 1


def drip(head: bytes, over: threading.Event) -> Script:
    """Sends a byte at a time until the test ends."""

    def respond(request: Request) -> Reply:
        with suppress(OSError):
            request.connection.sendall(head)
            while not over.wait(0.1):
                request.connection.sendall(b"x")
        raise HungUpError

    return respond


def test_a_slow_download_ends_at_the_functions_time_limit(handlers: InProcess, over: threading.Event) -> None:
    """It keeps 15 of its 17 seconds to note the outcome. The worker continues, since the image is charged."""
    url = handlers.serve_file(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + PNG_HEAD, over))
    prompt = handlers.will(f"drip {uuid4().hex}", answering({"url": url}))
    with handlers.function("ApiFunction").changed(timeout=17):
        began = time.monotonic()
        assert handlers.local.post({"prompt": prompt}, **INLINE).status == 303
        assert time.monotonic() - began < 17
    assert len(handlers.calls(prompt)) == 1


def test_a_good_image_beside_a_hostile_url_is_stored(handlers: InProcess, fill: Callable[[str], str]) -> None:
    url = handlers.serve_file(lambda _: Reply(200, REAL_PNG))
    prompt = handlers.will(
        handlers.secret("prompt"), answering({"url": fill(f"http://{{canary}}{PAGE}")}), answering({"url": url})
    )
    before = handlers.stored()
    answer = handlers.local.make({"prompt": prompt, "n": 2}, **INLINE)
    assert answer.failed == (424, "image_url_refused")
    (image,) = answer.error["images"]
    assert handlers.stored() - before == {f"images/{image['id']}"}
    assert handlers.content(f"images/{image['id']}") == REAL_PNG
    assert len(handlers.calls(prompt)) == 2


# ------------------------------------------------------------------------------- successes


def made(handlers: InProcess, model: str, image: dict[str, Any], **fields: Any) -> Answer:
    """The answer to a request with secrets in all fields."""
    prompt = handlers.will(handlers.secret("prompt"), saying({"created": 1, "data": [image]}))
    body = {"prompt": prompt, "user": handlers.secret("user"), "model": model, **fields}
    return handlers.local.make(body, Idempotency_Key=handlers.secret("idempotency key"), **INLINE)


@pytest.mark.parametrize("model", [INLINE_MODEL, QUEUED_MODEL])
@pytest.mark.parametrize("kind", ["url", "b64_json", "data URL"])
def test_an_image_is_stored_unchanged_and_not_logged(handlers: InProcess, model: str, kind: str) -> None:
    content = png(handlers.secret("image", may_be_answered=True))
    base64 = b64encode(content).decode()
    url = handlers.serve_file(lambda _: Reply(200, content, {"X": handlers.secret("header")}))
    source = {"url": url} if kind == "url" else {"b64_json" if kind == "b64_json" else "url": base64}
    if kind == "data URL":
        source = {"url": f"data:image/png;base64,{base64}"}
    handlers.secret("file", value=url.rpartition("/")[2])
    image = {**source, "revised_prompt": handlers.secret("revised prompt", may_be_answered=True)}
    answer = made(handlers, model, image, response_format="url" if kind == "url" else "b64_json")
    assert answer.status == 200
    (shown,) = answer.json["data"]
    assert handlers.content(f"images/{shown['id']}") == content
    if kind == "url":
        stored = fetched(shown["url"])
        assert (stored.content, stored.headers["content-type"]) == (content, "image/png")
    else:
        assert shown["b64_json"] == base64
    found = handlers.local.get(f"/images/{shown['id']}?{handlers.secret('query')}")
    assert fetched(found.headers["location"]).content == content


def test_no_log_shows_the_whole_life_of_a_generation(handlers: InProcess) -> None:
    content = png(handlers.secret("image"))
    url = handlers.serve_file(lambda _: Reply(200, content))
    handlers.will(handlers.secret("prompt"), answering({"url": url}))
    local = handlers.local
    generation_id = local.begin(prompt=handlers.secret("prompt"))
    (image,) = local.until_ended(generation_id)["data"]
    assert image["id"] in {each["id"] for generation in local.newest(5) for each in generation["data"]}
    assert handlers.other.see(generation_id).status == 404
    assert local.cancel(generation_id).status == 409
    assert local.delete(generation_id).status == 200
    assert local.see(generation_id).status == 404
    assert f"images/{image['id']}" not in handlers.stored()


@pytest.mark.parametrize("when", ["before work", "at work"])
def test_no_log_shows_a_cancelled_generation(handlers: InProcess, when: str) -> None:
    def cancel(_: Request | None) -> None:
        assert handlers.local.cancel(generation_id).json["status"] == "cancelled"

    prompt = handlers.will(handlers.secret("prompt"), cancel)
    generation_id = handlers.local.begin(prompt=prompt)
    if when == "before work":
        cancel(None)
    assert handlers.local.result(generation_id).failed == (424, "generation_cancelled")
    assert len(handlers.calls(prompt)) == int(when == "at work")


def test_an_unreachable_upstream_is_502(handlers: InProcess) -> None:
    with handlers.function("ApiFunction").changed(UPSTREAM_BASE_URL=f"http://127.0.0.1:9/v1/{handlers.secret('path')}"):
        answer = handlers.local.make({"prompt": handlers.secret("prompt")}, **INLINE)
    assert answer.failed == (502, "upstream_unreachable")


def test_a_compression_bomb_uses_little_memory(handlers: InProcess) -> None:
    url = handlers.serve_file(writes(http(BOMB, GZIPPED)))
    with handlers.function("ApiFunction").changed(MAX_IMAGE_BYTES="1000000"):
        tracemalloc.start()
        try:
            with pytest.raises(errors.ImageTooLargeError):
                opened(handlers, url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 50_000_000  # the content is 100 MB; other threads use some memory too
