"""The whole stack on this machine with a stand-in upstream and its callers. End-to-end tests share it.

A stack takes seconds to start, so one serves all tests of a worker process that have the same parameters. Each test
has its own caller and its own prompts: the upstream's scripts and calls are by prompt.
"""

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import msgspec
from jsonschema import Draft202012Validator, FormatChecker

from imagegen.aws.generations import DynamoGenerations
from imagegen.domain.credentials import BearerKey
from imagegen.domain.generations import Generation
from local.aws_door import ACCOUNT
from local.serving import HungUpError, Reply, Request, serving
from local.stack import STACK_NAME, LocalStack, Options, running
from local.upstream import Script, StandInUpstream
from tests.conftest import ROOT, UPSTREAM_KEY
from tests.support.client import Client
from tests.support.waiting import SECONDS, until

EVENT_BUCKET = "photos"  # of a deployer, whose objects events may name
# Waits and leases last seconds, not minutes. A shorter lease is lost on a busy machine.
PARAMETERS = {
    "WaitSeconds": "1",
    "LeaseSeconds": "3",
    "UpstreamTimeoutSeconds": "20",
    "ImagesPerDay": "1000000",  # a single image is still a visible percentage
    "ImagesPerClientPerDay": "100000",
    "EventImageBucketArns": f"arn:aws:s3:::{EVENT_BUCKET}",
}
MOST_PROCESSES = 8  # of a function: a hundred concurrent clients would start 64
# No event may contain these. The last one is part of each revised prompt.
_NEVER_PUBLISHED = (UPSTREAM_KEY, "X-Amz-", "in detail")


