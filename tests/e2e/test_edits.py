"""Edits, variations and descriptions of images: what a caller sends reaches the upstream, and its images are kept."""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image

from local.serving import Reply
from tests.support.client import EDITS, Answer, Client, fetched
from tests.support.images import SVG
from tests.support.pictures import (
    BLUE,
    GREEN,
    RED,
    UNPAINTED,
    Color,
    changes_exactly,
    encoded,
    first_of,
    mask,
    opened,
    photograph,
    picture,
    shown_in,
)
from tests.support.world import World

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # of images.create_variation
COLORS = RED, GREEN, BLUE
DESCRIPTIONS = "/images/descriptions"
FLUX = ("model", "flux-kontext-pro")


@dataclass(frozen=True)
class Asked:
    """A request by OpenAI's client: for an edit, or for a variation if it has no prompt.

    The first `images` colors come as files, the next `references` in fields.
    """

    model: str
    images: int = 1
    references: int = 0
    has_prompt: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def colors(self) -> list[Color]:
        return list(COLORS[: self.images + self.references])


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"


MENU = (
    Asked("gpt-image-1.5", fields={"n": 2, "input_fidelity": "high"}),
    Asked("gpt-image-2", images=3, fields={"quality": "low", "size": "1536x1024"}),
    Asked("dall-e-2", has_prompt=False, fields={"size": "256x256"}),
    Asked("flux-kontext-pro"),
    Asked("qwen-image-edit"),
    Asked("gemini-2.5-flash-image", images=2),
    Asked(
        "ideogram-v3",
        references=1,
        fields={"extra_body": {"image_weight": 80, "style_reference_images": data_url(picture(GREEN))}},
    ),
    Asked("kling-v1-5", fields={"extra_body": {"image_reference": "face", "image_fidelity": 0.7}}),
    Asked("kling-v2-new"),
    Asked("kolors-virtual-try-on-v1-5", images=2),
    Asked("mj_blend", images=3, fields={"size": "1536x1024"}),
    Asked("mj_imagine"),
)
# Of the image of mj_imagine.
CHANGES: Mapping[str, Mapping[str, str]] = {
    "mj_upscale": {"index": "2"},
    "mj_variation": {"index": "3"},
    "mj_reroll": {},
}


@dataclass(frozen=True)
class Menu:
    """What was answered, by the model."""

    answers: Mapping[str, Future[ImagesResponse]]
    changed: Mapping[str, Future[Answer]]
    described: Future[Answer]


@pytest.fixture(scope="module", autouse=True)
def menu(world: World) -> Iterator[Menu]:
    """All are asked side by side, from the first test on, since tasks take seconds."""
    caller = world.caller()

    def change(model: str) -> Answer:
        parts = {"model": model, "image": image_id(answers["mj_imagine"]), **CHANGES[model]}
        return caller.follow(caller.form(EDITS, *parts.items()))

    def describe() -> Answer:
        return caller.follow(caller.form(DESCRIPTIONS, ("model", "mj_describe"), ("image", picture(GREEN))))

    with ThreadPoolExecutor(len(MENU) + len(CHANGES) + 1) as pool:
        answers = {asked.model: pool.submit(answer, world.caller(), asked) for asked in MENU}
        yield Menu(answers, {model: pool.submit(change, model) for model in CHANGES}, pool.submit(describe))


def image_id(answer: Future[ImagesResponse]) -> str:
    (image,) = answer.result().data or []
    return str((image.model_extra or {})["id"])


def answer(caller: Client, asked: Asked) -> ImagesResponse:
    images = [picture(color) for color in asked.colors[: asked.images]]
    with caller.openai() as client:
        if not asked.has_prompt:
            return client.images.create_variation(model=asked.model, image=images[0], **asked.fields)
        image: Any = images if len(images) > 1 else images[0]
        edited = client.images.edit(model=asked.model, image=image, prompt=f"with {asked.model}", **asked.fields)
        assert isinstance(edited, ImagesResponse)
        return edited


def edit(caller: Client, prompt: str, *parts: tuple[str, str | bytes], **headers: str) -> Answer:
    """An edit by form with a quick model."""
    return caller.follow(caller.form(EDITS, FLUX, ("prompt", prompt), *parts, **headers))


def shown(answer: Answer) -> Image.Image:
    """The picture at the durable link."""
    (image,) = answer.json["data"]
    return opened(fetched(image["permalink"]).content)


