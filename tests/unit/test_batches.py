"""A file becomes generations and two files of answers, even if processes die and it is announced several times."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from imagegen.allowance import Allowance
from imagegen.announce import Settle, announce
from imagegen.batches import (
    Batch,
    BatchStatus,
    Checkpoint,
    Counts,
    EndedLine,
    InboxFile,
    batch_id_of,
    is_batch_id,
    line_generation_id,
)
from imagegen.carry_on import BatchShop, begin, carry_on
from imagegen.deadline import Deadline
from imagegen.errors import (
    BatchEndedError,
    GenerationCancelledError,
    InvalidRequestError,
    RecordsUnavailableError,
    UnknownBatchError,
)
from imagegen.file_lines import BLOCK_BYTES, MAX_LINE_BYTES, lines_of
from imagegen.generations import Generation, Origin, Status
from imagegen.images import ImageRequest
from imagegen.manage import delete
from imagegen.manage_batch import cancel_batch, see_batch
from imagegen.openai_wire.batches import batch_answer, batch_event, outcome_line, read_batch_line, refused_line
from imagegen.openai_wire.inbox_messages import DroppedFile, read_inbox_message
from imagegen.read_batch import CHUNK_LINES, Reader
from imagegen.settle import Ledger
from imagegen.submit import Attempt, Desk, submit
from tests.conftest import ROOT
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.batches import FakeBatchBus, FakeBatchLines, FakeBatchQueue, FakeBatchStore, FakeFiles
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_store import FakeImageStore

NOW, LEASE = 1_760_000_000.0, 60.0
FILES = ("output_file_id", "error_file_id")


def line(custom_id: str, **body: Any) -> str:
    body = {"prompt": custom_id, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body})


class World:
    """An intake, and workers that make all images at once on demand."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.now = NOW
        self.records, self.queue, self.counters = FakeGenerationStore(), FakeGenerationQueue(), FakeAllowanceCounters()
        self.bus, self.batch_bus, self.files = FakeEventBus(), FakeBatchBus(), FakeFiles()
        self.batches, self.messages = FakeBatchStore(), FakeBatchQueue()
        self.lines = FakeBatchLines(self.batches)
        self.ledger = Ledger(self.batches, self.lines, self.messages, outcome_line)
        self.settle: Settle = self.ledger.settle
        self.desk = Desk(
            records=self.records,
            queue=self.queue,
            allowance=Allowance(self.counters, 10_000, 10_000),
            now=lambda: self.now,
            lease=LEASE,
            sleep=lambda _: None,
        )
        reader = Reader(
            desk=self.desk,
            ledger=self.ledger,
            inbox=self.files,
            pool=pool,
            base_url="https://x.example",
            read_line=partial(read_batch_line, prompt_cap=1000),
            refusal=refused_line,
            own_images_per_day=lambda _: self.own,
        )
        self.own: int | None = None
        self.shop = BatchShop(reader, self.counters, self.bus, self.batch_bus, self.files)

    def drop(self, *lines: str) -> Batch:
        self.files.content = "\n".join(lines).encode()
        file = InboxFile("inbox/alice/a.jsonl", "v1", len(self.files.content))
        return begin("bucket", file, "alice", self.batches, self.now)

    def carry_on(self, batch: Batch, seconds: float = 100) -> float | None:
        return carry_on(batch.id, self.shop, Deadline.after(seconds), lambda _: None)

    def make_all(self) -> None:
        """Each message behind a generation is worked on, and the safety net's after it."""
        for generation_id, _ in self.queue.sent:
            self.make(generation_id)

    def make(self, generation_id: str, status: Status = Status.COMPLETED) -> None:
        if self.records.claim(generation_id, "w", now=self.now, lease_until=self.now + 1):
            if status is Status.COMPLETED:
                self.records.save_sending(generation_id, "w", 0, 1)
            self.records.end(generation_id, "w", status, now=self.now)
        if generation := self.records.get(generation_id):
            announce(generation, self.records, self.counters, self.bus, self.ledger.settle)

    def carry_on_all(self) -> None:
        while self.messages.sent:
            batch = self.batches.get(self.messages.sent.pop(0))
            assert batch is not None
            self.carry_on(batch)

    def batch(self, batch: Batch) -> Batch:
        found = self.batches.get(batch.id)
        assert found is not None
        return found

    def written(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        output, errors = (self.files.there.get(f"outbox/alice/a.{kind}.jsonl", b"") for kind in ("output", "errors"))
        return [json.loads(each) for each in output.splitlines()], [json.loads(each) for each in errors.splitlines()]


@pytest.fixture
def world() -> Iterator[World]:
    with ThreadPoolExecutor(4) as pool:
        yield World(pool)


def custom_ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]


