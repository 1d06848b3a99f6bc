"""Defines Ideogram's models (developer.ideogram.ai, generate-v3)."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from imagegen.domain.inputs import MASK, InputRules
from imagegen.domain.models import Choice, ImageModel, RequestField, Structured, Text, Whole
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES

PROVIDER = "ideogram"

_TALL = (
    *("512x1536", "576x1408", "576x1472", "576x1536", "640x1344", "640x1408", "640x1472", "640x1536", "704x1152"),
    *("704x1216", "704x1280", "704x1344", "704x1408", "704x1472", "736x1312", "768x1088", "768x1216", "768x1280"),
    *("768x1344", "800x1280", "832x960", "832x1024", "832x1088", "832x1152", "832x1216", "832x1248", "864x1152"),
    *("896x960", "896x1024", "896x1088", "896x1120", "896x1152", "960x1024", "960x1088"),
)
RESOLUTIONS = (*_TALL, "1024x1024", *("x".join(reversed(tall.split("x"))) for tall in _TALL))
ASPECT_RATIOS = (
    *("1x3", "3x1", "1x2", "2x1", "9x16", "16x9", "10x16", "16x10"),
    *("2x3", "3x2", "3x4", "4x3", "4x5", "5x4", "1x1"),
)
_PALETTES = ("EMBER", "FRESH", "JUNGLE", "MAGIC", "MELON", "MOSAIC", "PASTEL", "ULTRAMARINE")
_MOST_CODES = 10  # Ideogram names no limit, but the size of a record is limited
_MOST_COLORS = 16  # likewise
_LONGEST_TEXT = 2_000  # characters; likewise
_CODE = re.compile(r"[0-9A-Fa-f]{8}")
_COLOR = re.compile(r"#[0-9A-Fa-f]{6}")


def _are_codes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _MOST_CODES
        and all(isinstance(code, str) and _CODE.fullmatch(code) for code in value)
    )


def _is_palette(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.keys() == {"name"}:
        return value["name"] in _PALETTES
    members = value.get("members")
    return (
        value.keys() == {"members"}
        and isinstance(members, list)
        and 1 <= len(members) <= _MOST_COLORS
        and all(isinstance(member, dict) and _is_color(member) for member in members)
    )


def _is_color(member: dict[str, Any]) -> bool:
    color, weight = member.get("color_hex"), member.get("color_weight")
    return (
        member.keys() <= {"color_hex", "color_weight"}
        and isinstance(color, str)
        and _COLOR.fullmatch(color) is not None
        and (
            "color_weight" not in member
            or (isinstance(weight, int | float) and not isinstance(weight, bool) and 0.05 <= weight <= 1)
        )
    )


def _digits(pattern: re.Pattern[str], length: int) -> dict[str, Any]:
    """Returns the schema. The length excludes a line break at the end, which `$` allows in some languages."""
    return {"type": "string", "pattern": f"^{pattern.pattern}$", "minLength": length, "maxLength": length}


_CODES = Structured(
    f"a list of 1 to {_MOST_CODES} codes of 8 hexadecimal digits",
    {
        "type": "array",
        "items": _digits(_CODE, 8),
        "minItems": 1,
        "maxItems": _MOST_CODES,
    },
    _are_codes,
)
_COLOR_SCHEMA = {
    "type": "object",
    "properties": {
        "color_hex": _digits(_COLOR, 7),
        "color_weight": {"type": "number", "minimum": 0.05, "maximum": 1},
    },
    "required": ["color_hex"],
    "additionalProperties": False,
}
_PALETTE = Structured(
    f'{{"name": …}} with one of {", ".join(_PALETTES)}, '
    'or {"members": [{"color_hex": "#RRGGBB", "color_weight": 0.5}]}',
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"name": {"enum": list(_PALETTES)}},
                "required": ["name"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {
                    "members": {"type": "array", "items": _COLOR_SCHEMA, "minItems": 1, "maxItems": _MOST_COLORS}
                },
                "required": ["members"],
                "additionalProperties": False,
            },
        ]
    },
    _is_palette,
)

STYLE_IMAGES, CHARACTER_IMAGES = "style_reference_images", "character_reference_images"
_MOST_BYTES = 10_000_000
NOT_IN_AN_EDIT = ("size", "aspect_ratio", "resolution", "negative_prompt", "image_weight")
STYLES = ("style_type", "style_codes")


def _misfit(options: Mapping[str, Any], roles: Collection[str]) -> tuple[str, str] | None:
    """With a mask, the call is Ideogram's edit, else its remix."""
    if MASK in roles:
        for name in NOT_IN_AN_EDIT:
            if name in options:
                return name, "it cannot be combined with 'mask'"
    if STYLE_IMAGES in roles:
        for name in STYLES:
            if name in options:
                return name, f"it cannot be combined with '{STYLE_IMAGES}'"
    return None


MODELS = (
    ImageModel(
        id="ideogram-v3",
        owned_by="ideogram",
        provider=PROVIDER,
        own_fields=(
            RequestField("size", Choice(SIZES, defaults=("auto",)), DESCRIPTION),
            RequestField("aspect_ratio", Choice(ASPECT_RATIOS), "Instead of `size`.", default="1x1"),
            RequestField("resolution", Choice(RESOLUTIONS), "For Ideogram instead of `size` and `aspect_ratio`."),
            RequestField("rendering_speed", Choice(("FLASH", "TURBO", "DEFAULT", "QUALITY")), "", default="DEFAULT"),
            RequestField(
                "magic_prompt", Choice(("AUTO", "ON", "OFF")), "Whether Ideogram expands the prompt.", default="AUTO"
            ),
            RequestField("negative_prompt", Text(_LONGEST_TEXT), "What the image must not show."),
            RequestField("seed", Whole(0, 2_147_483_647), "The same seed gives similar images."),
            RequestField(
                "style_type", Choice(("AUTO", "GENERAL", "REALISTIC", "DESIGN", "FICTION")), "", default="GENERAL"
            ),
            RequestField("style_codes", _CODES, "Codes of 8 hexadecimal digits, instead of `style_type`."),
            RequestField("color_palette", _PALETTE, "A named palette, or colors with weights."),
            RequestField(
                "image_weight",
                Whole(1, 100),
                "How closely the image is followed, without a mask.",
                default=50,
                operations=("edit",),
            ),
        ),
        default_response_format="url",
        images_per_call=8,
        exclusive_fields=(("size", "aspect_ratio", "resolution"), ("style_type", "style_codes")),
        priced_by=("rendering_speed",),
        inputs={
            "edit": InputRules(
                most=1,
                most_bytes=_MOST_BYTES,
                mask=True,
                references={STYLE_IMAGES: 3, CHARACTER_IMAGES: 1},  # Ideogram: 10 MB of style images in all
                misfit=_misfit,
            )
        },
        slot_per_image=True,  # developer.ideogram.ai, "Rate Limits": ten images in flight
    ),
)
