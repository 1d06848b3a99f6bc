"""Generations in one DynamoDB table. Every change is one conditional write on one item.

| pk | sk | |
|---|---|---|
| `<generation id>` | `generation` | the record |
| `key#<client>#<hash of the Idempotency-Key>` | `key` | the generation that the key belongs to |
| `retry#<client>#<fingerprint>` | `<time>#<generation id>` | a generation that an OpenAI client's retry may attach to |

The index `by-caller` (`caller`, `created_at`) lists a caller's own. It has the status, which a list may ask for, and
nothing that changes during work: DynamoDB writes to an index only if a value in it changes. What has parts that change
on their own (calls, stored images) has an attribute for each part, so that those who work side by side never overwrite
each other. What was paid for is written as long as there is a record, also after its end.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from imagegen.domain.generations import (
    Call,
    CallAnswer,
    Failure,
    Generation,
    IdTakenError,
    LostClaimError,
    Origin,
    Status,
    StoredImage,
    Tombstone,
    with_extra_calls,
)
from imagegen.domain.images import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_RECORD, _KEY = "generation", "key"
_BURIED = "buried"  # a status that no Generation has
_MARKER_SECONDS = 24 * 3600
_TOMBSTONE_SECONDS = 15 * 24 * 3600  # no message and no process that could still write an image lives longer
_ACTIVE = "#status IN (:queued, :in_progress)"
_OURS = "#owner = :owner AND #status = :in_progress"
_LIVE = "attribute_exists(caller)"  # a tombstone has none


@dataclass(frozen=True, slots=True)
class _KeyHolder:
    generation_id: str
    fingerprint: str


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

    def hold_key(
        self,
        caller: str,
        idempotency_key: str,
        generation_id: str,
        fingerprint: str,
        *,
        now: float,
        expired_before: float,
        replacing: str | None = None,
    ) -> _KeyHolder:
        marker = {
            **key(_key_pk(caller, idempotency_key), _KEY),
            "generation_id": {"S": generation_id},
            "fingerprint": {"S": fingerprint},
            "created_at": number(now),
            "expires_at": number(int(now) + _MARKER_SECONDS),
        }
        condition = "attribute_not_exists(pk) OR created_at < :expired OR generation_id = :replacing"
        values: Item = {":expired": number(expired_before), ":replacing": {"S": replacing or "-"}}
        with asking():
            try:
                put_under(condition, self._client(), self._table, marker, values=values)
            except ConditionFailedError as failed:
                # Where our own write is repeated, the holder found is the one that it has written.
                found = failed.item or marker
                return _KeyHolder(found["generation_id"]["S"], found["fingerprint"]["S"])
        return _KeyHolder(generation_id, fingerprint)

    def mark_attempt(self, caller: str, fingerprint: str, generation_id: str, attempt: int, *, now: float) -> None:
        marker = {
            **key(_retry_pk(caller, fingerprint), f"{_time_text(now)}#{generation_id}"),
            _seen(attempt): {"S": generation_id},
            "expires_at": number(int(now) + _MARKER_SECONDS),
        }
        # A repetition must not write over what a retry noted in between.
        with asking(), suppress(ConditionFailedError):
            put_under("attribute_not_exists(pk)", self._client(), self._table, marker)

    def attach_attempt(self, caller: str, fingerprint: str, attempt: int, *, since: float) -> str | None:
        token = secrets.token_urlsafe(12)
        query: dict[str, Any] = {}
        with asking():
            client = self._client()
            while True:
                page = client.query(
                    TableName=self._table,
                    KeyConditionExpression="pk = :pk AND sk > :since",
                    ExpressionAttributeValues={
                        ":pk": {"S": _retry_pk(caller, fingerprint)},
                        ":since": {
                            "S": f"{_time_text(since)}$"
                        },  # after what was marked at that time: `$` sorts after `#`
                    },
                    ScanIndexForward=False,
                    ConsistentRead=True,
                    **query,
                )
                for item in page["Items"]:
                    if _seen(attempt) not in item and self._seen_by(client, item, attempt, token):
                        return str(item["sk"]["S"].partition("#")[2])
                if "LastEvaluatedKey" not in page:
                    return None
                query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _seen_by(self, client: DynamoDBClient, marker: Any, attempt: int, token: str) -> bool:
        """Notes the attempt on the marker. False if another request with the same count was faster."""
        seen = _seen(attempt)
        try:
            update_under(
                "attribute_exists(pk) AND attribute_not_exists(#seen)",
                client,
                self._table,
                {"pk": marker["pk"], "sk": marker["sk"]},
                "SET #seen = :token",
                names={"#seen": seen},
                values={":token": {"S": token}},
            )
        except ConditionFailedError as failed:
            return failed.item is not None and failed.item.get(seen) == {"S": token}
        return True

    def create(self, generation: Generation) -> None:
        record = self._record(generation)
        with asking():
            try:
                put_under("attribute_not_exists(pk)", self._client(), self._table, record)
            except ConditionFailedError as failed:
                found = failed.item or {}
                # No two attempts have an image's id in common: this is our own write, which was repeated.
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

    def claim(self, generation_id: str, owner: str, *, now: float, lease_until: float) -> Generation | None:
        try:
            item = self._update(
                generation_id,
                "SET #status = :in_progress, #owner = :owner, lease_until = :lease_until",
                "#status = :queued OR (#status = :in_progress AND (lease_until < :now OR #owner = :owner))",
                {":owner": {"S": owner}, ":now": number(now), ":lease_until": number(lease_until)},
            )
        except LostClaimError:
            return None
        return _generation(item)

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        values: Item = {
            ":owner": {"S": owner},
            ":lease_until": number(lease_until),
            ":cancelled": {"S": Status.CANCELLED.value},
        }
        condition = "#owner = :owner AND #status IN (:in_progress, :cancelled)"
        self._update(generation_id, "SET lease_until = :lease_until", condition, values)

    def let_go(self, generation_id: str, owner: str) -> None:
        with suppress(LostClaimError):
            values = {":owner": {"S": owner}, ":zero": number(0)}
            self._update(generation_id, "SET lease_until = :zero", "#owner = :owner", values)

    def save_sending(self, generation_id: str, owner: str, index: int, sent: int) -> None:
        values = {":owner": {"S": owner}, ":sent": number(sent)}
        self._update(generation_id, f"SET sent_{int(index)} = :sent", _OURS, values)

    def save_refusal(self, generation_id: str, index: int, sending: int) -> None:
        # A set: it stays the same if the write is repeated.
        values: Item = {":sending": {"NS": [str(sending)]}}
        self._update(generation_id, f"ADD refused_{int(index)} :sending", _LIVE, values)

    def save_answer(self, generation_id: str, index: int, answer: CallAnswer) -> CallAnswer:
        name = f"answer_{int(index)}"
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
        # A repeated write that has succeeded finds its own end.
        condition = f"({_OURS}) OR (#owner = :owner AND #status = :ended)"
        return _generation(self._update(generation_id, update, condition, values))

    def mark_announced(self, generation: Generation) -> None:
        with suppress(LostClaimError):  # deleted meanwhile, or a new attempt has begun, whose end comes later
            self._update(
                generation.id,
                "SET announced = :yes",
                "completed_at = :completed_at",
                {":yes": {"BOOL": True}, ":completed_at": number(generation.completed_at or 0)},
            )

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        values = {":cancelled": {"S": Status.CANCELLED.value}, ":now": number(now)}
        # A cancellation that was made, by a repeated write or another request, is the one that is asked for.
        update = "SET #status = :cancelled, completed_at = if_not_exists(completed_at, :now)"
        condition = "#status IN (:queued, :in_progress, :cancelled)"
        try:
            return _generation(self._update(generation_id, update, condition, values))
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
        update = (
            "SET #status = :queued, lease_until = :zero, retries = :retries, reserved_at = :now, returned = :zero,"
            " requeued_by = :token REMOVE failure, completed_at, announced, #owner"
        )
        # Its end is published first, and its uncharged images are returned first: neither is lost by a new attempt.
        condition = "#status = :failed AND attribute_exists(announced) AND completed_at = :completed_at"
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

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        tombstone = Tombstone(generation.id, generation.caller, generation.image_ids, now)
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
        """The record after the update. Raises LostClaimError if the condition does not hold."""
        with asking():
            try:
                return update_under(
                    condition,
                    self._client(),
                    self._table,
                    key(generation_id, _RECORD),
                    update,
                    names={"#status": "status", "#owner": "owner", **(names or {})},
                    values={
                        ":queued": {"S": Status.QUEUED.value},
                        ":in_progress": {"S": Status.IN_PROGRESS.value},
                        **values,
                    },
                )
            except ConditionFailedError as failed:
                raise LostClaimError from failed

    def _record(self, generation: Generation) -> Item:
        item: Item = {
            **key(generation.id, _RECORD),
            "status": {"S": generation.status.value},
            "caller": {"S": generation.caller},
            "created_at": number(generation.created_at),
            "expires_at": number(int(generation.created_at) + self._retention_seconds),
            "lease_until": number(generation.lease_until),
            "base_url": {"S": generation.base_url},
            "request": {"S": json_text(generation.request)},
            "returned": number(0),
        }
        if generation.origin != Origin():
            item["origin"] = {"S": json_text(generation.origin)}
        if generation.owner is not None:
            item["owner"] = {"S": generation.owner}
        for call in generation.calls:
            item[f"call_{call.number}"] = {"S": json_text(call.image_ids)}
        return item


def _found(lost: LostClaimError) -> Item:
    """The item that did not fulfil the condition."""
    return (lost.__cause__.item if isinstance(lost.__cause__, ConditionFailedError) else None) or {}


def _is_buried(item: Item) -> bool:
    return bool(item.get("status") == {"S": _BURIED})


def _generation(item: Item) -> Generation:
    asked: list[Call] = []
    while text := item.get(f"call_{len(asked)}"):
        asked.append(_known(item, Call(msgspec.json.decode(text["S"], type=tuple[str, ...]), number=len(asked))))
    calls = tuple(_known(item, call) if call.extra else call for call in with_extra_calls(asked))
    return Generation(
        id=item["pk"]["S"],
        caller=item["caller"]["S"],
        request=msgspec.json.decode(item["request"]["S"], type=ImageRequest),
        created_at=float(item["created_at"]["N"]),
        base_url=item["base_url"]["S"],
        calls=calls,
        status=Status(item["status"]["S"]),
        owner=item["owner"]["S"] if "owner" in item else None,
        lease_until=float(item["lease_until"]["N"]),
        stored={
            image_id: msgspec.json.decode(item[image_id]["S"], type=StoredImage)
            for call in calls
            for image_id in call.image_ids
            if image_id in item
        },
        failure=msgspec.json.decode(item["failure"]["S"], type=Failure) if "failure" in item else None,
        completed_at=float(item["completed_at"]["N"]) if "completed_at" in item else None,
        origin=msgspec.json.decode(item["origin"]["S"], type=Origin) if "origin" in item else Origin(),
        announced="announced" in item,
        retries=int(item["retries"]["N"]) if "retries" in item else 0,
        reserved_at=float(item["reserved_at"]["N"]) if "reserved_at" in item else None,
        returned=int(item["returned"]["N"]),
    )


def _known(item: Item, call: Call) -> Call:
    """The call, with what the record knows of it."""
    sent, refused, answer = (item.get(f"{name}_{call.number}") for name in ("sent", "refused", "answer"))
    return msgspec.structs.replace(
        call,
        sent=int(sent["N"]) if sent else 0,
        refused=len(refused["NS"]) if refused else 0,
        answer=msgspec.json.decode(answer["S"], type=CallAnswer) if answer else None,
    )


def _key_pk(caller: str, idempotency_key: str) -> str:
    return f"key#{caller}#{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _retry_pk(caller: str, fingerprint: str) -> str:
    return f"retry#{caller}#{fingerprint}"


def _time_text(seconds: float) -> str:
    """Unix seconds as text that sorts by time."""
    return f"{seconds:017.6f}"


def _seen(attempt: int) -> str:
    return f"seen_{attempt}"
