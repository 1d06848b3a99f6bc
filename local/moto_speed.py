"""Patches moto so that it stays fast with tens of thousands of records and messages.

Without the patches a call takes up to a second, under Python's global lock: moto copies whole tables for each
transaction to be able to roll back, sorts the whole table for each query, and counts all messages of a queue for each
receipt.
"""

import copy
import inspect
import time
from typing import Any

from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.table import Table
from moto.sqs.exceptions import ReceiptHandleIsInvalid
from moto.sqs.models import Message, Queue, SQSBackend

_transact = DynamoDBBackend.transact_write_items
_query = Table.query


def install() -> None:
    """Patches moto for the rest of this process."""
    for part, name, replacement in (
        (Table, "__deepcopy__", lambda table, _: table),
        (Table, "all_items", _all_items),
        (DynamoDBBackend, "transact_write_items", _transact_write_items),
        (Table, "query", _query_partition),
        (Queue, "messages", property(_receivable)),
        (Queue, "approximate_number_of_messages_delayed", property(_delayed)),
        (Queue, "approximate_number_of_messages_not_visible", property(_not_visible)),
        (Queue, "delete_message", _delete_message),
        (SQSBackend, "is_message_valid_based_on_retention_period", _is_retained),
    ):
        if not hasattr(part, name) and name != "__deepcopy__":
            raise AttributeError(f"this version of moto has no {part.__name__}.{name}")
        setattr(part, name, replacement)


def _transact_write_items(backend: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
    """Restores only the touched items if the transaction fails; `__deepcopy__` above makes moto's own copies no-ops."""
    touched = [_touched(backend, operation) for item in transact_items for operation in item.values()]
    before = [(table, key, copy.deepcopy(backend.get_item(table, key))) for table, key in touched]
    try:
        _transact(backend, transact_items)
    except Exception:
        for table, key, item in before:
            backend.delete_item(table, key)
            if item is not None:
                backend.put_item(table, item.to_json()["Attributes"])
        raise


def _touched(backend: DynamoDBBackend, operation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Table and key of the operation's item."""
    table = operation["TableName"]
    key = operation.get("Key") or {name: operation["Item"][name] for name in backend.get_table(table).table_key_attrs}
    return table, key


def _query_partition(table: Table, hash_key: Any, *arguments: Any, **named: Any) -> Any:
    """Passes on only the queried partition, unless the query is of an index; with a limit, only its first items."""
    query = inspect.signature(_query).bind(table, hash_key, *arguments, **named).arguments
    if query.get("index_name") is None:
        partition = list((table.items.get(hash_key) or {}).items())  # a copy: other threads write to it
        if query["limit"] and not query["range_comparison"] and not query["exclusive_start_key"]:
            partition.sort(key=lambda item: str(item[0].value), reverse=not query["scan_index_forward"])
            partition = partition[: query["limit"] + 1]
        table = copy.copy(table)
        table.items = {hash_key: dict(partition)}  # type: ignore[assignment]
    return _query(table, hash_key, *arguments, **named)


def _all_items(table: Table) -> list[Any]:
    """Unsorted: moto sorts the result of a query again."""
    if not table.range_key_attr:
        return list(table.items.values())
    return [item for partition in list(table.items.values()) for item in list(partition.values())]


def _receivable(queue: Queue) -> list[Message]:
    now = time.time() * 1000
    return [message for message in queue._messages if message.visible_at < now and message.delayed_until <= now]  # noqa: SLF001


def _delayed(queue: Queue) -> int:
    now = time.time() * 1000
    return sum(message.delayed_until > now for message in list(queue._messages))  # noqa: SLF001


def _not_visible(queue: Queue) -> int:
    now = time.time() * 1000
    return sum(message.visible_at >= now for message in list(queue._messages))  # noqa: SLF001


def _delete_message(queue: Queue, receipt_handle: str) -> None:
    """Removes the message in place. moto replaces the list by a copy and loses messages that are sent meanwhile."""
    for message in list(queue._messages):  # noqa: SLF001
        if message.had_receipt_handle(receipt_handle):
            queue.pending_messages.discard(message)
            queue.deleted_messages.update(message.all_receipt_handles)  # type: ignore[arg-type]
            queue._messages.remove(message)  # noqa: SLF001
            return
    if receipt_handle not in queue.deleted_messages:
        raise ReceiptHandleIsInvalid


def _is_retained(backend: SQSBackend, queue_name: str, message: Message) -> bool:
    retained: Any = backend.get_queue(queue_name).__dict__["message_retention_period"]
    return int(message.sent_timestamp or 0) / 1000 + int(retained) > time.time()
