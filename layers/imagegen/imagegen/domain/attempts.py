"""What says that two requests are one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a client says about a request of its own. `retry` counts its retries, None if it does not count."""

    idempotency_key: str | None = None
    retry: int | None = None

    @property
    def is_retried(self) -> bool:
        """Whether the client is one that tries again by itself, and then finds what this try began."""
        return self.retry is not None
