"""Calls `POST /v1/ideogram-v3/generate` of Ideogram, which resellers serve below `/ideogram`."""

from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import urllib3
from urllib3.filepost import encode_multipart_formdata

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, PromptRejectedError
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.providers.aspect_ratios import ratio_of
from imagegen.providers.ideogram.answers import read_answer
from imagegen.providers.ideogram.models import MODELS
from imagegen.providers.refusals import read_refusal, refusal, request_fields
from imagegen.providers.upstream_api import AnswersAtOnce

_read_refusal = partial(read_refusal, fields=request_fields(MODELS))


class IdeogramProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_own("/ideogram/v1", f"/{quote(call.model, safe='')}/generate")
        body, content_type = encode_multipart_formdata(_fields(call))
        answer, lost = self._api.post(url, body, content_type, call.n, deadline, _refusal)
        return read_answer(answer, call.n, lost)


def _fields(call: UpstreamRequest) -> list[tuple[str, str]]:
    options = dict(call.request.options)
    size = options.pop("size", "1024x1024")
    if "resolution" not in options:
        options.setdefault("aspect_ratio", ratio_of(size, "x"))
    codes = options.pop("style_codes", [])
    fields = [("prompt", call.request.prompt), ("num_images", str(call.n))]
    fields += [(name, _text(value)) for name, value in options.items()]
    return [*fields, *(("style_codes", code) for code in codes)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str) -> ImagegenError:
    if status == 422:  # the safety check of the prompt (developer.ideogram.ai, "Errors")
        return refusal(PromptRejectedError)
    return _read_refusal(status, headers, body, key)
