"""docs/clients.md's programs, run as they stand there but for addresses and names, each by the client it is about."""

import fcntl
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from local.aws_door import REGION
from local.serving import Reply, Request, serving
from local.stack import CREDENTIALS, STACK_NAME
from tests.conftest import ROOT
from tests.e2e.conftest import Service
from tests.e2e.test_browser import CHROMIUM
from tests.e2e.test_failures import post
from tests.e2e.test_generations import get, until_ended

PAGE = (ROOT / "docs/clients.md").read_text()
NODE_CLIENTS = ROOT / "tests/clients"
LANGCHAIN = ROOT / ".venv-langchain/bin/python"
PNG = b"\x89PNG\r\n\x1a\n"


def program(service: Service, heading: str, number: int = 0) -> str:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    text: str = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)[number]
    text = text.replace("http://127.0.0.1:8000/v1", service.base_url).replace("imagegen-dev", STACK_NAME)
    return text.replace('"client": "web"', '"client": "local"').replace("box/web/", "box/local/")


def run(service: Service, command: list[str], folder: Path = ROOT, **environment: str) -> str:
    aws = {"AWS_ENDPOINT_URL": service.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), "KEY": service.key, **aws, **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not there")


def are_pictures(*urls: str) -> None:
    contents = []
    for url in urls:
        with urlopen(url) as response:
            contents.append(response.read())
    assert all(content.startswith(PNG) for content in contents)
    assert len(set(contents)) == len(urls)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Where the clients for Node are: installed by their lock, once, whoever of the tests' processes comes first."""
    needs("node", "npm")
    lock = (NODE_CLIENTS / "package-lock.json").read_bytes()
    folder = ROOT / ".local/clients" / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(NODE_CLIENTS / name, folder)
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
            done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
            if re.search(r"code (EAI_AGAIN|ENOTFOUND|ECONN\w+|ETIMEDOUT|E5\d\d)", done.stderr):
                pytest.skip("the clients for Node cannot be installed: npm does not reach its registry")
            assert done.returncode == 0, done.stderr
            (folder / "ready").touch()
    return folder / "node_modules"


def by_node(service: Service, text: str, node_modules: Path, folder: Path) -> str:
    (folder / "node_modules").symlink_to(node_modules)
    (folder / "program.mjs").write_text(text)
    return run(service, ["node", "program.mjs"], folder)


def test_curl_gets_an_image_and_its_retry_the_same(service: Service) -> None:
    needs("bash", "curl")
    first, again = (json.loads(run(service, ["bash", "-c", program(service, "curl")])) for _ in range(2))
    are_pictures(first["data"][0]["permalink"])
    assert again["id"] == first["id"]
    assert len(service.upstream.calls) == 1


def test_curl_polls_where_it_follows_no_redirects(service: Service) -> None:
    needs("bash", "curl", "grep", "sed")
    (image,) = json.loads(run(service, ["bash", "-c", program(service, "curl", 1)]))["data"]
    are_pictures(image["permalink"])
    assert len(service.upstream.calls) == 1


def test_openai_for_python(service: Service) -> None:
    are_pictures(*run(service, [sys.executable, "-c", program(service, "openai, Python")]).split())
    assert sum(call["n"] for call in service.upstream.calls) == 2


def test_openai_for_node(service: Service, node_modules: Path, tmp_path: Path) -> None:
    are_pictures(*by_node(service, program(service, "openai, Node"), node_modules, tmp_path).split())
    assert sum(call["n"] for call in service.upstream.calls) == 2


def test_vercels_ai_sdk(service: Service, node_modules: Path, tmp_path: Path) -> None:
    out = by_node(service, program(service, "Vercel AI SDK"), node_modules, tmp_path).splitlines()
    assert [line.split()[0] for line in out] == ["image/png"] * 2
    assert sum(call["n"] for call in service.upstream.calls) == 2


def test_vercels_ai_sdk_retries_into_the_same_generation(service: Service, node_modules: Path, tmp_path: Path) -> None:
    """By the status alone: the key is what tells that it is the same."""
    tries = []

    def lose_the_first_answer(request: Request) -> Reply:
        tries.append(request.header("Idempotency-Key"))
        answer = get_through(service, request)
        return Reply(503, b"{}", {"Content-Type": "application/json"}) if len(tries) == 1 else answer

    with serving(lose_the_first_answer) as port:
        text = program(service, "Vercel AI SDK").replace(service.base_url, f"http://127.0.0.1:{port}/v1")
        assert len(by_node(service, text, node_modules, tmp_path).splitlines()) == 2
    assert len(tries) == 2
    assert tries[0] == tries[1]
    assert sum(call["n"] for call in service.upstream.calls) == 2


def get_through(service: Service, request: Request) -> Reply:
    """What a proxy passes on."""
    key = {"Idempotency_Key": request.header("Idempotency-Key") or ""}
    status, _, body = post(service, request.body, path=request.target.removeprefix("/v1"), **key)
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def test_langchain(service: Service) -> None:
    if not LANGCHAIN.exists():
        pytest.skip("LangChain is not there: `make check` sets it up, or `make .venv-langchain/ready`")
    are_pictures(run(service, [str(LANGCHAIN), "-W", "ignore", "-c", program(service, "LangChain")]).strip())
    assert len(service.upstream.calls) == 1


def test_a_browsers_page(service: Service, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is there")
    reports: queue.Queue[str] = queue.Queue()
    page = f"""<!doctype html><title>page</title><script>{program(service, "A browser")}
      paint("seen by a page", {json.dumps(service.key)})
        .then((image) => image.permalink, (error) => `failed: ${{error}}`)
        .then((told) => fetch("/report", {{method: "POST", body: told}}));
    </script>"""

    def respond(request: Request) -> Reply:
        if request.method == "POST":
            reports.put(request.body.decode())
        return Reply(200, page.encode(), {"Content-Type": "text/html"})

    with serving(respond) as port:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--no-first-run"]
        browser = subprocess.Popen(
            [CHROMIUM, *flags, "--remote-debugging-port=0", f"http://127.0.0.1:{port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = reports.get(timeout=60)
        finally:
            browser.kill()
            browser.wait()
    are_pictures(told)


def test_boto3_asks_by_eventbridge(service: Service) -> None:
    before = newest(service)
    assert run(service, [sys.executable, "-c", program(service, "boto3, by EventBridge")]) == ""
    deadline = time.monotonic() + 30
    while (generation_id := newest(service)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert until_ended(service, generation_id)["status"] == "completed"


def newest(service: Service) -> str:
    listed = get(service, "/images/generations?limit=1")[2]["data"]
    return str(listed[0]["id"]) if listed else ""


def test_the_aws_cli_asks_by_file(service: Service, tmp_path: Path) -> None:
    needs("bash", "aws")
    (tmp_path / "events").symlink_to(ROOT / "events")
    command = program(service, "AWS CLI, by file").replace("sleep 5", "sleep 0.2")
    run(service, ["bash", "-c", command], tmp_path, INBOX=service.stack.inbox)
    lines = [json.loads(line) for line in (tmp_path / "spring.output.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["otter", "lighthouse"]
    are_pictures(*(image["permalink"] for line in lines for image in line["response"]["body"]["data"]))
