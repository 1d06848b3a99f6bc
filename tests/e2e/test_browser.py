"""A page of another origin, in a real browser: preflights, redirects, own headers, durable links and errors."""

import json
from base64 import b64encode
from typing import Any
from uuid import uuid4

import pytest

from local.serving import Reply, serving
from tests.fakes.provider import png
from tests.support.chromium import Browser
from tests.support.waiting import until
from tests.support.world import World

PNG = "137,80,78,71,13,10,26,10"
LARGE = {"created": 1, "data": [{"b64_json": b64encode(png("x" * 5_000_000)).decode()}]}

# Runs in the page.
SCENARIO = """
async function scenario(baseUrl, key, slow, large) {
  const headers = {
    "Authorization": `Bearer ${key}`, "Content-Type": "application/json",
    "Idempotency-Key": "from a page", "X-Stainless-Retry-Count": "0",
  };
  const ask = (body, more = {}) => fetch(
    `${baseUrl}/images/generations`, {method: "POST", headers: {...headers, ...more}, body: JSON.stringify(body)});
  const answer = async (response) => ({
    status: response.status, redirected: response.redirected,
    headers: Object.fromEntries(response.headers.entries()), body: await response.json()});
  const made = await answer(await ask({prompt: slow, model: "gpt-image-1", response_format: "url"}));
  const image = made.body.data[0];
  const bytes = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer()).slice(0, 8).join();
  const element = (url) => new Promise((resolve) => {
    const img = new Image();
    img.onload = () => resolve(img.naturalWidth);
    img.onerror = () => resolve(0);
    img.src = url;
  });
  const heavy = await ask({prompt: large, model: "gpt-image-1"}, {"Idempotency-Key": "large"});
  return {
    made,
    signed: await bytes(image.url),
    durable: await bytes(image.permalink),
    width: await element(image.permalink),
    heavy: [heavy.status, heavy.redirected, (await heavy.json()).data[0].b64_json.length],
    badField: await answer(await ask({prompt: 7}, {"Idempotency-Key": "another"})),
    badKey: await answer(await ask({prompt: "x"}, {"Authorization": "Bearer nonsense"})),
    listed: (await answer(await fetch(`${baseUrl}/images/generations?limit=1`, {headers}))).status,
    deleted: (await answer(await fetch(
      `${baseUrl}/images/generations/${made.body.id}`, {method: "DELETE", headers}))).status,
  };
}
"""


@pytest.fixture(scope="module")
def seen(world: World, browser: Browser) -> dict[str, Any]:
    """What the scenario gives when a page of another origin runs it."""
    caller, slow = world.caller(), f"slow {uuid4()}"
    gate = world.hold(slow)
    large = world.will(f"large {uuid4()}", lambda _: Reply(200, json.dumps(LARGE).encode()))
    arguments = ", ".join(map(json.dumps, (caller.base_url, caller.key, slow, large)))
    with (
        serving(lambda _: Reply(200, b"<!doctype html><title>page</title>", {"Content-Type": "text/html"})) as port,
        browser.page() as page,
    ):
        page.open(f"http://127.0.0.1:{port}/")
        page.run(SCENARIO + f"void (window.outcome = scenario({arguments}))")
        until(lambda: [url for url in page.asked if url.endswith("/result")], what="a redirect")
        gate.open()
        outcome: dict[str, Any] = page.run("window.outcome")
        return outcome


def test_a_page_gets_its_image_through_preflight_and_redirects(seen: dict[str, Any]) -> None:
    assert (seen["made"]["status"], seen["made"]["redirected"]) == (200, True)
    assert seen["signed"] == PNG
    assert {"x-request-id", "x-generation-id"} <= seen["made"]["headers"].keys()


def test_a_page_reads_the_bytes_behind_a_durable_link_and_shows_it(seen: dict[str, Any]) -> None:
    assert (seen["durable"], seen["width"]) == (PNG, 1024)


def test_a_page_follows_a_large_answer_into_the_bucket(seen: dict[str, Any]) -> None:
    status, redirected, length = seen["heavy"]
    assert (status, redirected) == (200, True)
    assert length > 6 * 1024 * 1024


@pytest.mark.parametrize(
    ("what", "status", "code"), [("badField", 400, "invalid_type"), ("badKey", 401, "invalid_api_key")]
)
def test_a_page_reads_errors_also_the_gateways_own(seen: dict[str, Any], what: str, status: int, code: str) -> None:
    assert (seen[what]["status"], seen[what]["body"]["error"]["code"]) == (status, code)
    assert seen[what]["headers"]["x-request-id"]


def test_a_page_lists_and_deletes(seen: dict[str, Any]) -> None:
    assert (seen["listed"], seen["deleted"]) == (200, 200)
