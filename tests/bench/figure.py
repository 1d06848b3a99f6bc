"""Two sides measured in turn."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Medians: ours, and what it is measured against. Without a budget it is there to be known."""

    name: str
    ours: float
    theirs: float
    budget: float | None = None
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int, budget: float) -> Figure:
    """Each side tells its own milliseconds; one round of each goes first and does not count."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return Figure(
        name,
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        budget,
    )
