"""Carries a batch on, by whatever its record says is next. One works on it at a time; whoever dies is followed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from imagegen.domain.batches import Batch, BatchStatus, InboxFile, batch_id_of, is_batch_id, line_generation_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import BatchEndedError, GenerationCancelledError, RecordsUnavailableError, UnknownBatchError
from imagegen.domain.generations import Generation, IdTakenError, LostClaimError, new_owner
from imagegen.ports import AllowanceCounters, BatchBus, BatchQueue, BatchStore, EventBus, Outbox
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.manage import stop
from imagegen.usecases.read_batch import CHUNK_LINES, Reader, each_of, in_chunks, read_on
from imagegen.usecases.write_batch import write_output


@dataclass(frozen=True, slots=True)
class BatchShop:
    """All that carrying a batch on needs."""

    reader: Reader
    counters: AllowanceCounters
    bus: EventBus
    batch_bus: BatchBus
    outbox: Outbox


def begin(bucket: str, file: InboxFile, caller: str, batches: BatchStore, now: float) -> Batch:
    """The batch of a file that was dropped, the same however often that is told. Raises RecordsUnavailableError."""
    batch_id = batch_id_of(bucket, file.key, file.version)
    return batches.create(Batch(id=batch_id, caller=caller, file=file, created_at=now))


def carry_on(batch_id: str, shop: BatchShop, until: Deadline, hold: Callable[[float], None]) -> float | None:
    """Does what is next for a batch. None: the message has done its duty; else seconds after which to look again.

    `until` is by when to leave the rest to a message of its own. `hold` keeps our message to ourselves for so many
    seconds. Raises RecordsUnavailableError, and whatever else is a fault of ours: then the message is to come again.
    """
    desk, batches = shop.reader.desk, shop.reader.ledger.batches
    owner, now = new_owner(), desk.now()
    batch = batches.claim(batch_id, owner, now=now, lease_until=now + desk.lease)
    if batch is None:
        _look_on(batches.get(batch_id), shop, now)
        return None

    def beat() -> None:
        batches.renew(batch_id, owner, desk.now() + desk.lease)
        hold(desk.lease)

    try:
        with heartbeat(desk.lease, beat):
            batch = _carried_on(batch, owner, shop, until)
    except LostClaimError:
        return desk.lease
    finally:
        with suppress(RecordsUnavailableError):  # otherwise the lease goes by itself
            batches.let_go(batch_id, owner)
    if batch.ended:
        _announce(batch, shop)
    return None


def _look_on(batch: Batch | None, shop: BatchShop, now: float) -> None:
    """What there is to do for a batch that is not ours to carry on."""
    if batch is None:
        return
    if batch.ended:
        _announce(batch, shop)  # whoever ended it may have died before
        return
    # Another message, not this one again: its receipts are counted, and a large file is at work for hours.
    shop.reader.ledger.messages.send(batch.id, batch.caller, delay=max(1.0, batch.lease_until - now))


def _carried_on(batch: Batch, owner: str, shop: BatchShop, until: Deadline) -> Batch:
    ledger = shop.reader.ledger
    if batch.status is BatchStatus.IN_PROGRESS and batch.total is None:
        batch = read_on(batch, owner, shop.reader, until)
    if batch.status is BatchStatus.CANCELLING:
        _void_next_lines(batch, shop)
        if not _cancel_lines(batch, shop, until):
            ledger.messages.send(batch.id, batch.caller)
            return batch
        batch = ledger.batches.save_total(batch.id, owner, batch.checkpoint.line)
    if batch.total is None:
        ledger.messages.send(batch.id, batch.caller)
        return batch
    if batch.status is not BatchStatus.FINALIZING:
        if ledger.lines.any_pending(batch.id):
            return batch  # whoever settles the last of them sends a message
        batch = ledger.batches.begin_finalizing(batch.id, owner, now=shop.reader.desk.now())
    desk = shop.reader.desk
    counts = write_output(
        batch, ledger.lines, shop.outbox, lambda: ledger.batches.renew(batch.id, owner, desk.now() + desk.lease)
    )
    return ledger.batches.end(batch.id, owner, counts, now=shop.reader.desk.now())


def _announce(batch: Batch, shop: BatchShop) -> None:
    if not batch.announced:
        shop.batch_bus.batch_ended(batch)
        shop.reader.ledger.batches.mark_announced(batch.id)


def _cancel_lines(batch: Batch, shop: BatchShop, until: Deadline) -> bool:
    """Cancels what is pending; False where time ran out before all was."""
    for chunk in in_chunks(shop.reader.ledger.lines.pending(batch.id)):
        if not until.remaining():
            return False
        each_of(chunk, lambda pending: _cancel_line(pending[0], pending[1], batch, shop), shop.reader.pool)
    return True


def _void_next_lines(batch: Batch, shop: BatchShop) -> None:
    """Reserves the ids of the chunk behind the checkpoint: a reader that lost its claim may be about to begin it."""
    reader, first = shop.reader, batch.checkpoint.line + 1
    now = reader.desk.now()

    def void(line: int) -> None:
        with suppress(IdTakenError):  # it was deleted
            reader.desk.records.void(line_generation_id(batch.id, line), now=now)

    each_of(range(first, first + CHUNK_LINES), void, reader.pool)


def _cancel_line(line: int, custom_id: str, batch: Batch, shop: BatchShop) -> None:
    reader, ledger, records = shop.reader, shop.reader.ledger, shop.reader.desk.records
    # A reader that lost its claim may still be about to begin it.
    generation: Generation | None = None
    with suppress(IdTakenError):  # it was deleted
        generation = records.void(line_generation_id(batch.id, line), now=reader.desk.now())
    if generation is None:
        error = GenerationCancelledError("The batch was cancelled.")
        ledger.lines.end(batch.id, line, reader.refusal(batch.id, line, custom_id, error))
    elif generation.ended:
        ledger.settle(generation)
    else:
        stop(generation, records, shop.counters, shop.bus, reader.desk.now, ledger.settle)


def see_batch(batch_id: str, caller: str, batches: BatchStore) -> Batch:
    """Raises UnknownBatchError."""
    batch = batches.get(batch_id) if is_batch_id(batch_id) else None
    if batch is None or batch.caller != caller:
        raise UnknownBatchError("There is no such batch.", param="batch_id")
    return batch


def cancel_batch(batch_id: str, caller: str, batches: BatchStore, messages: BatchQueue, now: float) -> Batch:
    """Has no further line begun and all pending ones cancelled. Raises UnknownBatchError, BatchEndedError."""
    see_batch(batch_id, caller, batches)
    cancelling = batches.begin_cancelling(batch_id, now=now)
    if cancelling is None:
        raise BatchEndedError("All lines of this batch have ended already.", param="batch_id")
    messages.send(batch_id, caller)
    return cancelling
