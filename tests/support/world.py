"""The whole stack on this machine with a stand-in upstream and its callers, as the end-to-end tests share it.

A stack takes seconds to start, so one serves all tests of a worker process that want the same parameters. Tests stay
apart by a caller and by prompts of their own: the upstream's scripts and calls are by prompt.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from imagegen.credentials import BearerKey
from local.serving import HungUpError, Reply, Request, serving
from local.stack import STACK_NAME, LocalStack, Options, running
from local.upstream import Script, StandInUpstream
from tests.conftest import UPSTREAM_KEY
from tests.support.client import Client
from tests.support.waiting import until

# Waits and leases last seconds, not minutes. A lease of less is lost on a machine that is busy.
PARAMETERS = {
    "WaitSeconds": "1",
    "LeaseSeconds": "3",
    "QuickUpstreamTimeoutSeconds": "5",
    "UpstreamTimeoutSeconds": "20",
}
MOST_PROCESSES = 8  # of a function: a hundred clients at once would start sixty-four


class World:
    """A stack that serves. `upstream_url` ends in /v1."""

    def __init__(self, stack: LocalStack, upstream: StandInUpstream, upstream_url: str) -> None:
        self.stack, self.upstream, self.upstream_url = stack, upstream, upstream_url
        self._aws: dict[str, Any] = {}

    @property
    def base_url(self) -> str:
        return f"{self.stack.url}/v1"

    def caller(self, name: str | None = None, *, images_per_day: int | None = None) -> Client:
        """A new client with a key of its own."""
        key = BearerKey.new(name or f"caller-{uuid4().hex[:12]}")
        record = msgspec.structs.replace(key.record(), images_per_day=images_per_day)
        parameter = f"/{STACK_NAME}/clients/{key.client}"
        self.aws("ssm").put_parameter(Name=parameter, Type="String", Value=msgspec.json.encode(record).decode())
        return Client(self.base_url, key.key, key.client)

    def aws(self, service: str) -> Any:  # boto3's clients have no common type
        if service not in self._aws:
            self._aws[service] = self.stack.client(service)
        return self._aws[service]

    def close(self) -> None:
        for client in self._aws.values():
            client.close()

    # The upstream.

    def will(self, prompt: str, *scripts: Script) -> str:
        """What the upstream answers to a prompt, one script a call. Gives the prompt."""
        self.upstream.by_prompt[prompt].extend(scripts)
        return prompt

    def serve_file(self, script: Script, *, query: str = "") -> str:
        """A file under the upstream's own origin, answered by the script each time. Gives its URL."""
        name = uuid4().hex + (f"?{query}" if query else "")
        self.upstream.pages[f"/files/{name}"] = script
        return f"{self.upstream_url.removesuffix('/v1')}/files/{name}"

    def calls(self, prompt: str) -> list[dict[str, Any]]:
        """The paid calls for a prompt."""
        return [call for call in list(self.upstream.calls) if call["prompt"] == prompt]

    # AWS.

    def queue_url(self, name: str) -> str:
        (url,) = [url for url in self.aws("sqs").list_queues()["QueueUrls"] if f"-{name}" in url]
        return str(url)

    def send(self, queue: str, body: str | Mapping[str, object]) -> None:
        """A message for a queue of the template, by its logical name."""
        text = body if isinstance(body, str) else json.dumps(body)
        self.aws("sqs").send_message(QueueUrl=self.queue_url(queue), MessageBody=text)

    def stored(self) -> set[str]:
        """The keys of the image bucket."""
        pages = self.aws("s3").get_paginator("list_objects_v2").paginate(Bucket=self.stack.bucket)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def content(self, key: str) -> bytes:
        return bytes(self.aws("s3").get_object(Bucket=self.stack.bucket, Key=key)["Body"].read())

    # The functions.

    def kill(self, function: str = "WorkerFunction") -> None:
        """Kills every process of a function, and waits until they have gone."""
        pids = self.stack.functions[function].pids()
        for pid in pids:
            os.kill(pid, 9)
        until(
            lambda: not set(pids) & set(self.stack.functions[function].living_pids()), what="the end of the processes"
        )

    def killing(self, function: str = "WorkerFunction") -> Script:
        """Kills the function that asks, and answers nothing."""

        def kill(_: Request) -> Reply:
            self.kill(function)
            raise HungUpError

        return kill

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.stack.logs.glob("*Function.log"))


@contextmanager
def running_world(
    logs: Path,
    parameters: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[World]:
    """A stack with these parameters, or those that tests share. `environment` and `options` are those of Options."""
    upstream = StandInUpstream(UPSTREAM_KEY)
    with ExitStack() as closing:
        url = f"http://127.0.0.1:{closing.enter_context(serving(upstream.respond))}/v1"
        given: dict[str, Any] = {"most_processes": MOST_PROCESSES, **options}
        asked = Options(
            url,
            UPSTREAM_KEY,
            parameters=PARAMETERS if parameters is None else parameters,
            environment=environment or {},
            **given,
        )
        started = World(closing.enter_context(running(asked, logs)), upstream, url)
        closing.callback(started.close)
        yield started