# Reading a file.


def texts(content: bytes, start: Checkpoint | None = None) -> list[tuple[int, bytes | None]]:
    lines = lines_of(lambda at, length: content[at : at + length], len(content), start or Checkpoint())
    return [(each.number, each.text) for each in lines if each.text != b""]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n \r\n\n", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\r\n\r\n b \nc", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"]),
        (b"a\n" + b"x" * (MAX_LINE_BYTES + 1) + b"\nb", [b"a", None, b"b"]),
        (b"x" * (3 * BLOCK_BYTES), [None]),
        (b"x" * (3 * BLOCK_BYTES) + b"\na", [None, b"a"]),
        (b"x" * MAX_LINE_BYTES + b"\r\n", [None]),
        (b"x" * MAX_LINE_BYTES + b"\na", [b"x" * MAX_LINE_BYTES, b"a"]),
        ("ü\n".encode() * 600_000, ["ü".encode()] * 600_000),
    ],
    ids=range(12),
)
def test_a_file_is_cut_into_its_lines(content: bytes, lines: list[bytes | None]) -> None:
    assert texts(content) == list(enumerate(lines, 1))


def test_behind_any_checkpoint_come_the_lines_that_are_left() -> None:
    content = b"one\n\ntwo\r\nthree\n" + b"x" * (2 * BLOCK_BYTES) + b"\nfive"
    whole = texts(content)
    for each in lines_of(lambda at, length: content[at : at + length], len(content), Checkpoint()):
        assert texts(content, each.after) == whole[each.number :]


@pytest.mark.parametrize("end", [b"", b"\nx"])
@pytest.mark.parametrize("filling", [b"\n", b"x", b" \r\n"])
def test_there_is_a_checkpoint_in_every_block_of_what_is_no_line(filling: bytes, end: bytes) -> None:
    """Otherwise a turn that is too short for what comes next would begin at the same place for ever."""
    content = b"one\n" + filling * (5 * BLOCK_BYTES // 2 // len(filling)) + end
    whole, at, last = texts(content), 0, Checkpoint()
    for each in lines_of(lambda at, length: content[at : at + length], len(content), Checkpoint()):
        assert at < each.after.offset <= at + 2 * BLOCK_BYTES
        at = each.after.offset
        last = each.after if at < len(content) else last
    assert len(content) - at < BLOCK_BYTES
    assert texts(content, last) == whole[last.line :]


# A whole life.


def test_every_line_of_a_file_is_made_once_and_answered_in_its_order(world: World) -> None:
    count = 2 * CHUNK_LINES + 7
    batch = world.drop(*(line(f"c{number}") for number in range(count)))
    assert is_batch_id(batch.id)
    assert world.carry_on(batch) is None
    assert world.batch(batch).total == count
    assert world.files.saved == []
    world.make_all()
    world.carry_on_all()
    ended = world.batch(batch)
    assert (ended.status, ended.counts, ended.announced) == (BatchStatus.COMPLETED, Counts(count, 0), True)
    output, errors = world.written()
    assert custom_ids(output) == [f"c{number}" for number in range(count)]
    assert errors == []
    assert [key for key, _ in world.files.saved] == ["outbox/alice/a.output.jsonl"]
    assert world.counters.used["alice", "2025-10-09"] == count
    assert [each.id for each in world.batch_bus.ended] == [batch.id]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ("{", None),
        ("[]", None),
        ("1" * (MAX_LINE_BYTES + 1), None),
        ('{"method": "POST"}', "custom_id"),
        ('{"custom_id": ""}', "custom_id"),
        ('{"custom_id": "c", "method": "GET"}', "method"),
        ('{"custom_id": "c", "method": "POST", "url": "/v1/files"}', "url"),
        ('{"custom_id": "c", "method": "POST", "url": "/v1/images/generations", "body": []}', "body"),
        (line("c", size="1x1"), "size"),
    ],
)
def test_a_bad_line_fails_and_stops_no_other(world: World, bad: str, param: str | None) -> None:
    batch = world.drop(line("before"), bad, line("after"))
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    output, (error,) = world.written()
    assert custom_ids(output) == ["before", "after"]
    assert (error["line"], error["response"]["body"]["error"]["param"]) == (2, param)
    assert world.batch(batch).counts == Counts(2, 1)


