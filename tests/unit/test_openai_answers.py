"""An upstream's answer is kept with each good image, up to the size of a record."""

from base64 import b64encode
from typing import Any

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.images import UpstreamImage, UpstreamImages
from imagegen.providers.openai.answers import read_answer

DYNAMODB_ITEM_BYTES = 400 * 1024
LONGEST_PROMPT_BYTES = 32_000 * 6  # of control characters, as JSON
ORIGIN = "https://images.example/"
URL = f"{ORIGIN}1.png"
LONGEST_URL = ORIGIN + "a" * 8_167
PNG = b"\x89PNG and more"
OTHER = b"\x89PNG and another"
B64 = b64encode(PNG).decode()
# Its base64 has both characters that the URL-safe alphabet replaces, and padding.
ODD_PNG = b"\x89PNG\xfb\xff\xbe\xfb\xff\xfe>>>?"
ODD_B64 = b64encode(ODD_PNG).decode()
assert {"+", "/", "="} < set(ODD_B64)
URL_SAFE = str.maketrans("+/", "-_")


def answered(*data: object, n: int = 1, **more: object) -> UpstreamImages:
    return read_answer(bytearray(msgspec.json.encode({"created": 1, "data": data, **more})), n)


def images(*data: object, n: int = 1) -> tuple[UpstreamImage, ...]:
    return answered(*data, n=n).images


# Sizes

TOKENS_BY_KIND = {"text_tokens": 10**9, "image_tokens": 10**9}
LARGEST_USAGE = {
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 10**9),
    **dict.fromkeys(("input_tokens_details", "output_tokens_details"), TOKENS_BY_KIND),
}


@pytest.mark.parametrize("character", ["\U0001f9a6", "\x01", '"'])
def test_ten_images_with_the_longest_fields_fit_beside_the_longest_prompt(character: str) -> None:
    image = {"url": LONGEST_URL, "revised_prompt": character * 10_000}
    answer = answered(*[image] * 10, n=10, usage=LARGEST_USAGE, quality="q" * 10_000)
    kept = [(image.source, image.revised_prompt) for image in answer.images]
    size = len(msgspec.json.encode([kept, answer.details, answer.usage]))
    assert LONGEST_PROMPT_BYTES + size < DYNAMODB_ITEM_BYTES


def test_an_answer_within_the_limits_is_kept_whole() -> None:
    image = {"url": LONGEST_URL, "revised_prompt": "r" * 2_000}
    details = {"background": "opaque", "output_format": "png", "size": "1024x1024", "quality": "high"}
    more: dict[str, Any] = {**details, "usage": LARGEST_USAGE, "request_id": "r-1"}
    kept = UpstreamImage(image["url"], image["revised_prompt"])
    assert answered(image, **more) == UpstreamImages((kept,), details, LARGEST_USAGE)


@pytest.mark.parametrize("path", ["a" * 8_168, '"' * 4_090, "\\" * 4_090, "\x01", "a\nb", "a b", "é", "\U0001f9a6"])
def test_a_url_that_is_too_long_or_has_odd_characters_is_refused(path: str) -> None:
    with pytest.raises(errors.ImageUrlRefusedError):
        images({"url": ORIGIN + path})


@pytest.mark.parametrize(
    ("revised", "kept"),
    [
        ("r" * 2_001, "r" * 2_000),
        ("é" * 2_000, "é" * 1_999),
        ("猫" * 2_000, "猫" * 1_332),
        ("r" + "\U0001f9a6" * 2_000, "r" + "\U0001f9a6" * 999),
        ('"' * 2_000, '"' * 1_999),
        ("\\" * 2_000, "\\" * 1_999),
        ("a\x01b\n", "a b "),
    ],
)
def test_a_revised_prompt_is_cut_between_two_characters(revised: str, kept: str) -> None:
    assert images({"url": URL, "revised_prompt": revised})[0].revised_prompt == kept
    assert len(msgspec.json.encode(kept)) <= 4_000


