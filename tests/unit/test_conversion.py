import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageDraw

from imagegen.domain.image_format import GIF, JPEG, PNG, WEBP
from imagegen.imaging import conversion
from imagegen.imaging.conversion import UnusableImageError, black_mask, converted, transparent_mask
from tests.conftest import ROOT

Size = tuple[int, int]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def written(kind: str, image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content))
    image.load()
    return image


def photo(size: Size = (40, 24)) -> Image.Image:
    """A smooth picture without symmetry, which JPEG keeps well."""
    red = Image.linear_gradient("L").resize(size)
    green = Image.radial_gradient("L").resize(size)
    return Image.merge("RGB", (red, green, red.rotate(90, expand=False).resize(size)))


def difference(first: Image.Image, second: Image.Image) -> float:
    """The mean difference of the samples of two images of one size and mode."""
    assert (first.mode, first.size) == (second.mode, second.size)
    histogram = ImageChops.difference(first, second).histogram()
    samples = sum(histogram)
    return sum((place % 256) * count for place, count in enumerate(histogram)) / samples


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


# Images


def test_a_jpeg_becomes_a_png_with_the_same_pixels() -> None:
    content = written("JPEG", photo())
    kind, result = converted(content, (PNG,))
    assert (kind, opened(result).format) == (PNG, "PNG")
    assert difference(opened(result), opened(content)) == 0


@pytest.mark.parametrize(
    ("media_types", "opaque", "transparent"),
    [
        ((PNG,), PNG, PNG),
        ((JPEG,), JPEG, JPEG),
        ((PNG, JPEG), PNG, PNG),
        ((JPEG, PNG), JPEG, PNG),
        ((GIF, JPEG, PNG), JPEG, PNG),
    ],
)
def test_the_first_type_that_keeps_the_image_is_chosen(
    media_types: tuple[str, ...], opaque: str, transparent: str
) -> None:
    for mode, alpha, expected in (("RGB", 0, opaque), ("RGBA", 255, opaque), ("RGBA", 254, transparent)):
        image = photo()
        if mode == "RGBA":
            image.putalpha(alpha)
        kind, result = converted(written("WEBP", image, lossless=True), media_types)
        assert kind == expected
        assert opened(result).format == {PNG: "PNG", JPEG: "JPEG"}[kind]


def test_transparency_is_kept_in_a_png_and_is_white_in_a_jpeg() -> None:
    image = Image.new("RGBA", (32, 8), (200, 0, 0, 255))
    image.paste((200, 0, 0, 0), (8, 0, 16, 8))
    image.paste((200, 0, 0, 128), (16, 0, 24, 8))
    content = written("WEBP", image, lossless=True, exact=True)
    assert difference(opened(converted(content, (PNG, JPEG))[1]), image) == 0
    result = opened(converted(content, (JPEG,))[1])
    assert result.mode == "RGB"
    for x, expected in ((4, (200, 0, 0)), (12, WHITE), (20, (227, 127, 127)), (28, (200, 0, 0))):
        found = result.getpixel((x, 4))
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_becomes_a_jpeg(mode: str) -> None:
    image = photo()
    grey = image.convert("L")
    source = grey16(grey) if mode == "I;16" else image.convert(mode)
    kind, result = converted(written("PNG", source), (JPEG,))
    expected = grey if mode == "I;16" else source.convert("L" if mode in ("1", "L", "LA") else "RGB")
    assert kind == JPEG
    assert difference(opened(result), expected) < (40 if mode == "1" else 6)


def grey16(image: Image.Image) -> Image.Image:
    """A grey image with samples of 16 bits, whose upper bytes are the samples of the image and lower bytes differ."""
    grey = image.convert("L").tobytes()
    return Image.frombytes("I;16", image.size, bytes(byte for value in grey for byte in (255 - value, value)))


