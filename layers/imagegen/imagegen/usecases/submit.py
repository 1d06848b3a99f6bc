"""Admits a request: finds the generation that it repeats, or begins one that no crash can lose.

What is written comes in this order: marker, quota, safety-net message, record, work message. A retry finds the marker
while the first attempt is still at the rest, and begins the same generation. A record is written while its safety-net
message still sleeps, so a message without a record has none to wait for.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from imagegen.domain.attempts import Attempt
from imagegen.domain.errors import (
    GenerationCancelledError,
    IdempotencyKeyReusedError,
    NothingSpentError,
    RecordsUnavailableError,
    SubmissionUncertainError,
)
from imagegen.domain.failures import cost_money, kept
from imagegen.domain.generations import (
    Generation,
    IdTakenError,
    Origin,
    Rejection,
    Status,
    admit,
    fingerprint,
    new_generation_id,
    new_owner,
    successor_id,
)
from imagegen.domain.images import ImageRequest
from imagegen.domain.quota import Standing
from imagegen.ports import SILENT, DeadLetters, EventBus, GenerationQueue, GenerationStore, Journal
from imagegen.usecases.quota import Allowance

KEY_SECONDS = 24 * 3600.0  # how long an Idempotency-Key holds
RETRY_SECONDS = 15 * 60.0  # an OpenAI client gives up on a request after 10 minutes, and retries within seconds
SAFETY_NET_LEASES = 1.5  # by then a lease that nobody renews is gone
_ROUNDS = 20  # each follows a generation that failed with nothing spent, or is lost to a request to attach to
_SAFETY_NET_SLEEPS = 0.5  # the part of its delay within which the record's writing begins; it takes 42 s at most
_PAUSE_SECONDS = 0.05  # after the first race
_LONGEST_PAUSE_SECONDS = 0.8


@dataclass(frozen=True, slots=True)
class Submitted:
    """`owner` is our token where the generation is begun and ours to work on now.

    `standing` is the caller's after a reservation, None where the request attached.
    """

    generation: Generation
    owner: str | None = None
    attached: bool = False
    standing: Standing | None = None


@dataclass(frozen=True, slots=True)
class Desk:
    """What submitting needs. `now` gives Unix seconds; `lease` is in seconds."""

    records: GenerationStore
    queue: GenerationQueue
    allowance: Allowance
    now: Callable[[], float]
    lease: float
    sleep: Callable[[float], None] = time.sleep
    journal: Journal = SILENT


@dataclass(frozen=True, slots=True)
class _Place:
    """The id that a request's generation has, and whether this request is the first to have it."""

    generation_id: str
    new: bool


def submit(
    request: ImageRequest,
    attempt: Attempt,
    desk: Desk,
    *,
    caller: str,
    base_url: str,
    work_here: bool,
    images_per_day: int | None = None,
    origin: Origin | None = None,
    generation_id: str | None = None,
) -> Submitted:
    """The generation for a request: the one that it repeats, or a new one with a message behind it.

    With `work_here` a new one comes claimed. `images_per_day` is the caller's own allowance. `generation_id` is the id
    that the generation is to have: if there is one, it is attached to. Raises IdempotencyKeyReusedError,
    AllowanceSpentError, RecordsUnavailableError, SubmissionUncertainError, and GenerationCancelledError if a generation
    of that id was deleted or cancelled before it began.
    """
    body = fingerprint(request)
    place = _Place(generation_id, new=False) if generation_id else _placed(attempt, body, desk, caller)
    for race in range(_ROUNDS):
        found = None if place.new else desk.records.get(place.generation_id)
        if found is not None and (generation_id or not _begins_anew(found)):
            if not generation_id:
                desk.journal.attached(found)
            return Submitted(found, attached=True)
        if found is not None:
            place = _succeeding(place, attempt, body, desk, caller)
            continue
        generation = admit(
            request,
            caller=caller,
            base_url=base_url,
            now=desk.now(),
            origin=origin or Origin(),
            generation_id=place.generation_id,
        )
        try:
            return _begun(generation, desk, images_per_day, work_here=work_here, comes_again=generation_id is not None)
        except IdTakenError as taken:
            if taken.void and not taken.deleted:
                desk.allowance.give_back(caller, request.n, at=generation.created_at, token=generation.id)
            if taken.void and generation_id:
                raise GenerationCancelledError("The generation was deleted or cancelled.") from None
            place = _Place(place.generation_id, new=False)
            if taken.void:
                place = _succeeding(place, attempt, body, desk, caller)
        desk.sleep(min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**race) * random.uniform(0.5, 1.5))
    raise RecordsUnavailableError("Too many requests for this generation came at once. Please try again.")


def send_safety_net(generation: Generation, queue: GenerationQueue, now: Callable[[], float], lease: float) -> None:
    """Sends the message that finds the record should its writer die. It still sleeps when this returns.

    `lease` is in seconds. Raises RecordsUnavailableError.
    """
    delay = lease * SAFETY_NET_LEASES
    while True:
        before = now()
        queue.send(generation.id, generation.caller, delay=delay)
        if now() - before <= delay * _SAFETY_NET_SLEEPS:
            return


