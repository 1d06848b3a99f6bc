"""Rules that DynamoDB documents and emulators often lack: both emulators enforce them."""

from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from tests.support.stores import Table

NEW: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}


def key(name: str) -> dict[str, Any]:
    return {"pk": {"S": name}, "sk": {"S": "record"}}


def transact(table: Table, name: str, token: str, **condition: str) -> None:
    writes: list[Any] = [{"Put": {"TableName": table.name, "Item": key(name), **condition}}]
    table.client.transact_write_items(TransactItems=writes, ClientRequestToken=token)


def names(table: Table) -> list[str]:
    return [item["pk"]["S"] for item in table.items()]


def test_a_transaction_token_works_once_and_only_for_its_writes(table: Table) -> None:
    token = uuid4().hex
    transact(table, "a", token)
    table.clear()
    transact(table, "a", token)
    with pytest.raises(ClientError, match="IdempotentParameterMismatchException"):
        transact(table, "b", token)
    assert names(table) == []
    transact(table, "a", uuid4().hex)
    assert names(table) == ["a"]


def test_a_cancelled_transaction_can_be_repeated_with_its_token(table: Table) -> None:
    token = uuid4().hex
    table.client.put_item(TableName=table.name, Item=key("a"))
    with pytest.raises(ClientError, match="TransactionCanceled"):
        transact(table, "a", token, **NEW)
    table.clear()
    transact(table, "a", token, **NEW)
    assert names(table) == ["a"]


def test_an_index_has_only_its_projected_attributes(table: Table) -> None:
    listed = {**key("a"), "caller": {"S": "alice"}, "created_at": {"N": "1"}, "status": {"S": "queued"}}
    table.client.put_item(TableName=table.name, Item={**listed, "lease_until": {"N": "2"}})
    assert table.items(IndexName="by-caller") == [listed]
