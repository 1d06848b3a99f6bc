import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError, NothingSpentError, PartialGenerationError
from imagegen.domain.failures import Failure, failure_of
from imagegen.wire import errors as error_table
from imagegen.wire.errors import ROWS, ErrorAnswer, answer_error, answer_failure, error_object
from imagegen.wire.openapi import INVALID

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "layers").rglob("*.py"), *(ROOT / "functions").rglob("*.py")])
LINKED = [{"id": f"img_{at}", "permalink": f"https://api.example/v1/images/img_{at}"} for at in (1, 2)]
NO_RETRY = {"x-should-retry": "false"}
OPENAI_KEYS = {"message", "type", "param", "code"}


def answer_to(error: Exception) -> ErrorAnswer:
    return answer_error(error, lambda image_id: f"https://api.example/v1/images/{image_id}")


def subclasses(base: type[ImagegenError]) -> Iterator[type[ImagegenError]]:
    for subclass in base.__subclasses__():
        if subclass.__module__.startswith("imagegen."):
            yield subclass
            yield from subclasses(subclass)


def names_made() -> set[str]:
    """Every name that is called or raised, and with them every failure that the product makes."""
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            match made:
                case ast.Name(id="refusal") if isinstance(node, ast.Call):  # it makes an exception of the class
                    names |= {
                        name.id for argument in node.args for name in ast.walk(argument) if isinstance(name, ast.Name)
                    }
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
    return names


FAILURES = set(subclasses(ImagegenError))
CODED = sorted((failure for failure in FAILURES if hasattr(failure, "code")), key=lambda failure: failure.__name__)
SPENT = [failure for failure in CODED if issubclass(failure, MoneySpentError)]


def test_every_failure_is_raised_somewhere() -> None:
    made = names_made()
    assert {failure for failure in CODED if failure.__name__ not in made} == set()
    assert set(CODED) == {failure for failure in FAILURES if failure.__name__ in made}


def test_the_table_has_the_code_of_every_failure_and_no_other() -> None:
    """The others are the codes of invalid requests and of a prompt that GPT image rejects."""
    assert set(ROWS) == {failure.code for failure in CODED} | {*INVALID, "moderation_blocked"}


def test_no_code_is_in_the_table_twice() -> None:
    """A dict silently takes the last of two equal keys."""
    tree = ast.parse(Path(error_table.__file__).read_text())
    annotated = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    [table] = [node.value for node in annotated if ast.unparse(node.target) == "ROWS"]
    assert isinstance(table, ast.Dict)
    keys = [ast.unparse(key) for key in table.keys if key]
    assert len(keys) == len(set(keys)) == len(ROWS)


def test_each_failure_either_spent_money_or_not_and_its_status_says_which() -> None:
    for failure in FAILURES:
        assert issubclass(failure, NothingSpentError) != issubclass(failure, MoneySpentError), failure
    for failure in CODED:
        answer = answer_to(failure("Words."))
        if failure in SPENT:  # no client library retries a 424 or a 400, so none pays again
            assert answer.status == (400 if failure is errors.ImageFilteredError else 424), failure
            # A retry attaches to the generation, and so gets its images.
            attaches = failure in (errors.SubmissionUncertainError, errors.NoPlaceToWaitError)
            assert answer.headers["x-should-retry"] == ("true" if attaches else "false"), failure
        else:
            # The task of an upstream took minutes, and is a failed dependency even if its price came back.
            refunded = {424} if failure is errors.UpstreamTaskRefundedError else set()
            assert answer.status in {400, 401, 404, 405, 409, 413, 415, 422, 429, 502, 503} | refunded, failure
        # Client libraries retry these statuses.
        assert answer.status not in {408, 409} or answer.headers["x-should-retry"] == "false", failure


@pytest.mark.parametrize("spent", [False, True])
def test_the_status_of_an_unknown_code_depends_on_whether_money_was_spent(spent: bool) -> None:
    answer = answer_failure(Failure("from_the_future", "Words.", money_spent=spent), str)
    assert (answer.status, answer.body["error"]["code"]) == (424 if spent else 500, "from_the_future")


@pytest.mark.parametrize(
    ("name", "status", "headers"),
    [
        # Only the operator can fix these, so a retry is of no use.
        *(("SecretMissing", 503, NO_RETRY), ("UpstreamKeyRefused", 502, NO_RETRY)),
        *(("UpstreamOutOfCredit", 502, NO_RETRY), ("UpstreamMisconfigured", 502, NO_RETRY)),
        # These may pass, so client libraries may retry them.
        *(("UpstreamRateLimited", 429, {}), ("UpstreamUnavailable", 503, {}), ("UpstreamUnreachable", 502, {})),
        *(("SecretUnavailable", 503, {}), ("IssuerUnavailable", 503, {}), ("RecordsUnavailable", 503, {})),
    ],
)
def test_a_failure_says_whether_a_retry_is_worthwhile(name: str, status: int, headers: dict[str, str]) -> None:
    answer = answer_to(getattr(errors, f"{name}Error")("Words."))
    assert (answer.status, answer.headers) == (status, headers)


