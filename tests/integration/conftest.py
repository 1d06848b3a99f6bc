"""What answers as DynamoDB in the tests of the stores: two emulators, made apart from each other.

If they disagree, AWS's documentation decides: the door of the local stack, which stands before moto here too, enforces
what moto does not.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from samtranslator.yaml_helper import yaml_parse
from werkzeug.serving import make_server

from local.aws_door import AwsDoor
from tests.conftest import ROOT
from tests.support.canary import Canary
from tests.support.images import REAL_PNG

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.in_process import InProcess

JUDGES = ("moto", "ministack")
MINISTACK = ROOT / ".venv-ministack/bin/python"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    door = AwsDoor(DomainDispatcherApplication(create_backend_app), "test")
    server = make_server("127.0.0.1", 0, door, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not MINISTACK.exists():
        pytest.skip("ministack is not there: `make check` sets it up, or `make .venv-ministack/ready`")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        process = _ministack(port, number, tmp_path_factory.mktemp("ministack"))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _ministack(port: int, listener: int, folder: Path) -> subprocess.Popen[bytes]:
    """Its own command chooses no free port, and writes into the machine's folder for temporary files."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "GATEWAY_PORT": str(port),
        "LOG_LEVEL": "WARNING",
        "SERVICES": "dynamodb",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
    }
    serve = ["-m", "hypercorn", "ministack.app:app", "--workers", "0", "--bind", f"fd://{listener}"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [MINISTACK, *serve], env=environment, pass_fds=[listener], stdout=log, stderr=subprocess.STDOUT
        )


def dynamodb_client(url: str) -> "DynamoDBClient":
    return boto3.client(
        "dynamodb",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="test",
        config=Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1}, max_pool_connections=100),
    )


@pytest.fixture(scope="session")
def moto_dynamodb(moto_url: str) -> Iterator["DynamoDBClient"]:
    client = dynamodb_client(moto_url)
    yield client
    client.close()


@pytest.fixture(scope="session")
def ministack_dynamodb(ministack_url: str) -> Iterator["DynamoDBClient"]:
    client = dynamodb_client(ministack_url)
    yield client
    client.close()


@pytest.fixture(params=JUDGES)
def dynamodb(request: pytest.FixtureRequest) -> "DynamoDBClient":
    client: DynamoDBClient = request.getfixturevalue(f"{request.param}_dynamodb")
    return client


@pytest.fixture
def table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    with new_table(dynamodb) as name:
        yield name


@contextmanager
def new_table(client: "DynamoDBClient") -> Iterator[str]:
    name = f"generations-{uuid4().hex}"
    client.create_table(TableName=name, **_properties())
    try:
        yield name
    finally:
        client.delete_table(TableName=name)


@cache
def _properties() -> dict[str, Any]:
    """The table as template.yaml has it."""
    properties = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]["GenerationTable"]["Properties"]
    asked = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema")
    return {each: properties[each] for each in asked}


@contextmanager
def judged(request: pytest.FixtureRequest) -> Iterator[tuple["DynamoDBClient", str]]:
    """A client of the judge that the fixture's parameter names, and a new table."""
    client = request.getfixturevalue(f"{request.param}_dynamodb")
    with new_table(client) as name:
        yield client, name


def in_index(client: "DynamoDBClient", table: str) -> Sequence[Any]:
    return client.scan(TableName=table, IndexName="by-caller")["Items"]


@pytest.fixture(scope="session")
def _in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator["InProcess"]:
    from tests.support.in_process import in_process  # noqa: PLC0415  # a second of imports that few files need

    with in_process(tmp_path_factory.mktemp("in-process")) as service:
        yield service


@pytest.fixture
def handlers(_in_process: "InProcess") -> Iterator["InProcess"]:
    """The functions' handlers in this process. Whatever a test does, no secret is logged and no key is answered."""
    with _in_process.listening():
        yield _in_process
        _in_process.check_silence()


@pytest.fixture(scope="session")
def _canary() -> Iterator[Canary]:
    canary = Canary(REAL_PNG)
    yield canary
    canary.close()


@pytest.fixture
def canary(_canary: Canary) -> Iterator[Canary]:
    """A server on this machine that serves an image, and that nobody may reach."""
    yield _canary
    heard = list(_canary.heard)
    _canary.heard.clear()
    assert heard == []
