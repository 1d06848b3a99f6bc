"""Defines the slots of an upstream: the calls that it may work on at once, over all processes."""

import msgspec

KEPT_SECONDS = 10.0  # a message brings a worker within this time


class Slot(msgspec.Struct, frozen=True):
    """The right to one upstream call, until the time `until` in Unix seconds. `call` names the generation's call."""

    upstream: str
    call: str
    until: float


class Waiter(msgspec.Struct, frozen=True):
    """A generation that waits for a slot. `poll` is the round of the message that must bring a worker.

    `of_batch` is whether it is a line of a batch.
    """

    generation_id: str
    caller: str
    poll: int
    of_batch: bool = False
