"""A page of another origin, in a real browser: preflights, redirects, own headers, durable links and errors."""

import json
from typing import Any
from uuid import uuid4

from local.serving import Reply, serving
from tests.fakes.provider import png
from tests.support.chromium import Browser
from tests.support.waiting import until
from tests.support.world import World, answering

PNG = "137,80,78,71,13,10,26,10"

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


def test_a_page_of_another_origin_makes_reads_and_deletes_images(world: World, browser: Browser) -> None:
    caller, slow = world.caller(), f"slow {uuid4()}"
    gate = world.hold(slow)
    large = world.will(f"large {uuid4()}", answering(png("x" * 5_000_000)))
    arguments = ", ".join(map(json.dumps, (caller.base_url, caller.key, slow, large)))
    with (
        serving(lambda _: Reply(200, b"<!doctype html><title>page</title>", {"Content-Type": "text/html"})) as port,
        browser.page() as page,
    ):
        page.open(f"http://127.0.0.1:{port}/")
        page.run(SCENARIO + f"void (window.outcome = scenario({arguments}))")
        until(lambda: [url for url in page.asked if url.endswith("/result")], what="a redirect")
        gate.open()
        seen: dict[str, Any] = page.run("window.outcome")

    # Through a preflight and redirects.
    assert (seen["made"]["status"], seen["made"]["redirected"]) == (200, True)
    assert {"x-request-id", "x-generation-id"} <= seen["made"]["headers"].keys()
    assert (seen["signed"], seen["durable"], seen["width"]) == (PNG, PNG, 1024)
    # A streamed answer, larger than a buffered one may be.
    status, redirected, length = seen["heavy"]
    assert (status, redirected) == (200, False)
    assert length > 6 * 1024 * 1024
    # The second error is the gateway's own.
    for name, expected, code in (("badField", 400, "invalid_type"), ("badKey", 401, "invalid_api_key")):
        assert (seen[name]["status"], seen[name]["body"]["error"]["code"]) == (expected, code)
        assert seen[name]["headers"]["x-request-id"]
    assert (seen["listed"], seen["deleted"]) == (200, 200)
