"""HTTP clients receive slow and large images with their own time-outs, redirects and retries.

The short forms hold the upstream for two short waits; `make soak` has the minutes. All clients of a form run at once.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from shlex import quote
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from local.serving import Reply, Request
from tests.fakes.provider import png
from tests.support.client import Client
from tests.support.programs import bash, by_node, needs, needs_clients
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, answering, running_world

pytestmark = pytest.mark.thorough

LONGEST_SECONDS = 900.0
LARGE = [png(letter * 7_500_000) for letter in "ab"]  # 20 MB as base64


def shell(text: str, *tools: str) -> Callable[[Mapping[str, str]], str]:
    def output(environment: Mapping[str, str]) -> str:
        needs("bash", *tools)
        if ".venv-clients/" in text:
            needs_clients()
        return bash(text, environment, seconds=LONGEST_SECONDS)

    return output


def python(text: str) -> Callable[[Mapping[str, str]], str]:
    head = """
import asyncio, json, os
base_url, key, body = os.environ["BASE_URL"], os.environ["KEY"], json.loads(os.environ["BODY"])
url, headers = base_url + "/images/generations", {"Authorization": "Bearer " + key}
"""
    return shell(f".venv-clients/bin/python -c {quote(head + text)}")


# Each program sends BODY and prints what it receives. A comment names its time-out, its redirects and its retries if it
# has any, and where they are defined: in a file of the version that is pinned, or in a document.
CLIENTS: Mapping[str, Callable[[Mapping[str, str]], str]] = {
    # 300 s in all, 10 redirects (aiohttp/client.py)
    "aiohttp": python("""
import aiohttp
async def main():
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        print(await response.text())
asyncio.run(main())
"""),
    # no time-out, 50 redirects (curl's manual, --max-time and --max-redirs)
    "curl": shell(
        'curl --silent --location "$BASE_URL/images/generations" --data "$BODY"'
        ' --header "Authorization: Bearer $KEY" --header "Content-Type: application/json"',
        "curl",
    ),
    # no time-out, 10 redirects (go/src/net/http/client.go)
    "Go": shell(".venv-clients/bin/go-client"),
    # no time-out, no redirects (httpie/cli/definition.py)
    "HTTPie": shell(
        '.venv-clients/bin/http --ignore-stdin --body --raw "$BODY" "$BASE_URL/images/generations"'
        ' "Authorization: Bearer $KEY"'
    ),
    # 5 s for each read unless the program sets it, no redirects (httpx/_config.py, httpx/_api.py)
    "httpx": python("""
import httpx
print(httpx.post(url, json=body, headers=headers, timeout=600).text)
"""),
    # no time-out, no redirects (documentation of java.net.http.HttpClient.Builder and HttpRequest.Builder)
    "Java": shell("java tests/clients/Client.java", "java", "javac"),
    # 600 s and 2 retries (openai/client.js), 20 redirects (WHATWG's Fetch, "HTTP-redirect fetch"), 300 s for the
    # headers of each answer (undici's documentation of Client, headersTimeout)
    "openai, Node": lambda environment: by_node(
        """
import OpenAI from "openai";
const { BASE_URL, KEY, BODY } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY });
console.log(JSON.stringify(await client.images.generate(JSON.parse(BODY))));
""",
        environment,
        LONGEST_SECONDS,
    ),
    # 600 s for each read and 2 retries (openai/_constants.py), 20 redirects (httpx2/_config.py)
    "openai, Python": python("""
from openai import OpenAI
print(OpenAI(base_url=base_url, api_key=key).images.generate(**body).model_dump_json())
"""),
    # 600 s for each read, no redirects (pydantic_ai/_http.py), 2 retries (openai/_constants.py)
    "pydantic-ai": python("""
