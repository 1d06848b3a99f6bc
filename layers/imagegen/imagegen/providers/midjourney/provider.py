"""Calls `POST /mj/submit/…` of midjourney-proxy, as resellers serve it, and polls its tasks."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from urllib.parse import quote

import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImagegenError,
    MoneySpentError,
    TryLaterError,
    UpstreamMisconfiguredError,
    UpstreamRefusedRequestError,
)
from imagegen.domain.images import ParentTask, UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import MEDIA_TYPES
from imagegen.providers.answer_values import invalid_answer, value_of
from imagegen.providers.midjourney.answers import (
    ACCEPTED,
    Task,
    images_of,
    is_nothing,
    is_unknown_parent,
    no_such_task,
    read_submitted,
    read_task,
    refusal_of_code,
    texts_of,
)
from imagegen.providers.midjourney.models import BLEND, CHANGES, DESCRIBE, DIMENSIONS, MODELS
from imagegen.providers.midjourney.prompts import seed_of, text_of
from imagegen.providers.refusals import read_refusal, request_fields, retry_after
from imagegen.providers.request_bodies import Base64Image, data_url, json_body, opened
from imagegen.providers.tasks import POLL_SECONDS, SUBMIT_SECONDS, failed_task, per_cent, unknown_task
from imagegen.providers.upstream_api import UpstreamApi

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 15.0  # new-api looks at its own upstream every 15 s
_BOTS = {"niji": "NIJI_JOURNEY"}
_OF_CODE = (400, 429, 500)  # the statuses with which new-api sends the proxy's codes

_read_refusal = partial(read_refusal, fields=request_fields(MODELS))


class MidjourneyProvider:
    """Implements `ports.ImageProvider`."""

    def __init__(self, api: UpstreamApi) -> None:
        self._api = api

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask:
        """A repetition sends the same text, and is answered with the task that the earlier call began.

        Newer servers have no `change`, but only `action`, by the button of the parent task.
        """
        with ExitStack() as closing:
            if call.like not in CHANGES:
                images = [data_url(each) for each in opened(call.inputs, closing, deadline, MEDIA_TYPES)]
                return self._submit(call, *_submission(call, images), deadline)
            try:
                return self._submit(call, "change", _change(call), deadline)
            except UpstreamMisconfiguredError:
                button = _button(call)
                if not button:
                    raise
            return self._submit(call, "action", {"taskId": _parent(call).task_id, "customId": button}, deadline)

    def _submit(self, call: UpstreamRequest, path: str, fields: Mapping[str, Any], deadline: Deadline) -> UpstreamTask:
        speed = f"/mj-{call.mode}" if call.mode else ""
        url = self._api.below_own(f"{speed}/mj", f"/submit/{path}")
        refusal = partial(_refusal, of_parent=call.parent is not None)
        answer, lost = self._api.post(url, json_body(fields), 0, deadline.sooner(SUBMIT_SECONDS), refusal)
        code, description, task_id = read_submitted(answer)
        failure: ImagegenError = lost or invalid_answer()
        if code is not None and code not in ACCEPTED:
            failure = _by_code(code, self._api.without_key(description), of_parent=call.parent is not None)
        if task_id and isinstance(failure, MoneySpentError):  # also with an unknown code: the task may be paid for
            return _pending(task_id)
        raise failure

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:  # noqa: ARG002  # no query
        return None

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        url = self._api.below_own("/mj", f"/task/{quote(task_id, safe='')}/fetch")
        answer = self._api.get(url, deadline.sooner(POLL_SECONDS))
        was_nothing = answer is not None and is_nothing(*answer)
        if was_nothing:
            answer = self._api.get(url, deadline.sooner(POLL_SECONDS))
        if answer is None:
            return _pending(task_id)
        status, body = answer
        task = read_task(body, task_id) if status == 200 else None
        if task is None:
            if no_such_task(body) or (was_nothing and is_nothing(status, body)):
                raise unknown_task()
            return _pending(task_id)
        match value_of(task.status, str):
            case "SUCCESS":
                return _result(task, call)
            case "FAILURE" | "CANCEL":
                reason = self._api.without_key(value_of(task.fail_reason, str) or "")
                raise failed_task(reason, refunded=self._api.refunds_failed_tasks)
            case _:
                return _pending(task_id, per_cent(task.progress))


def _pending(task_id: str, progress: int | None = None) -> UpstreamTask:
    return UpstreamTask(task_id, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, progress)


def _result(task: Task, call: UpstreamRequest) -> UpstreamImages:
    if call.like == DESCRIBE:
        return texts_of(task)
    seed = seed_of(call) if call.request.prompt else None
    return images_of(task, seed, is_grid=CHANGES.get(call.like) != "upscale")


def _submission(call: UpstreamRequest, images: Sequence[Base64Image]) -> tuple[str, Mapping[str, Any]]:
    """Returns the path and the fields of a new task."""
    bot = {"botType": _BOTS.get(call.like, "MID_JOURNEY")}
    if call.like == DESCRIBE:
        return "describe", {"base64": images[0], **bot}
    if call.like == BLEND:
        size = call.request.options.get("size", "1024x1024")
        return "blend", {"base64Array": images, "dimensions": DIMENSIONS[size], **bot}
    return "imagine", {"prompt": text_of(call), **({"base64Array": images} if images else {}), **bot}


def _change(call: UpstreamRequest) -> Mapping[str, Any]:
    # new-api requires an index for a reroll too.
    index = call.request.options.get("index", 1)
    return {"taskId": _parent(call).task_id, "action": CHANGES[call.like].upper(), "index": index}


def _button(call: UpstreamRequest) -> str:
    """Returns the id of the parent's button for a change, "" if it is not known."""
    kind = CHANGES[call.like]
    name = kind if kind == "reroll" else f"{kind}_{call.request.options.get('index', 1)}"
    return next((action.button for action in _parent(call).actions if action.name == name), "")


def _parent(call: UpstreamRequest) -> ParentTask:
    if call.parent is None:
        raise ValueError("the call has no parent task")
    return call.parent


def _by_code(code: int, description: str, *, of_parent: bool) -> ImagegenError:
    if of_parent and is_unknown_parent(code, description):
        return UpstreamRefusedRequestError(
            "The image model's provider does not have the task that made the image any more.", param="image"
        )
    return refusal_of_code(code, description)


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str, *, of_parent: bool) -> ImagegenError:
    code, description, _ = read_submitted(body)
    if code is None or status not in _OF_CODE:
        return _read_refusal(status, headers, body, key)
    known = _by_code(code, description.replace(key, "[redacted]"), of_parent=of_parent)
    if isinstance(known, TryLaterError):
        known.retry_after = retry_after(headers)
    return known
