"""Batches, their lines and their queue, and files, in memory."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Checkpoint, Counts, EndedLine
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import UnknownFileError
from imagegen.domain.files import FILES, File, Purpose, StoredObject
from imagegen.domain.generations import LostClaimError
from imagegen.domain.images import SignedUrl
from imagegen.domain.inputs import SignedUpload
from tests.fakes.failing import Failing


class FakeBatchStore(Failing):
    """Passes the contract of `ports.BatchStore`."""

    def __init__(self) -> None:
        super().__init__()
        self._records: dict[str, Batch] = {}

    def create(self, batch: Batch) -> Batch:
        with self._asked():
            return self._records.setdefault(batch.id, batch)

    def get(self, batch_id: str) -> Batch | None:
        with self._asked():
            return self._records.get(batch_id)

    def newest(self, caller: str, limit: int, *, after: str | None = None) -> Sequence[Batch]:
        with self._asked():
            own = [batch for batch in self._records.values() if batch.caller == caller]
            if after is not None:
                last = self._records.get(after)
                if last is None or last.caller != caller:
                    return []
                own = [batch for batch in own if _listed_at(batch) < _listed_at(last)]
            return sorted(own, key=_listed_at, reverse=True)[:limit]

    def claim(self, batch_id: str, owner: str, *, now: float, lease_until: float) -> Batch | None:
        with self._asked():
            batch = self._records.get(batch_id)
            if batch is None or batch.ended or not (batch.lease_until < now or batch.owner == owner):
                return None
            return self._put(batch, owner=owner, lease_until=lease_until)

    def renew(self, batch_id: str, owner: str, lease_until: float) -> None:
        with self._asked():
            self._put(self._owned(batch_id, owner), lease_until=lease_until)

    def release(self, batch_id: str, owner: str) -> None:
        with self._asked():
            batch = self._records.get(batch_id)
            if batch is not None and batch.owner == owner:
                self._put(batch, owner=None, lease_until=0.0)

    def begin_lines(self, batch_id: str, owner: str, lines: int, *, now: float) -> Batch:
        with self._asked():
            batch = self._owned(batch_id, owner)
            if batch.status is BatchStatus.CANCELLING:
                return batch
            if batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                raise LostClaimError
            return self._put(batch, status=BatchStatus.IN_PROGRESS, validated=lines, begun_at=batch.begun_at or now)

    def fail(self, batch_id: str, owner: str, problems: Sequence[BatchProblem], *, now: float) -> Batch:
        with self._asked():
            batch = self._records.get(batch_id)
            if batch is None or batch.owner != owner:
                raise LostClaimError
            if batch.status is BatchStatus.CANCELLING:
                return batch
            if batch.status not in (BatchStatus.VALIDATING, BatchStatus.FAILED):
                raise LostClaimError
            return self._put(batch, status=BatchStatus.FAILED, problems=tuple(problems), ended_at=now)

    def save_wake(self, batch_id: str, owner: str, wake_at: float) -> None:
        with self._asked():
            self._put(self._owned(batch_id, owner), wake_at=wake_at)

    def begin_expiring(self, batch_id: str, owner: str, *, now: float) -> Batch:
        with self._asked():
            batch = self._owned(batch_id, owner)
            return self._put(batch, expiring_at=batch.expiring_at or now)

    def save_checkpoint(self, batch_id: str, owner: str, checkpoint: Checkpoint) -> Batch:
        with self._asked():
            return self._put(self._owned(batch_id, owner), checkpoint=checkpoint)

    def save_total(self, batch_id: str, owner: str, total: int) -> Batch:
        with self._asked():
            batch = self._owned(batch_id, owner)
            return self._put(batch, total=total if batch.total is None else batch.total)

    def begin_cancelling(self, batch_id: str, *, now: float) -> Batch | None:
        with self._asked():
            batch = self._records.get(batch_id)
            stoppable = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)
            if batch is None or batch.status not in stoppable:
                return None
            return self._put(batch, status=BatchStatus.CANCELLING, cancelling_at=batch.cancelling_at or now)

    def begin_finalizing(self, batch_id: str, owner: str, *, now: float) -> Batch:
        with self._asked():
            batch = self._owned(batch_id, owner)
            return self._put(batch, status=BatchStatus.FINALIZING, finalizing_at=batch.finalizing_at or now)

    def end(self, batch_id: str, owner: str, counts: Counts, *, now: float) -> Batch:
        with self._asked():
            batch = self._records.get(batch_id)
            if batch is None or batch.owner != owner or batch.status not in (BatchStatus.FINALIZING, batch.end_status):
                raise LostClaimError
            return self._put(batch, status=batch.end_status, ended_at=now, counts=counts)

    def mark_published(self, batch_id: str) -> None:
        with self._asked():
            if batch := self._records.get(batch_id):
                self._put(batch, published=True)

    def may_change(self, batch_id: str) -> bool:
        batch = self._records.get(batch_id)
        return batch is not None and batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)

    def _owned(self, batch_id: str, owner: str) -> Batch:
        batch = self._records.get(batch_id)
        if batch is None or batch.owner != owner or batch.ended:
            raise LostClaimError
        return batch

    def _put(self, batch: Batch, **changes: object) -> Batch:
        changed = msgspec.structs.replace(batch, **changes)
        self._records[batch.id] = changed
        return changed


class FakeBatchLines(Failing):
    """Passes the contract of `ports.BatchLines`. `batches` has the records that the lines belong to."""

    def __init__(self, batches: FakeBatchStore) -> None:
        super().__init__()
        self._batches = batches
        self._pending: dict[tuple[str, int], str] = {}
        self._ended: dict[tuple[str, int], EndedLine] = {}

    def begin(self, batch_id: str, line: int, custom_id: str) -> bool:
        with self._asked():
            if (batch_id, line) in self._ended:
                return False
            self._pending[batch_id, line] = custom_id
            return True

    def end(self, batch_id: str, line: int, ended: EndedLine) -> None:
        with self._asked():
            if (batch_id, line) not in self._ended or self._batches.may_change(batch_id):
                self._ended[batch_id, line] = ended
            self._pending.pop((batch_id, line), None)

    def refuse(self, batch_id: str, line: int, ended: EndedLine) -> None:
        with self._asked():
            self._ended.setdefault((batch_id, line), ended)
            self._pending.pop((batch_id, line), None)

    def pending(self, batch_id: str) -> Iterator[tuple[int, str]]:
        with self._asked():
            found = sorted((line, custom_id) for (each, line), custom_id in self._pending.items() if each == batch_id)
        yield from found

    def any_pending(self, batch_id: str) -> bool:
        with self._asked():
            return any(each == batch_id for each, _ in self._pending)

    def ended(self, batch_id: str) -> Iterator[EndedLine]:
        with self._asked():
            found = sorted(line for each, line in self._ended if each == batch_id)
        for line in found:
            yield self._ended[batch_id, line]

    def counts(self, batch_id: str) -> Counts:
        ended = [line.completed for line in self.ended(batch_id)]
        return Counts(sum(ended), len(ended) - sum(ended))


class FakeBatchQueue(Failing):
    """Passes the contract of `ports.BatchQueue`. `sent` are batch ids, in order, and `delays` those of each.

    `callers` are the callers whose messages were sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.delays: list[float] = []
        self.callers: set[str] = set()

    def send(self, batch_id: str, caller: str, *, delay: float = 0) -> None:
        with self._asked():
            self.callers.add(caller)
            self.sent.append(batch_id)
            self.delays.append(delay)

    def extend_visibility(self, receipt: str, seconds: float) -> None:
        pass


