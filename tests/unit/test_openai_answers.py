"""What of an upstream's answer is kept: each good image, and no more than fits on a record."""

from base64 import b64encode
from collections.abc import Callable

import msgspec
import openai
import pytest

from imagegen.errors import (
    ImageUrlRefusedError,
    MoneySpentError,
    UpstreamAnswerInvalidError,
    UpstreamConnectionLostError,
    UpstreamTooFewImagesError,
)
from imagegen.images import UpstreamImage
from imagegen.providers.openai_answers import read_answer

DYNAMODB_ITEM_BYTES = 400 * 1024
LARGEST_USAGE = {
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 10**9),
    "input_tokens_details": {"text_tokens": 10**9, "image_tokens": 10**9},
    "output_tokens_details": {"text_tokens": 10**9, "image_tokens": 10**9},
}
LONGEST_PROMPT_BYTES = 32_000 * 6  # of control characters, as JSON


def body(**more: object) -> bytes:
    image = {"url": "https://images.example/1.png", **{name: more.pop(name) for name in ("url",) if name in more}}
    image |= {name: more.pop(name) for name in ("revised_prompt",) if name in more}
    return msgspec.json.encode({"created": 1, "data": [image] * 10, **more})


@pytest.mark.parametrize("revised", ["\U0001f9a6" * 500_000, "\x01" * 500_000, '"' * 500_000])
def test_ten_images_with_all_that_may_be_told_of_them_fit_beside_the_longest_prompt(revised: str) -> None:
    longest = body(
        url="https://images.example/" + "a" * 8_167,
        revised_prompt=revised,
        usage=LARGEST_USAGE,
        quality="q" * 500_000,
    )
    answer = read_answer(longest, 10)
    kept = [(image.source, image.revised_prompt) for image in answer.images]
    size = len(msgspec.json.encode([kept, answer.details, answer.usage]))
    assert LONGEST_PROMPT_BYTES + size < DYNAMODB_ITEM_BYTES


def test_what_is_told_in_measure_is_kept_whole() -> None:
    answer = read_answer(body(revised_prompt="r" * 2_000, usage=LARGEST_USAGE, quality="high"), 10)
    assert answer.images[0].revised_prompt == "r" * 2_000
    assert (answer.usage, answer.details) == (LARGEST_USAGE, {"quality": "high"})


COUNTS = {"input_tokens": 50, "output_tokens": 40, "total_tokens": 90}
CHAT = {"prompt_tokens": 50, "completion_tokens": 40, "total_tokens": 90}
OF_TEXT = {"text_tokens": 50, "image_tokens": 0}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (
            {**COUNTS, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}},
            {"text_tokens": 10, "image_tokens": 40},
        ),
        ({**COUNTS, "input_tokens_details": {"image_tokens": 40}}, {"text_tokens": 10, "image_tokens": 40}),
        ({**COUNTS, "input_tokens_details": {"text_tokens": 10}}, {"text_tokens": 10, "image_tokens": 0}),
        (
            {**COUNTS, "input_tokens_details": {"text_tokens": 0, "image_tokens": 50}},
            {"text_tokens": 0, "image_tokens": 50},
        ),
        ({**COUNTS, "input_tokens_details": None}, OF_TEXT),
        (COUNTS, OF_TEXT),
        (CHAT, OF_TEXT),
        ({**CHAT, "prompt_tokens_details": {"cached_tokens": 7}}, OF_TEXT),
        ({**CHAT, "prompt_tokens_details": {"text_tokens": 0, "image_tokens": 0, "audio_tokens": 0}}, OF_TEXT),
        ({**CHAT, "prompt_tokens_details": {"image_tokens": 40}}, {"text_tokens": 10, "image_tokens": 40}),
        ({**CHAT, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": None}, OF_TEXT),
        ({"prompt_tokens": 50, "completion_tokens": 40}, OF_TEXT),
        ({"input_tokens": 49.1, "output_tokens": 40.0, "total_tokens": 89.1}, OF_TEXT),
        ({**COUNTS, "cost": 0.04, "note": "n" * 100_000, "is_byok": False, "x": [1]}, OF_TEXT),
    ],
)
def test_usage_has_all_of_openais_counts_and_no_others(told: dict[str, object], kept: dict[str, int]) -> None:
    usage = read_answer(body(usage=told), 10).usage
    assert usage == {**COUNTS, "input_tokens_details": kept}
    assert type(usage["input_tokens"]) is int
    assert openai.types.images_response.Usage.model_validate(usage, strict=True)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({"text_tokens": 1.5, "image_tokens": 38.5}, {"text_tokens": 2, "image_tokens": 39}),
        ({"image_tokens": 40}, None),
        ({"text_tokens": -1, "image_tokens": 40}, None),
        (None, None),
    ],
)
def test_what_the_output_tokens_are_is_told_whole_or_not_at_all(told: object, kept: dict[str, int] | None) -> None:
    usage = read_answer(body(usage={**COUNTS, "output_tokens_details": told}), 10).usage
    assert usage is not None
    assert usage.get("output_tokens_details") == kept


