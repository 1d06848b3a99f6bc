"""A prompt in, a durable image out, as clients see it."""

import base64
import io
import json
import re
import shutil
import subprocess
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import Request, urlopen

import openai
import pytest
from PIL import Image

from tests.e2e.conftest import Service

# The API page's sample, word for word but for host and key.
SAMPLE = """curl --location --request POST '{base_url}/images/generations' \\
--header 'Authorization: Bearer {key}' \\
--header 'Content-Type: application/json' \\
--data-raw '{{
    "model": "dall-e-3",
    "prompt": "A cute baby sea otter",
    "n": 1,
    "size": "1024x1024"
  }}'"""


def fetch(url: str | None) -> bytes:
    assert url
    with urlopen(url) as response:
        content: bytes = response.read()
        return content


def test_the_api_pages_sample_gives_an_image_whose_links_lead_to_the_upstreams_bytes(any_service: Service) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    sample = SAMPLE.format(base_url=any_service.base_url, key=any_service.key)
    out = subprocess.run(["bash", "-c", f"{sample} --silent"], capture_output=True, text=True, check=True).stdout
    (image,) = json.loads(out)["data"]

    (painted,) = (content for _, content in any_service.upstream.files.values())
    assert fetch(image["url"]) == painted
    assert image["permalink"].startswith(f"{any_service.base_url}/images/img_")
    assert fetch(image["permalink"]) == painted
    assert any_service.upstream.calls == [
        {
            "model": "dall-e-3",
            "prompt": "A cute baby sea otter",
            "n": 1,
            "size": "1024x1024",
            "response_format": "url",
        }
    ]


def test_the_image_host_never_sees_the_key(any_service: Service) -> None:
    any_service.client().images.generate(model="dall-e-3", prompt="a lock")
    (download,) = any_service.upstream.downloads
    assert download.header("Authorization") is None
    assert not any("canary" in value for _, value in download.headers)


@pytest.mark.parametrize(
    ("model", "size", "pixels"),
    [("dall-e-3", "1792x1024", (1792, 1024)), ("flux-pro", "768x512", (768, 512)), ("dall-e-2", "256x256", (256, 256))],
)
def test_openais_client_gets_as_many_images_as_it_asked_for_each_another(
    any_service: Service, model: str, size: Any, pixels: tuple[int, int]
) -> None:
    answer = any_service.client().images.generate(model=model, prompt="four seasons", n=4, size=size)
    images = [fetch(image.url) for image in answer.data or []]
    assert len(set(images)) == 4
    assert {Image.open(io.BytesIO(image)).size for image in images} == {pixels}
    assert sum(call["n"] for call in any_service.upstream.calls) == 4
    assert answer.created > 1_700_000_000


def test_a_gpt_image_comes_as_base64_or_as_the_url_that_its_upstream_never_gives(any_service: Service) -> None:
    client = any_service.client()
    plain = client.images.generate(model="gpt-image-1", prompt="a fox", output_format="jpeg", quality="low")
    (image,) = plain.data or []
    assert image.url is None
    content = base64.b64decode(image.b64_json or "")
    assert Image.open(io.BytesIO(content)).format == "JPEG"
    assert plain.usage
    assert plain.usage.total_tokens == 50
    assert (plain.quality, plain.output_format) == ("high", "jpeg")

    translated = client.images.generate(model="gpt-image-1", prompt="a fox", response_format="url", style="vivid")
    (image,) = translated.data or []
    assert image.b64_json is None
    assert Image.open(io.BytesIO(fetch(image.url))).format == "PNG"
    assert "response_format" not in any_service.upstream.calls[-1]
    assert "style" not in any_service.upstream.calls[-1]


def test_base64_is_given_where_it_is_asked_for_and_the_permalink_leads_to_the_same_bytes(any_service: Service) -> None:
    answer = any_service.client().images.generate(model="dall-e-3", prompt="a wren", response_format="b64_json")
    (image,) = answer.data or []
    assert image.url is None
    assert image.revised_prompt == "a wren, in detail"
    permalink: str = image.model_extra["permalink"]  # type: ignore[index]
    assert fetch(permalink) == base64.b64decode(image.b64_json or "")


def test_the_stored_image_has_the_type_that_its_bytes_tell(any_service: Service) -> None:
    answer = any_service.client().images.generate(
        model="gpt-image-1", prompt="a leaf", output_format="webp", response_format="url"
    )
    assert answer.data
    with urlopen(answer.data[0].url or "") as response:
        assert response.headers["Content-Type"] == "image/webp"


def test_models_are_listed_and_health_needs_no_key(any_service: Service) -> None:
    assert {"dall-e-3", "gpt-image-2", "flux-pro"} <= {model.id for model in any_service.client().models.list()}
    assert json.loads(fetch(f"{any_service.stack.url}/health")) == {"status": "ok"}


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Bearer ig_local_" + "x" * 43, "Basic ig_a_b"])
def test_without_a_good_key_nobody_gets_in_and_nothing_is_spent(
    any_service: Service, authorization: str | None
) -> None:
    request = Request(f"{any_service.base_url}/images/generations", b'{"prompt":"x"}', method="POST")
    request.add_header("Content-Type", "application/json")
    if authorization:
        request.add_header("Authorization", authorization)
    with pytest.raises(OSError, match="401") as refused:
        urlopen(request)
    error = json.loads(refused.value.read())["error"]  # type: ignore[attr-defined]
    assert error["code"] == "invalid_api_key"
    assert set(error) == {"message", "type", "param", "code"}
    assert any_service.upstream.calls == []


def test_openais_client_understands_our_refusals(any_service: Service) -> None:
    client = any_service.client()
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="dall-e-3", prompt="x", size="512x512")
    assert (refused.value.param, refused.value.code) == ("size", "invalid_value")
    assert refused.value.request_id
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=any_service.base_url, api_key="sk-other").images.generate(prompt="x", model="dall-e-3")
    assert any_service.upstream.calls == []


def test_the_playground_and_what_it_loads_hold_wherever_it_is_served(any_service: Service) -> None:
    root = any_service.stack.url
    with_slash, without = (fetch(f"{root}/"), fetch(root))
    assert with_slash == without
    links = re.findall(r'(?:href|src)="(/[^"]+)"', with_slash.decode())
    assert len(links) == 2
    for link in links:
        assert link.startswith(f"{urlsplit(root).path}/playground.")
        assert fetch(urljoin(root, link))
