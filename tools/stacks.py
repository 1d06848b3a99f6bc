"""What the operator's tools know of a stack: whether its name will do, and whether it is there."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from boto3.session import Session


def read_stack_name(text: str) -> str:
    """Raises ArgumentTypeError, whose words say what a stack's name is."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,127}", text):
        raise argparse.ArgumentTypeError("a stack is 1 to 128 letters, digits and -, and begins with a letter")
    if text.lower().startswith(("aws", "ssm")):
        raise argparse.ArgumentTypeError(f"a stack is not named {text}: SSM takes no parameter below /aws… or /ssm…")
    return text


def find_stack(session: Session, name: str) -> dict[str, Any] | None:
    """As CloudFormation describes it; None if there is none. Raises BotoCoreError and ClientError."""
    try:
        (stack,) = session.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return dict(stack)


def no_stack(session: Session, name: str) -> str:
    return f"there is no stack {name} in {session.region_name}"
