"""Input images are identified and checked before anything is written, and stored once, for a new generation only."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import AnsweredImage, CallAnswer, UpstreamCall, admit, fingerprint
from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.images import ImageAction, ImageBody, ImageRequest, ParentTask, new_image_id
from imagegen.domain.inputs import MOST_BYTES, MOST_PIXELS, GivenImage, InputImage, InputRules, ReadInput, new_upload_id
from imagegen.domain.upstreams import Route
from imagegen.usecases import take_inputs
from tests.fakes.input_source import FakeInputSource
from tests.support.hooks import before, raising
from tests.support.images import HTML, SVG
from tests.support.in_memory import InMemoryService, attempts, in_memory_service
from tests.support.inputs import EDIT, SEVERAL, at_hand, by_id, by_url, identified, sized, taking
from tests.support.models import MODELS
from tests.support.pictures import turned

URL, OTHER_URL = "https://a.example/1.png", "https://a.example/2.png"
FIRST, SECOND = sized(label="first"), sized(label="second")
NO_STORE = errors.InputUnavailableError("no")
ACTIONS = (ImageAction("upscale_1", "U1", "button-1"), ImageAction("reroll"))


def picture(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


def refusal(kind: type[errors.NothingSpentError], act: Callable[[], object], param: str | None = "image") -> str:
    """The reason of an error that names the field."""
    with pytest.raises(errors.NothingSpentError) as caught:
        act()
    assert (type(caught.value), caught.value.param) == (kind, param)
    return caught.value.message


def stored(service: InMemoryService, content: bytes, made_by: str = "gen_1") -> str:
    """The id of an image that was made here."""
    image_id = new_image_id()
    body = ImageBody(PNG, len(content), iter([content]))
    service.images.save(image_id, body, service.deadline(), generation_id=made_by)
    return image_id


def uploaded(service: InMemoryService, content: bytes, caller: str = "alice") -> str:
    upload_id = new_upload_id()
    service.inputs.uploads[caller, upload_id] = content
    return upload_id


def web(files: dict[str, bytes]) -> FakeInputSource:
    source = FakeInputSource()
    source.files.update(files)
    return source


# What an image is, by its bytes.


@pytest.mark.parametrize(
    ("content", "media_type", "width", "height", "has_alpha", "is_turned"),
    [
        (picture("PNG"), PNG, 40, 30, False, False),
        (sized(7, 9, alpha=True), PNG, 7, 9, True, False),
        (picture("JPEG"), JPEG, 40, 30, False, False),
        (picture("WEBP"), WEBP, 40, 30, False, False),
        (turned(3), JPEG, 40, 30, False, True),
        (turned(6), JPEG, 30, 40, False, True),
        (sized(16_384, 1), PNG, 16_384, 1, False, False),
        (sized(10_000, 10_000), PNG, 10_000, 10_000, False, False),
        (picture("PNG") + b"\0" * 900, PNG, 40, 30, False, False),  # some encoders add bytes after the end
    ],
    ids=["PNG", "alpha", "JPEG", "WebP", "upside down", "portrait", "longest side", "most pixels", "padded"],
)
def test_an_image_is_identified_by_its_bytes(
    service: InMemoryService,
    content: bytes,
    media_type: str,
    width: int,
    height: int,
    has_alpha: bool,
    is_turned: bool,
) -> None:
    inputs = identified(service, [at_hand(content)])
    assert inputs.identities == [("image", f"sha256:{hashlib.sha256(content).hexdigest()}")]
    assert service.inputs.saved == {}
    (image,) = inputs.keep()
    digest = hashlib.sha256(content).hexdigest()
    size = (len(content), width, height)
    assert image == InputImage("image", image.id, digest, media_type, *size, has_alpha, is_turned)
    assert re.fullmatch(r"inp_[A-Za-z0-9_-]{22}", image.id)
    assert image.is_own
    assert service.inputs.saved == {image.id: content}


NO_IMAGE = "it is not an image; use PNG, JPEG or WebP."
BROKEN: dict[str, tuple[type[errors.NothingSpentError], bytes, str]] = {
    "nothing": (errors.UnsupportedMediaTypeError, b"", NO_IMAGE),
    "a byte": (errors.UnsupportedMediaTypeError, b"\x89", NO_IMAGE),
    "HTML": (errors.UnsupportedMediaTypeError, HTML, NO_IMAGE),
    "SVG": (errors.UnsupportedMediaTypeError, SVG, NO_IMAGE),
    "an id in a long text": (errors.UnsupportedMediaTypeError, b"upl_" + b"a" * 100, NO_IMAGE),
    "GIF": (errors.UnsupportedMediaTypeError, picture("GIF"), "image/gif is not accepted; use PNG, JPEG or WebP."),
    "BMP": (errors.UnsupportedMediaTypeError, picture("BMP"), NO_IMAGE),
    "only a signature": (errors.InvalidImageError, FIRST[:8], "it ends within its header."),
    "cut in its header": (errors.InvalidImageError, FIRST[:30], "it ends within its header."),
    "cut PNG": (errors.InvalidImageError, FIRST[:-12], "it ends too early."),
    "cut WebP": (errors.InvalidImageError, picture("WEBP")[:-1], "it ends too early."),
    "broken header": (errors.InvalidImageError, FIRST[:20] + b"\1" + FIRST[21:], "its header is not valid."),
    "no pixels": (errors.InvalidImageError, sized(0, 1), "its header is not valid."),
    "too wide": (errors.InvalidImageError, sized(16_385, 1), "16385x1 pixels, and no side may have more than 16384."),
    "too high": (errors.InvalidImageError, sized(1, 16_385), "1x16385 pixels, and no side may have more than 16384."),
    "bomb": (errors.InvalidImageError, sized(16_384, 16_384), "at most 100 megapixels are allowed."),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_image_that_cannot_be_used_is_refused_by_its_place(service: InMemoryService, how: str) -> None:
    kind, content, reason = BROKEN[how]
    for place in ("image[1]", "mask"):
        given = [at_hand(FIRST), at_hand(content, place.partition("[")[0], place)]
        message = refusal(kind, lambda given=given: identified(service, given, SEVERAL), place)  # type: ignore[misc]
        assert message.startswith(f"Invalid '{place}': ")
        assert message.endswith(reason)
    assert service.inputs.saved == {}


@pytest.mark.parametrize("how", ["nothing", "GIF", "cut PNG", "bomb"])
def test_an_upload_an_image_made_here_and_one_at_a_url_are_checked_alike(service: InMemoryService, how: str) -> None:
    kind, content, reason = BROKEN[how]
    upload_id, image_id = uploaded(service, content), stored(service, content)
    messages = {
        refusal(kind, lambda: identified(service, [by_id(upload_id)])),
        refusal(kind, lambda: identified(service, [by_id(image_id)])),
        refusal(kind, identified(service, [by_url(URL)], web=web({URL: content})).keep),
    }
    (message,) = messages
    assert message.endswith(reason)
    assert service.inputs.saved == {}


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.integers(0, 200), st.binary(max_size=20), st.integers(0, 900)
)
@settings(deadline=None, max_examples=100)
def test_any_content_is_identified_or_refused(kind: str, at: int, changed: bytes, length: int) -> None:
    whole = picture(kind)
    content = (whole[:at] + changed + whole[at + len(changed) :])[: length or None]
    with in_memory_service() as service:
        try:
            (image,) = identified(service, [at_hand(content)]).keep()
        except (errors.InvalidImageError, errors.UnsupportedMediaTypeError) as error:
            refused = error
        else:
            assert 0 < image.width * image.height <= MOST_PIXELS
            return
    assert refused.param == "image"
    assert refused.message.startswith("Invalid 'image': ")


# What a model accepts.

DALL_E_2, KLING = MODELS["dall-e-2"].inputs, MODELS["kling-v2"].inputs["edit"]
SMALL = InputRules(most_bytes=len(FIRST))


@pytest.mark.parametrize(
    ("rules", "content", "reason"),
    [
        (SMALL, FIRST, None),
        (SMALL, sized(label="longer"), f"it has {len(FIRST) + 1} bytes, and at most "),
        (DALL_E_2["variation"], sized(10, 10), None),
        (DALL_E_2["variation"], sized(10, 11), "it has 10x11 pixels, and it must be square."),
        (KLING, sized(300, 300), None),
        (KLING, sized(299, 300), "it has 299x300 pixels, and each side must have at least 300."),
        (KLING, sized(300, 750), None),
        (KLING, sized(300, 751), "it has 300x751 pixels, and the ratio of its sides must be at most 2.5:1."),
        (KLING, sized(751, 300), "it has 751x300 pixels, and the ratio of its sides must be at most 2.5:1."),
        (DALL_E_2["edit"], sized(alpha=True), None),
        (DALL_E_2["edit"], sized(), "without a mask, the part to change must be transparent."),
    ],
)
def test_an_image_has_the_bounds_of_the_model_wherever_it_comes_from(
    service: InMemoryService, rules: InputRules, content: bytes, reason: str | None
) -> None:
    upload_id = uploaded(service, content)
    for way in (at_hand(content), by_id(upload_id), by_url(URL)):
        take: Callable[[], object] = lambda way=way: identified(  # type: ignore[misc]  # noqa: E731
            service, [way], rules, web=web({URL: content})
        ).keep()
        if reason is None:
            take()
        else:
            message = refusal(errors.InvalidImageError, take)
            is_cut = way.url and len(content) > rules.most_bytes  # the rest was not fetched
            assert message.startswith(
                "Invalid 'image': the image at its URL has over" if is_cut else f"Invalid 'image': {reason}"
            )


def test_a_mask_makes_an_opaque_image_editable(service: InMemoryService) -> None:
    mask = at_hand(sized(alpha=True), "mask")
    inputs = identified(service, [at_hand(sized()), mask], DALL_E_2["edit"])
    assert [image.role for image in inputs.keep()] == ["image", "mask"]


@pytest.mark.parametrize("at_urls", [("image",), ("mask",), ("image", "mask"), ()])
def test_a_mask_must_have_the_size_of_the_first_image(service: InMemoryService, at_urls: tuple[str, ...]) -> None:
    """It is known as soon as both are: before the retry is looked for, or after the images at URLs are fetched."""
    contents = {"image": sized(64, 64), "mask": sized(64, 65, alpha=True)}
    source = web({f"https://a.example/{role}": content for role, content in contents.items()})
    given = [
        by_url(f"https://a.example/{role}", role) if role in at_urls else at_hand(content, role)
        for role, content in contents.items()
    ]
    given.insert(1, at_hand(sized(64, 65), name="image[1]"))
    take: Callable[[], object] = lambda: identified(service, given, SEVERAL, web=source)  # noqa: E731
    if at_urls:
        take = identified(service, given, SEVERAL, web=source).keep
    message = refusal(errors.InvalidImageError, take, "mask")
    assert message == "Invalid 'mask': it has 64x65 pixels, and the first image has 64x64."
    assert service.inputs.saved == {}


def many(count: int, role: str = "image") -> list[GivenImage]:
    return [at_hand(FIRST, role, f"{role}[{place}]") for place in range(count)]


@pytest.mark.parametrize(
    ("model", "given", "param", "code", "message"),
    [
        ("gpt-image-1.5", [], "image", "missing_required_parameter", "Missing required parameter: 'image'."),
        ("gpt-image-1.5", many(1, "mask"), "image", "missing_required_parameter", "Missing required parameter"),
        ("mj_blend", [], "image", "missing_required_parameter", "Missing required parameter: 'image'."),
        ("mj_blend", many(1), "image", "invalid_value", "the model needs at least 2 images, but got 1."),
        ("mj_blend", many(6), "image", "invalid_value", "Invalid 'image': the model accepts at most 5, but got 6."),
        ("gpt-image-1.5", many(17), "image", "invalid_value", "the model accepts at most 16, but got 17."),
        ("dall-e-2", many(2), "image", "invalid_value", "the model accepts at most 1, but got 2."),
        ("gpt-image-1.5", many(1) + many(2, "mask"), "mask", "invalid_value", "accepts at most 1, but got 2."),
        ("flux-kontext-pro", many(1) + many(1, "mask"), "mask", "invalid_value", "the model does not accept it."),
        ("gemini-2.5-flash-image", many(1) + many(1, "mask"), "mask", "invalid_value", "the model does not accept it."),
        ("mj_upscale", [by_id("img_1"), *many(1, "mask")], "mask", "invalid_value", "the model does not accept it."),
        *(
            (model, [*many(1), *many(count, role)], role, "invalid_value", message)
            for model, role, count, message in (
                ("gpt-image-1.5", "style_reference_images", 1, "the model does not accept it."),
                ("ideogram-v3", "style_reference_images", 4, "the model accepts at most 3, but got 4."),
                ("ideogram-v3", "character_reference_images", 2, "the model accepts at most 1, but got 2."),
            )
        ),
    ],
)  # fmt: skip
def test_the_numbers_of_images_are_checked_before_any_is_read(
    service: InMemoryService, model: str, given: list[GivenImage], param: str, code: str, message: str
) -> None:
    before(service.inputs, "read", raising(AssertionError("it was read")))
    with pytest.raises(errors.InvalidRequestError) as caught:
        identified(service, [by_id("img_1") if image.role == "image" else image for image in given], model=model)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.message.endswith(message) or message in caught.value.message


def test_as_many_images_as_a_model_accepts_are_taken_in_their_order(service: InMemoryService) -> None:
    contents = [sized(label=str(number)) for number in range(16)]
    given = [at_hand(content, name=f"image[{place}]") for place, content in enumerate(contents)]
    inputs = identified(service, [*given, at_hand(sized(alpha=True), "mask")])
    kept = inputs.keep()
    assert [service.inputs.saved[image.id] for image in kept] == [*contents, sized(alpha=True)]
    assert len({image.id for image in kept}) == 17


# Uploads, and images made here.


def test_an_upload_and_an_image_made_here_are_used_where_they_are(service: InMemoryService) -> None:
    upload_id, image_id = uploaded(service, FIRST), stored(service, SECOND)
    inputs = identified(service, [by_id(upload_id), by_id(image_id)], SEVERAL)
    assert [(image.id, image.is_own, image.sha256) for image in inputs.keep()] == [
        (upload_id, False, hashlib.sha256(FIRST).hexdigest()),
        (image_id, False, hashlib.sha256(SECOND).hexdigest()),
    ]
    inputs.discard()
    assert (service.inputs.saved, list(service.images.saved)) == ({}, [image_id])
    assert list(service.inputs.uploads.values()) == [FIRST]


def test_the_upload_of_another_caller_is_refused_like_a_missing_one(service: InMemoryService) -> None:
    upload_id, missing = uploaded(service, FIRST, "bob"), new_upload_id()
    given = [at_hand(FIRST), by_id(upload_id, name="image[1]")]
    anothers = refusal(errors.InvalidImageError, lambda: identified(service, given), "image[1]")
    given[1] = by_id(missing, name="image[1]")
    assert refusal(errors.InvalidImageError, lambda: identified(service, given), "image[1]") == anothers
    assert anothers == "Invalid 'image[1]': there is no upload with this id, or its content was not sent (PUT) yet."
    assert identified(service, [by_id(upload_id)], caller="bob").keep()[0].id == upload_id


def test_the_id_of_an_image_made_here_works_for_every_caller_while_the_image_exists(service: InMemoryService) -> None:
    """The id is a capability, as in the durable link."""
    image_id = stored(service, FIRST)
    assert identified(service, [by_id(image_id)], caller="bob").keep()[0].id == image_id
    service.images.delete(image_id, service.deadline())
    message = refusal(errors.InvalidImageError, lambda: identified(service, [by_id(image_id)]))
    assert message == "Invalid 'image': there is no image with this id."


def test_a_reading_that_breaks_off_can_be_tried_again(service: InMemoryService) -> None:
    upload_id = uploaded(service, FIRST)
    service.inputs.breaks += [32, 0]
    for _ in range(2):
        with pytest.raises(errors.InputUnavailableError):
            identified(service, [by_id(upload_id)])
    assert identified(service, [by_id(upload_id)]).keep()[0].length == len(FIRST)


class OneImage:
    """A store whose one image is read in a given way."""

    def __init__(self, length: int, blocks: Iterator[bytes]) -> None:
        self._read = ReadInput(length, blocks)

    @contextmanager
    def read(self, *_: object) -> Iterator[ReadInput]:
        yield self._read


@pytest.mark.parametrize("difference", [-1, 1])
def test_an_image_that_is_not_as_long_as_the_store_says_is_no_image(service: InMemoryService, difference: int) -> None:
    service.inputs = OneImage(len(FIRST) + difference, iter([FIRST]))  # type: ignore[assignment]
    with pytest.raises(errors.InputUnavailableError) as caught:
        identified(service, [by_id("img_1")])
    assert "to its end" in caught.value.message


def test_a_stored_image_over_the_limit_is_not_read(service: InMemoryService) -> None:
    def blocks() -> Iterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    service.inputs = OneImage(MOST_BYTES + 1, blocks())  # type: ignore[assignment]
    message = refusal(errors.InvalidImageError, lambda: identified(service, [by_id("img_1")]))
    assert message == "Invalid 'image': it has over 50000000 bytes."


@pytest.mark.parametrize("split", [1, 7, 1024, 10**6])
def test_it_does_not_matter_in_which_blocks_an_image_comes(service: InMemoryService, split: int) -> None:
    content = sized(alpha=True, label="x" * 3000)
    blocks = (content[at : at + split] for at in range(0, len(content), split))
    service.inputs = OneImage(len(content), blocks)  # type: ignore[assignment]
    (identity,) = identified(service, [by_id("img_1")]).identities
    assert identity == ("image", f"sha256:{hashlib.sha256(content).hexdigest()}")


def test_an_object_of_s3_is_read_when_it_is_identified_and_belongs_to_the_request(service: InMemoryService) -> None:
    buckets = web({"s3://orders/7.png": FIRST, "s3://orders/large.png": sized(label="x" * 100)})
    take, rules = taking(service, objects=buckets), InputRules(most_bytes=len(FIRST))
    given = GivenImage("image", "image", s3_uri="s3://orders/7.png")
    inputs = take.identify([given], rules, MODELS[EDIT.model], "alice")
    assert buckets.fetched == [("s3://orders/7.png", len(FIRST))]
    assert inputs.identities == identified(service, [at_hand(FIRST)]).identities
    (image,) = inputs.keep()
    assert (service.inputs.saved, image.is_own) == ({image.id: FIRST}, True)
    for uri, reason in (("s3://orders/8.png", "could not be fetched"), ("s3://orders/large.png", "has over")):
        wrong = GivenImage("image", "images[0]", s3_uri=uri)
        act: Callable[[], object] = lambda wrong=wrong: take.identify(  # type: ignore[misc]  # noqa: E731
            [wrong], rules, MODELS[EDIT.model], "alice"
        )
        message = refusal(errors.InvalidImageError, act, "images[0]")
        assert message.startswith("Invalid 'images[0]': ")
        assert reason in message
    message = refusal(errors.InvalidImageError, lambda: identified(service, [given]))
    assert message == "Invalid 'image': only events can name objects of S3."


def test_each_object_of_s3_is_read_once_and_their_bytes_are_limited_in_all(
    service: InMemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take_inputs, "_MOST_READ_BYTES", 2 * len(FIRST))
    uris = [f"s3://orders/{place}.png" for place in (1, 1, 2, 3)]
    buckets = web(dict.fromkeys(uris, FIRST))
    given = [GivenImage("image", f"images[{place}]", s3_uri=uri) for place, uri in enumerate(uris)]
    take, model = taking(service, objects=buckets), MODELS[EDIT.model]
    assert len(take.identify(given[:3], InputRules(), model, "alice").identities) == 3
    assert buckets.fetched == [(uris[0], 2 * len(FIRST)), (uris[2], len(FIRST))]
    message = refusal(errors.InvalidImageError, lambda: take.identify(given, InputRules(), model, "alice"), "images[3]")
    assert "has over 0 bytes" in message


# Images at URLs.


def test_an_image_at_a_url_is_fetched_once_and_only_when_it_is_kept(service: InMemoryService) -> None:
    source = web({URL: FIRST})
    inputs = identified(service, [by_url(URL)], web=source)
    assert source.fetched == []
    assert inputs.identities == [("image", f"url:{hashlib.sha256(URL.encode()).hexdigest()}")]
    before_it = inputs.identities
    kept = inputs.keep()
    assert (inputs.keep(), inputs.identities) == (kept, before_it)
    assert source.fetched == [(URL, MOST_BYTES)]
    assert service.inputs.saved == {kept[0].id: FIRST}


def test_the_bytes_from_urls_are_limited_in_all(service: InMemoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 3 * len(FIRST)
    monkeypatch.setattr(take_inputs, "_MOST_FETCHED_BYTES", most)
    urls = [f"https://a.example/{number}.png" for number in range(4)]
    source = web(dict.fromkeys(urls, FIRST))
    given = [by_url(url, name=f"image[{place}]") for place, url in enumerate(urls)]
    inputs = identified(service, [given[0], at_hand(SECOND, name="image[9]"), *given[1:3]], SEVERAL, web=source)
    assert len(inputs.keep()) == 4
    assert [most for _, most in source.fetched] == [3 * len(FIRST), 2 * len(FIRST), len(FIRST)]
    source.fetched.clear()
    saved = dict(service.inputs.saved)
    message = refusal(errors.InvalidImageError, identified(service, given, SEVERAL, web=source).keep, "image[3]")
    assert message.startswith("Invalid 'image[3]': ")
    assert source.fetched[-1] == (urls[3], 0)
    assert service.inputs.saved == saved


def test_no_more_is_fetched_than_the_model_accepts(service: InMemoryService) -> None:
    source = web({URL: FIRST})
    identified(service, [by_url(URL)], InputRules(most_bytes=len(FIRST)), web=source).keep()
    assert source.fetched == [(URL, len(FIRST))]
    assert take_inputs._MOST_FETCHED_BYTES == 50_000_000


def test_a_url_that_gives_no_image_is_refused_by_its_place_and_fetches_nothing_further(
    service: InMemoryService,
) -> None:
    source = web({OTHER_URL: SECOND})
    given = [at_hand(FIRST), by_url(URL, name="image[1]"), by_url(OTHER_URL, name="image[2]")]
    message = refusal(errors.InvalidImageError, identified(service, given, web=source).keep, "image[1]")
    assert message == "Invalid 'image[1]': the image at its URL could not be fetched."
    assert [url for url, _ in source.fetched] == [URL]
    assert service.inputs.saved == {}


# Keeping and discarding.


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_image_that_cannot_be_stored_leaves_none_behind_and_can_be_kept_later(
    service: InMemoryService, failing: int
) -> None:
    given = [at_hand(sized(label=str(place)), name=f"image[{place}]") for place in range(3)]
    inputs = identified(service, given)
    service.inputs.failures += [*[None] * failing, NO_STORE]
    with pytest.raises(errors.InputUnavailableError):
        inputs.keep()
    inputs.discard()
    assert service.inputs.saved == {}
    assert {image.id for image in inputs.keep()} == set(service.inputs.saved)
    assert len(service.inputs.saved) == 3


def test_an_image_that_was_stored_though_the_answer_was_lost_is_discarded(service: InMemoryService) -> None:
    save = service.inputs.save

    def lose_the_answer(*arguments: Any) -> None:
        save(*arguments)
        raise NO_STORE

    service.inputs.save = lose_the_answer  # type: ignore[assignment,method-assign]
    inputs = identified(service, [at_hand(FIRST)])
    with pytest.raises(errors.InputUnavailableError):
        inputs.keep()
    assert list(service.inputs.saved.values()) == [FIRST]
    inputs.discard()
    assert service.inputs.saved == {}


def test_only_what_came_inside_the_request_is_discarded(service: InMemoryService) -> None:
    upload_id, image_id = uploaded(service, FIRST), stored(service, SECOND)
    given = [by_id(upload_id), at_hand(SECOND), by_id(image_id), by_url(URL)]
    of_another = identified(service, given, web=web({URL: FIRST})).keep()
    inputs = identified(service, given, web=web({URL: FIRST}))
    inputs.keep()
    assert len(service.inputs.saved) == 4
    inputs.discard()
    assert set(service.inputs.saved) == {image.id for image in of_another if image.is_own}
    assert (len(service.inputs.uploads), len(service.images.saved)) == (1, 1)
    inputs.discard()
    assert len(service.inputs.saved) == 2


def test_discarding_goes_on_if_one_image_cannot_be_deleted(service: InMemoryService) -> None:
    inputs = identified(service, [at_hand(FIRST), at_hand(SECOND)])
    inputs.keep()
    before(service.inputs, "delete", raising(NO_STORE))
    inputs.discard()
    assert len(service.inputs.saved) == 1


def test_images_are_read_side_by_side_and_the_first_failure_is_raised_after_all_have_ended(
    service: InMemoryService,
) -> None:
    uploads = [uploaded(service, content) for content in (FIRST, b"", HTML, SECOND)]
    barrier, ended = threading.Barrier(4), []

    def meet(image_id: str, *_: object) -> None:
        barrier.wait(60)
        ended.append(image_id)

    before(service.inputs, "read", meet)
    given = [by_id(upload_id, name=f"image[{place}]") for place, upload_id in enumerate(uploads)]
    refusal(errors.UnsupportedMediaTypeError, lambda: identified(service, given), "image[1]")
    assert sorted(ended) == sorted(uploads)


# Images that only their provider can work on.


def made(service: InMemoryService, model: str = "mj_imagine", **answer: Any) -> tuple[str, str]:
    """The ids of a generation, and of an image of it that was made by a task and is stored."""
    generation = service.begun(model=model, prompt="a cat")
    image_id = generation.image_ids[0]
    image = AnsweredImage("https://a.example/grid.png", actions=answer.pop("actions", ACTIONS))
    fields = {"upstream": "reseller", "task_id": "task-7", "account": "account-2", **answer}
    service.noted(generation, UpstreamCall((), attempts(1), CallAnswer((image,), **fields)))
    service.images.save(
        image_id, ImageBody(PNG, len(FIRST), iter([FIRST])), service.deadline(), generation_id=generation.id
    )
    return generation.id, image_id


def test_the_task_that_made_an_image_is_its_parent_and_only_its_upstream_is_called(service: InMemoryService) -> None:
    _, image_id = made(service)
    inputs = identified(service, [by_id(image_id)], model="mj_upscale")
    assert inputs.parent == ParentTask("reseller", "task-7", "account-2", ACTIONS)
    assert identified(service, [by_id(image_id)]).parent is None  # any model can edit it
    request = ImageRequest("", "mj_upscale", "url", options={"index": 1}, operation="edit", inputs=inputs.keep())
    routes = (Route("first", "a"), Route("reseller", "b"), Route("other", "c"))
    begun: dict[str, Any] = {"caller": "alice", "base_url": "", "now": 1.0}
    model = replace(MODELS["mj_upscale"], routes=routes)
    assert admit(request, model, **begun).supply.parent is None
    assert admit(request, model, **begun, parent=inputs.parent).supply.routes == (Route("reseller", "b"),)
    elsewhere = ParentTask("gone", "task-7")
    supply = admit(request, model, **begun, parent=elsewhere).supply
    assert (supply.routes, supply.parent) == ((Route("gone", "mj_upscale"),), elsewhere)


def test_each_image_of_a_generation_has_the_task_that_made_it(service: InMemoryService) -> None:
    generation = service.begun(model="mj_imagine", n=2)
    image = AnsweredImage("https://a.example/grid.png", actions=ACTIONS)
    answers = [CallAnswer((image,), upstream="reseller", task_id=f"task-{number}") for number in range(2)]
    service.noted(generation, *(UpstreamCall((), attempts(1), answer) for answer in answers))
    for image_id in generation.image_ids:
        body = ImageBody(PNG, len(FIRST), iter([FIRST]))
        service.images.save(image_id, body, service.deadline(), generation_id=generation.id)
    parents = [identified(service, [by_id(each)], model="mj_reroll").parent for each in generation.image_ids]
    assert [parent and parent.task_id for parent in parents] == ["task-0", "task-1"]


@pytest.mark.parametrize(
    ("model", "answer", "made_by"),
    [
        ("mj_imagine", {"actions": ()}, None),
        ("kling-v2", {}, None),
        ("mj_imagine", {}, ""),
        ("mj_imagine", {}, "gen_" + "A" * 22),
    ],
    ids=["no actions", "another provider", "no metadata", "the record is gone"],
)
def test_an_image_that_its_provider_cannot_work_on_is_refused(
    service: InMemoryService, model: str, answer: dict[str, Any], made_by: str | None
) -> None:
    _, image_id = made(service, model, **answer)
    if made_by is not None:
        service.images.made_by[image_id] = made_by
    message = refusal(errors.InvalidImageError, lambda: identified(service, [by_id(image_id)], model="mj_upscale"))
    assert message == (
        "Invalid 'image': 'mj_upscale' needs an image that midjourney made here and that has 'actions', such as a grid."
    )


def test_a_deleted_generation_is_no_parent(service: InMemoryService) -> None:
    """Its image was read right before it was deleted."""
    generation_id, image_id = made(service)
    before(service.records, "get", lambda _: service.records.bury(service.record(generation_id), now=1.0), once=True)
    service.records.cancel(generation_id, now=1.0)
    refusal(errors.InvalidImageError, lambda: identified(service, [by_id(image_id)], model="mj_reroll"))


def test_the_parent_of_another_image_of_the_record_is_not_used(service: InMemoryService) -> None:
    """The metadata names a generation that did not make the image."""
    _, image_id = made(service)
    other = stored(service, FIRST, made_by=service.images.made_by[image_id])
    refusal(errors.InvalidImageError, lambda: identified(service, [by_id(other)], model="mj_reroll"))


def test_an_image_that_was_not_made_here_has_no_parent(service: InMemoryService) -> None:
    upload_id = uploaded(service, FIRST)
    wrong = (by_id(upload_id), at_hand(FIRST), by_url(URL), GivenImage("image", "image", s3_uri="s3://b/k"))
    for way in wrong:
        act: Callable[[], object] = lambda way=way: identified(  # type: ignore[misc]  # noqa: E731
            service, [way], model="mj_upscale"
        )
        message = refusal(errors.InvalidImageError, act)
        assert message == (
            "Invalid 'image': expected the id of an image that the model's provider made here, such as img_…."
        )


def test_records_that_cannot_be_read_do_not_blame_the_image(service: InMemoryService) -> None:
    _, image_id = made(service)
    service.records.failures.append("before")
    with pytest.raises(errors.RecordsUnavailableError):
        identified(service, [by_id(image_id)], model="mj_upscale")


# What a retry must have in common.


def of(service: InMemoryService, given: Sequence[GivenImage], request: ImageRequest = EDIT) -> str:
    return fingerprint(request, identified(service, given, SEVERAL).identities)


def test_a_picture_has_one_fingerprint_however_it_comes(service: InMemoryService) -> None:
    upload_id, image_id = uploaded(service, FIRST), stored(service, FIRST)
    memory = GivenImage("image", "images[0]", content=memoryview(FIRST))
    ways = [at_hand(FIRST), at_hand(FIRST, name="image[0]"), memory, by_id(upload_id), by_id(image_id)]
    assert len({of(service, [way]) for way in ways}) == 1


def test_another_picture_order_role_number_operation_or_url_has_another_fingerprint(service: InMemoryService) -> None:
    first, second = at_hand(FIRST), at_hand(SECOND)
    variation = replace(EDIT, operation="variation")
    found = [
        of(service, [first]),
        of(service, [second]),
        of(service, [first, second]),
        of(service, [second, first]),
        of(service, [first, first]),
        of(service, [first, at_hand(SECOND, "mask")]),
        of(service, [first, at_hand(SECOND, "style")]),
        of(service, [first], variation),
        of(service, [first], replace(EDIT, prompt="a bow")),
        of(service, [by_url(URL)]),
        of(service, [by_url(OTHER_URL)]),
        of(service, [by_url(URL), first]),
        fingerprint(EDIT),
        fingerprint(replace(EDIT, operation="generate")),
    ]
    assert len(set(found)) == len(found)


def test_a_url_that_looks_like_a_hash_is_not_taken_for_a_content(service: InMemoryService) -> None:
    assert of(service, [by_url(hashlib.sha256(FIRST).hexdigest())]) != of(service, [at_hand(FIRST)])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ImageRequest("a cat", "dall-e-3", "url"), "0a1715fca164965dae484447e9e1e64c58e77f80f359d42881100fe613cc9c8d"),
        (
            ImageRequest(
                "Zwei\nZeilen ü",
                "gpt-image-1.5",
                "b64_json",
                3,
                {"size": "1024x1024", "output_compression": 7, "user": "u"},
            ),
            "cb92badf9dfad030799079ac115b2b5337127f6286b84f91f25cae19d92a7b5b",
        ),
    ],
)
def test_a_request_without_images_keeps_its_fingerprint(request_: ImageRequest, expected: str) -> None:
    """Computed by the version before input images: a retry during a deployment must attach."""
    assert fingerprint(request_) == expected


def test_a_reading_has_a_deadline(service: InMemoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "remaining", lambda _: 0.0)
    upload_id = uploaded(service, FIRST)
    with pytest.raises(errors.InputUnavailableError):
        identified(service, [by_id(upload_id)])
    inputs = identified(service, [at_hand(FIRST)])
    with pytest.raises(errors.InputUnavailableError):
        inputs.keep()
