"""Ideogram 3.0, as resellers offer it: checks requests and builds answers."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError

from local import upstream_painting as painting
from local.serving import Reply, Request, Responder
from local.upstream_forms import Part, media_type_of, read_form
from local.upstream_inputs import MEDIA_TYPES, MEGABYTE, Input, black_area, read_file
from local.upstream_replies import json_reply
from local.upstream_studio import Studio

PATHS = {operation: f"/ideogram/v1/ideogram-v3/{operation}" for operation in ("generate", "edit", "remix")}
PATH = PATHS["generate"]
PROTOCOL = "ideogram"
MODEL = "ideogram-v3"

_PORTRAITS = (
    "512x1536 576x1408 576x1472 576x1536 640x1344 640x1408 640x1472 640x1536 704x1152 704x1216 704x1280 704x1344 "
    "704x1408 704x1472 736x1312 768x1088 768x1216 768x1280 768x1344 800x1280 832x960 832x1024 832x1088 832x1152 "
    "832x1216 832x1248 864x1152 896x960 896x1024 896x1088 896x1120 896x1152 960x1024 960x1088"
)
RESOLUTIONS = {
    "1024x1024",
    *_PORTRAITS.split(),
    *("x".join(reversed(size.split("x"))) for size in _PORTRAITS.split()),
}
# The resolution whose ratio is closest: exact except for 9x16 and 16x9.
SIZES = {
    "1x1": "1024x1024",
    "1x3": "512x1536",
    "3x1": "1536x512",
    "1x2": "704x1408",
    "2x1": "1408x704",
    "9x16": "736x1312",
    "16x9": "1312x736",
    "10x16": "800x1280",
    "16x10": "1280x800",
    "2x3": "832x1248",
    "3x2": "1248x832",
    "3x4": "864x1152",
    "4x3": "1152x864",
    "4x5": "896x1120",
    "5x4": "1120x896",
}
# How many files of each name a call takes.
_FILES = {"style_reference_images": 99, "character_reference_images": 1, "character_reference_images_mask": 1}
_FILES_OF = {
    "generate": _FILES,
    "edit": _FILES | {"image": 1, "mask": 1},
    "remix": _FILES | {"image": 1},
}
_MOST_BYTES = 10 * MEGABYTE  # of an image, and of all style_reference_images


class _Color(Struct, frozen=True, forbid_unknown_fields=True):
    color_hex: Annotated[str, Meta(pattern="^#[0-9A-Fa-f]{6}$")]
    color_weight: Annotated[float, Meta(gt=0, le=1)] = 1


class _Palette(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    members: Annotated[list[_Color], Meta(min_length=1)] | UnsetType = UNSET


class _Edit(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    rendering_speed: Literal["TURBO", "DEFAULT", "QUALITY", "FLASH"] = "DEFAULT"
    magic_prompt: Literal["AUTO", "ON", "OFF"] = "AUTO"
    num_images: Annotated[int, Meta(ge=1, le=8)] = 1
    seed: Annotated[int, Meta(ge=0, le=2147483647)] | UnsetType = UNSET
    style_type: Literal["AUTO", "GENERAL", "REALISTIC", "DESIGN", "FICTION"] | UnsetType = UNSET
    style_codes: list[Annotated[str, Meta(pattern="^[0-9A-Fa-f]{8}$")]] | UnsetType = UNSET
    color_palette: str | UnsetType = UNSET


class _Generate(_Edit, frozen=True, forbid_unknown_fields=True):
    aspect_ratio: str | UnsetType = UNSET
    resolution: str | UnsetType = UNSET
    negative_prompt: str = ""


class _Remix(_Generate, frozen=True, forbid_unknown_fields=True):
    image_weight: Annotated[int, Meta(ge=1, le=100)] = 50


_FORMS: dict[str, type[_Edit]] = {"generate": _Generate, "edit": _Edit, "remix": _Remix}


class Asked(Struct, frozen=True):
    """What to paint. `expanded` is the prompt that the upstream makes of it, `size` is width x height."""

    prompt: str
    expanded: str
    size: str
    n: int
    seed: int
    style_type: str


class Sent(Struct, frozen=True):
    """A request. `operation` is the end of its path. Of the texts, `style_codes` is a list."""

    operation: str
    texts: dict[str, Any]
    files: list[Input]

    def entry(self) -> dict[str, Any]:
        """The entry of `StandInUpstream.calls`."""
        number = self.texts.get("num_images", "1")
        n = int(number) if number.isdecimal() else 1
        call = {**self.texts, "model": MODEL, "prompt": self.texts.get("prompt", ""), "n": n, "protocol": PROTOCOL}
        if self.operation != "generate":
            call["operation"] = self.operation
        if self.files or self.operation != "generate":
            call["images"] = self.images
        return call | {file.name: file for file in self.named("mask")}

    @property
    def images(self) -> list[Input]:
        return [file for file in self.files if file.name != "mask"]

    def named(self, name: str) -> list[Input]:
        return [file for file in self.files if file.name == name]

    def answer(self, studio: Studio, request: Request) -> Reply:
        asked = _checked(self)
        if isinstance(asked, Reply):
            return asked
        strip = painting.strip_of(image.picture for image in self.images)
        kept = next((file.picture for file in self.named("image")), None)
        area = next((black_area(file.picture) for file in self.named("mask") if file.picture), None)

        def paint() -> bytes:
            index = studio.next_index(asked.prompt)
            if kept and area:
                return painting.paint_in(area, kept, asked.prompt, index, asked.size, "png", strip)
            return painting.paint(asked.prompt, index, asked.size, strip=strip)

        return answer(asked, [studio.hosted(paint(), "png", asked.prompt, request) for _ in range(asked.n)])


def reader(operation: str) -> Callable[[Request], Sent | Reply]:
    """Reads the forms of an operation, or refuses what is no such form."""

    def read(request: Request) -> Sent | Reply:
        if media_type_of(request) != "multipart/form-data":
            return _error(415, "The Content-Type must be multipart/form-data.")
        parts = read_form(request)
        return _error(400, "The form is not valid.") if parts is None else _read(operation, parts)

    return read


def _read(operation: str, parts: list[Part]) -> Sent | Reply:
    texts: dict[str, Any] = {}
    files: list[Input] = []
    for part in parts:
        text = part.text()
        if part.filename is not None and part.name in _FILES_OF[operation]:
            files.append(read_file(part))
        elif text is None or part.name in _FILES_OF[operation]:
            return _error(400, f"Invalid field: {part.name}.")
        elif part.name == "style_codes":
            texts.setdefault(part.name, []).extend(code.strip() for code in text.split(","))
        elif part.name in texts:
            return _error(400, f"Repeated field: {part.name}.")
        else:
            texts[part.name] = text
    return Sent(operation, texts, files)


def _checked(sent: Sent) -> Asked | Reply:
    """What to paint, or a refusal."""
    try:
        form = msgspec.convert(sent.texts, _FORMS[sent.operation], strict=False)
        palette = UNSET if form.color_palette is UNSET else msgspec.json.decode(form.color_palette, type=_Palette)
    except (ValidationError, msgspec.DecodeError) as error:
        return _error(400, str(error))
    refusal = _refusal(form, palette, sent) or next(chain(_wrong_files(sent), _wrong_masks(sent)), None)
    if refusal:
        return _error(400, refusal)
    if isinstance(form, _Generate):
        size = form.resolution if form.resolution is not UNSET else SIZES[form.aspect_ratio or "1x1"]
    else:
        size = "x".join(map(str, sent.named("image")[0].sides))
    return Asked(
        prompt=form.prompt,
        expanded=form.prompt if form.magic_prompt == "OFF" else f"{form.prompt}, in detail",
        size=size,
        n=form.num_images,
        seed=zlib.crc32(form.prompt.encode()) >> 1 if form.seed is UNSET else form.seed,
        style_type=form.style_type or "GENERAL",
    )


def answer(asked: Asked, urls: Sequence[str]) -> Reply:
    """An answer with the images at these URLs. An image whose URL is empty is not safe."""
    images = [
        {
            "url": url,
            "prompt": asked.expanded,
            "resolution": asked.size,
            "seed": asked.seed,
            "style_type": asked.style_type,
            "is_image_safe": bool(url),
        }
        for url in urls
    ]
    return json_reply(200, {"created": datetime.now(UTC).isoformat(), "data": images})


# Scripts for `StandInUpstream`


def images_at(*urls: str) -> Responder:
    """Images at these URLs, for any request. An image whose URL is empty is not safe."""
    asked = Asked("a cat", "a cat, in detail", "1024x1024", len(urls), 12345, "GENERAL")
    return lambda _: answer(asked, urls)


def unsafe_image() -> Responder:
    """One image that is not safe, which is charged."""
    return images_at("")


def unsafe_prompt() -> Responder:
    return lambda _: _error(422, "The prompt failed the safety check.")


def insufficient_funds() -> Responder:
    return lambda _: _error(402, "Not enough credit.", reject_reason="insufficient_funds")


def inflight_limit() -> Responder:
    return lambda _: _error(429, "Too many images in flight.", reject_reason="inflight_limit")


def _refusal(form: _Edit, palette: _Palette | UnsetType, sent: Sent) -> str | None:
    """Why the values are refused, which are valid one by one."""
    ratio = form.aspect_ratio if isinstance(form, _Generate) else UNSET
    resolution = form.resolution if isinstance(form, _Generate) else UNSET
    has_style, has_codes = form.style_type is not UNSET, form.style_codes is not UNSET
    applies = {
        "prompt is required.": not form.prompt.strip(),
        "aspect_ratio and resolution exclude each other.": UNSET not in (ratio, resolution),
        f"Invalid aspect_ratio: {ratio}.": ratio is not UNSET and ratio not in SIZES,
        f"Invalid resolution: {resolution}.": resolution is not UNSET and resolution not in RESOLUTIONS,
        "style_type and style_codes exclude each other.": has_style and has_codes,
        "style_codes and style_reference_images exclude each other.": has_codes
        and bool(sent.named("style_reference_images")),
        "color_palette must have either a name or members.": palette is not UNSET
        and (palette.name is UNSET) == (palette.members is UNSET),
    }
    return next((reason for reason, is_so in applies.items() if is_so), None)


def _wrong_files(sent: Sent) -> Iterator[str]:
    """Why the files are refused."""
    for name, most in _FILES_OF[sent.operation].items():
        if len(sent.named(name)) > most:
            yield f"Too many files: {name}."
    for name in {"image", "mask"} & _FILES_OF[sent.operation].keys():
        if not sent.named(name):
            yield f"{name} is required."
    for file in sent.files:
        if file.media_type not in MEDIA_TYPES or not file.is_what_it_says:
            yield f"{file.name} must be a JPEG, PNG or WebP, and declare so."
        if len(file.content) > _MOST_BYTES:
            yield f"{file.name} is too large."
    if sum(len(file.content) for file in sent.named("style_reference_images")) > _MOST_BYTES:
        yield "style_reference_images are too large in total."


def _wrong_masks(sent: Sent) -> Iterator[str]:
    """Why the masks are refused."""
    for mask, image in (("mask", "image"), ("character_reference_images_mask", "character_reference_images")):
        if sent.named(mask) and [file.sides for file in sent.named(mask)] != [file.sides for file in sent.named(image)]:
            yield f"{mask} must have the size of {image}."
    for file in sent.named("mask"):
        if file.picture and not black_area(file.picture):
            yield "mask must be black and white, and have a black pixel."


def _error(status: int, message: str, **more: str) -> Reply:
    return json_reply(status, {"error": message, **more})
