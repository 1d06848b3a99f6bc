"""Stores generations in one DynamoDB table. Every change is one conditional write on one item.

| pk | sk | |
|---|---|---|
| `<generation id>` | `generation` | the record |

The index `by-caller` (`caller`, `created_at`) lists the generations of a caller. It has the status, by which a list may
be filtered, and nothing that changes during work: DynamoDB writes to an index only if a value in it changes. Parts that
change independently (calls, stored images) have an attribute each, so parallel workers never overwrite each other.
Whatever was paid for is written as long as the record exists, even after the generation has ended.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from imagegen.aws.items import (
    ConditionFailedError,
    Item,
    asking,
    json_text,
    key,
    newest_items,
    number,
    put_under,
    update_under,
)
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.failures import Failure
from imagegen.domain.generations import (
    CallAnswer,
    Generation,
    IdTakenError,
    LostClaimError,
    Origin,
    Status,
    StoredImage,
    Supply,
    Tombstone,
    UpstreamAttempt,
    UpstreamCall,
    with_extra_calls,
)
from imagegen.domain.images import ImageRequest
from imagegen.domain.money import Spending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_RECORD = "generation"
# Of the record. A process refuses records of a later version. Those of requests with input images have their own: an
# older process would make images from their prompts alone.
_VERSION, _VERSION_WITHOUT_INPUTS = 3, 2
_BURIED = "buried"  # a status that no Generation has
# Longer than any message or process that could still write an image. SQS keeps a message for at most 14 days (SQS
# developer guide, "Amazon SQS message quotas").
_TOMBSTONE_SECONDS = 15 * 24 * 3600
_ACTIVE = "#status IN (:queued, :in_progress)"
_CLAIMED = "#owner = :owner AND #status = :in_progress"
_WORKED_ON = "#owner = :owner AND #status IN (:in_progress, :cancelled)"
_NO_LEASE = "(lease_until < :now OR #owner = :owner)"
_LIVE = "attribute_exists(caller)"  # a tombstone has none


class DynamoGenerations:
    """Implements `ports.GenerationStore`. `retention_seconds` is how long a record is kept."""

    def __init__(
        self,
        client: Callable[[], DynamoDBClient],
        table: str,
        *,
        retention_seconds: int,
    ) -> None:
        self._client = client
        self._table = table
        self._retention_seconds = retention_seconds

    def create(self, generation: Generation) -> None:
        record = self._record(generation)
        with asking():
            try:
                put_under("attribute_not_exists(pk)", self._client(), self._table, record)
            except ConditionFailedError as failed:
                found = failed.item or {}
                # No two attempts share an image id: this item was written by this call, and the SDK repeated the write.
                if found.get("call_0") != record["call_0"]:
                    raise IdTakenError(void=_is_buried(found), deleted="tombstone" in found) from None

    def get(self, generation_id: str) -> Generation | None:
        item = self._item(generation_id)
        return None if item is None or _is_buried(item) else _generation(item)

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        last = None
        if after is not None:
            last = self._item(after)
            if last is None or _is_buried(last) or last["caller"]["S"] != caller:
                return []
        with asking():
            items = newest_items(
                self._client(), self._table, caller, limit, after=last, status=status.value if status else None
            )
        return [_generation(item) for item in items]

    def claim(
        self, generation_id: str, owner: str, *, now: float, lease_until: float, poll: int = 0
    ) -> Generation | None:
        values: Item = {
            ":owner": {"S": owner},
            ":now": number(now),
            ":lease_until": number(lease_until),
            ":poll": number(poll),
        }
        claimable = f"(#status = :queued OR (#status = :in_progress AND {_NO_LEASE})) AND polls <= :poll"
        try:
            update = "SET #status = :in_progress, #owner = :owner, lease_until = :lease_until"
            return _generation(self._update(generation_id, update, claimable, values))
        except LostClaimError as lost:
            found = _found(lost)
            if found.get("status") != {"S": Status.CANCELLED.value} or "has_task" not in found:
                return None
        claimable = f"#status = :cancelled AND attribute_exists(has_task) AND {_NO_LEASE} AND polls <= :poll"
        try:
            update = "SET #owner = :owner, lease_until = :lease_until"
            return _generation(self._update(generation_id, update, claimable, values))
        except LostClaimError:
            return None

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        values: Item = {":owner": {"S": owner}, ":lease_until": number(lease_until)}
        self._update(generation_id, "SET lease_until = :lease_until", _WORKED_ON, values)

    def release(self, generation_id: str, owner: str) -> None:
        with suppress(LostClaimError):
            values = {":owner": {"S": owner}, ":zero": number(0)}
            self._update(generation_id, "SET lease_until = :zero", "#owner = :owner", values)

    def await_poll(self, generation_id: str, owner: str, poll: int, progress: int | None = None) -> None:
        values = {":owner": {"S": owner}, ":zero": number(0), ":poll": number(poll)}
        update = "SET lease_until = :zero, polls = :poll"
        if progress is not None:
            update += ", progress = :progress"
            values[":progress"] = number(progress)
        self._update(generation_id, update, _WORKED_ON, values)

    def save_attempt(self, generation_id: str, owner: str, call: int, number: int, attempt: UpstreamAttempt) -> None:
        values = {":owner": {"S": owner}, ":attempt": {"S": json_text(attempt)}}
        self._update(generation_id, f"SET {_attempt('attempt', call, number)} = :attempt", _CLAIMED, values)

    def save_task(self, generation_id: str, call: int, number: int, task_id: str) -> None:
        values: Item = {":task": {"S": task_id}, ":yes": {"BOOL": True}}
        update = f"SET {_attempt('task', call, number)} = :task, has_task = :yes"
        self._update(generation_id, update, _LIVE, values)

    def save_failure(
        self, generation_id: str, call: int, number: int, failure: Failure, *, of_task: bool = False
    ) -> None:
        name, task = (_attempt(each, call, number) for each in ("failure", "task"))
        values = {":failure": {"S": json_text(failure)}}
        condition = _LIVE if of_task else f"{_LIVE} AND attribute_not_exists({task})"
        try:
            self._update(generation_id, f"SET {name} = if_not_exists({name}, :failure)", condition, values)
        except LostClaimError as lost:
            if task not in _found(lost):
                raise

    def save_answer(self, generation_id: str, call: int, answer: CallAnswer) -> CallAnswer:
        name = f"answer_{int(call)}"
        values = {":answer": {"S": json_text(answer)}}
        item = self._update(generation_id, f"SET {name} = if_not_exists({name}, :answer)", _LIVE, values)
        return msgspec.json.decode(item[name]["S"], type=CallAnswer)

    def save_image(self, generation_id: str, image_id: str, image: StoredImage) -> None:
        values = {":image": {"S": json_text(image)}}
        self._update(generation_id, "SET #image = :image", _LIVE, values, {"#image": image_id})

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        values: Item = {":owner": {"S": owner}, ":ended": {"S": status.value}, ":now": number(now)}
        update = "SET #status = :ended, completed_at = :now"
        if failure is not None:
            update += ", failure = :failure"
            values[":failure"] = {"S": json_text(failure)}
        # If the SDK repeats a write that has succeeded, the repetition finds the end that the write made.
        condition = f"({_CLAIMED}) OR (#owner = :owner AND #status = :ended)"
        return _generation(self._update(generation_id, update, condition, values))

    def mark_published(self, generation: Generation) -> None:
        with suppress(LostClaimError):  # deleted, or tried again: the new attempt publishes its own end
            self._update(
                generation.id,
                "SET published = :yes",
                "completed_at = :completed_at",
                {":yes": {"BOOL": True}, ":completed_at": number(generation.completed_at or 0)},
            )

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        values = {":now": number(now)}
        # If it is cancelled already, by a repeated write or by another request, this succeeds as well.
        update = "SET #status = :cancelled, completed_at = if_not_exists(completed_at, :now)"
        condition = "#status IN (:queued, :in_progress, :cancelled)"
        try:
            return _generation(self._update(generation_id, update, condition, values))
        except LostClaimError:
            return None

    def cancel_unbegun(self, generation: Generation, failure: Failure, *, now: float) -> Generation | None:
        values: Item = {":now": number(now), ":failure": {"S": json_text(failure)}}
        update = "SET #status = :cancelled, completed_at = :now, failure = :failure"
        unsent = " AND ".join(
            f"attribute_not_exists({_attempt('attempt', call.number, call.sent + 1)})" for call in generation.calls
        )
        # If the SDK repeats a write that has succeeded, the repetition finds the end that the write made.
        cancelled = "(#status = :cancelled AND completed_at = :now AND failure = :failure)"
        idle = f"(#status = :queued OR (#status = :in_progress AND lease_until < :now)) AND {unsent}"
        try:
            return _generation(self._update(generation.id, update, f"({idle}) OR {cancelled}", values))
        except LostClaimError:
            return None

    def requeue(self, generation: Generation, *, now: float) -> Generation | None:
        token = secrets.token_urlsafe(12)
        values: Item = {
            ":failed": {"S": Status.FAILED.value},
            ":zero": number(0),
            ":retries": number(generation.retries + 1),
            ":now": number(now),
            ":token": {"S": token},
            ":completed_at": number(generation.completed_at or 0),
        }
        changes = (
            "#status = :queued, lease_until = :zero, retries = :retries, reserved_at = :now, returned = :zero,"
            " requeued_by = :token, polls = :zero"
        )
        # The end must be published, and uncharged images returned, before: a new attempt would lose both.
        condition = "#status = :failed AND attribute_exists(published) AND completed_at = :completed_at"
        if generation.spending is not None:
            changes += ", spending = :spending"
            condition += " AND spending = :known"
            values[":known"] = {"S": json_text(generation.spending)}
            values[":spending"] = {"S": json_text(generation.spending.reserved_again())}
        update = f"SET {changes} REMOVE failure, completed_at, published, progress, #owner"
        try:
            return _generation(self._update(generation.id, update, condition, values))
        except LostClaimError as lost:
            found = _found(lost)
            return _generation(found) if found.get("requeued_by") == {"S": token} else None

    def void(self, generation_id: str, *, now: float) -> Generation | None:
        item: Item = {
            **key(generation_id, _RECORD),
            "status": {"S": _BURIED},
            "expires_at": number(int(now) + _TOMBSTONE_SECONDS),
        }
        with asking():
            try:
                put_under("attribute_not_exists(pk)", self._client(), self._table, item)
            except ConditionFailedError as failed:
                found = failed.item or {}
                if "tombstone" in found:
                    raise IdTakenError(void=True, deleted=True) from None
                return None if not found or _is_buried(found) else _generation(found)
        return None

    def note_returned(self, generation: Generation, images: int) -> bool:
        token = secrets.token_urlsafe(12)
        values: Item = {
            ":known": number(generation.returned),
            ":returned": number(generation.returned + images),
            ":token": {"S": token},
        }
        try:
            self._update(
                generation.id,
                "SET returned = :returned, returned_by = :token",
                f"{_LIVE} AND returned = :known",
                values,
            )
        except LostClaimError as lost:
            return _found(lost).get("returned_by") == {"S": token}
        return True

    def note_spending(self, generation: Generation, spending: Spending) -> bool:
        token = secrets.token_urlsafe(12)
        values: Item = {
            ":known": {"S": json_text(generation.spending)},
            ":spending": {"S": json_text(spending)},
            ":token": {"S": token},
        }
        # Each spending of a generation is another text: it counts its changes.
        update, condition = "SET spending = :spending, spent_by = :token", f"{_LIVE} AND spending = :known"
        try:
            self._update(generation.id, update, condition, values)
        except LostClaimError as lost:
            return _found(lost).get("spent_by") == {"S": token}
        return True

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        tombstone = Tombstone(generation.id, generation.caller, generation.image_ids, now, generation.own_input_ids)
        item = {
            **key(generation.id, _RECORD),
            "status": {"S": _BURIED},
            "tombstone": {"S": json_text(tombstone)},
            "expires_at": number(int(now) + _TOMBSTONE_SECONDS),
        }
        condition = "completed_at = :completed_at OR #status = :buried"
        values: Item = {":completed_at": number(generation.completed_at or 0), ":buried": {"S": _BURIED}}
        with asking():
            try:
                put_under(condition, self._client(), self._table, item, names={"#status": "status"}, values=values)
            except ConditionFailedError:
                raise LostClaimError from None
        return tombstone

    def tombstone(self, generation_id: str) -> Tombstone | None:
        item = self._item(generation_id)
        if item is None or "tombstone" not in item:
            return None
        return msgspec.json.decode(item["tombstone"]["S"], type=Tombstone)

    def _item(self, generation_id: str) -> Item | None:
        with asking():
            found = self._client().get_item(TableName=self._table, Key=key(generation_id, _RECORD), ConsistentRead=True)
        item: Item | None = found.get("Item")
        return item

    def _update(
        self, generation_id: str, update: str, condition: str, values: Item, names: Mapping[str, str] | None = None
    ) -> Item:
        """Returns the record after the update. Raises LostClaimError if the condition does not hold."""
        with asking():
            try:
                return update_under(
                    f"({condition}) AND version <= :version",
                    self._client(),
                    self._table,
                    key(generation_id, _RECORD),
                    update,
                    names={"#status": "status", "#owner": "owner", **(names or {})},
                    values={
                        ":queued": {"S": Status.QUEUED.value},
                        ":in_progress": {"S": Status.IN_PROGRESS.value},
                        ":cancelled": {"S": Status.CANCELLED.value},
                        ":version": number(_VERSION),
                        **values,
                    },
                )
            except ConditionFailedError as failed:
                _check_version(failed.item or {})
                raise LostClaimError from failed

    def _record(self, generation: Generation) -> Item:
        item: Item = {
            **key(generation.id, _RECORD),
            "version": number(_VERSION_WITHOUT_INPUTS if generation.request.operation == "generate" else _VERSION),
            "status": {"S": generation.status.value},
            "caller": {"S": generation.caller},
            "created_at": number(generation.created_at),
            "expires_at": number(int(generation.created_at) + self._retention_seconds),
            "lease_until": number(generation.lease_until),
            "base_url": {"S": generation.base_url},
            "request": {"S": json_text(generation.request)},
            "supply": {"S": json_text(generation.supply)},
            "polls": number(generation.polls),
            "returned": number(0),
        }
        if generation.spending is not None:
            item["spending"] = {"S": json_text(generation.spending)}
        if generation.origin != Origin():
            item["origin"] = {"S": json_text(generation.origin)}
        if generation.owner is not None:
            item["owner"] = {"S": generation.owner}
        for call in generation.calls:
            item[f"call_{call.number}"] = {"S": json_text(call.image_ids)}
        return item


def _found(lost: LostClaimError) -> Item:
    """Returns the item that did not meet the condition."""
    return (lost.__cause__.item if isinstance(lost.__cause__, ConditionFailedError) else None) or {}


def _is_buried(item: Item) -> bool:
    return bool(item.get("status") == {"S": _BURIED})


def _check_version(item: Item) -> None:
    if "version" in item and int(item["version"]["N"]) > _VERSION:
        raise RecordsUnavailableError("The record of this generation was written by a later version of this service.")


def _generation(item: Item) -> Generation:
    _check_version(item)
    asked: list[UpstreamCall] = []
    while text := item.get(f"call_{len(asked)}"):
        image_ids = msgspec.json.decode(text["S"], type=tuple[str, ...])
        asked.append(_known(item, UpstreamCall(image_ids, number=len(asked))))
    request = msgspec.json.decode(item["request"]["S"], type=ImageRequest)
    calls = tuple(_known(item, call) if call.extra else call for call in with_extra_calls(asked))
    return Generation(
        id=item["pk"]["S"],
        caller=item["caller"]["S"],
        request=request,
        created_at=float(item["created_at"]["N"]),
        base_url=item["base_url"]["S"],
        supply=_supply(item, request),
        calls=calls,
        status=Status(item["status"]["S"]),
        owner=item["owner"]["S"] if "owner" in item else None,
        lease_until=float(item["lease_until"]["N"]),
        polls=int(item["polls"]["N"]),
        progress=int(item["progress"]["N"]) if "progress" in item else None,
        stored={
            image_id: msgspec.json.decode(item[image_id]["S"], type=StoredImage)
            for call in calls
            for image_id in call.image_ids
            if image_id in item
        },
        failure=msgspec.json.decode(item["failure"]["S"], type=Failure) if "failure" in item else None,
        completed_at=float(item["completed_at"]["N"]) if "completed_at" in item else None,
        origin=msgspec.json.decode(item["origin"]["S"], type=Origin) if "origin" in item else Origin(),
        published="published" in item,
        retries=int(item["retries"]["N"]) if "retries" in item else 0,
        reserved_at=float(item["reserved_at"]["N"]) if "reserved_at" in item else None,
        returned=int(item["returned"]["N"]),
        spending=msgspec.json.decode(item["spending"]["S"], type=Spending) if "spending" in item else None,
    )


def _supply(item: Item, request: ImageRequest) -> Supply:
    if "supply" in item:
        return msgspec.json.decode(item["supply"]["S"], type=Supply)
    return Supply(item["provider"]["S"], request.model)  # a record of version 1


def _known(item: Item, call: UpstreamCall) -> UpstreamCall:
    """Returns the call with its attempts and its answer."""
    attempts: list[UpstreamAttempt] = []
    while text := item.get(_attempt("attempt", call.number, len(attempts) + 1)):
        number = len(attempts) + 1
        task, failure = (item.get(_attempt(name, call.number, number)) for name in ("task", "failure"))
        attempts.append(
            msgspec.structs.replace(
                msgspec.json.decode(text["S"], type=UpstreamAttempt),
                task_id=task["S"] if task else None,
                failure=msgspec.json.decode(failure["S"], type=Failure) if failure else None,
            )
        )
    answer = item.get(f"answer_{call.number}")
    return msgspec.structs.replace(
        call,
        attempts=tuple(attempts),
        answer=msgspec.json.decode(answer["S"], type=CallAnswer) if answer else None,
    )


def _attempt(name: str, call: int, number: int) -> str:
    """Returns the attribute of an attempt. Each has its own, so parallel writers never overwrite each other."""
    return f"{name}_{int(call)}_{int(number)}"
