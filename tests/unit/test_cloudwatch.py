"""What the journal writes: lines that follow a generation, and metrics in CloudWatch's embedded format."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.aws.cloudwatch import (
    CALLERS_OWN,
    NAMESPACE,
    UNITS,
    CloudWatchJournal,
    JournalledBatchBus,
    JournalledBus,
)
from imagegen.batches import Batch, BatchStatus, Counts, InboxFile
from imagegen.catalog import CATALOG
from imagegen.errors import RecordsUnavailableError, UpstreamTimeoutError
from imagegen.generations import (
    Call,
    CallAnswer,
    Failure,
    Generation,
    Origin,
    Rejection,
    Status,
    StoredImage,
    admit,
)
from imagegen.images import ImageRequest
from imagegen.openai_wire.errors import ROWS
from tests.fakes.event_bus import FakeEventBus

CANARIES = ("canary prompt", "canary-user", "canary-custom-id", "canary message")
NOW = 1_760_000_000.0
Line = dict[str, Any]
Lines = Callable[[], list[Line]]


@pytest.fixture
def journal() -> CloudWatchJournal:
    return CloudWatchJournal("worker", "images-dev", {"dall-e-3": 0.04})


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was written since the last look."""

    def read() -> list[Line]:
        text = capsys.readouterr().out
        assert not any(canary in text for canary in CANARIES)
        return [json.loads(line) for line in text.splitlines()]

    return read


def begun(model: str = "dall-e-3", **changes: Any) -> Generation:
    request = ImageRequest("canary prompt", model, "url", n=2, user="canary-user")
    origin = Origin(custom_id="canary-custom-id", batch_id="batch_1", line=7)
    generation = admit(request, caller="alice", base_url="https://x", now=NOW, origin=origin)
    return replace(generation, **changes)


def ended(status: Status = Status.COMPLETED, images: int = 2, **changes: Any) -> Generation:
    generation = begun(status=status, completed_at=NOW + 12.5, **changes)
    stored = {image_id: StoredImage("image/png", 9) for image_id in generation.image_ids[:images]}
    return replace(generation, stored=stored)


def failed(kind: str, cause: str | None = None) -> Generation:
    failure = Failure(kind, "canary message", cause=Failure(cause, "canary message") if cause else None)
    return ended(Status.FAILED, images=0, failure=failure)


