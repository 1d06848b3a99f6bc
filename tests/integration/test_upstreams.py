"""The upstreams of models.toml as a deployment wires them: addresses, keys, and which models each serves."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from imagegen.bootstrap.models import configuration
from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.upstreams import configured_upstreams, upstream_access
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import supply_of
from imagegen.domain.images import ImageRequest
from imagegen.domain.upstreams import Upstream
from imagegen.outbound.pool import HttpPool
from imagegen.providers import first_party
from imagegen.providers.first_party import FirstParty
from imagegen.settings import SettingsError, UpstreamSettings
from local.serving import Reply, Request, serving
from tests.support.in_process import InProcess
from tests.support.models import MODELS, upstream_request

GPT, FLUX, GEMINI, IDEOGRAM = "gpt-image-2", "flux-pro", "gemini-2.5-flash-image", "ideogram-v3"
RESELLER = "https://api.example.com/v1"


def settings(address: str = RESELLER, **overrides: str | int) -> UpstreamSettings:
    """`overrides` are of the upstream google."""
    return UpstreamSettings(
        lease_seconds=60,
        max_image_bytes=1_000_000,
        repeat_unknown_calls=True,
        upstream_base_url=address,
        upstream_keys_path="/imagegen/upstreams",
        upstream_overrides={("google", field): value for field, value in overrides.items()},
        upstream_timeout_seconds=300,
    )


def test_the_deployment_sets_the_default_upstreams_address_and_may_change_others() -> None:
    upstreams = configured_upstreams(CONFIGURATION, settings(timeout_seconds=60, base_url="https://other.example/v1"))
    assert upstreams[CONFIGURATION.default_upstream].base_url == RESELLER
    assert (upstreams["google"].base_url, upstreams["google"].timeout_seconds) == ("https://other.example/v1", 60)
    assert upstreams["openai"] == CONFIGURATION.upstreams["openai"]


def test_an_override_of_no_upstream_is_refused() -> None:
    wrong = settings()
    wrong.upstream_overrides["gogle", "timeout_seconds"] = 60  # type: ignore[index]
    with pytest.raises(SettingsError, match=r"UPSTREAM_OVERRIDES has 'gogle'"):
        configured_upstreams(CONFIGURATION, wrong)


def test_a_disabled_model_and_its_aliases_are_not_offered() -> None:
    catalog = configuration({GEMINI}).catalog
    assert CONFIGURATION.catalog.named(f"{GEMINI}-preview")
    assert catalog.named(GEMINI) is catalog.named(f"{GEMINI}-preview") is None
    for name in ("flax", CONFIGURATION.catalog.default):
        with pytest.raises(SettingsError, match=f"DISABLED_MODELS has '{name}'"):
            configuration({name})


@pytest.mark.parametrize(
    ("base_url", "served"),
    [
        (RESELLER, {GPT, FLUX, GEMINI, IDEOGRAM}),
        ("https://api.openai.com/v1", {GPT}),
        ("https://generativelanguage.googleapis.com/v1beta/openai", {GEMINI}),
        ("https://api.ideogram.ai/v1", {IDEOGRAM}),
        ("https://api.openai.com.example.com/v1", {GPT, FLUX, GEMINI, IDEOGRAM}),
    ],
)
def test_the_host_of_an_owner_serves_only_its_models(base_url: str, served: set[str]) -> None:
    access = upstream_access(
        configured_upstreams(CONFIGURATION, settings(base_url))[CONFIGURATION.default_upstream],
        lambda _: "sk",
        HttpPool(),
        timeout=1,
        max_image_bytes=1,
    )
    assert {name for name in (GPT, FLUX, GEMINI, IDEOGRAM) if access.serves(supply_of(MODELS[name]))} == served


def test_a_model_that_no_upstream_serves_is_shown_and_refused_with_nothing_spent(handlers: InProcess) -> None:
    with handlers.function("ApiFunction").changed(UPSTREAM_BASE_URL="https://api.openai.com/v1"):
        models = {model["id"]: model for model in handlers.local.get("/models").json["data"]}
        assert (models[FLUX]["available"], models[FLUX]["upstreams"]) == (False, [])
        assert (models[GPT]["available"], models[GPT]["upstreams"]) == (True, ["reseller"])
        answer = handlers.caller().make({"model": FLUX, "prompt": "a cat"})
        assert answer.failed == (502, "upstream_misconfigured")
        assert answer.headers["x-should-retry"] == "false"


@pytest.fixture
def requests() -> list[Request]:
    return []


@pytest.fixture
def port(requests: list[Request]) -> Iterator[int]:
    def respond(request: Request) -> Reply:
        requests.append(request)
        data = [{"url": "https://images.example/1.png", "is_image_safe": True}]
        return Reply(200, json.dumps({"created": 1, "data": data}).encode())

    with serving(respond) as port:
        yield port


@pytest.mark.parametrize(
    ("owner", "protocols", "path", "headers"),
    [
        (None, ("openai", "ideogram"), "/ideogram/v1/ideogram-v3/generate", {"Authorization": "Bearer sk-1"}),
        (None, ("ideogram",), "/v1/ideogram-v3/generate", {"Authorization": "Bearer sk-1"}),
        (FirstParty("ideogram", "Api-Key"), ("ideogram",), "/v1/ideogram-v3/generate", {"Api-Key": "sk-1"}),
    ],
)
def test_ideogram_is_called_as_its_host_wants_it(
    monkeypatch: pytest.MonkeyPatch,
    port: int,
    requests: list[Request],
    owner: FirstParty | None,
    protocols: tuple[str, ...],
    path: str,
    headers: dict[str, Any],
) -> None:
    if owner:
        monkeypatch.setattr(first_party, "_HOSTS", {"127.0.0.1": owner})
    upstream = Upstream(protocols, "key", f"http://127.0.0.1:{port}/v1")
    access = upstream_access(upstream, lambda _: "sk-1", HttpPool(), timeout=10, max_image_bytes=1_000)
    request = ImageRequest("a cat", IDEOGRAM, "url")
    assert access.providers["ideogram"].start(upstream_request(request), Deadline.after(10))
    (sent,) = requests
    assert sent.target == path
    assert {name: sent.header(name) for name in ("Authorization", "Api-Key") if sent.header(name)} == headers
