"""The bodies of upstream calls with input images: exact in length, read once, and in little memory."""

import email
import json
import random
import re
import tracemalloc
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import InputUnavailableError
from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.inputs import InputContent, InputImage, MaskKind, UpstreamInput
from imagegen.providers.request_bodies import Base64Image, UpstreamBody, data_url, form_body, json_body, opened

EXTENSIONS = {PNG: "png", JPEG: "jpg", WEBP: "webp"}
FORM = re.compile(r"multipart/form-data; boundary=([0-9a-f]{32})")


@dataclass(frozen=True)
class Picture:
    """The content of an image, and the lengths of the blocks in which it comes, again and again."""

    data: bytes
    blocks: Sequence[int] = (65_536,)
    media_type: str = PNG

    @property
    def content(self) -> InputContent:
        return InputContent(self.media_type, len(self.data), self._read)

    @property
    def base64(self) -> str:
        return b64encode(self.data).decode()

    def _read(self) -> Iterator[bytes]:
        at, lengths = 0, cycle(self.blocks)
        while at < len(self.data):
            length = next(lengths)
            yield self.data[at : at + length]
            at += length


@dataclass(frozen=True)
class Part:
    name: str
    filename: str | None
    media_type: str | None
    content: bytes


def whole(body: UpstreamBody) -> bytes:
    """All blocks. Their length must be the declared one."""
    sent = b"".join(body.blocks)
    assert len(sent) == body.length
    return sent


def parts_of(body: UpstreamBody) -> list[Part]:
    """The fields of a form as Python's parser of e-mails reads them."""
    head = f"MIME-Version: 1.0\r\nContent-Type: {body.content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + whole(body))
    assert message.is_multipart()
    assert not message.defects
    return [_part(each) for each in message.get_payload()]


def _part(part: Any) -> Part:
    headers = {name: value.encode("ascii", "surrogateescape").decode() for name, value in part.raw_items()}
    found = re.fullmatch(r'form-data; name="([^"]*)"(?:; filename="([^"]*)")?', headers.pop("Content-Disposition"))
    assert found
    media_type = headers.pop("Content-Type", None)
    assert not headers
    assert not part.defects
    return Part(found[1], found[2], media_type, part.get_payload(decode=True))


PICTURES = st.builds(
    lambda size, seed, blocks, media_type: Picture(random.Random(seed).randbytes(size), (*blocks, 65_537), media_type),
    st.integers(0, 400_000) | st.integers(0, 9),
    st.integers(0, 9),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 57, 4_096, 65_535, 131_072]), max_size=4),
    st.sampled_from([PNG, JPEG, WEBP]),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ['"', "\\", "\r\n", "--\r\n--", "獺🦦\u2028", "%22", "\0", "</script>", "data:image/png;base64,"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PICTURES, max_size=4), TEXTS, TEXTS)
def test_json_has_each_image_as_base64_and_an_exact_length(pictures: list[Picture], text: str, prefix: str) -> None:
    images: list[Any] = [Base64Image(each.content, prefix) for each in pictures]
    values = [prefix + each.base64 for each in pictures]
    body = json_body({"text": text, "n": 2, "images": images, "deep": [{"first": images[:1]}, None], text: text})
    assert body.content_type == "application/json"
    expected = {"text": text, "n": 2, "images": values, "deep": [{"first": values[:1]}, None]} | {text: text}
    assert json.loads(whole(body)) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS | PICTURES), max_size=5))
def test_a_form_has_each_field_in_order_and_an_exact_length(fields: list[tuple[str, str | Picture]]) -> None:
    body = form_body([("first", "1"), *((name, _value(value)) for name, value in fields)])
    assert FORM.fullmatch(body.content_type)
    escaped = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})
    expected = [Part("first", None, None, b"1")]
    for name, value in fields:
        if isinstance(value, str):
            expected.append(Part(name.translate(escaped), None, None, value.encode()))
        else:
            file = f"image.{EXTENSIONS[value.media_type]}"
            expected.append(Part(name.translate(escaped), file, value.media_type, value.data))
    assert parts_of(body) == expected


def _value(value: str | Picture) -> str | InputContent:
    return value if isinstance(value, str) else value.content


@pytest.mark.parametrize("size", range(8))
@pytest.mark.parametrize("blocks", [(1,), (2,), (3,), (4,), (1, 2), (2, 0, 1), (7, 1)])
def test_base64_goes_on_across_the_borders_of_blocks(size: int, blocks: Sequence[int]) -> None:
    picture = Picture(bytes(range(size)), blocks)
    text = whole(json_body([Base64Image(picture.content)])).decode()
    assert text == f'["{picture.base64}"]'
    assert b64decode(text[2:-2], validate=True) == picture.data


def test_base64_is_text_of_a_data_url_only_with_its_prefix() -> None:
    picture = Picture(b"abc", media_type=WEBP)
    body = json_body([data_url(picture.content), Base64Image(picture.content)])
    assert json.loads(whole(body)) == ["data:image/webp;base64,YWJj", "YWJj"]