def test_over_the_allowance_a_line_fails(world: World) -> None:
    world.own = 2
    batch = world.drop(*(line(f"c{number}") for number in range(5)))
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    output, errors = world.written()
    assert (len(output), len(errors)) == (2, 3)
    assert {error["response"]["body"]["error"]["code"] for error in errors} == {"insufficient_quota"}


def test_a_file_announced_again_changes_nothing(world: World) -> None:
    batch = world.drop(line("a"), "{")
    for _ in range(3):
        assert world.drop(line("a"), "{").id == batch.id
        assert world.carry_on(batch) is None
    world.make_all()
    world.carry_on_all()
    world.carry_on(batch)
    assert len(world.files.saved) == 2
    assert len(world.batch_bus.ended) == 1
    assert world.counters.used["alice", "2025-10-09"] == 1


def test_a_file_that_outlasts_its_reader_is_read_on_by_another(world: World) -> None:
    count = 3 * CHUNK_LINES
    batch = world.drop(*(line(f"c{number}") for number in range(count)))
    for _ in range(3):
        assert world.carry_on(batch, seconds=0) is None
        assert world.messages.sent.pop() == batch.id
    world.carry_on(batch, seconds=0)
    assert world.batch(batch).total == count
    assert world.messages.sent == []
    assert world.messages.callers == {"alice"}


def test_one_works_on_a_batch_at_a_time(world: World) -> None:
    batch = world.drop(line("a"))
    world.batches.claim(batch.id, "another", now=NOW, lease_until=NOW + 40)
    assert world.carry_on(batch) is None
    assert (world.messages.sent, world.messages.delays) == ([batch.id], [40])
    assert world.messages.callers == {"alice"}
    world.now += 41
    world.carry_on_all()
    assert world.batch(batch).total == 1


def test_ends_side_by_side_are_counted_right(world: World) -> None:
    batch = world.drop(*(line(f"c{number}") for number in range(100)))
    world.carry_on(batch)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(world.make, [generation_id for generation_id, _ in world.queue.sent] * 2))
    assert world.messages.sent
    assert world.messages.callers == world.queue.callers == {"alice"}
    world.carry_on_all()
    assert world.batch(batch).counts == Counts(100, 0)
    assert len(world.files.saved) == 1


def test_the_output_is_not_written_before_the_whole_file_is_read(world: World) -> None:
    batch = world.drop(*(line(f"c{number}") for number in range(CHUNK_LINES + 1)))
    world.carry_on(batch, seconds=0)
    world.make_all()
    assert world.messages.sent == [batch.id]  # to read on, and none to finish
    assert world.files.saved == []


def test_of_two_processes_that_finish_a_batch_the_one_without_the_claim_writes_no_file(world: World) -> None:
    """A later file of the same name may have its own files by then. The lines are the same for both."""
    batch = world.drop(line("a"))
    world.carry_on(batch)
    world.make_all()
    ended = world.lines.ended

    def taken_over(batch_id: str) -> Iterator[EndedLine]:
        read = list(ended(batch_id))
        if not world.files.saved:
            world.lines.ended = ended  # type: ignore[method-assign]
            world.now += 2 * LEASE
            delete_line(world, line_generation_id(batch.id, 1))
            world.carry_on(batch)
        return iter(read)

    world.lines.ended = taken_over  # type: ignore[method-assign]
    world.carry_on_all()
    assert [key for key, _ in world.files.saved] == [batch.output_key]
    assert custom_ids(world.written()[0]) == ["a"]
    assert world.batch(batch).counts == Counts(1, 0)


