"""The places to wait, in memory."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable

from imagegen.domain.places import KEPT_SECONDS, PLACE_SECONDS, Place


class FakePlaces:
    """Implements `ports.Places`. `now` gives Unix seconds."""

    def __init__(self, most: int = 1000, share: int = 100, now: Callable[[], float] = time.time) -> None:
        self.most, self.share, self.now = most, share, now
        self.used: dict[str, tuple[str, float]] = {}  # by place, or by generation if kept: caller, and when it is free
        self._ids = itertools.count()
        self._lock = threading.Lock()

    def take(self, caller: str, generation_id: str | None = None) -> Place | None:
        place = Place(f"place#{next(self._ids)}", caller, 0)
        with self._lock:
            if f"kept#{generation_id}" in self.used:
                del self.used[f"kept#{generation_id}"]
            elif not self._is_free_for(caller):
                self.used = {name: taken for name, taken in self.used.items() if taken[1] >= self.now()}
                if not self._is_free_for(caller):
                    return None
            self.used[place.id] = caller, self.now() + PLACE_SECONDS
        return place

    def renew(self, place: Place) -> None:
        with self._lock:
            if place.id in self.used:
                self.used[place.id] = place.caller, self.now() + PLACE_SECONDS

    def keep(self, caller: str, generation_id: str) -> None:
        with self._lock:
            self.used.setdefault(f"kept#{generation_id}", (caller, self.now() + KEPT_SECONDS))

    def free(self, place: Place) -> None:
        with self._lock:
            self.used.pop(place.id, None)

    def _is_free_for(self, caller: str) -> bool:
        share = max(1, self.most * self.share // 100)
        each = Counter(each for each, _ in self.used.values())
        return each[caller] < share and sum(min(own, share) for own in each.values()) < self.most
