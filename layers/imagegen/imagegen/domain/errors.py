"""Defines the exceptions of the service. Each has a stable code, and says whether money may have been spent.

An exception becomes a `Failure` (`domain.failures`) when it is kept or answered. Class names may change; codes may not.
The table of HTTP statuses is in `wire.errors`.
"""

from collections.abc import Sequence
from typing import ClassVar


class ImagegenError(Exception):
    """The base of every failure that is reported to a caller. The message is written for the caller.

    A class has one `code`; `code` in the constructor replaces it by a more exact one. `retry` is `False` if sending the
    request again is of no use or may pay again, `True` if it is safe and useful, and `None` if the HTTP status says
    enough; `retry_after` is in seconds. `interrupted` is `True` if another try of the same step may succeed. With
    `another_attempt`, an upstream call certainly bought nothing and the request is not to blame: it may be sent again,
    by this or another route.
    """

    code: str
    money_spent: ClassVar[bool]
    retry: ClassVar[bool | None] = None
    retry_after: float | None = None
    interrupted: ClassVar[bool] = False
    another_attempt: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class NothingSpentError(ImagegenError):
    """No image was bought, so a retry pays for none twice."""

    money_spent = False


class MoneySpentError(ImagegenError):
    """The upstream was paid, or may have been. It must not be retried blindly.

    `images` are the ids of the images that were stored.
    """

    money_spent = True
    retry = False
    images: Sequence[str] = ()


# The caller's mistakes.


class InvalidRequestError(NothingSpentError):
    """A field, or the body as a whole, is not valid."""

    code = "invalid_request"


class UnsupportedMediaTypeError(NothingSpentError):
    """The body, or an input image, has a type that is not accepted."""

    code = "unsupported_content_type"


class RequestTooLargeError(NothingSpentError):
    """The body is larger than any valid request."""

    code = "request_too_large"


class UnknownRouteError(NothingSpentError):
    """The path does not exist."""

    code = "unknown_url"


class MethodNotAllowedError(NothingSpentError):
    """The path does not have this method. `allowed` are its methods."""

    code = "method_not_supported"
    allowed: Sequence[str] = ()


class InvalidImageError(NothingSpentError):
    """An input image cannot be used: it does not exist, is broken, or has a size that the model does not accept."""

    code = "invalid_image"


class UnknownModelError(NothingSpentError):
    """No model has this name."""

    code = "model_not_found"


class UnknownImageError(NothingSpentError):
    """The id is not that of an image."""

    code = "image_not_found"


class UnknownGenerationError(NothingSpentError):
    """The caller has no such generation."""

    code = "generation_not_found"


class GenerationEndedError(NothingSpentError):
    """The generation has already ended and cannot be cancelled."""

    code = "generation_ended"
    retry = False


class UnknownBatchError(NothingSpentError):
    """The caller has no such batch."""

    code = "batch_not_found"


class BatchEndedError(NothingSpentError):
    """All lines of the batch have already ended. It cannot be cancelled."""

    code = "batch_ended"
    retry = False


class BatchCancelledError(NothingSpentError):
    """The batch was cancelled before the line began."""

    code = "batch_cancelled"
    retry = False


class BatchExpiredError(NothingSpentError):
    """The completion window of the batch ended before the line began."""

    code = "batch_expired"
    retry = False


class UnknownFileError(NothingSpentError):
    """The caller has no such file, or its content is gone."""

    code = "file_not_found"


class CallerRemovedError(NothingSpentError):
    """The caller's key was deleted after its batch had begun."""

    code = "invalid_api_key"


class DeletionUnfinishedError(NothingSpentError):
    """The generation is deleted, but some of its images are not yet."""

    code = "deletion_unfinished"


class IdempotencyKeyReusedError(NothingSpentError):
    """The Idempotency-Key was used with another request."""

    code = "idempotency_key_reused"


