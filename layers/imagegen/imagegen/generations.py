"""A generation: one admitted request, and what is fixed about it before anything is spent."""

import secrets
from dataclasses import dataclass
from typing import Self

from imagegen.images import ImageRequest, new_image_id


@dataclass(frozen=True, slots=True)
class Generation:
    """`created_at` is in Unix seconds. There is one image id for each image asked for."""

    id: str
    caller: str
    request: ImageRequest
    image_ids: tuple[str, ...]
    created_at: int

    @classmethod
    def admit(cls, request: ImageRequest, *, caller: str, now: float) -> Self:
        return cls(
            id=f"gen_{secrets.token_urlsafe(16)}",
            caller=caller,
            request=request,
            image_ids=tuple(new_image_id() for _ in range(request.n)),
            created_at=int(now),
        )
