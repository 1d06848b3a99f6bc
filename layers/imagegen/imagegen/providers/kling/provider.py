"""Calls `POST /v1/images/generations` of Kling, which resellers serve below `/kling`, and polls its tasks."""

from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, MoneySpentError, TryLaterError, UpstreamUnavailableError
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.providers.answer_values import invalid_answer
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.kling.answers import (
    Task,
    images_of,
    no_such_task,
    read_code,
    read_task,
    refusal_of_code,
)
from imagegen.providers.kling.models import DEFAULT_RATIO, MODELS
from imagegen.providers.refusals import read_refusal, request_fields, retry_after
from imagegen.providers.tasks import POLL_SECONDS, SUBMIT_SECONDS, failed_task, unknown_task
from imagegen.providers.upstream_api import UpstreamApi

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 10.0
_NO_QUERY = (400, 404, 405, 501)  # the answers of a reseller that cannot look for a task by its external id
_PATH = "/images/generations"
_LEAST_CODE = 1000  # of Kling; gateways repeat the HTTP status in its place

_read_refusal = partial(read_refusal, fields=request_fields(MODELS))


class KlingProvider:
    """Implements `ports.ImageProvider`."""

    def __init__(self, api: UpstreamApi) -> None:
        self._api = api

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask:
        if call.repeats and (begun := self.find(call, deadline)):
            return begun
        try:
            return self._submit(call, deadline)
        except MoneySpentError:
            with suppress(UpstreamUnavailableError):
                if begun := self.find(call, deadline):
                    return begun
            raise

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:
        """The task that an earlier call with this reference began, `None` if there is none or no way to look for it.

        Raises UpstreamUnavailableError if the upstream did not answer: the task may exist.
        """
        status, body = self._get(call.reference, deadline) or (0, b"")
        task = read_task(body)
        if task and call.reference in (task.reference, *task.ids):
            return _pending(task.id, task)
        is_empty = status == 200 and task is None and read_code(body)[0] == 0
        if status in _NO_QUERY or is_empty or no_such_task(status, body):
            return None
        raise UpstreamUnavailableError("The image model's API did not say whether it has begun to make the image.")

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        answer = self._get(task_id, deadline)
        if answer is None:
            return _pending(task_id)
        status, body = answer
        task = read_task(body) if status == 200 else None
        if task is None or task_id not in task.ids:
            if no_such_task(status, body):
                raise unknown_task()
            return _pending(task_id)
        if task.status == "success":
            return images_of(task, call.n)
        if task.status == "failure":
            reason = self._api.without_key(task.reason)
            refunded = task.refunded and not self._api.is_reseller  # what a reseller takes is another account
            raise failed_task(reason, refunded=refunded or self._api.refunds_failed_tasks)
        return _pending(task_id, task)

    def _submit(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask:
        url = self._api.below_own("/kling/v1", _PATH)
        body = msgspec.json.encode(_fields(call))
        answer, lost = self._api.post(url, body, "application/json", 0, deadline.sooner(SUBMIT_SECONDS), _refusal)
        if task := read_task(answer):  # whatever the code is: the task may be paid for
            return _pending(task.id, task)
        code, message = read_code(answer)
        if isinstance(code, int) and code:
            raise refusal_of_code(code, self._api.without_key(message))
        raise lost or invalid_answer()

    def _get(self, task_id: str, deadline: Deadline) -> tuple[int, bytes] | None:
        url = self._api.below_own("/kling/v1", f"{_PATH}/{quote(task_id, safe='')}")
        return self._api.get(url, deadline.sooner(POLL_SECONDS))


def _pending(task_id: str, task: Task | None = None) -> UpstreamTask:
    return UpstreamTask(task_id, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, task.progress if task else None)


def _fields(call: UpstreamRequest) -> dict[str, Any]:
    options = dict(call.request.options)
    size = options.pop("size", None)
    options.setdefault("aspect_ratio", ratio_of(size, ":") if size else DEFAULT_RATIO)
    return {
        "model_name": call.model,
        "prompt": call.request.prompt,
        "n": call.n,
        "external_task_id": call.reference,
        **options,
    }


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str) -> ImagegenError:
    code, message = read_code(body)
    if not isinstance(code, int) or code < _LEAST_CODE:
        return _read_refusal(status, headers, body, key)
    known = refusal_of_code(code, message.replace(key, "[redacted]"))
    if isinstance(known, TryLaterError):
        known.retry_after = retry_after(headers)
    return known
