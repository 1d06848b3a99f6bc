"""Calls `POST /chat/completions` for one image."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from imagegen.domain.deadline import Deadline
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.domain.inputs import MEDIA_TYPES, InputContent
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.gemini_chat.answers import read_answer
from imagegen.providers.gemini_chat.models import MODELS
from imagegen.providers.refusals import read_refusal, request_fields
from imagegen.providers.request_bodies import UpstreamBody, data_url, json_body, opened
from imagegen.providers.upstream_api import AnswersAtOnce

_REFUSAL = partial(read_refusal, fields=request_fields(MODELS))


class GeminiChatProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_base("/chat/completions")
        with ExitStack() as closing:
            body = _body(call, opened(call.inputs, closing, deadline, MEDIA_TYPES))
            answer, lost = self._api.post(url, body, call.n, deadline, _REFUSAL)
        return read_answer(answer, lost)


def _body(call: UpstreamRequest, images: Sequence[InputContent]) -> UpstreamBody:
    request = call.request
    config = {name: request.options[name] for name in ("aspect_ratio", "image_size") if name in request.options}
    if "size" in request.options:
        config["aspect_ratio"] = ratio_of(request.options["size"], ":")
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    content = [{"type": "text", "text": request.prompt}, *parts] if parts else request.prompt
    message = {"role": "user", "content": content}
    body: dict[str, Any] = {"model": call.model, "messages": [message], "stream": False}
    if config:
        body["extra_body"] = {"google": {"image_config": config}}
    return json_body(body)
