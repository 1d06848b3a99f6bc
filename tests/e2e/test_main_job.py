"""A prompt becomes a durable image: from source under a stage, and as `make build` made it."""

import base64
import io
import json
import re
from typing import Any
from urllib.parse import urljoin, urlsplit
from uuid import uuid4

import pytest
from PIL import Image

from tests.conftest import UPSTREAM_KEY
from tests.support.client import fetched
from tests.support.programs import sample
from tests.support.world import World


def test_the_links_of_the_api_pages_sample_lead_to_the_bytes_of_the_upstream(any_world: World) -> None:
    caller, prompt = any_world.caller(), f"an otter, {uuid4().hex}"
    downloads: list[Any] = []
    any_world.upstream.downloads_by_prompt[prompt].append(downloads.append)
    (image,) = json.loads(sample(caller, prompt))["data"]

    stored = fetched(image["url"]).content
    assert stored in {content for _, content in any_world.upstream.files.values()}
    assert image["permalink"].startswith(f"{caller.base_url}/images/img_")
    assert fetched(image["permalink"]).content == stored
    assert image["revised_prompt"] == f"{prompt}, in detail"
    asked = {"model": "dall-e-3", "prompt": prompt, "n": 1, "size": "1024x1024", "response_format": "url"}
    assert any_world.calls(prompt) == [asked]
    (download,) = downloads  # its host never sees the key
    assert download.header("Authorization") is None
    assert UPSTREAM_KEY not in repr(download.headers)


@pytest.mark.parametrize(
    ("model", "n", "size"), [("dall-e-3", 2, "1792x1024"), ("flux-pro", 3, "768x512"), ("dall-e-2", 4, "256x256")]
)
def test_openais_client_gets_as_many_different_images_as_it_requested(
    any_world: World, model: str, n: int, size: Any
) -> None:
    prompt = f"seasons, {uuid4().hex}"
    answer = any_world.caller().openai().images.generate(model=model, prompt=prompt, n=n, size=size)
    images = [fetched(image.url).content for image in answer.data or []]
    assert len(set(images)) == n
    assert {"{}x{}".format(*Image.open(io.BytesIO(image)).size) for image in images} == {size}
    assert sum(call["n"] for call in any_world.calls(prompt)) == n
    assert answer.created > 1_700_000_000


def test_a_gpt_image_comes_as_base64_or_by_a_url_although_its_upstream_sends_none(any_world: World) -> None:
    client, prompt = any_world.caller().openai(), f"a fox, {uuid4().hex}"
    plain = client.images.generate(model="gpt-image-1", prompt=prompt, output_format="jpeg", quality="low")
    (image,) = plain.data or []
    assert image.url is None
    assert Image.open(io.BytesIO(base64.b64decode(image.b64_json or ""))).format == "JPEG"
    assert plain.usage
    assert (plain.usage.total_tokens, plain.quality, plain.output_format) == (50, "high", "jpeg")

    translated = client.images.generate(
        model="gpt-image-1", prompt=prompt, output_format="webp", response_format="url", style="vivid"
    )
    (image,) = translated.data or []
    assert image.b64_json is None
    assert fetched(image.url).headers["content-type"] == "image/webp"
    assert not {"response_format", "style"} & any_world.calls(prompt)[-1].keys()


def test_the_playground_loads_its_files_under_any_prefix(any_world: World) -> None:
    root = any_world.stack.url
    with_slash, without = (fetched(url).content for url in (f"{root}/", root))
    assert with_slash == without
    links = re.findall(r'(?:href|src)="(/[^"]+)"', with_slash.decode())
    assert len(links) == 2
    for link in links:
        assert link.startswith(f"{urlsplit(root).path}/playground.")
        assert fetched(urljoin(root, link)).status == 200