def metrics(lines: Sequence[Line]) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]:
    """What CloudWatch takes out of the lines: values by name and dimensions."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
            assert directive["Namespace"] == NAMESPACE
            for metric in directive["Metrics"]:
                assert metric["Unit"] == UNITS[metric["Name"]].value
                for dimensions in directive["Dimensions"]:
                    key = metric["Name"], tuple(sorted((name, line[name]) for name in dimensions))
                    found.setdefault(key, []).extend(line[metric["Name"]])
    return found


STACK = (("stack", "images-dev"),)
BY_MODEL = (("model", "dall-e-3"), ("stack", "images-dev"))


def test_a_completed_generation_is_counted_by_the_stack_and_by_its_model(
    journal: CloudWatchJournal, lines: Lines
) -> None:
    generation = ended()
    journal.ended(generation)
    (line,) = lines()
    assert line["generation_id"] == generation.id
    assert (line["client"], line["batch_id"], line["status"]) == ("alice", "batch_1", "completed")
    values = {"Generations": 1.0, "Images": 2.0, "Faults": 0.0, "GenerationSeconds": 12.5, "EstimatedCost": 0.08}
    assert metrics([line]) == {
        (name, dimensions): [value] for name, value in values.items() for dimensions in (STACK, BY_MODEL)
    }


def test_without_a_price_there_is_no_cost(journal: CloudWatchJournal, lines: Lines) -> None:
    journal.ended(ended(request=ImageRequest("canary prompt", "dall-e-2", "url", n=2)))
    assert not any(name == "EstimatedCost" for name, _ in metrics(lines()))


def test_tokens_and_calls_sent_again_are_counted_where_there_are_any(journal: CloudWatchJournal, lines: Lines) -> None:
    usage = {"input_tokens": 10, "output_tokens": 4000, "input_tokens_details": {"text_tokens": 10}}
    calls = (
        Call(("img_1",), sent=1, answer=CallAnswer((), usage=usage)),
        Call(("img_2",), sent=2, answer=CallAnswer((), usage=usage)),
    )
    journal.ended(ended(calls=calls))
    found = metrics(lines())
    assert [found[name, STACK] for name in ("InputTokens", "OutputTokens", "RepeatedCalls")] == [[20], [8000], [1]]


@pytest.mark.parametrize("tokens", ["many", None, -1, 10**400, {}, 1.5])
def test_what_is_no_count_of_tokens_is_not_counted(journal: CloudWatchJournal, lines: Lines, tokens: object) -> None:
    journal.ended(ended(calls=(Call(("img_1",), sent=1, answer=CallAnswer((), usage={"input_tokens": tokens})),)))
    assert not {"InputTokens", "OutputTokens", "RepeatedCalls"} & {name for name, _ in metrics(lines())}


@pytest.mark.parametrize(("cause", "told"), [(None, "PartialGenerationError"), ("UpstreamTimeoutError",) * 2])
def test_a_failure_is_counted_by_kind_which_is_what_is_behind_a_part_that_is_missing(
    journal: CloudWatchJournal, lines: Lines, cause: str | None, told: str
) -> None:
    journal.ended(failed("PartialGenerationError", cause))
    found = metrics(lines())
    assert found["Faults", STACK] == [1]
    assert found["Failures", (("kind", told), *STACK)] == [1]
    assert found["Failures", (("kind", told), *BY_MODEL)] == [1]
    assert ("Failures", STACK) not in found


def test_only_what_the_caller_asked_for_wrongly_is_no_fault(journal: CloudWatchJournal, lines: Lines) -> None:
    for kind in ROWS:
        journal.ended(failed(kind.__name__))
        no_fault = metrics(lines())["Faults", STACK] == [0]
        assert no_fault == (kind.__name__ in CALLERS_OWN), kind
    assert {row.status for kind, row in ROWS.items() if kind.__name__ in CALLERS_OWN} == {400}


def test_a_cancelled_generation_is_neither_failed_nor_a_fault(journal: CloudWatchJournal, lines: Lines) -> None:
    journal.ended(ended(Status.CANCELLED, failure=Failure("GenerationCancelledError", "canary message")))
    found = metrics(lines())
    assert found["Generations", STACK] == [1]
    assert found["Faults", STACK] == [0]
    assert not any(name == "Failures" for name, _ in found)


def test_a_first_claim_tells_how_long_the_queue_was_and_a_later_one_that_somebody_died(
    journal: CloudWatchJournal, lines: Lines
) -> None:
    journal.claimed(begun(), age=3.25)
    assert metrics(lines()) == {("QueueSeconds", STACK): [3.25]}
    journal.claimed(begun(calls=(Call(("img_1", "img_2"), sent=1),)), age=90)
    assert metrics(lines()) == {("TakenOver", STACK): [1]}


def test_a_call_tells_its_seconds_and_how_it_failed(journal: CloudWatchJournal, lines: Lines) -> None:
    journal.asked(begun(), 2)
    journal.answered(begun(), 1.5, None)
    journal.answered(begun(), 30, UpstreamTimeoutError("canary message"))
    told = lines()
    assert [(line["message"], line.get("kind")) for line in told] == [
        ("asked upstream", None),
        ("upstream answered", None),
        ("upstream failed", "UpstreamTimeoutError"),
    ]
    assert metrics(told) == {("UpstreamSeconds", STACK): [1.5, 30], ("UpstreamSeconds", BY_MODEL): [1.5, 30]}


def batch(counts: Counts | None) -> Batch:
    file = InboxFile("inbox/alice/x.jsonl", "v1", 1)
    return Batch(id="batch_1", caller="alice", file=file, created_at=NOW, status=BatchStatus.COMPLETED, counts=counts)


class BatchBus:
    def __init__(self) -> None:
        self.ended: list[Batch] = []

    def batch_ended(self, batch: Batch) -> None:
        self.ended.append(batch)


def test_a_batch_is_counted_with_its_lines_once_its_end_is_told(journal: CloudWatchJournal, lines: Lines) -> None:
    bus = BatchBus()
    JournalledBatchBus(bus, journal).batch_ended(batch(Counts(completed=8, failed=2)))
    (line,) = lines()
    assert (line["batch_id"], line["client"]) == ("batch_1", "alice")
    assert metrics([line]) == {("Batches", STACK): [1], ("BatchLines", STACK): [10], ("BatchLinesFailed", STACK): [2]}
    assert len(bus.ended) == 1


def test_an_end_that_could_not_be_told_is_counted_when_it_is(journal: CloudWatchJournal, lines: Lines) -> None:
    bus = FakeEventBus()
    bus.failures.append("before")
    journalled = JournalledBus(bus, journal)
    with pytest.raises(RecordsUnavailableError):
        journalled.generation_ended(ended())
    assert lines() == []
    journalled.generation_ended(ended())
    assert metrics(lines())["Generations", STACK] == [1]


def test_a_rejection_is_told_on(journal: CloudWatchJournal, lines: Lines) -> None:
    bus = FakeEventBus()
    rejection = Rejection("event", "alice", None, Failure("InvalidRequestError", "canary message"))
    JournalledBus(bus, journal).request_rejected(rejection)
    assert bus.rejected == [rejection]


def all_that_is_told(journal: CloudWatchJournal) -> None:
    """Every line that the journal has, with every metric."""
    call = Call(("img_1",), sent=2, answer=CallAnswer((), usage={"input_tokens": 1, "output_tokens": 1}))
    journal.begun(begun(), quota_used=0.5)
    journal.attached(begun())
    journal.claimed(begun(), age=1)
    journal.claimed(begun(calls=(call,)), age=1)
    journal.asked(begun(), 1)
    journal.answered(begun(), 1, None)
    journal.stored(begun(), StoredImage("image/png", 1))
    journal.ended(ended(calls=(call,)))
    journal.ended(failed("UpstreamFailedError"))
    journal.batch_ended(batch(Counts(1, 1)))
    journal.interrupted(["ValueError: app.py:1 f"], generation_id="gen_1")


def test_every_metric_has_a_unit_and_every_unit_a_metric(journal: CloudWatchJournal, lines: Lines) -> None:
    all_that_is_told(journal)
    assert {name for name, _ in metrics(lines())} == set(UNITS)


def test_a_dimension_has_few_values(journal: CloudWatchJournal, lines: Lines) -> None:
    all_that_is_told(journal)
    kinds = {kind.__name__ for kind in ROWS}
    allowed = {"stack": {"images-dev"}, "model": set(CATALOG), "kind": kinds}
    for _, dimensions in metrics(lines()):
        assert all(value in allowed[name] for name, value in dimensions), dimensions


def test_every_line_tells_what_it_is_about(journal: CloudWatchJournal, lines: Lines) -> None:
    all_that_is_told(journal)
    for line in lines():
        assert line["message"]
        assert line["service"] == "worker"
        assert "generation_id" in line or "batch_id" in line, line
