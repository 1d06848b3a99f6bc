"""Each function may do what it does, and nothing else: every AWS call of a life is held against the roles, both ways.

The door denies what is not granted, so a grant that is taken out of the template fails here; so does one that is put
in and never used.
"""

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
import urllib3

from imagegen.batches import line_generation_id
from local.aws_door import AwsCall, Fault
from local.serving import Reply, Request
from local.stack import STACK_NAME
from tests.e2e.conftest import Service, serve
from tests.e2e.test_generations import begin, get, post_following, until_ended
from tests.e2e.test_inbox import batch_of, drop, line
from tests.e2e.test_inbox import until_ended as until_batch_ended
from tests.fakes.provider import png

# Not the functions' own calls: the Lambda service writes a function's log by the function's role.
CALLED_BY_LAMBDA = {"logs:CreateLogStream", "logs:PutLogEvents"}
LARGE = png("x" * 5_000_000)  # too large for a Lambda's answer as base64


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": "2", "WaitSeconds": "5", "UpstreamTimeoutSeconds": "20"}
    with serve("source", tmp_path_factory.mktemp("least-privilege"), parameters) as service:
        live(service)
        yield service


def live(service: Service) -> None:
    """Goes every way through the stack that makes a function call AWS."""
    for model in ("dall-e-3", "gpt-image-1"):  # the one is made by the api function, the other by the worker
        deleted(service, asked(service, model, "plain"))
        service.upstream.script.append(large)
        generation_id = asked(service, model, "large", response_format="b64_json")
        path = f"/images/generations/{generation_id}/result"
        _, headers, _ = get(service, path)
        assert urllib3.request("GET", headers["location"]).status == 200
        deleted(service, generation_id)
        service.upstream.script.append(refused)
        assert asked(service, model, "refused", status=400)
    assert get(service, "/images/generations")[0] == 200
    _, headers, _ = get(service, f"/images/{kept(service)}")
    assert urllib3.request("GET", headers["location"]).status == 200
    left_to_the_worker(service)
    by_event(service)
    by_file(service)
    given_up(service)


def asked(service: Service, model: str, prompt: str, status: int = 200, **fields: Any) -> str:
    """With a key, and again with it: what attaches reads what the first has left."""
    body = json.dumps({"prompt": prompt, "model": model, **fields}).encode()
    for _ in range(2):
        found, told, answer = post_following(
            service, body, Idempotency_Key=f"{model} {prompt}", x_stainless_retry_count="0"
        )
        assert found in (status, 200, 303), answer
    return str(told["x-generation-id"])


def kept(service: Service) -> str:
    """The id of an image that stays."""
    for count in ("0", "1"):
        _, _, answer = post_following(service, b'{"prompt": "kept"}', x_stainless_retry_count=count)
    return str(answer["data"][0]["id"])


def deleted(service: Service, generation_id: str) -> None:
    assert get(service, f"/images/generations/{generation_id}", method="DELETE")[0] == 200


