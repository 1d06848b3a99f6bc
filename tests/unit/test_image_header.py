import hashlib
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from imagegen.domain.image_format import GIF, JPEG, PNG, WEBP
from imagegen.domain.image_header import HEADER_BYTES, ImageHeader, UnreadableImageError, read_header

WIDTH, HEIGHT = 37, 23
MEDIA_TYPES = {"PNG": PNG, "JPEG": JPEG, "WEBP": WEBP, "GIF": GIF}


def painted(mode: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """An image of noise, whose alpha, if it has one, is not opaque."""
    channels = len(Image.new(mode, (1, 1)).tobytes()) if mode != "1" else 1
    noise = random.Random(7).randbytes(size[0] * size[1] * channels)
    if mode == "1":
        return Image.frombytes("L", size, noise).convert("1")
    return Image.frombytes(mode, size, noise)


def written(kind: str, image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_with_thumbnail() -> bytes:
    """An APP1 segment whose thumbnail is a JPEG of another size, with frame headers of its own."""
    thumbnail = written("JPEG", painted("RGB", (160, 120)))
    assert len(thumbnail) < 60_000
    return b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail


FRAMES = [painted("RGBA"), painted("RGBA", (8, 8)).resize((WIDTH, HEIGHT))]
IMAGES: dict[str, bytes] = {
    **{f"png {mode}": written("PNG", painted(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"png of {bits} bits": written("PNG", painted("P"), bits=bits) for bits in (1, 2, 4)},
    "png with a transparent index": written("PNG", painted("P"), transparency=3),
    "png with a transparent palette": written("PNG", painted("P"), transparency=bytes(range(100))),
    "png with a transparent grey": written("PNG", painted("L"), transparency=3),
    "png with a transparent colour": written("PNG", painted("RGB"), transparency=(1, 2, 3)),
    "png with a profile": written("PNG", painted("RGB"), icc_profile=random.Random(1).randbytes(3000)),
    "animated png": written("PNG", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
    **{f"jpeg {mode}": written("JPEG", painted(mode)) for mode in ("L", "RGB", "CMYK")},
    "progressive jpeg": written("JPEG", painted("RGB"), progressive=True),
    "jpeg without subsampling": written("JPEG", painted("RGB"), subsampling="4:4:4"),
    "jpeg with a thumbnail": written("JPEG", painted("RGB"), exif=exif_with_thumbnail()),
    "jpeg with a large profile": written("JPEG", painted("RGB"), icc_profile=random.Random(1).randbytes(300_000)),
    "jpeg with a comment": written("JPEG", painted("RGB"), comment=b"\xff\xc0" * 1000),
    "jpeg of several images": written("MPO", painted("RGB"), save_all=True, append_images=[painted("RGB", (9, 9))]),
    "webp": written("WEBP", painted("RGB")),
    "webp with alpha": written("WEBP", painted("RGBA")),
    "lossless webp": written("WEBP", painted("RGB"), lossless=True),
    "lossless webp with alpha": written("WEBP", painted("RGBA"), lossless=True),
    "webp with a profile": written("WEBP", painted("RGB"), icc_profile=random.Random(1).randbytes(3000)),
    "webp with a profile and alpha": written("WEBP", painted("RGBA"), icc_profile=b"profile"),
    "animated webp with alpha": written("WEBP", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
    "animated webp": written("WEBP", painted("RGB"), save_all=True, append_images=[painted("RGB").rotate(180)]),
    **{f"gif {mode}": written("GIF", painted(mode)) for mode in ("L", "P", "RGB")},
    "gif with a transparent index": written("GIF", painted("P"), transparency=3),
    "animated gif": written("GIF", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
}
EVERY_KIND = pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)


def tiff(
    order: Literal["little", "big"], orientation: int, *, first: int = 20, count: int = 2, tag: int = 0x0112
) -> bytes:
    """The TIFF of an EXIF segment, whose first directory has two entries and begins at `first`."""

    def number(value: int, length: int) -> bytes:
        return value.to_bytes(length, order)

    def entry(tag: int, value: int) -> bytes:
        return number(tag, 2) + number(3, 2) + number(1, 4) + number(value, 2) + b"\0\0"

    head = (b"II" if order == "little" else b"MM") + number(42, 2) + number(first, 4)
    return head + bytes(12) + number(count, 2) + entry(0x0103, 6) + entry(tag, orientation) + bytes(4)


def with_exif(*exifs: bytes) -> bytes:
    """A JPEG with an EXIF segment for each."""
    segments = [b"\xff\xe1" + (len(exif) + 8).to_bytes(2) + b"Exif\0\0" + exif for exif in exifs]
    jpeg = IMAGES["jpeg RGB"]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def by_pillow(content: bytes) -> ImageHeader:
    """What Pillow finds in the header; it knows more about a GIF."""
    with Image.open(BytesIO(content)) as image:
        media_type = MEDIA_TYPES["JPEG" if image.format == "MPO" else image.format or ""]
        has_alpha = media_type != GIF and image.has_transparency_data
        return ImageHeader(media_type, image.width, image.height, has_alpha)


def read(content: bytes | memoryview) -> ImageHeader | None:
    """The header, `None` if it is refused. Raises any other exception."""
    try:
        return read_header(content)
    except UnreadableImageError:
        return None


# What is read


@EVERY_KIND
def test_a_header_is_what_pillow_reads(content: bytes) -> None:
    expected = by_pillow(content)
    assert (expected.width, expected.height) == (WIDTH, HEIGHT)
    assert read_header(content) == expected
    assert read_header(memoryview(bytearray(content))) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (255, 257), (2049, 3)])
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("JPEG", "L"), ("WEBP", "RGB"), ("GIF", "P")])
def test_a_size_is_read(kind: str, mode: str, size: tuple[int, int]) -> None:
    header = read_header(written(kind, Image.new(mode, size)))
    assert (header.width, header.height) == size


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_in_exif_is_read(order: Literal["little", "big"], value: int) -> None:
    content = with_exif(tiff(order, value))
    header = read_header(content)
    assert (header.width, header.height, header.orientation) == (WIDTH, HEIGHT, value)
    with Image.open(BytesIO(content)) as image:
        assert image.getexif()[ExifTags.Base.Orientation] == value


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"XX*\0" + tiff("little", 6)[4:],
        tiff("little", 0),
        tiff("little", 9),
        tiff("little", 6)[:-5],
        tiff("little", 6, first=2**32 - 1),
        tiff("little", 6, count=0),
        tiff("little", 6, tag=0x0113),
    ],
)
def test_exif_without_a_valid_orientation_turns_nothing(exif: bytes) -> None:
    assert read_header(with_exif(exif)).orientation == 1


