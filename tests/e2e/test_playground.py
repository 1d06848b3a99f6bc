"""The playground in a real browser: what a user does and sees, by mouse, by keyboard and on a phone."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

from local.serving import Reply, Request
from tests.e2e.chromium import CHROMIUM, Page, chromium
from tests.e2e.conftest import Service, serve

HOSTILE = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
LIVE = "[data-status=queued], [data-status=in_progress]"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is there")
    with serve("source", tmp_path_factory.mktemp("playground"), {"UpstreamTimeoutSeconds": "20"}) as service:
        yield service


@pytest.fixture(scope="module")
def browser(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(service: Service, browser: Page) -> Iterator[Page]:
    """The page as a new visitor finds it. It ends without a complaint of the browser about the page's policy."""
    service.upstream.calls.clear()
    service.upstream.script.clear()
    service.upstream.download_script.clear()
    service.upstream.delay = 0
    browser.window(1100, 800)
    browser.open(f"{service.stack.url}/")
    browser.run("sessionStorage.clear()")
    browser.open(f"{service.stack.url}/?again")
    yield browser
    assert not [each for each in browser.complaints if "Content Security Policy" in each or "exception" in each]


def connect(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.click("#key-form button")
    page.until("!document.querySelector('#fields').disabled")


def generate(page: Page, prompt: str, **fields: str) -> None:
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.choose("#model" if name == "model" else f"#field-{name}", value)
    page.click("#generate")


def until_completed(page: Page) -> None:
    """What was asked for last: asking for it clears the news."""
    page.until("document.querySelector('#news').textContent.startsWith('Completed')")


def options(page: Page, field: str) -> list[str]:
    return list(page.run(f"[...document.querySelectorAll('#field-{field} option')].map((each) => each.value)"))


def slow(_: Request) -> None:
    time.sleep(3)


def test_a_visitor_enters_a_key_and_sees_images_come_one_by_one_and_finds_them_again(
    service: Service, page: Page
) -> None:
    connect(page, service.key)
    service.upstream.download_script += [lambda _: None, slow]
    generate(page, "a lighthouse", model="dall-e-3", n="2", quality="hd", style="natural")
    page.until(f"document.querySelector('{LIVE}')")
    page.until("document.querySelectorAll('article li').length === 2 && document.querySelector('article .waiting')")
    page.until("document.querySelectorAll('article img').length === 1")
    assert page.run("document.querySelector('#news').textContent") == "In progress. 1 of 2 images are there."
    until_completed(page)
    assert page.run("document.querySelector('article .elapsed').textContent").startswith("2 of 2 · ")
    assert re.fullmatch(
        r"Completed after \d+ s\. 2 of 2 images are there\.", page.run("document.querySelector('#news').textContent")
    )
    sent = [call | {"prompt": ""} for call in service.upstream.calls]
    asked = {"prompt": "", "model": "dall-e-3", "n": 1, "quality": "hd", "style": "natural", "response_format": "url"}
    assert sent == [asked, asked]

    page.click("#reload")
    page.until("document.querySelectorAll('article img').length >= 2")
    page.until("[...document.querySelectorAll('article img')].every((each) => each.naturalWidth === 1024)")
    permalink = page.run("document.querySelector('article a').href")
    assert urllib3.request("GET", permalink).headers["Content-Type"] == "image/png"


def test_the_form_has_what_the_model_takes(service: Service, page: Page) -> None:
    connect(page, service.key)
    told = service.client().models.list().data
    assert page.run("document.querySelector('#model').value") == "dall-e-3"
    for model in (each.model_dump() for each in told if each.id in ("dall-e-2", "dall-e-3", "gpt-image-2", "flux")):
        page.choose("#model", model["id"])
        parameters = model["parameters"]
        shown = page.run("[...document.querySelectorAll('#parameters [name]')].map((each) => each.name)")
        assert set(shown) == parameters.keys() - {"prompt", "response_format"}
        for name, rule in parameters.items():
            if "values" in rule and name in shown:
                assert options(page, name) == ["", *rule["values"], *(["free"] if "free" in rule else [])]
        assert page.run("document.querySelector('#prompt').maxLength") == parameters["prompt"]["max_characters"]

    page.choose("#model", "gpt-image-2")
    page.choose("#field-size", "free")
    page.fill("#free-size", "1280x720")
    generate(page, "of a free size")
    until_completed(page)
    assert service.upstream.calls[-1]["size"] == "1280x720"


def test_a_gallery_is_the_callers_own_and_goes_on(service: Service, page: Page) -> None:
    client = service.client().with_options(api_key=service.stack.keys["other"])
    with ThreadPoolExecutor(2) as together:
        for made in [together.submit(client.images.generate, prompt=f"{number}") for number in range(13)]:
            made.result()
    connect(page, service.stack.keys["other"])
    assert page.run("document.querySelectorAll('article').length") == 12
    page.click("#more")
    page.until("document.querySelectorAll('article').length === 13")
    assert page.run("document.querySelector('#more').hidden")


def test_what_is_under_way_is_cancelled_and_what_is_not_wanted_is_deleted_once_it_is_confirmed(
    service: Service, page: Page
) -> None:
    connect(page, service.key)
    service.upstream.delay = 5
    generate(page, "never mind", model="gpt-image-1")
    page.until("document.querySelector('article[data-status=in_progress]')")
    page.click("article .cancel")
    page.until("document.querySelector('article').dataset.status === 'cancelled'")
    service.upstream.delay = 0

    before = page.run("document.querySelectorAll('article').length")
    page.click("article .delete")
    page.until("document.querySelector('#confirm').open")
    page.press("Escape")
    page.until("!document.querySelector('#confirm').open")
    assert page.run("document.querySelectorAll('article').length") == before
    page.click("article .delete")
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm .danger")
    page.until(f"document.querySelectorAll('article').length === {before - 1}")
    assert page.run("document.activeElement.id") == "gallery-title"
    page.click("#reload")
    page.until("document.querySelectorAll('article').length")
    assert page.run("document.querySelectorAll('[data-status=cancelled]').length") == 0


def test_errors_are_told_where_they_are_and_never_run(service: Service, page: Page) -> None:
    page.fill("#key", "ig_local_wrong")
    page.click("#key-form button")
    page.until("document.querySelector('#error').innerText.includes('invalid_api_key')")
    connect(page, service.key)
    assert page.run("document.querySelector('#error').hidden")

    page.choose("#model", "gpt-image-2")
    page.choose("#field-size", "free")
    page.fill("#free-size", "17x17")
    generate(page, "a size that is not had")
    page.until("document.querySelector('#error').innerText.includes('invalid_value')")
    assert page.run("document.querySelector('#field-size').getAttribute('aria-invalid')") == "true"
    assert page.run("document.activeElement.id") == "field-size"

    error = {"message": HOSTILE, "type": "invalid_request_error", "param": None, "code": "some_rule"}
    service.upstream.script.append(lambda _: Reply(400, json.dumps({"error": error}).encode()))
    generate(page, "refused", model="dall-e-3")
    page.until("document.querySelector('article').dataset.status === 'failed'")
    assert HOSTILE in page.run("document.querySelector('article .failure').textContent")

    generate(page, HOSTILE, model="dall-e-3")  # the upstream's revised prompt repeats it
    until_completed(page)
    assert HOSTILE in page.run("document.querySelector('article .revised').textContent")
    assert page.run("window.hacked === undefined")
    assert page.run("document.querySelectorAll('article script, article img[src=x]').length") == 0


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_bought_twice(service: Service, page: Page) -> None:
    connect(page, service.key)
    generations = {"urlPattern": "*/v1/images/generations", "requestStage": "Response"}
    page.command("Fetch.enable", patterns=[generations])
    generate(page, "lost on its way", model="dall-e-3")
    lost = page.event("Fetch.requestPaused")
    page.command("Fetch.failRequest", requestId=lost["requestId"], errorReason="ConnectionReset")
    page.command("Fetch.disable")
    until_completed(page)
    assert lost["request"]["headers"]["Idempotency-Key"].startswith("playground-")
    assert [call["prompt"] for call in service.upstream.calls] == ["lost on its way"]


@pytest.mark.parametrize(
    ("number", "instead"),
    [(1, "return new Response('{', {status: 202})"), (2, "throw new TypeError('lost')")],
    ids=["half of the answer", "the first look"],
)
def test_what_is_lost_on_its_way_hides_nothing_that_was_begun(
    service: Service, page: Page, number: int, instead: str
) -> None:
    connect(page, service.key)
    page.run(f"""(() => {{
      const real = window.fetch;
      let asked = 0;
      window.fetch = async (...request) => {{
        asked += 1;
        const answer = await real(...request);
        if (asked !== {number}) return answer;
        window.fetch = real;
        {instead};
      }};
    }})()""")
    generate(page, f"lost {number}", model="dall-e-3")
    until_completed(page)
    assert f"lost {number}" in page.run("document.querySelector('article').textContent")
    assert [call["prompt"] for call in service.upstream.calls] == [f"lost {number}"]


def test_what_is_copied_runs_and_holds_no_key(service: Service, page: Page) -> None:
    connect(page, service.key)
    page.fill("#prompt", 'it\'s "quoted" \\ and\non two lines')
    page.choose("#model", "gpt-image-2")
    prompt = page.run("document.querySelector('#prompt').value")
    environment = {**os.environ, "KEY": service.key}

    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.click("#copy-curl")
    page.until("document.querySelector('#news').textContent.startsWith('The curl command')")
    curl = page.run("navigator.clipboard.readText()")
    assert service.key not in curl
    if shutil.which("curl"):
        done = subprocess.run(["sh", "-c", curl], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["data"][0]["permalink"]
        assert service.upstream.calls[-1]["prompt"] == prompt

    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error('as on a page without https'))")
    page.click("#copy-python")
    page.until("document.querySelector('#by-hand').open")
    python = page.run("document.querySelector('#by-hand-text').value")
    page.press("Escape")
    assert service.key not in python
    done = subprocess.run([sys.executable, "-c", python], env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1/images/img_\S+\n", done.stdout)
    assert service.upstream.calls[-1]["prompt"] == prompt


def test_a_key_is_kept_only_where_its_owner_says_so_and_never_in_an_address(service: Service, page: Page) -> None:
    connect(page, service.key)
    stores = "JSON.stringify([{...localStorage}, {...sessionStorage}, location.href, document.body.outerHTML])"
    assert service.key not in page.run(stores)
    assert page.run("document.querySelector('#key').value") == ""
    page.open(f"{service.stack.url}/")
    assert page.run("document.querySelector('#fields').disabled")

    page.click("#keep-key")
    connect(page, service.key)
    assert service.key not in page.run("JSON.stringify({...localStorage})")
    page.open(f"{service.stack.url}/?later")
    page.until("!document.querySelector('#fields').disabled")
    page.click("#forget")
    assert service.key not in page.run(stores)
    assert page.run("document.querySelectorAll('article').length") == 0


def test_it_works_by_keyboard_alone(service: Service, page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.press("Tab")
            if page.run(f"document.activeElement.matches({json.dumps(selector)})"):
                outline = page.run("getComputedStyle(document.activeElement).outlineWidth")
                assert outline == "3px", selector  # where one is can be seen
                return
        raise AssertionError(selector)

    tab_to("#key")
    page.write(service.key)
    page.press("Enter")
    page.until("document.activeElement.id === 'prompt'")
    page.write("by keyboard")
    tab_to("#generate")
    page.press("Enter")
    until_completed(page)
    tab_to("article .delete")
    page.press("Space")
    page.until("document.querySelector('#confirm').open")
    assert page.run("document.activeElement.value") == "keep"
    page.press("Tab", shift=True)
    page.press("Enter")
    page.until("document.querySelector('#news').textContent === 'Deleted.'")


def test_a_screen_reader_has_a_name_for_all_that_can_be_used(service: Service, page: Page) -> None:
    connect(page, service.key)
    generate(page, "read aloud", model="dall-e-3")
    until_completed(page)
    page.command("Accessibility.enable")
    nodes = [node for node in page.command("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = {"button", "textbox", "combobox", "spinbutton", "link", "image", "checkbox"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node["role"]["value"] in roles]
    assert roles - {"checkbox"} <= {role for role, _ in named}
    assert all(name.strip() for _, name in named)
    title = page.run("document.querySelector('article h3').textContent")
    of_it = [name for role, name in named if role in ("button", "link", "image") and title in name]
    assert len(set(of_it)) == 3  # to delete it, to copy its link, and its image, which is the link's name too
    assert {"status", "main", "banner"} <= {node["role"]["value"] for node in nodes}


CONTRAST = """(() => {
  const channels = (color) => color.match(/[0-9.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).map((c) => c / 255)
      .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    const {backgroundColor} = getComputedStyle(element);
    return channels(backgroundColor)[3] === 0 ? ground(element.parentElement) : backgroundColor;
  };
  return ["h1", ".hint", "label", ".badge", ".elapsed", ".primary", ".quiet", "article .delete", "#prompt"]
    .map((selector) => {
      const element = document.querySelector(selector);
      const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
      return [selector, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    });
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_and_touched_on_a_phone_by_day_and_by_night(service: Service, page: Page, dark: bool) -> None:
    connect(page, service.key)
    generate(page, "on a phone", model="gpt-image-2")
    until_completed(page)
    page.window(360, 740, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == 360
    assert [each for each in page.run(CONTRAST) if each[1] < 4.5] == []  # WCAG AA
    heights: list[Any] = page.run(
        "[...document.querySelectorAll('button, input, select')].map((each) => each.getBoundingClientRect().height)"
    )
    assert all(height == 0 or height >= 24 for height in heights)
    is_dark = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
    assert is_dark is dark