@pytest.mark.parametrize(
    "odd",
    [None, -1, -0.5, 10**9 + 1, 1e300, True, "40", "", [40], {"count": 40}, msgspec.Raw(b"1e999")],
    ids=lambda odd: "1e999" if isinstance(odd, msgspec.Raw) else str(odd),
)
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_a_usage_without_a_count_is_left_out(name: str, odd: object) -> None:
    assert read_answer(body(usage={**COUNTS, name: odd}), 10).usage is None


@pytest.mark.parametrize("path", ["a" * 8_168, '"' * 4_090, "\\" * 4_090, "\x01", "a\nb", "a b", "é", "\U0001f9a6"])
def test_a_url_beyond_measure_is_refused(path: str) -> None:
    with pytest.raises(ImageUrlRefusedError):
        read_answer(body(url=f"https://images.example/{path}"), 10)


def test_a_url_of_the_most_bytes_is_kept() -> None:
    url = "https://images.example/" + "a" * 8_167
    assert read_answer(body(url=url), 10).images[0].source == url


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
    image = read_answer(body(revised_prompt=revised), 10).images[0]

    assert image.revised_prompt == kept
    assert len(msgspec.json.encode(kept)) <= 4_000


@pytest.mark.parametrize(
    ("quality", "details"),
    [
        ("h" * 98, {"quality": "h" * 98}),
        ("h" * 99, {}),
        ("é" * 49, {"quality": "é" * 49}),
        ("é" * 50, {}),
        ('"' * 50, {}),
        ("hi\x01", {}),
    ],
)
def test_a_detail_is_kept_where_it_is_short_and_printable(quality: str, details: dict[str, str]) -> None:
    assert read_answer(body(quality=quality), 10).details == details


@pytest.mark.parametrize("usage", [b'{"a":1e999}', b'{"a":"\xff"}', b"[1]"])
def test_a_usage_that_cannot_be_read_costs_no_image(usage: bytes) -> None:
    answer = read_answer(b'{"data":[{"url":"%s"}],"usage":%s}' % (URL.encode(), usage), 1)
    assert (answer.images, answer.usage) == ((UpstreamImage(URL),), None)


