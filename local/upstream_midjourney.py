"""Midjourney by the protocol of midjourney-proxy, as a new-api reseller serves it: submits, polls and their answers."""

import json
import math
import re
import uuid
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import replace

from local.serving import Reply, Request, Responder
from local.upstream_replies import json_reply
from local.upstream_tasks import Charge, Fate, Studio, Task, Tasks, failing, json_object, milliseconds

PROTOCOL = "midjourney"
MODEL = "mj_imagine"  # as new-api names the model that it bills

_MODES = r"/(?:mj-(fast|relax|turbo)/)?mj"
_SUBMIT = re.compile(rf"{_MODES}/submit/imagine")
_FETCH = re.compile(rf"{_MODES}/task/([^/?]+)/fetch")
_INSTANCE = "1118138338562560102"
# The parts of the work after which a task is IN_PROGRESS, and after which it has a preview.
_IN_PROGRESS, _PREVIEW = 0.1, 0.5
# Midjourney's parameters and their values: evolink's prompt guides for V7 and V8.1, and those of earlier versions.
_ALIASES = {"aspect": "ar", "version": "v", "s": "stylize", "c": "chaos", "q": "quality", "w": "weird", "p": "profile"}
_FLAGS = {
    "ar": r"[1-9]\d{0,3}:[1-9]\d{0,3}",
    "chaos": r"\d\d?|100",
    "cref": r"\S.*",
    "cw": r"\d\d?|100",
    "exp": r"\d\d?|100",
    "iw": r"[0-2](\.\d+)?|\.\d+|3",
    "niji": r"\d",
    "no": r"\S.*",
    "oref": r"\S.*",
    "ow": r"\d{1,3}|1000",
    "profile": r".*",
    "quality": r"0?\.25|0?\.5|1|2|4",
    "seed": r"\d{1,10}",
    "sref": r"\S.*",
    "stop": r"[1-9]\d|100",
    "style": r"\w+",
    "stylize": r"\d{1,3}|1000",
    "sv": r"\d",
    "sw": r"\d{1,3}|1000",
    "v": r"\d(\.\d)?",
    "weird": r"[0-2]?\d{1,3}|3000",
    **dict.fromkeys(("draft", "fast", "raw", "relax", "tile", "turbo"), ""),
}


