"""Reads an image's type, size and transparency from its header. Decodes no pixels."""

import re
import zlib
from collections.abc import Callable
from typing import Literal

import msgspec

from imagegen.domain.errors import NotAnImageError
from imagegen.domain.image_format import GIF, HEAD_BYTES, JPEG, PNG, WEBP, media_type

HEADER_BYTES = 1024 * 1024  # the part of a file in which the header must lie

# Each segment of a JPEG and each chunk of a PNG costs one turn of a loop in Python, so their number is limited. Real
# headers have some dozens. An ICC profile takes 255 segments at most (ICC.1:2010, annex B).
_MOST_PARTS = 2048
_FIRST_THAT_SWAPS = 5  # of the orientations 1 to 8: Exif 2.32, 4.6.4


class UnreadableImageError(Exception):
    """The bytes are not the header of an image. The message completes "the image cannot be used: …" for people."""


class ImageHeader(msgspec.Struct, frozen=True):
    """`width` and `height` are those of the stored pixels. `orientation` is that of a JPEG's EXIF, which turns them.

    An orientation of 1 leaves them as they are.

    `has_alpha` says whether the header announces transparent pixels: an alpha channel, or a PNG's tRNS chunk in the
    first `HEADER_BYTES`. The pixels may be opaque all the same. It is always `False` for a GIF, whose header says
    nothing about transparency.
    """

    media_type: str
    width: int
    height: int
    has_alpha: bool
    orientation: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height after the turn."""
        return (self.height, self.width) if self.orientation >= _FIRST_THAT_SWAPS else (self.width, self.height)


def read_header(head: bytes | memoryview) -> ImageHeader:
    """Returns the header of an image, whose first bytes, up to `HEADER_BYTES`, are `head`. Raises UnreadableImageError.

    Takes time in proportion to the length of `head`, and at most a few milliseconds.
    """
    data = bytes(head[:HEADER_BYTES])
    try:
        kind = media_type(data[:HEAD_BYTES])
    except NotAnImageError:
        raise UnreadableImageError("it is not a PNG, JPEG, WebP or GIF image") from None
    header = _READERS[kind](data)
    if not (header.width and header.height):
        raise _invalid()
    return header


def _invalid() -> UnreadableImageError:
    return UnreadableImageError("its header is not valid")


def _part(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        if len(data) < HEADER_BYTES:
            raise UnreadableImageError("it ends within its header")
        raise UnreadableImageError("its size is not in its first megabyte")
    return data[start : start + length]


# PNG: https://www.w3.org/TR/png-3/

_PNG_FIRST = 8  # the first chunk, after the signature
_PNG_LARGEST = 2**31 - 1  # of a chunk, a width and a height: 5.3 and 7.1
_PNG_DEPTHS = {  # by colour type: 11.2.1, table 11.1
    0: (1, 2, 4, 8, 16),
    2: (8, 16),
    3: (1, 2, 4, 8),
    4: (8, 16),
    6: (8, 16),
}
_PNG_ALPHA = (4, 6)  # the colour types with an alpha channel


def _png(data: bytes) -> ImageHeader:
    chunk = _part(data, _PNG_FIRST, 25)  # length, type, 13 bytes and CRC of IHDR
    width, height = int.from_bytes(chunk[8:12]), int.from_bytes(chunk[12:16])
    depth, colour, compression, filtering, interlace = chunk[16:21]
    if not (
        chunk[:8] == b"\0\0\0\x0dIHDR"
        and zlib.crc32(chunk[4:21]) == int.from_bytes(chunk[21:])
        and max(width, height) <= _PNG_LARGEST
        and depth in _PNG_DEPTHS.get(colour, ())
        and (compression, filtering) == (0, 0)
        and interlace in (0, 1)
    ):
        raise _invalid()
    return ImageHeader(PNG, width, height, colour in _PNG_ALPHA or _png_has_transparency(data))


def _png_has_transparency(data: bytes) -> bool:
    """Whether a tRNS chunk comes before the first IDAT chunk, as it must: 5.6."""
    start = _PNG_FIRST + 25
    for _ in range(_MOST_PARTS):
        if start + 8 > len(data) == HEADER_BYTES:
            return False  # the rest of the file is unknown; long metadata belongs to photos, which have no tRNS
        chunk = _part(data, start, 8)
        length, name = int.from_bytes(chunk[:4]), chunk[4:]
        if length > _PNG_LARGEST or not name.isalpha():
            raise _invalid()
        if name == b"tRNS" and length:
            return True
        if name == b"IDAT":
            return False
        start += 12 + length
    raise _invalid()


# JPEG: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B

# Any number of 0xFF may precede a marker: B.1.1.2. The search is fast since the pattern begins with a literal, and
# reads each byte once since the repetition is possessive.
_JPEG_FILL = re.compile(rb"\xff\xff*+")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC: table B.1
# DHT, DAC, DQT, DNL, DRI, DHP, EXP, APP0 to APP15 and COM: segments with a length that may precede the frame header
_JPEG_SKIPPED = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, *range(0xE0, 0xF0), 0xFE))
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # TEM and RST0 to RST7, which have no length
_JPEG_STUFFED = 0x00  # 0xFF 0x00 is no marker
_JPEG_APP1, _EXIF = 0xE1, b"Exif\0\0"  # Exif 2.32, 4.7.2
_TIFF_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}  # TIFF 6.0, section 2
_TIFF_ORIENTATION = 0x0112  # Exif 2.32, 4.6.4: 1 to 8


def _jpeg(data: bytes) -> ImageHeader:
    """Skips whole segments, so the thumbnail in an APP1 segment is not read.

    Bytes between segments are passed over, as libjpeg and browsers do.
    """
    start, orientation = 2, 0  # after SOI
    for _ in range(_MOST_PARTS):
        fill = _JPEG_FILL.search(data, start)
        start = fill.end() if fill else len(data)
        marker = _part(data, start, 1)[0]
        start += 1
        if marker in _JPEG_FRAMES:
            return _jpeg_frame(data, start, orientation or 1)
        if marker in _JPEG_SKIPPED:
            length = int.from_bytes(_part(data, start, 2))
            if length < 2:
                raise _invalid()
            if marker == _JPEG_APP1 and not orientation and data.startswith(_EXIF, start + 2):
                orientation = _orientation(data[start + 2 + len(_EXIF) : start + length])
            start += length
        elif marker != _JPEG_STUFFED and marker not in _JPEG_ALONE:
            raise _invalid()
    raise _invalid()


def _orientation(tiff: bytes) -> int:
    """Returns the orientation that the first directory of an EXIF segment names, 1 if there is no valid one."""
    order = _TIFF_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    first = int.from_bytes(tiff[4:8], order)
    entries = first + 2 + 12 * int.from_bytes(tiff[first : first + 2], order)
    for start in range(first + 2, min(entries, len(tiff) - 11), 12):
        if int.from_bytes(tiff[start : start + 2], order) == _TIFF_ORIENTATION:
            value = int.from_bytes(tiff[start + 8 : start + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _jpeg_frame(data: bytes, start: int, orientation: int) -> ImageHeader:
    """Reads the frame header: B.2.2. A height of 0, which a later DNL segment sets, is not valid; libjpeg agrees."""
    frame = _part(data, start, 8)
    length, precision, components = int.from_bytes(frame[:2]), frame[2], frame[7]
    if not (components in (1, 3, 4) and length == 8 + 3 * components and 2 <= precision <= 16):
        raise _invalid()
    return ImageHeader(
        JPEG, int.from_bytes(frame[5:7]), int.from_bytes(frame[3:5]), has_alpha=False, orientation=orientation
    )


# WebP: https://www.rfc-editor.org/rfc/rfc9649


def _webp(data: bytes) -> ImageHeader:
    chunk = _part(data, 12, 8)
    read, shortest = _WEBP_READERS.get(chunk[:4], (None, 0))
    if read is None or int.from_bytes(chunk[4:], "little") < shortest:
        raise _invalid()
    return read(_part(data, 20, shortest))


def _vp8(frame: bytes) -> ImageHeader:
    """Reads the header of a key frame, whose sizes have 14 bits: RFC 6386, 9.1."""
    if frame[0] & 1 or frame[3:6] != b"\x9d\x01\x2a":
        raise _invalid()
    width, height = int.from_bytes(frame[6:8], "little"), int.from_bytes(frame[8:10], "little")
    return ImageHeader(WEBP, width & 0x3FFF, height & 0x3FFF, has_alpha=False)


def _vp8l(header: bytes) -> ImageHeader:
    """Reads the header of a lossless image: RFC 9649, 3.4. Width, height, alpha, and a version of 0."""
    bits = int.from_bytes(header[1:], "little")
    if header[0] != 0x2F or bits >> 29:
        raise _invalid()
    return ImageHeader(WEBP, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, has_alpha=bool(bits >> 28 & 1))


def _vp8x(header: bytes) -> ImageHeader:
    """Reads the canvas of an extended file: RFC 9649, 2.7.1."""
    width, height = int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if width * height > 2**32 - 1:
        raise _invalid()
    return ImageHeader(WEBP, width, height, has_alpha=bool(header[0] & 0x10))


_Reader = Callable[[bytes], ImageHeader]
# By the name of the first chunk, with the number of bytes that the reader needs.
_WEBP_READERS: dict[bytes, tuple[_Reader, int]] = {b"VP8 ": (_vp8, 10), b"VP8L": (_vp8l, 5), b"VP8X": (_vp8x, 10)}


def _gif(data: bytes) -> ImageHeader:
    """Reads the logical screen: https://www.w3.org/Graphics/GIF/spec-gif89a.txt, 18."""
    screen = _part(data, 6, 7)
    width, height = int.from_bytes(screen[:2], "little"), int.from_bytes(screen[2:4], "little")
    return ImageHeader(GIF, width, height, has_alpha=False)


_READERS: dict[str, _Reader] = {PNG: _png, JPEG: _jpeg, WEBP: _webp, GIF: _gif}
