"""Each protocol of the upstream, by OpenAI's client with the model's own options in `extra_body`."""

import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagegen.providers.openai.models import PROVIDER as OPENAI
from local import upstream_kling as kling
from local import upstream_midjourney as midjourney
from local.upstream import Script
from local.upstream_gemini_chat import content_filter, text_without_image
from local.upstream_ideogram import images_at, insufficient_funds, unsafe_prompt
from local.upstream_tasks import Fate, failing
from tests.support.client import Client, fetched
from tests.support.models import GENERATING
from tests.support.waiting import until
from tests.support.world import PARAMETERS, World, batch_line, running_world

pytestmark = pytest.mark.thorough

Sent = dict[str, Any]
CASES: list[tuple[str, dict[str, Any], Sent, float]] = [
    ("flux-kontext-pro", {}, {"aspect_ratio": "1:1"}, 1),
    ("flux-kontext-max", {"size": "1024x1792"}, {"aspect_ratio": "9:16"}, 9 / 16),
    ("qwen-image", {"size": "1664x928"}, {"size": "1664x928"}, 1664 / 928),
    ("gemini-2.0-flash-exp-image-generation", {"n": 2}, {}, 1),
    ("gemini-2.5-flash-image", {"size": "1792x1024"}, {"aspect_ratio": "16:9"}, 16 / 9),
    ("gemini-2.5-flash-image-preview", {"extra_body": {"aspect_ratio": "2:3"}}, {"aspect_ratio": "2:3"}, 2 / 3),
    ("gemini-3-pro-image", {"extra_body": {"image_size": "2K"}}, {"image_size": "2K"}, 1),
    ("ideogram-v3", {"n": 2}, {"aspect_ratio": "1x1"}, 1),
    (
        "ideogram-v3",
        {
            "size": "1536x1024",
            "extra_body": {
                "rendering_speed": "TURBO",
                "magic_prompt": "OFF",
                "negative_prompt": "text, watermark",
                "seed": 7,
                "style_codes": ["0A1b2C3d", "ffffffff"],
                "color_palette": {"members": [{"color_hex": "#FF8800", "color_weight": 0.5}]},
            },
        },
        {
            "aspect_ratio": "3x2",
            "rendering_speed": "TURBO",
            "magic_prompt": "OFF",
            "negative_prompt": "text, watermark",
            "seed": "7",
            "style_codes": ["0A1b2C3d", "ffffffff"],
            "color_palette": '{"members":[{"color_hex":"#FF8800","color_weight":0.5}]}',
        },
        3 / 2,
    ),
    ("kling-v1", {}, {"model_name": "kling-v1", "aspect_ratio": "16:9"}, 16 / 9),
    ("kling-v1-5", {"size": "1024x1536"}, {"aspect_ratio": "2:3"}, 2 / 3),
    (
        "kling-v2-1",
        {"n": 10, "extra_body": {"aspect_ratio": "21:9", "resolution": "2k", "negative_prompt": "text"}},
        {"aspect_ratio": "21:9", "resolution": "2k", "negative_prompt": "text"},
        21 / 9,
    ),
    (
        "niji",
        {"n": 2, "style": "cute", "extra_body": {"aspect_ratio": "2:3", "seed": 7, "negative_prompt": "text"}},
        {"botType": "NIJI_JOURNEY"},
        2 / 3,
    ),
]


