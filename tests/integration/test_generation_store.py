"""Records and queue: the fakes and the real ones, before each judge, pass the same contracts."""

import json
import socket
import threading
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import boto3
import msgspec
import pytest
from botocore.config import Config

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.sqs import SqsBatches, SqsGenerations
from imagegen.aws.waiters import DynamoWaiters
from imagegen.catalog import MAX_IMAGES
from imagegen.errors import MoneySpentError, RecordsUnavailableError, UpstreamTooFewImagesError
from imagegen.failures import kept
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Failure,
    Generation,
    IdTakenError,
    LostClaimError,
    Origin,
    Status,
    StoredImage,
    Tombstone,
    admit,
)
from imagegen.images import ImageRequest, UpstreamAnswer
from imagegen.openai_wire.request_events import MOST_CUSTOM_ID
from imagegen.openai_wire.requests import LONGEST_USER, read_image_fields
from imagegen.ports import AllowanceCounters, GenerationQueue, GenerationStore
from imagegen.providers.openai_answers import read_answer
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.integration.conftest import JUDGES, dynamodb_client, in_index, judged

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_sqs import SQSClient

RETENTION_SECONDS = 30 * 24 * 3600
NOW = 1_760_000_000.123456
IMAGE = StoredImage("image/png", 1234)
ANSWER = CallAnswer((AnsweredImage("https://i.example/1", "a large cat"),), {"size": "1024x1024"})
FAILURE = Failure("UpstreamFailedError", "Es zerbrach: 壊れた.", param="prompt", code="broken", cause=Failure("X", "y"))


def _sqs(url: str) -> "SQSClient":
    return boto3.client(
        "sqs",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="test",
        config=Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1}),
    )


@pytest.fixture(params=["fake", *JUDGES])
def records(request: pytest.FixtureRequest) -> Iterator[GenerationStore]:
    if request.param == "fake":
        yield FakeGenerationStore()
        return
    with judged(request) as (client, name):
        yield DynamoGenerations(lambda: client, name, retention_seconds=RETENTION_SECONDS)


@pytest.fixture(scope="module")
def closed_url() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def new(
    *,
    caller: str = "alice",
    n: int = 1,
    prompt: str = "a cat",
    at: float = NOW,
) -> Generation:
    request = ImageRequest(prompt, "dall-e-3", "url", n)
    return admit(request, caller=caller, base_url="https://api.example/v1", now=at)


def created(records: GenerationStore, generation: Generation | None = None) -> Generation:
    generation = generation or new()
    records.create(generation)
    return generation


def now_of(records: GenerationStore, generation: Generation) -> Generation:
    found = records.get(generation.id)
    assert found is not None
    return found


# The record.


def test_a_record_is_read_as_it_was_written(records: GenerationStore) -> None:
    request = ImageRequest(
        prompt='Ein Käse 🧀, „zwei“ \U0001f9d1‍\U0001f680\n\t"3" \x00',
        model="gpt-image-2",
        response_format="b64_json",
        n=4,
        size="1024x1024",
        quality="high",
        style="vivid",
        user="ユーザー",
        background="opaque",
        moderation="low",
        output_format="webp",
        output_compression=0,
    )
    generation = msgspec.structs.replace(
        admit(request, caller="alice", base_url="https://x.example/prod/v1", now=NOW),
        status=Status.IN_PROGRESS,
        owner="first",
        lease_until=NOW + 60,
    )
    records.create(generation)
    assert records.get(generation.id) == generation


def test_all_that_becomes_known_is_read_back(records: GenerationStore) -> None:
    generation = created(records, new(n=2))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    answer = CallAnswer(
        (AnsweredImage("https://i.example/1?a=b&c=%20", "Ein „überarbeiteter“ Wunsch 🎈"),),
        {"size": "1024x1024", "quality": "hd"},
        {"input_tokens": 7, "input_tokens_details": {"text_tokens": 7, "image_tokens": 0}, "total_tokens": 1.5},
    )
    records.save_sending(generation.id, "me", 0, 1)
    records.save_answer(generation.id, 0, answer)
    for sending in (1, 2):
        records.save_sending(generation.id, "me", 1, sending)
        records.save_refusal(generation.id, 1, sending)
    records.save_sending(generation.id, "me", 1, 3)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    ended = records.end(generation.id, "me", Status.FAILED, now=NOW + 9.5, failure=FAILURE)
    assert ended == msgspec.structs.replace(
        generation,
        status=Status.FAILED,
        owner="me",
        lease_until=NOW + 60,
        calls=(
            Call(generation.calls[0].image_ids, sent=1, answer=answer),
            Call(generation.calls[1].image_ids, sent=3, refused=2, number=1),
        ),
        stored={generation.image_ids[0]: IMAGE},
        failure=FAILURE,
        completed_at=NOW + 9.5,
    )
    assert records.get(generation.id) == ended


def test_each_image_that_is_missing_from_an_answer_is_a_call_of_its_own(records: GenerationStore) -> None:
    request = ImageRequest("a cat", "dall-e-2", "url", 3)
    generation = created(records, admit(request, caller="alice", base_url="https://api.example", now=NOW))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    records.save_sending(generation.id, "me", 0, 1)
    missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 3")))
    came = AnsweredImage("https://i.example/1")
    answer = CallAnswer((missing, came, missing), {"size": "1024x1024"})
    assert records.save_answer(generation.id, 0, answer) == answer
    assert records.save_answer(generation.id, 0, CallAnswer((came, came, came))) == answer

    first, second, third = generation.image_ids
    assert now_of(records, generation).calls == (
        Call((second,), 1, 0, CallAnswer((came,), {"size": "1024x1024"})),
        Call((first,), number=10, extra=True),
        Call((third,), number=12, extra=True),
    )

    records.save_sending(generation.id, "me", 10, 1)
    records.save_answer(generation.id, 10, CallAnswer((came,)))
    records.save_sending(generation.id, "me", 12, 1)
    records.save_refusal(generation.id, 12, 1)
    after = now_of(records, generation)
    assert after.calls[1:] == (
        Call((first,), 1, 0, CallAnswer((came,)), 10, extra=True),
        Call((third,), 1, 1, None, 12, extra=True),
    )
    assert (after.extra_calls, after.repeated_calls, after.unreturned) == (2, 0, 0)


def test_an_image_that_is_not_usable_is_read_back_with_its_reason(records: GenerationStore) -> None:
    generation = created(records, new(n=1))
    answer = CallAnswer((AnsweredImage(failure=FAILURE), AnsweredImage(), AnsweredImage("https://i.example/1")))
    records.save_answer(generation.id, 0, answer)
    assert now_of(records, generation).calls[0].answer == answer


def _largest(accepted: Callable[[int], bool]) -> int:
    return bisect(range(1, 20_000), False, key=lambda size: not accepted(size))