@pytest.mark.parametrize("quality", ["h" * 99, "é" * 50, '"' * 50, "hi\x01", "h" * 98, "é" * 49])
def test_a_detail_is_kept_if_it_is_short_and_printable(quality: str) -> None:
    kept = {"quality": quality} if quality in ("h" * 98, "é" * 49) else {}
    assert answered({"url": URL}, quality=quality).details == kept


@pytest.mark.parametrize("odd", [b"null", b'""', b"7", b"[1]", b"{}", b"true", b"1e999", b'"\xff"', b'{"a":1e999}'])
def test_an_unreadable_field_loses_no_image(odd: bytes) -> None:
    image = b'{"b64_json":"%s","revised_prompt":%s}' % (B64.encode(), odd)
    answer = read_answer(b'{"data":[%s],"size":%s,"usage":%s}' % (image, odd, odd), 1)
    assert answer == UpstreamImages((UpstreamImage(PNG),), {}, None)


# Usage

COUNTS = {"input_tokens": 50, "output_tokens": 40, "total_tokens": 90}
CHAT = {"prompt_tokens": 50, "completion_tokens": 40, "total_tokens": 90}


def split(text: int, image: int) -> dict[str, int]:
    return {"text_tokens": text, "image_tokens": image}


@pytest.mark.parametrize(
    ("usage", "details"),
    [
        ({**COUNTS, "input_tokens_details": split(10, 40)}, split(10, 40)),
        ({**COUNTS, "input_tokens_details": {"image_tokens": 40}}, split(10, 40)),
        ({**COUNTS, "input_tokens_details": {"text_tokens": 10}}, split(10, 0)),
        ({**COUNTS, "input_tokens_details": split(0, 50)}, split(0, 50)),
        ({**COUNTS, "input_tokens_details": None}, split(50, 0)),
        (CHAT, split(50, 0)),
        ({**CHAT, "prompt_tokens_details": {"cached_tokens": 7}}, split(50, 0)),
        ({**CHAT, "prompt_tokens_details": {**split(0, 0), "audio_tokens": 0}}, split(50, 0)),
        ({**CHAT, "prompt_tokens_details": {"image_tokens": 40}}, split(10, 40)),
        ({**CHAT, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": None}, split(50, 0)),
        ({"prompt_tokens": 50, "completion_tokens": 40}, split(50, 0)),
        ({"input_tokens": 49.1, "output_tokens": 40.0, "total_tokens": 89.1}, split(50, 0)),
        ({**COUNTS, "cost": 0.04, "note": "n" * 100_000, "is_byok": False, "x": [1]}, split(50, 0)),
    ],
)
def test_usage_has_openais_counts_and_no_others(usage: dict[str, Any], details: dict[str, int]) -> None:
    kept = answered({"url": URL}, usage=usage).usage
    assert kept == {**COUNTS, "input_tokens_details": details}
    assert type(kept["input_tokens"]) is int


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ({"text_tokens": 1.5, "image_tokens": 38.5}, split(2, 39)),
        ({"image_tokens": 40}, None),
        (split(-1, 40), None),
        (None, None),
    ],
)
def test_the_kinds_of_output_tokens_are_kept_together_or_not_at_all(details: object, kept: object) -> None:
    usage = answered({"url": URL}, usage={**COUNTS, "output_tokens_details": details}).usage
    assert usage is not None
    assert usage.get("output_tokens_details") == kept


@pytest.mark.parametrize(
    "odd", ["null", "-1", "-0.5", "1000000001", "1e300", "true", '"40"', '""', "[40]", "{}", "1e999"]
)
def test_a_usage_without_a_count_is_left_out(odd: str) -> None:
    for name in ("input_tokens", "output_tokens"):
        assert answered({"url": URL}, usage={**COUNTS, name: msgspec.Raw(odd.encode())}).usage is None


# Images