URL = "https://images.example/1.png"
PNG = b"\x89PNG and more"
B64 = b64encode(PNG).decode()
GOOD = [
    {"url": URL},
    {"url": [URL]},
    {"b64_json": B64},
    {"b64_json": f"data:image/png;base64,{B64}"},
    {"url": 7, "b64_json": B64},
]
BAD: list[tuple[object, type[MoneySpentError]]] = [
    ({"url": "https://images.example/a b"}, ImageUrlRefusedError),
    ({"url": "https://images.example/é"}, ImageUrlRefusedError),
    ({"url": "data:image/png;base64,%%%%"}, UpstreamAnswerInvalidError),
    ({"url": "data:image/png;base64,"}, UpstreamAnswerInvalidError),
    ({"b64_json": "%%%%"}, UpstreamAnswerInvalidError),
    ({"b64_json": "AAAAA"}, UpstreamAnswerInvalidError),
    ({"b64_json": "é"}, UpstreamAnswerInvalidError),
    ({"b64_json": 7}, UpstreamAnswerInvalidError),
    ({"url": [7]}, UpstreamAnswerInvalidError),
    ({"url": []}, UpstreamAnswerInvalidError),
    ({"url": [[URL]]}, UpstreamAnswerInvalidError),
    ({"url": {"url": URL}}, UpstreamAnswerInvalidError),
    ({"url": "", "b64_json": "", "revised_prompt": "a cat"}, UpstreamAnswerInvalidError),
    ({}, UpstreamAnswerInvalidError),
    (None, UpstreamAnswerInvalidError),
    (URL, UpstreamAnswerInvalidError),
]
# Its base64 holds both characters in which the URL-safe alphabet differs, and ends in padding.
ODD_PNG = b"\x89PNG\xfb\xff\xbe\xfb\xff\xfe>>>?"
ODD_B64 = b64encode(ODD_PNG).decode()
assert "+" in ODD_B64
assert "/" in ODD_B64
assert ODD_B64.endswith("=")
DIALECTS = {
    "plain": ODD_B64,
    "without padding": ODD_B64.rstrip("="),
    "URL-safe": ODD_B64.translate(str.maketrans("+/", "-_")),
    "both": ODD_B64.translate(str.maketrans("+/", "-_", "=")),
}
BREAKS: dict[str, Callable[[str], str]] = {
    "on one line": lambda text: text,
    "on lines": lambda text: f"{text[:4]}\n{text[4:]}\n",
    "on lines with CRLF": lambda text: f"\r\n{text[:5]}\r\n{text[5:]}",
    "between spaces": lambda text: f" {text} ",
}
PREFIXES = ["", "data:image/png;base64,", " DATA:image/png;base64,\n", "data:;base64,"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_base64_of_any_dialect_is_an_image(dialect: str, broken: str, prefix: str) -> None:
    text = prefix + BREAKS[broken](DIALECTS[dialect])
    assert answered({"b64_json": text}, n=1)[0].source == ODD_PNG
    if prefix:
        assert answered({"url": text}, n=1)[0].source == ODD_PNG
        assert answered({"url": [text], "b64_json": ""}, n=1)[0].source == ODD_PNG


def test_each_of_several_urls_is_an_image() -> None:
    listed = {"url": [URL, "", f"{URL}?2"], "revised_prompt": "a cat"}
    assert answered(listed, n=2) == (UpstreamImage(URL, "a cat"), UpstreamImage(f"{URL}?2", "a cat"))


def answered(*data: object, n: int) -> tuple[UpstreamImage, ...]:
    return read_answer(bytearray(msgspec.json.encode({"data": data})), n).images


@pytest.mark.parametrize("good", GOOD, ids=str)
@pytest.mark.parametrize(("bad", "failure"), BAD, ids=str)
def test_one_bad_image_costs_no_good_one(good: object, bad: object, failure: type[MoneySpentError]) -> None:
    first, second, third = answered(good, bad, good, n=3)

    assert first == third
    assert first.source in (URL, PNG)
    assert first.failure is None
    assert (second.source, type(second.failure)) == (None, failure)


@pytest.mark.parametrize(("bad", "failure"), BAD, ids=str)
def test_the_first_failure_is_raised_where_no_image_is_usable(bad: object, failure: type[MoneySpentError]) -> None:
    with pytest.raises(failure):
        answered(bad, {"b64_json": 7}, n=3)


def test_images_that_did_not_come_are_failures_at_the_end() -> None:
    first, second, third = answered({"url": URL}, n=3)

    assert first.source == URL
    for missing in (second, third):
        assert type(missing.failure) is UpstreamTooFewImagesError
        assert missing.failure.message == "The image model answered with 1 of 3 images."


def test_an_answer_without_any_image_is_refused_as_too_few() -> None:
    with pytest.raises(UpstreamTooFewImagesError, match="0 of 2 images"):
        answered(n=2)


def test_of_more_images_than_asked_for_the_usable_ones_come_first() -> None:
    bad = {"b64_json": "%%%%"}
    assert [image.source for image in answered(bad, {"url": URL}, bad, {"b64_json": B64}, n=2)] == [URL, PNG]
    assert [image.source for image in answered(bad, bad, {"url": URL}, n=2)] == [URL, None]


@pytest.mark.parametrize("prompt", [b'"\xff"', b"1e999", b"7"])
def test_a_revised_prompt_that_cannot_be_read_costs_no_image(prompt: bytes) -> None:
    answer = read_answer(b'{"data":[{"b64_json":"%s","revised_prompt":%s}]}' % (B64.encode(), prompt), 1)
    assert answer.images == (UpstreamImage(PNG),)


def completed(content: bytes = PNG, **more: object) -> dict[str, object]:
    return {"type": "image_generation.completed", "b64_json": b64encode(content).decode(), **more}


def partial(index: int) -> dict[str, object]:
    return {"type": "image_generation.partial_image", "b64_json": B64, "partial_image_index": index}


def stream(*events: object, end: str = "\n") -> bytes:
    return "".join(f"data: {msgspec.json.encode(event).decode()}{end}{end}" for event in events).encode()


def sources(body: bytes, n: int = 1) -> list[str | bytes | None]:
    return [image.source for image in read_answer(bytearray(body), n).images]


OTHER = b"\x89PNG and another"
ONE = stream(completed())
JSON = msgspec.json.encode({"created": 1, "data": [{"b64_json": B64}]})


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(ONE, id="a completed image"),
        pytest.param(ONE.replace(b"==", b""), id="a completed image without padding"),
        pytest.param(ONE + b"data: [DONE]\n\n", id="DONE behind it"),
        pytest.param(stream(completed(), end="\r\n"), id="CRLF"),
        pytest.param(b"event: image_generation.completed\n" + ONE, id="with its name"),
        pytest.param(b"event: image_generation.completed\n" + stream({"b64_json": B64}), id="with its name alone"),
        pytest.param(
            b"event: image_generation.partial_image\n" + stream({"b64_json": "AAAA"}) + ONE, id="a part's name"
        ),
        pytest.param(b": keep-alive\n\n\n\nid: 7\nretry: 5\n" + ONE, id="comments and other fields"),
        pytest.param(
            stream(partial(0), partial(1), completed()).replace(B64.encode(), b"AAAA", 2), id="parts before it"
        ),
        pytest.param(ONE.rstrip(), id="no end"),
        pytest.param(ONE.replace(b"data: ", b"data:"), id="no space"),
        pytest.param(ONE.replace(b",", b",\ndata: "), id="several lines"),
        pytest.param(ONE.replace(b",", b",\r\ndata:"), id="several lines that end in CRLF"),
        pytest.param(ONE + b'event: error\ndata: {"error":{"message":"late"}}\n\n', id="an error behind it"),
        pytest.param(ONE + b'data: {"type":"image_generation.completed","b64_js', id="a cut event behind it"),
        pytest.param(b"data: " + JSON + b"\n\n", id="a whole answer as an event"),
        pytest.param(JSON + b"\n\n" + ONE, id="JSON and an event"),
        pytest.param(JSON + b"data: [DONE]\n\n", id="JSON and an event on the same line"),
        pytest.param(msgspec.json.format(JSON) + b"\n\ndata: [DONE]", id="JSON on many lines and an event"),
        pytest.param(b'{"created":1,"data":[]}\n\n' + ONE, id="JSON without the image, and an event with it"),
        pytest.param(b'{"created":1}\n\n' + ONE, id="JSON without a list, and an event with the image"),
        pytest.param(msgspec.json.encode(completed()), id="an event that is no stream"),
        pytest.param(b"\xef\xbb\xbf" + JSON, id="JSON behind a byte order mark"),
    ],
)
def test_an_image_that_comes_as_an_event_is_kept(body: bytes) -> None:
    assert sources(body) == [PNG]


