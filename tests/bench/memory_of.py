"""`python -m tests.bench.memory_of TASK PORT`: one task in a process of its own. The port is the sink's.

Runs the task once with one tiny image, then in large. Prints by how many bytes the peak of resident memory grew in the
second run.
"""

import gc
import json
import resource
import sys
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path

import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import AnsweredImage, CallAnswer, Generation, StoredImage, UpstreamAttempt
from imagegen.domain.image_format import PNG
from imagegen.domain.images import ImageBody, ImageRequest
from imagegen.domain.inputs import InputImage, new_input_id
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.answers import base64_answer
from tests.bench import file_of_requests, in_memory
from tests.support.models import admitted

N = 10
IMAGE_BYTES = 4_000_000
INPUTS, INPUT_BYTES = 16, 8_000_000
FILE_LINES = 50_000  # the most of a batch over HTTP
LARGEST = "largest images in base64"
LARGEST_IMAGE_BYTES = 25 * 1024 * 1024  # the default of MaxImageBytes
_TINY_BYTES = 1_000
_SECONDS = 60.0

Task = Callable[[], object]


def main() -> None:
    task, port = sys.argv[1:]
    print(_growth(*TASKS[task](int(port))))


def _growth(tiny: Task, large: Task) -> int:
    tiny()
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    except OSError:
        before, peak = _highest_ever(), _highest_ever
    else:
        before, peak = _highest_since(), _highest_since
    large()
    return peak() - before


