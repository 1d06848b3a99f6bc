"""A batch over HTTP: its file is validated whole, its lines begin within a window, and its create repeats safely."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from imagegen.domain import errors, file_lines
from imagegen.domain.batches import MOST_LINES, AskedBatch, Batch, BatchStatus, Counts, line_generation_id
from imagegen.domain.files import Purpose
from imagegen.domain.generations import Status, UpstreamAttempt, new_owner
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.usecases import validate_batch
from imagegen.usecases.continue_batch import STOPPED_SECONDS, cancel_batch
from imagegen.usecases.quota import STACK
from imagegen.usecases.read_batch import CHUNK_LINES
from imagegen.wire.batch_requests import read_batch_request
from imagegen.wire.batches import batch_answer, batch_event
from tests.fakes.provider import png
from tests.support.hooks import after, before
from tests.support.in_memory import LEASE, InMemoryService, batch_line, in_memory_service

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
KEY = RetryIdentity("a key")
DAY = 24 * 3600.0


def requests(count: int) -> list[str]:
    return [batch_line(f"c{number}") for number in range(count)]


def begin(service: InMemoryService, *lines: str, **options: Any) -> Batch:
    return service.begin_batch(service.give(*lines), **options)


def edit_line(custom_id: str, image: str) -> str:
    body = {"model": "gpt-image-1.5", "prompt": custom_id, "images": [{"file_id": image}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": EDITS, "body": body})


def cancel(service: InMemoryService, batch: Batch) -> Batch:
    return cancel_batch(batch.id, batch.caller, service.batches, service.batch_queue, service.now)


def end(service: InMemoryService, batch: Batch) -> Batch:
    service.continue_all()
    service.make_all()
    service.continue_all()
    return service.batch(batch)


def custom_ids(lines: Sequence[dict[str, Any]]) -> list[str | None]:
    return [each["custom_id"] for each in lines]


def codes(lines: Sequence[dict[str, Any]]) -> set[str]:
    """The codes of errors of the lines, in the place where OpenAI has them."""
    return {each["error"]["code"] if each["error"] else each["response"]["body"]["error"]["code"] for each in lines}


def answer_of(batch: Batch) -> dict[str, Any]:
    return batch_answer(batch, batch.counts or Counts(0, 0))


# From a file to its answers.


def test_a_batch_goes_through_the_statuses_of_openai(service: InMemoryService) -> None:
    batch = begin(service, *requests(CHUNK_LINES + 1))
    began = answer_of(batch)
    assert (began["status"], began["in_progress_at"], began["errors"]) == ("validating", None, None)
    assert began["expires_at"] == int(batch.created_at + DAY)
    assert began["request_counts"] == {"total": 0, "completed": 0, "failed": 0}

    service.continue_all()
    running = answer_of(service.batch(batch))
    assert (running["status"], running["request_counts"]["total"]) == ("in_progress", CHUNK_LINES + 1)
    assert running["in_progress_at"] is not None

    ended = end(service, batch)
    completed = answer_of(ended)
    assert (completed["status"], completed["error_file_id"]) == ("completed", None)
    assert completed["completed_at"] is not None
    output, failed = service.answers(ended)
    assert custom_ids(output) == [f"c{number}" for number in range(CHUNK_LINES + 1)]
    assert failed == []
    file = service.managed_files.get(completed["output_file_id"], "alice")
    assert (file.purpose, file.filename) == (Purpose.BATCH_OUTPUT, f"{batch.id}_output.jsonl")
    assert file.object.size == len(service.files.there[ended.output_key])
    assert not {"input_key", "output_key", "error_key"} & completed.keys()
    assert batch_event(ended)[1]["client"] == "alice"


def test_two_thousand_lines_end_and_each_has_its_answer(service: InMemoryService) -> None:
    ended = end(service, begin(service, *requests(2_000)))
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(2_000, 0))
    assert custom_ids(service.answers(ended)[0]) == [f"c{number}" for number in range(2_000)]


def test_a_request_that_the_endpoint_refuses_is_a_line_of_the_error_file(service: InMemoryService) -> None:
    lines = [batch_line("good"), batch_line("size", size="1x1"), batch_line("model", model="none")]
    ended = end(service, begin(service, *lines, json.dumps(json.loads(batch_line("body")) | {"body": []})))
    output, failed = service.answers(ended)
    assert (ended.status, custom_ids(output), custom_ids(failed)) == (
        BatchStatus.COMPLETED,
        ["good"],
        ["size", "model", "body"],
    )
    assert {each["response"]["status_code"] for each in failed} == {400}
    assert {each["error"] for each in failed} == {None}


def test_lines_may_edit_files_of_their_caller(service: InMemoryService) -> None:
    file = service.managed_files.create("alice", Purpose.VISION, "a.png", png("a"))
    service.inputs.uploads["alice", file.id] = png("a")
    other = service.managed_files.create("bob", Purpose.VISION, "b.png", png("b"))
    service.inputs.uploads["bob", other.id] = png("b")
    lines = [edit_line("own", file.id), edit_line("another's", other.id), edit_line("no image", "file-" + "A" * 22)]
    ended = end(service, begin(service, *lines, endpoint=EDITS))
    output, failed = service.answers(ended)
    assert (custom_ids(output), custom_ids(failed)) == (["own"], ["another's", "no image"])
    assert codes(failed) == {"invalid_image"}
    made = service.record(line_generation_id(ended.id, 1)).request
    assert (made.operation, [image.id for image in made.inputs]) == ("edit", [file.id])
    assert answer_of(ended)["endpoint"] == EDITS


def test_a_line_whose_image_cannot_be_read_now_is_tried_again(service: InMemoryService) -> None:
    file = service.managed_files.create("alice", Purpose.VISION, "a.png", png("a"))
    service.inputs.uploads["alice", file.id] = png("a")
    before(service.lines, "begin", lambda *_: service.inputs.breaks.append(0), once=True)
    batch = begin(service, edit_line("a", file.id), endpoint=EDITS)
    with pytest.raises(errors.InputUnavailableError):
        service.continue_batch(batch)
    ended = end(service, batch)
    assert custom_ids(service.answers(ended)[0]) == ["a"]


# Validating.


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        ("{", "invalid_json_line", None),
        ("[1]", "invalid_json_line", None),
        ("x" * (file_lines.MAX_LINE_BYTES + 1), "line_too_long", None),
        (batch_line("a"), "duplicate_custom_id", "custom_id"),
        (batch_line(""), "invalid_custom_id", "custom_id"),
        ('{"method": "POST"}', "missing_required_parameter", "custom_id"),
        (batch_line("c").replace("POST", "GET"), "invalid_method", "method"),
        (batch_line("c").replace("generations", "edits"), "invalid_url", "url"),
    ],
)
def test_a_bad_line_fails_the_batch_before_anything_is_spent(
    service: InMemoryService, bad: str, code: str, param: str | None
) -> None:
    ended = end(service, begin(service, batch_line("a"), "", bad, batch_line("b"), "}"))
    assert (ended.status, ended.counts) == (BatchStatus.FAILED, None)
    answer = answer_of(ended)
    first, last = answer["errors"]["data"]
    assert (first["code"], first["line"], first["param"]) == (code, 2, param)
    assert (last["code"], last["line"]) == ("invalid_json_line", 4)
    assert first["message"]
    assert answer["failed_at"] == int(ended.ended_at or 0)
    assert (answer["output_file_id"], answer["error_file_id"]) == (None, None)
    assert service.queue.sent == []
    assert service.used == set()
    assert service.files.there.keys() == {ended.file.key}
    assert [each.id for each in service.batch_bus.ended] == [ended.id]


def test_a_file_without_a_line_fails_the_batch(service: InMemoryService) -> None:
    ended = end(service, begin(service, "", " ", ""))
    assert [(each.code, each.line) for each in ended.problems] == [("empty_file", None)]


def test_a_file_with_too_many_lines_fails_the_batch(service: InMemoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LINES == 50_000
    monkeypatch.setattr(validate_batch, "MOST_LINES", 3)
    assert end(service, begin(service, *requests(3))).status is BatchStatus.COMPLETED
    ended = end(service, begin(service, *requests(4)))
    assert [(each.code, each.line) for each in ended.problems] == [("too_many_requests", None)]


def test_only_so_many_problems_are_listed(service: InMemoryService) -> None:
    ended = end(service, begin(service, *["{"] * 300))
    assert len(ended.problems) == validate_batch.MOST_PROBLEMS


def test_a_file_that_is_deleted_before_it_is_validated_fails_the_batch(service: InMemoryService) -> None:
    file = service.give(batch_line("a"))
    batch = service.begin_batch(file)
    service.managed_files.delete(file.id, "alice")
    ended = end(service, batch)
    assert (ended.status, [each.code for each in ended.problems]) == (BatchStatus.FAILED, ["file_not_found"])


@pytest.mark.parametrize("method", ["begin_lines", "fail", "get"])
def test_a_batch_that_is_cancelled_while_it_is_validated_has_no_lines(service: InMemoryService, method: str) -> None:
    """Its file may have any number of lines, and an error for each would cost writes."""
    batch = begin(service, batch_line("a"), batch_line("b"), *(["{"] if method == "fail" else []))
    if method == "get":
        cancel(service, batch)
    else:
        before(service.batches, method, lambda *_, **__: cancel(service, batch), once=True)
    ended = end(service, batch)
    assert (ended.status, ended.counts) == (BatchStatus.CANCELLED, Counts(0, 0))
    assert (service.queue.sent, service.answers(ended)) == ([], ([], []))


# Creating.


def test_a_batch_needs_a_file_of_its_caller_with_the_purpose_batch(service: InMemoryService) -> None:
    file = service.give(batch_line("a"))
    with pytest.raises(errors.UnknownFileError) as unknown:
        service.begin_batch(file, caller="bob")
    assert unknown.value.param == "input_file_id"
    with pytest.raises(errors.InvalidRequestError) as wrong:
        service.begin_batch(service.give("x", purpose=Purpose.VISION))
    assert wrong.value.param == "input_file_id"
    assert service.batch_queue.sent == []


@pytest.mark.parametrize(("first", "second"), [(KEY, KEY), (RetryIdentity(retry=0), RetryIdentity(retry=1))])
def test_a_repeated_create_returns_the_same_batch(
    service: InMemoryService, first: RetryIdentity, second: RetryIdentity
) -> None:
    file = service.give(batch_line("a"))
    batch = service.begin_batch(file, first)
    ended = end(service, batch)
    service.managed_files.delete(file.id, "alice")
    again = service.begin_batch(file, second)
    assert again == ended
    end(service, again)
    assert service.used == {1}
    assert len(service.batch_bus.ended) == 1


def test_two_first_creates_are_two_batches(service: InMemoryService) -> None:
    file = service.give(batch_line("a"))
    assert service.begin_batch(file).id != service.begin_batch(file).id
    counted = RetryIdentity(retry=0)
    assert service.begin_batch(file, counted).id != service.begin_batch(file, counted).id


def test_a_key_of_another_request_is_refused(service: InMemoryService) -> None:
    service.begin_batch(service.give(batch_line("a")), KEY)
    with pytest.raises(errors.IdempotencyKeyReusedError):
        service.begin_batch(service.give(batch_line("b")), KEY)
    with pytest.raises(errors.IdempotencyKeyReusedError):
        service.submit(KEY)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("port", ["keys", "batch_queue", "batches"])
def test_a_create_that_is_repeated_after_a_fault_makes_each_line_once(port: str, when: Any) -> None:
    at, passed = 0, False
    while not passed:
        with in_memory_service() as service:
            file, failures = service.give(batch_line("a")), getattr(service, port).failures
            failures.extend([None] * at + [when])
            batch = None
            for _ in range(3):
                try:
                    batch = service.begin_batch(file, KEY)
                    break
                except (errors.RecordsUnavailableError, errors.SubmissionUncertainError):
                    pass
            passed = bool(failures)
            failures.clear()
            assert batch is not None
            assert end(service, batch).counts == Counts(1, 0)
            assert len(service.batches._records) == 1
            assert service.used == {1}
        at += 1
    assert at > 1


def test_a_message_is_behind_the_record_of_a_process_that_dies(service: InMemoryService) -> None:
    """The second message is not sent. The first one is delayed until the record is there."""
    file = service.give(batch_line("a"))
    service.batch_queue.failures.extend([None, "before"])
    batch = service.begin_batch(file)  # no client repeats a request that was answered
    assert service.batch_queue.delays == [LEASE * 1.5]
    assert end(service, batch).status is BatchStatus.COMPLETED


def read(**changes: Any) -> AskedBatch:
    fields = {"input_file_id": "file-" + "A" * 22, "endpoint": EDITS, "completion_window": "24h", **changes}
    return read_batch_request(json.dumps(fields).encode(), "application/json")


def test_a_request_for_a_batch_is_read() -> None:
    assert read() == read(metadata=None) == AskedBatch("file-" + "A" * 22, EDITS)
    most = {f"{number:064}": "x" * 512 for number in range(16)}
    assert read(metadata=most).metadata == most
    assert read(output_expires_after={"anchor": "created_at", "seconds": 3600}).output_seconds == 3600


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("input_file_id", None, "missing_required_parameter"),
        ("endpoint", None, "missing_required_parameter"),
        ("completion_window", None, "missing_required_parameter"),
        ("input_file_id", "file-x", "invalid_value"),
        ("input_file_id", 7, "invalid_value"),
        ("endpoint", "/v1/chat/completions", "invalid_value"),
        ("endpoint", [EDITS], "invalid_value"),
        ("completion_window", "1h", "invalid_value"),
        ("metadata", [], "invalid_value"),
        ("metadata", {"a": 1}, "invalid_value"),
        ("metadata", {"a": "x" * 513}, "invalid_value"),
        ("metadata", {"x" * 65: "a"}, "invalid_value"),
        ("metadata", {str(number): "a" for number in range(17)}, "invalid_value"),
        ("output_expires_after", {"anchor": "created_at"}, "invalid_value"),
        ("model", "x", "unknown_parameter"),
    ],
    ids=range(15),
)
def test_a_wrong_request_for_a_batch_is_refused_by_its_field(name: str, value: Any, code: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as refused:
        read(**{name: value})
    assert (refused.value.param, refused.value.code) == (name, code)


def test_a_request_for_a_batch_is_json() -> None:
    with pytest.raises(errors.UnsupportedMediaTypeError):
        read_batch_request(b"{}", "multipart/form-data")


def test_the_output_is_kept_as_long_as_its_caller_says(service: InMemoryService) -> None:
    file = service.give(batch_line("a"))
    ended = end(service, service.beginning.begin(AskedBatch(file.id, GENERATIONS, None, 7200), "alice", KEY))
    output = service.managed_files.get(ended.output_file_id, "alice")
    assert (output.expires_at or 0) - int(output.created_at) == 7200


# The window.


def test_lines_that_have_not_begun_by_the_end_of_the_window_expire(service: InMemoryService) -> None:
    count = 2 * CHUNK_LINES
    batch = begin(service, *requests(count))
    service.batch_queue.sent.clear()
    service.continue_batch(batch, seconds=0)  # validates, and begins one chunk
    service.make(line_generation_id(batch.id, 1))
    running = line_generation_id(batch.id, 2)
    service.records.claim(running, "worker", now=service.now + DAY, lease_until=service.now + DAY + LEASE)
    service.now += DAY
    service.batch_queue.sent.clear()
    service.continue_batch(batch)
    expiring = service.batch(batch)
    assert (expiring.status, expiring.total) == (BatchStatus.IN_PROGRESS, count)  # the second line runs
    assert (service.batch_queue.sent, service.batch_queue.delays[-1]) == ([batch.id], STOPPED_SECONDS)
    service.records.save_attempt(running, "worker", 0, 1, UpstreamAttempt("reseller", service.now))
    service.publish(service.records.end(running, "worker", Status.COMPLETED, now=service.now))
    service.continue_all()
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.EXPIRED, Counts(2, count - 2))
    output, failed = service.answers(ended)
    assert custom_ids(output) == ["c0", "c1"]
    assert {(each["response"], each["error"]["code"]) for each in failed} == {(None, "batch_expired")}
    assert answer_of(ended)["expired_at"] is not None
    assert service.used == {2}  # what did not begin is returned


def test_the_end_of_the_window_is_looked_at_by_one_chain_of_messages(service: InMemoryService) -> None:
    batch = begin(service, batch_line("a"))
    service.batch_queue.sent.clear()
    for _ in range(4):  # messages about the batch
        service.continue_batch(batch)
    assert service.batch_queue.sent == [batch.id]
    delays = [service.batch_queue.delays[-1]]
    looks = 0
    while not service.batch(batch).ended:
        service.now += delays[-1]
        service.batch_queue.sent.clear()
        service.continue_batch(batch)
        delays.append(service.batch_queue.delays[-1])
        looks += 1
        assert len(service.batch_queue.sent) <= 1
        assert looks < 200
    assert set(delays[:-2]) == {900}  # the longest delay of SQS
    assert looks == 96
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.EXPIRED, Counts(0, 1))


def test_a_batch_whose_lines_ended_in_time_is_completed_however_late_its_files_are_written(
    service: InMemoryService,
) -> None:
    batch = begin(service, batch_line("a"))
    service.continue_all()
    service.make_all()
    service.now += 2 * DAY
    service.batch_queue.sent.append(batch.id)
    service.continue_all()
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.COMPLETED, Counts(1, 0))


# Cancelling.


def test_a_cancelled_batch_waits_for_what_runs(service: InMemoryService) -> None:
    batch = begin(service, *requests(3))
    service.continue_all()
    running, charged = (line_generation_id(batch.id, number) for number in (1, 2))
    owner = new_owner()
    service.records.claim(running, owner, now=service.now, lease_until=service.now + LEASE)
    # It waits for its task: nobody works on it, and it is paid for.
    service.records.claim(charged, owner, now=service.now, lease_until=service.now + LEASE)
    service.records.save_attempt(charged, owner, 0, 1, UpstreamAttempt("reseller", service.now))
    service.records.save_task(charged, 0, 1, "task")
    service.records.await_poll(charged, owner, 1)
    assert cancel(service, batch).status is BatchStatus.CANCELLING
    service.batch_queue.sent.clear()
    service.continue_batch(batch)
    assert service.batch(batch).status is BatchStatus.CANCELLING
    assert (service.batch_queue.sent, service.batch_queue.delays[-1]) == ([batch.id], STOPPED_SECONDS)
    assert {service.record(each).status for each in (running, charged)} == {Status.IN_PROGRESS}
    for each in (running, charged):
        service.records.claim(each, owner, now=service.now, lease_until=service.now + LEASE, poll=1)
        service.publish(service.records.end(each, owner, Status.COMPLETED, now=service.now))
    service.continue_all()
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.CANCELLED, Counts(2, 1))
    output, failed = service.answers(ended)
    assert (custom_ids(output), custom_ids(failed), codes(failed)) == (["c0", "c1"], ["c2"], {"batch_cancelled"})
    stopped = service.record(line_generation_id(batch.id, 3))
    assert stopped.failure is not None
    assert (stopped.status, stopped.failure.code) == (Status.CANCELLED, "batch_cancelled")


def test_the_rest_of_many_lines_is_cancelled_in_another_turn(service: InMemoryService) -> None:
    count = 2 * CHUNK_LINES
    batch = begin(service, *requests(count))
    service.continue_all()
    cancel(service, batch)
    turns = 0
    while not service.batch(batch).ended:
        service.batch_queue.sent.clear()
        service.continue_batch(batch, seconds=0)
        turns += 1
        assert service.batch(batch).ended or batch.id in service.batch_queue.sent
        assert turns < 9
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.CANCELLED, Counts(0, count))


def test_a_line_whose_worker_died_before_it_sent_a_call_is_ended_by_the_cancellation(service: InMemoryService) -> None:
    batch = begin(service, batch_line("a"))
    service.continue_all()
    line = line_generation_id(batch.id, 1)
    service.records.claim(line, "worker", now=service.now, lease_until=service.now + LEASE)
    cancel(service, batch)
    service.batch_queue.sent.clear()
    service.continue_batch(batch)
    assert service.batch(batch).status is BatchStatus.CANCELLING
    service.now += LEASE + 1
    service.continue_all()
    assert (service.batch(batch).status, service.batch(batch).counts) == (BatchStatus.CANCELLED, Counts(0, 1))


def test_a_line_that_begins_while_it_is_cancelled_is_waited_for(service: InMemoryService) -> None:
    batch = begin(service, batch_line("a"))
    service.continue_all()
    line, owner = line_generation_id(batch.id, 1), new_owner()

    def sends_meanwhile(*_: Any, **__: Any) -> None:
        service.records.claim(line, owner, now=service.now, lease_until=service.now + LEASE)
        service.records.save_attempt(line, owner, 0, 1, UpstreamAttempt("reseller", service.now))
        service.records.release(line, owner)  # its lease has ended, and it may have been paid for

    before(service.records, "cancel_unbegun", sends_meanwhile, once=True)
    cancel(service, batch)
    service.continue_batch(batch)
    assert service.record(line).status is Status.IN_PROGRESS


# Quota.


def test_lines_over_the_quota_fail_by_default(service: InMemoryService) -> None:
    service.own_images_per_day = 2
    ended = end(service, begin(service, *requests(3)))
    assert (ended.counts, codes(service.answers(ended)[1])) == (Counts(2, 1), {"insufficient_quota"})


@pytest.mark.parametrize("who", ["own_images_per_day", "whole_stack"])
def test_lines_over_the_quota_may_wait_for_the_next_day(service: InMemoryService, who: str) -> None:
    count = 2 * CHUNK_LINES
    service.waits_for_quota = True
    setattr(service, who, count - 10)
    service.now -= service.now % DAY - 23 * 3600  # an hour before the next day
    batch = begin(service, *requests(count))
    service.continue_batch(batch)
    service.make_all()
    waiting = service.batch(batch)
    assert (waiting.status, waiting.total) == (BatchStatus.IN_PROGRESS, None)
    assert service.batch_queue.delays[-1] == 900
    assert service.lines.counts(batch.id) == Counts(count - 10, 0)
    assert (
        service.counters.used[
            STACK if who == "whole_stack" else "alice", time.strftime("%Y-%m-%d", time.gmtime(service.now))
        ]
        == count - 10
    )

    for _ in range(5):  # every quarter of an hour
        service.now += 900
        service.continue_batch(batch)
    service.make_all()
    service.continue_all()
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(count, 0))
    assert custom_ids(service.answers(ended)[0]) == [f"c{number}" for number in range(count)]


def test_lines_that_wait_for_the_quota_expire_with_the_window(service: InMemoryService) -> None:
    service.waits_for_quota, service.window, service.own_images_per_day = True, 3600.0, 1
    service.now -= service.now % DAY
    batch = begin(service, *requests(2))
    service.continue_batch(batch)
    service.make_all()
    service.now += 3600
    service.continue_batch(batch)
    ended = service.batch(batch)
    assert (ended.status, ended.counts) == (BatchStatus.EXPIRED, Counts(1, 1))
    assert codes(service.answers(ended)[1]) == {"batch_expired"}


def test_a_line_above_the_quota_of_a_whole_day_does_not_wait(service: InMemoryService) -> None:
    service.waits_for_quota, service.own_images_per_day = True, 2
    ended = end(service, begin(service, batch_line("a", model="dall-e-2", n=3), batch_line("b")))
    assert (ended.counts, codes(service.answers(ended)[1])) == (Counts(1, 1), {"insufficient_quota"})


# What a caller or an operator deletes meanwhile.


def test_the_lines_of_a_deleted_file_end_with_what_is_known(service: InMemoryService) -> None:
    file = service.give(*requests(2 * CHUNK_LINES + 3))
    batch = service.begin_batch(file)
    service.continue_batch(batch, seconds=0)
    service.managed_files.delete(file.id, "alice")
    ended = end(service, batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(CHUNK_LINES, CHUNK_LINES + 3))
    failed = service.answers(ended)[1]
    assert {(each["custom_id"], each["response"]["status_code"]) for each in failed} == {(None, 404)}
    assert [each["line"] for each in failed] == list(range(CHUNK_LINES + 1, 2 * CHUNK_LINES + 4))
    assert codes(failed) == {"file_not_found"}


def test_lines_that_wait_for_the_quota_end_when_their_file_is_deleted(service: InMemoryService) -> None:
    service.waits_for_quota, service.own_images_per_day = True, 2
    batch = service.drop(*requests(5))
    service.continue_batch(batch)
    service.files.given.clear()
    ended = end(service, batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(2, 3))
    assert (codes(service.written()[1]), service.lines.any_pending(batch.id)) == ({"file_not_found"}, False)


def test_no_more_lines_begin_than_were_validated(service: InMemoryService) -> None:
    """The URL of an upload works again once its object is deleted."""
    batch = begin(service, batch_line("a"), "x" * 200)
    service.files.there[batch.file.key] = f"{batch_line('a')}".encode() + b" " * 201
    after(service.batches, "begin_lines", lambda *_, **__: replaced(service, batch))
    ended = end(service, batch)
    assert ended.counts == Counts(1, 0)


def replaced(service: InMemoryService, batch: Batch) -> None:
    content = "\n".join([batch_line("a"), *"xyz"]).encode()
    service.files.there[batch.file.key] = content + b" " * (batch.file.size - len(content))


def test_a_deleted_file_of_the_inbox_has_one_error_for_all_that_is_unread(service: InMemoryService) -> None:
    batch = service.drop(*requests(2 * CHUNK_LINES))
    service.continue_batch(batch, seconds=0)
    service.files.given.clear()
    ended = end(service, batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, Counts(CHUNK_LINES, 1))


@pytest.mark.parametrize(
    ("caller", "counts"), [("alice", Counts(CHUNK_LINES, 1)), ("oidc:1", Counts(CHUNK_LINES + 1, 0))]
)
def test_no_line_begins_after_the_key_of_its_caller_was_deleted(
    service: InMemoryService, caller: str, counts: Counts
) -> None:
    """A caller with a token never had one."""
    file = service.give(*requests(CHUNK_LINES + 1), caller=caller)
    batch = service.begin_batch(file, caller=caller)
    service.batch_queue.sent.clear()
    service.continue_batch(batch, seconds=0)
    service.without_key = {caller}
    ended = end(service, batch)
    assert (ended.status, ended.counts) == (BatchStatus.COMPLETED, counts)
    for each in service.answers(ended)[1]:
        assert (each["custom_id"], each["response"]["status_code"]) == (f"c{CHUNK_LINES}", 401)


def test_the_line_of_a_deleted_image_fails(service: InMemoryService) -> None:
    batch = begin(service, *requests(2))
    service.continue_all()
    service.delete(line_generation_id(batch.id, 1))
    ended = end(service, batch)
    output, failed = service.answers(ended)
    assert (custom_ids(output), custom_ids(failed)) == (["c1"], ["c0"])


# Faults.


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("port", ["records", "batches", "lines", "batch_queue", "batch_bus", "files", "file_records"])
def test_a_fault_at_any_one_call_leaves_each_line_answered_once(port: str, when: Any) -> None:
    """Two lines are made, one is refused, and the others expire."""
    at, passed = 0, False
    while not passed:
        with in_memory_service(window=2 * LEASE) as service:
            batch = begin(service, batch_line("a"), batch_line("b"), batch_line("c", size="1x1"), batch_line("d"))
            failures = getattr(service, port).failures
            failures.extend([None] * at + [when])
            for _ in range(9):
                with suppress(errors.RecordsUnavailableError):
                    service.continue_batch(batch)
                    for line in (1, 2):
                        service.make(line_generation_id(batch.id, line))
                service.now += LEASE + 1
            passed = bool(failures)
            failures.clear()
            ended = service.batch(batch)
            assert (ended.status, ended.published) == (BatchStatus.EXPIRED, True)
            assert ended.counts == Counts(2, 2)
            assert [custom_ids(each) for each in service.answers(ended)] == [["a", "b"], ["c", "d"]]
            assert service.used <= {2, 3}  # what cannot be returned for certain stays taken
        at += 1
    assert at > 1
