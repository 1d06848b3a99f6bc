"""What the stores of records have in common: DynamoDB's items and keys, its errors, and updates under a condition."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen.errors import RecordsUnavailableError
from imagegen.generations import LostClaimError, MarkerTakenError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from types_boto3_dynamodb import DynamoDBClient

Item = dict[str, Any]


def key(pk: str, sk: str) -> Item:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def number(value: float) -> Item:
    return {"N": repr(value)}


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


@contextmanager
def asking() -> Iterator[None]:
    """What botocore raises becomes RecordsUnavailableError; the meanings that we found in it pass."""
    try:
        yield
    except (LostClaimError, MarkerTakenError):
        raise
    except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
        raise RecordsUnavailableError("The records of this service could not be reached just now.") from error


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
    """The item after the update. Of names and values those are sent that the expressions hold, as DynamoDB demands.

    Raises LostClaimError where the condition does not hold, and what botocore raises.
    """
    text = f"{update} {condition}"
    try:
        answer = client.update_item(
            TableName=table,
            Key=item_key,
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeNames={name: value for name, value in names.items() if _holds(text, name)},
            ExpressionAttributeValues={name: value for name, value in values.items() if _holds(text, name)},
            ReturnValues="ALL_NEW",
        )
    except client.exceptions.ConditionalCheckFailedException:
        raise LostClaimError from None
    item: Item = answer["Attributes"]
    return item


def _holds(text: str, name: str) -> bool:
    return re.search(rf"{name}\b", text) is not None
