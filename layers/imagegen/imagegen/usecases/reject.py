"""Refuses a request that nobody waits for: it is laid aside with its reason, and told."""

from imagegen.domain.errors import NothingSpentError
from imagegen.domain.failures import kept
from imagegen.domain.generations import Rejection
from imagegen.ports import DeadLetters, EventBus

_MOST_REASON = 1000  # characters


def reject(
    error: NothingSpentError,
    body: str,
    dead_letters: DeadLetters,
    bus: EventBus,
    *,
    event_id: str | None,
    client: str | None,
    custom_id: str | None,
) -> None:
    """Both may happen twice where we die in between. Raises RecordsUnavailableError."""
    field = f" ({error.param})" if error.param else ""
    reason = f"{type(error).__name__}{field}: {error.message}"[:_MOST_REASON]
    # SQS takes no control characters, which the name of an unknown field may hold.
    dead_letters.put(body, "".join(character if character.isprintable() else " " for character in reason))
    if event_id is not None:  # otherwise there is no event that it could be told of
        bus.request_rejected(Rejection(event_id, client, custom_id, kept(error)))
