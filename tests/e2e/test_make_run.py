"""What `make run` starts, says and ends."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
import pytest

from local.aws_door import REGION
from tests.conftest import ROOT, UPSTREAM_KEY, Upstream


@contextmanager
def make_run(**environment: str) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_") or name == "PATH"}
    process = subprocess.Popen(
        [sys.executable, "-m", "local"],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT / "layers/imagegen"), "PORT": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    while not any(line.startswith("other") for line in lines):
        line = process.stdout.readline()
        assert line, f"ended early: {lines}"
        lines.append(line.rstrip("\n"))
    return lines


def descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended just now
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def generate(base_url: str, key: str) -> dict[str, str]:
    request = Request(f"{base_url}/images/generations", b'{"prompt": "hello"}', method="POST")
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "application/json")
    with urlopen(request) as response:
        image: dict[str, str] = json.loads(response.read())["data"][0]
        return image


def listed(base_url: str, key: str) -> list[dict[str, str]]:
    request = Request(f"{base_url}/images/generations", headers={"Authorization": f"Bearer {key}"})
    with urlopen(request) as response:
        generations: list[dict[str, str]] = json.loads(response.read())["data"]
        return generations


def test_it_says_where_it_serves_and_with_which_keys_and_ctrl_c_ends_all_that_it_started() -> None:
    with make_run() as process:
        ready, other = lines_until_ready(process)
        match = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+/v1)  key: (ig_local_\S{43})", ready)
        assert match
        assert re.fullmatch(r"other  key: ig_other_\S{43}", other)
        assert generate(match[1], match[2])["permalink"].startswith(match[1])
        assert process.stdout
        lines = [process.stdout.readline().partition(": ") for _ in range(4)]
        told = {name: text for name, _, text in lines}
        assert set(told) == {"upstream", "inbox", "event", "playground"}
        assert shlex.split(told["inbox"])[-1].startswith("s3://")
        *_, endpoint, _, _, _, entries = shlex.split(told["event"])
        events = boto3.client(
            "events",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        assert events.put_events(Entries=json.loads(entries))["FailedEntryCount"] == 0
        deadline = time.monotonic() + 20
        while len(listed(match[1], match[2])) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if not Path("/proc").is_dir():
            pytest.skip("there is no /proc to see processes in")
        started = descendants(process.pid)
        assert len(started) >= 3  # moto and two functions

        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0

        deadline = time.monotonic() + 5
        while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == set()


def test_it_takes_an_upstream_and_its_key(upstream: Upstream) -> None:
    with make_run(UPSTREAM_BASE_URL=upstream.base_url, UPSTREAM_API_KEY=UPSTREAM_KEY) as process:
        ready, _ = lines_until_ready(process)
        _, base_url, _, key = ready.split()
        generate(base_url, key)
        assert len(upstream.stand_in.calls) == 1
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0


def test_its_gateway_throttles_if_that_is_asked_for() -> None:
    with make_run(GATEWAY_THROTTLE="1") as process:
        ready, _ = lines_until_ready(process)
        connection = HTTPConnection(urlsplit(ready.split()[1]).netloc)
        answers, deadline = [200], time.monotonic() + 20
        while answers[-1] == 200:  # the gateway itself answers these, faster than the template's 50 a second
            assert time.monotonic() < deadline, len(answers)
            connection.request("OPTIONS", "/v1/models")
            response = connection.getresponse()
            response.read()
            answers.append(response.status)
        assert (answers[-1], len(answers) > 100) == (429, True)  # the template's burst
        connection.close()


URL = "UPSTREAM_BASE_URL"
TOGETHER = "give UPSTREAM_BASE_URL and UPSTREAM_API_KEY together"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({URL: "http://127.0.0.1:9/v1"}, TOGETHER),
        ({"UPSTREAM_API_KEY": UPSTREAM_KEY}, TOGETHER),
        ({URL: ""}, TOGETHER),
        ({URL: " ", "UPSTREAM_API_KEY": UPSTREAM_KEY}, TOGETHER),
        ({URL: "https://a.example/v1", "UPSTREAM_API_KEY": " "}, TOGETHER),
        ({URL: "https://", "UPSTREAM_API_KEY": UPSTREAM_KEY}, "UPSTREAM_BASE_URL is not an http or https URL"),
        ({URL: "a.example/v1", "UPSTREAM_API_KEY": UPSTREAM_KEY}, "UPSTREAM_BASE_URL is not an http or https URL"),
        ({URL: "https://u:canary@a.example/v1", "UPSTREAM_API_KEY": UPSTREAM_KEY}, "carries a query, a fragment or"),
        ({URL: "http://a.example/v1", "UPSTREAM_API_KEY": UPSTREAM_KEY}, "is plain http to another machine"),
        ({"PORT": "abc"}, "PORT=abc is no port: give a number from 1 to 65535"),
        ({"PORT": "70000"}, "PORT=70000 is no port: give a number from 1 to 65535"),
        ({"PORT": "-1"}, "PORT=-1 is no port: give a number from 1 to 65535"),
        ({"AWS_DELAYS": "dynamodb=soon"}, "AWS_DELAYS has 'dynamodb=soon', which has no whole number"),
        ({"GATEWAY_THROTTLE": "yes"}, "GATEWAY_THROTTLE=yes is neither 0 nor 1"),
        ({"LAMBDA_CONCURRENCY": "0"}, "LAMBDA_CONCURRENCY=0 is no limit: give a number from 1 to 99999"),
        ({"STAGE": "a/b"}, "STAGE=a/b is no stage: give 1 to 64 letters, digits and _"),
    ],
)
def test_what_it_cannot_serve_by_is_refused_in_a_line_that_says_what_to_do(given: dict[str, str], said: str) -> None:
    line = refused(given)
    assert said in line
    assert UPSTREAM_KEY not in line
    assert "canary" not in line


def test_a_port_that_is_taken_is_refused_in_a_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            refused({"PORT": str(port)})
            == f"port {port} cannot be served at (Address already in use): choose another by PORT=…"
        )


def refused(given: dict[str, str]) -> str:
    """The one line that it says. A process that it left running would hold the pipe, and this would wait for it."""
    with make_run(**given) as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert out.count("\n") == 1, out
    return out.removesuffix("\n")
