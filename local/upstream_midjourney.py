"""Midjourney by the protocol of midjourney-proxy, as a new-api reseller serves it: submits, polls and their answers."""

import json
import math
import re
import uuid
from typing import Any

from local import upstream_midjourney_jobs as jobs
from local.serving import Reply, Request, Responder
from local.upstream_inputs import Input, noted, read_data_url
from local.upstream_midjourney_jobs import Change, GatewayError, Job, ProxyError
from local.upstream_midjourney_prompts import size_of, text_of
from local.upstream_replies import json_reply
from local.upstream_studio import Studio, json_object
from local.upstream_tasks import Charge, Fate, Task, Tasks, failing, milliseconds

PROTOCOL = "midjourney"
MODEL = "mj_imagine"  # as new-api names the model that it bills

_MODES = r"/(?:mj-(fast|relax|turbo)/)?mj"
_SUBMIT = re.compile(rf"{_MODES}/submit/(imagine|blend|describe|change|action)")
_FETCH = re.compile(rf"{_MODES}/task/([^/?]+)/fetch")
_INSTANCE = "1118138338562560102"
# The parts of the work after which a task is IN_PROGRESS, and after which it has a preview.
_IN_PROGRESS, _PREVIEW = 0.1, 0.5
_IMAGE_FIELDS = ("base64Array", "base64")


