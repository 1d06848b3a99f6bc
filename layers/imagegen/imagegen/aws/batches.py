"""Stores batches and their lines in the table of the generations.

| pk | sk | |
|---|---|---|
| `<batch id>` | `batch` | the record; the index `by-caller` lists it under `batches of <client>` |
| `<batch id>#pending` | `<line>` | a line whose generation has not ended |
| `<batch id>#ended` | `<line>` | whether an ended line is completed |
| `<batch id>#outcomes` | `<line>` | the same, and its line of an output file |

A line is never in both of the first two: one transaction moves it, and one that has ended does not become pending. No
item holds a counter, because hundreds of lines may end at once. Counting is a query of small items, some ten
thousand in a page of 1 MB (DynamoDB developer guide, "Paginating table query results"). An ended line has the same key
whatever its outcome, so no line is counted twice. The outcome changes if its generation is deleted or tried again,
until the batch is finalizing. From then on, every process that writes the files reads the same lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping  # noqa: TC003  # msgspec reads it
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen.aws.items import ConditionFailedError, Item, asking, json_text, key, newest_items, number, update_under
from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Checkpoint, Counts, EndedLine
from imagegen.domain.errors import RecordsUnavailableError
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import LostClaimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_RECORD = "batch"
# Of the record. A process refuses records of a later version. Batches of the inbox keep theirs.
_VERSION, _VERSION_OF_INBOX = 2, 1
_OPEN = "#status IN (:validating, :in_progress, :cancelling, :finalizing)"
_WORKED_ON = f"#owner = :owner AND {_OPEN}"
_TIMES = ("begun_at", "expiring_at", "cancelling_at", "finalizing_at", "ended_at")
_IF_NEW: Item = {"ConditionExpression": "attribute_not_exists(pk)"}


class _Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a batch over HTTP has and one of the inbox has not, as in `Batch`."""

    endpoint: str | None = None
    given_file_id: str | None = None
    metadata: Mapping[str, str] | None = None
    output_seconds: int | None = None
    expires_at: float | None = None


