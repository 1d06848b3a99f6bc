"""Calls `POST /v1/images/generations` of OpenAI and of resellers of its format."""

from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.openai.answers import read_answer
from imagegen.providers.openai.models import FLUX_KONTEXT, MODELS
from imagegen.providers.refusals import read_refusal, request_fields
from imagegen.providers.upstream_api import AnswersAtOnce

_BY_RATIO = frozenset(model.id for model in FLUX_KONTEXT)  # a ratio is required, and there are no sizes
_REFUSAL = partial(read_refusal, fields=request_fields(MODELS))


class OpenAIProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_base("/images/generations")
        body, lost = self._api.post(url, _body(call), "application/json", call.n, deadline, _REFUSAL)
        return read_answer(body, call.n, lost)


def _body(call: UpstreamRequest) -> bytes:
    request, options = call.request, dict(call.request.options)
    if call.like in _BY_RATIO:
        options.setdefault("aspect_ratio", ratio_of(options.pop("size", "1024x1024"), ":"))
    return msgspec.json.encode({"model": call.model, "prompt": request.prompt, "n": call.n, **options})
