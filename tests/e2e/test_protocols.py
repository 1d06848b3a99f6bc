"""Each protocol of the upstream, by OpenAI's client with the model's own options in `extra_body`."""

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from imagegen.providers.openai.models import PROVIDER as OPENAI
from local.upstream import Script
from local.upstream_gemini_chat import content_filter, text_without_image
from local.upstream_ideogram import images_at, insufficient_funds, unsafe_prompt
from tests.support.client import Client, fetched
from tests.support.models import MODELS
from tests.support.waiting import until
from tests.support.world import World, batch_line

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


FAULTS: list[tuple[str, Script, tuple[int, str]]] = [
    ("gemini-2.5-flash-image", content_filter(), (424, "content_policy_violation")),
    ("gemini-3-pro-image", text_without_image("I cannot draw that."), (424, "upstream_no_image")),
    ("ideogram-v3", unsafe_prompt(), (400, "content_policy_violation")),
    ("ideogram-v3", images_at(""), (424, "content_policy_violation")),
    ("ideogram-v3", insufficient_funds(), (502, "upstream_out_of_credit")),
]


@pytest.mark.parametrize(("model", "script", "failed"), FAULTS)
def test_a_refusal_is_openais_error_after_one_call(
    world: World, caller: Client, prompt: str, model: str, script: Script, failed: tuple[int, str]
) -> None:
    answer = caller.make({"model": model, "prompt": world.will(prompt, script)})
    assert answer.failed == failed
    assert len(world.calls(prompt)) == 1


@pytest.mark.parametrize("model", [model.id for model in MODELS.values() if model.provider != OPENAI])
def test_a_model_works_by_event_and_in_a_batch(world: World, caller: Client, prompt: str, model: str) -> None:
    batch = caller.until_batch_ended(world.drop(batch_line("a", prompt, model=model, size="1024x1024"), caller.name))
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    world.publish(model=model, prompt=f"{prompt}, by event", client=caller.name)
    until(lambda: world.calls(f"{prompt}, by event"), what="the call")
    until(lambda: [each["status"] for each in caller.newest()] == ["completed"] * 2, what="both images")
