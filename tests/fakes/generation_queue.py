"""A queue in memory, which delivers nothing by itself."""

from tests.fakes.failing import Failing


class FakeGenerationQueue(Failing):
    """Passes the contract of `ports.GenerationQueue`.

    `sent` are generation ids with their delays, `held` are receipts with seconds, both in order. `callers` are whose
    messages were sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, float]] = []
        self.held: list[tuple[str, float]] = []
        self.callers: set[str] = set()

    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        with self._asked():
            self.callers.add(caller)
            self.sent.append((generation_id, delay))

    def hold(self, receipt: str, seconds: float) -> None:
        with self._asked():
            self.held.append((receipt, seconds))
