"""What a request says of itself in its headers and its query."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain.attempts import Attempt
from imagegen.domain.batches import is_batch_id
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import Status
from imagegen.domain.quota import Standing
from imagegen.wire.headers import Page, Preference, allowance_headers, read_attempt, read_page, read_preference

GENERATION, BATCH = f"gen_{'x' * 22}", f"batch_{'x' * 22}"


def test_a_request_need_not_say_anything() -> None:
    assert read_attempt({}) == Attempt(None, None)
    assert read_preference({}) == Preference(respond_async=False, wait=None)
    assert read_page({}) == Page(20, None, None)


def test_an_idempotency_key_is_taken_as_it_is() -> None:
    for key in ("k", " ", "a b~!", "x" * 255, '"3f2c"'):
        assert read_attempt({"Idempotency-Key": key}) == Attempt(key, None)


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb", "a\n", "a\r\nb", "\x7f", "\x00", "k\u2028"], ids=ascii)
def test_a_key_that_no_header_should_carry_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_attempt({"Idempotency-Key": key})
    assert refused.value.param == "Idempotency-Key"
    assert key == "" or key not in refused.value.message


def test_a_count_of_retries_is_read_and_what_is_no_count_is_passed_over() -> None:
    for text, retry in (("0", 0), ("1", 1), ("02", 2), ("999", 999)):
        assert read_attempt({"x-stainless-retry-count": text}) == Attempt(None, retry)
    for text in ("", "-1", "+1", "1.0", "1000", "one", " 1", "1\n", "\u0661", "0x1", "null"):
        assert read_attempt({"x-stainless-retry-count": text}) == Attempt(None, None)


@pytest.mark.parametrize(
    ("header", "respond_async", "wait"),
    [
        *(
            ("respond-async", True, None),
            ("Respond-Async", True, None),
            ("handling=lenient ,  respond-async", True, None),
        ),
        *(("wait=10", False, 10), ('wait="10"', False, 10), ("WAIT=0", False, 0), ("wait=999999", False, 999_999)),
        *(("respond-async, wait=10", True, 10), ("wait=10,respond-async", True, 10)),
        *(("wait=1, wait=2", False, 1), ("wait=x, wait=3", False, 3)),
        *((none, False, None) for none in ("wait=1000000", "wait=-1", "wait=1.5", "wait=", "wait", "wait=\u0661")),
        *((none, False, None) for none in ("respond-asynchronously", ",,,", "")),
    ],
)
def test_a_preference_is_read_and_what_else_the_header_holds_is_passed_over(
    header: str, respond_async: bool, wait: int | None
) -> None:
    assert read_preference({"Prefer": header}) == Preference(respond_async, wait)


@given(st.text())
@settings(deadline=None, max_examples=50)
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
def test_what_is_applied_is_a_preference_again(preference: Preference, applied: str) -> None:
    assert preference.applied == applied
    assert read_preference({"Prefer": applied}) == preference


@pytest.mark.parametrize(("seconds", "reset"), [(0.0, "0h0m0s"), (59.2, "0h1m0s"), (86_399.0, "23h59m59s")])
def test_an_allowance_is_shown_as_openai_shows_a_rate_limit(seconds: float, reset: str) -> None:
    expected = {"limit": "200", "remaining": "7", "reset": reset}
    headers = allowance_headers(Standing(200, 7, seconds))
    assert headers == {f"x-ratelimit-{name}-images": value for name, value in expected.items()}


def test_a_page_is_read() -> None:
    for text, limit in (("1", 1), ("100", 100), ("007", 7)):
        assert read_page({"limit": text}) == Page(limit, None, None)
    for status in Status:
        assert read_page({"status": status.value, "after": GENERATION}) == Page(20, GENERATION, status)
    assert read_page({"after": BATCH}, is_batch_id) == Page(20, BATCH, None)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("limit", ["", "0", "101", "-1", "1.0", "ten", "99999", " 5", "5\n", "\u0665", "1e2"]),
        ("after", ["", "gen_", "gen_x", "img_" + "x" * 22, "x" * 3000, "gen_" + "Ä" * 22, BATCH]),
        ("status", ["buried", "Completed", "COMPLETED", "done", " queued", ""]),
    ],
)
def test_what_no_list_takes_is_refused(name: str, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(InvalidRequestError) as refused:
            read_page({name: text})
        assert (refused.value.param, refused.value.code) == (name, "invalid_value")
        assert name != "status" or all(status.value in refused.value.message for status in Status)
    with pytest.raises(InvalidRequestError):
        read_page({"after": GENERATION}, is_batch_id)
