"""Keeps an ImagegenError on a record, and raises it again from there."""

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError
from imagegen.domain.generations import Failure


def kept(error: ImagegenError) -> Failure:
    cause = error.__cause__ if isinstance(error, errors.PartialGenerationError) else None
    return Failure(
        kind=type(error).__name__,
        message=error.message,
        param=error.param,
        code=error.code,
        retry_after=error.retry_after if isinstance(error, errors.TryLaterError) else None,
        cause=kept(cause) if isinstance(cause, ImagegenError) else None,
    )


def raised_again(failure: Failure) -> ImagegenError:
    """The same error. One that this version does not know is taken for one after which money may be spent."""
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, ImagegenError)):
        kind = errors.InternalError
    error = kind(failure.message, param=failure.param, code=failure.code)
    if isinstance(error, errors.TryLaterError):
        error.retry_after = failure.retry_after
    if failure.cause:
        error.__cause__ = raised_again(failure.cause)
    return error


def cost_money(failure: Failure) -> bool:
    """Whether the upstream was paid, or may have been."""
    return isinstance(raised_again(failure), MoneySpentError)
