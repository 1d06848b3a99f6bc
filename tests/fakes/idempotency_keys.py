"""The idempotency keys in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fakes.failing import Failing


@dataclass
class KeyMarker:
    generation_id: str
    fingerprint: str
    created_at: float


@dataclass
class RetryMarker:
    generation_id: str
    created_at: float
    seen: set[int]


class FakeIdempotencyKeys(Failing):
    """Passes the contract of `ports.IdempotencyKeys`. `asked` are the names of all calls, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._keys: dict[tuple[str, str], KeyMarker] = {}
        self._retries: dict[tuple[str, str], list[RetryMarker]] = {}

    def hold(
        self,
        caller: str,
        idempotency_key: str,
        generation_id: str,
        fingerprint: str,
        *,
        now: float,
        expired_before: float,
        replacing: str | None = None,
    ) -> KeyMarker:
        with self._noted("hold"):
            holder = self._keys.get((caller, idempotency_key))
            if holder is None or holder.created_at < expired_before or holder.generation_id == replacing:
                holder = KeyMarker(generation_id, fingerprint, now)
                self._keys[caller, idempotency_key] = holder
            return holder

    def find(self, caller: str, idempotency_key: str, *, expired_before: float) -> str | None:
        with self._noted("find"):
            holder = self._keys.get((caller, idempotency_key))
            return holder.generation_id if holder and holder.created_at >= expired_before else None

    def mark(self, caller: str, fingerprint: str, generation_id: str, retry: int, *, now: float) -> None:
        with self._noted("mark"):
            markers = self._retries.setdefault((caller, fingerprint), [])
            markers.append(RetryMarker(generation_id, now, {retry}))

    def attach(self, caller: str, fingerprint: str, retry: int, *, since: float) -> str | None:
        with self._noted("attach"):
            markers = self._retries.get((caller, fingerprint), [])
            for marker in sorted(markers, key=lambda marker: marker.created_at, reverse=True):
                if marker.created_at > since and retry not in marker.seen:
                    marker.seen.add(retry)
                    return marker.generation_id
            return None

    @contextmanager
    def _noted(self, call: str) -> Iterator[None]:
        with self._lock:
            self.asked.append(call)
            with self._asked():
                yield
