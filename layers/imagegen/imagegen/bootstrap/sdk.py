"""The AWS SDK, imported on first use: it is the slowest import of a cold start."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import boto3
    from botocore.credentials import ReadOnlyCredentials
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_sqs import SQSClient
    from types_boto3_ssm import SSMClient


@cache
def session() -> boto3.session.Session:
    import boto3  # noqa: PLC0415

    return boto3.session.Session()


@cache
def dynamodb() -> DynamoDBClient:
    return session().client("dynamodb")


@cache
def sqs() -> SQSClient:
    return session().client("sqs")


@cache
def ssm() -> SSMClient:
    return session().client("ssm")


def credentials() -> ReadOnlyCredentials:
    """The function's own credentials as they are now; they may have been renewed since the last call."""
    found = session().get_credentials()
    if found is None:
        raise RuntimeError("there are no AWS credentials")
    return found.get_frozen_credentials()
