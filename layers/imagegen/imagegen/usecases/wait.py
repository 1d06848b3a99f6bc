"""Waits for a generation to end."""

import time
from collections.abc import Callable

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.ports import GenerationStore

# Quick models end soon, so the first read comes soon; later reads are less than a second late.
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 0.8
_GROWTH = 1.3


def wait(
    generation_id: str, records: GenerationStore, deadline: Deadline, sleep: Callable[[float], None] = time.sleep
) -> Generation | None:
    """The generation once it has ended, or as it is at the deadline; `None` if it does not exist."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        generation = records.get(generation_id)
        left = deadline.remaining()
        if generation is None or generation.ended or not left:
            return generation
        sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST_PAUSE_SECONDS)
