"""Files in the inbox: each line becomes one generation or one error."""

import json
from collections.abc import Iterator
from urllib.parse import quote_plus
from uuid import uuid4

import pytest

from tests.support.client import SMALL, Client
from tests.support.pictures import RED, picture
from tests.support.waiting import until
from tests.support.world import World, batch_line, edit_line

BAD_LINES = (
    "{",
    "[]",
    '{"custom_id": 7, "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "GET", "url": "/v1/images/generations", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "POST", "url": "/v1/images/generations", "body": {"size": "1x1"}}',
)


def outbox(key: str, kind: str) -> str:
    return key.replace("inbox/", "outbox/").replace(".jsonl", f".{kind}.jsonl")


def test_each_line_of_a_file_is_a_generation_or_an_error(world: World, caller: Client, prompt: str) -> None:
    lines = [batch_line(f"line-{number}", f"{prompt} {number}") for number in range(8)]
    lines[3] = edit_line("edit", f"{prompt} edit", caller.upload(picture(RED)))
    for number, bad in zip((0, 2, 4, 5, 6, 7), BAD_LINES, strict=True):
        lines[number] = bad
    batch = caller.until_batch_ended(world.drop("\n".join(lines), caller.name))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 8, "completed": 2, "failed": 6}
    output, errors = world.lines(batch["output_key"]), world.lines(batch["error_key"])
    assert [each["custom_id"] for each in output] == ["line-1", "edit"]
    assert [each["line"] for each in errors] == [1, 3, 5, 6, 7, 8]
    assert all(each["response"]["status_code"] == 400 for each in errors)
    for each in output:
        assert len(each["response"]["body"]["data"]) == 1
    versions = world.aws("s3").list_object_versions(Bucket=world.stack.inbox, Prefix=batch["output_key"])
    assert len(versions["Versions"]) == 1


@pytest.fixture
def silent_inbox(world: World) -> Iterator[None]:
    """S3 sends no event for a new file."""
    s3, bucket = world.aws("s3"), world.stack.inbox
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    yield
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}})


def test_a_file_is_found_whether_its_key_comes_url_encoded_or_not(
    world: World, caller: Client, silent_inbox: None
) -> None:
    keys = []
    for name, encoded in (("a b+c", True), ("a b+c", False), ("ü 100%20", True), ("a%2Bb%", False)):
        key = f"inbox/{caller.name}/{uuid4().hex} {name}.jsonl"
        version = world.aws("s3").put_object(Bucket=world.stack.inbox, Key=key, Body=b"{")["VersionId"]
        dropped = {"key": quote_plus(key, safe="/") if encoded else key, "size": 1, "version-id": version}
        event = {"id": "e", "source": "aws.s3", "detail-type": "Object Created"}
        world.send("IntakeQueue", event | {"detail": {"bucket": {"name": world.stack.inbox}, "object": dropped}})
        keys.append(key)
    for key in keys:
        batch = caller.until_batch_ended(key)
        assert batch["error_key"] == outbox(key, "errors")
        assert len(world.lines(batch["error_key"])) == 1


def test_only_its_client_sees_a_batch_and_nobody_cancels_it_after_its_end(world: World, caller: Client) -> None:
    other, key = world.caller(), world.drop("", caller.name)
    batch = caller.until_batch_ended(key)
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    path = f"/batches/{batch['id']}"
    assert caller.get(path).json == batch
    assert (other.get(path).status, other.cancel_batch(batch["id"]).status, other.batches()) == (404, 404, [])
    assert caller.cancel_batch(batch["id"]).failed == (409, "batch_ended")


def test_a_line_over_the_quota_fails(world: World) -> None:
    thrifty = world.caller(images_per_day=2)
    lines = [batch_line(str(number), f"thrift {number}") for number in range(5)]
    batch = thrifty.until_batch_ended(world.drop("\n".join(lines), thrifty.name))
    assert batch["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    errors = world.lines(batch["error_key"])
    assert [each["response"]["status_code"] for each in errors] == [429] * 3
    assert {each["response"]["body"]["error"]["code"] for each in errors} == {"insufficient_quota"}


def test_a_file_with_a_single_request_begins_one_generation_of_its_client(
    world: World, caller: Client, prompt: str
) -> None:
    for mark in ("", "\ufeff"):  # a byte order mark
        world.drop(mark + json.dumps({**SMALL, "prompt": prompt}), caller.name, ".json")
    until(lambda: [each["status"] for each in caller.newest()] == ["completed"] * 2, what="two generations")
    assert len(world.calls(prompt)) == 2


def test_a_file_that_is_no_request_becomes_a_dead_letter_with_its_reason(world: World, caller: Client) -> None:
    bad = (
        ("{", caller.name, ".json", "could not parse"),
        ('{"prompt": ""}', caller.name, ".json", "prompt"),
        ('{"prompt": "x"}', "Not A Client", ".json", "key"),
        ("hello", caller.name, ".txt", "key"),
    )
    dropped = [(world.drop(text, folder, suffix), why) for text, folder, suffix, why in bad]
    for key, why in dropped:
        assert why in world.laid_aside(key)
