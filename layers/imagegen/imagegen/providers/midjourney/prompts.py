"""Makes Midjourney's prompts: the caller's text, with flags for the fields of the request."""

import hashlib
import re
from collections.abc import Mapping
from math import gcd
from typing import Any

from imagegen.domain.images import UpstreamRequest
from imagegen.providers.aspect_ratios import RATIOS

MOST_SEED = 2**32 - 1  # Midjourney's documentation, "Seeds"

_FLAG = re.compile(r"(?:^|\s)(?:--|—)([A-Za-z]+)(?=[\s=]|$)")  # phones write a long dash in place of two short ones
# Flags that make several tasks of one prompt, or set the speed, which models.toml does: both change the price.
_COSTLY = re.compile(r"(?i)(?:--|(?:^|\s)—)(repeat|r|fast|relax|turbo)(?![A-Za-z])")
_BRACES = re.compile(r"(?s)\\.|[{},]")
# The flags of a field, the first of which is sent.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "size": ("ar", "aspect"),
    "aspect_ratio": ("ar", "aspect"),
    "style": ("style",),
    "seed": ("seed",),
    "negative_prompt": ("no",),
}


def misfit(prompt: str, n: int, options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns a field that would double a flag of the prompt, or change the price, and what is wrong with it."""
    flags, negative = _flags_of(prompt), options.get("negative_prompt", "")
    if costly := _COSTLY.search(prompt):
        instead = (
            "'n' sets the number of grids" if costly[1].lower() in ("r", "repeat") else "the service sets the speed"
        )
        return "prompt", f"it cannot have --{costly[1].lower()}; {instead}"
    for name, text in (("prompt", prompt), ("negative_prompt", negative)):
        if _has_choice(text):
            return name, "a choice in braces makes several grids; 'n' sets their number, and a backslash keeps a comma"
    for name in options:
        doubled = next((flag for flag in _FLAGS.get(name, ()) if flag in flags), None)
        if doubled:
            return name, f"the prompt has --{doubled} already"
    if "--" in negative or _flags_of(negative):
        return "negative_prompt", "it cannot contain flags such as --ar"
    if n > 1 and "seed" in flags:
        return "n", "the grids would be equal, for the prompt has --seed; use the field 'seed' instead"
    return None


def seed_of(call: UpstreamRequest) -> int | None:
    """Returns the seed of a call, `None` if the prompt has its own.

    Midjourney's proxies answer equal prompts with the same task. So without a seed of the caller each call gets one
    that only it has. It follows from the record, so a repetition of the call sends the same text.
    """
    if "seed" in _flags_of(call.request.prompt):
        return None
    given = call.request.options.get("seed")
    if given is None:
        return int.from_bytes(hashlib.sha256(call.reference.encode()).digest()[:4])
    return int((given + call.number) % (MOST_SEED + 1))


def text_of(call: UpstreamRequest) -> str:
    """Returns the text of the prompt. A flag that the prompt has replaces a default of models.toml."""
    prompt, options = call.request.prompt.strip(), dict(call.request.options)
    if size := options.pop("size", None):
        width, height = RATIOS[size]
        options["aspect_ratio"] = f"{width // gcd(width, height)}:{height // gcd(width, height)}"
    flags, seed = _flags_of(prompt), seed_of(call)
    values = {
        "aspect_ratio": options.get("aspect_ratio"),
        "style": options.get("style"),
        "seed": seed,
        "negative_prompt": options.get("negative_prompt", "").strip()
        or None,  # the last one: it may have several words
    }
    added = [
        f"--{_FLAGS[name][0]} {value}"
        for name, value in values.items()
        if value is not None and not flags & set(_FLAGS[name])
    ]
    return " ".join([prompt, *added])


def _has_choice(text: str) -> bool:
    """Whether there is a comma in braces: Midjourney makes a task for each part (its documentation, "Permutations")."""
    depth = 0
    for each in _BRACES.findall(text):
        if each == "," and depth:
            return True
        depth = max(0, depth + (each == "{") - (each == "}"))
    return False


def _flags_of(prompt: str) -> set[str]:
    return {flag.lower() for flag in _FLAG.findall(prompt)}
