"""Files that are dropped into the inbox: every line becomes one generation or one error, whoever dies on the way."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import pytest

from imagegen.credentials import BearerKey
from local.stack import STACK_NAME
from tests.e2e.conftest import Service, serve
from tests.e2e.test_events_in import laid_aside, queue_url
from tests.e2e.test_generations import get

LEASE = 3
BAD_LINES = (
    "{",
    "[]",
    '{"custom_id": 7, "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "GET", "url": "/v1/images/generations", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {"prompt": "x"}}',
    '{"custom_id": "bad", "method": "POST", "url": "/v1/images/generations", "body": {"size": "1x1"}}',
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    parameters = {"LeaseSeconds": str(LEASE), "UpstreamTimeoutSeconds": "20", "DurableUrls": "true"}
    with serve("source", tmp_path_factory.mktemp("inbox"), parameters) as service:
        yield service


def line(custom_id: str, prompt: str, **body: Any) -> str:
    body = {"model": "dall-e-2", "size": "256x256", "prompt": prompt, **body}
    fields = {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body}
    return json.dumps(fields)


def drop(service: Service, text: str, *, folder: str = "local/", suffix: str = ".jsonl") -> str:
    """Gives the file's key."""
    key = f"inbox/{folder}{uuid4().hex}{suffix}"
    service.stack.client("s3").put_object(Bucket=service.stack.inbox, Key=key, Body=text.encode())
    return key


def batch_of(service: Service, key: str) -> dict[str, Any] | None:
    _, _, answer = get(service, "/batches?limit=100")
    found: list[dict[str, Any]] = [batch for batch in answer["data"] if batch["input_file_id"] == key]
    return found[0] if found else None


def until_ended(service: Service, key: str, seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (batch := batch_of(service, key)) is None or batch["status"] not in ("completed", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.2 if seconds < 600 else 30)  # each look counts ten thousand lines
    return batch


def read(service: Service, key: str) -> list[dict[str, Any]]:
    body = service.stack.client("s3").get_object(Bucket=service.stack.inbox, Key=key)["Body"].read()
    return [json.loads(line) for line in body.splitlines()]


def repeated_calls(service: Service, generation_id: str) -> int:
    return int(get(service, f"/images/generations/{generation_id}")[2]["repeated_calls"])


def kill(service: Service, function: str) -> None:
    for pid in service.stack.functions[function].pids():
        os.kill(pid, 9)


@pytest.mark.parametrize(
    "count", [pytest.param(200, id="short"), pytest.param(10_000, id="long", marks=pytest.mark.soak)]
)
def test_a_file_whose_reader_is_killed_three_times_has_each_line_made_once(service: Service, count: int) -> None:
    run = uuid4().hex
    lines = [line(f"line-{number}", f"{run} {number}") for number in range(count)]
    bad = range(7, count, 100)
    for at, number in enumerate(bad):
        lines[number] = BAD_LINES[at % len(BAD_LINES)]
    key = drop(service, "\n".join(lines))
    for _ in range(3):
        time.sleep(1.0 if count == 200 else 30)
        kill(service, "IntakeFunction")
    batch = until_ended(service, key, seconds=120 if count == 200 else 7200)

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": count, "completed": count - len(bad), "failed": len(bad)}
    output, errors = read(service, batch["output_file_id"]), read(service, batch["error_file_id"])
    good = [number for number in range(count) if number not in bad]
    assert [each["custom_id"] for each in output] == [f"line-{number}" for number in good]
    assert [each["line"] for each in errors] == [number + 1 for number in bad]
    assert all(each["response"]["status_code"] == 400 for each in errors)
    assert len({each["response"]["body"]["id"] for each in output}) == len(good)
    for each in output:
        assert len(each["response"]["body"]["data"]) == 1
    asked = Counter(call["prompt"] for call in service.upstream.calls if call["prompt"].startswith(run))
    assert set(asked) == {f"{run} {number}" for number in good}
    for each in output:  # where this machine was too slow for a lease, the record says so
        prompt = f"{run} {each['custom_id'].removeprefix('line-')}"
        assert asked[prompt] == 1 or asked[prompt] <= 1 + repeated_calls(service, each["response"]["request_id"])
    versions = service.stack.client("s3").list_object_versions(
        Bucket=service.stack.inbox, Prefix=batch["output_file_id"]
    )
    assert len(versions["Versions"]) == 1


def test_an_output_line_leads_to_the_image_for_good(service: Service) -> None:
    key = drop(service, line("otter", "an otter", response_format="b64_json", n=2) + "\r\n\r\n\n")
    batch = until_ended(service, key)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert batch["output_file_id"] == key.replace("inbox/", "outbox/").replace(".jsonl", ".output.jsonl")
    (output,) = read(service, batch["output_file_id"])
    assert batch["error_file_id"] is None
    for image in output["response"]["body"]["data"]:
        assert set(image) == {"id", "permalink", "url"}
        assert image["url"] == image["permalink"]
        assert get(service, f"/images/{image['id']}")[0] == 302
    assert "otter in detail" not in json.dumps(output)


@pytest.fixture
def silent_inbox(service: Service) -> Iterator[None]:
    """S3 sends no event for what is dropped."""
    s3, bucket = service.stack.client("s3"), service.stack.inbox
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    yield
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}})


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("name", ["a b+c", "ü 100%20", "a%2Bb%", "plain"])
def test_a_file_is_found_whether_its_key_is_told_url_encoded_or_not(
    service: Service, silent_inbox: None, name: str, encoded: bool
) -> None:
    s3, sqs, bucket = service.stack.client("s3"), service.stack.client("sqs"), service.stack.inbox
    key = f"inbox/local/{uuid4().hex} {name}.jsonl"
    version = s3.put_object(Bucket=bucket, Key=key, Body=b"{")["VersionId"]
    told = {"key": quote_plus(key, safe="/") if encoded else key, "size": 1, "version-id": version}
    event = {"id": "e", "source": "aws.s3", "detail-type": "Object Created"}
    body = json.dumps(event | {"detail": {"bucket": {"name": bucket}, "object": told}})
    sqs.send_message(QueueUrl=queue_url(service, "IntakeQueue"), MessageBody=body)
    batch = until_ended(service, key)
    assert batch["error_file_id"] == key.replace("inbox/", "outbox/").replace(".jsonl", ".errors.jsonl")
    assert len(read(service, batch["error_file_id"])) == 1