def _largest_answer(images: int) -> UpstreamAnswer:
    """The largest that the reader lets through, of each part."""

    def read(**fields: object) -> UpstreamAnswer:
        image = {name: fields.pop(name) for name in ("url", "revised_prompt") if name in fields}
        body = {"data": [{"url": "https://i.example/", **image}] * images, **fields}
        return read_answer(msgspec.json.encode(body), images)

    def has_url(size: int) -> bool:
        try:
            read(url="https://i.example/" + "x" * size)
        except MoneySpentError:
            return False
        return True

    parts = {
        "size": _largest(lambda size: bool(read(size="x" * size).details)),
        "url": _largest(has_url),
    }
    assert all(100 > parts["size"] > 50 or size > 1_000 for size in parts.values())
    detail = "x" * parts["size"]
    return read(
        url="https://i.example/" + "x" * parts["url"],
        revised_prompt="\U0001d518" * 32_000,
        background=detail,
        output_format=detail,
        quality=detail,
        size=detail,
        usage=dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 10**9)
        | {
            f"{kind}_tokens_details": dict.fromkeys(("text_tokens", "image_tokens"), 10**9)
            for kind in ("input", "output")
        },
    )


@pytest.mark.parametrize("character", ["\x01", "\U0001d518", '"'], ids=["control", "emoji", "quote"])
@pytest.mark.parametrize(("calls", "extra"), [(1, 0), (10, 0), (1, 9)], ids=["one", "ten", "one and extra ones"])
def test_the_largest_that_all_limits_allow_fits_into_a_record(
    records: GenerationStore, character: str, calls: int, extra: int
) -> None:
    n = MAX_IMAGES // calls
    users = dict.fromkeys(("user", "safety_identifier"), character * LONGEST_USER)
    body = {"model": "gpt-image-2", "prompt": character * 32_000, "n": MAX_IMAGES, **users}
    request = read_image_fields(body, prompt_cap=32_000)
    generation = admit(
        request,
        caller="a" * 64,
        base_url=f"https://{'x' * 250}/v1",
        now=NOW,
        origin=Origin(character * MOST_CUSTOM_ID, "batch_AAAAAAAAAAAAAAAAAAAAAA", 10**9),
    )
    ids = generation.image_ids
    generation = msgspec.structs.replace(
        generation, calls=tuple(Call(ids[index * n : (index + 1) * n], number=index) for index in range(calls))
    )
    answer = _largest_answer(n - extra)
    whole = CallAnswer(
        tuple(
            AnsweredImage(image.source, image.revised_prompt)
            for image in answer.images
            if isinstance(image.source, str)
        ),
        answer.details,
        answer.usage,
    )
    assert len(whole.images) == n - extra
    missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("The image model answered with 1 of 10 images.")))
    noted = msgspec.structs.replace(whole, images=whole.images + (missing,) * extra)
    created(records, generation)
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    later = [MAX_IMAGES + place for place in range(1, extra + 1)]
    for number in range(calls):
        records.save_answer(generation.id, number, noted)
    for number in (*range(calls), *later):
        for sending in range(1, 21):
            records.save_sending(generation.id, "me", number, sending)
            records.save_refusal(generation.id, number, sending)
    for number in later:
        records.save_answer(generation.id, number, whole)
    for image_id in ids:
        records.save_image(generation.id, image_id, StoredImage("image/webp", 10**9))
    failure = Failure("X" * 50, character * 1_000, cause=Failure("X" * 50, character * 1_000))
    records.end(generation.id, "me", Status.FAILED, now=NOW, failure=failure)
    found = now_of(records, generation)
    assert [call.answer for call in found.calls] == [whole] * (calls + extra)
    assert len(found.stored) == MAX_IMAGES
    assert found.failure == failure


def test_parts_saved_side_by_side_are_all_kept(records: GenerationStore) -> None:
    generation = created(records, new(n=10))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    barrier = threading.Barrier(10)

    def save(index: int) -> None:
        barrier.wait(10)
        records.save_sending(generation.id, "me", index, 1)
        records.save_refusal(generation.id, index % 5, index)
        records.save_answer(generation.id, index, CallAnswer((AnsweredImage(f"https://i.example/{index}"),)))
        records.save_image(generation.id, generation.image_ids[index], StoredImage("image/png", index))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(save, range(10)))
    found = now_of(records, generation)
    assert [(call.sent, call.refused) for call in found.calls] == [(1, 2)] * 5 + [(1, 0)] * 5
    assert [call.answer and call.answer.images[0].url for call in found.calls] == [
        f"https://i.example/{index}" for index in range(10)
    ]
    assert [found.stored[image_id].length for image_id in generation.image_ids] == list(range(10))


def test_what_is_not_there_is_none(records: GenerationStore) -> None:
    assert records.get("gen_AAAAAAAAAAAAAAAAAAAAAA") is None
    assert records.tombstone("gen_AAAAAAAAAAAAAAAAAAAAAA") is None
    assert records.newest("alice", 10) == []
    assert attach(records, 1) is None


def test_an_id_is_given_once(records: GenerationStore) -> None:
    generation = created(records)
    with pytest.raises(IdTakenError) as taken:
        records.create(msgspec.structs.replace(new(), id=generation.id))
    assert (taken.value.void, taken.value.deleted) == (False, False)
    assert records.get(generation.id) == generation


def test_a_record_that_is_written_again_is_the_same_and_stays_as_it_is(records: GenerationStore) -> None:
    generation = claimed(records)
    records.create(msgspec.structs.replace(generation, status=Status.QUEUED))
    assert records.get(generation.id) == generation


# Idempotency keys.


def hold(
    records: GenerationStore,
    generation_id: str,
    body: str = "body",
    *,
    caller: str = "alice",
    at: float = NOW,
    expired_before: float = NOW - 1000,
    replacing: str | None = None,
) -> tuple[str, str]:
    holder = records.hold_key(
        caller, "k ~", generation_id, body, now=at, expired_before=expired_before, replacing=replacing
    )
    return holder.generation_id, holder.fingerprint


def test_a_key_belongs_to_the_first_with_its_body(records: GenerationStore) -> None:
    for generation_id, body in (("gen_a", "one"), ("gen_b", "two"), ("gen_a", "one")):
        assert hold(records, generation_id, body) == ("gen_a", "one")


def test_a_key_is_free_for_another_caller(records: GenerationStore) -> None:
    hold(records, "gen_a")
    assert hold(records, "gen_b", caller="bob") == ("gen_b", "body")
    assert hold(records, "gen_c") == ("gen_a", "body")


def test_a_key_passes_from_the_generation_that_is_replaced_and_from_no_other(records: GenerationStore) -> None:
    hold(records, "gen_a", "one")
    assert hold(records, "gen_b", "two", replacing="gen_x") == ("gen_a", "one")
    assert hold(records, "gen_b", "two", replacing="gen_a") == ("gen_b", "two")
    assert hold(records, "gen_c", "three", replacing="gen_a") == ("gen_b", "two")


