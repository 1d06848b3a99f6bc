import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError, NothingSpentError, PartialGenerationError
from imagegen.wire import errors as error_table
from imagegen.wire.errors import ROWS, ErrorAnswer, answer_error, error_object

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
    """Every name that is called or raised: what makes a failure raises it, or hands it on to what does."""
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            match made:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
    return names


FAILURES = set(subclasses(ImagegenError))
IN_TABLE = [failure for failure in ROWS if issubclass(failure, ImagegenError)]
SPENT = [failure for failure in IN_TABLE if issubclass(failure, MoneySpentError)]


def test_the_failures_that_are_raised_are_those_in_the_table() -> None:
    made = names_made()
    raised = {failure for failure in FAILURES if failure.__name__ in made}
    assert set(IN_TABLE) == raised
    assert {failure for failure in FAILURES if not failure.__subclasses__()} <= raised, "an error that nothing raises"
    assert set(ROWS) - FAILURES == {Exception}


def test_no_failure_is_in_the_table_twice() -> None:
    """A dict takes the last of two equal keys without a word."""
    tree = ast.parse(Path(error_table.__file__).read_text())
    annotated = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    [table] = [node.value for node in annotated if ast.unparse(node.target) == "ROWS"]
    assert isinstance(table, ast.Dict)
    keys = [ast.unparse(key) for key in table.keys if key]
    assert len(keys) == len(set(keys)) == len(ROWS)


def test_a_failure_is_of_exactly_one_family_of_money_and_its_status_says_which() -> None:
    for failure in FAILURES:
        assert issubclass(failure, NothingSpentError) != issubclass(failure, MoneySpentError), failure
    for failure in IN_TABLE:
        answer = answer_to(failure("Words."))
        if failure in SPENT:  # no client retries a 424 by itself, so none buys again
            assert answer.status == 424, failure
            # The retry of an uncertain submission attaches to the generation, and the client gets its images by that.
            attaches = failure is errors.SubmissionUncertainError
            assert answer.headers["x-should-retry"] == ("true" if attaches else "false"), failure
        else:
            assert answer.status in {400, 404, 405, 409, 413, 415, 422, 429, 502, 503}, failure
        # Clients retry these by the status alone.
        assert answer.status not in {408, 409} or answer.headers["x-should-retry"] == "false", failure


@pytest.mark.parametrize(
    ("name", "status", "headers"),
    [
        # Only the operator can cure these, so they are not worth a retry.
        *(("SecretMissing", 503, NO_RETRY), ("UpstreamKeyRefused", 502, NO_RETRY)),
        *(("UpstreamOutOfCredit", 502, NO_RETRY), ("UpstreamMisconfigured", 502, NO_RETRY)),
        # Waiting may cure these, so they are left to the client's own retries.
        *(("UpstreamRateLimited", 429, {}), ("UpstreamUnavailable", 503, {}), ("UpstreamUnreachable", 502, {})),
        *(("SecretUnavailable", 503, {}), ("IssuerUnavailable", 503, {}), ("RecordsUnavailable", 503, {})),
    ],
)
def test_a_failure_says_whether_a_retry_is_worthwhile(name: str, status: int, headers: dict[str, str]) -> None:
    answer = answer_to(getattr(errors, f"{name}Error")("Words."))
    assert (answer.status, answer.headers) == (status, headers)


def test_an_answer_is_openai_s_object_with_the_failure_s_own_words_param_and_code() -> None:
    for failure in IN_TABLE:
        plain = answer_to(failure("Words for the caller.")).body["error"]
        assert plain.keys() == OPENAI_KEYS, failure
        assert (plain["message"], plain["param"]) == ("Words for the caller.", None), failure
        assert plain["type"], failure
        error = failure("Words.", param="size", code="invalid_value")
        if failure is not PartialGenerationError:  # it has those of its cause
            own = error_object(error)
            assert (own["param"], own["code"]) == ("size", "invalid_value"), failure
        error.__cause__ = errors.ImageTruncatedError("Why.", param="prompt")
        assert answer_to(error).body == {"error": error_object(error)}, failure


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("InvalidRequest", 400, "invalid_request_error", None),
        ("PromptRejected", 400, "invalid_request_error", "content_policy_violation"),
        ("UnsupportedMediaType", 415, "invalid_request_error", "unsupported_content_type"),
        ("UnknownRoute", 404, "invalid_request_error", "unknown_url"),
        ("MethodNotAllowed", 405, "invalid_request_error", "method_not_supported"),
        ("UpstreamRateLimited", 429, "rate_limit_error", "rate_limit_exceeded"),
        ("AllowanceSpent", 429, "insufficient_quota", "insufficient_quota"),
        ("UpstreamTimeout", 424, "upstream_error", "upstream_timeout"),
        ("UnknownGeneration", 404, "invalid_request_error", "generation_not_found"),
        ("GenerationEnded", 409, "invalid_request_error", "generation_ended"),
        ("IdempotencyKeyReused", 422, "invalid_request_error", "idempotency_key_reused"),
        ("GenerationStillRunning", 424, "server_error", "generation_still_running"),
    ],
)
def test_a_failure_that_openai_has_too_is_in_its_words(name: str, status: int, kind: str, code: str | None) -> None:
    answer = answer_to(getattr(errors, f"{name}Error")("Words."))
    assert (answer.status, answer.body["error"]["type"], answer.body["error"]["code"]) == (status, kind, code)


def test_a_prompt_rejected_by_gpt_image_has_the_type_that_openai_gives_it() -> None:
    answer = answer_to(errors.PromptRejectedError("No.", param="prompt", code="moderation_blocked"))
    kind, code = "image_generation_user_error", "moderation_blocked"
    assert answer.body["error"] == {"message": "No.", "type": kind, "param": "prompt", "code": code}
    assert answer.status == 400


def test_images_that_were_stored_are_named_with_their_permalinks() -> None:
    for failure in SPENT:
        error = failure("Words.")
        error.images = ("img_1", "img_2")
        body = answer_to(error).body["error"]
        assert body.keys() == {*OPENAI_KEYS, "images"}, failure
        assert body["images"] == LINKED, failure
        assert error_object(error).keys() == OPENAI_KEYS, failure


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
def test_a_generation_that_failed_in_part_says_why_the_rest_is_missing(
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
    later = [failure for failure in IN_TABLE if issubclass(failure, errors.TryLaterError)]
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


def test_headers_that_belong_to_one_failure_alone() -> None:
    spent = with_fields(errors.AllowanceSpentError("Spent."), limit=200, remaining=3, reset=3600.5)
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
def test_an_unknown_failure_says_nothing_of_its_own_words(error: Exception) -> None:
    body = {"message": "Something went wrong on our side.", "type": "server_error", "param": None}
    assert answer_to(error) == ErrorAnswer(500, {}, {"error": {**body, "code": "internal_error"}})
    internal = errors.InternalError("Something went wrong on our side.")
    internal.__cause__ = error
    assert "a secret" not in str(answer_to(internal))
