"""What an upstream may answer, through the functions' own handlers: nobody but a judged host is reached, what cost
money cost it once, nothing but an image is stored, and the caller gets an error that repeats nothing of it.
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
from imagegen.providers.openai_compatible import TRIES
from imagegen.usecases.generate import KEEP_TRIES
from local.serving import HungUpError, Reply, Request
from local.upstream import Script
from tests.conftest import UPSTREAM_KEY
from tests.fakes.provider import png
from tests.support.canary import Canary
from tests.support.client import INLINE, Answer, fetched
from tests.support.images import HTML, PNG_END, PNG_HEAD, REAL_PNG, SVG
from tests.support.in_process import InProcess

SECRET = "s3cr3t-of-a-signed-url"
PAGE = f"/1.png?sig={SECRET}"
MAX_IMAGE_BYTES = 26_214_400
INLINE_MODEL, QUEUED_MODEL = "dall-e-3", "gpt-image-1"  # the api function itself makes images of quick models


@pytest.fixture
def fill(handlers: InProcess, canary: Canary) -> Callable[[str], str]:
    """A row's text with the addresses of this machine's servers."""
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


def naming(*urls: str) -> Script:
    return saying({"created": 1, "data": [{"url": url} for url in urls]})


def saying(answer: object, status: int = 200, **headers: str) -> Script:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return lambda _: Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def raw(content: bytes) -> Script:
    """Writes an answer by hand and hangs up."""

    def respond(request: Request) -> Reply:
        with suppress(OSError):  # nobody may be there to read all of it
            request.connection.sendall(content)
        raise HungUpError

    return respond


def hang_up(_: Request) -> Reply:
    raise HungUpError


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the test has ended, for an upstream that would go on."""
    event = threading.Event()
    yield event
    event.set()


def opened(handlers: InProcess, url: str) -> bytes:
    """What the api function itself would fetch and store."""
    source = handlers.function("ApiFunction").wired.workshop.source
    with source.open(url, Deadline.after(10)) as body:
        return b"".join(body.blocks)


# ------------------------------------------------------------------ which URLs are fetched

# The system's resolver finds this machine's address for each of these by itself.
THIS_MACHINE = [
    *("127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "0.0.0.0", "0", "localhost", "LOCALHOST"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
]
# No resolver should be asked for these: no public host is named so.
NOWHERE = [
    *("localhost.", "127.0.0.1.", "[::1%25lo]", "[127.0.0.1]", "\uff11\uff12\uff17.\uff10.\uff10.\uff11"),
    *("127\u30020\u30020\u30021", "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54", "local\u00adhost"),
    *("local\u200bhost", "%31%32%37%2e%30%2e%30%2e%31", "127.0.0.1%00.invalid", "127.0.0.1%3a{canary_port}"),
    *("127.0.0.1\0.invalid", "127.0.\t0.1", "127.0.0.1\n"),
]
REFUSED_URLS = [
    *(f"https://{host}{PAGE}" for host in THIS_MACHINE),  # the host alone is what these are refused for
    *(f"http://{host}:{{canary_port}}{PAGE}" for host in ["127.0.0.1", "2130706433", "localhost", *NOWHERE]),
    *(f"https://{{canary}}{PAGE}", f"https://127.0.0.1:22{PAGE}", f"https://127.0.0.1:65536{PAGE}"),
    *(f"https://127.0.0.1:https{PAGE}", f"http://{{upstream}}:{{canary_port}}{PAGE}", "http://127.0.0.1:\uff18\uff10/"),
    # What only looks like the upstream.
    *(f"https://{{upstream}}{PAGE}", f"http://localhost:{{upstream_port}}{PAGE}"),
    *(f"http://[::ffff:127.0.0.1]:{{upstream_port}}{PAGE}", f"http://2130706433:{{upstream_port}}{PAGE}"),
    *(f"http://{{upstream}}@{{canary}}{PAGE}", f"http://127.0.0.1:{SECRET}@{{canary}}{PAGE}"),
    *(f"http://{{upstream}}%40{{canary}}{PAGE}", f"http://{{upstream}};@{{canary}}{PAGE}"),
    *(f"http://{{canary}}#@{{upstream}}{PAGE}", f"http://{{canary}}?@{{upstream}}{PAGE}"),
    *(f"http://{{upstream}}\\@{{canary}}{PAGE}", f"http://{{canary}}\\@{{upstream}}{PAGE}"),
    *(f"http://user:{SECRET}@{{upstream}}{PAGE}", f"http://@{{upstream}}{PAGE}"),
    f"http://{{upstream}}/\r\nHost: {{canary}}\r\n\r\n{PAGE}",
    f"http://{{aws}}/latest/meta-data/{SECRET}",
    # Slashes and white space.
    *(f"http:\\\\{{canary}}\\{SECRET}", f"http:///{{canary}}{PAGE}", f"http:/{{canary}}{PAGE}", "http:{canary}/"),
    *(f"//{{canary}}{PAGE}", f"localhost:{{canary_port}}{PAGE}", f" http://{{canary}}{PAGE}", "ht\ttp://{canary}/"),
    # Schemes.
    *(f"ftp://{{canary}}{PAGE}", f"file:///etc/passwd?{SECRET}", f"file:/proc/self/environ?{SECRET}"),
    *(f"gopher://{{canary}}/_GET%20{SECRET}", f"ws://{{canary}}{PAGE}", "javascript:fetch('http://{canary}/')"),
    *(f"http+unix://%2Fvar%2Frun%2Fdocker.sock/{SECRET}", f"HTTP://{{canary}}{PAGE}", "data:,x"),
    # Lengths, and what is hardly a URL.
    *(f"http://{{canary}}/{'a' * 6_000}", f"https://{'a' * 64}.invalid{PAGE}", f"https://{'a' * 6_000}.invalid{PAGE}"),
    *(" ", "http:", "", f"http://[{{canary}}{PAGE}", f"https:///{SECRET}", f"http://{{canary}}/\u00e9{SECRET}"),
]


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: ascii(url)[:60])
def test_a_hostile_url_is_refused(handlers: InProcess, fill: Callable[[str], str], url: str) -> None:
    with pytest.raises(errors.ImageUrlRefusedError):
        opened(handlers, fill(url))


