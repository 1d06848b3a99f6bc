"""SSM answers 40 reads of parameters a second to a whole account, and cold environments all read at once."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.errors import SecretUnavailableError
from local.aws_door import REGION
from tests.integration.test_aws_door import SECRET, a_door

NAME = "/stack/clients/web"
RATE = 40
ENVIRONMENTS = 2 * 100  # of the authorizer and of the api function, which a request needs both
AUTHORIZER_SECONDS = 10.0  # template.yaml


@pytest.fixture
def url() -> Iterator[str]:
    with a_door() as url:
        client(url, sdk._patience()).put_parameter(Name=NAME, Type="String", Value="v", Overwrite=True)
        yield url


def client(url: str, config: Config, key: str = "operator") -> Any:
    return boto3.client(
        "ssm",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=SECRET,
        config=config,
    )


def test_whoever_reads_more_than_forty_parameters_a_second_is_throttled(url: str) -> None:
    once = Config(retries={"mode": "standard", "total_max_attempts": 1})
    readers = [client(url, once, key) for key in ("operator", "Function")]
    reads: list[Callable[[], object]] = []
    for ssm in readers:
        reads += [
            partial(ssm.get_parameter, Name=NAME),
            partial(ssm.get_parameters, Names=[NAME]),
            partial(ssm.get_parameters_by_path, Path="/stack"),
        ]

    def answer(number: int) -> str:
        try:
            reads[number % len(reads)]()
        except ClientError as refused:
            return str(refused.response["Error"]["Code"])
        return "read"

    begun = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = Counter(pool.map(answer, range(300)))
    took = time.monotonic() - begun

    assert answers.keys() == {"read", "ThrottlingException"}
    assert answers["read"] <= RATE * (1 + took)
    readers[0].put_parameter(Name=NAME, Type="String", Value="v", Overwrite=True)  # no read


def test_a_hundred_environments_of_two_functions_that_start_at_once_read_their_parameters_in_time(url: str) -> None:
    clients = [client(url, sdk._patience()) for _ in range(ENVIRONMENTS)]  # each process has its own
    at_once = Barrier(ENVIRONMENTS)

    def environment(number: int) -> tuple[str | None, float]:
        parameters = SsmParameters(lambda: clients[number], cache_seconds=60)
        at_once.wait()
        begun = time.monotonic()
        return parameters.get(NAME), time.monotonic() - begun

    with ThreadPoolExecutor(ENVIRONMENTS) as pool:
        read = list(pool.map(environment, range(ENVIRONMENTS)))

    assert {value for value, _ in read} == {"v"}
    assert max(seconds for _, seconds in read) < AUTHORIZER_SECONDS


def test_a_throttle_that_does_not_end_is_reported_before_the_authorizer_is_killed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssm, now = client(url, sdk._patience()), [0.0]

    def throttled(**_: object) -> None:
        now[0] += 3.0  # the longest that the SDK's own tries take
        raise ssm.exceptions.ThrottlingException({"Error": {"Code": "ThrottlingException"}}, "GetParameter")

    monkeypatch.setattr(ssm, "get_parameter", throttled)
    with pytest.raises(SecretUnavailableError):
        SsmParameters(lambda: ssm, cache_seconds=60, clock=lambda: now[0]).get(NAME)

    assert 3.0 < now[0] < AUTHORIZER_SECONDS
