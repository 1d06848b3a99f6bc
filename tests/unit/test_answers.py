from base64 import b64encode
from typing import Any

import openai.types
import pytest

from imagegen.catalog import CATALOG
from imagegen.deadline import Deadline
from imagegen.generate import Outcome
from imagegen.generations import Generation
from imagegen.images import GeneratedImage, ImageBody, ImageRequest, ResponseFormat, SignedUrl
from imagegen.openai_wire.answers import images_answer, models_answer
from imagegen.openai_wire.links import Links

LINKS = Links("https://api.example/prod")
USAGE = {
    "input_tokens": 13,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 13},
    "output_tokens": 4160,
    "total_tokens": 4173,
}


class SigningStore:
    """Signs; nothing is ever saved here."""

    def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> None:
        raise NotImplementedError

    def signed_url(self, image_id: str) -> SignedUrl:
        return SignedUrl(f"https://bucket.example/images/{image_id}?signature=x", 1_767_229_200)


def answer(
    *images: GeneratedImage,
    response_format: ResponseFormat = "url",
    details: dict[str, str] | None = None,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    generation = Generation(
        id="gen_1",
        caller="alice",
        request=ImageRequest(
            prompt="An otter", model="gpt-image-1", response_format=response_format, n=len(images), user="user-7"
        ),
        image_ids=tuple(image.id for image in images),
        created_at=1_767_225_600,
    )
    return images_answer(generation, Outcome(images, details or {}, usage), LINKS, SigningStore())


def test_an_image_asked_for_by_url_carries_a_signed_url_and_when_it_ends() -> None:
    assert answer(GeneratedImage("img_1")) == {
        "created": 1_767_225_600,
        "id": "gen_1",
        "data": [
            {
                "id": "img_1",
                "permalink": "https://api.example/prod/v1/images/img_1",
                "url": "https://bucket.example/images/img_1?signature=x",
                "expires_at": 1_767_229_200,
            }
        ],
    }


def test_an_image_asked_for_in_base64_carries_its_bytes_and_nothing_that_ends() -> None:
    content = bytes(range(256))
    assert answer(GeneratedImage("img_1", content=content), response_format="b64_json")["data"] == [
        {
            "id": "img_1",
            "permalink": "https://api.example/prod/v1/images/img_1",
            "b64_json": b64encode(content).decode(),
        }
    ]


@pytest.mark.parametrize("content", [None, b"bytes"])
def test_an_image_carries_either_a_url_or_base64_and_always_a_permalink(content: bytes | None) -> None:
    [image] = answer(GeneratedImage("img_1", content=content))["data"]
    assert ("url" in image) != ("b64_json" in image)
    assert ("expires_at" in image) == ("url" in image)
    assert image["permalink"].endswith("/v1/images/img_1")


def test_images_are_answered_in_the_order_they_were_asked_for() -> None:
    ids = [f"img_{number}" for number in range(10)]
    images = answer(*(GeneratedImage(image_id) for image_id in ids))["data"]
    assert [image["id"] for image in images] == ids
    assert [image["permalink"].rpartition("/")[2] for image in images] == ids


@pytest.mark.parametrize("content", [None, b"bytes"])
def test_a_revised_prompt_stands_beside_its_own_image(content: bytes | None) -> None:
    first, second = answer(
        GeneratedImage("img_1", "An otter, in oil", content), GeneratedImage("img_2", content=content)
    )["data"]
    assert first["revised_prompt"] == "An otter, in oil"
    assert "revised_prompt" not in second


def test_usage_is_answered_as_the_upstream_sent_it() -> None:
    assert answer(GeneratedImage("img_1"), usage=USAGE)["usage"] == USAGE


def test_without_usage_there_is_no_such_key() -> None:
    assert "usage" not in answer(GeneratedImage("img_1"))


def test_details_of_the_upstream_s_answer_stand_at_the_top() -> None:
    details = {"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"}
    told = answer(GeneratedImage("img_1"), details=details)
    assert {name: told[name] for name in details} == details


def test_what_the_caller_wrote_is_not_repeated() -> None:
    told = str(answer(GeneratedImage("img_1"), usage=USAGE))
    assert "An otter" not in told
    assert "user-7" not in told
    assert "alice" not in told


@pytest.mark.parametrize("content", [None, b"bytes"])
def test_openai_s_own_type_reads_the_answer_whole(content: bytes | None) -> None:
    told = answer(
        GeneratedImage("img_1", "An otter, in oil", content),
        details={"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"},
        usage=USAGE,
    )
    read = openai.types.ImagesResponse.model_validate(told)
    assert read.model_dump(exclude_unset=True) == told
    assert read.data
    assert (read.data[0].b64_json is None, read.data[0].url is None) == (content is None, content is not None)
    assert read.usage
    assert read.usage.total_tokens == 4173


def test_the_list_of_models_is_the_catalog() -> None:
    told = models_answer()
    assert told["object"] == "list"
    assert [model["id"] for model in told["data"]] == list(CATALOG)


@pytest.mark.parametrize("model", models_answer()["data"], ids=CATALOG)
def test_openai_s_own_type_reads_every_model_whole(model: dict[str, Any]) -> None:
    read = openai.types.Model.model_validate(model)
    assert read.model_dump(exclude_unset=True) == model
    assert read.created > 0
    assert read.owned_by in {"openai", "black-forest-labs"}
