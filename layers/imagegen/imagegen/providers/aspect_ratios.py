"""The aspect ratio that is sent for a `size` or an input image, to upstreams that know ratios and no sizes."""

from collections.abc import Iterable, Mapping
from math import log

from imagegen.domain.inputs import InputImage

RATIOS: Mapping[str, tuple[int, int]] = {
    "256x256": (1, 1),
    "512x512": (1, 1),
    "1024x1024": (1, 1),
    "1536x1024": (3, 2),
    "1024x1536": (2, 3),
    "1280x960": (4, 3),
    "960x1280": (3, 4),
    "1792x1024": (16, 9),  # 7:4, which no upstream has
    "1024x1792": (9, 16),
    "1280x720": (16, 9),
    "720x1280": (9, 16),
}
SIZES = tuple(RATIOS)
DESCRIPTION = "The nearest aspect ratio is sent."


def ratio_of(size: str, separator: str) -> str:
    """Returns the ratio in the notation of an upstream, such as `16:9` or `16x9`."""
    return separator.join(map(str, RATIOS[size]))


def nearest_ratio(image: InputImage, ratios: Iterable[str], separator: str) -> str:
    """Returns the ratio that is closest to that of an image."""

    def distance(ratio: str) -> float:
        width, height = map(int, ratio.split(separator))
        return abs(log(image.width * height / (image.height * width)))

    return min(ratios, key=distance)