def test_the_canary_sings(canary: Canary) -> None:
    """Else its silence would prove nothing."""
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
def test_a_url_of_the_upstream_that_only_looks_like_another_s_gives_nothing(
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
def test_a_redirect_is_judged_anew(handlers: InProcess, fill: Callable[[str], str], location: str, status: int) -> None:
    url = handlers.serve_file(lambda _: Reply(status, headers={"Location": fill(location)}))
    relative = location.startswith("http:{")  # to the upstream itself
    with pytest.raises(errors.ImageDownloadError if relative else errors.ImageUrlRefusedError):
        opened(handlers, url)


@pytest.mark.parametrize("redirects", [2, 3, 4])
def test_each_redirect_of_a_chain_is_judged_and_the_fourth_is_not_followed(
    handlers: InProcess, fill: Callable[[str], str], redirects: int
) -> None:
    url = fill(f"http://{{canary}}{PAGE}")
    for _ in range(redirects):
        url = handlers.serve_file(lambda _, url=url: Reply(302, headers={"Location": url}))  # type: ignore[misc]
    with pytest.raises(errors.ImageUrlRefusedError if redirects < 4 else errors.ImageDownloadError):
        opened(handlers, url)


# ------------------------------------------------------------------ which contents are stored


def http(content: bytes, *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """A whole HTTP answer; with another length than its content's own, or with none."""
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
    "SVG compressed as a file": (http(gzip.compress(SVG)), NO_IMAGE),
    "HTML with a PNG behind it": (http(HTML + REAL_PNG), NO_IMAGE),
    "HTML that redirects": (http(b'<meta http-equiv="refresh" content="0;url=http://{canary}/">'), NO_IMAGE),
    "XML with an entity": (http(b'<!DOCTYPE x [<!ENTITY e SYSTEM "http://{canary}/">]><x>&e;</x>'), NO_IMAGE),
    "one byte": (http(b"\x89"), NO_IMAGE),
    "a compression that nobody knows": (http(zlib.compress(REAL_PNG), "Content-Encoding: x-unknown"), NO_IMAGE),
    "the head of a PNG alone": (http(PNG_HEAD), CUT),
    "the head of a JPEG and HTML": (http(b"\xff\xd8\xff\xe0" + HTML), CUT),
    "the head of a GIF and a script": (http(b"GIF89a=0;alert(1)//"), CUT),
    "the head of a longer WebP": (http(b"RIFF\xff\xff\xff\x7fWEBPVP8 "), CUT),
    "a PNG longer than its length": (http(REAL_PNG, length=20), CUT),
    "half of a compressed PNG": (http(gzip.compress(REAL_PNG)[:40], GZIPPED), CUT),
    "a PNG too large without a length": (http(PNG_HEAD + bytes(MAX_IMAGE_BYTES) + PNG_END, length=None), TOO_LARGE),
    "a bomb": (http(BOMB, GZIPPED), TOO_LARGE),
    "a bomb in a bomb": (http(gzip.compress(BOMB), "Content-Encoding: gzip, gzip"), TOO_LARGE),
    "a chunk larger than all": (
        http(b"ffffffffffffffff\r\n" + PNG_HEAD, "Transfer-Encoding: chunked", length=None),
        FAILED,
    ),
    "what only claims to be compressed": (http(REAL_PNG, GZIPPED), FAILED),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", FAILED),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", FAILED),
    "a refusal that names the canary": (http(b"", LOCATION, status="404 Not Found"), FAILED),
    "a choice that names the canary": (http(b"", LOCATION, status="300 Multiple Choices"), REFUSED),
    "a part": (http(REAL_PNG, status="206 Partial Content"), REFUSED),
}


