"""Records and queue: the fakes and the real ones, on moto, pass the same contracts."""

import json
import socket
import threading
import time
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
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.sqs import SqsGenerations
from imagegen.aws.waiters import DynamoWaiters
from imagegen.errors import RecordsUnavailableError
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Failure,
    Generation,
    LostClaimError,
    Markers,
    MarkerTakenError,
    Status,
    StoredImage,
    Tombstone,
    admit,
    fingerprint,
)
from imagegen.images import ImageRequest
from imagegen.ports import AllowanceCounters, GenerationQueue, GenerationStore
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_sqs import SQSClient

REGION: Literal["eu-central-1"] = "eu-central-1"
RETENTION_SECONDS = 30 * 24 * 3600
NOW = 1_760_000_000.123456
IMAGE = StoredImage("image/png", 1234)
FAILURE = Failure("UpstreamFailedError", "Es zerbrach: 壊れた.", param="prompt", code="broken", cause=Failure("X", "y"))


@pytest.fixture(scope="session")
def serial_aws_url() -> Iterator[str]:
    """Moto that answers one request at a time: it locks nothing, where DynamoDB's writes to an item are in line."""
    app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> list[bytes]:
        with lock:
            return list(app(environ, start_response))

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _config(**more: Any) -> Config:
    return Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1}, **more)


@pytest.fixture(scope="session")
def dynamodb(serial_aws_url: str) -> Iterator["DynamoDBClient"]:
    client = _dynamodb(serial_aws_url)
    yield client
    client.close()


def _dynamodb(url: str) -> "DynamoDBClient":
    return boto3.client(
        "dynamodb",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="test",
        config=_config(max_pool_connections=100),
    )


def _sqs(url: str) -> "SQSClient":
    return boto3.client(
        "sqs",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="test",
        config=_config(),
    )


@pytest.fixture
def table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    """As template.yaml has it."""
    name = f"generations-{uuid4().hex}"
    dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
            {"AttributeName": "caller", "AttributeType": "S"},
            {"AttributeName": "created_at", "AttributeType": "N"},
        ],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "by-caller",
                "KeySchema": [
                    {"AttributeName": "caller", "KeyType": "HASH"},
                    {"AttributeName": "created_at", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
    )
    yield name
    dynamodb.delete_table(TableName=name)


@pytest.fixture(params=["fake", "dynamodb"])
def records(request: pytest.FixtureRequest) -> GenerationStore:
    if request.param == "fake":
        return FakeGenerationStore()
    client, name = request.getfixturevalue("dynamodb"), request.getfixturevalue("table")
    return DynamoGenerations(lambda: client, name, retention_seconds=RETENTION_SECONDS)


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
    key: str | None = None,
    retry: int | None = None,
    at: float = NOW,
) -> Generation:
    request = ImageRequest(prompt, "dall-e-3", "url", n)
    markers = Markers(key, retry)
    return admit(request, caller=caller, base_url="https://api.example/v1", now=at, markers=markers)


def created(records: GenerationStore, generation: Generation | None = None, *, body: str = "body") -> Generation:
    generation = generation or new()
    records.create(generation, body)
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
        admit(request, caller="alice", base_url="https://x.example/prod/v1", now=NOW, markers=Markers("k ä", 3)),
        status=Status.IN_PROGRESS,
        owner="first",
        lease_until=NOW + 60,
    )
    records.create(generation, fingerprint(request))
    assert records.get(generation.id) == generation


def test_a_call_that_was_answered_already_is_written_with_its_record(records: GenerationStore) -> None:
    generation = new(n=3)
    answered = msgspec.structs.replace(
        generation.calls[1], sent=2, answer=CallAnswer((AnsweredImage("https://i.example/ä", None),), {"size": "x"})
    )
    generation = msgspec.structs.replace(generation, calls=(generation.calls[0], answered, generation.calls[2]))
    assert now_of(records, created(records, generation)) == generation


