"""The table of generations in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from imagegen.domain.failures import Failure
from imagegen.domain.generations import (
    CallAnswer,
    Generation,
    IdTakenError,
    LostClaimError,
    Status,
    StoredImage,
    Tombstone,
    UpstreamAttempt,
    UpstreamCall,
    with_extra_calls,
)
from imagegen.domain.money import Spending
from tests.fakes.failing import Failing, When

__all__ = ["FakeGenerationStore", "When"]
_ACTIVE = (Status.QUEUED, Status.IN_PROGRESS)


def _place(record: Generation) -> tuple[float, str]:
    return record.created_at, record.id


class FakeGenerationStore(Failing):
    """Passes the contract of `ports.GenerationStore`. `asked` are the names of all calls, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._records: dict[str, Generation | None] = {}  # None is a tombstone
        self._answers: dict[tuple[str, int], CallAnswer] = {}
        self._tombstones: dict[str, Tombstone] = {}

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

    def claim(
        self, generation_id: str, owner: str, *, now: float, lease_until: float, poll: int = 0
    ) -> Generation | None:
        with self._noted("claim"):
            record = self._records.get(generation_id)
            if record is None or record.polls > poll:
                return None
            if record.status is Status.QUEUED:
                return self._put(record, status=Status.IN_PROGRESS, owner=owner, lease_until=lease_until)
            has_task = any(attempt.task_id for call in record.calls for attempt in call.attempts)
            is_worked_on = record.status is Status.IN_PROGRESS or (record.status is Status.CANCELLED and has_task)
            if not is_worked_on or not (record.lease_until < now or record.owner == owner):
                return None
            return self._put(record, owner=owner, lease_until=lease_until)

    def renew(self, generation_id: str, owner: str, lease_until: float) -> None:
        with self._noted("renew"):
            record = self._live(generation_id)
            if record.owner != owner or record.status not in (Status.IN_PROGRESS, Status.CANCELLED):
                raise LostClaimError
            self._put(record, lease_until=lease_until)

    def release(self, generation_id: str, owner: str) -> None:
        with self._noted("release"):
            record = self._records.get(generation_id)
            if record is not None and record.owner == owner:
                self._put(record, lease_until=0.0)

    def await_poll(self, generation_id: str, owner: str, poll: int, progress: int | None = None) -> None:
        with self._noted("await_poll"):
            record = self._live(generation_id)
            if record.owner != owner or record.status not in (Status.IN_PROGRESS, Status.CANCELLED):
                raise LostClaimError
            progress = record.progress if progress is None else progress
            self._put(record, lease_until=0.0, polls=poll, progress=progress)

    def save_attempt(self, generation_id: str, owner: str, call: int, number: int, attempt: UpstreamAttempt) -> None:
        with self._noted("save_attempt"):
            record = self._live(generation_id)
            if record.owner != owner or record.status is not Status.IN_PROGRESS:
                raise LostClaimError
            before = _call(record, call).attempts[: number - 1]
            self._put_call(record, call, attempts=(*before, attempt))

    def save_task(self, generation_id: str, call: int, number: int, task_id: str) -> None:
        with self._noted("save_task"):
            self._put_attempt(generation_id, call, number, task_id=task_id)

    def save_failure(
        self, generation_id: str, call: int, number: int, failure: Failure, *, of_task: bool = False
    ) -> None:
        with self._noted("save_failure"):
            attempt = _call(self._live(generation_id), call).attempts[number - 1]
            if of_task or not attempt.task_id:
                self._put_attempt(generation_id, call, number, failure=attempt.failure or failure)

    def save_answer(self, generation_id: str, call: int, answer: CallAnswer) -> CallAnswer:
        with self._noted("save_answer"):
            record = self._live(generation_id)
            noted = self._answers.setdefault((generation_id, call), answer)
            if _call(record, call).answer is None:
                self._put_call(record, call, answer=noted)
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

    def mark_published(self, generation: Generation) -> None:
        with self._noted("mark_published"):
            record = self._records.get(generation.id)
            if record is not None and record.ended and record.completed_at == generation.completed_at:
                self._put(record, published=True)

    def cancel(self, generation_id: str, *, now: float) -> Generation | None:
        with self._noted("cancel"):
            record = self._records.get(generation_id)
            if record is None or record.status not in (*_ACTIVE, Status.CANCELLED):
                return None
            return self._put(record, status=Status.CANCELLED, completed_at=record.completed_at or now)

    def cancel_unbegun(self, generation: Generation, failure: Failure, *, now: float) -> Generation | None:
        with self._noted("cancel_unbegun"):
            record = self._records.get(generation.id)
            if record is None or record.status not in _ACTIVE:
                return None
            is_idle = record.status is Status.QUEUED or record.lease_until < now
            if not is_idle or [call.sent for call in record.calls] != [call.sent for call in generation.calls]:
                return None
            return self._put(record, status=Status.CANCELLED, completed_at=now, failure=failure)

    def requeue(self, generation: Generation, *, now: float) -> Generation | None:
        with self._noted("requeue"):
            record = self._records.get(generation.id)
            if record is None or record.status is not Status.FAILED or not record.published:
                return None
            if record.completed_at != generation.completed_at or record.spending != generation.spending:
                return None
            return self._put(
                record,
                status=Status.QUEUED,
                lease_until=0.0,
                failure=None,
                completed_at=None,
                published=False,
                owner=None,
                retries=generation.retries + 1,
                reserved_at=now,
                returned=0,
                spending=record.spending and record.spending.reserved_again(),
                polls=0,
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

    def note_spending(self, generation: Generation, spending: Spending) -> bool:
        with self._noted("note_spending"):
            record = self._records.get(generation.id)
            if record is None or record.spending is None or record.spending != generation.spending:
                return False
            self._put(record, spending=spending)
            return True

    def bury(self, generation: Generation, *, now: float) -> Tombstone:
        with self._noted("bury"):
            if generation.id not in self._tombstones:
                record = self._live(generation.id)
                if record.completed_at is None or record.completed_at != generation.completed_at:
                    raise LostClaimError
            self._records[generation.id] = None
            self._tombstones[generation.id] = Tombstone(
                generation.id, generation.caller, generation.image_ids, now, generation.own_input_ids
            )
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

    def _put_call(self, record: Generation, number: int, **changes: object) -> None:
        changed: UpstreamCall = msgspec.structs.replace(_call(record, number), **changes)
        others = {call.number: call for call in record.calls if call.number != number}
        known = {call.number: call for call in with_extra_calls([changed])} | others
        self._put(record, calls=tuple(known[each] for each in sorted(known)))

    def _put_attempt(self, generation_id: str, number: int, attempt: int, **changes: object) -> None:
        record = self._live(generation_id)
        attempts = list(_call(record, number).attempts)
        attempts[attempt - 1] = msgspec.structs.replace(attempts[attempt - 1], **changes)
        self._put_call(record, number, attempts=tuple(attempts))

    def _put(self, record: Generation, **changes: object) -> Generation:
        changed = msgspec.structs.replace(record, **changes)
        self._records[record.id] = changed
        return changed


def _call(record: Generation, number: int) -> UpstreamCall:
    return next(call for call in record.calls if call.number == number)
