"""A file becomes generations and two files of answers, even if processes die and its message is repeated."""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from imagegen.domain import errors, file_lines
from imagegen.domain.batches import Batch, BatchStatus, Checkpoint, Counts, batch_id_of, line_generation_id
from imagegen.domain.credentials import Caller
from imagegen.domain.file_lines import Line, lines_of
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import Generation, Origin
from imagegen.usecases.continue_batch import cancel_batch, get_batch
from imagegen.usecases.read_batch import CHUNK_LINES
from imagegen.usecases.submit import Submission
from imagegen.wire.batches import batch_answer, batch_event
from imagegen.wire.inbox_messages import DroppedFile, read_inbox_message
from tests.conftest import ROOT
from tests.support.hooks import after, before, raising
from tests.support.in_memory import LEASE, NOW, REQUEST, InMemoryService, batch_line, in_memory_service

PORTS = ("records", "queue", "counters", "batches", "lines", "batch_queue", "batch_bus", "files")
BLOCK, MOST = 32, 16  # bytes; the product has a megabyte and half of it
OUTPUT, ERRORS = "outbox/alice/a.output.jsonl", "outbox/alice/a.errors.jsonl"


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lines, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(file_lines, "MAX_LINE_BYTES", MOST)


def requests(count: int) -> list[str]:
    """Lines with the custom ids c0, c1 and so on."""
    return [batch_line(f"c{number}") for number in range(count)]


def end(service: InMemoryService, batch: Batch) -> Batch:
    service.continue_batch(batch)
    service.make_all()
    service.continue_all()
    return service.batch(batch)


def cancel(service: InMemoryService, batch: Batch | str, caller: str = "alice") -> Batch:
    batch_id = batch if isinstance(batch, str) else batch.id
    return cancel_batch(batch_id, caller, service.batches, service.batch_queue, service.now)


def custom_ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]


def error_of(line: dict[str, Any]) -> Any:
    return line["response"]["body"]["error"]


# Reading a file.


def lines_behind(content: bytes, start: Checkpoint) -> list[Line]:
    return list(lines_of(lambda at, length: content[at : at + length], len(content), start))


def texts(lines: Iterable[Line]) -> list[bytes | None]:
    return [each.text for each in lines if each.text != b""]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n \r\n\n", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\r\n\r\n b \nc", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"]),
        (b"a\n" + b"x" * (MOST + 1) + b"\nb", [b"a", None, b"b"]),
        (b"x" * (3 * BLOCK), [None]),
        (b"x" * (3 * BLOCK) + b"\na", [None, b"a"]),
        (b"x" * MOST + b"\r\n", [None]),
        (b"x" * MOST + b"\na", [b"x" * MOST, b"a"]),
        ("ü\n".encode() * 3 * BLOCK, ["ü".encode()] * 3 * BLOCK),
        (b"one\n\ntwo\r\nthree\n" + b"x" * (2 * BLOCK) + b"\nfive", [b"one", b"two", b"three", None, b"five"]),
        (b"one\n" + b"\n" * (5 * BLOCK // 2), [b"one"]),
        (b"one\n" + b" \r\n" * BLOCK + b"\nx", [b"one", b"x"]),
        (b"one\n" + b"x" * (5 * BLOCK // 2), [b"one", None]),
    ],
    ids=range(16),
)
@pytest.mark.usefixtures("_small_blocks")
def test_a_file_is_cut_into_its_lines_from_any_checkpoint(content: bytes, lines: list[bytes | None]) -> None:
    """Every block has a checkpoint. Otherwise a short turn would begin at the same place for ever."""
    found, at = lines_behind(content, Checkpoint()), 0
    assert texts(found) == lines
    assert [each.number for each in found if each.text != b""] == list(range(1, len(lines) + 1))
    for each in found:
        assert at < each.after.offset <= at + 2 * BLOCK
        at = each.after.offset
        behind = lines_behind(content, each.after)
        assert texts(behind) == lines[each.number :]
        assert all(line.number > each.number for line in behind if line.text != b"")
    assert len(content) - at < BLOCK


# From a file to its answers.


def test_every_line_is_made_once_and_answered_in_order(service: InMemoryService) -> None:
    count = 2 * CHUNK_LINES + 7
    batch = service.drop(*requests(count))
    assert service.continue_batch(batch) is None
    assert service.batch(batch).total == count
    assert (service.files.saved, service.batch_queue.sent) == ([], [])
    ended = end(service, batch)
    assert (ended.status, ended.counts, ended.published) == (BatchStatus.COMPLETED, Counts(count, 0), True)
    output, failed = service.written()
    assert custom_ids(output) == [f"c{number}" for number in range(count)]
    assert failed == []
    assert [key for key, _ in service.files.saved] == [OUTPUT]
    assert service.used == {count}
    assert service.batch_queue.callers == service.queue.callers == {"alice"}
    assert [each.id for each in service.batch_bus.ended] == [batch.id]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ("{", None),
        ("[]", None),
        ("1" * (file_lines.MAX_LINE_BYTES + 1), None),
        ('{"method": "POST"}', "custom_id"),
        ('{"custom_id": ""}', "custom_id"),
        (batch_line("c").replace("POST", "GET"), "method"),
        (batch_line("c").replace("images", "videos"), "url"),
        (batch_line("c").replace('{"prompt": "c"}', "[]"), "body"),
        (batch_line("c", size="1x1"), "size"),
    ],
    ids=["no JSON", "no object", "too long", "no id", "empty id", "method", "url", "body", "size"],
)
def test_a_bad_line_fails_and_stops_no_other(service: InMemoryService, bad: str, param: str | None) -> None:
    ended = end(service, service.drop(batch_line("before"), bad, batch_line("after")))
    output, (error,) = service.written()
    assert custom_ids(output) == ["before", "after"]
    assert (error["line"], error_of(error)["param"]) == (2, param)
    assert ended.counts == Counts(2, 1)