def _highest_since() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _highest_ever() -> int:
    """For systems that cannot reset the peak. Memory that only the start needed hides a part of the growth."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _images_by_url(port: int) -> tuple[Task, Task]:
    """The api function: every image downloaded and stored at the same time."""
    handler = in_memory.api_handler(port)
    tiny = in_memory.event(n=1, prompt=f"bytes={_TINY_BYTES}")
    large = in_memory.event(n=N, prompt=f"bytes={IMAGE_BYTES}&at_once={N}")
    return lambda: handler(tiny), lambda: handler(large)


def _usual_images_by_url(port: int) -> tuple[Task, Task]:
    """Each image read whole and then stored, in one loop: the last one is released when the next has arrived."""
    pool = urllib3.PoolManager()
    origin = f"http://127.0.0.1:{port}"

    def copy(n: int, size: int) -> None:
        request = {"model": "dall-e-3", "prompt": f"bytes={size}", "n": 1}
        for _ in range(n):
            answer = pool.request("POST", f"{origin}/v1/images/generations", json=request)
            image = pool.request("GET", answer.json()["data"][0]["url"])
            pool.request("PUT", f"{origin}/bench/image", body=image.data)

    return lambda: copy(1, _TINY_BYTES), lambda: copy(N, IMAGE_BYTES)


def _streamed_answer(port: int) -> tuple[Task, Task]:
    """The api function: all images are stored. It sends the answer with their base64."""
    worker = in_memory.worker(port)
    tiny, large = _made(worker, 1, _TINY_BYTES), _made(worker, N, IMAGE_BYTES)

    def send(generation: Generation) -> None:
        with base64_answer(generation, worker.images, Deadline.after(_SECONDS)) as (_, blocks):
            deque(blocks, maxlen=0)

    return lambda: send(tiny), lambda: send(large)


def _images_in_base64(port: int, size: int = IMAGE_BYTES) -> tuple[Task, Task]:
    """One upstream call whose answer holds every image."""
    worker = in_memory.worker(port)
    tiny, large = _queued(worker, 1, _TINY_BYTES), _queued(worker, N, size)
    return lambda: _work(worker, tiny), lambda: _work(worker, large)


def _usual_images_in_base64(port: int) -> tuple[Task, Task]:
    pool = urllib3.PoolManager()
    origin = f"http://127.0.0.1:{port}"

    def copy(n: int, size: int) -> None:
        request = {"model": "gpt-image-1", "prompt": f"bytes={size}", "n": n}
        answer = pool.request("POST", f"{origin}/v1/images/generations", json=request)
        for image in json.loads(answer.data)["data"]:
            pool.request("PUT", f"{origin}/bench/image", body=b64decode(image["b64_json"]))

    return lambda: copy(1, _TINY_BYTES), lambda: copy(N, IMAGE_BYTES)


def _largest_form(port: int) -> tuple[Task, Task]:
    """The api function: a form as large as Lambda accepts, from the text of its event on."""
    handler, text = in_memory.api_handler(port), in_memory.largest_form()
    tiny = in_memory.event(n=1, prompt=f"bytes={_TINY_BYTES}")
    return lambda: handler(tiny), lambda: handler(json.loads(text))


def _sixteen_inputs(port: int) -> tuple[Task, Task]:
    """The worker: sixteen input images are read from the bucket while they are sent."""
    worker = in_memory.worker(port)
    tiny, large = (_edit(worker, port, n, size) for n, size in ((1, _TINY_BYTES), (INPUTS, INPUT_BYTES)))
    return lambda: _work(worker, tiny), lambda: _work(worker, large)


def _file_of_requests(_: int) -> tuple[Task, Task]:
    """The intake: each line of a file begins a generation, and the output files are written."""
    return lambda: file_of_requests.run(1), lambda: file_of_requests.run(FILE_LINES)


TASKS: Mapping[str, Callable[[int], tuple[Task, Task]]] = {
    "images by url": _images_by_url,
    "usual images by url": _usual_images_by_url,
    "streamed answer": _streamed_answer,
    "images in base64": _images_in_base64,
    LARGEST: lambda port: _images_in_base64(port, LARGEST_IMAGE_BYTES),
    "usual images in base64": _usual_images_in_base64,
    "largest form": _largest_form,
    "sixteen inputs": _sixteen_inputs,
    "file of requests": _file_of_requests,
}


def _edit(worker: GenerationWorker, port: int, n: int, size: int) -> Generation:
    inputs = tuple(InputImage("image", new_input_id(), "", PNG, size, 8, 8) for _ in range(n))
    pool = urllib3.PoolManager()
    for image in inputs:
        pool.request("PUT", f"http://127.0.0.1:{port}/bench/inputs/{image.id}", body=bytes(size))
    request = ImageRequest(
        prompt="an otter", model="gpt-image-1.5", response_format="b64_json", operation="edit", inputs=inputs
    )
    generation = admitted(request, caller="bench", base_url="https://bench", now=time.time())
    worker.records.create(generation)
    return generation


def _queued(worker: GenerationWorker, n: int, size: int) -> Generation:
    request = ImageRequest(prompt=f"bytes={size}", model="gpt-image-1", response_format="b64_json", n=n)
    generation = admitted(request, caller="bench", base_url="https://bench", now=time.time())
    worker.records.create(generation)
    return generation


def _made(worker: GenerationWorker, n: int, size: int) -> Generation:
    """A generation whose worker died after all images were stored."""
    generation = _queued(worker, n, size)
    records, owner = worker.records, "dead"
    records.claim(generation.id, owner, now=0, lease_until=0)
    (call,) = generation.calls
    answered = CallAnswer(tuple(AnsweredImage() for _ in call.image_ids))
    records.save_attempt(generation.id, owner, 0, 1, UpstreamAttempt("default", 0))
    records.save_answer(generation.id, 0, answered)
    block = bytes(_TINY_BYTES)
    for image_id in call.image_ids:
        body = ImageBody("image/png", size, repeat(block, size // len(block)))
        worker.images.save(image_id, body, Deadline.after(_SECONDS), generation_id="gen_1")
        records.save_image(generation.id, image_id, StoredImage("image/png", size))
    made = records.get(generation.id)
    if made is None:
        raise AssertionError("a record was just written")
    return made


def _work(worker: GenerationWorker, generation: Generation) -> None:
    worker.on_message(generation.id, 0, Deadline.after(_SECONDS), extend_visibility=lambda _: None)
    record = worker.records.get(generation.id)
    if record is None or record.status != "completed":
        raise RuntimeError(record and record.failure)


if __name__ == "__main__":
    main()
