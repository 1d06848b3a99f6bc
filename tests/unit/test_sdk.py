"""An AWS service that hangs must not hold us longer than a lease lasts: a claim that nobody renews is taken over."""

from collections.abc import Callable
from typing import Any

import pytest

from imagegen.bootstrap import sdk
from imagegen.manage import LEASE_SECONDS


@pytest.mark.parametrize("client", [sdk.dynamodb, sdk.sqs, sdk.ssm], ids=["dynamodb", "sqs", "ssm"])
def test_every_try_at_a_service_that_hangs_ends_well_within_a_lease(
    client: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for cached in (sdk.session, sdk.dynamodb, sdk.sqs, sdk.ssm):
        cached.cache_clear()
    try:
        config = client().meta.config
    finally:
        for cached in (sdk.session, sdk.dynamodb, sdk.sqs, sdk.ssm):
            cached.cache_clear()
    a_try = config.connect_timeout + config.read_timeout
    assert config.retries["total_max_attempts"] * a_try < LEASE_SECONDS
