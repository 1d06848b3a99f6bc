"""Generations in one DynamoDB table. Every change is one conditional write on one item, but for the first.

| pk | sk | |
|---|---|---|
| `<generation id>` | `generation` | the record |
| `key#<client>#<hash of the Idempotency-Key>` | `key` | the generation that the key belongs to |
| `retry#<client>#<fingerprint>` | `<generation id>` | a generation that an OpenAI client's retry may attach to |

The index `by-caller` (`caller`, `created_at`) lists a caller's own. What has parts that change on their own (calls,
stored images) has an attribute for each part, so that those who work side by side never overwrite each other.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen.aws.items import Item, asking, json_text, key, number, update_under
from imagegen.generations import (
    Call,
    Failure,
    Generation,
    LostClaimError,
    Markers,
    MarkerTakenError,
    Origin,
    Status,
    StoredImage,
    Tombstone,
)
from imagegen.images import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_RECORD, _KEY = "generation", "key"
_BURIED = "buried"  # a status that no Generation has
_MARKER_SECONDS = 24 * 3600
_TOMBSTONE_SECONDS = 3600  # longer than anybody may still be at work on the generation
_ACTIVE = "#status IN (:queued, :in_progress)"
_OURS = "#owner = :owner AND #status = :in_progress"


@dataclass(frozen=True, slots=True)
class _KeyHolder:
    generation_id: str
    fingerprint: str
    created_at: float


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

    def create(self, generation: Generation, fingerprint: str, *, replacing: str | None = None) -> None:
        puts: list[Any] = [_put(self._table, self._record(generation), "attribute_not_exists(pk)")]
        expires = int(generation.created_at) + _MARKER_SECONDS
        idempotency_key = generation.markers.idempotency_key
        if idempotency_key is not None:
            marker = {
                **key(_key_pk(generation.caller, idempotency_key), _KEY),
                "generation_id": {"S": generation.id},
                "fingerprint": {"S": fingerprint},
                "created_at": number(generation.created_at),
                "expires_at": number(expires),
            }
            put = _put(
                self._table, marker, "attribute_not_exists(pk) OR generation_id = :replacing OR generation_id = :id"
            )
            put["Put"]["ExpressionAttributeValues"] = {
                ":replacing": {"S": replacing or "-"},
                ":id": {"S": generation.id},
            }
            puts.append(put)
        if generation.markers.retry is not None:
            marker = {
                **key(_retry_pk(generation.caller, fingerprint), generation.id),
                "seen": number(generation.markers.retry),
                "created_at": number(generation.created_at),
                "expires_at": number(expires),
            }
            puts.append(_put(self._table, marker, "attribute_not_exists(pk)"))
        with asking():
            client = self._client()
            try:
                # The token makes a repeated request one transaction, so a client library's own retry is no conflict.
                # It is an image's id, since no two attempts have one in common, where a generation's may be given.
                client.transact_write_items(TransactItems=puts, ClientRequestToken=generation.image_ids[0])
            except client.exceptions.TransactionCanceledException as cancelled:
                codes = [reason.get("Code") for reason in cancelled.response.get("CancellationReasons", [])]
                contended = codes[: 1 if idempotency_key is None else 2]
                if not {"ConditionalCheckFailed", "TransactionConflict"} & set(contended):
                    raise
                if not self._wrote(generation):
                    raise MarkerTakenError from None

    def _wrote(self, generation: Generation) -> bool:
        """Whether the record that is there is this one: the write that was refused repeated one that succeeded."""
        item = self._any_item(generation.id, _RECORD)
        return item is not None and item.get("call_0") == {"S": json_text(generation.calls[0])}

    def get(self, generation_id: str) -> Generation | None:
        item = self._item(generation_id, _RECORD)
        return _generation(item) if item else None

    def key_holder(self, caller: str, idempotency_key: str) -> _KeyHolder | None:
        item = self._item(_key_pk(caller, idempotency_key), _KEY)
        if not item:
            return None
        return _KeyHolder(item["generation_id"]["S"], item["fingerprint"]["S"], float(item["created_at"]["N"]))

    def attach_retry(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
        pk = _retry_pk(caller, fingerprint)
        with asking():
            client = self._client()
            found = client.query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": pk}},
                ConsistentRead=True,
            )["Items"]
            fresh = [item for item in found if float(item["created_at"]["N"]) > since]
            for item in sorted(fresh, key=lambda item: float(item["created_at"]["N"]), reverse=True):
                try:
                    client.update_item(
                        TableName=self._table,
                        Key={"pk": item["pk"], "sk": item["sk"]},
                        UpdateExpression="SET seen = :retry",
                        ConditionExpression="attribute_exists(pk) AND seen < :retry",
                        ExpressionAttributeValues={":retry": number(retry)},
                    )
                except client.exceptions.ConditionalCheckFailedException:
                    continue  # another client's retry has come back to this one
                return None if "released" in item else str(item["sk"]["S"])
        return None

    def release(self, generation: Generation, fingerprint: str) -> None:
        with asking():
            client = self._client()
            # Gone already, or another generation's by now.
            with suppress(client.exceptions.ConditionalCheckFailedException):
                if generation.markers.idempotency_key is not None:
                    client.delete_item(
                        TableName=self._table,
                        Key=key(_key_pk(generation.caller, generation.markers.idempotency_key), _KEY),
                        ConditionExpression="generation_id = :id",
                        ExpressionAttributeValues={":id": {"S": generation.id}},
                    )
            with suppress(client.exceptions.ConditionalCheckFailedException):
                if generation.markers.retry is not None:
                    client.update_item(
                        TableName=self._table,
                        Key=key(_retry_pk(generation.caller, fingerprint), generation.id),
                        UpdateExpression="SET released = :yes",
                        ConditionExpression="attribute_exists(pk)",
                        ExpressionAttributeValues={":yes": {"BOOL": True}},
                    )

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        names, values = {"#caller": "caller"}, {":caller": {"S": caller}}
        query: dict[str, Any] = {}
        if after is not None:
            last = self._item(after, _RECORD)
            if last is None or last["caller"]["S"] != caller:
                return []
            query["ExclusiveStartKey"] = {name: last[name] for name in ("pk", "sk", "caller", "created_at")}
        if status is not None:
            names["#status"], values[":status"] = "status", {"S": status.value}
            query["FilterExpression"] = "#status = :status"
        found: list[Generation] = []
        with asking():
            while len(found) < limit:
                page = self._client().query(
                    TableName=self._table,
                    IndexName="by-caller",
                    KeyConditionExpression="#caller = :caller",
                    ExpressionAttributeNames=names,
                    ExpressionAttributeValues=values,
                    ScanIndexForward=False,
                    Limit=100,
                    **query,
                )
                found += [_generation(item) for item in page["Items"] if item["status"]["S"] != _BURIED]
                if "LastEvaluatedKey" not in page:
                    break
                query["ExclusiveStartKey"] = page["LastEvaluatedKey"]
        return found[:limit]

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
        values = {":owner": {"S": owner}, ":lease_until": number(lease_until)}
        self._update(generation_id, "SET lease_until = :lease_until", _OURS, values)

    def save_call(self, generation_id: str, owner: str, index: int, call: Call) -> None:
        values = {":owner": {"S": owner}, ":call": {"S": json_text(call)}}
        self._update(generation_id, f"SET call_{int(index)} = :call", _OURS, values)

    def save_image(self, generation_id: str, owner: str, image_id: str, image: StoredImage) -> None:
        values = {":owner": {"S": owner}, ":image": {"S": json_text(image)}}
        self._update(generation_id, "SET #image = :image", _OURS, values, {"#image": image_id})

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
        with suppress(LostClaimError):  # deleted meanwhile, or a new attempt has begun, whose end is still to be told
            self._update(
                generation.id,
                "SET announced = :yes",
                "completed_at = :completed_at",
                {":yes": {"BOOL": True}, ":completed_at": number(generation.completed_at or 0)},
            )

    def fail_abandoned(self, generation_id: str, failure: Failure, *, now: float) -> bool:
        values = {
            ":failed": {"S": Status.FAILED.value},
            ":failure": {"S": json_text(failure)},
            ":now": number(now),
        }
        update = "SET #status = :failed, failure = :failure, completed_at = :now REMOVE #owner"
        try:
            self._update(generation_id, update, f"{_ACTIVE} AND lease_until < :now", values)
        except LostClaimError:
            return False
        return True

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        values = {":cancelled": {"S": Status.CANCELLED.value}, ":now": number(now)}
        update = "SET #status = :cancelled, completed_at = :now REMOVE #owner"
        try:
            return _generation(self._update(generation_id, update, _ACTIVE, values))
        except LostClaimError:
            return None

    def requeue(self, generation_id: str) -> Generation | None:
        generation = self.get(generation_id)
        if generation is None or generation.status is not Status.FAILED:
            return None
        values: Item = {":failed": {"S": Status.FAILED.value}}
        sets = ["#status = :queued", "lease_until = :zero"]
        values[":zero"] = {"N": "0"}
        for index, call in enumerate(generation.calls):
            if call.answer is None:
                sets.append(f"call_{index} = :call_{index}")
                values[f":call_{index}"] = {"S": json_text(Call(call.image_ids))}
        update = f"SET {', '.join(sets)} REMOVE failure, completed_at, announced, #owner"
        try:
            return _generation(self._update(generation_id, update, "#status = :failed", values))
        except LostClaimError:
            return None

    def void(self, generation_id: str, *, now: float) -> bool:
        with asking():
            client = self._client()
            try:
                client.put_item(
                    TableName=self._table,
                    Item={
                        **key(generation_id, _RECORD),
                        "status": {"S": _BURIED},
                        "expires_at": number(int(now) + _TOMBSTONE_SECONDS),
                    },
                    ConditionExpression="attribute_not_exists(pk) OR #status = :buried",
                    ExpressionAttributeNames={"#status": "status"},
                    ExpressionAttributeValues={":buried": {"S": _BURIED}},
                )
            except client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    def release_reservation(self, generation_id: str) -> bool:
        try:
            # Should the answer be lost, the reservation stays taken: the SDK's repetition is not the first.
            self._update(
                generation_id,
                "SET reservation_released = :yes",
                "attribute_exists(pk) AND attribute_not_exists(reservation_released)",
                {":yes": {"BOOL": True}},
            )
        except LostClaimError:
            return False
        return True

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        tombstone = Tombstone(generation.id, generation.caller, generation.image_ids)
        item = {
            **key(generation.id, _RECORD),
            "status": {"S": _BURIED},
            "tombstone": {"S": json_text(tombstone)},
            "expires_at": number(int(now) + _TOMBSTONE_SECONDS),
        }
        with asking():
            self._client().put_item(TableName=self._table, Item=item)
        return tombstone

    def tombstone(self, generation_id: str) -> Tombstone | None:
        item = self._any_item(generation_id, _RECORD)
        if item is None or "tombstone" not in item:
            return None
        return msgspec.json.decode(item["tombstone"]["S"], type=Tombstone)

    def all_deleted(self, tombstone: Tombstone) -> None:
        with suppress(LostClaimError):  # the tombstone has gone by itself
            self._update(tombstone.id, "REMOVE tombstone", "#status = :buried", {":buried": {"S": _BURIED}})

    def _item(self, pk: str, sk: str) -> Item | None:
        item = self._any_item(pk, sk)
        return None if item is None or item.get("status", {}).get("S") == _BURIED else item

    def _any_item(self, pk: str, sk: str) -> Item | None:
        with asking():
            found = self._client().get_item(TableName=self._table, Key=key(pk, sk), ConsistentRead=True)
        item: Item | None = found.get("Item")
        return item

    def _update(
        self, generation_id: str, update: str, condition: str, values: Item, names: Mapping[str, str] | None = None
    ) -> Item:
        """The record after the update. Raises LostClaimError where the condition does not hold."""
        with asking():
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
            "markers": {"S": json_text(generation.markers)},
        }
        if generation.origin != Origin():
            item["origin"] = {"S": json_text(generation.origin)}
        if generation.owner is not None:
            item["owner"] = {"S": generation.owner}
        for index, call in enumerate(generation.calls):
            item[f"call_{index}"] = {"S": json_text(call)}
        return item


def _generation(item: Item) -> Generation:
    calls: list[Call] = []
    while text := item.get(f"call_{len(calls)}"):
        calls.append(msgspec.json.decode(text["S"], type=Call))
    return Generation(
        id=item["pk"]["S"],
        caller=item["caller"]["S"],
        request=msgspec.json.decode(item["request"]["S"], type=ImageRequest),
        created_at=float(item["created_at"]["N"]),
        base_url=item["base_url"]["S"],
        calls=tuple(calls),
        markers=msgspec.json.decode(item["markers"]["S"], type=Markers),
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
    )


def _put(table: str, item: Item, condition: str) -> Item:
    return {"Put": {"TableName": table, "Item": item, "ConditionExpression": condition}}


def _key_pk(caller: str, idempotency_key: str) -> str:
    return f"key#{caller}#{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _retry_pk(caller: str, fingerprint: str) -> str:
    return f"retry#{caller}#{fingerprint}"
