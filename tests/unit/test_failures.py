"""An error goes onto a record and comes back the same, and leaves a trace without its words."""

import inspect
from collections.abc import Callable

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError, NothingSpentError, PartialGenerationError
from imagegen.domain.failures import cost_money, kept, raised_again
from imagegen.domain.generations import Failure
from imagegen.domain.redacted_traceback import silent_trace

EVERY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ImagegenError)]


def through_a_record(error: ImagegenError) -> ImagegenError:
    return raised_again(msgspec.json.decode(msgspec.json.encode(kept(error)), type=Failure))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_survives_alone_and_as_the_cause_of_a_missing_part(kind: type[ImagegenError]) -> None:
    bare, full = kind("no"), kind("Es ging nicht: 壊れた.", param="prompt", code="broken")
    partial = PartialGenerationError("1 of 2 images were made.")
    partial.__cause__ = full
    found = through_a_record(partial)
    assert type(found) is PartialGenerationError
    assert cost_money(kept(found))
    for error, again in ((bare, through_a_record(bare)), (full, through_a_record(full)), (full, found.__cause__)):
        assert type(again) is kind
        assert (again.message, again.param, again.code) == (error.message, error.param, error.code)
        assert str(again) == again.message
        assert again.__cause__ is None
    assert cost_money(kept(bare)) is issubclass(kind, MoneySpentError)


def test_only_a_missing_part_has_a_cause_and_only_an_error_of_this_service() -> None:
    partial, failed = PartialGenerationError("one"), errors.UpstreamFailedError("two")
    partial.__cause__ = OSError("connection to secret.example failed")
    failed.__cause__ = errors.UpstreamRateLimitedError("three")
    assert (kept(partial).cause, kept(failed).cause) == (None, None)


@pytest.mark.parametrize("kind", ["TomorrowsError", "", "Sequence", "__name__", "Exception", "collections"])
def test_an_error_that_this_version_does_not_know_may_have_cost_money(kind: str) -> None:
    failure = Failure(kind, "no", code="why")
    again = raised_again(failure)
    assert type(again) is errors.InternalError
    assert (again.message, again.code) == ("no", "why")
    assert cost_money(failure)


def test_every_error_either_spent_nothing_or_may_have_cost_money() -> None:
    families = (NothingSpentError, MoneySpentError)
    assert len(EVERY) > 30
    for kind in EVERY:
        if kind not in (ImagegenError, *families):
            assert [issubclass(kind, family) for family in families].count(True) == 1, kind


def test_the_time_to_wait_that_an_upstream_named_survives() -> None:
    error = errors.UpstreamRateLimitedError("Later.")
    error.retry_after = 7.5
    again = through_a_record(error)
    assert isinstance(again, errors.UpstreamRateLimitedError)
    assert again.retry_after == 7.5


# Traces.

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


def trace_of(call: Callable[..., None], *arguments: object) -> list[str]:
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        call(*arguments)
    return silent_trace(error.value)


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
def test_a_trace_has_classes_and_no_words(error: Exception, chained: str, chain: list[str]) -> None:
    trace = trace_of(fails_again, error, chained)
    assert [line.partition(": ")[0] for line in trace] == chain
    assert trace[0].endswith(" fails_again")
    text = "\n".join(trace)
    assert SECRET not in text
    assert "SECRET" not in text  # nor the line of source that raised it
    assert "/" not in text  # nor a path of the machine


def test_a_line_has_the_calls_that_led_to_the_error() -> None:
    _, line = trace_of(fails_again, errors.UpstreamFailedError(SECRET), "by its cause")
    first, last = fails_again.__code__.co_firstlineno + 2, fails.__code__.co_firstlineno + 1
    file = "test_failures.py"
    assert line == f"builtins.ValueError: {file}:{first} fails_again > {file}:{last} fails"


def test_a_chain_that_bites_its_own_tail_ends_and_what_was_never_raised_has_no_calls() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert silent_trace(first) == ["builtins.ValueError: ", "builtins.KeyError: "]
