"""The growth of the peak of resident memory, each time in a new process. A MB is a million bytes."""

import statistics
import subprocess
import sys
from collections.abc import Iterator

from imagegen.aws_limits import LAMBDA_REQUEST_BYTES
from tests.bench import sink
from tests.bench.figure import Figure
from tests.bench.file_of_requests import LINE_BYTES
from tests.bench.memory_of import FILE_LINES, IMAGE_BYTES, INPUT_BYTES, INPUTS, LARGEST, TASKS, N

_ROUNDS = 5
_BUDGET_BYTES = 8_000_000
_BASE64_BYTES = N * 4 * ((IMAGE_BYTES + 2) // 3)


def measure() -> Iterator[Figure]:
    with sink.running() as port:
        grown = {
            task: statistics.median(peak_growth(task, port) for _ in range(_ROUNDS))
            for task in TASKS
            if task != LARGEST
        }
    by_url = "extra memory, ten 4 MB images by URL, all at once"
    yield _figure(f"{by_url} / its budget", grown["images by url"], _BUDGET_BYTES, 1.0)
    yield _figure(
        f"{by_url} / each read whole and stored, one by one", grown["images by url"], grown["usual images by url"]
    )
    yield _figure(
        "extra memory, ten 4 MB images streamed as base64 / that answer", grown["streamed answer"], _BASE64_BYTES, 0.05
    )
    inline = "extra memory, ten 4 MB images in one upstream answer"
    yield _figure(f"{inline} / that answer", grown["images in base64"], _BASE64_BYTES)
    yield _figure(f"{inline} / json.loads, b64decode", grown["images in base64"], grown["usual images in base64"])
    yield _figure(
        "extra memory of the api function, the largest form / its event",
        grown["largest form"],
        LAMBDA_REQUEST_BYTES,
        2.5,
    )
    yield _figure(
        f"extra memory of the worker, {INPUTS} inputs of {INPUT_BYTES // 1_000_000} MB / its budget",
        grown["sixteen inputs"],
        _BUDGET_BYTES,
        1.0,
    )
    file = f"extra memory, a batch of {FILE_LINES} lines validated, read and answered"
    yield _figure(f"{file} / its file", grown["file of requests"], FILE_LINES * LINE_BYTES, 0.3)


def _figure(name: str, product: float, baseline: float, budget: float | None = None) -> Figure:
    return Figure(name, product / 1e6, baseline / 1e6, budget, "MB")


def peak_growth(task: str, port: int) -> int:
    """The bytes by which a task makes the peak of resident memory grow. `port` is the sink's."""
    command = [sys.executable, "-m", "tests.bench.memory_of", task, str(port)]
    return int(subprocess.run(command, cwd=sink.ROOT, check=True, stdout=subprocess.PIPE).stdout)
