"""Counts the waiting requests of all processes of the api function: each takes up Lambda concurrency."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

# Longer than any request waits (29 s: API Gateway developer guide, "Quotas for configuring and running a REST
# API in API Gateway").
# The requests that a dead process did not count down are forgotten with their bucket.
_BUCKET_SECONDS = 30


class DynamoWaiters:
    """Lets at most `most` requests wait at once. They are counted by the half minute in which they began."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str, *, most: int) -> None:
        self._client = client
        self._table = table
        self._most = most

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Yields whether one more request may wait inside the block. `True` if the requests cannot be counted."""
        bucket = int(time.time()) // _BUCKET_SECONDS
        room, counted = self._come(bucket)
        try:
            yield room
        finally:
            if counted:
                self._go(bucket)

    def _come(self, bucket: int) -> tuple[bool, bool]:
        client = self._client()
        try:
            # Requests of the half minute before may still wait. Their number only falls, so the limit holds.
            earlier = client.get_item(TableName=self._table, Key=_key(bucket - 1)).get("Item", {})
            most = self._most - int(earlier.get("waiting", {"N": "0"})["N"])
            if most <= 0:
                return False, False
            client.update_item(
                TableName=self._table,
                Key=_key(bucket),
                UpdateExpression="ADD waiting :one SET expires_at = :expires_at",
                ConditionExpression="attribute_not_exists(waiting) OR waiting < :most",
                ExpressionAttributeValues={
                    ":one": {"N": "1"},
                    ":most": {"N": str(most)},
                    ":expires_at": {"N": str((bucket + 10) * _BUCKET_SECONDS)},
                },
            )
        except client.exceptions.ConditionalCheckFailedException:
            return False, False
        except Exception:  # noqa: BLE001  # waiting reads the records anyway, and reports if they do not answer
            return True, False
        return True, True

    def _go(self, bucket: int) -> None:
        with suppress(Exception):
            self._client().update_item(
                TableName=self._table,
                Key=_key(bucket),
                UpdateExpression="ADD waiting :less",
                ExpressionAttributeValues={":less": {"N": "-1"}},
            )


def _key(bucket: int) -> dict[str, dict[str, str]]:
    return {"pk": {"S": f"waiters#{bucket}"}, "sk": {"S": "waiters"}}
