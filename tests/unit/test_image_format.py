import random
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegen.domain.errors import ImageTruncatedError, NotAnImageError
from imagegen.domain.image_format import GIF, HEAD_BYTES, JPEG, PNG, WEBP, checked, media_type


def painted(kind: str, frames: int = 1) -> bytes:
    """An image of noise, which no format compresses."""
    noise = random.Random(7)
    images = [Image.frombytes("RGB", (24, 24), noise.randbytes(24 * 24 * 3)) for _ in range(frames)]
    file = BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(file, kind, **more)
    return file.getvalue()


IMAGES = {
    "png": (PNG, painted("PNG")),
    "jpeg": (JPEG, painted("JPEG")),
    "webp": (WEBP, painted("WEBP")),
    "gif": (GIF, painted("GIF")),
    "animated gif": (GIF, painted("GIF", frames=3)),
}
KINDS = pytest.mark.parametrize(("kind", "image"), IMAGES.values(), ids=IMAGES)
WHOLE = 1_000_000
BLOCK_SIZES = pytest.mark.parametrize("size", [1, 7, 1000, WHOLE])


def split(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def until_refused(blocks: list[bytes], kind: str, length: int) -> list[bytes]:
    """The blocks before the refusal."""
    came: list[bytes] = []

    def read() -> None:
        for block in checked(blocks, kind, length):
            came.append(block)  # noqa: PERF402 - keeps the blocks before an error

    with pytest.raises(ImageTruncatedError):
        read()
    return came


def cuts(image: bytes) -> Iterator[int]:
    """Points within an image, and each of the last 32, where its end marker is incomplete."""
    yield from range(1, len(image) - 32, 127)
    yield from range(len(image) - 32, len(image))


# The kind of an image


@KINDS
def test_an_image_is_known_by_its_first_bytes(kind: str, image: bytes) -> None:
    assert media_type(image) == kind
    assert media_type(image[:HEAD_BYTES]) == kind


def test_both_versions_of_gif_are_gif() -> None:
    assert media_type(b"GIF87a" + bytes(10)) == GIF
    assert media_type(b"GIF89a" + bytes(10)) == GIF


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!DOCTYPE html><html></html>", b'{"error": "expired"}'),
        *(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", b"RIFF\x24\x08\x00\x00WAVEfmt ", b"RIFF", b"GIF88a" + bytes(10), b"\xff\xd8"),
        *(b"\x89PNG\r\n\x1a", b"\x89PNG\n\x1a\n" + bytes(9), b" \x89PNG\r\n\x1a\n" + bytes(7)),
        *(b"II*\x00" + bytes(12), b"\x00\x00\x00\x1cftypavif" + bytes(4)),
    ],
    ids=repr,
)
def test_content_other_than_png_jpeg_webp_and_gif_is_refused(head: bytes) -> None:
    with pytest.raises(NotAnImageError):
        media_type(head)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PDF"])
def test_a_real_image_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(NotAnImageError):
        media_type(painted(kind)[:HEAD_BYTES])


@given(st.binary(max_size=32))
def test_any_bytes_are_an_image_of_a_known_kind_or_refused(head: bytes) -> None:
    try:
        kind = media_type(head)
    except NotAnImageError:
        return
    assert kind in {PNG, JPEG, WEBP, GIF}


# Whole images


@KINDS
@BLOCK_SIZES
def test_a_whole_image_passes_unchanged(kind: str, image: bytes, size: int) -> None:
    assert list(checked(split(image, size), kind, len(image))) == split(image, size)


@given(st.sampled_from(sorted(IMAGES)), st.lists(st.integers(0, 20_000), max_size=20))
@settings(deadline=None)
def test_a_whole_image_passes_in_any_split(name: str, points: list[int]) -> None:
    kind, image = IMAGES[name]
    edges = sorted({0, len(image), *(point for point in points if point < len(image))})
    blocks = [image[start:end] for start, end in pairwise(edges)]
    assert b"".join(checked(blocks, kind, len(image))) == image


@KINDS
@BLOCK_SIZES
def test_an_image_that_ends_too_early_never_yields_its_last_block(kind: str, image: bytes, size: int) -> None:
    """Even if the length matches: an upstream may declare the length of an unfinished image."""
    for cut in cuts(image):
        blocks = split(image[:cut], size)
        for length in (len(image), cut):
            assert until_refused(blocks, kind, length) == blocks[:-1]


@KINDS
@BLOCK_SIZES
def test_an_image_of_another_length_than_declared_is_refused(kind: str, image: bytes, size: int) -> None:
    blocks = split(image, size)
    for difference in (-1, 1, 1000):
        assert until_refused(blocks, kind, len(image) + difference) == blocks[:-1]


@KINDS
@BLOCK_SIZES
def test_padding_behind_the_end_is_tolerated(kind: str, image: bytes, size: int) -> None:
    for padding in (1, 16, 1000):
        padded = image + bytes(padding)
        assert b"".join(checked(split(padded, size), kind, len(padded))) == padded


@pytest.mark.parametrize("kind", [PNG, JPEG, WEBP, GIF])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_an_empty_image_is_refused(kind: str, length: int) -> None:
    assert until_refused([], kind, length) == []


@KINDS
def test_a_block_is_passed_on_as_soon_as_the_next_one_arrives(kind: str, image: bytes) -> None:
    taken = 0

    def blocks() -> Iterator[bytes]:
        nonlocal taken
        for block in split(image, 1024):
            taken += 1
            yield block

    for given_out, _ in enumerate(checked(blocks(), kind, len(image)), start=1):
        assert taken <= given_out + 1