def test_the_first_exif_segment_counts() -> None:
    assert read_header(with_exif(tiff("big", 6), tiff("big", 3))).orientation == 6


def test_the_largest_sizes_are_read() -> None:
    assert read_header(png(width=2**31 - 1)).width == 2**31 - 1
    assert read_header(jpeg(frame(65_535, 65_534))).height == 65_534
    assert read_header(webp(b"VP8L", b"\x2f\xff\xff\xff\x0f")) == ImageHeader(WEBP, 16_384, 16_384, has_alpha=False)
    canvas = b"\xff\xff\0\xfe\xff\0"  # with one row more, its pixels would not fit into 32 bits
    assert read_header(webp(b"VP8X", b"\0\0\0\0" + canvas)) == ImageHeader(WEBP, 65_536, 65_535, has_alpha=False)


@EVERY_KIND
def test_a_prefix_has_the_same_header_or_is_refused(content: bytes) -> None:
    expected = by_pillow(content)
    lengths = [*range(min(len(content), 1500)), *range(1500, len(content), 499)]
    found = [read(content[:length]) for length in lengths]
    refused = found.index(expected)
    assert found == [None] * refused + [expected] * (len(found) - refused)


def test_a_jpeg_may_have_metadata_up_to_the_first_megabyte() -> None:
    segments = segment(0xE1, bytes(65_533)) * 15
    assert read_header(jpeg(segments + frame(30, 20))) == ImageHeader(JPEG, 30, 20, has_alpha=False)
    with pytest.raises(UnreadableImageError, match="its size is not in its first megabyte"):
        read_header(jpeg(segments + segment(0xE1, bytes(65_533)) + frame(30, 20)))


def test_a_png_with_more_metadata_has_no_announced_transparency() -> None:
    late = chunk(b"tEXt", bytes(HEADER_BYTES)) + chunk(b"tRNS", bytes(6))
    assert read_header(png(late)) == ImageHeader(PNG, WIDTH, HEIGHT, has_alpha=False)
    early = chunk(b"tRNS", bytes(6)) + chunk(b"tEXt", bytes(HEADER_BYTES))
    assert read_header(png(early)) == ImageHeader(PNG, WIDTH, HEIGHT, has_alpha=True)


def test_transparency_after_the_pixels_is_none() -> None:
    assert not read_header(png(chunk(b"IDAT", b"") + chunk(b"tRNS", bytes(6)))).has_alpha


