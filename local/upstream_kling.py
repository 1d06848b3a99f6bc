"""Kling's images and virtual try-on, as resellers offer them: submits, polls and their answers."""

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from msgspec import Meta, Struct, ValidationError, convert

from local import upstream_painting as painting
from local.serving import Reply, Request, Responder
from local.upstream_inputs import MEGABYTE, Input, noted, read_base64
from local.upstream_replies import json_reply
from local.upstream_studio import Studio, json_object
from local.upstream_tasks import Charge, Fate, Task, Tasks, failing, milliseconds

PATH = "/kling/v1/images/generations"
TRY_ON_PATH = "/kling/v1/images/kolors-virtual-try-on"
PROTOCOL = "kling"

_V2 = {"kling-v2", "kling-v2-new", "kling-v2-1"}
_MODELS = {"kling-v1", "kling-v1-5"} | _V2
_TRY_ON = "kolors-virtual-try-on-v1"
_TRY_ON_MODELS = {_TRY_ON, "kolors-virtual-try-on-v1-5"}
_IMAGE_FIELDS = ("image", "human_image", "cloth_image")
_URL_SCHEMES = ("http://", "https://")
_LEAST_SIDE, _MOST_RATIO, _MOST_BYTES = 300, 2.5, 10 * MEGABYTE
_STATUSES = {
    **dict.fromkeys(range(1000, 1005), 401),
    **dict.fromkeys((1100, 1101, 1102, 1302, 1303, 1304), 429),
    **dict.fromkeys((1200, 1201, 1300, 1301), 400),
    **dict.fromkeys((1202, 1203), 404),
    1103: 403,
    5000: 500,
    5001: 503,
    5002: 504,
}
# The part of the work after which a task is "processing".
_PROCESSING = 0.1

_Fidelity = Annotated[float, Meta(ge=0, le=1)]


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: Annotated[str, Meta(max_length=2500)]
    model_name: str = "kling-v1"
    negative_prompt: Annotated[str, Meta(max_length=2500)] = ""
    image: str = ""
    image_reference: Literal["subject", "face"] | None = None
    image_fidelity: _Fidelity = 0.5
    human_fidelity: _Fidelity | None = None
    resolution: Literal["1k", "2k"] = "1k"
    n: Annotated[int, Meta(ge=1, le=9)] = 1
    aspect_ratio: Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9"] = "16:9"
    callback_url: str = ""
    external_task_id: str = ""


class _TryOn(Struct, frozen=True, forbid_unknown_fields=True):
    human_image: str
    cloth_image: str
    model_name: str = _TRY_ON
    callback_url: str = ""
    external_task_id: str = ""


class _Work(Struct, frozen=True):
    """What a task does. `path` is that of its submit. `text`, `size` and `strip` are what the pictures show."""

    path: str
    prompt: str
    text: str
    size: str
    n: int
    external_task_id: str
    strip: tuple[painting.Thumbnail, ...]


