"""The slots of upstreams, in memory."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from imagegen.domain.slots import KEPT_SECONDS, SAVED_SECONDS, Slot, Waiter, call_name


class FakeUpstreamSlots:
    """Implements `ports.UpstreamSlots`. `now` gives Unix seconds."""

    def __init__(self, limits: Mapping[str, int], now: Callable[[], float] = time.time) -> None:
        self.limits, self.now = limits, now
        # By the slots' name and the call's: until when, and how many.
        self.used: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
        self.waiting: dict[str, dict[tuple[float, str], tuple[Waiter, float]]] = defaultdict(dict)
        self._lock = threading.Lock()

    def take(self, at: str, generation_id: str, call: int, *, until: float, count: int = 1) -> Slot | None:
        slot, kept = Slot(at, call_name(generation_id, call), until, count), f"kept#{generation_id}"
        if at not in self.limits:
            return slot
        slot = Slot(at, slot.call, until, max(1, min(count, self.limits[at])))
        with self._lock:
            used = self._used(at)
            if slot.call not in used:
                others = sum(many for name, (_, many) in used.items() if name != kept)
                if others + slot.count > self.limits[at]:
                    return None
                used.pop(kept, None)
            used[slot.call] = slot.until, slot.count
        return slot

    def wait(self, at: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        with self._lock:
            before, _ = self.waiting[at].get((since, waiter.generation_id), (waiter, until))
            if waiter.poll >= before.poll:
                self.waiting[at][since, waiter.generation_id] = waiter, until
            _, kept = self._used(at).get(f"kept#{waiter.generation_id}", (0.0, 0))
            again = [waiter] if kept >= max(1, min(waiter.count, self.limits.get(at, 0))) else []
            return [*again, *self._hand_over(at)]

    def leave(self, at: str, generation_id: str, *, since: float, held: bool = False) -> Sequence[Waiter]:
        with self._lock:
            self.waiting[at].pop((since, generation_id), None)
            gone = [
                name
                for name in self.used[at]
                if name == f"kept#{generation_id}" or (held and name.startswith(f"{generation_id}#"))
            ]
            for name in gone:
                del self.used[at][name]
            return self._hand_over(at) if gone else []

    def free(self, slot: Slot) -> Sequence[Waiter]:
        with self._lock:
            until, _ = self.used[slot.at].get(slot.call, (None, 0))
            if until == slot.until:
                del self.used[slot.at][slot.call]
            return self._hand_over(slot.at)

    def _hand_over(self, at: str) -> list[Waiter]:
        used, waiting, limit = self._used(at), self.waiting[at], self.limits.get(at, 0)
        brought: list[Waiter] = []
        for place, (waiter, until) in sorted(waiting.items(), key=lambda each: each[0]):
            kept, count = f"kept#{waiter.generation_id}", max(1, min(waiter.count, limit))
            left, alive = limit - sum(many for _, many in used.values()), until >= self.now()
            _, saved = used.get(kept, (0.0, 0))
            if left <= 0:
                break
            if alive and saved >= count:
                continue
            if alive and left < count - saved:
                used[kept] = self.now() + SAVED_SECONDS, saved + left
                break
            del waiting[place]
            if alive:
                used[kept] = self.now() + KEPT_SECONDS, count
                brought.append(waiter)
        return brought

    def _used(self, at: str) -> dict[str, tuple[float, int]]:
        now = self.now()
        self.used[at] = {name: (until, many) for name, (until, many) in self.used[at].items() if until >= now}
        return self.used[at]
