"""What an operator sees: one generation followed through the logs of a whole stack, and the metrics in them."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local.aws_door import Fault
from local.serving import Reply
from local.stack import STACK_NAME
from tests.conftest import UPSTREAM_KEY
from tests.e2e.conftest import Service, serve
from tests.e2e.test_failures import post
from tests.e2e.test_inbox import drop, line, until_ended

API, WORKER = "dall-e-3", "gpt-image-1"  # who makes a model's images: the api function, or the worker
PRICE = 0.04
Line = dict[str, Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"ImagePrices": f"{API}:{PRICE},dall-e-2:0.5", "ImagesPerDay": "1000", "LeaseSeconds": "3"}
    with serve("source", tmp_path_factory.mktemp("operations"), parameters) as service:
        yield service


@pytest.fixture(autouse=True)
def _clean(service: Service) -> None:
    service.upstream.script.clear()


def lines(service: Service, field: str, value: str) -> list[tuple[str, Line]]:
    """As the query of docs/operations.md finds them: each with the function that wrote it."""
    logs = sorted(service.stack.logs.glob("*Function.log"))
    texts = [(log.stem, text) for log in logs for text in log.read_text().splitlines() if text.startswith("{")]
    told = [(function, json.loads(text)) for function, text in texts]
    return [(function, each) for function, each in told if each.get(field) == value]


def followed(
    service: Service, told_of: str, until: str = "ended", field: str = "generation_id"
) -> list[tuple[str, str]]:
    """Which functions told what of a generation, or a batch, once they have told the last of it."""
    deadline = time.monotonic() + 30
    while True:
        told = [(function, told["message"]) for function, told in lines(service, field, told_of)]
        if any(message == until for _, message in told):
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def metrics(service: Service, generation_id: str) -> Counter[tuple[str, str]]:
    """The sums by name and dimensions but for the stack's own, of all that was told of a generation."""
    sums: Counter[tuple[str, str]] = Counter()
    for _, told in lines(service, "generation_id", generation_id):
        for directive in told.get("_aws", {}).get("CloudWatchMetrics", ()):
            assert directive["Namespace"] == "imagegen"
            for dimensions in directive["Dimensions"]:
                assert told["stack"] == STACK_NAME
                by = ",".join(told[name] for name in dimensions if name != "stack")
                for metric in directive["Metrics"]:
                    sums[metric["Name"], by] += sum(told[metric["Name"]])
    return sums


def ask(service: Service, model: str, key: str, **fields: Any) -> tuple[int, str]:
    """The answer's status, and the generation's id; waits as a client does."""
    body = json.dumps({"model": model, "prompt": "an otter", **fields}).encode()
    status, headers, _ = post(service, body, Idempotency_Key=key, x_stainless_retry_count="0")
    while status == 303:
        status, _, _ = post(service, b"", path=f"/images/generations/{headers['x-generation-id']}/result", method="GET")
    return status, headers["x-generation-id"]


def refused(status: int) -> Callable[[object], Reply]:
    error = {"message": f"no {UPSTREAM_KEY}", "type": "x", "param": None, "code": None}
    return lambda _: Reply(status, json.dumps({"error": error}).encode())


def test_a_generation_of_the_api_is_followed_from_the_door_to_its_event(service: Service) -> None:
    status, generation_id = ask(service, API, "api", n=2)
    assert status == 200
    told = followed(service, generation_id, "answered")
    assert {function for function, _ in told} == {"ApiFunction"}
    messages = [message for _, message in told]
    assert (messages[0], messages[-2:]) == ("begun", ["ended", "answered"])
    assert Counter(messages[1:-2]) == {"asked upstream": 2, "upstream answered": 2, "stored": 2}
    ((_, answered),) = [
        each for each in lines(service, "generation_id", generation_id) if each[1]["message"] == "answered"
    ]
    assert answered["request_id"]
    assert {told["client"] for _, told in lines(service, "generation_id", generation_id)} == {"local"}

    found = metrics(service, generation_id)
    for by in ("", API):
        assert (found["Generations", by], found["Images", by], found["Faults", by]) == (1, 2, 0)
        assert found["EstimatedCost", by] == pytest.approx(2 * PRICE)
        assert found["GenerationSeconds", by] > 0
        assert found["UpstreamSeconds", by] > 0
    assert 0 < found["QuotaUsed", ""] < 100


def test_a_generation_of_the_worker_is_followed_across_functions(service: Service) -> None:
    status, generation_id = ask(service, WORKER, "worker")
    assert status == 200
    told = followed(service, generation_id)
    assert [message for function, message in told if function == "WorkerFunction"][:5] == [
        "claimed",
        "asked upstream",
        "upstream answered",
        "stored",
        "ended",
    ]
    assert ("ApiFunction", "begun") in told
    found = metrics(service, generation_id)
    assert (found["Generations", WORKER], found["Faults", ""]) == (1, 0)
    assert found["QueueSeconds", ""] > 0


def test_a_retry_that_attaches_is_counted_and_its_generation_is_not_counted_twice(service: Service) -> None:
    _, generation_id = ask(service, API, "again")
    assert ask(service, API, "again") == (200, generation_id)
    found = metrics(service, generation_id)
    assert (found["AttachedRetries", ""], found["Generations", ""], found["Images", ""]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("upstream", "kind", "fault"),
    [(401, "UpstreamKeyRefusedError", 1), (500, "UpstreamFailedError", 1), (400, "UpstreamRefusedRequestError", 0)],
)
@pytest.mark.parametrize("model", [API, WORKER])
def test_a_failure_is_counted_by_kind_and_model(
    service: Service, model: str, upstream: int, kind: str, fault: int
) -> None:
    service.upstream.script.append(refused(upstream))
    _, generation_id = ask(service, model, f"{model} {upstream}")
    told = followed(service, generation_id, "failed")
    assert "upstream failed" in {message for _, message in told}
    found = metrics(service, generation_id)
    assert (found["Failures", kind], found["Failures", f"{model},{kind}"]) == (1, 1)
    assert (found["Generations", ""], found["Images", ""], found["Faults", ""]) == (1, 0, fault)


def test_an_end_that_cannot_be_told_is_an_interruption_and_is_counted_once_it_is_told(service: Service) -> None:
    service.stack.door.fail(*(Fault(at, service="events") for at in range(1, 40)))
    body = json.dumps({"model": WORKER, "prompt": "an otter"}).encode()
    status, headers, _ = post(service, body, Prefer="respond-async")
    assert status == 202
    generation_id = headers["x-generation-id"]
    try:
        followed(service, generation_id, "interrupted")
    finally:
        service.stack.door.fail()
    followed(service, generation_id)
    found = metrics(service, generation_id)
    assert found["Interruptions", ""] >= 1
    assert found["Generations", ""] == 1


def test_a_line_of_a_file_is_followed_by_its_batch(service: Service) -> None:
    key = drop(service, "\n".join([line("a", "an otter"), line("b", "another"), "{"]))
    batch_id = until_ended(service, key)["id"]
    messages = Counter(message for _, message in followed(service, batch_id, "batch ended", "batch_id"))
    assert (messages["begun"], messages["claimed"], messages["ended"], messages["batch ended"]) == (2, 2, 2, 1)
    ((_, ended),) = [each for each in lines(service, "batch_id", batch_id) if each[1]["message"] == "batch ended"]
    assert (ended["BatchLines"], ended["BatchLinesFailed"]) == ([3], [1])
