"""The headers and the query of a request."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.domain.batches import is_batch_id
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.generations import Status
from imagegen.domain.quota import Standing
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.wire.headers import Page, Preference, quota_headers, read_page, read_preference, read_retry_identity

GENERATION, BATCH = f"gen_{'x' * 22}", f"batch_{'x' * 22}"


def test_a_request_without_headers_has_the_defaults() -> None:
    assert read_retry_identity({}) == RetryIdentity(None, None)
    assert read_preference({}) == Preference(respond_async=False, wait=None)
    assert read_page({}) == Page(20, None, None)


def test_an_idempotency_key_is_read_unchanged() -> None:
    for key in ("k", " ", "a b~!", "x" * 255, '"3f2c"'):
        assert read_retry_identity({"Idempotency-Key": key}) == RetryIdentity(key, None)


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb", "a\n", "a\r\nb", "\x7f", "\x00", "k\u2028"], ids=ascii)
def test_a_bad_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_retry_identity({"Idempotency-Key": key})
    assert refused.value.param == "Idempotency-Key"
    assert key == "" or key not in refused.value.message


def test_a_count_of_retries_is_read_and_any_other_text_is_ignored() -> None:
    for text, retry in (("0", 0), ("1", 1), ("02", 2), ("999", 999)):
        assert read_retry_identity({"x-stainless-retry-count": text}) == RetryIdentity(None, retry)
    for text in ("", "-1", "+1", "1.0", "1000", "one", " 1", "1\n", "\u0661", "0x1", "null"):
        assert read_retry_identity({"x-stainless-retry-count": text}) == RetryIdentity(None, None)


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
def test_a_preference_is_read_and_the_rest_of_its_header_is_ignored(
    header: str, respond_async: bool, wait: int | None
) -> None:
    assert read_preference({"Prefer": header}) == Preference(respond_async, wait)


@given(st.dictionaries(st.sampled_from(["Idempotency-Key", "x-stainless-retry-count", "Prefer"]), st.text()))
@settings(deadline=None)
def test_any_headers_are_a_retry_identity_or_a_refusal_and_no_preference_is_refused(headers: dict[str, str]) -> None:
    wait = read_preference(headers).wait
    assert wait is None or 0 <= wait <= 999_999
    with suppress(InvalidRequestError):
        attempt = read_retry_identity(headers)
        assert attempt.retry is None or 0 <= attempt.retry < 1000


@pytest.mark.parametrize(
    ("preference", "applied"),
    [
        (Preference(), ""),
        (Preference(True), "respond-async"),
        (Preference(wait=0), "wait=0"),
        (Preference(True, 10), "respond-async, wait=10"),
    ],
)
def test_an_applied_preference_reads_as_the_same_preference(preference: Preference, applied: str) -> None:
    assert preference.applied == applied
    assert read_preference({"Prefer": applied}) == preference


@pytest.mark.parametrize(("seconds", "reset"), [(0.0, "0h0m0s"), (59.2, "0h1m0s"), (86_399.0, "23h59m59s")])
def test_quota_headers_have_the_format_of_openai_s_rate_limits(seconds: float, reset: str) -> None:
    expected = {"limit": "200", "remaining": "7", "reset": reset}
    headers = quota_headers(Standing(200, 7, seconds))
    assert headers == {f"x-ratelimit-{name}-images": value for name, value in expected.items()}


def test_the_query_of_a_page_is_read() -> None:
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
def test_a_bad_query_of_a_page_is_refused(name: str, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(InvalidRequestError) as refused:
            read_page({name: text})
        assert (refused.value.param, refused.value.code) == (name, "invalid_value")
        assert name != "status" or all(status.value in refused.value.message for status in Status)
    with pytest.raises(InvalidRequestError):
        read_page({"after": GENERATION}, is_batch_id)


@given(st.dictionaries(st.sampled_from(["limit", "after", "status"]) | st.text(), st.text()))
@settings(deadline=None)
def test_any_query_is_a_page_or_a_refusal(query: dict[str, str]) -> None:
    with suppress(InvalidRequestError):
        assert 1 <= read_page(query).limit <= 100
