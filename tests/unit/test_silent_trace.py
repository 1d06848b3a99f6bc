"""Where an error came from, without its words."""

from collections.abc import Callable

import pytest

from imagegen.errors import UpstreamFailedError
from imagegen.silent_trace import silent_trace

SECRET = "an otter that nobody may read of"


def fails() -> None:
    raise ValueError(SECRET)


def fails_with_a_cause() -> None:
    try:
        fails()
    except ValueError as error:
        raise UpstreamFailedError(SECRET) from error


def fails_while_handling() -> None:
    try:
        fails()
    except ValueError:
        raise KeyError(SECRET)  # noqa: B904 - the context is what is tested


def fails_and_hides_why() -> None:
    try:
        fails()
    except ValueError:
        raise UpstreamFailedError(SECRET) from None


def fails_with_a_note() -> None:
    error = OSError(2, SECRET, SECRET)
    error.add_note(SECRET)
    raise error


def fails_in_a_group() -> None:
    raise ExceptionGroup(SECRET, [ValueError(SECRET)])


def trace_of(call: Callable[[], None]) -> list[str]:
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        call()
    return silent_trace(error.value)


@pytest.mark.parametrize(
    ("call", "chain"),
    [
        (fails, ["builtins.ValueError"]),
        (fails_with_a_cause, ["imagegen.errors.UpstreamFailedError", "builtins.ValueError"]),
        (fails_while_handling, ["builtins.KeyError", "builtins.ValueError"]),
        (fails_and_hides_why, ["imagegen.errors.UpstreamFailedError"]),
        (fails_with_a_note, ["builtins.FileNotFoundError"]),
        (fails_in_a_group, ["builtins.ExceptionGroup"]),
    ],
)
def test_a_trace_has_classes_from_the_outermost_to_the_first_cause_and_no_words(
    call: Callable[[], None], chain: list[str]
) -> None:
    trace = trace_of(call)
    assert [line.partition(": ")[0] for line in trace] == chain
    assert trace[0].endswith(f" {call.__name__}")
    text = "\n".join(trace)
    assert SECRET not in text
    assert "SECRET" not in text  # nor the line of source that raised it
    assert "/" not in text  # nor a path of the machine


def test_a_line_has_the_calls_that_led_to_the_error() -> None:
    _, line = trace_of(fails_with_a_cause)
    first, last = fails_with_a_cause.__code__.co_firstlineno + 2, fails.__code__.co_firstlineno + 1
    file = "test_silent_trace.py"
    assert line == f"builtins.ValueError: {file}:{first} fails_with_a_cause > {file}:{last} fails"


def test_a_chain_that_bites_its_own_tail_ends_and_what_was_never_raised_has_no_calls() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert silent_trace(first) == ["builtins.ValueError: ", "builtins.KeyError: "]