class Midjourney:
    """`running` tasks run at once, `queued` tasks wait for them.

    With `rewrites_codes` the codes 21 and 22 are 1 instead, as new-api answers. With `is_bare` polls are answered as
    by the proxy itself: an unknown id with an empty body, a failed task without progress. Without `has_change` there is
    no /submit/change, as on a newer proxy: buttons take its place.
    """

    def __init__(self, studio: Studio) -> None:
        self.rewrites_codes = False
        self.is_bare = False
        self.has_change = True
        self._studio = studio
        self._tasks = Tasks[Job](running=3, queued=10)

    @property
    def running(self) -> int | None:
        return self._tasks.running

    @running.setter
    def running(self, tasks: int) -> None:
        self._tasks.running = tasks

    @property
    def queued(self) -> int:
        return self._tasks.queued

    @queued.setter
    def queued(self, tasks: int) -> None:
        self._tasks.queued = tasks

    @property
    def refused(self) -> int:
        """How many submits were refused because the queue was full."""
        return self._tasks.refused

    def charges(self) -> list[Charge]:
        """One unit for each accepted submit, as new-api charges: also for code 21."""
        return self._tasks.charges(PROTOCOL, self._studio.now(), refunds=self._studio.refunds)

    def is_submit(self, request: Request) -> bool:
        found = _SUBMIT.fullmatch(request.target) if request.method == "POST" else None
        return found is not None and (self.has_change or found[2] != "change")

    def is_poll(self, request: Request) -> bool:
        return request.method == "GET" and bool(_FETCH.fullmatch(request.target))

    def entry(self, request: Request) -> dict[str, Any] | Reply:
        """The entry of `StandInUpstream.calls`, or a refusal if the body is no JSON object.

        `prompt` is the text before the flags, `full_prompt` is what was sent, `mode` is that of the path.
        """
        sent, found = json_object(request), _SUBMIT.fullmatch(request.target)
        if sent is None or found is None:
            return gateway_error("bind_request_body_failed")
        images = _inputs(sent)
        call = {**_without_images(sent), "n": 1, "protocol": PROTOCOL, "mode": found[1]}
        if found[2] != "imagine":
            operation = _operation(found[2], sent)
            call |= {"prompt": "", "model": f"mj_{operation}", "operation": operation}
            return call | ({"images": images} if operation in ("blend", "describe") else {})
        prompt = sent.get("prompt")
        text = text_of(prompt) if isinstance(prompt, str) else ""
        call |= {"prompt": text, "full_prompt": prompt, "model": MODEL}
        return call | ({"images": images} if images else {})

    def begin(self, request: Request) -> tuple[Reply, bool]:
        """The answer to a submit, and whether it was accepted."""
        found = _SUBMIT.fullmatch(request.target)
        try:
            asked = jobs.read(found[2] if found else "", json_object(request))
            with self._tasks.lock:
                return self._begin(asked, request)
        except GatewayError as error:
            return gateway_error(error.description, error.detail), False
        except ProxyError as error:
            return refusing(4, str(error))(request), False

    def find(self, request: Request) -> Task[Any] | None:
        """The task that a poll asks for."""
        asked = _FETCH.fullmatch(request.target)
        with self._tasks.lock:
            return self._tasks.find(asked[2], self._studio.now()) if asked else None

    def show(self, request: Request) -> Reply:
        """The answer to a poll."""
        task = self.find(request)
        if task is None:
            return Reply(200) if self.is_bare else gateway_error("task_no_found")
        with self._tasks.lock:
            return json_reply(200, self._shown(task, self._studio.now(), request))

    def _begin(self, asked: Job | Change, request: Request) -> tuple[Reply, bool]:
        now = self._studio.now()
        job = self._changed(asked, now) if isinstance(asked, Change) else asked
        if same := self._same(job, now):
            self._tasks.charge(same, 1)
            shown = self._shown(same, now, request)
            said = {name: shown[name] for name in ("status", "imageUrl") if shown[name]}
            return self._submitted(21, "Task already exists", same.id, **said), True
        task = Task(id=_new_id(), prompt=job.script, asked=job, submitted=now, seconds=self._studio.task_seconds)
        waiting = self._tasks.add(task, now)
        if waiting is None:
            return queue_full()(request), False
        task.indexes = (self._studio.next_index(job.script or job.text) if job.index is None else job.index,)
        task.fate = failing(f"Invalid parameter, {job.wrong}") if job.wrong else self._studio.fate(task.prompt)
        self._tasks.charge(task, 1)
        if not waiting:
            return self._submitted(1, "Submit success", task.id), True
        return self._submitted(22, f"In queue: {waiting}", task.id, numberOfQueues=waiting), True

    def _changed(self, change: Change, now: float) -> Job:
        """The job of a change. Raises GatewayError or ProxyError."""
        parent = self._tasks.find(change.task_id, now)
        if parent is None:
            raise GatewayError("task_not_found")
        if _status(parent, now) != "SUCCESS":
            raise GatewayError("task_status_not_success")
        return jobs.changed(change, parent)

    def _submitted(self, code: int, description: str, task_id: str, **properties: Any) -> Reply:
        code = 1 if self.rewrites_codes and code in (21, 22) else code
        properties["discordInstanceId"] = _INSTANCE
        return json_reply(200, {"code": code, "description": description, "result": task_id, "properties": properties})

    def _same(self, job: Job, now: float) -> Task[Job] | None:
        """A task of an equal submit that has not failed."""
        for task in self._tasks.known(now):
            has_failed = task.has_ended(now) and task.fate.status in ("failed", "cancelled")
            if task.asked.key == job.key and not has_failed:
                return task
        return None

    def _shown(self, task: Task[Job], now: float, request: Request) -> dict[str, Any]:
        """The answer to a poll."""
        job, status, done = task.asked, _status(task, now), task.done(now)
        has_failed, is_description = status in ("FAILURE", "CANCEL"), job.action == "DESCRIBE"
        prompt = "" if is_description and status != "SUCCESS" else job.prompt
        url = ""
        if status == "SUCCESS" and task.fate.has_urls:
            url = self._url(task, 1, request)
        elif status == "IN_PROGRESS" and done >= _PREVIEW and not is_description:
            url = self._url(task, 4, request)
        return {
            "id": task.id,
            "action": job.action,
            "status": status,
            "progress": "" if has_failed and self.is_bare else f"{max(0, int(done * 100))}%",
            "prompt": prompt,
            "promptEn": prompt,
            "description": job.description,
            "state": job.state,
            "submitTime": milliseconds(task.submitted),
            "startTime": milliseconds(task.began),
            "finishTime": milliseconds(task.ends) if task.has_ended(now) else 0,
            "imageUrl": url,
            "failReason": task.fate.reason if has_failed else "",
            "buttons": _buttons(task.id) if status == "SUCCESS" and job.action in jobs.GRIDS else [],
            "properties": {"finalPrompt": prompt, "discordInstanceId": _INSTANCE},
        }

    def _url(self, task: Task[Job], reduction: int, request: Request) -> str:
        """The URL of the picture, with its sides divided by the reduction."""
        name = f"1/{reduction}"
        if name not in task.urls:
            painting = task.asked.painting(task.indexes[0], size_of(task.asked.ratio, reduction))
            task.urls[name] = self._studio.hosted_later(painting, task.prompt, request)
        return task.urls[name]