def test_a_text_that_has_the_boundary_of_another_form_changes_nothing() -> None:
    first = form_body([("prompt", "a")])
    boundary = first.content_type.rpartition("=")[2]
    forged = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="n"\r\n\r\n10\r\n--{boundary}--\r\n'
    second = form_body([("prompt", forged), ("image", Picture(forged.encode()).content)])
    assert [(part.name, part.content) for part in parts_of(second)] == [
        ("prompt", forged.encode()),
        ("image", forged.encode()),
    ]


def test_what_is_no_json_is_refused_before_anything_is_read() -> None:
    with pytest.raises(TypeError):
        json_body({"image": Picture(b"abc").content.blocks})


# How the contents are read


@dataclass
class Journal:
    """What happens to contents, in order."""

    said: list[str]

    def content(self, name: str, *blocks: bytes, media_type: str = PNG) -> InputContent:
        def read() -> Iterator[bytes]:
            self.said.append(f"{name} begins")
            try:
                yield from blocks
                self.said.append(f"{name} is whole")
            finally:
                self.said.append(f"{name} ends")

        return InputContent(media_type, sum(map(len, blocks)), read)


Build = Callable[[Sequence[InputContent]], UpstreamBody]
EACH_BODY = pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda contents: json_body({"images": [data_url(each) for each in contents]}), id="json"),
        pytest.param(lambda contents: form_body([("image[]", each) for each in contents]), id="form"),
    ],
)


@EACH_BODY
def test_contents_are_read_once_one_after_another_and_only_when_they_are_sent(build: Build) -> None:
    journal = Journal([])
    body = build([journal.content(name, b"ab", b"c") for name in ("first", "second")])
    assert journal.said == []
    next(body.blocks)
    assert journal.said == []  # the text before the first image
    for _ in body.blocks:
        pass
    assert journal.said == [f"{name} {what}" for name in ("first", "second") for what in ("begins", "is whole", "ends")]
    assert list(body.blocks) == []


@EACH_BODY
def test_a_body_that_is_not_sent_to_its_end_closes_the_content_that_is_open(build: Build) -> None:
    journal = Journal([])
    body = build([journal.content(name, b"abc", b"def") for name in ("first", "second")])
    for block in body.blocks:
        if block in (b"abc", b64encode(b"abc")):
            break
    assert journal.said == ["first begins"]
    body.blocks.close()
    assert journal.said == ["first begins", "first ends"]


@EACH_BODY
def test_a_content_that_breaks_off_ends_the_body_before_its_last_byte(build: Build) -> None:
    def read() -> Iterator[bytes]:
        yield b"abc"
        raise InputUnavailableError("broken")

    body, sent = build([InputContent(PNG, 3, read)]), list[bytes]()
    with pytest.raises(InputUnavailableError):
        sent.extend(body.blocks)
    assert 0 < sum(map(len, sent)) < body.length


@EACH_BODY
def test_sixteen_large_images_take_little_memory(build: Build) -> None:
    length, block = 8 * 1024 * 1024, 128 * 1024

    def read() -> Iterator[bytes]:
        for at in range(0, length, block):
            yield at.to_bytes(4) * (block // 4)

    tracemalloc.start()
    try:
        body = build([InputContent(PNG, length, read)] * 16)
        sent = sum(map(len, body.blocks))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == body.length > 16 * length
    assert peak < 4_000_000


# Opening


class Opening(Exception):  # noqa: N818  # the failure of the tests
    pass


def inputs(journal: Journal, *names: str, broken: str = "") -> list[UpstreamInput]:
    def of(name: str) -> UpstreamInput:
        @contextmanager
        def open_(deadline: Deadline, media_types: Sequence[str], mask: MaskKind | None) -> Iterator[InputContent]:
            if name == broken:
                raise Opening
            journal.said.append(f"{name} opens for {deadline.at:g} as {'/'.join(media_types)} {mask}")
            try:
                yield journal.content(name)
            finally:
                journal.said.append(f"{name} closes")

        return UpstreamInput(InputImage("image", name, "", PNG, 0, 1, 1), open_)

    return [of(name) for name in names]


def test_inputs_are_opened_in_their_order_and_closed_at_the_end() -> None:
    journal = Journal([])
    with ExitStack() as closing:
        contents = opened(inputs(journal, "a", "b"), closing, Deadline(7), (PNG, JPEG), mask="black")
        assert len(contents) == 2
        journal.said.append("now")
    each = "opens for 7 as image/png/image/jpeg black"
    assert journal.said == [f"a {each}", f"b {each}", "now", "b closes", "a closes"]


def test_if_one_input_cannot_be_opened_those_before_are_closed() -> None:
    journal = Journal([])
    with pytest.raises(Opening), ExitStack() as closing:
        opened(inputs(journal, "a", "b", "c", broken="b"), closing, Deadline(7), (PNG,))
    assert journal.said == ["a opens for 7 as image/png None", "a closes"]
