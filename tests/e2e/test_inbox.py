"""Files in the inbox: each line becomes one generation or one error, whichever process dies."""

import json
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote_plus
from uuid import uuid4

import pytest

from tests.support.client import SMALL, Client
from tests.support.waiting import until
from tests.support.world import World, batch_line

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


@pytest.mark.parametrize(
    ("count", "kills"), [pytest.param(40, 1, id="short"), pytest.param(10_000, 3, id="long", marks=pytest.mark.soak)]
)
def test_each_line_of_a_file_is_made_once_although_its_reader_is_killed(
    world: World, caller: Client, prompt: str, count: int, kills: int
) -> None:
    lines = [batch_line(f"line-{number}", f"{prompt} {number}") for number in range(count)]
    bad = range(3, count, 6 if kills == 1 else 100)
    for at, number in enumerate(bad):
        lines[number] = BAD_LINES[at % len(BAD_LINES)]

    def asked() -> Counter[str]:
        return Counter(call["prompt"] for call in list(world.upstream.calls) if call["prompt"].startswith(prompt))

    key = world.drop("\n".join(lines), caller.name)
    for kill in range(kills):
        until(lambda share=kill / kills: len(asked()) > share * count, 3600, what="progress")  # type: ignore[misc]
        world.kill("IntakeFunction")
    batch = caller.until_batch_ended(key, 120 if kills == 1 else 7200)

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": count, "completed": count - len(bad), "failed": len(bad)}
    output, errors = world.lines(batch["output_file_id"]), world.lines(batch["error_file_id"])
    good = [number for number in range(count) if number not in bad]
    assert [each["custom_id"] for each in output] == [f"line-{number}" for number in good]
    assert [each["line"] for each in errors] == [number + 1 for number in bad]
    assert all(each["response"]["status_code"] == 400 for each in errors)
    assert len({each["response"]["body"]["id"] for each in output}) == len(good)
    calls = asked()
    assert set(calls) == {f"{prompt} {number}" for number in good}
    for number, each in zip(good, output, strict=True):
        assert len(each["response"]["body"]["data"]) == 1
        if (made := calls[f"{prompt} {number}"]) > 1:  # the machine was too slow for a lease, and the record shows it
            assert made <= 1 + caller.see(each["response"]["request_id"]).json["repeated_calls"]
    versions = world.aws("s3").list_object_versions(Bucket=world.stack.inbox, Prefix=batch["output_file_id"])
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
        assert batch["error_file_id"] == outbox(key, "errors")
        assert len(world.lines(batch["error_file_id"])) == 1


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
    errors = world.lines(batch["error_file_id"])
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
