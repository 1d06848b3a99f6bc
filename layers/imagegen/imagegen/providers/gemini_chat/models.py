"""Defines Gemini's image models (js-genai, `ImageConfig`; the reseller's page for Gemini in a chat)."""

from imagegen.domain.inputs import InputRules
from imagegen.domain.models import Choice, ImageModel, RequestField
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES

PROVIDER = "gemini-chat"
DEFAULT_SIZES = ("auto",)

_SIZE = RequestField("size", Choice(SIZES, defaults=DEFAULT_SIZES), DESCRIPTION)
_ASPECT_RATIO = RequestField(
    "aspect_ratio",
    Choice(("1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9", "21:9")),
    "Instead of `size`. Without both, the upstream chooses.",
)
_IMAGE_SIZE = RequestField("image_size", Choice(("1K", "2K", "4K")), "The length of the longer edge.", default="1K")
# Gemini 2.0 knows neither a ratio nor a size.
# Google's guide to image generation: "up to 14 images" for Gemini 3; it gives no number for the others, but limits a
# request to 20 MB.
_MOST_IMAGES = 14
_MOST_BYTES = 14_000_000  # as base64 within those 20 MB
_NO_SIZE = RequestField("size", Choice(("1024x1024",), defaults=DEFAULT_SIZES), "", sent=False)


def _gemini(model_id: str, *fields: RequestField) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="google",
        provider=PROVIDER,
        own_fields=fields,
        default_response_format="url",
        images_per_call=1,
        exclusive_fields=(("size", "aspect_ratio"),) if _ASPECT_RATIO in fields else (),
        priced_by=("image_size",),
        inputs={"edit": InputRules(most=_MOST_IMAGES, most_bytes=_MOST_BYTES)},
    )


MODELS = (
    _gemini("gemini-2.0-flash-exp-image-generation", _NO_SIZE),
    _gemini("gemini-2.5-flash-image", _SIZE, _ASPECT_RATIO),
    _gemini("gemini-3-pro-image", _SIZE, _ASPECT_RATIO, _IMAGE_SIZE),
)
