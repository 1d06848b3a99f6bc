"""What Midjourney's tasks do: reads the submits of midjourney-proxy, and paints and describes pictures."""

import hashlib
import math
import re
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, ValidationError, convert

from local import upstream_painting as painting
from local.upstream_inputs import MEDIA_TYPES, Input, read_data_url
from local.upstream_midjourney_prompts import flags, text_of, wrong_flag
from local.upstream_tasks import Task

Action = Literal["IMAGINE", "BLEND", "DESCRIBE", "UPSCALE", "VARIATION", "REROLL"]
GRIDS = ("IMAGINE", "BLEND", "VARIATION", "REROLL")

_RATIOS = {"PORTRAIT": "2:3", "SQUARE": "1:1", "LANDSCAPE": "3:2"}
_BUTTON = re.compile(r"MJ::JOB::(upsample|variation|reroll)::([0-4])::.+")
_ACTIONS: dict[str, Action] = {"upsample": "UPSCALE", "variation": "VARIATION", "reroll": "REROLL"}
# How midjourney-proxy names a change in a task's description, and Midjourney on a button.
_LETTERS = {"UPSCALE": "U", "VARIATION": "V", "REROLL": "R"}
_SUBJECTS = ("harbor", "garden", "street", "forest", "portrait", "room", "mountain", "meadow")
_MOODS = ("quiet", "bright", "misty", "golden", "wild", "cold", "dreamy", "old")
_STYLES = ("watercolor", "oil painting", "35mm photograph", "line drawing", "3d render", "woodcut", "pastel", "collage")

_DataUrl = Annotated[str, Meta(pattern="^data:image/[a-z]+;base64,.")]


class GatewayError(Exception):
    """new-api refuses a submit itself."""

    def __init__(self, description: str, detail: str = "") -> None:
        super().__init__(description)
        self.description, self.detail = description, detail


class ProxyError(Exception):
    """The proxy refuses a submit as not valid."""


