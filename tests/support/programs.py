"""Runs the programs and commands of the documents."""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from local.aws_door import REGION
from local.stack import CREDENTIALS
from tests.conftest import ROOT
from tests.support.client import Client, fetched
from tests.support.world import World

_NODE_CLIENTS = ROOT / "tests/clients"
OTTER = "A cute baby sea otter"  # the prompt of most documents
# The sample of OpenAI's API page, except for host and key.
SAMPLE = """curl --location --request POST '{base_url}/images/generations' \\
--header 'Authorization: Bearer {key}' \\
--header 'Content-Type: application/json' \\
--data-raw '{{
    "model": "dall-e-3",
    "prompt": "A cute baby sea otter",
    "n": 1,
    "size": "1024x1024"
  }}'"""


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def needs_clients() -> None:
    if not (ROOT / ".venv-clients/ready").exists():
        pytest.skip("the clients are not installed: run `make check` or `make .venv-clients/ready`")


def with_node_clients() -> Path:
    """A folder in which Node finds its clients. The first process installs them by their lock, once."""
    needs("node", "npm")
    lock = (_NODE_CLIENTS / "package-lock.json").read_bytes()
    folder = ROOT / ".local/clients" / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(_NODE_CLIENTS / name, folder)
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
            done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
            if re.search(r"code (EAI_AGAIN|ENOTFOUND|ECONN\w+|ETIMEDOUT|E5\d\d)", done.stderr):
                pytest.skip("the clients for Node cannot be installed: npm does not reach its registry")
            assert done.returncode == 0, done.stderr
            (folder / "ready").touch()
    return folder


def by_node(text: str, environment: Mapping[str, str], seconds: float = 120) -> str:
    """The output of a module that imports Node's clients."""
    return run(["node", "--input-type=module", "--eval", text], environment, with_node_clients(), seconds=seconds)


def blocks(text: str, language: str = r"\w+") -> list[str]:
    """The code of a Markdown page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block(page: Path, language: str, holding: str) -> str:
    (found,) = [code for code in blocks(page.read_text(), language) if holding in code]
    return found


def run(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path = ROOT,
    typed: str | None = None,
    seconds: float = 120,
) -> str:
    """Returns its output. Of this machine's environment it gets only the path and the home."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), **environment}
    done = subprocess.run(
        command, cwd=folder, env=env, input=typed, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bash(
    text: str,
    environment: Mapping[str, str],
    folder: Path = ROOT,
    typed: str | None = None,
    seconds: float = 120,
) -> str:
    return run(["bash", "-c", text], environment, folder, typed, seconds)


def sample(client: Client, prompt: str) -> str:
    """The output of the API page's sample with another prompt."""
    needs("bash", "curl")
    text = SAMPLE.format(base_url=client.base_url, key=client.key).replace(OTTER, prompt)
    return bash(f"{text} --silent", {})


def operator(world: World) -> dict[str, str]:
    """The environment of an operator of the stand-in AWS account."""
    return {"AWS_ENDPOINT_URL": world.stack.aws_url, "AWS_DEFAULT_REGION": REGION, **CREDENTIALS}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def called(main: Callable[[], int], *arguments: str, **environment: str) -> Done:
    """Runs a tool of this project in this process, since another takes a second to start."""
    out, err = io.StringIO(), io.StringIO()
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_") or name == "PATH"}
    with (
        patch.dict(os.environ, {**kept, **environment}, clear=True),
        patch.object(sys, "argv", ["tool", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def by_node_in(folder: Path, text: str, environment: dict[str, str]) -> str:
    """Runs a module where its files are. The clients are found before it begins."""
    return by_node(f"process.chdir({json.dumps(str(folder))});\n{text}", environment)


def are_pictures(*urls: str) -> None:
    contents = {fetched(url).content for url in urls}
    assert len(contents) == len(urls)
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in contents)
