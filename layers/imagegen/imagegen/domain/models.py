"""Each image model: its limits, what its upstream takes, and who serves it.

Limits are OpenAI's own (openai-python 3.54, `image_generate_params.py`) and, for Flux, those of the reseller's page for
Flux in dall-e-3 format. The prompt of a model whose own limit is 4,000 or unknown is capped by the deployer's setting.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from imagegen.domain.images import ResponseFormat

MAX_IMAGES = 10  # a request, for every model: the API's contract
DEFAULT_MODEL = "dall-e-3"
STYLES = ("vivid", "natural")
RESPONSE_FORMATS: tuple[ResponseFormat, ...] = ("url", "b64_json")
MOST_COMPRESSION = 100  # per cent


@dataclass(frozen=True, slots=True)
class FreeSizes:
    """Any WIDTHxHEIGHT within bounds, besides the named ones."""

    multiple_of: int
    longest_edge: int
    least_pixels: int
    most_pixels: int
    widest_ratio: int

    def allows(self, size: str) -> bool:
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
        if match is None:
            return False
        width, height = int(match[1]), int(match[2])
        return (
            width % self.multiple_of == 0
            and height % self.multiple_of == 0
            and max(width, height) <= self.longest_edge
            and self.least_pixels <= width * height <= self.most_pixels
            and max(width, height) <= self.widest_ratio * min(width, height)
        )


@dataclass(frozen=True, slots=True)
class ImageModel:
    """What a caller may ask of one model, and how its upstream is asked.

    An empty tuple of values means that the model does not know the field. `images_per_call` is how many images one
    upstream call may be asked for; more are side-by-side calls. `upstream_fields` are the optional fields that the
    upstream takes; others are validated and not sent.
    """

    id: str
    owned_by: str
    sizes: tuple[str, ...]
    default_response_format: ResponseFormat
    images_per_call: int
    upstream_fields: frozenset[str]
    free_sizes: FreeSizes | None = None
    prompt_limit: int | None = None
    prompt_capped: bool = True
    qualities: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    moderations: tuple[str, ...] = ()
    output_formats: tuple[str, ...] = ()
    provider: str = "openai_compatible"
    quick_qualities: tuple[str | None, ...] = ()

    def is_quick(self, quality: str | None) -> bool:
        """Whether an image usually comes well within the gateway's 29 s. None is the upstream's own default."""
        return quality in self.quick_qualities

    def longest_prompt(self, cap: int) -> int:
        """In characters. `cap` is the deployer's, for models that it applies to."""
        if self.prompt_limit is None:
            return cap
        return min(cap, self.prompt_limit) if self.prompt_capped else self.prompt_limit

    @property
    def styles(self) -> tuple[str, ...]:
        return STYLES if "style" in self.upstream_fields else ()

    def allows_size(self, size: str) -> bool:
        return size in self.sizes or (self.free_sizes is not None and self.free_sizes.allows(size))

    def calls(self, n: int) -> list[int]:
        """How many images to ask for in each upstream call, so that `n` come back."""
        whole, rest = divmod(n, self.images_per_call)
        return [self.images_per_call] * whole + ([rest] if rest else [])


_GPT_SIZES = ("1024x1024", "1536x1024", "1024x1536", "auto")
_GPT_QUALITIES = ("low", "medium", "high", "auto")
# The smallest is OpenAI's: it refuses 512x512.
_GPT_2_SIZES = FreeSizes(
    multiple_of=16, longest_edge=3840, least_pixels=655_360, most_pixels=3840 * 2160, widest_ratio=3
)


def _gpt_image(
    model_id: str, *, qualities: tuple[str, ...] = _GPT_QUALITIES, free_sizes: FreeSizes | None = None
) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="openai",
        sizes=_GPT_SIZES,
        free_sizes=free_sizes,
        default_response_format="b64_json",
        images_per_call=MAX_IMAGES,
        upstream_fields=frozenset(
            {
                *("size", "quality", "user", "safety_identifier"),
                *("background", "moderation", "output_format", "output_compression"),
            }
        ),
        prompt_limit=32_000,
        prompt_capped=False,
        qualities=qualities,
        backgrounds=("transparent", "opaque", "auto"),
        moderations=("low", "auto"),
        output_formats=("png", "jpeg", "webp"),
    )


def _flux(model_id: str) -> ImageModel:
    return ImageModel(
        id=model_id,
        owned_by="black-forest-labs",
        sizes=(
            "1024x1024",
            "1024x576",
            "1024x768",
            "1024x512",
            "512x1024",
            "512x768",
            "1280x960",
            "960x1280",
            "768x1366",
            "768x512",
            "1366x768",
            "1344x576",
        ),
        default_response_format="url",
        images_per_call=1,  # some resellers answer n = 4 with one image
        upstream_fields=frozenset({"size"}),
        quick_qualities=(None,),
    )


def _by_id(models: Iterable[ImageModel]) -> dict[str, ImageModel]:
    return {model.id: model for model in models}


CATALOG: dict[str, ImageModel] = _by_id(
    [
        ImageModel(
            id="dall-e-2",
            owned_by="openai",
            sizes=("256x256", "512x512", "1024x1024"),
            default_response_format="url",
            images_per_call=MAX_IMAGES,
            upstream_fields=frozenset({"size", "user", "response_format"}),
            prompt_limit=1_000,
            qualities=("standard",),
            quick_qualities=(None, "standard"),
        ),
        ImageModel(
            id="dall-e-3",
            owned_by="openai",
            sizes=("1024x1024", "1792x1024", "1024x1792"),
            default_response_format="url",
            images_per_call=1,
            upstream_fields=frozenset({"size", "quality", "style", "user", "response_format"}),
            prompt_limit=4_000,
            qualities=("standard", "hd"),
            quick_qualities=(None, "standard"),
        ),
        _gpt_image("gpt-image-1"),
        _gpt_image("gpt-image-1-mini"),
        _gpt_image("gpt-image-1.5"),
        _gpt_image("chatgpt-image-latest"),
        _gpt_image("gpt-image-2", free_sizes=_GPT_2_SIZES),
        _gpt_image("gpt-image-2-2026-04-21", free_sizes=_GPT_2_SIZES),
        *(
            _gpt_image(model_id, qualities=("low", "medium", "high", "xhigh", "max", "auto"), free_sizes=_GPT_2_SIZES)
            for model_id in (
                "gpt-image-2.5-sunburst",
                "gpt-image-2.5-sunburst-2026-09-08",
                "gpt-image-2.5-flare",
                "gpt-image-2.5-flare-2026-09-08",
            )
        ),
        _gpt_image("gpt-image-2.6-sunburst"),
        _gpt_image("gpt-image-2.6-flare"),
        _flux("flux-pro"),
        _flux("flux-pro-1.1"),
        _flux("flux-dev"),
        _flux("flux"),
    ]
)


def model_for(size: str) -> ImageModel:
    """The model for a request that names a size and no model: the default, or the first that has the size.

    If none has it, or the size is `auto`, the default.
    """
    default = CATALOG[DEFAULT_MODEL]
    if size == "auto":
        return default
    return next((model for model in (default, *CATALOG.values()) if size in model.sizes), default)
