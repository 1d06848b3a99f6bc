"""Admits a request: finds the generation that it repeats, or begins one that no crash can lose."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from imagegen.allowance import Allowance, Standing
from imagegen.errors import AllowanceSpentError, IdempotencyKeyReusedError, RecordsUnavailableError
from imagegen.failures import cost_money
from imagegen.generations import (
    Generation,
    Markers,
    MarkerTakenError,
    Origin,
    Status,
    admit,
    fingerprint,
    new_owner,
)
from imagegen.images import ImageRequest
from imagegen.ports import SILENT, GenerationQueue, GenerationStore, Journal, KeyHolder

KEY_SECONDS = 24 * 3600.0  # how long an Idempotency-Key holds
RETRY_SECONDS = 15 * 60.0  # an OpenAI client gives up on a request after 10 minutes, and retries within seconds
SAFETY_NET_LEASES = 1.5  # by then a lease that nobody renews is gone
_RACES = 5  # each is lost to a request that then can be attached to
_PAUSE_SECONDS = 0.05  # after the first race; five take two seconds at most


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a client says about a request of its own. `retry` counts its retries, None where it does not count."""

    idempotency_key: str | None = None
    retry: int | None = None

    @property
    def is_retried(self) -> bool:
        """Whether the client is one that tries again by itself, and then finds what this try began."""
        return self.retry is not None


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

    With `work_here` a new one comes claimed, and its message waits until the lease is gone. `images_per_day` is the
    caller's own allowance. `generation_id` is what the generation is to be called: if it is there, it is attached to.
    Raises IdempotencyKeyReusedError, AllowanceSpentError, RecordsUnavailableError.
    """
    body = fingerprint(request)
    spent: AllowanceSpentError | None = None
    for race in range(_RACES):
        holder = desk.records.key_holder(caller, attempt.idempotency_key) if attempt.idempotency_key else None
        if generation_id:
            generation = desk.records.get(generation_id)
        else:
            generation = _attached(holder, attempt, body, desk, caller)
        if generation is not None:
            if not generation_id:
                desk.journal.attached(generation)
            return Submitted(generation, attached=True)
        now = desk.now()
        # A request with a key is found by its key alone: a retry without one is another client's.
        markers = Markers(attempt.idempotency_key, None if attempt.idempotency_key else attempt.retry)
        generation = admit(
            request,
            caller=caller,
            base_url=base_url,
            now=now,
            markers=markers,
            origin=origin or Origin(),
            generation_id=generation_id,
        )
        try:
            standing = desk.allowance.reserve(caller, request.n, now=now, own=images_per_day)
            return _begun(
                generation, body, desk, holder, standing, work_here=work_here, comes_again=generation_id is not None
            )
        except MarkerTakenError:
            spent = None
        except AllowanceSpentError as error:
            # The last of it may have gone to another request with the same key or id: then there is one to attach to.
            spent = error
            if not attempt.idempotency_key and not generation_id:
                break
        desk.sleep(_PAUSE_SECONDS * 2**race * random.uniform(0.5, 1.5))
    raise spent or RecordsUnavailableError(
        "Too many requests with this Idempotency-Key came at once. Please try again."
    )


def _attached(holder: KeyHolder | None, attempt: Attempt, body: str, desk: Desk, caller: str) -> Generation | None:
    now = desk.now()
    if attempt.idempotency_key:
        # The age is compared here: DynamoDB deletes what has expired only within days.
        if holder is None or now - holder.created_at > KEY_SECONDS:
            return None
        if holder.fingerprint != body:
            raise IdempotencyKeyReusedError(
                "This Idempotency-Key was used with another request. Use a new key for a new request.",
                param="Idempotency-Key",
            )
        found: str | None = holder.generation_id
    elif attempt.retry:
        found = desk.records.attach_retry(caller, body, attempt.retry, since=now - RETRY_SECONDS)
    else:
        return None
    generation = desk.records.get(found) if found else None
    return None if generation is None or _begins_anew(generation) else generation


def _begins_anew(generation: Generation) -> bool:
    """A generation that failed before anything was spent holds no retry back."""
    failure = generation.failure
    return generation.status is Status.FAILED and failure is not None and not cost_money(failure)


def _begun(
    generation: Generation,
    body: str,
    desk: Desk,
    holder: KeyHolder | None,
    standing: Standing,
    *,
    work_here: bool,
    comes_again: bool,
) -> Submitted:
    """Gives the reservation back wherever there certainly is no record, and none will be.

    With `comes_again` the request will be made again until its generation is there, so its id is never made void.
    """
    now = generation.created_at
    owner = new_owner() if work_here else None
    if owner:
        generation = msgspec.structs.replace(
            generation, status=Status.IN_PROGRESS, owner=owner, lease_until=now + desk.lease
        )
    try:
        # Messages go first: a record without one would wait for ever, a message without a record is dropped.
        if not owner:
            desk.queue.send(generation.id)
        # The safety net: a worker that dies at once takes its message along for the queue's whole time-out.
        desk.queue.send(generation.id, delay=desk.lease * SAFETY_NET_LEASES)
    except RecordsUnavailableError:
        _give_back(generation, desk)
        raise
    try:
        desk.records.create(generation, body, replacing=holder.generation_id if holder else None)
    except MarkerTakenError:
        _give_back(generation, desk)
        raise
    except RecordsUnavailableError:
        if comes_again:
            raise
        if desk.records.void(generation.id, now=now):
            _give_back(generation, desk)
            raise
        # It was written, and only the answer was lost: to refuse the request now would let it be paid for twice.
    desk.journal.begun(generation, quota_used=standing.quota_used)
    return Submitted(generation, owner, standing=standing)


def _give_back(generation: Generation, desk: Desk) -> None:
    desk.allowance.give_back(generation.caller, generation.request.n, at=generation.created_at)