def test_a_key_is_free_once_it_has_expired(records: GenerationStore) -> None:
    hold(records, "gen_a")
    assert hold(records, "gen_b", at=NOW + 9, expired_before=NOW) == ("gen_a", "body")
    assert hold(records, "gen_b", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_b", "body")
    assert hold(records, "gen_c", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_b", "body")


@pytest.mark.parametrize("replacing", [None, "gen_before"])
def test_of_a_hundred_that_ask_for_one_key_at_once_one_has_it_and_all_hear_so(
    records: GenerationStore, replacing: str | None
) -> None:
    if replacing:
        hold(records, replacing)
    barrier = threading.Barrier(100)

    def ask(index: int) -> tuple[str, str]:
        barrier.wait(30)
        return hold(records, f"gen_{index}", f"body {index}", replacing=replacing)

    with ThreadPoolExecutor(100) as pool:
        heard = set(pool.map(ask, range(100)))
    ((holder, body),) = heard
    assert body == f"body {holder.removeprefix('gen_')}"
    assert hold(records, "gen_late") == (holder, body)


# Retries that clients count.


def begin(
    records: GenerationStore,
    generation_id: str,
    attempt: int = 0,
    *,
    caller: str = "alice",
    body: str = "body",
    at: float = NOW,
) -> None:
    records.mark_attempt(caller, body, generation_id, attempt, now=at)


def attach(records: GenerationStore, attempt: int, *, since: float = NOW - 1000) -> str | None:
    return records.attach_attempt("alice", "body", attempt, since=since)


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (3, 1, 2)], ids=str)
def test_each_retry_comes_back_once_in_whatever_order(records: GenerationStore, order: Sequence[int]) -> None:
    begin(records, "gen_a")
    assert [attach(records, attempt) for attempt in order] == ["gen_a"] * 3
    assert [attach(records, attempt) for attempt in (0, *order)] == [None] * 4


def test_two_identical_requests_stay_two_also_when_both_retry(records: GenerationStore) -> None:
    begin(records, "gen_later", at=NOW + 1)
    begin(records, "gen_first")
    for attempt in (2, 1):
        assert [attach(records, attempt) for _ in range(3)] == ["gen_later", "gen_first", None]


def test_what_a_retry_began_is_come_back_to_by_every_other_attempt(records: GenerationStore) -> None:
    begin(records, "gen_a", 1)
    assert [attach(records, attempt) for attempt in (1, 2, 2)] == [None, "gen_a", None]


def test_retries_at_once_share_out_the_generations(records: GenerationStore) -> None:
    for index in range(5):
        begin(records, f"gen_{index}", at=NOW + index)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: attach(records, 1), range(8)))
    assert sorted(each for each in found if each) == [f"gen_{index}" for index in range(5)]


def test_a_retry_comes_back_to_nothing_old(records: GenerationStore) -> None:
    begin(records, "gen_old", at=NOW)
    begin(records, "gen_fresh", at=NOW + 1)
    assert [attach(records, 1, since=NOW) for _ in range(2)] == ["gen_fresh", None]


def test_a_retry_comes_back_only_to_the_same_body_of_the_same_caller(records: GenerationStore) -> None:
    begin(records, "gen_a", body="another")
    begin(records, "gen_b", caller="bob")
    assert attach(records, 1) is None


def test_a_retry_finds_its_generation_behind_a_page_of_others(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    for index in range(9):
        begin(records, f"gen_{index}", at=NOW + index)
    keys = [(item["pk"], item["sk"]) for item in dynamodb.scan(TableName=table)["Items"]]
    for pk, sk in keys:  # a page is 1 MB
        padded: Any = {":padding": {"S": "x" * 300_000}}
        dynamodb.update_item(
            TableName=table,
            Key={"pk": pk, "sk": sk},
            UpdateExpression="SET padding = :padding",
            ExpressionAttributeValues=padded,
        )
    assert "LastEvaluatedKey" in dynamodb.scan(TableName=table)
    assert [attach(records, 1) for _ in range(10)] == [f"gen_{index}" for index in range(8, -1, -1)] + [None]


# Claims.


def claimed(records: GenerationStore, *, owner: str = "me", n: int = 1, lease_until: float = NOW + 60) -> Generation:
    generation = created(records, new(n=n))
    assert records.claim(generation.id, owner, now=NOW, lease_until=lease_until) is not None
    return now_of(records, generation)


def test_a_waiting_generation_is_claimed(records: GenerationStore) -> None:
    generation = created(records)
    expected = msgspec.structs.replace(generation, status=Status.IN_PROGRESS, owner="me", lease_until=NOW + 60)
    assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) == expected
    assert records.get(generation.id) == expected


def test_a_live_lease_keeps_others_out(records: GenerationStore) -> None:
    generation = claimed(records)
    for now in (NOW, NOW + 60):
        assert records.claim(generation.id, "other", now=now, lease_until=now + 60) is None
    assert records.get(generation.id) == generation


def test_a_lease_that_is_gone_lets_another_take_over_all_that_is_known(records: GenerationStore) -> None:
    generation = claimed(records)
    records.save_sending(generation.id, "me", 0, 1)
    records.save_answer(generation.id, 0, ANSWER)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    taken = records.claim(generation.id, "other", now=NOW + 60.001, lease_until=NOW + 120)
    assert taken == msgspec.structs.replace(
        generation,
        owner="other",
        lease_until=NOW + 120,
        calls=(Call(generation.calls[0].image_ids, 1, answer=ANSWER),),
        stored={generation.image_ids[0]: IMAGE},
    )
    with pytest.raises(LostClaimError):
        records.renew(generation.id, "me", NOW + 180)


def test_an_owner_may_claim_twice(records: GenerationStore) -> None:
    generation = claimed(records)
    again = records.claim(generation.id, "me", now=NOW, lease_until=NOW + 61)
    assert again == msgspec.structs.replace(generation, lease_until=NOW + 61)


def test_of_many_that_claim_at_once_one_gets_it(records: GenerationStore) -> None:
    generation = created(records)
    barrier = threading.Barrier(20)

    def claim(owner: str) -> bool:
        barrier.wait(10)
        return records.claim(generation.id, owner, now=NOW, lease_until=NOW + 60) is not None

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(claim, map(str, range(20)))) == 1


def test_a_renewed_lease_holds_longer(records: GenerationStore) -> None:
    generation = claimed(records)
    records.renew(generation.id, "me", NOW + 120)
    assert records.claim(generation.id, "other", now=NOW + 119, lease_until=NOW + 200) is None
    assert now_of(records, generation).lease_until == NOW + 120


def test_a_lease_that_its_owner_ends_is_free_at_once(records: GenerationStore) -> None:
    generation = claimed(records)
    records.let_go(generation.id, "other")
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is None
    for _ in range(2):
        records.let_go(generation.id, "me")
    assert records.get(generation.id) == msgspec.structs.replace(generation, lease_until=0.0)
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is not None
    records.let_go(generation.id, "me")
    assert now_of(records, generation).lease_until == NOW + 60


