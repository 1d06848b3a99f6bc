"""Calls `POST /v1/images/generations`, `/edits` and `/variations` of OpenAI and of resellers of its format."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.image_format import PNG
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.domain.inputs import IMAGE, MASK, MEDIA_TYPES, InputContent
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.openai.answers import read_answer
from imagegen.providers.openai.models import FLUX_KONTEXT, MODELS
from imagegen.providers.refusals import read_refusal, request_fields
from imagegen.providers.request_bodies import UpstreamBody, form_body, json_body, opened
from imagegen.providers.upstream_api import AnswersAtOnce

_BY_RATIO = frozenset(model.id for model in FLUX_KONTEXT)  # there are no sizes
_PATHS: Mapping[str, str] = {
    "generate": "/images/generations",
    "edit": "/images/edits",
    "variation": "/images/variations",
}
_REFUSAL = partial(read_refusal, fields=request_fields(MODELS))


class OpenAIProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_base(_PATHS[call.request.operation])
        with ExitStack() as closing:
            body = json_body(_fields(call)) if call.request.operation == "generate" else _form(call, deadline, closing)
            answer, lost = self._api.post(url, body, call.n, deadline, _REFUSAL)
        return read_answer(answer, call.n, lost)


def _fields(call: UpstreamRequest) -> dict[str, Any]:
    request, options = call.request, dict(call.request.options)
    size = options.pop("size", None) if call.like in _BY_RATIO else None
    if call.like in _BY_RATIO and (size or request.operation == "generate"):  # a ratio is required, except for an edit
        options.setdefault("aspect_ratio", ratio_of(size or "1024x1024", ":"))
    prompt = {} if request.operation == "variation" else {"prompt": request.prompt}
    return {"model": call.model, **prompt, "n": call.n, **options}


def _form(call: UpstreamRequest, deadline: Deadline, closing: ExitStack) -> UpstreamBody:
    media_types = (PNG,) if call.like == "dall-e-2" else MEDIA_TYPES
    images = opened([each for each in call.inputs if each.image.role == IMAGE], closing, deadline, media_types)
    masks = [each for each in call.inputs if each.image.role == MASK]
    fields: list[tuple[str, str | InputContent]] = [(name, _text(value)) for name, value in _fields(call).items()]
    fields += [("image" if len(images) == 1 else "image[]", image) for image in images]
    fields += [("mask", mask) for mask in opened(masks, closing, deadline, (PNG,), mask="transparent")]
    return form_body(fields)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