# By orientation, how a picture is turned to be stored: the inverse of what a viewer does.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "media_type"), [("JPEG", PNG), ("WEBP", PNG), ("PNG", JPEG)])
def test_the_pixels_are_turned_as_exif_says(kind: str, media_type: str, orientation: int) -> None:
    """The corners of the picture as it is seen: red, green, blue, white."""
    seen = Image.new("RGB", (64, 48), BLACK)
    corners = {(0, 0): (255, 0, 0), (48, 0): (0, 255, 0), (0, 32): (0, 0, 255), (48, 32): WHITE}
    for (x, y), colour in corners.items():
        seen.paste(colour, (x, y, x + 16, y + 16))
    stored = seen if orientation == 1 else seen.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = opened(converted(written(kind, stored, exif=exif, quality=100), (media_type,))[1])
    assert result.size == seen.size
    assert difference(result, seen) < 3
    assert not result.getexif()


@pytest.mark.filterwarnings("ignore:.*EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12"]
)
def test_exif_that_is_not_valid_changes_nothing(exif: bytes) -> None:
    image = photo()
    assert opened(converted(written("PNG", image, exif=exif), (JPEG,))[1]).size == image.size


def test_a_profile_is_kept_if_it_fits_the_new_pixels() -> None:
    def kept(image: Image.Image, kind: str, media_type: str, profile: bytes) -> bool:
        result = opened(converted(written(kind, image, icc_profile=profile), (media_type,))[1])
        assert result.info.get("icc_profile") in (None, profile)
        return "icc_profile" in result.info

    image = photo()
    assert kept(image, "JPEG", PNG, SRGB)
    assert kept(image, "PNG", JPEG, SRGB)
    assert kept(image.convert("L"), "JPEG", PNG, GREY_PROFILE)
    assert not kept(image.convert("L"), "JPEG", PNG, SRGB)
    assert not kept(image.convert("CMYK"), "JPEG", PNG, SRGB[:16] + b"CMYK" + SRGB[20:])
    assert not kept(image, "JPEG", PNG, b"short")


