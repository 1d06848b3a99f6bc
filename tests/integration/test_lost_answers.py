"""The SDK repeats a write whose answer was lost on its way back. The result is as if nothing was lost."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import botocore.httpsession
import msgspec
import pytest
from botocore.exceptions import ConnectionClosedError

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.batches import DynamoBatches, DynamoBatchLines
from imagegen.aws.generations import DynamoGenerations
from imagegen.batches import Batch, BatchStatus, Checkpoint, Counts, EndedLine, InboxFile, batch_id_of
from imagegen.bootstrap import sdk
from imagegen.generations import (
    AnsweredImage,
    CallAnswer,
    Failure,
    Generation,
    IdTakenError,
    LostClaimError,
    Status,
    StoredImage,
    Tombstone,
)
from tests.integration.conftest import JUDGES, new_table
from tests.integration.test_generation_store import new

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient

NOW = 1_760_000_000.5
DAY = "2025-10-09"
GENERATION, OTHER = new(n=3, at=NOW), new(at=NOW - 1)
ID = GENERATION.id
IMAGE_ID = GENERATION.image_ids[0]
IMAGE = StoredImage("image/png", 7)
ANSWER = CallAnswer((AnsweredImage("https://i.example/1"),), {"size": "1024x1024"}, {"total_tokens": 7})
FAILURE = Failure("UpstreamFailedError", "It failed.")
FILE = InboxFile("inbox/alice/a.jsonl", "v", 7)
BATCH = Batch(id=batch_id_of("bucket", FILE.key, "v"), caller="alice", file=FILE, created_at=NOW)
LINE = EndedLine(completed=True, text="{}")


@dataclass(frozen=True)
class Stores:
    client: "DynamoDBClient"
    table: str
    generations: DynamoGenerations
    batches: DynamoBatches
    lines: DynamoBatchLines
    counters: DynamoAllowanceCounters

    @property
    def generation(self) -> Generation:
        found = self.generations.get(ID)
        assert found is not None
        return found

    @property
    def batch(self) -> Batch:
        found = self.batches.get(BATCH.id)
        assert found is not None
        return found

    def items(self) -> list[dict[str, Any]]:
        """All that is in the table, but not random tokens and expiries, which differ from run to run."""
        varying = re.compile(r"requeued_by|returned_by|seen_\d+|expires_at")
        return sorted(
            (
                {name: name if varying.fullmatch(name) else value for name, value in item.items()}
                for item in self.client.scan(TableName=self.table)["Items"]
            ),
            key=lambda item: (item["pk"]["S"], item["sk"]["S"]),
        )


class Wire:
    """Between the SDK and AWS. The answer to the next write is lost if `losing`; `in_between` is called then."""

    def __init__(self, send: Callable[[Any, Any], Any]) -> None:
        self._send = send
        self.writes: list[str] = []
        self.losing = False
        self.in_between: Callable[[], object] | None = None

    def send(self, session: Any, request: Any) -> Any:
        answer = self._send(session, request)
        target = request.headers["X-Amz-Target"]
        operation = (target.decode() if isinstance(target, bytes) else str(target)).partition(".")[2]
        if operation in ("BatchGetItem", "GetItem", "Query", "Scan"):
            return answer
        self.writes.append(operation)
        if self.losing:
            self.losing = False
            if self.in_between is not None:
                self.in_between()
            raise ConnectionClosedError(endpoint_url=request.url)
        return answer


@pytest.fixture(scope="module", params=JUDGES)
def client(request: pytest.FixtureRequest) -> Iterator["DynamoDBClient"]:
    """The product's own, which repeats as often as in production."""
    caches = (sdk.session, sdk.dynamodb)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", request.getfixturevalue(f"{request.param}_url"))
        environment.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        for cached in caches:
            cached.cache_clear()
        client = sdk.dynamodb()
    for cached in caches:
        cached.cache_clear()
    yield client
    client.close()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """What the SDK would repeat after a pause, it repeats at once."""
    wire = Wire(botocore.httpsession.URLLib3Session.send)

    def send(session: Any, request: Any) -> Any:
        return wire.send(session, request)

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", send)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    return wire


@pytest.fixture
def new_stores(client: "DynamoDBClient") -> Iterator[Callable[[], Stores]]:
    with ExitStack() as tables:

        def stores() -> Stores:
            table = tables.enter_context(new_table(client))
            return Stores(
                client,
                table,
                DynamoGenerations(lambda: client, table, retention_seconds=1000),
                DynamoBatches(lambda: client, table, retention_seconds=1000),
                DynamoBatchLines(lambda: client, table, retention_seconds=1000),
                DynamoAllowanceCounters(lambda: client, table),
            )

        yield stores


