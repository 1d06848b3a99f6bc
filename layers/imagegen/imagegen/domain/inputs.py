"""Defines input images: how a request names them, what is known of them, and which of them a model accepts."""

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.image_format import JPEG, PNG, WEBP

Operation = Literal["generate", "edit", "variation", "describe"]
MaskKind = Literal["transparent", "black"]  # what an upstream changes: what is transparent, or what is black

IMAGE, MASK = "image", "mask"  # roles; the further ones are the fields of models
MEDIA_TYPES = (PNG, JPEG, WEBP)
MOST_SIDE = 16_384  # pixels; that of WebP (its container specification, "Simple File Format (Lossy)")
MOST_PIXELS = 100_000_000
MOST_BYTES = 50_000_000  # of one image; OpenAI's limit for GPT image
MOST_BYTES_OF_ALL = 16 * MOST_BYTES
_MEGABYTE = 1_000_000
_UPLOAD_ID = re.compile(r"upl_[A-Za-z0-9_-]{22}")


def new_input_id() -> str:
    """Returns an id for an image that came inside a request."""
    return f"inp_{secrets.token_urlsafe(16)}"


def new_upload_id() -> str:
    return f"upl_{secrets.token_urlsafe(16)}"


def is_upload_id(text: str) -> bool:
    return _UPLOAD_ID.fullmatch(text) is not None


class InputImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input image on the record. `role` is IMAGE, MASK or the field of the model that it came in.

    `id` is `inp_…` for an image that came inside the request, `upl_…` for an upload of the caller, `file-…` for one of
    its files, `img_…` for an image made here. `length` is in bytes, `width` and `height` are in pixels. `has_alpha` is
    whether pixels may be transparent. `is_turned` is whether its EXIF turns the stored pixels; `width` and `height` are
    then those after it.
    """

    role: str
    id: str
    sha256: str
    media_type: str
    length: int
    width: int
    height: int
    has_alpha: bool = False
    is_turned: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the image belongs to its request alone, and is deleted with it."""
        return self.id.startswith("inp_")


class GivenImage(msgspec.Struct, frozen=True):
    """An image as a request names it. `name` is its place for error messages, such as `image[2]`.

    Exactly one of the other fields is set: its content, the id of an upload, a file or an image made here, an https
    URL, or the URI of an object in S3.
    """

    role: str
    name: str
    content: bytes | memoryview | None = None
    id: str | None = None
    url: str | None = None
    s3_uri: str | None = None

    def __repr__(self) -> str:
        """Leaves out what the caller sent, and so keeps it out of logs."""
        return f"GivenImage({self.name!r})"


def _always_fits(_options: Mapping[str, Any], _roles: Collection[str]) -> None:
    return None


class InputRules(msgspec.Struct, frozen=True):
    """The input images that a model accepts for an operation.

    `least` and `most` are the numbers of images. `most_bytes` is of each. `mask` is whether there may be a mask, which
    then has the size of the first image. `references` are the fields of further images, with the most images of each.
    With `square`, images must be square. No side may be under `least_side` pixels, and no side longer than
    `widest_ratio` times the other. With `made_here`, the image must be one that the model's provider made in this
    stack. With `transparent`, an image without a mask must have transparent pixels itself. `needs_prompt` is whether
    the request must have a prompt. `needs` are the fields that it must have. `misfit` finds a field that does not fit
    the roles of the images: it returns its name and what is wrong.
    """

    least: int = 1
    most: int = 16  # as OpenAI
    most_bytes: int = MOST_BYTES
    mask: bool = False
    references: Mapping[str, int] = {}
    square: bool = False
    least_side: int = 1
    widest_ratio: float = float(MOST_SIDE)
    made_here: bool = False
    transparent: bool = False
    needs_prompt: bool = True
    needs: tuple[str, ...] = ()
    misfit: Callable[[Mapping[str, Any], Collection[str]], tuple[str, str] | None] = _always_fits

    def most_of(self, role: str) -> int:
        """Returns how many images of a role a request may have."""
        return self.most if role == IMAGE else int(self.mask) if role == MASK else self.references.get(role, 0)

    def wrong_image(self, image: InputImage) -> str | None:
        """Returns what is wrong with an image, `None` if the model accepts it."""
        width, height = image.width, image.height
        if image.length > self.most_bytes:
            return f"it has {image.length} bytes, and at most {self.most_bytes // _MEGABYTE} MB are allowed"
        if self.square and width != height:
            return f"it has {width}x{height} pixels, and it must be square"
        if min(width, height) < self.least_side:
            return f"it has {width}x{height} pixels, and each side must have at least {self.least_side}"
        if max(width, height) > self.widest_ratio * min(width, height):
            return f"it has {width}x{height} pixels, and the ratio of its sides must be at most {self.widest_ratio:g}:1"
        return None


def wrong_size(width: int, height: int) -> str | None:
    """Returns what is wrong with a size for every model, `None` if nothing is."""
    if max(width, height) > MOST_SIDE:
        return f"it has {width}x{height} pixels, and no side may have more than {MOST_SIDE}"
    if width * height > MOST_PIXELS:
        return f"it has {width}x{height} pixels, and at most {MOST_PIXELS // 1_000_000} megapixels are allowed"
    return None


class InputContent(msgspec.Struct, frozen=True):
    """The content of an input image, ready to be sent. Each call of `blocks` reads it from its beginning."""

    media_type: str
    length: int
    blocks: Callable[[], Iterator[bytes]]


class UpstreamInput(msgspec.Struct, frozen=True):
    """An input image of an upstream call.

    `open` gives its content in one of the media types, converted if it has another or is turned. With a
    MaskKind, it gives a mask of that kind. Raises InvalidImageError, InputUnavailableError.
    """

    image: InputImage
    open: Callable[[Deadline, Sequence[str], MaskKind | None], AbstractContextManager[InputContent]]


class ReadInput(msgspec.Struct, frozen=True):
    """A stored image that is being read. `blocks` yields its `length` bytes, less those before the offset.

    `generation_id` is that of the generation that made it, "" for any other image.
    """

    length: int
    blocks: Iterator[bytes]
    generation_id: str = ""


class SignedUpload(msgspec.Struct, frozen=True):
    """A PUT with these headers that works without credentials until `expires_at` (Unix seconds)."""

    url: str
    headers: Mapping[str, str]
    expires_at: int

    def __repr__(self) -> str:
        """Leaves out the URL, whose signature is a secret."""
        return f"SignedUpload({self.expires_at})"