def test_a_batch_is_its_clients_alone(service: Service) -> None:
    batch = until_ended(service, drop(service, line("mine", "mine")))
    path = f"/batches/{batch['id']}"
    assert get(service, path)[2] == batch
    assert get(service, path, key="other")[0] == 404
    assert get(service, f"{path}/cancel", method="POST", key="other")[0] == 404
    assert batch_of(service, drop(service, line("theirs", "theirs"), folder="other/")) is None
    assert get(service, "/images/generations")[2]["data"][0]["object"] == "image.generation"


def test_an_ended_batch_cannot_be_cancelled(service: Service) -> None:
    batch = until_ended(service, drop(service, ""))
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    status, _, answer = get(service, f"/batches/{batch['id']}/cancel", method="POST")
    assert (status, answer["error"]["code"]) == (409, "batch_ended")


def test_a_cancelled_batch_has_no_further_line_made(service: Service) -> None:
    service.upstream.delay = 1.0
    try:
        key = drop(service, "\n".join(line(f"line-{number}", f"cancelled {number}") for number in range(150)))
        deadline = time.monotonic() + 20
        while (batch := batch_of(service, key)) is None or not batch["request_counts"]["total"]:
            assert time.monotonic() < deadline
        assert get(service, f"/batches/{batch['id']}/cancel", method="POST")[0] == 200
        ended = until_ended(service, key)
    finally:
        service.upstream.delay = 0
    counts = ended["request_counts"]
    assert (ended["status"], counts["total"]) == ("cancelled", counts["completed"] + counts["failed"])
    assert len(read(service, ended["output_file_id"]) if counts["completed"] else []) == counts["completed"]
    errors = read(service, ended["error_file_id"])
    assert len(errors) == counts["failed"] > 0
    assert {each["response"]["body"]["error"]["code"] for each in errors} == {"generation_cancelled"}


def test_over_an_allowance_a_line_fails_and_says_so(service: Service) -> None:
    key = BearerKey.new("thrifty")
    record = {"key_sha256": key.record().key_sha256, "images_per_day": 2}
    name = f"/{STACK_NAME}/clients/thrifty"
    service.stack.client("ssm").put_parameter(Name=name, Type="String", Value=json.dumps(record))
    dropped = drop(service, "\n".join(line(str(number), f"thrift {number}") for number in range(5)), folder="thrifty/")
    errors_key = dropped.replace("inbox/", "outbox/").replace(".jsonl", ".errors.jsonl")
    deadline = time.monotonic() + 30
    listed: dict[str, Any] = {}
    while not listed.get("Contents"):
        assert time.monotonic() < deadline
        listed = service.stack.client("s3").list_objects_v2(Bucket=service.stack.inbox, Prefix=errors_key)
    errors = read(service, errors_key)
    assert [each["response"]["status_code"] for each in errors] == [429] * 3
    assert {each["response"]["body"]["error"]["code"] for each in errors} == {"insufficient_quota"}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_single_request_is_one_generation_of_its_client(service: Service, mark: str) -> None:
    prompt = f"single {uuid4().hex}"
    drop(service, mark + json.dumps({"prompt": prompt, "model": "dall-e-2", "size": "256x256"}), suffix=".json")
    deadline = time.monotonic() + 20
    while not any(call["prompt"] == prompt for call in service.upstream.calls):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("text", "folder", "suffix", "why"),
    [
        ("{", "local/", ".json", "could not parse"),
        ('{"prompt": ""}', "local/", ".json", "prompt"),
        ('{"prompt": "x"}', "Not A Client/", ".json", "key"),
        ("hello", "local/", ".txt", "key"),
    ],
)
def test_what_is_no_request_is_laid_aside_with_its_reason(
    service: Service, text: str, folder: str, suffix: str, why: str
) -> None:
    key = drop(service, text, folder=folder, suffix=suffix)
    body, reason = laid_aside(service)
    assert json.loads(body)["detail"]["object"]["key"] == key
    assert why in reason