class _Body(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    notify_hook: Annotated[str, Meta(max_length=2000)] = ""
    state: Annotated[str, Meta(max_length=255)] = ""


class _BotBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    bot_type: Literal["MID_JOURNEY", "NIJI_JOURNEY"]
    account_filter: dict[str, Any] = {}


class _Imagine(_BotBody, frozen=True, forbid_unknown_fields=True, rename="camel"):
    prompt: str = ""
    base64_array: list[_DataUrl] = []


class _Blend(_BotBody, frozen=True, forbid_unknown_fields=True, rename="camel"):
    base64_array: list[_DataUrl] = []
    dimensions: Literal["PORTRAIT", "SQUARE", "LANDSCAPE"] = "SQUARE"


class _Describe(_BotBody, frozen=True, forbid_unknown_fields=True, rename="camel"):
    base64: str = ""


class _Change(_Body, frozen=True, forbid_unknown_fields=True, rename="camel"):
    task_id: str = ""
    action: Literal["", "UPSCALE", "VARIATION", "REROLL"] = ""
    index: int = 0


class _Press(_Body, frozen=True, forbid_unknown_fields=True, rename="camel"):
    task_id: str = ""
    custom_id: str = ""


class Job(Struct, frozen=True):
    """What a task does. Equal submits have equal keys.

    `prompt` is that of polls, `script` the one by which tests script the task. `text`, `ratio` and `strip` are what the
    pictures show. `index` is that of the pictures, if it is fixed. `wrong` is why Midjourney refuses the prompt.
    """

    action: Action
    key: tuple[object, ...]
    prompt: str
    description: str
    text: str
    ratio: str = "1:1"
    strip: tuple[painting.Thumbnail, ...] = ()
    state: str = ""
    script: str = ""
    index: int | None = None
    wrong: str | None = None

    def painting(self, index: int, size: str) -> Callable[[], bytes]:
        """Paints the result. The task of a description shows the image that came with the call."""
        if self.action == "DESCRIBE":
            return partial(painting.encoded, self.strip[0].picture, "png")
        paint = painting.paint_grid if self.action in GRIDS else painting.paint
        return partial(paint, self.text, index, size, strip=self.strip)


class Change(Struct, frozen=True):
    """A change of an earlier task. `number` is that of a picture of its grid, or 0. `button` was pressed for it."""

    task_id: str
    action: Action
    number: int
    state: str
    button: str = ""


def read(call: str, sent: dict[str, Any] | None) -> Job | Change:
    """What a submit asks for. Raises GatewayError or ProxyError."""
    return _READERS[call](sent)


def changed(change: Change, parent: Task[Job]) -> Job:
    """The job of a change of a task that has succeeded. Raises ProxyError."""
    job = parent.asked
    if job.action not in GRIDS:
        raise ProxyError("关联任务不允许执行变化")
    if change.button and change.button not in button_ids(parent.id).values():
        raise ProxyError("关联按钮无效")
    letter, is_upscale = f"{_LETTERS[change.action]}{change.number or ''}", change.action == "UPSCALE"
    return Job(
        action=change.action,
        key=(change.action, parent.id, change.number),
        prompt=job.prompt,
        description=f"/up {parent.id} {letter}",
        text=job.text if is_upscale else f"{job.text} {letter}",
        ratio=job.ratio,
        strip=job.strip,
        state=change.state,
        index=painting.quarter(parent.indexes[0], change.number) if is_upscale else None,
    )


def action_of(custom_id: object) -> Action | None:
    """What the button does."""
    found = _BUTTON.fullmatch(custom_id) if isinstance(custom_id, str) else None
    return _ACTIONS[found[1]] if found else None


def button_ids(task_id: str) -> dict[str, str]:
    """The buttons of a grid: the id of each label."""
    job = uuid.uuid5(uuid.NAMESPACE_OID, task_id)
    changes = {"U": "upsample", "V": "variation"}.items()
    ids = {f"{letter}{at}": f"MJ::JOB::{name}::{at}::{job}" for letter, name in changes for at in range(1, 5)}
    return ids | {"🔄": f"MJ::JOB::reroll::0::{job}::SOLO"}


def _imagine(sent: object) -> Job:
    body = _converted(sent, _Imagine)
    prompt = body.prompt.strip()
    if not prompt:
        raise GatewayError("prompt_is_required")
    images = _inputs("base64Array", body.base64_array)
    wrong = wrong_flag(prompt)
    given = {} if wrong else dict(flags(prompt))
    return Job(
        action="IMAGINE",
        key=("IMAGINE", body.bot_type, prompt, *(image.sha256 for image in images)),
        prompt=prompt,
        description=f"/imagine {prompt}",
        text=prompt,
        ratio=given.get("ar", "1:1"),
        strip=_strip(images),
        state=body.state,
        script=text_of(prompt),
        index=1 if "seed" in dict(flags(prompt)) else None,
        wrong=wrong,
    )


def _blend(sent: object) -> Job:
    body = _converted(sent, _Blend)
    if not 2 <= len(body.base64_array) <= 5:
        raise ProxyError("base64List参数错误")
    images = _inputs("base64Array", body.base64_array)
    hashes = [image.sha256 for image in images]
    return Job(
        action="BLEND",
        key=("BLEND", body.bot_type, body.dimensions, *hashes),
        prompt="",
        description=f"/blend {hashes[0][:16]} {len(images)}",
        text=f"a blend of {len(images)}",
        ratio=_RATIOS[body.dimensions],
        strip=_strip(images),
        state=body.state,
    )


def _describe(sent: object) -> Job:
    body = _converted(sent, _Describe)
    if not body.base64:
        raise ProxyError("base64不能为空")
    (image,) = _inputs("base64", [body.base64])
    return Job(
        action="DESCRIBE",
        key=("DESCRIBE", body.bot_type, image.sha256),
        prompt=_described(image),
        description=f"/describe {image.sha256[:16]}",
        text="",
        strip=_strip([image]),
        state=body.state,
    )


def _change(sent: object) -> Change:
    body = _converted(sent, _Change)
    for name, value in {"task_id": body.task_id, "action": body.action, "index": body.index}.items():
        if not value:
            raise GatewayError(f"{name}_is_required")
    if not body.action or not 1 <= body.index <= 4:
        raise ProxyError("index参数错误")
    return Change(body.task_id, body.action, 0 if body.action == "REROLL" else body.index, body.state)


def _press(sent: object) -> Change:
    body = _converted(sent, _Press)
    for name, value in {"custom_id": body.custom_id, "task_id": body.task_id}.items():
        if not value:
            raise GatewayError(f"{name}_is_required")
    if not (found := _BUTTON.fullmatch(body.custom_id)):
        raise GatewayError("unknown_action")
    return Change(body.task_id, _ACTIONS[found[1]], int(found[2]), body.state, body.custom_id)


_READERS: dict[str, Callable[[object], Job | Change]] = {
    "imagine": _imagine,
    "blend": _blend,
    "describe": _describe,
    "change": _change,
    "action": _press,
}
_AnyBody = TypeVar("_AnyBody", bound=_Body)


def _converted(sent: object, kind: type[_AnyBody]) -> _AnyBody:
    try:
        return convert(sent, kind)
    except ValidationError as error:
        raise GatewayError("bind_request_body_failed", str(error)) from None


def _inputs(name: str, urls: list[str]) -> list[Input]:
    found = [read_data_url(name, url) for url in urls]
    images = [each for each in found if each and each.is_what_it_says and each.media_type in MEDIA_TYPES]
    if len(images) < len(urls):
        raise ProxyError("base64格式错误")
    return images


def _strip(images: Iterable[Input]) -> tuple[painting.Thumbnail, ...]:
    return painting.strip_of(image.picture for image in images)


def _described(image: Input) -> str:
    """Four prompts. Each image has its own."""
    seed = hashlib.sha256(image.content).digest()
    width, height = image.sides
    common = math.gcd(width, height)
    ratio = f"--ar {width // common}:{height // common}"
    prompts = []
    for number in range(1, 5):
        mood, subject, style = (
            words[seed[3 * number + at] % 8] for at, words in enumerate((_MOODS, _SUBJECTS, _STYLES))
        )
        prompts.append(f"{number}️⃣ a {mood} {subject}, {style} {ratio}")
    return "\n\n".join(prompts)
