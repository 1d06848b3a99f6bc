"""`make key`, `make keys` and `make revoke`: create, list and revoke the callers' keys.

A key is printed once and not stored. SSM stores its hash in `/<stack>/clients/<client>`, which is never printed.
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

from imagegen.domain.credentials import BearerKey, CallerRecord
from imagegen.domain.money import MICROS, usd_text
from tools.stacks import find_stack, no_stack, on_one_line, read_stack_name, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ssm import SSMClient

_MOST_USD_PER_DAY = 1_000_000
_MOST_IMAGES_PER_DAY = 1_000_000_000  # MaxValue of ImagesPerClientPerDay in template.yaml


def main() -> int:
    arguments = _parser().parse_args()
    run: Callable[[SSMClient, argparse.Namespace], int] = arguments.run
    try:
        session = boto3.session.Session()
        if find_stack(session, arguments.stack) is None:
            return refuse(no_stack(session, arguments.stack))
        return run(session.client("ssm"), arguments)
    except (BotoCoreError, ClientError) as error:
        return refuse(on_one_line(error))


def make(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    """Creates a key. With `--replace` it replaces the caller's key and keeps the rest of the caller's record."""
    name = _parameter(arguments)
    made = BearerKey.new(arguments.client)
    before = _stored(ssm, name) if arguments.replace else None
    kept = _read(before) if before is not None else None
    record = made.record() if kept is None else msgspec.structs.replace(kept, key_sha256=made.record().key_sha256)
    quotas = {each: getattr(arguments, each) for each in ("images_per_day", "usd_per_day")}
    given = {each: quota for each, quota in quotas.items() if quota is not None}
    record = msgspec.structs.replace(record, **given)
    value = msgspec.json.encode(record).decode()
    try:
        ssm.put_parameter(Name=name, Type="String", Value=value, Overwrite=arguments.replace)
    except ssm.exceptions.ParameterAlreadyExists:
        # If the answer to a write is lost, the SDK writes again and finds its own parameter.
        if _stored(ssm, name) != value:
            return refuse(f"{made.caller} already has a key: REPLACE=1 replaces it and revokes the old key")
    print(made.key)
    if before is None:
        works = "it works now, or within five minutes if this caller's name was tried before"
    else:
        works = "within five minutes it works and the old key stops working"
    print(f"shown once and not stored; {works}", file=sys.stderr)
    if before is not None and kept is None:
        print("the old record was unreadable, so none of it was kept", file=sys.stderr)
    return 0


def show(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    path = f"/{arguments.stack}/clients"
    found = []
    for page in ssm.get_paginator("get_parameters_by_path").paginate(Path=path, WithDecryption=True):
        for parameter in page["Parameters"]:
            record = _read(parameter["Value"])
            quota = "unreadable: no key works" if record is None else _quota_text(record)
            written = parameter["LastModifiedDate"].astimezone(UTC)
            found.append((parameter["Name"].rpartition("/")[2], f"{written:%Y-%m-%d %H:%M} UTC", quota))
    for client, when, quota in sorted(found):
        print(f"{client:<32}  {when}  {quota}")
    if not found:
        print(f"there are no callers under {path}", file=sys.stderr)
    return 0


def revoke(ssm: SSMClient, arguments: argparse.Namespace) -> int:
    try:
        ssm.delete_parameter(Name=_parameter(arguments))
    except ssm.exceptions.ParameterNotFound:
        return refuse(f"there is no caller {arguments.client} in {arguments.stack}")
    print(f"the key of {arguments.client} stops working within five minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    key = commands.add_parser("key", prog="make key", description="creates a caller's key and shows it once")
    _add_stack(key, make)
    _add_client(key)
    key.add_argument("--images-per-day", type=_quota, metavar="N", help="the caller's quota; default: the stack's")
    key.add_argument("--usd-per-day", type=_usd, metavar="USD", help="the caller's quota in money, such as 5 or 0.5")
    key.add_argument("--replace", action="store_true", help="replace the caller's key, which then stops working")
    _add_stack(commands.add_parser("list", prog="make keys", description="lists the callers"), show)
    revoked = commands.add_parser("revoke", prog="make revoke", description="revokes a caller's key")
    _add_stack(revoked, revoke)
    _add_client(revoked)
    return parser


def _add_stack(parser: argparse.ArgumentParser, run: Callable[[SSMClient, argparse.Namespace], int]) -> None:
    parser.add_argument("--stack", type=read_stack_name, required=True, help="the name of the stack")
    parser.set_defaults(run=run)


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--client", type=_client, required=True, help="the caller's name")


def _client(text: str) -> str:
    try:
        return BearerKey.new(text).caller
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _quota(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MOST_IMAGES_PER_DAY:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {_MOST_IMAGES_PER_DAY}")
    return int(text)


def _usd(text: str) -> int:
    """Reads an amount in USD. Returns it in millionths of a dollar."""
    match = re.fullmatch(r"([0-9]{1,7})(?:\.([0-9]{1,6}))?", text)
    micros = int(match[1]) * MICROS + int((match[2] or "").ljust(6, "0")) if match else -1
    if not 0 <= micros <= _MOST_USD_PER_DAY * MICROS:
        raise argparse.ArgumentTypeError(
            f"must be an amount in USD from 0 to {_MOST_USD_PER_DAY}, with at most 6 decimals, such as 5 or 0.5"
        )
    return micros


def _parameter(arguments: argparse.Namespace) -> str:
    return f"/{arguments.stack}/clients/{arguments.client}"


def _stored(ssm: SSMClient, name: str) -> str | None:
    try:
        return ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound:
        return None


def _read(value: str) -> CallerRecord | None:
    try:
        return msgspec.json.decode(value, type=CallerRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _quota_text(record: CallerRecord) -> str:
    images, usd = record.images_per_day, record.usd_per_day
    quotas = [] if images is None else [f"{images} image{'' if images == 1 else 's'} a day"]
    quotas += [] if usd is None else [f"{usd_text(usd)} USD a day"]
    return ", ".join(quotas) or "the stack's quota"


if __name__ == "__main__":
    sys.exit(main())
