"""When a message comes again that met a fault of this service."""

from imagegen.come_again import pause_after_fault

MOST_RECEIPTS = 20  # the template's


def test_it_comes_soon_at_first_and_outlasts_an_outage_of_a_quarter_of_an_hour() -> None:
    pauses = [pause_after_fault(receipts) for receipts in range(1, MOST_RECEIPTS)]
    assert pauses[:8] == [5] * 8
    assert pauses == sorted(pauses)
    assert max(pauses) == 120
    assert sum(pauses) > 900


def test_however_often_it_came_the_pause_is_bounded() -> None:
    assert pause_after_fault(100_000) == 120
