"""A chat completion of Gemini gives its image, or a failure that says that money may have been spent."""

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
from imagegen.domain.redaction import MOST_CHARACTERS
from imagegen.providers.gemini_chat.answers import read_answer

URL = "https://images.example/1.png"
PNG, OTHER = b"\x89PNG and more", b"\x89PNG and another"
# Its base64 has both characters that the URL-safe alphabet replaces, and padding.
ODD_PNG = b"\x89PNG\xfb\xff\xbe\xfb\xff\xfe>>>?"
ODD = b64encode(ODD_PNG).decode()
assert {"+", "/", "="} < set(ODD)
URL_SAFE = str.maketrans("+/", "-_")
LOST = errors.UpstreamConnectionLostError("lost")
USAGE = {"prompt_tokens": 4, "completion_tokens": 1290, "total_tokens": 1294}


def data_url(content: bytes = PNG) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"


def image_part(url: object = None) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url or data_url()}}


def completion(content: object = None, *, finish_reason: object = "stop", native: object = None, **message: Any) -> Any:
    choice = {"index": 0, "finish_reason": finish_reason, "native_finish_reason": native}
    return {"id": "chatcmpl-1", "choices": [choice | {"message": {"role": "assistant", "content": content, **message}}]}


def read(answer: object, lost: errors.MoneySpentError | None = None) -> UpstreamImages:
    """Reads an answer: JSON if it is not bytes."""
    return read_answer(bytearray(answer if isinstance(answer, bytes) else msgspec.json.encode(answer)), lost)


def source(content: object = None, **message: Any) -> str | bytes | None:
    (image,) = read(completion(content, **message)).images
    assert image == UpstreamImage(image.source)
    return image.source


def failure(answer: object, lost: errors.MoneySpentError | None = None) -> errors.MoneySpentError:
    with pytest.raises(errors.MoneySpentError) as caught:
        read(answer, lost)
    return caught.value


# Where the image is


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f"Here it is.\n![image]({data_url()})", PNG),
        (f"![]({data_url()})", PNG),
        (f"![a](<{data_url()}>)", PNG),
        (f"![a]( {data_url()} )", PNG),
        (f'![a]({data_url()} "a cat")', PNG),
        (f"![image [1]]({data_url()})", PNG),
        (f"![ ![a]({data_url()})", PNG),
        (f"{'A long story. ' * 10_000}![a]({data_url()}){' The end.' * 10_000}", PNG),
        (f"![image]({URL})", URL),
        (f"![image](<{URL}>)", URL),
        (f'![image]({URL} "a cat")', URL),
        (f"[the page](https://images.example/page) ![image]({URL})", URL),
        ("![image](javascript:alert(1))", "javascript:alert(1"),  # the guard of URLs refuses it
        # Without Markdown
        (data_url(), PNG),
        (f'<img src="{data_url()}">', PNG),
        # A list of parts
        ([{"type": "text", "text": f"Here it is.\n![image]({URL})"}], URL),
        ([{"type": "text", "text": "Here it is."}, image_part()], PNG),
        ([image_part(URL)], URL),
        ([{"type": "image_url", "image_url": URL}], URL),
        (["Here it is.", image_part()], PNG),
        ([f"![image]({URL})"], URL),
        ([None, 7, [], {}, {"text": 7}, {"image_url": 7}, {"image_url": {"url": 7}}, image_part()], PNG),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_the_image_is_found_in_the_content(content: object, found: str | bytes) -> None:
    assert source(content) == found


@pytest.mark.parametrize(
    "images",
    [
        [image_part()],
        [{"image_url": data_url()}],
        [{"index": 0, "type": "image_url", "image_url": {"url": data_url(), "detail": "auto"}}],
        [data_url()],
        [{"type": "image", "image": data_url()}],
        [None, 7, "", {}, {"image_url": None}, image_part()],
        image_part(),
    ],
    ids=lambda images: str(images)[:60],
)
@pytest.mark.parametrize("content", [None, "", "Here it is.", [{"type": "text", "text": "Here it is."}], 7])
def test_the_image_is_found_in_the_list_of_images(content: object, images: object) -> None:
    assert source(content, images=images) == PNG


