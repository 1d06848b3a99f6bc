"""Defines Kling's models (app.klingai.com/global/dev, "Image Generation")."""

from collections.abc import Collection, Mapping
from typing import Any

from imagegen.domain.inputs import InputRules
from imagegen.domain.models import Choice, Decimal, ImageModel, RequestField, Text
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES

PROVIDER = "kling"
DEFAULT_RATIO = "16:9"

RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3")
DEFAULT_REFERENCE = "subject"  # Kling requires one
_LONGEST_TEXT = 2_500  # characters
_DEADLINE_SECONDS = 900
# Of an input image.
_MOST_BYTES = 10_000_000
_LEAST_SIDE = 300  # pixels
_WIDEST_RATIO = 2.5


def _misfit(options: Mapping[str, Any], _roles: Collection[str]) -> tuple[str, str] | None:
    if "human_fidelity" in options and options.get("image_reference", DEFAULT_REFERENCE) != "subject":
        return "human_fidelity", "it is only for image_reference 'subject'"
    return None


def _model(
    name: str, *, ratios: tuple[str, ...], resolutions: tuple[str, ...] = (), has_reference: bool = False
) -> ImageModel:
    """Without `resolutions`, the model only changes images."""
    references = (
        RequestField(
            "image_reference",
            Choice(("subject", "face")),
            "What of the image is followed.",
            default=DEFAULT_REFERENCE,
            operations=("edit",),
        ),
        RequestField(
            "human_fidelity",
            Decimal(0, 1),
            "How closely a face is followed, with `subject`.",
            default=0.45,
            operations=("edit",),
        ),
    )
    resolution = RequestField(
        "resolution", Choice(resolutions), "", default=next(iter(resolutions), None), operations=("generate",)
    )
    negative_prompt = RequestField(
        "negative_prompt", Text(_LONGEST_TEXT), "What the image must not show.", operations=("generate",)
    )
    return ImageModel(
        id=name,
        owned_by="kling",
        provider=PROVIDER,
        own_fields=(
            RequestField("size", Choice(SIZES, defaults=("auto",)), DESCRIPTION),
            RequestField("aspect_ratio", Choice(ratios), "Instead of `size`.", default=DEFAULT_RATIO),
            *((resolution, negative_prompt) if resolutions else ()),
            *(references if has_reference else ()),
            RequestField(
                "image_fidelity",
                Decimal(0, 1),
                "How closely the image is followed.",
                default=0.5,
                operations=("edit",),
            ),
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
        inputs={
            "edit": InputRules(
                most=1,
                most_bytes=_MOST_BYTES,
                least_side=_LEAST_SIDE,
                widest_ratio=_WIDEST_RATIO,
                misfit=_misfit,
            )
        },
        generates=bool(resolutions),
    )


def _try_on(name: str) -> ImageModel:
    """The first image is the person, the second one the garment."""
    return ImageModel(
        id=name,
        owned_by="kling",
        provider=PROVIDER,
        own_fields=(),
        default_response_format="url",
        images_per_call=1,
        prompt_limit=_LONGEST_TEXT,
        prompt_capped=False,
        priced_by=(),
        by_task=True,
        slot_per_image=True,
        deadline_seconds=_DEADLINE_SECONDS,
        inputs={
            "edit": InputRules(
                least=2,
                most=2,
                most_bytes=_MOST_BYTES,
                least_side=_LEAST_SIDE,
                widest_ratio=_WIDEST_RATIO,
                needs_prompt=False,
            )
        },
        generates=False,
    )


TRY_ON = (_try_on("kolors-virtual-try-on-v1"), _try_on("kolors-virtual-try-on-v1-5"))
MODELS = (
    _model("kling-v1", ratios=RATIOS, resolutions=("1k",)),
    _model("kling-v1-5", ratios=(*RATIOS, "21:9"), resolutions=("1k",), has_reference=True),
    _model("kling-v2", ratios=(*RATIOS, "21:9"), resolutions=("1k", "2k")),
    _model("kling-v2-new", ratios=(*RATIOS, "21:9")),
    _model("kling-v2-1", ratios=(*RATIOS, "21:9"), resolutions=("1k", "2k")),
    *TRY_ON,
)
