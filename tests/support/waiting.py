"""Waiting for a condition: the one place where a test sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0  # only ever waited for in full if the test fails
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.1


def until(condition: Callable[[], T], seconds: float = SECONDS, *, what: object = "") -> T:
    """Returns the first true value of the condition. Raises AssertionError with `what` is missing after `seconds`.

    An AssertionError of the condition means "not yet". The last one is the cause of the error.
    """
    deadline, pause = time.monotonic() + seconds, _PAUSE_SECONDS
    while True:
        last: AssertionError | None = None
        try:
            if found := condition():
                return found
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}") from last
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
