"""A bus in memory."""

from collections import deque
from typing import TYPE_CHECKING

from imagegen.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagegen.generations import Generation, Rejection
    from tests.fakes.generation_store import When


class FakeEventBus:
    """Passes the contract of `ports.EventBus`.

    `ended` and `rejected` are what was told, in order. `failures` are taken in turn, one a call, as in
    FakeGenerationStore.
    """

    def __init__(self) -> None:
        self.ended: list[Generation] = []
        self.rejected: list[Rejection] = []
        self.failures: deque[When | None] = deque()

    def generation_ended(self, generation: "Generation") -> None:
        self._told(lambda: self.ended.append(generation))

    def request_rejected(self, rejection: "Rejection") -> None:
        self._told(lambda: self.rejected.append(rejection))

    def _told(self, tell: "Callable[[], None]") -> None:
        failure = self.failures.popleft() if self.failures else None
        if failure != "before":
            tell()
        if failure is not None:
            raise RecordsUnavailableError("The bus could not be reached.")
