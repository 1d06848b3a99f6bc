"""The counters of daily quotas and of waiting requests."""

import dataclasses
import time
from calendar import timegm
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from imagegen.aws.quota_counters import _short, _slot
from imagegen.domain.errors import QuotaExceededError, RecordsUnavailableError
from imagegen.domain.images import ImageRequest
from imagegen.domain.money import Spending, TokenPrice
from imagegen.ports import QuotaCounters
from tests.fakes.quota_counters import FakeQuotaCounters
from tests.support.in_memory import in_memory_service
from tests.support.models import MODELS
from tests.support.stores import Connect, Table, closed_url

DAY, NEXT_DAY = "2025-10-09", "2025-10-10"

# Quotas: the fake and the real counters, on each emulator, pass one contract.


@pytest.fixture
def counters(judged: Table | None) -> QuotaCounters:
    return judged.counters if judged else FakeQuotaCounters()


def take(
    counters: QuotaCounters, images: int, limit: int = 10, *, caller: str = "alice", day: str = DAY, token: str = ""
) -> tuple[bool, int]:
    """Without a token each call is a new change."""
    return counters.take(caller, day, images, limit, token=token or uuid4().hex)


def test_images_are_taken_up_to_the_limit_and_no_further(counters: QuotaCounters) -> None:
    assert [take(counters, images) for images in (4, 6, 1, 0)] == [(True, 4), (True, 10), (False, 10), (True, 10)]
    assert take(counters, 11) == (False, 10)
    assert take(counters, 1, 11) == (True, 11)


def test_each_caller_and_each_day_has_its_own_counter(counters: QuotaCounters) -> None:
    for caller, day in (("alice", DAY), ("bob", DAY), ("alice", NEXT_DAY)):
        assert take(counters, 10, caller=caller, day=day, token="one") == (True, 10)


def test_only_returned_images_can_be_taken_again(counters: QuotaCounters) -> None:
    take(counters, 10)
    counters.give_back("alice", DAY, 4, token="a")
    assert take(counters, 5) == (False, 6)
    for caller, images in (("alice", 7), ("bob", 1)):
        with pytest.raises(RecordsUnavailableError):
            counters.give_back(caller, DAY, images, token="b")
    assert take(counters, 4) == (True, 10)


def test_a_change_with_a_known_token_counts_once(counters: QuotaCounters) -> None:
    take(counters, 3)
    for _ in range(2):
        assert take(counters, 7, token="a") == (True, 10)
    assert take(counters, 7, 6, token="a") == (False, 10)
    for _ in range(2):
        counters.give_back("alice", DAY, 7, token="a")
        assert take(counters, 8) == (False, 3)
    for _ in range(2):
        assert take(counters, 6, token="a") == (True, 9)
    for _ in range(2):
        counters.give_back("alice", DAY, 6, token="a")
        assert take(counters, 8) == (False, 3)


def test_a_refused_change_can_be_repeated_with_its_token(counters: QuotaCounters) -> None:
    take(counters, 8)
    tries = [take(counters, 3, limit, token="a") for limit in (10, 11, 11)]
    assert tries == [(False, 8), (True, 11), (True, 11)]


def test_concurrent_changes_stay_within_the_limit(counters: QuotaCounters) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take(counters, 2, 11), range(16)))
    assert (sum(each for each, _ in taken), max(used for _, used in taken)) == (5, 10)


def test_concurrent_changes_with_one_token_count_once(counters: QuotaCounters) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: take(counters, 2, token="a"), range(16))) == {(True, 2)}


TOKENS = TokenPrice(text_input=5_000_000, image_input=10_000_000, output=40_000_000, most=250_000)


@pytest.mark.parametrize("judged", ["fake", "ministack"], indirect=True)  # moto needs ten seconds
@pytest.mark.parametrize(
    ("model", "price"), [("dall-e-2", 20_000), ("gpt-image-1", 250_000)], ids=["by image", "by tokens"]
)
def test_of_200_requests_at_once_exactly_those_are_admitted_that_the_money_suffices_for(
    counters: QuotaCounters, model: str, price: int
) -> None:
    models = {**MODELS, "gpt-image-1": dataclasses.replace(MODELS["gpt-image-1"], price=TOKENS)}
    request = ImageRequest("a cat", model, "url")

    def admits(_: int) -> bool:
        try:
            return service.submit(request=request).standing is not None
        except QuotaExceededError:
            return False

    enough = 50 * price + price - 1
    with in_memory_service(counters=counters, models=models, own_usd_per_day=enough) as service:
        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(admits, range(200))) == 50
        admitted = service.records.newest("alice", 300)
    assert [record.spending for record in admitted] == [Spending(price, price)] * 50
    assert take(counters, 0, 10**9, caller="usd:alice") == (True, 50 * price)
    assert take(counters, 0, 10**9) == (True, 50)


@pytest.mark.parametrize("table", ["moto"], indirect=True)
def test_a_counter_stays_within_one_write_unit_and_expires(table: Table) -> None:
    by_slot = {_slot(_short(str(number))): str(number) for number in range(500)}
    assert len(by_slot) == 40
    take(table.counters, 1_000, 10_000, caller="c" * 64)
    for token in by_slot.values():
        take(table.counters, 1, 10_000, caller="c" * 64, token=token)
        table.counters.give_back("c" * 64, DAY, 1, token=token)
    (item,) = table.items()
    next_midnight, day = timegm(time.strptime(NEXT_DAY, "%Y-%m-%d")), 24 * 3600
    assert next_midnight + day <= int(item["expires_at"]["N"]) <= next_midnight + 7 * day
    assert len(item) == 4 + 40
    assert sum(len(name) + len(value.get("S") or value["N"]) for name, value in item.items()) <= 1024


def test_unreachable_counters_are_unavailable(connect: Connect) -> None:
    counters = Table(connect("dynamodb", closed_url()), "table").counters
    for call in (
        lambda: take(counters, 1, 1),
        lambda: take(counters, 2, 1),
        lambda: counters.give_back("alice", DAY, 1, token="a"),
    ):
        with pytest.raises(RecordsUnavailableError):
            call()
