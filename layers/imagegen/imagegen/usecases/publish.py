"""Brings the end of a generation to all who need to know it, at least once."""

from collections.abc import Callable
from dataclasses import dataclass

from imagegen.domain.batches import EndedLine
from imagegen.domain.generations import Generation
from imagegen.ports import AllowanceCounters, BatchLines, BatchQueue, BatchStore, EventBus, GenerationStore
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


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where batches are kept. `outcome` writes a generation's line of an output file."""

    batches: BatchStore
    lines: BatchLines
    messages: BatchQueue
    outcome: Callable[[Generation], EndedLine]

    def settle(self, generation: Generation) -> None:
        """May be done any number of times. Raises RecordsUnavailableError."""
        batch_id, line = generation.origin.batch_id, generation.origin.line
        if batch_id is None or line is None:
            return
        self.lines.end(batch_id, line, self.outcome(generation))
        # The reader notes the total before it looks for pending lines: either it or this call finds none left.
        batch = self.batches.get(batch_id)
        known = batch is not None and batch.total is not None and not batch.ended
        if known and not self.lines.any_pending(batch_id):
            self.messages.send(batch_id, generation.caller)
