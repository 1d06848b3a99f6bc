"""The playground in a real browser, by mouse, by keyboard and on a phone."""

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest

from local.serving import Reply
from tests.support.chromium import Page
from tests.support.client import SMALL, Client, fetched
from tests.support.pictures import picture
from tests.support.world import World

pytestmark = pytest.mark.thorough

HOSTILE = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
LIVE = "[data-status=queued], [data-status=in_progress]"
CLIPBOARD = ["clipboardReadWrite", "clipboardSanitizedWrite"]


@pytest.fixture
def page(world: World, page: Page) -> Page:
    page.open(f"{world.stack.url}/")
    return page


def connect(page: Page, client: Client) -> None:
    page.fill("#key", client.key)
    page.click("#key-form button")
    page.until("!$('#fields').disabled")


@pytest.fixture
def user(caller: Client, page: Page) -> Page:
    """The page of a user who has entered the key of `caller`."""
    connect(page, caller)
    return page


def generate(page: Page, prompt: str, **fields: str) -> None:
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.choose("#model" if name == "model" else f"#field-{name}", value)
    page.click("#generate")


def until_completed(page: Page) -> None:
    """Waits for the latest request. A request clears the news."""
    page.until("$('#news').textContent.startsWith('Completed')")


def printed(caller: Client, *command: str) -> str:
    """The output of a copied program, which reads the key from its environment."""
    assert caller.key not in repr(command)
    environment = {**os.environ, "KEY": caller.key}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def new(prompt: str) -> str:
    """A prompt that no other test has."""
    return f"{prompt} {uuid4().hex[:8]}"


def test_images_appear_one_by_one_and_are_there_after_a_reload(world: World, user: Page) -> None:
    prompt = new("a lighthouse")
    world.upstream.downloads_by_prompt[prompt].append(lambda _: None)
    gate = world.hold(prompt, download=True)
    generate(user, prompt, model="dall-e-3", n="2", quality="hd", style="natural")
    user.until(f"$('{LIVE}')")
    user.until("$$('article li').length === 2 && $('article .waiting')")
    user.until("$$('article img').length === 1")
    assert user.run("$('#news').textContent") == "In progress. 1 of 2 images are ready."
    gate.open()
    until_completed(user)
    assert user.run("$('article .elapsed').textContent").startswith("2 of 2 · ")
    assert re.fullmatch(r"Completed after \d+ s\. 2 of 2 images are ready\.", user.run("$('#news').textContent"))
    asked = {"model": "dall-e-3", "n": 1, "quality": "hd", "style": "natural", "response_format": "url"}
    assert world.calls(prompt) == [{"prompt": prompt, **asked}] * 2

    user.click("#reload")
    user.until("$$('article img').length >= 2")
    user.until("$$('article img').every((each) => each.naturalWidth === 1024)")
    assert fetched(user.run("$('article a').href")).headers["content-type"] == "image/png"


def test_a_task_shows_its_progress_and_then_its_grid(world: World, caller: Client, user: Page) -> None:
    def halfway(reply: Reply) -> Reply:
        shown = {**json.loads(reply.body), "status": "IN_PROGRESS", "progress": "50%"}
        return Reply(200, json.dumps(shown).encode())

    prompt = new("a fox")
    world.upstream.polls_by_prompt[prompt].append(world.upstream.changed(halfway))
    generate(user, prompt, model="mj_imagine", style="raw", aspect_ratio="3:2")
    user.until("$('article .elapsed')?.textContent.endsWith(' · 50 %')")
    assert [generation["progress"] for generation in caller.newest()] == [50]
    until_completed(user)
    assert [generation["progress"] for generation in caller.newest()] == [100]
    assert "%" not in user.run("$('article .elapsed').textContent")
    user.until("$$('article img').some((each) => each.naturalWidth > each.naturalHeight)")


def test_the_form_has_the_parameters_of_the_model(world: World, caller: Client, user: Page) -> None:
    assert user.run("$('#model').value") == "dall-e-3"
    for model in caller.get("/models").json["data"]:
        if model["id"] not in ("dall-e-2", "dall-e-3", "gpt-image-2", "flux", "ideogram-v3"):
            continue
        user.choose("#model", model["id"])
        own = model["parameters"].items()
        parameters = {name: rule for name, rule in own if "generate" in rule.get("operations", ("generate",))}
        shown = user.run("$$('#parameters [name]').map((each) => each.name)")
        assert set(shown) == parameters.keys() - {"prompt", "response_format"}
        for name, rule in parameters.items():
            if "values" in rule and name in shown:
                options = user.run(f"$$('#field-{name} option').map((each) => each.value)")
                assert options == ["", *rule["values"], *(["free"] if "free" in rule else [])]
        assert user.run("$('#prompt').maxLength") == parameters["prompt"]["max_characters"]

    user.choose("#model", "gpt-image-2")
    user.choose("#field-size", "free")
    user.fill("#free-size", "1280x720")
    prompt = new("of a free size")
    generate(user, prompt)
    until_completed(user)
    assert [call["size"] for call in world.calls(prompt)] == ["1280x720"]


