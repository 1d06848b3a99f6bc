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


def test_an_error_is_told_by_its_class_and_the_calls_that_led_to_it() -> None:
    [line] = trace_of(fails)
    place = f"test_silent_trace.py:{fails.__code__.co_firstlineno + 1} fails"
    assert line.startswith("builtins.ValueError: test_silent_trace.py:")
    assert line.endswith(f" trace_of > {place}")


def test_a_chain_is_told_from_the_outermost_error_to_the_first_cause() -> None:
    outer, inner = trace_of(fails_with_a_cause)
    assert outer.startswith("imagegen.errors.UpstreamFailedError: ")
    assert outer.endswith(" fails_with_a_cause")
    assert inner.startswith("builtins.ValueError: ")
    assert inner.endswith(" fails")


def test_an_error_raised_while_another_was_handled_tells_both() -> None:
    outer, inner = trace_of(fails_while_handling)
    assert outer.startswith("builtins.KeyError: ")
    assert inner.startswith("builtins.ValueError: ")


def test_a_cause_that_was_hidden_stays_hidden() -> None:
    [line] = trace_of(fails_and_hides_why)
    assert line.startswith("imagegen.errors.UpstreamFailedError: ")


@pytest.mark.parametrize(
    "call",
    [fails, fails_with_a_cause, fails_while_handling, fails_and_hides_why, fails_with_a_note, fails_in_a_group],
)
def test_no_words_of_any_error_are_told(call: Callable[[], None]) -> None:
    trace = "\n".join(trace_of(call))
    assert call.__name__ in trace
    assert SECRET not in trace
    assert "SECRET" not in trace  # nor the line of source that raised it


def test_no_path_of_the_machine_is_told() -> None:
    assert "/" not in "".join(trace_of(fails_with_a_cause))


def test_a_chain_that_bites_its_own_tail_ends() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert silent_trace(first) == ["builtins.ValueError: ", "builtins.KeyError: "]


def test_an_error_that_was_never_raised_is_told_by_its_class() -> None:
    assert silent_trace(UpstreamFailedError(SECRET)) == ["imagegen.errors.UpstreamFailedError: "]