class Kling:
    """`concurrency` is the number of images at once. None is no limit."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._tasks = Tasks[_Work](running=None, queued=0)

    @property
    def concurrency(self) -> int | None:
        return self._tasks.running

    @concurrency.setter
    def concurrency(self, images: int | None) -> None:
        self._tasks.running = images

    @property
    def refused(self) -> int:
        """How many submits were refused because there was no room."""
        return self._tasks.refused

    def charges(self) -> list[Charge]:
        """One unit an image."""
        return self._tasks.charges(PROTOCOL, self._studio.now(), refunds=self._studio.refunds)

    def is_submit(self, request: Request) -> bool:
        return request.method == "POST" and request.target in (PATH, TRY_ON_PATH)

    def is_poll(self, request: Request) -> bool:
        return request.method == "GET" and request.target.startswith((f"{PATH}/", f"{TRY_ON_PATH}/"))

    def entry(self, request: Request) -> dict[str, Any] | Reply:
        """The entry of `StandInUpstream.calls`, or a refusal if the body is no JSON object."""
        sent = json_object(request)
        if sent is None:
            return error(1200, "The body is not a JSON object.")
        images = [each for name in _IMAGE_FIELDS if (each := _input(name, sent.get(name)))]
        shown = {name: noted(value) if name in _IMAGE_FIELDS else value for name, value in sent.items()}
        is_try_on = request.target == TRY_ON_PATH
        model = sent.get("model_name", _TRY_ON if is_try_on else "kling-v1")
        call = {"prompt": "", "n": 1, **shown, "model": model, "protocol": PROTOCOL}
        if is_try_on:
            call["operation"] = "try-on"
        return call | ({"images": images} if images or is_try_on else {})

    def begin(self, request: Request) -> tuple[Reply, bool]:
        """The answer to a submit, and whether it was accepted."""
        work = _work(request)
        if isinstance(work, Reply):
            return work, False
        with self._tasks.lock:
            now = self._studio.now()
            if work.external_task_id and self._of(work.external_task_id, now):
                return error(1201, f"external_task_id {work.external_task_id} exists already"), False
            task = Task(
                id=str(uuid.uuid4().int)[:18],
                prompt=work.prompt,
                asked=work,
                submitted=now,
                seconds=self._studio.task_seconds,
                slots=work.n,
                indexes=tuple(self._studio.next_index(work.prompt) for _ in range(work.n)),
            )
            if self._tasks.add(task, now) is None:
                return error(1303, "parallel task over resource pack limit"), False
            task.fate = self._studio.fate(work.prompt)
            self._tasks.charge(task, work.n)
            return _succeed(self._head(task, now)), True

    def find(self, request: Request) -> Task[Any] | None:
        """The task that a poll asks for, by its id or its external_task_id. It is found below its own path only."""
        path = PATH if request.target.startswith(f"{PATH}/") else TRY_ON_PATH
        wanted = unquote(request.target.removeprefix(f"{path}/"))
        with self._tasks.lock:
            now = self._studio.now()
            task = self._tasks.find(wanted, now) or self._of(wanted, now)
            return task if task and task.asked.path == path else None

    def show(self, request: Request) -> Reply:
        """The answer to a poll."""
        task = self.find(request)
        if task is None:
            return error(1203, "task not found")
        with self._tasks.lock:
            now = self._studio.now()
            whole = self._head(task, now)
            if task.has_ended(now):
                is_refunded = self._studio.refunds and task.fate.status == "failed"
                whole["final_unit_deduction"] = "0" if is_refunded else str(task.asked.n)
            if whole["task_status"] == "succeed":
                urls = [self._url(task, at, request) for at in range(task.asked.n)]
                whole["task_result"] = {"images": [{"index": at, "url": url} for at, url in enumerate(urls)]}
            return _succeed(whole)

    def _of(self, external_task_id: str, now: float) -> Task[_Work] | None:
        known = self._tasks.known(now)
        return next((task for task in known if task.asked.external_task_id == external_task_id), None)

    def _url(self, task: Task[_Work], at: int, request: Request) -> str:
        if not task.fate.has_urls:
            return ""
        if str(at) not in task.urls:
            work = task.asked
            paint = partial(painting.paint, work.text, task.indexes[at], work.size, strip=work.strip)
            task.urls[str(at)] = self._studio.hosted_later(paint, task.prompt, request)
        return task.urls[str(at)]

    def _head(self, task: Task[_Work], now: float) -> dict[str, Any]:
        """What submits and polls say of a task."""
        has_failed = task.fate.status in ("failed", "cancelled")
        if task.has_ended(now):
            status, updated = "failed" if has_failed else "succeed", task.ends
        elif task.done(now) >= _PROCESSING:
            status, updated = "processing", task.began + _PROCESSING * task.seconds
        else:
            status, updated = "submitted", task.submitted
        external = task.asked.external_task_id
        return {
            "task_id": task.id,
            "task_status": status,
            "task_status_msg": task.fate.reason if status == "failed" else "",
            "task_info": {"external_task_id": external} if external else {},
            "created_at": milliseconds(task.submitted),
            "updated_at": milliseconds(updated),
        }


def error(code: int, message: str) -> Reply:
    return json_reply(_STATUSES[code], {"code": code, "message": message, "request_id": str(uuid.uuid4())})


# Scripts and fates for `StandInUpstream`


def refusing(code: int, message: str = "no") -> Responder:
    """One of Kling's error codes with its HTTP status."""
    return lambda _: error(code, message)


def another_task(url: str = "https://images.example/1.png") -> Responder:
    """A poll answered with another task, which has succeeded."""
    images = {"images": [{"index": 0, "url": url}]}
    other = {"task_id": "1", "task_status": "succeed", "task_status_msg": "", "task_result": images}
    return lambda _: _succeed(other | {"created_at": 1733851336696, "updated_at": 1733851344553})


def risk_control() -> Fate:
    """The task fails because its content is refused."""
    return failing("Failure to pass the risk control system")


# Other envelopes of resellers, for `StandInUpstream.changed`


def new_api_envelope(reply: Reply) -> Reply:
    """The whole answer inside a task of new-api."""
    words = {"submitted": "SUBMITTED", "processing": "IN_PROGRESS", "succeed": "SUCCESS", "failed": "FAILURE"}
    return _wrapped(reply, words, json.loads(reply.body))


def sibling_envelope(reply: Reply) -> Reply:
    """The task inside another one, with other words for its status."""
    words = {"submitted": "submitted", "processing": "processing", "succeed": "succeeded", "failed": "failed"}
    return _wrapped(reply, words, json.loads(reply.body)["data"])


