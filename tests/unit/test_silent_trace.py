"""Where an error came from, without its words."""

from collections.abc import Callable

import pytest

from imagegen.errors import UpstreamFailedError
from imagegen.silent_trace import silent_trace

SECRET = "an otter that nobody may read of"


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
        (UpstreamFailedError(SECRET), "by its cause", ["imagegen.errors.UpstreamFailedError", "builtins.ValueError"]),
        (KeyError(SECRET), "by its context", ["builtins.KeyError", "builtins.ValueError"]),
        (UpstreamFailedError(SECRET), "hidden", ["imagegen.errors.UpstreamFailedError"]),
        (with_a_note(OSError(2, SECRET, SECRET)), "hidden", ["builtins.FileNotFoundError"]),
        (ExceptionGroup(SECRET, [ValueError(SECRET)]), "hidden", ["builtins.ExceptionGroup"]),
    ],
)
def test_a_trace_has_classes_from_the_outermost_to_the_first_cause_and_no_words(
    error: Exception, chained: str, chain: list[str]
) -> None:
    trace = trace_of(fails_again, error, chained)
    assert [line.partition(": ")[0] for line in trace] == chain
    assert trace[0].endswith(" fails_again")
    text = "\n".join(trace)
    assert SECRET not in text
    assert "SECRET" not in text  # nor the line of source that raised it
    assert "/" not in text  # nor a path of the machine


def test_a_line_has_the_calls_that_led_to_the_error() -> None:
    _, line = trace_of(fails_again, UpstreamFailedError(SECRET), "by its cause")
    first, last = fails_again.__code__.co_firstlineno + 2, fails.__code__.co_firstlineno + 1
    file = "test_silent_trace.py"
    assert line == f"builtins.ValueError: {file}:{first} fails_again > {file}:{last} fails"


def test_a_chain_that_bites_its_own_tail_ends_and_what_was_never_raised_has_no_calls() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert silent_trace(first) == ["builtins.ValueError: ", "builtins.KeyError: "]