class _Body(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    bot_type: Literal["MID_JOURNEY", "NIJI_JOURNEY"]
    prompt: str = ""
    base64_array: list[Annotated[str, Meta(pattern="^data:image/[a-z]+;base64,.")]] = []
    notify_hook: Annotated[str, Meta(max_length=2000)] = ""
    state: Annotated[str, Meta(max_length=255)] = ""
    account_filter: dict[str, Any] = {}


class Midjourney:
    """`running` tasks run at once, `queued` tasks wait for them.

    With `rewrites_codes` the codes 21 and 22 are 1 instead, as new-api answers. With `is_bare` polls are answered as
    by the proxy itself: an unknown id with an empty body, a failed task without progress.
    """

    def __init__(self, studio: Studio) -> None:
        self.rewrites_codes = False
        self.is_bare = False
        self._studio = studio
        self._tasks = Tasks[_Body](running=3, queued=10)

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
        return request.method == "POST" and bool(_SUBMIT.fullmatch(request.target))

    def is_poll(self, request: Request) -> bool:
        return request.method == "GET" and bool(_FETCH.fullmatch(request.target))

    def entry(self, request: Request) -> dict[str, Any] | Reply:
        """The entry of `StandInUpstream.calls`, or a refusal if the body is no JSON object.

        `prompt` is the text before the flags, `full_prompt` is what was sent, `mode` is that of the path.
        """
        sent = json_object(request)
        if sent is None:
            return gateway_error("bind_request_body_failed")
        prompt, mode = sent.get("prompt"), _SUBMIT.fullmatch(request.target)
        names = {"model": MODEL, "n": 1, "protocol": PROTOCOL, "mode": mode and mode[1]}
        return {**sent, "prompt": text_of(prompt) if isinstance(prompt, str) else "", "full_prompt": prompt, **names}

    def begin(self, request: Request) -> tuple[Reply, bool]:
        """The answer to a submit, and whether it was accepted."""
        try:
            body = convert(json_object(request), _Body)
        except ValidationError as error:
            return gateway_error("bind_request_body_failed", str(error)), False
        prompt = body.prompt.strip()
        if not prompt:
            return gateway_error("prompt_is_required"), False
        with self._tasks.lock:
            now = self._studio.now()
            if same := self._same(prompt, body.bot_type, now):
                self._tasks.charge(same, 1)
                shown = self._shown(same, now, request)
                said = {name: shown[name] for name in ("status", "imageUrl") if shown[name]}
                return self._submitted(21, "Task already exists", same.id, **said), True
            task = Task(
                id=_new_id(),
                prompt=text_of(prompt),
                asked=replace(body, prompt=prompt),
                submitted=now,
                seconds=self._studio.task_seconds,
            )
            waiting = self._tasks.add(task, now)
            if waiting is None:
                return queue_full()(request), False
            if "seed" not in dict(_flags(prompt)):
                task.indexes = (self._studio.next_index(task.prompt),)
            wrong = _wrong_flag(prompt)
            task.fate = failing(f"Invalid parameter, {wrong}") if wrong else self._studio.fate(task.prompt)
            self._tasks.charge(task, 1)
            if not waiting:
                return self._submitted(1, "Submit success", task.id), True
            return self._submitted(22, f"In queue: {waiting}", task.id, numberOfQueues=waiting), True

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

    def _submitted(self, code: int, description: str, task_id: str, **properties: Any) -> Reply:
        code = 1 if self.rewrites_codes and code in (21, 22) else code
        properties["discordInstanceId"] = _INSTANCE
        return json_reply(200, {"code": code, "description": description, "result": task_id, "properties": properties})

    def _same(self, prompt: str, bot_type: str, now: float) -> Task[_Body] | None:
        """A task with this prompt that has not failed."""
        for task in self._tasks.known(now):
            has_failed = task.has_ended(now) and task.fate.status in ("failed", "cancelled")
            if (task.asked.prompt, task.asked.bot_type) == (prompt, bot_type) and not has_failed:
                return task
        return None

    def _shown(self, task: Task[_Body], now: float, request: Request) -> dict[str, Any]:
        """The answer to a poll."""
        prompt, status, done = task.asked.prompt, _status(task, now), task.done(now)
        has_failed = status in ("FAILURE", "CANCEL")
        url = ""
        if status == "SUCCESS" and task.fate.has_urls:
            url = self._url(task, 1, request)
        elif status == "IN_PROGRESS" and done >= _PREVIEW:
            url = self._url(task, 4, request)
        return {
            "id": task.id,
            "action": "IMAGINE",
            "status": status,
            "progress": "" if has_failed and self.is_bare else f"{max(0, int(done * 100))}%",
            "prompt": prompt,
            "promptEn": prompt,
            "description": f"/imagine {prompt}",
            "state": task.asked.state,
            "submitTime": milliseconds(task.submitted),
            "startTime": milliseconds(task.began),
            "finishTime": milliseconds(task.ends) if task.has_ended(now) else 0,
            "imageUrl": url,
            "failReason": task.fate.reason if has_failed else "",
            "buttons": _buttons(task.id) if status == "SUCCESS" else [],
            "properties": {"finalPrompt": prompt, "discordInstanceId": _INSTANCE},
        }

    def _url(self, task: Task[_Body], reduction: int, request: Request) -> str:
        """The URL of the grid, with its sides divided by the reduction."""
        name = f"1/{reduction}"
        if name not in task.urls:
            prompt = task.asked.prompt
            size = _size(dict(_flags(prompt)).get("ar", "1:1"), reduction)
            task.urls[name] = self._studio.grid(task.prompt, prompt, task.indexes[0], size, request)
        return task.urls[name]


def text_of(prompt: str) -> str:
    """The text before the flags."""
    return _parts(prompt)[0].strip()


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


def _parts(prompt: str) -> list[str]:
    """The text, then each flag with its value. Midjourney takes an em dash before a name for two hyphens."""
    return re.split(r"(?:^|\s)(?:--|—(?=\w))", prompt)


def _flags(prompt: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in _parts(prompt)[1:]:
        name, _, value = part.strip().partition(" ")
        found.append((_ALIASES.get(name, name), value.strip()))
    return found


def _wrong_flag(prompt: str) -> str | None:
    """Why Midjourney refuses the flags."""
    seen: set[str] = set()
    for name, value in _flags(prompt):
        if name not in _FLAGS:
            return f"Unrecognized parameter(s): --{name}"
        if name in seen:
            return f"Duplicate parameter: --{name}"
        if not re.fullmatch(_FLAGS[name], value) or (name == "seed" and int(value) > 4294967295):
            return f"Invalid value for --{name}: {value}"
        seen.add(name)
    return None


def _size(ratio: str, reduction: int) -> str:
    """The longer side is at most 1024 pixels, and all sides are even. The ratio is exact up to 512."""
    width, height = map(int, ratio.split(":"))
    common = math.gcd(width, height)
    width, height = width // common, height // common
    unit = 512 / max(width, height)
    unit = math.floor(unit) if unit >= 1 else unit
    return "x".join(str(2 * max(1, round(side * unit / reduction))) for side in (width, height))


def _status(task: Task[_Body], now: float) -> str:
    if task.has_ended(now):
        return {"succeeded": "SUCCESS", "failed": "FAILURE", "cancelled": "CANCEL"}[task.fate.status]
    if math.isinf(task.began):
        return "NOT_START"
    return "IN_PROGRESS" if task.done(now) >= _IN_PROGRESS else "SUBMITTED"


def _buttons(task_id: str) -> list[dict[str, Any]]:
    job = uuid.uuid5(uuid.NAMESPACE_OID, task_id)
    ids = {f"{label}{at}": f"{action}::{at}::{job}" for label, action in _ACTIONS.items() for at in range(1, 5)}
    ids["🔄"] = f"MJ::JOB::reroll::0::{job}::SOLO"
    return [
        {"customId": custom_id, "label": "" if label == "🔄" else label, "emoji": "🔄" if label == "🔄" else ""}
        | {"type": 2, "style": 2}
        for label, custom_id in ids.items()
    ]


_ACTIONS = {"U": "MJ::JOB::upsample", "V": "MJ::JOB::variation"}