def test_the_form_and_its_program_send_text_numbers_and_json(world: World, caller: Client, user: Page) -> None:
    user.choose("#model", "ideogram-v3")
    user.choose("#field-aspect_ratio", "2x3")
    fields = {
        "negative_prompt": "text",
        "seed": "7",
        "style_codes": '["0A1b2C3d"]',
        "color_palette": '{"name": "EMBER"}',
    }
    for name, value in fields.items():
        user.fill(f"#field-{name}", value)
    prompt = new("a poster")
    generate(user, prompt)
    until_completed(user)
    (call,) = world.calls(prompt)
    sent = fields | {"aspect_ratio": "2x3", "style_codes": ["0A1b2C3d"], "color_palette": '{"name":"EMBER"}'}
    assert call.items() >= sent.items()
    user.run("navigator.clipboard.writeText = () => Promise.reject(new Error('none'))")
    user.click("#copy-python")
    user.until("$('#by-hand').open")
    python = user.run("$('#by-hand-text').value")
    user.press("Escape")
    assert printed(caller, sys.executable, "-c", python)
    assert [each.items() >= sent.items() for each in world.calls(prompt)] == [True, True]

    user.fill("#field-style_codes", "no JSON")
    generate(user, prompt)
    user.until("document.body.innerText.includes(\"Invalid 'style_codes'\")")
    assert len(world.calls(prompt)) == 2


def test_the_gallery_shows_the_callers_own_generations_page_by_page(caller: Client, page: Page) -> None:
    for _ in range(13):
        caller.cancel(caller.begin(**SMALL))
    connect(page, caller)
    assert page.run("$$('article').length") == 12
    page.click("#more")
    page.until("$$('article').length === 13")
    assert page.run("$('#more').hidden")


def test_the_gallery_shows_the_texts_of_a_description(caller: Client, page: Page) -> None:
    described = caller.follow(caller.form("/images/descriptions", ("model", "mj_describe"), ("image", picture())))
    connect(page, caller)
    page.until("$$('article .images li').length === 4")
    assert page.run("$$('article .images li').map((item) => item.textContent)") == [
        each["text"] for each in described.json["data"]
    ]
    assert page.run("$('article .elapsed').textContent").startswith("4 texts")


def test_a_user_cancels_a_generation_and_deletes_it_after_a_confirmation(
    world: World, caller: Client, user: Page
) -> None:
    prompt = new("never mind")
    gate = world.hold(prompt)
    generate(user, prompt, model="gpt-image-1")
    user.until("$('article[data-status=in_progress]')")
    user.click("article .cancel")
    user.until("$('article').dataset.status === 'cancelled'")
    gate.open()

    user.click("article .delete")
    user.until("$('#confirm').open")
    user.press("Escape")
    user.until("!$('#confirm').open && $$('article').length === 1")
    user.click("article .delete")
    # The second click comes before the event that the dialog was closed.
    user.run("$('#confirm').close() || $('article .delete').click()")
    user.click("#confirm .danger")
    user.until("$$('article').length === 0")
    assert user.run("document.activeElement.id") == "gallery-title"
    assert caller.newest() == []


def test_errors_are_shown_at_their_place_as_text(world: World, caller: Client, page: Page) -> None:
    page.fill("#key", "ig_local_wrong")
    page.click("#key-form button")
    page.until("$('#error').innerText.includes('invalid_api_key')")
    connect(page, caller)
    assert page.run("$('#error').hidden")

    page.choose("#model", "gpt-image-2")
    page.choose("#field-size", "free")
    page.fill("#free-size", "17x17")
    generate(page, "a size that is not had")
    page.until("$('#error').innerText.includes('invalid_value')")
    assert page.run("$('#field-size').getAttribute('aria-invalid')") == "true"
    assert page.run("document.activeElement.id") == "field-size"

    error = {"message": HOSTILE, "type": "invalid_request_error", "param": None, "code": "some_rule"}
    refused = world.will(new("refused"), lambda _: Reply(400, json.dumps({"error": error}).encode()))
    generate(page, refused, model="dall-e-3")
    page.until("$('article').dataset.status === 'failed'")
    assert HOSTILE in page.run("$('article .failure').textContent")

    generate(page, HOSTILE, model="dall-e-3")  # the upstream's revised prompt repeats it
    until_completed(page)
    assert HOSTILE in page.run("$('article .revised').textContent")
    assert page.run("window.hacked === undefined")
    assert page.run("$$('article script, article img[src=x]').length") == 0