Step = Callable[[Stores], object]
Look = Callable[[Stores, Any], object]


def hold(s: Stores, who: str = ID, *, at: float = NOW, expired: float = NOW - 50, replacing: str | None = None) -> Any:
    return s.generations.hold_key("alice", "k", who, "body", now=at, expired_before=expired, replacing=replacing)


def mark(s: Stores, generation: Generation = GENERATION) -> None:
    s.generations.mark_attempt("alice", "body", generation.id, 0, now=generation.created_at)


def attach(s: Stores, attempt: int = 1) -> str | None:
    return s.generations.attach_attempt("alice", "body", attempt, since=NOW - 100)


def create(s: Stores) -> None:
    s.generations.create(GENERATION)


def claim(s: Stores, owner: str = "me", *, at: float = NOW) -> Generation | None:
    return s.generations.claim(ID, owner, now=at, lease_until=at + 60)


def send(s: Stores, sent: int = 1) -> None:
    s.generations.save_sending(ID, "me", 0, sent)


def fail(s: Stores) -> Generation:
    return s.generations.end(ID, "me", Status.FAILED, now=NOW + 9, failure=FAILURE)


def announce(s: Stores) -> None:
    s.generations.mark_announced(s.generation)


def cancel(s: Stores) -> Generation | None:
    return s.generations.cancel(ID, now=NOW + 5)


def requeue(s: Stores) -> Generation | None:
    return s.generations.requeue(s.generation, now=NOW + 20)


def void(s: Stores) -> Generation | None:
    return s.generations.void(ID, now=NOW)


def note_returned(s: Stores) -> bool:
    return s.generations.note_returned(s.generation, 2)


def bury(s: Stores) -> Tombstone:
    return s.generations.bury(s.generation, now=NOW + 30)


def create_batch(s: Stores) -> Batch:
    return s.batches.create(BATCH)


def claim_batch(s: Stores, owner: str = "me") -> Batch | None:
    return s.batches.claim(BATCH.id, owner, now=NOW, lease_until=NOW + 60)


def finalize(s: Stores) -> Batch:
    return s.batches.begin_finalizing(BATCH.id, "me", now=NOW + 2)


def cancel_batch(s: Stores) -> Batch | None:
    return s.batches.begin_cancelling(BATCH.id, now=NOW + 1)


def end_batch(s: Stores) -> Batch:
    return s.batches.end(BATCH.id, "me", Counts(1, 0), now=NOW + 3)


def begin_line(s: Stores) -> None:
    s.lines.begin(BATCH.id, 1, "c")


def end_line(s: Stores) -> None:
    s.lines.end(BATCH.id, 1, LINE)


def take(s: Stores, token: str = "a", images: int = 4) -> tuple[bool, int]:
    return s.counters.take("alice", DAY, images, 10, token=token)


def give_back(s: Stores, token: str = "a") -> None:
    s.counters.give_back("alice", DAY, 4, token=token)


def used(s: Stores) -> int:
    """How many images are taken. More than the limit are never taken."""
    return s.counters.take("alice", DAY, 11, 10, token="look")[1]


NOTHING: Sequence[Step] = ()
CREATED: Sequence[Step] = (create,)
CLAIMED: Sequence[Step] = (create, claim)
SENT: Sequence[Step] = (create, claim, send)
FAILED: Sequence[Step] = (create, claim, send, fail)
ANNOUNCED: Sequence[Step] = (*FAILED, announce)
CANCELLED: Sequence[Step] = (create, claim, send, cancel)
BURIED: Sequence[Step] = (create, claim, cancel, bury)
MARKED: Sequence[Step] = (mark, lambda s: mark(s, OTHER))
BATCH_CLAIMED: Sequence[Step] = (create_batch, claim_batch)
BATCH_FINALIZING: Sequence[Step] = (*BATCH_CLAIMED, finalize)


@dataclass(frozen=True)
class Row:
    """A write in a state. `look` gives what must be `expected` afterwards."""

    method: Callable[..., object]
    case: str
    state: Sequence[Step]
    write: Step
    look: Look
    expected: object

    @property
    def name(self) -> str:
        return f"{self.method.__qualname__}{self.case and ' '}{self.case}"


def result(_: Stores, given: Any) -> object:
    return given