@pytest.mark.parametrize("marker", [each for each in range(0xC0, 0xD0) if each not in (0xC4, 0xC8, 0xCC)])
@pytest.mark.parametrize("components", [1, 3, 4])
def test_every_frame_header_of_a_jpeg_is_read(marker: int, components: int) -> None:
    content = jpeg(frame(30, 20, components=components, marker=marker))
    assert read_header(content) == ImageHeader(JPEG, 30, 20, has_alpha=False)


@pytest.mark.parametrize(
    "before",
    [
        b"\xff" * 1000,
        *(b"\0" * 1000, b"junk", b"\xff\0" * 10, b"\xff\x01", b"\xff\xd0\xff\xd7"),
        *(
            b"\xff\xfe\0\x02",
            b"\xff\xff\xff\xfe\0\x04\xff\xc0",
            b"\xff\xc4\0\x04\xff\xc0",
            b"\xff\xe1\0\x0a" + b"\xff" * 8,
        ),
    ],
)
def test_what_precedes_a_frame_header_is_skipped(before: bytes) -> None:
    assert read_header(jpeg(before + frame(30, 20))) == ImageHeader(JPEG, 30, 20, has_alpha=False)


# What is refused


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    after: bytes | None = None, *, width: int = WIDTH, height: int = HEIGHT, more: bytes = b"\x08\2\0\0\0"
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">II", width, height) + more)
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"IDAT", b"") if after is None else after)


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def frame(width: int, height: int, *, components: int = 3, precision: int = 8, marker: int = 0xC0) -> bytes:
    content = struct.pack(">BHHB", precision, height, width, components) + b"\1\x11\0" * components
    return segment(marker, content)


def jpeg(segments: bytes) -> bytes:
    return b"\xff\xd8" + (b"" if segments.startswith(b"\xff") else segment(0xFE, b"")) + segments


def webp(name: bytes, content: bytes, length: int | None = None) -> bytes:
    size = struct.pack("<I", len(content) if length is None else length)
    return b"RIFF" + struct.pack("<I", len(content) + 12) + b"WEBP" + name + size + content


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)


VALID_PNGS = {(0, depth) for depth in (1, 2, 4, 8, 16)} | {(3, depth) for depth in (1, 2, 4, 8)}
VALID_PNGS |= {(colour, depth) for colour in (2, 4, 6) for depth in (8, 16)}


def test_only_the_colours_and_depths_of_the_specification_are_accepted() -> None:
    pairs = [(colour, depth) for colour in range(8) for depth in range(18)]
    accepted = {(colour, depth) for colour, depth in pairs if read(png(more=bytes([depth, colour, 0, 0, 0])))}
    assert accepted == VALID_PNGS


VP8 = b"\x10\0\0\x9d\x01\x2a\x25\0\x17\0"
VP8L = b"\x2f\x24\x80\5\0"
VP8X = b"\x10\0\0\0\x24\0\0\x16\0\0"
NOT_VALID = {
    "png with another first chunk": b"\x89PNG\r\n\x1a\n" + chunk(b"gAMA", bytes(4)) + png()[8:],
    "png with a longer header": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", png()[16:29] + b"\0"),
    "png with a wrong checksum": png()[:29] + b"\0\0\0\0" + png()[33:],
    "png without width": png(width=0),
    "png without height": png(height=0),
    "png that is too wide": png(width=2**31),
    "png with another compression": png(more=b"\x08\2\1\0\0"),
    "png with another filter": png(more=b"\x08\2\0\1\0"),
    "png with another interlacing": png(more=b"\x08\2\0\0\2"),
    "png with a chunk of a wrong name": png(chunk(b"a\0bc", b"")),
    "png with a chunk that is too long": png(b"\x80\0\0\0tEXt"),
    "png with too many chunks": png(chunk(b"tEXt", b"") * 10_000 + chunk(b"IDAT", b"")),
    "jpeg without width": jpeg(frame(0, 20)),
    "jpeg without height": jpeg(frame(30, 0)),
    "jpeg of two components": jpeg(frame(30, 20, components=2)),
    "jpeg of no components": jpeg(frame(30, 20, components=0)),
    "jpeg of 1 bit": jpeg(frame(30, 20, precision=1)),
    "jpeg with a frame header of a wrong length": jpeg(b"\xff\xc0\0\x12" + frame(30, 20)[4:]),
    "jpeg with a segment of a wrong length": jpeg(b"\xff\xe0\0\1" + frame(30, 20)),
    "jpeg whose pixels come first": jpeg(segment(0xDA, bytes(6)) + frame(30, 20)),
    "jpeg that ends first": jpeg(b"\xff\xd9" + frame(30, 20)),
    "jpeg that begins again": jpeg(b"\xff\xd8" + frame(30, 20)),
    "jpeg with a reserved marker": jpeg(segment(0x02, b"") + frame(30, 20)),
    "jpeg with too many segments": jpeg(segment(0xE0, b"") * 10_000 + frame(30, 20)),
    "webp with another chunk": webp(b"ALPH", bytes(10)),
    "webp whose chunk is too short": webp(b"VP8X", VP8X, length=9),
    "webp without a key frame": webp(b"VP8 ", b"\x11" + VP8[1:]),
    "webp without a start code": webp(b"VP8 ", VP8[:3] + b"\x9d\x01\x2b" + VP8[6:]),
    "webp without width": webp(b"VP8 ", VP8[:6] + b"\0\0\x17\0"),
    "webp without height, scaled": webp(b"VP8 ", VP8[:6] + b"\x25\0\0\xc0"),
    "lossless webp without a signature": webp(b"VP8L", b"\x2e" + VP8L[1:]),
    "lossless webp of another version": webp(b"VP8L", VP8L[:4] + b"\x20"),
    "webp with too many pixels": webp(b"VP8X", b"\0\0\0\0" + b"\xff" * 6),
    "gif without width": gif(0, HEIGHT),
    "gif without height": gif(WIDTH, 0),
}


