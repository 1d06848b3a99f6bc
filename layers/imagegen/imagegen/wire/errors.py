"""Turns failures into answers: the table of HTTP statuses, and OpenAI's error object.

OpenAI's clients retry 408, 409, 429 and 5xx; other clients decide by the status alone. A failure after which money may
have been spent is therefore 424 Failed Dependency, which no client retries. `x-should-retry` says the same to clients
that read it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imagegen.domain import errors
from imagegen.domain.errors import MoneySpentError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.quota import Standing
from imagegen.wire.headers import quota_headers

MAY_BE_SPENT = 424
CODELESS = errors.InvalidRequestError.code  # OpenAI answers with a null code

_CALLER, _UPSTREAM, _SERVER = "invalid_request_error", "upstream_error", "server_error"


@dataclass(frozen=True, slots=True)
class Row:
    """`status` is the HTTP status if nothing was spent, else `spent` is. `type` is the type in OpenAI's object."""

    status: int
    type: str
    spent: int = MAY_BE_SPENT


ROWS: dict[str, Row] = {
    "invalid_request": Row(400, _CALLER),
    "invalid_type": Row(400, _CALLER),
    "invalid_value": Row(400, _CALLER),
    "unknown_parameter": Row(400, _CALLER),
    "missing_required_parameter": Row(400, _CALLER),
    "empty_string": Row(400, _CALLER),
    "string_above_max_length": Row(400, _CALLER),
    "integer_below_min_value": Row(400, _CALLER),
    "integer_above_max_value": Row(400, _CALLER),
    "unsupported_value": Row(400, _CALLER),
    "model_not_found": Row(400, _CALLER),  # the field of a request; the model's own route answers 404
    "model_has_no_price": Row(400, _CALLER),
    "invalid_image": Row(400, _CALLER),
    "content_policy_violation": Row(400, _CALLER, spent=400),  # no client repeats a 400
    "moderation_blocked": Row(400, "image_generation_user_error"),  # a prompt that a GPT image model rejects
    "upstream_refused_request": Row(400, _CALLER),
    "invalid_api_key": Row(401, _CALLER),
    "unknown_url": Row(404, _CALLER),
    "image_not_found": Row(404, _CALLER),
    "generation_not_found": Row(404, _CALLER),
    "batch_not_found": Row(404, _CALLER),
    "file_not_found": Row(404, _CALLER),
    "method_not_supported": Row(405, _CALLER),
    "generation_ended": Row(409, _CALLER),
    "batch_ended": Row(409, _CALLER),
    "batch_cancelled": Row(409, _CALLER),
    "batch_expired": Row(409, _CALLER),
    "request_too_large": Row(413, _CALLER),
    "unsupported_content_type": Row(415, _CALLER),
    "idempotency_key_reused": Row(422, _CALLER),
    "insufficient_quota": Row(429, "insufficient_quota"),
    "no_place_to_wait": Row(429, "rate_limit_error"),
    "rate_limit_exceeded": Row(429, "rate_limit_error"),
    "internal_error": Row(500, _SERVER),
    "upstream_key_refused": Row(502, _SERVER),
    "upstream_out_of_credit": Row(502, _SERVER),
    "upstream_misconfigured": Row(502, _SERVER),
    "upstream_unreachable": Row(502, _UPSTREAM),
    "upstream_unavailable": Row(503, _UPSTREAM),
    "upstream_key_missing": Row(503, _SERVER),
    "secret_unavailable": Row(503, _SERVER),
    "authorizer_unavailable": Row(503, _SERVER),
    "records_unavailable": Row(503, _SERVER),
    "input_unavailable": Row(503, _SERVER),
    "file_unavailable": Row(503, _SERVER),
    "deletion_unfinished": Row(503, _SERVER),
    "upstream_failed": Row(424, _UPSTREAM),
    "upstream_timeout": Row(424, _UPSTREAM),
    "upstream_connection_lost": Row(424, _UPSTREAM),
    "upstream_answer_invalid": Row(424, _UPSTREAM),
    "upstream_answer_too_large": Row(424, _UPSTREAM),
    "upstream_too_few_images": Row(424, _UPSTREAM),
    "upstream_no_image": Row(424, _UPSTREAM),
    "upstream_task_failed": Row(424, _UPSTREAM),
    "upstream_task_refunded": Row(424, _UPSTREAM),
    "upstream_task_unfinished": Row(424, _UPSTREAM),
    "upstream_task_unknown": Row(424, _UPSTREAM),
    "image_url_refused": Row(424, _UPSTREAM),
    "image_download_failed": Row(424, _UPSTREAM),
    "not_an_image": Row(424, _UPSTREAM),
    "image_truncated": Row(424, _UPSTREAM),
    "image_too_large": Row(424, _UPSTREAM),
    "partial_generation": Row(424, _UPSTREAM),
    "image_storage_failed": Row(424, _SERVER),
    "answer_too_large": Row(424, _SERVER),
    "outcome_unknown": Row(424, _SERVER),
    "abandoned": Row(424, _SERVER),
    "submission_uncertain": Row(424, _SERVER),
    "generation_still_running": Row(424, _SERVER),
    "generation_cancelled": Row(424, _CALLER),
}
_UNKNOWN = Row(500, _SERVER)  # for a code that a later version has stored


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def row_of(failure: Failure) -> Row:
    return ROWS.get(failure.code, _UNKNOWN)


def status_of(failure: Failure) -> int:
    return row_of(failure).spent if failure.money_spent else row_of(failure).status


def error_object(failure: Failure) -> dict[str, Any]:
    """Returns OpenAI's error object: message, type, param and code.

    For a generation that failed in part, type, param and code say why the rest is missing.
    """
    reason = failure.reason
    return {
        "message": failure.message,
        "type": row_of(reason).type,
        "param": reason.param,
        "code": None if reason.code == CODELESS else reason.code,
    }


def answer_failure(failure: Failure, permalink: Callable[[str], str], images: Sequence[str] = ()) -> ErrorAnswer:
    """Returns the answer to a failure. `permalink` makes the link of an image id; `images` are the stored ones."""
    body = error_object(failure)
    if failure.money_spent and images:
        body["images"] = [{"id": image_id, "permalink": permalink(image_id)} for image_id in images]
    headers = {}
    if failure.retry is not None:
        headers["x-should-retry"] = str(failure.retry).lower()
    if failure.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(failure.retry_after))
    return ErrorAnswer(status_of(failure), headers, {"error": body})


def answer_error(error: Exception, permalink: Callable[[str], str]) -> ErrorAnswer:
    """Returns the answer to an exception, with the status and headers that only one class has."""
    images = error.images if isinstance(error, MoneySpentError) else ()
    answer = answer_failure(failure_of(error), permalink, images)
    if isinstance(error, errors.UnknownModelError):
        answer = replace(answer, status=404)
    if isinstance(error, errors.MethodNotAllowedError):
        answer.headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, errors.SubmissionUncertainError) and error.generation_id:
        answer.headers["x-generation-id"] = error.generation_id
    if isinstance(error, errors.QuotaExceededError):
        answer.headers["Retry-After"] = str(math.ceil(error.reset))
        standing = Standing(
            error.limit,
            error.remaining,
            error.reset,
            usd_limit=error.usd_limit,
            usd_remaining=error.usd_remaining,
        )
        answer.headers.update(quota_headers(standing))
    return answer