def test_a_turn_that_meets_no_line_moves_on(world: World) -> None:
    batch = world.drop("x" * (CHUNK_LINES + 2) * BLOCK_BYTES, line("a"))
    world.carry_on(batch, seconds=0)
    assert (world.batch(batch).checkpoint.line, world.batch(batch).total) == (0, None)
    assert world.batch(batch).checkpoint.offset >= CHUNK_LINES * BLOCK_BYTES
    world.carry_on_all()
    assert world.batch(batch).total == 2


def test_after_a_fault_at_one_line_no_thread_is_at_work_on_another(world: World) -> None:
    """Otherwise it could begin after the process that carries the batch on has cancelled it."""
    begin_slowly = world.lines.begin
    begun: list[int] = []

    def begins(batch_id: str, number: int, custom_id: str) -> None:
        if number == 1:
            raise RecordsUnavailableError("the first one fails at once")
        time.sleep(0.05)
        begin_slowly(batch_id, number, custom_id)
        begun.append(number)

    world.lines.begin = begins  # type: ignore[assignment, method-assign]
    batch = world.drop(*(line(f"c{number}") for number in range(12)))
    with pytest.raises(RecordsUnavailableError):
        world.carry_on(batch)
    left = list(begun)
    time.sleep(0.2)
    assert begun == left


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("port", ["records", "queue", "counters", "batches", "lines", "messages", "batch_bus", "files"])
def test_a_fault_at_any_one_call_leaves_each_line_made_and_answered_once(port: str, when: Any) -> None:
    at = 0
    while True:
        with ThreadPoolExecutor(1) as pool:
            fresh = World(pool)
            faulty = getattr(fresh, port)
            faulty.failures.extend([None] * at + [when])
            batch = lived(fresh)
            passed = bool(faulty.failures)  # there are no more calls than these
            faulty.failures.clear()
            check(fresh, batch)
        if passed:
            break
        at += 1
    assert at > 0


def lived(world: World) -> Batch:
    """What is interrupted comes again when the lease is gone."""
    batch: Batch | None = None
    for _ in range(8):
        try:
            batch = world.drop(line("a"), "{", line("b"), line("c", size="1x1"))
            world.carry_on(batch)
            world.make_all()
        except RecordsUnavailableError:
            pass
        world.now += LEASE + 1
    assert batch is not None
    return batch


def check(world: World, batch: Batch) -> None:
    ended = world.batch(batch)
    assert (ended.status, ended.counts, ended.announced) == (BatchStatus.COMPLETED, Counts(2, 2), True)
    output, errors = world.written()
    assert (custom_ids(output), custom_ids(errors)) == (["a", "b"], [None, "c"])
    for number in (1, 3):
        assert world.records.get(line_generation_id(batch.id, number)) is not None
    assert len({generation_id for generation_id, _ in world.queue.sent}) == 2
    assert world.batch_bus.ended


# Cancelling.


def test_a_cancelled_batch_is_read_no_further_and_its_lines_are_cancelled(world: World) -> None:
    batch = world.drop(*(line(f"c{number}") for number in range(3 * CHUNK_LINES)))
    world.carry_on(batch, seconds=0)
    world.make(line_generation_id(batch.id, 1))
    cancelled = cancel_batch(batch.id, "alice", world.batches, world.messages, NOW)
    assert cancelled.status is BatchStatus.CANCELLING
    assert cancel_batch(batch.id, "alice", world.batches, world.messages, NOW + 1) == cancelled
    assert world.messages.callers == {"alice"}
    world.carry_on_all()
    ended = world.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.CANCELLED, Counts(1, CHUNK_LINES - 1))
    output, errors = world.written()
    assert custom_ids(output) == ["c0"]
    assert {error["response"]["body"]["error"]["code"] for error in errors} == {"generation_cancelled"}
    assert world.counters.used["alice", "2025-10-09"] == 1  # nothing was sent for the others
    with pytest.raises(BatchEndedError):
        cancel_batch(batch.id, "alice", world.batches, world.messages, NOW)


