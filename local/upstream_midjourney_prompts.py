"""Midjourney's prompts: the text before the flags, the flags, and the size of the picture that they ask for."""

import math
import re

# Midjourney's parameters and their values: evolink's prompt guides for V7 and V8.1, and those of earlier versions.
_ALIASES = {"aspect": "ar", "version": "v", "s": "stylize", "c": "chaos", "q": "quality", "w": "weird", "p": "profile"}
_FLAGS = {
    "ar": r"[1-9]\d{0,3}:[1-9]\d{0,3}",
    "chaos": r"\d\d?|100",
    "cref": r"\S.*",
    "cw": r"\d\d?|100",
    "exp": r"\d\d?|100",
    "iw": r"[0-2](\.\d+)?|\.\d+|3",
    "niji": r"\d",
    "no": r"\S.*",
    "oref": r"\S.*",
    "ow": r"\d{1,3}|1000",
    "profile": r".*",
    "quality": r"0?\.25|0?\.5|1|2|4",
    "seed": r"\d{1,10}",
    "sref": r"\S.*",
    "stop": r"[1-9]\d|100",
    "style": r"\w+",
    "stylize": r"\d{1,3}|1000",
    "sv": r"\d",
    "sw": r"\d{1,3}|1000",
    "v": r"\d(\.\d)?",
    "weird": r"[0-2]?\d{1,3}|3000",
    **dict.fromkeys(("draft", "fast", "raw", "relax", "tile", "turbo"), ""),
}


def text_of(prompt: str) -> str:
    """The text before the flags."""
    return _parts(prompt)[0].strip()


def _parts(prompt: str) -> list[str]:
    """The text, then each flag with its value. Midjourney takes an em dash before a name for two hyphens."""
    return re.split(r"(?:^|\s)(?:--|—(?=\w))", prompt)


def flags(prompt: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in _parts(prompt)[1:]:
        name, _, value = part.strip().partition(" ")
        found.append((_ALIASES.get(name, name), value.strip()))
    return found


def wrong_flag(prompt: str) -> str | None:
    """Why Midjourney refuses the flags."""
    seen: set[str] = set()
    for name, value in flags(prompt):
        if name not in _FLAGS:
            return f"Unrecognized parameter(s): --{name}"
        if name in seen:
            return f"Duplicate parameter: --{name}"
        if not re.fullmatch(_FLAGS[name], value) or (name == "seed" and int(value) > 4294967295):
            return f"Invalid value for --{name}: {value}"
        seen.add(name)
    return None


def size_of(ratio: str, reduction: int) -> str:
    """The longer side is at most 1024 pixels, and all sides are even. The ratio is exact up to 512."""
    width, height = map(int, ratio.split(":"))
    common = math.gcd(width, height)
    width, height = width // common, height // common
    unit = 512 / max(width, height)
    unit = math.floor(unit) if unit >= 1 else unit
    return "x".join(str(2 * max(1, round(side * unit / reduction))) for side in (width, height))
