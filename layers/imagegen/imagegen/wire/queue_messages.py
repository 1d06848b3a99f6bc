"""Reads the messages that this service sends to its own queues."""

from typing import Annotated

import msgspec

from imagegen.ports import MESSAGE_VERSION


class QueueMessage(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(le=MESSAGE_VERSION)]


class _GenerationMessage(QueueMessage):
    generation_id: str
    poll: Annotated[int, msgspec.Meta(ge=0)]


class _Ids(msgspec.Struct, omit_defaults=True):
    generation_id: str | None = None
    batch_id: str | None = None


def read_generation_message(body: str) -> tuple[str, int]:
    """Returns the id of the generation and the round of polling. Raises msgspec.DecodeError."""
    message = msgspec.json.decode(body, type=_GenerationMessage)
    return message.generation_id, message.poll


def ids_in_message(body: str) -> dict[str, str]:
    """Returns the ids that identify a message in a log. Empty if this service did not send it. Never raises."""
    try:
        ids = msgspec.json.decode(body.encode("utf-8", "replace"), type=_Ids)
    except (msgspec.DecodeError, RecursionError):
        return {}
    found: dict[str, str] = msgspec.to_builtins(ids)
    return found
