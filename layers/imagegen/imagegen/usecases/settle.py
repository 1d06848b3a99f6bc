"""Has a batch know what became of the generation of one of its lines, and has it finished after the last of them."""

from collections.abc import Callable
from dataclasses import dataclass

from imagegen.domain.batches import EndedLine
from imagegen.domain.generations import Generation
from imagegen.ports import BatchLines, BatchQueue, BatchStore


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
        # Whoever reads the file notes the total before it looks for pending lines, so one of us sees the other.
        batch = self.batches.get(batch_id)
        known = batch is not None and batch.total is not None and not batch.ended
        if known and not self.lines.any_pending(batch_id):
            self.messages.send(batch_id, generation.caller)
