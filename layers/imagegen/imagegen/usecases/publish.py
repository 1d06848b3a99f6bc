"""Brings the end of a generation to all who need to know it, at least once."""

from collections.abc import Callable

from imagegen.domain.generations import Generation
from imagegen.ports import AllowanceCounters, EventBus, GenerationStore
from imagegen.usecases.quota import return_uncharged

Settle = Callable[[Generation], None]  # notes the outcome in the batch of which the generation may be a line


def announce(
    generation: Generation,
    records: GenerationStore,
    counters: AllowanceCounters,
    bus: EventBus,
    settle: Settle,
) -> None:
    """Returns what was not charged, and publishes the end that was not published yet. Does nothing before the end.

    If the process dies in between, the next one that looks at the generation does it again. Raises
    RecordsUnavailableError.
    """
    if not generation.ended:
        return
    return_uncharged(generation, records, counters)
    if not generation.announced:
        settle(generation)
        bus.generation_ended(generation)
        records.mark_announced(generation)
