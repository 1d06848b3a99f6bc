"""Imports the AWS SDK on first use, because it is the slowest import of a cold start."""

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
    """Returns short time-outs.

    The default is five tries of up to a minute each: longer than API Gateway waits, and longer than a lease.
    """
    from botocore.config import Config  # noqa: PLC0415

    return Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})


@cache
def dynamodb() -> DynamoDBClient:
    return session().client("dynamodb", config=_patience())


@cache
def events() -> EventBridgeClient:
    """Has even shorter time-outs, because a caller may be waiting. If publishing fails, it is repeated later."""
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
    """Returns the current credentials of the function. They may have been renewed since the last call."""
    found = session().get_credentials()
    if found is None:
        raise RuntimeError("there are no AWS credentials")
    return found.get_frozen_credentials()