@pytest.mark.parametrize(
    "base64",
    [
        ODD,
        ODD.rstrip("="),
        ODD.translate(URL_SAFE),
        ODD.translate(URL_SAFE).rstrip("="),
        f"{ODD[:4]}\n{ODD[4:]}",
        f"{ODD[:4]}\r\n{ODD[4:]}\r\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "data:image/svg+xml;base64,", "DATA:image/png;base64,"])
@pytest.mark.parametrize("place", ["text", "part", "images"])
def test_base64_of_any_dialect_is_an_image(base64: str, prefix: str, place: str) -> None:
    url = prefix + base64
    answer = {
        "text": completion(f"Here it is.\n![image]({url})"),
        "part": completion([image_part(url)]),
        "images": completion("Here it is.", images=[image_part(url)]),
    }[place]
    body = msgspec.json.encode(answer)
    # PHP escapes the slash, .NET the plus.
    for spelled in (body, body.replace(b"/", rb"\/"), body.replace(b"+", rb"\u002B")):
        assert [image.source for image in read(spelled).images] == [ODD_PNG]


def test_the_first_usable_image_is_the_image() -> None:
    bad = ["data:image/png;base64,%%%%", "data:image/png;base64,AAAAA", "https://images.example/é", "data:,"]
    text = " ".join(f"![image]({url})" for url in (*bad, data_url(OTHER), data_url(), URL))
    assert source(text, images=[image_part()]) == OTHER
    assert source(" ".join(f"![image]({url})" for url in bad), images=[image_part(URL)]) == URL


@pytest.mark.parametrize("index", range(3))
def test_a_url_of_the_upstream_never_stands_for_another_image(index: int) -> None:
    text = f"![image](data:,{index}) ![image]({data_url(OTHER)})"
    assert source(text, images=[image_part(data_url(content)) for content in (PNG, PNG)]) == OTHER
    assert type(failure(completion(f"![image](data:,{index})"))) is errors.UpstreamAnswerInvalidError


def test_the_image_of_the_first_choice_counts() -> None:
    choices = [completion(f"![image]({url})")["choices"][0] for url in (URL, f"{URL}?2")]
    for unreadable in ([], [None], [7, "x"]):
        assert [image.source for image in read({"choices": [*unreadable, *choices]}).images] == [URL]


@pytest.mark.parametrize(
    ("usage", "kept"),
    [
        (USAGE, (4, 1290, 1294)),
        (USAGE | {"input_tokens": 0, "output_tokens": 0}, (4, 1290, 1294)),
        ({"prompt_tokens": 4, "completion_tokens": 1290}, (4, 1290, 1294)),
        *[(None, None), (7, None), ([], None), ({}, None), ({"prompt_tokens": 4}, None)],
        (USAGE | {"completion_tokens": -1}, None),
    ],
    ids=str,
)
def test_the_token_counts_are_kept_if_they_are_whole(usage: object, kept: object) -> None:
    found = read(completion(f"![image]({URL})") | {"usage": usage}).usage
    assert found == (
        kept
        if kept is None
        else {
            "input_tokens": 4,
            "output_tokens": 1290,
            "total_tokens": 1294,
            "input_tokens_details": {"text_tokens": 4, "image_tokens": 0},
        }
    )


# No image

NOTHING: tuple[object, ...] = (None, 7, "x", [], {}, [None], [{}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("I cannot draw that.", "I cannot draw that."),
        ("  I cannot\n\tdraw \x00 that. ", "I cannot draw   that."),
        ([{"type": "text", "text": "I cannot"}, {"type": "text", "text": "draw that."}], "I cannot draw that."),
        ("No: sk-Q7vXw2LmN8dRtYp4 at https://10.0.0.1/x", "No: [redacted] at [redacted]"),
        ("[not an image](https://images.example/1.png)", "[not an image]([redacted]"),
        ("no " * 1_000_000, "no " * (MOST_CHARACTERS // 3 - 1) + "…"),
        ("x" * 1_000_000, "…"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_text_in_place_of_an_image_is_told_without_secrets(content: object, said: str) -> None:
    found = failure(completion(content))
    assert type(found) is errors.UpstreamNoImageError
    assert found.message.removeprefix("The image model answered with text and no image: ") == said


@pytest.mark.parametrize(
    "answer",
    [
        *map(completion, (None, "", " \n", [], {}, 7, [{"type": "text", "text": ""}])),
        *(completion(None, images=images) for images in NOTHING),
        *({"choices": [{"message": message}]} for message in NOTHING),
        *({"choices": [choice]} for choice in ({}, {"finish_reason": "stop"})),
        completion(None, refusal="No.", finish_reason=7, native=["x"]),
    ],
    ids=str,
)
def test_an_answer_without_text_and_image_has_no_image(answer: object) -> None:
    found = failure(answer)
    assert (type(found), found.message) == (errors.UpstreamNoImageError, "The image model's answer has no image.")


POLICY = ["SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "RECITATION", "SPII"]
POLICY += ["IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "content_filter"]


@pytest.mark.parametrize("reason", POLICY)
def test_an_image_that_the_safety_system_kept_back_is_named_as_such(reason: str) -> None:
    for reasons in ({"finish_reason": reason}, {"native": reason}, {"finish_reason": reason.lower(), "native": 7}):
        for content in (None, "I cannot draw that."):
            found = failure(completion(content, **reasons), LOST)
            assert (type(found), found.param) == (errors.ImageFilteredError, "prompt")
    assert source(f"![image]({URL})", finish_reason=reason) == URL


@pytest.mark.parametrize("reason", ["NO_IMAGE", "IMAGE_OTHER", "OTHER", "MAX_TOKENS", "length", "stop", None, 7])
def test_any_other_reason_is_no_fault_of_the_prompt(reason: object) -> None:
    assert type(failure(completion(None, finish_reason=reason, native=reason))) is errors.UpstreamNoImageError


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("https://images.example/é", errors.ImageUrlRefusedError),
        (f"https://images.example/{'a' * 9_000}", errors.ImageUrlRefusedError),
        *(
            (f"data:image/png;base64,{base64}", errors.UpstreamAnswerInvalidError)
            for base64 in ("", "%%%%", "AAAAA", "AA=A", "é", f"x{URL}")
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_unusable_image_is_the_failure(url: str, error: type[errors.MoneySpentError]) -> None:
    for answer in (completion(f"![image]({url})"), completion(None, images=[image_part(url)])):
        assert type(failure(answer)) is error


# Bodies that are not an answer

WHOLE = msgspec.json.encode(completion(f"![image]({data_url()})"))
NOT_ANSWERS = [
    *(b"", b" \n", b"OK", b"<!doctype html><html></html>", b"\xff\xfe\x00", b"[]", b"null", b"{}", b"[" * 50_000),
    *(b'{"choices": null}', b'{"choices": []}', b'{"choices": {}}', b'{"choices": [null, 7, "x", []]}'),
    *(b'{"error": {"message": "x"}}', WHOLE[:-1], WHOLE[: len(WHOLE) // 2], b'{"choices":' * 50_000),
]


@pytest.mark.parametrize("body", NOT_ANSWERS, ids=lambda body: repr(body[:40]))
def test_any_other_body_is_invalid_or_lost(body: bytes) -> None:
    assert type(failure(body)) is errors.UpstreamAnswerInvalidError
    assert failure(body, LOST) is LOST


def test_a_whole_answer_of_a_broken_connection_gives_its_image_and_without_one_it_is_lost() -> None:
    assert [image.source for image in read(WHOLE, LOST).images] == [PNG]
    assert [image.source for image in read(WHOLE + b"\n\ndata: [DONE]", LOST).images] == [PNG]
    assert failure(completion("I cannot"), LOST) is LOST


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\udc08", rb"\uD83D\ud83d"])
def test_half_of_a_surrogate_pair_loses_neither_the_image_nor_the_text(half: bytes) -> None:
    assert [image.source for image in read(WHOLE.replace(b"![image]", half + b"![image]")).images] == [PNG]
    said = failure(msgspec.json.encode(completion("A cat")).replace(b"A cat", b"A cat " + half)).message
    assert "A cat \ufffd" in said


def test_text_that_is_not_utf_8_loses_no_image() -> None:
    assert [image.source for image in read(WHOLE.replace(b"![image]", b"\xff![image]")).images] == [PNG]


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"content":%s}}]}' % DEEP,
        b'{"choices":[{"message":{"content":null,"images":%s}}]}' % DEEP,
        b'{"choices":[{"message":{"content":null},"finish_reason":%s}]}' % DEEP,
        b'{"choices":%s}' % DEEP,
        b'{"choices":[{"message":{"content":"![image](data:,%s)"}}]}' % (b"9" * 5_000),  # more digits than `int` reads
    ],
    ids=lambda body: repr(body[:60]),
)
def test_a_hostile_value_raises_no_other_exception(body: bytes) -> None:
    with suppress(errors.MoneySpentError):
        read(body)


@pytest.mark.parametrize(
    "unit",
    [
        *("![", "![a](", "![a](<", "![a]( ", "![a](data:", "![]", "![[]", "[](", "](", "![](é) ", "![](data:,) "),
        *(" ", "x", "\\", '"', "data:image/", "data:image/png;base64,", "data:image/png;base64,A ", "é", "\x00"),
    ],
    ids=repr,
)
def test_a_megabyte_of_marks_is_read_in_linear_time(unit: str) -> None:
    """Quadratic time is minutes here. test_patterns.py names the pattern that takes it."""
    text = unit * (1_000_000 // len(unit))
    for answer in (completion(text), completion([{"text": text}]), completion(None, images=[text])):
        with suppress(errors.MoneySpentError):
            read(answer)


def test_only_so_many_images_are_tried() -> None:
    """Each takes memory, and an upstream could send millions."""
    bad = "![image](https://images.example/é) "
    assert source(bad * 99 + f"![image]({URL})") == URL
    assert type(failure(completion(bad * 100 + f"![image]({URL})"))) is errors.ImageUrlRefusedError
    assert source(f"{data_url()} " * 1_000) == PNG


MARKS = ("![", "]", "(", ")", "<", ">", " ", "\n", "é", "\ud83d", "\x00", "a", "%%", "=", "https://")
PIECES = st.sampled_from([*MARKS, "data:", "data:,", "data:,0", "data:image/png;base64,", URL, data_url()])
TEXTS = st.lists(PIECES, max_size=12).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "image_url", "url", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("content", "images"), VALUES)), VALUES, VALUES)
@settings(deadline=None, max_examples=200)
def test_any_message_gives_an_image_or_a_failure(message: object, reason: object, usage: object) -> None:
    answer = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
    try:
        (image,) = read(json.dumps(answer).encode()).images
    except errors.MoneySpentError:
        return
    assert image.source