class FakeBatchBus(Failing):
    """Passes the contract of `ports.BatchBus`. `ended` are the published ends, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Batch] = []

    def batch_ended(self, batch: Batch) -> None:
        with self._asked():
            self.ended.append(batch)


class FakeFileContents(Failing):
    """Passes the contract of `ports.FileContents`.

    `given` are the input files by key. `saved` are all files that were written, in order. `there` are those of them
    that exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, bytes] = {}
        self.saved: list[tuple[str, bytes]] = []
        self.there: dict[str, bytes] = {}

    def find(self, key: str, version: str, deadline: Deadline) -> StoredObject | None:
        with self._asked():
            content = (self.given | self.there).get(key)
            return None if content is None else StoredObject(key, version, len(content))

    def read(self, file: StoredObject, offset: int, length: int, deadline: Deadline) -> bytes:
        with self._asked():
            content = (self.given | self.there).get(file.key)
            if content is None:
                raise UnknownFileError("The content of this file was deleted, or this service may not read it.")
            return content[offset : offset + length]

    def save(self, key: str, length: int, blocks: Iterator[bytes], deadline: Deadline) -> StoredObject:
        with self._asked():
            content = b"".join(blocks)
            assert len(content) == length
            self.saved.append((key, content))
            self.there[key] = content
            return StoredObject(key, "" if key.startswith(FILES) else "v", length)

    def delete(self, file: StoredObject, deadline: Deadline) -> None:
        with self._asked():
            self.there.pop(file.key, None)
            self.given.pop(file.key, None)

    def signed_url(self, file: StoredObject, filename: str, method: Literal["GET", "HEAD"]) -> SignedUrl:
        return SignedUrl(f"https://bucket.example/{file.key}", 0)

    def signed_upload(self, file: StoredObject) -> SignedUpload:
        return SignedUpload(f"https://bucket.example/{file.key}", {"If-None-Match": "*"}, 0)


def _listed_at(each: Batch | File) -> tuple[float, str]:
    """The place in the list: the index of a table orders items of one moment by their keys."""
    return each.created_at, each.id


class FakeFileStore(Failing):
    """Passes the contract of `ports.FileStore`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, File] = {}

    def create(self, file: File) -> File:
        with self._asked():
            return self.records.setdefault(file.id, file)

    def get(self, file_id: str) -> File | None:
        with self._asked():
            return self.records.get(file_id)

    def newest(
        self,
        caller: str,
        limit: int,
        *,
        after: str | None = None,
        purpose: Purpose | None = None,
        oldest_first: bool = False,
    ) -> Sequence[File]:
        with self._asked():
            own = [file for file in self.records.values() if file.caller == caller and purpose in (None, file.purpose)]
            own.sort(key=_listed_at, reverse=not oldest_first)
            last = self.records.get(after) if after else None
            if after and (last is None or last.caller != caller):
                return []
            if last:
                own = [file for file in own if (_listed_at(file) > _listed_at(last)) is oldest_first and file != last]
            return own[:limit]

    def mark_uploaded(self, file_id: str) -> None:
        with self._asked():
            if file := self.records.get(file_id):
                self.records[file_id] = msgspec.structs.replace(file, is_uploaded=True)

    def delete(self, file_id: str) -> None:
        with self._asked():
            self.records.pop(file_id, None)
