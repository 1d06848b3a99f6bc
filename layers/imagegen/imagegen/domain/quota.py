"""Defines the state of a caller's quota."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """The caller's quota in images a day, the remaining images, and the seconds until the next day.

    `quota_used` is the used share of the stack's quota of the day, 1.0 is all of it.
    """

    limit: int
    remaining: int
    reset: float
    quota_used: float = 1.0
