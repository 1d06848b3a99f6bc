"""The warm api handler on one 1.5 MB image by URL, beside bare urllib3 making the same three calls to the same sink.

Records and queue are in memory: bare urllib3 has none, so what they cost at AWS is no part of the figure.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import urllib3

from local.stack import ROOT
from tests.bench.figure import Figure, compare
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore

_CALLS = 20  # a round


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def measure() -> Iterator[Figure]:
    with _sink() as port:
        handler = _handler(port)
        event = json.loads((ROOT / "events/create-images.json").read_text())
        event["headers"]["x-stainless-retry-count"] = "0"  # safe to retry, so that the api function does the work
        bare = _bare(port)
        yield compare(
            "warm handler, one 1.5 MB image by URL / bare urllib3 making the same calls",
            lambda: _milliseconds(lambda: handler(event)),
            lambda: _milliseconds(bare),
            rounds=25,
            budget=1.25,
        )


def _milliseconds(call: Any) -> float:
    started = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return (time.perf_counter() - started) * 1000 / _CALLS


@contextmanager
def _sink() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sink"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield int(process.stdout.readline() if process.stdout else 0)
    finally:
        process.kill()
        process.communicate()


def _handler(port: int) -> Any:
    os.environ |= {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "API_IS_FIRST_WORKER": "true",
        "GENERATION_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "GENERATION_TABLE": "bench",
        "IMAGE_BUCKET": "bench",
        "LEASE_SECONDS": "60",
        "LINK_SECONDS": "3600",
        "MAX_IMAGE_BYTES": "26214400",
        "MOST_WAITERS": "100",
        "PROMPT_MAX_CHARACTERS": "1000",
        "RECORD_DAYS": "90",
        "REPEAT_UNKNOWN_CALLS": "true",
        "UPSTREAM_API_KEY_PARAMETER": "/bench",
        "UPSTREAM_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "UPSTREAM_TIMEOUT_SECONDS": "20",
        "WAIT_SECONDS": "25",
        "POWERTOOLS_LOG_LEVEL": "ERROR",  # the line a request goes to the terminal otherwise
    }
    from functions.api import app  # noqa: PLC0415
    from imagegen.bootstrap.api import api  # noqa: PLC0415

    wired = api()
    wired.workshop.providers["openai_compatible"]._key = lambda _: "sk-bench"  # type: ignore[attr-defined]
    records, queue = FakeGenerationStore(), FakeGenerationQueue()
    in_memory = replace(
        wired,
        desk=replace(wired.desk, records=records, queue=queue),
        workshop=replace(wired.workshop, records=records, queue=queue),
    )
    app.api = lambda: in_memory  # type: ignore[assignment, attr-defined]

    def call(event: dict[str, Any]) -> None:
        answer = app.lambda_handler(event, _Context())  # type: ignore[arg-type]
        if answer["statusCode"] != 200:
            raise RuntimeError(answer["body"])

    return call


def _bare(port: int) -> Any:
    pool = urllib3.PoolManager()
    origin = f"http://127.0.0.1:{port}"
    request = json.dumps({"model": "dall-e-3", "prompt": "A cute baby sea otter", "n": 1}).encode()

    def call() -> None:
        answer = pool.request("POST", f"{origin}/v1/images/generations", body=request)
        image = pool.request("GET", json.loads(answer.data)["data"][0]["url"])
        pool.request("PUT", f"{origin}/bench/image", body=image.data)

    return call
