import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagegen import errors
from imagegen.errors import ImagegenError, MoneySpentError, NothingSpentError, PartialGenerationError, TryLaterError
from imagegen.openai_wire import errors as error_table
from imagegen.openai_wire.errors import ROWS, answer_error, error_object

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "layers").rglob("*.py"), *(ROOT / "functions").rglob("*.py")])


def permalink(image_id: str) -> str:
    return f"https://api.example/v1/images/{image_id}"


def subclasses(base: type[ImagegenError]) -> Iterator[type[ImagegenError]]:
    for subclass in base.__subclasses__():
        if subclass.__module__.startswith("imagegen."):
            yield subclass
            yield from subclasses(subclass)


def names_made() -> set[str]:
    """Every name that is called or raised: who makes a failure raises it, or gives it to one who does."""
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
            match made:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
    return names


FAILURES = sorted(set(subclasses(ImagegenError)), key=lambda failure: failure.__name__)
RAISED = [failure for failure in FAILURES if failure.__name__ in names_made()]
LEAVES = [failure for failure in FAILURES if not failure.__subclasses__()]
TOLD = [failure for failure in ROWS if issubclass(failure, ImagegenError)]


def test_every_failure_that_is_raised_is_in_the_table() -> None:
    assert [failure.__name__ for failure in RAISED if failure not in ROWS] == []


def test_every_failure_in_the_table_is_raised_somewhere() -> None:
    assert [failure.__name__ for failure in TOLD if failure not in RAISED] == []


def test_no_failure_is_named_that_nobody_raises() -> None:
    assert [failure.__name__ for failure in LEAVES if failure not in RAISED] == []


def test_besides_our_own_failures_the_table_knows_only_the_unknown_one() -> None:
    assert set(ROWS) - set(FAILURES) == {Exception}


def test_no_failure_is_in_the_table_twice() -> None:
    """A dict takes the last of two equal keys without a word."""
    tree = ast.parse(Path(error_table.__file__).read_text())
    [table] = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "ROWS"
    ]
    assert isinstance(table, ast.Dict)
    keys = [ast.unparse(key) for key in table.keys if key]
    assert len(keys) == len(set(keys)) == len(ROWS)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_of_exactly_one_family_of_money(failure: type[ImagegenError]) -> None:
    assert issubclass(failure, NothingSpentError) != issubclass(failure, MoneySpentError)


@pytest.mark.parametrize("failure", [failure for failure in TOLD if issubclass(failure, MoneySpentError)])
def test_what_may_have_cost_money_is_answered_so_that_no_retry_buys_again(failure: type[MoneySpentError]) -> None:
    answer = answer_error(failure("Words."), permalink)
    assert answer.status == 424
    # The retry of an uncertain submission attaches to the generation, and the client gets its images by that.
    attaches = failure is errors.SubmissionUncertainError
    assert answer.headers["x-should-retry"] == ("true" if attaches else "false")


@pytest.mark.parametrize("failure", [failure for failure in TOLD if issubclass(failure, NothingSpentError)])
def test_what_cost_nothing_is_never_told_as_if_it_had(failure: type[NothingSpentError]) -> None:
    assert answer_error(failure("Words."), permalink).status in {400, 404, 405, 409, 413, 415, 422, 429, 502, 503}


@pytest.mark.parametrize(
    "failure",
    [
        errors.SecretMissingError,
        errors.UpstreamKeyRefusedError,
        errors.UpstreamOutOfCreditError,
        errors.UpstreamMisconfiguredError,
    ],
)
def test_what_only_the_operator_can_cure_is_not_worth_a_retry(failure: type[ImagegenError]) -> None:
    answer = answer_error(failure("Words."), permalink)
    assert answer.status >= 500
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "failure",
    [
        errors.UpstreamRateLimitedError,
        errors.UpstreamUnavailableError,
        errors.UpstreamUnreachableError,
        errors.SecretUnavailableError,
        errors.IssuerUnavailableError,
        errors.RecordsUnavailableError,
    ],
)
def test_what_waiting_may_cure_is_left_to_the_client_s_own_retries(failure: type[ImagegenError]) -> None:
    answer = answer_error(failure("Words."), permalink)
    assert answer.status in {429, 502, 503}
    assert answer.headers == {}


@pytest.mark.parametrize("failure", TOLD)
def test_a_body_has_openai_s_four_keys(failure: type[ImagegenError]) -> None:
    body = answer_error(failure("Words for the caller."), permalink).body
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"] == "Words for the caller."
    assert body["error"]["param"] is None
    assert body["error"]["type"]


# A generation that failed in part tells its cause's instead.
@pytest.mark.parametrize("failure", [failure for failure in TOLD if failure is not PartialGenerationError])
def test_a_failure_s_own_param_and_code_are_told(failure: type[ImagegenError]) -> None:
    told = answer_error(failure("Words.", param="size", code="invalid_value"), permalink).body["error"]
    assert (told["param"], told["code"]) == ("size", "invalid_value")


