"""What strangers send, to the whole stack: URLs and contents in an upstream's answer, and requests of clients.

Whatever it is: a canary on this machine is never reached, no answer is a 5xx, every answer of ours is OpenAI-shaped,
what cost money cost it once, and nothing but an image is ever stored.
"""

import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegen.errors import ImagegenError
from imagegen.images import is_image_id
from imagegen.openai_wire.headers import read_attempt, read_page, read_preference
from imagegen.openai_wire.requests import read_image_request
from local.lambda_host import FunctionHost
from local.serving import HungUpError, Reply, Request
from local.stack import ROOT
from local.upstream import Script
from tests.conftest import UPSTREAM_KEY
from tests.e2e import hostile_tables as tables
from tests.e2e.conftest import Service, serve
from tests.e2e.hostile_tables import GOOD_BODY, MAX_IMAGE_BYTES, REAL_PNG, SECRET

FOUR_KEYS = {"message", "type", "param", "code"}
GENERATIONS = "/v1/images/generations"
QUICKLY = ("x-stainless-retry-count", "0")  # the api function works itself
LATER = ("Prefer", "respond-async")  # the worker function does
Headers = Sequence[tuple[str, str]]


class Canary:
    """Counts every connection, whatever it speaks; to HTTP it gives an image, so that a fetched one would be stored."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError):
                self.heard.append(b"")
                connection.settimeout(1)
                self.heard[-1] = connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(REAL_PNG) + REAL_PNG)

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


class _Always(deque[Script]):
    """Gives its one script for ever, so that each request is answered by what it says and not by when it comes."""

    def popleft(self) -> Script:
        return self[0]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        code: str | None = self.json["error"]["code"]
        return code


@dataclass
class House:
    """A stack whose upstream answers each prompt, and each path under /files/, as a test says."""

    service: Service
    canary: Canary
    s3: Any = field(repr=False)
    by_prompt: dict[str, Script] = field(default_factory=dict, repr=False)
    pages: dict[str, Script] = field(default_factory=dict, repr=False)

    def answer(self, request: Request) -> Reply | None:
        scripted = self.by_prompt.get(json.loads(request.body)["prompt"])
        return scripted(request) if scripted else None

    def page(self, request: Request) -> Reply | None:
        page = self.pages.get(request.target)
        return page(request) if page else None

    def told(self, text: str, **more: str) -> str:
        """A row's text with its addresses."""
        key = self.service.key
        upstream, gateway = urlsplit(self.service.upstream_url), urlsplit(self.service.base_url)
        values = {
            "canary": f"127.0.0.1:{self.canary.port}",
            "canary_port": str(self.canary.port),
            "upstream": upstream.netloc,
            "upstream_port": str(upstream.port),
            "gateway": gateway.netloc,
            "aws": urlsplit(self.service.stack.aws_url).netloc,
            "key": key,
            "key_cut_off": key[:-1],
            "key_in_capitals": f"{key[:9]}{key[9:].swapcase()}",
            "secret": key.removeprefix("ig_local_"),
            "upstream_key": UPSTREAM_KEY,
            **more,
        }
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def put(self, page: Script) -> str:
        """A page under the upstream's own origin; gives its URL."""
        path = f"/files/{uuid.uuid4().hex}"
        self.pages[path] = page
        return self.told(f"http://{{upstream}}{path}")

    def downloads(self, url: str) -> list[Request]:
        return [each for each in self.service.upstream.downloads if each.target == urlsplit(url).path]

    def calls(self, prompt: str) -> int:
        return sum(call["prompt"] == prompt for call in list(self.service.upstream.calls))

    def bought(self) -> int:
        """The calls, but for those of rows that are tried in the background."""
        return sum(not call["prompt"].startswith("hostile ") for call in list(self.service.upstream.calls))

    def completed(self) -> int:
        """How many images the two clients' records tell of."""
        generations = [
            generation for client in ("local", "other") for page in self._pages(client) for generation in page["data"]
        ]
        return sum(len(generation["data"]) for generation in generations)

    def _pages(self, client: str) -> Iterator[Any]:
        page: Any = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = f"&after={page['last_id']}" if page["last_id"] else ""
            page = self.ask("GET", f"{GENERATIONS}?limit=100{after}", key=client).json
            yield page

    def stored(self) -> set[str]:
        found = self.s3.list_objects_v2(Bucket=self.service.stack.bucket)
        return {item["Key"] for item in found.get("Contents", [])}

    def ask(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        key: str | None = "local",
        content_type: str | None = "application/json",
    ) -> Answer:
        """One request, byte for byte as it is told here."""
        lines = [f"{method} {target} HTTP/1.1", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        if not any(name == "Host" for name, _ in headers):
            lines.append(self.told("Host: {gateway}"))
        if key is not None:
            lines.append(f"Authorization: Bearer {self.service.stack.keys[key]}")
        if content_type is not None:
            lines.append(f"Content-Type: {content_type}")
        answer = self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        assert answer is not None, "there was no answer"
        return answer

    def send(self, data: bytes, *, then_end: bool = False) -> Answer | None:
        """Whatever is told here; None where the server hangs up."""
        gateway = urlsplit(self.service.base_url)
        with socket.create_connection((gateway.hostname or "", gateway.port or 0), timeout=30) as connection:
            with suppress(OSError):  # it may have answered before all was sent
                connection.sendall(data)
                if then_end:
                    connection.shutdown(socket.SHUT_WR)
            response = HTTPResponse(connection, method=data.split(b" ", 1)[0].decode("latin-1"))
            try:
                response.begin()
                body = response.read()
            except (HTTPException, ConnectionError):
                return None
            finally:
                response.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def post(self, fields: Mapping[str, Any], headers: Headers = (QUICKLY,), *, key: str = "local") -> Answer:
        """As a client that follows redirects."""
        answer = self.ask("POST", GENERATIONS, headers, json.dumps(fields).encode(), key=key)
        for _ in range(20):
            if answer.status != 303:
                break
            answer = self.ask("GET", f"{GENERATIONS}/{answer.headers['x-generation-id']}/result", key=key)
        return answer

    def until_ended(self, generation_id: str, seconds: float = 30) -> Any:
        """The generation object when it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            generation = self.ask("GET", f"{GENERATIONS}/{generation_id}").json
            if generation["status"] in ("completed", "failed", "cancelled"):
                return generation
            time.sleep(0.1)
        raise AssertionError(f"{generation_id} did not end")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    parameters = {
        "MaxImageBytes": str(MAX_IMAGE_BYTES),
        "QuickUpstreamTimeoutSeconds": "2",
        "UpstreamTimeoutSeconds": "20",
        "WaitSeconds": "1",
    }
    canary = Canary()
    try:
        with serve("source", tmp_path_factory.mktemp("hostile"), parameters) as service:
            house = House(service, canary, service.stack.client("s3"))
            service.upstream.script = _Always([house.answer])
            service.upstream.download_script = _Always([house.page])
            yield house
            only_images_are_stored(house)
    finally:
        canary.close()


def only_images_are_stored(house: House) -> None:
    """Real ones, told as what they are. Of what was refused nothing is there."""
    for key in house.stored():
        stored = house.s3.get_object(Bucket=house.service.stack.bucket, Key=key)
        with Image.open(stored["Body"]) as image:
            assert stored["ContentType"] == f"image/{(image.format or '').lower()}"
            image.load()
        assert is_image_id(key.removeprefix("images/"))
    assert len(house.stored()) == house.completed()


@pytest.fixture(autouse=True)
def _nobody_reaches_the_canary(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "house" in request.fixturenames:
        canary = request.getfixturevalue("house").canary
        heard = list(canary.heard)
        canary.heard.clear()
        assert heard == []


def checked_error(answer: Answer) -> Any:
    """The error of an answer of ours, which is OpenAI-shaped and no 5xx."""
    assert 400 <= answer.status < 500, (answer.status, answer.body[:500])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert "x-injected" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) - {"images"} == FOUR_KEYS
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    assert len(answer.body) < 4096, "it sends back what it was sent"
    return error


def naming(*urls: str) -> Script:
    body = json.dumps({"created": 1, "data": [{"url": url} for url in urls]}).encode()
    return lambda _: Reply(200, body)


def leading_to(location: str, status: int = 302, *, cookie: str = "") -> Script:
    headers = {"Location": location} | ({"Set-Cookie": cookie} if cookie else {})
    return lambda _: Reply(status, headers=headers)


def raw(content: bytes) -> Script:
    """Writes an answer by hand and hangs up."""

    def respond(request: Request) -> Reply:
        with suppress(OSError):  # nobody may be there to read all of it
            request.connection.sendall(content)
        raise HungUpError

    return respond


# ------------------------------------------------------------------ what an upstream answers


@dataclass(frozen=True)
class Outcome:
    """What became of a request whose upstream answered with something hostile."""

    answer: Answer
    calls: int
    downloads: Sequence[Request] = ()


def outcome(house: House, script: Script, page_url: str = "", headers: Headers = (QUICKLY,)) -> Outcome:
    prompt = f"hostile {uuid.uuid4().hex}"
    house.by_prompt[prompt] = script
    answer = house.post({"prompt": prompt}, headers)
    return Outcome(answer, house.calls(prompt), house.downloads(page_url) if page_url else ())


def checked_failure(house: House, became: Outcome, code: str) -> None:
    """The upstream was paid, once, and the caller got a 424 that tells nothing of what the upstream wrote."""
    error = checked_error(became.answer)
    assert (became.answer.status, error["code"], error["type"]) == (424, code, "upstream_error")
    assert became.answer.headers["x-should-retry"] == "false"
    assert became.answer.headers["x-generation-id"].startswith("gen_")
    assert "images" not in error
    assert became.calls == 1
    told = became.answer.body.decode() + repr(became.answer.headers)
    for secret in (SECRET, UPSTREAM_KEY, house.told("{canary}"), "alert(", "iVBOR"):
        assert secret not in told
    for download in became.downloads:
        for header in ("Authorization", "Cookie", "Referer", "Proxy-Authorization"):
            assert download.header(header) is None


@pytest.fixture(scope="module")
def _tried(house: House) -> Iterator[tuple[ThreadPoolExecutor, dict[str, Future[Outcome]]]]:
    with ThreadPoolExecutor(6) as pool:
        yield pool, {}
        pool.shutdown(cancel_futures=True)


Row = Callable[[House, str], Outcome]


@pytest.fixture
def side_by_side(
    house: House,
    _tried: tuple[ThreadPoolExecutor, dict[str, Future[Outcome]]],
    request: pytest.FixtureRequest,
) -> Callable[[Row], Outcome]:
    """Tries all rows of a test at once, since many wait; gives the outcome of the one that the test runs for."""
    pool, futures = _tried

    def outcome_of(row: Row) -> Outcome:
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.function is request.function and item.nodeid not in futures:
                futures[item.nodeid] = pool.submit(row, house, str(item.callspec.params["name"]))
        return futures[request.node.nodeid].result(90)

    return outcome_of


def test_the_canary_sings(house: House) -> None:
    """Else its silence would tell nothing."""
    with urlopen(f"http://127.0.0.1:{house.canary.port}/") as response:
        assert response.read() == REAL_PNG
    assert house.canary.heard
    house.canary.heard.clear()


def test_an_image_of_the_upstream_s_own_origin_is_fetched_and_stored(house: House) -> None:
    """Else what the others find missing would tell nothing."""
    became = outcome(house, naming(house.put(lambda _: Reply(200, REAL_PNG))))
    assert became.answer.status == 200
    with urlopen(became.answer.json["data"][0]["permalink"]) as response:
        assert response.read() == REAL_PNG
        assert response.headers["Content-Type"] == "image/png"
    assert became.calls == 1


@pytest.mark.parametrize("name", tables.REFUSED_URLS)
def test_a_hostile_url_is_refused(house: House, name: str, side_by_side: Callable[[Row], Outcome]) -> None:
    def row(house: House, name: str) -> Outcome:
        return outcome(house, naming(house.told(tables.REFUSED_URLS[name])))

    checked_failure(house, side_by_side(row), "image_url_refused")


@pytest.mark.parametrize("name", tables.VAIN_URLS)
def test_a_url_of_the_upstream_that_only_looks_like_another_s_gives_nothing(
    house: House, name: str, side_by_side: Callable[[Row], Outcome]
) -> None:
    def row(house: House, name: str) -> Outcome:
        return outcome(house, naming(house.told(tables.VAIN_URLS[name])))

    checked_failure(house, side_by_side(row), "image_download_failed")


@pytest.fixture(scope="module")
def _names_fail_quickly() -> None:
    started = time.monotonic()
    with suppress(OSError):
        socket.getaddrinfo(f"{uuid.uuid4().hex}.invalid", 443)
        pytest.skip("this machine's resolver finds what cannot be")
    if time.monotonic() - started > 0.5:
        pytest.skip("this machine's resolver is slow to say no")


@pytest.mark.usefixtures("_names_fail_quickly")
@pytest.mark.parametrize("name", tables.UNKNOWN_HOSTS)
def test_a_host_that_nobody_knows_gives_nothing(
    house: House, name: str, side_by_side: Callable[[Row], Outcome]
) -> None:
    def row(house: House, name: str) -> Outcome:
        return outcome(house, naming(house.told(tables.UNKNOWN_HOSTS[name])))

    checked_failure(house, side_by_side(row), "image_download_failed")


@pytest.mark.parametrize("name", tables.ANSWERS)
def test_an_answer_that_names_no_url_is_told_so(
    house: House, name: str, side_by_side: Callable[[Row], Outcome]
) -> None:
    def row(house: House, name: str) -> Outcome:
        body = tables.ANSWERS[name][0].replace(b"{canary}", house.told("{canary}").encode())
        return outcome(house, lambda _: Reply(200, body))

    checked_failure(house, side_by_side(row), tables.ANSWERS[name][1])


@pytest.mark.parametrize("name", tables.REDIRECTS)
def test_a_redirect_is_judged_anew(house: House, name: str, side_by_side: Callable[[Row], Outcome]) -> None:
    def row(house: House, name: str) -> Outcome:
        location = tables.REDIRECTS[name][0]
        url = house.put(lambda _: Reply(302, headers={"Location": house.told(location, itself=url)}))
        return outcome(house, naming(url), url)

    became = side_by_side(row)
    location, code = tables.REDIRECTS[name]
    checked_failure(house, became, code)
    again = location == "{itself}" or location.startswith("http:{")  # the latter is a page that may come yet
    assert len(became.downloads) == (4 if again else 1)


@pytest.mark.parametrize("status", [301, 303, 307, 308])
@pytest.mark.parametrize("location", ["http://{canary}/", "file:///etc/passwd"])
def test_a_redirect_is_judged_whatever_its_status(house: House, location: str, status: int) -> None:
    url = house.put(leading_to(house.told(location), status))
    checked_failure(house, outcome(house, naming(url), url), "image_url_refused")


@pytest.mark.parametrize("redirects", [2, 3, 4])
def test_each_redirect_of_a_chain_is_judged_and_the_fourth_is_not_followed(house: House, redirects: int) -> None:
    url = house.told(f"http://{{canary}}{tables.PAGE}")
    for _ in range(redirects):
        url = house.put(leading_to(url))
    code = "image_url_refused" if redirects < 4 else "image_download_failed"
    checked_failure(house, outcome(house, naming(url), url), code)


def test_a_chain_that_is_too_long_does_not_lead_to_its_image(house: House) -> None:
    last = url = house.put(lambda _: Reply(200, REAL_PNG))
    for _ in range(4):
        url = house.put(leading_to(url))
    checked_failure(house, outcome(house, naming(url)), "image_download_failed")
    assert house.downloads(last) == []


def test_no_cookie_of_one_answer_is_sent_with_the_next_request(house: House) -> None:
    last = house.put(lambda _: Reply(403))
    url = house.put(leading_to(last, cookie="a=b; Path=/"))
    checked_failure(house, outcome(house, naming(url), last), "image_download_failed")
    assert len(house.downloads(last)) == 1


@pytest.mark.parametrize("name", tables.CONTENTS)
def test_what_is_no_image_is_not_stored_whatever_it_is_told_to_be(
    house: House, name: str, side_by_side: Callable[[Row], Outcome]
) -> None:
    def row(house: House, name: str) -> Outcome:
        url = house.put(raw(tables.CONTENTS[name].answer.replace(b"{canary}", house.told("{canary}").encode())))
        return outcome(house, naming(url), url)

    became = side_by_side(row)
    checked_failure(house, became, tables.CONTENTS[name].code)
    assert len(became.downloads) == tables.CONTENTS[name].downloads


def _most_memory_kb(house: House) -> int:
    pids = house.service.stack.functions["ApiFunction"].pids()
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return max(int(text.partition("VmHWM:")[2].split()[0]) for text in status)


def test_a_bomb_costs_no_memory(house: House) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the kernel does not tell what a process holds")
    url = house.put(raw(tables.CONTENTS["a bomb"].answer))
    outcome(house, naming(url))
    before = _most_memory_kb(house)
    outcome(house, naming(url))
    assert _most_memory_kb(house) - before < 32 * 1024  # it would be 100 MB


def test_an_api_s_answer_that_is_a_bomb_is_too_large(house: House) -> None:
    headers = {"Content-Encoding": "gzip"}
    became = outcome(house, lambda _: Reply(200, tables.BOMB, headers))
    checked_failure(house, became, "upstream_answer_too_large")


def test_an_api_that_redirects_is_not_followed(house: House) -> None:
    """The upstream's key would go along. It is the operator's to put right, so it is a 502 that nobody retries."""
    location = house.told("http://{canary}/v1/images/generations")
    for status in (301, 302, 303, 307, 308):
        became = outcome(house, leading_to(location, status))
        assert (became.answer.status, became.answer.code) == (502, "upstream_misconfigured")
        assert became.answer.headers["x-should-retry"] == "false"
        assert became.calls == 1


def drip(head: bytes, content: bytes, *, seconds: float) -> Script:
    """A byte at a time, for longer than anybody may wait."""

    def respond(request: Request) -> Reply:
        until = time.monotonic() + seconds
        with suppress(OSError):
            request.connection.sendall(head)
            for byte in content:
                if time.monotonic() > until:
                    break
                request.connection.sendall(bytes([byte]))
                time.sleep(0.1)
        raise HungUpError

    return respond


def test_an_api_s_answer_that_drips_is_cut_off_at_the_time_limit(house: House) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
    started = time.monotonic()
    became = outcome(house, drip(head, b" " * 500, seconds=25))
    checked_failure(house, became, "upstream_timeout")
    assert time.monotonic() - started < 12


PUBLIC_BASE_URL = "https://images.example/base"


@contextmanager
def own_api_function(house: House, *, timeout: int, environment: Mapping[str, str]) -> Iterator[FunctionHost]:
    """The api function once more, with a shorter time-out or another environment than the template's."""
    function = house.service.stack.functions["ApiFunction"].function
    other = replace(function, timeout=timeout, environment={**function.environment, **environment})
    host = FunctionHost(other, house.service.stack.logs / f"hostile-{uuid.uuid4().hex}.log")
    try:
        yield host
    finally:
        host.close()


def invoke(
    host: FunctionHost, prompt: str, headers: Mapping[str, str] | None = None, domain: str = "api.example"
) -> "Future[bytes]":
    event = json.loads((ROOT / "events/create-images.json").read_text())
    event["body"] = json.dumps({"prompt": prompt})
    event["headers"] |= {"x-stainless-retry-count": "0", "Host": domain, **(headers or {})}
    event["multiValueHeaders"] = {name: [value] for name, value in event["headers"].items()}
    event["requestContext"]["domainName"] = domain
    event["requestContext"]["authorizer"]["principalId"] = "local"
    return host.invoke(event)


def answered(future: "Future[bytes]") -> Answer:
    reply = json.loads(future.result(timeout=30))
    headers = {name: ",".join(values) for name, values in reply["multiValueHeaders"].items()}
    return Answer(reply["statusCode"], {name.lower(): value for name, value in headers.items()}, reply["body"].encode())


def test_an_image_that_drips_is_cut_off_at_the_function_s_time_limit(house: House) -> None:
    """A function's own 120 seconds are long for a test: here it has 8, of which it keeps 5 to tell what happened."""
    heads = [b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + tables.PNG_HEAD, b"HTTP/1.1 200 OK\r\nX: "]
    prompts = {f"hostile {uuid.uuid4().hex}": house.put(drip(head, b"x" * 490, seconds=25)) for head in heads}
    house.by_prompt |= {prompt: naming(url) for prompt, url in prompts.items()}
    with own_api_function(house, timeout=8, environment={}) as host:
        host.warm_up()
        started = time.monotonic()
        invoked = {prompt: invoke(host, prompt) for prompt in prompts}
        for future in invoked.values():  # the worker goes on: the URL is known, and the image is paid for
            assert json.loads(future.result(timeout=30))["statusCode"] == 303
        assert time.monotonic() - started < 12
    assert [house.calls(prompt) for prompt in prompts] == [1, 1]


# A record of DynamoDB holds 400 KB. What does not fit must cost neither a second purchase nor the answer.
TOO_LARGE_FOR_A_RECORD: dict[str, dict[str, Any]] = {
    "a URL of half a megabyte": {"data": [{"url": f"http://{{canary}}/{'a' * 500_000}{SECRET}"}]},
    "a revised prompt of half a megabyte": {
        "data": [{"url": f"http://{{canary}}{tables.PAGE}", "revised_prompt": "r" * 500_000}]
    },
    "a usage of half a megabyte": {
        "data": [{"url": f"http://{{canary}}{tables.PAGE}"}],
        "usage": {"note": "u" * 500_000},
    },
}


@pytest.mark.parametrize("name", TOO_LARGE_FOR_A_RECORD)
def test_an_answer_too_large_for_a_record_is_paid_for_once_and_told(
    house: House, name: str, side_by_side: Callable[[Row], Outcome]
) -> None:
    def row(house: House, name: str) -> Outcome:
        prompt = f"hostile {uuid.uuid4().hex}"
        body = house.told(json.dumps(TOO_LARGE_FOR_A_RECORD[name])).encode()
        house.by_prompt[prompt] = lambda _: Reply(200, body)
        return Outcome(house.post({"prompt": prompt}), house.calls(prompt))

    became = side_by_side(row)
    assert (became.answer.status, became.calls) == (424, 1)  # 2: it went on, and was bought again when the lease ended
    assert checked_error(became.answer)["type"] == "upstream_error"
    assert SECRET not in became.answer.body.decode()


@pytest.mark.parametrize("character", ["\x01", '"', "\U0001f9a6"], ids=["escaped in six", "escaped in two", "wide"])
def test_a_record_holds_the_longest_of_everything(house: House, character: str) -> None:
    """The longest prompt and user, and ten images with the longest URLs and revised prompts."""
    prompt = f"hostile {uuid.uuid4().hex}".ljust(32_000, character)
    image = {"url": house.told("http://{canary}/").ljust(8_000, "a"), "revised_prompt": character * 4_000}
    body = json.dumps({"created": 1, "data": [image] * 10, "usage": {"note": character * 600}}).encode()
    house.by_prompt[prompt] = lambda _: Reply(200, body)
    fields = {"model": "gpt-image-1", "prompt": prompt, "n": 10, "user": character * 500}
    accepted = house.post(fields, (LATER,))
    assert accepted.status == 202, accepted.body
    generation = house.until_ended(accepted.json["id"], seconds=15)
    assert (generation["status"], generation["error"]["code"]) == ("failed", "image_url_refused")
    assert house.calls(prompt) == 1


# ------------------------------------------------------------------- the same, by the worker

BY_THE_WORKER: dict[str, tuple[str | Script, str]] = {
    **{
        name: (tables.REFUSED_URLS[name], "image_url_refused")
        for name in (
            "http to an address",
            "http to decimal",
            "http to a name",
            "https to mapped in hex",
            "https to hex",
        )
    },
    "a file": (tables.REFUSED_URLS["a file"], "image_url_refused"),
    "the upstream as a user": (tables.REFUSED_URLS["the upstream as a user"], "image_url_refused"),
    "a redirect": (leading_to("https://127.0.0.1/"), "image_url_refused"),
    "SVG": (raw(tables.CONTENTS["SVG"].answer), "not_an_image"),
    "a bomb": (raw(tables.CONTENTS["a bomb"].answer), "image_too_large"),
    "a PNG that lacks its end": (raw(tables.CONTENTS["a PNG that lacks its end"].answer), "image_truncated"),
}


@pytest.mark.parametrize("name", BY_THE_WORKER)
def test_the_worker_refuses_likewise(house: House, name: str, side_by_side: Callable[[Row], Outcome]) -> None:
    def row(house: House, name: str) -> Outcome:
        prompt = f"hostile {uuid.uuid4().hex}"
        what, code = BY_THE_WORKER[name]
        house.by_prompt[prompt] = naming(house.told(what) if isinstance(what, str) else house.put(what))
        accepted = house.post({"prompt": prompt}, (LATER,))
        assert accepted.status == 202, accepted.body
        generation = house.until_ended(accepted.json["id"])
        assert (generation["status"], generation["data"]) == ("failed", [])
        assert generation["error"]["code"] == code
        assert set(generation["error"]) == FOUR_KEYS
        result = house.ask("GET", f"{GENERATIONS}/{accepted.json['id']}/result")
        return Outcome(result, house.calls(prompt))

    checked_failure(house, side_by_side(row), BY_THE_WORKER[name][1])


def test_beside_a_hostile_url_the_good_image_is_stored_and_told(house: House) -> None:
    before = house.stored()
    prompt = f"hostile {uuid.uuid4().hex}"
    urls = iter((house.told(f"http://{{canary}}{tables.PAGE}"), house.put(lambda _: Reply(200, REAL_PNG))))

    def one_by_one(request: Request) -> Reply | None:
        return naming(next(urls))(request)

    house.by_prompt[prompt] = one_by_one
    answer = house.post({"prompt": prompt, "n": 2})
    error = checked_error(answer)
    assert (answer.status, error["code"]) == (424, "image_url_refused")
    (image,) = error["images"]
    assert house.stored() - before == {f"images/{image['id']}"}
    with urlopen(image["permalink"]) as response:
        assert response.read() == REAL_PNG
    assert house.calls(prompt) == 2
    assert SECRET not in answer.body.decode()


def test_nothing_that_a_stranger_wrote_is_in_the_logs(house: House) -> None:
    outcome(house, naming(house.told(tables.REFUSED_URLS["http to an address"])))
    outcome(house, naming(house.put(raw(tables.CONTENTS["SVG told as PNG"].answer))))
    house.ask("GET", f"{GENERATIONS}?after={SECRET}")
    house.post({"prompt": SECRET, SECRET: 1})
    house.ask("GET", f"/v1/images/{SECRET}", [("X-Secret", SECRET)])
    logs = house.service.logs()
    assert "image_url_refused" in logs
    for secret in (SECRET, "alert(", house.told("{canary}"), UPSTREAM_KEY, house.service.key):
        assert secret not in logs


# ------------------------------------------------------------------------ what a client sends


def refused(house: House, answer: Answer, status: int, param: str | None) -> Any:
    error = checked_error(answer)
    assert (answer.status, error["param"]) == (status, param), error
    return error


@pytest.fixture
def _nothing_is_bought(house: House) -> Iterator[None]:
    before = house.bought()
    yield
    assert house.bought() == before


free = pytest.mark.usefixtures("_nothing_is_bought")


@free
@pytest.mark.parametrize(("body", "status", "param"), tables.BODIES.values(), ids=list(tables.BODIES))
def test_a_hostile_body_is_refused(house: House, body: bytes, status: int, param: str | None) -> None:
    refused(house, house.ask("POST", GENERATIONS, [QUICKLY], body), status, param)


@free
@pytest.mark.parametrize(("content_type", "body"), tables.TYPES.values(), ids=list(tables.TYPES))
def test_a_body_of_another_type_is_refused(house: House, content_type: str | None, body: bytes) -> None:
    answer = house.ask("POST", GENERATIONS, [QUICKLY], body, content_type=content_type)
    assert refused(house, answer, 415, None)["code"] == "unsupported_content_type"


@free
@pytest.mark.parametrize(("fields", "param"), tables.FIELDS.values(), ids=list(tables.FIELDS))
def test_a_hostile_field_is_refused_by_its_name(house: House, fields: dict[str, Any], param: str) -> None:
    fields = json.loads(house.told(json.dumps(tables.GOOD | fields)))
    error = refused(house, house.post(fields), 400, param)
    assert "{" not in param
    assert error["type"] == "invalid_request_error"


@free
def test_an_unknown_field_of_any_length_is_named_in_short(house: House) -> None:
    error = checked_error(house.post({**tables.GOOD, "f" * 100_000: 1}))
    assert error["param"].startswith("f" * 64)


@free
@pytest.mark.parametrize("authorization", tables.KEYS.values(), ids=list(tables.KEYS))
def test_without_a_good_key_nothing_goes(house: House, authorization: list[str]) -> None:
    told = {"other_secret": house.service.stack.keys["other"].removeprefix("ig_other_")}
    headers = [("Authorization", house.told(value, **told)) for value in authorization]
    answer = house.ask("POST", GENERATIONS, [QUICKLY, *headers], GOOD_BODY, key=None)
    assert refused(house, answer, 401, None)["code"] == "invalid_api_key"
    assert house.service.key.removeprefix("ig_local_") not in answer.body.decode()


@free
@pytest.mark.parametrize(("headers", "query"), tables.ELSEWHERE.values(), ids=list(tables.ELSEWHERE))
def test_a_key_is_looked_for_in_one_place(house: House, headers: list[tuple[str, str]], query: str) -> None:
    headers = [(name, house.told(value)) for name, value in headers]
    answer = house.ask("POST", GENERATIONS + house.told(query), [QUICKLY, *headers], GOOD_BODY, key=None)
    assert refused(house, answer, 401, None)["code"] == "invalid_api_key"


@free
@pytest.mark.parametrize("key", tables.IDEMPOTENCY_KEYS.values(), ids=list(tables.IDEMPOTENCY_KEYS))
def test_an_idempotency_key_that_is_none_is_refused(house: House, key: str) -> None:
    answer = house.ask("POST", GENERATIONS, [("Idempotency-Key", key)], GOOD_BODY)
    assert refused(house, answer, 400, "Idempotency-Key")["code"] == "invalid_value"


@pytest.mark.parametrize("headers", tables.PASSED_OVER.values(), ids=list(tables.PASSED_OVER))
def test_headers_that_are_no_business_of_ours_change_nothing(house: House, headers: list[tuple[str, str]]) -> None:
    prompt = f"otter {uuid.uuid4().hex}"
    house.by_prompt[prompt] = naming(house.put(lambda _: Reply(200, REAL_PNG)))
    headers = [("Idempotency-Key", prompt), *((name, house.told(value)) for name, value in headers)]
    answer = house.post({"prompt": prompt}, headers)
    assert answer.status == 200, answer.body
    (image,) = answer.json["data"]
    assert image["permalink"] == house.told(f"http://{{gateway}}/v1/images/{image['id']}")
    assert house.told("{canary}") not in answer.body.decode()
    assert house.calls(prompt) == 1


@free
@pytest.mark.parametrize("row", tables.PATHS.values(), ids=list(tables.PATHS))
def test_a_path_that_leads_nowhere_is_told_so(house: House, row: tables.Path) -> None:
    answer = house.ask(row.method, house.told(row.target))
    if row.code in ("image_not_found", "generation_not_found") and answer.code == "unknown_url":
        refused(house, answer, 404, None)  # what a path does not hold is no path
    else:
        assert refused(house, answer, row.status, row.param)["code"] == row.code


@free
@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/images/generations", "GET, HEAD, OPTIONS, POST"),
        ("/v1/images/generations/gen_x/cancel", "OPTIONS, POST"),
        ("/v1/images/img_x", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_a_path_does_not_have_is_answered_with_those_that_it_has(
    house: House, target: str, allowed: str
) -> None:
    answer = house.ask("PATCH", target)
    refused(house, answer, 405, None)
    assert answer.headers["allow"] == allowed


@free
@pytest.mark.parametrize("target", ["/v1", "/v1/", "/v1/nothing", "/v1/images", "/v1/images/edits/x", "/v1/a/b/c"])
def test_an_unknown_path_of_the_api_asks_for_a_key_first(house: House, target: str) -> None:
    assert house.ask("GET", target, key=None).status == 401
    assert refused(house, house.ask("GET", target), 404, None)["code"] == "unknown_url"


@free
@pytest.mark.parametrize("target", ["/", "/docs", "/openapi.json", "/health", "/v1/models", "/v1/images/generations"])
def test_head_gives_the_headers_of_get_without_its_body(house: House, target: str) -> None:
    head, get = house.ask("HEAD", target), house.ask("GET", target)
    assert (head.status, head.body) == (200, b"")
    assert get.body
    for name in ("content-type", "content-length", "access-control-allow-origin"):
        assert head.headers.get(name) == get.headers.get(name)


@free
@pytest.mark.parametrize("target", ["/v1/models", "/v1/images/generations/gen_x/result", "/v1/images/img_x", "/x/y"])
def test_a_preflight_is_answered_on_every_path_without_a_key(house: House, target: str) -> None:
    answer = house.ask("OPTIONS", target, [("Origin", "https://page.example")], key=None)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_a_slash_at_the_end_changes_nothing_and_is_not_in_a_redirect(house: House) -> None:
    prompt = f"otter {uuid.uuid4().hex}"
    house.by_prompt[prompt] = naming(house.put(lambda _: Reply(200, REAL_PNG)))
    body = json.dumps({"prompt": prompt}).encode()
    at, answer = f"{GENERATIONS}/", house.ask("POST", f"{GENERATIONS}/", [("Prefer", "wait=0")], body)
    while answer.status == 303:
        location = urljoin(at, answer.headers["location"])
        assert location.startswith(f"{GENERATIONS}/gen_")
        at = location.replace("/result", "/result/")
        answer = house.ask("GET", at)
    assert answer.status == 200, answer.body
    assert house.ask("GET", "/v1/models/").json == house.ask("GET", "/v1/models").json


@free
@pytest.mark.parametrize("target", tables.ROOTS.values(), ids=list(tables.ROOTS))
def test_whatever_leads_to_the_root_is_the_page_as_it_is(house: House, target: str) -> None:
    answer = house.ask("GET", house.told(target))
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert house.told("{canary}") not in answer.body.decode() + str(answer.headers)
    assert b'"/playground.js"' in answer.body


@free
def test_a_head_of_nothing_is_told_without_a_body(house: House) -> None:
    answer = house.ask("HEAD", "/v1/nothing")
    assert (answer.status, answer.body) == (404, b"")
    assert answer.headers["x-request-id"]


@free
@pytest.mark.parametrize("after", ["garbage", "gen_", "gen_AAAAAAAAAAAAAAAAAAAAAA", "%00", "%ff%fe", "key%23local%23x"])
def test_a_list_after_what_is_not_there_is_empty_or_refused(house: House, after: str) -> None:
    answer = house.ask("GET", f"{GENERATIONS}?after={after}")
    if answer.status == 200:
        assert (answer.json["data"], answer.json["has_more"]) == ([], False)
    else:
        refused(house, answer, 400, "after")


# Whoever stands before the functions answers these; on AWS that is not ours. They may be hung up on.
BROKEN_HTTP = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "a word": b"x\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\n\r\n",
    "a version that is none": b"GET /v1/models HTTP/x.y\r\n\r\n",
    "a header without a colon": b"GET /v1/models HTTP/1.1\r\nauthorization\r\n\r\n",
    "a header without a name": b"GET /v1/models HTTP/1.1\r\n: x\r\n\r\n",
    "a thousand headers": b"GET /v1/models HTTP/1.1\r\n" + b"X: y\r\n" * 1_000 + b"\r\n",
    "a header larger than all": b"GET /v1/models HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    "a path larger than all": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "a length that is none": b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: x\r\n\r\n{}",
    "a negative length": b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
    "two lengths": b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
    "a length larger than what comes": b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: 99\r\n\r\n{}",
    "a chunk that is none": b"POST /v1/images/generations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "chunks that do not end": b"POST /v1/images/generations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "chunks and a length": (
        b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: 6\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x"
    ),
    "nothing": b"",
}


@free
@pytest.mark.parametrize("data", BROKEN_HTTP.values(), ids=list(BROKEN_HTTP))
def test_what_is_hardly_http_reaches_nothing(house: House, data: bytes) -> None:
    answer = house.send(data, then_end=True)
    assert answer is None or 400 <= answer.status < 500
    assert house.ask("GET", "/health", key=None).status == 200


def test_a_permalink_stands_under_the_public_address_whatever_a_request_says_of_its_host(house: House) -> None:
    environment = {"PUBLIC_BASE_URL": PUBLIC_BASE_URL}
    headers = {"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    with own_api_function(house, timeout=20, environment=environment) as host:
        answer = answered(invoke(host, f"otter {uuid.uuid4().hex}", headers, domain="evil.example"))
    assert answer.status == 200
    (image,) = answer.json["data"]
    assert image["permalink"] == f"{PUBLIC_BASE_URL}/v1/images/{image['id']}"
    assert b"evil.example" not in answer.body


def test_a_later_request_s_host_does_not_change_a_permalink_that_was_given(house: House) -> None:
    prompt = f"otter {uuid.uuid4().hex}"
    house.by_prompt[prompt] = naming(house.put(lambda _: Reply(200, REAL_PNG)))
    first = house.post({"prompt": prompt}, [("Idempotency-Key", prompt)])
    again = house.post({"prompt": prompt}, [("Idempotency-Key", prompt), ("Host", "evil.example")])
    seen = house.ask("GET", f"{GENERATIONS}/{first.json['id']}", [("Host", "evil.example")])
    permalink = first.json["data"][0]["permalink"]
    assert [answer.json["data"][0]["permalink"] for answer in (again, seen)] == [permalink, permalink]
    assert house.calls(prompt) == 1


def test_a_dead_durable_link_is_answered_by_s3(house: House) -> None:
    answer = house.ask("GET", f"/v1/images/img_{'A' * 22}", key=None)
    assert (answer.status, answer.body) == (302, b"")
    assert answer.headers["x-request-id"]
    with pytest.raises(HTTPError) as dead:
        urlopen(answer.headers["location"])
    with dead.value as response:
        assert response.code in (403, 404)
        assert b"<Error>" in response.read()


# -------------------------------------------------------------------------- another client's


@pytest.fixture(scope="module")
def local_s(house: House) -> dict[str, Any]:
    """A generation of the client `local`, with one image."""
    prompt = f"otter {uuid.uuid4().hex}"
    house.by_prompt[prompt] = naming(house.put(lambda _: Reply(200, REAL_PNG)))
    answer = house.post({"prompt": prompt}, [("Idempotency-Key", prompt)])
    return {"prompt": prompt, **answer.json}


@free
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/result"),
        ("GET", "/result?hop=-1"),
        ("POST", "/result"),
        ("POST", "/cancel"),
        ("DELETE", ""),
        ("DELETE", "?caller=local"),
    ],
)
@pytest.mark.parametrize("key", ["other", None])
def test_another_clients_generation_is_out_of_reach(
    house: House, local_s: dict[str, Any], method: str, path: str, key: str | None
) -> None:
    answer = house.ask(method, f"{GENERATIONS}/{local_s['id']}{path}", key=key)
    error = refused(house, answer, 404 if key else 401, "id" if key else None)
    assert error["code"] == ("generation_not_found" if key else "invalid_api_key")
    seen = house.ask("GET", f"{GENERATIONS}/{local_s['id']}").json
    assert (seen["status"], len(seen["data"])) == ("completed", 1)
    with urlopen(seen["data"][0]["permalink"]) as response:
        assert response.read() == REAL_PNG


