"""The time-outs as they are on AWS: 25 s of waiting, 29 s at the gateway, leases of a minute. For `make soak`."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Service, serve
from tests.e2e.test_main_job import SAMPLE

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve("source", tmp_path_factory.mktemp("real-time")) as service:
        yield service


def test_openais_client_waits_for_an_upstream_of_75_seconds(service: Service) -> None:
    service.upstream.calls.clear()
    service.upstream.script.append(lambda _: time.sleep(75))
    answer = service.client().images.generate(model="gpt-image-1", prompt="75 seconds", response_format="url")
    assert answer.data
    assert answer.data[0].url
    assert len(service.upstream.calls) == 1


def test_the_api_pages_sample_waits_for_an_upstream_of_75_seconds(service: Service) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    service.upstream.calls.clear()
    service.upstream.script.append(lambda _: time.sleep(75))
    sample = SAMPLE.format(base_url=service.base_url, key=service.key)
    out = subprocess.run(["bash", "-c", f"{sample} --silent"], capture_output=True, text=True, check=True).stdout
    assert json.loads(out)["data"][0]["url"]
    assert len(service.upstream.calls) == 1


def test_openais_client_gets_the_image_of_a_quick_model_that_takes_33_seconds(service: Service) -> None:
    service.upstream.calls.clear()
    service.upstream.script.append(lambda _: time.sleep(33))
    answer = service.client().images.generate(model="dall-e-3", prompt="33 seconds")
    assert answer.data
    assert answer.data[0].url
    assert len(service.upstream.calls) == 1
