import json
import re
import socket
from dataclasses import fields

import pytest

from imagegen.domain.images import ImageRequest
from imagegen.domain.models import CATALOG, DEFAULT_MODEL, MAX_IMAGES, ImageModel
from local.serving import Request
from local.upstream import StandInUpstream

MODELS = pytest.mark.parametrize("model", CATALOG.values(), ids=CATALOG)


@MODELS
def test_a_model_holds_together(model: ImageModel) -> None:
    assert CATALOG[model.id] is model
    assert model.sizes
    assert all(size == "auto" or re.fullmatch(r"[1-9]\d{2,3}x[1-9]\d{2,3}", size) for size in model.sizes)
    assert all(model.allows_size(size) for size in model.sizes)
    assert not model.allows_size("1x1")
    choices = {name: getattr(model, f"{name}s") for name in ("size", "background", "moderation", "output_format")}
    choices["quality"] = model.qualities
    assert all(len(values) == len(set(values)) for values in choices.values())
    assert set(model.quick_qualities) <= {None, *model.qualities}
    assert model.upstream_fields <= {field.name for field in fields(ImageRequest)}
    # What the caller chose and what is never sent to the upstream would be silently dropped.
    assert {name for name, values in choices.items() if len(values) > 1} <= model.upstream_fields
    if model.default_response_format == "b64_json":  # GPT image refuses these
        assert not model.upstream_fields & {"response_format", "style"}
    else:
        assert not model.upstream_fields & {"background", "moderation", "output_format", "output_compression"}


@MODELS
def test_the_calls_of_a_request_ask_for_as_many_images_as_it_does(model: ImageModel) -> None:
    for n in range(1, MAX_IMAGES + 1):
        calls = model.calls(n)
        assert sum(calls) == n
        assert all(1 <= images <= model.images_per_call for images in calls)


@pytest.mark.parametrize(
    ("model", "n", "calls"),
    [
        *(("dall-e-2", 10, [10]), ("gpt-image-1", 10, [10])),
        *(("dall-e-3", 1, [1]), ("dall-e-3", 4, [1, 1, 1, 1]), ("flux-pro", 3, [1, 1, 1])),
    ],
)
def test_a_model_that_makes_one_image_a_call_is_called_for_each(model: str, n: int, calls: list[int]) -> None:
    assert CATALOG[model].calls(n) == calls


def test_the_default_model_exists_and_which_models_go_beyond_their_family() -> None:
    assert DEFAULT_MODEL in CATALOG
    gpt_image_2_5 = {f"gpt-image-2.5-{name}{date}" for name in ("sunburst", "flare") for date in ("", "-2026-09-08")}
    gpt_image_2 = {"gpt-image-2", "gpt-image-2-2026-04-21"}
    assert {model.id for model in CATALOG.values() if model.free_sizes} == gpt_image_2 | gpt_image_2_5
    assert {model.id for model in CATALOG.values() if "xhigh" in model.qualities} == gpt_image_2_5


@pytest.mark.parametrize(
    ("model", "quality", "quick"),
    [
        *(("dall-e-2", None, True), ("dall-e-2", "standard", True), ("flux-pro", None, True)),
        *(("dall-e-3", None, True), ("dall-e-3", "standard", True), ("dall-e-3", "hd", False)),
        *(("gpt-image-1", None, False), ("gpt-image-1", "low", False), ("gpt-image-2", "high", False)),
    ],
)
def test_quick_is_what_usually_comes_before_the_gateway_gives_up(model: str, quality: str | None, quick: bool) -> None:
    assert CATALOG[model].is_quick(quality) is quick


@pytest.mark.parametrize(
    ("model", "cap", "longest"),
    [
        *(("dall-e-2", 1000, 1000), ("dall-e-2", 4000, 1000), ("dall-e-2", 200, 200)),
        *(("dall-e-3", 1000, 1000), ("dall-e-3", 4000, 4000), ("dall-e-3", 32_000, 4000)),
        *(("flux", 1000, 1000), ("flux", 32_000, 32_000)),
        *(("gpt-image-1", 1000, 32_000), ("gpt-image-2", 4000, 32_000), ("chatgpt-image-latest", 50_000, 32_000)),
    ],
)
def test_the_deployer_s_cap_shortens_a_prompt_but_never_stretches_a_model(model: str, cap: int, longest: int) -> None:
    assert CATALOG[model].longest_prompt(cap) == longest


def test_the_stand_in_for_the_upstream_has_every_model() -> None:
    for model in CATALOG:
        body = json.dumps({"model": model, "prompt": "an otter", "size": "16x16"}).encode()
        headers = [("Authorization", "Bearer key"), ("Host", "127.0.0.1")]
        with socket.socket() as connection:
            asked = Request("POST", "/v1/images/generations", headers, body, connection)
            assert StandInUpstream("key").respond(asked).status == 200, model
