"""Turns refusals of upstreams into exceptions, which say whether the call may have cost money.

Resellers refuse in the shape of OpenAI's errors, whatever the protocol.
"""

import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3

from imagegen.domain.errors import (
    ImageFilteredError,
    ImagegenError,
    PromptRejectedError,
    TryLaterError,
    UpstreamFailedError,
    UpstreamKeyRefusedError,
    UpstreamLacksModelError,
    UpstreamMisconfiguredError,
    UpstreamOutOfCreditError,
    UpstreamRateLimitedError,
    UpstreamRefusedRequestError,
    UpstreamUnavailableError,
)
from imagegen.domain.models import ImageModel
from imagegen.domain.redaction import redacted
from imagegen.providers.lenient_json import decoded

_POLICY_CODES = {"content_policy_violation", "moderation_blocked"}
_AZURE_POLICY_CODES = {"content_filter", "contentFilter", "ResponsibleAIPolicyViolation"}
# The codes of new-api (`types/error.go`) for a prompt that Gemini blocked, and for words that its operator blocked.
_NEW_API_POLICY_CODES = {"prompt_blocked", "sensitive_words_detected"}
# The words with which xAI, OpenRouter and others refuse a prompt, and Azure an account, both with status 403.
_POLICY_WORDS = re.compile(
    r"(?i)safety (?:system|policy|check|filter)|content (?:policy|filter|moderation|violat)"
    r"|usage (?:guideline|polic)|flagged"
)
_ACCOUNT_WORDS = re.compile(
    r"(?i)\b(?:resource|account|organization|key|access) (?:has been|have been|is|was) "
    r"|\b(?:your|this|the) (?:\w+ ){0,2}(?:resource|account|organization|project|key|access|address)\b"
)
# The words with which Google refuses a key, with status 400.
_KEY_WORDS = re.compile(r"(?i)\bAPI key (?:not valid|not found|expired|invalid)")
# The statuses with which a server says that it did not take the request (RFC 9110, "Status Codes").
_NOT_THERE = frozenset({301, 307, 308, 404, 405, 406, 410, 411, 414, 417, 421, 426, 428, 431, 451})
# The code of one-api and new-api (`controller/relay.go`) for a path that they know and do not serve: variations, and in
# one-api also edits. Another 501 may come from behind them.
_NOT_IMPLEMENTED = "api_not_implemented"
# The codes of one-api, new-api and OpenAI for an account without credit.
_CREDIT_CODES = {
    "insufficient_quota",
    "insufficient_user_quota",
    "pre_consume_token_quota_failed",
    "billing_hard_limit_reached",
}


_MESSAGES: Mapping[type[ImagegenError], str] = {
    ImageFilteredError: "Your request was rejected by the image model's safety system.",
    PromptRejectedError: "Your request was rejected by the image model's safety system.",
    UpstreamKeyRefusedError: "The image model's provider refuses this service's key.",
    UpstreamOutOfCreditError: "This service has no credit left with the image model's provider.",
    UpstreamRateLimitedError: "The image model is rate limited. Please try again later.",
    UpstreamUnavailableError: "The image model is unavailable. Please try again later.",
}


def refusal(kind: type[ImagegenError], *, code: str | None = None) -> ImagegenError:
    """Returns an exception whose message needs no more than its class, whatever the protocol."""
    of_prompt = kind in (ImageFilteredError, PromptRejectedError)
    return kind(_MESSAGES[kind], param="prompt" if of_prompt else None, code=code)


def request_fields(models: Iterable[ImageModel]) -> frozenset[str]:
    """Returns the names of the fields that a request for any of the models may have."""
    return frozenset({"prompt", "model", *(name for model in models for name in model.fields)})


