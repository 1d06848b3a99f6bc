"""An answer of Ideogram gives exactly the images that were asked for, each with its details or its failure."""

import json
from base64 import b64encode
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain import errors
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.ideogram.answers import read_answer

URL = "https://ideogram.ai/api/images/ephemeral/x.png?exp=1&sig=2"
PNG = b"\x89PNG and more"
WHOLE = {
    "url": URL,
    "prompt": "a cat, in detail",
    "resolution": "1024x1024",
    "seed": 12345,
    "style_type": "GENERAL",
    "is_image_safe": True,
}
IMAGE = UpstreamImage(
    URL, "a cat, in detail", details={"seed": 12345, "resolution": "1024x1024", "style_type": "GENERAL"}
)
UNSAFE = WHOLE | {"url": "", "is_image_safe": False}
LOST = errors.UpstreamTimeoutError("lost")
NO_SEEDS: list[object] = [-1, 2**32, 2**64, 10**30, 1.5, "12345", True, None, [1], {}]
NO_DETAILS: list[object] = [None, "", 7, True, [], ["x"], {}, "a\nb", "x" * 99, "é" * 50]


def answered(data: object, n: int = 1, **more: object) -> UpstreamImages:
    created = "2025-05-05T16:36:09.462623+00:00"
    return read_answer(bytearray(msgspec.json.encode({"created": created, "data": data, **more})), n)


def failure(body: object, n: int = 1, lost: errors.MoneySpentError | None = None) -> errors.MoneySpentError:
    """The failure of an answer: JSON if it is not bytes."""
    with pytest.raises(errors.MoneySpentError) as caught:
        read_answer(body if isinstance(body, bytes) else msgspec.json.encode(body), n, lost)
    return caught.value


def test_every_documented_field_is_kept() -> None:
    assert answered([WHOLE, WHOLE], 2, request_id="r-1") == UpstreamImages((IMAGE, IMAGE))


@pytest.mark.parametrize("created", [None, 7, 1.5, "yesterday", [], {}])
def test_the_time_of_the_answer_does_not_count(created: object) -> None:
    assert answered([WHOLE], created=created).images == (IMAGE,)


@pytest.mark.parametrize(
    ("seed", "kept"),
    [
        *((seed, seed) for seed in (0, 12345, 2_147_483_647, 2**32 - 1)),
        *((seed, None) for seed in NO_SEEDS),
    ],
    ids=repr,
)
def test_a_seed_is_kept_if_it_is_a_whole_number_of_32_bits(seed: object, kept: int | None) -> None:
    (image,) = answered([WHOLE | {"seed": seed}]).images
    assert image.details.get("seed") == kept


@pytest.mark.parametrize("odd", NO_DETAILS, ids=repr)
def test_an_unreadable_detail_is_left_out_and_loses_no_image(odd: object) -> None:
    for name in ("resolution", "style_type"):
        (image,) = answered([WHOLE | {name: odd}]).images
        rest = {key: value for key, value in IMAGE.details.items() if key != name}
        assert (image.source, image.revised_prompt, image.details) == (URL, IMAGE.revised_prompt, rest)


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [("a\x01b\n", "a b "), ("猫" * 2_000, "猫" * 1_332), ("", None), (None, None), (7, None), ({}, None)],
    ids=lambda value: repr(value)[:30],
)
def test_the_expanded_prompt_is_the_revised_prompt(prompt: object, kept: str | None) -> None:
    (image,) = answered([WHOLE | {"prompt": prompt}]).images
    assert (image.source, image.revised_prompt) == (URL, kept)


def test_an_image_without_details_is_an_image() -> None:
    data = f"data:image/png;base64,{b64encode(PNG).decode()}"
    assert answered([{"url": URL}, {"url": data}], 2).images == (UpstreamImage(URL), UpstreamImage(PNG))


@pytest.mark.parametrize("entry", [UNSAFE, UNSAFE | {"url": None}, UNSAFE | {"url": URL}, {"is_image_safe": False}])
def test_an_image_that_the_safety_system_kept_back_loses_no_other(entry: dict[str, Any]) -> None:
    first, second = answered([entry, WHOLE], 2).images
    assert (type(first.failure), first.source, first.details) == (errors.ImageFilteredError, None, {})
    assert second == IMAGE
    assert type(failure({"data": [entry]})) is errors.ImageFilteredError


