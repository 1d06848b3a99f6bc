"""The programs of docs/clients.md run as shown, except for addresses, names, prompts and pauses."""

import json
import re
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from local.serving import Reply, Request, serving
from local.stack import STACK_NAME
from tests.conftest import ROOT
from tests.support.chromium import Page
from tests.support.client import Client, fetched
from tests.support.pictures import BLUE, GREEN, RED, changes_exactly, mask, opened, photograph, picture, shown_in
from tests.support.programs import (
    OTTER,
    are_pictures,
    bash,
    blocks,
    by_node,
    by_node_in,
    needs,
    needs_clients,
    operator,
    run,
)
from tests.support.waiting import until
from tests.support.world import World

pytestmark = pytest.mark.thorough

PAGE = (ROOT / "docs/clients.md").read_text()
PUBLISHED = (ROOT / "tests/clients/edits.md").read_text()
MASKED = (16, 16, 200, 100)


@pytest.fixture
def prompt() -> str:
    return f"An otter, {uuid4().hex}"


def program(caller: Client, heading: str, number: int = 0, prompt: str = OTTER) -> str:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    text = blocks(section)[number].replace(OTTER, prompt).replace("imagegen-dev", STACK_NAME)
    text = text.replace("http://127.0.0.1:8000/v1", caller.base_url).replace('"web"', json.dumps(caller.name))
    return re.sub(r"sleep \d", "sleep 0.2", text.replace("box/web/", f"box/{caller.name}/"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files that the programs of edits read, in the folder that they run in."""
    colors = {"otter.png": RED, "beach.jpg": BLUE, "beach.png": BLUE, "parasol.png": GREEN}
    files = {name: picture(color) for name, color in colors.items()} | {"mask.png": mask(320, MASKED)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return files


def test_a_retry_of_curl_gets_the_same_image(world: World, caller: Client, prompt: str) -> None:
    needs("bash", "curl")
    first, again = (json.loads(bash(program(caller, "curl", 0, prompt), {"KEY": caller.key})) for _ in range(2))
    are_pictures(first["data"][0]["permalink"])
    assert again["id"] == first["id"]
    assert len(world.calls(prompt)) == 1


def test_curl_polls_for_its_image(world: World, caller: Client, prompt: str) -> None:
    needs("bash", "curl", "grep", "sed")
    (image,) = json.loads(bash(program(caller, "curl", 1, prompt), {"KEY": caller.key}))["data"]
    are_pictures(image["permalink"])
    assert len(world.calls(prompt)) == 1


def test_openai_for_python_gets_its_images(world: World, caller: Client, prompt: str) -> None:
    text = program(caller, "openai, Python", 0, prompt)
    are_pictures(*run([sys.executable, "-c", text], {"KEY": caller.key}).split())
    assert sum(call["n"] for call in world.calls(prompt)) == 2


def test_openai_for_node_gets_its_images(world: World, caller: Client, prompt: str) -> None:
    are_pictures(*by_node(program(caller, "openai, Node", 0, prompt), {"KEY": caller.key}).split())
    assert sum(call["n"] for call in world.calls(prompt)) == 2


def test_curl_edits_a_file(world: World, caller: Client, files: dict[str, bytes], tmp_path: Path) -> None:
    needs("bash", "curl")
    (image,) = json.loads(bash(program(caller, "curl", 2), {"KEY": caller.key}, tmp_path))["data"]
    are_pictures(image["permalink"])
    (call,) = world.calls_with(files["otter.png"])
    assert (call["model"], call["prompt"]) == ("gpt-image-1.5", "Put a hat on the otter")


def test_openai_for_python_edits_paths_with_a_mask_and_by_id(
    world: World, caller: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    text = program(caller, "openai, Python", 1)
    first, second = run([sys.executable, "-c", text], {"KEY": caller.key}, tmp_path).split()
    are_pictures(first, second)
    made = fetched(first).content
    assert changes_exactly(files["otter.png"], made, MASKED)
    (call,) = world.calls_with(files["beach.jpg"])
    assert world.calls_with(made) == [call]


def test_openai_for_node_edits_files_and_by_id(
    world: World, caller: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    first, second = by_node_in(tmp_path, program(caller, "openai, Node", 1), {"KEY": caller.key}).split()
    are_pictures(first, second)
    assert len(world.calls_with(files["otter.png"])) == 1
    (call,) = world.calls_with(files["beach.jpg"])
    assert world.calls_with(fetched(first).content) == [call]


def test_six_lines_upload_a_large_photograph_and_edit_it(world: World, caller: Client, tmp_path: Path) -> None:
    photo = photograph(8_000_000)
    (tmp_path / "photo.jpg").write_bytes(photo)
    link = run([sys.executable, "-c", program(caller, "Edit a large photograph")], {"KEY": caller.key}, tmp_path)
    are_pictures(link.strip())
    assert [call["prompt"] for call in world.calls_with(photo)] == ["Make it winter"]


@pytest.mark.parametrize("language", ["python", "js"])
def test_openais_published_edits_need_only_another_address_and_key(
    world: World, caller: Client, files: dict[str, bytes], tmp_path: Path, language: str
) -> None:
    """One image in Node is a bare stream: the client sends the form in chunks, without its length."""
    (text,) = blocks(PUBLISHED, language)
    environment = {"OPENAI_BASE_URL": caller.base_url, "OPENAI_API_KEY": caller.key}
    if language == "js":
        by_node_in(tmp_path, text, environment)
    else:
        run([sys.executable, "-c", text], environment, tmp_path)
    hat, beach, masked = ((tmp_path / f"{name}.png").read_bytes() for name in ("hat", "beach", "masked"))
    assert shown_in(opened(hat), 1) == [RED]
    assert shown_in(opened(beach), 3) == [RED, BLUE, GREEN]
    assert changes_exactly(files["otter.png"], masked, MASKED)
    assert len(world.calls_with(files["otter.png"])) == 3


def test_a_retry_of_vercels_ai_sdk_gets_the_same_generation(world: World, caller: Client, prompt: str) -> None:
    """It retries by the status alone. Its idempotency key marks the request as the same."""
    keys = []

    def lose_the_first_answer(request: Request) -> Reply:
        headers = {} if request.method == "GET" else {"Idempotency_Key": request.header("Idempotency-Key") or ""}
        answer = caller.ask(request.method, world.stack.url + request.target, request.body or None, **headers)
        if headers:
            keys.append(headers["Idempotency_Key"])
        if len(keys) == 1:
            return Reply(503, b"{}", {"Content-Type": "application/json"})
        passed = {name: text for name, text in answer.headers.items() if name in ("content-type", "location")}
        return Reply(answer.status, answer.content, passed)

    with serving(lose_the_first_answer) as port:
        text = program(caller, "Vercel AI SDK", 0, prompt).replace(world.base_url, f"http://127.0.0.1:{port}/v1")
        lines = by_node(text, {"KEY": caller.key}).splitlines()
    assert [line.split()[0] for line in lines] == ["image/png"] * 2
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert sum(call["n"] for call in world.calls(prompt)) == 2


def test_langchain_gets_its_image(world: World, caller: Client, prompt: str) -> None:
    needs_clients()
    text = program(caller, "LangChain", 0, prompt)
    are_pictures(run([".venv-clients/bin/python", "-W", "ignore", "-c", text], {"KEY": caller.key}).strip())
    assert len(world.calls(prompt)) == 1


def test_a_page_in_a_browser_gets_its_image(caller: Client, page: Page) -> None:
    html = f"<!doctype html><title>page</title><script>{program(caller, 'A browser')}</script>"
    with serving(lambda _: Reply(200, html.encode(), {"Content-Type": "text/html"})) as port:
        page.open(f"http://127.0.0.1:{port}/")
        image = page.run(f"paint('seen by a page', {json.dumps(caller.key)})")
    are_pictures(image["permalink"])


def test_boto3_begins_a_generation_by_eventbridge(world: World, caller: Client) -> None:
    text = program(caller, "boto3, by EventBridge")
    assert run([sys.executable, "-c", text], operator(world)) == ""
    (begun,) = until(caller.newest)
    assert caller.until_ended(begun["id"])["status"] == "completed"


def test_the_aws_cli_gets_its_images_by_file(world: World, caller: Client, tmp_path: Path) -> None:
    needs("bash", "aws")
    (tmp_path / "events").symlink_to(ROOT / "events")
    command = program(caller, "AWS CLI, by file")
    bash(command, {"INBOX": world.stack.inbox, **operator(world)}, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "spring.output.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["otter", "lighthouse"]
    are_pictures(*(image["permalink"] for line in lines for image in line["response"]["body"]["data"]))