def test_all_that_becomes_known_is_read_back(records: GenerationStore) -> None:
    generation = created(records, new(n=2))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    answer = CallAnswer(
        (AnsweredImage("https://i.example/1?a=b&c=%20", "Ein „überarbeiteter“ Wunsch 🎈"),),
        {"size": "1024x1024", "quality": "hd"},
        {"input_tokens": 7, "input_tokens_details": {"text_tokens": 7, "image_tokens": 0}, "total_tokens": 1.5},
    )
    first = Call(generation.calls[0].image_ids, sent=1, answer=answer)
    second = Call(generation.calls[1].image_ids, sent=2)
    records.save_call(generation.id, "me", 0, first)
    records.save_call(generation.id, "me", 1, second)
    records.save_image(generation.id, "me", generation.image_ids[0], IMAGE)
    records.end(generation.id, "me", Status.FAILED, now=NOW + 9.5, failure=FAILURE)
    assert records.get(generation.id) == msgspec.structs.replace(
        generation,
        status=Status.FAILED,
        owner="me",
        lease_until=NOW + 60,
        calls=(first, second),
        stored={generation.image_ids[0]: IMAGE},
        failure=FAILURE,
        completed_at=NOW + 9.5,
    )


def test_the_largest_request_fits_into_a_record(records: GenerationStore) -> None:
    request = ImageRequest("\U0001d518" * 32_000, "gpt-image-2", "url", 10)
    generation = admit(request, caller="alice", base_url="https://x.example", now=NOW, markers=Markers())
    records.create(generation, "body")
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    images = tuple(AnsweredImage("https://i.example/" + "x" * 2_000, "é" * 4_000) for _ in range(10))
    call = Call(generation.image_ids, 1, CallAnswer(images))
    records.save_call(generation.id, "me", 0, call)
    assert now_of(records, generation).calls == (call,)


def test_parts_saved_side_by_side_are_all_kept(records: GenerationStore) -> None:
    generation = created(records, new(n=10))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    barrier = threading.Barrier(10)

    def save(index: int) -> None:
        barrier.wait(10)
        call = Call(generation.calls[index].image_ids, sent=1)
        records.save_call(generation.id, "me", index, call)
        records.save_image(generation.id, "me", generation.image_ids[index], StoredImage("image/png", index))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(save, range(10)))
    found = now_of(records, generation)
    assert [call.sent for call in found.calls] == [1] * 10
    assert [found.stored[image_id].length for image_id in generation.image_ids] == list(range(10))


def test_what_is_not_there_is_none(records: GenerationStore) -> None:
    assert records.get("gen_AAAAAAAAAAAAAAAAAAAAAA") is None
    assert records.key_holder("alice", "key") is None
    assert records.attach_retry("alice", "body", 1, since=0) is None
    assert records.newest("alice", 10) == []


def test_an_id_is_given_once(records: GenerationStore) -> None:
    generation = created(records)
    with pytest.raises(MarkerTakenError):
        records.create(msgspec.structs.replace(new(), id=generation.id), "other")
    assert records.get(generation.id) == generation


# Idempotency keys.


def test_a_key_names_its_generation_and_the_body(records: GenerationStore) -> None:
    generation = created(records, new(key="k ~"), body="the body")
    holder = records.key_holder("alice", "k ~")
    assert holder is not None
    assert (holder.generation_id, holder.fingerprint, holder.created_at) == (generation.id, "the body", NOW)


def test_a_key_that_is_taken_stays_with_its_generation(records: GenerationStore) -> None:
    first, second = created(records, new(key="k")), new(key="k", retry=0)
    with pytest.raises(MarkerTakenError):
        records.create(second, "body")
    holder = records.key_holder("alice", "k")
    assert holder is not None
    assert holder.generation_id == first.id
    assert records.get(second.id) is None
    assert records.attach_retry("alice", "body", 1, since=0) is None


