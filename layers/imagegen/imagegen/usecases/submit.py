"""Submits a request: finds the generation that it repeats, or begins a new one that no crash can lose.

The order of writes is: idempotency key, input images, quota, safety-net message, record, work message. A retry finds
the key while the first try is still writing, and begins the same generation. The record is written while its safety-net
message is still delayed, so a message that finds no record has none to wait for.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import msgspec

from imagegen.domain.credentials import Caller
from imagegen.domain.errors import (
    GenerationCancelledError,
    IdempotencyKeyReusedError,
    InvalidImageError,
    NothingSpentError,
    RecordsUnavailableError,
    SubmissionUncertainError,
)
from imagegen.domain.failures import failure_of
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
    reserving_money,
    successor_id,
)
from imagegen.domain.images import ImageRequest
from imagegen.domain.models import ImageModel
from imagegen.domain.quota import Standing
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import DeadLetters, EventBus, GenerationQueue, GenerationStore, IdempotencyKeys, Journal
from imagegen.usecases.quota import Quota
from imagegen.usecases.take_inputs import IdentifiedInputs

KEY_SECONDS = 24 * 3600.0  # how long an Idempotency-Key is valid
RETRY_SECONDS = 80 * 60.0  # a request may wait 17 times 270 s; if its answer is lost, OpenAI's clients retry in seconds
SAFETY_NET_LEASES = 1.5  # by then a lease that is not renewed has ended
_ROUNDS = 20  # each follows a generation that failed with nothing spent, or a lost race for an id
_SAFETY_NET_MARGIN = 0.5  # the share of the delay within which the record's write begins; the write takes 42 s at most
_PAUSE_SECONDS = 0.05  # after the first race
_LONGEST_PAUSE_SECONDS = 0.8
_NO_IDENTITY, _OVER_HTTP = RetryIdentity(), Origin()
_MOST_REASON = 1000  # characters of the reason for a rejection


class Submission(msgspec.Struct, frozen=True):
    """A request as it came in.

    `generation_id` is the id of its generation; if that exists, the request attaches to it. If that was refused before,
    a line of a batch stays refused, and another request begins the id that follows. With `claim` a new generation is
    claimed for the process that submits it. `inputs` are the input images of the request, which are stored only for a
    new generation. With `waits_for_quota` a request that exceeds a quota is submitted again later, with the same id.
    """

    request: ImageRequest
    caller: Caller
    base_url: str
    identity: RetryIdentity = _NO_IDENTITY
    origin: Origin = _OVER_HTTP
    generation_id: str | None = None
    claim: bool = False
    inputs: IdentifiedInputs | None = None
    waits_for_quota: bool = False


class Submitted(msgspec.Struct, frozen=True):
    """`owner` is the lease's token if the generation is new and claimed.

    `standing` is the caller's after the reservation, `None` if the request attached.
    """

    generation: Generation
    owner: str | None = None
    attached: bool = False
    standing: Standing | None = None


class _Place(msgspec.Struct, frozen=True):
    """The id of a request's generation, and whether the id is new."""

    generation_id: str
    new: bool


def reserved_id(keys: IdempotencyKeys, caller: str, identity: RetryIdentity, body: str, new_id: str, now: float) -> str:
    """The id of what the request repeats, or `new_id`, now reserved for it. `body` is the request's fingerprint.

    Raises IdempotencyKeyReusedError, RecordsUnavailableError.
    """
    if identity.idempotency_key:
        return _held_id(keys, caller, identity.idempotency_key, new_id, body, now)
    if identity.retry is not None:
        if identity.retry:
            found = keys.attach(caller, body, identity.retry, since=now - RETRY_SECONDS)
            if found:
                return found
        keys.mark(caller, body, new_id, identity.retry, now=now)
    return new_id


