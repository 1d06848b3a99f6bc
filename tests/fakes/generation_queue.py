"""A queue in memory. It delivers no message by itself."""

from imagegen.domain.queues import WorkQueue
from tests.fakes.failing import Failing


class FakeGenerationQueue(Failing):
    """Passes the contract of `ports.GenerationQueue`.

    `sent` are generation ids with their delays, `hidden` are receipts with seconds, both in order. `polls` are the
    rounds of the messages, `queues` the names of their queues. `callers` are the callers whose messages were sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, float]] = []
        self.hidden: list[tuple[str, float]] = []
        self.polls: list[int] = []
        self.queues: list[WorkQueue] = []
        self.callers: set[str] = set()

    def send(
        self, generation_id: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests"
    ) -> None:
        with self._asked():
            self.queues.append(to)
            self.callers.add(caller)
            self.sent.append((generation_id, delay))
            self.polls.append(poll)

    def extend_visibility(self, receipt: str, seconds: float) -> None:
        with self._asked():
            self.hidden.append((receipt, seconds))