@pytest.mark.parametrize(
    ("item", "source"),
    [
        ({"url": "", "b64_json": B64, "revised_prompt": ""}, PNG),
        ({"url": URL, "b64_json": "", "revised_prompt": ""}, URL),
        ({"url": None, "b64_json": B64}, PNG),
        ({"url": URL, "b64_json": None}, URL),
        ({"url": 7, "b64_json": B64}, PNG),
        ({"url": [URL]}, URL),
        ({"b64_json": B64, "width": 1, "safe": {"a": [None]}}, PNG),
    ],
    ids=str,
)
def test_an_image_is_found_in_the_form_of_each_reseller(item: dict[str, Any], source: str | bytes) -> None:
    assert images(item) == (UpstreamImage(source),)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", " DATA:image/png;base64,\n", "data:;base64,"])
@pytest.mark.parametrize(
    "base64",
    [
        ODD_B64,
        ODD_B64.rstrip("="),
        ODD_B64.translate(URL_SAFE),
        ODD_B64.translate(URL_SAFE).rstrip("="),
        f"{ODD_B64[:4]}\n{ODD_B64[4:]}\n",
        f"\r\n{ODD_B64[:5]}\r\n{ODD_B64[5:]}".rstrip("="),
        f" {ODD_B64} ",
    ],
)
def test_base64_of_any_dialect_is_an_image(base64: str, prefix: str) -> None:
    text = prefix + base64
    for item in ({"b64_json": text}, *([{"url": text}, {"url": [text], "b64_json": ""}] if prefix else [])):
        assert images(item) == (UpstreamImage(ODD_PNG),)


def test_each_of_several_urls_is_an_image() -> None:
    listed = {"url": [URL, "", f"{URL}?2"], "revised_prompt": "a cat"}
    assert images(listed, n=2) == (UpstreamImage(URL, "a cat"), UpstreamImage(f"{URL}?2", "a cat"))


@pytest.mark.parametrize(
    "bad",
    [
        *({"url": f"{ORIGIN}a b"}, {"url": f"{ORIGIN}é"}),
        *({"url": "data:image/png;base64,%%%%"}, {"url": "data:image/png;base64,"}),
        *({"b64_json": "%%%%"}, {"b64_json": "AAAAA"}, {"b64_json": "é"}, {"b64_json": f"x{URL}"}, {"b64_json": 7}),
        *({"url": 7}, {"url": [7]}, {"url": []}, {"url": [[URL]]}, {"url": {"url": URL}}),
        *({"url": "", "b64_json": "", "revised_prompt": "a cat"}, {}, None, URL),
    ],
    ids=str,
)
def test_a_bad_image_loses_no_good_one_and_is_the_failure_if_none_is_good(bad: object) -> None:
    is_url = isinstance(bad, dict) and str(bad.get("url")).startswith(ORIGIN)
    failure = errors.ImageUrlRefusedError if is_url else errors.UpstreamAnswerInvalidError
    first, second, third = images({"url": URL}, bad, {"b64_json": B64}, n=3)
    assert (first, third) == (UpstreamImage(URL), UpstreamImage(PNG))
    assert (second.source, type(second.failure)) == (None, failure)
    with pytest.raises(failure):
        images(bad, {"b64_json": 7}, n=3)


def test_missing_images_are_failures_at_the_end() -> None:
    first, *missing = images({"url": URL}, n=3)
    assert first.source == URL
    for image in missing:
        assert type(image.failure) is errors.UpstreamTooFewImagesError
        assert image.failure.message == "The image model answered with 1 of 3 images."


def test_an_answer_without_any_image_is_refused_as_too_few() -> None:
    with pytest.raises(errors.UpstreamTooFewImagesError, match="0 of 2 images"):
        images(n=2)


def test_usable_images_come_first_if_there_are_too_many() -> None:
    bad = {"b64_json": "%%%%"}
    assert [image.source for image in images({"url": URL}, {"b64_json": B64}, {"url": f"{URL}?3"}, n=2)] == [URL, PNG]
    assert [image.source for image in images(bad, {"url": URL}, bad, {"b64_json": B64}, n=2)] == [URL, PNG]
    assert [image.source for image in images(bad, bad, {"url": URL}, n=2)] == [URL, None]


