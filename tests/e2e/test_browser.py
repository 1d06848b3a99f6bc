"""A page of another origin, in a real browser: preflights, redirects, our headers, durable links and errors."""

import json
import queue
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.serving import Reply, Request, serving
from tests.e2e.conftest import Service, serve
from tests.fakes.provider import png

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PNG = "137,80,78,71,13,10,26,10"
LARGE = png("x" * 5_000_000)

# Runs in the page; what it returns comes back to the test.
SCENARIO = """
async function scenario(baseUrl, key) {
  const headers = {
    "Authorization": `Bearer ${key}`, "Content-Type": "application/json",
    "Idempotency-Key": "from a page", "X-Stainless-Retry-Count": "0",
  };
  const ask = (body, more = {}) => fetch(
    `${baseUrl}/images/generations`, {method: "POST", headers: {...headers, ...more}, body: JSON.stringify(body)});
  const told = (response) => Object.fromEntries(response.headers.entries());
  const answer = async (response) => ({
    status: response.status, redirected: response.redirected, headers: told(response), body: await response.json()});
  const made = await answer(await ask({prompt: "seen by a page", model: "gpt-image-1", response_format: "url"}));
  const image = made.body.data[0];
  const bytes = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer()).slice(0, 8).join();
  const element = (url) => new Promise((resolve) => {
    const img = new Image();
    img.onload = () => resolve(img.naturalWidth);
    img.onerror = () => resolve(0);
    img.src = url;
  });
  const large = await fetch(`${baseUrl}/images/generations`, {
    method: "POST", headers: {...headers, "Idempotency-Key": "large"},
    body: JSON.stringify({prompt: "large", model: "gpt-image-1"})});
  return {
    made,
    signed: await bytes(image.url),
    durable: await bytes(image.permalink),
    width: await element(image.permalink),
    large: [large.status, large.redirected, (await large.json()).data[0].b64_json.length],
    badField: await answer(await ask({prompt: 7}, {"Idempotency-Key": "another"})),
    badKey: await answer(await ask({prompt: "x"}, {"Authorization": "Bearer nonsense"})),
    unknown: await fetch(`${baseUrl}/nowhere`).then(answer, () => "unreadable"),
    list: (await answer(await fetch(`${baseUrl}/images/generations?limit=1`, {headers}))).status,
    deleted: (await answer(await fetch(
      `${baseUrl}/images/generations/${made.body.id}`, {method: "DELETE", headers}))).status,
  };
}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is there")
    with serve("source", tmp_path_factory.mktemp("browser"), {"WaitSeconds": "1"}) as service:
        service.upstream.script += [slow, large]
        yield service


def slow(_: Request) -> None:
    time.sleep(2.5)  # so that the page is redirected


def large(_: Request) -> Reply:
    return Reply(200, json.dumps({"created": 1, "data": [{"b64_json": b64encode(LARGE).decode()}]}).encode())


def in_a_page(service: Service, folder: Path) -> dict[str, Any]:
    """What the scenario gives when a page of another origin runs it."""
    reports: queue.Queue[str] = queue.Queue()
    arguments = f"{json.dumps(service.base_url)}, {json.dumps(service.key)}"
    page = f"""<!doctype html><title>page</title><script>{SCENARIO}
      scenario({arguments}).catch((error) => ({{error: String(error)}}))
        .then((result) => fetch("/report", {{method: "POST", body: JSON.stringify(result)}}));
    </script>"""

    def respond(request: Request) -> Reply:
        if request.method == "POST":
            reports.put(request.body.decode())
        return Reply(200, page.encode(), {"Content-Type": "text/html"})

    with serving(respond) as port:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--no-first-run"]
        browser = subprocess.Popen(
            [str(CHROMIUM), *flags, "--remote-debugging-port=0", f"http://127.0.0.1:{port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return dict(json.loads(reports.get(timeout=60)))
        finally:
            browser.kill()
            browser.wait()


@pytest.fixture(scope="module")
def seen(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    result = in_a_page(service, tmp_path_factory.mktemp("chromium"))
    assert "error" not in result, result
    return result


def test_a_page_gets_its_image_through_preflight_and_redirects(seen: dict[str, Any]) -> None:
    made = seen["made"]
    assert (made["status"], made["redirected"]) == (200, True)
    assert seen["signed"] == PNG


def test_a_page_reads_the_bytes_behind_a_durable_link_and_shows_it(seen: dict[str, Any]) -> None:
    assert seen["durable"] == PNG
    assert seen["width"] == 1024


def test_a_page_follows_a_large_answer_into_the_bucket(seen: dict[str, Any]) -> None:
    status, redirected, length = seen["large"]
    assert (status, redirected) == (200, True)
    assert length > 6 * 1024 * 1024


def test_a_page_reads_our_headers(seen: dict[str, Any]) -> None:
    assert {"x-request-id", "x-generation-id"} <= seen["made"]["headers"].keys()


@pytest.mark.parametrize(
    ("what", "status", "code"), [("badField", 400, "invalid_type"), ("badKey", 401, "invalid_api_key")]
)
def test_a_page_reads_errors_also_the_gateways_own(seen: dict[str, Any], what: str, status: int, code: str) -> None:
    assert (seen[what]["status"], seen[what]["body"]["error"]["code"]) == (status, code)
    assert seen[what]["headers"]["x-request-id"]


def test_a_page_lists_and_deletes(seen: dict[str, Any]) -> None:
    assert (seen["list"], seen["deleted"]) == (200, 200)