def test_a_key_is_free_for_another_caller(records: GenerationStore) -> None:
    created(records, new(key="k"))
    assert records.key_holder("bob", "k") is None
    other = created(records, new(key="k", caller="bob"))
    holder = records.key_holder("bob", "k")
    assert holder is not None
    assert holder.generation_id == other.id


def test_a_key_passes_from_the_generation_that_is_replaced_and_from_no_other(records: GenerationStore) -> None:
    first, second, third = (new(key="k", at=NOW + at) for at in range(3))
    records.create(first, "one")
    records.create(second, "two", replacing=first.id)
    with pytest.raises(MarkerTakenError):
        records.create(third, "three", replacing=first.id)
    holder = records.key_holder("alice", "k")
    assert holder is not None
    assert (holder.generation_id, holder.fingerprint, holder.created_at) == (second.id, "two", NOW + 1)
    assert records.get(first.id) == first


def test_replacing_a_generation_whose_key_is_gone_takes_the_key(records: GenerationStore) -> None:
    first, second = created(records, new(key="k")), new(key="k")
    records.release(first, "body")
    records.create(second, "body", replacing=first.id)
    holder = records.key_holder("alice", "k")
    assert holder is not None
    assert holder.generation_id == second.id


def test_a_released_key_is_free(records: GenerationStore) -> None:
    generation = created(records, new(key="k"))
    records.release(generation, "body")
    assert records.key_holder("alice", "k") is None
    assert records.get(generation.id) == generation


def test_releasing_leaves_the_key_to_who_has_it_now(records: GenerationStore) -> None:
    first, second = new(key="k"), new(key="k")
    records.create(first, "body")
    records.create(second, "body", replacing=first.id)
    records.release(first, "body")
    holder = records.key_holder("alice", "k")
    assert holder is not None
    assert holder.generation_id == second.id


def test_releasing_twice_or_without_markers_does_nothing(records: GenerationStore) -> None:
    plain, marked = created(records), created(records, new(key="k", retry=0))
    for generation in (plain, marked, marked):
        records.release(generation, "body")
    assert (records.get(plain.id), records.get(marked.id)) == (plain, marked)


def test_of_a_hundred_that_begin_with_one_key_at_once_one_wins(records: GenerationStore) -> None:
    generations = [new(key="k") for _ in range(100)]
    barrier = threading.Barrier(100)

    def begin(generation: Generation) -> bool:
        barrier.wait(30)
        try:
            records.create(generation, "body")
        except MarkerTakenError:
            return False
        return True

    with ThreadPoolExecutor(100) as pool:
        won = list(pool.map(begin, generations))
    winners = [generation for generation, has_won in zip(generations, won, strict=True) if has_won]
    holder = records.key_holder("alice", "k")
    assert holder is not None
    assert [winner.id for winner in winners] == [holder.generation_id]
    assert [each.id for each in records.newest("alice", 100)] == [holder.generation_id]


# Retries that clients count.


def attach(records: GenerationStore, retry: int, *, since: float = 0) -> str | None:
    return records.attach_retry("alice", "body", retry, since=since)


def test_a_retry_attaches_to_what_fewer_retries_have_seen(records: GenerationStore) -> None:
    generation = created(records, new(retry=0))
    assert attach(records, 1) == generation.id
    assert attach(records, 1) is None
    assert attach(records, 3) == generation.id
    assert attach(records, 2) is None
    assert attach(records, 3) is None


def test_two_identical_requests_stay_two_also_when_both_retry(records: GenerationStore) -> None:
    later, first = new(retry=0, at=NOW + 1), new(retry=0)
    created(records, later)
    created(records, first)
    for retry in (1, 2):
        assert [attach(records, retry) for _ in range(3)] == [later.id, first.id, None]


def test_what_a_retry_began_is_attached_to_by_later_retries_only(records: GenerationStore) -> None:
    generation = created(records, new(retry=1))
    assert [attach(records, retry) for retry in (1, 2, 2)] == [None, generation.id, None]