def test_a_line_that_was_noted_and_never_begun_is_cancelled_too(world: World) -> None:
    batch = world.drop(line("a"))
    world.lines.begin(batch.id, 1, "a")
    cancel_batch(batch.id, "alice", world.batches, world.messages, NOW)
    world.carry_on_all()
    assert world.batch(batch).counts == Counts(0, 1)
    assert custom_ids(world.written()[1]) == ["a"]
    with pytest.raises(GenerationCancelledError):
        submit_line(world, batch)
    assert world.records.get(line_generation_id(batch.id, 1)) is None
    assert set(world.counters.used.values()) == {0}


def submit_line(world: World, batch: Batch) -> None:
    submit(
        ImageRequest("a", "dall-e-2", "url"),
        Attempt(),
        world.desk,
        caller="alice",
        base_url="https://x.example",
        work_here=False,
        origin=Origin("a", batch.id, 1),
        generation_id=line_generation_id(batch.id, 1),
    )


@pytest.mark.parametrize("noted_pending", ["before the cancellation", "after it", "before and after"])
def test_a_line_that_a_late_reader_begins_after_the_batch_was_cancelled_makes_nothing(
    world: World, noted_pending: str
) -> None:
    """The reader stopped for longer than its lease, about when it noted the line as pending."""
    noted, batch = world.lines.begin, world.drop(line("a"))

    def begins(batch_id: str, number: int, custom_id: str) -> None:
        if noted_pending != "after it":
            noted(batch_id, number, custom_id)
        world.now += LEASE + 1
        cancel_batch(batch.id, "alice", world.batches, world.messages, world.now)
        world.carry_on_all()
        assert world.batch(batch).status is BatchStatus.CANCELLED
        if noted_pending != "before the cancellation":
            noted(batch_id, number, custom_id)

    world.lines.begin = begins  # type: ignore[assignment, method-assign]
    assert world.carry_on(batch) == LEASE
    assert world.records.get(line_generation_id(batch.id, 1)) is None
    assert set(world.counters.used.values()) == {0}
    assert not world.lines.any_pending(batch.id)
    assert world.lines.counts(batch.id) == Counts(0, 1)


def test_a_deleted_line_of_a_batch_that_is_cancelled_then_ends(world: World) -> None:
    """The process that deleted it died before the batch knew."""
    batch = world.drop(line("a"))
    world.carry_on(batch, seconds=0)
    generation_id = line_generation_id(batch.id, 1)
    cancelled = world.records.cancel(generation_id, now=NOW)
    assert cancelled is not None
    world.records.bury(cancelled, now=NOW)
    cancel_batch(batch.id, "alice", world.batches, world.messages, NOW)
    world.carry_on_all()
    assert (world.batch(batch).status, world.batch(batch).counts) == (BatchStatus.CANCELLED, Counts(0, 1))


@pytest.mark.parametrize(("batch_id", "caller"), [("batch_x", "alice"), (None, "bob"), ("batch_" + "A" * 22, "alice")])
def test_anothers_batch_is_as_if_it_were_not_there(world: World, batch_id: str | None, caller: str) -> None:
    batch = world.drop(line("a"))
    assert see_batch(batch.id, "alice", world.batches) == batch
    with pytest.raises(UnknownBatchError):
        see_batch(batch_id or batch.id, caller, world.batches)
    with pytest.raises(UnknownBatchError):
        cancel_batch(batch_id or batch.id, caller, world.batches, world.messages, NOW)


# Answers and events.


def ended_batch(world: World) -> Batch:
    batch = world.drop(line("a"), "{")
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    return world.batch(batch)


