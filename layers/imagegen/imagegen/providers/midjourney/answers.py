"""Reads the answers of midjourney-proxy, and of new-api in front of it."""

import re
from collections.abc import Mapping
from itertools import islice

import msgspec

from imagegen.domain.errors import (
    ImagegenError,
    PromptRejectedError,
    UpstreamFailedError,
    UpstreamOutOfCreditError,
    UpstreamRateLimitedError,
    UpstreamRefusedRequestError,
    UpstreamUnavailableError,
)
from imagegen.domain.images import ImageAction, UpstreamImage, UpstreamImages
from imagegen.providers.answer_values import (
    NULL,
    detail_of,
    image_url,
    invalid_answer,
    revised_prompt,
    value_of,
)
from imagegen.providers.lenient_json import decoded
from imagegen.providers.refusals import refusal, refused_because
from imagegen.providers.tasks import NO_TASK, task_id_of

ACCEPTED = frozenset({1, 21, 22})  # accepted, the same task exists, queued
# new-api fails so after it has sent the request, except if it could not read its own (`relay/mjproxy_handler.go`).
_FAILED = re.compile(r"(?<!bind_request_body)_failed")
_MOST_BUTTONS = 25  # as many as a message of Discord has (Discord's documentation, "Message Components")
# The ids of buttons, such as MJ::JOB::upsample::2::<uuid>, and the names of what they do.
_BUTTON = re.compile(r"MJ::JOB::(upsample|variation|reroll)::([0-4])::[\x21-\x7e]{1,100}")
_NAMES: Mapping[str, str] = {"upsample": "upscale", "variation": "variation", "reroll": "reroll"}
# What every server can do with a grid, also one that shows no buttons (midjourney-proxy, `docs/api.md`, "change").
_ACTIONS = tuple(
    ImageAction(name)
    for name in (*(f"{kind}_{index}" for kind in ("upscale", "variation") for index in range(1, 5)), "reroll")
)

# A describe answers with four prompts, numbered and separated by blank lines.
_MOST_TEXTS = 10
_BLANK_LINES = re.compile(r"\n\s*\n")
_NUMBER = re.compile(r"\s*\d(?:\ufe0f?\u20e3|[.)](?=\s))\s*")  # as 1️⃣, or as 1. before a space: not "3d", "2.5"

# The queue is full, a group of accounts is busy (new-api), a banned word, no account.
_KINDS: Mapping[int, type[ImagegenError]] = {
    23: UpstreamRateLimitedError,
    30: UpstreamRateLimitedError,
    24: PromptRejectedError,
    3: UpstreamUnavailableError,
}


class _Submitted(msgspec.Struct):
    code: msgspec.Raw = NULL
    description: msgspec.Raw = NULL
    result: msgspec.Raw = NULL


class _Properties(msgspec.Struct, rename="camel"):
    final_prompt: msgspec.Raw = NULL
    discord_instance_id: msgspec.Raw = NULL


class _Button(msgspec.Struct, rename="camel"):
    custom_id: msgspec.Raw = NULL
    label: msgspec.Raw = NULL
    emoji: msgspec.Raw = NULL


class Task(msgspec.Struct, rename="camel"):
    id: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    progress: msgspec.Raw = NULL
    image_url: msgspec.Raw = NULL
    fail_reason: msgspec.Raw = NULL
    buttons: msgspec.Raw = NULL
    properties: msgspec.Raw = NULL
    prompt_en: msgspec.Raw = NULL


def read_submitted(body: bytes | bytearray) -> tuple[int | None, str, str | None]:
    """Returns the code of an answer, its description and the task's id."""
    answer = decoded(body, _Submitted) or _Submitted()
    return value_of(answer.code, int), value_of(answer.description, str) or "", task_id_of(answer.result)


def read_task(body: bytes | bytearray, task_id: str) -> Task | None:
    """Returns `None` if the answer is not about this task."""
    task = decoded(body, Task)
    return task if task and task_id_of(task.id) == task_id else None


def is_nothing(status: int, body: bytes | bytearray) -> bool:
    """Whether an answer is that of a bare proxy which knows no such task, or one that was cut off at its begin."""
    return status == 200 and not body.strip()


def no_such_task(body: bytes | bytearray) -> bool:
    """Whether an answer says that there is no such task."""
    code, description, _ = read_submitted(body)
    return code is not None and bool(NO_TASK.search(description))


def refusal_of_code(code: int, description: str) -> ImagegenError:
    """Returns the exception for a code that accepts no task. The description does not contain the key."""
    if code == 4 and "quota_not_enough" in description:
        return refusal(UpstreamOutOfCreditError)
    if code == 4 and not _FAILED.search(description):
        return UpstreamRefusedRequestError(refused_because(description))
    return (
        refusal(_KINDS[code]) if code in _KINDS else UpstreamFailedError(f"The image model's API failed (code {code}).")
    )


def is_unknown_parent(code: int | None, description: str) -> bool:
    """Whether an answer to a change says that the server does not have the task which made the image."""
    return code == 3 or bool(NO_TASK.search(description))


def texts_of(task: Task) -> UpstreamImages:
    """Returns the prompts of a described image. Raises UpstreamAnswerInvalidError.

    Proxies say them twice (midjourney-proxy, `DescribeSuccessHandler`), and older gateways drop the properties.
    """
    properties = value_of(task.properties, _Properties) or _Properties()
    whole = value_of(properties.final_prompt, str) or value_of(task.prompt_en, str) or ""
    cut = ((revised_prompt(_without_number(part)) or "").strip() for part in _BLANK_LINES.split(whole))
    texts = tuple(islice((text for text in cut if text), _MOST_TEXTS))
    if not texts:
        raise invalid_answer()
    return UpstreamImages((UpstreamImage(texts=texts),))


def _without_number(text: str) -> str:
    number = _NUMBER.match(text)
    return text[number.end() if number else 0 :].strip()


def images_of(task: Task, seed: int | None, *, is_grid: bool) -> UpstreamImages:
    """Returns the grid, or the one picture of an upscale. Raises ImageUrlRefusedError, UpstreamAnswerInvalidError."""
    properties = value_of(task.properties, _Properties) or _Properties()
    image = UpstreamImage(
        image_url(value_of(task.image_url, str) or ""),
        revised_prompt(value_of(properties.final_prompt, str) or ""),
        details={} if seed is None else {"seed": seed},
        actions=_actions(task) or (_ACTIONS if is_grid else ()),
    )
    return UpstreamImages((image,), account=detail_of(properties.discord_instance_id) or "")


def _actions(task: Task) -> tuple[ImageAction, ...]:
    shown = (value_of(task.buttons, list[msgspec.Raw]) or [])[:_MOST_BUTTONS]
    found = (_action(value_of(raw, _Button) or _Button()) for raw in shown)
    return tuple(action for action in found if action)


def _action(button: _Button) -> ImageAction | None:
    """Returns `None` for a button whose meaning is not known."""
    match = _BUTTON.fullmatch(value_of(button.custom_id, str) or "")
    if match is None:
        return None
    index = f"_{match[2]}" if match[2] != "0" else ""
    label = detail_of(button.label) or detail_of(button.emoji) or ""
    return ImageAction(_NAMES[match[1]] + index, label, match[0])
