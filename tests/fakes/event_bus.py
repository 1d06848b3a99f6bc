"""A bus in memory."""

from imagegen.domain.generations import Generation, Rejection
from tests.fakes.failing import Failing


class FakeEventBus(Failing):
    """Passes the contract of `ports.EventBus`. `ended` and `rejected` are the published ones, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Generation] = []
        self.rejected: list[Rejection] = []

    def generation_ended(self, generation: Generation) -> None:
        with self._asked():
            self.ended.append(generation)

    def request_rejected(self, rejection: Rejection) -> None:
        with self._asked():
            self.rejected.append(rejection)
