"""Publishes the end of a generation to everything that depends on it, at least once."""

from collections.abc import Callable

import msgspec

from imagegen.domain.batches import EndedLine
from imagegen.domain.generations import Generation
from imagegen.ports import BatchLines, BatchQueue, BatchStore, EventBus, GenerationStore
from imagegen.usecases.quota import QuotaReturns


class BatchProgress(msgspec.Struct, frozen=True, eq=False):
    """Notes the outcome of generations that are lines of a batch. `outcome` writes a line of an output file."""

    batches: BatchStore
    lines: BatchLines
    queue: BatchQueue
    outcome: Callable[[Generation], EndedLine]

    def line_ended(self, generation: Generation) -> None:
        """Does nothing for a generation that is no line of a batch. May be repeated. Raises RecordsUnavailableError."""
        batch_id, line = generation.origin.batch_id, generation.origin.line
        if batch_id is None or line is None:
            return
        self.lines.end(batch_id, line, self.outcome(generation))
        # The reader notes the total before it looks for pending lines: either it or this call finds none left.
        batch = self.batches.get(batch_id)
        known = batch is not None and batch.total is not None and not batch.ended
        if known and not self.lines.any_pending(batch_id):
            self.queue.send(batch_id, generation.caller)


class PublishGeneration(msgspec.Struct, frozen=True, eq=False):
    records: GenerationStore
    quota: QuotaReturns
    batches: BatchProgress
    bus: EventBus

    def publish(self, generation: Generation) -> None:
        """Settles the quotas by what was charged, and publishes the end if it is not published yet.

        Does nothing before the end. If the process dies in between, the next process that sees the generation repeats
        it. Raises RecordsUnavailableError.
        """
        if not generation.ended:
            return
        self.quota.return_uncharged(generation)
        self.quota.settle(generation)
        if not generation.published:
            self.batches.line_ended(generation)
            self.bus.generation_ended(generation)
            self.records.mark_published(generation)
