"""Calls Kling's `POST /v1/images/generations` and its try-on, which resellers serve below `/kling`; polls its tasks."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, MoneySpentError, TryLaterError, UpstreamUnavailableError
from imagegen.domain.image_format import JPEG, PNG
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import InputContent
from imagegen.providers.answer_values import invalid_answer
from imagegen.providers.aspect_ratios import nearest_ratio, ratio_of
from imagegen.providers.kling.answers import (
    Task,
    images_of,
    no_such_task,
    read_code,
    read_task,
    refusal_of_code,
)
from imagegen.providers.kling.models import DEFAULT_RATIO, DEFAULT_REFERENCE, MODELS, RATIOS, TRY_ON
from imagegen.providers.refusals import read_refusal, request_fields, retry_after
from imagegen.providers.request_bodies import Base64Image, json_body, opened
from imagegen.providers.tasks import POLL_SECONDS, SUBMIT_SECONDS, failed_task, unknown_task
from imagegen.providers.upstream_api import UpstreamApi

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 10.0
_NO_QUERY = (400, 404, 405, 501)  # the answers of a reseller that cannot look for a task by its external id
_PATH, _TRY_ON_PATH = "/images/generations", "/images/kolors-virtual-try-on"
_TRY_ON = frozenset(model.id for model in TRY_ON)
_TRY_ON_IMAGES = "human_image", "cloth_image"
_MEDIA_TYPES = JPEG, PNG
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
        status, body = self._get(call, call.reference, deadline) or (0, b"")
        task = read_task(body)
        if task and call.reference in (task.reference, *task.ids):
            return _pending(task.id, task)
        is_empty = status == 200 and task is None and read_code(body)[0] == 0
        if status in _NO_QUERY or is_empty or no_such_task(status, body):
            return None
        raise UpstreamUnavailableError("The image model's API did not say whether it has begun to make the image.")

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        answer = self._get(call, task_id, deadline)
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
        url = self._api.below_own("/kling/v1", _path(call))
        with ExitStack() as closing:
            images = opened(call.inputs, closing, deadline, _MEDIA_TYPES)
            body = json_body(_try_on(call, images) if call.like in _TRY_ON else _fields(call, images))
            answer, lost = self._api.post(url, body, 0, deadline.sooner(SUBMIT_SECONDS), _refusal)
        if task := read_task(answer):  # whatever the code is: the task may be paid for
            return _pending(task.id, task)
        code, message = read_code(answer)
        if isinstance(code, int) and code:
            raise refusal_of_code(code, self._api.without_key(message))
        raise lost or invalid_answer()

    def _get(self, call: UpstreamRequest, task_id: str, deadline: Deadline) -> tuple[int, bytes] | None:
        url = self._api.below_own("/kling/v1", f"{_path(call)}/{quote(task_id, safe='')}")
        return self._api.get(url, deadline.sooner(POLL_SECONDS))


def _pending(task_id: str, task: Task | None = None) -> UpstreamTask:
    return UpstreamTask(task_id, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, task.progress if task else None)


def _path(call: UpstreamRequest) -> str:
    return _TRY_ON_PATH if call.like in _TRY_ON else _PATH


def _fields(call: UpstreamRequest, images: Sequence[InputContent]) -> dict[str, Any]:
    options = dict(call.request.options)
    size = options.pop("size", None)
    of_image = nearest_ratio(call.inputs[0].image, RATIOS, ":") if call.inputs else DEFAULT_RATIO
    options.setdefault("aspect_ratio", ratio_of(size, ":") if size else of_image)
    if images and call.like == "kling-v1-5" and options.setdefault("image_reference", DEFAULT_REFERENCE) == "face":
        options.pop("human_fidelity", None)  # a default of models.toml; a request's own is refused
    return {
        "model_name": call.model,
        "prompt": call.request.prompt,
        "n": call.n,
        "external_task_id": call.reference,
        **options,
        **({"image": Base64Image(images[0])} if images else {}),
    }


def _try_on(call: UpstreamRequest, images: Sequence[InputContent]) -> dict[str, Any]:
    named = {name: Base64Image(image) for name, image in zip(_TRY_ON_IMAGES, images, strict=True)}
    return {"model_name": call.model, "external_task_id": call.reference, **named}


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str) -> ImagegenError:
    code, message = read_code(body)
    if not isinstance(code, int) or code < _LEAST_CODE:
        return _read_refusal(status, headers, body, key)
    known = refusal_of_code(code, message.replace(key, "[redacted]"))
    if isinstance(known, TryLaterError):
        known.retry_after = retry_after(headers)
    return known
