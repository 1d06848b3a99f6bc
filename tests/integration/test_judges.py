"""What DynamoDB documents and an emulator easily lacks: both judges hold the stores to it."""

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient


def key(name: str) -> dict[str, Any]:
    return {"pk": {"S": name}, "sk": {"S": "record"}}


def put(table: str, name: str, **more: Any) -> Any:
    return {"Put": {"TableName": table, "Item": key(name), **more}}


def there(dynamodb: "DynamoDBClient", table: str, name: str) -> bool:
    return "Item" in dynamodb.get_item(TableName=table, Key=key(name))


def test_the_same_transaction_has_no_further_effect(dynamodb: "DynamoDBClient", table: str) -> None:
    token = uuid4().hex
    dynamodb.transact_write_items(TransactItems=[put(table, "a")], ClientRequestToken=token)
    dynamodb.delete_item(TableName=table, Key=key("a"))
    dynamodb.transact_write_items(TransactItems=[put(table, "a")], ClientRequestToken=token)
    assert not there(dynamodb, table, "a")
    dynamodb.transact_write_items(TransactItems=[put(table, "a")], ClientRequestToken=uuid4().hex)
    assert there(dynamodb, table, "a")


def test_another_transaction_with_the_same_token_is_refused(dynamodb: "DynamoDBClient", table: str) -> None:
    token = uuid4().hex
    dynamodb.transact_write_items(TransactItems=[put(table, "a")], ClientRequestToken=token)
    with pytest.raises(ClientError) as refused:
        dynamodb.transact_write_items(TransactItems=[put(table, "b")], ClientRequestToken=token)
    assert refused.value.response["Error"]["Code"] == "IdempotentParameterMismatchException"
    assert not there(dynamodb, table, "b")


def test_a_transaction_that_was_cancelled_may_be_made_with_its_token(dynamodb: "DynamoDBClient", table: str) -> None:
    only_new: list[Any] = [put(table, "a", ConditionExpression="attribute_not_exists(pk)")]
    token = uuid4().hex
    dynamodb.put_item(TableName=table, Item=key("a"))
    with pytest.raises(ClientError, match="TransactionCanceled"):
        dynamodb.transact_write_items(TransactItems=only_new, ClientRequestToken=token)
    dynamodb.delete_item(TableName=table, Key=key("a"))
    dynamodb.transact_write_items(TransactItems=only_new, ClientRequestToken=token)
    assert there(dynamodb, table, "a")


@pytest.mark.parametrize("argument", ["ExpressionAttributeNames", "ExpressionAttributeValues"])
def test_an_argument_that_is_empty_is_refused(dynamodb: "DynamoDBClient", table: str, argument: str) -> None:
    empty: dict[str, Any] = {argument: {}}
    with pytest.raises(ClientError, match=f"{argument} must not be empty"):
        dynamodb.put_item(TableName=table, Item=key("a"), ConditionExpression="attribute_not_exists(pk)", **empty)


def test_an_index_has_what_it_projects(dynamodb: "DynamoDBClient", table: str) -> None:
    listed = {**key("a"), "caller": {"S": "alice"}, "created_at": {"N": "1"}, "status": {"S": "queued"}}
    dynamodb.put_item(TableName=table, Item={**listed, "lease_until": {"N": "2"}})
    (found,) = dynamodb.scan(TableName=table, IndexName="by-caller")["Items"]
    assert found == listed
