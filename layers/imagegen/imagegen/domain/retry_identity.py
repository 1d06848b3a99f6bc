"""Defines the data that identifies a request as the repetition of an earlier one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryIdentity:
    """`retry` is the client's count of its retries, 0 for the first try; `None` if the client does not count."""

    idempotency_key: str | None = None
    retry: int | None = None

    @property
    def is_counted(self) -> bool:
        """`True` if the client counts its retries: then they attach to the generation of its first try."""
        return self.retry is not None
