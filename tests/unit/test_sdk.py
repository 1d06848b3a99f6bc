"""An AWS service that hangs must not hold us longer than a lease lasts: a claim that nobody renews is taken over."""

from typing import Any

import pytest

from imagegen.bootstrap import sdk
from imagegen.manage import LEASE_SECONDS


def test_every_try_at_a_service_that_hangs_ends_well_within_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(sdk, "session", sdk.session.__wrapped__)
    for client in (sdk.dynamodb, sdk.sqs, sdk.ssm):
        config: Any = client.__wrapped__().meta.config
        a_try = config.connect_timeout + config.read_timeout
        assert config.retries["total_max_attempts"] * a_try < LEASE_SECONDS