def test_nothing_else_of_the_metadata_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010E] = "canary"
    content = written("JPEG", photo(), exif=exif, comment=b"canary", xmp=b"canary")
    assert content.count(b"canary") == 3
    assert b"canary" not in converted(content, (PNG,))[1]
    gif = written("GIF", photo(), comment=b"canary")
    assert b"canary" not in converted(gif, (JPEG,))[1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation_is_kept(kind: str) -> None:
    first, second = Image.new("RGB", (20, 10), (200, 0, 0)), Image.new("RGB", (20, 10), (0, 200, 0))
    content = written(kind, first, save_all=True, append_images=[second], lossless=True)
    assert difference(opened(converted(content, (PNG,))[1]), first) == 0


def test_a_jpeg_of_several_images_is_its_first_one() -> None:
    content = written("MPO", photo(), save_all=True, append_images=[photo((8, 8))])
    assert difference(opened(converted(content, (PNG,))[1]), opened(content)) == 0


def test_cmyk_becomes_rgb() -> None:
    content = written("JPEG", photo().convert("CMYK"), quality=100)
    assert difference(opened(converted(content, (PNG,))[1]), photo()) < 2


def test_a_gif_with_transparency_becomes_a_png_with_alpha() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    result = opened(converted(written("GIF", image, transparency=1), (JPEG, PNG))[1])
    assert result.mode == "RGBA"
    assert [result.getpixel((x, 0)) for x in (0, 1, 2)] == [(255, 0, 0, 255), (0, 255, 0, 0), (255, 0, 0, 255)]


def test_only_png_and_jpeg_are_written() -> None:
    with pytest.raises(ValueError, match="PNG and JPEG"):
        converted(written("JPEG", photo()), (WEBP,))


# Masks

SIZES: list[Size] = [(1, 1), (1, 7), (7, 1), (2, 2), (8, 3), (9, 9), (17, 5), (33, 31)]


def marked(size: Size, seed: int = 1) -> Image.Image:
    """Noise of 0 and 255, with at least one 0."""
    noise = random.Random(seed)
    values = [noise.choice((0, 255)) for _ in range(size[0] * size[1])]
    values[noise.randrange(len(values))] = 0
    return Image.frombytes("L", size, bytes(values))


def edges(size: Size) -> Image.Image:
    """A mask that changes only what is not on the edge, or only the edge of a small one."""
    image = Image.new("L", size, 255)
    inner = (1, 1, size[0] - 2, size[1] - 2)
    if min(size) > 2:
        ImageDraw.Draw(image).rectangle(inner, fill=0)
    else:
        image.putpixel((0, 0), 0)
    return image


def varied(mask: Image.Image, black: Iterable[int], white: Iterable[int]) -> Image.Image:
    """The mask with all these values in turn in place of 0 and 255."""
    blacks, whites = list(black), list(white)
    values = mask.tobytes()
    turned = (
        blacks[place % len(blacks)] if value == 0 else whites[place % len(whites)] for place, value in enumerate(values)
    )
    return Image.frombytes("L", mask.size, bytes(turned))


def palette(mask: Image.Image, *, white_first: bool = False) -> Image.Image:
    white = 0 if white_first else 1
    image = Image.frombytes("P", mask.size, mask.point([1 - white] * 255 + [white]).tobytes())
    image.putpalette([*WHITE, *BLACK] if white_first else [*BLACK, *WHITE])
    return image


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(mask: Image.Image, colour: int, depth: int, changed: int, kept: int, key: bytes = b"") -> bytes:
    """A PNG of any colour type and depth, with the bits of a pixel that changes, and those of one that is kept."""
    bits_of_pixel = depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    width, height = mask.size
    values, rows = mask.tobytes(), []
    for start in range(0, width * height, width):
        pixels = values[start : start + width]
        bits = "".join(format(kept if value else changed, f"0{bits_of_pixel}b") for value in pixels)
        row = bits.ljust(-(-len(bits) // 8) * 8, "0")
        rows.append(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big"))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"tRNS", key) if key else b"") + data + chunk(b"IEND", b"")


def with_alpha(mask: Image.Image, mode: str = "RGBA") -> Image.Image:
    """Noise whose alpha is the mask."""
    noise = random.Random(3).randbytes(mask.size[0] * mask.size[1])
    image = Image.frombytes("L", mask.size, noise).convert(mode)
    image.putalpha(mask)
    return image


def opaque(mask: Image.Image) -> Image.Image:
    return Image.new("L", mask.size, 255)


def one_colour(mask: Image.Image) -> Image.Image:
    """The colour (9, 8, 7) where the mask changes, and almost the same elsewhere."""
    return Image.composite(Image.new("RGB", mask.size, (9, 8, 6)), Image.new("RGB", mask.size, (9, 8, 7)), mask)


GREYS = [0, 1, 62, 63], [192, 193, 254, 255]
BLACK_AND_WHITE: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda mask: written("PNG", mask),
    "shades of grey": lambda mask: written("PNG", varied(mask, *GREYS)),
    "one bit": lambda mask: written("PNG", mask.convert("1")),
    "grey of 2 bits": lambda mask: raw_png(mask, 0, 2, 0, 3),
    "grey of 4 bits": lambda mask: raw_png(mask, 0, 4, 3, 12),
    "grey of 16 bits": lambda mask: raw_png(mask, 0, 16, 0x3FFF, 0xC000),
    "colour": lambda mask: written("PNG", mask.convert("RGB")),
    "dark and light colours": lambda mask: written(
        "PNG", Image.merge("RGB", [mask, varied(mask, *GREYS), varied(mask, [63], [192])])
    ),
    "colour of 16 bits": lambda mask: raw_png(mask, 2, 16, 0x3FFF, 0xC000_FFFF_D000),
    "palette": lambda mask: written("PNG", palette(mask), bits=1),
    "palette, white first": lambda mask: written("PNG", palette(mask, white_first=True)),
    "grey and opaque alpha": lambda mask: written("PNG", Image.merge("LA", (mask, opaque(mask)))),
    "colour and opaque alpha": lambda mask: written("PNG", Image.merge("RGBA", (mask, mask, mask, opaque(mask)))),
    "opaque palette": lambda mask: written("PNG", palette(mask), transparency=b"\xff\xff"),
    "lossless webp": lambda mask: written("WEBP", mask.convert("RGB"), lossless=True),
    "gif": lambda mask: written("GIF", mask),
    "jpeg": lambda mask: written("JPEG", mask, quality=100),
    "cmyk jpeg": lambda mask: written("JPEG", mask.convert("CMYK"), quality=100),
}
TRANSPARENT: dict[str, Callable[[Image.Image], bytes]] = {
    "alpha": lambda mask: written("PNG", with_alpha(mask)),
    "grey with alpha": lambda mask: written("PNG", with_alpha(mask, "L")),
    "alpha of many values": lambda mask: written("PNG", with_alpha(varied(mask, [0], range(1, 256)))),
    "alpha of 16 bits": lambda mask: raw_png(mask, 6, 16, 0xFFFF_0000_0000, 0xFFFF_0000_0100),
    "grey with alpha of 16 bits": lambda mask: raw_png(mask, 4, 16, 0x7F00_0000, 0x7F00_FFFF),
    "transparent index": lambda mask: written("PNG", palette(mask), transparency=0),
    "transparent last index": lambda mask: written("PNG", palette(mask, white_first=True), transparency=1),
    "alpha of the palette": lambda mask: written("PNG", palette(mask), transparency=b"\0\x01"),
    "transparent white": lambda mask: written("PNG", ImageChops.invert(mask), transparency=255),
    "transparent one-bit white": lambda mask: raw_png(mask, 0, 1, 1, 0, b"\0\1"),
    "transparent grey of 2 bits": lambda mask: raw_png(mask, 0, 2, 2, 1, b"\0\2"),
    "transparent grey of 4 bits": lambda mask: raw_png(mask, 0, 4, 7, 9, b"\0\7"),
    "transparent grey of 16 bits": lambda mask: raw_png(mask, 0, 16, 0x1234, 0x1235, b"\x12\x34"),
    "transparent colour": lambda mask: written("PNG", one_colour(mask), transparency=(9, 8, 7)),
    "transparent colour of 16 bits": lambda mask: raw_png(
        mask, 2, 16, 0x1234_5678_9ABC, 0x1234_5678_9BBC, b"\x12\x34\x56\x78\x9a\xbc"
    ),
    "transparent gif": lambda mask: written("GIF", palette(mask, white_first=True), transparency=1),
    "transparent webp": lambda mask: written("WEBP", with_alpha(mask), lossless=True),
    "transparent lossy webp": lambda mask: written("WEBP", with_alpha(mask), quality=50),
}
SOURCES = BLACK_AND_WHITE | TRANSPARENT


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_a_mask_of_every_kind_marks_the_same_pixels_in_both_kinds(
    source: Callable[[Image.Image], bytes], size: Size
) -> None:
    for mask in (marked(size), edges(size), Image.new("L", size, 0)):
        content = source(mask)
        black = opened(black_mask(content))
        assert (black.format, black.mode, black.info) == ("PNG", "L", {})
        assert black.tobytes() == mask.tobytes()
        transparent = opened(transparent_mask(content))
        assert (transparent.format, transparent.mode, transparent.info) == ("PNG", "RGBA", {})
        assert transparent.getchannel("A").tobytes() == mask.tobytes()


@pytest.mark.parametrize("change", [black_mask, transparent_mask])
def test_a_converted_mask_is_converted_again_without_a_change(change: Callable[[bytes], bytes]) -> None:
    content = written("PNG", marked((31, 7)))
    for step in (black_mask, transparent_mask):
        assert change(step(content)) == change(content)


def test_a_mask_is_turned_as_exif_says() -> None:
    mask = marked((5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    result = opened(black_mask(written("PNG", mask.rotate(90, expand=True), exif=exif)))
    assert (result.size, result.tobytes()) == (mask.size, mask.tobytes())


def grey_at(value: int, mode: str = "L") -> bytes:
    image = Image.new("L", (9, 9), 255)
    image.putpixel((0, 0), 0)
    image.putpixel((8, 8), value)
    return written("PNG", image.convert(mode))


NEITHER = {
    "a dark grey": grey_at(64),
    "a light grey": grey_at(191),
    "a grey in colour": grey_at(128, "RGB"),
    "a grey below opaque alpha": grey_at(128, "LA"),
    "red": written("PNG", Image.new("RGB", (3, 3), (255, 0, 0))),
    "blue": written("PNG", Image.new("RGB", (3, 3), (0, 0, 255))),
    "green and nothing else in one pixel": written(
        "PNG", Image.merge("RGB", (marked((9, 9)), marked((9, 9), seed=2), marked((9, 9))))
    ),
    "a palette of greys": written("PNG", photo().convert("L").convert("P")),
    "a photo": written("JPEG", photo()),
    "a grey of 16 bits": raw_png(marked((3, 3)), 0, 16, 0x4000, 0xFFFF),
}
UNMARKED = {
    "white": written("PNG", Image.new("L", (3, 3), 255)),
    "light": written("PNG", Image.new("RGB", (3, 3), (192, 200, 255))),
    "hardly transparent": written("PNG", Image.new("RGBA", (3, 3), (0, 0, 0, 254))),
    "hardly opaque": written("PNG", Image.new("LA", (3, 3), (0, 1))),
}


@pytest.mark.parametrize("change", [black_mask, transparent_mask])
@pytest.mark.parametrize("content", NEITHER.values(), ids=NEITHER)
def test_a_mask_that_is_neither_transparent_nor_black_and_white_is_refused(
    content: bytes, change: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(UnusableImageError, match=r"^the mask is neither transparent nor black and white$"):
        change(content)


@pytest.mark.parametrize("change", [black_mask, transparent_mask])
@pytest.mark.parametrize("content", UNMARKED.values(), ids=UNMARKED)
def test_a_mask_that_marks_nothing_is_refused(content: bytes, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnusableImageError, match=r"^the mask marks nothing to change$"):
        change(content)


# Hostile files

WAYS: list[Callable[[bytes], object]] = [black_mask, transparent_mask, lambda content: converted(content, (PNG, JPEG))]
EACH_WAY = pytest.mark.parametrize("change", WAYS, ids=["black", "transparent", "converted"])


def huge(kind: str, width: int, height: int) -> bytes:
    """A small file whose header announces more pixels than it has."""
    if kind == "PNG":
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    if kind == "JPEG":
        content = bytearray(written("JPEG", photo()))
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)
        return bytes(content)
    canvas = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frames = written("WEBP", photo())[12:]
    chunks = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + frames
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@EACH_WAY
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (huge("PNG", 10_001, 10_000), "it has 10001x10000 pixels, and at most 100 megapixels are allowed"),
        (huge("PNG", 2**31 - 1, 1), "it has 2147483647x1 pixels, and no side may have more than 16384"),
        (huge("JPEG", 10_001, 10_000), "it has 10001x10000 pixels, and at most 100 megapixels are allowed"),
        (huge("WEBP", 16_384, 16_384), "it has 16384x16384 pixels, and at most 100 megapixels are allowed"),
        (huge("WEBP", 7072, 7072), "it has more than 50 megapixels, too many for a WebP that must be converted"),
        (huge("WEBP", 7000, 7000), "it cannot be decoded"),
        (b"", "it is not a PNG, JPEG, WebP or GIF image"),
        (written("TIFF", photo()), "it is not a PNG, JPEG, WebP or GIF image"),
        (written("BMP", photo()), "it is not a PNG, JPEG, WebP or GIF image"),
        (written("PDF", photo()), "it is not a PNG, JPEG, WebP or GIF image"),
        (written("PNG", photo())[:-40], "it cannot be decoded"),
        (written("JPEG", photo())[:-200], "it cannot be decoded"),
        (written("WEBP", photo())[:-40], "it cannot be decoded"),
        (written("PNG", photo())[:60], "it cannot be decoded"),
        (huge("PNG", 3, 3).replace(b"IDAT", b"IDAx"), "it cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_reason(
    content: bytes, reason: str, change: Callable[[bytes], object]
) -> None:
    with pytest.raises(UnusableImageError) as caught:
        change(content)
    assert str(caught.value) == reason


def test_a_frame_larger_than_the_checked_size_is_refused() -> None:
    content = bytearray(written("GIF", photo((40, 24))))
    content[6:10] = struct.pack("<HH", 3, 3)  # the logical screen
    with pytest.raises(UnusableImageError, match="its header is not valid"):
        black_mask(bytes(content))


def test_a_progressive_jpeg_with_very_many_scans_is_refused() -> None:
    content = written("JPEG", Image.new("RGB", (3000, 3000)), progressive=True)
    start = content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda"))
    assert converted(content, (PNG,))
    with pytest.raises(UnusableImageError, match="it has too many scans"):
        converted(content[:-2] + content[start:-2] * 3400 + content[-2:], (PNG,))


@pytest.mark.parametrize("error", [MemoryError(), struct.error("x"), OSError("x"), RecursionError(), ValueError("x")])
def test_whatever_pillow_raises_means_that_the_image_cannot_be_decoded(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    for change in WAYS:
        with pytest.raises(UnusableImageError, match="it cannot be decoded"):
            change(written("PNG", marked((3, 3))))


SMALL = [
    *(source(marked((5, 4))) for source in SOURCES.values()),
    written("PNG", photo(), icc_profile=SRGB, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    written("JPEG", photo(), icc_profile=SRGB, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    written("MPO", photo(), save_all=True, append_images=[photo((8, 8))]),
    written("JPEG", photo(), progressive=True),
    written("WEBP", with_alpha(marked((5, 4))), save_all=True, append_images=[with_alpha(marked((5, 4), seed=2))]),
]


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(SMALL), st.sampled_from(WAYS), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_converted_or_refused(
    content: bytes, change: Callable[[bytes], object], data: st.DataObject
) -> None:
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        change(bytes(damaged))
    except UnusableImageError as error:
        assert str(error)  # noqa: PT017


# Memory


def test_one_image_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, decode = 0, 0, conversion._decoded

    def decoded(content: bytes) -> Image.Image:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        image = decode(content)
        inside -= 1
        return image

    monkeypatch.setattr(conversion, "_decoded", decoded)
    content = written("PNG", marked((300, 300)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(black_mask, [content] * 32))
    assert most == 1


# VmHWM is the largest resident memory of a process since its exec, in KiB: proc_pid_status(5). ru_maxrss would count
# that of the process before its exec.
PEAK = """
import sys
from imagegen.imaging.conversion import converted, transparent_mask

def largest():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

content = sys.stdin.buffer.read()
before = largest()
transparent_mask(content) if sys.argv[1] == "mask" else converted(content, [sys.argv[1]])
print((largest() - before) * 1024)
"""


KEPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from imagegen.domain.errors import InvalidImageError
from imagegen.imaging.converter import PillowConverter

def now():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

def convert():
    try:
        PillowConverter().mask(content, "black")
    except InvalidImageError as error:
        refused.append(error)

content, refused = sys.stdin.buffer.read(), []
before = now()
with ThreadPoolExecutor(3) as pool:
    for each in [pool.submit(convert) for _ in range(3)]:
        each.result()
    print(len(refused), (now() - before) * 1024)
"""


def test_a_failed_conversion_keeps_no_pixels() -> None:
    """The frames of its traceback would keep them, and a second thread's arena of malloc. Both ended a worker."""
    worker = re.search(r"\n  WorkerFunction:.*?\n  WorkerRole:", (ROOT / "template.yaml").read_text(), re.DOTALL)
    assert worker
    (arenas,) = re.findall(r'MALLOC_ARENA_MAX: "(\d+)"', worker[0])
    environment = {"PYTHONPATH": str(ROOT / "layers/imagegen"), "MALLOC_ARENA_MAX": arenas}
    content = written("PNG", Image.new("RGB", (SIDE, SIDE), "white"))
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, input=content, env=environment, capture_output=True, check=True)
    refused, kept = map(int, done.stdout.split())
    assert refused == 3
    assert kept / (SIDE * SIDE) < 1  # Pillow itself is some 5 MB


def peak(content: bytes, what: str) -> float:
    """The memory of a conversion, in bytes a pixel."""
    command = [sys.executable, "-c", PEAK, what]
    environment = {"PYTHONPATH": str(ROOT / "layers/imagegen")}
    done = subprocess.run(command, input=content, env=environment, capture_output=True, check=True)
    return int(done.stdout) / (SIDE * SIDE)


SIDE = 3000


def test_a_conversion_takes_little_memory_for_each_pixel() -> None:
    """100 megapixels at 9 bytes each, and 50 of a WebP at 17, fit into the memory of the worker function."""
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, (10, 10, 2000, 2000))
    transparent = Image.merge("RGBA", (mask, mask, mask, mask))
    assert peak(written("PNG", transparent), "mask") < 6.5
    assert peak(written("PNG", mask.convert("RGB")), "mask") < 9
    assert peak(written("PNG", transparent), JPEG) < 9
    assert peak(written("WEBP", transparent, lossless=True, method=0), PNG) < 17