def test_the_parts_of_the_refused_images_are_valid_otherwise() -> None:
    for content in (png(), webp(b"VP8 ", VP8), webp(b"VP8L", VP8L), webp(b"VP8X", VP8X), gif(WIDTH, HEIGHT)):
        header = read_header(content)
        assert (header.width, header.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("content", NOT_VALID.values(), ids=NOT_VALID)
def test_a_header_that_is_not_valid_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="its header is not valid"):
        read_header(content)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"\xff\xd8", b"BM" + bytes(60), b"II*\0" + bytes(60), b"<svg/>"])
def test_anything_else_is_no_image(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="it is not a PNG, JPEG, WebP or GIF image"):
        read_header(content)


@pytest.mark.parametrize(
    "content", [png()[:30], png()[:-9], jpeg(frame(3, 2))[:9], webp(b"VP8X", VP8X)[:-1], gif(3, 2)[:9]]
)
def test_a_file_that_is_too_short_ends_within_its_header(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="it ends within its header"):
        read_header(content)


# Hostile bytes


@given(st.sampled_from(sorted(IMAGES)), st.data())
@settings(max_examples=500, deadline=None)
def test_a_changed_file_has_a_header_or_is_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(IMAGES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 200) - 1))
        content[place] = data.draw(st.integers(0, 255))
    header = read(bytes(content))
    assert header is None or (header.width > 0 and header.height > 0)


MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP"]
MAGIC += [b"RIFF\0\0\0\0WEBP" + name for name in (b"VP8 ", b"VP8L", b"VP8X")]


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes_have_a_header_or_are_refused(magic: bytes, rest: bytes) -> None:
    header = read(magic + rest)
    assert header is None or (header.width > 0 and header.height > 0)


def filled(start: bytes, repeated: bytes) -> bytes:
    return start + repeated * (HEADER_BYTES // len(repeated))


SLOW = {
    "fill bytes": filled(b"\xff\xd8", b"\xff"),
    "fill bytes and zeros": filled(b"\xff\xd8", b"\xff" * 511 + b"\0"),
    "other bytes": filled(b"\xff\xd8\xff\xfe\0\2", b"\0"),
    "stuffed bytes": filled(b"\xff\xd8\xff\xfe\0\2", b"\xff\0"),
    "restart markers": filled(b"\xff\xd8", b"\xff\xd0"),
    "empty segments": filled(b"\xff\xd8", b"\xff\xe0\0\2"),
    "segments of 512 bytes": filled(b"\xff\xd8", segment(0xE0, bytes(508))),
    "empty chunks": filled(png(b""), chunk(b"tEXt", b"")),
    "chunks of 512 bytes": filled(png(b""), chunk(b"tEXt", bytes(500))),
}


def seconds(do: Callable[[], object]) -> Iterator[float]:
    for _ in range(5):
        start = time.perf_counter()
        do()
        yield time.perf_counter() - start


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW)
def test_a_hostile_megabyte_takes_not_much_longer_than_its_hash(content: bytes) -> None:
    """It takes up to 3 times as long. A loop over all its parts takes over 50 times as long."""
    data = memoryview(content)
    assert min(seconds(lambda: read(data))) < 15 * min(seconds(lambda: hashlib.sha256(data)))
