"""What a caller may do with its own batches: see and cancel. Another's is as if it were not there."""

from imagegen.domain.batches import Batch, is_batch_id
from imagegen.domain.errors import BatchEndedError, UnknownBatchError
from imagegen.ports import BatchQueue, BatchStore


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
