"""Defines a generation: one admitted request, its record, and what was paid for it."""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import reduce
from typing import Any

import msgspec

from imagegen.domain.errors import ModelHasNoPriceError, UpstreamTooFewImagesError
from imagegen.domain.failures import Failure
from imagegen.domain.images import ImageAction, ImageRequest, ParentTask, new_image_id
from imagegen.domain.models import DEADLINE_SECONDS, LONGEST_DEADLINE_SECONDS, MAX_IMAGES, ImageModel
from imagegen.domain.money import ImagePrice, Price, Spending
from imagegen.domain.queues import WorkQueue
from imagegen.domain.upstreams import Route


class Status(StrEnum):
    """OpenAI's names, in the order in which a generation goes through them."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_FINGERPRINT_VERSION = b"1:"  # of the set of fields that a fingerprint covers

ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class AnsweredImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image in an upstream's answer.

    `failure` is why it is not usable. An image without URL, texts and failure came as bytes and is already stored.
    `actions` are what the upstream can do with it. `texts` came instead of an image, and describe an input image.
    """

    url: str | None = None
    revised_prompt: str | None = None
    failure: Failure | None = None
    details: dict[str, str | int] = {}
    actions: tuple[ImageAction, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def missing(self) -> bool:
        """`True` if the upstream returned fewer images than requested, and this one did not come."""
        return self.failure is not None and self.failure.code == UpstreamTooFewImagesError.code


class CallAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to an upstream call. It is stored before any image is fetched, because it is paid for.

    `upstream` is the one that answered, `None` if the images were found in storage. `task_id` is the task that made the
    images, and `account` the upstream's account that did, both "" if there is none: a later request about an image must
    reach them.
    """

    images: tuple[AnsweredImage, ...]
    details: dict[str, str] = {}
    usage: dict[str, Any] | None = None
    upstream: str | None = None
    task_id: str = ""
    account: str = ""


class UpstreamAttempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sending of an upstream call, written before it is sent. `sent_at` is in Unix seconds.

    `task_id` is set as soon as the upstream has answered with a task, and `failure` once the attempt has failed. An
    attempt without a failure may have been paid for.
    """

    upstream: str
    sent_at: float
    task_id: str | None = None
    failure: Failure | None = None

    @property
    def refused(self) -> bool:
        """`True` if the attempt was certainly not charged."""
        return self.failure is not None and not self.failure.money_spent


class UpstreamCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call to the upstream, for the images `image_ids`. `number` identifies it within its generation.

    An `extra` call requests once more an image that another call did not return. Attempts with the same task bought the
    same images: if one has failed, all have.
    """

    image_ids: tuple[str, ...]
    attempts: tuple[UpstreamAttempt, ...] = ()
    answer: CallAnswer | None = None
    number: int = 0
    extra: bool = False

    @property
    def sent(self) -> int:
        return len(self.attempts)

    @property
    def refused(self) -> int:
        """The number of attempts that were certainly not charged."""
        tasks = {attempt.task_id for attempt in self.attempts if attempt.refused and attempt.task_id}
        return sum(attempt.refused or attempt.task_id in tasks for attempt in self.attempts)

    @property
    def purchases(self) -> int:
        """How many times the call was paid for, or may have been. Attempts with the same task count once."""
        refused = {attempt.task_id for attempt in self.attempts if attempt.refused and attempt.task_id}
        bought = {
            attempt.task_id or number
            for number, attempt in enumerate(self.attempts)
            if not attempt.refused and attempt.task_id not in refused
        }
        return len(bought)

    @property
    def failed(self) -> int:
        """The number of attempts whose failure is final, paid or not. A failed task is final, and counts once."""
        return len(
            {
                attempt.task_id or number
                for number, attempt in enumerate(self.attempts)
                if attempt.failure and (attempt.task_id or not attempt.failure.another_attempt)
            }
        )

    @property
    def failed_tasks(self) -> int:
        """How many tasks of the call have failed."""
        return len({attempt.task_id for attempt in self.attempts if attempt.failure and attempt.task_id})

    @property
    def charged(self) -> bool:
        """`True` if the upstream was paid for the call, or may have been."""
        return self.answer is not None or self.sent > self.refused

    @property
    def unknown(self) -> UpstreamAttempt | None:
        """The last attempt without a task that may have been paid for."""
        return next((each for each in reversed(self.attempts) if not each.refused and not each.task_id), None)

    @property
    def open_task(self) -> UpstreamAttempt | None:
        """The attempt with a task that may still return the images."""
        if self.answer is not None:
            return None
        failed = {attempt.task_id for attempt in self.attempts if attempt.failure}
        return next((each for each in reversed(self.attempts) if each.task_id and each.task_id not in failed), None)


def with_extra_calls(calls: Iterable[UpstreamCall]) -> tuple[UpstreamCall, ...]:
    """Returns the calls, with an extra one for each image that is missing from an answer.

    The number of an extra call follows from the call and the place of the image, so it is the same in every process.
    """
    whole: list[UpstreamCall] = []
    extra: list[UpstreamCall] = []
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
            UpstreamCall((call.image_ids[place],), number=(call.number + 1) * MAX_IMAGES + place, extra=True)
            for place, image in enumerate(images)
            if image.missing
        ]
    return (*whole, *extra)


class StoredImage(msgspec.Struct, frozen=True):
    media_type: str
    length: int  # bytes


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The source of a generation that was not requested over HTTP.

    `custom_id` is the caller's name for it; `line` is its line number in the file of the batch `batch_id`.
    """

    custom_id: str | None = None
    batch_id: str | None = None
    line: int | None = None


class Supply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the images of a generation come from, as the models of the stack said when it began.

    `provider` names the provider of the upstream calls, and `like` the model of its package. `owned_by` is the model's
    owner, "" if any upstream may have it. Upstreams are tried in the order of `routes`. `defaults` are the options that
    the request does not set. `price` is narrowed to what the request determines. While all upstreams refuse because of
    their rate limits, they are asked again until `deadline_seconds` after the first call. With `by_task` they answer
    with tasks, each of which is waited for during `task_seconds`. `slot_per_image` and `mode` are those of the model.
    `parent` is the task that made the input image, where only its upstream can work on it.
    """

    provider: str
    like: str
    owned_by: str = ""
    routes: tuple[Route, ...] = ()
    defaults: Mapping[str, Any] = {}
    price: Price | None = None
    deadline_seconds: int = DEADLINE_SECONDS
    by_task: bool = False
    task_seconds: int = DEADLINE_SECONDS
    slot_per_image: bool = False
    mode: str = ""
    parent: ParentTask | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """The record. Times are in Unix seconds. `base_url` is the address that the caller used, for absolute links.

    `owner` is the token of the process that works on the generation, valid until `lease_until`. `polls` counts the
    rounds in which it has waited: for a task, a rate or a slot. `progress` is that of its tasks together, in per cent,
    `None` if no upstream said it. `published` is whether the end was published. `retries`
    counts the retries that an operator asked for. Of the images that were reserved from the quota at `reserved_at`,
    `returned` were given back. `spending` is `None` if the caller has no quota in money.
    """

    id: str
    caller: str
    request: ImageRequest
    created_at: float
    base_url: str
    supply: Supply
    calls: tuple[UpstreamCall, ...]
    status: Status = Status.QUEUED
    owner: str | None = None
    lease_until: float = 0.0
    polls: int = 0
    progress: int | None = None
    stored: Mapping[str, StoredImage] = {}
    failure: Failure | None = None
    completed_at: float | None = None
    origin: Origin = Origin()
    published: bool = False
    retries: int = 0
    reserved_at: float | None = None
    returned: int = 0
    spending: Spending | None = None

    @property
    def image_ids(self) -> tuple[str, ...]:
        return tuple(image_id for call in self.calls for image_id in call.image_ids)

    def queue(self, poll: int = 0) -> WorkQueue:
        """The queue of the messages for the round `poll`."""
        if poll and self.supply.by_task:
            return "polls"
        return "requests" if self.origin.batch_id is None else "lines"

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def stored_ids(self) -> tuple[str, ...]:
        """The images that are stored, in the order of the request."""
        return tuple(image_id for image_id in self.image_ids if image_id in self.stored)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the upstream answered instead of images."""
        answers = [image for call in self.calls if call.answer for image in call.answer.images]
        return tuple(text for image in answers for text in image.texts)

    @property
    def own_input_ids(self) -> tuple[str, ...]:
        """The inputs that came inside the request, and are deleted with the generation."""
        return tuple(image.id for image in self.request.inputs if image.is_own)

    def answered(self, image_id: str) -> AnsweredImage | None:
        """The image in the upstream's answer, if that has come."""
        for call in self.calls:
            if call.answer and image_id in call.image_ids:
                return call.answer.images[call.image_ids.index(image_id)]
        return None

    @property
    def details(self) -> dict[str, str]:
        """The details that the upstream gave for all images."""
        return next((call.answer.details for call in self.calls if call.answer), {})

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The upstreams that answered, in the order of the calls."""
        answered = (call.answer.upstream for call in self.calls if call.answer)
        return tuple(dict.fromkeys(upstream for upstream in answered if upstream))

    @property
    def upstream(self) -> str | None:
        """The upstream that served, the first one if several did. `None` if none has answered."""
        return next(iter(self.upstreams), None)

    @property
    def first_sent_at(self) -> float | None:
        """When the first upstream call was sent, in Unix seconds."""
        return min((attempt.sent_at for call in self.calls for attempt in call.attempts), default=None)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The token counts of all calls together."""
        return summed_usage(call.answer.usage for call in self.calls if call.answer)

    @property
    def unreturned(self) -> int:
        """The number of images to return to the quota: they were certainly not charged, and not returned yet."""
        # The call before an extra call may have been charged for the same image.
        uncharged = sum(len(call.image_ids) for call in self.calls if not call.charged and not call.extra)
        return max(0, uncharged - self.returned)

    @property
    def extra_calls(self) -> int:
        """The number of calls that were sent for images that were missing from an answer."""
        return sum(call.sent for call in self.calls if call.extra)

    @property
    def repeated_calls(self) -> int:
        """The number of calls with an unknown outcome that were sent again. Each may have been paid twice."""
        return sum(max(0, call.sent - call.refused - 1) for call in self.calls)


class Rejection(msgspec.Struct, frozen=True):
    """A request that came as the event `event_id` and began no generation."""

    event_id: str
    caller: str | None
    custom_id: str | None
    failure: Failure


_BY_HTTP = Origin()


class Tombstone(msgspec.Struct, frozen=True):
    """Replaces the record of a deleted generation. A worker that finds it deletes images that were written late.

    `buried_at` is in Unix seconds. `input_ids` are the inputs that came inside the request.
    """

    id: str
    caller: str
    image_ids: tuple[str, ...]
    buried_at: float
    input_ids: tuple[str, ...] = ()


def admit(
    request: ImageRequest,
    model: ImageModel,
    *,
    caller: str,
    base_url: str,
    now: float,
    origin: Origin = _BY_HTTP,
    generation_id: str | None = None,
    parent: ParentTask | None = None,
) -> Generation:
    """Returns a new generation. All ids are fixed before anything is spent. With a parent, only its upstream is called.

    Nobody waits for a line of a batch, and its file may be at the rate limit for hours, so it has the longest deadline.
    That of a task stays: it says how long the upstream works on it, and so how long a lost one holds its slot.
    """
    supply = supply_of(model, request)
    if origin.batch_id is not None:
        supply = msgspec.structs.replace(supply, deadline_seconds=LONGEST_DEADLINE_SECONDS)
    if parent is not None:
        routes = tuple(route for route in supply.routes if route.upstream == parent.upstream)
        supply = msgspec.structs.replace(supply, parent=parent, routes=routes or (Route(parent.upstream, model.id),))
    return Generation(
        id=generation_id or new_generation_id(),
        caller=caller,
        request=request,
        created_at=now,
        base_url=base_url,
        supply=supply,
        calls=tuple(
            UpstreamCall(tuple(new_image_id() for _ in range(n)), number=number)
            for number, n in enumerate(model.calls(request.n))
        ),
        origin=origin,
    )


def reserving_money(generation: Generation) -> Generation:
    """Returns a new generation of a caller with a quota in money. It reserves the highest price of all its images.

    Raises ModelHasNoPriceError.
    """
    price = generation.supply.price
    if price is None:
        model = generation.request.model
        raise ModelHasNoPriceError(
            f"The model '{model}' has no price, and your quota is in USD. GET /v1/models shows which models have one.",
            param="model",
        )
    most = generation.request.n * price.most
    return msgspec.structs.replace(generation, spending=Spending(reserved=most, taken=most))


def supply_of(model: ImageModel, request: ImageRequest | None = None) -> Supply:
    """Where the images of the model come from. With a request, the price is narrowed to what it determines."""
    model = model.doing(request.operation) if request else model
    price, defaults = model.price, model.defaults_for(request.options) if request else {}
    if request and isinstance(price, ImagePrice):
        of_fields = {field.name: field.default for field in model.own_fields if field.default is not None}
        price = price.narrowed({**of_fields, **defaults, **request.options})
    return Supply(
        provider=model.provider,
        like=model.like,
        owned_by=model.owned_by if model.like else "",
        routes=model.routes,
        defaults=defaults,
        price=price,
        deadline_seconds=model.deadline_seconds,
        by_task=model.by_task,
        task_seconds=model.deadline_seconds,
        slot_per_image=model.slot_per_image,
        mode=model.mode,
    )


def new_generation_id() -> str:
    return f"gen_{secrets.token_urlsafe(16)}"


def successor_id(generation_id: str) -> str:
    """Returns the id of the generation that replaces one that failed with nothing spent, or that is void."""
    digest = hashlib.sha256(f"after {generation_id}".encode()).digest()[:16]
    return f"gen_{urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def is_generation_id(text: str) -> bool:
    return text.startswith("gen_") and len(text) == 26 and text.isascii() and text.replace("-", "_").isidentifier()


def new_owner() -> str:
    """Returns a token for one claim."""
    return secrets.token_urlsafe(12)


def fingerprint(request: ImageRequest, inputs: Iterable[tuple[str, str]] = ()) -> str:
    """Returns a hash that is equal only for equal requests. A new optional field changes no old fingerprint.

    `inputs` are the role of each input image and what identifies it: `sha256:` of its content, or `url:` of the address
    that its content comes from.
    """
    fields = {
        "model": request.model,
        "prompt": request.prompt,
        "n": request.n,
        "response_format": request.response_format,
        **request.options,
    }
    text = _FINGERPRINT_VERSION + msgspec.json.encode(fields, order="sorted")
    if request.operation != "generate":
        text += msgspec.json.encode([request.operation, *inputs])
    return hashlib.sha256(text).hexdigest()


def summed_usage(usages: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Returns the sum of token counts, `None` if there are none."""
    return reduce(_added, filter(None, usages), None)


def _added(left: dict[str, Any] | None, right: dict[str, Any]) -> dict[str, Any]:
    """Adds the counts that both have, at every depth."""
    if left is None:
        return right
    return {
        key: _added(left[key], right[key]) if isinstance(left[key], dict) else left[key] + right[key]
        for key in left
        if key in right
    }


class LostClaimError(Exception):
    """The generation has another owner, has ended, or was deleted. The worker must stop."""


class IdTakenError(Exception):
    """A record with this id exists.

    `void` means that none exists and none ever will. `deleted` means that one existed, and its quota is settled.
    """

    def __init__(self, *, void: bool = False, deleted: bool = False) -> None:
        super().__init__()
        self.void = void
        self.deleted = deleted
