"""When a message comes again that could not be dealt with."""

FAULT_SECONDS = 5.0
MOST_FAULT_SECONDS = 120.0
_QUICK_RECEIPTS = 8  # a worker looks on as often as others are at work, and each look counts


class ComeAgainError(Exception):
    """The message is to come again, and is held until then."""


def pause_after_fault(receipts: int) -> float:
    """Seconds until a message that met a fault of ours is looked at again, by how often it has been received.

    Soon at first, then ever later: the 20 receipts of a queue outlast an outage of a quarter of an hour.
    """
    doublings = min(10, max(0, receipts - _QUICK_RECEIPTS))
    return min(MOST_FAULT_SECONDS, FAULT_SECONDS * 2.0**doublings)
