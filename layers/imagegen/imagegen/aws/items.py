"""Reads and writes items of DynamoDB for the stores of records: keys, errors and conditional writes."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.generations import IdTakenError, LostClaimError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

Item = dict[str, Any]
_PAGE = 100  # the most keys of one call (DynamoDB API reference, "BatchGetItem")
_THROTTLED = frozenset({"ProvisionedThroughputExceededException", "ThrottlingException"})
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0  # before unprocessed keys are read again


def key(pk: str, sk: str) -> Item:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def number(value: float) -> Item:
    return {"N": repr(value)}


def time_text(seconds: float) -> str:
    """Returns Unix seconds as text that sorts by time."""
    return f"{seconds:017.6f}"


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


@contextmanager
def asking() -> Iterator[None]:
    """Turns exceptions of botocore into RecordsUnavailableError. The exceptions that the stores raise pass."""
    try:
        yield
    except (LostClaimError, IdTakenError, RecordsUnavailableError):
        raise
    except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
        raise RecordsUnavailableError("The records of this service are temporarily unavailable.") from error


def is_throttled(error: Exception) -> bool:
    """Whether DynamoDB refused a call because too many came at once. botocore names such exceptions by their codes."""
    return type(error).__name__ in _THROTTLED


class ConditionFailedError(Exception):
    """The condition of a write did not hold. `item` is the stored item, `None` if there is none."""

    def __init__(self, item: Item | None) -> None:
        super().__init__()
        self.item = item


def update_under(
    condition: str,
    client: DynamoDBClient,
    table: str,
    item_key: Item,
    update: str,
    *,
    names: Mapping[str, str],
    values: Mapping[str, Item],
) -> Item:
    """Updates an item and returns it. Sends only the names and values that the expressions use, as DynamoDB requires.

    Raises ConditionFailedError with the stored item, and exceptions of botocore. The SDK repeats a write whose answer
    was lost. By the stored item, the calling code recognises such a repetition.
    """
    text = f"{update} {condition}"
    held = {
        "ExpressionAttributeNames": {name: value for name, value in names.items() if _holds(text, name)},
        "ExpressionAttributeValues": {name: value for name, value in values.items() if _holds(text, name)},
    }
    try:
        answer = client.update_item(
            TableName=table,
            Key=item_key,
            UpdateExpression=update,
            ConditionExpression=condition,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **_not_empty(held),
        )
    except client.exceptions.ConditionalCheckFailedException as failed:
        raise ConditionFailedError(_item_of(failed)) from None
    item: Item = answer["Attributes"]
    return item


def put_under(
    condition: str,
    client: DynamoDBClient,
    table: str,
    item: Item,
    *,
    names: Mapping[str, str] | None = None,
    values: Mapping[str, Item] | None = None,
) -> None:
    """Writes the item. Raises ConditionFailedError with the stored item, and exceptions of botocore."""
    held = {"ExpressionAttributeNames": dict(names or {}), "ExpressionAttributeValues": dict(values or {})}
    try:
        client.put_item(
            TableName=table,
            Item=item,
            ConditionExpression=condition,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **_not_empty(held),
        )
    except client.exceptions.ConditionalCheckFailedException as failed:
        raise ConditionFailedError(_item_of(failed)) from None


def newest_items(
    client: DynamoDBClient,
    table: str,
    caller: str,
    limit: int,
    *,
    after: Item | None,
    status: str | None = None,
    oldest_first: bool = False,
) -> list[Item]:
    """Returns at most `limit` records of the caller, newest first or oldest first, beginning after the record `after`.

    The index has only keys and the status, and lags behind the table, so the records are read by their keys. Raises
    exceptions of botocore.
    """
    keys = _listed(client, table, caller, after, status, oldest_first=oldest_first)
    found: list[Item] = []
    while len(found) < limit and (some := list(islice(keys, min(limit - len(found), _PAGE)))):
        found += [
            item
            for item in _read(client, table, some)
            if item.get("caller") == {"S": caller} and status in (None, item["status"]["S"])
        ]
    return found


def _listed(
    client: DynamoDBClient, table: str, caller: str, after: Item | None, status: str | None, *, oldest_first: bool
) -> Iterator[dict[str, Any]]:
    names, values = {"#caller": "caller"}, {":caller": {"S": caller}}
    query: dict[str, Any] = {}
    if after is not None:
        query["ExclusiveStartKey"] = {name: after[name] for name in ("pk", "sk", "caller", "created_at")}
    if status is not None:
        names["#status"], values[":status"] = "status", {"S": status}
        query["FilterExpression"] = "#status = :status"
    while True:
        page = client.query(
            TableName=table,
            IndexName="by-caller",
            KeyConditionExpression="#caller = :caller",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
            ScanIndexForward=oldest_first,
            Limit=_PAGE,
            **query,
        )
        for item in page["Items"]:
            yield {"pk": item["pk"], "sk": item["sk"]}
        if "LastEvaluatedKey" not in page:
            return
        query["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _read(client: DynamoDBClient, table: str, keys: Sequence[Item]) -> list[Item]:
    """Returns the items that exist, in the order of their keys."""
    found: dict[str, Item] = {}
    left: Any = {table: {"Keys": keys, "ConsistentRead": True}}
    pause = _FIRST_PAUSE_SECONDS
    # An answer has at most 16 MB and at least one item (DynamoDB API reference, "BatchGetItem"). If no item can be
    # read, DynamoDB raises an error.
    while left:
        answer = client.batch_get_item(RequestItems=left)
        found |= {item["pk"]["S"]: item for item in answer["Responses"].get(table, [])}
        left = answer["UnprocessedKeys"]
        if left:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return [found[each["pk"]["S"]] for each in keys if each["pk"]["S"] in found]


def _not_empty(held: Mapping[str, object]) -> dict[str, Any]:
    """Drops empty arguments, which DynamoDB refuses."""
    return {name: value for name, value in held.items() if value}


def _item_of(failed: Any) -> Item | None:
    item: Item | None = failed.response.get("Item")
    return item


def _holds(text: str, name: str) -> bool:
    return re.search(rf"{name}\b", text) is not None
