"""The counters behind the daily allowances: one item a day for each caller, and one for the stack.

A hot counter is a plain conditional update: DynamoDB cancels transactions that meet on one item.
"""

from __future__ import annotations

import calendar
import time
from typing import TYPE_CHECKING

from imagegen.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_dynamodb import DynamoDBClient

_KEPT_SECONDS = 3 * 24 * 3600  # after its day began; nobody gives back later


class DynamoAllowanceCounters:
    """Implements `ports.AllowanceCounters`.

    `single_try` is a client that never repeats a request: an update that is repeated since its answer was lost counts
    twice. What is taken twice is too little spent; what is given back twice would be too much.
    """

    def __init__(
        self, client: Callable[[], DynamoDBClient], single_try: Callable[[], DynamoDBClient], table: str
    ) -> None:
        self._client = client
        self._single_try = single_try
        self._table = table

    def take(self, who: str, day: str, images: int, limit: int) -> tuple[bool, int]:
        if images > limit:
            return False, self._used(who, day)
        try:
            client = self._client()
            try:
                answer = client.update_item(
                    TableName=self._table,
                    Key=_key(who, day),
                    UpdateExpression="ADD used :images SET expires_at = :expires_at",
                    ConditionExpression="attribute_not_exists(used) OR used <= :most",
                    ExpressionAttributeValues={
                        ":images": {"N": str(images)},
                        ":most": {"N": str(limit - images)},
                        ":expires_at": {"N": str(_expires_at(day))},
                    },
                    ReturnValues="ALL_NEW",
                )
            except client.exceptions.ConditionalCheckFailedException:
                return False, self._used(who, day)
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise _unavailable() from error
        return True, int(answer["Attributes"]["used"]["N"])

    def give_back(self, who: str, day: str, images: int) -> None:
        try:
            self._single_try().update_item(
                TableName=self._table,
                Key=_key(who, day),
                UpdateExpression="ADD used :less",
                ConditionExpression="used >= :images",
                ExpressionAttributeValues={":less": {"N": str(-images)}, ":images": {"N": str(images)}},
            )
        except Exception as error:  # likewise
            raise _unavailable() from error

    def _used(self, who: str, day: str) -> int:
        try:
            item = self._client().get_item(TableName=self._table, Key=_key(who, day), ConsistentRead=True)
        except Exception as error:  # likewise
            raise _unavailable() from error
        return int(item.get("Item", {}).get("used", {"N": "0"})["N"])


def _key(who: str, day: str) -> dict[str, dict[str, str]]:
    return {"pk": {"S": f"allowance#{day}#{who}"}, "sk": {"S": "allowance"}}


def _expires_at(day: str) -> int:
    return calendar.timegm(time.strptime(day, "%Y-%m-%d")) + _KEPT_SECONDS


def _unavailable() -> RecordsUnavailableError:
    return RecordsUnavailableError("The allowances of this service could not be reached just now.")
