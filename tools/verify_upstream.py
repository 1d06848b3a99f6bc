"""`make verify-upstream UPSTREAM=…`: makes images at a real upstream, as the product does, and checks them.

It says what it will spend, and asks. The key comes from the environment and is not printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import secrets
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from time import sleep
from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.upstreams import upstream_access
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, NothingSpentError, UpstreamKeyRefusedError
from imagegen.domain.generations import supply_of
from imagegen.domain.images import ImageRequest, UpstreamRequest, UpstreamTask
from imagegen.domain.money import ImagePrice
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.web_address import read_web_address
from imagegen.providers.midjourney.models import PROVIDER as MIDJOURNEY
from imagegen.wire.requests import ReadRequest
from tools.prices import amounts, dollars
from tools.stacks import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imagegen.domain.models import ImageModel
    from imagegen.domain.upstreams import Upstream
    from imagegen.usecases.upstream_routes import UpstreamAccess

_PROMPT = "A red circle on white paper"
_WRONG_KEY = "sk-this-key-is-wrong"
_UNKNOWN_MODEL = "a-model-that-does-not-exist"
_CALL_SECONDS = 600.0  # default of UpstreamTimeoutSeconds in template.yaml
_MAX_IMAGE_BYTES = 25 * 1024 * 1024  # default of MaxImageBytes there
_RATIO_TOLERANCE = 0.05  # Ideogram's resolutions and Gemini's images have nearly the ratio that was asked for


@dataclass(frozen=True)
class Trial:
    """A request for one image. `price` is in millionths of a dollar, `None` if it is not known."""

    model: ImageModel
    request: ImageRequest
    price: int | None


class _FailedError(Exception):
    """The upstream does not do what it must. The message says what it did."""


def main() -> int:
    arguments = _parser().parse_args()
    try:
        upstream, key = _configured(arguments.upstream, os.environ)
        access = _access(upstream, key)
        trials = _chosen(_trials(arguments.upstream, access), arguments.model)
    except ValueError as error:
        return refuse(str(error))
    print(f"{arguments.upstream} at {upstream.base_url}")
    for trial in trials:
        price = "price unknown" if trial.price is None else dollars(trial.price)
        print(f"  {trial.model.id} {json.dumps(trial.request.options)}: {price}")
    print("  for each protocol, a wrong key and an unknown model, which cost nothing if they are refused")
    print(_in_all(trials))
    if not arguments.yes:
        if not sys.stdin.isatty():
            return refuse("nothing was sent: set YES=1 to send without a question")
        if input("Send? [y/N] ").strip().lower() not in ("y", "yes"):
            return refuse("nothing was sent")
    return _verified(arguments.upstream, access, _access(upstream, _WRONG_KEY), trials)


def _configured(name: str, environ: Mapping[str, str]) -> tuple[Upstream, str]:
    """The upstream with its base URL, and its key, by the variables that `make run` takes. Raises ValueError."""
    if name not in CONFIGURATION.upstreams:
        known = ", ".join(CONFIGURATION.upstreams)
        raise ValueError(f"there is no upstream {name!r} in models.toml: use one of {known}")
    suffix = "" if name == CONFIGURATION.default_upstream else f"_{name.upper().replace('-', '_')}"
    upstream = CONFIGURATION.upstreams[name]
    base_url = environ.get(f"UPSTREAM_BASE_URL{suffix}") or upstream.base_url
    key = environ.get(f"UPSTREAM_API_KEY{suffix}", "").strip()
    if not base_url:
        raise ValueError(f"set UPSTREAM_BASE_URL{suffix} to the address of {name}, up to and with /v1")
    if not key:
        raise ValueError(f"set UPSTREAM_API_KEY{suffix} to the key of {name}")
    try:
        read_web_address(base_url)
    except ValueError as error:
        raise ValueError(f"the base URL of {name} {error}") from None
    return msgspec.structs.replace(upstream, base_url=base_url), key


def _access(upstream: Upstream, key: str) -> UpstreamAccess:
    return upstream_access(upstream, lambda _: key, HttpPool(), timeout=_CALL_SECONDS, max_image_bytes=_MAX_IMAGE_BYTES)


def _trials(upstream: str, access: UpstreamAccess) -> list[Trial]:
    """The cheapest request for each model that the upstream serves."""
    served = (
        model
        for model in CONFIGURATION.catalog.models.values()
        if model.generates
        and any(route.upstream == upstream for route in model.routes)
        and access.serves(supply_of(model))
    )
    return [cheapest(model) for model in served]


def cheapest(model: ImageModel) -> Trial:
    """The request for one image with the smallest price. Where the size costs nothing, it is not a square."""
    options: dict[str, str]
    price: int | None
    if isinstance(model.price, ImagePrice):
        options, price = min(amounts(model.price.narrowed(model.defaults)), key=lambda each: each[1])
    else:
        options = {"quality": "low"} if "low" in model.choice("quality").values else {}
        price = model.price.most if model.price else None
    excludes_size = {"size"}.union(*(group for group in model.exclusive_fields if "size" in group))
    if sizes := [] if excludes_size & {*options, *model.defaults} else _sent_sizes(model):
        is_free = isinstance(model.price, ImagePrice)
        options["size"] = min(sizes, key=lambda size: (is_free and _ratio(size) == 1, _pixels(size)))
    read = ReadRequest(CONFIGURATION.catalog)
    return Trial(model, read.fields({"model": model.id, "prompt": _PROMPT, **options}), price)


def _sent_sizes(model: ImageModel) -> list[str]:
    field = model.fields.get("size")
    return [size for size in model.sizes if _ratio(size)] if field and field.sent else []


def _chosen(trials: Sequence[Trial], wanted: str) -> list[Trial]:
    """The wanted models: names, `all`, or "" for the cheapest model of each protocol. Raises ValueError."""
    if not trials:
        raise ValueError("no model of models.toml has a route to this upstream that it serves")
    if wanted == "all":
        return list(trials)
    if not wanted:
        by_price = sorted(
            trials, key=lambda each: (each.price is None, each.price or 0, _asked_ratio(each.request) is None)
        )
        protocols = dict.fromkeys(trial.model.provider for trial in trials)
        return [next(trial for trial in by_price if trial.model.provider == protocol) for protocol in protocols]
    by_name = {trial.model.id: trial for trial in trials}
    chosen: list[Trial] = []
    for name in wanted.split(","):
        model = CONFIGURATION.catalog.named(name)
        if model is None or model.id not in by_name:
            raise ValueError(f"this upstream serves no model {name!r}: use all, or some of {','.join(by_name)}")
        chosen.append(by_name[model.id])
    return chosen


def _in_all(trials: Sequence[Trial]) -> str:
    known = [trial.price for trial in trials if trial.price is not None]
    unknown = len(trials) - len(known)
    priced = f"in all {dollars(sum(known))} by the prices of models.toml"
    return priced + (f", and {unknown} of unknown price" if unknown else "")


def _verified(upstream: str, access: UpstreamAccess, wrong: UpstreamAccess, trials: Sequence[Trial]) -> int:
    calls = [(trial.model, _call(upstream, trial)) for trial in trials]
    firsts: dict[str, UpstreamRequest] = {}
    for model, call in calls:
        firsts.setdefault(model.provider, call)
    failed = 0
    for protocol, call in firsts.items():
        unknown = replace(call, model=_UNKNOWN_MODEL)
        failed += _line(f"{protocol}: a wrong key", partial(_wrong_key, wrong, protocol, call))
        if protocol != MIDJOURNEY:  # its calls name no model
            failed += _line(f"{protocol}: an unknown model", partial(_unknown_model, access, protocol, unknown))
    for model, call in calls:
        failed += _line(model.id, partial(_image, access, model, call))
    return 1 if failed else 0


def _call(upstream: str, trial: Trial) -> UpstreamRequest:
    name = next(route.model for route in trial.model.routes if route.upstream == upstream)
    # Kling accepts a reference only once, and equal calls to Midjourney give one task.
    reference = f"verify-{secrets.token_urlsafe(12)}"
    return UpstreamRequest(trial.request, name, trial.model.like, 1, reference, mode=trial.model.mode)


def _line(what: str, check: Callable[[], str]) -> bool:
    """Prints what a check found. Returns whether it failed."""
    started = time.monotonic()
    try:
        found, failed = check(), False
    except ImagegenError as error:
        found, failed = f"{error.code}: {error.message}", True
    except _FailedError as error:
        found, failed = str(error), True
    seconds = time.monotonic() - started
    print(f"{'FAILED' if failed else 'ok':6}  {what}  {seconds:.1f} s  {found}", flush=True)
    return failed


def _wrong_key(access: UpstreamAccess, protocol: str, call: UpstreamRequest) -> str:
    """`access` is under the wrong key. An upstream that checks no key can charge nobody."""
    error = _refusal(access, protocol, call)
    if not isinstance(error, UpstreamKeyRefusedError):
        raise _FailedError(f"{error.code} instead of {UpstreamKeyRefusedError.code}: {error.message}")
    return error.code


def _unknown_model(access: UpstreamAccess, protocol: str, call: UpstreamRequest) -> str:
    """Upstreams refuse it with many codes. Each of them must let the next route follow."""
    error = _refusal(access, protocol, call)
    if not error.another_attempt:
        raise _FailedError(f"{error.code}, after which no other route follows: {error.message}")
    return f"{error.code}, after which the next route follows"


def _refusal(access: UpstreamAccess, protocol: str, call: UpstreamRequest) -> NothingSpentError:
    try:
        access.providers[protocol].start(call, Deadline.after(access.call_seconds))
    except NothingSpentError as error:
        return error
    raise _FailedError("it was not refused, and an image may have been bought")


def _image(access: UpstreamAccess, model: ImageModel, call: UpstreamRequest) -> str:
    """Makes an image. Returns what is to be said of it. Raises _FailedError, ImagegenError."""
    deadline = Deadline.after(model.deadline_seconds if model.by_task else access.call_seconds)
    provider = access.providers[model.provider]
    answer = provider.start(call, deadline)
    pause = 0.0
    while isinstance(answer, UpstreamTask):
        if not deadline.remaining():
            raise _FailedError(f"the task {answer.id} has not ended after {model.deadline_seconds} s")
        pause = min(pause + answer.first_pause, answer.longest_pause)
        sleep(pause)
        answer = provider.poll(answer.id, call, deadline)
    (image,) = answer.images
    if image.failure or image.source is None:
        raise image.failure or _FailedError("the answer has no image")
    with access.source.open(image.source, deadline) as body:
        content = b"".join(body.blocks)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            (width, height), kind = picture.size, picture.format
    except Exception as error:
        raise _FailedError(f"{body.media_type} of {len(content)} bytes cannot be decoded") from error
    asked = _asked_ratio(call.request)
    if asked and abs(width / height / asked - 1) > _RATIO_TOLERANCE:
        raise _FailedError(f"the image is {width}x{height}, and {json.dumps(call.request.options)} was asked for")
    usage = f"  usage {json.dumps(answer.usage)}" if answer.usage else ""
    return f"{width}x{height} {kind}, {len(content)} bytes{usage}"


def _asked_ratio(request: ImageRequest) -> float | None:
    given = (request.options.get(name) for name in ("size", "aspect_ratio", "resolution"))
    return next((ratio for text in given if isinstance(text, str) and (ratio := _ratio(text))), None)


def _ratio(text: str) -> float | None:
    """The ratio of a size such as 1024x768, or of a ratio such as 4:3. `None` for any other text."""
    match = re.fullmatch(r"([1-9]\d*)[x:]([1-9]\d*)", text)
    return int(match[1]) / int(match[2]) if match else None


def _pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make verify-upstream", description=__doc__)
    parser.add_argument("--upstream", required=True, help="name of an upstream in models.toml")
    parser.add_argument("--model", default="", help="models, separated by commas, or all")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


if __name__ == "__main__":
    sys.exit(main())