G, B, L, C = DynamoGenerations, DynamoBatches, DynamoBatchLines, DynamoAllowanceCounters
ROWS = (
    Row(G.hold_key, "free", NOTHING, hold, lambda _, r: r.generation_id, ID),
    Row(
        G.hold_key,
        "replacing",
        (lambda s: hold(s, OTHER.id),),
        lambda s: hold(s, replacing=OTHER.id),
        lambda s, r: (r.generation_id, hold(s, "gen_x").generation_id),
        (ID, ID),
    ),
    Row(
        G.hold_key,
        "expired",
        (lambda s: hold(s, OTHER.id, at=NOW - 100),),
        hold,
        lambda s, r: (r.generation_id, hold(s, "gen_x").generation_id),
        (ID, ID),
    ),
    Row(G.hold_key, "held", (lambda s: hold(s, OTHER.id),), hold, lambda _, r: r.generation_id, OTHER.id),
    Row(G.mark_attempt, "", NOTHING, mark, lambda s, _: [attach(s, k) for k in (0, 1, 1)], [None, ID, None]),
    Row(G.attach_attempt, "", MARKED, attach, lambda s, r: [r, attach(s), attach(s)], [ID, OTHER.id, None]),
    Row(G.create, "free", NOTHING, create, lambda s, r: (r, s.generation), (None, GENERATION)),
    Row(
        G.create,
        "taken",
        CREATED,
        lambda s: s.generations.create(msgspec.structs.replace(OTHER, id=ID)),
        lambda s, r: (r, s.generation),
        ((IdTakenError, False, False), GENERATION),
    ),
    Row(G.create, "void", (void,), create, result, (IdTakenError, True, False)),
    Row(G.create, "deleted", BURIED, create, result, (IdTakenError, True, True)),
    Row(G.claim, "queued", CREATED, claim, lambda s, r: (r == s.generation, r.owner), (True, "me")),
    Row(
        G.claim,
        "lease ended",
        CLAIMED,
        lambda s: claim(s, "other", at=NOW + 61),
        lambda s, r: (r == s.generation, r.owner),
        (True, "other"),
    ),
    Row(G.claim, "lease live", CLAIMED, lambda s: claim(s, "other"), result, None),
    Row(
        G.renew,
        "",
        CLAIMED,
        lambda s: s.generations.renew(ID, "me", NOW + 99),
        lambda s, r: (r, s.generation.lease_until),
        (None, NOW + 99),
    ),
    Row(
        G.renew,
        "cancelled",
        CANCELLED,
        lambda s: s.generations.renew(ID, "me", NOW + 99),
        lambda s, r: (r, s.generation.lease_until),
        (None, NOW + 99),
    ),
    Row(
        G.let_go,
        "",
        CLAIMED,
        lambda s: s.generations.let_go(ID, "me"),
        lambda s, r: (r, s.generation.lease_until),
        (None, 0),
    ),
    Row(G.save_sending, "", SENT, lambda s: send(s, 2), lambda s, _: s.generation.calls[0].sent, 2),
    *(
        row
        for case, state in (("in progress", (*SENT, lambda s: send(s, 2))), ("ended", CANCELLED))
        for row in (
            Row(
                G.save_refusal,
                case,
                state,
                lambda s: s.generations.save_refusal(ID, 0, 1),
                lambda s, r: (r, s.generation.calls[0].refused),
                (None, 1),
            ),
            Row(
                G.save_answer,
                case,
                state,
                lambda s: s.generations.save_answer(ID, 0, ANSWER),
                lambda s, r: (r, s.generation.calls[0].answer),
                (ANSWER, ANSWER),
            ),
            Row(
                G.save_image,
                case,
                state,
                lambda s: s.generations.save_image(ID, IMAGE_ID, IMAGE),
                lambda s, r: (r, s.generation.stored),
                (None, {IMAGE_ID: IMAGE}),
            ),
        )
    ),
    Row(
        G.save_answer,
        "deleted",
        BURIED,
        lambda s: s.generations.save_answer(ID, 0, ANSWER),
        result,
        (LostClaimError,),
    ),
    Row(
        G.end,
        "completed",
        SENT,
        lambda s: s.generations.end(ID, "me", Status.COMPLETED, now=NOW + 9),
        lambda s, r: (r == s.generation, r.status, r.completed_at),
        (True, Status.COMPLETED, NOW + 9),
    ),
    Row(
        G.end,
        "failed",
        SENT,
        fail,
        lambda s, r: (r == s.generation, r.status, r.failure),
        (True, Status.FAILED, FAILURE),
    ),
    Row(G.end, "cancelled meanwhile", CANCELLED, fail, result, (LostClaimError,)),
    Row(G.mark_announced, "", FAILED, announce, lambda s, r: (r, s.generation.announced), (None, True)),
    Row(G.cancel, "queued", CREATED, cancel, lambda s, r: (r == s.generation, r.status), (True, Status.CANCELLED)),
    Row(G.cancel, "in progress", SENT, cancel, lambda s, r: (r == s.generation, r.status), (True, Status.CANCELLED)),
    Row(
        G.requeue,
        "",
        ANNOUNCED,
        requeue,
        lambda s, r: (r == s.generation, r.status, r.retries, r.reserved_at),
        (True, Status.QUEUED, 1, NOW + 20),
    ),
    Row(G.requeue, "not announced", FAILED, requeue, result, None),
    Row(G.void, "free", NOTHING, void, lambda s, r: (r, void(s), s.generations.get(ID)), (None, None, None)),
    Row(G.void, "taken", CREATED, void, lambda s, r: (r, s.generation), (GENERATION, GENERATION)),
    Row(G.void, "deleted", BURIED, void, result, (IdTakenError, True, True)),
    Row(G.note_returned, "", FAILED, note_returned, lambda s, r: (r, s.generation.returned), (True, 2)),
    Row(
        G.note_returned,
        "noted already",
        (*FAILED, note_returned),
        lambda s: s.generations.note_returned(GENERATION, 1),
        lambda s, r: (r, s.generation.returned),
        (False, 2),
    ),
    Row(
        G.bury,
        "",
        FAILED,
        bury,
        lambda s, r: (r == s.generations.tombstone(ID), r.image_ids, s.generations.get(ID)),
        (True, GENERATION.image_ids, None),
    ),
    Row(G.bury, "not ended", CLAIMED, bury, result, (LostClaimError,)),
    Row(B.create, "", NOTHING, create_batch, lambda s, r: (r, s.batch), (BATCH, BATCH)),
    Row(B.claim, "", (create_batch,), claim_batch, lambda s, r: (r == s.batch, r.owner), (True, "me")),
    Row(B.claim, "another's", BATCH_CLAIMED, lambda s: claim_batch(s, "other"), result, None),
    Row(
        B.renew,
        "",
        BATCH_CLAIMED,
        lambda s: s.batches.renew(BATCH.id, "me", NOW + 99),
        lambda s, r: (r, s.batch.lease_until),
        (None, NOW + 99),
    ),
    Row(
        B.let_go,
        "",
        BATCH_CLAIMED,
        lambda s: s.batches.let_go(BATCH.id, "me"),
        lambda s, r: (r, s.batch.owner, s.batch.lease_until),
        (None, None, 0),
    ),
    Row(
        B.save_checkpoint,
        "",
        BATCH_CLAIMED,
        lambda s: s.batches.save_checkpoint(BATCH.id, "me", Checkpoint(7, 2)),
        lambda s, r: (r == s.batch, r.checkpoint),
        (True, Checkpoint(7, 2)),
    ),
    Row(
        B.save_total,
        "",
        BATCH_CLAIMED,
        lambda s: s.batches.save_total(BATCH.id, "me", 2),
        lambda s, r: (r == s.batch, r.total),
        (True, 2),
    ),
    Row(
        B.begin_cancelling,
        "",
        BATCH_CLAIMED,
        cancel_batch,
        lambda s, r: (r == s.batch, r.cancelling_at),
        (True, NOW + 1),
    ),
    Row(B.begin_finalizing, "", BATCH_CLAIMED, finalize, lambda s, r: (r == s.batch, r.finalizing_at), (True, NOW + 2)),
    Row(
        B.end,
        "completed",
        BATCH_FINALIZING,
        end_batch,
        lambda s, r: (r == s.batch, r.status, r.counts),
        (True, BatchStatus.COMPLETED, Counts(1, 0)),
    ),
    Row(
        B.end,
        "cancelled",
        (*BATCH_CLAIMED, cancel_batch, finalize),
        end_batch,
        lambda s, r: (r == s.batch, r.status),
        (True, BatchStatus.CANCELLED),
    ),
    Row(B.end, "not finalizing", BATCH_CLAIMED, end_batch, result, (LostClaimError,)),
    Row(
        B.mark_announced,
        "",
        (*BATCH_FINALIZING, end_batch),
        lambda s: s.batches.mark_announced(BATCH.id),
        lambda s, r: (r, s.batch.announced),
        (None, True),
    ),
    Row(L.begin, "", NOTHING, begin_line, lambda s, _: list(s.lines.pending(BATCH.id)), [(1, "c")]),
    Row(
        L.end,
        "",
        (begin_line,),
        end_line,
        lambda s, _: (s.lines.any_pending(BATCH.id), list(s.lines.ended(BATCH.id)), s.lines.counts(BATCH.id)),
        (False, [LINE], Counts(1, 0)),
    ),
    Row(
        L.forget_pending,
        "",
        (begin_line,),
        lambda s: s.lines.forget_pending(BATCH.id, 1),
        lambda s, _: s.lines.any_pending(BATCH.id),
        False,
    ),
    Row(C.take, "the first", NOTHING, take, lambda s, r: (r, used(s)), ((True, 4), 4)),
    Row(C.take, "more", (take,), lambda s: take(s, "b"), lambda s, r: (r, used(s)), ((True, 8), 8)),
    Row(C.take, "the last", (take,), lambda s: take(s, "b", 6), lambda s, r: (r, used(s)), ((True, 10), 10)),
    Row(C.take, "too many", (take,), lambda s: take(s, "b", 7), lambda s, r: (r, used(s)), ((False, 4), 4)),
    Row(C.take, "again", (take, give_back), take, lambda s, r: (r, used(s)), ((True, 4), 4)),
    Row(C.give_back, "some", (take, lambda s: take(s, "b")), give_back, lambda s, r: (r, used(s)), (None, 4)),
    Row(C.give_back, "all", (take,), give_back, lambda s, r: (r, used(s)), (None, 0)),
)
READS: dict[Callable[..., object], Step] = {
    G.get: lambda s: s.generations.get(ID),
    G.newest: lambda s: s.generations.newest("alice", 5),
    G.tombstone: lambda s: s.generations.tombstone(ID),
    B.get: lambda s: s.batches.get(BATCH.id),
    B.newest: lambda s: s.batches.newest("alice", 5),
    L.pending: lambda s: list(s.lines.pending(BATCH.id)),
    L.any_pending: lambda s: s.lines.any_pending(BATCH.id),
    L.ended_among: lambda s: s.lines.ended_among(BATCH.id, 1, 9),
    L.ended: lambda s: list(s.lines.ended(BATCH.id)),
    L.counts: lambda s: s.lines.counts(BATCH.id),
}