def read_refusal(
    status: int, headers: urllib3.HTTPHeaderDict, body: bytes | bytearray, key: str, *, fields: frozenset[str]
) -> ImagegenError:
    """Returns the exception for an answer. Never raises, whatever the body and the headers are.

    `key` is the upstream's key that was sent. The message never contains it. An error may name one of `fields`.
    """
    error = _error_fields(body)
    meaning = _by_code(status, error) or _by_status(status)
    if isinstance(meaning, TryLaterError):
        meaning.retry_after = retry_after(headers)
    if meaning is None:
        param = error.get("param")
        reason = refused_because(error.get("message", "").replace(key, "[redacted]"))
        if param == "model":
            meaning = UpstreamLacksModelError(reason, param=param)
        else:
            meaning = UpstreamRefusedRequestError(reason, param=param if param in fields else None)
    return meaning


def refused_because(reason: str) -> str:
    """Returns the message of a refusal. `reason` is the upstream's, without its key, and may be empty."""
    return f"The image model refused the request: {redacted(reason or 'it gave no reason.')}"


def _by_code(status: int, fields: dict[str, str]) -> ImagegenError | None:
    code = fields.get("code")
    if status == 404 and code == "model_not_found":
        return UpstreamLacksModelError("The image model's provider does not have this model.", param="model")
    if status == 501 and code == _NOT_IMPLEMENTED:
        return _misconfigured(status)
    if status == 400 and _KEY_WORDS.search(fields.get("message", "")):
        return refusal(UpstreamKeyRefusedError)
    if status == 402 or code in _CREDIT_CODES:
        return refusal(UpstreamOutOfCreditError)
    if (
        code in _POLICY_CODES | _AZURE_POLICY_CODES | _NEW_API_POLICY_CODES
        or fields.get("inner_code") in _AZURE_POLICY_CODES
        or (status in (400, 422) and fields.get("type") == "image_generation_user_error")
        or (status == 403 and code != "model_not_found" and blames_the_prompt(fields.get("message", "")))
    ):
        return refusal(PromptRejectedError, code=code if code in _POLICY_CODES else None)
    return None


def _by_status(status: int) -> ImagegenError | None:
    """Returns `None` if the upstream refused the request itself."""
    match status:
        case 400 | 413 | 415 | 422:
            return None
        case 401 | 403:
            return refusal(UpstreamKeyRefusedError)
        case 429:
            return refusal(UpstreamRateLimitedError)
        case 503:
            return refusal(UpstreamUnavailableError)
        case _ if status in _NOT_THERE:
            return _misconfigured(status)
        case _:  # also 303, which an API answers that goes on with its work, and 499, with which a proxy gave up
            return UpstreamFailedError(f"The image model's API failed (status {status}).")


def _misconfigured(status: int) -> UpstreamMisconfiguredError:
    return UpstreamMisconfiguredError(f"There is no images API at the image model's address (status {status}).")


def blames_the_prompt(message: str) -> bool:
    """Whether a reason of an upstream says that the prompt broke its policy."""
    return bool(_POLICY_WORDS.search(message)) and not _ACCOUNT_WORDS.search(message)


def _error_fields(body: bytes | bytearray) -> dict[str, str]:
    """Returns the string fields of OpenAI's error object. Resellers leave some out or send numbers.

    xAI sends only the message. Azure sends a second code in `innererror` or `inner_error`. Google sends a list with the
    object.
    """
    whole = decoded(body, dict[str, Any]) or (decoded(body, list[dict[str, Any]]) or [{}])[0]
    error = whole.get("error")
    fields = error if isinstance(error, dict) else {"message": error}
    inner = fields.get("innererror") or fields.get("inner_error")
    if isinstance(inner, dict):
        fields = fields | {"inner_code": inner.get("code")}
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def retry_after(headers: urllib3.HTTPHeaderDict) -> float | None:
    """Returns the seconds to wait, from `retry-after-ms`, or from `Retry-After` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return float(text) * scale
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except Exception:  # noqa: BLE001  # the parser raises many kinds of exception, and the time is optional
        return None
