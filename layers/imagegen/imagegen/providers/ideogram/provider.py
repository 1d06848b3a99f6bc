"""Calls `POST /v1/ideogram-v3/generate`, `/edit` and `/remix` of Ideogram, which resellers serve below `/ideogram`."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import urllib3

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, PromptRejectedError
from imagegen.domain.images import UpstreamImages, UpstreamRequest
from imagegen.domain.inputs import MASK, MEDIA_TYPES, InputContent, MaskKind
from imagegen.providers.aspect_ratios import nearest_ratio, ratio_of
from imagegen.providers.ideogram.answers import read_answer
from imagegen.providers.ideogram.models import ASPECT_RATIOS, MODELS, NOT_IN_AN_EDIT, STYLE_IMAGES, STYLES
from imagegen.providers.refusals import read_refusal, refusal, request_fields
from imagegen.providers.request_bodies import form_body, opened
from imagegen.providers.upstream_api import AnswersAtOnce

_read_refusal = partial(read_refusal, fields=request_fields(MODELS))


class IdeogramProvider(AnswersAtOnce):
    """Implements `ports.ImageProvider`."""

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages:
        url = self._api.below_own("/ideogram/v1", f"/{quote(call.model, safe='')}/{_action(call)}")
        with ExitStack() as closing:
            body = form_body([*_fields(call), *_images(call, deadline, closing)])
            answer, lost = self._api.post(url, body, call.n, deadline, _refusal)
        return read_answer(answer, call.n, lost)


def _action(call: UpstreamRequest) -> str:
    if not call.inputs:
        return "generate"
    return "edit" if any(each.image.role == MASK for each in call.inputs) else "remix"


def _fields(call: UpstreamRequest) -> list[tuple[str, str | InputContent]]:
    action = _action(call)
    # Of these the request has none, but models.toml may have a default, which is for calls without such images.
    unfit: tuple[str, ...] = NOT_IN_AN_EDIT if action == "edit" else ()
    unfit += STYLES if any(each.image.role == STYLE_IMAGES for each in call.inputs) else ()
    options = {name: value for name, value in call.request.options.items() if name not in unfit}
    size = options.pop("size", None)
    if action != "edit" and "resolution" not in options:  # an edit keeps the size of its image
        of_image = nearest_ratio(call.inputs[0].image, ASPECT_RATIOS, "x") if action == "remix" else None
        options.setdefault("aspect_ratio", ratio_of(size, "x") if size else of_image or "1x1")
    codes = options.pop("style_codes", [])
    fields: list[tuple[str, str | InputContent]] = [("prompt", call.request.prompt), ("num_images", str(call.n))]
    fields += [(name, _text(value)) for name, value in options.items()]
    return [*fields, *(("style_codes", code) for code in codes)]


def _images(call: UpstreamRequest, deadline: Deadline, closing: ExitStack) -> Iterator[tuple[str, InputContent]]:
    for each in call.inputs:
        mask: MaskKind | None = "black" if each.image.role == MASK else None
        (content,) = opened([each], closing, deadline, MEDIA_TYPES, mask=mask)
        yield each.image.role, content


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes, key: str) -> ImagegenError:
    if status == 422:  # the safety check of the prompt (developer.ideogram.ai, "Errors")
        return refusal(PromptRejectedError)
    return _read_refusal(status, headers, body, key)