@free
def test_another_clients_generation_is_answered_as_one_that_nobody_has(house: House, local_s: dict[str, Any]) -> None:
    for path in ("", "/result"):
        there, not_there = (
            house.ask("GET", f"{GENERATIONS}/{each}{path}", key="other")
            for each in (local_s["id"], "gen_AAAAAAAAAAAAAAAAAAAAAA")
        )
        assert (there.status, there.body) == (not_there.status, not_there.body)


@free
def test_a_list_after_another_clients_generation_is_as_one_after_nothing(house: House, local_s: dict[str, Any]) -> None:
    there, not_there = (
        house.ask("GET", f"{GENERATIONS}?after={each}", key="other")
        for each in (local_s["id"], "gen_AAAAAAAAAAAAAAAAAAAAAA")
    )
    assert (there.status, there.body) == (not_there.status, not_there.body)
    assert local_s["id"] not in there.body.decode()


def test_another_clients_idempotency_key_attaches_to_nothing(house: House, local_s: dict[str, Any]) -> None:
    prompt = local_s["prompt"]
    before = house.calls(prompt)
    headers = [("Idempotency-Key", prompt), ("x-stainless-retry-count", "1")]
    answer = house.post({"prompt": prompt}, headers, key="other")
    assert answer.status == 200
    assert answer.json["id"] != local_s["id"]
    assert answer.json["data"][0]["id"] != local_s["data"][0]["id"]
    assert house.calls(prompt) == before + 1


