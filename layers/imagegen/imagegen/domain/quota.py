"""How a caller stands with its quota."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """The caller's images a day, how many it can still have, and the seconds until the next day.

    `quota_used` is which part of the whole stack's images of the day is taken.
    """

    limit: int
    remaining: int
    reset: float
    quota_used: float = 1.0
