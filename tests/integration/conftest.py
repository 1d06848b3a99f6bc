"""Emulators of AWS and their tables, created once for all tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.canary import Canary
from tests.support.images import REAL_PNG
from tests.support.odd_hosts import ReusableHost, reusable_host
from tests.support.stores import (
    JUDGES,
    MINISTACK,
    Connect,
    Table,
    connecting,
    ministack,
    moto_behind_the_door,
    new_table,
)

if TYPE_CHECKING:
    from tests.support.in_process import InProcess


@pytest.fixture(scope="session")
def connect() -> Iterator[Connect]:
    with connecting() as connect:
        yield connect


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    with moto_behind_the_door() as url:
        yield url


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not MINISTACK.exists():
        pytest.skip("ministack is missing: `make check` or `make .venv-ministack/ready` installs it")
    with ministack(tmp_path_factory.mktemp("ministack")) as url:
        yield url


@pytest.fixture(scope="session")
def moto_table(connect: Connect, moto_url: str) -> Table:
    return new_table(connect("dynamodb", moto_url))


@pytest.fixture(scope="session")
def ministack_table(connect: Connect, ministack_url: str) -> Table:
    return new_table(connect("dynamodb", ministack_url))


@pytest.fixture(params=["fake", *JUDGES])
def judged(request: pytest.FixtureRequest) -> Iterator[Table | None]:
    """An empty table of an emulator, or None for the fake, which passes the same tests."""
    if request.param == "fake":
        yield None
        return
    table: Table = request.getfixturevalue(f"{request.param}_table")
    yield table
    table.clear()


@pytest.fixture(params=JUDGES)
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """An empty table of an emulator."""
    table: Table = request.getfixturevalue(f"{request.param}_table")
    yield table
    table.clear()


@pytest.fixture(scope="session")
def _in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator["InProcess"]:
    from tests.support.in_process import in_process  # noqa: PLC0415  # takes a second, and few files need it

    with in_process(tmp_path_factory.mktemp("in-process")) as service:
        yield service


@pytest.fixture
def handlers(_in_process: "InProcess") -> Iterator["InProcess"]:
    """The functions' handlers in this process. After each test, no secret is in a log and no key in an answer."""
    with _in_process.listening():
        yield _in_process
        _in_process.check_silence()


@pytest.fixture
def buffered(handlers: "InProcess") -> Iterator["InProcess"]:
    """The handlers as `STREAMING=off` deploys them."""
    with handlers.without_streaming():
        yield handlers


@pytest.fixture(scope="module")
def host() -> Iterator[ReusableHost]:
    """A server whose answers each test sets."""
    with reusable_host() as host:
        yield host


@pytest.fixture(scope="session")
def _canary() -> Iterator[Canary]:
    canary = Canary(REAL_PNG)
    yield canary
    canary.close()


@pytest.fixture
def canary(_canary: Canary) -> Iterator[Canary]:
    """A server on this machine that serves an image and must receive no request."""
    yield _canary
    heard = list(_canary.heard)
    _canary.heard.clear()
    assert heard == []
