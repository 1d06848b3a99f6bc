"""The whole stack over HTTP: from source, under a stage prefix, and as `sam build` made it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import openai
import pytest

from local.gateway import INTEGRATION_SECONDS
from local.lambda_host import MOST_PROCESSES
from local.serving import serving
from local.stack import BUILT, RUNTIME_PYTHON, LocalStack, Options, running
from local.upstream import StandInUpstream
from tests.conftest import UPSTREAM_KEY
from tests.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer
from tests.support.chromium import CHROMIUM, Browser, Page, chromium
from tests.support.client import Client
from tests.support.world import World, running_world

_KINDS = {
    "source": {},
    "stage": {"stage": "prod"},
    "built": {"built": True},
}


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
    """A client that no other test has."""
    return world.caller()


@pytest.fixture(scope="session")
def issuer() -> Iterator[FakeIssuer]:
    """The OpenID issuer that the staged and the built world trust, beside the keys."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="session")
def staged_world(issuer: FakeIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """From source, under a stage. A request is redirected after a second."""
    parameters = {"OidcIssuer": issuer.url, "OidcAudience": AUDIENCE, "WaitSeconds": "1"}
    with running_world(tmp_path_factory.mktemp("staged"), parameters, stage="prod") as world:
        yield world


@pytest.fixture(scope="session")
def built_world(issuer: FakeIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """As `make build` made it, with the template's own parameters."""
    if not (BUILT.is_dir() and RUNTIME_PYTHON.exists()):
        pytest.skip("nothing is built: `make build` needs python3.13, which is not there")
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
        pytest.skip("no Chromium is there")
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new visitor's tab. It ends without a complaint of the browser about a page's policy."""
    with browser.page() as page:
        page.window(1100, 800)
        yield page
        assert not [each for each in page.complaints if "Content Security Policy" in each or "exception" in each]


@dataclass(frozen=True)
class Service:
    """A stack that serves, and the upstream behind it."""

    stack: LocalStack
    upstream: StandInUpstream
    upstream_url: str

    @property
    def base_url(self) -> str:
        return f"{self.stack.url}/v1"

    @property
    def key(self) -> str:
        return self.stack.keys["local"]

    def client(self, *, max_retries: int = 2) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=self.key, max_retries=max_retries)

    def stored(self) -> dict[str, bytes]:
        s3 = self.stack.client("s3")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=self.stack.bucket).get("Contents", [])]
        return {key: s3.get_object(Bucket=self.stack.bucket, Key=key)["Body"].read() for key in keys}

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.stack.logs.glob("*Function.log"))


@contextmanager
def serve(
    kind: str,
    logs: Path,
    parameters: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    most_processes: int = MOST_PROCESSES,
    integration_seconds: float = INTEGRATION_SECONDS,
) -> Iterator[Service]:
    """As `local.stack.Options` has it."""
    stand_in = StandInUpstream(UPSTREAM_KEY)
    with serving(stand_in.respond) as port:
        url = f"http://127.0.0.1:{port}/v1"
        options = Options(
            url,
            UPSTREAM_KEY,
            parameters=parameters or {},
            environment=environment or {},
            most_processes=most_processes,
            integration_seconds=integration_seconds,
            **_KINDS[kind],  # type: ignore[arg-type]
        )
        with running(options, logs) as stack:
            yield Service(stack, stand_in, url)


@pytest.fixture(scope="session", params=["stage", "built"])
def any_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same stack from source under a stage, and as it was built without one."""
    kind: str = request.param
    if kind == "built" and not (BUILT.is_dir() and RUNTIME_PYTHON.exists()):
        pytest.skip("nothing is built: `make build` needs python3.13, which is not there")
    with serve(kind, tmp_path_factory.mktemp(kind)) as service:
        yield service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """From source, with a short limit for the upstream's answer."""
    parameters = {"QuickUpstreamTimeoutSeconds": "4", "UpstreamTimeoutSeconds": "4"}
    with serve("source", tmp_path_factory.mktemp("faults"), parameters) as service:
        yield service


def pytest_collection_finish(session: pytest.Session) -> None:
    """What `make verify` says before it spends."""
    base_url = os.environ.get("BASE_URL")
    marks = [mark for item in session.items if (mark := item.get_closest_marker("deployed"))]
    if base_url and marks:
        images = sum(mark.kwargs.get("images", 0) for mark in marks)
        model = os.environ.get("MODEL") or "dall-e-2"
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter
        reporter.write_line(f"{base_url} is asked for {images} images by {model} at most, and deletes them in the end")
        if not os.environ.get("OTHER_KEY"):
            reporter.write_line(
                "OTHER_KEY is not given: that a client does not see another's generations is not tested"
            )


@pytest.fixture(autouse=True)
def _clean_upstream(request: pytest.FixtureRequest) -> None:
    for name in ("any_service", "service"):
        if name in request.fixturenames:
            upstream = request.getfixturevalue(name).upstream
            upstream.calls.clear()
            upstream.downloads.clear()
            upstream.script.clear()
            upstream.download_script.clear()
            upstream.files.clear()
