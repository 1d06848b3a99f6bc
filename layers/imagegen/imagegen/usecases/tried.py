"""Tries a step again that was interrupted."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImageDownloadInterruptedError, ImageStorageInterruptedError

T = TypeVar("T")

KEEP_TRIES = 4  # to fetch and store a paid image: one and a half seconds of pauses in all
_FIRST_PAUSE_SECONDS = 0.2
INTERRUPTED = (ImageDownloadInterruptedError, ImageStorageInterruptedError)


def tried(
    step: Callable[[], T],
    deadline: Deadline,
    again: tuple[type[Exception], ...] = INTERRUPTED,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Returns the step's result. Tries again, a few times, after one of the exceptions `again`."""
    for attempt in range(1, KEEP_TRIES + 1):
        try:
            return step()
        except again:
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            if attempt == KEEP_TRIES or pause >= deadline.remaining():
                raise
        sleep(pause)
    raise AssertionError("the last try returns or raises")
