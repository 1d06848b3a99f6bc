"""Defines the models of OpenAI's images API, as OpenAI and its resellers sell them.

Limits are those of OpenAI (openai-python 3.54, `image_generate_params.py`) and, for Flux, of the reseller's page for
Flux in the format of dall-e-3; for Flux Kontext those of other resellers. The deployer's limit of prompts applies to
the models whose own limit is 4,000 or less, or unknown.
"""

from imagegen.domain.inputs import InputRules
from imagegen.domain.models import (
    LONGEST_USER,
    MAX_IMAGES,
    MOST_COMPRESSION,
    RESPONSE_FORMATS,
    Choice,
    FreeSizes,
    ImageModel,
    RequestField,
    Text,
    Whole,
)
from imagegen.providers.aspect_ratios import DESCRIPTION, SIZES

PROVIDER = "openai"

_DEFAULT_QUALITIES = ("standard", "auto")
_GPT_QUALITIES = ("low", "medium", "high", "auto")
_GPT_2_5_QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto")
# The least number of pixels is that of OpenAI, which refuses 512x512.
_GPT_2_SIZES = FreeSizes(
    multiple_of=16, longest_edge=3840, least_pixels=655_360, most_pixels=3840 * 2160, widest_ratio=3
)
_USER = RequestField(
    "user", Text(LONGEST_USER), "An identifier of the caller's end user. Sent to the upstreams that accept it."
)
_SAFETY_IDENTIFIER = RequestField("safety_identifier", Text(LONGEST_USER), _USER.description)
_RESPONSE_FORMAT = RequestField("response_format", Choice(RESPONSE_FORMATS), "")


def _size(*values: str, free: FreeSizes | None = None, default: str | None = None) -> RequestField:
    return RequestField("size", Choice(values, free=free), "Without it, the upstream chooses.", default=default)


def _quality(*values: str, default: str, sent: bool = True) -> RequestField:
    return RequestField("quality", Choice(values, defaults=_DEFAULT_QUALITIES), "", sent=sent, default=default)


# OpenAI names no models for these fields. It refuses them, without a charge, for a model that lacks them.
_NEWER_FIELDS = (
    RequestField("complexity", Choice(("low", "medium", "high")), "How much is computed to plan the image."),
    RequestField("frame_count", Whole(2, 16), "Frames of a `gif`.", default=9),
    RequestField("frame_duration_ms", Whole(1, 655_350), "Milliseconds of each frame of a `gif`.", default=200),
)
_FORMATS = ("png", "jpeg", "webp")
# GPT image 2 and later have no such field (openai-python 3.57, `image_edit_params.py`).
_INPUT_FIDELITY = RequestField(
    "input_fidelity",
    Choice(("high", "low")),
    "How closely the images are followed.",
    default="low",
    operations=("edit",),
)
_DALL_E_2_BYTES = 4_000_000
_ONE_IMAGE = InputRules(most=1)


def _gpt_image(
    model_id: str,
    *,
    qualities: tuple[str, ...] = _GPT_QUALITIES,
    free_sizes: FreeSizes | None = None,
    newer_fields: tuple[RequestField, ...] = (),
) -> ImageModel:
    formats = (*_FORMATS, "gif") if newer_fields else _FORMATS
    return ImageModel(
        id=model_id,
        owned_by="openai",
        provider=PROVIDER,
        own_fields=(
            _size("1024x1024", "1536x1024", "1024x1536", "auto", free=free_sizes, default="auto"),
            _quality(*qualities, default="auto"),
            RequestField(
                "background",
                Choice(("transparent", "opaque", "auto")),
                "`transparent` only with `png` and `webp`.",
                default="auto",
            ),
            RequestField(
                "moderation",
                Choice(("low", "auto")),
                "How strictly OpenAI moderates the prompt.",
                default="auto",
                operations=("generate",),
            ),
            *(() if newer_fields else (_INPUT_FIDELITY,)),
            RequestField("output_format", Choice(formats), "Without it, the upstream chooses.", default="png"),
            RequestField(
                "output_compression",
                Whole(0, MOST_COMPRESSION),
                f"Values below {MOST_COMPRESSION} only for `jpeg` and `webp`.",
                default=MOST_COMPRESSION,
            ),
            *newer_fields,
            _USER,
            _SAFETY_IDENTIFIER,
        ),
        default_response_format="b64_json",
        images_per_call=MAX_IMAGES,
        prompt_capped=False,
        inputs={"edit": InputRules(mask=True)},
    )


