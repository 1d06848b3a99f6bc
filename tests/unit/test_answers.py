from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import msgspec
import openai.types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.failures import failure_of
from imagegen.domain.generations import AnsweredImage, CallAnswer, Generation, Status, StoredImage, Supply, UpstreamCall
from imagegen.domain.images import ImageRequest, ResponseFormat, SignedUrl
from imagegen.domain.inputs import InputImage, Operation
from imagegen.domain.models import ImageModel
from imagegen.domain.money import ImagePrice
from imagegen.wire import answers
from imagegen.wire.models import model_answer, models_answer
from tests.fakes.image_store import FakeImageStore
from tests.support.in_memory import attempts
from tests.support.models import DEFAULT_MODEL, MODELS, catalog, read_request

FORMATS = pytest.mark.parametrize("response_format", ["url", "b64_json"])
DETAILS = {"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"}
USAGE = {
    "input_tokens": 13,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 13},
    "output_tokens": 4160,
    "total_tokens": 4173,
}
LINK = "https://api.example/prod/v1/images/img_1"
SIGNED = "https://bucket.example/images/img_1?signature=x"
SECRETS = ("An otter", "user-7", "alice", "a worker's token")  # the prompt, the user, the caller, the owner
SOON = Deadline.after(1e6)


class SigningStore(FakeImageStore):
    """Signs URLs that all expire at the same time."""

    def signed_url(self, image_id: str, method: Literal["GET", "HEAD"] = "GET") -> SignedUrl:
        return SignedUrl(f"https://bucket.example/images/{image_id}?signature=x", 1_767_229_200)


def a_generation(
    *revised_prompts: str | None, response_format: str = "url", details: Any = None, usage: Any = None, **changes: Any
) -> Generation:
    """A completed generation with an image for each revised prompt: img_1, img_2, …"""
    prompt, user, caller, owner = SECRETS
    ids = tuple(f"img_{number}" for number in range(1, len(revised_prompts) + 1))
    answer = CallAnswer(tuple(AnsweredImage(revised_prompt=each) for each in revised_prompts), details or {}, usage)
    wanted: ResponseFormat = "url" if response_format == "url" else "b64_json"
    generation = Generation(
        id="gen_1",
        caller=caller,
        request=ImageRequest(
            prompt, model="gpt-image-1", response_format=wanted, n=len(ids), options={"user": user} if user else {}
        ),
        created_at=1_767_225_600.75,
        base_url="https://api.example/prod",
        supply=Supply("openai", "gpt-image-1"),
        calls=(UpstreamCall(ids, attempts=attempts(1), answer=answer),),
        status=Status.COMPLETED,
        owner=owner,
        stored=stored({image_id: len(content(image_id)) for image_id in ids}),
        completed_at=1_767_225_630.25,
    )
    return msgspec.structs.replace(generation, **changes)


def _no_upstreams(_: ImageModel) -> list[str]:
    return []


def stored(lengths: dict[str, int]) -> dict[str, StoredImage]:
    return {image_id: StoredImage("image/png", length) for image_id, length in lengths.items()}


def content(image_id: str) -> bytes:
    """Bytes that differ for each image and whose base64 needs padding."""
    return (bytes(range(256)) + image_id.encode() * 3)[: 257 + int(image_id.removeprefix("img_"))]


def a_store(generation: Generation) -> SigningStore:
    store = SigningStore()
    store.saved = {image_id: ("image/png", content(image_id)) for image_id in generation.image_ids}
    return store


def images_answer(generation: Generation, **options: Any) -> dict[str, Any]:
    store = a_store(generation)
    if generation.request.response_format == "url":
        return answers.images_answer(generation, store, **options)
    return cast("dict[str, Any]", msgspec.json.decode(base64_answer(generation, store)[1]))


def base64_answer(generation: Generation, store: FakeImageStore) -> tuple[int, bytes]:
    """The declared length, and the answer."""
    with answers.base64_answer(generation, store, SOON) as (length, blocks):
        return length, b"".join(blocks)


def answer(*revised_prompts: str | None, **changes: Any) -> dict[str, Any]:
    return images_answer(a_generation(*revised_prompts, **changes))


def generation_answer(*revised_prompts: str | None, **changes: Any) -> dict[str, Any]:
    return answers.generation_answer(a_generation(*revised_prompts, **changes), SigningStore())