def test_retries_at_once_share_out_the_generations(records: GenerationStore) -> None:
    ids = sorted(created(records, new(retry=0, at=NOW + at)).id for at in range(5))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: attach(records, 1), range(8)))
    assert sorted(each for each in found if each) == ids


def test_a_retry_attaches_to_nothing_old(records: GenerationStore) -> None:
    created(records, new(retry=0, at=NOW))
    fresh = created(records, new(retry=0, at=NOW + 1))
    assert [attach(records, 1, since=NOW) for _ in range(2)] == [fresh.id, None]


def test_a_retry_that_comes_back_to_what_was_released_begins_anew(records: GenerationStore) -> None:
    older, released = created(records, new(retry=0)), created(records, new(retry=0, at=NOW + 1))
    records.release(released, "body")
    assert [attach(records, 1) for _ in range(3)] == [None, older.id, None]


def test_a_retry_attaches_only_to_the_same_body_of_the_same_caller(records: GenerationStore) -> None:
    created(records, new(retry=0), body="another")
    created(records, new(retry=0, caller="bob"))
    created(records, new())
    assert attach(records, 1) is None


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
    call = Call(generation.calls[0].image_ids, sent=1)
    records.save_call(generation.id, "me", 0, call)
    records.save_image(generation.id, "me", generation.image_ids[0], IMAGE)
    taken = records.claim(generation.id, "other", now=NOW + 60.001, lease_until=NOW + 120)
    assert taken == msgspec.structs.replace(
        generation, owner="other", lease_until=NOW + 120, calls=(call,), stored={generation.image_ids[0]: IMAGE}
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


def test_an_owner_whose_lease_is_gone_is_still_the_owner_while_nobody_takes_over(records: GenerationStore) -> None:
    generation = claimed(records, lease_until=NOW - 60)
    records.save_image(generation.id, "me", generation.image_ids[0], IMAGE)
    records.renew(generation.id, "me", NOW + 60)
    records.end(generation.id, "me", Status.COMPLETED, now=NOW)
    assert now_of(records, generation).status is Status.COMPLETED


def test_an_end_may_be_written_twice_but_not_changed(records: GenerationStore) -> None:
    generation = claimed(records)
    records.end(generation.id, "me", Status.COMPLETED, now=NOW)
    records.end(generation.id, "me", Status.COMPLETED, now=NOW)
    with pytest.raises(LostClaimError):
        records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
    found = now_of(records, generation)
    assert (found.status, found.failure, found.completed_at) == (Status.COMPLETED, None, NOW)


def _absent(records: GenerationStore) -> Generation:
    return new()


def _queued(records: GenerationStore) -> Generation:
    return created(records)


def _anothers(records: GenerationStore) -> Generation:
    return claimed(records, owner="other")


def _taken_over(records: GenerationStore) -> Generation:
    generation = claimed(records)
    records.claim(generation.id, "other", now=NOW + 61, lease_until=NOW + 120)
    return generation


def _ended(records: GenerationStore, status: Status = Status.COMPLETED) -> Generation:
    generation = claimed(records)
    records.end(generation.id, "me", status, now=NOW)
    return generation


def _failed(records: GenerationStore) -> Generation:
    return _ended(records, Status.FAILED)


def _abandoned(records: GenerationStore) -> Generation:
    generation = claimed(records)
    records.fail_abandoned(generation.id, FAILURE, now=NOW + 61)
    return generation


def _cancelled(records: GenerationStore) -> Generation:
    generation = claimed(records)
    records.cancel(generation.id, now=NOW)
    return generation


def _requeued(records: GenerationStore) -> Generation:
    generation = _failed(records)
    records.requeue(generation.id)
    return generation


def _buried(records: GenerationStore) -> Generation:
    generation = claimed(records)
    records.bury(generation, now=NOW)
    return generation


State = Callable[[GenerationStore], Generation]
Write = Callable[[GenerationStore, Generation], object]

ENDED_STATES: Sequence[State] = (_ended, _failed, _abandoned, _cancelled)
GONE_STATES: Sequence[State] = (_absent, _buried)
NOT_MINE: Sequence[State] = (_queued, _anothers, _taken_over, _requeued, *ENDED_STATES, *GONE_STATES)


def _renew(records: GenerationStore, generation: Generation) -> None:
    records.renew(generation.id, "me", NOW + 500)


def _save_call(records: GenerationStore, generation: Generation) -> None:
    records.save_call(generation.id, "me", 0, Call(generation.calls[0].image_ids, sent=1))


def _save_image(records: GenerationStore, generation: Generation) -> None:
    records.save_image(generation.id, "me", generation.image_ids[0], IMAGE)


def _end(records: GenerationStore, generation: Generation) -> None:
    records.end(generation.id, "me", Status.CANCELLED, now=NOW + 5, failure=FAILURE)


WRITES: Sequence[Write] = (_renew, _save_call, _save_image, _end)


def _name(function: Any) -> str:
    return str(function.__name__).strip("_")


@pytest.mark.parametrize(("state", "write"), list(product(NOT_MINE, WRITES)), ids=_name)
def test_nothing_is_written_to_what_is_not_ones_own(records: GenerationStore, state: State, write: Write) -> None:
    generation = state(records)
    before = records.get(generation.id)
    with pytest.raises(LostClaimError):
        write(records, generation)
    assert records.get(generation.id) == before


@pytest.mark.parametrize("state", [*ENDED_STATES, *GONE_STATES], ids=_name)
@pytest.mark.parametrize("owner", ["me", "other"])
def test_what_has_ended_or_is_gone_is_claimed_by_nobody(records: GenerationStore, state: State, owner: str) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.claim(generation.id, owner, now=NOW + 9999, lease_until=NOW + 99999) is None
    assert records.get(generation.id) == before


# Cancelled, abandoned, begun again, deleted.


@pytest.mark.parametrize("state", [_queued, _anothers, _requeued], ids=_name)
def test_what_has_not_ended_is_cancelled(records: GenerationStore, state: State) -> None:
    before = now_of(records, state(records))
    cancelled = records.cancel(before.id, now=NOW + 1)
    assert cancelled == msgspec.structs.replace(before, status=Status.CANCELLED, completed_at=NOW + 1, owner=None)
    assert records.get(before.id) == cancelled


@pytest.mark.parametrize("state", [*ENDED_STATES, *GONE_STATES], ids=_name)
def test_what_has_ended_or_is_gone_is_not_cancelled(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.cancel(generation.id, now=NOW + 9) is None
    assert records.get(generation.id) == before


@pytest.mark.parametrize("state", [_queued, _anothers, _requeued], ids=_name)
def test_what_nobody_works_on_is_failed_as_abandoned(records: GenerationStore, state: State) -> None:
    before = now_of(records, state(records))
    assert records.fail_abandoned(before.id, FAILURE, now=NOW + 61) is True
    assert records.get(before.id) == msgspec.structs.replace(
        before, status=Status.FAILED, failure=FAILURE, completed_at=NOW + 61, owner=None
    )


def test_a_live_lease_is_not_abandoned(records: GenerationStore) -> None:
    generation = claimed(records)
    assert records.fail_abandoned(generation.id, FAILURE, now=NOW + 60) is False
    assert records.get(generation.id) == generation


@pytest.mark.parametrize("state", [*ENDED_STATES, *GONE_STATES], ids=_name)
def test_what_has_ended_or_is_gone_is_not_abandoned(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.fail_abandoned(generation.id, FAILURE, now=NOW + 9999) is False
    assert records.get(generation.id) == before


def test_what_failed_waits_again_with_all_that_is_known(records: GenerationStore) -> None:
    generation = claimed(records, n=3)
    answered = Call(generation.calls[0].image_ids, 1, CallAnswer((AnsweredImage("https://i.example/1"),)))
    records.save_call(generation.id, "me", 0, answered)
    records.save_call(generation.id, "me", 1, Call(generation.calls[1].image_ids, sent=2))
    records.save_image(generation.id, "me", generation.image_ids[0], IMAGE)
    records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
    requeued = records.requeue(generation.id)
    assert requeued == msgspec.structs.replace(
        generation,
        status=Status.QUEUED,
        owner=None,
        lease_until=0.0,
        calls=(answered, Call(generation.calls[1].image_ids), Call(generation.calls[2].image_ids)),
        stored={generation.image_ids[0]: IMAGE},
    )
    assert records.get(generation.id) == requeued
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is not None


@pytest.mark.parametrize("state", [_queued, _anothers, _ended, _cancelled, *GONE_STATES], ids=_name)
def test_only_what_failed_waits_again(records: GenerationStore, state: State) -> None:
    generation = state(records)
    before = records.get(generation.id)
    assert records.requeue(generation.id) is None
    assert records.get(generation.id) == before


@pytest.mark.parametrize("state", [_absent, _queued, _anothers, *ENDED_STATES, _buried], ids=_name)
def test_what_is_buried_is_gone_and_stays_gone(records: GenerationStore, state: State) -> None:
    generation = state(records)
    records.bury(generation, now=NOW)
    assert records.get(generation.id) is None
    with pytest.raises(MarkerTakenError):
        records.create(generation, "body")
    assert records.get(generation.id) is None
    assert records.newest("alice", 10) == []


def test_what_is_void_was_never_written_and_never_will_be(records: GenerationStore) -> None:
    generation = new()
    for _ in range(2):
        assert records.void(generation.id, now=NOW) is True
    with pytest.raises(MarkerTakenError):
        records.create(generation, "body")
    assert records.get(generation.id) is None
    assert records.tombstone(generation.id) is None


def test_what_was_written_cannot_be_made_void(records: GenerationStore) -> None:
    generation = created(records)
    assert records.void(generation.id, now=NOW) is False
    assert records.get(generation.id) == generation


def test_a_reservation_is_released_once(records: GenerationStore) -> None:
    generation = created(records)
    with ThreadPoolExecutor(8) as pool:
        released = list(pool.map(lambda _: records.release_reservation(generation.id), range(8)))
    assert sorted(released) == [False] * 7 + [True]
    assert records.release_reservation("gen_AAAAAAAAAAAAAAAAAAAAAA") is False


def test_a_tombstone_tells_whose_images_may_still_be_there_until_none_are(records: GenerationStore) -> None:
    generation = created(records)
    assert records.tombstone(generation.id) is None
    tombstone = records.bury(generation, now=NOW)
    assert tombstone == Tombstone(generation.id, "alice", generation.image_ids)
    assert records.tombstone(generation.id) == tombstone
    for _ in range(2):
        records.all_deleted(tombstone)
        assert records.tombstone(generation.id) is None
    assert records.get(generation.id) is None


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
    own, others = created(records, new(key="k", retry=0)), created(records, new(caller="bob", at=NOW + 1))
    assert records.newest("alice", 10) == [own]
    assert records.newest("alice", 10, after=others.id) == []
    assert records.newest("alic", 10) == []


def test_a_list_never_shows_what_is_buried(records: GenerationStore) -> None:
    older, gone, newer = (created(records, new(at=NOW + at)) for at in range(3))
    records.bury(gone, now=NOW)
    assert records.newest("alice", 10) == [newer, older]
    assert records.newest("alice", 10, after=gone.id) == []
    assert records.newest("alice", 10, after="gen_AAAAAAAAAAAAAAAAAAAAAA") == []


# What cannot be asked.

ASKING: Sequence[tuple[str, Callable[[GenerationStore, Generation], object]]] = (
    ("create", lambda records, generation: records.create(generation, "body")),
    ("get", lambda records, generation: records.get(generation.id)),
    ("key_holder", lambda records, _: records.key_holder("alice", "k")),
    ("attach_retry", lambda records, _: records.attach_retry("alice", "body", 1, since=0)),
    ("release", lambda records, generation: records.release(generation, "body")),
    ("newest", lambda records, _: records.newest("alice", 10)),
    ("newest_after", lambda records, generation: records.newest("alice", 10, after=generation.id)),
    ("claim", lambda records, generation: records.claim(generation.id, "me", now=NOW, lease_until=NOW)),
    ("renew", _renew),
    ("save_call", _save_call),
    ("save_image", _save_image),
    ("end", _end),
    ("fail_abandoned", lambda records, generation: records.fail_abandoned(generation.id, FAILURE, now=NOW)),
    ("cancel", lambda records, generation: records.cancel(generation.id, now=NOW)),
    ("requeue", lambda records, generation: records.requeue(generation.id)),
    ("bury", lambda records, generation: records.bury(generation, now=NOW)),
    ("void", lambda records, generation: records.void(generation.id, now=NOW)),
    ("release_reservation", lambda records, generation: records.release_reservation(generation.id)),
    ("tombstone", lambda records, generation: records.tombstone(generation.id)),
    ("all_deleted", lambda records, generation: records.all_deleted(Tombstone(generation.id, "alice", ()))),
)
EACH_CALL = pytest.mark.parametrize("ask", [ask for _, ask in ASKING], ids=[name for name, _ in ASKING])


@EACH_CALL
def test_a_store_that_cannot_be_reached_is_unavailable(closed_url: str, ask: Write) -> None:
    client = _dynamodb(closed_url)
    records = DynamoGenerations(lambda: client, "table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new(key="k", retry=0))


@EACH_CALL
def test_a_store_that_refuses_is_unavailable(dynamodb: "DynamoDBClient", ask: Write) -> None:
    records = DynamoGenerations(lambda: dynamodb, "no-such-table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new(key="k", retry=0))


@EACH_CALL
def test_a_store_without_a_client_is_unavailable(ask: Write) -> None:
    def client() -> "DynamoDBClient":
        raise OSError("no credentials")

    records = DynamoGenerations(client, "table", retention_seconds=RETENTION_SECONDS)
    with pytest.raises(RecordsUnavailableError):
        ask(records, new(key="k", retry=0))


@EACH_CALL
def test_the_fake_fails_before_its_effect(ask: Write) -> None:
    records = FakeGenerationStore()
    generation = created(records)
    records.failures.append("before")
    with pytest.raises(RecordsUnavailableError):
        ask(records, generation)
    assert records.get(generation.id) == generation
    assert records.newest("alice", 10) == [generation]


def test_the_fake_fails_after_its_effect() -> None:
    records = FakeGenerationStore()
    generation = new()
    records.failures += [None, "after"]
    records.create(generation, "body")
    with pytest.raises(RecordsUnavailableError):
        records.cancel(generation.id, now=NOW)
    assert now_of(records, generation).status is Status.CANCELLED


# What expires.


def test_all_that_is_written_expires(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    kept = created(records, new(key="k", retry=0))
    gone = created(records)
    records.bury(gone, now=NOW)
    items = dynamodb.scan(TableName=table)["Items"]
    expiries = {(item["pk"]["S"], item["sk"]["S"]): int(item["expires_at"]["N"]) - int(NOW) for item in items}
    day = 24 * 3600
    assert len(items) == 4
    assert expiries[kept.id, "generation"] == RETENTION_SECONDS
    assert expiries[gone.id, "generation"] == 3600
    assert sorted(each for (pk, _), each in expiries.items() if not pk.startswith("gen_")) == [day, day]


def test_nothing_of_a_key_is_in_the_table(dynamodb: "DynamoDBClient", table: str) -> None:
    records = DynamoGenerations(lambda: dynamodb, table, retention_seconds=RETENTION_SECONDS)
    created(records, new(key="a-very-telling-key"))
    markers = [item for item in dynamodb.scan(TableName=table)["Items"] if item["sk"]["S"] == "key"]
    assert len(markers) == 1
    assert "a-very-telling-key" not in json.dumps(markers)


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
    line.queue.send("gen_a")
    line.queue.send("gen_b", delay=60.6)
    line.queue.send("gen_c", delay=0.2)
    assert sorted(line.deliverable()) == ["gen_a", "gen_c"]
    assert line.delayed() == 1


def test_a_held_message_is_not_received_again_until_then(sqs: "SQSClient") -> None:
    line = SqsLine(sqs)
    line.queue.send("gen_a")
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
            queue.send("gen_a")
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


@pytest.fixture(params=["fake", "dynamodb"])
def counters(request: pytest.FixtureRequest) -> AllowanceCounters:
    if request.param == "fake":
        return FakeAllowanceCounters()
    client, name = request.getfixturevalue("dynamodb"), request.getfixturevalue("table")
    return DynamoAllowanceCounters(lambda: client, lambda: client, name)


DAY, NEXT_DAY = "2025-10-09", "2025-10-10"


def test_images_are_taken_up_to_the_limit_and_no_further(counters: AllowanceCounters) -> None:
    taken = [counters.take("alice", DAY, images, 10) for images in (4, 6, 1, 0)]
    assert taken == [(True, 4), (True, 10), (False, 10), (True, 10)]
    assert counters.take("alice", DAY, 11, 10) == (False, 10)
    assert counters.take("alice", DAY, 1, 11) == (True, 11)


def test_each_who_takes_and_each_day_is_counted_apart(counters: AllowanceCounters) -> None:
    counters.take("alice", DAY, 10, 10)
    assert counters.take("bob", DAY, 10, 10) == (True, 10)
    assert counters.take("alice", NEXT_DAY, 10, 10) == (True, 10)


def test_what_is_given_back_can_be_taken_again_and_no_more_than_that(counters: AllowanceCounters) -> None:
    counters.take("alice", DAY, 10, 10)
    counters.give_back("alice", DAY, 4)
    assert counters.take("alice", DAY, 5, 10) == (False, 6)
    with pytest.raises(RecordsUnavailableError):
        counters.give_back("alice", DAY, 7)
    with pytest.raises(RecordsUnavailableError):
        counters.give_back("nobody", DAY, 1)
    assert counters.take("alice", DAY, 4, 10) == (True, 10)


def test_many_at_once_take_no_more_than_the_limit(counters: AllowanceCounters) -> None:
    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(lambda _: counters.take("alice", DAY, 2, 51), range(100)))
    assert sum(each for each, _ in taken) == 25
    assert max(used for _, used in taken) == 50


def test_a_counter_is_forgotten_days_later(dynamodb: "DynamoDBClient", table: str) -> None:
    DynamoAllowanceCounters(lambda: dynamodb, lambda: dynamodb, table).take("alice", "2025-10-09", 1, 1)
    (item,) = dynamodb.scan(TableName=table)["Items"]
    midnight_after = 1_760_054_400  # 2025-10-10T00:00:00Z
    assert midnight_after + 24 * 3600 <= int(item["expires_at"]["N"]) <= midnight_after + 7 * 24 * 3600


def test_counters_that_cannot_be_asked_say_so(closed_url: str) -> None:
    client = _dynamodb(closed_url)
    counters = DynamoAllowanceCounters(lambda: client, lambda: client, "table")
    for ask in (
        lambda: counters.take("alice", DAY, 1, 1),
        lambda: counters.take("alice", DAY, 2, 1),
        lambda: counters.give_back("alice", DAY, 1),
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
    client = _dynamodb(closed_url)
    waiters = DynamoWaiters(lambda: client, "table", most=1)
    with waiters.one() as first, waiters.one() as second:
        assert (first, second) == (True, True)


def test_where_the_table_is_gone_there_is_room(dynamodb: "DynamoDBClient") -> None:
    waiters = DynamoWaiters(lambda: dynamodb, "no-such-table", most=1)
    with waiters.one() as first, waiters.one() as second:
        assert (first, second) == (True, True)
