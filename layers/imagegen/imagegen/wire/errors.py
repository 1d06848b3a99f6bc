"""The one table from a failure's meaning to the status, headers and body that tell it to an OpenAI client.

OpenAI's clients retry 408, 409, 429 and 5xx, others by the status alone. So a failure after which money may have been
spent is 424 Failed Dependency, which no client retries, and `x-should-retry` says the same to those that listen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError
from imagegen.domain.quota import Standing
from imagegen.wire.headers import allowance_headers


@dataclass(frozen=True, slots=True)
class Row:
    """`should_retry` is told to clients where it is not None; None leaves it to their own rule."""

    status: int
    type: str
    code: str | None
    should_retry: bool | None = None


def _spent(code: str, kind: str = "upstream_error") -> Row:
    return Row(424, kind, code, should_retry=False)


def _operator(status: int, code: str) -> Row:
    """What only the operator can cure: retrying at once is of no use."""
    return Row(status, "server_error", code, should_retry=False)


ROWS: dict[type[BaseException], Row] = {
    errors.InvalidRequestError: Row(400, "invalid_request_error", None),
    errors.UnsupportedMediaTypeError: Row(415, "invalid_request_error", "unsupported_content_type"),
    errors.RequestTooLargeError: Row(413, "invalid_request_error", "request_too_large"),
    errors.UnknownRouteError: Row(404, "invalid_request_error", "unknown_url"),
    errors.MethodNotAllowedError: Row(405, "invalid_request_error", "method_not_supported"),
    errors.UnknownModelError: Row(404, "invalid_request_error", "model_not_found"),
    errors.UnknownImageError: Row(404, "invalid_request_error", "image_not_found"),
    errors.UnknownGenerationError: Row(404, "invalid_request_error", "generation_not_found"),
    errors.GenerationEndedError: Row(409, "invalid_request_error", "generation_ended", should_retry=False),
    errors.UnknownBatchError: Row(404, "invalid_request_error", "batch_not_found"),
    errors.BatchEndedError: Row(409, "invalid_request_error", "batch_ended", should_retry=False),
    errors.DeletionUnfinishedError: Row(503, "server_error", "deletion_unfinished"),
    errors.IdempotencyKeyReusedError: Row(422, "invalid_request_error", "idempotency_key_reused"),
    errors.AllowanceSpentError: Row(429, "insufficient_quota", "insufficient_quota", should_retry=False),
    errors.PromptRejectedError: Row(400, "invalid_request_error", "content_policy_violation"),
    errors.UpstreamRefusedRequestError: Row(400, "invalid_request_error", "upstream_refused_request"),
    errors.SecretMissingError: _operator(503, "upstream_key_missing"),
    errors.SecretUnavailableError: Row(503, "server_error", "secret_unavailable"),
    errors.IssuerUnavailableError: Row(503, "server_error", "authorizer_unavailable"),
    errors.RecordsUnavailableError: Row(503, "server_error", "records_unavailable"),
    errors.UpstreamKeyRefusedError: _operator(502, "upstream_key_refused"),
    errors.UpstreamOutOfCreditError: _operator(502, "upstream_out_of_credit"),
    errors.UpstreamMisconfiguredError: _operator(502, "upstream_misconfigured"),
    errors.UpstreamRateLimitedError: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.UpstreamUnavailableError: Row(503, "upstream_error", "upstream_unavailable"),
    errors.UpstreamUnreachableError: Row(502, "upstream_error", "upstream_unreachable"),
    errors.UpstreamFailedError: _spent("upstream_failed"),
    errors.UpstreamTimeoutError: _spent("upstream_timeout"),
    errors.UpstreamConnectionLostError: _spent("upstream_connection_lost"),
    errors.UpstreamAnswerInvalidError: _spent("upstream_answer_invalid"),
    errors.UpstreamAnswerTooLargeError: _spent("upstream_answer_too_large"),
    errors.UpstreamTooFewImagesError: _spent("upstream_too_few_images"),
    errors.ImageUrlRefusedError: _spent("image_url_refused"),
    errors.ImageDownloadError: _spent("image_download_failed"),
    errors.ImageDownloadInterruptedError: _spent("image_download_failed"),
    errors.NotAnImageError: _spent("not_an_image"),
    errors.ImageTruncatedError: _spent("image_truncated"),
    errors.ImageTooLargeError: _spent("image_too_large"),
    errors.ImageStorageError: _spent("image_storage_failed", "server_error"),
    errors.ImageStorageInterruptedError: _spent("image_storage_failed", "server_error"),
    errors.PartialGenerationError: _spent("partial_generation"),
    errors.AnswerTooLargeError: _spent("answer_too_large", "server_error"),
    errors.OutcomeUnknownError: _spent("outcome_unknown", "server_error"),
    errors.AbandonedError: _spent("abandoned", "server_error"),
    errors.SubmissionUncertainError: Row(424, "server_error", "submission_uncertain", should_retry=True),
    errors.GenerationStillRunningError: _spent("generation_still_running", "server_error"),
    errors.GenerationCancelledError: _spent("generation_cancelled", "invalid_request_error"),
    errors.InternalError: _spent("internal_error", "server_error"),
    # A fault of ours before anything was spent.
    Exception: Row(500, "server_error", "internal_error"),
}

# GPT image models tell a rejected prompt by a type of its own, beside the code `moderation_blocked`.
_REJECTED_BY_GPT_IMAGE = "image_generation_user_error"


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def error_object(error: Exception) -> dict[str, Any]:
    """OpenAI's error object: message, type, param and code. What is not an ImagegenError is told without its words."""
    told = error if isinstance(error, ImagegenError) else None
    # Of a generation that failed in part the caller learns why the rest is missing.
    reason = error.__cause__ if isinstance(error, errors.PartialGenerationError) else told
    why = reason if isinstance(reason, ImagegenError) else told
    row = ROWS[type(why) if why else Exception]
    return {
        "message": told.message if told else "Something went wrong on our side.",
        "type": _REJECTED_BY_GPT_IMAGE if why and why.code == "moderation_blocked" else row.type,
        "param": why.param if why else None,
        "code": (why.code if why else None) or row.code,
    }


def answer_error(error: Exception, permalink: Callable[[str], str]) -> ErrorAnswer:
    """The answer that tells `error`.

    `permalink` makes the durable link of an image id.
    """
    told = error if isinstance(error, ImagegenError) else None
    row = ROWS[type(error) if told else Exception]
    body: dict[str, Any] = error_object(error)
    if isinstance(told, MoneySpentError) and told.images:
        body["images"] = [{"id": image_id, "permalink": permalink(image_id)} for image_id in told.images]
    headers = {}
    if row.should_retry is not None:
        headers["x-should-retry"] = str(row.should_retry).lower()
    if isinstance(told, errors.TryLaterError) and told.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(told.retry_after))
    if isinstance(told, errors.MethodNotAllowedError):
        headers["Allow"] = ", ".join(told.allowed)
    if isinstance(told, errors.SubmissionUncertainError):
        headers["x-generation-id"] = told.generation_id
    if isinstance(told, errors.AllowanceSpentError):
        headers["Retry-After"] = str(math.ceil(told.reset))
        headers |= allowance_headers(Standing(told.limit, told.remaining, told.reset))
    return ErrorAnswer(row.status, headers, {"error": body})