@pytest.mark.parametrize(
    ("number", "instead", "sent"),
    [
        (1, "throw new TypeError('lost')", 2),
        (1, "return new Response('{', {status: 202})", 2),
        (2, "throw new TypeError('lost')", 1),
    ],
    ids=["the answer", "half of the answer", "the first look"],
)
def test_a_lost_answer_is_requested_again_and_nothing_is_bought_twice(
    world: World, user: Page, number: int, instead: str, sent: int
) -> None:
    user.run(f"""{{
      const later = window.setTimeout, real = window.fetch;
      let asked = 0;
      window.keys = [];
      window.setTimeout = (work, pause) => later(work, pause / 20);
      window.fetch = async (...request) => {{
        asked += 1;
        if (request[1].method === 'POST') window.keys.push(request[1].headers['Idempotency-Key']);
        const answer = await real(...request);
        if (asked === {number}) {instead};
        return answer;
      }};
    }}""")
    prompt = new("lost")
    generate(user, prompt, model="dall-e-3")
    until_completed(user)
    assert prompt in user.run("$('article').textContent")
    keys = user.run("window.keys")
    assert (len(keys), len(set(keys)), keys[0].startswith("playground-")) == (sent, 1, True)
    assert len(world.calls(prompt)) == 1


def test_the_copied_programs_run_and_hold_no_key(world: World, caller: Client, user: Page) -> None:
    user.fill("#prompt", new('it\'s "quoted" \\ and\non two lines'))
    user.choose("#model", "gpt-image-2")
    prompt = user.run("$('#prompt').value")

    user.command("Browser.grantPermissions", permissions=CLIPBOARD, browserContextId=user.context)
    user.click("#copy-curl")
    user.until("$('#news').textContent.includes('The curl command')")
    curl = user.run("navigator.clipboard.readText()")
    if shutil.which("curl"):
        assert json.loads(printed(caller, "sh", "-c", curl))["data"][0]["permalink"]
        assert len(world.calls(prompt)) == 1

    user.run("navigator.clipboard.writeText = () => Promise.reject(new Error('as on a page without https'))")
    user.click("#copy-python")
    user.until("$('#by-hand').open")
    python = user.run("$('#by-hand-text').value")
    user.press("Escape")
    before = len(world.calls(prompt))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1/images/img_\S+\n", printed(caller, sys.executable, "-c", python))
    assert len(world.calls(prompt)) == before + 1


def test_a_key_is_kept_only_if_its_owner_says_so_and_never_in_an_address(
    world: World, caller: Client, page: Page
) -> None:
    caller.cancel(caller.begin(**SMALL))
    connect(page, caller)
    assert page.run("$$('article').length") == 1
    stores = "JSON.stringify([{...localStorage}, {...sessionStorage}, location.href, document.body.outerHTML])"
    assert caller.key not in page.run(stores)
    assert page.run("$('#key').value") == ""
    page.open(f"{world.stack.url}/?again")
    assert page.run("$('#fields').disabled")

    page.click("#keep-key")
    connect(page, caller)
    assert caller.key not in page.run("JSON.stringify({...localStorage})")
    page.open(f"{world.stack.url}/?later")
    page.until("!$('#fields').disabled")
    page.click("#forget")
    assert caller.key not in page.run(stores)
    assert page.run("$$('article').length") == 0


def test_the_page_works_by_keyboard_alone(caller: Client, page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.press("Tab")
            if page.run(f"document.activeElement.matches({json.dumps(selector)})"):
                outline = page.run("getComputedStyle(document.activeElement).outlineWidth")
                assert outline == "3px", selector  # the focus is visible
                return
        raise AssertionError(selector)

    tab_to("#key")
    page.write(caller.key)
    page.press("Enter")
    page.until("document.activeElement.id === 'prompt'")
    page.write("by keyboard")
    tab_to("#generate")
    page.press("Enter")
    until_completed(page)
    tab_to("article .delete")
    page.press("Space")
    page.until("$('#confirm').open")
    assert page.run("document.activeElement.value") == "keep"
    page.press("Tab", shift=True)
    page.press("Enter")
    page.until("$('#news').textContent === 'Deleted.'")


def test_every_control_has_a_name_for_a_screen_reader(user: Page) -> None:
    generate(user, "read aloud", model="dall-e-3")
    until_completed(user)
    user.command("Accessibility.enable")
    nodes = [node for node in user.command("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = {"button", "textbox", "combobox", "spinbutton", "link", "image", "checkbox"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node["role"]["value"] in roles]
    assert roles - {"checkbox"} <= {role for role, _ in named}
    assert all(name.strip() for _, name in named)
    title = user.run("$('article h3').textContent")
    of_it = [name for role, name in named if role in ("button", "link", "image") and title in name]
    assert len(set(of_it)) == 3  # to delete it, to copy its link, and its image, which names its link too
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
      const element = $(selector);
      const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
      return [selector, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    });
})()"""


def test_the_page_is_legible_and_usable_on_a_phone_by_day_and_by_night(user: Page) -> None:
    generate(user, "on a phone", model="gpt-image-2")
    until_completed(user)
    for dark in (False, True):
        user.window(360, 740, dark=dark)
        assert user.run("document.documentElement.scrollWidth") == 360
        assert [each for each in user.run(CONTRAST) if each[1] < 4.5] == []  # WCAG AA
        heights: list[Any] = user.run("$$('button, input, select').map((each) => each.getBoundingClientRect().height)")
        assert all(height == 0 or height >= 24 for height in heights)
        is_dark = user.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
        assert is_dark is dark
