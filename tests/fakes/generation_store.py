"""The table of generations in memory."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec

from imagegen.errors import RecordsUnavailableError
from imagegen.generations import (
    Call,
    Failure,
    Generation,
    LostClaimError,
    MarkerTakenError,
    Status,
    StoredImage,
    Tombstone,
)

When = Literal["before", "after"]
_ACTIVE = (Status.QUEUED, Status.IN_PROGRESS)


@dataclass
class KeyMarker:
    generation_id: str
    fingerprint: str
    created_at: float


@dataclass
class RetryMarker:
    generation_id: str
    created_at: float
    seen: int
    released: bool = False


def _place(record: Generation) -> tuple[float, str]:
    return record.created_at, record.id


class FakeGenerationStore:
    """Passes the contract of `ports.GenerationStore`.

    `asked` are the names of all calls, in order. `failures` are taken in turn, one a call: "before" raises
    RecordsUnavailableError and changes nothing, "after" raises it when all is done, None lets the call through.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: deque[When | None] = deque()
        self._records: dict[str, Generation | None] = {}  # None is a tombstone
        self._released: set[str] = set()
        self._tombstones: dict[str, Tombstone] = {}
        self._keys: dict[tuple[str, str], KeyMarker] = {}
        self._retries: dict[tuple[str, str], dict[str, RetryMarker]] = {}
        self._lock = threading.Lock()

    def create(self, generation: Generation, fingerprint: str, *, replacing: str | None = None) -> None:
        with self._asked("create"):
            key = generation.markers.idempotency_key
            holder = None if key is None else self._keys.get((generation.caller, key))
            if holder is not None and holder.generation_id not in (replacing, generation.id):
                raise MarkerTakenError
            if generation.id in self._records:
                raise MarkerTakenError
            self._records[generation.id] = msgspec.structs.replace(
                generation, stored={}, failure=None, completed_at=None
            )
            if key is not None:
                self._keys[generation.caller, key] = KeyMarker(generation.id, fingerprint, generation.created_at)
            # The newest first; a released one lets the retry that comes back to it begin anew.
            if generation.markers.retry is not None:
                markers = self._retries.setdefault((generation.caller, fingerprint), {})
                markers[generation.id] = RetryMarker(generation.id, generation.created_at, generation.markers.retry)

    def get(self, generation_id: str) -> Generation | None:
        with self._asked("get"):
            return self._records.get(generation_id)

    def key_holder(self, caller: str, idempotency_key: str) -> KeyMarker | None:
        with self._asked("key_holder"):
            return self._keys.get((caller, idempotency_key))

    def attach_retry(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
        with self._asked("attach_retry"):
            markers = self._retries.get((caller, fingerprint), {}).values()
            for marker in sorted(markers, key=lambda marker: marker.created_at, reverse=True):
                if marker.created_at > since and marker.seen < retry:
                    marker.seen = retry
                    return None if marker.released else marker.generation_id
            return None

    def release(self, generation: Generation, fingerprint: str) -> None:
        with self._asked("release"):
            key = generation.markers.idempotency_key
            if key is not None:
                holder = self._keys.get((generation.caller, key))
                if holder is not None and holder.generation_id == generation.id:
                    del self._keys[generation.caller, key]
            marker = self._retries.get((generation.caller, fingerprint), {}).get(generation.id)
            if marker is not None:
                marker.released = True

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        with self._asked("newest"):
            own = [record for record in self._records.values() if record is not None and record.caller == caller]
            if after is not None:
                last = self._records.get(after)
                if last is None or last.caller != caller:
                    return []
                own = [record for record in own if _place(record) < _place(last)]
            found = [record for record in own if status is None or record.status is status]
            return sorted(found, key=_place, reverse=True)[:limit]

    def claim(self, generation_id: str, owner: str, *, now: float, lease_until: float) -> Generation | None:
        with self._asked("claim"):
            record = self._records.get(generation_id)
            if record is None:
                return None
            taken_over = record.status is Status.IN_PROGRESS and (record.lease_until < now or record.owner == owner)
            if record.status is not Status.QUEUED and not taken_over:
                return None
            return self._put(record, status=Status.IN_PROGRESS, owner=owner, lease_until=lease_until)

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        with self._asked("renew"):
            self._put(self._ours(generation_id, owner), lease_until=lease_until)

    def save_call(self, generation_id: str, owner: str, index: int, call: Call) -> None:
        with self._asked("save_call"):
            record = self._ours(generation_id, owner)
            self._put(record, calls=(*record.calls[:index], call, *record.calls[index + 1 :]))

    def save_image(self, generation_id: str, owner: str, image_id: str, image: StoredImage) -> None:
        with self._asked("save_image"):
            record = self._ours(generation_id, owner)
            self._put(record, stored={**record.stored, image_id: image})

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        with self._asked("end"):
            record = self._records.get(generation_id)
            if record is None or record.owner != owner or record.status not in (Status.IN_PROGRESS, status):
                raise LostClaimError
            return self._put(record, status=status, completed_at=now, failure=failure or record.failure)

    def mark_announced(self, generation: Generation) -> None:
        with self._asked("mark_announced"):
            record = self._records.get(generation.id)
            if record is not None and record.completed_at == generation.completed_at:
                self._put(record, announced=True)

    def fail_abandoned(self, generation_id: str, failure: Failure, *, now: float) -> bool:
        with self._asked("fail_abandoned"):
            record = self._records.get(generation_id)
            if record is None or record.status not in _ACTIVE or not record.lease_until < now:
                return False
            self._put(record, status=Status.FAILED, failure=failure, completed_at=now, owner=None)
            return True

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        with self._asked("cancel"):
            record = self._records.get(generation_id)
            if record is None or record.status not in _ACTIVE:
                return None
            return self._put(record, status=Status.CANCELLED, completed_at=now, owner=None)

    def requeue(self, generation_id: str) -> Generation | None:
        with self._asked("requeue"):
            record = self._records.get(generation_id)
            if record is None or record.status is not Status.FAILED:
                return None
            return self._put(
                record,
                status=Status.QUEUED,
                lease_until=0.0,
                calls=tuple(call if call.answer else Call(call.image_ids) for call in record.calls),
                failure=None,
                completed_at=None,
                announced=False,
                owner=None,
            )

    def void(self, generation_id: str, *, now: float) -> bool:
        with self._asked("void"):
            return self._records.setdefault(generation_id, None) is None

    def release_reservation(self, generation_id: str) -> bool:
        with self._asked("release_reservation"):
            if generation_id not in self._records or generation_id in self._released:
                return False
            self._released.add(generation_id)
            return True

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        with self._asked("bury"):
            self._records[generation.id] = None
            self._tombstones[generation.id] = Tombstone(generation.id, generation.caller, generation.image_ids)
            return self._tombstones[generation.id]

    def tombstone(self, generation_id: str) -> Tombstone | None:
        with self._asked("tombstone"):
            return self._tombstones.get(generation_id)

    def all_deleted(self, tombstone: Tombstone) -> None:
        with self._asked("all_deleted"):
            self._tombstones.pop(tombstone.id, None)

    @contextmanager
    def _asked(self, call: str) -> Iterator[None]:
        """One call at a time, with the failure that is due."""
        with self._lock:
            self.asked.append(call)
            failure = self.failures.popleft() if self.failures else None
            if failure == "before":
                raise RecordsUnavailableError("The records could not be reached.")
            try:
                yield
            finally:
                if failure == "after":
                    raise RecordsUnavailableError("The answer of the records was lost.")

    def _ours(self, generation_id: str, owner: str) -> Generation:
        record = self._records.get(generation_id)
        if record is None or record.owner != owner or record.status is not Status.IN_PROGRESS:
            raise LostClaimError
        return record

    def _put(self, record: Generation, **changes: object) -> Generation:
        changed = msgspec.structs.replace(record, **changes)
        self._records[record.id] = changed
        return changed