def test_each_completed_event_is_an_image() -> None:
    assert sources(stream(partial(0), completed(), partial(0), completed(OTHER)), 2) == [PNG, OTHER]


def test_an_image_that_a_stream_lists_again_is_one_image() -> None:
    whole = {"created": 1, "data": [{"b64_json": completed()["b64_json"]}, {"b64_json": completed(OTHER)["b64_json"]}]}
    assert sources(stream(completed(), completed(OTHER), whole), 2) == [PNG, OTHER]
    assert sources(stream({"created": 1, "data": whole["data"][:1]}, whole), 2) == [PNG, OTHER]  # type: ignore[index]
    first, second = read_answer(stream(completed(), {"created": 1, "data": [whole["data"][0]]}), 2).images  # type: ignore[index]
    assert (first.source, type(second.failure)) == (PNG, UpstreamTooFewImagesError)


def test_a_stream_without_blank_lines_has_an_event_a_line() -> None:
    lines = b"".join(b"data: " + msgspec.json.encode(event) + b"\n" for event in (completed(), completed(OTHER)))
    assert sources(lines, 2) == [PNG, OTHER]


def test_an_event_behind_an_answer_with_images_adds_none() -> None:
    first, second = read_answer(JSON + b"\n\n" + stream(completed(OTHER)), 2).images
    assert (first.source, type(second.failure)) == (PNG, UpstreamTooFewImagesError)