def test_a_line_over_the_quota_fails(service: InMemoryService) -> None:
    service.own_images_per_day = 2
    end(service, service.drop(*requests(5)))
    output, failed = service.written()
    assert (len(output), len(failed)) == (2, 3)
    assert {error_of(error)["code"] for error in failed} == {"insufficient_quota"}


def test_a_repeated_message_for_a_file_changes_nothing(service: InMemoryService) -> None:
    batch = service.drop(batch_line("a"), "{")
    for _ in range(3):
        assert service.drop(batch_line("a"), "{").id == batch.id
        assert service.continue_batch(batch) is None
    end(service, batch)
    service.continue_batch(batch)
    assert len(service.files.saved) == 2
    assert len(service.batch_bus.ended) == 1
    assert service.used == {1}


def test_a_file_that_takes_several_turns_is_read_to_its_end_before_it_is_finished(service: InMemoryService) -> None:
    count = 3 * CHUNK_LINES
    batch = service.drop(*requests(count))
    for _ in range(3):
        assert service.continue_batch(batch, seconds=0) is None
        service.make_all()
        assert service.batch_queue.sent == [batch.id]  # a message to continue, and none to finish
        assert service.files.saved == []
        service.batch_queue.sent.clear()
    service.continue_batch(batch, seconds=0)
    assert (service.batch(batch).total, service.batch(batch).counts) == (count, Counts(count, 0))
    assert service.batch_queue.sent == []
    assert service.batch_queue.callers == {"alice"}


def test_one_process_works_on_a_batch_at_a_time(service: InMemoryService) -> None:
    batch = service.drop(batch_line("a"))
    service.batches.claim(batch.id, "another", now=NOW, lease_until=NOW + 40)
    assert service.continue_batch(batch) is None
    assert (service.batch_queue.sent, service.batch_queue.delays) == ([batch.id], [40])
    assert service.batch_queue.callers == {"alice"}
    service.now += 41
    service.continue_all()
    assert service.batch(batch).total == 1


def test_of_two_processes_that_finish_a_batch_only_the_owner_writes_a_file(service: InMemoryService) -> None:
    """By then a later file of the same name may have its own output. Both processes have the same lines."""
    batch = service.drop(batch_line("a"))
    service.continue_batch(batch)
    service.make_all()
    ended = service.lines.ended

    def taken_over(batch_id: str) -> Iterator[Any]:
        read = list(ended(batch_id))
        service.lines.ended = ended  # type: ignore[method-assign]
        service.now += 2 * LEASE
        service.delete(line_generation_id(batch.id, 1))
        service.continue_batch(batch)
        return iter(read)

    service.lines.ended = taken_over  # type: ignore[method-assign]
    service.continue_all()
    assert [key for key, _ in service.files.saved] == [OUTPUT]
    assert custom_ids(service.written()[0]) == ["a"]
    assert service.batch(batch).counts == Counts(1, 0)


