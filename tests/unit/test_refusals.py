"""An upstream's refusal becomes a failure, with a part of its message."""

import json
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from urllib3 import HTTPHeaderDict

from imagegen.domain import errors
from imagegen.providers.openai.models import MODELS
from imagegen.providers.refusals import read_refusal, request_fields

KEY = "plain.key/with=odd+characters"
HTML = b"<html><h1>Our safety system says no</h1></html>"

Case = tuple[int, object, type[errors.ImagegenError], str | None, str | None]


def refusal(status: int, error: object = None, **headers: str) -> errors.ImagegenError:
    """The failure for an answer with OpenAI's error object, or with any other body in bytes."""
    body = error if isinstance(error, bytes) else json.dumps({"error": error}).encode()
    named = HTTPHeaderDict({name.replace("_", "-"): value for name, value in headers.items()})
    return read_refusal(status, named, body, KEY, fields=request_fields(MODELS))


def mean(
    error: type[errors.ImagegenError], *answers: tuple[int, object], param: str | None = None, code: str | None = None
) -> Iterator[Case]:
    return ((*answer, error, param, code) for answer in answers)


def says(message: str, code: str | None = None) -> dict[str, str | None]:
    return {"message": message, "code": code}


POLICY = {code: {"code": code} for code in ("content_policy_violation", "moderation_blocked")}
AZURE_POLICY = {"code": "ResponsibleAIPolicyViolation"}
XAI_POLICY = "Content violates usage guidelines. Model: m, Failed check: SAFETY_CHECK_TYPE_BIO"
CASES = [
    *mean(
        errors.PromptRejectedError,
        *((status, POLICY["content_policy_violation"]) for status in (400, 403)),
        param="prompt",
        code="content_policy_violation",
    ),
    *mean(
        errors.PromptRejectedError,
        (400, POLICY["moderation_blocked"] | {"type": "image_generation_user_error"}),
        param="prompt",
        code="moderation_blocked",
    ),
    *mean(
        errors.PromptRejectedError,
        *((status, {"type": "image_generation_user_error"}) for status in (400, 422)),
        # Azure's, the last two of DALL·E 2 and 3
        (400, {"code": "content_filter", "param": "prompt"}),
        (400, {"code": None, "innererror": AZURE_POLICY}),
        (400, {"code": "contentFilter"}),
        (400, {"code": "BadRequest", "inner_error": AZURE_POLICY}),
        (400, b'{"error":{"code":"content_filter","message":"\\ud83d"}}'),
        (403, json.dumps({"code": "The caller does not have permission", "error": XAI_POLICY}).encode()),
        (
            403,
            {"code": 403, "message": 'm requires moderation on p. Your input was flagged for "violence".'},
        ),  # OpenRouter
        (400, says("request blocked by Gemini API: PROHIBITED_CONTENT", "prompt_blocked")),
        (400, says("user sensitive words detected: x", "sensitive_words_detected")),
        (403, says("Your request was rejected as a result of our safety system.")),
        (403, says("Content violates usage guidelines. Team: 7f, API key ID: 8a, Model: grok.")),
        param="prompt",
    ),
    *mean(
        errors.UpstreamKeyRefusedError,
        (401, None),
        (403, says("该令牌无权使用模型")),
        (403, HTML),  # a firewall's
        (
            403,
            says(
                "Your resource has been blocked because we detected what may violate our content policy.", "Forbidden"
            ),
        ),
        (403, says("Your account was flagged.")),
        (403, says("Your account violates the usage policy.")),
        (403, says("This API key does not comply with our usage policies.")),
        (403, says("Your IP address was flagged.")),
        (403, says("You have no access to this model, see our usage policy.", "model_not_found")),
    ),
    *mean(
        errors.UpstreamOutOfCreditError,
        (402, HTML),
        (400, {"code": "billing_hard_limit_reached"}),
        (403, says("The request was flagged.", "insufficient_quota")),
        (403, {"code": "insufficient_user_quota"}),
        (403, {"code": "pre_consume_token_quota_failed"}),
        (429, {"code": "insufficient_quota"}),
    ),
    *mean(
        errors.UpstreamLacksModelError,
        (404, {"code": "model_not_found"}),
        (400, {"code": "invalid_value", "param": "model"}),  # OpenAI's images API
        param="model",
    ),
    *mean(
        errors.UpstreamKeyRefusedError,
        (400, b'[{"error":{"code":400,"message":"API key not valid. Please pass it.","status":"INVALID_ARGUMENT"}}]'),
        (400, says("API key expired. Please renew the API key.")),
    ),
    *mean(
        errors.UpstreamRefusedRequestError,
        (400, {"param": "size", "code": "invalid_value", "type": "invalid_request_error"}),
        (400, {"param": "size", "innererror": {"code": "BadSize"}}),
        (400, {"param": "size", "innererror": "x"}),
        (422, {"param": "size"}),
        param="size",
    ),
    *mean(
        errors.UpstreamRefusedRequestError,
        *((400, {"param": "watermark"}), (400, {"param": 400}), (400, {"code": 1211}), (400, None), (400, "bad")),
        *((400, says("当前分组上游负载已饱和")), (413, {"code": "read_request_body_failed"}), (415, b"")),
        *((400, body) for body in (HTML, b"", b"\xff\xfe", b"[1]", b"[" * 50_000, b'{"error":' * 50_000)),
        *((400, b'{"error":{"message":%s}}' % message) for message in (rb'"\ud83d"', b"1e999")),
    ),
    *mean(
        errors.UpstreamMisconfiguredError,
        (404, says("Invalid URL (POST /v2)")),
        *((status, HTML) for status in (301, 307, 404, 405, 410)),
    ),
    *mean(errors.UpstreamRateLimitedError, (429, {"code": "rate_limit_exceeded"}), (429, b""), (429, says("负载"))),
    *mean(errors.UpstreamUnavailableError, (503, None), (503, HTML)),
    *mean(
        errors.UpstreamFailedError,
        *((status, HTML) for status in (202, 204, 299, 302, 303, 408, 409, 424, 425, 499, 500, 501, 502, 504, 524)),
        *((500, {"code": 500}), (500, says("content policy")), (500, b'{"error":' * 50_000)),
    ),
]


