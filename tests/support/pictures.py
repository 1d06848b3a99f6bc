"""Pictures for requests with images, and what the pictures of the stand-in upstream show of them."""

import os
from io import BytesIO
from math import ceil, sqrt
from typing import Any
from uuid import uuid4

from PIL import ExifTags, Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from local.upstream_painting import strip_boxes

Color = tuple[int, ...]
Box = tuple[int, int, int, int]
RED, GREEN, BLUE = (208, 32, 16), (16, 176, 32), (32, 48, 208)
UNPAINTED = (255, 0, 254)  # a color that the stand-in upstream paints nowhere
_NOISE_BYTES = 1.85  # of each pixel, with the quality below


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """A PNG or JPEG with a comment that no other file has."""
    comment, out = uuid4().hex, BytesIO()
    if kind == "png":
        info = PngInfo()
        info.add_text("Comment", comment)
        picture.save(out, kind, pnginfo=info)
    else:
        picture.save(out, kind, comment=comment.encode(), quality=90, subsampling=0, **options)
    return out.getvalue()


def picture(color: Color = RED, side: int = 320) -> bytes:
    """A square PNG of one color. The smallest that all models take has 300 pixels."""
    return encoded(Image.new("RGB", (side, side), color))


def turned(orientation: int) -> bytes:
    """A JPEG of 40x30 pixels, the left half red, which its EXIF turns."""
    image, exif = Image.new("RGB", (40, 30)), Image.Exif()
    image.paste(RED, (0, 0, 20, 30))
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, "jpeg", exif=exif)


def photograph(least_bytes: int) -> bytes:
    """A JPEG of noise. It is a few per cent longer at most."""
    side = ceil(sqrt(least_bytes / _NOISE_BYTES))
    content = encoded(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)), "jpeg")
    assert len(content) >= least_bytes
    return content


def mask(side: int, box: Box) -> bytes:
    """A mask that is transparent in a box, and opaque elsewhere."""
    whole = Image.new("RGBA", (side, side), "black")
    whole.paste((0, 0, 0, 0), box)
    return encoded(whole)


def opened(content: bytes) -> Image.Image:
    """As RGB, without transparency."""
    return Image.open(BytesIO(content)).convert("RGB")


def shown_in(shown: Image.Image, count: int) -> list[Color]:
    """The colors of the images that came with the call, if there were so many."""
    boxes = strip_boxes(count, *shown.size)
    colors = [shown.getpixel(((left + right) // 2, (top + bottom) // 2)) for left, top, right, bottom in boxes]
    return [color for color in colors if isinstance(color, tuple)]


def first_of(grid: Image.Image) -> Image.Image:
    """The first picture of a grid of four."""
    return grid.crop((0, 0, grid.width // 2, grid.height // 2))


def changes_exactly(before: bytes, after: bytes, box: Box) -> bool:
    """Whether each pixel in the box differs, and no other."""
    first, second = opened(before), opened(after)
    red, green, blue = ImageChops.difference(first, second).split()
    differs = ImageChops.lighter(ImageChops.lighter(red, green), blue).point([0] + [255] * 255)
    expected = Image.new("L", first.size, 0)
    expected.paste(255, box)
    return first.size == second.size and differs.tobytes() == expected.tobytes()