@pytest.mark.usefixtures("_small_blocks")
def test_a_turn_without_a_line_advances_the_checkpoint(service: InMemoryService) -> None:
    batch = service.drop("x" * (CHUNK_LINES + 2) * BLOCK, "x")
    service.continue_batch(batch, seconds=0)
    assert (service.batch(batch).checkpoint.line, service.batch(batch).total) == (0, None)
    assert service.batch(batch).checkpoint.offset >= CHUNK_LINES * BLOCK
    service.continue_all()
    assert service.batch(batch).total == 2


def test_after_a_fault_at_one_line_no_thread_works_on_another(service: InMemoryService) -> None:
    """Otherwise that line could begin after the next process has cancelled it."""
    working, failed, done = threading.Event(), threading.Event(), set[int]()

    def begins(_: str, number: int, __: str) -> None:
        if number == 1:
            assert working.wait(60)
            raise errors.RecordsUnavailableError("The first one fails while others are at work.")
        working.set()
        failed.wait(0.1)
        done.add(number)

    before(service.lines, "begin", begins)
    with pytest.raises(errors.RecordsUnavailableError):
        service.continue_batch(service.drop(*requests(4)))
    failed.set()
    assert done == {2, 3, 4}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("port", PORTS)
def test_a_fault_at_any_one_call_leaves_each_line_made_and_answered_once(port: str, when: Any) -> None:
    at, passed = 0, False
    while not passed:
        with in_memory_service() as service:
            failures = getattr(service, port).failures
            failures.extend([None] * at + [when])
            for _ in range(8):  # an interrupted message is received again when the lease has ended
                with suppress(errors.RecordsUnavailableError):
                    batch = service.drop(batch_line("a"), "{", batch_line("b"), batch_line("c", size="1x1"))
                    service.continue_batch(batch)
                    service.make_all()
                service.now += LEASE + 1
            passed = bool(failures)  # there is no later call
            failures.clear()

            ended = service.batch(batch)
            assert (ended.status, ended.counts, ended.published) == (BatchStatus.COMPLETED, Counts(2, 2), True)
            assert [custom_ids(each) for each in service.written()] == [["a", "b"], [None, "c"]]
            made = {line_generation_id(batch.id, number) for number in (1, 3)}
            assert {generation_id for generation_id, _ in service.queue.sent} == made
            assert all(service.records.get(generation_id) for generation_id in made)
            assert service.batch_bus.ended
        at += 1
    assert at > 1


# A process that lost its lease.


@pytest.mark.parametrize(
    ("port", "call"),
    [
        ("lines", "begin"),
        ("records", "get"),
        ("counters", "take"),
        ("queue", "send"),
        ("records", "create"),
    ],
)
def test_a_late_process_begins_no_line_that_its_successor_refused(
    service: InMemoryService, port: str, call: str
) -> None:
    """It stopped before the call for longer than its lease. When it continues, the quota suffices."""
    batch = service.drop(batch_line("a"))

    def refused_meanwhile(*_: Any, **__: Any) -> None:
        service.now += LEASE + 1
        service.own_images_per_day = 0
        service.continue_batch(batch)

    before(getattr(service, port), call, refused_meanwhile, once=True)
    assert service.continue_batch(batch) == LEASE
    assert service.records.get(line_generation_id(batch.id, 1)) is None
    assert service.used <= {0}
    assert not service.lines.any_pending(batch.id)
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.COMPLETED, Counts(0, 1))


def test_a_refused_line_keeps_its_reason_when_a_late_process_refuses_it_too(service: InMemoryService) -> None:
    batch = service.drop(batch_line("a"), batch_line("b"))
    pending, origin = line_generation_id(batch.id, 2), Origin("b", batch.id, 2)
    service.submission.submit(Submission(REQUEST, Caller("alice"), "", origin=origin, generation_id=pending))

    def refused_meanwhile(*_: Any) -> None:
        service.now += LEASE + 1
        service.own_images_per_day = 0
        service.continue_batch(batch)

    before(service.records, "create", refused_meanwhile, once=True)
    assert service.continue_batch(batch) == LEASE
    service.make(pending)
    service.continue_all()
    output, (error,) = service.written()
    assert (custom_ids(output), error["custom_id"]) == (["b"], "a")
    assert error_of(error)["code"] == "insufficient_quota"


def test_a_refused_line_that_is_read_again_is_not_submitted_again(service: InMemoryService) -> None:
    service.own_images_per_day = 0
    batch = service.drop(batch_line("a"))
    before(service.batches, "save_checkpoint", raising(errors.RecordsUnavailableError("no")))
    with pytest.raises(errors.RecordsUnavailableError):
        service.continue_batch(batch)
    service.own_images_per_day = None
    service.continue_batch(batch)
    assert service.queue.sent == []
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.COMPLETED, Counts(0, 1))