HOPS = ["-1", "999999", "abc", "1e3", "16", "%D9%A1%D9%A6", "9" * 5_000, "1&hop=abc"]


def test_a_count_of_redirects_that_is_none_ends_the_wait(house: House) -> None:
    """So that nobody is sent on for ever."""
    prompt = f"otter {uuid.uuid4().hex}"
    go_on = threading.Event()

    def slow(_: Request) -> Reply:
        go_on.wait(20)
        return Reply(500)

    house.by_prompt[prompt] = slow
    with ThreadPoolExecutor(4) as pool:
        generation_id = house.post({"prompt": prompt}, [LATER]).json["id"]
        urls = [f"{GENERATIONS}/{generation_id}/result?hop={hop}" for hop in HOPS]
        try:
            answers = list(pool.map(lambda url: house.ask("GET", url), urls))
        finally:
            go_on.set()
        house.until_ended(generation_id)
    for answer in answers:
        assert (answer.status, checked_error(answer)["code"]) == (424, "generation_still_running")
    assert house.calls(prompt) == 1


# --------------------------------------------------------------------------- whatever it is

_TEXT = st.text(max_size=20) | st.sampled_from([url for url in tables.REFUSED_URLS.values() if len(url) < 200])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_FIELD_NAMES = st.sampled_from(
    ["prompt", "model", "n", "size", "quality", "style", "response_format", "user", "background", "stream"]
)
_VALUES = _JSON | st.sampled_from(["dall-e-3", "1024x1024", "hd", "vivid", "url", 1, 2])
_FIELDS = st.dictionaries(_FIELD_NAMES | _TEXT, _VALUES, max_size=4)
_BODIES = (
    st.binary(max_size=200)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | _FIELDS.map(lambda fields: json.dumps(fields).encode())
    | _FIELDS.map(lambda fields: json.dumps({**fields, "prompt": "otter"}).encode())
)
_HEADER_TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=40)
_over_http = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def is_valid(body: bytes) -> bool:
    """What the gateway makes of the body, read by the reader itself."""
    try:
        read_image_request(body.decode(errors="replace").encode(), "application/json", prompt_cap=1000)
    except ImagegenError:
        return False
    return True


