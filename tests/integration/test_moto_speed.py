"""Transactions in the local stack's DynamoDB, whose copying of whole tables we have taken out of moto."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from local.aws_door import REGION
from local.stack import moto_server

REFUSED = "attribute_not_exists(pk)"


@pytest.fixture(scope="module")
def dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with moto_server(tmp_path_factory.mktemp("moto") / "log") as url:
        client = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id="operator",
            aws_secret_access_key="secret",
        )
        client.create_table(
            TableName="records",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )
        yield client


def key(pk: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": "record"}}


def put(pk: str, value: str, **condition: str) -> dict[str, Any]:
    return {"Put": {"TableName": "records", "Item": {**key(pk), "value": {"S": value}}, **condition}}


def there(client: Any) -> dict[str, str]:
    return {item["pk"]["S"]: item["value"]["S"] for item in client.scan(TableName="records")["Items"]}


def test_a_transaction_that_fails_leaves_all_as_it_was(dynamodb: Any) -> None:
    dynamodb.transact_write_items(TransactItems=[put("stays", "1"), put("taken", "1")])
    before = there(dynamodb)
    update = {
        "Update": {
            "TableName": "records",
            "Key": key("stays"),
            "UpdateExpression": "SET #value = :two",
            "ExpressionAttributeNames": {"#value": "value"},
            "ExpressionAttributeValues": {":two": {"S": "2"}},
        }
    }
    refused = put("taken", "2", ConditionExpression=REFUSED)
    with pytest.raises(ClientError, match="TransactionCanceledException"):
        dynamodb.transact_write_items(TransactItems=[put("new", "2"), update, refused])
    assert there(dynamodb) == before
    delete = {"Delete": {"TableName": "records", "Key": key("stays")}}
    with pytest.raises(ClientError, match="TransactionCanceledException"):
        dynamodb.transact_write_items(TransactItems=[delete, refused])
    assert there(dynamodb) == before


def test_a_transaction_that_holds_is_written_whole(dynamodb: Any) -> None:
    writes = [put(f"whole-{number}", "1", ConditionExpression=REFUSED) for number in range(3)]
    dynamodb.transact_write_items(TransactItems=writes)
    assert {pk for pk in there(dynamodb) if pk.startswith("whole")} == {"whole-0", "whole-1", "whole-2"}
