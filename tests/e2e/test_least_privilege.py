"""Each role grants the AWS calls that its function makes, and no others.

The door denies a call that is not granted, so a missing grant fails here. A grant that no call uses fails too.
"""

import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from imagegen.domain.batches import line_generation_id
from local.aws_door import AwsCall, Fault
from local.serving import Reply, Request
from local.upstream_tasks import NEVER_ENDS
from tests.fakes.provider import png
from tests.support.client import EDITS, EDITS_PATH, INLINE, QUEUED, SMALL, Client, fetched
from tests.support.pictures import picture
from tests.support.waiting import until
from tests.support.world import PARAMETERS, Gate, World, answering, batch_line, edit_line, refusing, running_world

pytestmark = pytest.mark.thorough

# Not the functions' own calls: the Lambda service writes a function's log by the function's role.
CALLED_BY_LAMBDA = {"logs:CreateLogStream", "logs:PutLogEvents"}
# While it streams, the api function begins tasks itself. The stack that all other tests share does.
WHILE_STREAMING = ("ApiFunction", "sqs:SendMessage", "*:imagegen-PollQueue-*")
LARGE = png("x" * 5_000_000)  # too large for a Lambda's answer as base64
AS_BASE64 = {"response_format": "b64_json"}
EDIT = {"model": "gemini-2.5-flash-image", "prompt": "an edit"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack whose functions have made every kind of AWS call. Its worker is closed.

    It does not stream: only then are large answers stored.
    """
    # A held upstream must not run into its time-out.
    parameters = {**PARAMETERS, "WaitSeconds": "5", "UpstreamTimeoutSeconds": "300", "DurableUrls": "true"}
    with running_world(tmp_path_factory.mktemp("least-privilege"), parameters, streaming=False) as world:
        caller = world.caller()
        for name, headers in (("api", INLINE), ("worker", {})):
            assert caller.delete(asked(caller, f"plain {name}", headers)).status == 200
            generation_id = asked(caller, world.will(f"large {name}", answering(LARGE)), headers, **AS_BASE64)
            assert fetched(caller.result(generation_id).headers["location"]).status == 200
            assert caller.delete(generation_id).status == 200
            assert caller.make({**SMALL, "prompt": world.will(f"refused {name}", refusing())}, **headers).status == 400
        for count in ("0", "1"):  # without a key, the second attaches to the first
            answer = caller.make({**SMALL, "prompt": "kept"}, x_stainless_retry_count=count)
        assert caller.newest()
        assert fetched(answer.json["data"][0]["permalink"]).status == 200
        assert caller.until_ended(caller.begin(model="kling-v1"))["status"] == "completed"
        with_images(world, caller)
        left_to_the_worker(world, caller)
        by_event(world, caller)
        by_file(world, caller)
        by_batch(world, caller)
        given_up(world, caller)
        yield world


def asked(caller: Client, prompt: str, headers: dict[str, str], **fields: Any) -> str:
    """Sends the request twice with one key: the second attaches and reads the result of the first."""
    for _ in range(2):
        answer = caller.make({**SMALL, "prompt": prompt, **fields}, Idempotency_Key=prompt, **headers)
        assert answer.status in (200, 303), answer.content
    return answer.generation_id


def begun_edit(caller: Client, prompt: str) -> str:
    """Begins an edit of an image in the request, for an answer with base64. Returns its id."""
    parts: dict[str, str | bytes] = {"model": "flux-kontext-pro", "prompt": prompt, "image": picture(), **AS_BASE64}
    return str(caller.form(EDITS, *parts.items(), **QUEUED).json["id"])


def with_images(world: World, caller: Client) -> None:
    """Edits of images that come in every way, over HTTP and by event. The quota refuses the last one."""
    generation_id, uploaded = begun_edit(caller, "an edit"), caller.upload(picture())
    made = caller.until_ended(generation_id)["data"][0]["id"]
    assert caller.follow(caller.form(EDITS, *EDIT.items(), ("image[]", uploaded), ("image[]", made))).status == 200
    images = [{"file_id": uploaded}, {"file_id": made}, {"s3_uri": world.s3_uri(picture())}]
    by_event = {**EDIT, "operation": "edit", "prompt": "an edit by event"}
    world.publish(**by_event, images=images, client=caller.name)
    world.publish(**by_event, images=images[2:], n=2, client=world.caller(images_per_day=1).name)
    until(lambda: world.calls("an edit by event"), what="the edit")
    until(lambda: called(world, "IntakeFunction", "s3:DeleteObject", "*/inputs/*"), what="the refusal")
    assert caller.delete(generation_id).status == 200


def left_to_the_worker(world: World, caller: Client) -> None:
    """A deletion that the api function cannot finish."""
    generation_id = begun_edit(caller, world.will("left", answering(LARGE)))
    caller.until_ended(generation_id)
    world.stack.door.fail(*(Fault(at, service="s3") for at in range(1, 1000)))  # the worker's may be among them
    assert caller.delete(generation_id).status == 503
    world.stack.door.fail()
    world.send("GenerationQueue", {"version": 1, "generation_id": generation_id, "poll": 0})
    until(lambda: called(world, "WorkerFunction", "s3:DeleteObject", "*/inputs/*"), what="the sweep")
    until(lambda: not any(key.startswith(f"answers/{generation_id}") for key in world.stored()), what="its end")


def by_event(world: World, caller: Client) -> None:
    """An event that begins a generation, although the records fail at first, and one that is refused."""
    world.stack.door.fail(*(Fault(at, service="dynamodb") for at in range(1, 1000)))
    for prompt in ("by event", ""):
        world.publish(**SMALL | {"prompt": prompt}, client=caller.name)
    until(lambda: world.journal(service="intake", message="interrupted"), what="the intake's interruption")
    world.stack.door.fail()
    until(lambda: world.calls("by event"), what="the call")
    until(lambda: called(world, "IntakeFunction", "events:PutEvents"), what="the refusal")


def by_file(world: World, caller: Client) -> None:
    """A file that is made, and is then read and deleted by the API, and one that is cancelled while it is made."""
    prompt = world.will("by file", lambda _: Reply(429))  # its next message goes to the queue of lines
    batch = caller.until_batch_ended(world.drop(batch_line("made", prompt), caller.name))
    (output,) = world.lines(batch["output_key"])
    (image,) = output["response"]["body"]["data"]
    assert image["url"] == image["permalink"]
    assert caller.delete(line_generation_id(batch["id"], 1)).status == 200
    for file_id in (batch["input_file_id"], batch["output_file_id"]):
        assert caller.get(f"/files/{file_id}/content").status == 200
        assert caller.ask("DELETE", f"/files/{file_id}").status == 200
    gate = world.hold("cancelled by file")
    key = world.drop(batch_line("cancelled", "cancelled by file"), caller.name)
    gate.until_reached()
    assert caller.cancel_batch(until(lambda: caller.batch_of(key))["id"]).status == 200  # type: ignore[index]
    gate.open()
    assert caller.until_batch_ended(key)["status"] == "cancelled"


def by_batch(world: World, caller: Client) -> None:
    """A batch over HTTP that edits a file of the caller."""
    image = caller.give(picture(), "vision")
    line = edit_line("edit", "an edit by batch", image)
    batch = caller.until_ended_batch(caller.create_batch(caller.give(line.encode()), EDITS_PATH).json["id"])
    assert batch["request_counts"]["completed"] == 1
    assert caller.get(f"/files/{batch['output_file_id']}/content").status == 200
    assert caller.ask("DELETE", f"/files/{image}").status == 200


def given_up(world: World, caller: Client) -> None:
    """A generation with a known image URL, one without, a line of a file, and a task are given up. One is deleted."""
    gate = Gate()

    def page(request: Request) -> Reply:
        gate(request)
        return Reply(200, LARGE, {"Content-Type": "image/png"})

    world.will("known", answering({"url": world.serve_file(page)}))
    known = begun_edit(caller, "known")
    gates = [gate, world.hold("unknown"), world.hold("a line")]
    unknown = caller.begin(**SMALL | {"prompt": "unknown"})
    key = world.drop(batch_line("given-up", "a line"), caller.name)
    world.upstream.fates["a task"].append(NEVER_ENDS)
    task = caller.begin(model="kling-v1", prompt="a task")
    until(lambda: world.record(task).polls, what="the task")
    for each in gates:
        each.until_reached()
    batch = caller.batch_of(key)
    assert batch
    given_up = (known, unknown, line_generation_id(batch["id"], 1))
    world.stack.functions["WorkerFunction"].close()
    for each in gates:
        each.open()
    # Under a lease that holds, a dead letter waits for the visibility time-out of its queue: six minutes.
    until(lambda: all(world.record(each).lease_until < time.time() for each in given_up), what="the end of the leases")
    for generation_id in given_up:
        world.send("GenerationDeadLetters", {"version": 1, "generation_id": generation_id, "poll": 0})
    assert caller.until_ended(known)["status"] == "completed"
    assert caller.until_ended(unknown)["error"]["code"] == "abandoned"
    assert caller.until_batch_ended(key)["request_counts"]["failed"] == 1
    world.send("GenerationDeadLetters", {"version": 1, "generation_id": task, "poll": 1_000})
    until(lambda: called(world, "DeadLetterFunction", "sqs:SendMessage", "*-PollQueue*"), what="the next poll")
    assert caller.delete(known).status == 200
    world.send("GenerationDeadLetters", {"version": 1, "generation_id": known, "poll": 0})
    until(lambda: called(world, "DeadLetterFunction", "sqs:SendMessage", "*-GenerationQueue*"), what="another sweep")


def called(world: World, function: str, action: str, resource: str = "*") -> bool:
    return any(covers(AwsCall(function, action, resource), call) for call in world.stack.door.calls())


def grants(world: World) -> list[AwsCall]:
    """One for each action and resource of each role."""
    return [
        AwsCall(function, action, resource)
        for function, statements in world.stack.roles.items()
        for statement in statements
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    ]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def covers(grant: AwsCall, call: AwsCall) -> bool:
    return (grant.function, grant.action) == (call.function, call.action) and fnmatchcase(call.resource, grant.resource)


def test_every_call_is_granted(world: World) -> None:
    granted, calls = grants(world), world.stack.door.calls()
    assert {call.function for call in calls} == {
        each.function for each in granted if each.action not in CALLED_BY_LAMBDA
    }
    assert [call for call in calls if not any(covers(grant, call) for grant in granted)] == []


def test_every_grant_is_used_and_granted_once(world: World) -> None:
    granted, calls = grants(world), world.stack.door.calls()
    needed = {
        grant
        for grant in granted
        if any(covers(grant, call) and sum(covers(each, call) for each in granted) == 1 for call in calls)
    }
    unused = [grant for grant in granted if grant not in needed and grant.action not in CALLED_BY_LAMBDA]
    assert [grant for grant in unused if not covers(AwsCall(*WHILE_STREAMING), grant)] == []


def test_each_role_grants_writing_its_own_log_alone(world: World) -> None:
    for function, statements in world.stack.roles.items():
        (log,) = [statement for statement in statements if "logs:PutLogEvents" in listed(statement["Action"])]
        assert set(listed(log["Action"])) == CALLED_BY_LAMBDA
        (resource,) = listed(log["Resource"])
        names = {"ApiFunction": "api", "DeadLetterFunction": "dead-letters"}
        name = names.get(function, function.removesuffix("Function").lower())
        assert resource.rpartition("/")[2].partition(":")[0] == name