class ModelHasNoPriceError(NothingSpentError):
    """The caller's quota is in money, and the model has no price."""

    code = "model_has_no_price"


class QuotaExceededError(NothingSpentError):
    """The caller's or the stack's quota for today does not suffice.

    `limit` and `remaining` are the caller's, in images; `reset` is in seconds. `is_above_limit` is whether the request
    is above the quota of a whole day, so that waiting does not help. `usd_limit` and `usd_remaining` are in
    millionths of a dollar, `None` if the caller has no quota in money.
    """

    code = "insufficient_quota"
    retry = False
    limit: int = 0
    remaining: int = 0
    reset: float = 0.0
    is_above_limit: bool = False
    usd_limit: int | None = None
    usd_remaining: int | None = None


class PromptRejectedError(NothingSpentError):
    """The upstream's content policy refused the prompt."""

    code = "content_policy_violation"


class UpstreamRefusedRequestError(NothingSpentError):
    """The upstream refused a field that the model's data allows."""

    code = "upstream_refused_request"


class UpstreamLacksModelError(UpstreamRefusedRequestError):
    """The upstream does not have the model."""

    another_attempt = True


# Only the operator can correct these.


class SecretMissingError(NothingSpentError):
    """The upstream's key is missing from SSM Parameter Store, or it is not valid in an HTTP header."""

    code = "upstream_key_missing"
    retry = False
    another_attempt = True


class UpstreamKeyRefusedError(NothingSpentError):
    """The upstream does not accept this service's key, or not for this model."""

    code = "upstream_key_refused"
    retry = False
    another_attempt = True


class UpstreamOutOfCreditError(NothingSpentError):
    """The account of this service with the upstream has no credit left."""

    code = "upstream_out_of_credit"
    retry = False
    another_attempt = True


class UpstreamMisconfiguredError(NothingSpentError):
    """The upstream's base URL has no images API."""

    code = "upstream_misconfigured"
    retry = False
    another_attempt = True


# Nothing was bought, and waiting may help.


class TryLaterError(NothingSpentError):
    """`retry_after` is `None` if the upstream named no time."""


class NoPlaceToBeginError(TryLaterError):
    """As many requests wait for their images as may. Nothing was begun."""

    code = "no_place_to_wait"


class UpstreamRateLimitedError(TryLaterError):
    """The upstream answered 429."""

    code = "rate_limit_exceeded"
    another_attempt = True


class UpstreamUnavailableError(TryLaterError):
    """The upstream answered 503."""

    code = "upstream_unavailable"
    another_attempt = True


class UpstreamUnreachableError(TryLaterError):
    """No connection was made, or it broke before the whole request was sent."""

    code = "upstream_unreachable"
    another_attempt = True


class InputUnavailableError(TryLaterError):
    """An input image could not be stored or read now. No upstream got a whole request."""

    code = "input_unavailable"
    another_attempt = True


class FileUnavailableError(TryLaterError):
    """A file could not be stored, read or deleted now."""

    code = "file_unavailable"


class UpstreamTaskRefundedError(NothingSpentError):
    """The upstream's task failed or was cancelled there, and the upstream returned its price."""

    code = "upstream_task_refunded"
    retry = False


class SecretUnavailableError(NothingSpentError):
    """SSM Parameter Store did not answer."""

    code = "secret_unavailable"


class IssuerUnavailableError(NothingSpentError):
    """The issuer of tokens did not give its keys, so a token could not be checked."""

    code = "authorizer_unavailable"


class RecordsUnavailableError(NothingSpentError):
    """DynamoDB, SQS or EventBridge did not answer, before the upstream was called."""

    code = "records_unavailable"


# The upstream was paid, or may have been.


class UpstreamFailedError(MoneySpentError):
    """The upstream failed after it had the request. Resellers also answer 500 for their own time-outs."""

    code = "upstream_failed"


class UpstreamTimeoutError(MoneySpentError):
    """The upstream had the request and did not answer in time."""

    code = "upstream_timeout"


