from collections.abc import Iterator

import pytest

from tests.support.in_memory import InMemoryService, in_memory_service


@pytest.fixture
def service() -> Iterator[InMemoryService]:
    with in_memory_service() as service:
        yield service
