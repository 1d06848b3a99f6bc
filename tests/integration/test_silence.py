"""Faults of this service log no secret. Each test with `handlers` checks that; these tests also check the check."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from imagegen.domain.credentials import BearerKey
from local.aws_door import Fault
from local.serving import Reply
from tests.conftest import UPSTREAM_KEY
from tests.fakes.provider import png
from tests.support.client import INLINE, Answer
from tests.support.in_process import InProcess


def failing(service: str, **how: Any) -> list[Fault]:
    """Faults at all further calls of the functions to an AWS service."""
    return [Fault(at, service=service, **how) for at in range(1, 80)]


@pytest.fixture
def broken(handlers: InProcess) -> Iterator[InProcess]:
    """The handlers. The test makes their calls to AWS fail."""
    yield handlers
    handlers.stack.door.fail()


def made(handlers: InProcess, **headers: str) -> Answer:
    content = png(handlers.secret("image", may_be_answered=True))
    url = handlers.serve_file(lambda _: Reply(200, content), query=f"X-Amz-Signature={handlers.secret('query')}")
    answer = json.dumps({"data": [{"url": url}]}).encode()
    prompt = handlers.will(handlers.secret("prompt"), *[lambda _: Reply(200, answer)] * 3)
    return handlers.local.make({"prompt": prompt, "user": handlers.secret("user")}, **headers)


@pytest.mark.parametrize("how", [{}, {"error": "hang-up"}], ids=["failing", "hanging up"])
@pytest.mark.parametrize("service", ["s3", "dynamodb", "sqs"])
def test_no_log_shows_a_secret_if_an_aws_service_fails(broken: InProcess, service: str, how: dict[str, Any]) -> None:
    broken.stack.door.fail(*failing(service, **how))
    assert made(broken, **INLINE).status in (303, 424, 503)  # 303: the worker will store the paid image


def test_no_log_shows_a_secret_if_the_worker_cannot_store(broken: InProcess) -> None:
    generation_id = broken.local.begin(prompt=broken.secret("prompt"))
    broken.stack.door.fail(*failing("s3"))
    assert broken.local.see(generation_id).json["status"] == "in_progress"


def test_no_log_shows_an_image_that_cannot_be_read_or_deleted(broken: InProcess) -> None:
    answer = made(broken, **INLINE)
    generation_id, (image,) = answer.generation_id, answer.json["data"]
    in_base64 = broken.local.make({"prompt": broken.secret("prompt"), "response_format": "b64_json"}, **INLINE)
    broken.stack.door.fail(*failing("s3"))
    assert broken.local.result(in_base64.generation_id).status == 424
    assert broken.local.delete(generation_id).failed == (503, "deletion_unfinished")
    broken.stack.door.fail()
    assert broken.local.see(generation_id).status == 404
    assert [broken.local.delete(generation_id).status for _ in range(2)] == [200, 200]
    assert f"images/{image['id']}" not in broken.stored()


def test_no_log_shows_a_secret_if_ssm_fails(broken: InProcess) -> None:
    broken.stack.door.fail(*failing("ssm"))
    with broken.function("AuthorizerFunction").changed():  # with an empty cache
        answer = broken.local.get("/models", Authorization=f"Bearer   {broken.local.key}")
    assert answer.failed == (503, "authorizer_unavailable")
    with broken.function("ApiFunction").changed():
        assert made(broken, **INLINE).failed == (503, "secret_unavailable")


def test_no_log_shows_an_upstream_key_that_no_header_can_carry(handlers: InProcess) -> None:
    with handlers.upstream_key(f"{handlers.secret('key')} {handlers.secret('rest of the key')}"):
        assert made(handlers, **INLINE).failed == (503, "upstream_key_missing")


def test_no_log_shows_a_generation_that_is_given_up(handlers: InProcess) -> None:
    """Its message is a dead letter, and its image is stored."""
    generation_id = made(handlers, **INLINE).generation_id
    records = handlers.function("ApiFunction").wired.settings.store.generation_table
    handlers.aws("dynamodb").update_item(
        TableName=records,
        Key={"pk": {"S": generation_id}, "sk": {"S": "generation"}},
        UpdateExpression="SET #status = :queued, lease_until = :past REMOVE completed_at",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":queued": {"S": "queued"}, ":past": {"N": "1"}},
    )
    handlers.send("GenerationDeadLetters", {"version": 1, "generation_id": generation_id, "poll": 0})
    handlers.deliver("DeadLetterFunction")
    assert handlers.local.see(generation_id).json["status"] == "completed"
    assert '"gave up"' in handlers.logs()


@pytest.mark.parametrize(
    ("queue", "function"),
    [
        ("GenerationQueue", "WorkerFunction"),
        ("GenerationDeadLetters", "DeadLetterFunction"),
        ("IntakeQueue", "IntakeFunction"),
    ],
)
def test_no_log_shows_an_unreadable_message(handlers: InProcess, queue: str, function: str) -> None:
    secret = handlers.secret("message")
    for body in (secret, json.dumps([secret]), json.dumps({secret: secret})):
        handlers.send(queue, body)
    assert len(handlers.deliver(function)) >= 3
    handlers.aws("sqs").purge_queue(QueueUrl=handlers.queue_url(queue))


def test_no_record_holds_a_key(handlers: InProcess) -> None:
    prompt = handlers.secret("prompt")
    handlers.will(prompt, lambda _: Reply(400, json.dumps({"error": {"message": UPSTREAM_KEY}}).encode()))
    answer = handlers.local.make({"prompt": prompt}, **INLINE)
    table = handlers.function("ApiFunction").wired.settings.store.generation_table
    pages = handlers.aws("dynamodb").get_paginator("scan").paginate(TableName=table)
    items = json.dumps([item for page in pages for item in page["Items"]])
    assert answer.generation_id in items
    handlers.check_absent(items)


def test_the_check_finds_a_secret_in_a_log_and_in_an_answer(handlers: InProcess) -> None:
    """Otherwise the other tests would prove nothing."""
    secret = handlers.secret("query")
    library = logging.getLogger("urllib3")
    level = library.level
    library.setLevel(logging.DEBUG)
    try:
        urllib3.request("GET", f"{handlers.upstream_url}/{secret}", retries=False)
    finally:
        library.setLevel(level)
    handlers.seen.append(Answer(200, {}, json.dumps({"url": f"http://x/?X-Amz-Signature={secret}"}).encode()))
    with pytest.raises(AssertionError, match=r"written: .*query.*answered: .*query"):
        handlers.check_silence()
    handlers.forget()


def test_each_function_logs_its_lines(handlers: InProcess) -> None:
    made(handlers)
    handlers.local.until_ended(handlers.local.begin())
    handlers.request("GET", "/v1/models", [("Authorization", f"Bearer {BearerKey.new('unknown').key}")])
    handlers.request("GET", "/docs")
    for line in ('"POST /v1/images/generations"', '"looked at"', '"denied"', '"GET /{proxy+}"', '"stored"'):
        assert line in handlers.logs(), line