class TestImages:
    def test_an_image_by_url_has_a_signed_url_and_its_expiry(self) -> None:
        image = {"id": "img_1", "permalink": LINK, "url": SIGNED, "expires_at": 1_767_229_200}
        assert answer(None) == {"created": 1_767_225_600, "id": "gen_1", "data": [image]}

    def test_an_image_in_base64_has_its_bytes_and_no_expiry(self) -> None:
        image = {"id": "img_1", "permalink": LINK, "b64_json": b64encode(content("img_1")).decode()}
        generation = a_generation(None, response_format="b64_json")
        assert images_answer(generation)["data"] == [image]

    def test_with_durable_urls_the_url_is_the_permalink_and_has_no_expiry(self) -> None:
        generation, images = a_generation(None), SigningStore()
        data = [{"id": "img_1", "permalink": LINK, "url": LINK}]
        assert images_answer(generation, durable_urls=True)["data"] == data
        assert answers.links_answer(generation, durable_urls=True)["data"] == data
        assert answers.links_answer(generation)["data"] == [{"id": "img_1", "permalink": LINK}]
        assert answers.generation_answer(generation, images, durable_urls=True)["data"] == data
        listed = answers.generation_list_answer([generation], images, more=False, durable_urls=True)
        assert listed["data"][0]["data"] == data

    @FORMATS
    def test_images_of_several_calls_are_in_the_order_of_the_request(self, response_format: str) -> None:
        ids = [f"img_{number}" for number in range(1, 11)]
        of = [("img_1",), *((ids[at], ids[at + 1]) for at in (1, 3, 5, 7)), ("img_10",)]
        calls = tuple(
            UpstreamCall(each, attempts(1), answer=CallAnswer(tuple(AnsweredImage(None, f"of {i}") for i in each)))
            for each in of
        )
        lengths = {image_id: len(content(image_id)) for image_id in reversed(ids)}
        several = a_generation(*[None] * 10, response_format=response_format, calls=calls, stored=stored(lengths))
        found = [(each["id"], each["permalink"], each["revised_prompt"]) for each in images_answer(several)["data"]]
        assert found == [(each, f"{LINK.removesuffix('img_1')}{each}", f"of {each}") for each in ids]

    @FORMATS
    def test_openai_s_own_type_reads_the_whole_answer(self, response_format: str) -> None:
        body = answer("In oil", response_format=response_format, details=DETAILS, usage=USAGE)
        assert {name: body[name] for name in DETAILS} == DETAILS
        read = openai.types.ImagesResponse.model_validate(body)
        assert read.model_dump(exclude_unset=True) == body
        assert read.data
        assert (read.data[0].b64_json is None) == (response_format == "url")
        assert (read.data[0].url is None) == (response_format == "b64_json")
        assert read.usage
        assert read.usage.total_tokens == 4173

    @FORMATS
    def test_an_answer_shows_neither_prompt_user_caller_nor_owner(self, response_format: str) -> None:
        shown = str(answer(None, response_format=response_format)) + str(generation_answer(None))
        assert [secret for secret in SECRETS if secret in shown] == []

    def test_links_are_made_without_reading_the_store(self) -> None:
        body = answers.images_answer(a_generation(None), SigningStore())
        assert body["data"][0]["url"] == SIGNED


