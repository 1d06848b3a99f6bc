"""Defines Midjourney's models. Each image is a grid of four pictures, except that of `mj_upscale`."""

from collections.abc import Mapping

from imagegen.domain.inputs import InputRules, Operation
from imagegen.domain.models import Choice, ImageModel, RequestField, Text, Whole
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES
from imagegen.providers.midjourney.prompts import MOST_SEED, misfit

PROVIDER = "midjourney"

_RATIOS = (
    *("1:1", "1:2", "2:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "4:7", "7:4"),
    *("9:16", "16:9", "9:21", "21:9"),
)
_MODES = ("fast", "relax", "turbo")
_LONGEST_TEXT = 1_000  # characters; Midjourney names no limit
_MOST_IMAGES = 5  # that of a blend; Midjourney names no number for an imagine
_MOST_BYTES = 10_000_000
# By `size`, the dimensions of a blend.
DIMENSIONS: Mapping[str, str] = {"1024x1024": "SQUARE", "1024x1536": "PORTRAIT", "1536x1024": "LANDSCAPE"}
BLEND, DESCRIBE = "mj_blend", "mj_describe"
# The models that work on a grid that Midjourney made, with the names of what they do.
CHANGES: Mapping[str, str] = {"mj_upscale": "upscale", "mj_variation": "variation", "mj_reroll": "reroll"}
_N = RequestField("n", Whole(1, 1), "One for each request.", sent=False, default=1)
_INDEX = RequestField(
    "index", Whole(1, 4), "1 top left, 2 top right, 3 bottom left, 4 bottom right of the grid. Required."
)
_DEADLINE_SECONDS = 3_900  # resellers end a task after an hour (new-api, `controller/midjourney.go`)


def _model(name: str, styles: tuple[str, ...]) -> ImageModel:
    return ImageModel(
        id=name,
        owned_by="midjourney",
        provider=PROVIDER,
        own_fields=(
            RequestField("size", Choice(SIZES, defaults=("auto",)), DESCRIPTION),
            RequestField("aspect_ratio", Choice(_RATIOS), "Instead of `size`."),
            RequestField("seed", Whole(0, MOST_SEED), "Further grids of the request get the next numbers."),
            RequestField("negative_prompt", Text(_LONGEST_TEXT), "What the image must not show."),
            RequestField("style", Choice(styles, defaults=("vivid",)), "`vivid` means the default."),
        ),
        default_response_format="url",
        images_per_call=1,
        exclusive_fields=(("size", "aspect_ratio"),),
        priced_by=(),
        misfit=misfit,
        by_task=True,
        modes=_MODES,
        deadline_seconds=_DEADLINE_SECONDS,
        inputs={"edit": InputRules(most=_MOST_IMAGES, most_bytes=_MOST_BYTES)},
    )


def _without_prompt(
    name: str, rules: InputRules, *own_fields: RequestField, operation: Operation = "edit"
) -> ImageModel:
    return ImageModel(
        id=name,
        owned_by="midjourney",
        provider=PROVIDER,
        own_fields=(_N, *own_fields),
        default_response_format="url",
        images_per_call=1,
        priced_by=(),
        by_task=True,
        modes=_MODES,
        deadline_seconds=_DEADLINE_SECONDS,
        inputs={operation: rules},
        generates=False,
    )


_OF_A_GRID = InputRules(most=1, made_here=True, needs_prompt=False)
_OF_A_PICTURE = InputRules(most=1, made_here=True, needs_prompt=False, needs=("index",))
MODELS = (
    _model("mj_imagine", ("raw",)),
    _model("niji", ("raw", "cute", "expressive", "original", "scenic")),
    _without_prompt(
        BLEND,
        InputRules(least=2, most=_MOST_IMAGES, most_bytes=_MOST_BYTES, needs_prompt=False),
        RequestField("size", Choice(tuple(DIMENSIONS), defaults=("auto",)), "The dimensions of the blend."),
    ),
    _without_prompt(DESCRIBE, InputRules(most=1, most_bytes=_MOST_BYTES, needs_prompt=False), operation="describe"),
    _without_prompt("mj_upscale", _OF_A_PICTURE, _INDEX),
    _without_prompt("mj_variation", _OF_A_PICTURE, _INDEX),
    _without_prompt("mj_reroll", _OF_A_GRID),
)