def test_only_so_many_entries_are_tried() -> None:
    """Each takes memory, and an upstream could send millions."""
    bad = [{"b64_json": "%%%%"}]
    assert images(*bad * 99, {"url": URL}) == (UpstreamImage(URL),)
    with pytest.raises(errors.UpstreamAnswerInvalidError):
        images(*bad * 100, {"url": URL})


# Event streams


def completed(content: bytes = PNG, **more: object) -> dict[str, object]:
    return {"type": "image_generation.completed", "b64_json": b64encode(content).decode(), **more}


def partial(index: int) -> dict[str, object]:
    return {"type": "image_generation.partial_image", "b64_json": B64, "partial_image_index": index}


def stream(*events: object, end: str = "\n") -> bytes:
    return "".join(f"data: {msgspec.json.encode(event).decode()}{end}{end}" for event in events).encode()


def sources(body: bytes, n: int = 1) -> list[str | bytes | None]:
    return [image.source for image in read_answer(bytearray(body), n).images]


ONE = stream(completed())
PARTS = stream(partial(0), partial(1), completed())
PART_NAME = b"event: image_generation.partial_image\n"
COMPLETED_NAME = b"event: image_generation.completed\n"
JSON = msgspec.json.encode({"created": 1, "data": [{"b64_json": B64}]})


@pytest.mark.parametrize(
    "body",
    [
        # one event, with and without its name and [DONE], with different line ends and spaces
        *(ONE, ONE.replace(b"==", b""), ONE + b"data: [DONE]\n\n", stream(completed(), end="\r\n"), ONE.rstrip()),
        *(COMPLETED_NAME + ONE, COMPLETED_NAME + stream({"b64_json": B64}), ONE.replace(b"data: ", b"data:")),
        *(ONE.replace(b",", b",\ndata: "), ONE.replace(b",", b",\r\ndata:"), msgspec.json.encode(completed())),
        # parts and other fields before it
        *(PART_NAME + stream({"b64_json": "AAAA"}) + ONE, PARTS.replace(B64.encode(), b"AAAA", 2)),
        b": keep-alive\n\n\n\nid: 7\nretry: 5\n" + ONE,
        # an error or a truncated event after it
        ONE + b'event: error\ndata: {"error":{"message":"late"}}\n\n',
        ONE + b'data: {"type":"image_generation.completed","b64_js',
        # a whole answer as an event, before an event, and after a byte order mark
        *(b"data: " + JSON + b"\n\n", JSON + b"\n\n" + ONE, JSON + b"data: [DONE]\n\n", b"\xef\xbb\xbf" + JSON),
        msgspec.json.format(JSON) + b"\n\ndata: [DONE]",
        # JSON without the image, and an event with it
        *(b'{"created":1,"data":[]}\n\n' + ONE, b'{"created":1}\n\n' + ONE),
    ],
    ids=lambda body: repr(body[:50]),
)
def test_an_image_in_an_event_is_kept(body: bytes) -> None:
    assert sources(body) == [PNG]


def test_each_completed_event_is_an_image() -> None:
    assert sources(stream(partial(0), completed(), partial(0), completed(OTHER)), 2) == [PNG, OTHER]


def test_an_image_that_a_stream_repeats_is_one_image() -> None:
    whole = {"created": 1, "data": [{"b64_json": completed()["b64_json"]}, {"b64_json": completed(OTHER)["b64_json"]}]}
    assert sources(stream(completed(), completed(OTHER), whole), 2) == [PNG, OTHER]
    assert sources(stream({"created": 1, "data": whole["data"][:1]}, whole), 2) == [PNG, OTHER]  # type: ignore[index]
    first, second = read_answer(stream(completed(), {"created": 1, "data": [whole["data"][0]]}), 2).images  # type: ignore[index]
    assert (first.source, type(second.failure)) == (PNG, errors.UpstreamTooFewImagesError)