@_over_http
@given(body=_BODIES)
def test_whatever_the_body_it_is_an_image_or_a_refusal_that_costs_nothing(house: House, body: bytes) -> None:
    before = house.bought()
    answer = house.ask("POST", GENERATIONS, [QUICKLY], body)
    if is_valid(body):
        assert answer.status in (200, 303)
        assert house.until_ended(answer.headers["x-generation-id"])["status"] == "completed"
        assert house.bought() > before
    else:
        checked_error(answer)
        assert house.bought() == before


@_over_http
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH"]),
    path=st.lists(_TEXT | st.sampled_from(["v1", "images", "generations", "models", "..", ".", ""]), max_size=6),
    query=st.dictionaries(st.sampled_from(["limit", "after", "status", "hop"]) | _TEXT, _TEXT.filter(bool), max_size=3),
)
def test_whatever_the_path_nothing_breaks(house: House, method: str, path: list[str], query: dict[str, str]) -> None:
    before = house.bought()
    told = "/".join(quote(part, safe="") for part in path)
    asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    answer = house.ask(method, f"/{told}?{asked}")
    assert answer.status < 500, answer.body
    assert answer.headers["x-request-id"]
    if answer.status >= 400 and method != "HEAD":
        checked_error(answer)
    assert house.bought() == before


