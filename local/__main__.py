"""`make run`: serves the stack on this machine until Ctrl-C."""

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.outbound.web_address import read_web_address
from local.aws_door import REGION, read_delays
from local.gateway import IDLE_SECONDS
from local.serving import PortError, serving
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
    parser.add_argument("--built", action="store_true", help="run the result of `make build`")
    arguments = parser.parse_args()
    try:
        port, stage = _port(os.environ.get("PORT") or "8000"), _stage(os.environ.get("STAGE") or "")
        base_url, key = _upstream(os.environ)
        other_keys, overrides = _other_upstreams(os.environ)
        delays = read_delays(os.environ.get("AWS_DELAYS") or "")
        throttle = _flag("GATEWAY_THROTTLE", os.environ.get("GATEWAY_THROTTLE") or "0")
        concurrency = _concurrency(os.environ.get("LAMBDA_CONCURRENCY") or "")
        streaming = _streaming(os.environ.get("STREAMING") or "on")
        idle_seconds = _seconds("GATEWAY_IDLE_SECONDS", os.environ.get("GATEWAY_IDLE_SECONDS") or str(IDLE_SECONDS))
    except ValueError as error:
        return _refused(error)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as closing:
        if not base_url:
            upstream = StandInUpstream(_STAND_IN_KEY)
            upstream_port = closing.enter_context(serving(upstream.respond))
            base_url, key = f"http://127.0.0.1:{upstream_port}/v1", _STAND_IN_KEY
        options = Options(
            upstream_base_url=base_url,
            upstream_api_key=key,
            other_upstream_keys=other_keys,
            parameters={"UpstreamOverrides": overrides},
            port=port,
            stage=stage,
            built=arguments.built,
            throttle=throttle,
            delays=delays,
            concurrency=concurrency,
            streaming=streaming,
            idle_seconds=idle_seconds,
            on_answer=_print_answer,
        )
        try:
            stack = closing.enter_context(running(options, ROOT / ".local" / "logs"))
        except PortError as error:
            return _refused(error)
        print(f"ready: {stack.url}/v1  key: {stack.keys['local']}", flush=True)
        print(f"other  key: {stack.keys['other']}", flush=True)
        print(f"upstream: {base_url}   AWS: {stack.aws_url}   logs: {_relative(stack.logs)}", flush=True)
        print(f"inbox: {_aws(stack)} s3 cp events/batch.jsonl s3://{stack.inbox}/inbox/local/batch.jsonl", flush=True)
        print(f"event: {_aws(stack)} events put-events --entries '{_ENTRIES}'", flush=True)
        print(f"playground: {stack.url}/", flush=True)
        stop.wait()
        print("stopping", flush=True)
    return 0


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"PORT={text} is not a port: use a number from 1 to 65535, or 0 for any free port")
    return int(text)


def _stage(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_]{0,64}", text):
        raise ValueError(f"STAGE={text} is not a stage name: use 1 to 64 letters, digits and _")
    return text


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"{name}={text} is not valid: use 0 or 1")
    return text == "1"


def _concurrency(text: str) -> int | None:
    if not re.fullmatch("([1-9][0-9]{0,4})?", text):
        raise ValueError(f"LAMBDA_CONCURRENCY={text} is not a limit: use a number from 1 to 99999")
    return int(text) if text else None


def _streaming(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"STREAMING={text} is not valid: use on or off")
    return text == "on"


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9])?", text):
        raise ValueError(f"{name}={text} is not a number of seconds: use one from 0 to 999")
    return float(text)


def _upstream(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The base URL and the key of the upstream; None and None for the stand-in."""
    base_url, key = environ.get("UPSTREAM_BASE_URL"), environ.get("UPSTREAM_API_KEY")
    if base_url is None and not key:
        return None, None
    if not (base_url or "").strip() or not (key or "").strip():
        raise ValueError("set both UPSTREAM_BASE_URL and UPSTREAM_API_KEY, or neither to use the stand-in")
    try:
        read_web_address(base_url or "")
    except ValueError as error:
        raise ValueError(f"UPSTREAM_BASE_URL {error}: use a URL such as https://api.example.com/v1") from None
    return base_url, key


def _other_upstreams(environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The keys of the other upstreams of models.toml, and their base URLs as the parameter UpstreamOverrides."""
    keys: dict[str, str] = {}
    urls: dict[str, str] = {}
    others = {name.upper().replace("-", "_"): name for name in CONFIGURATION.upstreams}
    del others[CONFIGURATION.default_upstream.upper().replace("-", "_")]
    for variable, value in environ.items():
        for prefix, found in (("UPSTREAM_API_KEY_", keys), ("UPSTREAM_BASE_URL_", urls)):
            if variable.startswith(prefix) and value:
                suffix = variable.removeprefix(prefix)
                if suffix not in others:
                    known = ", ".join(f"{prefix}{other}" for other in others)
                    raise ValueError(f"{variable} is of no upstream in models.toml: use {known}")
                found[others[suffix]] = value
    for name, url in urls.items():
        try:
            read_web_address(url)
        except ValueError as error:
            raise ValueError(f"the base URL of {name} {error}") from None
    return keys, ",".join(f"{name}.base_url={url}" for name, url in urls.items())


def _refused(error: Exception) -> int:
    print(error, file=sys.stderr)
    return 2


def _aws(stack: LocalStack) -> str:
    """The AWS CLI command for the local stack. It replaces the credentials that the CLI would find itself."""
    credentials = f"AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local AWS_DEFAULT_REGION={REGION}"
    return f"{credentials} aws --endpoint-url {stack.aws_url}"


def _print_answer(method: str, path: str, status: int, seconds: float) -> None:
    print(f"{method} {path} {status} {seconds:.2f} s", flush=True)


def _relative(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    sys.exit(main())
