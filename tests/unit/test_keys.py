"""`make key` with a parameter store that answers what a client library's repetition meets."""

import argparse
from typing import Any

import pytest

from tools.keys import make


class AlreadyExistsError(Exception):
    pass


class FakeSsm:
    """Writes each new parameter, loses the answer, and refuses the repetition of that write."""

    class exceptions:  # noqa: N801  # the SDK's name
        ParameterAlreadyExists = AlreadyExistsError
        ParameterNotFound = KeyError

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def put_parameter(self, **asked: Any) -> None:
        self.values.setdefault(asked["Name"], asked["Value"])
        raise AlreadyExistsError

    def get_parameter(self, **asked: Any) -> dict[str, Any]:
        return {"Parameter": {"Value": self.values[asked["Name"]]}}


def test_a_key_whose_write_was_repeated_is_shown_and_another_is_not_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ssm: Any = FakeSsm()
    asked = argparse.Namespace(stack="imagegen", client="alice", replace=False, images_per_day=None)
    assert make(ssm, asked) == 0
    assert capsys.readouterr().out.startswith("ig_alice_")

    written = dict(ssm.values)
    assert make(ssm, asked) == 1
    assert (ssm.values, capsys.readouterr().out) == (written, "")
