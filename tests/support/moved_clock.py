"""A clock for deadlines that a test moves, so that none is waited for."""

import threading
import time

import pytest

from imagegen.domain.deadline import Deadline
from imagegen.outbound.read_deadline import cut_off_at
from tests.support.waiting import SECONDS


class MovedClock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        for module in ("imagegen.domain.deadline", "imagegen.outbound.read_deadline"):
            monkeypatch.setattr(f"{module}.time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def move(self, seconds: float) -> None:
        """Returns once all that is due by then is cut off."""
        self._ahead += seconds
        for due in (0, self.monotonic()):  # the first wakes the thread that cuts off, the second is the last one due
            cut_off = threading.Event()
            with cut_off_at(Deadline(due), cut_off.set):
                assert cut_off.wait(SECONDS)
