"""Ideogram 3.0, as resellers offer it: checks requests and builds answers."""

import email.policy
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesParser
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError

from local.serving import Reply, Request, Responder
from local.upstream_replies import json_reply

PATH = "/ideogram/v1/ideogram-v3/generate"
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


class _Color(Struct, frozen=True, forbid_unknown_fields=True):
    color_hex: Annotated[str, Meta(pattern="^#[0-9A-Fa-f]{6}$")]
    color_weight: Annotated[float, Meta(gt=0, le=1)] = 1


class _Palette(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    members: Annotated[list[_Color], Meta(min_length=1)] | UnsetType = UNSET


class _Form(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    aspect_ratio: str | UnsetType = UNSET
    resolution: str | UnsetType = UNSET
    rendering_speed: Literal["TURBO", "DEFAULT", "QUALITY", "FLASH"] = "DEFAULT"
    magic_prompt: Literal["AUTO", "ON", "OFF"] = "AUTO"
    negative_prompt: str = ""
    num_images: Annotated[int, Meta(ge=1, le=8)] = 1
    seed: Annotated[int, Meta(ge=0, le=2147483647)] | UnsetType = UNSET
    style_type: Literal["AUTO", "GENERAL", "REALISTIC", "DESIGN", "FICTION"] | UnsetType = UNSET
    style_codes: list[Annotated[str, Meta(pattern="^[0-9A-Fa-f]{8}$")]] | UnsetType = UNSET
    color_palette: str | UnsetType = UNSET


class Asked(Struct, frozen=True):
    """What to paint. `expanded` is the prompt that the upstream makes of it, `size` is width x height."""

    prompt: str
    expanded: str
    size: str
    n: int
    seed: int
    style_type: str


def fields(request: Request) -> dict[str, Any] | Reply:
    """The fields of the form, or a refusal if the body is no form. `style_codes` is a list, the others are text."""
    content_type = request.header("Content-Type") or ""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return _error(415, "The Content-Type must be multipart/form-data.")
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    form = BytesParser(policy=email.policy.compat32).parsebytes(head + request.body)
    if not form.is_multipart() or form.defects:
        return _error(400, "The form is not valid.")
    sent: dict[str, Any] = {}
    for part in form.get_payload():
        name, value = _field(part) if isinstance(part, Message) else (None, None)
        if name is None or value is None:
            return _error(400, f"Invalid field: {name}.")
        if name == "style_codes":
            sent.setdefault(name, []).extend(code.strip() for code in value.split(","))
        elif name in sent:
            return _error(400, f"Repeated field: {name}.")
        else:
            sent[name] = value
    return sent


def entry(sent: dict[str, Any]) -> dict[str, Any]:
    """The entry of `StandInUpstream.calls`."""
    number = sent.get("num_images", "1")
    n = int(number) if number.isdecimal() else 1
    return {**sent, "model": MODEL, "prompt": sent.get("prompt", ""), "n": n, "protocol": PROTOCOL}


def checked(sent: dict[str, Any]) -> Asked | Reply:
    """What to paint, or a refusal."""
    try:
        form = msgspec.convert(sent, _Form, strict=False)
        palette = UNSET if form.color_palette is UNSET else msgspec.json.decode(form.color_palette, type=_Palette)
    except (ValidationError, msgspec.DecodeError) as error:
        return _error(400, str(error))
    if refusal := _refusal(form, palette):
        return _error(400, refusal)
    size = form.resolution if form.resolution is not UNSET else SIZES[form.aspect_ratio or "1x1"]
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


def _field(part: Message) -> tuple[str | None, str | None]:
    """The name and the text of a part. The text is None if the part is a file, or not UTF-8."""
    name = part.get_param("name", header="content-disposition")
    content = part.get_payload(decode=True)
    if not isinstance(name, str) or part.get_content_disposition() != "form-data":
        return None, None
    if part.get_filename() is not None or not isinstance(content, bytes):
        return name, None
    try:
        return name, content.decode()
    except UnicodeDecodeError:
        return name, None


def _refusal(form: _Form, palette: _Palette | UnsetType) -> str | None:
    """Why the values are refused, which are valid one by one."""
    has_ratio, has_resolution = form.aspect_ratio is not UNSET, form.resolution is not UNSET
    has_style, has_codes = form.style_type is not UNSET, form.style_codes is not UNSET
    applies = {
        "prompt is required.": not form.prompt.strip(),
        "aspect_ratio and resolution exclude each other.": has_ratio and has_resolution,
        f"Invalid aspect_ratio: {form.aspect_ratio}.": has_ratio and form.aspect_ratio not in SIZES,
        f"Invalid resolution: {form.resolution}.": has_resolution and form.resolution not in RESOLUTIONS,
        "style_type and style_codes exclude each other.": has_style and has_codes,
        "color_palette must have either a name or members.": palette is not UNSET
        and (palette.name is UNSET) == (palette.members is UNSET),
    }
    return next((reason for reason, is_so in applies.items() if is_so), None)


def _error(status: int, message: str, **more: str) -> Reply:
    return json_reply(status, {"error": message, **more})
