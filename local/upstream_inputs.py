"""Images that come with a call to the stand-in upstream: reads them, and says what is noted of them."""

import binascii
import hashlib
import io
from base64 import b64decode
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from local.upstream_forms import Part

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
MEGABYTE = 1024 * 1024
_MEDIA_TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_MOST_NOTED_CHARACTERS = 2000


@dataclass(frozen=True, eq=False)
class Input:
    """`name` is that of its field. `media_type` is what the caller declares, or that of the content without that.

    `picture` is None if the content is not a whole JPEG, PNG or WebP.
    """

    name: str
    media_type: str
    content: bytes
    picture: Image.Image | None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height: 0 if there is no picture."""
        return self.picture.size if self.picture else (0, 0)

    @property
    def is_what_it_says(self) -> bool:
        """Whether the content is an image of the media type."""
        return self.picture is not None and _type_of(self.picture) == self.media_type

    def entry(self) -> dict[str, Any]:
        """What an entry of `StandInUpstream.calls` has of the image."""
        width, height = self.sides
        size = {"bytes": len(self.content), "width": width, "height": height}
        return {"media_type": self.media_type, **size, "sha256": self.sha256, "name": self.name}


def read_file(part: Part) -> Input:
    return Input(part.name, part.media_type, part.content, _picture(part.content))


def read_data_url(name: str, url: str) -> Input | None:
    """None if the text is not a data URL of an image in base64."""
    head, _, text = url.partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if head != f"data:{media_type};base64" or not media_type.startswith("image/"):
        return None
    content = _decoded(text)
    return Input(name, media_type, content, _picture(content)) if content else None


def read_base64(name: str, text: str) -> Input | None:
    """None if the text is not base64."""
    if not (content := _decoded(text)):
        return None
    picture = _picture(content)
    return Input(name, _type_of(picture) if picture else "", content, picture)


def noted(value: Any) -> Any:
    """What an entry of `StandInUpstream.calls` has of a field with an image: the hash in place of base64."""
    if not isinstance(value, str):
        return value
    content = _decoded(value.partition(",")[2] if value.startswith("data:") else value)
    return f"sha256:{hashlib.sha256(content).hexdigest()}" if content else value[:_MOST_NOTED_CHARACTERS]


def has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "RGBA")


def transparent_area(picture: Image.Image) -> Image.Image:
    """The pixels of a picture with an alpha channel that are wholly transparent."""
    return picture.getchannel("A").point([255, *[0] * 255])


def black_area(picture: Image.Image) -> Image.Image | None:
    """The black pixels of a picture that is black and white. None if it has other pixels, or no black one."""
    if has_alpha(picture) or "transparency" in picture.info:
        return None
    plain = picture.convert("RGB")
    colors = {color for _, color in plain.getcolors(2) or [(1, None)]}
    if not colors <= {(0, 0, 0), (255, 255, 255)} or (0, 0, 0) not in colors:
        return None
    return plain.getchannel("R").point([255, *[0] * 255])


def _decoded(text: str) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _picture(content: bytes) -> Image.Image | None:
    try:
        picture = Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP"])
        picture.load()
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError):
        return None
    return picture


def _type_of(picture: Image.Image) -> str:
    return _MEDIA_TYPES[picture.format or ""]
