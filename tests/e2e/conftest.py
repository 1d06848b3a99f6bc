"""The whole stack over HTTP: from source, under a stage prefix, and as `sam build` made it."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from local.stack import BUILT, RUNTIME_PYTHON
from tests.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer
from tests.support.chromium import CHROMIUM, Browser, Page, chromium
from tests.support.client import Client
from tests.support.world import World, running_world


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> str:
    """A prompt that no other test has."""
    return f"{request.node.originalname} {uuid4().hex}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """From source, with short waits and leases. All tests of a worker process share it."""
    with running_world(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def caller(world: World) -> Client:
    """A caller that no other test has."""
    return world.caller()


@pytest.fixture(scope="session")
def issuer() -> Iterator[FakeIssuer]:
    """The OpenID issuer that the staged and the built world trust."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="session")
def staged_world(issuer: FakeIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """From source, under a stage. A request is redirected after a second."""
    parameters = {"OidcIssuer": issuer.url, "OidcAudience": AUDIENCE, "WaitSeconds": "1", "BatchWindowSeconds": "4"}
    with running_world(tmp_path_factory.mktemp("staged"), parameters, stage="prod") as world:
        yield world


@pytest.fixture(scope="session")
def built_world(issuer: FakeIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """As `make build` made it, with the template's own parameters."""
    if not (BUILT.is_dir() and RUNTIME_PYTHON.exists()):
        pytest.skip("nothing is built: `make build` needs python3.13, which is not installed")
    parameters = {"OidcIssuer": issuer.url, "OidcAudience": AUDIENCE}
    with running_world(tmp_path_factory.mktemp("built"), parameters, built=True) as world:
        yield world


@pytest.fixture(params=["staged", "built"])
def any_world(request: pytest.FixtureRequest) -> World:
    world: World = request.getfixturevalue(f"{request.param}_world")
    return world


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new visitor's tab. In the end the browser has reported no exception and no breach of a page's policy."""
    with browser.page() as page:
        page.window(1100, 800)
        yield page
        assert not [each for each in page.complaints if "Content Security Policy" in each or "exception" in each]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Prints what `make verify` is about to spend."""
    base_url = os.environ.get("BASE_URL")
    marks = [mark for item in session.items if (mark := item.get_closest_marker("deployed"))]
    if base_url and marks:
        images = sum(mark.kwargs.get("images", 0) for mark in marks)
        model = os.environ.get("MODEL") or "dall-e-2"
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter
        reporter.write_line(f"{base_url} makes at most {images} images with {model}. The tests delete them.")
        if not os.environ.get("OTHER_KEY"):
            reporter.write_line("Without OTHER_KEY, no test checks that a caller does not see another's generations.")
