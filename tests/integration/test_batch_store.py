"""Batches and their lines: the fakes and the real stores, on each emulator, pass one contract."""

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from botocore.credentials import ReadOnlyCredentials
from msgspec.structs import replace

from imagegen.aws.bucket import S3Bucket
from imagegen.aws.inbox import S3Inbox, S3Outbox
from imagegen.domain.batches import Batch, BatchStatus, Checkpoint, Counts, EndedLine, InboxFile, batch_id_of
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageStorageError, RecordsUnavailableError
from imagegen.domain.generations import LostClaimError
from imagegen.outbound.pool import HttpPool
from imagegen.ports import BatchLines, BatchStore
from tests.fakes.batches import FakeBatchLines, FakeBatchStore
from tests.support.stores import ACCESS_KEY, SECRET, Connect, Table, closed_url

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_760_000_000.5
FAILED = EndedLine(completed=False, text="{}")
REFUSED = EndedLine(completed=False, text='{"line": 1}')
LINE = EndedLine(completed=True, text='{"custom_id": "ü"}')


@pytest.fixture
def batches(judged: Table | None) -> BatchStore:
    return judged.batches if judged else FakeBatchStore()


@pytest.fixture
def lines(judged: Table | None, batches: BatchStore) -> BatchLines:
    return FakeBatchLines(batches) if isinstance(batches, FakeBatchStore) else judged.lines  # type: ignore[union-attr]


def new(version: str = "v", *, caller: str = "alice", at: float = NOW) -> Batch:
    file = InboxFile("inbox/alice/ü.jsonl", version, 7)
    return Batch(id=batch_id_of("bucket", file.key, version), caller=caller, file=file, created_at=at)


def claimed(batches: BatchStore, owner: str = "me") -> Batch:
    batch = batches.claim(batches.create(new()).id, owner, now=NOW, lease_until=NOW + 60)
    assert batch is not None
    return batch


def test_a_batch_is_created_once(batches: BatchStore) -> None:
    batch = new()
    assert batches.get(batch.id) is None
    assert batches.create(batch) == batch
    claimed(batches)
    assert batches.create(new(at=NOW + 9)) == batches.get(batch.id)
    assert batches.create(new(at=NOW + 9)).created_at == NOW


def test_a_batch_has_one_owner_at_a_time(batches: BatchStore) -> None:
    batch = claimed(batches)
    assert batches.claim(batch.id, "other", now=NOW + 59, lease_until=NOW + 99) is None
    assert batches.claim(batch.id, "me", now=NOW + 59, lease_until=NOW + 99) is not None
    batches.renew(batch.id, "me", NOW + 200)
    assert batches.claim(batch.id, "other", now=NOW + 199, lease_until=NOW + 299) is None
    batches.release(batch.id, "other")
    batches.release(batch.id, "me")
    assert batches.claim(batch.id, "other", now=NOW, lease_until=NOW + 9) is not None
    changes: tuple[Callable[[], object], ...] = (
        lambda: batches.renew(batch.id, "me", NOW + 1),
        lambda: batches.save_checkpoint(batch.id, "me", Checkpoint(1, 1)),
        lambda: batches.save_total(batch.id, "me", 1),
        lambda: batches.begin_finalizing(batch.id, "me", now=NOW),
        lambda: batches.end(batch.id, "me", Counts(1, 1), now=NOW),
    )
    for change in changes:
        with pytest.raises(LostClaimError):
            change()


def test_each_step_of_a_batch_is_stored(batches: BatchStore) -> None:
    batch = claimed(batches)
    assert batches.save_checkpoint(batch.id, "me", Checkpoint(7, 2)).checkpoint == Checkpoint(7, 2)
    assert batches.save_total(batch.id, "me", 2).total == 2
    assert batches.save_total(batch.id, "me", 3).total == 2
    with pytest.raises(LostClaimError):
        batches.end(batch.id, "me", Counts(1, 1), now=NOW)
    assert batches.begin_finalizing(batch.id, "me", now=NOW + 1).status is BatchStatus.FINALIZING
    assert batches.begin_cancelling(batch.id, now=NOW) is None
    for _ in range(2):
        ended = batches.end(batch.id, "me", Counts(1, 1), now=NOW + 2)
    assert (ended.status, ended.counts, ended.ended_at) == (BatchStatus.COMPLETED, Counts(1, 1), NOW + 2)
    batches.mark_published(batch.id)
    assert batches.get(batch.id) == replace(ended, published=True)
    assert batches.claim(batch.id, "me", now=NOW + 999, lease_until=NOW + 1999) is None


