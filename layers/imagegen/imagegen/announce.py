"""Tells the end of a generation, at least once."""

from collections.abc import Callable

from imagegen.generations import Generation
from imagegen.ports import EventBus, GenerationStore

Settle = Callable[[Generation], None]  # has the batch know, of which the generation may be a line


def announce(generation: Generation, records: GenerationStore, bus: EventBus, settle: Settle = lambda _: None) -> None:
    """Tells the end that was not told yet. Whoever dies in between is followed by one who tells it again.

    Raises RecordsUnavailableError.
    """
    if generation.ended and not generation.announced:
        settle(generation)
        bus.generation_ended(generation)
        records.mark_announced(generation)