def _placed(attempt: Attempt, body: str, desk: Desk, caller: str) -> _Place:
    """Looks for the generation that the attempt repeats, or marks a new one as its own."""
    new_id, now, records = new_generation_id(), desk.now(), desk.records
    if attempt.idempotency_key:
        holder = _held(attempt.idempotency_key, new_id, body, desk, caller, None)
        return _Place(holder, new=holder == new_id)
    if attempt.retry is not None:
        found = (
            records.attach_attempt(caller, body, attempt.retry, since=now - RETRY_SECONDS) if attempt.retry else None
        )
        if found:
            return _Place(found, new=False)
        records.mark_attempt(caller, body, new_id, attempt.retry, now=now)
    return _Place(new_id, new=True)


def _succeeding(place: _Place, attempt: Attempt, body: str, desk: Desk, caller: str) -> _Place:
    """The generation that follows one which cannot give an image. All attempts that come to it meet in the same one."""
    successor = successor_id(place.generation_id)
    if attempt.idempotency_key:
        successor = _held(attempt.idempotency_key, successor, body, desk, caller, place.generation_id)
    return _Place(successor, new=False)


def _held(idempotency_key: str, generation_id: str, body: str, desk: Desk, caller: str, replacing: str | None) -> str:
    """The id of the generation that the key belongs to now. Raises IdempotencyKeyReusedError."""
    now = desk.now()
    holder = desk.records.hold_key(
        caller,
        idempotency_key,
        generation_id,
        body,
        now=now,
        expired_before=now - KEY_SECONDS,  # compared here: DynamoDB deletes what has expired only within days
        replacing=replacing,
    )
    if holder.fingerprint != body:
        raise IdempotencyKeyReusedError(
            "This Idempotency-Key was used with another request. Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return holder.generation_id


def _begins_anew(generation: Generation) -> bool:
    """A generation that failed before anything was spent holds no retry back."""
    failure = generation.failure
    return generation.status is Status.FAILED and failure is not None and not cost_money(failure)


def _begun(
    generation: Generation, desk: Desk, images_per_day: int | None, *, work_here: bool, comes_again: bool
) -> Submitted:
    """With `comes_again` the request will be made again until its generation is there, so its id is never made void."""
    now = generation.created_at
    standing = desk.allowance.reserve(
        generation.caller,
        generation.request.n,
        now=now,
        token=generation.id,
        may_undo=lambda: comes_again or desk.records.void(generation.id, now=now) is None,
        comes_again=comes_again,
        own=images_per_day,
    )
    creating = False
    try:
        send_safety_net(generation, desk.queue, desk.now, desk.lease)
        if work_here:
            generation = msgspec.structs.replace(
                generation, status=Status.IN_PROGRESS, owner=new_owner(), lease_until=desk.now() + desk.lease
            )
        creating = True
        desk.records.create(generation)
    except RecordsUnavailableError as error:
        if comes_again:
            raise
        there = _withdrawn(generation, desk, error, creating=creating)
        if there.image_ids != generation.image_ids:
            return Submitted(there, attached=True)
    if not work_here:
        with suppress(RecordsUnavailableError):  # the safety net brings a worker, only later
            desk.queue.send(generation.id, generation.caller)
    desk.journal.begun(generation, quota_used=standing.quota_used)
    return Submitted(generation, generation.owner, standing=standing)


def _withdrawn(generation: Generation, desk: Desk, error: RecordsUnavailableError, *, creating: bool) -> Generation:
    """Makes sure that there is no record, returns the quota and raises the error again.

    If there is one, gives it: the request was accepted, by this attempt or by another of the same generation. To refuse
    it now would let it be paid for twice. Raises IdTakenError if it was deleted: its quota is settled.
    """
    try:
        there = desk.records.void(generation.id, now=desk.now())
    except RecordsUnavailableError:
        if not creating:
            raise error from None
        uncertain = SubmissionUncertainError(
            "The request may have been accepted. Ask for the generation by its id, or retry: a retry attaches to it."
        )
        uncertain.generation_id = generation.id
        raise uncertain from error
    if there is None:
        desk.allowance.give_back(generation.caller, generation.request.n, at=generation.created_at, token=generation.id)
        raise error
    return there


_MOST_REASON = 1000  # characters


def reject(
    error: NothingSpentError,
    body: str,
    dead_letters: DeadLetters,
    bus: EventBus,
    *,
    event_id: str | None,
    client: str | None,
    custom_id: str | None,
) -> None:
    """If the process dies in between, both happen twice. Raises RecordsUnavailableError."""
    field = f" ({error.param})" if error.param else ""
    reason = f"{type(error).__name__}{field}: {error.message}"[:_MOST_REASON]
    # SQS takes no control characters, which the name of an unknown field may hold.
    dead_letters.put(body, "".join(character if character.isprintable() else " " for character in reason))
    if event_id is not None:  # what cannot be read has no id to answer
        bus.request_rejected(Rejection(event_id, client, custom_id, kept(error)))
