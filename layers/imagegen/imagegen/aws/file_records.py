"""Stores the records of files in the table of the generations.

| pk | sk | |
|---|---|---|
| `<file id>` | `file` | the record; the index `by-caller` lists it under `files of <caller>` |

The attribute `status` has the purpose, by which the index can filter.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from imagegen.aws.items import (
    ConditionFailedError,
    Item,
    asking,
    json_text,
    key,
    newest_items,
    number,
    put_under,
    update_under,
)
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.files import File, Purpose, StoredObject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_RECORD = "file"
_VERSION = 1  # of the record; a process refuses records of a later version


class DynamoFiles:
    """Implements `ports.FileStore`. `retention_seconds` is how long the record of a file without an end is kept."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str, *, retention_seconds: int) -> None:
        self._client = client
        self._table = table
        self._retention_seconds = retention_seconds

    def create(self, file: File) -> File:
        kept_until = file.expires_at or file.created_at + self._retention_seconds
        item: Item = {
            **key(file.id, _RECORD),
            "version": number(_VERSION),
            "caller": {"S": _listed_under(file.caller)},
            "created_at": number(file.created_at),
            "expires_at": number(int(kept_until)),
            "status": {"S": file.purpose.value},
            "filename": {"S": file.filename},
            "object": {"S": json_text(file.object)},
            "has_end": {"BOOL": file.expires_at is not None},
            "is_uploaded": {"BOOL": file.is_uploaded},
        }
        with asking():
            try:
                put_under("attribute_not_exists(pk)", self._client(), self._table, item)
            except ConditionFailedError as failed:
                return _file(failed.item or item)
        return file

    def get(self, file_id: str) -> File | None:
        item = self._item(file_id)
        return _file(item) if item else None

    def newest(
        self,
        caller: str,
        limit: int,
        *,
        after: str | None = None,
        purpose: Purpose | None = None,
        oldest_first: bool = False,
    ) -> Sequence[File]:
        last = None
        if after is not None:
            last = self._item(after)
            if last is None or last["caller"]["S"] != _listed_under(caller):
                return []
        with asking():
            items = newest_items(
                self._client(),
                self._table,
                _listed_under(caller),
                limit,
                after=last,
                status=purpose.value if purpose else None,
                oldest_first=oldest_first,
            )
        return [_file(item) for item in items]

    def mark_uploaded(self, file_id: str) -> None:
        with asking(), suppress(ConditionFailedError):
            update_under(
                "version <= :version",
                self._client(),
                self._table,
                key(file_id, _RECORD),
                "SET is_uploaded = :yes",
                names={},
                values={":yes": {"BOOL": True}, ":version": number(_VERSION)},
            )

    def delete(self, file_id: str) -> None:
        with asking():
            self._client().delete_item(TableName=self._table, Key=key(file_id, _RECORD))

    def _item(self, file_id: str) -> Item | None:
        with asking():
            found = self._client().get_item(TableName=self._table, Key=key(file_id, _RECORD), ConsistentRead=True)
        item: Item | None = found.get("Item")
        return item


def _file(item: Item) -> File:
    if int(item["version"]["N"]) > _VERSION:
        raise RecordsUnavailableError("The record of this file was written by a later version of this service.")
    return File(
        id=item["pk"]["S"],
        caller=item["caller"]["S"].removeprefix(_listed_under("")),
        purpose=Purpose(item["status"]["S"]),
        filename=item["filename"]["S"],
        object=msgspec.json.decode(item["object"]["S"], type=StoredObject),
        created_at=float(item["created_at"]["N"]),
        expires_at=float(item["expires_at"]["N"]) if item["has_end"]["BOOL"] else None,
        is_uploaded=item["is_uploaded"]["BOOL"],
    )


def _listed_under(caller: str) -> str:
    return f"files of {caller}"  # no caller's name contains a space