def test_a_cancelling_batch_ends_as_cancelled(batches: BatchStore) -> None:
    batch = claimed(batches)
    for at in (NOW + 1, NOW + 2):
        cancelling = batches.begin_cancelling(batch.id, now=at)
        assert cancelling is not None
        assert (cancelling.status, cancelling.cancelling_at) == (BatchStatus.CANCELLING, NOW + 1)
    batches.begin_finalizing(batch.id, "me", now=NOW + 3)
    assert batches.end(batch.id, "me", Counts(0, 0), now=NOW + 4).status is BatchStatus.CANCELLED
    assert batches.begin_cancelling("batch_none", now=NOW) is None


def test_a_callers_batches_are_listed_newest_first(batches: BatchStore) -> None:
    own = [batches.create(new(str(number), at=NOW + number)) for number in range(4)]
    batches.create(new("theirs", caller="bob"))
    newest = own[::-1]
    assert list(batches.newest("alice", 10)) == newest
    assert list(batches.newest("alice", 2, after=newest[0].id)) == newest[1:3]
    assert list(batches.newest("bob", 2, after=newest[0].id)) == []
    assert list(batches.newest("alice", 2, after="batch_of_nobody")) == []
    assert list(batches.newest("carol", 2)) == []


def test_work_on_a_batch_is_not_written_to_the_index(table: Table) -> None:
    batches = table.batches
    batch = batches.create(new())
    before = table.items(IndexName="by-caller")
    steps: tuple[Callable[[], object], ...] = (
        lambda: batches.claim(batch.id, "me", now=NOW, lease_until=NOW + 60),
        lambda: batches.renew(batch.id, "me", NOW + 99),
        lambda: batches.save_checkpoint(batch.id, "me", Checkpoint(7, 2)),
        lambda: batches.save_total(batch.id, "me", 2),
        lambda: batches.release(batch.id, "me"),
    )
    for step in steps:
        held = batches.get(batch.id)
        step()
        assert batches.get(batch.id) != held
        assert table.items(IndexName="by-caller") == before


def test_a_record_of_a_later_version_is_refused_and_unchanged(table: Table) -> None:
    batches, batch = table.batches, table.batches.create(new())
    (item,) = table.items()
    later = item | {"version": {"N": "2"}}
    table.client.put_item(TableName=table.name, Item=later)
    calls: tuple[Callable[[], object], ...] = (
        lambda: batches.create(batch),
        lambda: batches.get(batch.id),
        lambda: batches.newest("alice", 1),
        lambda: batches.claim(batch.id, "me", now=NOW, lease_until=NOW + 60),
        lambda: batches.begin_cancelling(batch.id, now=NOW),
    )
    for call in calls:
        with pytest.raises(RecordsUnavailableError, match="later version"):
            call()
        assert table.items() == [later]


def test_a_line_is_pending_until_it_ends_and_counted_once(batches: BatchStore, lines: BatchLines) -> None:
    batch = claimed(batches).id
    for number in (2, 11, 1, 1):
        assert lines.begin(batch, number, f"c{number}")
    assert lines.begin("batch_b", 1, "other")
    assert list(lines.pending(batch)) == [(1, "c1"), (2, "c2"), (11, "c11")]
    for ended in (FAILED, LINE, LINE):
        lines.end(batch, 11, ended)
    lines.end(batch, 2, FAILED)
    assert list(lines.pending(batch)) == [(1, "c1")]
    assert lines.any_pending(batch)
    for number in (2, 11, 1):
        lines.refuse(batch, number, REFUSED)
        assert not lines.begin(batch, number, f"c{number}")
    assert not lines.any_pending(batch)
    assert list(lines.ended(batch)) == [REFUSED, FAILED, LINE]
    assert lines.counts(batch) == Counts(1, 2)
    assert lines.counts("batch_b") == Counts(0, 0)


