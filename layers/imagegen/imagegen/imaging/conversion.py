"""Converts input images into formats and kinds of masks that an upstream takes.

A mask marks the pixels that change. In a transparent mask, alpha 0 marks them. In a black mask, black does,
and all else is white. Only the upper byte of a 16-bit channel counts, as in Pillow; a grey that a tRNS chunk names is
compared with both bytes.
"""

import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from threading import Lock

# Without the import, Pillow would import the plugins of all its formats for a WebP.
from PIL import Image, ImageChops, WebPImagePlugin

from imagegen.domain.image_format import JPEG, PNG, WEBP
from imagegen.domain.image_header import ImageHeader, UnreadableImageError, read_header
from imagegen.domain.inputs import MOST_PIXELS, wrong_size

_FORMATS = ("PNG", "JPEG", WebPImagePlugin.WebPImageFile.format, "GIF")
# Pillow takes 16 bytes a pixel to decode a WebP, and 4 for the other formats.
_MOST_WEBP_PIXELS = 50_000_000
# A progressive JPEG may repeat scans of some 160 bytes, each of which goes over all pixels: 0.9 s for a billion pixels.
# Photos have some ten scans; more are counted where other data happens to contain the marker.
_MOST_SCANNED_PIXELS = 30_000_000_000
_START_OF_SCAN = b"\xff\xda"
_JPEG_QUALITY = 95
# A photo of 100 megapixels takes 10 s at level 3 of Pillow's zlib-ng, and 32 s at its default of 6, for the same size.
_PNG_LEVEL = 3

# How the stored pixels are turned, by EXIF's orientation: Exif 2.32 (CIPA DC-008-2019), 4.6.4 A.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for EXIF that is not valid; viewers show such images as they are stored.
_EXIF_ERRORS = (struct.error, KeyError, SyntaxError, TypeError, ValueError, ZeroDivisionError)
_PNG_DEPTH = 24  # the place of IHDR's bit depth: after the signature, a length, a type, and two sizes of 4 bytes

# The colour space that an ICC profile must have for a mode: bytes 16 to 19 of its header, ICC.1:2010, 7.2.
_PROFILE_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}

# What becomes of the 256 values of a channel.
_CHANGED, _NEITHER, _KEPT = 0, 128, 255
_BLACK_OR_WHITE = [_CHANGED] * 64 + [_NEITHER] * 128 + [_KEPT] * 64
_TRANSPARENT_OR_NOT = [_CHANGED] + [_KEPT] * 255
_INVERTED = list(range(255, -1, -1))

Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow warns above it, and raises above twice as many
_one_at_a_time = Lock()  # the pixels of two images of 100 megapixels do not fit into the function's memory


class UnusableImageError(Exception):
    """An image cannot be converted. The message completes "the image cannot be used: …" for people."""


def converted(content: bytes, media_types: Collection[str]) -> tuple[str, bytes]:
    """Returns the image in the first of the media types that keeps it, and that type.

    PNG keeps every image, and JPEG one without transparency. If neither does, it becomes a JPEG on white. The pixels
    are turned as EXIF says, since no EXIF is written. An ICC profile is kept if it fits the pixels. Of an animation,
    the first frame is kept. Raises UnusableImageError; ValueError if the media types have neither PNG nor JPEG.
    """
    if PNG not in media_types and JPEG not in media_types:
        raise ValueError("images are converted only to PNG and JPEG")
    with _pillow():
        image = _decoded(content)
        alpha = _alpha(image)
        target = next((each for each in media_types if each == PNG or (each == JPEG and alpha is None)), JPEG)
        profile = image.info.get("icc_profile")
        image = _with_8_bits(image)
        if alpha is not None:
            (_add_alpha if target == PNG else _put_on_white)(image, alpha)
        del alpha  # before more pixels are allocated
        if target == JPEG:
            image = _opaque(image)
        fits = profile and profile[16:20] == _PROFILE_SPACES[image.mode]
        return target, _encoded(image, target, profile if fits else None)


def transparent_mask(content: bytes) -> bytes:
    """Returns a mask of either kind as a transparent mask: a PNG with colour and alpha, which is 0 or 255.

    Raises UnusableImageError.
    """
    with _pillow():
        mask = _mask(content)
        return _encoded(Image.merge("RGBA", (mask, mask, mask, mask)), PNG)


def black_mask(content: bytes) -> bytes:
    """Returns a mask of either kind as one of black kind: a PNG of 8-bit grey, which is 0 or 255.

    Raises UnusableImageError.
    """
    with _pillow():
        return _encoded(_mask(content), PNG)


@contextmanager
def _pillow() -> Iterator[None]:
    """Lets one thread at a time use Pillow. Raises UnusableImageError for whatever Pillow raises about an image."""
    with _one_at_a_time:
        try:
            yield
        except UnusableImageError:
            raise
        except Exception as error:
            raise UnusableImageError("it cannot be decoded") from error


def _decoded(content: bytes) -> Image.Image:
    """Returns the first frame, upright. Its transparent colour, if any, is scaled as Pillow scales samples."""
    header = _checked_header(content)
    image = _upright(_first_frame(content, header))
    if header.media_type == PNG and "transparency" in image.info:
        _scale_key(image, content[_PNG_DEPTH])
    return image


