"""What models.toml says. Made by `make models`: change models.toml instead."""

from dataclasses import replace

from imagegen.domain.configuration import Configuration
from imagegen.domain.inputs import Operation
from imagegen.domain.models import Catalog
from imagegen.domain.money import ImagePrice
from imagegen.domain.upstreams import Route, Upstream
from imagegen.providers.catalog import KNOWN_MODELS

_MODELS = {
    "dall-e-2": replace(
        KNOWN_MODELS["dall-e-2"],
        routes=(Route(upstream="reseller", model="dall-e-2"),),
        price=ImagePrice(table={"256x256": 16000, "512x512": 18000, "1024x1024": 20000}, fields=("size",)),
        quick=True,
    ),
    "dall-e-3": replace(
        KNOWN_MODELS["dall-e-3"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="dall-e-3"),),
        price=ImagePrice(
            table={
                "1024x1024": {"standard": 40000, "hd": 80000},
                "1792x1024": {"standard": 80000, "hd": 120000},
                "1024x1792": {"standard": 80000, "hd": 120000},
            },
            fields=("size", "quality"),
        ),
        quick=True,
    ),
    "gpt-image-1": replace(
        KNOWN_MODELS["gpt-image-1"],
        routes=(Route(upstream="reseller", model="gpt-image-1"),),
        price=ImagePrice(
            table={
                "1024x1024": {"low": 11000, "medium": 42000, "high": 167000},
                "1536x1024": {"low": 16000, "medium": 63000, "high": 250000},
                "1024x1536": {"low": 16000, "medium": 63000, "high": 250000},
            },
            fields=("size", "quality"),
        ),
    ),
    "gpt-image-1-mini": replace(
        KNOWN_MODELS["gpt-image-1-mini"],
        routes=(
            Route(upstream="openai", model="gpt-image-1-mini"),
            Route(upstream="reseller", model="gpt-image-1-mini"),
        ),
        price=ImagePrice(
            table={
                "1024x1024": {"low": 5000, "medium": 11000, "high": 36000},
                "1536x1024": {"low": 6000, "medium": 15000, "high": 52000},
                "1024x1536": {"low": 6000, "medium": 15000, "high": 52000},
            },
            fields=("size", "quality"),
        ),
    ),
    "gpt-image-1.5": replace(
        KNOWN_MODELS["gpt-image-1.5"],
        routes=(Route(upstream="openai", model="gpt-image-1.5"), Route(upstream="reseller", model="gpt-image-1.5")),
        price=ImagePrice(
            table={
                "1024x1024": {"low": 9000, "medium": 34000, "high": 133000},
                "1536x1024": {"low": 13000, "medium": 50000, "high": 200000},
                "1024x1536": {"low": 13000, "medium": 50000, "high": 200000},
            },
            fields=("size", "quality"),
        ),
    ),
    "chatgpt-image-latest": replace(
        KNOWN_MODELS["chatgpt-image-latest"],
        routes=(
            Route(upstream="openai", model="chatgpt-image-latest"),
            Route(upstream="reseller", model="chatgpt-image-latest"),
        ),
    ),
    "gpt-image-2": replace(
        KNOWN_MODELS["gpt-image-2"],
        routes=(Route(upstream="openai", model="gpt-image-2"), Route(upstream="reseller", model="gpt-image-2")),
    ),
    "gpt-image-2-2026-04-21": replace(
        KNOWN_MODELS["gpt-image-2-2026-04-21"],
        routes=(
            Route(upstream="openai", model="gpt-image-2-2026-04-21"),
            Route(upstream="reseller", model="gpt-image-2-2026-04-21"),
        ),
    ),
    "gpt-image-2.5-sunburst": replace(
        KNOWN_MODELS["gpt-image-2.5-sunburst"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.5-sunburst"),
            Route(upstream="reseller", model="gpt-image-2.5-sunburst"),
        ),
    ),
    "gpt-image-2.5-sunburst-2026-09-08": replace(
        KNOWN_MODELS["gpt-image-2.5-sunburst-2026-09-08"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.5-sunburst-2026-09-08"),
            Route(upstream="reseller", model="gpt-image-2.5-sunburst-2026-09-08"),
        ),
    ),
    "gpt-image-2.5-flare": replace(
        KNOWN_MODELS["gpt-image-2.5-flare"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.5-flare"),
            Route(upstream="reseller", model="gpt-image-2.5-flare"),
        ),
    ),
    "gpt-image-2.5-flare-2026-09-08": replace(
        KNOWN_MODELS["gpt-image-2.5-flare-2026-09-08"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.5-flare-2026-09-08"),
            Route(upstream="reseller", model="gpt-image-2.5-flare-2026-09-08"),
        ),
    ),
    "gpt-image-2.6-sunburst": replace(
        KNOWN_MODELS["gpt-image-2.6-sunburst"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.6-sunburst"),
            Route(upstream="reseller", model="gpt-image-2.6-sunburst"),
        ),
    ),
    "gpt-image-2.6-flare": replace(
        KNOWN_MODELS["gpt-image-2.6-flare"],
        routes=(
            Route(upstream="openai", model="gpt-image-2.6-flare"),
            Route(upstream="reseller", model="gpt-image-2.6-flare"),
        ),
    ),
    "flux-pro": replace(
        KNOWN_MODELS["flux-pro"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="flux-pro"),),
        price=ImagePrice(table=50000, fields=()),
        quick=True,
    ),
    "flux-pro-1.1": replace(
        KNOWN_MODELS["flux-pro-1.1"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="flux-pro-1.1"),),
        price=ImagePrice(table=40000, fields=()),
        quick=True,
    ),
    "flux-dev": replace(
        KNOWN_MODELS["flux-dev"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="flux-dev"),),
        price=ImagePrice(table=25000, fields=()),
        quick=True,
    ),
    "flux": replace(
        KNOWN_MODELS["flux"], prompt_limit=1000, routes=(Route(upstream="reseller", model="flux"),), quick=True
    ),
    "flux-kontext-pro": replace(
        KNOWN_MODELS["flux-kontext-pro"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="flux-kontext-pro"),),
        price=ImagePrice(table=40000, fields=()),
        quick=True,
    ),
    "flux-kontext-max": replace(
        KNOWN_MODELS["flux-kontext-max"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="flux-kontext-max"),),
        price=ImagePrice(table=80000, fields=()),
        quick=True,
    ),
    "qwen-image": replace(
        KNOWN_MODELS["qwen-image"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="qwen-image"),),
        quick=True,
    ),
    "qwen-image-edit": replace(
        KNOWN_MODELS["qwen-image-edit"],
        prompt_limit=1000,
        routes=(Route(upstream="reseller", model="qwen-image-edit"),),
        quick=True,
    ),
    "gemini-2.0-flash-exp-image-generation": replace(
        KNOWN_MODELS["gemini-2.0-flash-exp-image-generation"],
        prompt_limit=1000,
        routes=(
            Route(upstream="google", model="gemini-2.0-flash-exp-image-generation"),
            Route(upstream="reseller", model="gemini-2.0-flash-exp-image-generation"),
        ),
        price=ImagePrice(table=39000, fields=()),
        quick=True,
    ),
    "gemini-2.5-flash-image": replace(
        KNOWN_MODELS["gemini-2.5-flash-image"],
        prompt_limit=1000,
        routes=(
            Route(upstream="google", model="gemini-2.5-flash-image"),
            Route(upstream="reseller", model="gemini-2.5-flash-image"),
        ),
        price=ImagePrice(table=39000, fields=()),
        quick=True,
    ),
    "gemini-3-pro-image": replace(
        KNOWN_MODELS["gemini-3-pro-image"],
        prompt_limit=1000,
        routes=(
            Route(upstream="google", model="gemini-3-pro-image-preview"),
            Route(upstream="reseller", model="gemini-3-pro-image"),
        ),
        price=ImagePrice(table={"1K": 134000, "2K": 134000, "4K": 240000}, fields=("image_size",)),
        quick=True,
    ),
    "ideogram-v3": replace(
        KNOWN_MODELS["ideogram-v3"],
        prompt_limit=1000,
        routes=(Route(upstream="ideogram", model="ideogram-v3"), Route(upstream="reseller", model="ideogram-v3")),
        price=ImagePrice(
            table={"FLASH": 30000, "TURBO": 30000, "DEFAULT": 60000, "QUALITY": 90000}, fields=("rendering_speed",)
        ),
        quick=True,
    ),
    "kling-v1": replace(
        KNOWN_MODELS["kling-v1"],
        routes=(Route(upstream="reseller", model="kling-v1"),),
        price=ImagePrice(table=3500, fields=()),
    ),
    "kling-v1-5": replace(
        KNOWN_MODELS["kling-v1-5"],
        routes=(Route(upstream="reseller", model="kling-v1-5"),),
        price=ImagePrice(table=14000, fields=()),
    ),
    "kling-v2": replace(
        KNOWN_MODELS["kling-v2"],
        routes=(Route(upstream="reseller", model="kling-v2"),),
        price=ImagePrice(table=14000, fields=()),
    ),
    "kling-v2-new": replace(KNOWN_MODELS["kling-v2-new"], routes=(Route(upstream="reseller", model="kling-v2-new"),)),
    "kling-v2-1": replace(
        KNOWN_MODELS["kling-v2-1"],
        routes=(Route(upstream="reseller", model="kling-v2-1"),),
        price=ImagePrice(table=14000, fields=()),
    ),
    "kolors-virtual-try-on-v1": replace(
        KNOWN_MODELS["kolors-virtual-try-on-v1"], routes=(Route(upstream="reseller", model="kolors-virtual-try-on-v1"),)
    ),
    "kolors-virtual-try-on-v1-5": replace(
        KNOWN_MODELS["kolors-virtual-try-on-v1-5"],
        routes=(Route(upstream="reseller", model="kolors-virtual-try-on-v1-5"),),
    ),
    "mj_imagine": replace(
        KNOWN_MODELS["mj_imagine"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_imagine"),)
    ),
    "niji": replace(KNOWN_MODELS["niji"], prompt_limit=1000, routes=(Route(upstream="reseller", model="niji"),)),
    "mj_blend": replace(
        KNOWN_MODELS["mj_blend"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_blend"),)
    ),
    "mj_describe": replace(
        KNOWN_MODELS["mj_describe"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_describe"),)
    ),
    "mj_upscale": replace(
        KNOWN_MODELS["mj_upscale"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_upscale"),)
    ),
    "mj_variation": replace(
        KNOWN_MODELS["mj_variation"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_variation"),)
    ),
    "mj_reroll": replace(
        KNOWN_MODELS["mj_reroll"], prompt_limit=1000, routes=(Route(upstream="reseller", model="mj_reroll"),)
    ),
}
_UPSTREAMS = {
    "reseller": Upstream(
        protocols=("openai", "gemini-chat", "ideogram", "kling", "midjourney"),
        key="upstream-api-key",
        base_url=None,
        timeout_seconds=None,
        concurrency={"ideogram": 10, "midjourney": 13},
        refunds_failed_tasks=False,
    ),
    "openai": Upstream(
        protocols=("openai",),
        key="openai-api-key",
        base_url="https://api.openai.com/v1",
        timeout_seconds=None,
        concurrency=None,
        refunds_failed_tasks=False,
    ),
    "google": Upstream(
        protocols=("gemini-chat",),
        key="google-api-key",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        timeout_seconds=None,
        concurrency=None,
        refunds_failed_tasks=False,
    ),
    "ideogram": Upstream(
        protocols=("ideogram",),
        key="ideogram-api-key",
        base_url="https://api.ideogram.ai/v1",
        timeout_seconds=None,
        concurrency=None,
        refunds_failed_tasks=False,
    ),
}
_ALIASES = {
    "gemini-2.5-flash-image-preview": "gemini-2.5-flash-image",
    "gemini-3-pro-image-preview": "gemini-3-pro-image",
    "midjourney": "mj_imagine",
}
_DEFAULTS: dict[Operation, str] = {"edit": "gpt-image-1.5"}
CONFIGURATION = Configuration(Catalog(_MODELS, "dall-e-3", _ALIASES, _DEFAULTS), _UPSTREAMS, "reseller")