def test_the_result_of_a_line_can_change_until_the_batch_is_finalizing(batches: BatchStore, lines: BatchLines) -> None:
    batch = claimed(batches).id
    lines.end(batch, 1, FAILED)
    lines.end(batch, 1, LINE)
    batches.begin_cancelling(batch, now=NOW)
    lines.end(batch, 2, LINE)
    lines.end(batch, 2, FAILED)
    batches.begin_finalizing(batch, "me", now=NOW)
    for _ in range(2):
        for number, late in ((1, FAILED), (2, LINE)):
            assert not lines.begin(batch, number, "c")
            lines.end(batch, number, late)
        assert not lines.any_pending(batch)
        assert list(lines.ended(batch)) == [LINE, FAILED]
        assert lines.counts(batch) == Counts(1, 1)
        batches.end(batch, "me", Counts(1, 1), now=NOW)


def test_lines_are_in_order_across_pages(table: Table) -> None:
    for number in range(1, 6):  # a page holds 1 MB
        table.lines.end("batch_a", number, EndedLine(completed=True, text=f"{number} {'x' * 350_000}"))
    assert [int(line.text.split()[0]) for line in table.lines.ended("batch_a")] == [1, 2, 3, 4, 5]
    assert table.lines.counts("batch_a") == Counts(5, 0)


def test_an_unreachable_store_is_unavailable(connect: Connect) -> None:
    table = Table(connect("dynamodb", closed_url()), "table")
    batches, lines = table.batches, table.lines
    calls: tuple[Callable[[], object], ...] = (
        lambda: batches.create(new()),
        lambda: batches.get("batch_a"),
        lambda: batches.newest("alice", 1),
        lambda: batches.claim("batch_a", "me", now=NOW, lease_until=NOW),
        lambda: lines.begin("batch_a", 1, "c"),
        lambda: lines.end("batch_a", 1, LINE),
        lambda: lines.refuse("batch_a", 1, REFUSED),
        lambda: list(lines.pending("batch_a")),
        lambda: lines.any_pending("batch_a"),
    )
    for call in calls:
        with pytest.raises(RecordsUnavailableError):
            call()


# The files.


def bucket_of(aws_url: str, name: str) -> S3Bucket:
    credentials = ReadOnlyCredentials(ACCESS_KEY, SECRET, None)
    return S3Bucket(HttpPool(), url=f"{aws_url}/{name}", region="us-east-1", credentials=lambda: credentials)


def test_a_file_is_read_in_its_version_and_written_whole(connect: Connect, aws_url: str) -> None:
    s3, name = connect("s3", aws_url, region="us-east-1"), f"inbox-{uuid4().hex}"
    soon = Deadline.after(60)  # reached only if the test fails
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    key = "inbox/alice/ü & +.jsonl"
    version = s3.put_object(Bucket=name, Key=key, Body=b"0123456789")["VersionId"]
    s3.put_object(Bucket=name, Key=key, Body=b"another")
    bucket, file = bucket_of(aws_url, name), InboxFile(key, version, 10)
    inbox, outbox = S3Inbox(bucket), S3Outbox(bucket)
    assert (inbox.read(file, 0, 10, soon), inbox.read(file, 3, 4, soon)) == (b"0123456789", b"3456")
    assert inbox.has(file, soon)
    for missing in (InboxFile("inbox/none", version, 10), InboxFile(key, "none", 10)):
        assert not inbox.has(missing, soon)
        with pytest.raises(ImageStorageError):
            inbox.read(missing, 0, 10, soon)
    outbox.save("outbox/a.jsonl", 6, iter([b"abc", b"def"]), soon)
    assert s3.get_object(Bucket=name, Key="outbox/a.jsonl")["Body"].read() == b"abcdef"
    for _ in range(2):
        outbox.delete("outbox/a.jsonl", soon)
        assert "Contents" not in s3.list_objects_v2(Bucket=name, Prefix="outbox/")
    nowhere = S3Outbox(bucket_of(aws_url, f"none-{name}"))
    with pytest.raises(ImageStorageError):
        nowhere.save("outbox/a.jsonl", 0, iter([]), soon)
    with pytest.raises(ImageStorageError):
        nowhere.delete("outbox/a.jsonl", soon)
