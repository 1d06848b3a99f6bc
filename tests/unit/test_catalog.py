import json
import re
import socket
from collections.abc import Iterator
from dataclasses import fields

import pytest

from imagegen.bootstrap.api import Api, api
from imagegen.catalog import CATALOG, DEFAULT_MODEL, MAX_IMAGES, ImageModel
from imagegen.images import ImageRequest
from local.serving import Request
from local.upstream import StandInUpstream

MODELS = pytest.mark.parametrize("model", CATALOG.values(), ids=CATALOG)


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    for name, value in {
        "API_IS_FIRST_WORKER": "true",
        "AWS_REGION": "eu-central-1",
        "DURABLE_URLS": "false",
        "EVENT_BUS": "images",
        "GENERATION_QUEUE_URL": "http://127.0.0.1:9/generations",
        "GENERATION_TABLE": "generations",
        "IMAGE_BUCKET": "images",
        "INTAKE_QUEUE_URL": "https://sqs.example/intake",
        "LEASE_SECONDS": "60",
        "LINK_SECONDS": "3600",
        "MAX_IMAGE_BYTES": "26214400",
        "CORS_ORIGIN": "*",
        "IMAGES_PER_CLIENT_PER_DAY": "200",
        "IMAGES_PER_DAY": "1000",
        "MOST_WAITERS": "100",
        "PROMPT_MAX_CHARACTERS": "1000",
        "RECORD_DAYS": "90",
        "REPEAT_UNKNOWN_CALLS": "true",
        "STACK_NAME": "imagegen",
        "UPSTREAM_API_KEY_PARAMETER": "/imagegen/upstream/key",
        "UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1",
        "UPSTREAM_TIMEOUT_SECONDS": "100",
        "WAIT_SECONDS": "25",
    }.items():
        monkeypatch.setenv(name, value)
    api.cache_clear()
    made = api()
    yield made
    made.workshop.pool.shutdown()
    api.cache_clear()


@MODELS
@pytest.mark.parametrize("n", range(1, MAX_IMAGES + 1))
def test_the_calls_of_a_request_ask_for_as_many_images_as_it_does(model: ImageModel, n: int) -> None:
    calls = model.calls(n)
    assert sum(calls) == n
    assert all(1 <= images <= model.images_per_call for images in calls)


@pytest.mark.parametrize(
    ("model", "n", "calls"),
    [
        ("dall-e-2", 10, [10]),
        ("dall-e-3", 1, [1]),
        ("dall-e-3", 4, [1, 1, 1, 1]),
        ("flux-pro", 3, [1, 1, 1]),
        ("gpt-image-1", 10, [10]),
    ],
)
def test_a_model_that_makes_one_image_a_call_is_called_for_each(model: str, n: int, calls: list[int]) -> None:
    assert CATALOG[model].calls(n) == calls


@pytest.mark.parametrize(
    ("model", "quality", "quick"),
    [
        ("dall-e-2", None, True),
        ("dall-e-2", "standard", True),
        ("dall-e-3", None, True),
        ("dall-e-3", "standard", True),
        ("dall-e-3", "hd", False),
        ("flux-pro", None, True),
        ("gpt-image-1", None, False),
        ("gpt-image-1", "low", False),
        ("gpt-image-2", "high", False),
    ],
)
def test_quick_is_what_usually_comes_before_the_gateway_gives_up(model: str, quality: str | None, quick: bool) -> None:
    assert CATALOG[model].is_quick(quality) is quick


@MODELS
def test_only_a_quality_that_can_be_asked_for_is_quick(model: ImageModel) -> None:
    assert set(model.quick_qualities) <= {None, *model.qualities}


@MODELS
def test_a_size_is_a_width_and_a_height(model: ImageModel) -> None:
    assert model.sizes
    assert all(size == "auto" or re.fullmatch(r"[1-9]\d{2,3}x[1-9]\d{2,3}", size) for size in model.sizes)
    assert all(model.allows_size(size) for size in model.sizes)
    assert not model.allows_size("1x1")


@MODELS
def test_no_value_is_listed_twice(model: ImageModel) -> None:
    for values in (model.sizes, model.qualities, model.backgrounds, model.moderations, model.output_formats):
        assert len(values) == len(set(values))


@pytest.mark.parametrize(
    ("model", "cap", "longest"),
    [
        ("dall-e-2", 1000, 1000),
        ("dall-e-2", 4000, 1000),
        ("dall-e-2", 200, 200),
        ("dall-e-3", 1000, 1000),
        ("dall-e-3", 4000, 4000),
        ("dall-e-3", 32_000, 4000),
        ("flux", 1000, 1000),
        ("flux", 32_000, 32_000),
        ("gpt-image-1", 1000, 32_000),
        ("gpt-image-2", 4000, 32_000),
    ],
)
def test_the_deployer_s_cap_shortens_a_prompt_but_never_stretches_a_model(model: str, cap: int, longest: int) -> None:
    assert CATALOG[model].longest_prompt(cap) == longest


def test_a_request_that_names_no_model_gets_one_that_exists() -> None:
    assert DEFAULT_MODEL in CATALOG


@MODELS
def test_a_model_is_found_under_its_own_id(model: ImageModel) -> None:
    assert CATALOG[model.id] is model


@MODELS
def test_what_is_sent_upstream_is_something_a_request_has(model: ImageModel) -> None:
    assert model.upstream_fields <= {field.name for field in fields(ImageRequest)}


@MODELS
def test_a_field_with_values_to_choose_from_is_sent_upstream(model: ImageModel) -> None:
    """What the caller chose and what the upstream is never told would be silently dropped."""
    choices = {
        "size": model.sizes,
        "quality": model.qualities,
        "background": model.backgrounds,
        "moderation": model.moderations,
        "output_format": model.output_formats,
    }
    assert {name for name, values in choices.items() if len(values) > 1} <= model.upstream_fields


@MODELS
def test_gpt_image_is_never_sent_what_it_refuses(model: ImageModel) -> None:
    if model.default_response_format == "b64_json":
        assert not model.upstream_fields & {"response_format", "style"}
    else:
        assert not model.upstream_fields & {"background", "moderation", "output_format", "output_compression"}


def test_every_provider_that_the_catalog_names_is_wired_and_no_other(wired: Api) -> None:
    assert {model.provider for model in CATALOG.values()} == set(wired.workshop.providers)


@pytest.mark.parametrize("model", CATALOG)
def test_the_stand_in_for_the_upstream_has_every_model(model: str) -> None:
    body = json.dumps({"model": model, "prompt": "an otter"}).encode()
    headers = [("Authorization", "Bearer key"), ("Host", "127.0.0.1")]
    asked = Request("POST", "/v1/images/generations", headers, body, socket.socket())
    with asked.connection:
        assert StandInUpstream("key").respond(asked).status == 200