def _first_frame(content: bytes, header: ImageHeader) -> Image.Image:
    with Image.open(BytesIO(content), formats=_FORMATS) as image:
        if image.size != (header.width, header.height):
            raise UnusableImageError("its header is not valid")  # the limits were checked for another size
        image.load()
    # The object of a WebP keeps its decoder, which has two more copies of the pixels.
    return image.copy() if header.media_type == WEBP else image


def _checked_header(content: bytes) -> ImageHeader:
    try:
        header = read_header(memoryview(content))
    except UnreadableImageError as error:
        raise UnusableImageError(str(error)) from None
    if wrong := wrong_size(header.width, header.height):
        raise UnusableImageError(wrong)
    pixels = header.width * header.height
    if header.media_type == WEBP and pixels > _MOST_WEBP_PIXELS:
        raise UnusableImageError(
            f"it has more than {_MOST_WEBP_PIXELS // 1_000_000} megapixels, too many for a WebP that must be converted"
        )
    if header.media_type == JPEG and pixels * content.count(_START_OF_SCAN) > _MOST_SCANNED_PIXELS:
        raise UnusableImageError("it has too many scans")
    return header


def _upright(image: Image.Image) -> Image.Image:
    orientation = 1
    with suppress(*_EXIF_ERRORS):
        orientation = image.getexif().get(_ORIENTATION, 1)
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _scale_key(image: Image.Image, depth: int) -> None:
    """Scales the colour that a tRNS chunk names as Pillow scales samples: fewer than 8 bits up, 16 bits of RGB down."""
    key, largest = image.info["transparency"], 2**depth - 1
    if image.mode == "RGB":
        image.info["transparency"] = tuple((value & largest) >> (depth - 8) for value in key)
    elif image.mode == "L":
        image.info["transparency"] = (key & largest) * 255 // largest


def _alpha(image: Image.Image) -> Image.Image | None:
    """Returns the alpha of each pixel, `None` if all are opaque."""
    key = image.info.get("transparency")
    if "A" in image.getbands():
        alpha = image.getchannel("A")
    elif key is None:
        return None
    elif isinstance(key, bytes):  # the alpha of the first colours of a palette
        alpha = image.point(list(key[:256].ljust(256, b"\xff")), "L")
    elif isinstance(key, tuple):
        red, green, blue = (_unlike(image.getchannel(band), value) for band, value in enumerate(key))
        alpha = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    else:
        alpha = _unlike(image, key)
    return None if alpha.getextrema() == (_KEPT, _KEPT) else alpha


def _unlike(channel: Image.Image, value: int) -> Image.Image:
    """Returns 0 where a channel has the value, 255 elsewhere."""
    if channel.mode == "I;16":
        channel = channel.convert("I")  # Pillow has no tables for 16 bits, but for 32
    table = [255] * (65_536 if channel.mode == "I" else 256)
    table[value] = 0
    return channel.point(table, "L")


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Returns the pixels as L, LA, RGB or RGBA, without the colour that a file names as transparent."""
    image.info.pop("transparency", None)
    match image.mode:
        case "L" | "LA" | "RGB" | "RGBA":
            return image
        case "1":
            return image.convert("L")
        case "I;16":  # Pillow's own conversion to L makes all above 255 white
            return image.convert("I").point([value >> 8 for value in range(65_536)], "L")
        case _:
            return image.convert("RGB")


def _add_alpha(image: Image.Image, alpha: Image.Image) -> None:
    if "A" not in image.getbands():
        image.putalpha(alpha)


def _put_on_white(image: Image.Image, alpha: Image.Image) -> None:
    image.paste("white", None, alpha.point(_INVERTED))


def _opaque(image: Image.Image) -> Image.Image:
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _mask(content: bytes) -> Image.Image:
    """Returns one channel, 0 for what changes and 255 for what is kept."""
    image = _decoded(content)
    alpha = _alpha(image)
    mask = _black_or_white(_with_8_bits(image)) if alpha is None else alpha.point(_TRANSPARENT_OR_NOT)
    if mask.getextrema() == (_KEPT, _KEPT):
        raise UnusableImageError("the mask marks nothing to change")
    return mask


def _black_or_white(image: Image.Image) -> Image.Image:
    mask = image.getchannel(0).point(_BLACK_OR_WHITE)
    for band in range(1 if image.mode in ("L", "LA") else 3):
        channel = image.getchannel(band).point(_BLACK_OR_WHITE)
        if channel.histogram()[_NEITHER] or ImageChops.difference(channel, mask).getbbox():
            raise UnusableImageError("the mask is neither transparent nor black and white")
    return mask


def _encoded(image: Image.Image, media_type: str, profile: bytes | None = None) -> bytes:
    file = BytesIO()
    image.info = {}  # Pillow would write comments and transparent colours
    if media_type == PNG:
        image.save(file, "PNG", compress_level=_PNG_LEVEL, icc_profile=profile)
    else:
        image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4", icc_profile=profile)
    return file.getvalue()
