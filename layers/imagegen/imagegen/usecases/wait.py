"""Waits for a generation to end."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.places import PLACE_SECONDS
from imagegen.ports import GenerationStore, Places
from imagegen.usecases.heartbeat import heartbeat

# The pause grows with the time waited, so the end is noticed at most a tenth of it late: a twentieth on average. That
# is 46 reads in the first minute, and 17 in each further one.
_SHORTEST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 3.5
_SHARE = 0.1
_JITTER = 0.1  # so that requests which began together do not read together


def wait(
    generation_id: str, records: GenerationStore, deadline: Deadline, sleep: Callable[[float], None] = time.sleep
) -> Generation | None:
    """The generation once it has ended, or as it is at the deadline; `None` if it does not exist."""
    waited = 0.0
    while True:
        generation = records.get(generation_id)
        left = deadline.remaining()
        if generation is None or generation.ended or not left:
            return generation
        pause = min(max(_SHORTEST_PAUSE_SECONDS, waited * _SHARE), _LONGEST_PAUSE_SECONDS)
        pause = min(pause * random.uniform(1 - _JITTER, 1 + _JITTER), left)
        sleep(pause)
        waited += pause


@contextmanager
def place_to_wait(places: Places, caller: str, generation_id: str | None = None) -> Iterator[bool]:
    """Takes a place to wait while the block runs. Yields whether there was one.

    With `generation_id`, a place that was kept for this generation is taken if there is one.
    """
    place = places.take(caller, generation_id)
    if place is None:
        yield False
        return
    try:
        with heartbeat(PLACE_SECONDS, lambda: places.renew(place)):
            yield True
    finally:
        places.free(place)
