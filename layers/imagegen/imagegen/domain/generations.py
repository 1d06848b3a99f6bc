"""A generation: one admitted request, its record, and what the record knows of money."""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import reduce
from typing import Any

import msgspec

from imagegen.domain.errors import UpstreamTooFewImagesError
from imagegen.domain.images import ImageRequest, new_image_id
from imagegen.domain.models import CATALOG, MAX_IMAGES


class Status(StrEnum):
    """OpenAI's words, in the order of a life."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An ImagegenError as a record keeps it. `kind` is its class; `cause` is why a part is missing."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None  # seconds
    cause: "Failure | None" = None


class AnsweredImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image that the upstream answered.

    `failure` says why it is not usable. Without a URL and a failure, its bytes came along, and it is stored already.
    """

    url: str | None = None
    revised_prompt: str | None = None
    failure: Failure | None = None

    @property
    def missing(self) -> bool:
        """Whether fewer images came than were asked for, and this is one that did not."""
        return self.failure is not None and self.failure.kind == UpstreamTooFewImagesError.__name__


class CallAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an upstream call gave, kept before anything is fetched: it was paid for."""

    images: tuple[AnsweredImage, ...]
    details: dict[str, str] = {}
    usage: dict[str, Any] | None = None


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """One upstream call, for the images whose ids it names. `number` tells it from the others of its generation.

    An `extra` call asks once for an image that another call was asked for and did not answer. `sent` counts how often
    it was about to be sent; it is written before each time. `refused` counts how many of these certainly bought
    nothing. The outcome of the others is unknown until there is an answer: each may have been paid for.
    """

    image_ids: tuple[str, ...]
    sent: int = 0
    refused: int = 0
    answer: CallAnswer | None = None
    number: int = 0
    extra: bool = False

    @property
    def charged(self) -> bool:
        """Whether the upstream was paid for it, or may have been."""
        return self.answer is not None or self.sent > self.refused


def with_extra_calls(calls: Iterable[Call]) -> tuple[Call, ...]:
    """The calls, and an extra one for each image that is missing from an answer.

    Their numbers follow from the call and the place of the image in it: they are the same for every process.
    """
    whole: list[Call] = []
    extra: list[Call] = []
    for call in calls:
        images = call.answer.images if call.answer else ()
        came = [place for place, image in enumerate(images) if not image.missing]
        if call.answer is None or not came or len(came) == len(images):
            whole.append(call)
            continue
        answer = msgspec.structs.replace(call.answer, images=tuple(images[place] for place in came))
        image_ids = tuple(call.image_ids[place] for place in came)
        whole.append(msgspec.structs.replace(call, image_ids=image_ids, answer=answer))
        extra += [
            Call((call.image_ids[place],), number=(call.number + 1) * MAX_IMAGES + place, extra=True)
            for place, image in enumerate(images)
            if image.missing
        ]
    return (*whole, *extra)


class StoredImage(msgspec.Struct, frozen=True):
    media_type: str
    length: int  # bytes


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a generation that did not come by HTTP comes from.

    `custom_id` is its sender's own name for it; `line` is its number in the file that is the batch `batch_id`.
    """

    custom_id: str | None = None
    batch_id: str | None = None
    line: int | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are in Unix seconds. `base_url` is the one that the caller reached us by, for absolute links.

    `owner` is the token of the worker, and holds until `lease_until`. `announced` is whether its end was published.
    `retries` counts the new attempts that an operator asked for. Of the images reserved from the quota at
    `reserved_at`, `returned` were given back.
    """

    id: str
    caller: str
    request: ImageRequest
    created_at: float
    base_url: str
    calls: tuple[Call, ...]
    status: Status = Status.QUEUED
    owner: str | None = None
    lease_until: float = 0.0
    stored: Mapping[str, StoredImage] = {}
    failure: Failure | None = None
    completed_at: float | None = None
    origin: Origin = Origin()
    announced: bool = False
    retries: int = 0
    reserved_at: float | None = None
    returned: int = 0

    @property
    def image_ids(self) -> tuple[str, ...]:
        return tuple(image_id for call in self.calls for image_id in call.image_ids)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def stored_ids(self) -> tuple[str, ...]:
        """The images that are stored, in the order in which they were asked for."""
        return tuple(image_id for image_id in self.image_ids if image_id in self.stored)

    def revised_prompt(self, image_id: str) -> str | None:
        for call in self.calls:
            if call.answer and image_id in call.image_ids:
                return call.answer.images[call.image_ids.index(image_id)].revised_prompt
        return None

    @property
    def details(self) -> dict[str, str]:
        """What the upstream said of all images alike."""
        return next((call.answer.details for call in self.calls if call.answer), {})

    @property
    def usage(self) -> dict[str, Any] | None:
        """The token counts of all calls together."""
        return summed_usage(call.answer.usage for call in self.calls if call.answer)

    @property
    def unreturned(self) -> int:
        """How many images of the quota are still to be given back: those that certainly were not charged."""
        # For what an extra call asks, the call before it may have been charged.
        uncharged = sum(len(call.image_ids) for call in self.calls if not call.charged and not call.extra)
        return max(0, uncharged - self.returned)

    @property
    def extra_calls(self) -> int:
        """How many calls were made for images that an upstream had been asked for and did not answer."""
        return sum(call.sent for call in self.calls if call.extra)

    @property
    def repeated_calls(self) -> int:
        """How many calls of unknown outcome were sent again: each may have been paid twice."""
        return sum(max(0, call.sent - call.refused - 1) for call in self.calls)


class Rejection(msgspec.Struct, frozen=True):
    """A request that came as the event `event_id` and began no generation."""

    event_id: str
    client: str | None
    custom_id: str | None
    failure: Failure


_BY_HTTP = Origin()


class Tombstone(msgspec.Struct, frozen=True):
    """What stands in the place of a deleted generation's record: a late write of its images is removed by it.

    `buried_at` is in Unix seconds.
    """

    id: str
    caller: str
    image_ids: tuple[str, ...]
    buried_at: float


def admit(
    request: ImageRequest,
    *,
    caller: str,
    base_url: str,
    now: float,
    origin: Origin = _BY_HTTP,
    generation_id: str | None = None,
) -> Generation:
    """A new generation, with all its ids fixed before anything is spent; its own may be given."""
    return Generation(
        id=generation_id or new_generation_id(),
        caller=caller,
        request=request,
        created_at=now,
        base_url=base_url,
        calls=tuple(
            Call(tuple(new_image_id() for _ in range(n)), number=number)
            for number, n in enumerate(CATALOG[request.model].calls(request.n))
        ),
        origin=origin,
    )


def new_generation_id() -> str:
    return f"gen_{secrets.token_urlsafe(16)}"


def successor_id(generation_id: str) -> str:
    """The id of the generation that is begun in place of one that failed with nothing spent, or is void."""
    digest = hashlib.sha256(f"after {generation_id}".encode()).digest()[:16]
    return f"gen_{urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def is_generation_id(text: str) -> bool:
    return text.startswith("gen_") and len(text) == 26 and text.isascii() and text.replace("-", "_").isidentifier()


def new_owner() -> str:
    """A token for one claim."""
    return secrets.token_urlsafe(12)


def fingerprint(request: ImageRequest) -> str:
    """The same for the same request, and for no other."""
    return hashlib.sha256(msgspec.json.encode(request)).hexdigest()


def summed_usage(usages: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Token counts added up. None if there are none."""
    return reduce(_added, filter(None, usages), None)


def _added(left: dict[str, Any] | None, right: dict[str, Any]) -> dict[str, Any]:
    """What both count, at every depth."""
    if left is None:
        return right
    return {
        key: _added(left[key], right[key]) if isinstance(left[key], dict) else left[key] + right[key]
        for key in left
        if key in right
    }


class LostClaimError(Exception):
    """The generation has another owner now, has ended, or was deleted. The worker that meets this stops."""


class IdTakenError(Exception):
    """There is a record of this id already.

    With `void` there is none and never will be; with `deleted` too there was one, and what became of its quota is
    settled.
    """

    def __init__(self, *, void: bool = False, deleted: bool = False) -> None:
        super().__init__()
        self.void = void
        self.deleted = deleted