def test_an_answer_is_openai_s_error_object_with_the_failure_s_message_param_and_code() -> None:
    for failure in CODED:
        plain = answer_to(failure("Words for the caller.")).body["error"]
        assert plain.keys() == OPENAI_KEYS, failure
        assert (plain["message"], plain["param"]) == ("Words for the caller.", None), failure
        assert plain["type"], failure
        error = failure("Words.", param="size", code="invalid_value")
        own = error_object(failure_of(error))
        assert (own["param"], own["code"]) == ("size", "invalid_value"), failure
        error.__cause__ = errors.ImageTruncatedError("Why.", param="prompt")
        assert answer_to(error).body == {"error": error_object(failure_of(error))}, failure


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("InvalidRequest", 400, "invalid_request_error", None),
        ("PromptRejected", 400, "image_generation_user_error", "moderation_blocked"),
        ("PromptRejected", 400, "invalid_request_error", "content_policy_violation"),
        ("UnsupportedMediaType", 415, "invalid_request_error", "unsupported_content_type"),
        ("UnknownRoute", 404, "invalid_request_error", "unknown_url"),
        ("MethodNotAllowed", 405, "invalid_request_error", "method_not_supported"),
        ("UpstreamRateLimited", 429, "rate_limit_error", "rate_limit_exceeded"),
        ("QuotaExceeded", 429, "insufficient_quota", "insufficient_quota"),
        ("UpstreamTimeout", 424, "upstream_error", "upstream_timeout"),
        ("UnknownGeneration", 404, "invalid_request_error", "generation_not_found"),
        ("GenerationEnded", 409, "invalid_request_error", "generation_ended"),
        ("IdempotencyKeyReused", 422, "invalid_request_error", "idempotency_key_reused"),
        ("GenerationStillRunning", 424, "server_error", "generation_still_running"),
    ],
)
def test_a_failure_that_openai_has_too_has_openai_s_type_and_code(
    name: str, status: int, kind: str, code: str | None
) -> None:
    own = code if code == "moderation_blocked" else None  # the code of GPT image for a rejected prompt
    answer = answer_to(getattr(errors, f"{name}Error")("Words.", code=own))
    assert (answer.status, answer.body["error"]["type"], answer.body["error"]["code"]) == (status, kind, code)


def test_images_that_were_stored_are_named_with_their_permalinks() -> None:
    for failure in SPENT:
        error = failure("Words.")
        error.images = ("img_1", "img_2")
        body = answer_to(error).body["error"]
        assert body.keys() == {*OPENAI_KEYS, "images"}, failure
        assert body["images"] == LINKED, failure
        assert error_object(failure_of(error)).keys() == OPENAI_KEYS, failure


@pytest.mark.parametrize(
    ("cause", "kind", "param", "code"),
    [
        (errors.UpstreamOutOfCreditError("Why."), "server_error", None, "upstream_out_of_credit"),
        (
            errors.PromptRejectedError("W", param="prompt"),
            "invalid_request_error",
            "prompt",
            "content_policy_violation",
        ),
        (
            errors.PromptRejectedError("Why.", param="prompt", code="moderation_blocked"),
            *("image_generation_user_error", "prompt", "moderation_blocked"),
        ),
        (errors.ImageTruncatedError("Why."), "upstream_error", None, "image_truncated"),
        (None, "upstream_error", None, "partial_generation"),
        (ValueError("why"), "upstream_error", None, "partial_generation"),
    ],
)
def test_a_partial_failure_says_why_images_are_missing(
    cause: Exception | None, kind: str, param: str | None, code: str
) -> None:
    error = PartialGenerationError("1 of 2 images were made and stored. Why.")
    error.__cause__ = cause
    error.images = ("img_1",)
    answer = answer_to(error)
    assert (answer.status, answer.headers) == (424, NO_RETRY)
    body = {"message": "1 of 2 images were made and stored. Why.", "type": kind, "param": param, "code": code}
    assert answer.body["error"] == {**body, "images": LINKED[:1]}


def test_retry_after_is_a_whole_number_of_seconds_and_never_too_short() -> None:
    later = [failure for failure in CODED if issubclass(failure, errors.TryLaterError)]
    assert later
    for failure in later:
        for seconds, text in ((0.0, "0"), (0.001, "1"), (1.0, "1"), (1.5, "2"), (29.99, "30"), (3600.0, "3600")):
            error = failure("Later.")
            error.retry_after = seconds
            assert answer_to(error).headers == {"Retry-After": text}, failure


def with_fields(error: ImagegenError, **fields: Any) -> ImagegenError:
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def test_some_failures_have_headers_of_their_own() -> None:
    spent = with_fields(errors.QuotaExceededError("Spent."), limit=200, remaining=3, reset=3600.5)
    assert answer_to(spent).headers == {
        "x-should-retry": "false",
        "Retry-After": "3601",
        "x-ratelimit-limit-images": "200",
        "x-ratelimit-remaining-images": "3",
        "x-ratelimit-reset-images": "1h0m1s",
    }
    assert answer_to(with_fields(errors.MethodNotAllowedError("No."), allowed=("GET", "HEAD"))).headers == {
        "Allow": "GET, HEAD"
    }
    uncertain = with_fields(errors.SubmissionUncertainError("Perhaps."), generation_id="gen_1")
    assert answer_to(uncertain).headers == {"x-should-retry": "true", "x-generation-id": "gen_1"}


@pytest.mark.parametrize("error", [ValueError("a secret"), OSError(2, "a secret", "a secret"), Exception("a secret")])
def test_the_answer_to_an_unexpected_exception_hides_its_message(error: Exception) -> None:
    body = {"message": "This service failed unexpectedly.", "type": "server_error", "param": None}
    assert answer_to(error) == ErrorAnswer(500, {}, {"error": {**body, "code": "internal_error"}})
    internal = errors.InternalError("This service failed unexpectedly.")
    internal.__cause__ = error
    assert "a secret" not in str(answer_to(internal))
