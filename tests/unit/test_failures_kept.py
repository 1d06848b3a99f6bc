"""An error goes onto a record and comes back the same, however it is called."""

import inspect

import msgspec
import pytest

from imagegen import errors
from imagegen.errors import (
    ImagegenError,
    InternalError,
    MoneySpentError,
    NothingSpentError,
    PartialGenerationError,
    TryLaterError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
)
from imagegen.failures import cost_money, kept, raised_again
from imagegen.generations import Failure

EVERY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ImagegenError)]
EACH = pytest.mark.parametrize("kind", EVERY, ids=[kind.__name__ for kind in EVERY])


def through_a_record(error: ImagegenError) -> ImagegenError:
    text = msgspec.json.encode(kept(error))
    return raised_again(msgspec.json.decode(text, type=Failure))


@EACH
def test_every_error_survives(kind: type[ImagegenError]) -> None:
    again = through_a_record(kind("Es ging nicht: 壊れた.", param="prompt", code="broken"))
    assert type(again) is kind
    assert (again.message, again.param, again.code) == ("Es ging nicht: 壊れた.", "prompt", "broken")
    assert str(again) == again.message
    assert again.__cause__ is None


@EACH
def test_every_error_survives_without_details(kind: type[ImagegenError]) -> None:
    again = through_a_record(kind("no"))
    assert (type(again), again.message, again.param, again.code) == (kind, "no", None, None)


@EACH
def test_what_cost_money_is_known_from_the_record(kind: type[ImagegenError]) -> None:
    assert cost_money(kept(kind("no"))) is issubclass(kind, MoneySpentError)


@EACH
def test_every_error_survives_as_the_cause_of_a_missing_part(kind: type[ImagegenError]) -> None:
    error = PartialGenerationError("1 of 2 images were made.")
    error.__cause__ = kind("no", code="why")
    again = through_a_record(error)
    assert type(again) is PartialGenerationError
    cause = again.__cause__
    assert type(cause) is kind
    assert (cause.message, cause.code) == ("no", "why")
    assert cost_money(kept(again))


def test_a_cause_that_is_ours_alone_is_not_kept() -> None:
    partial, failed = PartialGenerationError("one"), UpstreamFailedError("two")
    partial.__cause__ = failed.__cause__ = OSError("connection to secret.example failed")
    assert (kept(partial).cause, kept(failed).cause) == (None, None)


def test_only_a_missing_part_has_a_cause() -> None:
    error = UpstreamFailedError("two")
    error.__cause__ = UpstreamRateLimitedError("one")
    assert kept(error).cause is None


@pytest.mark.parametrize("kind", ["TomorrowsError", "", "Sequence", "__name__", "Exception", "collections"])
def test_an_error_that_this_version_does_not_know_is_taken_for_one_that_cost_money(kind: str) -> None:
    failure = Failure(kind, "no", code="why")
    again = raised_again(failure)
    assert type(again) is InternalError
    assert (again.message, again.code) == ("no", "why")
    assert cost_money(failure)


def test_the_families_do_not_overlap() -> None:
    bases = (ImagegenError, NothingSpentError, MoneySpentError)
    assert len(EVERY) > 30
    for kind in EVERY:
        if kind not in bases:
            assert issubclass(kind, NothingSpentError) is not issubclass(kind, MoneySpentError), kind


def test_the_time_to_wait_that_an_upstream_named_survives() -> None:
    error = UpstreamRateLimitedError("Later.")
    error.retry_after = 7.5
    again = through_a_record(error)
    assert isinstance(again, TryLaterError)
    assert again.retry_after == 7.5
