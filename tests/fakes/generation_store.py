"""The table of generations in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from imagegen.domain.generations import (
    Call,
    CallAnswer,
    Failure,
    Generation,
    IdTakenError,
    LostClaimError,
    Status,
    StoredImage,
    Tombstone,
    with_extra_calls,
)
from tests.fakes.failing import Failing, When

__all__ = ["FakeGenerationStore", "When"]
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
    seen: set[int]


def _place(record: Generation) -> tuple[float, str]:
    return record.created_at, record.id


class FakeGenerationStore(Failing):
    """Passes the contract of `ports.GenerationStore`. `asked` are the names of all calls, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._records: dict[str, Generation | None] = {}  # None is a tombstone
        self._refused: dict[tuple[str, int], set[int]] = {}
        self._answers: dict[tuple[str, int], CallAnswer] = {}
        self._tombstones: dict[str, Tombstone] = {}
        self._keys: dict[tuple[str, str], KeyMarker] = {}
        self._retries: dict[tuple[str, str], list[RetryMarker]] = {}

    def hold_key(
        self,
        caller: str,
        idempotency_key: str,
        generation_id: str,
        fingerprint: str,
        *,
        now: float,
        expired_before: float,
        replacing: str | None = None,
    ) -> KeyMarker:
        with self._noted("hold_key"):
            holder = self._keys.get((caller, idempotency_key))
            if holder is None or holder.created_at < expired_before or holder.generation_id == replacing:
                holder = KeyMarker(generation_id, fingerprint, now)
                self._keys[caller, idempotency_key] = holder
            return holder

    def mark_attempt(self, caller: str, fingerprint: str, generation_id: str, attempt: int, *, now: float) -> None:
        with self._noted("mark_attempt"):
            markers = self._retries.setdefault((caller, fingerprint), [])
            markers.append(RetryMarker(generation_id, now, {attempt}))

    def attach_attempt(self, caller: str, fingerprint: str, attempt: int, *, since: float) -> str | None:
        with self._noted("attach_attempt"):
            markers = self._retries.get((caller, fingerprint), [])
            for marker in sorted(markers, key=lambda marker: marker.created_at, reverse=True):
                if marker.created_at > since and attempt not in marker.seen:
                    marker.seen.add(attempt)
                    return marker.generation_id
            return None

    def create(self, generation: Generation) -> None:
        with self._noted("create"):
            if generation.id in self._records:
                found = self._records[generation.id]
                if found is not None and found.image_ids == generation.image_ids:
                    return  # the same write, repeated
                raise IdTakenError(void=found is None, deleted=generation.id in self._tombstones)
            self._records[generation.id] = msgspec.structs.replace(
                generation, stored={}, failure=None, completed_at=None
            )

    def get(self, generation_id: str) -> Generation | None:
        with self._noted("get"):
            return self._records.get(generation_id)

    def newest(
        self, caller: str, limit: int, *, after: str | None = None, status: Status | None = None
    ) -> Sequence[Generation]:
        with self._noted("newest"):
            own = [record for record in self._records.values() if record is not None and record.caller == caller]
            if after is not None:
                last = self._records.get(after)
                if last is None or last.caller != caller:
                    return []
                own = [record for record in own if _place(record) < _place(last)]
            found = [record for record in own if status is None or record.status is status]
            return sorted(found, key=_place, reverse=True)[:limit]

    def claim(self, generation_id: str, owner: str, *, now: float, lease_until: float) -> Generation | None:
        with self._noted("claim"):
            record = self._records.get(generation_id)
            if record is None:
                return None
            taken_over = record.status is Status.IN_PROGRESS and (record.lease_until < now or record.owner == owner)
            if record.status is not Status.QUEUED and not taken_over:
                return None
            return self._put(record, status=Status.IN_PROGRESS, owner=owner, lease_until=lease_until)

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        with self._noted("renew"):
            record = self._live(generation_id)
            if record.owner != owner or record.status not in (Status.IN_PROGRESS, Status.CANCELLED):
                raise LostClaimError
            self._put(record, lease_until=lease_until)

    def let_go(self, generation_id: str, owner: str) -> None:
        with self._noted("let_go"):
            record = self._records.get(generation_id)
            if record is not None and record.owner == owner:
                self._put(record, lease_until=0.0)

    def save_sending(self, generation_id: str, owner: str, index: int, sent: int) -> None:
        with self._noted("save_sending"):
            record = self._live(generation_id)
            if record.owner != owner or record.status is not Status.IN_PROGRESS:
                raise LostClaimError
            self._put_call(record, index, sent=sent)

    def save_refusal(self, generation_id: str, index: int, sending: int) -> None:
        with self._noted("save_refusal"):
            record = self._live(generation_id)
            refused = self._refused.setdefault((generation_id, index), set())
            refused.add(sending)
            self._put_call(record, index, refused=len(refused))

    def save_answer(self, generation_id: str, index: int, answer: CallAnswer) -> CallAnswer:
        with self._noted("save_answer"):
            record = self._live(generation_id)
            noted = self._answers.setdefault((generation_id, index), answer)
            if _call(record, index).answer is None:
                self._put_call(record, index, answer=noted)
            return noted

    def save_image(self, generation_id: str, image_id: str, image: StoredImage) -> None:
        with self._noted("save_image"):
            record = self._live(generation_id)
            self._put(record, stored={**record.stored, image_id: image})

    def end(
        self, generation_id: str, owner: str, status: Status, *, now: float, failure: Failure | None = None
    ) -> Generation:
        with self._noted("end"):
            record = self._records.get(generation_id)
            if record is None or record.owner != owner or record.status not in (Status.IN_PROGRESS, status):
                raise LostClaimError
            return self._put(record, status=status, completed_at=now, failure=failure or record.failure)

    def mark_announced(self, generation: Generation) -> None:
        with self._noted("mark_announced"):
            record = self._records.get(generation.id)
            if record is not None and record.ended and record.completed_at == generation.completed_at:
                self._put(record, announced=True)

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        with self._noted("cancel"):
            record = self._records.get(generation_id)
            if record is None or record.status not in (*_ACTIVE, Status.CANCELLED):
                return None
            return self._put(record, status=Status.CANCELLED, completed_at=record.completed_at or now)

    def requeue(self, generation: Generation, *, now: float) -> Generation | None:
        with self._noted("requeue"):
            record = self._records.get(generation.id)
            if record is None or record.status is not Status.FAILED or not record.announced:
                return None
            if record.completed_at != generation.completed_at:
                return None
            return self._put(
                record,
                status=Status.QUEUED,
                lease_until=0.0,
                failure=None,
                completed_at=None,
                announced=False,
                owner=None,
                retries=generation.retries + 1,
                reserved_at=now,
                returned=0,
            )

    def void(self, generation_id: str, *, now: float) -> Generation | None:
        with self._noted("void"):
            if generation_id in self._tombstones:
                raise IdTakenError(void=True, deleted=True)
            return self._records.setdefault(generation_id, None)

    def note_returned(self, generation: Generation, images: int) -> bool:
        with self._noted("note_returned"):
            record = self._records.get(generation.id)
            if record is None or record.returned != generation.returned:
                return False
            self._put(record, returned=generation.returned + images)
            return True

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        with self._noted("bury"):
            if generation.id not in self._tombstones:
                record = self._live(generation.id)
                if record.completed_at is None or record.completed_at != generation.completed_at:
                    raise LostClaimError
            self._records[generation.id] = None
            self._tombstones[generation.id] = Tombstone(generation.id, generation.caller, generation.image_ids, now)
            return self._tombstones[generation.id]

    def tombstone(self, generation_id: str) -> Tombstone | None:
        with self._noted("tombstone"):
            return self._tombstones.get(generation_id)

    @contextmanager
    def _noted(self, call: str) -> Iterator[None]:
        with self._lock:
            self.asked.append(call)
            with self._asked():
                yield

    def _live(self, generation_id: str) -> Generation:
        record = self._records.get(generation_id)
        if record is None:
            raise LostClaimError
        return record

    def _put_call(self, record: Generation, index: int, **changes: object) -> None:
        changed: Call = msgspec.structs.replace(_call(record, index), **changes)
        others = {call.number: call for call in record.calls if call.number != index}
        known = {call.number: call for call in with_extra_calls([changed])} | others
        self._put(record, calls=tuple(known[number] for number in sorted(known)))

    def _put(self, record: Generation, **changes: object) -> Generation:
        changed = msgspec.structs.replace(record, **changes)
        self._records[record.id] = changed
        return changed


def _call(record: Generation, number: int) -> Call:
    return next(call for call in record.calls if call.number == number)
