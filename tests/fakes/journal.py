"""A journal in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegen.domain.failures import Failure
    from imagegen.domain.generations import Generation, StoredImage


class FakeJournal:
    """Implements `ports.Journal`. `calls` are in order: the method and the main arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def begun(self, generation: "Generation", *, quota_used: float) -> None:
        self.calls.append(("begun", generation.id, quota_used))

    def attached(self, generation: "Generation") -> None:
        self.calls.append(("attached", generation.id))

    def claimed(self, generation: "Generation", *, age: float) -> None:
        self.calls.append(("claimed", generation.id, age))

    def asked(self, generation: "Generation", n: int, upstream: str) -> None:
        self.calls.append(("asked", generation.id, n))

    def answered(self, generation: "Generation", seconds: float, failure: "Failure | None", upstream: str) -> None:
        self.calls.append(("answered", generation.id, failure.code if failure else None))

    def stored(self, generation: "Generation", image: "StoredImage") -> None:
        self.calls.append(("stored", generation.id, image.length))

    def broke_off(self, trace: Sequence[str], **about: str) -> None:
        self.calls.append(("broke off", about))

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        self.calls.append(("interrupted", about))
