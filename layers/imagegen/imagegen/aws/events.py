"""Publishes the ends of generations and batches, and rejected requests, on an EventBridge bus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imagegen.domain.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_events import EventBridgeClient

    from imagegen.domain.batches import Batch
    from imagegen.domain.generations import Generation, Rejection

SOURCE = "imagegen"

Described = tuple[str, dict[str, Any]]  # detail-type and detail


class _Bus:
    def __init__(self, client: Callable[[], EventBridgeClient], bus: str) -> None:
        self._client = client
        self._bus = bus

    def _put(self, detail_type: str, detail: dict[str, Any]) -> None:
        entry: Any = {
            "EventBusName": self._bus,
            "Source": SOURCE,
            "DetailType": detail_type,
            "Detail": json.dumps(detail),
        }
        try:
            answer = self._client().put_events(Entries=[entry])
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise _unavailable() from error
        if answer["FailedEntryCount"]:
            raise _unavailable()


class EventBridgeBus(_Bus):
    """Implements `ports.EventBus`. `ended` and `rejected` make the events."""

    def __init__(
        self,
        client: Callable[[], EventBridgeClient],
        bus: str,
        *,
        ended: Callable[[Generation], Described],
        rejected: Callable[[Rejection], Described],
    ) -> None:
        super().__init__(client, bus)
        self._ended = ended
        self._rejected = rejected

    def generation_ended(self, generation: Generation) -> None:
        self._put(*self._ended(generation))

    def request_rejected(self, rejection: Rejection) -> None:
        self._put(*self._rejected(rejection))


class EventBridgeBatchBus(_Bus):
    """Implements `ports.BatchBus`. `ended` makes the event."""

    def __init__(
        self, client: Callable[[], EventBridgeClient], bus: str, *, ended: Callable[[Batch], Described]
    ) -> None:
        super().__init__(client, bus)
        self._ended = ended

    def batch_ended(self, batch: Batch) -> None:
        self._put(*self._ended(batch))


def _unavailable() -> RecordsUnavailableError:
    return RecordsUnavailableError("The event bus of this service is temporarily unavailable.")