def test_a_stream_without_blank_lines_has_one_event_per_line() -> None:
    lines = b"".join(b"data: " + msgspec.json.encode(event) + b"\n" for event in (completed(), completed(OTHER)))
    assert sources(lines, 2) == [PNG, OTHER]


def test_an_event_after_an_answer_with_images_adds_none() -> None:
    first, second = read_answer(JSON + b"\n\n" + stream(completed(OTHER)), 2).images
    assert (first.source, type(second.failure)) == (PNG, errors.UpstreamTooFewImagesError)


def test_details_and_usage_are_those_of_the_completed_events() -> None:
    counts = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    events = (partial(0) | {"size": "auto"}, completed(size="1x1", quality="low", usage=counts))
    answer = read_answer(stream(*events, completed(OTHER, quality="high", usage=counts)), 2)
    assert answer.details == {"size": "1x1", "quality": "high"}
    assert answer.usage == {
        "input_tokens": 2,
        "output_tokens": 4,
        "total_tokens": 6,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
    }


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" \n", b"OK", b"<!doctype html><html></html>", b'{"data": [{"url": "http', b"[" * 50_000),
        b"\xff\xfe\x00",
        *(b'{"data": [{"url": "\xff"}]}', b"[]", b"null", b"{}", b'{"error": {"message": "x"}}', b'{"error": "x"}'),
        *(b'{"created": 1, "data": null}', b'{"data": {"url": "%s"}}' % URL.encode(), b'{"data": "%s"}' % URL.encode()),
        *(stream(partial(0)), PART_NAME + stream({"b64_json": B64}), ONE[:-10]),
        *(b"data: [DONE]\n\n", b'event: error\ndata: {"error":{"code":"moderation_blocked"}}\n\n'),
        *(b"data: \n\n" * 1000, b"\n" * 100_000),
    ],
    ids=lambda body: str(body[:40]),
)
def test_any_other_answer_is_invalid(body: bytes) -> None:
    with pytest.raises(errors.UpstreamAnswerInvalidError):
        read_answer(body, 1)


LOST = errors.UpstreamConnectionLostError("lost")


@pytest.mark.parametrize("body", [ONE + ONE[:50], ONE, JSON])
def test_whole_images_of_a_broken_answer_are_kept_and_the_rest_is_lost(body: bytes) -> None:
    first, second = read_answer(body, 2, LOST).images
    assert (first.source, second.failure) == (PNG, LOST)


@pytest.mark.parametrize("body", [b"", JSON[:-1], ONE[:-10], stream(partial(0)), b'{"data":[]}'])
def test_a_broken_answer_without_a_whole_image_is_lost(body: bytes) -> None:
    with pytest.raises(errors.UpstreamConnectionLostError):
        read_answer(body, 1, LOST)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (r"cat \ud83d", "cat \ufffd"),
        (r"\uD83Dcat", "\ufffdcat"),
        (r"\udc08\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\udc08", "\ufffd\U0001f408"),
        (r"\ud83d\udc08\udc08", "\U0001f408\ufffd"),
        (r"\\ud83d \ud83d", r"\ud83d " + "\ufffd"),
        (r"\\\ud83d", "\\\ufffd"),
        (r"\"\ud83d\"", '"\ufffd"'),
    ],
)
def test_half_of_a_surrogate_pair_loses_neither_the_image_nor_the_text(sent: str, kept: str) -> None:
    image = f'{{"b64_json":"{B64}","revised_prompt":"{sent}"}}'
    for text in (f'{{"data":[{image}]}}', f'{{"data":[{image}]}}\n\ndata: [DONE]', f"data: {image}\n\n"):
        assert read_answer(text.encode(), 1).images == (UpstreamImage(PNG, kept),)


@pytest.mark.parametrize("name", ["id", "quality", r"\ud83d"])
def test_half_of_a_surrogate_pair_anywhere_loses_no_image(name: str) -> None:
    text = f'{{"data":[{{"url":"{URL}"}}],"{name}":"\\udc08"}}'
    assert read_answer(text.encode(), 1).images == (UpstreamImage(URL),)
