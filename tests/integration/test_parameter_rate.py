"""SSM allows 40 parameter reads a second per account, and cold environments all read at once."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.domain.errors import SecretUnavailableError
from local.aws_door import REGION
from tests.support.stores import ACCESS_KEY, SECRET, Connect, moto_behind_the_door

NAME = "/stack/clients/web"
AUTHORIZER_SECONDS = 10.0  # template.yaml


@pytest.fixture
def url(connect: Connect) -> Iterator[str]:
    """A door whose account has made no read yet."""
    with moto_behind_the_door() as url:
        connect("ssm", url, region=REGION).put_parameter(Name=NAME, Type="String", Value="v", Overwrite=True)
        yield url


def test_more_than_forty_reads_a_second_are_throttled(
    connect: Connect, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr("local.aws_door.time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    reads: list[Callable[[], object]] = []
    for ssm in (connect("ssm", url, key=key, region=REGION) for key in ("operator", "Function")):
        reads += [
            partial(ssm.get_parameter, Name=NAME),
            partial(ssm.get_parameters, Names=[NAME]),
            partial(ssm.get_parameters_by_path, Path="/stack"),
        ]

    def readable() -> int:
        """The number of reads before one is throttled."""
        for number in range(100):
            try:
                reads[number % len(reads)]()
            except ClientError as refused:
                if refused.response["Error"]["Code"] == "ThrottlingException":
                    return number
                raise
        return 100

    now[0] += 60
    assert readable() == 40
    assert readable() == 0
    now[0] += 0.25
    assert readable() == 10
    connect("ssm", url, region=REGION).put_parameter(Name=NAME, Type="String", Value="v", Overwrite=True)  # no read


@pytest.mark.soak
def test_two_hundred_environments_read_their_parameters_in_time(url: str) -> None:
    environments = 2 * 100  # of the authorizer and of the api function, since a request needs both
    clients = [  # each process has its own
        boto3.client(
            "ssm",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET,
            config=sdk._patience(),
        )
        for _ in range(environments)
    ]
    at_once = Barrier(environments)

    def environment_begins(number: int) -> tuple[str | None, float]:
        parameters = SsmParameters(lambda: clients[number], cache_seconds=60)
        at_once.wait()
        begun = time.monotonic()
        return parameters.get(NAME), time.monotonic() - begun

    with ThreadPoolExecutor(environments) as pool:
        read = list(pool.map(environment_begins, range(environments)))
    for client in clients:
        client.close()

    assert {value for value, _ in read} == {"v"}
    assert max(seconds for _, seconds in read) < AUTHORIZER_SECONDS


class ThrottledError(Exception):
    pass


class Client:
    """A client of a throttled account. Each call takes as long as all attempts of the SDK."""

    exceptions = SimpleNamespace(ThrottlingException=ThrottledError, ParameterNotFound=KeyError)

    def __init__(self, *, throttled: int) -> None:
        self.now, self._throttled, self.names = 0.0, throttled, list[str]()

    def get_parameter(self, *, Name: str, WithDecryption: bool) -> Any:  # noqa: N803
        assert WithDecryption
        self.names.append(Name)
        self.now += 3.0
        if len(self.names) <= self._throttled:
            raise ThrottledError
        return {"Parameter": {"Value": f"value {len(self.names)}"}}

    def parameters(self) -> SsmParameters:
        client: Any = self
        return SsmParameters(lambda: client, cache_seconds=60, clock=lambda: self.now)


def test_a_throttled_read_is_repeated() -> None:
    assert Client(throttled=1).parameters().get(NAME) == "value 2"


def test_a_lasting_throttle_is_an_error_before_the_authorizer_times_out() -> None:
    client = Client(throttled=99)
    with pytest.raises(SecretUnavailableError):
        client.parameters().get(NAME)
    assert 3.0 < client.now < AUTHORIZER_SECONDS


def test_a_parameter_is_cached_for_a_minute_and_the_cache_holds_a_thousand() -> None:
    client = Client(throttled=0)
    parameters = client.parameters()
    for now, value in ((0.0, "value 1"), (3.0 + 59.9, "value 1"), (3.0 + 60.0, "value 2")):  # read until 3.0
        client.now = now
        assert parameters.get(NAME) == value
    for number in range(999):
        parameters.get(f"/guess/{number}")
        client.now = 66.0
    assert parameters.get(NAME) == "value 2"
    parameters.get("/guess/one-too-many")
    assert parameters.get(NAME) == "value 1003"