def left_to_the_worker(service: Service) -> None:
    """A deletion that the api function cannot finish."""
    service.upstream.script.append(large)
    generation_id = begin(service, prompt="left", response_format="b64_json")
    until_ended(service, generation_id)
    service.stack.door.fail(Fault(1, service="s3"))
    assert get(service, f"/images/generations/{generation_id}", method="DELETE")[0] == 503
    service.stack.door.fail()
    send(service, "GenerationQueue", generation_id)
    s3, bucket = service.stack.client("s3"), service.stack.bucket
    eventually(lambda: "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix=f"answers/{generation_id}"))


def by_event(service: Service) -> None:
    """One that begins a generation, though the records cannot be reached at first, and one that is refused."""
    service.stack.door.fail(*(Fault(at, service="dynamodb") for at in range(1, 100)))
    events = service.stack.client("events")
    for prompt in ("by event", ""):
        detail = json.dumps({"prompt": prompt, "client": "local"})
        entry = {"Source": "test", "DetailType": "Image Generation Requested", "Detail": detail}
        events.put_events(Entries=[{**entry, "EventBusName": STACK_NAME}])
    eventually(lambda: called(service, "IntakeFunction", "sqs:ChangeMessageVisibility"))
    service.stack.door.fail()
    eventually(lambda: any(call["prompt"] == "by event" for call in service.upstream.calls))
    eventually(lambda: called(service, "IntakeFunction", "events:PutEvents"))


def by_file(service: Service) -> None:
    """One that is made, and one that is cancelled when it is read and not made yet."""
    key = drop(service, line("made", "by file"))
    deleted(service, line_generation_id(until_batch_ended(service, key)["id"], 1))
    service.upstream.delay = 30
    key = drop(service, line("cancelled", "cancelled by file"))
    eventually(lambda: any(call["prompt"] == "cancelled by file" for call in service.upstream.calls))
    batch = batch_of(service, key)
    assert batch is not None
    assert get(service, f"/batches/{batch['id']}/cancel", method="POST")[0] == 200
    service.upstream.delay = 0
    assert until_batch_ended(service, key)["status"] == "cancelled"


def sweeps_again(service: Service, function: str) -> bool:
    return any(
        call.function == function and call.action == "sqs:SendMessage" and "-GenerationQueue" in call.resource
        for call in service.stack.door.calls()
    )


def called(service: Service, function: str, action: str) -> bool:
    return any((call.function, call.action) == (function, action) for call in service.stack.door.calls())


def given_up(service: Service) -> None:
    """One whose image is known by its URL, one of which nothing is known, and a line of a file; then a deletion."""
    released = threading.Event()
    service.upstream.script.append(large_by_url(service))

    def held_back(_: Request) -> None:
        released.wait(30)

    service.upstream.download_script.append(held_back)
    known = begin(service, prompt="known", response_format="b64_json")
    eventually(lambda: any(asked.target == "/files/large.png" for asked in service.upstream.downloads))
    service.upstream.delay = 30
    generation_id = begin(service, prompt="given up")
    key = drop(service, line("given-up", "given up by file"))
    asked = {"given up", "given up by file"}
    eventually(lambda: asked <= {call["prompt"] for call in service.upstream.calls})
    batch = batch_of(service, key)
    assert batch is not None
    service.stack.functions["WorkerFunction"].close()
    service.upstream.delay = 0
    released.set()
    time.sleep(2.5)  # the lease
    send(service, "GenerationDeadLetters", generation_id)
    assert until_ended(service, generation_id)["error"]["code"] == "abandoned"
    send(service, "GenerationDeadLetters", line_generation_id(batch["id"], 1))
    assert until_batch_ended(service, key)["request_counts"]["failed"] == 1
    send(service, "GenerationDeadLetters", known)
    assert until_ended(service, known)["status"] == "completed"
    deleted(service, known)
    send(service, "GenerationDeadLetters", known)
    eventually(lambda: sweeps_again(service, "DeadLetterFunction"))


def send(service: Service, queue: str, generation_id: str) -> None:
    sqs = service.stack.client("sqs")
    (url,) = [url for url in sqs.list_queues()["QueueUrls"] if f"-{queue}" in url]
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"generation_id": generation_id}))


def eventually(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def large(_: Request) -> Reply:
    return Reply(200, json.dumps({"created": 1, "data": [{"b64_json": b64encode(LARGE).decode()}]}).encode())


def large_by_url(service: Service) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        service.upstream.files["large.png"] = ("image/png", LARGE)
        url = f"http://{request.header('Host')}/files/large.png"
        return Reply(200, json.dumps({"created": 1, "data": [{"url": url}]}).encode())

    return answer


def refused(_: Request) -> Reply:
    error = {"message": "no", "type": "invalid_request_error", "code": "content_policy_violation"}
    return Reply(400, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})


def grants(service: Service) -> Iterator[AwsCall]:
    """One for each action on each resource that a role names."""
    for function, statements in service.stack.roles.items():
        for statement in statements:
            for action in listed(statement["Action"]):
                for resource in listed(statement["Resource"]):
                    yield AwsCall(function, action, resource)


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def covers(grant: AwsCall, call: AwsCall) -> bool:
    return (grant.function, grant.action) == (call.function, call.action) and fnmatchcase(call.resource, grant.resource)


def test_nothing_is_called_that_is_not_granted(service: Service) -> None:
    granted = list(grants(service))
    calls = service.stack.door.calls()
    assert {call.function for call in calls} == {
        grant.function for grant in granted if grant.action not in CALLED_BY_LAMBDA
    }
    assert [call for call in calls if not any(covers(grant, call) for grant in granted)] == []


def test_nothing_is_granted_that_is_never_called_or_is_granted_twice(service: Service) -> None:
    granted = list(grants(service))
    calls = service.stack.door.calls()
    needed = {
        grant
        for grant in granted
        if any(covers(grant, call) and sum(covers(each, call) for each in granted) == 1 for call in calls)
    }
    assert [grant for grant in granted if grant not in needed and grant.action not in CALLED_BY_LAMBDA] == []


def test_every_function_may_have_its_log_written_and_no_other(service: Service) -> None:
    for function, statements in service.stack.roles.items():
        (log,) = [statement for statement in statements if "logs:PutLogEvents" in listed(statement["Action"])]
        assert set(listed(log["Action"])) == CALLED_BY_LAMBDA
        (resource,) = listed(log["Resource"])
        names = {"ApiFunction": "api", "DeadLetterFunction": "dead-letters"}
        name = names.get(function, function.removesuffix("Function").lower())
        assert resource.rpartition("/")[2].partition(":")[0] == name