def test_an_owner_whose_lease_is_gone_is_still_the_owner_while_nobody_takes_over(records: GenerationStore) -> None:
    generation = claimed(records, lease_until=NOW - 60)
    records.save_sending(generation.id, "me", 0, 1)
    records.renew(generation.id, "me", NOW + 60)
    records.end(generation.id, "me", Status.COMPLETED, now=NOW)
    assert now_of(records, generation).status is Status.COMPLETED


def test_an_end_may_be_written_twice_but_not_changed(records: GenerationStore) -> None:
    generation = claimed(records)
    for _ in range(2):
        ended = records.end(generation.id, "me", Status.COMPLETED, now=NOW)
        assert (ended.status, ended.failure, ended.completed_at) == (Status.COMPLETED, None, NOW)
    with pytest.raises(LostClaimError):
        records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
    assert records.get(generation.id) == ended


def test_the_lease_of_a_cancelled_generation_is_renewed_by_its_owner_while_its_call_runs(
    records: GenerationStore,
) -> None:
    generation = _cancelled(records)
    records.renew(generation.id, "me", NOW + 500)
    with pytest.raises(LostClaimError):
        records.renew(generation.id, "other", NOW + 900)
    found = now_of(records, generation)
    assert (found.status, found.lease_until) == (Status.CANCELLED, NOW + 500)


def _absent(records: GenerationStore) -> Generation:
    return new()


def _void(records: GenerationStore) -> Generation:
    generation = new()
    records.void(generation.id, now=NOW)
    return generation


def _queued(records: GenerationStore) -> Generation:
    return created(records)


def _mine(records: GenerationStore) -> Generation:
    return claimed(records)


def _anothers(records: GenerationStore) -> Generation:
    return claimed(records, owner="other")


def _taken_over(records: GenerationStore) -> Generation:
    generation = claimed(records)
    records.claim(generation.id, "other", now=NOW + 61, lease_until=NOW + 120)
    return now_of(records, generation)


def _completed(records: GenerationStore, status: Status = Status.COMPLETED) -> Generation:
    return records.end(claimed(records).id, "me", status, now=NOW)


def _failed(records: GenerationStore) -> Generation:
    return _completed(records, Status.FAILED)


def _announced(records: GenerationStore) -> Generation:
    generation = _failed(records)
    records.mark_announced(generation)
    return now_of(records, generation)


def _cancelled(records: GenerationStore) -> Generation:
    cancelled = records.cancel(claimed(records).id, now=NOW)
    assert cancelled is not None
    return cancelled


def _requeued(records: GenerationStore) -> Generation:
    requeued = records.requeue(_announced(records), now=NOW + 5)
    assert requeued is not None
    return requeued


def _buried(records: GenerationStore) -> Generation:
    generation = _completed(records)
    records.bury(generation, now=NOW)
    return generation


State = Callable[[GenerationStore], Generation]
Write = Callable[[GenerationStore, Generation], object]

ACTIVE_STATES: Sequence[State] = (_queued, _mine, _anothers, _taken_over, _requeued)
ENDED_STATES: Sequence[State] = (_completed, _failed, _announced, _cancelled)
GONE_STATES: Sequence[State] = (_absent, _void, _buried)
NOT_MINE: Sequence[State] = (_queued, _anothers, _taken_over, _requeued, *ENDED_STATES, *GONE_STATES)


def _renew(records: GenerationStore, generation: Generation) -> None:
    records.renew(generation.id, "me", NOW + 500)


def _save_sending(records: GenerationStore, generation: Generation) -> None:
    records.save_sending(generation.id, "me", 0, 1)


def _save_refusal(records: GenerationStore, generation: Generation) -> None:
    records.save_refusal(generation.id, 0, 1)


def _save_answer(records: GenerationStore, generation: Generation) -> None:
    records.save_answer(generation.id, 0, ANSWER)


def _save_image(records: GenerationStore, generation: Generation) -> None:
    records.save_image(generation.id, generation.image_ids[0], IMAGE)


def _end(records: GenerationStore, generation: Generation) -> None:
    records.end(generation.id, "me", Status.COMPLETED, now=NOW + 5)


BY_OWNER: Sequence[Write] = (_renew, _save_sending, _end)
OF_MONEY: Sequence[Write] = (_save_refusal, _save_answer, _save_image)
# A cancelled generation's call may still run, and an end that is written again is the same end.
ALLOWED = {(_cancelled, _renew), (_completed, _end)}


def _name(function: Any) -> str:
    return str(function.__name__).strip("_")


def _refused(records: GenerationStore, generation: Generation, write: Write) -> None:
    before = records.get(generation.id)
    with pytest.raises(LostClaimError):
        write(records, generation)
    assert records.get(generation.id) == before


@pytest.mark.parametrize(
    ("state", "write"), [each for each in product(NOT_MINE, BY_OWNER) if each not in ALLOWED], ids=_name
)
def test_an_owners_write_is_refused_where_it_is_not_the_owner_or_the_generation_has_ended(
    records: GenerationStore, state: State, write: Write
) -> None:
    _refused(records, state(records), write)


@pytest.mark.parametrize(("state", "write"), list(product(GONE_STATES, OF_MONEY)), ids=_name)
def test_what_was_paid_for_is_not_noted_where_there_is_no_record(
    records: GenerationStore, state: State, write: Write
) -> None:
    _refused(records, state(records), write)


@pytest.mark.parametrize("state", [*ACTIVE_STATES, *ENDED_STATES], ids=_name)
def test_what_was_paid_for_is_noted_whatever_became_of_the_generation(records: GenerationStore, state: State) -> None:
    before = state(records)
    for write in (*OF_MONEY, *OF_MONEY):
        write(records, before)
    assert records.get(before.id) == msgspec.structs.replace(
        before,
        calls=(Call(before.calls[0].image_ids, before.calls[0].sent, 1, ANSWER),),
        stored={before.image_ids[0]: IMAGE},
    )


def test_the_first_answer_stays(records: GenerationStore) -> None:
    generation = claimed(records)
    for answer in (ANSWER, CallAnswer((AnsweredImage("https://i.example/2"),))):
        records.save_answer(generation.id, 0, answer)
    assert now_of(records, generation).calls[0].answer == ANSWER


@pytest.mark.parametrize("state", [*ENDED_STATES, *GONE_STATES], ids=_name)
@pytest.mark.parametrize("owner", ["me", "other"])
def test_what_has_ended_or_is_gone_is_claimed_by_nobody(records: GenerationStore, state: State, owner: str) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.claim(generation.id, owner, now=NOW + 9999, lease_until=NOW + 99999) is None
    assert records.get(generation.id) == before


@pytest.mark.parametrize("state", GONE_STATES, ids=_name)
def test_what_is_gone_can_be_let_go_and_marked_and_stays_gone(records: GenerationStore, state: State) -> None:
    generation = state(records)
    records.let_go(generation.id, "me")
    records.mark_announced(generation)
    assert records.note_returned(generation, 1) is False
    assert records.get(generation.id) is None


