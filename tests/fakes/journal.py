"""A journal in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegen.domain.errors import ImagegenError
    from imagegen.domain.generations import Generation, StoredImage


class FakeJournal:
    """Implements `ports.Journal`. `told` is what it was told, in order: the method's name, and what matters of it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def begun(self, generation: "Generation", *, quota_used: float) -> None:
        self.told.append(("begun", generation.id, quota_used))

    def attached(self, generation: "Generation") -> None:
        self.told.append(("attached", generation.id))

    def claimed(self, generation: "Generation", *, age: float) -> None:
        self.told.append(("claimed", generation.id, age))

    def asked(self, generation: "Generation", n: int) -> None:
        self.told.append(("asked", generation.id, n))

    def answered(self, generation: "Generation", seconds: float, error: "ImagegenError | None") -> None:
        self.told.append(("answered", generation.id, type(error).__name__ if error else None))

    def stored(self, generation: "Generation", image: "StoredImage") -> None:
        self.told.append(("stored", generation.id, image.length))

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        self.told.append(("interrupted", about))