class Cut(FakeImageStore):
    """Gives each image in blocks as given. The reading of an image breaks off once at each of its offsets."""

    def __init__(self, blocks: Mapping[str, Sequence[bytes]], breaks: Mapping[str, Sequence[int]] = {}) -> None:
        super().__init__()
        self.blocks = blocks
        self.breaks = {image_id: list(offsets) for image_id, offsets in breaks.items()}
        self.open: list[str] = []
        self.most_open = 0
        self.refusals = 0  # of opening an image again

    @contextmanager
    def read(self, image_id: str, deadline: Deadline, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        if offset and self.refusals:
            self.refusals -= 1
            raise errors.ImageStorageInterruptedError("not opened")
        self.open.append(image_id)
        self.most_open = max(self.most_open, len(self.open))
        try:
            yield self._blocks(image_id, offset)
        finally:
            self.open.remove(image_id)

    def _blocks(self, image_id: str, offset: int) -> Iterator[bytes]:
        at = 0
        for block in self.blocks[image_id]:
            if self.breaks.get(image_id) and at >= self.breaks[image_id][0]:
                self.breaks[image_id].pop(0)
                raise errors.ImageStorageInterruptedError("broken")
            yield block[max(0, offset - at) :]
            at += len(block)


class TestBase64:
    @pytest.mark.parametrize("n", [1, 2, 10])
    def test_it_has_the_declared_length(self, n: int) -> None:
        prompts = ['An otter — "in oil"\n'] * n
        generation = a_generation(*prompts, response_format="b64_json", details=DETAILS, usage=USAGE)
        length, body = base64_answer(generation, a_store(generation))
        assert length == len(body)
        assert [image["id"] for image in msgspec.json.decode(body)["data"]] == list(generation.image_ids)

    @given(st.lists(st.binary(max_size=20), max_size=12), st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    @settings(deadline=None, max_examples=60)
    def test_any_cut_into_blocks_gives_the_same_bytes(self, first: list[bytes], second: list[bytes]) -> None:
        whole = [b"".join(first), b"".join(second)]
        lengths = {"img_1": len(whole[0]), "img_2": len(whole[1])}
        generation = a_generation(None, None, response_format="b64_json", stored=stored(lengths))
        length, body = base64_answer(generation, Cut({"img_1": first, "img_2": second}))
        assert len(body) == length
        assert [b64decode(image["b64_json"], validate=True) for image in msgspec.json.decode(body)["data"]] == whole

    def test_all_images_are_open_before_the_first_block_and_closed_after_the_last(self) -> None:
        """An image that cannot be opened must be known before the status is sent."""
        generation = a_generation(*[None] * 10, response_format="b64_json")
        store = Cut({image_id: [content(image_id)] for image_id in generation.image_ids})
        with answers.base64_answer(generation, store, SOON) as (_, blocks):
            assert store.open == list(generation.image_ids)
            b"".join(blocks)
        assert (store.open, store.most_open) == ([], 10)

    def test_an_image_that_cannot_be_opened_is_an_error_before_the_first_block(self) -> None:
        generation = a_generation(None, None, response_format="b64_json")
        store = a_store(generation)
        del store.saved["img_2"]
        with pytest.raises(errors.ImageStorageError), answers.base64_answer(generation, store, SOON):
            pytest.fail("not reached")

    @pytest.mark.parametrize("times", [1, 3])
    def test_reading_that_breaks_off_is_continued_where_it_broke(self, times: int) -> None:
        generation = a_generation(None, response_format="b64_json", stored=stored({"img_1": 40}))
        store = Cut({"img_1": [b"0123456789"] * 4}, {"img_1": [0, 20, 20][:times]})
        _, body = base64_answer(generation, store)
        assert b64decode(msgspec.json.decode(body)["data"][0]["b64_json"]) == b"0123456789" * 4
        assert (store.open, store.breaks) == ([], {"img_1": []})

    @pytest.mark.parametrize(("refusals", "left"), [(2, 0), (3, 0), (4, 1)])
    def test_an_image_that_cannot_be_opened_again_is_tried_three_times(self, refusals: int, left: int) -> None:
        generation = a_generation(None, response_format="b64_json", stored=stored({"img_1": 20}))
        store = Cut({"img_1": [b"0123456789"] * 2}, {"img_1": [10]})
        store.refusals = refusals
        with nullcontext() if refusals < 3 else pytest.raises(errors.ImageStorageError):
            base64_answer(generation, store)
        assert (store.open, store.refusals) == ([], left)

    def test_reading_that_breaks_off_again_and_again_is_an_error(self) -> None:
        generation = a_generation(None, response_format="b64_json", stored=stored({"img_1": 20}))
        store = Cut({"img_1": [b"0123456789"] * 2}, {"img_1": [10] * 4})
        with pytest.raises(errors.ImageStorageError):
            base64_answer(generation, store)
        assert store.open == []


@pytest.mark.parametrize("lengths", [[0], [1], [2], [3], [4], [1, 1, 1], [3000, 3001, 3002]], ids=str)
def test_the_size_of_images_as_base64_is_known_without_reading_them(lengths: list[int]) -> None:
    generation = a_generation(stored=stored({f"img_{at}": length for at, length in enumerate(lengths)}))
    assert answers.base64_bytes(generation) == sum(len(b64encode(b"x" * length)) for length in lengths)


class TestGeneration:
    @FORMATS
    def test_a_completed_generation_lists_its_images_by_url(self, response_format: str) -> None:
        image = {"id": "img_1", "permalink": LINK, "url": SIGNED, "expires_at": 1_767_229_200, "revised_prompt": "oil"}
        assert generation_answer("oil", usage=USAGE, response_format=response_format) == {
            "id": "gen_1",
            "object": "image.generation",
            "status": "completed",
            "created_at": 1_767_225_600,
            "completed_at": 1_767_225_630,
            "model": "gpt-image-1",
            "operation": "generate",
            "n": 1,
            "inputs": [],
            "repeated_calls": 0,
            "extra_calls": 0,
            "upstream": None,
            "cost": {"usd": None, "basis": "unknown"},
            "data": [image],
            "error": None,
        }

    def test_an_edit_lists_its_input_images(self) -> None:
        given = InputImage("mask", "upl_1", "0" * 64, "image/png", 512, 64, 32, has_alpha=True)
        request = ImageRequest("A hat", "gpt-image-1", "url", operation="edit", inputs=(given,))
        shown = generation_answer(None, request=request)
        assert shown["operation"] == "edit"
        assert shown["inputs"] == [
            {
                "id": "upl_1",
                "field": "mask",
                "media_type": "image/png",
                "bytes": 512,
                "width": 64,
                "height": 32,
                "sha256": "0" * 64,
            }
        ]

    def test_an_ended_generation_has_its_cost_and_the_upstream_that_served_first(self) -> None:
        calls = tuple(
            UpstreamCall((f"img_{at}",), attempts(1), CallAnswer((AnsweredImage(),), upstream=upstream))
            for at, upstream in ((1, None), (2, "google"), (3, "reseller"))
        )
        fields: dict[str, Any] = {"calls": calls, "supply": Supply("openai", "dall-e-3", price=ImagePrice(16_500))}
        shown = generation_answer(None, **fields)
        assert (shown["upstream"], shown["cost"]) == ("google", {"usd": 0.0495, "basis": "image"})
        shown = generation_answer(None, status=Status.IN_PROGRESS, **fields)
        assert (shown["upstream"], shown["cost"]) == ("google", None)

    def test_a_status_has_openai_s_name(self) -> None:
        for status in Status:
            shown = generation_answer(None, status=status)["status"]
            assert (shown, type(shown)) == (status.value, str)

    def test_a_generation_in_progress_lists_the_images_that_are_stored_so_far(self) -> None:
        now = {"status": Status.IN_PROGRESS, "completed_at": None, "stored": stored({"img_3": 5, "img_1": 5})}
        shown = generation_answer(None, None, None, **now)
        assert (shown["status"], shown["completed_at"], shown["n"]) == ("in_progress", None, 3)
        assert [image["id"] for image in shown["data"]] == ["img_1", "img_3"]

    @pytest.mark.parametrize(
        ("error", "cause", "there", "kind", "param", "code"),
        [
            (
                *(errors.PromptRejectedError("Not that.", param="prompt", code="moderation_blocked"), None, []),
                *("image_generation_user_error", "prompt", "moderation_blocked"),
            ),
            (
                *(errors.PartialGenerationError("1 of 2 were made. Why."), errors.OutcomeUnknownError("Why.")),
                *(["img_2"], "server_error", None, "outcome_unknown"),
            ),
        ],
        ids=["all", "in part"],
    )
    def test_a_failed_generation_has_its_error_and_its_stored_images(
        self,
        error: errors.ImagegenError,
        cause: Exception | None,
        there: list[str],
        kind: str,
        param: str | None,
        code: str,
    ) -> None:
        error.__cause__ = cause
        failed = {"status": Status.FAILED, "failure": failure_of(error), "stored": stored(dict.fromkeys(there, 5))}
        shown = generation_answer(None, None, **failed)
        assert (shown["status"], [image["id"] for image in shown["data"]]) == ("failed", there)
        assert shown["error"] == {"message": str(error), "type": kind, "param": param, "code": code}

    @pytest.mark.parametrize(("sent", "repeated"), [([0], 0), ([1], 0), ([2], 1), ([2, 1, 2], 2)])
    def test_calls_that_were_possibly_paid_twice_are_counted(self, sent: list[int], repeated: int) -> None:
        calls = tuple(UpstreamCall((f"img_{at}",), attempts=attempts(count)) for at, count in enumerate(sent, 1))
        assert generation_answer(None, calls=calls, stored={})["repeated_calls"] == repeated


@pytest.mark.parametrize("ids", [["gen_3", "gen_2", "gen_1"], []], ids=len)
def test_a_list_is_openai_s_list_object_in_the_order_given(ids: list[str]) -> None:
    listed = [a_generation(None, id=generation_id) for generation_id in ids]
    for more in (True, False):
        assert answers.generation_list_answer(listed, SigningStore(), more=more) == {
            "object": "list",
            "data": [generation_answer(None, id=generation_id) for generation_id in ids],
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": more,
        }


class TestModels:
    def test_the_list_of_models_is_the_catalog_with_one_default(self) -> None:
        body = models_answer(catalog(1_000, {}), _no_upstreams)
        assert body["object"] == "list"
        assert [model["id"] for model in body["data"]] == list(MODELS)
        assert [model["id"] for model in body["data"] if model["default"]] == [DEFAULT_MODEL]

    @pytest.mark.parametrize("model", models_answer(catalog(1_000, {}), _no_upstreams)["data"], ids=MODELS)
    def test_a_model_is_openai_s_object_and_a_request_may_have_every_listed_value(self, model: dict[str, Any]) -> None:
        read = openai.types.Model.model_validate(model)
        assert read.model_dump(exclude_unset=True) == model
        assert read.created > 0
        assert read.owned_by in {"black-forest-labs", "google", "ideogram", "kling", "midjourney", "openai", "qwen"}
        of_each = model["operations"]
        assert tuple(of_each) == MODELS[model["id"]].operations
        for operation in of_each:
            parameters = model["parameters"].items()
            own = {name: rule for name, rule in parameters if operation in rule.get("operations", of_each)}
            self.check_request(model["id"], operation, own)

    def check_request(self, model: str, operation: Operation, parameters: Mapping[str, Any]) -> None:
        read_fields = read_request(1_000, operation).fields
        plain = {"model": model, "prompt": "x" * parameters.get("prompt", {"max_characters": 1})["max_characters"]}
        plain |= {"index": 1} if "index" in parameters else {}
        for name, rule in parameters.items():
            for value in rule.get("values", [rule.get("min"), rule.get("max")]):
                if value is not None:
                    formats = {"output_compression": "webp", "frame_count": "gif", "frame_duration_ms": "gif"}
                    also = {"output_format": formats[name]} if name in formats else {}
                    read_fields(plain | {name: value} | also)
            if "values" in rule or "max" in rule:
                beyond = "7x1" if "values" in rule else rule["max"] + 1
                with pytest.raises(errors.InvalidRequestError, match=name if "max" in rule else "Invalid value"):
                    read_fields(plain | {name: beyond})
        needs_prompt = operation == "generate" or MODELS[model].inputs[operation].needs_prompt
        assert not needs_prompt or "prompt" in parameters
        if needs_prompt:
            with pytest.raises(errors.InvalidRequestError, match="string too long"):
                read_fields(plain | {"prompt": plain["prompt"] + "x"})

    @pytest.mark.parametrize(
        ("name", "operations", "least", "most"),
        [
            ("dall-e-3", ["generate"], 0, 0),
            ("dall-e-2", ["generate", "edit", "variation"], 0, 1),
            ("gpt-image-1", ["generate", "edit"], 0, 16),
            ("qwen-image-edit", ["edit"], 1, 1),
            ("mj_blend", ["edit"], 2, 5),
            ("mj_describe", ["describe"], 1, 1),
        ],
    )
    def test_a_model_says_what_it_can_do_and_how_many_input_images_it_takes(
        self, name: str, operations: list[str], least: int, most: int
    ) -> None:
        shown = model_answer(name, catalog(1_000, {}), _no_upstreams)
        assert (list(shown["operations"]), shown["images"]) == (operations, {"min": least, "max": most})

    def test_a_parameter_of_some_operations_names_them(self) -> None:
        parameters = model_answer("ideogram-v3", catalog(1_000, {}), _no_upstreams)["parameters"]
        assert parameters["image_weight"]["operations"] == ("edit",)
        assert "operations" not in parameters["rendering_speed"]

    def test_a_model_that_is_not_in_the_catalog_is_unknown(self) -> None:
        assert model_answer("x", catalog(1_000, {"x": "flux"}), _no_upstreams) == model_answer(
            "flux", catalog(1_000, {}), _no_upstreams
        )
        with pytest.raises(errors.UnknownModelError, match="Did you mean 'flux'"):
            model_answer("FLUX", catalog(1_000, {}), _no_upstreams)
