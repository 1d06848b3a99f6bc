"""A checkout of which only models.toml was changed: `make run` serves the new models by HTTP, batch and event."""

import json
import shutil
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.aws_door import REGION
from local.serving import Reply, Request, serving
from local.upstream import StandInUpstream
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.fakes.provider import png
from tests.support.client import Client
from tests.support.waiting import SECONDS, until
from tests.support.world import batch_line

pytestmark = pytest.mark.thorough

GPU_KEY = "sk-gpu"
MODELS = """
[upstreams.gpu-box]
protocols = ["openai"]
base_url = "https://gpu.example.com/v1"
key = "gpu-key"
concurrency = 2

[models.our-sdxl]
passthrough = true
aliases = ["sdxl"]
routes = ["gpu-box:stable-diffusion-xl", "reseller:dall-e-2"]
price = 0.001

[models.ideogram-turbo]
like = "ideogram-v3"
defaults = { rendering_speed = "TURBO" }
routes = ["reseller:ideogram-v3"]
price = 0.03
"""


@dataclass
class GpuBox:
    """A self-hosted server of OpenAI's protocol. It has no images while it is `busy`."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    busy: bool = False
    gate: threading.Event | None = None
    at_once: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, request: Request) -> Reply:
        if self.busy:
            return Reply(429)
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if self.gate:
                self.gate.wait(SECONDS)
            return self._paint(request)
        finally:
            with self._lock:
                self.at_once -= 1

    def _paint(self, request: Request) -> Reply:
        body = json.loads(request.body)
        self.bodies.append(body)
        self.keys.add(request.header("Authorization"))
        image = {"b64_json": b64encode(png(body["prompt"])).decode()}
        return Reply(200, json.dumps({"created": 1, "data": [image]}).encode())


@dataclass
class Changed:
    """The stack of the changed checkout."""

    client: Client
    gpu: GpuBox
    reseller: StandInUpstream
    aws_url: str
    inbox: str

    def aws(self, service: str) -> Any:
        keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
        return boto3.client(service, endpoint_url=self.aws_url, region_name=REGION, **keys)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changed]:
    checkout, gpu, reseller = tmp_path_factory.mktemp("checkout"), GpuBox(), StandInUpstream(UPSTREAM_KEY)
    for folder in ("functions", "layers", "local", "tools"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "template.yaml", checkout)
    (checkout / "models.toml").write_text((ROOT / "models.toml").read_text() + MODELS)
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "layers/imagegen", "PORT": "0"}
    subprocess.run([sys.executable, "-m", "tools.models_file"], cwd=checkout, env=environ, check=True)
    with ExitStack() as closing:
        ports = [closing.enter_context(serving(each.respond)) for each in (reseller, gpu)]
        environ |= {"UPSTREAM_BASE_URL": f"http://127.0.0.1:{ports[0]}/v1", "UPSTREAM_API_KEY": UPSTREAM_KEY}
        environ |= {"UPSTREAM_BASE_URL_GPU_BOX": f"http://127.0.0.1:{ports[1]}/v1", "UPSTREAM_API_KEY_GPU_BOX": GPU_KEY}
        out = closing.enter_context((checkout / "printed").open("w"))
        process = subprocess.Popen(
            [sys.executable, "-m", "local"], cwd=checkout, env=environ, stdout=out, stderr=out, start_new_session=True
        )
        closing.callback(process.wait)
        closing.callback(process.terminate)
        lines = until(lambda: _whole(checkout / "printed"), what="the start")
        words = {line.partition(": ")[0]: line.split() for line in lines}
        aws_url = words["upstream"][words["upstream"].index("AWS:") + 1]
        inbox = words["inbox"][-1].removeprefix("s3://").partition("/")[0]
        yield Changed(Client(words["ready"][1], words["ready"][3]), gpu, reseller, aws_url, inbox)


def _whole(printed: Path) -> list[str]:
    lines = printed.read_text().splitlines()
    return lines if any(line.startswith("playground: ") for line in lines) else []


def test_the_new_models_are_listed(changed: Changed) -> None:
    listed = {model["id"]: model for model in changed.client.get("/models").json["data"]}
    assert listed["our-sdxl"]["upstreams"] == ["gpu-box", "reseller"]
    assert listed["our-sdxl"]["price"] == {"basis": "image", "fields": [], "usd": 0.001}
    turbo = listed["ideogram-turbo"]
    assert (turbo["upstreams"], turbo["parameters"]["rendering_speed"]["default"]) == (["reseller"], "TURBO")
    assert listed["gpt-image-1"]["upstreams"] == ["reseller"]  # there is no key for OpenAI
    assert listed["dall-e-3"]["available"] is True


def test_a_new_model_works_by_http_event_and_batch(changed: Changed) -> None:
    options = {"steps": 30, "size": "640x640", "guidance": 7.5}
    answer = changed.client.make({"model": "sdxl", "prompt": "by http", "n": 2, **options})
    assert len(answer.json["data"]) == 2

    detail = {"model": "our-sdxl", "prompt": "by event", "client": "local", "custom_id": "order-1", **options}
    entry = {"Source": "shop", "DetailType": "Image Generation Requested", "EventBusName": "imagegen"}
    events, s3 = changed.aws("events"), changed.aws("s3")
    assert events.put_events(Entries=[entry | {"Detail": json.dumps(detail)}])["FailedEntryCount"] == 0
    lines = [batch_line(f"line-{model}", f"by batch {model}", model=model) for model in ("our-sdxl", "ideogram-turbo")]
    lines[1] = lines[1].replace('"size": "256x256", ', "")
    s3.put_object(Bucket=changed.inbox, Key="inbox/local/new.jsonl", Body="\n".join(lines).encode())

    def ended() -> bool:
        found = changed.client.newest()
        return len(found) == 4 and {each["status"] for each in found} == {"completed"}

    until(ended, what="the generations of the event and of the batch")
    for client in (events, s3):
        client.close()
    assert changed.gpu.keys == {f"Bearer {GPU_KEY}"}
    assert [body["prompt"] for body in changed.gpu.bodies].count("by http") == 2
    by_prompt = {body.pop("prompt"): body for body in changed.gpu.bodies}
    sent = {"model": "stable-diffusion-xl", "n": 1}
    assert by_prompt == {
        "by http": sent | options,
        "by event": sent | options,
        "by batch our-sdxl": sent | {"size": "256x256"},
    }
    (call,) = changed.reseller.calls
    assert (call["prompt"], call["rendering_speed"]) == ("by batch ideogram-turbo", "TURBO")


def test_an_upstream_works_on_two_calls_at_once_and_all_requests_end_well(changed: Changed) -> None:
    changed.gpu.bodies.clear()
    changed.gpu.gate, changed.gpu.most_at_once = threading.Event(), 0
    changed.reseller.key = "none"  # the second route refuses the key, so only the first can serve
    prompts = {f"one of ten {number}" for number in range(10)}
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(lambda prompt: changed.client.make({"model": "sdxl", "prompt": prompt}), prompts)
        until(lambda: changed.gpu.at_once == 2, what="two calls")
        until(lambda: len(changed.client.newest()) >= len(prompts), what="all generations")
        changed.gpu.gate.set()
        assert all(answer.json["data"] for answer in answers)
    changed.reseller.key, changed.gpu.gate = UPSTREAM_KEY, None
    assert changed.gpu.most_at_once == 2
    assert {body["prompt"] for body in changed.gpu.bodies} == prompts
    assert len(changed.gpu.bodies) == len(prompts)


def test_the_second_route_serves_while_the_first_is_busy(changed: Changed) -> None:
    changed.gpu.busy = True
    changed.reseller.calls.clear()
    body = {"model": "our-sdxl", "prompt": "a second route", "size": "256x256"}
    answer = changed.client.make(body)
    changed.gpu.busy = False
    assert answer.json["data"]
    (call,) = changed.reseller.calls
    assert call["model"] == "dall-e-2"