# Masks. The upstream changes nothing else, so the mask came whole and in its place.


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["gpt-image-1.5", "ideogram-v3", "dall-e-2", "dall-e-2 without a mask"])
def test_what_is_transparent_changes_and_no_other_pixel(caller: Client, prompt: str, model: str) -> None:
    box, whole = (16, 24, 240, 120), Image.new("RGB", (256, 256), UNPAINTED)
    # DALL·E 2 takes only PNG, and Ideogram a mask in black and white.
    image = encoded(whole, "jpeg" if model == "dall-e-2" else "png")
    more: dict[str, Any] = {"mask": mask(256, box)}
    if " " in model:
        transparent = Image.new("L", whole.size, 255)
        transparent.paste(0, box)
        whole.putalpha(transparent)
        image, more = encoded(whole), {}
    if model.startswith("dall-e"):
        more["size"] = "256x256"
    with caller.openai() as client:
        answer = client.images.edit(model=model.partition(" ")[0], image=image, prompt=prompt, **more)
    (made,) = answer.data or []
    content = fetched((made.model_extra or {})["permalink"]).content
    assert changes_exactly(image, content, box)


# Ways of an image into a request.


def test_images_come_in_json_by_data_url_and_are_fetched_once_from_a_url(
    world: World, caller: Client, prompt: str
) -> None:
    image = picture(GREEN)
    url = world.serve_file(lambda _: Reply(200, image, {"Content-Type": "image/png"}))
    images = [{"image_url": data_url(picture(RED))}, {"image_url": url}, {"file_id": caller.upload(picture(BLUE))}]
    body = {"model": "gemini-2.5-flash-image", "prompt": prompt, "images": images}
    first, again = (caller.follow(caller.ask("POST", EDITS, body, Idempotency_Key=prompt)) for _ in range(2))
    assert shown_in(shown(first), 3) == list(COLORS)
    assert again.generation_id == first.generation_id
    assert len([each for each in world.upstream.downloads if url.endswith(each.target)]) == 1


@pytest.mark.parametrize("url", ["https://127.0.0.1/cat.png", "https://169.254.169.254/latest/meta-data/iam"])
def test_an_image_at_a_private_address_is_refused(world: World, caller: Client, prompt: str, url: str) -> None:
    body = {"model": FLUX[1], "prompt": prompt, "images": [{"image_url": url}]}
    answer = caller.ask("POST", EDITS, body)
    assert answer.failed == (400, "invalid_image")
    assert answer.error["param"] == "images[0]"
    assert (caller.newest(), world.calls(prompt)) == ([], [])


def test_the_refusal_of_a_form_that_is_too_large_names_the_uploads(world: World, caller: Client, prompt: str) -> None:
    with caller.openai() as client, pytest.raises(openai.APIStatusError, match="POST /v1/images/uploads") as error:
        client.images.edit(model="gpt-image-1.5", image=photograph(8_000_000), prompt=prompt)
    assert (error.value.status_code, error.value.code) == (413, "request_too_large")
    assert world.calls(prompt) == []


def test_an_upload_belongs_to_its_caller_and_an_image_works_for_all_who_know_its_id(
    world: World, caller: Client, prompt: str
) -> None:
    other, image = world.caller(), picture(GREEN)
    refused = [edit(other, prompt, ("image", each)) for each in (caller.upload(image), "upl_" + "A" * 22)]
    assert [each.failed for each in refused] == [(400, "invalid_image")] * 2
    assert refused[0].error == refused[1].error
    (made,) = edit(caller, prompt, ("image", image)).json["data"]
    assert edit(other, prompt, ("image", made["id"])).status == 200
    assert len(world.calls_with(fetched(made["permalink"]).content)) == 1


@pytest.mark.parametrize(
    ("image", "headers", "failed"),
    [
        (picture()[:-20], {}, (400, "invalid_image")),
        (SVG, {}, (415, "unsupported_content_type")),
        (picture(), {"Content_Type": "multipart/form-data"}, (400, None)),
        (picture(), {"Content_Type": "text/plain"}, (415, "unsupported_content_type")),
    ],
    ids=["cut off", "no image", "no boundary", "no form"],
)
def test_a_bad_form_is_refused(
    world: World, caller: Client, prompt: str, image: bytes, headers: dict[str, str], failed: tuple[int, str | None]
) -> None:
    answer = edit(caller, prompt, ("image", image), **headers)
    assert (answer.status, answer.error["code"]) == failed
    assert (caller.newest(), world.calls(prompt)) == ([], [])