@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (errors.InvalidRequestError, 400, "invalid_request_error", None),
        (errors.PromptRejectedError, 400, "invalid_request_error", "content_policy_violation"),
        (errors.UnsupportedMediaTypeError, 415, "invalid_request_error", "unsupported_content_type"),
        (errors.UnknownRouteError, 404, "invalid_request_error", "unknown_url"),
        (errors.MethodNotAllowedError, 405, "invalid_request_error", "method_not_supported"),
        (errors.UpstreamRateLimitedError, 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.UpstreamTimeoutError, 424, "upstream_error", "upstream_timeout"),
        (errors.UnknownGenerationError, 404, "invalid_request_error", "generation_not_found"),
        (errors.GenerationEndedError, 409, "invalid_request_error", "generation_ended"),
        (errors.IdempotencyKeyReusedError, 422, "invalid_request_error", "idempotency_key_reused"),
        (errors.GenerationStillRunningError, 424, "server_error", "generation_still_running"),
    ],
)
def test_what_openai_has_words_for_is_told_in_its_words(
    failure: type[ImagegenError], status: int, kind: str, code: str | None
) -> None:
    answer = answer_error(failure("Words."), permalink)
    assert (answer.status, answer.body["error"]["type"], answer.body["error"]["code"]) == (status, kind, code)


@pytest.mark.parametrize("failure", TOLD)
def test_no_status_that_clients_retry_whatever_it_means_goes_out_without_a_word(failure: type[ImagegenError]) -> None:
    answer = answer_error(failure("Words."), permalink)
    assert answer.status not in {408, 409} or answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("failure", TOLD)
def test_an_answer_and_a_record_tell_a_failure_in_the_same_words(failure: type[ImagegenError]) -> None:
    error = failure("Words.", param="size", code="invalid_value")
    error.__cause__ = errors.ImageTruncatedError("Why.", param="prompt")
    assert answer_error(error, permalink).body == {"error": error_object(error)}


def test_an_error_object_says_nothing_of_images_and_of_what_is_unknown() -> None:
    error = PartialGenerationError("1 of 2 images were made and stored.")
    error.images = ("img_1",)
    assert error_object(error).keys() == {"message", "type", "param", "code"}
    assert error_object(ValueError("a secret"))["message"] == "Something went wrong on our side."


def test_a_prompt_rejected_by_gpt_image_has_the_type_that_openai_gives_it() -> None:
    answer = answer_error(errors.PromptRejectedError("No.", param="prompt", code="moderation_blocked"), permalink)
    assert answer.status == 400
    assert answer.body["error"] == {
        "message": "No.",
        "type": "image_generation_user_error",
        "param": "prompt",
        "code": "moderation_blocked",
    }


@pytest.mark.parametrize("failure", [failure for failure in TOLD if issubclass(failure, MoneySpentError)])
def test_images_that_were_stored_are_told_with_their_permalinks(failure: type[MoneySpentError]) -> None:
    error = failure("Words.")
    error.images = ("img_1", "img_2")
    body = answer_error(error, permalink).body["error"]
    assert body.keys() == {"message", "type", "param", "code", "images"}
    assert body["images"] == [
        {"id": "img_1", "permalink": "https://api.example/v1/images/img_1"},
        {"id": "img_2", "permalink": "https://api.example/v1/images/img_2"},
    ]


@pytest.mark.parametrize(
    ("cause", "kind", "param", "code"),
    [
        (errors.UpstreamOutOfCreditError("Why."), "server_error", None, "upstream_out_of_credit"),
        (
            errors.PromptRejectedError("Why.", param="prompt"),
            "invalid_request_error",
            "prompt",
            "content_policy_violation",
        ),
        (
            errors.PromptRejectedError("Why.", param="prompt", code="moderation_blocked"),
            "image_generation_user_error",
            "prompt",
            "moderation_blocked",
        ),
        (errors.ImageTruncatedError("Why."), "upstream_error", None, "image_truncated"),
        (
            errors.UpstreamRefusedRequestError("Why.", param="size"),
            "invalid_request_error",
            "size",
            "upstream_refused_request",
        ),
        (None, "upstream_error", None, "partial_generation"),
        (ValueError("why"), "upstream_error", None, "partial_generation"),
    ],
)
def test_a_generation_that_failed_in_part_tells_why_the_rest_is_missing(
    cause: Exception | None, kind: str, param: str | None, code: str
) -> None:
    error = PartialGenerationError("1 of 2 images were made and stored. Why.")
    error.__cause__ = cause
    error.images = ("img_1",)
    answer = answer_error(error, permalink)
    assert (answer.status, answer.headers) == (424, {"x-should-retry": "false"})
    assert answer.body["error"] == {
        "message": "1 of 2 images were made and stored. Why.",
        "type": kind,
        "param": param,
        "code": code,
        "images": [{"id": "img_1", "permalink": "https://api.example/v1/images/img_1"}],
    }


@pytest.mark.parametrize("failure", [failure for failure in TOLD if issubclass(failure, TryLaterError)])
@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0"), (0.001, "1"), (1.0, "1"), (1.5, "2"), (29.99, "30"), (3600.0, "3600")]
)
def test_retry_after_is_a_whole_number_of_seconds_and_never_too_short(
    failure: type[TryLaterError], seconds: float, told: str
) -> None:
    error = failure("Later.")
    error.retry_after = seconds
    assert answer_error(error, permalink).headers == {"Retry-After": told}


@pytest.mark.parametrize(
    "error", [ValueError("a secret"), KeyError("a secret"), OSError(2, "a secret", "a secret"), Exception("a secret")]
)
def test_an_unknown_failure_says_nothing_of_its_own_words(error: Exception) -> None:
    answer = answer_error(error, permalink)
    assert answer.status == 500
    assert answer.headers == {}
    assert answer.body == {
        "error": {
            "message": "Something went wrong on our side.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }


def test_an_internal_error_says_nothing_of_its_cause() -> None:
    error = errors.InternalError("Something went wrong on our side.")
    error.__cause__ = ValueError("a secret")
    assert "a secret" not in str(answer_error(error, permalink))
