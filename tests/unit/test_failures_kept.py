"""An error goes onto a record and comes back the same."""

import inspect

import msgspec
import pytest

from imagegen import errors
from imagegen.errors import ImagegenError, MoneySpentError, NothingSpentError, PartialGenerationError
from imagegen.failures import cost_money, kept, raised_again
from imagegen.generations import Failure

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
