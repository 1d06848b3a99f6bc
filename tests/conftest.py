"""What several kinds of tests share: an upstream on a real socket, a stand-in for AWS, the example events."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from local.serving import serving
from local.upstream import StandInUpstream

ROOT = Path(__file__).parent.parent
UPSTREAM_KEY = "sk-canary-upstream-key-0123456789"


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores. With one more, a slow machine stalls processes for longer than a lease."""
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Upstream:
    """A stand-in that is running. `base_url` ends in /v1."""

    stand_in: StandInUpstream
    base_url: str


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    stand_in = StandInUpstream(UPSTREAM_KEY)
    with serving(stand_in.respond) as port:
        yield Upstream(stand_in, f"http://127.0.0.1:{port}/v1")


@pytest.fixture(scope="session")
def aws_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's lines contain signed URLs
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.fixture(scope="session")
def example_event() -> Callable[[str], dict[str, Any]]:
    def read(name: str) -> dict[str, Any]:
        event: dict[str, Any] = json.loads((ROOT / "events" / f"{name}.json").read_text())
        return event

    return read