@pytest.mark.parametrize("safe", [None, True, 0, "false", "", [], {}], ids=repr)
def test_only_false_means_that_an_image_is_not_safe(safe: object) -> None:
    assert answered([WHOLE | {"is_image_safe": safe}]).images == (IMAGE,)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        *((WHOLE | {"url": url}, errors.UpstreamAnswerInvalidError) for url in ("", None, 7, [URL], {"url": URL})),
        *((WHOLE | {"url": f"https://x/{path}"}, errors.ImageUrlRefusedError) for path in ("é", "a b", "a" * 8_200)),
        (WHOLE | {"url": "data:image/png;base64,%%"}, errors.UpstreamAnswerInvalidError),
        *(
            (entry, errors.UpstreamAnswerInvalidError)
            for entry in ({}, None, 7, URL, [], [WHOLE], {"b64_json": "AAAA"})
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_unusable_image_loses_no_other_and_is_the_failure_if_none_is_usable(
    entry: object, error: type[errors.MoneySpentError]
) -> None:
    first, second = answered([WHOLE, entry], 2).images
    assert (first, type(second.failure), second.source) == (IMAGE, error, None)
    assert type(failure({"data": [entry, UNSAFE]}, 2)) is error


def test_of_too_many_images_usable_ones_are_kept_in_their_order() -> None:
    urls = [f"https://x/{index}" for index in range(4)]
    good = [{"url": url} for url in urls]
    assert [image.source for image in answered([UNSAFE, *good, {}], 3).images] == urls[:3]
    first, second = answered([UNSAFE, {}, {"url": URL}], 2).images
    assert (first.source, type(second.failure)) == (URL, errors.ImageFilteredError)


def test_only_so_many_entries_are_tried() -> None:
    """Each takes memory, and an upstream could send millions."""
    assert answered([{}] * 99 + [WHOLE]).images == (IMAGE,)
    assert type(failure({"data": [{}] * 100 + [WHOLE]})) is errors.UpstreamAnswerInvalidError


def test_missing_images_are_failures_at_the_end() -> None:
    first, *missing = answered([WHOLE], 3).images
    assert first == IMAGE
    assert [type(image.failure) for image in missing] == [errors.UpstreamTooFewImagesError] * 2
    assert failure({"data": []}, 2).message == "The image model answered with 0 of 2 images."


BODY = msgspec.json.encode({"data": [WHOLE]})


def test_a_whole_answer_of_a_broken_connection_keeps_its_images_and_the_rest_is_lost() -> None:
    for body in (BODY, BODY + b"\n\ndata: [DONE]", b"\xef\xbb\xbf" + BODY):
        first, second = read_answer(body, 2, LOST).images
        assert (first, second.failure) == (IMAGE, LOST)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" \n", b"OK", b"<!doctype html><html></html>", b"\xff\xfe\x00", b"[]", b"null", b"{}", b"[" * 50_000),
        *(b'{"data": null}', b'{"data": {}}', b'{"data": "%s"}' % URL.encode(), b'{"error": "x"}', b'{"task_id": "1"}'),
        *(BODY[:-1], BODY[:40], b'{"data":' * 50_000, b'{"data":%s}' % (b"[" * 100_000 + b"]" * 100_000)),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_any_other_body_is_invalid_or_lost(body: bytes) -> None:
    assert type(failure(body)) is errors.UpstreamAnswerInvalidError
    assert failure(body, 1, LOST) is LOST


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\udc08", rb"\uD83D\ud83d"])
def test_half_of_a_surrogate_pair_loses_no_image(half: bytes) -> None:
    (image,) = read_answer(BODY.replace(b"a cat", half + b" a cat"), 1).images
    assert (image.source, image.details) == (URL, IMAGE.details)
    assert (image.revised_prompt or "").startswith("\ufffd")


def test_ten_images_with_the_longest_values_are_small_enough_for_a_record() -> None:
    """test_generation_store.py adds what else a record has."""
    longest = {"url": "https://x/" + "a" * 8_180, "prompt": "\U0001f9a6" * 10_000, "seed": 2**32 - 1}
    details = {"resolution": '"' * 49, "style_type": "é" * 49}
    images = answered([longest | details] * 8, 8).images
    kept = [(image.source, image.revised_prompt, image.details) for image in images]
    assert len(msgspec.json.encode(kept)) <= 8 * (8_192 + 4_000 + 2 * 100 + 100)
    assert all(len(image.details) == 3 for image in images)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([URL, "", "data:,", "\ud83d", "x" * 9_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WHOLE, "data"]), inner, max_size=6),
    max_leaves=12,
)
ENTRIES = st.lists(st.dictionaries(st.sampled_from([*WHOLE]), VALUES) | VALUES, max_size=4)


@given(VALUES | st.fixed_dictionaries({"data": ENTRIES}), st.integers(1, 8))
@settings(deadline=None, max_examples=200)
def test_any_answer_gives_n_images_or_a_failure(answer: object, n: int) -> None:
    with suppress(errors.MoneySpentError):
        images = read_answer(json.dumps(answer).encode(), n).images
        assert len(images) == n
        assert all((image.source is None) is (image.failure is not None) for image in images)
