"""Waits for a generation to end, reading its record sparingly."""

import time
from collections.abc import Callable

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.ports import GenerationStore

# The first look comes soon, for quick models; later ones are at most a second late.
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 0.8
_GROWTH = 1.3


def wait(
    generation_id: str, records: GenerationStore, deadline: Deadline, sleep: Callable[[float], None] = time.sleep
) -> Generation | None:
    """The generation when it has ended, or as it is at the deadline; None where there is none."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        generation = records.get(generation_id)
        left = deadline.remaining()
        if generation is None or generation.ended or not left:
            return generation
        sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST_PAUSE_SECONDS)
