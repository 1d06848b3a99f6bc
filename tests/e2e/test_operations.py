"""An operator follows a generation through the logs and metrics of a whole stack."""

from collections import Counter

import pytest

from local.stack import STACK_NAME
from tests.support.client import INLINE, SMALL, Client
from tests.support.waiting import until
from tests.support.world import World, batch_line

MODEL = "dall-e-2"
PRICE = 0.016  # of an image of 256x256 pixels, in models.toml


def followed(world: World, last: str = "ended", **fields: str) -> list[tuple[str, str]]:
    """The functions and their messages about a generation or a batch, once the last message is written."""

    def messages() -> list[tuple[str, str]] | None:
        found = [(function, line["message"]) for function, line in world.journal(**fields)]
        return found if any(message == last for _, message in found) else None

    return until(messages, what=f"{last} of {fields}") or []


def metrics(world: World, generation_id: str) -> Counter[tuple[str, str]]:
    """The sums by name and dimensions, without the stack's, of all lines about a generation."""
    sums: Counter[tuple[str, str]] = Counter()
    for _, line in world.journal(generation_id=generation_id):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
            assert (directive["Namespace"], line["stack"]) == ("imagegen", STACK_NAME)
            for dimensions in directive["Dimensions"]:
                by = ",".join(line[name] for name in dimensions if name != "stack")
                for metric in directive["Metrics"]:
                    sums[metric["Name"], by] += sum(line[metric["Name"]])
    return sums


def test_the_log_of_the_api_shows_a_generation_from_its_request_to_its_end(world: World, caller: Client) -> None:
    body = {**SMALL, "prompt": "an otter", "n": 2}
    answer = caller.make(body, Idempotency_Key="api", **INLINE)  # a busy machine may redirect it
    assert answer.status == 200
    of = {"generation_id": answer.generation_id}
    lines = followed(world, **of)
    assert lines[0] == ("ApiFunction", "begun")  # on a busy machine, a worker may take it over
    messages = [message for _, message in lines if message != "answered"]
    assert messages[-1] == "ended"
    assert Counter(messages) >= Counter(["asked upstream", "upstream answered", "stored", "stored", "cost", "ended"])
    answers = until(lambda: world.journal(message="answered", **of), what="the line of the answer")
    assert all(line["request_id"] for _, line in answers)
    assert {line["client"] for _, line in world.journal(service="api", **of)} == {caller.name}

    found = metrics(world, answer.generation_id)
    for by in ("", MODEL):
        assert (found["Generations", by], found["Images", by], found["Faults", by]) == (1, 2, 0)
        assert found["Cost", by] == pytest.approx(2 * PRICE)
        assert found["GenerationSeconds", by] > 0
        assert found["UpstreamSeconds", by] > 0
    assert found["Cost", caller.name] == pytest.approx(2 * PRICE)
    assert float(answer.headers["x-imagegen-cost"]) == pytest.approx(2 * PRICE)
    assert 0 < found["QuotaUsed", ""] < 100

    assert caller.make(body, Idempotency_Key="api", **INLINE).generation_id == answer.generation_id
    found = metrics(world, answer.generation_id)
    assert (found["AttachedRetries", ""], found["Generations", ""], found["Images", ""]) == (1, 1, 2)


def test_the_logs_of_both_functions_show_a_generation_of_the_worker(world: World, caller: Client) -> None:
    generation_id = caller.begin(**SMALL, prompt="an otter")
    assert caller.until_ended(generation_id)["status"] == "completed"
    lines = followed(world, generation_id=generation_id)
    assert ("ApiFunction", "begun") in lines
    by_worker = [message for function, message in lines if function == "WorkerFunction"]
    assert by_worker[:6] == ["claimed", "asked upstream", "upstream answered", "stored", "cost", "ended"]
    found = metrics(world, generation_id)
    assert (found["Generations", MODEL], found["Faults", ""]) == (1, 0)
    assert found["QueueSeconds", ""] > 0


def test_the_logs_show_the_lines_of_a_batch_and_its_end(world: World, caller: Client) -> None:
    key = world.drop("\n".join([batch_line("a", "an otter"), batch_line("b", "another"), "{"]), caller.name)
    batch_id = caller.until_batch_ended(key)["id"]
    messages = Counter(message for _, message in followed(world, "batch ended", batch_id=batch_id))
    assert (messages["begun"], messages["claimed"], messages["ended"], messages["batch ended"]) == (2, 2, 2, 1)
    ((_, ended),) = world.journal(message="batch ended", batch_id=batch_id)
    assert (ended["BatchLines"], ended["BatchLinesFailed"]) == ([3], [1])
