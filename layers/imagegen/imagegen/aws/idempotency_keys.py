"""Stores which generation a repeated request attaches to, in the table of the generations.

| pk | sk | |
|---|---|---|
| `key#<caller>#<hash of the Idempotency-Key>` | `key` | the generation that has the key |
| `retry#<caller>#<fingerprint>` | `<time>#<generation id>` | a generation that a counted retry may attach to |
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen.aws.items import ConditionFailedError, Item, asking, key, number, put_under, time_text, update_under

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_dynamodb import DynamoDBClient

_KEY = "key"
_MARKER_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class _KeyHolder:
    generation_id: str
    fingerprint: str


class DynamoIdempotencyKeys:
    """Implements `ports.IdempotencyKeys`."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str) -> None:
        self._client = client
        self._table = table

    def hold(
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
                # If the SDK repeats a write that has succeeded, the repetition finds the holder that the write made.
                found = failed.item or marker
                return _KeyHolder(found["generation_id"]["S"], found["fingerprint"]["S"])
        return _KeyHolder(generation_id, fingerprint)

    def find(self, caller: str, idempotency_key: str, *, expired_before: float) -> str | None:
        with asking():
            place = key(_key_pk(caller, idempotency_key), _KEY)
            found = self._client().get_item(TableName=self._table, Key=place, ConsistentRead=True).get("Item")
        if found is None or float(found["created_at"]["N"]) < expired_before:
            return None
        return found["generation_id"]["S"]

    def mark(self, caller: str, fingerprint: str, generation_id: str, retry: int, *, now: float) -> None:
        marker = {
            **key(_retry_pk(caller, fingerprint), f"{time_text(now)}#{generation_id}"),
            _seen(retry): {"S": generation_id},
            "expires_at": number(int(now) + _MARKER_SECONDS),
        }
        # A repeated write must not overwrite what a retry has written in between.
        with asking(), suppress(ConditionFailedError):
            put_under("attribute_not_exists(pk)", self._client(), self._table, marker)

    def attach(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
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
                        ":since": {"S": f"{time_text(since)}$"},  # `$` sorts after `#`: later than `since`
                    },
                    ScanIndexForward=False,
                    ConsistentRead=True,
                    **query,
                )
                for item in page["Items"]:
                    if _seen(retry) not in item and self._seen_by(client, item, retry, token):
                        return str(item["sk"]["S"].partition("#")[2])
                if "LastEvaluatedKey" not in page:
                    return None
                query["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _seen_by(self, client: DynamoDBClient, marker: Any, retry: int, token: str) -> bool:
        """Notes the retry on the marker. Returns `False` if another request with the same count was faster."""
        seen = _seen(retry)
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


def _key_pk(caller: str, idempotency_key: str) -> str:
    return f"key#{caller}#{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def _retry_pk(caller: str, fingerprint: str) -> str:
    return f"retry#{caller}#{fingerprint}"


def _seen(retry: int) -> str:
    return f"seen_{retry}"