# Announced, returned, cancelled, begun again, deleted.


@pytest.mark.parametrize("state", [_completed, _failed, _cancelled], ids=_name)
def test_an_end_is_announced_but_not_another(records: GenerationStore, state: State) -> None:
    ended = state(records)
    records.mark_announced(msgspec.structs.replace(ended, completed_at=NOW + 77))
    assert records.get(ended.id) == ended
    records.mark_announced(ended)
    assert records.get(ended.id) == msgspec.structs.replace(ended, announced=True)


@pytest.mark.parametrize("state", ACTIVE_STATES, ids=_name)
def test_what_has_not_ended_is_not_announced(records: GenerationStore, state: State) -> None:
    generation = state(records)
    records.mark_announced(generation)
    assert records.get(generation.id) == generation


@pytest.mark.parametrize("state", [*ACTIVE_STATES, *ENDED_STATES], ids=_name)
def test_what_is_returned_is_noted_once_since_it_was_read(records: GenerationStore, state: State) -> None:
    before = state(records)
    with ThreadPoolExecutor(8) as pool:
        noted = list(pool.map(lambda _: records.note_returned(before, 2), range(8)))
    assert sorted(noted) == [False] * 7 + [True]
    found = now_of(records, before)
    assert found == msgspec.structs.replace(before, returned=2)
    assert records.note_returned(found, 1) is True
    assert now_of(records, before).returned == 3


@pytest.mark.parametrize("state", ACTIVE_STATES, ids=_name)
def test_what_has_not_ended_is_cancelled_and_cancelled_again_the_same(records: GenerationStore, state: State) -> None:
    before = state(records)
    expected = msgspec.structs.replace(before, status=Status.CANCELLED, completed_at=NOW + 1)
    for now in (NOW + 1, NOW + 2):
        assert records.cancel(before.id, now=now) == expected
        assert records.get(before.id) == expected


@pytest.mark.parametrize("state", [_completed, _failed, _announced, *GONE_STATES], ids=_name)
def test_what_was_completed_or_failed_or_is_gone_is_not_cancelled(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.cancel(generation.id, now=NOW + 9) is None
    assert records.get(generation.id) == before


def test_what_failed_waits_again_with_all_that_is_known(records: GenerationStore) -> None:
    generation = claimed(records, n=3)
    for index, sent in enumerate((1, 2)):
        records.save_sending(generation.id, "me", index, sent)
    records.save_answer(generation.id, 0, ANSWER)
    records.save_refusal(generation.id, 1, 2)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    for retries in (1, 2):
        failed = records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
        records.note_returned(failed, 1)
        records.mark_announced(failed)
        requeued = records.requeue(failed, now=NOW + retries)
        assert requeued == msgspec.structs.replace(
            generation,
            status=Status.QUEUED,
            owner=None,
            lease_until=0.0,
            calls=(
                Call(generation.calls[0].image_ids, 1, answer=ANSWER),
                Call(generation.calls[1].image_ids, 2, 1, number=1),
                Call(generation.calls[2].image_ids, number=2),
            ),
            stored={generation.image_ids[0]: IMAGE},
            retries=retries,
            reserved_at=NOW + retries,
        )
        assert records.get(generation.id) == requeued
        assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) is not None