class UpstreamConnectionLostError(MoneySpentError):
    """The connection broke after the request was sent."""

    code = "upstream_connection_lost"


class UpstreamAnswerInvalidError(MoneySpentError):
    """The upstream answered with success, but without JSON, data or a usable image."""

    code = "upstream_answer_invalid"


class UpstreamAnswerTooLargeError(MoneySpentError):
    """The answer is larger than the requested images can be."""

    code = "upstream_answer_too_large"


class UpstreamTooFewImagesError(MoneySpentError):
    """The upstream returned fewer images than it was asked for."""

    code = "upstream_too_few_images"


class ImageFilteredError(MoneySpentError):
    """The upstream made an answer, and its safety system kept the image back. The call may be charged."""

    code = "content_policy_violation"


class UpstreamNoImageError(MoneySpentError):
    """The upstream answered with text and no image. The call may be charged."""

    code = "upstream_no_image"


class UpstreamTaskFailedError(MoneySpentError):
    """The upstream's task failed or was cancelled there. The upstream does not say that it returns the price."""

    code = "upstream_task_failed"


class UpstreamTaskUnknownError(MoneySpentError):
    """The upstream does not know the task that it began."""

    code = "upstream_task_unknown"


class UpstreamTaskUnfinishedError(MoneySpentError):
    """The upstream's task did not end in time. Its id is on the record, and an operator's retry polls it again."""

    code = "upstream_task_unfinished"


class ImageUrlRefusedError(MoneySpentError):
    """The upstream returned an image URL that must not be fetched."""

    code = "image_url_refused"


class ImageDownloadError(MoneySpentError):
    """An image could not be fetched from the upstream's URL."""

    code = "image_download_failed"


class ImageDownloadInterruptedError(ImageDownloadError):
    """A download broke off, or the host was not ready. Another try may succeed."""

    interrupted = True


class NotAnImageError(MoneySpentError):
    """The content is not PNG, JPEG, WebP or GIF."""

    code = "not_an_image"


class ImageTruncatedError(ImageDownloadInterruptedError):
    """The image ends too early."""

    code = "image_truncated"


class ImageTooLargeError(MoneySpentError):
    """The image is over the byte limit."""

    code = "image_too_large"


class ImageStorageError(MoneySpentError):
    """S3 refused to store an image."""

    code = "image_storage_failed"


class ImageStorageInterruptedError(ImageStorageError):
    """S3 did not store an image, or its answer was lost. Another try may succeed."""

    interrupted = True


class PartialGenerationError(MoneySpentError):
    """Some images were made and stored, and at least one was not. `cause` is the reason."""

    code = "partial_generation"


class AnswerTooLargeError(MoneySpentError):
    """All images are stored, but their base64 does not fit into one answer."""

    code = "answer_too_large"


class OutcomeUnknownError(MoneySpentError):
    """A process died before it had the answer to an upstream call, and the call may not be sent again."""

    code = "outcome_unknown"


class AbandonedError(MoneySpentError):
    """Every process that worked on the generation died."""

    code = "abandoned"


class SubmissionUncertainError(MoneySpentError):
    """The record may have been written. If so, the image is made, and a retry attaches to it.

    `generation_id` is the id of the record, "" for that of a batch.
    """

    code = "submission_uncertain"
    retry = True
    generation_id: str = ""


class GenerationStillRunningError(MoneySpentError):
    """The generation did not end within the number of redirects that clients follow."""

    code = "generation_still_running"


class NoPlaceToWaitError(MoneySpentError):
    """As many requests wait for their images as may. The generation continues."""

    code = "no_place_to_wait"
    retry = True


class GenerationCancelledError(MoneySpentError):
    """The caller cancelled the generation. Upstream calls that had begun may be paid."""

    code = "generation_cancelled"


class InternalError(MoneySpentError):
    """An unexpected failure of this service after the upstream may have been called."""

    code = "internal_error"