class DynamoBatches:
    """Implements `ports.BatchStore`. `retention_seconds` is how long a record is kept."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str, *, retention_seconds: int) -> None:
        self._client = client
        self._table = table
        self._retention_seconds = retention_seconds

    def create(self, batch: Batch) -> Batch:
        item: Item = {
            **key(batch.id, _RECORD),
            "version": number(_VERSION_OF_INBOX if batch.is_of_inbox else _VERSION),
            "caller": {"S": _listed_under(batch.caller)},
            "created_at": number(batch.created_at),
            "expires_at": number(int(batch.created_at) + self._retention_seconds),
            "status": {"S": batch.status.value},
            "file": {"S": json_text(batch.file)},
            "checkpoint": {"S": json_text(batch.checkpoint)},
            "lease_until": number(batch.lease_until),
        }
        if not batch.is_of_inbox:
            asked = _Asked(batch.endpoint, batch.given_file_id, batch.metadata, batch.output_seconds, batch.expires_at)
            item["asked"] = {"S": json_text(asked)}
        with asking():
            client = self._client()
            with suppress(client.exceptions.ConditionalCheckFailedException):
                client.put_item(TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)")
        there = self.get(batch.id)
        if there is None:
            raise RecordsUnavailableError("The record of this batch no longer exists.")
        return there

    def get(self, batch_id: str) -> Batch | None:
        item = self._item(batch_id)
        return _batch(item) if item else None

    def newest(self, caller: str, limit: int, *, after: str | None = None) -> Sequence[Batch]:
        last = None
        if after is not None:
            last = self._item(after)
            if last is None or last["caller"]["S"] != _listed_under(caller):
                return []
        with asking():
            items = newest_items(self._client(), self._table, _listed_under(caller), limit, after=last)
        return [_batch(item) for item in items]

    def claim(self, batch_id: str, owner: str, *, now: float, lease_until: float) -> Batch | None:
        try:
            return self._update(
                batch_id,
                "SET #owner = :owner, lease_until = :lease_until",
                f"{_OPEN} AND (lease_until < :now OR #owner = :owner)",
                {":owner": {"S": owner}, ":now": number(now), ":lease_until": number(lease_until)},
            )
        except LostClaimError:
            return None

    def renew(self, batch_id: str, owner: str, lease_until: float) -> None:
        self._update_claimed(batch_id, owner, "SET lease_until = :lease_until", {":lease_until": number(lease_until)})

    def release(self, batch_id: str, owner: str) -> None:
        with suppress(LostClaimError):
            self._update(
                batch_id,
                "SET lease_until = :zero REMOVE #owner",
                "#owner = :owner",
                {":owner": {"S": owner}, ":zero": number(0)},
            )

    def begin_lines(self, batch_id: str, owner: str, lines: int, *, now: float) -> Batch:
        values = {":lines": number(lines), ":now": number(now)}
        update = "SET #status = :in_progress, validated = :lines, begun_at = if_not_exists(begun_at, :now)"
        return self._unless_cancelled(batch_id, owner, update, "#status IN (:validating, :in_progress)", values)

    def fail(self, batch_id: str, owner: str, problems: Sequence[BatchProblem], *, now: float) -> Batch:
        values = {":problems": {"S": json_text(problems)}, ":now": number(now)}
        update = "SET #status = :failed, problems = :problems, ended_at = :now"
        return self._unless_cancelled(batch_id, owner, update, "#status IN (:validating, :failed)", values)

    def _unless_cancelled(self, batch_id: str, owner: str, update: str, condition: str, values: Item) -> Batch:
        """Returns the record after the update, or as it is if the batch was cancelled before."""
        try:
            return self._update(
                batch_id, update, f"#owner = :owner AND {condition}", {":owner": {"S": owner}, **values}
            )
        except LostClaimError:
            batch = self.get(batch_id)
            if batch is None or batch.owner != owner or batch.status is not BatchStatus.CANCELLING:
                raise
            return batch

    def save_wake(self, batch_id: str, owner: str, wake_at: float) -> None:
        self._update_claimed(batch_id, owner, "SET wake_at = :wake_at", {":wake_at": number(wake_at)})

    def begin_expiring(self, batch_id: str, owner: str, *, now: float) -> Batch:
        update = "SET expiring_at = if_not_exists(expiring_at, :now)"
        return self._update_claimed(batch_id, owner, update, {":now": number(now)})

    def save_checkpoint(self, batch_id: str, owner: str, checkpoint: Checkpoint) -> Batch:
        return self._update_claimed(
            batch_id, owner, "SET checkpoint = :checkpoint", {":checkpoint": {"S": json_text(checkpoint)}}
        )

    def save_total(self, batch_id: str, owner: str, total: int) -> Batch:
        return self._update_claimed(
            batch_id, owner, "SET line_total = if_not_exists(line_total, :total)", {":total": number(total)}
        )

    def begin_cancelling(self, batch_id: str, *, now: float) -> Batch | None:
        try:
            return self._update(
                batch_id,
                "SET #status = :cancelling, cancelling_at = if_not_exists(cancelling_at, :now)",
                "#status IN (:validating, :in_progress, :cancelling)",
                {":now": number(now)},
            )
        except LostClaimError:
            return None

    def begin_finalizing(self, batch_id: str, owner: str, *, now: float) -> Batch:
        update = "SET #status = :finalizing, finalizing_at = if_not_exists(finalizing_at, :now)"
        return self._update_claimed(batch_id, owner, update, {":now": number(now)})

    def end(self, batch_id: str, owner: str, counts: Counts, *, now: float) -> Batch:
        batch = self.get(batch_id)  # what stopped it no longer changes
        ended = batch.end_status if batch else BatchStatus.COMPLETED
        return self._update(
            batch_id,
            "SET #status = :ended, ended_at = :now, counts = :counts",
            # If the SDK repeats a write that has succeeded, the repetition finds the end that the write made.
            "#owner = :owner AND #status IN (:finalizing, :ended)",
            {
                ":owner": {"S": owner},
                ":ended": {"S": ended.value},
                ":now": number(now),
                ":counts": {"S": json_text(counts)},
            },
        )

    def mark_published(self, batch_id: str) -> None:
        with suppress(LostClaimError):
            self._update(batch_id, "SET published = :yes", "attribute_exists(pk)", {":yes": {"BOOL": True}})

    def _item(self, batch_id: str) -> Item | None:
        with asking():
            found = self._client().get_item(TableName=self._table, Key=key(batch_id, _RECORD), ConsistentRead=True)
        item: Item | None = found.get("Item")
        return item

    def _update_claimed(self, batch_id: str, owner: str, update: str, values: Item) -> Batch:
        return self._update(batch_id, update, _WORKED_ON, {":owner": {"S": owner}, **values})

    def _update(self, batch_id: str, update: str, condition: str, values: Item) -> Batch:
        """Returns the record after the update. Raises LostClaimError if the condition does not hold."""
        statuses = {f":{status.value}": {"S": status.value} for status in BatchStatus}
        with asking():
            try:
                item = update_under(
                    f"({condition}) AND version <= :version",
                    self._client(),
                    self._table,
                    key(batch_id, _RECORD),
                    update,
                    names={"#status": "status", "#owner": "owner"},
                    values={**statuses, ":version": number(_VERSION), **values},
                )
            except ConditionFailedError as failed:
                _check_version(failed.item or {})
                raise LostClaimError from None
        return _batch(item)


class DynamoBatchLines:
    """Implements `ports.BatchLines`. `retention_seconds` is how long a line is kept."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str, *, retention_seconds: int) -> None:
        self._client = client
        self._table = table
        self._retention_seconds = retention_seconds

    def begin(self, batch_id: str, line: int, custom_id: str) -> bool:
        pending = self._put(self._item(_pending(batch_id), line, {"custom_id": {"S": custom_id}}))
        # It deletes nothing: unlike a condition check, it needs no further IAM permission.
        not_ended = self._delete(_ended(batch_id), line)
        with asking():
            return self._written(pending, {"Delete": not_ended["Delete"] | _IF_NEW})

    def end(self, batch_id: str, line: int, ended: EndedLine) -> None:
        with asking():
            if not self._ended_first(batch_id, line, ended):
                # Only a change of an outcome checks the record: hundreds of lines that end at once would conflict over
                # it.
                self._written(*self._outcome(batch_id, line, ended), self._not_finalizing(batch_id))

    def refuse(self, batch_id: str, line: int, ended: EndedLine) -> None:
        with asking():
            self._ended_first(batch_id, line, ended)

    def _ended_first(self, batch_id: str, line: int, ended: EndedLine) -> bool:
        """Returns `False` if the line has ended before. Then it is not pending either."""
        outcome, counted = self._outcome(batch_id, line, ended)
        return self._written(outcome, {"Put": counted["Put"] | _IF_NEW}, self._delete(_pending(batch_id), line))

    def _outcome(self, batch_id: str, line: int, ended: EndedLine) -> tuple[Item, Item]:
        completed: Item = {"completed": {"BOOL": ended.completed}}
        outcome = self._item(_outcomes(batch_id), line, {**completed, "text": {"S": ended.text}})
        return self._put(outcome), self._put(self._item(_ended(batch_id), line, completed))

    def _written(self, *writes: Any) -> bool:
        """Makes all of the writes or none. Returns `False` if a condition does not hold."""
        client = self._client()
        try:
            client.transact_write_items(TransactItems=writes)
        except client.exceptions.TransactionCanceledException as cancelled:
            reasons = cancelled.response["CancellationReasons"]
            if any(reason.get("Code") == "ConditionalCheckFailed" for reason in reasons):
                return False
            raise
        return True

    def _not_finalizing(self, batch_id: str) -> Item:
        """Returns a write that changes nothing, for the same reason."""
        return {
            "Update": {
                "TableName": self._table,
                "Key": key(batch_id, _RECORD),
                "UpdateExpression": "SET #status = #status",
                "ConditionExpression": "#status IN (:in_progress, :cancelling)",
                "ExpressionAttributeNames": {"#status": "status"},
                "ExpressionAttributeValues": {
                    ":in_progress": {"S": BatchStatus.IN_PROGRESS.value},
                    ":cancelling": {"S": BatchStatus.CANCELLING.value},
                },
            }
        }

    def _put(self, item: Item) -> Item:
        return {"Put": {"TableName": self._table, "Item": item}}

    def _delete(self, pk: str, line: int) -> Item:
        return {"Delete": {"TableName": self._table, "Key": key(pk, _sort_key(line))}}

    def pending(self, batch_id: str) -> Iterator[tuple[int, str]]:
        for item in self._all(_pending(batch_id)):
            yield int(item["sk"]["S"]), item["custom_id"]["S"]

    def any_pending(self, batch_id: str) -> bool:
        with asking():
            page = self._client().query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": _pending(batch_id)}},
                ConsistentRead=True,
                Limit=1,
            )
        return bool(page["Items"])

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        for item in self._all(_outcomes(batch_id)):
            yield EndedLine(item["completed"]["BOOL"], item["text"]["S"])

    def counts(self, batch_id: str) -> Counts:
        completed = failed = 0
        for item in self._all(_ended(batch_id), attributes="completed"):
            if item["completed"]["BOOL"]:
                completed += 1
            else:
                failed += 1
        return Counts(completed, failed)

    def _item(self, pk: str, line: int, attributes: Item) -> Item:
        expires_at = number(int(time.time()) + self._retention_seconds)
        return {**key(pk, _sort_key(line)), **attributes, "expires_at": expires_at}

    def _all(self, pk: str, *, attributes: str | None = None) -> Iterator[Item]:
        """Yields the lines of a partition in order, page by page."""
        query: dict[str, Any] = {} if attributes is None else {"ProjectionExpression": attributes}
        while True:
            with asking():
                page = self._client().query(
                    TableName=self._table,
                    KeyConditionExpression="pk = :pk",
                    ExpressionAttributeValues={":pk": {"S": pk}},
                    ConsistentRead=True,
                    **query,
                )
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            query["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _check_version(item: Item) -> None:
    if "version" in item and int(item["version"]["N"]) > _VERSION:
        raise RecordsUnavailableError("The record of this batch was written by a later version of this service.")


def _batch(item: Item) -> Batch:
    _check_version(item)
    times = {name: float(item[name]["N"]) for name in _TIMES if name in item}
    asked = msgspec.json.decode(item["asked"]["S"], type=_Asked) if "asked" in item else _Asked()
    return Batch(
        id=item["pk"]["S"],
        caller=item["caller"]["S"].removeprefix(_listed_under("")),
        file=msgspec.json.decode(item["file"]["S"], type=StoredObject),
        created_at=float(item["created_at"]["N"]),
        endpoint=asked.endpoint,
        given_file_id=asked.given_file_id,
        metadata=asked.metadata,
        output_seconds=asked.output_seconds,
        expires_at=asked.expires_at,
        status=BatchStatus(item["status"]["S"]),
        checkpoint=msgspec.json.decode(item["checkpoint"]["S"], type=Checkpoint),
        validated=int(item["validated"]["N"]) if "validated" in item else None,
        problems=msgspec.json.decode(item["problems"]["S"], type=tuple[BatchProblem, ...])
        if "problems" in item
        else (),
        total=int(item["line_total"]["N"]) if "line_total" in item else None,
        counts=msgspec.json.decode(item["counts"]["S"], type=Counts) if "counts" in item else None,
        owner=item["owner"]["S"] if "owner" in item else None,
        lease_until=float(item["lease_until"]["N"]),
        wake_at=float(item["wake_at"]["N"]) if "wake_at" in item else 0.0,
        published="published" in item,
        **times,
    )


def _listed_under(caller: str) -> str:
    return f"batches of {caller}"  # no caller's name contains a space


def _pending(batch_id: str) -> str:
    return f"{batch_id}#pending"


def _ended(batch_id: str) -> str:
    return f"{batch_id}#ended"


def _outcomes(batch_id: str) -> str:
    return f"{batch_id}#outcomes"


def _sort_key(line: int) -> str:
    return f"{line:09d}"
