"""Tells the end of a generation, at least once."""

from imagegen.generations import Generation
from imagegen.ports import EventBus, GenerationStore


def announce(generation: Generation, records: GenerationStore, bus: EventBus) -> None:
    """Tells the end that was not told yet. Whoever dies in between is followed by one who tells it again.

    Raises RecordsUnavailableError.
    """
    if generation.ended and not generation.announced:
        bus.generation_ended(generation)
        records.mark_announced(generation)
