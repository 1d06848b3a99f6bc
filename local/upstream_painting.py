"""Paints the pictures of the stand-in upstream. They show the prompt, and the images that came with the call."""

import hashlib
import io
import textwrap
from collections.abc import Iterable, Sequence

from msgspec import Struct
from PIL import Image, ImageDraw, ImageFont

_MOST_SIDE = 192
_Box = tuple[int, int, int, int]


class Thumbnail(Struct, frozen=True):
    """`caption` has the width and the height of the image itself."""

    picture: Image.Image
    caption: str


def strip_of(pictures: Iterable[Image.Image | None]) -> tuple[Thumbnail, ...]:
    """The thumbnails of the pictures that are there."""
    return tuple(_thumbnail(picture) for picture in pictures if picture)


def strip_boxes(count: int, width: int, height: int) -> list[_Box]:
    """Where a picture of that width and height shows the images that came with the call, in their order.

    Each image is in the middle of its square, as large as its ratio allows. Its number and its own size are below.
    """
    gap = max(1, width // 100)
    side = max(1, min(_MOST_SIDE, height // 4, (width - gap) // max(1, count) - gap))
    top = max(0, height - side - 2 * gap - _caption_size(side))
    return [(left, top, left + side, top + side) for left in range(gap, gap + count * (side + gap), side + gap)]


def paint(text: str, index: int, size: str, kind: str = "png", strip: Sequence[Thumbnail] = ()) -> bytes:
    """A picture that shows the text and the strip of thumbnails. Each text and index gives another picture."""
    return encoded(_picture(text, index, sides(size), strip), kind)


def paint_grid(text: str, index: int, size: str, strip: Sequence[Thumbnail] = ()) -> bytes:
    """Four pictures in one PNG, each of half the width and half the height. Their indexes are those of `quarter`."""
    width, height = sides(size)
    grid = Image.new("RGB", (width, height))
    for at in range(4):
        picture = _picture(text, quarter(index, at + 1), (width // 2, height // 2), strip)
        grid.paste(picture, (at % 2 * (width // 2), at // 2 * (height // 2)))
    return encoded(grid, "png")


def paint_in(
    area: Image.Image, kept: Image.Image, text: str, index: int, size: str, kind: str, strip: Sequence[Thumbnail]
) -> bytes:
    """A picture in the area of another one, whose other pixels stay as they are. Both are scaled to the size."""
    painted = _picture(text, index, sides(size), strip)
    area, kept = (each.resize(painted.size, Image.Resampling.NEAREST) for each in (area, kept.convert("RGB")))
    return encoded(Image.composite(painted, kept, area), kind)


def quarter(index: int, number: int) -> int:
    """The index of the picture with that number, 1 to 4, in the grid with the index."""
    return 4 * index - 4 + number


def sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height


def encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({"compress_level": 1} if kind == "png" else {}))
    return out.getvalue()


def _picture(text: str, index: int, size: tuple[int, int], strip: Sequence[Thumbnail]) -> Image.Image:
    width, height = size
    seed = hashlib.sha256(f"{text}\0{index}".encode()).digest()
    top, bottom = (tuple(64 + byte // 2 for byte in seed[at : at + 3]) for at in (0, 3))
    picture = Image.composite(
        Image.new("RGB", size, bottom),
        Image.new("RGB", size, top),
        Image.linear_gradient("L").resize(size),
    )
    draw = ImageDraw.Draw(picture)
    for at in range(6, 22, 4):
        x, y = seed[at] * width // 255, seed[at + 1] * height // 255
        radius = (seed[at + 2] + 40) * min(width, height) // 1200
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(seed[at : at + 3]))
    font_size = max(12, min(width, height) // 20)
    columns = max(8, int(width * 1.6 / font_size))
    lines = "\n".join(textwrap.wrap(text, columns)[:12])
    _write(draw, (width // 16, height // 16), f"{lines}\n\n#{index}", font_size)
    _show(strip, picture, draw)
    return picture


def _show(strip: Sequence[Thumbnail], picture: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    boxes = strip_boxes(len(strip), *picture.size)
    for number, (shown, (left, top, right, bottom)) in enumerate(zip(strip, boxes, strict=True), 1):
        draw.rectangle((left, top, right - 1, bottom - 1), fill="black")
        side, longer = right - left, max(shown.picture.size)
        width, height = (max(1, round(each * side / longer)) for each in shown.picture.size)
        picture.paste(shown.picture.resize((width, height)), (left + (side - width) // 2, top + (side - height) // 2))
        _write(draw, (left, bottom + 1), f"{number}  {shown.caption}", _caption_size(side))


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font_size: int) -> None:
    font = ImageFont.load_default(font_size)
    draw.multiline_text(at, text, font=font, fill="white", stroke_width=max(1, font_size // 16), stroke_fill="black")


def _caption_size(side: int) -> int:
    return max(8, side // 8)


def _thumbnail(picture: Image.Image) -> Thumbnail:
    small = picture.copy()
    small.thumbnail((_MOST_SIDE, _MOST_SIDE))
    return Thumbnail(small.convert("RGBA").convert("RGB"), "x".join(map(str, picture.size)))