# Retries and deletion.


def test_a_retry_attaches_by_the_content_of_its_images(world: World, caller: Client, prompt: str) -> None:
    image, key = picture(), uuid4().hex
    upload = caller.upload(image)
    by_key = [
        edit(caller, prompt, ("image", image), Idempotency_Key=key),
        edit(caller, prompt, ("image", upload), Idempotency_Key=key),
        edit(caller, prompt, ("image", data_url(image)), Idempotency_Key=key),
    ]
    assert len({answer.generation_id for answer in by_key}) == 1
    another = edit(caller, prompt, ("image", picture()), Idempotency_Key=key)
    assert another.failed == (422, "idempotency_key_reused")
    tries: tuple[str | bytes, ...] = image, upload, picture()
    by_count = [
        edit(caller, prompt, ("image", each), x_stainless_retry_count=str(count)) for count, each in enumerate(tries)
    ]
    assert by_count[0].generation_id == by_count[1].generation_id != by_count[2].generation_id
    assert by_count[0].generation_id != by_key[0].generation_id
    assert len(world.calls(prompt)) == 3
    kept = [key for key in world.stored() if key.startswith("inputs/inp_") and world.content(key) == image]
    assert len(kept) == 2


def test_a_deletion_leaves_the_uploads_and_no_link_leads_to_an_input(world: World, caller: Client, prompt: str) -> None:
    image, uploaded = picture(GREEN), picture(BLUE)
    upload = caller.upload(uploaded)
    parts: list[tuple[str, str | bytes]] = [("model", "gpt-image-1.5"), ("image[]", image), ("image[]", upload)]
    made = caller.follow(caller.form(EDITS, *parts, ("prompt", prompt)))
    inputs = caller.see(made.generation_id).json["inputs"]
    assert [each["id"][:4] for each in inputs] == ["inp_", "upl_"]
    keys = [next(key for key in world.stored() if key.endswith(each["id"])) for each in inputs]
    assert [world.content(key) for key in keys] == [image, uploaded]
    for each in inputs:
        assert caller.get(f"/images/{each['id']}").status == 404
    assert caller.delete(made.generation_id).status == 200
    assert world.stored() & {*keys, f"images/{made.json['data'][0]['id']}"} == {keys[1]}


# Each entry of the menu.


@pytest.mark.parametrize("asked", MENU, ids=lambda asked: asked.model)
def test_openais_client_gets_stored_images_that_show_what_it_sent(menu: Menu, asked: Asked) -> None:
    images = menu.answers[asked.model].result().data or []
    assert len(images) == asked.fields.get("n", 1)
    for image in images:
        content = fetched((image.model_extra or {})["permalink"]).content
        assert content == (fetched(image.url).content if image.url else b64decode(image.b64_json or ""))
        made = first_of(opened(content)) if asked.model.startswith("mj_") else opened(content)
        assert shown_in(made, len(asked.colors)) == asked.colors


@pytest.mark.parametrize("model", CHANGES)
def test_midjourney_changes_an_image_that_it_made_here(world: World, menu: Menu, model: str) -> None:
    """The caller is another one than that of the image."""
    answer = menu.changed[model].result()
    made = shown(answer) if model == "mj_upscale" else first_of(shown(answer))
    assert shown_in(made, 1) == [RED]
    assert ("actions" in answer.json["data"][0]) == (model != "mj_upscale")
    parent = world.record(answer.generation_id).supply.parent
    assert parent
    (call,) = [each for each in world.upstream.calls if each.get("taskId") == parent.task_id and each["model"] == model]
    assert call["index"] == int(CHANGES[model].get("index", 1))


def test_midjourney_changes_only_what_it_made_here(caller: Client, menu: Menu) -> None:
    for image in (picture(), image_id(menu.answers["flux-kontext-pro"])):
        answer = caller.form(EDITS, ("model", "mj_upscale"), ("index", "1"), ("image", image))
        assert answer.failed == (400, "invalid_image")


def test_a_description_is_four_texts(world: World, menu: Menu) -> None:
    answer = menu.described.result()
    assert answer.status == 200
    (image,) = world.record(answer.generation_id).request.inputs
    calls = [call for call in list(world.upstream.calls) if call.get("operation") == "describe"]
    assert [each["sha256"] for call in calls for each in call["images"]].count(image.sha256) == 1
    texts = [image["text"] for image in answer.json["data"]]
    assert len(set(texts)) == 4
    assert all("--ar 1:1" in text for text in texts)
