"""Batches and their lines: the fakes and the real stores, on each emulator, pass one contract."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import urllib3
from botocore.credentials import ReadOnlyCredentials
from msgspec.structs import replace

from imagegen.aws.bucket import S3Bucket
from imagegen.aws.files import S3FileContents
from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Checkpoint, Counts, EndedLine, batch_id_of
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import FileUnavailableError, RecordsUnavailableError, UnknownFileError
from imagegen.domain.files import StoredObject, new_file_id, object_key
from imagegen.domain.generations import LostClaimError
from imagegen.outbound.pool import HttpPool
from imagegen.ports import BatchLines, BatchStore
from tests.fakes.batches import FakeBatchLines, FakeBatchStore
from tests.support.stores import ACCESS_KEY, SECRET, Connect, Table, closed_url

NOW = 1_760_000_000.5
FAILED = EndedLine(completed=False, text="{}")
REFUSED = EndedLine(completed=False, text='{"line": 1}')
LINE = EndedLine(completed=True, text='{"custom_id": "ü"}')
PROBLEMS = (
    BatchProblem("empty_file", "Die Datei hat keine Zeile: 空."),
    BatchProblem("invalid_url", "Another endpoint.", 3, "url"),
)


@pytest.fixture
def batches(judged: Table | None) -> BatchStore:
    return judged.batches if judged else FakeBatchStore()


@pytest.fixture
def lines(judged: Table | None, batches: BatchStore) -> BatchLines:
    return FakeBatchLines(batches) if isinstance(batches, FakeBatchStore) else judged.lines  # type: ignore[union-attr]


def new(version: str = "v", *, caller: str = "alice", at: float = NOW) -> Batch:
    file = StoredObject("inbox/alice/ü.jsonl", version, 7)
    return Batch(id=batch_id_of("bucket", file.key, version), caller=caller, file=file, created_at=at)


def over_http(metadata: Mapping[str, str] | None = None) -> Batch:
    return Batch(
        id="batch_AAAAAAAAAAAAAAAAAAAAAA",
        caller="alice",
        file=StoredObject("files/0f/file-AAAAAAAAAAAAAAAAAAAAAA", "", 7),
        created_at=NOW,
        endpoint="/v1/images/edits",
        given_file_id="file-AAAAAAAAAAAAAAAAAAAAAA",
        metadata=metadata,
        output_seconds=7200,
        expires_at=NOW + 24 * 3600,
        status=BatchStatus.VALIDATING,
    )


# Every method by its name, with variants.
CALLS: dict[str, Callable[[BatchStore, Batch], object]] = {
    "create": lambda s, b: s.create(b),
    "get": lambda s, b: s.get(b.id),
    "newest": lambda s, _: s.newest("alice", 1),
    "claim": lambda s, b: s.claim(b.id, "me", now=NOW, lease_until=NOW + 60),
    "claim late by another": lambda s, b: s.claim(b.id, "other", now=NOW + 61, lease_until=NOW + 99),
    "renew": lambda s, b: s.renew(b.id, "me", NOW + 99),
    "release": lambda s, b: s.release(b.id, "me"),
    "begin_lines": lambda s, b: s.begin_lines(b.id, "me", 3, now=NOW + 1),
    "fail": lambda s, b: s.fail(b.id, "me", PROBLEMS, now=NOW + 2),
    "save_wake": lambda s, b: s.save_wake(b.id, "me", NOW + 900.5),
    "save_checkpoint": lambda s, b: s.save_checkpoint(b.id, "me", Checkpoint(7, 3)),
    "save_total": lambda s, b: s.save_total(b.id, "me", 3),
    "begin_cancelling": lambda s, b: s.begin_cancelling(b.id, now=NOW + 3),
    "begin_expiring": lambda s, b: s.begin_expiring(b.id, "me", now=NOW + 4),
    "begin_finalizing": lambda s, b: s.begin_finalizing(b.id, "me", now=NOW + 5),
    "end": lambda s, b: s.end(b.id, "me", Counts(2, 1), now=NOW + 6),
    "mark_published": lambda s, b: s.mark_published(b.id),
}
CLAIMED = ("create", "claim")
BEGUN = (*CLAIMED, "begin_lines")
FINALIZING = (*BEGUN, "begin_finalizing")
# The calls that lead a batch over HTTP to a state.
STATES: dict[str, Sequence[str]] = {
    "absent": (),
    "validating": CLAIMED,
    "failed": (*CLAIMED, "fail"),
    "in progress": BEGUN,
    "expiring": (*BEGUN, "begin_expiring"),
    "cancelling": (*CLAIMED, "begin_cancelling"),
    "finalizing": FINALIZING,
    "completed": (*FINALIZING, "end"),
    "expired": (*BEGUN, "begin_expiring", "begin_finalizing", "end"),
    "cancelled": (*BEGUN, "begin_cancelling", "begin_finalizing", "end"),
}
ENDED = {"failed", "completed", "expired", "cancelled"}


def in_state(batches: BatchStore, state: str) -> Batch:
    batch = over_http()
    for call in STATES[state]:
        CALLS[call](batches, batch)
    return batches.get(batch.id) or batch


def outcome(call: str, batches: BatchStore, batch: Batch) -> object:
    try:
        return CALLS[call](batches, batch)
    except LostClaimError:
        return LostClaimError


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


# The calls of an owner, and a state in which it may make them.
OWNED = {
    **dict.fromkeys(("renew", "begin_lines", "fail", "save_wake", "save_checkpoint", "save_total"), "validating"),
    **dict.fromkeys(("begin_expiring", "begin_finalizing"), "in progress"),
    "end": "finalizing",
}


@pytest.mark.parametrize(("call", "state"), OWNED.items())
def test_a_process_that_lost_its_claim_changes_nothing(batches: BatchStore, call: str, state: str) -> None:
    batch = in_state(batches, state)
    taken = batches.claim(batch.id, "other", now=NOW + 61, lease_until=NOW + 120)
    assert outcome(call, batches, batch) is LostClaimError
    assert batches.get(batch.id) == taken == replace(batch, owner="other", lease_until=NOW + 120)


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


@pytest.mark.parametrize("metadata", [None, {}, {"größe": "🧀", "": "\x00"}], ids=["none", "empty", "some"])
def test_a_batch_over_http_is_read_as_it_was_written(batches: BatchStore, metadata: Mapping[str, str] | None) -> None:
    batch = over_http(metadata)
    assert batches.create(batch) == batch == batches.get(batch.id)
    assert list(batches.newest("alice", 1)) == [batch]
    assert batches.create(replace(batch, endpoint="/v1/images/generations", metadata={"a": "b"})) == batch


def test_each_step_of_a_batch_over_http_is_stored(batches: BatchStore) -> None:
    batch = in_state(batches, "validating")
    for now in (NOW + 1, NOW + 2):
        begun = batches.begin_lines(batch.id, "me", 3, now=now)
        assert begun == replace(batch, status=BatchStatus.IN_PROGRESS, validated=3, begun_at=NOW + 1)
    for wake_at in (NOW + 7, NOW + 900.5):
        batches.save_wake(batch.id, "me", wake_at)
    for now in (NOW + 4, NOW + 5):
        expiring = batches.begin_expiring(batch.id, "me", now=now)
        assert expiring == replace(begun, wake_at=NOW + 900.5, expiring_at=NOW + 4)
    finalizing = batches.begin_finalizing(batch.id, "me", now=NOW + 6)
    assert finalizing == replace(expiring, status=BatchStatus.FINALIZING, finalizing_at=NOW + 6)
    ended = batches.end(batch.id, "me", Counts(2, 1), now=NOW + 7)
    assert ended == replace(finalizing, status=BatchStatus.EXPIRED, counts=Counts(2, 1), ended_at=NOW + 7)
    assert batches.get(batch.id) == ended


@pytest.mark.parametrize("problems", [(), PROBLEMS], ids=["none", "some"])
def test_a_batch_whose_file_is_not_valid_has_failed(batches: BatchStore, problems: Sequence[BatchProblem]) -> None:
    batch = in_state(batches, "validating")
    expected = replace(batch, status=BatchStatus.FAILED, problems=problems, ended_at=NOW + 2)
    for _ in range(2):
        assert batches.fail(batch.id, "me", [*problems], now=NOW + 2) == expected
        assert batches.get(batch.id) == expected


@pytest.mark.parametrize("call", ["begin_lines", "fail"])
def test_a_batch_that_was_cancelled_while_its_file_was_read_stays_so(batches: BatchStore, call: str) -> None:
    validating = in_state(batches, "validating")
    cancelling = batches.begin_cancelling(validating.id, now=NOW + 1)
    assert cancelling == replace(validating, status=BatchStatus.CANCELLING, cancelling_at=NOW + 1)
    assert outcome(call, batches, validating) == batches.get(validating.id) == cancelling
    taken = batches.claim(validating.id, "other", now=NOW + 61, lease_until=NOW + 120)
    assert outcome(call, batches, validating) is LostClaimError
    assert batches.get(validating.id) == taken


@pytest.mark.parametrize("before", [CLAIMED, BEGUN], ids=["validating", "in progress"])
@pytest.mark.parametrize(
    ("calls", "status"),
    [
        ((), BatchStatus.COMPLETED),
        (("begin_expiring",), BatchStatus.EXPIRED),
        (("begin_cancelling",), BatchStatus.CANCELLED),
        (("begin_expiring", "begin_cancelling"), BatchStatus.CANCELLED),
        (("begin_cancelling", "begin_expiring"), BatchStatus.CANCELLED),
    ],
)
def test_a_batch_ends_by_what_stopped_it(
    batches: BatchStore, before: Sequence[str], calls: Sequence[str], status: BatchStatus
) -> None:
    batch = over_http()
    for call in (*before, *calls, "begin_finalizing"):
        CALLS[call](batches, batch)
    for _ in range(2):
        assert batches.end(batch.id, "me", Counts(2, 1), now=NOW + 6).status is status
    ended = batches.get(batch.id)
    assert ended is not None
    assert (ended.status, ended.ended_at) == (status, NOW + 6)
    assert (ended.expiring_at, ended.cancelling_at) == tuple(
        at if call in calls else None for call, at in (("begin_expiring", NOW + 4), ("begin_cancelling", NOW + 3))
    )


# The calls that a state does not allow, and their result. A failure and an end may be written twice.
NOT_ALLOWED: Sequence[tuple[str, object, set[str]]] = (
    ("claim", None, {"absent", *ENDED}),
    ("claim late by another", None, {"absent", *ENDED}),
    ("renew", LostClaimError, {"absent", *ENDED}),
    ("release", None, {"absent"}),
    ("begin_lines", LostClaimError, {"absent", "finalizing", *ENDED}),
    ("fail", LostClaimError, {*STATES} - {"validating", "cancelling", "failed"}),
    ("save_wake", LostClaimError, {"absent", *ENDED}),
    ("save_checkpoint", LostClaimError, {"absent", *ENDED}),
    ("save_total", LostClaimError, {"absent", *ENDED}),
    ("begin_cancelling", None, {"absent", "finalizing", *ENDED}),
    ("begin_expiring", LostClaimError, {"absent", *ENDED}),
    ("begin_finalizing", LostClaimError, {"absent", *ENDED}),
    ("end", LostClaimError, {*STATES} - {"finalizing", "completed", "expired", "cancelled"}),
    ("mark_published", None, {"absent"}),
)


@pytest.mark.parametrize("state", STATES)
def test_a_call_that_a_state_does_not_allow_has_no_effect(batches: BatchStore, state: str) -> None:
    batch = in_state(batches, state)
    before = batches.get(batch.id)
    for call, expected, states in NOT_ALLOWED:
        if state in states:
            assert (call, outcome(call, batches, batch)) == (call, expected)
            assert (call, batches.get(batch.id)) == (call, before)


def test_every_method_is_called() -> None:
    assert {call.partition(" ")[0] for call in CALLS} == {each for each in vars(BatchStore) if each[0] != "_"}


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
    batch = table.batches.create(new())
    before = table.items(IndexName="by-caller")
    work = ("claim", "renew", "save_wake", "save_checkpoint", "save_total", "begin_expiring", "release")
    for call in work:
        held = table.batches.get(batch.id)
        CALLS[call](table.batches, batch)
        assert table.batches.get(batch.id) != held
        assert table.items(IndexName="by-caller") == before


@pytest.mark.parametrize("batch", [new(), over_http()], ids=["inbox", "HTTP"])
def test_a_record_of_a_later_version_is_refused_and_unchanged(table: Table, batch: Batch) -> None:
    """An older process, of version 1, refuses the record of a batch over HTTP by the same check."""
    for before in CLAIMED:
        CALLS[before](table.batches, batch)
    (item,) = table.items()
    later = item | {"version": {"N": "3"}}
    table.client.put_item(TableName=table.name, Item=later)
    for name, call in CALLS.items():
        with pytest.raises(RecordsUnavailableError, match="later version"):
            call(table.batches, batch)
        assert (name, table.items()) == (name, [later])


def test_only_a_batch_over_http_has_the_version_that_older_processes_refuse(table: Table) -> None:
    """They would begin its lines without validating its file, and write its results to the outbox."""
    for batch, version in ((new(), "1"), (over_http(), "2")):
        for call in (*CLAIMED, "save_checkpoint"):
            CALLS[call](table.batches, batch)
        (item,) = (item for item in table.items() if item["pk"]["S"] == batch.id)
        assert item["version"] == {"N": version}


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
    lines = table.lines
    calls: Sequence[Callable[[], Any]] = (
        *(partial(call, table.batches, new()) for call in CALLS.values()),
        lambda: lines.begin("batch_a", 1, "c"),
        lambda: lines.end("batch_a", 1, LINE),
        lambda: lines.refuse("batch_a", 1, REFUSED),
        lambda: list(lines.pending("batch_a")),
        lambda: lines.any_pending("batch_a"),
        lambda: list(lines.ended("batch_a")),
        lambda: lines.counts("batch_a"),
    )
    for call in calls:
        with pytest.raises(RecordsUnavailableError):
            call()


# The files.


def contents_in(aws_url: str, *, inbox: str, images: str) -> S3FileContents:
    credentials = ReadOnlyCredentials(ACCESS_KEY, SECRET, None)

    def bucket(name: str) -> S3Bucket:
        return S3Bucket(HttpPool(), url=f"{aws_url}/{name}", region="us-east-1", credentials=lambda: credentials)

    return S3FileContents(inbox=bucket(inbox), images=bucket(images), link_seconds=60, upload_seconds=60)


def test_a_file_is_read_in_its_version_and_written_whole(connect: Connect, aws_url: str) -> None:
    s3, name = connect("s3", aws_url, region="us-east-1"), f"inbox-{uuid4().hex}"
    soon = Deadline.after(60)  # reached only if the test fails
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    key = "inbox/alice/ü & +.jsonl"
    version = s3.put_object(Bucket=name, Key=key, Body=b"0123456789")["VersionId"]
    s3.put_object(Bucket=name, Key=key, Body=b"another")
    files, file = contents_in(aws_url, inbox=name, images="none"), StoredObject(key, version, 10)
    assert (files.read(file, 0, 10, soon), files.read(file, 3, 4, soon)) == (b"0123456789", b"3456")
    assert files.find(key, version, soon) == file
    for missing in (StoredObject("inbox/none", version, 10), StoredObject(key, "none", 10)):
        assert files.find(missing.key, missing.version, soon) is None
        with pytest.raises(UnknownFileError):
            files.read(missing, 0, 10, soon)
    first = files.save("outbox/a.jsonl", 6, iter([b"abc", b"def"]), soon)
    second = files.save("outbox/a.jsonl", 3, iter([b"ghi"]), soon)
    assert s3.get_object(Bucket=name, Key="outbox/a.jsonl")["Body"].read() == b"ghi"
    assert (files.read(first, 0, 6, soon), files.read(second, 0, 3, soon)) == (b"abcdef", b"ghi")
    for _ in range(2):
        files.delete(StoredObject("outbox/a.jsonl", "", 0), soon)
        assert "Contents" not in s3.list_objects_v2(Bucket=name, Prefix="outbox/")
    assert files.read(first, 0, 6, soon) == b"abcdef"  # it is only hidden
    for _ in range(2):
        files.delete(first, soon)
        assert files.find(first.key, first.version, soon) is None
    assert files.read(second, 0, 3, soon) == b"ghi"
    nowhere = contents_in(aws_url, inbox=f"none-{name}", images="none")
    with pytest.raises(FileUnavailableError):
        nowhere.save("outbox/a.jsonl", 0, iter([]), soon)


def test_a_file_that_came_over_http_is_in_the_bucket_of_the_images(connect: Connect, aws_url: str) -> None:
    s3, name = connect("s3", aws_url, region="us-east-1"), f"images-{uuid4().hex}"
    soon = Deadline.after(60)  # reached only if the test fails
    s3.create_bucket(Bucket=name)
    files, key = contents_in(aws_url, inbox="none", images=name), object_key("oidc:a/b", new_file_id())
    assert key.count("/") == 2
    assert files.find(key, "", soon) is None
    stored = files.save(key, 5, iter([b"\xffabc", b"\n"]), soon)
    assert stored == StoredObject(key, "", 5) == files.find(key, "", soon)
    assert files.read(stored, 1, 3, soon) == b"abc"

    link = files.signed_url(stored, 'ü "a".jsonl', "GET").url
    answer = urllib3.request("GET", link, retries=False)
    assert (answer.status, answer.data) == (200, b"\xffabc\n")
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''%C3%BC%20%22a%22.jsonl"

    upload = files.signed_upload(StoredObject(object_key("alice", new_file_id()), "", 4))
    sent = [urllib3.request("PUT", upload.url, body=b"line", headers=dict(upload.headers)).status for _ in range(2)]
    assert sent == [200, 412]
    for _ in range(2):
        files.delete(stored, soon)
    assert files.find(key, "", soon) is None


def test_a_file_with_a_content_encoding_is_read_as_it_is_stored(connect: Connect, aws_url: str) -> None:
    """A megabyte of it could become a gigabyte."""
    s3, name = connect("s3", aws_url, region="us-east-1"), f"images-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    files, key = contents_in(aws_url, inbox="none", images=name), object_key("alice", new_file_id())
    packed = gzip.compress(bytes(10_000_000))
    s3.put_object(Bucket=name, Key=key, Body=packed, ContentEncoding="gzip")
    assert files.read(StoredObject(key, "", len(packed)), 0, len(packed), Deadline.after(60)) == packed
