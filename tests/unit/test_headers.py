"""What a request says of itself in its headers and its query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.batches import is_batch_id
from imagegen.errors import InvalidRequestError
from imagegen.generations import Status
from imagegen.openai_wire.headers import Page, Preference, read_attempt, read_page, read_preference
from imagegen.submit import Attempt


def test_a_request_need_not_say_anything() -> None:
    assert read_attempt({}) == Attempt(None, None)
    assert read_preference({}) == Preference(respond_async=False, wait=None)
    assert read_page({}) == Page(20, None, None)


@pytest.mark.parametrize("key", ["k", " ", "a b~!", "x" * 255, '"3f2c"', "ñ".encode().hex()])
def test_an_idempotency_key_is_taken_as_it_is(key: str) -> None:
    assert read_attempt({"Idempotency-Key": key}) == Attempt(key, None)


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb", "a\n", "a\r\nb", "\x7f", "\x00", "k\u2028"])
def test_a_key_that_no_header_should_carry_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_attempt({"Idempotency-Key": key})
    assert refused.value.param == "Idempotency-Key"
    assert key == "" or key not in refused.value.message


@pytest.mark.parametrize(("text", "retry"), [("0", 0), ("1", 1), ("02", 2), ("999", 999)])
def test_a_count_of_retries_is_read(text: str, retry: int) -> None:
    assert read_attempt({"x-stainless-retry-count": text}) == Attempt(None, retry)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1000", "one", " 1", "1\n", "\u0661", "0x1", "null"])
def test_a_count_that_is_none_is_as_if_it_were_not_there(text: str) -> None:
    assert read_attempt({"x-stainless-retry-count": text}) == Attempt(None, None)


@pytest.mark.parametrize(
    ("header", "respond_async", "wait"),
    [
        ("respond-async", True, None),
        ("Respond-Async", True, None),
        ("wait=10", False, 10),
        ('wait="10"', False, 10),
        ("WAIT=0", False, 0),
        ("respond-async, wait=10", True, 10),
        ("wait=10,respond-async", True, 10),
        ("handling=lenient ,  respond-async", True, None),
        ("wait=1, wait=2", False, 1),
        ("wait=999999", False, 999_999),
        ("wait=1000000", False, None),
        ("wait=-1", False, None),
        ("wait=1.5", False, None),
        ("wait=", False, None),
        ("wait", False, None),
        ("wait=x, wait=3", False, 3),
        ("respond-asynchronously", False, None),
        (",,,", False, None),
        ("", False, None),
        ("wait=\u0661", False, None),
    ],
)
def test_a_preference_is_read_and_what_else_it_holds_is_passed_over(
    header: str, respond_async: bool, wait: int | None
) -> None:
    assert read_preference({"Prefer": header}) == Preference(respond_async, wait)


@given(st.text())
def test_no_preference_is_ever_refused(header: str) -> None:
    wait = read_preference({"Prefer": header}).wait
    assert wait is None or 0 <= wait <= 999_999


@pytest.mark.parametrize(
    ("preference", "applied"),
    [
        (Preference(), ""),
        (Preference(True), "respond-async"),
        (Preference(wait=0), "wait=0"),
        (Preference(True, 10), "respond-async, wait=10"),
    ],
)
def test_what_is_applied_is_told(preference: Preference, applied: str) -> None:
    assert preference.applied == applied
    assert read_preference({"Prefer": applied}) == preference


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("100", 100), ("007", 7)])
def test_a_limit_is_read(text: str, limit: int) -> None:
    assert read_page({"limit": text}).limit == limit


@pytest.mark.parametrize("text", ["", "0", "101", "-1", "1.0", "ten", "99999", " 5", "5\n", "\u0665", "1e2"])
def test_a_limit_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_page({"limit": text})
    assert refused.value.param == "limit"
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize("status", list(Status))
def test_a_status_is_read(status: Status) -> None:
    after = f"gen_{'x' * 22}"
    assert read_page({"status": status.value, "after": after}) == Page(20, after, status)


@pytest.mark.parametrize("text", ["", "gen_", "gen_x", "img_" + "x" * 22, "x" * 3000, "gen_" + "Ä" * 22])
def test_what_no_list_goes_on_after_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_page({"after": text})
    assert refused.value.param == "after"


def test_a_list_of_batches_goes_on_after_a_batch() -> None:
    after = f"batch_{'x' * 22}"
    assert read_page({"after": after}, is_batch_id) == Page(20, after, None)
    with pytest.raises(InvalidRequestError):
        read_page({"after": f"gen_{'x' * 22}"}, is_batch_id)


@pytest.mark.parametrize("text", ["buried", "Completed", "COMPLETED", "done", " queued", ""])
def test_a_status_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_page({"status": text})
    assert refused.value.param == "status"
    assert all(status.value in refused.value.message for status in Status)
