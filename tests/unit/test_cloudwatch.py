"""The journal writes a line for each step of a generation, and metrics in CloudWatch's embedded format."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from imagegen.aws.cloudwatch import CALLERS_OWN, NAMESPACE, UNITS, CloudWatchJournal, JournalledBatchBus, JournalledBus
from imagegen.domain.batches import Counts
from imagegen.domain.errors import RecordsUnavailableError, UpstreamTimeoutError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import CallAnswer, Rejection, Status, UpstreamCall
from imagegen.wire.errors import ROWS
from tests.fakes.batches import FakeBatchBus
from tests.fakes.event_bus import FakeEventBus
from tests.support.in_memory import attempts
from tests.support.journal_lines import CANARIES, batch, begun, ended, failed, write_every_line
from tests.support.models import MODELS

Line = dict[str, Any]
Lines = Callable[[], list[Line]]
STACK = (("stack", "images-dev"),)
BY_MODEL = (("model", "dall-e-3"), ("stack", "images-dev"))


@pytest.fixture
def journal() -> CloudWatchJournal:
    return CloudWatchJournal("worker", "images-dev")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The lines since the last call."""

    def read() -> list[Line]:
        text = capsys.readouterr().out
        assert not any(canary in text for canary in CANARIES)
        return [json.loads(line) for line in text.splitlines()]

    return read


def metrics(lines: Sequence[Line]) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]:
    """The metrics that CloudWatch reads from the lines: values by name and dimensions."""
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


def test_a_completed_generation_is_counted_by_stack_and_model(journal: CloudWatchJournal, lines: Lines) -> None:
    generation = ended()
    journal.ended(generation)
    _, line = lines()
    assert line["generation_id"] == generation.id
    assert (line["client"], line["batch_id"], line["status"]) == ("alice", "batch_1", "completed")
    values = {"Generations": 1.0, "Images": 2.0, "Faults": 0.0, "GenerationSeconds": 12.5}
    assert metrics([line]) == {(name, by): [value] for name, value in values.items() for by in (STACK, BY_MODEL)}


@pytest.mark.parametrize(("caller", "client"), [("alice", "alice"), ("oidc:1f", "oidc"), ("oidc:2f", "oidc")])
def test_a_cost_is_counted_by_stack_model_and_client(
    journal: CloudWatchJournal, lines: Lines, caller: str, client: str
) -> None:
    calls = (UpstreamCall(("img_1", "img_2"), attempts(1)),)
    journal.ended(ended(calls=calls, caller=caller))
    line, _ = lines()
    by_client = (("client", client), *STACK)
    assert metrics([line]) == {("Cost", by): [0.08] for by in (STACK, BY_MODEL, by_client)}
    assert (line["message"], line["basis"]) == ("cost", "unknown")


def test_a_model_without_a_price_has_no_cost(journal: CloudWatchJournal, lines: Lines) -> None:
    generation = ended()
    journal.ended(replace(generation, supply=replace(generation.supply, price=None)))
    assert not any(name == "Cost" for name, _ in metrics(lines()))


def test_tokens_and_repeated_calls_are_counted(journal: CloudWatchJournal, lines: Lines) -> None:
    usage = {"input_tokens": 10, "output_tokens": 4000, "input_tokens_details": {"text_tokens": 10}}
    calls = [UpstreamCall((f"img_{sent}",), attempts(sent), answer=CallAnswer((), usage=usage)) for sent in (1, 2)]
    journal.ended(ended(calls=tuple(calls)))
    found = metrics(lines())
    assert [found[name, STACK] for name in ("InputTokens", "OutputTokens", "RepeatedCalls")] == [[20], [8000], [1]]


@pytest.mark.parametrize("tokens", ["many", None, -1, 10**400, {}, 1.5])
def test_an_invalid_token_count_is_not_counted(journal: CloudWatchJournal, lines: Lines, tokens: object) -> None:
    journal.ended(
        ended(calls=(UpstreamCall(("img_1",), attempts(1), answer=CallAnswer((), usage={"input_tokens": tokens})),))
    )
    assert not {"InputTokens", "OutputTokens", "RepeatedCalls"} & {name for name, _ in metrics(lines())}