def test_a_late_process_that_dies_leaves_no_line_pending_that_its_successor_refused(service: InMemoryService) -> None:
    service.own_images_per_day = CHUNK_LINES
    batch, begin = service.drop(*requests(CHUNK_LINES + 1)), service.lines.begin

    def begins(batch_id: str, number: int, custom_id: str) -> bool:
        if number > CHUNK_LINES:
            service.lines.begin = begin  # type: ignore[method-assign]
            service.now += LEASE + 1
            service.continue_batch(batch)
            begin(batch_id, number, custom_id)
            raise errors.RecordsUnavailableError("It dies.")
        return begin(batch_id, number, custom_id)

    service.lines.begin = begins  # type: ignore[assignment, method-assign]
    with pytest.raises(errors.RecordsUnavailableError):
        service.continue_batch(batch)
    service.make_all()
    service.continue_all()
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(CHUNK_LINES, 1))


def test_a_late_process_undoes_no_reservation_and_refuses_no_line_of_its_successor(service: InMemoryService) -> None:
    """It stopped between the quotas of the caller and of the stack, and finds that the second does not suffice."""
    service.whole_stack = 0
    batch = service.drop(batch_line("a"))

    def begun_meanwhile(*_: Any, **__: Any) -> None:
        service.now += LEASE + 1
        service.whole_stack = 1
        service.continue_batch(batch)

    def stop_at_the_second(*_: Any, **__: Any) -> None:
        before(service.counters, "take", begun_meanwhile, once=True)

    before(service.counters, "take", stop_at_the_second, once=True)
    assert service.continue_batch(batch) == LEASE
    assert service.used == {1}
    service.make_all()
    service.continue_all()
    assert service.batch(batch).counts == Counts(1, 0)
    assert custom_ids(service.written()[0]) == ["a"]


def test_a_late_process_that_finds_a_line_invalid_leaves_it_to_its_successor(service: InMemoryService) -> None:
    """Between the two an operator replaced the caller's quota in money, for which each model needs a price."""
    service.own_usd_per_day = 1
    batch = service.drop(batch_line("a"))

    def begun_meanwhile(*_: Any) -> None:
        if service.own_usd_per_day:
            service.own_usd_per_day = None
            service.now += LEASE + 1
            service.continue_batch(batch)

    after(service.records, "get", begun_meanwhile)
    assert service.continue_batch(batch) == LEASE
    service.continue_batch(batch)
    service.make_all()
    service.continue_all()
    assert service.batch(batch).counts == Counts(1, 0)


# Cancelling.


def test_lines_of_a_cancelled_batch_that_have_not_begun_are_lines_of_the_error_file(service: InMemoryService) -> None:
    batch = service.drop(*requests(3 * CHUNK_LINES))
    service.continue_batch(batch, seconds=0)
    service.make(line_generation_id(batch.id, 1))
    cancelled = cancel(service, batch)
    assert cancelled.status is BatchStatus.CANCELLING
    service.now += 1
    assert cancel(service, batch) == cancelled
    assert service.batch_queue.callers == {"alice"}
    service.continue_all()
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.CANCELLED, Counts(1, 3 * CHUNK_LINES - 1))
    output, failed = service.written()
    assert custom_ids(output) == ["c0"]
    assert custom_ids(failed) == [f"c{number}" for number in range(1, 3 * CHUNK_LINES)]
    assert {(error["response"], error["error"]["code"]) for error in failed} == {(None, "batch_cancelled")}
    assert service.used == {1}  # no call was sent for the others
    with pytest.raises(errors.BatchEndedError):
        cancel(service, batch)


@pytest.mark.parametrize("noted_pending", ["before the cancellation", "after it", "before and after"])
def test_a_late_process_begins_no_line_of_a_cancelled_batch(service: InMemoryService, noted_pending: str) -> None:
    """The process stopped for longer than its lease, near the write that notes the line as pending."""
    noted, batch = service.lines.begin, service.drop(batch_line("a"))

    def begins(batch_id: str, number: int, custom_id: str) -> bool:
        is_open = noted_pending != "after it" and noted(batch_id, number, custom_id)
        service.now += LEASE + 1
        cancel(service, batch)
        service.continue_all()
        assert service.batch(batch).status is BatchStatus.CANCELLED
        return is_open if noted_pending == "before the cancellation" else noted(batch_id, number, custom_id)

    service.lines.begin = begins  # type: ignore[assignment, method-assign]
    assert service.continue_batch(batch) == LEASE
    assert service.records.get(line_generation_id(batch.id, 1)) is None
    assert service.used <= {0}
    assert not service.lines.any_pending(batch.id)
    assert custom_ids(service.written()[1]) == ["a"]
    assert service.lines.counts(batch.id) == Counts(0, 1)


