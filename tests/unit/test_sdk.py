"""The product with an AWS service that hangs, and with an SDK that repeats a call."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.bootstrap import sdk
from imagegen.usecases.manage_generation import LEASE_SECONDS
from tools.keys import make


def test_all_tries_at_a_service_that_hangs_end_within_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that is not renewed is taken over."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(sdk, "session", sdk.session.__wrapped__)
    for client in (sdk.dynamodb, sdk.sqs, sdk.ssm):
        config: Any = client.__wrapped__().meta.config
        a_try = config.connect_timeout + config.read_timeout
        assert config.retries["total_max_attempts"] * a_try < LEASE_SECONDS


class AlreadyExistsError(Exception):
    pass


def ssm_that_repeats(values: dict[str, str]) -> Any:
    """Writes each new parameter, loses the answer, and refuses the repetition of that write."""

    def put_parameter(**asked: Any) -> None:
        values.setdefault(asked["Name"], asked["Value"])
        raise AlreadyExistsError

    return SimpleNamespace(
        exceptions=SimpleNamespace(ParameterAlreadyExists=AlreadyExistsError, ParameterNotFound=KeyError),
        put_parameter=put_parameter,
        get_parameter=lambda **asked: {"Parameter": {"Value": values[asked["Name"]]}},
    )


def test_a_repeated_write_prints_its_key_and_replaces_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, str] = {}
    ssm = ssm_that_repeats(values)
    asked = argparse.Namespace(stack="imagegen", client="alice", replace=False, images_per_day=None, usd_per_day=None)
    assert make(ssm, asked) == 0
    assert capsys.readouterr().out.startswith("ig_alice_")

    written = dict(values)
    assert make(ssm, asked) == 1
    assert (values, capsys.readouterr().out) == (written, "")
