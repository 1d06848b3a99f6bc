from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import openai.types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.catalog import CATALOG, DEFAULT_MODEL
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageStorageError,
    InvalidRequestError,
    OutcomeUnknownError,
    PartialGenerationError,
    PromptRejectedError,
)
from imagegen.failures import kept
from imagegen.generations import AnsweredImage, Call, CallAnswer, Generation, Status, StoredImage
from imagegen.images import ImageRequest, ResponseFormat, SignedUrl
from imagegen.openai_wire.answers import (
    base64_bytes,
    generation_answer,
    generation_list_answer,
    images_answer,
    links_answer,
    models_answer,
    streamed_images_answer,
)
from imagegen.openai_wire.requests import read_image_fields
from tests.fakes.image_store import FakeImageStore

FORMATS: tuple[ResponseFormat, ...] = ("url", "b64_json")
PROMPT = "An otter"
DETAILS = {"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"}
USAGE = {
    "input_tokens": 13,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 13},
    "output_tokens": 4160,
    "total_tokens": 4173,
}


class SigningStore(FakeImageStore):
    """Signs for a time that does not move."""

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return SignedUrl(f"https://bucket.example/images/{image_id}?signature=x", 1_767_229_200)


def soon() -> Deadline:
    return Deadline.after(10)


def a_generation(
    *revised_prompts: str | None,
    response_format: ResponseFormat = "url",
    details: dict[str, str] | None = None,
    usage: dict[str, Any] | None = None,
) -> Generation:
    """Completed, an image for each revised prompt: img_1, img_2, …"""
    image_ids = tuple(f"img_{number}" for number in range(1, len(revised_prompts) + 1))
    answer = CallAnswer(tuple(AnsweredImage(revised_prompt=prompt) for prompt in revised_prompts), details or {}, usage)
    return Generation(
        id="gen_1",
        caller="alice",
        request=ImageRequest(
            prompt=PROMPT, model="gpt-image-1", response_format=response_format, n=len(image_ids), user="user-7"
        ),
        created_at=1_767_225_600.75,
        base_url="https://api.example/prod",
        calls=(Call(image_ids, sent=1, answer=answer),),
        status=Status.COMPLETED,
        owner="a worker's token",
        stored={image_id: StoredImage("image/png", len(content(image_id))) for image_id in image_ids},
        completed_at=1_767_225_630.25,
    )


def content(image_id: str) -> bytes:
    """Of a length that base64 does not encode whole, and no two alike."""
    return (bytes(range(256)) + image_id.encode() * 3)[: 257 + int(image_id.removeprefix("img_"))]


def a_store(generation: Generation) -> FakeImageStore:
    store = SigningStore()
    store.saved = {image_id: ("image/png", content(image_id)) for image_id in generation.image_ids}
    return store


