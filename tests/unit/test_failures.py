"""A record keeps an error unchanged, and its traceback does not contain its message."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError, PartialGenerationError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.redacted_traceback import redacted_traceback

EVERY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ImagegenError) and hasattr(kind, "code")
]


def through_a_record(error: Exception) -> Failure:
    return msgspec.json.decode(msgspec.json.encode(failure_of(error)), type=Failure)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_record_keeps_a_failure_alone_and_as_the_cause_of_a_partial_one(kind: type[ImagegenError]) -> None:
    bare, full = kind("no"), kind("Es ging nicht: 壊れた.", param="prompt", code="broken")
    partial = PartialGenerationError("1 of 2 images were made.")
    partial.__cause__ = full
    kept = through_a_record(partial)
    spent, retry = issubclass(kind, MoneySpentError), kind.retry
    again: dict[str, Any] = {"interrupted": kind.interrupted, "another_attempt": kind.another_attempt}
    expected = Failure("broken", full.message, spent, "prompt", retry, **again)
    assert kept.cause == kept.reason == through_a_record(full) == expected
    assert kept.money_spent
    alone = through_a_record(bare)
    assert alone == Failure(kind.code, "no", spent, retry=retry, **again)
    assert alone.reason is alone


def test_only_a_partial_failure_has_a_cause_which_is_an_error_of_this_service() -> None:
    partial, failed = PartialGenerationError("one"), errors.UpstreamFailedError("two")
    partial.__cause__ = OSError("connection to secret.example failed")
    failed.__cause__ = errors.UpstreamRateLimitedError("three")
    assert (failure_of(partial).cause, failure_of(failed).cause) == (None, None)


def test_two_classes_share_a_code_only_if_they_differ_in_money_or_in_what_a_retry_does() -> None:
    by_code: dict[str, set[type[ImagegenError]]] = {}
    for kind in EVERY:
        by_code.setdefault(kind.code, set()).add(kind)
    assert {code: len(kinds) for code, kinds in by_code.items() if len(kinds) > 1} == {
        "content_policy_violation": 2,
        "image_download_failed": 2,
        "image_storage_failed": 2,
        "no_place_to_wait": 2,
        "upstream_refused_request": 2,
    }


def test_a_record_keeps_the_retry_time_of_the_upstream() -> None:
    error = errors.UpstreamRateLimitedError("Later.")
    error.retry_after = 7.5
    assert through_a_record(error).retry_after == 7.5


# Tracebacks.

SECRET = "an otter that no log may name"


def fails() -> None:
    raise ValueError(SECRET)


def fails_again(error: Exception, chained: str) -> None:
    try:
        fails()
    except ValueError as first:
        if chained == "by its cause":
            raise error from first
        if chained == "hidden":
            raise error from None
        raise error  # noqa: B904 - the context is what is tested


def with_a_note(error: Exception) -> Exception:
    error.add_note(SECRET)
    return error


def traceback_of(call: Callable[..., None], *arguments: object) -> list[str]:
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        call(*arguments)
    return redacted_traceback(error.value)


@pytest.mark.parametrize(
    ("error", "chained", "chain"),
    [
        (
            errors.UpstreamFailedError(SECRET),
            "by its cause",
            ["imagegen.domain.errors.UpstreamFailedError", "builtins.ValueError"],
        ),
        (KeyError(SECRET), "by its context", ["builtins.KeyError", "builtins.ValueError"]),
        (errors.UpstreamFailedError(SECRET), "hidden", ["imagegen.domain.errors.UpstreamFailedError"]),
        (with_a_note(OSError(2, SECRET, SECRET)), "hidden", ["builtins.FileNotFoundError"]),
        (ExceptionGroup(SECRET, [ValueError(SECRET)]), "hidden", ["builtins.ExceptionGroup"]),
    ],
)
def test_a_traceback_has_classes_and_no_messages(error: Exception, chained: str, chain: list[str]) -> None:
    trace = traceback_of(fails_again, error, chained)
    assert [line.partition(": ")[0] for line in trace] == chain
    assert trace[0].endswith(" fails_again")
    text = "\n".join(trace)
    assert SECRET not in text
    assert "SECRET" not in text  # the line of source that raised it
    assert "/" not in text  # a path of the machine


def test_a_line_lists_the_calls_that_led_to_the_error() -> None:
    _, line = traceback_of(fails_again, errors.UpstreamFailedError(SECRET), "by its cause")
    first, last = fails_again.__code__.co_firstlineno + 2, fails.__code__.co_firstlineno + 1
    file = "test_failures.py"
    assert line == f"builtins.ValueError: {file}:{first} fails_again > {file}:{last} fails"


def test_a_circular_chain_ends_and_an_exception_that_was_not_raised_has_no_calls() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert redacted_traceback(first) == ["builtins.ValueError: ", "builtins.KeyError: "]
