"""Defines Kling's models (app.klingai.com/global/dev, "Image Generation")."""

from imagegen.domain.models import Choice, ImageModel, RequestField, Text
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES

PROVIDER = "kling"
DEFAULT_RATIO = "16:9"

_RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3")
_LONGEST_TEXT = 2_500  # characters
_DEADLINE_SECONDS = 900


def _model(name: str, *, ratios: tuple[str, ...], resolutions: tuple[str, ...]) -> ImageModel:
    return ImageModel(
        id=name,
        owned_by="kling",
        provider=PROVIDER,
        own_fields=(
            RequestField("size", Choice(SIZES, defaults=("auto",)), DESCRIPTION),
            RequestField("aspect_ratio", Choice(ratios), "Instead of `size`.", default=DEFAULT_RATIO),
            RequestField("resolution", Choice(resolutions), "", default=resolutions[0]),
            RequestField("negative_prompt", Text(_LONGEST_TEXT), "What the image must not show."),
        ),
        default_response_format="url",
        images_per_call=9,
        prompt_limit=_LONGEST_TEXT,
        prompt_capped=False,
        exclusive_fields=(("size", "aspect_ratio"),),
        priced_by=("resolution",),
        by_task=True,
        slot_per_image=True,  # Kling's guide to concurrency: a task takes as many slots as it has images
        deadline_seconds=_DEADLINE_SECONDS,
    )


MODELS = (
    _model("kling-v1", ratios=_RATIOS, resolutions=("1k",)),
    _model("kling-v1-5", ratios=(*_RATIOS, "21:9"), resolutions=("1k",)),
    _model("kling-v2", ratios=(*_RATIOS, "21:9"), resolutions=("1k", "2k")),
    _model("kling-v2-1", ratios=(*_RATIOS, "21:9"), resolutions=("1k", "2k")),
)