@_over_http
@given(name=st.sampled_from(["Authorization", "Idempotency-Key", "Prefer", "Content-Type", "Host"]), value=_HEADER_TEXT)
def test_whatever_a_header_holds_nothing_breaks(house: House, name: str, value: str) -> None:
    """With a field that is none, so that nothing is bought."""
    before = house.bought()
    key, content_type = (None if name == "Authorization" else "local"), "application/json"
    answer = house.ask(
        "POST",
        GENERATIONS,
        [(name, value)],
        b'{"prompt":"otter","n":0}',
        key=key,
        content_type=None if name == "Content-Type" else content_type,
    )
    checked_error(answer)
    assert house.bought() == before


@given(st.dictionaries(st.sampled_from(["limit", "after", "status"]) | st.text(), st.text()))
@settings(deadline=None)
def test_whatever_a_query_holds_it_is_a_page_or_a_refusal(query: dict[str, str]) -> None:
    with suppress(ImagegenError):
        assert 1 <= read_page(query).limit <= 100


@given(st.dictionaries(st.sampled_from(["Idempotency-Key", "x-stainless-retry-count", "Prefer"]), st.text()))
@settings(deadline=None)
def test_whatever_headers_hold_they_are_an_attempt_or_a_refusal(headers: dict[str, str]) -> None:
    read_preference(headers)
    with suppress(ImagegenError):
        attempt = read_attempt(headers)
        assert attempt.retry is None or 0 <= attempt.retry < 1000