def outcome(write: Callable[[], object]) -> object:
    try:
        return write()
    except IdTakenError as taken:
        return IdTakenError, taken.void, taken.deleted
    except LostClaimError:
        return (LostClaimError,)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_write_whose_answer_is_lost_is_as_if_nothing_was_lost(
    wire: Wire, new_stores: Callable[[], Stores], row: Row
) -> None:
    plain, lossy = new_stores(), new_stores()
    for stores in (plain, lossy):
        for step in row.state:
            step(stores)
    wire.writes.clear()
    given = outcome(lambda: row.write(plain))
    writes = list(wire.writes)
    assert writes
    wire.writes.clear()
    wire.losing = True
    given_after_loss = outcome(lambda: row.write(lossy))
    assert wire.writes == [writes[0], *writes]
    assert given_after_loss == given
    assert lossy.items() == plain.items()
    assert row.look(lossy, given_after_loss) == row.expected


def test_every_public_method_of_the_stores_is_in_a_table() -> None:
    public = {
        method.__qualname__
        for store in (DynamoGenerations, DynamoBatches, DynamoBatchLines, DynamoAllowanceCounters)
        for name, method in vars(store).items()
        if not name.startswith("_")
    }
    assert {row.method.__qualname__ for row in ROWS} | {method.__qualname__ for method in READS} == public