def task_id_on_top(reply: Reply) -> Reply:
    """The id of the task without an envelope."""
    task = json.loads(reply.body)["data"]
    return json_reply(
        200, {"id": task["task_id"], "task_id": task["task_id"], "object": "image", "status": "", "progress": 0}
    )


def _wrapped(reply: Reply, words: Mapping[str, str], data: object) -> Reply:
    task = json.loads(reply.body)["data"]
    outer = {"task_id": task["task_id"], "status": words[task["task_status"]], "fail_reason": task["task_status_msg"]}
    return json_reply(200, {"code": "success", "message": "", "data": {**outer, "data": data}})


def _succeed(data: object) -> Reply:
    return json_reply(200, {"code": 0, "message": "SUCCEED", "request_id": str(uuid.uuid4()), "data": data})


def _size(body: _Body) -> str:
    """About a megapixel for 1k, twice the sides for 2k. The ratio is exact; the real sizes are not documented."""
    width, height = map(int, body.aspect_ratio.split(":"))
    unit = round(1024 / math.sqrt(width * height)) * int(body.resolution[0])
    return f"{width * unit}x{height * unit}"


def _work(request: Request) -> _Work | Reply:
    """What a submit asks for, or a refusal."""
    try:
        if request.target == TRY_ON_PATH:
            return _try_on(convert(json_object(request), _TryOn))
        return _generation(convert(json_object(request), _Body))
    except ValidationError as wrong:
        return error(1201, str(wrong))


def _generation(body: _Body) -> _Work | Reply:
    image = _input("image", body.image)
    if body.model_name not in _MODELS:
        return _no_such_model(body.model_name)
    if refusal := _refusal(body) or next(_wrong_image("image", body.image, image, _MOST_RATIO), None):
        return error(1201, refusal)
    strip = painting.strip_of([image.picture] if image else [])
    return _Work(PATH, body.prompt, body.prompt, _size(body), body.n, body.external_task_id, strip)


def _try_on(body: _TryOn) -> _Work | Reply:
    """The result has the size of the human's image, which the upstream does not document."""
    if body.model_name not in _TRY_ON_MODELS:
        return _no_such_model(body.model_name)
    sent = {"human_image": body.human_image, "cloth_image": body.cloth_image}
    images = {name: _input(name, value) for name, value in sent.items()}
    for name, value in sent.items():
        if refusal := next(_wrong_image(name, value, images[name], math.inf), None):
            return error(1201, refusal if value else f"{name} is required")
    strip = painting.strip_of(image.picture for image in images.values() if image)
    human = images["human_image"]
    size = "x".join(map(str, human.sides)) if human else "768x1024"
    return _Work(TRY_ON_PATH, "", "a try-on", size, 1, body.external_task_id, strip)


def _no_such_model(name: str) -> Reply:
    return error(1203, f"model {name} does not exist")


def _refusal(body: _Body) -> str | None:
    """Why the values are refused, which are valid one by one."""
    model, is_edit = body.model_name, bool(body.image)
    applies = {
        "prompt is required": not body.prompt.strip(),
        "21:9 is not supported by kling-v1": body.aspect_ratio == "21:9" and model == "kling-v1",
        "2k is for text to image with kling-v2 only": body.resolution == "2k" and (model not in _V2 or is_edit),
        "kling-v2-new requires an image": model == "kling-v2-new" and not is_edit,
        "negative_prompt is not supported with an image": is_edit and bool(body.negative_prompt),
        "image_reference is for an image with kling-v1-5": body.image_reference is not None
        and not (is_edit and model == "kling-v1-5"),
        "image_reference is required": is_edit and model == "kling-v1-5" and body.image_reference is None,
        "human_fidelity is for image_reference subject": body.human_fidelity is not None
        and body.image_reference != "subject",
    }
    return next((reason for reason, is_so in applies.items() if is_so), None)


def _input(name: str, value: object) -> Input | None:
    """The image of a field. None if it is a URL, or not base64."""
    return read_base64(name, value) if isinstance(value, str) and not value.startswith(_URL_SCHEMES) else None


def _wrong_image(name: str, value: str, image: Input | None, most_ratio: float) -> Iterator[str]:
    """Why the image of a field is refused. A URL is not opened."""
    if value.startswith(_URL_SCHEMES) or (not value and name == "image"):
        return
    if image is None:
        yield f"{name} is neither a URL nor base64"
    elif image.media_type not in ("image/jpeg", "image/png"):
        yield f"{name} is not a JPEG or PNG"
    elif len(image.content) > _MOST_BYTES:
        yield f"{name} is larger than 10 MB"
    elif min(image.sides) < _LEAST_SIDE:
        yield f"{name} has a side of less than {_LEAST_SIDE} pixels"
    elif max(image.sides) > most_ratio * min(image.sides):
        yield f"{name} has a ratio that is not between 1:{most_ratio} and {most_ratio}:1"