def test_details_and_usage_come_from_the_finished_events() -> None:
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
        stream(partial(0)),
        b"event: image_generation.partial_image\n" + stream({"b64_json": B64}),
        b"data: [DONE]\n\n",
        b'event: error\ndata: {"error":{"code":"moderation_blocked"}}\n\n',
        ONE[:-10],
        b"data: \n\n" * 1000,
        b"\n" * 100_000,
    ],
)
def test_a_stream_without_a_whole_image_is_invalid(body: bytes) -> None:
    with pytest.raises(UpstreamAnswerInvalidError):
        read_answer(body, 1)


LOST = UpstreamConnectionLostError("lost")


@pytest.mark.parametrize("body", [ONE + ONE[:50], ONE, JSON])
def test_of_an_answer_that_broke_off_what_is_whole_is_kept_and_the_rest_is_lost(body: bytes) -> None:
    first, second = read_answer(body, 2, LOST).images
    assert (first.source, second.failure) == (PNG, LOST)


@pytest.mark.parametrize("body", [b"", JSON[:-1], ONE[:-10], stream(partial(0)), b'{"data":[]}'])
def test_an_answer_that_broke_off_before_an_image_was_whole_is_lost(body: bytes) -> None:
    with pytest.raises(UpstreamConnectionLostError):
        read_answer(body, 1, LOST)


@pytest.mark.parametrize(
    ("told", "kept"),
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
def test_half_of_a_surrogate_pair_costs_neither_the_image_nor_the_text(told: str, kept: str) -> None:
    image = f'{{"b64_json":"{B64}","revised_prompt":"{told}"}}'
    for text in (f'{{"data":[{image}]}}', f'{{"data":[{image}]}}\n\ndata: [DONE]', f"data: {image}\n\n"):
        assert read_answer(text.encode(), 1).images == (UpstreamImage(PNG, kept),)


@pytest.mark.parametrize("name", ["id", "quality", r"\ud83d"])
def test_half_of_a_surrogate_pair_anywhere_costs_no_image(name: str) -> None:
    text = f'{{"data":[{{"url":"{URL}"}}],"{name}":"\\udc08"}}'
    assert read_answer(text.encode(), 1).images == (UpstreamImage(URL),)
