"""Calls `POST /chat/completions` for one image."""

from functools import partial
from typing import Any

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.gemini_chat.answers import read_answer
from imagegen.providers.gemini_chat.models import MODELS
from imagegen.providers.refusals import read_refusal, request_fields
from imagegen.providers.upstream_api import AnswersAtOnce

_REFUSAL = partial(read_refusal, fields=request_fields(MODELS))


class GeminiChatProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_base("/chat/completions")
        body, lost = self._api.post(url, _body(call), "application/json", call.n, deadline, _REFUSAL)
        return read_answer(body, lost)


def _body(call: UpstreamRequest) -> bytes:
    request = call.request
    config = {name: request.options[name] for name in ("aspect_ratio", "image_size") if name in request.options}
    if "size" in request.options:
        config["aspect_ratio"] = ratio_of(request.options["size"], ":")
    message = {"role": "user", "content": request.prompt}
    body: dict[str, Any] = {"model": call.model, "messages": [message], "stream": False}
    if config:
        body["extra_body"] = {"google": {"image_config": config}}
    return msgspec.json.encode(body)
