"""`make key`, `make keys` and `make revoke`: lets clients in, lists them, and shuts them out.

A key is printed once and stored nowhere; SSM holds its hash, at `/<stack>/clients/<client>`. Nothing here prints either
again.
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC
from typing import TYPE_CHECKING

import boto3
import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from imagegen.domain.credentials import BearerKey, ClientRecord
from tools.stacks import find_stack, no_stack, read_stack_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ssm import SSMClient

_MOST_IMAGES_PER_DAY = 1_000_000_000  # as the template has it


def main() -> int:
    arguments = _parser().parse_args()
    run: Callable[[SSMClient, argparse.Namespace], int] = arguments.run
    try:
        session = boto3.session.Session()
        if find_stack(session, arguments.stack) is None:
            return _refused(no_stack(session, arguments.stack))
        return run(session.client("ssm"), arguments)
    except (BotoCoreError, ClientError) as error:
        return _refused(" ".join(str(error).split()))


def make(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    """A new key, in place of the client's one before if that is asked for. What else its record says stays."""
    name = _parameter(arguments)
    made = BearerKey.new(arguments.client)
    before = _stored(ssm, name) if arguments.replace else None
    kept = _read(before) if before is not None else None
    record = made.record() if kept is None else msgspec.structs.replace(kept, key_sha256=made.record().key_sha256)
    if arguments.images_per_day is not None:
        record = msgspec.structs.replace(record, images_per_day=arguments.images_per_day)
    value = msgspec.json.encode(record).decode()
    try:
        ssm.put_parameter(Name=name, Type="String", Value=value, Overwrite=arguments.replace)
    except ssm.exceptions.ParameterAlreadyExists:
        # The SDK repeats a write whose answer was lost, and then finds its own.
        if _stored(ssm, name) != value:
            return _refused(f"{made.client} has a key already: REPLACE=1 makes a new one, and the one before dies")
    print(made.key)
    if before is None:
        works = "it works at once, or within five minutes where this client's name was tried before"
    else:
        works = "within five minutes it works, and the one before is dead"
    print(f"shown once and stored nowhere; {works}", file=sys.stderr)
    if before is not None and kept is None:
        print("the record before could not be read, so nothing of it was kept", file=sys.stderr)
    return 0


def show(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    path = f"/{arguments.stack}/clients"
    found = []
    for page in ssm.get_paginator("get_parameters_by_path").paginate(Path=path, WithDecryption=True):
        for parameter in page["Parameters"]:
            record = _read(parameter["Value"])
            allowed = "unreadable: lets nobody in" if record is None else _told(record.images_per_day)
            written = parameter["LastModifiedDate"].astimezone(UTC)
            found.append((parameter["Name"].rpartition("/")[2], f"{written:%Y-%m-%d %H:%M} UTC", allowed))
    for client, when, allowed in sorted(found):
        print(f"{client:<32}  {when}  {allowed}")
    if not found:
        print(f"there is no client under {path}", file=sys.stderr)
    return 0


def revoke(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    try:
        ssm.delete_parameter(Name=_parameter(arguments))
    except ssm.exceptions.ParameterNotFound:
        return _refused(f"there is no client {arguments.client} in {arguments.stack}")
    print(f"the key of {arguments.client} is dead within five minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    key = commands.add_parser("key", prog="make key", description="makes a client's key, and shows it once")
    _add_stack(key, make)
    _add_client(key)
    key.add_argument("--images-per-day", type=_allowance, metavar="N", help="the client's own; else the stack's")
    key.add_argument("--replace", action="store_true", help="also where the client has a key, which then dies")
    _add_stack(commands.add_parser("list", prog="make keys", description="lists the clients"), show)
    revoked = commands.add_parser("revoke", prog="make revoke", description="shuts a client out")
    _add_stack(revoked, revoke)
    _add_client(revoked)
    return parser


def _add_stack(parser: argparse.ArgumentParser, run: Callable[[SSMClient, argparse.Namespace], int]) -> None:
    parser.add_argument("--stack", type=read_stack_name, required=True, help="the name of the stack")
    parser.set_defaults(run=run)


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--client", type=_client, required=True, help="the client's name")


def _client(text: str) -> str:
    try:
        return BearerKey.new(text).client
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _allowance(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MOST_IMAGES_PER_DAY:
        raise argparse.ArgumentTypeError(f"it is a whole number from 0 to {_MOST_IMAGES_PER_DAY}")
    return int(text)


def _parameter(arguments: argparse.Namespace) -> str:
    return f"/{arguments.stack}/clients/{arguments.client}"


def _stored(ssm: SSMClient, name: str) -> str | None:
    try:
        return ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound:
        return None


def _read(value: str) -> ClientRecord | None:
    try:
        return msgspec.json.decode(value, type=ClientRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _told(images_per_day: int | None) -> str:
    if images_per_day is None:
        return "the stack's allowance"
    return f"{images_per_day} image{'' if images_per_day == 1 else 's'} a day"


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