@pytest.mark.parametrize("state", [*ACTIVE_STATES, _completed, _failed, _cancelled, *GONE_STATES], ids=_name)
def test_only_what_failed_and_whose_end_was_published_waits_again(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.requeue(generation, now=NOW) is None
    assert records.get(generation.id) == before


def test_a_failure_lets_a_generation_wait_again_once(records: GenerationStore) -> None:
    failed = _announced(records)
    with ThreadPoolExecutor(8) as pool:
        requeued = [each for each in pool.map(lambda _: records.requeue(failed, now=NOW + 5), range(8)) if each]
    assert requeued == [records.get(failed.id)]
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    again = records.end(failed.id, "me", Status.FAILED, now=NOW + 9, failure=FAILURE)
    records.mark_announced(again)
    assert records.requeue(failed, now=NOW + 10) is None
    assert records.requeue(again, now=NOW + 10) is not None


@pytest.mark.parametrize("state", ENDED_STATES, ids=_name)
def test_what_is_buried_is_gone_and_stays_gone_with_a_tombstone(records: GenerationStore, state: State) -> None:
    generation = state(records)
    assert records.tombstone(generation.id) is None
    for at in (NOW + 20, NOW + 30):
        tombstone = records.bury(generation, now=at)
        assert tombstone == Tombstone(generation.id, "alice", generation.image_ids, at)
        assert records.tombstone(generation.id) == tombstone
        assert records.get(generation.id) is None
        for write in ("create", "void"):
            with pytest.raises(IdTakenError) as taken:
                ASKING[write](records, generation)
            assert (taken.value.void, taken.value.deleted) == (True, True)
    for money in OF_MONEY:
        with pytest.raises(LostClaimError):
            money(records, generation)
    assert records.tombstone(generation.id) == tombstone
    assert records.newest("alice", 10) == []


@pytest.mark.parametrize("state", [_absent, *ACTIVE_STATES], ids=_name)
def test_what_has_not_ended_is_not_buried(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    for read in (generation, msgspec.structs.replace(generation, completed_at=NOW)):
        with pytest.raises(LostClaimError):
            records.bury(read, now=NOW)
    assert records.get(generation.id) == before
    assert records.tombstone(generation.id) is None


def test_what_has_ended_otherwise_meanwhile_is_not_buried(records: GenerationStore) -> None:
    failed = _announced(records)
    records.requeue(failed, now=NOW)
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    ended = records.end(failed.id, "me", Status.COMPLETED, now=NOW + 9)
    with pytest.raises(LostClaimError):
        records.bury(failed, now=NOW + 10)
    assert records.get(failed.id) == ended


def test_what_is_void_was_never_written_and_never_will_be(records: GenerationStore) -> None:
    generation = new()
    for _ in range(2):
        assert records.void(generation.id, now=NOW) is None
        with pytest.raises(IdTakenError) as taken:
            records.create(generation)
        assert (taken.value.void, taken.value.deleted) == (True, False)
    assert records.get(generation.id) is None
    assert records.tombstone(generation.id) is None
    assert records.newest("alice", 10) == []


@pytest.mark.parametrize("state", [*ACTIVE_STATES, *ENDED_STATES], ids=_name)
def test_what_was_written_cannot_be_made_void_and_is_given(records: GenerationStore, state: State) -> None:
    generation = state(records)
    assert records.void(generation.id, now=NOW) == generation
    assert records.get(generation.id) == generation


def test_of_a_record_and_its_voiding_at_once_one_comes_first(records: GenerationStore) -> None:
    for _ in range(10):
        generation, barrier = new(), threading.Barrier(2)

        def write(generation: Generation = generation, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(10)
            try:
                records.create(generation)
            except IdTakenError:
                return False
            return True

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            barrier.wait(10)
            voided = records.void(generation.id, now=NOW)
        assert voided == (generation if writing.result() else None)
        assert records.get(generation.id) == voided


# Lists.


def test_generations_of_the_very_same_moment_are_all_listed(records: GenerationStore) -> None:
    same = [created(records, new(at=NOW)) for _ in range(5)]
    pages: list[Sequence[Generation]] = [records.newest("alice", 2)]
    while pages[-1]:
        pages.append(records.newest("alice", 2, after=pages[-1][-1].id))
    assert sorted(each.id for page in pages for each in page) == sorted(each.id for each in same)


def test_the_newest_come_first(records: GenerationStore) -> None:
    by_age = [created(records, new(at=NOW + at)) for at in (3, 1, 2, 0.5)]
    expected = sorted(by_age, key=lambda generation: -generation.created_at)
    assert records.newest("alice", 10) == expected
    assert records.newest("alice", 2) == expected[:2]


def test_a_list_goes_on_after_an_id(records: GenerationStore) -> None:
    oldest_first = [created(records, new(at=NOW + at)) for at in range(5)]
    pages: list[Sequence[Generation]] = [records.newest("alice", 2)]
    while pages[-1]:
        pages.append(records.newest("alice", 2, after=pages[-1][-1].id))
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert [each for page in pages for each in page] == oldest_first[::-1]


def test_a_list_shows_one_status(records: GenerationStore) -> None:
    generations = [created(records, new(at=NOW + at)) for at in range(6)]
    for generation in generations[::2]:
        records.cancel(generation.id, now=NOW)
    cancelled = [generation.id for generation in generations[::2]][::-1]
    queued = [generation.id for generation in generations[1::2]][::-1]
    assert [each.id for each in records.newest("alice", 10, status=Status.CANCELLED)] == cancelled
    assert [each.id for each in records.newest("alice", 2, status=Status.QUEUED)] == queued[:2]
    assert [each.id for each in records.newest("alice", 9, status=Status.QUEUED, after=queued[0])] == queued[1:]
    assert records.newest("alice", 10, status=Status.FAILED) == []


def test_a_rare_status_is_found_behind_a_page_of_others(records: GenerationStore) -> None:
    rare = created(records, new(at=NOW - 1))
    records.cancel(rare.id, now=NOW)
    for at in range(101):
        created(records, new(at=NOW + at))
    assert [each.id for each in records.newest("alice", 1, status=Status.CANCELLED)] == [rare.id]


def test_a_list_never_shows_anothers(records: GenerationStore) -> None:
    own, others = created(records, new()), created(records, new(caller="bob", at=NOW + 1))
    assert records.newest("alice", 10) == [own]
    assert records.newest("alice", 10, after=others.id) == []
    assert records.newest("alic", 10) == []


def test_a_list_never_shows_what_is_buried(records: GenerationStore) -> None:
    older, gone, newer = (created(records, new(at=NOW + at)) for at in range(3))
    cancelled = records.cancel(gone.id, now=NOW)
    assert cancelled is not None
    records.bury(cancelled, now=NOW)
    assert records.newest("alice", 10) == [newer, older]
    assert records.newest("alice", 10, after=gone.id) == []
    assert records.newest("alice", 10, after="gen_AAAAAAAAAAAAAAAAAAAAAA") == []


def test_a_list_shows_records_as_they_are_and_not_as_the_index_has_them(
    dynamodb: "DynamoDBClient", table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    changed, gone, ended = (created(records, new(at=NOW + at)) for at in range(3))
    query = dynamodb.query
    stale = query(
        TableName=table,
        IndexName="by-caller",
        KeyConditionExpression="caller = :caller",
        ExpressionAttributeValues={":caller": {"S": "alice"}},
    )
    records.claim(changed.id, "me", now=NOW, lease_until=NOW + 60)
    for generation in (gone, ended):
        cancelled = records.cancel(generation.id, now=NOW)
    records.bury(now_of(records, gone), now=NOW)
    monkeypatch.setattr(dynamodb, "query", lambda **_: stale)
    assert records.newest("alice", 10) == [now_of(records, changed), cancelled]
    assert records.newest("alice", 10, status=Status.IN_PROGRESS) == [now_of(records, changed)]
    assert records.newest("alice", 10, status=Status.QUEUED) == []


def test_a_page_of_the_largest_records_is_read_in_pieces(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    generations = [created(records, new(at=NOW + at, n=10)) for at in range(50)]
    text = "x" * 380_000  # fifty of them are more than the 16 MB of an answer
    for generation in generations:
        records.save_answer(generation.id, 0, CallAnswer((AnsweredImage(revised_prompt=text),)))
    assert [each.id for each in records.newest("alice", 60)] == [each.id for each in generations[::-1]]


def test_work_on_a_generation_is_not_written_to_the_index(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    generation = created(records)
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    before = in_index(dynamodb, table)
    for work in (
        _renew,
        _save_sending,
        _save_refusal,
        _save_answer,
        _save_image,
        lambda records, generation: records.note_returned(generation, 1),
        lambda records, generation: records.let_go(generation.id, "me"),
        lambda records, generation: records.claim(generation.id, "other", now=NOW + 99, lease_until=NOW + 199),
    ):
        held = records.get(generation.id)
        work(records, generation)
        assert records.get(generation.id) != held
        assert in_index(dynamodb, table) == before


# What cannot be asked.

ASKING: dict[str, Write] = {
    "hold_key": lambda records, generation: hold(records, generation.id),
    "mark_attempt": lambda records, generation: begin(records, generation.id),
    "attach_attempt": lambda records, _: attach(records, 1),
    "create": lambda records, generation: records.create(generation),
    "get": lambda records, generation: records.get(generation.id),
    "newest": lambda records, _: records.newest("alice", 10),
    "newest after": lambda records, generation: records.newest("alice", 10, after=generation.id),
    "claim": lambda records, generation: records.claim(generation.id, "me", now=NOW, lease_until=NOW),
    "renew": _renew,
    "let_go": lambda records, generation: records.let_go(generation.id, "me"),
    "save_sending": _save_sending,
    "save_refusal": _save_refusal,
    "save_answer": _save_answer,
    "save_image": _save_image,
    "end": _end,
    "mark_announced": lambda records, generation: records.mark_announced(generation),
    "cancel": lambda records, generation: records.cancel(generation.id, now=NOW),
    "requeue": lambda records, generation: records.requeue(generation, now=NOW),
    "void": lambda records, generation: records.void(generation.id, now=NOW),
    "note_returned": lambda records, generation: records.note_returned(generation, 1),
    "bury": lambda records, generation: records.bury(generation, now=NOW),
    "tombstone": lambda records, generation: records.tombstone(generation.id),
}
EACH_CALL = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)


@EACH_CALL
def test_a_store_that_cannot_be_reached_is_unavailable(closed_url: str, ask: Write) -> None:
    client = dynamodb_client(closed_url)
    records = DynamoGenerations(lambda: client, "table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new())


@EACH_CALL
def test_a_store_that_refuses_is_unavailable(dynamodb: "DynamoDBClient", ask: Write) -> None:
    records = DynamoGenerations(lambda: dynamodb, "no-such-table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new())


@EACH_CALL
def test_a_store_without_a_client_is_unavailable(ask: Write) -> None:
    def client() -> "DynamoDBClient":
        raise OSError("no credentials")

    records = DynamoGenerations(client, "table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new())


@EACH_CALL
def test_the_fake_fails_before_its_effect(ask: Write) -> None:
    records = FakeGenerationStore()
    generation = created(records)
    records.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        ask(records, generation)
    assert records.get(generation.id) == generation
    assert records.newest("alice", 10) == [generation]


def test_every_method_is_asked() -> None:
    methods = {name for name in vars(GenerationStore) if not name.startswith("_")}
    assert {name.partition(" ")[0] for name in ASKING} == methods


def test_the_fake_fails_after_its_effect() -> None:
    records = FakeGenerationStore()
    generation = new()
    records.failures += [None, "after"]
    records.create(generation)
    with pytest.raises(RecordsUnavailableError):
        records.cancel(generation.id, now=NOW)
    assert now_of(records, generation).status is Status.CANCELLED


# What expires.


def test_all_that_is_written_expires(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    kept, gone, void = created(records), _buried(records), _void(records)
    hold(records, kept.id)
    begin(records, kept.id)
    items = dynamodb.scan(TableName=table)["Items"]
    kinds = {kept.id: "record", gone.id: "tombstone", void.id: "void"}
    expiries = {
        kinds.get(item["pk"]["S"]) or item["pk"]["S"].partition("#")[0]: int(item["expires_at"]["N"]) - int(NOW)
        for item in items
    }
    day = 24 * 3600
    assert len(items) == 5
    assert expiries == {"record": 30 * day, "tombstone": 15 * day, "void": 15 * day, "key": day, "retry": day}


def test_nothing_of_a_key_is_in_the_table(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    records.hold_key("alice", "a-very-telling-key", "gen_a", "body", now=NOW, expired_before=NOW)
    (marker,) = dynamodb.scan(TableName=table)["Items"]
    assert "a-very-telling-key" not in json.dumps(marker)


# The queue.


class FakeLine:
    def __init__(self) -> None:
        self.fake = FakeGenerationQueue()
        self.queue: GenerationQueue = self.fake

    def deliverable(self) -> list[str]:
        return [generation_id for generation_id, delay in self.fake.sent if delay < 1]

    def delayed(self) -> int:
        return sum(delay >= 1 for _, delay in self.fake.sent)


class SqsLine:
    def __init__(self, client: "SQSClient") -> None:
        self._client = client
        self.url = client.create_queue(QueueName=f"generations-{uuid4().hex}")["QueueUrl"]
        self.queue: GenerationQueue = SqsGenerations(lambda: client, self.url)

    def deliverable(self) -> list[str]:
        messages = self._client.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10)["Messages"]
        return [json.loads(message["Body"])["generation_id"] for message in messages]

    def delayed(self) -> int:
        name: Literal["ApproximateNumberOfMessagesDelayed"] = "ApproximateNumberOfMessagesDelayed"
        return int(self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])["Attributes"][name])


@pytest.fixture
def sqs(aws_url: str) -> Iterator["SQSClient"]:
    client = _sqs(aws_url)
    yield client
    client.close()


@pytest.fixture(params=["fake", "sqs"])
def line(request: pytest.FixtureRequest) -> FakeLine | SqsLine:
    return FakeLine() if request.param == "fake" else SqsLine(request.getfixturevalue("sqs"))


def test_what_is_sent_is_delivered_after_its_delay(line: FakeLine | SqsLine) -> None:
    line.queue.send("gen_a", "alice")
    line.queue.send("gen_b", "alice", delay=60.6)
    line.queue.send("gen_c", "alice", delay=0.2)
    assert sorted(line.deliverable()) == ["gen_a", "gen_c"]
    assert line.delayed() == 1


@pytest.mark.parametrize(("queue", "caller"), [(SqsGenerations, "web"), (SqsBatches, f"oidc:{'0' * 32}")])
def test_a_message_carries_its_caller_so_that_the_queue_is_fair(
    sqs: "SQSClient", queue: type[SqsGenerations | SqsBatches], caller: str
) -> None:
    url = sqs.create_queue(QueueName=f"fair-{uuid4().hex}")["QueueUrl"]
    queue(lambda: sqs, url).send("gen_a", caller)
    (message,) = sqs.receive_message(QueueUrl=url, MessageSystemAttributeNames=["MessageGroupId"])["Messages"]
    assert message["Attributes"] == {"MessageGroupId": caller}


def test_a_held_message_is_not_received_again_until_then(sqs: "SQSClient") -> None:
    line = SqsLine(sqs)
    line.queue.send("gen_a", "alice")
    message = sqs.receive_message(QueueUrl=line.url, VisibilityTimeout=1)["Messages"][0]
    line.queue.hold(message["ReceiptHandle"], 30.4)
    time.sleep(1.1)
    assert "Messages" not in sqs.receive_message(QueueUrl=line.url)
    line.queue.hold(message["ReceiptHandle"], 0)
    assert line.deliverable() == ["gen_a"]


def test_a_queue_that_cannot_be_reached_is_unavailable(closed_url: str) -> None:
    client = _sqs(closed_url)
    fake = FakeGenerationQueue()
    fake.failures += ["before", "after"]
    for queue in (SqsGenerations(lambda: client, f"{closed_url}/queue"), fake, fake):
        with pytest.raises(RecordsUnavailableError):
            queue.send("gen_a", "alice")
    assert fake.sent == [("gen_a", 0)]


def test_a_message_that_cannot_be_held_says_so(closed_url: str) -> None:
    client = _sqs(closed_url)
    fake = FakeGenerationQueue()
    fake.failures.append("before")
    queues: Sequence[GenerationQueue] = (SqsGenerations(lambda: client, f"{closed_url}/queue"), fake)
    for queue in queues:
        with pytest.raises(Exception, match=r"could not|Could not"):
            queue.hold("receipt", 5)
    assert fake.held == []


# The allowances.


@pytest.fixture(params=["fake", *JUDGES])
def counters(request: pytest.FixtureRequest) -> Iterator[AllowanceCounters]:
    if request.param == "fake":
        yield FakeAllowanceCounters()
        return
    with judged(request) as (client, name):
        yield DynamoAllowanceCounters(lambda: client, name)


DAY, NEXT_DAY = "2025-10-09", "2025-10-10"


def take(
    counters: AllowanceCounters, images: int, limit: int = 10, *, who: str = "alice", day: str = DAY, token: str = ""
) -> tuple[bool, int]:
    """Without a token it is a change of its own."""
    return counters.take(who, day, images, limit, token=token or uuid4().hex)


def test_images_are_taken_up_to_the_limit_and_no_further(counters: AllowanceCounters) -> None:
    assert [take(counters, images) for images in (4, 6, 1, 0)] == [(True, 4), (True, 10), (False, 10), (True, 10)]
    assert take(counters, 11) == (False, 10)
    assert take(counters, 1, 11) == (True, 11)


def test_each_who_takes_and_each_day_is_counted_apart(counters: AllowanceCounters) -> None:
    for who, day in (("alice", DAY), ("bob", DAY), ("alice", NEXT_DAY)):
        assert take(counters, 10, who=who, day=day, token="one") == (True, 10)


def test_what_is_given_back_can_be_taken_again_and_no_more_than_that(counters: AllowanceCounters) -> None:
    take(counters, 10)
    counters.give_back("alice", DAY, 4, token="a")
    assert take(counters, 5) == (False, 6)
    for who, images in (("alice", 7), ("nobody", 1)):
        with pytest.raises(RecordsUnavailableError):
            counters.give_back(who, DAY, images, token="b")
    assert take(counters, 4) == (True, 10)


def test_a_change_with_a_known_token_counts_once(counters: AllowanceCounters) -> None:
    take(counters, 3)
    for _ in range(3):
        assert take(counters, 7, token="a") == (True, 10)
    assert take(counters, 7, 6, token="a") == (False, 10)
    for _ in range(3):
        counters.give_back("alice", DAY, 7, token="a")
        assert take(counters, 8) == (False, 3)
    for _ in range(3):
        assert take(counters, 6, token="a") == (True, 9)
    for _ in range(3):
        counters.give_back("alice", DAY, 6, token="a")
        assert take(counters, 8) == (False, 3)


def test_what_was_not_taken_may_be_asked_for_again_with_its_token(counters: AllowanceCounters) -> None:
    take(counters, 8)
    assert [take(counters, 3, limit, token="a") for limit in (10, 11, 11)] == [
        (False, 8),
        (True, 11),
        (True, 11),
    ]


def test_many_at_once_take_no_more_than_the_limit(counters: AllowanceCounters) -> None:
    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(lambda _: take(counters, 2, 51), range(100)))
    assert sum(each for each, _ in taken) == 25
    assert max(used for _, used in taken) == 50


def test_many_at_once_with_one_token_take_once(counters: AllowanceCounters) -> None:
    with ThreadPoolExecutor(20) as pool:
        taken = set(pool.map(lambda _: take(counters, 2, token="a"), range(40)))
    assert taken == {(True, 2)}


def test_a_counter_stays_within_one_write_unit_and_is_forgotten_days_later(
    dynamodb: "DynamoDBClient", table: str
) -> None:
    counters = DynamoAllowanceCounters(lambda: dynamodb, table)
    for number in range(300):
        take(counters, 1, 10_000, who="c" * 64, token=str(number))
        counters.give_back("c" * 64, DAY, 1, token=str(number))
    (item,) = dynamodb.scan(TableName=table)["Items"]
    midnight_after = 1_760_054_400  # 2025-10-10T00:00:00Z
    assert midnight_after + 24 * 3600 <= int(item["expires_at"]["N"]) <= midnight_after + 7 * 24 * 3600
    assert len(item) == 4 + 40
    assert sum(len(name) + len(value.get("S") or value["N"]) for name, value in item.items()) <= 1024


def test_counters_that_cannot_be_asked_say_so(closed_url: str) -> None:
    client = dynamodb_client(closed_url)
    counters = DynamoAllowanceCounters(lambda: client, "table")
    for ask in (
        lambda: take(counters, 1, 1),
        lambda: take(counters, 2, 1),
        lambda: counters.give_back("alice", DAY, 1, token="a"),
    ):
        with pytest.raises(RecordsUnavailableError):
            ask()


# Those who wait.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is for those who wait, so that no half minute ends in the middle of a test."""
    now = [NOW]
    monkeypatch.setattr("imagegen.aws.waiters.time", SimpleNamespace(time=lambda: now[0]))
    return now


@pytest.fixture
def waiters(dynamodb: "DynamoDBClient", table: str, clock: list[float]) -> DynamoWaiters:
    return DynamoWaiters(lambda: dynamodb, table, most=3)


def test_so_many_may_wait_and_no_more(waiters: DynamoWaiters) -> None:
    with ExitStack() as stack:
        rooms = [stack.enter_context(waiters.one()) for _ in range(5)]
    assert rooms == [True, True, True, False, False]


def test_who_has_waited_makes_room_and_who_was_refused_does_not(waiters: DynamoWaiters) -> None:
    with waiters.one(), waiters.one():
        with waiters.one():
            for _ in range(3):
                with waiters.one() as refused:
                    assert refused is False
        with waiters.one() as room:
            assert room is True
            with waiters.one() as refused:
                assert refused is False


def test_who_fails_while_waiting_makes_room(waiters: DynamoWaiters) -> None:
    def fail() -> None:
        with waiters.one() as room:
            assert room is True
            raise KeyError

    for _ in range(4):
        with pytest.raises(KeyError):
            fail()


def test_who_came_in_the_half_minute_before_still_counts_and_is_counted_down_there(
    waiters: DynamoWaiters, clock: list[float]
) -> None:
    with waiters.one(), waiters.one():
        clock[0] += 30
        with ExitStack() as stack:
            assert [stack.enter_context(waiters.one()) for _ in range(3)] == [True, False, False]
    with ExitStack() as stack:
        assert [stack.enter_context(waiters.one()) for _ in range(4)] == [True, True, True, False]


def test_whoever_died_while_waiting_is_forgotten_within_a_minute(waiters: DynamoWaiters, clock: list[float]) -> None:
    with waiters.one(), waiters.one(), waiters.one():
        clock[0] += 60
        with waiters.one() as room:
            assert room is True


def test_many_at_once_are_counted_right(waiters: DynamoWaiters) -> None:
    barrier = threading.Barrier(20)

    def come(_: int) -> bool:
        barrier.wait(10)
        with waiters.one() as room:
            barrier.wait(10)
            return room

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(come, range(20))) == 3


def test_a_count_is_forgotten_in_time(dynamodb: "DynamoDBClient", table: str, waiters: DynamoWaiters) -> None:
    with waiters.one():
        (item,) = dynamodb.scan(TableName=table)["Items"]
    assert NOW + 60 < int(item["expires_at"]["N"]) < NOW + 3600
    assert "caller" not in item


def test_where_it_cannot_be_counted_there_is_room(closed_url: str) -> None:
    client = dynamodb_client(closed_url)
    waiters = DynamoWaiters(lambda: client, "table", most=1)
    with waiters.one() as first, waiters.one() as second:
        assert (first, second) == (True, True)


def test_where_the_table_is_gone_there_is_room(dynamodb: "DynamoDBClient") -> None:
    waiters = DynamoWaiters(lambda: dynamodb, "no-such-table", most=1)
    with waiters.one() as first, waiters.one() as second:
        assert (first, second) == (True, True)
