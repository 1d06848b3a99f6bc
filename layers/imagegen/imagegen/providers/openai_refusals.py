"""What an answer of OpenAI's images API that is no success means, and above all whether it may have cost money."""

import re
import time
from dataclasses import fields
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3

from imagegen.domain.errors import (
    ImagegenError,
    PromptRejectedError,
    TryLaterError,
    UpstreamFailedError,
    UpstreamKeyRefusedError,
    UpstreamMisconfiguredError,
    UpstreamOutOfCreditError,
    UpstreamRateLimitedError,
    UpstreamRefusedRequestError,
    UpstreamUnavailableError,
)
from imagegen.domain.images import ImageRequest
from imagegen.domain.redaction import redacted
from imagegen.providers.lenient_json import decoded

_POLICY_CODES = {"content_policy_violation", "moderation_blocked"}
_AZURE_POLICY_CODES = {"content_filter", "contentFilter", "ResponsibleAIPolicyViolation"}
# What xAI, OpenRouter and others say of a prompt under 403, and what Azure says of an account under the same status.
_POLICY_WORDS = re.compile(
    r"(?i)safety (?:system|policy|check|filter)|content (?:policy|filter|moderation|violat)"
    r"|usage (?:guideline|polic)|flagged"
)
_ACCOUNT_WORDS = re.compile(
    r"(?i)\b(?:resource|account|organization|key|access) (?:has been|have been|is|was) "
    r"|\b(?:your|this|the) (?:\w+ ){0,2}(?:resource|account|organization|project|key|access|address)\b"
)
# one-api's and new-api's names for a balance that is used up, and OpenAI's.
_CREDIT_CODES = {
    "insufficient_quota",
    "insufficient_user_quota",
    "pre_consume_token_quota_failed",
    "billing_hard_limit_reached",
}
_REQUEST_FIELDS = {field.name for field in fields(ImageRequest)}


def read_refusal(status: int, headers: urllib3.HTTPHeaderDict, body: bytes | bytearray, key: str) -> ImagegenError:
    """The failure that the answer means; no body and no header makes it raise.

    `key` is the one that was sent. The message never holds it.
    """
    told = _told_error(body)
    meaning = _by_code(status, told) or _by_status(status)
    if isinstance(meaning, TryLaterError):
        meaning.retry_after = _retry_after(headers)
    if meaning is None:
        param = told.get("param")
        message = (told.get("message") or "it gave no reason.").replace(key, "[redacted]")
        meaning = UpstreamRefusedRequestError(
            f"The image model refused the request: {redacted(message)}",
            param=param if param in _REQUEST_FIELDS else None,
        )
    return meaning


def _by_code(status: int, told: dict[str, str]) -> ImagegenError | None:
    code = told.get("code")
    if status == 404 and code == "model_not_found":
        return UpstreamRefusedRequestError("The image model's provider does not have this model.", param="model")
    if status == 402 or code in _CREDIT_CODES:
        return UpstreamOutOfCreditError("This service has no credit left with the image model's provider.")
    if (
        code in _POLICY_CODES | _AZURE_POLICY_CODES
        or told.get("inner_code") in _AZURE_POLICY_CODES
        or (status in (400, 422) and told.get("type") == "image_generation_user_error")
        or (status == 403 and code != "model_not_found" and _blames_the_prompt(told.get("message", "")))
    ):
        return PromptRejectedError(
            "Your request was rejected by the image model's safety system.",
            param="prompt",
            code=code if code in _POLICY_CODES else None,
        )
    return None


def _by_status(status: int) -> ImagegenError | None:
    """None where the upstream found fault with the request itself."""
    match status:
        case 400 | 413 | 415 | 422:
            return None
        case 401 | 403:
            return UpstreamKeyRefusedError("The image model's provider refuses this service's key.")
        case 429:
            return UpstreamRateLimitedError("The image model is rate limited. Please try again later.")
        case 503:
            return UpstreamUnavailableError("The image model is unavailable. Please try again later.")
        case _ if status in (408, 409, 425) or status >= 500 or status < 300:
            return UpstreamFailedError(f"The image model's API failed (status {status}).")
        case _:
            return UpstreamMisconfiguredError(f"There is no images API at the image model's address (status {status}).")


def _blames_the_prompt(message: str) -> bool:
    return bool(_POLICY_WORDS.search(message)) and not _ACCOUNT_WORDS.search(message)


def _told_error(body: bytes | bytearray) -> dict[str, str]:
    """The string members of OpenAI's error object; resellers leave some out or send numbers.

    xAI sends the message alone. Azure has a second code inside, in `innererror` or `inner_error`.
    """
    error = (decoded(body, dict[str, Any]) or {}).get("error")
    told = error if isinstance(error, dict) else {"message": error}
    inner = told.get("innererror") or told.get("inner_error")
    if isinstance(inner, dict):
        told = told | {"inner_code": inner.get("code")}
    return {name: value for name, value in told.items() if isinstance(value, str)}


def _retry_after(headers: urllib3.HTTPHeaderDict) -> float | None:
    """Seconds to wait, as the upstream asks: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return float(text) * scale
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except Exception:  # noqa: BLE001  # the parser raises many kinds, and the time is only a wish
        return None
