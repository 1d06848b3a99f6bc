"""Defines requests for images, upstream calls and their results, without any wire format."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from imagegen.domain.errors import MoneySpentError
from imagegen.domain.inputs import GivenImage, InputImage, Operation, UpstreamInput

ResponseFormat = Literal["url", "b64_json"]

_IMAGE_ID = re.compile(r"img_[A-Za-z0-9_-]{22}")


def new_image_id() -> str:
    """Returns an id of 128 random bits. It is a capability: the id is all that is needed to fetch the image."""
    return f"img_{secrets.token_urlsafe(16)}"


def is_image_id(text: str) -> bool:
    return _IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request that is valid for its model.

    `options` are the further fields that the caller set and that the upstream accepts, as JSON values. `inputs` are the
    images that the operation works on. The prompt is empty if the operation needs none.
    """

    # Texts of the caller are left out of repr, and so of logs.
    prompt: str = field(repr=False)
    model: str
    response_format: ResponseFormat
    n: int = 1
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    operation: Operation = "generate"
    inputs: tuple[InputImage, ...] = ()


class AskedImages(msgspec.Struct, frozen=True):
    """A request, and its input images as it names them."""

    request: ImageRequest
    images: Sequence[GivenImage] = ()


class ImageAction(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an upstream can do with an image that it made, such as `upscale_1`.

    `label` is the text on the upstream's button, and `button` its id. Both are "" if the upstream shows no buttons.
    """

    name: str
    label: str = ""
    button: str = ""


class ParentTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """The task that made an input image. Only that upstream, with that account of its own, can work on its result.

    `actions` are what the upstream can do with it.
    """

    upstream: str
    task_id: str
    account: str = ""
    actions: tuple[ImageAction, ...] = ()


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """The parameters of one upstream call. `n` is how many of the request's images it requests.

    `model` is the model's name at the upstream. `like` is the model of the provider's package that it behaves like, ""
    for one that only the upstream knows. `number` is the place of the call among those of its request, from 0. `mode`
    is the speed at which the upstream works, "" for its default.

    `reference` is the same for every repetition of a call whose outcome is unknown. An upstream that recognises it
    answers a repetition with the task that the earlier call began. `repeats` is whether the call is such a repetition.

    `inputs` are the images of the request in their order. `parent` is the task that made the image which the call works
    on.
    """

    request: ImageRequest
    model: str
    like: str
    n: int
    reference: str
    number: int = 0
    mode: str = ""
    repeats: bool = False
    inputs: tuple[UpstreamInput, ...] = ()
    parent: ParentTask | None = None


@dataclass(frozen=True, slots=True)
class UpstreamImage:
    """One image that was paid for. Exactly one of `source` (a URL, or the bytes), `texts` and `failure` is set.

    `texts` describe an input image: the upstream was asked for them instead of an image.
    `details` are what the upstream says about this image: `resolution`, `seed`, `style_type`. `actions` are what the
    upstream can do with it.
    """

    source: str | bytes | None = field(default=None, repr=False)
    revised_prompt: str | None = field(default=None, repr=False)
    failure: MoneySpentError | None = None
    details: dict[str, str | int] = field(default_factory=dict)
    actions: tuple[ImageAction, ...] = ()
    texts: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamImages:
    """The images of one completed upstream call.

    `details` are the fields of OpenAI's response for all images (`background`, `output_format`, `quality`, `size`).
    `usage` are OpenAI's token counts. `account` is the upstream's name of its own account that made the images, "" if
    it names none.
    """

    images: tuple[UpstreamImage, ...]
    details: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    account: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamTask:
    """A task that returns the images of an upstream call later. The provider polls it by its `id`.

    The pause before a poll grows with the age of the task, from `first_pause` to `longest_pause` seconds. `progress` is
    in per cent, `None` if the upstream does not say it.
    """

    id: str
    first_pause: float
    longest_pause: float
    progress: int | None = None


@dataclass(frozen=True, slots=True)
class ImageBody:
    """An image that is about to be stored. `blocks` yields exactly `length` bytes, or raises.

    The last block is yielded only after the whole content is known to be complete and of type `media_type`.
    """

    media_type: str
    length: int
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A URL that works without credentials until `expires_at` (Unix seconds)."""

    url: str = field(repr=False)
    expires_at: int
