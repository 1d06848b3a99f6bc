"""A measurement beside its baseline."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """The medians of the product and of its baseline. `budget` is the largest ratio that is accepted, if any."""

    name: str
    product: float
    baseline: float
    budget: float | None = None
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        return self.product / self.baseline


def compare(
    name: str, product: Callable[[], float], baseline: Callable[[], float], *, rounds: int, budget: float
) -> Figure:
    """Each side returns its own milliseconds. One round of each goes first and does not count."""
    product(), baseline()
    pairs = [(product(), baseline()) for _ in range(rounds)]
    return Figure(
        name, statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs), budget
    )
