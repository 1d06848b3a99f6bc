"""Defines the slots of an upstream: the calls that it may work on at once, over all processes."""

import msgspec

from imagegen.domain.queues import WorkQueue

KEPT_SECONDS = 10.0  # a message brings a worker within this time
SAVED_SECONDS = 300.0  # for a call that needs more slots than are free: most calls of others end within this time


class Slot(msgspec.Struct, frozen=True):
    """The right to one upstream call, until the time `until` in Unix seconds. `call` names the generation's call.

    `at` names the upstream and the protocol. A call takes `count` slots: at some upstreams one for each image.
    """

    at: str
    call: str
    until: float
    count: int = 1


class Waiter(msgspec.Struct, frozen=True):
    """A generation that waits for `count` slots. `poll` is the round of the message that must bring a worker.

    `queue` is the queue of that message.
    """

    generation_id: str
    caller: str
    poll: int
    queue: WorkQueue = "requests"
    count: int = 1


def slots_name(upstream: str, protocol: str) -> str:
    """Returns the name of the slots that the calls of one protocol to an upstream share."""
    return f"{upstream}/{protocol}"


def call_name(generation_id: str, call: int) -> str:
    """Returns the name of a generation's call number `call` among the slots in use."""
    return f"{generation_id}#{call}"
