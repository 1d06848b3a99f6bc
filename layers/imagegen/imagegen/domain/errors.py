"""Every failure, named by what it means. No HTTP here: `wire.errors` holds the one table of statuses.

Two families matter to money. Where a `NothingSpentError` is raised, no image was bought and a retry buys none twice.
Where a `MoneySpentError` is raised, the upstream was paid or may have been, so nobody may retry it blindly.
"""

from collections.abc import Sequence


class ImagegenError(Exception):
    """The base of every failure that a caller is told about. The message is written for the caller."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class NothingSpentError(ImagegenError):
    pass


class MoneySpentError(ImagegenError):
    """`images` are the ids of those that were stored all the same."""

    images: Sequence[str] = ()


# What the caller got wrong.


class InvalidRequestError(NothingSpentError):
    """A field, or the body as a whole, is not what the API takes."""


class UnsupportedMediaTypeError(NothingSpentError):
    """The body is not application/json."""


class RequestTooLargeError(NothingSpentError):
    """The body is larger than any valid request."""


class UnknownRouteError(NothingSpentError):
    """There is no such path."""


class MethodNotAllowedError(NothingSpentError):
    """The path has no such method. `allowed` are those that it has."""

    allowed: Sequence[str] = ()


class UnknownModelError(NothingSpentError):
    """No model has this name."""


class UnknownImageError(NothingSpentError):
    """What was given is no image id."""


class UnknownGenerationError(NothingSpentError):
    """The caller has no such generation."""


class GenerationEndedError(NothingSpentError):
    """It has ended already, so it cannot be cancelled."""


class UnknownBatchError(NothingSpentError):
    """The caller has no such batch."""


class BatchEndedError(NothingSpentError):
    """All of its lines have ended already, so it cannot be cancelled."""


class DeletionUnfinishedError(NothingSpentError):
    """The generation is gone, but some of its images could not be deleted yet."""


class IdempotencyKeyReusedError(NothingSpentError):
    """The same Idempotency-Key came with another request."""


class AllowanceSpentError(NothingSpentError):
    """The caller, or the whole stack, has had its images for today.

    `limit` and `remaining` are the caller's, in images; `reset` is in seconds.
    """

    limit: int = 0
    remaining: int = 0
    reset: float = 0.0


class PromptRejectedError(NothingSpentError):
    """The upstream's content policy refused the prompt."""


class UpstreamRefusedRequestError(NothingSpentError):
    """The upstream found a field invalid that our catalog let through."""


# What the deployer has to put right.


class SecretMissingError(NothingSpentError):
    """The upstream's key is not in SSM Parameter Store, or is not one that a header can carry."""


class UpstreamKeyRefusedError(NothingSpentError):
    """The upstream does not accept our key, or not for this model."""


class UpstreamOutOfCreditError(NothingSpentError):
    """Our account with the upstream is used up."""


class UpstreamMisconfiguredError(NothingSpentError):
    """There is no images API at the upstream's base URL."""


# What waiting may cure, and nothing was bought.


class TryLaterError(NothingSpentError):
    """`retry_after` is in seconds, where the upstream named a time."""

    retry_after: float | None = None


class UpstreamRateLimitedError(TryLaterError):
    """The upstream said 429."""


class UpstreamUnavailableError(TryLaterError):
    """The upstream said 503."""


class UpstreamUnreachableError(TryLaterError):
    """No connection came about, so no request was sent."""


class SecretUnavailableError(NothingSpentError):
    """SSM Parameter Store could not be asked."""


class IssuerUnavailableError(NothingSpentError):
    """The issuer of tokens could not be asked for its keys, so nobody knows whether a token is good."""


class RecordsUnavailableError(NothingSpentError):
    """DynamoDB or SQS could not be asked, before the upstream was."""


# The upstream was paid, or may have been.


class UpstreamFailedError(MoneySpentError):
    """The upstream broke after it had the request. Resellers answer 500 for their own time-outs too."""


class UpstreamTimeoutError(MoneySpentError):
    """The upstream had the request and did not answer in time."""


class UpstreamConnectionLostError(MoneySpentError):
    """The connection broke after the request was sent."""


class UpstreamAnswerInvalidError(MoneySpentError):
    """A success that is none: no JSON, no data, no usable image."""


class UpstreamAnswerTooLargeError(MoneySpentError):
    """The answer is larger than the images asked for can be."""


class UpstreamTooFewImagesError(MoneySpentError):
    """Fewer images came back than were asked for."""


class ImageUrlRefusedError(MoneySpentError):
    """The upstream named an image URL that must not be fetched."""


class ImageDownloadError(MoneySpentError):
    """An image could not be fetched from where the upstream said it is."""


class ImageDownloadInterruptedError(ImageDownloadError):
    """A download broke off, or the host was not ready: fetching again may help."""


class NotAnImageError(MoneySpentError):
    """What came is not PNG, JPEG, WebP or GIF."""


class ImageTruncatedError(ImageDownloadInterruptedError):
    """The image ends too early."""


class ImageTooLargeError(MoneySpentError):
    """The image is over the byte limit."""


class ImageStorageError(MoneySpentError):
    """S3 refused to take an image."""


class ImageStorageInterruptedError(ImageStorageError):
    """S3 did not take an image this time: trying again may help."""


class PartialGenerationError(MoneySpentError):
    """Some images were made and stored, and at least one was not. `__cause__` is why."""


class AnswerTooLargeError(MoneySpentError):
    """All images are stored, but their base64 does not fit into one answer."""


class OutcomeUnknownError(MoneySpentError):
    """Whoever sent an upstream call died before its answer was known, and it is not to be sent again."""


class AbandonedError(MoneySpentError):
    """Every attempt to work on the generation died."""


class SubmissionUncertainError(MoneySpentError):
    """The record may have been written, and if so the image is made. A retry attaches to it.

    `generation_id` names it.
    """

    generation_id: str = ""


class GenerationStillRunningError(MoneySpentError):
    """It was waited for as long as clients follow redirects."""


class GenerationCancelledError(MoneySpentError):
    """The caller cancelled it, and what the upstream had been asked for by then may be paid."""


class InternalError(MoneySpentError):
    """A fault of ours after the upstream may have been called."""
