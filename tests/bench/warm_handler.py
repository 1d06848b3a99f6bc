"""The warm api handler, beside the least that the same work takes.

With one 1.5 MB image by URL: urllib3 with the same three calls to the same sink. With the largest form: decoding its
event, hashing it, and storing it in the same sink.
"""

import hashlib
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator

import urllib3

from tests.bench import in_memory, sink
from tests.bench.figure import Figure, compare

_CALLS = 20  # a round


def measure() -> Iterator[Figure]:
    with sink.running() as port:
        handler = in_memory.api_handler(port)
        event = in_memory.event()
        bare = _bare(port)
        yield compare(
            "warm handler, a synchronous request, one 1.5 MB image by URL / bare urllib3 making the same calls",
            lambda: _milliseconds(lambda: handler(event)),
            lambda: _milliseconds(bare),
            rounds=25,
            budget=1.25,
        )
        text = in_memory.largest_form()
        form = _bare_form(port, text)
        yield compare(
            "warm handler, an edit with the largest form / decoding, hashing and storing it",
            lambda: _milliseconds(lambda: handler(json.loads(text))),
            lambda: _milliseconds(form),
            rounds=5,
            budget=1.5,
        )


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return (time.perf_counter() - started) * 1000 / _CALLS


def _bare_form(port: int, text: str) -> Callable[[], None]:
    pool = urllib3.PoolManager()
    url = f"http://127.0.0.1:{port}/bench/input"

    def call() -> None:
        body = b64decode(json.loads(text)["body"])
        hashlib.sha256(body).digest()
        pool.request("PUT", url, body=body)

    return call


def _bare(port: int) -> Callable[[], None]:
    pool = urllib3.PoolManager()
    origin = f"http://127.0.0.1:{port}"
    request = json.dumps({"model": "dall-e-3", "prompt": "A cute baby sea otter", "n": 1}).encode()

    def call() -> None:
        answer = pool.request("POST", f"{origin}/v1/images/generations", body=request)
        image = pool.request("GET", json.loads(answer.data)["data"][0]["url"])
        pool.request("PUT", f"{origin}/bench/image", body=image.data)

    return call
