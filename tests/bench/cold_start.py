"""The time from the start of a process to its first event, for the built api function."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from local.serving import HungUpError, Reply, Request, serving
from local.stack import BUILT, ROOT, RUNTIME_PYTHON
from tests.bench.figure import Figure, compare

_BASELINE = "import boto3; boto3.client('s3', region_name='us-east-1')"


def measure() -> Iterator[Figure]:
    if not BUILT.is_dir() or not RUNTIME_PYTHON.exists():
        print("cold start: not measured, because there is no build or no python3.13")
        return
    layer = BUILT / "ImagegenLayer" / "python"
    full = _full_sdk()
    yield compare(
        "start of the built api function to its first event / import boto3; boto3.client('s3')",
        lambda: _to_first_event(BUILT / "ApiFunction", layer),
        lambda: _to_exit(_BASELINE, full),
        rounds=15,
        budget=0.75,
    )


def _full_sdk() -> Path:
    """The layer's own SDK with the data of every service, compiled: the layer itself cannot make an S3 client."""
    folder = ROOT / ".local" / "bench-sdk"
    if not (folder / "boto3").is_dir():
        lock = ROOT / "layers/imagegen/requirements.txt"
        uv = Path(sys.executable).parent / "uv"
        install: list[str | Path] = [uv, "pip", "install", "--quiet", "--require-hashes", "--python", RUNTIME_PYTHON]
        subprocess.run([*install, "--target", folder, "-r", lock], check=True)
        compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([RUNTIME_PYTHON, *compile_all, folder], check=True)
    return folder


def _to_exit(code: str, path: Path) -> float:
    started = time.perf_counter()
    subprocess.run([str(RUNTIME_PYTHON), "-c", code], env={"PYTHONPATH": str(path)}, check=True)
    return (time.perf_counter() - started) * 1000


def _to_first_event(code: Path, layer: Path) -> float:
    polled = threading.Event()
    ended = threading.Event()
    at = 0.0

    def runtime_api(_: Request) -> Reply:
        nonlocal at
        at = time.perf_counter()
        polled.set()
        ended.wait()
        raise HungUpError

    with serving(runtime_api) as port:
        environment = {
            "_HANDLER": "app.lambda_handler",
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
            "AWS_REGION": "us-east-1",
            "PYTHONPATH": str(layer),
            "STREAMING": "on",
            "PATH": os.environ["PATH"],
        }
        started = time.perf_counter()
        process = subprocess.Popen(
            [layer / "imagegen/streaming-runtime", RUNTIME_PYTHON, "-m", "awslambdaric", "app.lambda_handler"],
            cwd=code,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        if not polled.wait(30):
            process.kill()
            raise RuntimeError("the function did not start")
        process.kill()
        process.wait()
        ended.set()
    return (at - started) * 1000
