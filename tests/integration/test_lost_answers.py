"""The SDK repeats a write if its answer is lost. The result is the same as without the loss."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import botocore.httpsession
import pytest
from botocore.exceptions import ConnectionClosedError
from msgspec.structs import replace

from imagegen.aws.batches import DynamoBatches, DynamoBatchLines
from imagegen.aws.file_records import DynamoFiles
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.idempotency_keys import DynamoIdempotencyKeys
from imagegen.aws.quota_counters import DynamoQuotaCounters
from imagegen.aws.slots import DynamoUpstreamSlots
from imagegen.bootstrap import sdk
from imagegen.domain.batches import Batch, BatchProblem, BatchStatus, Checkpoint, Counts, EndedLine, batch_id_of
from imagegen.domain.failures import Failure
from imagegen.domain.files import File, Purpose, StoredObject
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    IdTakenError,
    LostClaimError,
    Status,
    StoredImage,
    UpstreamAttempt,
)
from imagegen.domain.money import Spending
from imagegen.domain.slots import Slot, Waiter
from tests.support.stores import ACCESS_KEY, JUDGES, SECRET, Table, new_generation

NOW = 1_760_000_000.5
DAY = "2025-10-09"
GENERATION, OTHER = replace(new_generation(n=3, at=NOW), spending=Spending(30, 30)), new_generation(at=NOW - 1)
SETTLED = Spending(30, 10, changes=1)
ID = GENERATION.id
ANSWER = CallAnswer((AnsweredImage("https://i.example/1"),), {"size": "1024x1024"}, {"total_tokens": 7})
ATTEMPT = UpstreamAttempt("default", NOW)
REFUSAL = Failure("rate_limit_exceeded", "Later.", money_spent=False)
FAILURE = Failure("upstream_failed", "It failed.", money_spent=True)
ANOTHER_ANSWER = CallAnswer((AnsweredImage("https://i.example/2"),))
OBJECT = StoredObject("inbox/alice/a.jsonl", "v", 7)
BATCH = Batch(id=batch_id_of("bucket", OBJECT.key, "v"), caller="alice", file=OBJECT, created_at=NOW)
BATCH_OVER_HTTP = replace(
    BATCH, endpoint="/v1/images/edits", metadata={"a": "b"}, expires_at=NOW + 9, status=BatchStatus.VALIDATING
)
PROBLEMS = (BatchProblem("empty_file", "The file has no line."),)
FILE = File(
    id="file-AAAAAAAAAAAAAAAAAAAAAA",
    caller="alice",
    purpose=Purpose.BATCH,
    filename="a.jsonl",
    object=OBJECT,
    created_at=NOW,
    expires_at=float(int(NOW) + 3600),
    is_uploaded=False,
)


class Wire:
    """Stands between the SDK and AWS. Calls `in_between`, then loses the answer to write number `losing`, from 0."""

    def __init__(self, send: Callable[[Any, Any], Any]) -> None:
        self._send = send
        self.writes: list[str] = []
        self.losing: int | None = None
        self.in_between: Callable[[], object] = lambda: None

    def send(self, session: Any, request: Any) -> Any:
        answer = self._send(session, request)
        target = request.headers["X-Amz-Target"]
        operation = (target.decode() if isinstance(target, bytes) else str(target)).partition(".")[2]
        if operation in ("BatchGetItem", "GetItem", "Query", "Scan"):
            return answer
        self.writes.append(operation)
        if self.losing == len(self.writes) - 1:
            self.losing = None
            self.in_between()
            raise ConnectionClosedError(endpoint_url=request.url)
        return answer


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """The SDK repeats a call without a pause."""
    untouched, own = botocore.httpsession.URLLib3Session.send, threading.get_ident()
    wire = Wire(untouched)

    def send(session: Any, request: Any) -> Any:
        """Other threads of this process, such as those of a shared local stack, are not affected."""
        return (wire.send if threading.get_ident() == own else untouched)(session, request)

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", send)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    return wire


@pytest.fixture(scope="module", params=JUDGES)
def patient(request: pytest.FixtureRequest) -> Iterator[Table]:
    """An emulator's table and the product's own client, which repeats a call as often as in production."""
    caches = (sdk.session, sdk.dynamodb)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", request.getfixturevalue(f"{request.param}_url"))
        environment.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        for cached in caches:
            cached.cache_clear()
        client = sdk.dynamodb()
    for cached in caches:
        cached.cache_clear()
    yield Table(client, request.getfixturevalue(f"{request.param}_table").name)
    client.close()


@pytest.fixture
def table(patient: Table) -> Iterator[Table]:
    yield patient
    patient.clear()


Step = Callable[[Table], Any]


def hold(t: Table, generation_id: str = ID, *, at: float = NOW, replacing: str | None = None) -> str:
    holder = t.keys.hold("alice", "k", generation_id, "body", now=at, expired_before=NOW - 50, replacing=replacing)
    return holder.generation_id


def mark(t: Table, generation: Generation = GENERATION) -> None:
    t.keys.mark("alice", "body", generation.id, 0, now=generation.created_at)


def attach(t: Table, retry: int = 1) -> str | None:
    return t.keys.attach("alice", "body", retry, since=NOW - 100)


def claim(t: Table, owner: str = "me", at: float = NOW, poll: int = 0) -> Generation | None:
    return t.generations.claim(ID, owner, now=at, lease_until=at + 60, poll=poll)


def now_of(t: Table) -> Generation:
    found = t.generations.get(ID)
    assert found is not None
    return found


def attempt_of(t: Table) -> UpstreamAttempt:
    (attempt,) = now_of(t).calls[0].attempts
    return attempt


def lease_of(t: Table) -> tuple[str | None, float]:
    return now_of(t).owner, now_of(t).lease_until


def lease_of_batch(t: Table) -> tuple[str | None, float]:
    found = t.batches.get(BATCH.id)
    assert found is not None
    return found.owner, found.lease_until


def claim_batch(t: Table, owner: str = "me") -> Batch | None:
    return t.batches.claim(BATCH.id, owner, now=NOW, lease_until=NOW + 60)


def take(t: Table, token: str = "a", images: int = 4) -> tuple[bool, int]:
    return t.counters.take("alice", DAY, images, 10, token=token)


def give_back(t: Table, token: str = "a") -> None:
    t.counters.give_back("alice", DAY, 4, token=token)


def used(t: Table) -> int:
    """The number of images that are taken. This call takes none, since it is over the limit."""
    return take(t, "look", 11)[1]


def upstream_slots(t: Table) -> DynamoUpstreamSlots:
    return t.slots({"a": 2}, lambda: NOW)


def take_slot(t: Table, generation_id: str = ID, *, seconds: float = 60) -> Slot | None:
    return upstream_slots(t).take("a", generation_id, 0, until=NOW + seconds, count=2)


def wait_for_slot(t: Table, poll: int = 1) -> Sequence[Waiter]:
    return upstream_slots(t).wait("a", Waiter(OTHER.id, "alice", poll, count=2), since=NOW - 1, until=NOW + 99)


SLOT = Slot("a", f"{ID}#0", NOW + 60, 2)


def free_slot(t: Table) -> Sequence[Waiter]:
    return upstream_slots(t).free(SLOT)


# The steps by name. They change one generation, one batch, its line 1, one file, the counter of one day, and the slots
# of one upstream.
STEPS: dict[str, Step] = {
    "hold": hold,
    "hold for another": lambda t: hold(t, OTHER.id),
    "hold for another, long ago": lambda t: hold(t, OTHER.id, at=NOW - 100),
    "replace another": lambda t: hold(t, replacing=OTHER.id),
    "mark": mark,
    "mark another": lambda t: mark(t, OTHER),
    "attach": attach,
    "create": lambda t: t.generations.create(GENERATION),
    "create another with the id": lambda t: t.generations.create(replace(OTHER, id=ID)),
    "claim": claim,
    "claim for another": lambda t: claim(t, "other"),
    "take over": lambda t: claim(t, "other", NOW + 61),
    "renew": lambda t: t.generations.renew(ID, "me", NOW + 99),
    "release": lambda t: t.generations.release(ID, "me"),
    "await poll": lambda t: t.generations.await_poll(ID, "me", 1),
    "claim to poll": partial(claim, owner="other", poll=1),
    "attempt": lambda t: t.generations.save_attempt(ID, "me", 0, 1, ATTEMPT),
    "second attempt": lambda t: t.generations.save_attempt(ID, "me", 0, 2, ATTEMPT),
    "task": lambda t: t.generations.save_task(ID, 0, 1, "task"),
    "refusal": lambda t: t.generations.save_failure(ID, 0, 1, REFUSAL),
    "failure": lambda t: t.generations.save_failure(ID, 0, 1, FAILURE),
    "answer": lambda t: t.generations.save_answer(ID, 0, ANSWER),
    "another answer": lambda t: t.generations.save_answer(ID, 0, ANOTHER_ANSWER),
    "image": lambda t: t.generations.save_image(ID, GENERATION.image_ids[0], StoredImage("image/png", 7)),
    "complete": lambda t: t.generations.end(ID, "me", Status.COMPLETED, now=NOW + 9),
    "fail": lambda t: t.generations.end(ID, "me", Status.FAILED, now=NOW + 9, failure=FAILURE),
    "publish": lambda t: t.generations.mark_published(now_of(t)),
    "cancel": lambda t: t.generations.cancel(ID, now=NOW + 5),
    "cancel unbegun": lambda t: t.generations.cancel_unbegun(now_of(t), REFUSAL, now=NOW + 70),
    "requeue": lambda t: t.generations.requeue(now_of(t), now=NOW + 20),
    "void": lambda t: t.generations.void(ID, now=NOW),
    "note returned": lambda t: t.generations.note_returned(now_of(t), 2),
    "note returned of old": lambda t: t.generations.note_returned(GENERATION, 1),
    "note spending": lambda t: t.generations.note_spending(now_of(t), SETTLED),
    "note spending of old": lambda t: t.generations.note_spending(GENERATION, SETTLED),
    "bury": lambda t: t.generations.bury(now_of(t), now=NOW + 30),
    "create batch": lambda t: t.batches.create(BATCH),
    "create batch over HTTP": lambda t: t.batches.create(BATCH_OVER_HTTP),
    "claim batch": claim_batch,
    "claim batch for another": lambda t: claim_batch(t, "other"),
    "renew batch": lambda t: t.batches.renew(BATCH.id, "me", NOW + 99),
    "release batch": lambda t: t.batches.release(BATCH.id, "me"),
    "begin lines": lambda t: t.batches.begin_lines(BATCH.id, "me", 2, now=NOW + 1),
    "fail batch": lambda t: t.batches.fail(BATCH.id, "me", PROBLEMS, now=NOW + 1),
    "save wake": lambda t: t.batches.save_wake(BATCH.id, "me", NOW + 900),
    "expire batch": lambda t: t.batches.begin_expiring(BATCH.id, "me", now=NOW + 10),
    "checkpoint": lambda t: t.batches.save_checkpoint(BATCH.id, "me", Checkpoint(7, 2)),
    "total": lambda t: t.batches.save_total(BATCH.id, "me", 2),
    "cancel batch": lambda t: t.batches.begin_cancelling(BATCH.id, now=NOW + 1),
    "finalize": lambda t: t.batches.begin_finalizing(BATCH.id, "me", now=NOW + 2),
    "end batch": lambda t: t.batches.end(BATCH.id, "me", Counts(1, 0), now=NOW + 3),
    "publish batch": lambda t: t.batches.mark_published(BATCH.id),
    "begin line": lambda t: t.lines.begin(BATCH.id, 1, "c"),
    "end line": lambda t: t.lines.end(BATCH.id, 1, EndedLine(completed=True, text="{}")),
    "refuse line": lambda t: t.lines.refuse(BATCH.id, 1, EndedLine(completed=False, text="{}")),
    "create file": lambda t: t.files.create(FILE),
    "create another file with the id": lambda t: t.files.create(replace(FILE, filename="b", created_at=NOW + 1)),
    "mark file uploaded": lambda t: t.files.mark_uploaded(FILE.id),
    "delete file": lambda t: t.files.delete(FILE.id),
    "take": take,
    "take more": partial(take, token="b"),
    "take the last": partial(take, token="b", images=6),
    "take too many": partial(take, token="b", images=7),
    "give back": give_back,
    "give more back": partial(give_back, token="b"),
    "take slot": take_slot,
    "take slot again": partial(take_slot, seconds=90),
    "take slot for another": lambda t: take_slot(t, OTHER.id),
    "take slot that is free again": lambda t: t.slots({"a": 2}, lambda: NOW + 61).take(
        "a", OTHER.id, 0, until=NOW + 121
    ),
    "wait for slot": wait_for_slot,
    "wait for slot, earlier round": partial(wait_for_slot, poll=0),
    "leave waiting list": lambda t: upstream_slots(t).leave("a", OTHER.id, since=NOW - 1),
    "free slot": free_slot,
}
G, K, B, L = DynamoGenerations, DynamoIdempotencyKeys, DynamoBatches, DynamoBatchLines
F, C, S = DynamoFiles, DynamoQuotaCounters, DynamoUpstreamSlots
CLAIMED = ("create", "claim")
SENT = (*CLAIMED, "attempt")
FAILED = (*SENT, "fail")
PUBLISHED = (*FAILED, "publish")
CANCELLED = (*SENT, "cancel")
WAITING = (*SENT, "task", "await poll")
CANCELLED_TASK = (*SENT, "task", "cancel")
BURIED = (*CLAIMED, "cancel", "bury")
BATCH_CLAIMED = ("create batch", "claim batch")
VALIDATING = ("create batch over HTTP", "claim batch")
FINALIZING = (*BATCH_CLAIMED, "finalize")
SLOT_KEPT = ("take slot", "wait for slot", "free slot")
# A method, the steps before it, and the step that calls it.
WRITES: Sequence[tuple[Callable[..., object], Sequence[str], str]] = (
    (K.hold, (), "hold"),
    (K.hold, ("hold for another",), "hold"),
    (K.hold, ("hold for another",), "replace another"),
    (K.hold, ("hold for another, long ago",), "hold"),
    (K.mark, (), "mark"),
    (K.attach, ("mark", "mark another"), "attach"),
    (G.create, (), "create"),
    (G.create, ("create",), "create another with the id"),
    (G.create, ("void",), "create"),
    (G.create, BURIED, "create"),
    (G.claim, ("create",), "claim"),
    (G.claim, CLAIMED, "take over"),
    (G.claim, CLAIMED, "claim for another"),
    (G.claim, WAITING, "claim for another"),
    (G.claim, WAITING, "claim to poll"),
    (G.claim, CANCELLED, "take over"),
    (G.claim, CANCELLED_TASK, "claim for another"),
    (G.claim, CANCELLED_TASK, "take over"),
    (G.claim, (*WAITING, "cancel"), "claim to poll"),
    (G.renew, CLAIMED, "renew"),
    (G.renew, CANCELLED, "renew"),
    (G.release, CLAIMED, "release"),
    (G.await_poll, SENT, "await poll"),
    (G.await_poll, CANCELLED_TASK, "await poll"),
    (G.await_poll, (*SENT, "take over"), "await poll"),
    (G.save_attempt, CLAIMED, "attempt"),
    (G.save_attempt, SENT, "second attempt"),
    (G.save_attempt, CANCELLED, "second attempt"),
    (G.save_task, (*SENT, "second attempt"), "task"),
    (G.save_task, CANCELLED, "task"),
    (G.save_task, BURIED, "task"),
    (G.save_failure, (*SENT, "second attempt"), "refusal"),
    (G.save_failure, (*SENT, "refusal"), "failure"),
    (G.save_failure, CANCELLED, "refusal"),
    (G.save_failure, BURIED, "refusal"),
    (G.save_answer, (*SENT, "second attempt"), "answer"),
    (G.save_answer, CANCELLED, "answer"),
    (G.save_answer, BURIED, "answer"),
    (G.save_image, SENT, "image"),
    (G.save_image, CANCELLED, "image"),
    (G.end, SENT, "complete"),
    (G.end, SENT, "fail"),
    (G.end, CANCELLED, "fail"),
    (G.mark_published, FAILED, "publish"),
    (G.cancel, ("create",), "cancel"),
    (G.cancel, SENT, "cancel"),
    (G.cancel_unbegun, ("create",), "cancel unbegun"),
    (G.cancel_unbegun, SENT, "cancel unbegun"),
    (G.cancel_unbegun, (*SENT, "renew"), "cancel unbegun"),
    (G.cancel_unbegun, CANCELLED, "cancel unbegun"),
    (G.requeue, PUBLISHED, "requeue"),
    (G.requeue, FAILED, "requeue"),
    (G.void, (), "void"),
    (G.void, ("create",), "void"),
    (G.void, BURIED, "void"),
    (G.note_returned, FAILED, "note returned"),
    (G.note_returned, (*FAILED, "note returned"), "note returned of old"),
    (G.note_spending, FAILED, "note spending"),
    (G.note_spending, (*FAILED, "note spending"), "note spending of old"),
    (G.requeue, (*PUBLISHED, "note spending"), "requeue"),
    (G.bury, FAILED, "bury"),
    (G.bury, CLAIMED, "bury"),
    (B.create, (), "create batch"),
    (B.create, (), "create batch over HTTP"),
    (B.create, ("create batch",), "create batch over HTTP"),
    (B.claim, ("create batch",), "claim batch"),
    (B.claim, BATCH_CLAIMED, "claim batch for another"),
    (B.renew, BATCH_CLAIMED, "renew batch"),
    (B.release, BATCH_CLAIMED, "release batch"),
    (B.begin_lines, VALIDATING, "begin lines"),
    (B.begin_lines, (*VALIDATING, "cancel batch"), "begin lines"),
    (B.begin_lines, (*VALIDATING, "fail batch"), "begin lines"),
    (B.fail, VALIDATING, "fail batch"),
    (B.fail, (*VALIDATING, "cancel batch"), "fail batch"),
    (B.fail, (*VALIDATING, "begin lines"), "fail batch"),
    (B.save_wake, BATCH_CLAIMED, "save wake"),
    (B.begin_expiring, (*VALIDATING, "begin lines"), "expire batch"),
    (B.save_checkpoint, BATCH_CLAIMED, "checkpoint"),
    (B.save_total, BATCH_CLAIMED, "total"),
    (B.begin_cancelling, BATCH_CLAIMED, "cancel batch"),
    (B.begin_cancelling, VALIDATING, "cancel batch"),
    (B.begin_finalizing, BATCH_CLAIMED, "finalize"),
    (B.end, FINALIZING, "end batch"),
    (B.end, (*BATCH_CLAIMED, "cancel batch", "finalize"), "end batch"),
    (B.end, (*BATCH_CLAIMED, "expire batch", "finalize"), "end batch"),
    (B.end, BATCH_CLAIMED, "end batch"),
    (B.mark_published, (*FINALIZING, "end batch"), "publish batch"),
    (L.begin, (), "begin line"),
    (L.begin, ("begin line", "end line"), "begin line"),
    (L.end, ("begin line",), "end line"),
    (L.end, (*BATCH_CLAIMED, "end line"), "end line"),
    (L.end, (*BATCH_CLAIMED, "end line", "finalize"), "end line"),
    (L.refuse, ("begin line",), "refuse line"),
    (L.refuse, ("begin line", "end line"), "refuse line"),
    (F.create, (), "create file"),
    (F.create, ("create file",), "create another file with the id"),
    (F.mark_uploaded, ("create file",), "mark file uploaded"),
    (F.mark_uploaded, (), "mark file uploaded"),
    (F.delete, ("create file",), "delete file"),
    (F.delete, (), "delete file"),
    (C.take, (), "take"),
    (C.take, ("take",), "take more"),
    (C.take, ("take",), "take the last"),
    (C.take, ("take",), "take too many"),
    (C.take, ("take", "give back"), "take"),
    (C.give_back, ("take", "take more"), "give back"),
    (C.give_back, ("take",), "give back"),
    (S.take, (), "take slot"),
    (S.take, ("take slot",), "take slot again"),
    (S.take, ("take slot",), "take slot for another"),
    (S.take, ("take slot",), "take slot that is free again"),
    (S.take, SLOT_KEPT, "take slot for another"),
    (S.take, SLOT_KEPT, "take slot"),
    (S.wait, ("take slot",), "wait for slot"),
    (S.wait, ("take slot", "wait for slot"), "wait for slot, earlier round"),
    (S.wait, ("take slot", "free slot"), "wait for slot"),
    (S.leave, ("take slot", "wait for slot"), "leave waiting list"),
    (S.leave, SLOT_KEPT, "leave waiting list"),
    (S.free, ("take slot",), "free slot"),
    (S.free, ("take slot", "wait for slot"), "free slot"),
)
READS: dict[Callable[..., object], Step] = {
    G.get: now_of,
    G.newest: lambda t: t.generations.newest("alice", 5),
    G.tombstone: lambda t: t.generations.tombstone(ID),
    K.find: lambda t: t.keys.find("alice", "k", expired_before=NOW - 50),
    B.get: lambda t: t.batches.get(BATCH.id),
    B.newest: lambda t: t.batches.newest("alice", 5),
    L.pending: lambda t: list(t.lines.pending(BATCH.id)),
    L.any_pending: lambda t: t.lines.any_pending(BATCH.id),
    L.ended: lambda t: list(t.lines.ended(BATCH.id)),
    L.counts: lambda t: t.lines.counts(BATCH.id),
    F.get: lambda t: t.files.get(FILE.id),
    F.newest: lambda t: t.files.newest("alice", 5),
}


def outcome(table: Table, step: str) -> object:
    try:
        return STEPS[step](table)
    except IdTakenError as taken:
        return IdTakenError, taken.void, taken.deleted
    except LostClaimError:
        return LostClaimError


def items(table: Table) -> list[dict[str, Any]]:
    """The items of the table without random tokens and expiries, which differ between runs."""
    varying = re.compile(r"requeued_by|returned_by|spent_by|seen_\d+|expires_at")
    found = [
        {name: name if varying.fullmatch(name) else value for name, value in item.items()} for item in table.items()
    ]
    return sorted(found, key=lambda item: (item["pk"]["S"], item["sk"]["S"]))


@pytest.mark.parametrize(("method", "before", "write"), WRITES, ids=lambda each: getattr(each, "__qualname__", None))
def test_a_lost_answer_changes_no_result(
    wire: Wire, table: Table, method: Callable[..., object], before: Sequence[str], write: str
) -> None:
    def run(losing: int | None) -> tuple[object, Sequence[object], Sequence[str]]:
        table.clear()
        for step in before:
            STEPS[step](table)
        wire.writes.clear()
        wire.losing = losing
        return outcome(table, write), items(table), list(wire.writes)

    given, left, writes = run(None)
    assert writes
    for lost in range(len(writes)):
        assert run(lost) == (given, left, [*writes[: lost + 1], *writes[lost:]])


def test_every_public_method_of_the_stores_is_in_a_table() -> None:
    public = {
        method for store in (G, K, B, L, F, C, S) for name, method in vars(store).items() if not name.startswith("_")
    }
    assert {method for method, _, _ in WRITES} | READS.keys() == public


def test_every_method_in_the_table_of_reads_writes_nothing(wire: Wire, table: Table) -> None:
    for step in ("create", "create batch", "begin line", "create file"):
        STEPS[step](table)
    assert wire.writes
    wire.writes.clear()
    for read in READS.values():
        read(table)
    assert wire.writes == []


# The steps before, a write that is applied and whose answer is lost, the step before the SDK repeats the write, and the
# expected state by the result `r` and the table `t`.
MEETINGS: Sequence[tuple[Sequence[str], str, str, Callable[[Table, Any], object], object]] = (
    ((), "hold", "hold for another", lambda t, r: (r, hold(t, OTHER.id)), (ID, ID)),
    ((), "mark", "attach", lambda t, _: [attach(t, 1), attach(t, 2)], [None, ID]),
    (("mark", "mark another"), "attach", "attach", lambda t, r: (r, attach(t)), (ID, None)),
    ((), "create", "claim", lambda t, r: (r, now_of(t).status, now_of(t).owner), (None, Status.IN_PROGRESS, "me")),
    (CLAIMED, "release", "claim for another", lambda t, _: lease_of(t), ("other", NOW + 60)),
    (WAITING[:-1], "await poll", "claim to poll", lambda t, _: (*lease_of(t), now_of(t).polls), ("other", NOW + 60, 1)),
    (
        SENT,
        "task",
        "cancel",
        lambda t, r: (r, attempt_of(t).task_id, now_of(t).status),
        (None, "task", Status.CANCELLED),
    ),
    (SENT, "refusal", "failure", lambda t, r: (r, attempt_of(t).failure), (None, REFUSAL)),
    (CANCELLED, "task", "take over", lambda t, r: (r, attempt_of(t).task_id, now_of(t).owner), (None, "task", "other")),
    (CANCELLED, "answer", "another answer", lambda t, r: (r, now_of(t).calls[0].answer), (ANSWER, ANSWER)),
    (
        SENT,
        "fail",
        "publish",
        lambda t, r: (r.status, now_of(t).completed_at, now_of(t).published),
        (Status.FAILED, NOW + 9, True),
    ),
    (FAILED, "publish", "requeue", lambda t, _: (now_of(t).status, now_of(t).published), (Status.QUEUED, False)),
    (
        PUBLISHED,
        "requeue",
        "claim for another",
        lambda t, r: (r.retries, now_of(t).retries, now_of(t).owner),
        (1, 1, "other"),
    ),
    (SENT, "cancel", "renew", lambda t, r: (r.status, now_of(t).lease_until), (Status.CANCELLED, NOW + 99)),
    (
        SENT,
        "cancel unbegun",
        "second attempt",
        lambda t, r: (r.status, now_of(t).failure, now_of(t).calls[0].sent),
        (Status.CANCELLED, REFUSAL, 1),
    ),
    (SENT, "cancel unbegun", "publish", lambda t, r: (r.status, now_of(t).published), (Status.CANCELLED, True)),
    (SENT, "cancel unbegun", "cancel", lambda t, r: (r.failure, now_of(t).completed_at), (REFUSAL, NOW + 70)),
    ((), "void", "create", lambda t, r: (r, t.generations.get(ID)), (None, None)),
    (
        FAILED,
        "note returned",
        "refusal",
        lambda t, r: (r, now_of(t).returned, now_of(t).calls[0].refused),
        (True, 2, 1),
    ),
    (
        FAILED,
        "note spending",
        "refusal",
        lambda t, r: (r, now_of(t).spending, now_of(t).calls[0].refused),
        (True, SETTLED, 1),
    ),
    (BATCH_CLAIMED, "release batch", "claim batch for another", lambda t, _: lease_of_batch(t), ("other", NOW + 60)),
    (
        VALIDATING,
        "begin lines",
        "cancel batch",
        lambda _, r: (r.status, r.validated, r.begun_at),
        (BatchStatus.CANCELLING, 2, NOW + 1),
    ),
    (VALIDATING, "fail batch", "cancel batch", lambda t, r: r == t.batches.get(BATCH.id) and r.problems, PROBLEMS),
    (
        (*BATCH_CLAIMED, "expire batch", "finalize"),
        "end batch",
        "publish batch",
        lambda _, r: (r.status, r.published),
        (BatchStatus.EXPIRED, True),
    ),
    ((), "create file", "mark file uploaded", lambda t, r: r == t.files.get(FILE.id) and r.is_uploaded, True),
    ((), "begin line", "end line", lambda t, _: t.lines.any_pending(BATCH.id), False),
    ((), "take", "take more", lambda t, r: (r, used(t)), ((True, 8), 8)),
    ((), "take", "take the last", lambda t, r: (r, used(t)), ((True, 10), 10)),
    (("take", "take more"), "give back", "give more back", lambda t, r: (r, used(t)), (None, 0)),
    (("take slot", "free slot"), "take slot", "take slot for another", lambda _, r: r, SLOT),
    (("take slot",), "free slot", "take slot again", lambda t, r: (r, take_slot(t, OTHER.id)), ([], None)),
)


@pytest.mark.parametrize(("before", "write", "other", "look", "expected"), MEETINGS)
def test_a_repeated_write_recognises_itself_after_another_write(
    wire: Wire,
    table: Table,
    before: Sequence[str],
    write: str,
    other: str,
    look: Callable[[Table, Any], object],
    expected: object,
) -> None:
    for step in before:
        STEPS[step](table)
    outcomes: list[object] = []
    wire.in_between = lambda: outcomes.append(outcome(table, other))
    wire.writes.clear()
    wire.losing = 0
    given = outcome(table, write)
    assert len(outcomes) == 1
    assert look(table, given) == expected