def _held_id(
    keys: IdempotencyKeys,
    caller: str,
    idempotency_key: str,
    new_id: str,
    body: str,
    now: float,
    *,
    replacing: str | None = None,
) -> str:
    """The id that has the key now. Raises IdempotencyKeyReusedError."""
    holder = keys.hold(
        caller,
        idempotency_key,
        new_id,
        body,
        now=now,
        expired_before=now - KEY_SECONDS,  # compared here: DynamoDB deletes expired items only within days
        replacing=replacing,
    )
    if holder.fingerprint != body:
        raise IdempotencyKeyReusedError(
            "This Idempotency-Key was used with another request. Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return holder.generation_id


class SafetyNet(msgspec.Struct, frozen=True, eq=False):
    """Sends the message that finds a record whose writer dies. `lease` is in seconds, `now` gives Unix seconds."""

    queue: GenerationQueue
    now: Callable[[], float]
    lease: float

    def send(self, generation: Generation) -> None:
        """The message is still delayed when this returns. Raises RecordsUnavailableError."""

        def send(delay: float) -> None:
            self.queue.send(generation.id, generation.caller, delay=delay, to=generation.queue())

        send_delayed(send, self.now, self.lease)


def send_delayed(send: Callable[[float], None], now: Callable[[], float], lease: float) -> None:
    """Sends a message that comes when a lease that began now has ended. It is still delayed when this returns."""
    delay = lease * SAFETY_NET_LEASES
    while True:
        before = now()
        send(delay)
        if now() - before <= delay * _SAFETY_NET_MARGIN:
            return


class SubmitGeneration(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds; `lease` is in seconds."""

    models: Mapping[str, ImageModel]
    keys: IdempotencyKeys
    records: GenerationStore
    queue: GenerationQueue
    quota: Quota
    journal: Journal
    now: Callable[[], float]
    lease: float
    sleep: Callable[[float], None] = time.sleep

    def submit_with(self, identify: Callable[[], IdentifiedInputs | None], submission: Submission) -> Submitted:
        """Submits a request whose input images `identify` reads.

        An image may be gone when the request is repeated. Then it attaches to the generation with its Idempotency-Key,
        if the rest of that request was the same. Raises what `identify` and `submit` raise.
        """
        try:
            inputs = identify()
        except InvalidImageError:
            begun = self._begun_with_its_key(submission)
            if begun is None:
                raise
            return begun
        return self.submit(msgspec.structs.replace(submission, inputs=inputs))

    def _begun_with_its_key(self, submission: Submission) -> Submitted | None:
        idempotency_key, expired_before = submission.identity.idempotency_key, self.now() - KEY_SECONDS
        if not idempotency_key:
            return None
        holder = self.keys.find(submission.caller.name, idempotency_key, expired_before=expired_before)
        found = self.records.get(holder) if holder else None
        if found is None or _begins_anew(found) or replace(found.request, inputs=()) != submission.request:
            return None
        self.journal.attached(found)
        return Submitted(found, attached=True)

    def submit(self, submission: Submission) -> Submitted:
        """The generation of a request: the one that it repeats, or a new one with a message behind it.

        Raises IdempotencyKeyReusedError, ModelHasNoPriceError, QuotaExceededError, RecordsUnavailableError,
        SubmissionUncertainError, and GenerationCancelledError if the generation with the given id was deleted, or is
        that of a line and was cancelled or refused before it began. If the request has input images, raises what
        `IdentifiedInputs.keep` raises.
        """
        inputs = submission.inputs
        if inputs is None:
            return self._submit(submission, fingerprint(submission.request))
        try:
            submitted = self._submit(submission, fingerprint(submission.request, inputs.identities))
        except RecordsUnavailableError:  # the record may exist
            raise
        except NothingSpentError:
            inputs.discard()
            raise
        if submitted.attached:
            inputs.discard()
        return submitted

    def _submit(self, submission: Submission, body: str) -> Submitted:
        given, inputs = submission.generation_id, submission.inputs
        place = _Place(given, new=False) if given else self._place(submission, body)
        for race in range(_ROUNDS):
            found = None if place.new else self.records.get(place.generation_id)
            if found is not None and (given or not _begins_anew(found)):
                if not given:
                    self.journal.attached(found)
                return Submitted(found, attached=True)
            if found is not None:
                place = self._successor(place, submission, body)
                continue
            request = replace(submission.request, inputs=inputs.keep()) if inputs else submission.request
            generation = admit(
                request,
                self.models[request.model],
                caller=submission.caller.name,
                base_url=submission.base_url,
                now=self.now(),
                origin=submission.origin,
                generation_id=place.generation_id,
                parent=inputs.parent if inputs else None,
            )
            if submission.caller.usd_per_day is not None:
                generation = reserving_money(generation)
            try:
                return self._begin(generation, submission)
            except IdTakenError as taken:
                if taken.void and not taken.deleted:
                    self.quota.undo(generation)
                if (taken.deleted and given) or (taken.void and generation.origin.batch_id):
                    raise GenerationCancelledError("The generation was deleted, cancelled or refused.") from None
                place = _Place(place.generation_id, new=False)
                if taken.void:
                    place = self._successor(place, submission, body)
            self.sleep(min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**race) * random.uniform(0.5, 1.5))
        raise RecordsUnavailableError("Too many requests for this generation came at once. Please try again.")

    def _place(self, submission: Submission, body: str) -> _Place:
        """Looks for the generation that the request repeats, or reserves a new id for it."""
        new_id = new_generation_id()
        found = reserved_id(self.keys, submission.caller.name, submission.identity, body, new_id, self.now())
        return _Place(found, new=found == new_id)

    def _successor(self, place: _Place, submission: Submission, body: str) -> _Place:
        """The generation that follows one that cannot give images. All requests that come to it get the same one."""
        successor, key = successor_id(place.generation_id), submission.identity.idempotency_key
        if key:
            successor = _held_id(
                self.keys,
                submission.caller.name,
                key,
                successor,
                body,
                self.now(),
                replacing=place.generation_id,
            )
        return _Place(successor, new=False)

    def _begin(self, generation: Generation, submission: Submission) -> Submitted:
        # A request for a given id is repeated until it is accepted or refused. No failure of a store makes its id void.
        is_repeated = submission.generation_id is not None

        def may_undo() -> bool:
            # What a waiting line has taken of one quota, its repetition on the same day does not take again.
            return (
                not submission.waits_for_quota and self.records.void(generation.id, now=generation.created_at) is None
            )

        standing = self.quota.reserve(
            generation,
            submission.caller,
            may_undo=may_undo,
            is_repeated=is_repeated,
        )
        creating = False
        try:
            SafetyNet(self.queue, self.now, self.lease).send(generation)
            if submission.claim:
                generation = msgspec.structs.replace(
                    generation, status=Status.IN_PROGRESS, owner=new_owner(), lease_until=self.now() + self.lease
                )
            creating = True
            self.records.create(generation)
        except RecordsUnavailableError as error:
            if is_repeated:
                raise
            existing = self._withdraw(generation, error, creating=creating)
            if existing.image_ids != generation.image_ids:
                return Submitted(existing, attached=True)
        if not submission.claim:
            with suppress(RecordsUnavailableError):  # the safety net brings a worker, but later
                self.queue.send(generation.id, generation.caller, to=generation.queue())
        self.journal.begun(generation, quota_used=standing.quota_used)
        return Submitted(generation, generation.owner, standing=standing)

    def _withdraw(self, generation: Generation, error: RecordsUnavailableError, *, creating: bool) -> Generation:
        """Makes sure that no record exists, undoes the reservation and raises the error again.

        Returns the record if one exists: this try, or another of the same generation, was accepted. If it were refused
        now, it could be paid for twice. Raises IdTakenError if it was deleted, which settled its quota.
        """
        try:
            existing = self.records.void(generation.id, now=self.now())
        except RecordsUnavailableError:
            if not creating:
                raise error from None
            uncertain = SubmissionUncertainError(
                "The request may have been accepted. Get the generation by its id, or retry: a retry attaches to it."
            )
            uncertain.generation_id = generation.id
            raise uncertain from error
        if existing is None:
            self.quota.undo(generation)
            raise error
        return existing


def _begins_anew(generation: Generation) -> bool:
    """A generation that failed with nothing spent does not hold back a retry."""
    failure = generation.failure
    return generation.status is Status.FAILED and failure is not None and not failure.money_spent


class RejectEvent(msgspec.Struct, frozen=True, eq=False):
    """Refuses a request that came as a message, for good."""

    dead_letters: DeadLetters
    bus: EventBus

    def reject(
        self, error: NothingSpentError, body: str, *, event_id: str | None, caller: str | None, custom_id: str | None
    ) -> None:
        """Puts the message aside and publishes the rejection. If the process dies in between, both happen twice.

        A message without an `event_id` cannot be read, so nothing is published. Raises RecordsUnavailableError.
        """
        failure = failure_of(error)
        field = f" ({failure.param})" if failure.param else ""
        reason = f"{failure.code}{field}: {failure.message}"[:_MOST_REASON]
        # SQS accepts no control characters, which the name of an unknown field may hold.
        self.dead_letters.put(body, "".join(character if character.isprintable() else " " for character in reason))
        if event_id is not None:
            self.bus.request_rejected(Rejection(event_id, caller, custom_id, failure))
