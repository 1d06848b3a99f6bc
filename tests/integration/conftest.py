"""Emulators of AWS and their tables, made once for all tests."""

from collections.abc import Iterator

import pytest

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
        pytest.skip("ministack is not there: `make check` sets it up, or `make .venv-ministack/ready`")
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
    """An empty table of a judge; None for the fake, which passes the same tests."""
    if request.param == "fake":
        yield None
        return
    table: Table = request.getfixturevalue(f"{request.param}_table")
    yield table
    table.clear()


@pytest.fixture(params=JUDGES)
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Empty."""
    table: Table = request.getfixturevalue(f"{request.param}_table")
    yield table
    table.clear()