@pytest.mark.parametrize(("status", "error", "meaning", "param", "code"), CASES)
def test_each_refusal_becomes_its_failure(
    status: int, error: object, meaning: type[errors.ImagegenError], param: str | None, code: str | None
) -> None:
    failure = refusal(status, error)
    assert type(failure) is meaning
    assert (failure.param, failure.code) == (param, code or meaning.code)


def test_the_message_of_the_upstream_is_passed_on_without_urls_and_keys() -> None:
    message = f"Bad size.\nSee https://platform.example/k?key=secret for {KEY} and sk-proj-abc*****xyz \x1b[0m."
    assert refusal(400, says(message)).message == (
        "The image model refused the request: Bad size. See [redacted] for [redacted] and [redacted]  [0m."
    )


def test_a_long_message_is_cut_after_its_key_is_removed() -> None:
    message = refusal(400, says("no " * 95 + KEY + "no " * 10_000)).message
    assert len(message) < 400
    assert "plain" not in message


def test_the_message_of_a_server_error_is_not_passed_on() -> None:
    assert "database" not in refusal(500, says("database at 10.0.0.1 is down")).message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry_After": "60"}, 60),
        ({"Retry_After": " 0.3 "}, 0.3),
        ({"Retry_After": "0"}, 0),
        ({"Retry_After_Ms": "1500"}, 1.5),
        ({"Retry_After_Ms": "1", "Retry_After": "60"}, 0.001),
        ({"Retry_After_Ms": "soon", "Retry_After": "60"}, 60),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry_After": "9" * 9}, 10**9 - 1),
        *(({"Retry_After": odd}, None) for odd in ("soon", "-1", "", "9" * 10, "Wed, 21 Oct 99999 07:28:00 GMT")),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 +99999999999999"}, None),
    ],
    ids=str,
)
def test_the_retry_time_of_the_upstream_is_kept(headers: dict[str, str], seconds: float | None) -> None:
    failure = refusal(429, **headers)
    assert isinstance(failure, errors.TryLaterError)
    assert failure.retry_after == (seconds if seconds is None else pytest.approx(seconds))


def test_a_future_date_becomes_the_seconds_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.providers.refusals.time.time", lambda: 1_760_000_000.0)
    failure = refusal(503, Retry_After=formatdate(1_760_000_060, usegmt=True))
    assert isinstance(failure, errors.TryLaterError)
    assert failure.retry_after == 60
