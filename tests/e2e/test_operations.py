"""What an operator sees: one generation followed through the logs of a whole stack, and the metrics in them."""

from collections import Counter

import pytest

from local.aws_door import Fault
from local.stack import STACK_NAME
from tests.conftest import UPSTREAM_KEY
from tests.support.client import INLINE, SMALL, Client
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, batch_line, refusing

MODEL = "dall-e-2"
PRICE = float(PARAMETERS["ImagePrices"].split(",")[0].removeprefix(f"{MODEL}:"))
API, WORKER = INLINE, dict[str, str]()  # headers by which the api function makes the images, or the worker does


def followed(world: World, last: str = "ended", **fields: str) -> list[tuple[str, str]]:
    """Which functions wrote which messages about a generation, or a batch, once the last of them is there."""

    def messages() -> list[tuple[str, str]] | None:
        found = [(function, line["message"]) for function, line in world.journal(**fields)]
        return found if any(message == last for _, message in found) else None

    return until(messages, what=f"{last} of {fields}") or []


def metrics(world: World, generation_id: str) -> Counter[tuple[str, str]]:
    """The sums by name and dimensions but for the stack's own, of all that was written about a generation."""
    sums: Counter[tuple[str, str]] = Counter()
    for _, line in world.journal(generation_id=generation_id):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
            assert (directive["Namespace"], line["stack"]) == ("imagegen", STACK_NAME)
            for dimensions in directive["Dimensions"]:
                by = ",".join(line[name] for name in dimensions if name != "stack")
                for metric in directive["Metrics"]:
                    sums[metric["Name"], by] += sum(line[metric["Name"]])
    return sums


def test_a_generation_of_the_api_is_followed_from_the_door_to_its_event(world: World, caller: Client) -> None:
    body = {**SMALL, "prompt": "an otter", "n": 2}
    answer = caller.post(body, Idempotency_Key="api", **API)
    assert answer.status == 200
    of = {"generation_id": answer.generation_id}
    lines = followed(world, "answered", **of)
    assert {function for function, _ in lines} == {"ApiFunction"}
    messages = [message for _, message in lines]
    assert (messages[0], messages[-2:]) == ("begun", ["ended", "answered"])
    assert Counter(messages[1:-2]) == {"asked upstream": 1, "upstream answered": 1, "stored": 2}
    ((_, answered),) = world.journal(message="answered", **of)
    assert answered["request_id"]
    assert {line["client"] for _, line in world.journal(service="api", **of)} == {caller.name}

    found = metrics(world, answer.generation_id)
    for by in ("", MODEL):
        assert (found["Generations", by], found["Images", by], found["Faults", by]) == (1, 2, 0)
        assert found["EstimatedCost", by] == pytest.approx(2 * PRICE)
        assert found["GenerationSeconds", by] > 0
        assert found["UpstreamSeconds", by] > 0
    assert 0 < found["QuotaUsed", ""] < 100

    assert caller.post(body, Idempotency_Key="api", **API).generation_id == answer.generation_id
    found = metrics(world, answer.generation_id)
    assert (found["AttachedRetries", ""], found["Generations", ""], found["Images", ""]) == (1, 1, 2)


def test_a_generation_of_the_worker_is_followed_across_functions(world: World, caller: Client) -> None:
    answer = caller.make({**SMALL, "prompt": "an otter"}, **WORKER)
    assert answer.status == 200
    lines = followed(world, generation_id=answer.generation_id)
    assert ("ApiFunction", "begun") in lines
    by_worker = [message for function, message in lines if function == "WorkerFunction"]
    assert by_worker[:5] == ["claimed", "asked upstream", "upstream answered", "stored", "ended"]
    found = metrics(world, answer.generation_id)
    assert (found["Generations", MODEL], found["Faults", ""]) == (1, 0)
    assert found["QueueSeconds", ""] > 0


@pytest.mark.parametrize(
    ("maker", "upstream", "kind", "fault"),
    [
        pytest.param(API, 401, "UpstreamKeyRefusedError", 1, id="api-401"),
        pytest.param(WORKER, 500, "UpstreamFailedError", 1, id="worker-500"),
        pytest.param(WORKER, 400, "UpstreamRefusedRequestError", 0, id="worker-400"),
    ],
)
def test_a_failure_is_counted_by_kind_and_model(
    world: World, caller: Client, prompt: str, maker: dict[str, str], upstream: int, kind: str, fault: int
) -> None:
    world.will(prompt, refusing(upstream, message=f"no {UPSTREAM_KEY}"))
    generation_id = caller.make({**SMALL, "prompt": prompt}, **maker).generation_id
    assert "upstream failed" in {message for _, message in followed(world, "failed", generation_id=generation_id)}
    found = metrics(world, generation_id)
    assert (found["Failures", kind], found["Failures", f"{MODEL},{kind}"]) == (1, 1)
    assert (found["Generations", ""], found["Images", ""], found["Faults", ""]) == (1, 0, fault)


def test_an_end_that_cannot_be_published_is_an_interruption_and_is_counted_once_it_is(
    world: World, caller: Client
) -> None:
    try:
        world.stack.door.fail(*(Fault(at, service="events") for at in range(1, 200)))
        generation_id = caller.begin(**SMALL)
        followed(world, "interrupted", generation_id=generation_id)
    finally:
        world.stack.door.fail()
    followed(world, generation_id=generation_id)
    found = metrics(world, generation_id)
    assert found["Interruptions", ""] >= 1
    assert found["Generations", ""] == 1


def test_a_line_of_a_file_is_followed_by_its_batch(world: World, caller: Client) -> None:
    key = world.drop("\n".join([batch_line("a", "an otter"), batch_line("b", "another"), "{"]), caller.name)
    batch_id = caller.until_batch_ended(key)["id"]
    messages = Counter(message for _, message in followed(world, "batch ended", batch_id=batch_id))
    assert (messages["begun"], messages["claimed"], messages["ended"], messages["batch ended"]) == (2, 2, 2, 1)
    ((_, ended),) = world.journal(message="batch ended", batch_id=batch_id)
    assert (ended["BatchLines"], ended["BatchLinesFailed"]) == ([3], [1])
