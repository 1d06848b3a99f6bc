"""`make run`: its start, its output and its end."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import boto3
import pytest

from local import __main__ as make_run
from local.aws_door import REGION
from local.stack import LocalStack, Options
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.support.client import Client
from tests.support.programs import Done, called
from tests.support.waiting import until

URL, KEY = "https://a.example/v1", UPSTREAM_KEY


def children(pid: int) -> set[str]:
    return {child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """A file, since an unread pipe is full after some thousand requests and then blocks the stack."""
    return tmp_path / "printed"


@pytest.fixture
def process(printed: Path) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_") or name == "PATH"}
    given = {"PYTHONPATH": str(ROOT / "layers/imagegen"), "PORT": "0", "GATEWAY_THROTTLE": "1"}
    with printed.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "local"],
            cwd=ROOT,
            env=kept | given,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    yield process
    process.kill()
    process.wait()


def test_it_prints_its_url_and_keys_and_ends_with_ctrl_c(process: subprocess.Popen[str], printed: Path) -> None:
    until(lambda: printed.read_text().count("\n") >= 6, what="the output at the start")
    ready, other, *rest = printed.read_text().splitlines()[:6]
    match = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+/v1)  key: (ig_local_\S{43})", ready)
    assert match, ready
    assert re.fullmatch(r"other  key: ig_other_\S{43}", other)
    client = Client(match[1], match[2])
    (image,) = client.make({"prompt": "hello"}).json["data"]
    assert image["permalink"].startswith(match[1])

    others = {name: text for name, _, text in (line.partition(": ") for line in rest)}
    assert set(others) == {"upstream", "inbox", "event", "playground"}
    assert shlex.split(others["inbox"])[-1].startswith("s3://")
    *_, endpoint, _, _, _, entries = shlex.split(others["event"])
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    events = boto3.client("events", endpoint_url=endpoint, region_name=REGION, **keys)  # type: ignore[call-overload]
    assert events.put_events(Entries=json.loads(entries))["FailedEntryCount"] == 0
    events.close()
    until(lambda: len(client.newest()) == 2, what="the generation of the event")

    with closing(HTTPConnection(urlsplit(client.base_url).netloc)) as connection:

        def answered_until_throttled() -> int:
            """The gateway answers these itself, faster than the template's 50 requests a second."""
            for number in range(1000):
                connection.request("OPTIONS", "/v1/models")
                response = connection.getresponse()
                response.read()
                if response.status == 429:
                    return number
            raise AssertionError("no request was throttled")

        assert until(answered_until_throttled) >= 100  # the template's burst

    started = children(process.pid)
    assert len(started) >= 3 or not Path("/proc").is_dir()  # moto and two functions
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], what="the end of all processes")


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def started_options(monkeypatch: pytest.MonkeyPatch, _signals: None) -> list[Options]:
    """The options of the stacks, none of which starts."""
    options: list[Options] = []

    @contextmanager
    def start(given: Options, _: Path) -> Iterator[LocalStack]:
        options.append(given)
        signal.raise_signal(signal.SIGTERM)
        keys = {"local": "one", "other": "two"}
        yield LocalStack("http://here", keys, "http://aws", "images", "inbox", {}, {}, Mock(), ROOT / ".local/logs")

    monkeypatch.setattr(make_run, "running", start)
    return options


def ran(given: str) -> Done:
    """Runs it with variables and options, which are separated by `|`."""
    options = [each for each in given.split("|") if each.startswith("--")]
    variables = dict(each.split("=", 1) for each in given.split("|") if each not in ("", *options))
    return called(make_run.main, *options, **variables)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"port": 8000, "stage": "", "built": False, "throttle": False, "delays": {}, "concurrency": None}),
        (f"UPSTREAM_BASE_URL={URL}|UPSTREAM_API_KEY={KEY}", {"upstream_base_url": URL, "upstream_api_key": KEY}),
        ("PORT=65535|STAGE=a_1|GATEWAY_THROTTLE=1|--built", {"port": 65535, "stage": "a_1", "built": True}),
        ("GATEWAY_THROTTLE=1|LAMBDA_CONCURRENCY=99999", {"throttle": True, "concurrency": 99999}),
        ("GATEWAY_THROTTLE=0|AWS_DELAYS=dynamodb=20", {"throttle": False, "delays": {"dynamodb": 20}}),
    ],
    ids=["nothing", "an upstream", "where", "limits", "delays"],
)
def test_the_variables_and_options_configure_the_stack(
    started_options: list[Options], given: str, expected: dict[str, object]
) -> None:
    done = ran(given)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ready: http://here/v1  key: one\nother  key: two\nupstream: ")
    (options,) = started_options
    assert {name: getattr(options, name) for name in expected} == expected


TOGETHER = "set both UPSTREAM_BASE_URL and UPSTREAM_API_KEY"
NO_URL = "UPSTREAM_BASE_URL is not an http or https URL"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("UPSTREAM_BASE_URL=http://127.0.0.1:9/v1", TOGETHER),
        (f"UPSTREAM_API_KEY={KEY}", TOGETHER),
        ("UPSTREAM_BASE_URL=", TOGETHER),
        (f"UPSTREAM_BASE_URL= |UPSTREAM_API_KEY={KEY}", TOGETHER),
        (f"UPSTREAM_BASE_URL={URL}|UPSTREAM_API_KEY= ", TOGETHER),
        (f"UPSTREAM_BASE_URL=https://|UPSTREAM_API_KEY={KEY}", NO_URL),
        (f"UPSTREAM_BASE_URL=a.example/v1|UPSTREAM_API_KEY={KEY}", NO_URL),
        (f"UPSTREAM_BASE_URL=https://u:canary@a.example/v1|UPSTREAM_API_KEY={KEY}", "contains a query, a fragment or"),
        (f"UPSTREAM_BASE_URL=http://a.example/v1|UPSTREAM_API_KEY={KEY}", "is plain http to another machine"),
        ("PORT=abc", "PORT=abc is not a port: use a number from 1 to 65535"),
        ("PORT=65536", "PORT=65536 is not a port: use a number from 1 to 65535"),
        ("PORT=-1", "PORT=-1 is not a port: use a number from 1 to 65535"),
        ("AWS_DELAYS=dynamodb=soon", "AWS_DELAYS has 'dynamodb=soon': give whole milliseconds"),
        ("GATEWAY_THROTTLE=yes", "GATEWAY_THROTTLE=yes is not valid: use 0 or 1"),
        ("LAMBDA_CONCURRENCY=0", "LAMBDA_CONCURRENCY=0 is not a limit: use a number from 1 to 99999"),
        ("LAMBDA_CONCURRENCY=100000", "LAMBDA_CONCURRENCY=100000 is not a limit"),
        ("STAGE=a/b", "STAGE=a/b is not a stage name: use 1 to 64 letters, digits and _"),
    ],
    ids=lambda value: value.replace(KEY, "key"),
)
def test_an_invalid_setting_is_refused_with_its_fix(started_options: list[Options], given: str, message: str) -> None:
    line = refused(given)
    assert message in line
    assert KEY not in line
    assert "canary" not in line
    assert started_options == []


@pytest.mark.usefixtures("_signals")
def test_a_used_port_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.stack.moto_server", Mock(side_effect=AssertionError))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(f"PORT={port}")
    assert message == f"cannot listen on port {port} (Address already in use): set another with PORT=…"


def refused(given: str) -> str:
    """The one line of the error."""
    done = ran(given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr.removesuffix("\n")
