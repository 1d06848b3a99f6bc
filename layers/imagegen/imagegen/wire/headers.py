"""Reads the headers and the query of a request, and writes the headers of an answer."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import Status, is_generation_id
from imagegen.domain.money import usd_text
from imagegen.domain.quota import Standing
from imagegen.domain.retry_identity import RetryIdentity

# The headers of an answer that browsers show to a page of another origin.
EXPOSED = ", ".join(
    (
        "Location",
        "Preference-Applied",
        "Retry-After",
        "x-generation-id",
        "x-imagegen-cost",
        "x-ratelimit-limit-images",
        "x-ratelimit-limit-usd",
        "x-ratelimit-remaining-images",
        "x-ratelimit-remaining-usd",
        "x-ratelimit-reset-images",
        "x-request-id",
        "x-should-retry",
    )
)
MOST_LISTED, LISTED = 100, 20


@dataclass(frozen=True, slots=True)
class Preference:
    """The `Prefer` header (RFC 7240): whether to answer with 202, and the most seconds to wait.

    `applied` is the value of `Preference-Applied`.
    """

    respond_async: bool = False
    wait: int | None = None

    @property
    def applied(self) -> str:
        parts = ["respond-async"] if self.respond_async else []
        return ", ".join(parts + ([f"wait={self.wait}"] if self.wait is not None else []))


@dataclass(frozen=True, slots=True)
class Page:
    limit: int
    after: str | None
    status: Status | None


def read_retry_identity(headers: Mapping[str, str]) -> RetryIdentity:
    """Reads `Idempotency-Key` and the retry count of OpenAI's clients. Raises InvalidRequestError."""
    key = read_idempotency_key(headers.get("Idempotency-Key"), "Idempotency-Key")
    count = headers.get("x-stainless-retry-count") or ""
    return RetryIdentity(key, int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None)


def read_idempotency_key(key: str | None, name: str) -> str | None:
    """Checks the key, which came as the field or header `name`. Raises InvalidRequestError."""
    if key is not None and not re.fullmatch(r"[\x20-\x7e]{1,255}", key):
        raise InvalidRequestError(
            f"Invalid '{name}': expected 1 to 255 printable ASCII characters.", param=name, code="invalid_value"
        )
    return key


def read_preference(headers: Mapping[str, str]) -> Preference:
    """Reads `Prefer: respond-async` and `Prefer: wait=N`. Other preferences are ignored, as RFC 7240 says."""
    tokens = [token.strip().lower() for token in (headers.get("Prefer") or "").split(",")]
    waits = [int(match[1]) for token in tokens if (match := re.fullmatch(r'wait="?([0-9]{1,6})"?', token))]
    return Preference("respond-async" in tokens, waits[0] if waits else None)


def quota_headers(standing: Standing) -> dict[str, str]:
    """Returns the caller's quotas and their remainders, in the format of OpenAI's rate limit headers."""
    seconds = math.ceil(standing.reset)
    money = {"x-ratelimit-limit-usd": standing.usd_limit, "x-ratelimit-remaining-usd": standing.usd_remaining}
    return {
        "x-ratelimit-limit-images": str(standing.limit),
        "x-ratelimit-remaining-images": str(standing.remaining),
        "x-ratelimit-reset-images": f"{seconds // 3600}h{seconds // 60 % 60}m{seconds % 60}s",
        **{name: usd_text(micros) for name, micros in money.items() if micros is not None},
    }


def cors_headers(origin: str) -> dict[str, str]:
    """Returns headers that allow pages of `origin` (`*`: any) to read the answer. No cookies are used."""
    headers = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}
    return headers if origin == "*" else headers | {"Vary": "Origin"}


def read_page(
    query: Mapping[str, str], is_id: Callable[[str], bool] = is_generation_id, *, most: int = MOST_LISTED
) -> Page:
    """Reads `limit`, `after` and `status` of a list. `is_id` checks `after`. Raises InvalidRequestError.

    A limit above MOST_LISTED and not above `most` is read as MOST_LISTED: a page may be shorter than asked for.
    """
    limit = query.get("limit", str(LISTED))
    if not re.fullmatch(r"[0-9]{1,5}", limit) or not 1 <= int(limit) <= most:
        raise InvalidRequestError(
            f"Invalid 'limit': expected a whole number from 1 to {most}.", param="limit", code="invalid_value"
        )
    status = query.get("status")
    if status is not None and status not in list(Status):
        known = ", ".join(f"'{each}'" for each in Status)
        raise InvalidRequestError(
            f"Invalid 'status'. Supported values are: {known}.", param="status", code="invalid_value"
        )
    after = query.get("after")
    if after is not None and not is_id(after):
        raise InvalidRequestError(
            "Invalid 'after': expected an id from this list.", param="after", code="invalid_value"
        )
    return Page(min(int(limit), MOST_LISTED), after, Status(status) if status else None)