@pytest.mark.parametrize("read", READS.values(), ids=[method.__qualname__ for method in READS])
def test_what_is_in_the_table_of_reads_writes_nothing(wire: Wire, new_stores: Callable[[], Stores], read: Step) -> None:
    stores = new_stores()
    for step in (create, create_batch, begin_line):
        step(stores)
    assert wire.writes
    wire.writes.clear()
    read(stores)
    assert wire.writes == []


@dataclass(frozen=True)
class Meeting:
    """A write is applied and its answer is lost; `other` comes before the SDK repeats it."""

    name: str
    state: Sequence[Step]
    write: Step
    other: Step
    look: Look
    expected: object


MEETINGS = (
    Meeting(
        "a key is asked for by another",
        NOTHING,
        hold,
        lambda s: hold(s, OTHER.id),
        lambda s, r: (r.generation_id, hold(s, OTHER.id).generation_id),
        (ID, ID),
    ),
    Meeting(
        "a marker is found by a retry",
        NOTHING,
        mark,
        attach,
        lambda s, _: [attach(s, attempt) for attempt in (1, 2)],
        [None, ID],
    ),
    Meeting(
        "a marker is asked for by another retry",
        MARKED,
        attach,
        attach,
        lambda s, r: (r, attach(s)),
        (ID, None),
    ),
    Meeting(
        "a record is claimed",
        NOTHING,
        create,
        claim,
        lambda s, r: (r, s.generation.status, s.generation.owner),
        (None, Status.IN_PROGRESS, "me"),
    ),
    Meeting(
        "a lease that was given up is taken by another",
        CLAIMED,
        lambda s: s.generations.let_go(ID, "me"),
        lambda s: claim(s, "other"),
        lambda s, _: (s.generation.owner, s.generation.lease_until),
        ("other", NOW + 60),
    ),
    Meeting(
        "another answer comes",
        CANCELLED,
        lambda s: s.generations.save_answer(ID, 0, ANSWER),
        lambda s: s.generations.save_answer(ID, 0, CallAnswer((AnsweredImage("https://i.example/2"),))),
        lambda s, _: s.generation.calls[0].answer,
        ANSWER,
    ),
    Meeting(
        "an end is announced",
        SENT,
        fail,
        announce,
        lambda s, r: (r.status, s.generation.announced, s.generation.completed_at),
        (Status.FAILED, True, NOW + 9),
    ),
    Meeting(
        "an announced generation waits again",
        FAILED,
        announce,
        requeue,
        lambda s, _: (s.generation.status, s.generation.announced),
        (Status.QUEUED, False),
    ),
    Meeting(
        "a requeued generation is claimed",
        ANNOUNCED,
        requeue,
        lambda s: claim(s, "other"),
        lambda s, r: (r.retries, s.generation.retries, s.generation.status, s.generation.owner),
        (1, 1, Status.IN_PROGRESS, "other"),
    ),
    Meeting(
        "a cancelled generation's lease is renewed",
        SENT,
        cancel,
        lambda s: s.generations.renew(ID, "me", NOW + 99),
        lambda s, r: (r.status, s.generation.lease_until),
        (Status.CANCELLED, NOW + 99),
    ),
    Meeting(
        "a void id is asked for",
        NOTHING,
        void,
        lambda s: outcome(lambda: create(s)),
        lambda s, r: (r, s.generations.get(ID)),
        (None, None),
    ),
    Meeting(
        "a returned image's generation is refused once more",
        FAILED,
        note_returned,
        lambda s: s.generations.save_refusal(ID, 0, 1),
        lambda s, r: (r, s.generation.returned, s.generation.calls[0].refused),
        (True, 2, 1),
    ),
    Meeting(
        "a batch that was given up is taken by another",
        BATCH_CLAIMED,
        lambda s: s.batches.let_go(BATCH.id, "me"),
        lambda s: claim_batch(s, "other"),
        lambda s, _: (s.batch.owner, s.batch.lease_until),
        ("other", NOW + 60),
    ),
    Meeting(
        "images are taken by another", NOTHING, take, lambda s: take(s, "b"), lambda s, r: (r, used(s)), ((True, 8), 8)
    ),
    Meeting(
        "the last images are taken by another",
        NOTHING,
        take,
        lambda s: take(s, "b", 6),
        lambda s, r: (r, used(s)),
        ((True, 10), 10),
    ),
    Meeting(
        "images are given back by another",
        (take, lambda s: take(s, "b")),
        give_back,
        lambda s: give_back(s, "b"),
        lambda s, r: (r, used(s)),
        (None, 0),
    ),
)


@pytest.mark.parametrize("meeting", MEETINGS, ids=lambda meeting: meeting.name)
def test_a_write_whose_answer_is_lost_recognises_itself_after_another_came_in_between(
    wire: Wire, new_stores: Callable[[], Stores], meeting: Meeting
) -> None:
    stores = new_stores()
    for step in meeting.state:
        step(stores)
    came: list[object] = []
    wire.in_between = lambda: came.append(meeting.other(stores))
    wire.losing = True
    given = outcome(lambda: meeting.write(stores))
    assert len(came) == 1
    assert meeting.look(stores, given) == meeting.expected
