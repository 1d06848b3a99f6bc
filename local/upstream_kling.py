"""Kling's images, as resellers offer them: submits, polls and their answers."""

import binascii
import json
import math
import uuid
from base64 import b64decode
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from msgspec import Meta, Struct, ValidationError, convert

from local.serving import Reply, Request, Responder
from local.upstream_replies import json_reply
from local.upstream_tasks import Charge, Fate, Studio, Task, Tasks, failing, json_object, milliseconds

PATH = "/kling/v1/images/generations"
PROTOCOL = "kling"

_V2 = {"kling-v2", "kling-v2-new", "kling-v2-1"}
_MODELS = {"kling-v1", "kling-v1-5"} | _V2
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


class Kling:
    """`concurrency` is the number of images at once. None is no limit."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._tasks = Tasks[_Body](running=None, queued=0)

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
        return request.method == "POST" and request.target == PATH

    def is_poll(self, request: Request) -> bool:
        return request.method == "GET" and request.target.startswith(f"{PATH}/")

    def entry(self, request: Request) -> dict[str, Any] | Reply:
        """The entry of `StandInUpstream.calls`, or a refusal if the body is no JSON object."""
        sent = json_object(request)
        if sent is None:
            return error(1200, "The body is not a JSON object.")
        return {"prompt": "", "n": 1, **sent, "model": sent.get("model_name", "kling-v1"), "protocol": PROTOCOL}

    def begin(self, request: Request) -> tuple[Reply, bool]:
        """The answer to a submit, and whether it was accepted."""
        try:
            body = convert(json_object(request), _Body)
        except ValidationError as wrong:
            return error(1201, str(wrong)), False
        if body.model_name not in _MODELS:
            return error(1203, f"model {body.model_name} does not exist"), False
        if refusal := _refusal(body):
            return error(1201, refusal), False
        with self._tasks.lock:
            now = self._studio.now()
            if body.external_task_id and self._of(body.external_task_id, now):
                return error(1201, f"external_task_id {body.external_task_id} exists already"), False
            task = Task(
                id=str(uuid.uuid4().int)[:18],
                prompt=body.prompt,
                asked=body,
                submitted=now,
                seconds=self._studio.task_seconds,
                slots=body.n,
                indexes=tuple(self._studio.next_index(body.prompt) for _ in range(body.n)),
            )
            if self._tasks.add(task, now) is None:
                return error(1303, "parallel task over resource pack limit"), False
            task.fate = self._studio.fate(body.prompt)
            self._tasks.charge(task, body.n)
            return _succeed(self._head(task, now)), True

    def find(self, request: Request) -> Task[Any] | None:
        """The task that a poll asks for, by its id or its external_task_id."""
        wanted = unquote(request.target.removeprefix(f"{PATH}/"))
        with self._tasks.lock:
            now = self._studio.now()
            return self._tasks.find(wanted, now) or self._of(wanted, now)

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

    def _of(self, external_task_id: str, now: float) -> Task[_Body] | None:
        known = self._tasks.known(now)
        return next((task for task in known if task.asked.external_task_id == external_task_id), None)

    def _url(self, task: Task[_Body], at: int, request: Request) -> str:
        if not task.fate.has_urls:
            return ""
        if str(at) not in task.urls:
            task.urls[str(at)] = self._studio.picture(task.prompt, task.indexes[at], _size(task.asked), request)
        return task.urls[str(at)]

    def _head(self, task: Task[_Body], now: float) -> dict[str, Any]:
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


def _refusal(body: _Body) -> str | None:
    """Why the values are refused, which are valid one by one."""
    model, is_edit = body.model_name, bool(body.image)
    applies = {
        "prompt is required": not body.prompt.strip(),
        "21:9 is not supported by kling-v1": body.aspect_ratio == "21:9" and model == "kling-v1",
        "2k is for text to image with kling-v2 only": body.resolution == "2k" and (model not in _V2 or is_edit),
        "kling-v2-new requires an image": model == "kling-v2-new" and not is_edit,
        "image is neither a URL nor base64": is_edit and not _is_image(body.image),
        "negative_prompt is not supported with an image": is_edit and bool(body.negative_prompt),
        "image_reference is for an image with kling-v1-5": body.image_reference is not None
        and not (is_edit and model == "kling-v1-5"),
        "image_reference is required": is_edit and model == "kling-v1-5" and body.image_reference is None,
        "human_fidelity is for image_reference subject": body.human_fidelity is not None
        and body.image_reference != "subject",
    }
    return next((reason for reason, is_so in applies.items() if is_so), None)


def _is_image(image: str) -> bool:
    if image.startswith(("http://", "https://")):
        return True
    try:
        return bool(b64decode(image, validate=True))
    except binascii.Error:
        return False
