"""What the protocols have in common whose upstream answers a call with a task."""

import re

import msgspec

from imagegen.domain.errors import (
    ImageFilteredError,
    ImagegenError,
    PromptRejectedError,
    UpstreamTaskFailedError,
    UpstreamTaskRefundedError,
    UpstreamTaskUnknownError,
)
from imagegen.domain.redaction import redacted
from imagegen.providers.answer_values import value_of
from imagegen.providers.refusals import blames_the_prompt, refusal

# Resellers give up on a submit after 60 s (new-api, `service/midjourney.go`), Cloudflare after 100 s.
SUBMIT_SECONDS = 110.0
POLL_SECONDS = 10.0  # a poll that takes longer is repeated, and lets others go first
# The words with which new-api and midjourney-proxy say that there is no such task.
NO_TASK = re.compile(r"(?i)task[_ ](?:does[_ ])?not?[_ ](?:found|exist)|no such task")
_TASK_ID = re.compile(r"[\x21-\x7e]{1,200}")
# The words of Midjourney ("Request cancelled due to image filters") and its proxies, and of Kling ("Failure to pass the
# risk control system").
_POLICY_WORDS = re.compile(
    r"(?i)banned prompt|sensitive|moderat|(?:image|output) filter|risk control"
    r"|(?:prompt|word|content)s? (?:is |are )?not allowed|敏感|违规|违禁|审核"
)


def task_id_of(raw: msgspec.Raw) -> str | None:
    """Returns an id that is text or, as some gateways send it, a number. `None` if there is none."""
    known = value_of(raw, str) or value_of(raw, int)
    return str(known) if known and _TASK_ID.fullmatch(str(known)) else None


def per_cent(raw: msgspec.Raw) -> int | None:
    """Returns a progress such as "50%", `None` if there is none from 0 to 100."""
    text = value_of(raw, str) or str(value_of(raw, int))
    match = re.fullmatch(r"(\d{1,3})%?", text.strip())
    return int(match[1]) if match and int(match[1]) <= 100 else None


def failed_task(reason: str, *, refunded: bool) -> ImagegenError:
    """Returns the exception for a task that ended without images, or was cancelled at the upstream.

    `reason` is what the upstream says, without its key. Nothing was spent only if the upstream `refunded` its price.
    """
    if blames_the_prompt(reason) or _POLICY_WORDS.search(reason):
        return refusal(PromptRejectedError if refunded else ImageFilteredError)
    said = redacted(reason) or "it gave no reason."
    if refunded:
        return UpstreamTaskRefundedError(f"The image model's task failed, and its price was returned: {said}")
    return UpstreamTaskFailedError(f"The image model's task failed, and may be charged: {said}")


def unknown_task() -> UpstreamTaskUnknownError:
    return UpstreamTaskUnknownError("The image model's provider does not know the task that it began.")
