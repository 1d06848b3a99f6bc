"""Transactions in the local stack's DynamoDB, in which moto no longer copies whole tables."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.table import Table as MotoTable
from moto.sqs.models import Queue, SQSBackend

from local import moto_speed
from tests.support.stores import Table

NEW = {"ConditionExpression": "attribute_not_exists(pk)"}


@pytest.fixture
def fast(moto_table: Table) -> Iterator[Table]:
    """A table of moto with the changes of `install`, which are undone afterwards."""
    parts: tuple[type, ...] = (MotoTable, DynamoDBBackend, Queue, SQSBackend)
    before = {part: dict(vars(part)) for part in parts}
    moto_speed.install()
    yield moto_table
    for part, members in before.items():
        for name in [name for name, value in vars(part).items() if members.get(name) is not value]:
            if name in members:
                setattr(part, name, members[name])
            else:
                delattr(part, name)
    moto_table.clear()


def key(pk: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": "record"}}


def put(table: Table, pk: str, value: str, **condition: str) -> dict[str, Any]:
    return {"Put": {"TableName": table.name, "Item": {**key(pk), "value": {"S": value}}, **condition}}


def transact(table: Table, *writes: Any) -> None:
    table.client.transact_write_items(TransactItems=writes)


def test_a_failed_transaction_changes_nothing(fast: Table) -> None:
    transact(fast, put(fast, "stays", "1"), put(fast, "taken", "1"))
    before = fast.items()
    update = {
        "TableName": fast.name,
        "Key": key("stays"),
        "UpdateExpression": "SET #value = :two",
        "ExpressionAttributeNames": {"#value": "value"},
        "ExpressionAttributeValues": {":two": {"S": "2"}},
    }
    refused = put(fast, "taken", "2", **NEW)
    for writes in (
        (put(fast, "new", "2"), {"Update": update}, refused),
        ({"Delete": {"TableName": fast.name, "Key": key("stays")}}, refused),
    ):
        with pytest.raises(ClientError, match="TransactionCanceledException"):
            transact(fast, *writes)
        assert sorted(fast.items(), key=str) == sorted(before, key=str)


def test_a_successful_transaction_writes_all_items(fast: Table) -> None:
    names = ["whole-0", "whole-1", "whole-2"]
    transact(fast, *(put(fast, name, "1", **NEW) for name in names))
    assert sorted(item["pk"]["S"] for item in fast.items()) == names
