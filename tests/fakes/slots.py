"""The slots of upstreams, in memory."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from imagegen.domain.slots import KEPT_SECONDS, Slot, Waiter


class FakeUpstreamSlots:
    """Implements `ports.UpstreamSlots`. `now` gives Unix seconds."""

    def __init__(self, limits: Mapping[str, int], now: Callable[[], float] = time.time) -> None:
        self.limits, self.now = limits, now
        self.used: dict[str, dict[str, float]] = defaultdict(dict)  # by upstream and name: when it is free
        self.waiting: dict[str, dict[tuple[float, str], tuple[Waiter, float]]] = defaultdict(dict)
        self._lock = threading.Lock()

    def take(self, upstream: str, generation_id: str, call: int, *, seconds: float) -> Slot | None:
        slot, kept = Slot(upstream, f"{generation_id}#{call}", self.now() + seconds), f"kept#{generation_id}"
        if upstream not in self.limits:
            return slot
        with self._lock:
            used = self._used(upstream)
            if slot.call not in used:
                if len(used) - (kept in used) >= self.limits[upstream]:
                    return None
                used.pop(kept, None)
            used[slot.call] = slot.until
        return slot

    def wait(self, upstream: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        with self._lock:
            before, _ = self.waiting[upstream].get((since, waiter.generation_id), (waiter, until))
            if waiter.poll >= before.poll:
                self.waiting[upstream][since, waiter.generation_id] = waiter, until
            return self._hand_over(upstream)

    def leave(self, upstream: str, generation_id: str, *, since: float) -> Sequence[Waiter]:
        with self._lock:
            self.waiting[upstream].pop((since, generation_id), None)
            kept = self.used[upstream].pop(f"kept#{generation_id}", None)
            return self._hand_over(upstream) if kept is not None else []

    def free(self, slot: Slot) -> Sequence[Waiter]:
        with self._lock:
            if self.used[slot.upstream].get(slot.call) == slot.until:
                del self.used[slot.upstream][slot.call]
            return self._hand_over(slot.upstream)

    def _hand_over(self, upstream: str) -> list[Waiter]:
        used, waiting = self._used(upstream), self.waiting[upstream]
        brought: list[Waiter] = []
        for at, (waiter, until) in sorted(waiting.items(), key=lambda each: each[0]):
            kept = f"kept#{waiter.generation_id}"
            if len(used) >= self.limits.get(upstream, 0):
                break
            if until >= self.now() and kept in used:
                continue
            del waiting[at]
            if until >= self.now():
                used[kept] = self.now() + KEPT_SECONDS
                brought.append(waiter)
        return brought

    def _used(self, upstream: str) -> dict[str, float]:
        now = self.now()
        self.used[upstream] = {name: until for name, until in self.used[upstream].items() if until >= now}
        return self.used[upstream]
