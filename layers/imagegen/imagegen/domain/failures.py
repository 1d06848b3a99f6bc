"""Defines a failure: the part of an exception that records, events, metrics and answers keep."""

import msgspec

from imagegen.domain.errors import ImagegenError, PartialGenerationError

UNEXPECTED = "This service failed unexpectedly."


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """`code` is stable and documented (docs/api.md). `message` is written for the caller.

    `money_spent` is `True` if the upstream was paid or may have been. `retry` is whether the same request is worth
    sending again, `None` if the HTTP status says enough; `retry_after` is in seconds. `interrupted` is `True` if
    another try of the step that failed may succeed. With `another_attempt`, an upstream call may be sent again, by this
    or another route. `cause` is why a part of a generation is missing.
    """

    code: str
    message: str
    money_spent: bool
    param: str | None = None
    retry: bool | None = None
    retry_after: float | None = None
    interrupted: bool = False
    another_attempt: bool = False
    cause: "Failure | None" = None

    @property
    def reason(self) -> "Failure":
        """The cause if there is one, otherwise the failure itself."""
        return self.cause or self


def failure_of(error: Exception) -> Failure:
    """Returns the failure of an exception. If it is not an ImagegenError: `internal_error` with nothing spent.

    The message of such an exception is left out, because it may contain text of a caller or an upstream.
    """
    if not isinstance(error, ImagegenError):
        return Failure("internal_error", UNEXPECTED, money_spent=False)
    cause = error.__cause__ if isinstance(error, PartialGenerationError) else None
    return Failure(
        code=error.code,
        message=error.message,
        money_spent=error.money_spent,
        param=error.param,
        retry=error.retry,
        retry_after=error.retry_after,
        interrupted=error.interrupted,
        another_attempt=error.another_attempt,
        cause=failure_of(cause) if isinstance(cause, ImagegenError) else None,
    )