def _flux(model_id: str) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="black-forest-labs",
        provider=PROVIDER,
        own_fields=(
            _size(
                *("1024x1024", "1024x576", "1024x768", "1024x512", "512x1024", "512x768"),
                *("1280x960", "960x1280", "768x1366", "768x512", "1366x768", "1344x576"),
            ),
        ),
        default_response_format="url",
        images_per_call=1,  # some resellers answer n = 4 with one image
    )


def _flux_kontext(model_id: str) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="black-forest-labs",
        provider=PROVIDER,
        own_fields=(
            RequestField("size", Choice(SIZES, defaults=("auto",)), DESCRIPTION),
            RequestField(
                "aspect_ratio",
                Choice(("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")),
                "Instead of `size`.",
                default="1:1",
            ),
        ),
        default_response_format="url",
        images_per_call=1,
        exclusive_fields=(("size", "aspect_ratio"),),
        inputs={"edit": _ONE_IMAGE},
    )


def _qwen(model_id: str, *, generates: bool) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="qwen",
        provider=PROVIDER,
        own_fields=(  # the sizes of its model card (huggingface.co/Qwen/Qwen-Image)
            _size(
                "1024x1024", "1328x1328", *("1664x928", "928x1664", "1472x1104", "1104x1472", "1584x1056", "1056x1584")
            ),
        ),
        default_response_format="url",
        images_per_call=1,
        inputs={"edit": _ONE_IMAGE},
        generates=generates,
    )


FLUX_KONTEXT = (_flux_kontext("flux-kontext-pro"), _flux_kontext("flux-kontext-max"))
MODELS = (
    ImageModel(
        id="dall-e-2",
        owned_by="openai",
        provider=PROVIDER,
        own_fields=(
            _size("256x256", "512x512", "1024x1024", default="1024x1024"),
            _quality("standard", sent=False, default="standard"),
            _RESPONSE_FORMAT,
            _USER,
        ),
        default_response_format="url",
        images_per_call=MAX_IMAGES,
        prompt_limit=1_000,
        inputs={
            "edit": InputRules(most=1, most_bytes=_DALL_E_2_BYTES, mask=True, square=True, transparent=True),
            "variation": InputRules(most=1, most_bytes=_DALL_E_2_BYTES, square=True, needs_prompt=False),
        },
    ),
    ImageModel(
        id="dall-e-3",
        owned_by="openai",
        provider=PROVIDER,
        own_fields=(
            _size("1024x1024", "1792x1024", "1024x1792", default="1024x1024"),
            _quality("standard", "hd", default="standard"),
            RequestField("style", Choice(("vivid", "natural")), "", default="vivid"),
            _RESPONSE_FORMAT,
            _USER,
        ),
        default_response_format="url",
        images_per_call=1,
        prompt_limit=4_000,
    ),
    _gpt_image("gpt-image-1"),
    _gpt_image("gpt-image-1-mini"),
    _gpt_image("gpt-image-1.5"),
    _gpt_image("chatgpt-image-latest"),
    _gpt_image("gpt-image-2", free_sizes=_GPT_2_SIZES, newer_fields=_NEWER_FIELDS),
    _gpt_image("gpt-image-2-2026-04-21", free_sizes=_GPT_2_SIZES, newer_fields=_NEWER_FIELDS),
    *(
        _gpt_image(model_id, qualities=_GPT_2_5_QUALITIES, free_sizes=_GPT_2_SIZES, newer_fields=_NEWER_FIELDS)
        for model_id in (
            "gpt-image-2.5-sunburst",
            "gpt-image-2.5-sunburst-2026-09-08",
            "gpt-image-2.5-flare",
            "gpt-image-2.5-flare-2026-09-08",
        )
    ),
    _gpt_image("gpt-image-2.6-sunburst", newer_fields=_NEWER_FIELDS),
    _gpt_image("gpt-image-2.6-flare", newer_fields=_NEWER_FIELDS),
    _flux("flux-pro"),
    _flux("flux-pro-1.1"),
    _flux("flux-dev"),
    _flux("flux"),
    *FLUX_KONTEXT,
    _qwen("qwen-image", generates=True),
    _qwen("qwen-image-edit", generates=False),
)
# A model that only its upstream knows, for models.toml.
PASSTHROUGH = ImageModel(
    id="",
    owned_by="custom",
    provider=PROVIDER,
    own_fields=(),
    default_response_format="url",
    images_per_call=1,  # servers of OpenAI's protocol differ in whether they know `n`
    open_fields=True,
    inputs={"edit": InputRules(mask=True)},
)
