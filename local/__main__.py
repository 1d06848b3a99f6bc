"""`make run`: serves the local stack until Ctrl-C."""

import argparse
import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from local.aws_door import REGION
from local.serving import serving
from local.stack import ROOT, STACK_NAME, LocalStack, Options, running
from local.upstream import StandInUpstream

_STAND_IN_KEY = "sk-stand-in"
_ENTRY = {
    "EventBusName": STACK_NAME,
    "Source": "local",
    "DetailType": "Image Generation Requested",
    "Detail": json.dumps({"prompt": "A cute baby sea otter", "client": "local"}),
}
_ENTRIES = json.dumps([_ENTRY])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8000))
    parser.add_argument("--stage", default=os.environ.get("STAGE") or "", help="serve under this path prefix")
    parser.add_argument("--built", action="store_true", help="run what `make build` made")
    arguments = parser.parse_args()
    base_url, key = os.environ.get("UPSTREAM_BASE_URL"), os.environ.get("UPSTREAM_API_KEY")
    if bool(base_url) != bool(key):
        print("give UPSTREAM_BASE_URL and UPSTREAM_API_KEY together, or neither for the stand-in", file=sys.stderr)
        return 2

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as closing:
        if not base_url:
            upstream = StandInUpstream(_STAND_IN_KEY)
            port = closing.enter_context(serving(upstream.respond))
            base_url, key = f"http://127.0.0.1:{port}/v1", _STAND_IN_KEY
        options = Options(
            upstream_base_url=base_url,
            upstream_api_key=key,
            port=arguments.port,
            stage=arguments.stage,
            built=arguments.built,
            on_answer=_print_answer,
        )
        stack = closing.enter_context(running(options, ROOT / ".local" / "logs"))
        print(f"ready: {stack.url}/v1  key: {stack.keys['local']}", flush=True)
        print(f"other  key: {stack.keys['other']}", flush=True)
        print(f"upstream: {base_url}   AWS: {stack.aws_url}   logs: {_relative(stack.logs)}", flush=True)
        print(f"inbox: {_aws(stack)} s3 cp events/batch.jsonl s3://{stack.inbox}/inbox/local/batch.jsonl", flush=True)
        print(f"event: {_aws(stack)} events put-events --entries '{_ENTRIES}'", flush=True)
        print(f"playground: {stack.url}/", flush=True)
        stop.wait()
        print("stopping", flush=True)
    return 0


def _aws(stack: LocalStack) -> str:
    """How the AWS CLI is called, whatever its own credentials are."""
    credentials = f"AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local AWS_DEFAULT_REGION={REGION}"
    return f"{credentials} aws --endpoint-url {stack.aws_url}"


def _print_answer(method: str, path: str, status: int, seconds: float) -> None:
    print(f"{method} {path} {status} {seconds:.2f} s", flush=True)


def _relative(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    sys.exit(main())