def test_a_line_of_the_output_has_links_and_no_prompt(world: World) -> None:
    batch = world.drop(line("a", prompt="a canary"))
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    ((output,), _) = world.written()
    body = output["response"]["body"]
    assert output["error"] is None
    assert output["response"]["request_id"] == body["id"] == line_generation_id(batch.id, 1)
    assert [set(image) for image in body["data"]] == [{"id", "permalink"}]
    assert "canary" not in json.dumps(output)


def test_the_object_and_the_event_tell_of_an_ended_batch(world: World) -> None:
    batch = ended_batch(world)
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    assert answer["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert (answer["output_file_id"], answer["completed_at"]) == ("outbox/alice/a.output.jsonl", int(NOW))
    schema = json.loads((ROOT / "events/schemas/image-batch-completed.json").read_text())
    Draft202012Validator(schema).validate(schema["examples"][0])
    assert told_of(batch) == answer


def told_of(batch: Batch) -> dict[str, Any]:
    """The object, whose fields in the event are the same and fit its schema."""
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    detail_type, detail = batch_event(batch)
    schema = json.loads((ROOT / "events/schemas/image-batch-completed.json").read_text())
    Draft202012Validator(schema).validate(schema["examples"][0] | {"detail-type": detail_type, "detail": detail})
    assert detail == {"client": batch.caller, **{name: answer[name] for name in detail if name != "client"}}
    return answer


@pytest.mark.parametrize(
    ("lines", "output", "errors"),
    [
        ([line("a")], "outbox/alice/a.output.jsonl", None),
        (["{"], None, "outbox/alice/a.errors.jsonl"),
        ([line("a"), "{"], "outbox/alice/a.output.jsonl", "outbox/alice/a.errors.jsonl"),
        ([], None, None),
    ],
)
def test_only_a_file_that_has_a_line_is_there_and_named(
    world: World, lines: list[str], output: str | None, errors: str | None
) -> None:
    world.files.there = {"outbox/alice/a.output.jsonl": b"before", "outbox/alice/a.errors.jsonl": b"before"}
    batch = world.drop(*lines)
    running = batch_answer(batch, Counts(1, 1))
    assert [running[name] for name in FILES] == [None, None]
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    answer = told_of(world.batch(batch))
    assert [answer[name] for name in FILES] == [output, errors]
    assert world.files.there.keys() == {output, errors} - {None}
    assert b"before" not in world.files.there.values()


def test_a_failed_generation_is_an_error_line(world: World) -> None:
    batch = world.drop(line("a"))
    world.carry_on(batch)
    world.make(line_generation_id(batch.id, 1), Status.CANCELLED)
    world.carry_on_all()
    (_, (error,)) = world.written()
    assert error["response"]["status_code"] == 424


# What a caller does meanwhile.


def delete_line(world: World, generation_id: str) -> None:
    images, until = FakeImageStore(), Deadline.after(9)
    settle, now = world.settle, lambda: world.now
    delete(generation_id, "alice", world.records, world.queue, world.counters, world.bus, images, now, until, settle)


@pytest.mark.parametrize("made", [False, True])
def test_a_line_whose_generation_is_deleted_says_so_and_is_not_made_anew(world: World, made: bool) -> None:
    batch = world.drop(line("a"), line("b"))
    world.carry_on(batch, seconds=0)  # its reader has just this time
    deleted = line_generation_id(batch.id, 1)
    if made:
        world.make(deleted)
    delete_line(world, deleted)
    begun = len(world.queue.sent)
    world.carry_on(batch)
    world.make_all()
    world.carry_on_all()
    output, (error,) = world.written()
    assert (custom_ids(output), error["custom_id"]) == (["b"], "a")
    assert error["response"]["body"]["error"]["message"] == "The generation was deleted."
    assert world.records.get(deleted) is None
    assert len(world.queue.sent) == begun
    assert world.batch(batch).counts == Counts(1, 1)


def test_a_deletion_that_dies_right_after_the_tombstone_leaves_its_line_settled(world: World) -> None:
    batch = world.drop(line("a"))
    world.carry_on(batch)
    deleted = line_generation_id(batch.id, 1)
    if world.records.claim(deleted, "w", now=NOW, lease_until=NOW + 1):
        world.records.end(deleted, "w", Status.COMPLETED, now=NOW)  # and dies before the batch knows
    settle = world.ledger.settle

    def dying(generation: Generation) -> None:
        if world.records.tombstone(generation.id):
            raise RecordsUnavailableError("no")
        settle(generation)

    world.settle = dying
    with pytest.raises(RecordsUnavailableError):
        delete_line(world, deleted)
    assert world.records.get(deleted) is None
    world.carry_on_all()
    assert (world.batch(batch).status, world.batch(batch).counts) == (BatchStatus.COMPLETED, Counts(1, 0))


# The intake's messages.


def message(key: str = "inbox/shop/a.jsonl", **changes: Any) -> str:
    detail = {"bucket": {"name": "b"}, "object": {"key": key, "size": 7, "version-id": "v"}}
    return json.dumps({"id": "e", "source": "aws.s3", "detail-type": "Object Created", "detail": detail} | changes)


@pytest.mark.parametrize(
    ("key", "client", "is_batch"),
    [
        ("inbox/a.jsonl", "inbox", True),
        ("inbox/shop/a.jsonl", "shop", True),
        ("inbox/shop/deep/er.json", "shop", False),
        ("inbox/shop/ü &+%20.jsonl", "shop", True),
    ],
)
def test_a_file_is_its_folders_clients(key: str, client: str, is_batch: bool) -> None:
    dropped = read_inbox_message(message(key))
    assert isinstance(dropped, DroppedFile)
    assert (dropped.owner(), dropped.is_batch, dropped.event_id) == (client, is_batch, "e")
    assert dropped.file == InboxFile(key, "v", 7)


@pytest.mark.parametrize(
    ("key", "decoded"),
    [
        ("inbox/shop/a.jsonl", None),
        ("inbox/shop/a+b.jsonl", "inbox/shop/a b.jsonl"),
        ("inbox/shop/a%2Bb%20c.jsonl", "inbox/shop/a+b c.jsonl"),
        ("inbox/shop/%C3%BC%2520.jsonl", "inbox/shop/ü%20.jsonl"),
    ],
)
def test_a_key_may_be_url_encoded(key: str, decoded: str | None) -> None:
    dropped = read_inbox_message(message(key))
    assert isinstance(dropped, DroppedFile)
    found = dropped.decoded()
    assert (found and found.file) == (decoded and InboxFile(decoded, "v", 7))


@pytest.mark.parametrize(
    "key",
    [
        "inbox/Shop/a.jsonl",
        "inbox/oidc:0/a.jsonl",
        "inbox//a.jsonl",
        "inbox/a.csv",
        "inbox/a",
        f"inbox/{'ü' * 503}.jsonl",
    ],
)
def test_a_file_of_no_client_or_of_an_unknown_kind_is_refused(key: str) -> None:
    dropped = read_inbox_message(message(key))
    assert isinstance(dropped, DroppedFile)
    with pytest.raises(InvalidRequestError) as refused:
        dropped.owner()
    assert refused.value.param == "key"


def test_the_longest_key_of_a_batch_has_an_output() -> None:
    dropped = read_inbox_message(message(f"inbox/{'x' * 1004}.jsonl"))
    assert isinstance(dropped, DroppedFile)
    batch = Batch(id="batch_x", caller=dropped.owner(), file=dropped.file, created_at=0)
    assert len(batch.output_key) == len(batch.errors_key) == 1024  # S3's most


def test_a_batch_that_is_to_be_carried_on_is_its_id() -> None:
    batch_id = batch_id_of("b", "k", "v")
    assert read_inbox_message(json.dumps({"batch_id": batch_id})) == batch_id


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "\ud800",
        "[" * 100_000,
        '{"batch_id": "batch_x"}',
        '{"batch_id": 7}',
        message(source="shop"),
        message(**{"detail-type": "Object Deleted"}),
        message(detail={"object": {"key": "inbox/a.jsonl", "size": 7}, "bucket": {"name": "b"}}),
        message(detail=None),
    ],
)
def test_what_is_neither_is_none_of_the_inboxs(body: str) -> None:
    assert read_inbox_message(body) is None