@pytest.mark.parametrize(("cause", "kind"), [(None, "PartialGenerationError"), ("UpstreamTimeoutError",) * 2])
def test_a_failure_is_counted_by_its_code_or_that_of_its_cause(
    journal: CloudWatchJournal, lines: Lines, cause: str | None, kind: str
) -> None:
    journal.ended(failed("PartialGenerationError", cause))
    found = metrics(lines())
    assert found["Faults", STACK] == [1]
    assert found["Failures", (("code", kind), *STACK)] == [1]
    assert found["Failures", (("code", kind), *BY_MODEL)] == [1]
    assert ("Failures", STACK) not in found


def test_every_failure_but_a_bad_request_is_a_fault(journal: CloudWatchJournal, lines: Lines) -> None:
    for code in ROWS:
        journal.ended(failed(code))
        no_fault = metrics(lines())["Faults", STACK] == [0]
        assert no_fault == (code in CALLERS_OWN), code
    assert {row.status for code, row in ROWS.items() if code in CALLERS_OWN} == {400}


def test_a_cancelled_generation_is_neither_failed_nor_a_fault(journal: CloudWatchJournal, lines: Lines) -> None:
    journal.ended(ended(Status.CANCELLED, failure=Failure("generation_cancelled", "canary message", money_spent=True)))
    found = metrics(lines())
    assert (found["Generations", STACK], found["Faults", STACK]) == ([1], [0])
    assert not any(name == "Failures" for name, _ in found)


def test_a_first_claim_has_its_queue_time_and_a_later_one_is_taken_over(
    journal: CloudWatchJournal, lines: Lines
) -> None:
    journal.claimed(begun(), age=3.25)
    assert metrics(lines()) == {("QueueSeconds", STACK): [3.25]}
    journal.claimed(begun(calls=(UpstreamCall(("img_1", "img_2"), attempts(1)),)), age=90)
    assert metrics(lines()) == {("TakenOver", STACK): [1]}


def test_a_call_has_its_duration_and_its_failure(journal: CloudWatchJournal, lines: Lines) -> None:
    journal.asked(begun(), 2, "reseller")
    journal.answered(begun(), 1.5, None, "reseller")
    journal.answered(begun(), 30, failure_of(UpstreamTimeoutError("canary message")), "reseller")
    written = lines()
    assert [(line["message"], line.get("code")) for line in written] == [
        ("asked upstream", None),
        ("upstream answered", None),
        ("upstream failed", "upstream_timeout"),
    ]
    assert metrics(written) == {("UpstreamSeconds", STACK): [1.5, 30], ("UpstreamSeconds", BY_MODEL): [1.5, 30]}


def test_an_end_is_counted_once_its_event_is_sent(journal: CloudWatchJournal, lines: Lines) -> None:
    bus, batch_bus = FakeEventBus(), FakeBatchBus()
    journalled, journalled_batches = JournalledBus(bus, journal), JournalledBatchBus(batch_bus, journal)
    bus.failures.append("before")
    batch_bus.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        journalled.generation_ended(ended())
    with pytest.raises(RecordsUnavailableError):
        journalled_batches.batch_ended(batch(Counts(completed=8, failed=2)))
    assert lines() == []

    journalled.generation_ended(ended())
    assert metrics(lines())["Generations", STACK] == [1]
    journalled_batches.batch_ended(batch(Counts(completed=8, failed=2)))
    (line,) = lines()
    assert (line["batch_id"], line["client"]) == ("batch_1", "alice")
    assert metrics([line]) == {("Batches", STACK): [1], ("BatchLines", STACK): [10], ("BatchLinesFailed", STACK): [2]}
    assert (len(bus.ended), len(batch_bus.ended)) == (1, 1)


def test_a_rejection_is_passed_on(journal: CloudWatchJournal) -> None:
    bus = FakeEventBus()
    rejection = Rejection("event", "alice", None, Failure("invalid_request", "canary message", money_spent=False))
    JournalledBus(bus, journal).request_rejected(rejection)
    assert bus.rejected == [rejection]


def test_every_line_names_its_subject_and_every_metric_is_known(journal: CloudWatchJournal, lines: Lines) -> None:
    write_every_line(journal)
    written = lines()
    for line in written:
        assert line["message"]
        assert line["service"] == "worker"
        assert "generation_id" in line or "batch_id" in line, line
    assert {name for name, _ in metrics(written)} == set(UNITS)
    allowed = {"stack": {"images-dev"}, "model": set(MODELS), "code": set(ROWS), "client": {"alice"}}
    for _, dimensions in metrics(written):
        assert all(value in allowed[name] for name, value in dimensions), dimensions
