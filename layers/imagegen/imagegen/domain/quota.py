"""Defines the state of a caller's quota."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """The caller's quota in images a day, the remaining images, and the seconds until the next day.

    `quota_used` is the used share of the stack's quota of the day, 1.0 is all of it. `usd_limit` and `usd_remaining`
    are the caller's quota in money and its remainder, in millionths of a dollar, `None` without such a quota.
    """

    limit: int
    remaining: int
    reset: float
    quota_used: float = 1.0
    usd_limit: int | None = None
    usd_remaining: int | None = None
