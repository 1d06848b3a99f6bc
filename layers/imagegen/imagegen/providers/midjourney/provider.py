"""Calls `POST /mj/submit/imagine` of midjourney-proxy, as resellers serve it, and polls its tasks."""

from functools import partial
from urllib.parse import quote

import msgspec
import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, MoneySpentError, TryLaterError
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.providers.answer_values import invalid_answer, value_of
from imagegen.providers.midjourney.answers import (
    ACCEPTED,
    images_of,
    is_nothing,
    no_such_task,
    read_submitted,
    read_task,
    refusal_of_code,
)
from imagegen.providers.midjourney.models import MODELS
from imagegen.providers.midjourney.prompts import seed_of, text_of
from imagegen.providers.refusals import read_refusal, request_fields, retry_after
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
        """A repetition sends the same text, and is answered with the task that the earlier call began."""
        speed = f"/mj-{call.mode}" if call.mode else ""
        url = self._api.below_own(f"{speed}/mj", "/submit/imagine")
        body = msgspec.json.encode({"prompt": text_of(call), "botType": _BOTS.get(call.like, "MID_JOURNEY")})
        answer, lost = self._api.post(url, body, "application/json", 0, deadline.sooner(SUBMIT_SECONDS), _refusal)
        code, description, task_id = read_submitted(answer)
        failure: ImagegenError = lost or invalid_answer()
        if code is not None and code not in ACCEPTED:
            failure = refusal_of_code(code, self._api.without_key(description))
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
                return images_of(task, seed_of(call))
            case "FAILURE" | "CANCEL":
                reason = self._api.without_key(value_of(task.fail_reason, str) or "")
                raise failed_task(reason, refunded=self._api.refunds_failed_tasks)
            case _:
                return _pending(task_id, per_cent(task.progress))


def _pending(task_id: str, progress: int | None = None) -> UpstreamTask:
    return UpstreamTask(task_id, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, progress)


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str) -> ImagegenError:
    code, description, _ = read_submitted(body)
    if code is None or status not in _OF_CODE:
        return _read_refusal(status, headers, body, key)
    known = refusal_of_code(code, description.replace(key, "[redacted]"))
    if isinstance(known, TryLaterError):
        known.retry_after = retry_after(headers)
    return known