def batch_line(custom_id: str, prompt: str, **body: Any) -> str:
    """A line of a file for the inbox. The image is small unless the body says otherwise."""
    fields = {"model": "dall-e-2", "size": "256x256", "prompt": prompt, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": fields})


def edit_line(custom_id: str, prompt: str, image: str) -> str:
    """A line that edits an image, given by its id."""
    body = {"model": "gpt-image-1.5", "prompt": prompt, "images": [{"file_id": image}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/images/edits", "body": body})


def answering(*images: Mapping[str, str] | bytes) -> Script:
    """The upstream answers with these images. Bytes are sent as base64."""
    data = [{"b64_json": b64encode(image).decode()} if isinstance(image, bytes) else image for image in images]
    body = json.dumps({"created": 1, "data": data}).encode()
    return lambda _: Reply(200, body)


def refusing(status: int = 400, **error: str) -> Script:
    """The upstream answers with an error object of OpenAI's shape."""
    whole = {"message": "no", "type": "invalid_request_error", "param": None, "code": None, **error}
    return lambda _: Reply(status, json.dumps({"error": whole}).encode(), {"Content-Type": "application/json"})


class Gate:
    """A script of the upstream: blocks the request until the test opens the gate, and then answers as usual."""

    def __init__(self) -> None:
        self._reached, self._opened = Event(), Event()

    def __call__(self, _: Request) -> None:
        self._reached.set()
        self._opened.wait(SECONDS)

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    def until_reached(self) -> None:
        assert self._reached.wait(SECONDS), "the request did not come"

    def open(self) -> None:
        self._opened.set()


class Subscriber:
    """An operator's rule on the bus with a queue as its target. Each event must match its schema."""

    def __init__(self, world: "World") -> None:
        events, self._sqs = world.aws("events"), world.aws("sqs")
        self._queue = self._sqs.create_queue(QueueName="subscriber")["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])["Attributes"]
        pattern = json.dumps({"source": ["imagegen"]})
        events.put_rule(Name="subscriber", EventBusName=STACK_NAME, EventPattern=pattern)
        targets = [{"Id": "queue", "Arn": arn["QueueArn"]}]
        events.put_targets(Rule="subscriber", EventBusName=STACK_NAME, Targets=targets)
        self._all: list[dict[str, Any]] = []
        self._wrong: list[str] = []

    def events(self, **detail: str) -> list[dict[str, Any]]:
        """The events so far whose detail has these fields, such as the `id` of a generation or a `custom_id`."""
        while messages := self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
                event = json.loads(message["Body"])
                whole = {"account": ACCOUNT, **event}  # moto omits the account
                self._wrong += [error.message for error in _validator(event["detail-type"]).iter_errors(whole)]
                self._wrong += [secret for secret in _NEVER_PUBLISHED if secret in message["Body"]]
                self._all.append(event)
        assert self._wrong == []
        return [event for event in self._all if detail.items() <= event["detail"].items()]

    def first(self, **detail: str) -> dict[str, Any]:
        """Waits for the first such event."""
        return until(lambda: self.events(**detail), what=f"an event with {detail}")[0]


@cache
def _validator(detail_type: str) -> Draft202012Validator:
    schema = json.loads((ROOT / f"events/schemas/{detail_type.lower().replace(' ', '-')}.json").read_text())
    return Draft202012Validator(schema, format_checker=FormatChecker())


class World:
    """A running stack. `upstream_url` ends in /v1. `answers` are the gateway's: method, path and status."""

    def __init__(
        self, stack: LocalStack, upstream: StandInUpstream, upstream_url: str, answers: list[tuple[str, str, int]]
    ) -> None:
        self.stack, self.upstream, self.upstream_url, self.answers = stack, upstream, upstream_url, answers
        self._aws: dict[str, Any] = {}
        self._dead_letters: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        return f"{self.stack.url}/v1"

    def caller(
        self, name: str | None = None, *, images_per_day: int | None = None, usd_per_day: int | None = None
    ) -> Client:
        """A new caller with its own key. `usd_per_day` is in millionths of a dollar."""
        key = BearerKey.new(name or f"caller-{uuid4().hex[:12]}")
        record = msgspec.structs.replace(key.record(), images_per_day=images_per_day, usd_per_day=usd_per_day)
        parameter = f"/{STACK_NAME}/clients/{key.caller}"
        self.aws("ssm").put_parameter(Name=parameter, Type="String", Value=msgspec.json.encode(record).decode())
        return Client(self.base_url, key.key, key.caller)

    def aws(self, service: str) -> Any:  # boto3's clients have no common type
        if service not in self._aws:
            self._aws[service] = self.stack.client(service)
        return self._aws[service]

    def close(self) -> None:
        for client in self._aws.values():
            client.close()

    # The upstream.

    def will(self, prompt: str, *scripts: Script) -> str:
        """Sets how the upstream answers a prompt, one script a call. Returns the prompt."""
        self.upstream.by_prompt[prompt].extend(scripts)
        return prompt

    def hold(self, prompt: str, *, download: bool = False) -> Gate:
        """Blocks the next call for a prompt, or the next download of its image, until the gate is opened."""
        gate = Gate()
        (self.upstream.downloads_by_prompt if download else self.upstream.by_prompt)[prompt].append(gate)
        return gate

    def serve_file(self, script: Script, *, query: str = "") -> str:
        """Serves a file of the upstream's origin by the script. Returns its URL."""
        name = uuid4().hex + (f"?{query}" if query else "")
        self.upstream.pages[f"/files/{name}"] = script
        return f"{self.upstream_url.removesuffix('/v1')}/files/{name}"

    def calls(self, prompt: str) -> list[dict[str, Any]]:
        """The paid calls for a prompt."""
        return [call for call in list(self.upstream.calls) if call["prompt"] == prompt]

    def calls_with(self, image: bytes) -> list[dict[str, Any]]:
        """The paid calls that came with this image, unconverted. Some have no prompt."""
        sha256 = hashlib.sha256(image).hexdigest()
        return [
            call
            for call in list(self.upstream.calls)
            if any(each["sha256"] == sha256 for each in call.get("images", ()))
        ]

    # AWS.

    def queue_url(self, name: str) -> str:
        (url,) = [url for url in self.aws("sqs").list_queues()["QueueUrls"] if f"/{STACK_NAME}-{name}-" in url]
        return str(url)

    def send(self, queue: str, body: str | Mapping[str, object], trace: str | None = None) -> None:
        """Sends a message to a queue of the template. `queue` is its logical name, `trace` the trace header."""
        text = body if isinstance(body, str) else json.dumps(body)
        kept = {"AWSTraceHeader": {"DataType": "String", "StringValue": trace}} if trace else {}
        self.aws("sqs").send_message(QueueUrl=self.queue_url(queue), MessageBody=text, MessageSystemAttributes=kept)

    @cached_property
    def bus(self) -> Subscriber:
        """Subscribes at the first use."""
        return Subscriber(self)

    def publish(self, **detail: Any) -> None:
        """Publishes a request for images on the bus."""
        entry = {"Source": "shop", "DetailType": "Image Generation Requested", "EventBusName": STACK_NAME}
        answer = self.aws("events").put_events(Entries=[{**entry, "Detail": json.dumps(detail)}])
        assert answer["FailedEntryCount"] == 0

    def drop(self, text: str, folder: str, suffix: str = ".jsonl") -> str:
        """Puts a file into a caller's folder of the inbox. Returns its key."""
        key = f"inbox/{folder}/{uuid4().hex}{suffix}"
        self.aws("s3").put_object(Bucket=self.stack.inbox, Key=key, Body=text.encode())
        return key

    def s3_uri(self, content: bytes) -> str:
        """Puts an object into the bucket whose objects events may name. Returns its URI."""
        key = f"{uuid4().hex}.png"
        self.aws("s3").put_object(Bucket=self._event_bucket, Key=key, Body=content)
        return f"s3://{self._event_bucket}/{key}"

    @cached_property
    def _event_bucket(self) -> str:
        """Is made at the first use."""
        self.aws("s3").create_bucket(Bucket=EVENT_BUCKET)
        return EVENT_BUCKET

    def lines(self, key: str) -> list[dict[str, Any]]:
        """The lines of a file in the bucket of the inbox and the outbox."""
        content = self.aws("s3").get_object(Bucket=self.stack.inbox, Key=key)["Body"].read()
        return [json.loads(line) for line in content.splitlines()]

    def laid_aside(self, part: str) -> str:
        """Waits until the message with this part is a dead letter. Returns why the intake refused it."""
        sqs, url = self.aws("sqs"), self.queue_url("IntakeDeadLetters")

        def found() -> str | None:
            answer = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], MaxNumberOfMessages=10)
            for message in answer.get("Messages", []):
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                self._dead_letters[message["Body"]] = message["MessageAttributes"]["reason"]["StringValue"]
            return next((reason for body, reason in self._dead_letters.items() if part in body), None)

        return until(found, what=f"a dead letter with {part}") or ""

    def record(self, generation_id: str) -> Generation:
        """The record of a generation in the table."""
        table = self.stack.functions["WorkerFunction"].function.environment["GENERATION_TABLE"]
        found = DynamoGenerations(lambda: self.aws("dynamodb"), table, retention_seconds=0).get(generation_id)
        assert found
        return found

    def stored(self) -> set[str]:
        """The keys of the image bucket."""
        pages = self.aws("s3").get_paginator("list_objects_v2").paginate(Bucket=self.stack.bucket)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def content(self, key: str) -> bytes:
        return bytes(self.aws("s3").get_object(Bucket=self.stack.bucket, Key=key)["Body"].read())

    # The functions.

    def kill(self, function: str = "WorkerFunction") -> None:
        """Kills every process of a function, and waits until they have ended.

        Those at work end last: a caller that sees its request fail meets none of the idle ones.
        """
        for pid in self.stack.functions[function].pids():
            os.kill(pid, 9)
            until(lambda pid=pid: pid not in self.stack.functions[function].pids(), what="the end of the process")  # type: ignore[misc]

    def killing(self, function: str = "WorkerFunction") -> Script:
        """A script that kills the function during its call and does not answer."""

        def kill(_: Request) -> Reply:
            self.kill(function)
            raise HungUpError

        return kill

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.stack.logs.glob("*Function.log"))

    def journal(self, **fields: str) -> list[tuple[str, dict[str, Any]]]:
        """The log lines that have these fields, each with the function that wrote it, in its order."""
        logs = sorted(self.stack.logs.glob("*Function.log"))
        texts = [(log.stem, text) for log in logs for text in log.read_text().splitlines() if text.startswith("{")]
        needed = [json.dumps(value) for value in fields.values()]
        lines = [(name, json.loads(text)) for name, text in texts if all(value in text for value in needed)]
        return [(name, line) for name, line in lines if fields.items() <= line.items()]


@contextmanager
def running_world(
    logs: Path,
    parameters: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[World]:
    """A stack with these parameters, by default PARAMETERS. `environment` and `options` are those of Options."""
    upstream, answers = StandInUpstream(UPSTREAM_KEY), list[tuple[str, str, int]]()
    with ExitStack() as closing:
        url = f"http://127.0.0.1:{closing.enter_context(serving(upstream.respond))}/v1"
        noted = {"on_answer": lambda method, path, status, _: answers.append((method, path, status))}
        given: dict[str, Any] = {"most_processes": MOST_PROCESSES, **noted, **options}
        asked = Options(
            url,
            UPSTREAM_KEY,
            parameters=PARAMETERS if parameters is None else parameters,
            environment=environment or {},
            **given,
        )
        started = World(closing.enter_context(running(asked, logs)), upstream, url, answers)
        closing.callback(started.close)
        yield started