def test_the_line_of_a_deleted_generation_of_a_cancelled_batch_ends(service: InMemoryService) -> None:
    """The process that deleted it died before it ended the line."""
    batch = service.drop(batch_line("a"))
    service.continue_batch(batch, seconds=0)
    service.buried(service.record(line_generation_id(batch.id, 1)))
    cancel(service, batch)
    service.continue_all()
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.CANCELLED, Counts(0, 1))


@pytest.mark.parametrize(("batch_id", "caller"), [("batch_x", "alice"), (None, "bob"), ("batch_" + "A" * 22, "alice")])
def test_the_batch_of_another_caller_is_unknown(service: InMemoryService, batch_id: str | None, caller: str) -> None:
    batch = service.drop(batch_line("a"))
    assert get_batch(batch.id, "alice", service.batches) == batch
    with pytest.raises(errors.UnknownBatchError):
        get_batch(batch_id or batch.id, caller, service.batches)
    with pytest.raises(errors.UnknownBatchError):
        cancel(service, batch_id or batch.id, caller)


# Answers and events.


def test_a_line_of_the_output_has_links_and_no_prompt(service: InMemoryService) -> None:
    batch = end(service, service.drop(batch_line("a", prompt="a canary")))
    ((output,), _) = service.written()
    body = output["response"]["body"]
    assert output["error"] is None
    assert output["response"]["request_id"] == body["id"] == line_generation_id(batch.id, 1)
    assert [set(image) for image in body["data"]] == [{"id", "permalink"}]
    assert "canary" not in json.dumps(output)


@pytest.mark.parametrize(
    ("lines", "counts", "output", "failed"),
    [
        ([batch_line("a")], Counts(1, 0), OUTPUT, None),
        (["{"], Counts(0, 1), None, ERRORS),
        ([batch_line("a"), "{"], Counts(1, 1), OUTPUT, ERRORS),
        ([], Counts(0, 0), None, None),
    ],
    ids=["output", "errors", "both", "neither"],
)
def test_batch_and_event_name_only_files_that_have_a_line(
    service: InMemoryService, lines: list[str], counts: Counts, output: str | None, failed: str | None
) -> None:
    service.files.there = {OUTPUT: b"before", ERRORS: b"before"}
    batch = service.drop(*lines)
    running = batch_answer(batch, Counts(1, 1))
    assert (running["output_file_id"], running["error_file_id"], running["completed_at"]) == (None, None, None)
    batch = end(service, batch)
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    assert (answer["input_key"], answer["output_key"], answer["error_key"]) == (batch.file.key, output, failed)
    named = {answer["output_file_id"]: output, answer["error_file_id"]: failed}
    records = service.file_records.records
    assert {file_id: records[file_id].object.key for file_id in named if file_id} == {
        file_id: key for file_id, key in named.items() if key
    }
    assert records[answer["input_file_id"]].object == batch.file
    expected = {"total": len(lines), "completed": counts.completed, "failed": counts.failed}
    assert (answer["request_counts"], answer["completed_at"]) == (expected, int(NOW))
    assert service.files.there.keys() == {output, failed} - {None}
    assert b"before" not in service.files.there.values()

    detail_type, detail = batch_event(batch)
    schema = json.loads((ROOT / "events/schemas/image-batch-completed.json").read_text())
    Draft202012Validator(schema).validate(schema["examples"][0] | {"detail-type": detail_type, "detail": detail})
    assert detail == {"client": batch.caller, **{name: answer[name] for name in detail if name != "client"}}


# Deletions by a caller.


@pytest.mark.parametrize("made", [False, True])
def test_the_line_of_a_deleted_generation_fails_and_is_not_made_again(service: InMemoryService, made: bool) -> None:
    batch = service.drop(batch_line("a"), batch_line("b"))
    service.continue_batch(batch, seconds=0)  # it reads one chunk in this time
    deleted = line_generation_id(batch.id, 1)
    if made:
        service.make(deleted)
    service.delete(deleted)
    begun = len(service.queue.sent)
    ended = end(service, batch)
    output, (error,) = service.written()
    assert (custom_ids(output), error["custom_id"]) == (["b"], "a")
    assert error_of(error)["message"] == "The generation was deleted."
    assert service.records.get(deleted) is None
    assert len(service.queue.sent) == begun
    assert ended.counts == Counts(1, 1)