def answer(
    *revised_prompts: str | None,
    response_format: ResponseFormat = "url",
    details: dict[str, str] | None = None,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    generation = a_generation(*revised_prompts, response_format=response_format, details=details, usage=usage)
    return images_answer(generation, a_store(generation), soon())


class TestImages:
    def test_an_image_asked_for_by_url_carries_a_signed_url_and_when_it_ends(self) -> None:
        assert answer(None) == {
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

    def test_with_durable_urls_the_url_is_the_permalink_and_does_not_end(self) -> None:
        generation = a_generation(None)

        told = images_answer(generation, SigningStore(), soon(), durable_urls=True)["data"]

        link = "https://api.example/prod/v1/images/img_1"
        assert told == [{"id": "img_1", "permalink": link, "url": link}]
        assert links_answer(generation, durable_urls=True)["data"] == told
        assert links_answer(generation)["data"] == [{"id": "img_1", "permalink": link}]
        assert generation_answer(generation, SigningStore(), durable_urls=True)["data"] == told
        listed = generation_list_answer([generation], SigningStore(), more=False, durable_urls=True)
        assert listed["data"][0]["data"] == told

    def test_with_durable_urls_base64_stays_base64(self) -> None:
        generation = a_generation(None, response_format="b64_json")

        assert images_answer(generation, a_store(generation), soon(), durable_urls=True) == images_answer(
            generation, a_store(generation), soon()
        )

    def test_an_image_asked_for_in_base64_carries_its_bytes_and_nothing_that_ends(self) -> None:
        assert answer(None, response_format="b64_json")["data"] == [
            {
                "id": "img_1",
                "permalink": "https://api.example/prod/v1/images/img_1",
                "b64_json": b64encode(content("img_1")).decode(),
            }
        ]

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_an_image_carries_either_a_url_or_base64_and_always_a_permalink(
        self, response_format: ResponseFormat
    ) -> None:
        [image] = answer(None, response_format=response_format)["data"]
        assert ("url" in image) == (response_format == "url")
        assert ("url" in image) != ("b64_json" in image)
        assert ("expires_at" in image) == ("url" in image)
        assert image["permalink"].endswith("/v1/images/img_1")

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_images_are_answered_in_the_order_they_were_asked_for(self, response_format: ResponseFormat) -> None:
        ids = [f"img_{number}" for number in range(1, 11)]
        images = answer(*[None] * 10, response_format=response_format)["data"]
        assert [image["id"] for image in images] == ids
        assert [image["permalink"].rpartition("/")[2] for image in images] == ids

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_images_of_several_calls_stand_in_the_order_they_were_asked_for(
        self, response_format: ResponseFormat
    ) -> None:
        whole = a_generation(None, None, None, response_format=response_format)
        one_by_one = msgspec.structs.replace(
            whole,
            calls=tuple(
                Call((image_id,), sent=1, answer=CallAnswer((AnsweredImage(revised_prompt=f"of {image_id}"),)))
                for image_id in whole.image_ids
            ),
            stored={image_id: whole.stored[image_id] for image_id in reversed(whole.image_ids)},
        )
        told = images_answer(one_by_one, a_store(whole), soon())["data"]
        assert [(image["id"], image["revised_prompt"]) for image in told] == [
            ("img_1", "of img_1"),
            ("img_2", "of img_2"),
            ("img_3", "of img_3"),
        ]

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_a_revised_prompt_stands_beside_its_own_image(self, response_format: ResponseFormat) -> None:
        first, second = answer("An otter, in oil", None, response_format=response_format)["data"]
        assert first["revised_prompt"] == "An otter, in oil"
        assert "revised_prompt" not in second

    def test_usage_is_answered_as_the_upstream_sent_it(self) -> None:
        assert answer(None, usage=USAGE)["usage"] == USAGE

    def test_usage_of_several_calls_is_told_as_one(self) -> None:
        generation = a_generation(None, usage=USAGE)
        [call] = generation.calls
        twice = msgspec.structs.replace(generation, calls=(call, Call(("img_2",), sent=1, answer=call.answer)))
        assert images_answer(twice, a_store(twice), soon())["usage"] == {
            "input_tokens": 26,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 26},
            "output_tokens": 8320,
            "total_tokens": 8346,
        }

    def test_without_usage_there_is_no_such_key(self) -> None:
        assert "usage" not in answer(None)

    def test_details_of_the_upstream_s_answer_stand_at_the_top(self) -> None:
        told = answer(None, details=DETAILS)
        assert {name: told[name] for name in DETAILS} == DETAILS

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_what_the_caller_wrote_is_not_repeated(self, response_format: ResponseFormat) -> None:
        told = str(answer(None, response_format=response_format, usage=USAGE))
        assert PROMPT not in told
        assert "user-7" not in told
        assert "alice" not in told

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_openai_s_own_type_reads_the_answer_whole(self, response_format: ResponseFormat) -> None:
        told = answer("An otter, in oil", response_format=response_format, details=DETAILS, usage=USAGE)
        read = openai.types.ImagesResponse.model_validate(told)
        assert read.model_dump(exclude_unset=True) == told
        assert read.data
        assert (read.data[0].b64_json is None) == (response_format == "url")
        assert (read.data[0].url is None) == (response_format == "b64_json")
        assert read.usage
        assert read.usage.total_tokens == 4173

    def test_an_image_that_cannot_be_read_is_no_answer(self) -> None:
        generation = a_generation(None, None, response_format="b64_json")
        store = a_store(generation)
        del store.saved["img_2"]
        with pytest.raises(ImageStorageError):
            images_answer(generation, store, soon())

    def test_links_are_made_without_a_look_at_what_is_stored(self) -> None:
        generation = a_generation(None)
        told = images_answer(generation, SigningStore(), Deadline.after(0))
        assert told["data"][0]["url"] == "https://bucket.example/images/img_1?signature=x"


class TestStreamedImages:
    @pytest.mark.parametrize("n", [1, 2, 10])
    def test_it_says_what_the_direct_answer_says(self, n: int) -> None:
        generation = a_generation(*["An otter, in oil"] * n, response_format="b64_json", details=DETAILS, usage=USAGE)
        _, blocks = streamed_images_answer(generation, a_store(generation), soon())
        assert msgspec.json.decode(b"".join(blocks)) == images_answer(generation, a_store(generation), soon())

    @pytest.mark.parametrize("n", [1, 2, 10])
    def test_its_length_is_told_beforehand(self, n: int) -> None:
        generation = a_generation(*['An otter — "in oil"\n'] * n, response_format="b64_json", usage=USAGE)
        length, blocks = streamed_images_answer(generation, a_store(generation), soon())
        assert length == len(b"".join(blocks))

    @given(st.lists(st.binary(max_size=20), max_size=12), st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    def test_bytes_come_through_however_they_are_cut_into_blocks(self, first: list[bytes], second: list[bytes]) -> None:
        class Cut(FakeImageStore):
            def read(self, image_id: str, deadline: Deadline) -> Any:
                return _Reading(iter(first if image_id == "img_1" else second))

        whole = [b"".join(first), b"".join(second)]
        generation = msgspec.structs.replace(
            a_generation(None, None, response_format="b64_json"),
            stored={f"img_{number}": StoredImage("image/png", len(text)) for number, text in enumerate(whole, 1)},
        )
        length, blocks = streamed_images_answer(generation, Cut(), soon())
        told = b"".join(blocks)
        assert len(told) == length
        assert [b64decode(image["b64_json"], validate=True) for image in msgspec.json.decode(told)["data"]] == whole

    def test_no_two_images_are_held_at_once(self) -> None:
        open_now: list[str] = []
        most = 0

        class Counting(FakeImageStore):
            def read(self, image_id: str, deadline: Deadline) -> Any:
                nonlocal most
                open_now.append(image_id)
                most = max(most, len(open_now))
                return _Reading(iter([content(image_id)]), open_now.clear)

        generation = a_generation(*[None] * 10, response_format="b64_json")
        _, blocks = streamed_images_answer(generation, Counting(), soon())
        for _ in blocks:
            pass
        assert most == 1

    def test_an_image_that_cannot_be_read_breaks_it_off(self) -> None:
        generation = a_generation(None, None, response_format="b64_json")
        store = a_store(generation)
        del store.saved["img_2"]
        _, blocks = streamed_images_answer(generation, store, soon())
        with pytest.raises(ImageStorageError):
            b"".join(blocks)


class _Reading:
    def __init__(self, blocks: Iterator[bytes], done: Any = lambda: None) -> None:
        self._blocks = blocks
        self._done = done

    def __enter__(self) -> Iterator[bytes]:
        return self._blocks

    def __exit__(self, *_: object) -> None:
        self._done()


@pytest.mark.parametrize("lengths", [[0], [1], [2], [3], [4], [1, 1, 1], [3000, 3001, 3002]])
def test_what_images_weigh_as_base64_is_known_without_reading_them(lengths: list[int]) -> None:
    generation = msgspec.structs.replace(
        a_generation(*[None] * len(lengths)),
        stored={f"img_{number}": StoredImage("image/png", length) for number, length in enumerate(lengths, 1)},
    )
    assert base64_bytes(generation) == sum(len(b64encode(b"x" * length)) for length in lengths)


class TestGeneration:
    def test_a_completed_one_is_told_with_its_images(self) -> None:
        generation = a_generation("An otter, in oil", usage=USAGE)
        assert generation_answer(generation, a_store(generation)) == {
            "id": "gen_1",
            "object": "image.generation",
            "status": "completed",
            "created_at": 1_767_225_600,
            "completed_at": 1_767_225_630,
            "model": "gpt-image-1",
            "n": 1,
            "repeated_calls": 0,
            "extra_calls": 0,
            "data": [
                {
                    "id": "img_1",
                    "permalink": "https://api.example/prod/v1/images/img_1",
                    "url": "https://bucket.example/images/img_1?signature=x",
                    "expires_at": 1_767_229_200,
                    "revised_prompt": "An otter, in oil",
                }
            ],
            "error": None,
        }

    @pytest.mark.parametrize("status", list(Status))
    def test_its_status_is_told_in_openai_s_word(self, status: Status) -> None:
        told = generation_answer(msgspec.structs.replace(a_generation(None), status=status), SigningStore())
        assert told["status"] == status.value
        assert type(told["status"]) is str

    def test_one_under_way_is_told_with_what_is_stored_so_far(self) -> None:
        generation = msgspec.structs.replace(
            a_generation(None, None, None),
            status=Status.IN_PROGRESS,
            completed_at=None,
            stored={"img_3": StoredImage("image/png", 5), "img_1": StoredImage("image/png", 5)},
        )
        told = generation_answer(generation, SigningStore())
        assert (told["status"], told["completed_at"], told["n"]) == ("in_progress", None, 3)
        assert [image["id"] for image in told["data"]] == ["img_1", "img_3"]

    def test_one_asked_for_in_base64_is_told_by_url_all_the_same(self) -> None:
        [image] = generation_answer(a_generation(None, response_format="b64_json"), SigningStore())["data"]
        assert image.keys() == {"id", "permalink", "url", "expires_at"}

    def test_a_failed_one_tells_why(self) -> None:
        failure = kept(PromptRejectedError("Not that.", param="prompt", code="moderation_blocked"))
        generation = msgspec.structs.replace(a_generation(None), status=Status.FAILED, failure=failure, stored={})
        told = generation_answer(generation, SigningStore())
        assert told["status"] == "failed"
        assert told["data"] == []
        assert told["error"] == {
            "message": "Not that.",
            "type": "image_generation_user_error",
            "param": "prompt",
            "code": "moderation_blocked",
        }

    def test_one_that_failed_in_part_tells_why_the_rest_is_missing_beside_what_is_there(self) -> None:
        error = PartialGenerationError("1 of 2 images were made and stored. Why.")
        error.__cause__ = OutcomeUnknownError("Why.")
        generation = msgspec.structs.replace(
            a_generation(None, None),
            status=Status.FAILED,
            failure=kept(error),
            stored={"img_2": StoredImage("image/png", 5)},
        )
        told = generation_answer(generation, SigningStore())
        assert [image["id"] for image in told["data"]] == ["img_2"]
        assert told["error"] == {
            "message": "1 of 2 images were made and stored. Why.",
            "type": "server_error",
            "param": None,
            "code": "outcome_unknown",
        }

    @pytest.mark.parametrize(("sent", "repeated"), [([0], 0), ([1], 0), ([2], 1), ([2, 1, 2], 2)])
    def test_calls_that_may_have_been_paid_twice_are_counted(self, sent: list[int], repeated: int) -> None:
        calls = tuple(Call((f"img_{at}",), sent=count) for at, count in enumerate(sent, 1))
        told = generation_answer(msgspec.structs.replace(a_generation(None), calls=calls, stored={}), SigningStore())
        assert told["repeated_calls"] == repeated

    def test_neither_what_the_caller_wrote_nor_who_works_on_it_is_told(self) -> None:
        told = str(generation_answer(a_generation(None), SigningStore()))
        for secret in (PROMPT, "user-7", "alice", "a worker's token"):
            assert secret not in told


class TestGenerationList:
    def test_it_is_openai_s_list_object_in_the_order_given(self) -> None:
        generations = [msgspec.structs.replace(a_generation(None), id=f"gen_{number}") for number in (3, 2, 1)]
        told = generation_list_answer(generations, SigningStore(), more=True)
        assert told == {
            "object": "list",
            "data": [generation_answer(generation, SigningStore()) for generation in generations],
            "first_id": "gen_3",
            "last_id": "gen_1",
            "has_more": True,
        }

    def test_an_empty_one_has_no_ends(self) -> None:
        assert generation_list_answer([], SigningStore(), more=False) == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }


def test_the_list_of_models_is_the_catalog() -> None:
    told = models_answer(1_000)
    assert told["object"] == "list"
    assert [model["id"] for model in told["data"]] == list(CATALOG)


@pytest.mark.parametrize("model", models_answer(1_000)["data"], ids=CATALOG)
def test_openai_s_own_type_reads_every_model_whole(model: dict[str, Any]) -> None:
    read = openai.types.Model.model_validate(model)
    assert read.model_dump(exclude_unset=True) == model
    assert read.created > 0
    assert read.owned_by in {"openai", "black-forest-labs"}


def test_one_model_is_told_to_be_the_default() -> None:
    assert [model["id"] for model in models_answer(1_000)["data"] if model["default"]] == [DEFAULT_MODEL]


@pytest.mark.parametrize("model", models_answer(1_000)["data"], ids=CATALOG)
def test_a_request_may_have_all_that_the_list_tells_of_its_model(model: dict[str, Any]) -> None:
    parameters = model["parameters"]
    plain = {"model": model["id"], "prompt": "x" * parameters["prompt"]["max_characters"]}
    for name, rule in parameters.items():
        for value in rule.get("values", [rule.get("min"), rule.get("max")]):
            if value is not None:
                also = {"output_format": "webp"} if name == "output_compression" else {}
                read_image_fields(plain | {name: value} | also, prompt_cap=1_000)
        if "values" in rule or "max" in rule:
            beyond = "1x1" if "values" in rule else rule["max"] + 1
            with pytest.raises(InvalidRequestError, match=name if "max" in rule else "Invalid value"):
                read_image_fields(plain | {name: beyond}, prompt_cap=1_000)
    with pytest.raises(InvalidRequestError, match="string too long"):
        read_image_fields(plain | {"prompt": plain["prompt"] + "x"}, prompt_cap=1_000)