from pydantic_ai.images import ImageGenerator
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.providers.openai import OpenAIProvider
model = OpenAIImageGenerationModel(body["model"], provider=OpenAIProvider(base_url=base_url, api_key=key))
result = ImageGenerator(model).generate_sync(body["prompt"], settings={"openai_n": body["n"]})
print(json.dumps({"data": [{"b64_json": image.content.base64} for image in result.images]}))
"""),
}
OPENAI = ("openai, Python", "openai, Node")
# The megabytes of all clients cost ten seconds of both cores.
LARGE_CASES = [pytest.param(name, marks=() if name == "Java" else pytest.mark.soak) for name in CLIENTS]
REDIRECTED_CASES = [("streaming", name) for name in ("aiohttp", "curl", "Go", *OPENAI)]
REDIRECTED_CASES += [("buffering", name) for name in ("Go", "openai, Python")]
SLOW_CASES = [*((100, name) for name in CLIENTS), *((500, name) for name in OPENAI)]


@dataclass(frozen=True)
class Received:
    whole: bool  # exactly the images that the upstream made
    calls: int
    redirects: int


def received(
    world: World, name: str, images: list[bytes], hold: Callable[[Client], object] = lambda _: None
) -> Received:
    """What a client receives from an upstream that answers when `hold` returns."""
    caller, answer = world.caller(), answering(*images)

    def held(request: Request) -> Reply | None:
        hold(caller)
        return answer(request)

    prompt = world.will(uuid4().hex, held)
    body = json.dumps({"model": "gpt-image-1", "prompt": prompt, "n": len(images)})
    text = CLIENTS[name]({"BASE_URL": caller.base_url, "KEY": caller.key, "BODY": body})
    (generation,) = caller.newest()
    result = f"/v1/images/generations/{generation['id']}/result"
    return Received(
        whole=[b64decode(image["b64_json"]) for image in json.loads(text)["data"]] == images,
        calls=len(world.calls(prompt)),
        redirects=[path for _, path, _ in world.answers].count(result),
    )


@contextmanager
def at_once(
    request: pytest.FixtureRequest, receive: Callable[[Any], Received]
) -> Iterator[Mapping[Any, Future[Received]]]:
    """All cases of the selected tests of a fixture, begun at its first use."""
    tests: list[Any] = [
        item for item in request.session.items if request.fixturename in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(len(tests)) as together:
        yield {case: together.submit(receive, case) for case in (test.callspec.params["case"] for test in tests)}


@pytest.fixture(scope="module")
def patient_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With the template's own parameters."""
    with running_world(tmp_path_factory.mktemp("patient"), {}, most_processes=2 * len(CLIENTS)) as world:
        yield world


@pytest.fixture(scope="module")
def buffering_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """As `STREAMING=off` deploys it, with short waits."""
    with running_world(tmp_path_factory.mktemp("buffering"), PARAMETERS, streaming=False) as world:
        yield world


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest, patient_world: World) -> Iterator[Mapping[str, Future[Received]]]:
    with at_once(request, lambda name: received(patient_world, name, LARGE)) as begun:
        yield begun


@pytest.mark.parametrize("case", LARGE_CASES)
def test_a_client_receives_20_mb_of_base64(large: Mapping[str, Future[Received]], case: str) -> None:
    assert large[case].result() == Received(whole=True, calls=1, redirects=0)


@pytest.fixture(scope="module")
def redirected(
    request: pytest.FixtureRequest, world: World, buffering_world: World
) -> Iterator[Mapping[tuple[str, str], Future[Received]]]:
    worlds = {"streaming": world, "buffering": buffering_world}

    def receive(case: tuple[str, str]) -> Received:
        mode, name = case

        def two_waits(caller: Client) -> None:
            (generation,) = caller.newest()
            second = ("GET", f"/v1/images/generations/{generation['id']}/result", 303)
            until(lambda: second in worlds[mode].answers, what=f"the end of the second wait of {name}")

        return received(worlds[mode], name, [png(name)], two_waits)

    with at_once(request, receive) as begun:
        yield begun


@pytest.mark.parametrize("case", REDIRECTED_CASES, ids="-".join)
def test_a_client_that_follows_redirects_waits_on(
    redirected: Mapping[tuple[str, str], Future[Received]], case: tuple[str, str]
) -> None:
    got = redirected[case].result()
    assert (got.whole, got.calls) == (True, 1)


@pytest.fixture(scope="module")
def slow(request: pytest.FixtureRequest, patient_world: World) -> Iterator[Mapping[tuple[int, str], Future[Received]]]:
    def receive(case: tuple[int, str]) -> Received:
        seconds, name = case
        return received(patient_world, name, [png(name)], lambda _: Event().wait(seconds))

    with at_once(request, receive) as begun:
        yield begun


@pytest.mark.soak
@pytest.mark.parametrize("case", SLOW_CASES, ids=str)
def test_a_client_waits_for_minutes(slow: Mapping[tuple[int, str], Future[Received]], case: tuple[int, str]) -> None:
    redirects = {100: 0, 500: 2}[case[0]]
    assert slow[case].result() == Received(whole=True, calls=1, redirects=redirects)
