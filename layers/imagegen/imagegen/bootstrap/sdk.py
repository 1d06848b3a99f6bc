"""The AWS SDK, imported on first use: it is the slowest import of a cold start."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import boto3
    from botocore.config import Config
    from botocore.credentials import ReadOnlyCredentials
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_events import EventBridgeClient
    from types_boto3_sqs import SQSClient
    from types_boto3_ssm import SSMClient


@cache
def session() -> boto3.session.Session:
    import boto3  # noqa: PLC0415

    return boto3.session.Session()


@cache
def _patience() -> Config:
    """The SDK's own is a minute a try, five tries: longer than the gateway waits, and than a lease lasts unrenewed."""
    from botocore.config import Config  # noqa: PLC0415

    return Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})


@cache
def dynamodb() -> DynamoDBClient:
    return session().client("dynamodb", config=_patience())


@cache
def events() -> EventBridgeClient:
    """Who waits for an answer must not wait for what is told besides: a message tells it later."""
    from botocore.config import Config  # noqa: PLC0415

    return session().client(
        "events",
        config=Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2}),
    )


@cache
def sqs() -> SQSClient:
    return session().client("sqs", config=_patience())


@cache
def ssm() -> SSMClient:
    return session().client("ssm", config=_patience())


def credentials() -> ReadOnlyCredentials:
    """The function's own credentials as they are now; they may have been renewed since the last call."""
    found = session().get_credentials()
    if found is None:
        raise RuntimeError("there are no AWS credentials")
    return found.get_frozen_credentials()
