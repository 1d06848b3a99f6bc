"""A queue in memory, which delivers nothing by itself."""

import threading
from collections import deque
from typing import TYPE_CHECKING

from imagegen.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from tests.fakes.generation_store import When


class FakeGenerationQueue:
    """Passes the contract of `ports.GenerationQueue`.

    `sent` are generation ids with their delays, `held` are receipts with seconds, both in order. `callers` are whose
    messages were sent. `failures` are taken
    in turn, one a call, as in FakeGenerationStore.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, float]] = []
        self.held: list[tuple[str, float]] = []
        self.callers: set[str] = set()
        self.failures: deque[When | None] = deque()
        self._lock = threading.Lock()

    def send(self, generation_id: str, caller: str, *, delay: float = 0) -> None:
        self.callers.add(caller)
        self._note(self.sent, (generation_id, delay))

    def hold(self, receipt: str, seconds: float) -> None:
        self._note(self.held, (receipt, seconds))

    def _note(self, notes: list[tuple[str, float]], note: tuple[str, float]) -> None:
        with self._lock:
            failure = self.failures.popleft() if self.failures else None
            if failure != "before":
                notes.append(note)
            if failure is not None:
                raise RecordsUnavailableError("The queue could not be reached.")
