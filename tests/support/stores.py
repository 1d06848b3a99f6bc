"""What the tests of the stores share: emulators of AWS, a table of the template, a new record.

Two independent emulators stand in for DynamoDB. If they disagree, AWS's documentation decides: the local stack's door,
which is in front of moto here too, enforces what moto does not.
"""

import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from samtranslator.yaml_helper import yaml_parse
from werkzeug.serving import make_server

from imagegen.aws.batches import DynamoBatches, DynamoBatchLines
from imagegen.aws.file_records import DynamoFiles
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.idempotency_keys import DynamoIdempotencyKeys
from imagegen.aws.quota_counters import DynamoQuotaCounters
from imagegen.aws.slots import DynamoUpstreamSlots
from imagegen.domain.generations import Generation
from imagegen.domain.images import ImageRequest
from local.aws_door import AwsDoor
from tests.conftest import ROOT
from tests.support.models import admitted

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient

JUDGES = ("moto", pytest.param("ministack", marks=pytest.mark.thorough))
MINISTACK = ROOT / ".venv-ministack/bin/python"
ACCESS_KEY, SECRET = "AKIATESTTESTTESTTEST", "a/secret+of=all"
RETENTION_SECONDS = 30 * 24 * 3600
NOW = 1_760_000_000.123456
PATIENCE_SECONDS = 120.0  # only ever waited for in full if a test fails
Connect = Callable[..., Any]


@contextmanager
def moto_behind_the_door(secret: str = SECRET) -> Iterator[str]:
    """Yields the URL. `secret` is the operators'. All motos of a process share their resources."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines contain signed URLs
    door = AwsDoor(DomainDispatcherApplication(create_backend_app), secret)
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """Yields the URL. Ministack's own command cannot choose a free port, and writes into the temporary folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        port, number = listener.getsockname()[1], listener.fileno()
        settings = {"GATEWAY_PORT": str(port), "LOG_LEVEL": "WARNING", "SERVICES": "dynamodb"}
        switched_off = {"IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0"}
        # By default hypercorn closes a connection after 5 idle seconds, also if a request is on its way.
        options = ["--workers", "0", "--bind", f"fd://{number}", "--keep-alive", "86400"]
        process = subprocess.Popen(
            [MINISTACK, "-m", "hypercorn", "ministack.app:app", *options],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **settings, **switched_off},
            pass_fds=[number],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def connecting() -> Iterator[Connect]:
    """Yields a function that makes boto3 clients: one for the same arguments. All are closed at the end."""
    with ExitStack() as closing:

        @cache
        def connect(
            service: str,
            url: str,
            *,
            key: str = ACCESS_KEY,
            secret: str = SECRET,
            region: str = "eu-central-1",
            attempts: int = 1,
        ) -> Any:
            config = Config(
                connect_timeout=PATIENCE_SECONDS,
                read_timeout=PATIENCE_SECONDS,
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=100,
                signature_version="s3v4" if service == "s3" else "v4",
            )
            client = boto3.client(
                service,  # type: ignore[call-overload]
                endpoint_url=url,
                region_name=region,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                config=config,
            )
            closing.callback(client.close)
            return client

        yield connect


def closed_url() -> str:
    """The URL of a port on which no process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@dataclass(frozen=True)
class Table:
    """A table of an emulator, and the stores in it."""

    client: "DynamoDBClient"
    name: str

    @property
    def generations(self) -> DynamoGenerations:
        return DynamoGenerations(lambda: self.client, self.name, retention_seconds=RETENTION_SECONDS)

    @property
    def keys(self) -> DynamoIdempotencyKeys:
        return DynamoIdempotencyKeys(lambda: self.client, self.name)

    @property
    def batches(self) -> DynamoBatches:
        return DynamoBatches(lambda: self.client, self.name, retention_seconds=1000)

    @property
    def lines(self) -> DynamoBatchLines:
        return DynamoBatchLines(lambda: self.client, self.name, retention_seconds=1000)

    @property
    def files(self) -> DynamoFiles:
        return DynamoFiles(lambda: self.client, self.name, retention_seconds=1000)

    @property
    def counters(self) -> DynamoQuotaCounters:
        return DynamoQuotaCounters(lambda: self.client, self.name)

    def slots(self, limits: Mapping[str, int], now: Callable[[], float] = time.time) -> DynamoUpstreamSlots:
        return DynamoUpstreamSlots(lambda: self.client, self.name, limits, now)

    def items(self, **scan: Any) -> list[Any]:
        pages: Any = self.client.get_paginator("scan").paginate(TableName=self.name, **scan)
        return [item for page in pages for item in page["Items"]]

    def clear(self) -> None:
        deletions: list[Any] = [
            {"DeleteRequest": {"Key": {name: item[name] for name in ("pk", "sk")}}} for item in self.items()
        ]
        for at in range(0, len(deletions), 25):  # the most that one call takes
            self.client.batch_write_item(RequestItems={self.name: deletions[at : at + 25]})


def new_table(client: "DynamoDBClient") -> Table:
    """A table with the schema of template.yaml."""
    properties = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["GenerationTable"]["Properties"]
    asked = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema")
    table = Table(client, f"generations-{uuid4().hex}")
    client.create_table(TableName=table.name, **{each: properties[each] for each in asked})
    return table


def new_generation(*, caller: str = "alice", n: int = 1, at: float = NOW, model: str = "dall-e-3") -> Generation:
    request = ImageRequest("a cat", model, "url", n)
    return admitted(request, caller=caller, base_url="https://api.example/v1", now=at)