@pytest.mark.parametrize(("content", "error"), CONTENTS.values(), ids=list(CONTENTS))
def test_what_is_no_whole_image_is_none_whatever_it_is_called(
    handlers: InProcess, fill: Callable[[str], str], content: bytes, error: type[errors.ImagegenError]
) -> None:
    answer = content.replace(b"{canary}", fill("{canary}").encode())
    with pytest.raises(errors.ImagegenError) as raised:
        opened(handlers, handlers.serve_file(raw(answer)))
    assert type(raised.value) is error


# ----------------------------------------------------- what becomes of it, and what it costs


@dataclass(frozen=True)
class Failure:
    """What the upstream answers to each call; the answer to the caller, the paid calls and the downloads.

    Bytes are JSON of a status, a body and headers; text is the HTTP answer to the download of the one image. In both
    `{words}` is what the caller may read of it, and everything else in braces may come out nowhere.
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


NOT_HAD = ("image_download_failed", 1)
INVALID = (424, "upstream_answer_invalid")
RETRY_NOW = {"retry-after-ms": "1"}
FAILURES: dict[str, Failure] = {
    # Refusals.
    "400": Failure(refusal(400), 400, "upstream_refused_request"),
    "400 for the policy": Failure(refusal(400, "content_policy_violation"), 400, "content_policy_violation"),
    "400 for moderation": Failure(refusal(400, "moderation_blocked"), 400, "moderation_blocked"),
    "401": Failure(refusal(401), 502, "upstream_key_refused"),
    "402": Failure(refusal(402), 502, "upstream_out_of_credit"),
    "404": Failure(refusal(404), 502, "upstream_misconfigured"),
    "429": Failure(refusal(429, **RETRY_NOW), 429, "rate_limit_exceeded", TRIES),
    "500": Failure(refusal(500), 424, "upstream_failed"),
    "503": Failure(refusal(503, **RETRY_NOW), 503, "upstream_unavailable", TRIES),
    "524": Failure(refusal(524), 424, "upstream_failed"),
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
    "a file that breaks off": Failure(page(REAL_PNG, length=9_000), 424, *NOT_HAD, KEEP_TRIES),
    "a file too large": Failure(page(REAL_PNG, length=MAX_IMAGE_BYTES + 1), 424, "image_too_large", 1, 1),
    "a file that is forbidden": Failure(page(b"{secret}", status="403 No"), 424, *NOT_HAD, 1),
    "a file that fails": Failure(page(b"{secret}", status="500 No"), 424, *NOT_HAD, KEEP_TRIES),
    "a file elsewhere": Failure(
        page(b"", f"{LOCATION}?sig={{secret}}", status="302 No"), 424, "image_url_refused", 1, 1
    ),
    "a file at itself": Failure(page(b"", "Location: {itself}", status="302 No"), 424, *NOT_HAD, 4),
}
BY_THE_WORKER = [
    *("400", "429", "500", "a drop", "a page", "bad base64", "a URL of the canary", "a URL with credentials"),
    *("a file of HTML", "half a file", "a file that is forbidden", "a file elsewhere"),
]


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "inline") for name in FAILURES), *((name, "queued") for name in BY_THE_WORKER)]
)
def test_every_way_that_an_upstream_fails_has_its_answer_and_its_price(
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
            lambda request: raw(filled(content).replace("{itself}", url).encode("latin-1"))(request)  # noqa: PLW0108
        )
        script = naming(url)
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


def test_a_time_out_may_have_cost_money(handlers: InProcess, over: threading.Event) -> None:
    def hang(_: Request) -> Reply:
        over.wait(20)
        raise HungUpError

    prompt = handlers.will(handlers.secret("prompt"), hang)
    with handlers.function("ApiFunction").changed(UPSTREAM_TIMEOUT_SECONDS="1"):
        assert handlers.local.make({"prompt": prompt}, **INLINE).failed == (424, "upstream_timeout")
    assert len(handlers.calls(prompt)) == 1


def drip(head: bytes, over: threading.Event) -> Script:
    """A byte at a time, for longer than anybody may wait."""

    def respond(request: Request) -> Reply:
        with suppress(OSError):
            request.connection.sendall(head)
            while not over.wait(0.1):
                request.connection.sendall(b"x")
        raise HungUpError

    return respond


def test_an_image_that_drips_is_cut_off_at_the_function_s_time_limit(
    handlers: InProcess, over: threading.Event
) -> None:
    """Of its 7 seconds it keeps 5 to say what happened. The worker goes on: the image is paid for."""
    url = handlers.serve_file(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + PNG_HEAD, over))
    prompt = handlers.will(f"drip {uuid4().hex}", naming(url))
    with handlers.function("ApiFunction").changed(timeout=7):
        began = time.monotonic()
        assert handlers.local.post({"prompt": prompt}, **INLINE).status == 303
        assert time.monotonic() - began < 7
    assert len(handlers.calls(prompt)) == 1


@pytest.mark.parametrize("character", ["\x01", '"', "\U0001f9a6"], ids=["escaped in six", "escaped in two", "wide"])
def test_a_record_holds_the_longest_of_everything(
    handlers: InProcess, fill: Callable[[str], str], character: str
) -> None:
    """The longest prompt and user, and ten images with the longest URLs and revised prompts."""
    prompt = f"longest {uuid4().hex}".ljust(32_000, character)
    image = {"url": fill("http://{canary}/").ljust(8_000, "a"), "revised_prompt": character * 4_000}
    handlers.will(prompt, saying({"created": 1, "data": [image] * 10, "usage": {"note": character * 600}}))
    fields = {"model": QUEUED_MODEL, "prompt": prompt, "n": 10, "user": character * 500}
    generation = handlers.local.until_ended(handlers.local.begin(**fields))
    assert (generation["status"], generation["error"]["code"]) == ("failed", "image_url_refused")
    assert len(handlers.calls(prompt)) == 1


def test_beside_a_hostile_url_the_good_image_is_stored_and_named(
    handlers: InProcess, fill: Callable[[str], str]
) -> None:
    url = handlers.serve_file(lambda _: Reply(200, REAL_PNG))
    prompt = handlers.will(handlers.secret("prompt"), naming(fill(f"http://{{canary}}{PAGE}")), naming(url))
    before = handlers.stored()
    answer = handlers.local.make({"prompt": prompt, "n": 2}, **INLINE)
    assert answer.failed == (424, "image_url_refused")
    (image,) = answer.error["images"]
    assert handlers.stored() - before == {f"images/{image['id']}"}
    assert handlers.content(f"images/{image['id']}") == REAL_PNG
    assert len(handlers.calls(prompt)) == 2


# ------------------------------------------------------------------------------- successes


def made(handlers: InProcess, model: str, image: dict[str, Any], **fields: Any) -> Answer:
    """The answer to a request whose every part is a secret."""
    prompt = handlers.will(handlers.secret("prompt"), saying({"created": 1, "data": [image]}))
    body = {"prompt": prompt, "user": handlers.secret("user"), "model": model, **fields}
    return handlers.local.make(body, Idempotency_Key=handlers.secret("idempotency key"), **INLINE)


@pytest.mark.parametrize("model", [INLINE_MODEL, QUEUED_MODEL])
@pytest.mark.parametrize("kind", ["url", "b64_json", "data URL"])
def test_an_image_is_stored_as_it_came_and_answered_and_nothing_is_logged_of_it(
    handlers: InProcess, model: str, kind: str
) -> None:
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


def test_an_answer_that_does_not_fit_into_one_is_stored_whole(handlers: InProcess) -> None:
    content = png(handlers.secret("image")) + bytes(5_000_000) + PNG_END
    answer = made(handlers, QUEUED_MODEL, {"b64_json": b64encode(content).decode()})
    assert answer.status == 303
    assert b64encode(content) in fetched(answer.headers["location"]).content
    insisting = handlers.local.ask("POST", f"/images/generations/{answer.generation_id}/result", b"")
    assert insisting.failed == (424, "answer_too_large")


def test_nothing_of_a_whole_life_is_logged(handlers: InProcess) -> None:
    content = png(handlers.secret("image"))
    url = handlers.serve_file(lambda _: Reply(200, content))
    handlers.will(handlers.secret("prompt"), naming(url))
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
def test_nothing_of_a_cancelled_generation_is_logged(handlers: InProcess, when: str) -> None:
    def cancel(_: Request | None) -> None:
        assert handlers.local.cancel(generation_id).json["status"] == "cancelled"

    prompt = handlers.will(handlers.secret("prompt"), cancel)
    generation_id = handlers.local.begin(prompt=prompt)
    if when == "before work":
        cancel(None)
    assert handlers.local.result(generation_id).failed == (424, "generation_cancelled")
    assert len(handlers.calls(prompt)) == int(when == "at work")


def test_a_key_that_is_used_again_gets_the_same_image_and_for_another_request_a_refusal(handlers: InProcess) -> None:
    prompt, key = handlers.secret("prompt", may_be_answered=True), handlers.secret("idempotency key")
    answers = [handlers.local.make({"prompt": prompt}, Idempotency_Key=key, **INLINE) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json["data"][0]["id"] == answers[1].json["data"][0]["id"]
    other = handlers.local.post({"prompt": prompt, "n": 2}, Idempotency_Key=key, **INLINE)
    assert other.failed == (422, "idempotency_key_reused")
    assert len(handlers.calls(prompt)) == 1


def test_a_limit_that_passes_is_waited_out_and_a_download_that_breaks_off_is_fetched_again(handlers: InProcess) -> None:
    prompt = handlers.secret("prompt", may_be_answered=True)
    handlers.will(prompt, saying({}, 429, retry_after_ms="1"), saying({}, 503, retry_after_ms="1"))
    handlers.upstream.downloads_by_prompt[prompt] += [lambda _: Reply(200, PNG_HEAD, declared_length=9_000), hang_up]
    answer = handlers.local.make({"prompt": prompt}, **INLINE)
    assert (answer.status, len(answer.json["data"])) == (200, 1)
    assert len(handlers.calls(prompt)) == 3


def test_an_upstream_that_nobody_listens_at_is_502(handlers: InProcess) -> None:
    with handlers.function("ApiFunction").changed(UPSTREAM_BASE_URL=f"http://127.0.0.1:9/v1/{handlers.secret('path')}"):
        answer = handlers.local.make({"prompt": handlers.secret("prompt")}, **INLINE)
    assert answer.failed == (502, "upstream_unreachable")


@pytest.mark.parametrize("sent", [INLINE, {}], ids=["inline", "queued"])
@pytest.mark.parametrize("interim", ["102 Processing", "103 Early Hints"])
def test_an_answer_behind_an_interim_one_reaches_the_caller_whose_it_is_and_no_other(
    handlers: InProcess, over: threading.Event, interim: str, sent: dict[str, str]
) -> None:
    def interim_first(request: Request) -> None:
        request.connection.sendall(f"HTTP/1.1 {interim}\r\n\r\n".encode())
        over.wait(0.05)  # the upstream is at work

    first, second = (handlers.secret(name, may_be_answered=True) for name in ("first", "second"))
    handlers.will(first, interim_first)
    for client, prompt in ((handlers.local, first), (handlers.other, second)):
        answer = client.make({"prompt": prompt}, **sent)
        assert answer.json["data"][0]["revised_prompt"] == f"{prompt}, in detail"
        assert len(handlers.calls(prompt)) == 1


def test_a_bomb_costs_no_memory(handlers: InProcess) -> None:
    url = handlers.serve_file(raw(http(BOMB, GZIPPED)))
    with handlers.function("ApiFunction").changed(MAX_IMAGE_BYTES="1000000"):
        tracemalloc.start()
        try:
            with pytest.raises(errors.ImageTooLargeError):
                opened(handlers, url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 50_000_000  # it would be 100 MB; other threads of this process have some, too