@pytest.mark.parametrize(
    ("model", "asked", "sent", "ratio"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_openais_client_gets_stored_images(
    world: World, caller: Client, prompt: str, model: str, asked: dict[str, Any], sent: Sent, ratio: float
) -> None:
    with caller.openai() as client:
        answer = client.images.generate(model=model, prompt=prompt, **asked)
    images = answer.data or []
    assert len(images) == asked.get("n", 1)
    for image in images:
        content = fetched((image.model_extra or {})["permalink"]).content
        width, height = Image.open(BytesIO(content)).size
        assert width / height == pytest.approx(ratio, rel=0.05)
    for call in world.calls(prompt):
        config = call.get("extra_body", {}).get("google", {}).get("image_config", {})
        assert sent.items() <= {**call, **config}.items()
    assert sum(call["n"] for call in world.calls(prompt)) == len(images)


def test_an_image_has_what_the_upstream_says_about_it(world: World, caller: Client, prompt: str) -> None:
    answer = caller.make({"model": "ideogram-v3", "prompt": prompt, "seed": 7, "magic_prompt": "ON"})
    (image,) = answer.json["data"]
    said = {name: image[name] for name in ("seed", "resolution", "style_type", "revised_prompt")}
    expected = {"seed": 7, "resolution": "1024x1024", "style_type": "GENERAL", "revised_prompt": f"{prompt}, in detail"}
    assert said == expected
    assert caller.see(answer.generation_id).json["data"][0].items() >= said.items()


def test_a_grid_has_its_seed_and_what_midjourney_can_do_with_it(world: World, caller: Client, prompt: str) -> None:
    generation_id = caller.begin(model="midjourney", prompt=f"{prompt} --ar 3:2", n=2, seed=2**32 - 1)
    generation = caller.until_ended(generation_id)
    assert [generation[name] for name in ("status", "model", "upstream")] == ["completed", "mj_imagine", "reseller"]
    assert [image["seed"] for image in generation["data"]] == [2**32 - 1, 0]
    numbered = [f"{kind}_{index}" for kind in ("upscale", "variation") for index in range(1, 5)]
    for image in generation["data"]:
        assert [action["name"] for action in image["actions"]] == [*numbered, "reroll"]
        assert image["actions"][0]["label"] == "U1"
    for call in world.record(generation_id).calls:
        assert call.answer
        assert (call.answer.upstream, bool(call.answer.task_id), bool(call.answer.account)) == ("reseller", True, True)


def test_a_task_that_fails_is_openais_error_after_one_purchase(world: World, caller: Client, prompt: str) -> None:
    ends: list[tuple[str, Fate, tuple[int, str]]] = [
        ("kling-v1", kling.risk_control(), (400, "content_policy_violation")),
        ("kling-v1", failing("The pool of machines is down"), (424, "upstream_task_failed")),
        ("mj_imagine", midjourney.banned_prompt(), (400, "content_policy_violation")),
        ("mj_imagine", midjourney.CANCELLED, (424, "upstream_task_failed")),
    ]
    begun = []
    for number, (model, fate, _) in enumerate(ends):
        world.upstream.fates[f"{prompt} {number}"].append(fate)
        begun.append(caller.begin(model=model, prompt=f"{prompt} {number}"))
    for number, (generation_id, (_, _, failed)) in enumerate(zip(begun, ends, strict=True)):
        caller.until_ended(generation_id)
        assert caller.result(generation_id).failed == failed
        assert [charge.prompt for charge in world.upstream.charged].count(f"{prompt} {number}") == 1


FAULTS: list[tuple[str, Script, tuple[int, str]]] = [
    ("gemini-2.5-flash-image", content_filter(), (400, "content_policy_violation")),
    ("gemini-3-pro-image", text_without_image("I cannot draw that."), (424, "upstream_no_image")),
    ("ideogram-v3", unsafe_prompt(), (400, "content_policy_violation")),
    ("ideogram-v3", images_at(""), (400, "content_policy_violation")),
    ("ideogram-v3", insufficient_funds(), (502, "upstream_out_of_credit")),
    ("kling-v1", kling.refusing(1101), (502, "upstream_out_of_credit")),
    ("kling-v1", kling.refusing(1301), (400, "content_policy_violation")),
    ("mj_imagine", midjourney.banned_word(), (400, "content_policy_violation")),
    ("mj_imagine", midjourney.refusing_in_gateway("quota_not_enough"), (502, "upstream_out_of_credit")),
    ("mj_imagine", midjourney.system_error(), (424, "upstream_failed")),
]


@pytest.mark.parametrize(("model", "script", "failed"), FAULTS)
def test_a_refusal_is_openais_error_after_one_call(
    world: World, caller: Client, prompt: str, model: str, script: Script, failed: tuple[int, str]
) -> None:
    answer = caller.make({"model": model, "prompt": world.will(prompt, script)})
    assert answer.failed == failed
    assert len(world.calls(prompt)) == 1


OF_EACH_PROTOCOL = {model.provider: model.id for model in GENERATING.values() if model.provider != OPENAI}


@pytest.mark.parametrize("model", OF_EACH_PROTOCOL.values())
def test_a_model_works_by_event_and_in_a_batch(world: World, caller: Client, prompt: str, model: str) -> None:
    world.publish(model=model, prompt=f"{prompt}, by event", client=caller.name)
    batch = caller.until_batch_ended(world.drop(batch_line("a", prompt, model=model, size="1024x1024"), caller.name))
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    until(lambda: [each["status"] for each in caller.newest()] == ["completed"] * 2, what="both images")


@pytest.mark.soak
def test_fifty_midjourney_tasks_run_at_the_pace_of_the_upstream(tmp_path: Path, prompt: str) -> None:
    """The short form is in simulated time: tests/integration/test_task_pace.py."""
    seconds, at_once, tasks = 20, 3, 50
    with running_world(tmp_path, {**PARAMETERS, "LeaseSeconds": "60"}) as world, ThreadPoolExecutor(10) as pool:
        world.upstream.task_seconds = seconds
        caller, began = world.caller(), time.monotonic()
        begun = list(
            pool.map(lambda number: caller.begin(model="mj_imagine", prompt=f"{prompt} {number}"), range(tasks))
        )
        assert {caller.until_ended(each, seconds=600)["status"] for each in begun} == {"completed"}
        assert time.monotonic() - began <= 1.2 * seconds * ceil(tasks / at_once)
        assert (world.upstream.midjourney.refused, len(world.upstream.charged)) == (0, tasks)
