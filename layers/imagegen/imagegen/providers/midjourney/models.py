"""Defines Midjourney's models. Each image is a grid of four pictures."""

from imagegen.domain.models import Choice, ImageModel, RequestField, Text, Whole
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES
from imagegen.providers.midjourney.prompts import MOST_SEED, misfit

PROVIDER = "midjourney"

_RATIOS = (
    *("1:1", "1:2", "2:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "4:7", "7:4"),
    *("9:16", "16:9", "9:21", "21:9"),
)
_LONGEST_TEXT = 1_000  # characters; Midjourney names no limit
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
        modes=("fast", "relax", "turbo"),
        deadline_seconds=_DEADLINE_SECONDS,
    )


MODELS = (_model("mj_imagine", ("raw",)), _model("niji", ("raw", "cute", "expressive", "original", "scenic")))