def test_a_line_has_ended_before_the_tombstone_of_its_generation_is_written(service: InMemoryService) -> None:
    batch = service.drop(batch_line("a"))
    service.continue_batch(batch)
    generation = service.record(line_generation_id(batch.id, 1))
    service.ended(generation)  # the worker dies before it ends the line

    line_ended = service.line_ended

    def dying(generation: Generation) -> None:
        if service.records.tombstone(generation.id):
            raise errors.RecordsUnavailableError("no")
        line_ended(generation)

    service.line_ended = dying  # type: ignore[method-assign]
    with pytest.raises(errors.RecordsUnavailableError):
        service.delete(generation.id)
    assert service.records.get(generation.id) is None
    service.continue_all()
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.COMPLETED, Counts(1, 0))


# The intake's messages.


def message(key: str = "inbox/shop/a.jsonl", **changes: Any) -> str:
    detail = {"bucket": {"name": "b"}, "object": {"key": key, "size": 7, "version-id": "v"}}
    return json.dumps({"id": "e", "source": "aws.s3", "detail-type": "Object Created", "detail": detail} | changes)


def dropped(name: str) -> DroppedFile:
    file = read_inbox_message(message(f"inbox/{name}"))
    assert isinstance(file, DroppedFile)
    assert (file.event_id, file.bucket, file.file) == ("e", "b", StoredObject(f"inbox/{name}", "v", 7))
    return file


@pytest.mark.parametrize(
    ("name", "caller", "is_batch", "decoded"),
    [
        ("a.jsonl", "inbox", True, None),
        ("shop/a.jsonl", "shop", True, None),
        ("shop/deep/er.json", "shop", False, None),
        ("shop/a+b.jsonl", "shop", True, "shop/a b.jsonl"),
        ("shop/a%2Bb%20c.jsonl", "shop", True, "shop/a+b c.jsonl"),
        ("shop/%C3%BC%2520.jsonl", "shop", True, "shop/ü%20.jsonl"),
        ("shop/ü &.jsonl", "shop", True, None),
    ],
)
def test_a_file_belongs_to_the_caller_of_its_folder_and_its_key_may_be_url_encoded(
    name: str, caller: str, is_batch: bool, decoded: str | None
) -> None:
    file = dropped(name)
    assert (file.owner(), file.is_batch) == (caller, is_batch)
    found = file.decoded()
    assert (found and found.file) == (decoded and StoredObject(f"inbox/{decoded}", "v", 7))


@pytest.mark.parametrize("name", ["Shop/a.jsonl", "oidc:0/a.jsonl", "/a.jsonl", "a.csv", "a", f"{'ü' * 503}.jsonl"])
def test_a_file_without_a_caller_or_of_an_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as refused:
        dropped(name).owner()
    assert refused.value.param == "key"


def test_the_longest_key_of_a_batch_has_an_output() -> None:
    file = dropped(f"{'x' * 1004}.jsonl")
    batch = Batch(id="batch_x", caller=file.owner(), file=file.file, created_at=0)
    assert len(batch.output_key) == len(batch.errors_key) == 1024  # the limit of S3


def test_a_message_to_continue_a_batch_is_read_as_its_id() -> None:
    batch_id = batch_id_of("b", "k", "v")
    assert read_inbox_message(json.dumps({"version": 1, "batch_id": batch_id})) == batch_id
    with pytest.raises(msgspec.ValidationError, match="version"):  # of a later version of the service
        read_inbox_message(json.dumps({"version": 2, "batch_id": batch_id}))


WITHOUT_VERSION = message(detail={"object": {"key": "inbox/a.jsonl", "size": 7}, "bucket": {"name": "b"}})
DELETED = message(**{"detail-type": "Object Deleted"})
NO_MESSAGES = ["", "[]", "\ud800", "[" * 100_000, '{"batch_id": "batch_x"}', '{"batch_id": 7}']


@pytest.mark.parametrize(
    "body", [*NO_MESSAGES, message(source="shop"), DELETED, WITHOUT_VERSION, message(detail=None)], ids=range(10)
)
def test_a_message_that_is_neither_a_file_nor_a_batch_is_ignored(body: str) -> None:
    assert read_inbox_message(body) is None