def gateway_error(description: str, detail: str = "") -> Reply:
    """An error that new-api makes itself. It joins both texts with a space, also if the second one is empty."""
    return json_reply(400, {"description": f"{description} {detail}", "type": "upstream_error", "code": 4})


# Scripts and fates for `StandInUpstream`


def refusing(code: int, description: str, **properties: str) -> Responder:
    """A refusal that new-api passes on from the proxy, with HTTP 200."""
    return lambda _: json_reply(200, {"code": code, "description": description, "properties": properties})


def queue_full() -> Responder:
    """The proxy's answer has an id, of no task."""
    body = {"code": 23, "description": "Queue full, try again later", "properties": {"discordInstanceId": _INSTANCE}}
    return lambda _: json_reply(200, {**body, "result": _new_id()})


def banned_word(word: str = "blood") -> Responder:
    return refusing(24, "May contain sensitive words", promptEn=word, bannedWord=word)


def saturated() -> Responder:
    """The group of the reseller's key has no capacity."""
    body = {"description": "Group saturated, try again later", "type": "upstream_error", "code": 30}
    return lambda _: json_reply(429, body)


def no_account() -> Responder:
    return refusing(3, "No available account instance")


def system_error() -> Responder:
    return refusing(9, "Submit failed, system error")


def refusing_in_gateway(description: str) -> Responder:
    """An error that new-api makes itself, such as `quota_not_enough` or `do_request_failed`."""
    return lambda _: gateway_error(description)


def another_task(url: str = "https://images.example/1.png") -> Responder:
    """A poll answered with another task, which has succeeded."""
    other = {"id": "1", "action": "IMAGINE", "status": "SUCCESS", "progress": "100%", "prompt": "a dog"}
    return lambda _: json_reply(200, {**other, "imageUrl": url, "failReason": ""})


def banned_prompt() -> Fate:
    """The task fails because its text is refused. trueai's proxy joins Midjourney's title and its text so."""
    return failing(
        "Banned prompt detected, Sorry! Our AI moderator thinks this prompt is against our community standards."
    )


def image_denied() -> Fate:
    """The task fails because its picture is refused."""
    return failing("Image denied, Request cancelled due to image filters")


CANCELLED = Fate("cancelled")


# Other answers of resellers, for `StandInUpstream.changed`


def numeric_result(reply: Reply) -> Reply:
    """The id in the answer to a submit is a number."""
    submitted = json.loads(reply.body)
    return json_reply(reply.status, submitted | {"result": int(submitted["result"])})


def without_status(reply: Reply) -> Reply:
    """A poll is answered as before new-api's first look at the proxy, which follows within 15 seconds."""
    return json_reply(reply.status, json.loads(reply.body) | {"status": "", "progress": "0%"})


def _new_id() -> str:
    return str(10**15 + uuid.uuid4().int % 10**15)


def _status(task: Task[Job], now: float) -> str:
    if task.has_ended(now):
        return {"succeeded": "SUCCESS", "failed": "FAILURE", "cancelled": "CANCEL"}[task.fate.status]
    if math.isinf(task.began):
        return "NOT_START"
    return "IN_PROGRESS" if task.done(now) >= _IN_PROGRESS else "SUBMITTED"


def _buttons(task_id: str) -> list[dict[str, Any]]:
    return [
        {"customId": custom_id, "label": "" if label == "🔄" else label, "emoji": "🔄" if label == "🔄" else ""}
        | {"type": 2, "style": 2}
        for label, custom_id in jobs.button_ids(task_id).items()
    ]


def _operation(call: str, sent: dict[str, Any]) -> str:
    """What new-api bills a submit as, without "mj_"."""
    action = {"change": sent.get("action"), "action": jobs.action_of(sent.get("customId"))}.get(call)
    return action.lower() if isinstance(action, str) and action else call


def _inputs(sent: dict[str, Any]) -> list[Input]:
    """The images of a submit."""
    found = [
        read_data_url(name, url)
        for name, value in sent.items()
        if name in _IMAGE_FIELDS
        for url in (value if isinstance(value, list) else [value])
        if isinstance(url, str)
    ]
    return [image for image in found if image]


def _without_images(sent: dict[str, Any]) -> dict[str, Any]:
    return {name: _noted(value) if name in _IMAGE_FIELDS else value for name, value in sent.items()}


def _noted(value: object) -> object:
    return [noted(each) for each in value] if isinstance(value, list) else noted(value)
