"""Shared parts of the operator's tools: names of stacks, look-ups of stacks, and error messages."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from boto3.session import Session


def read_stack_name(text: str) -> str:
    """Raises ArgumentTypeError with the rule for names of stacks."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,127}", text):
        raise argparse.ArgumentTypeError("a stack's name has 1 to 128 letters, digits and -, and begins with a letter")
    if text.lower().startswith(("aws", "ssm")):
        raise argparse.ArgumentTypeError(
            f"a stack cannot be named {text}: SSM allows no parameters below /aws… or /ssm…"
        )
    return text


def find_stack(session: Session, name: str) -> dict[str, Any] | None:
    """The stack as CloudFormation describes it; None if it does not exist. Raises BotoCoreError and ClientError."""
    try:
        (stack,) = session.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return dict(stack)


def no_stack(session: Session, name: str) -> str:
    return f"there is no stack {name} in {session.region_name}"


def on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def refuse(reason: str) -> int:
    """Prints the reason to stderr. Returns the exit code."""
    print(reason, file=sys.stderr)
    return 1
