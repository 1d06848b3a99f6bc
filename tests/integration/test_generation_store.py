"""Records of generations: the fake and the real store, before each judge, pass the same contract."""

import json
import threading
from bisect import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.json import encode
from msgspec.structs import replace

from imagegen.aws.generations import DynamoGenerations
from imagegen.domain.errors import MoneySpentError, RecordsUnavailableError, UpstreamTooFewImagesError
from imagegen.domain.failures import kept
from imagegen.domain.generations import (
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
from imagegen.domain.images import ImageRequest, UpstreamAnswer
from imagegen.domain.models import MAX_IMAGES
from imagegen.ports import GenerationStore as Store
from imagegen.providers.openai_answers import read_answer
from imagegen.wire.request_events import MOST_CUSTOM_ID
from imagegen.wire.requests import LONGEST_USER, read_image_fields
from tests.fakes.generation_store import FakeGenerationStore
from tests.support.stores import JUDGES, NOW, RETENTION_SECONDS, Connect, Table, closed_url, new_generation

DAY = 24 * 3600
MOST_ITEM_BYTES = 400 * 1024  # DynamoDB's
IMAGE = StoredImage("image/png", 1234)
CAME = AnsweredImage("https://i.example/1", "a large cat")
ANSWER = CallAnswer((CAME,), {"size": "1024x1024"})
FAILURE = Failure("UpstreamFailedError", "Es zerbrach: 壊れた.", param="prompt", code="broken", cause=Failure("X", "y"))
NOBODY = "gen_AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture
def records(judged: Table | None) -> Store:
    return judged.generations if judged else FakeGenerationStore()


def created(records: Store, generation: Generation | None = None, *, n: int = 1, at: float = NOW) -> Generation:
    generation = generation or new_generation(n=n, at=at)
    records.create(generation)
    return generation


def claimed(records: Store, *, n: int = 1, lease_until: float = NOW + 60) -> Generation:
    claimed = records.claim(created(records, n=n).id, "me", now=NOW, lease_until=lease_until)
    assert claimed is not None
    return claimed


def now_of(records: Store, generation: Generation) -> Generation:
    found = records.get(generation.id)
    assert found is not None
    return found


def at_once(number: int, ask: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(number)

    def wait_and_ask(index: int) -> Any:
        barrier.wait(60)
        return ask(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_ask, range(number)))


def hold(records: Store, generation_id: str, body: str = "body", caller: str = "alice", **how: Any) -> tuple[str, str]:
    times = {"now": how.pop("at", NOW), "expired_before": NOW - 1000}
    holder = records.hold_key(caller, "k ~", generation_id, body, **times | how)
    return holder.generation_id, holder.fingerprint


def begin(records: Store, generation_id: str, attempt: int = 0, *, at: float = NOW, **whose: str) -> None:
    whose = {"caller": "alice", "fingerprint": "body", **whose}
    records.mark_attempt(generation_id=generation_id, attempt=attempt, now=at, **whose)


def attach(records: Store, attempt: int, *, body: str = "body", since: float = NOW - 1000) -> str | None:
    return records.attach_attempt("alice", body, attempt, since=since)


# Every method by its name, with variants.
CALLS: dict[str, Callable[[Store, Generation], object]] = {
    "hold_key": lambda s, g: hold(s, g.id),
    "mark_attempt": lambda s, g: begin(s, g.id),
    "attach_attempt": lambda s, _: attach(s, 1),
    "create": lambda s, g: s.create(g),
    "get": lambda s, g: s.get(g.id),
    "newest": lambda s, _: s.newest("alice", 10),
    "newest after": lambda s, g: s.newest("alice", 10, after=g.id),
    "claim": lambda s, g: s.claim(g.id, "me", now=NOW, lease_until=NOW + 60),
    "claim by another": lambda s, g: s.claim(g.id, "other", now=NOW, lease_until=NOW + 60),
    "claim late": lambda s, g: s.claim(g.id, "me", now=NOW + 9999, lease_until=NOW + 99999),
    "claim late by another": lambda s, g: s.claim(g.id, "other", now=NOW + 9999, lease_until=NOW + 99999),
    "renew": lambda s, g: s.renew(g.id, "me", NOW + 500),
    "renew by another": lambda s, g: s.renew(g.id, "other", NOW + 900),
    "let_go": lambda s, g: s.let_go(g.id, "me"),
    "save_sending": lambda s, g: s.save_sending(g.id, "me", 0, 1),
    "save_refusal": lambda s, g: s.save_refusal(g.id, 0, 1),
    "save_answer": lambda s, g: s.save_answer(g.id, 0, ANSWER),
    "save_image": lambda s, g: s.save_image(g.id, g.image_ids[0], IMAGE),
    "end": lambda s, g: s.end(g.id, "me", Status.COMPLETED, now=NOW),
    "end as failed": lambda s, g: s.end(g.id, "me", Status.FAILED, now=NOW, failure=FAILURE),
    "mark_announced": lambda s, g: s.mark_announced(g),
    "cancel": lambda s, g: s.cancel(g.id, now=NOW),
    "requeue": lambda s, g: s.requeue(g, now=NOW + 5),
    "void": lambda s, g: s.void(g.id, now=NOW),
    "note_returned": lambda s, g: s.note_returned(g, 1),
    "bury": lambda s, g: s.bury(g, now=NOW),
    "bury as if ended": lambda s, g: s.bury(replace(g, completed_at=NOW), now=NOW),
    "tombstone": lambda s, g: s.tombstone(g.id),
}
MONEY = ("save_refusal", "save_answer", "save_image")
STATES: dict[str, Sequence[str]] = {
    "absent": (),
    "void": ("void",),
    "queued": ("create",),
    "mine": ("create", "claim"),
    "another's": ("create", "claim by another"),
    "requeued": ("create", "claim", "end as failed", "mark_announced", "requeue"),
    "completed": ("create", "claim", "end"),
    "failed": ("create", "claim", "end as failed"),
    "announced": ("create", "claim", "end as failed", "mark_announced"),
    "cancelled": ("create", "claim", "cancel"),
    "buried": ("create", "claim", "end", "bury"),
}
ACTIVE, ENDED, GONE = list(STATES)[2:6], list(STATES)[6:10], ["absent", "void", "buried"]


def in_state(records: Store, state: str) -> Generation:
    generation = new_generation()
    for call in STATES[state]:
        CALLS[call](records, generation)
        generation = records.get(generation.id) or generation
    return generation


def outcome(call: str, records: Store, generation: Generation) -> object:
    try:
        return CALLS[call](records, generation)
    except IdTakenError as taken:
        return IdTakenError, taken.void, taken.deleted
    except (LostClaimError, RecordsUnavailableError) as error:
        return type(error)


# The record.


def test_a_record_is_read_as_it_was_written(records: Store) -> None:
    request = ImageRequest(
        'Ein Käse 🧀, „zwei“ \U0001f9d1‍\U0001f680\n\t"3" \x00',
        "gpt-image-2",
        "b64_json",
        4,
        size="1024x1024",
        quality="high",
        style="vivid",
        user="ユーザー",
        background="opaque",
        moderation="low",
        output_format="webp",
        output_compression=0,
    )
    origin = Origin("order-1", "batch_a", 7)
    admitted = admit(request, caller="alice", base_url="https://x.example/prod/v1", now=NOW, origin=origin)
    generation = replace(admitted, status=Status.IN_PROGRESS, owner="first", lease_until=NOW + 60)
    assert records.get(created(records, generation).id) == generation


def test_all_that_becomes_known_is_read_back(records: Store) -> None:
    generation = claimed(records, n=2)
    answer = CallAnswer(
        (
            AnsweredImage("https://i.example/1?a=b&c=%20", "Ein „überarbeiteter“ Wunsch 🎈"),
            AnsweredImage(failure=FAILURE),
        ),
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
    first, second = generation.calls
    assert ended == replace(
        generation,
        status=Status.FAILED,
        calls=(replace(first, sent=1, answer=answer), replace(second, sent=3, refused=2)),
        stored={generation.image_ids[0]: IMAGE},
        failure=FAILURE,
        completed_at=NOW + 9.5,
    )
    assert records.get(generation.id) == ended


def test_each_image_that_is_missing_from_an_answer_is_a_call_of_its_own(records: Store) -> None:
    generation = created(records, new_generation(n=3, model="dall-e-2"))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    records.save_sending(generation.id, "me", 0, 1)
    missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 3")))
    answer = CallAnswer((missing, CAME, missing), {"size": "1024x1024"})
    assert records.save_answer(generation.id, 0, answer) == answer
    assert records.save_answer(generation.id, 0, CallAnswer((CAME, CAME, CAME))) == answer

    first, second, third = generation.image_ids
    extra = Call((first,), number=10, extra=True), Call((third,), number=12, extra=True)
    assert now_of(records, generation).calls == (Call((second,), 1, 0, ANSWER), *extra)

    records.save_sending(generation.id, "me", 10, 1)
    records.save_answer(generation.id, 10, ANSWER)
    records.save_sending(generation.id, "me", 12, 1)
    records.save_refusal(generation.id, 12, 1)
    after = now_of(records, generation)
    assert after.calls[1:] == (replace(extra[0], sent=1, answer=ANSWER), replace(extra[1], sent=1, refused=1))
    assert (after.extra_calls, after.repeated_calls, after.unreturned) == (2, 0, 0)


def _largest_answer(images: int) -> UpstreamAnswer:
    """The largest that the reader lets through, of each part."""

    def read(**fields: object) -> UpstreamAnswer:
        image = {name: fields.pop(name) for name in ("url", "revised_prompt") if name in fields}
        body = {"data": [{"url": "https://i.example/", **image}] * images, **fields}
        return read_answer(encode(body), images)

    def has_url(size: int) -> bool:
        try:
            read(url="https://i.example/" + "x" * size)
        except MoneySpentError:
            return False
        return True

    def largest(accepted: Callable[[int], bool]) -> int:
        return bisect(range(1, 20_000), False, key=lambda size: not accepted(size))

    detail_size, url_size = largest(lambda size: bool(read(size="x" * size).details)), largest(has_url)
    assert detail_size > 50
    assert url_size > 1_000
    tokens = dict.fromkeys(("text_tokens", "image_tokens"), 10**9)
    return read(
        url="https://i.example/" + "x" * url_size,
        revised_prompt="\U0001d518" * 32_000,
        usage=dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 10**9)
        | {"input_tokens_details": tokens, "output_tokens_details": tokens},
        **dict.fromkeys(("background", "output_format", "quality", "size"), "x" * detail_size),
    )


def _most_bytes(value: dict[str, Any]) -> int:
    """As DynamoDB counts, at most: a number has 38 digits, in 21 bytes."""
    return len(value["S"].encode()) if "S" in value else 21 * len(value.get("NS", ["1"]))


@pytest.mark.parametrize("table", ["moto"], indirect=True)
@pytest.mark.parametrize(("calls", "extra"), [(1, 0), (10, 0), (1, 9)], ids=["one", "ten", "one and extra ones"])
def test_the_largest_that_all_limits_allow_fits_into_a_record(table: Table, calls: int, extra: int) -> None:
    records, n, sendings = table.generations, MAX_IMAGES // calls, 20
    character = "\x01"  # which JSON writes in six bytes, the most
    users = dict.fromkeys(("user", "safety_identifier"), character * LONGEST_USER)
    body = {"model": "gpt-image-2", "prompt": character * 32_000, "n": MAX_IMAGES, **users}
    origin = Origin(character * MOST_CUSTOM_ID, "batch_AAAAAAAAAAAAAAAAAAAAAA", 10**9)
    request, base_url = read_image_fields(body, prompt_cap=32_000), f"https://{'x' * 250}/v1"
    generation = admit(request, caller="a" * 64, base_url=base_url, now=NOW, origin=origin)
    ids = generation.image_ids
    grouped = tuple(Call(ids[index * n : (index + 1) * n], number=index) for index in range(calls))
    created(records, replace(generation, calls=grouped))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)

    answer = _largest_answer(n - extra)
    came = tuple(AnsweredImage(str(image.source), image.revised_prompt) for image in answer.images)
    assert len(came) == n - extra
    whole = CallAnswer(came, answer.details, answer.usage)
    missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("The image model answered with 1 of 10 images.")))
    noted = replace(whole, images=came + (missing,) * extra)
    later = [MAX_IMAGES + place for place in range(1, extra + 1)]
    for number in (*range(calls), *later):
        records.save_answer(generation.id, number, noted if number < calls else whole)
        records.save_sending(generation.id, "me", number, sendings)
        records.save_refusal(generation.id, number, 1)
    for image_id in ids:
        records.save_image(generation.id, image_id, StoredImage("image/webp", 10**9))
    failure = Failure("X" * 50, character * 1_000, cause=Failure("X" * 50, character * 1_000))
    records.end(generation.id, "me", Status.FAILED, now=NOW, failure=failure)

    found = now_of(records, generation)
    assert [call.answer for call in found.calls] == [whole] * (calls + extra)
    assert (len(found.stored), found.failure) == (MAX_IMAGES, failure)
    (item,) = table.items()
    further_refusals = (calls + extra) * (sendings - 1) * 21
    assert sum(len(name) + _most_bytes(value) for name, value in item.items()) + further_refusals <= MOST_ITEM_BYTES


def test_parts_saved_side_by_side_are_all_kept(records: Store) -> None:
    generation = claimed(records, n=6)
    urls = [f"https://i.example/{index}" for index in range(6)]

    def save(index: int) -> None:
        records.save_sending(generation.id, "me", index, 1)
        records.save_refusal(generation.id, index % 3, index)
        records.save_answer(generation.id, index, CallAnswer((AnsweredImage(urls[index]),)))
        records.save_image(generation.id, generation.image_ids[index], StoredImage("image/png", index))

    at_once(6, save)
    found = now_of(records, generation)
    assert [(call.sent, call.refused) for call in found.calls] == [(1, 2)] * 3 + [(1, 0)] * 3
    assert [call.answer and call.answer.images[0].url for call in found.calls] == urls
    assert [found.stored[image_id].length for image_id in generation.image_ids] == list(range(6))


def test_what_is_not_there_is_none(records: Store) -> None:
    found = records.get(NOBODY), records.tombstone(NOBODY), attach(records, 1), records.newest("alice", 10)
    assert found == (None, None, None, [])


def test_an_id_is_given_once_and_the_same_record_that_is_written_again_stays_as_it_is(records: Store) -> None:
    generation = claimed(records)
    records.create(replace(generation, status=Status.QUEUED))
    assert outcome("create", records, replace(new_generation(), id=generation.id)) == (IdTakenError, False, False)
    assert records.get(generation.id) == generation


# Idempotency keys.


def test_a_key_belongs_to_the_first_with_its_body(records: Store) -> None:
    for generation_id, body in (("gen_a", "one"), ("gen_b", "two"), ("gen_a", "one")):
        assert hold(records, generation_id, body) == ("gen_a", "one")
    assert hold(records, "gen_b", caller="bob") == ("gen_b", "body")
    assert hold(records, "gen_c") == ("gen_a", "one")


def test_a_key_passes_from_the_generation_that_is_replaced_and_from_one_that_has_expired(records: Store) -> None:
    hold(records, "gen_a", "one")
    assert hold(records, "gen_b", "two", replacing="gen_x") == ("gen_a", "one")
    assert hold(records, "gen_b", "two", replacing="gen_a") == ("gen_b", "two")
    assert hold(records, "gen_c", "three", replacing="gen_a") == ("gen_b", "two")
    assert hold(records, "gen_c", at=NOW + 9, expired_before=NOW) == ("gen_b", "two")
    assert hold(records, "gen_c", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_c", "body")
    assert hold(records, "gen_d", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_c", "body")


@pytest.mark.parametrize("replacing", [None, "gen_before"])
def test_of_many_that_ask_for_one_key_at_once_one_has_it_and_all_hear_so(records: Store, replacing: str | None) -> None:
    if replacing:
        hold(records, replacing)
    heard = set(at_once(16, lambda index: hold(records, f"gen_{index}", f"body {index}", replacing=replacing)))
    ((holder, body),) = heard
    assert body == f"body {holder.removeprefix('gen_')}"
    assert hold(records, "gen_late") == (holder, body)


def test_nothing_of_a_key_is_in_the_table(table: Table) -> None:
    table.generations.hold_key("alice", "a-very-telling-key", "gen_a", "body", now=NOW, expired_before=NOW)
    (marker,) = table.items()
    assert "a-very-telling-key" not in json.dumps(marker)


# Retries that clients count.


def test_each_retry_comes_back_once_in_whatever_order(records: Store) -> None:
    for order in ((1, 2, 3), (3, 1, 2)):
        begin(records, "gen_a", fingerprint=f"{order}")
        assert [attach(records, attempt, body=f"{order}") for attempt in order] == ["gen_a"] * 3
        assert [attach(records, attempt, body=f"{order}") for attempt in (0, *order)] == [None] * 4


def test_two_identical_requests_stay_two_also_when_both_retry(records: Store) -> None:
    begin(records, "gen_later", at=NOW + 1)
    begin(records, "gen_first")
    for attempt in (2, 1):
        assert [attach(records, attempt) for _ in range(3)] == ["gen_later", "gen_first", None]


def test_what_a_retry_began_is_come_back_to_by_every_other_attempt(records: Store) -> None:
    begin(records, "gen_a", 1)
    assert [attach(records, attempt) for attempt in (1, 2, 2)] == [None, "gen_a", None]


def test_retries_at_once_share_out_the_generations(records: Store) -> None:
    ids = [f"gen_{index}" for index in range(5)]
    for index, generation_id in enumerate(ids):
        begin(records, generation_id, at=NOW + index)
    assert sorted(each for each in at_once(8, lambda _: attach(records, 1)) if each) == ids


def test_a_retry_comes_back_only_to_what_is_not_old_of_the_same_body_and_caller(records: Store) -> None:
    begin(records, "gen_old", at=NOW)
    begin(records, "gen_fresh", at=NOW + 1)
    begin(records, "gen_a", fingerprint="another")
    begin(records, "gen_b", caller="bob")
    assert [attach(records, 1, since=NOW) for _ in range(2)] == ["gen_fresh", None]


def test_a_retry_finds_its_generation_behind_a_page_of_others(table: Table) -> None:
    for index in range(5):
        begin(table.generations, f"gen_{index}", at=NOW + index)
    for item in table.items():  # a page is 1 MB
        table.client.put_item(TableName=table.name, Item={**item, "padding": {"S": "x" * 300_000}})
    assert "LastEvaluatedKey" in table.client.scan(TableName=table.name)
    found = [attach(table.generations, 1) for _ in range(6)]
    assert found == ["gen_4", "gen_3", "gen_2", "gen_1", "gen_0", None]


# Claims.


def test_a_lease_keeps_others_out_until_it_has_ended_and_then_all_that_is_known_is_taken_over(records: Store) -> None:
    generation = created(records)
    mine = replace(generation, status=Status.IN_PROGRESS, owner="me", lease_until=NOW + 60)
    for _ in range(2):
        assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) == mine
        for now in (NOW, NOW + 60):
            assert records.claim(generation.id, "other", now=now, lease_until=now + 60) is None
        assert records.get(generation.id) == mine
    records.renew(generation.id, "me", NOW + 120)
    assert records.get(generation.id) == replace(mine, lease_until=NOW + 120)
    for call in ("save_sending", "save_answer", "save_image"):
        CALLS[call](records, generation)
    assert records.claim(generation.id, "other", now=NOW + 120, lease_until=NOW + 200) is None
    known = (Call(generation.calls[0].image_ids, 1, answer=ANSWER),)
    taken = replace(mine, owner="other", lease_until=NOW + 200, calls=known, stored={generation.image_ids[0]: IMAGE})
    assert records.claim(generation.id, "other", now=NOW + 120.001, lease_until=NOW + 200) == taken
    assert outcome("renew", records, generation) is LostClaimError


def test_of_many_that_claim_at_once_one_gets_it(records: Store) -> None:
    generation = created(records)
    claims = at_once(8, lambda index: records.claim(generation.id, str(index), now=NOW, lease_until=NOW + 60))
    assert sum(claim is not None for claim in claims) == 1


def test_a_lease_that_its_owner_ends_is_free_at_once(records: Store) -> None:
    generation = claimed(records)
    records.let_go(generation.id, "other")
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is None
    for _ in range(2):
        records.let_go(generation.id, "me")
    assert records.get(generation.id) == replace(generation, lease_until=0.0)
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is not None
    records.let_go(generation.id, "me")
    assert now_of(records, generation).lease_until == NOW + 60


def test_an_owner_whose_lease_is_gone_is_still_the_owner_while_nobody_takes_over(records: Store) -> None:
    generation = claimed(records, lease_until=NOW - 60)
    for call in ("save_sending", "renew", "end"):
        CALLS[call](records, generation)
    assert now_of(records, generation).status is Status.COMPLETED


def test_an_end_may_be_written_twice_but_not_changed(records: Store) -> None:
    generation = claimed(records)
    for _ in range(2):
        ended = records.end(generation.id, "me", Status.COMPLETED, now=NOW)
        assert (ended.status, ended.failure, ended.completed_at) == (Status.COMPLETED, None, NOW)
    assert outcome("end as failed", records, generation) is LostClaimError
    assert records.get(generation.id) == ended


def test_the_lease_of_a_cancelled_generation_is_renewed_by_its_owner_while_its_call_runs(records: Store) -> None:
    generation = in_state(records, "cancelled")
    assert [outcome(call, records, generation) for call in ("renew", "renew by another")] == [None, LostClaimError]
    assert now_of(records, generation) == replace(generation, lease_until=NOW + 500)


# States.

NOT_MINE = {*STATES} - {"mine"}
# A cancelled generation's call may still run, and an end that is written again is the same end.
REFUSED: Sequence[tuple[str, object, set[str]]] = (
    ("renew", LostClaimError, NOT_MINE - {"cancelled"}),
    ("save_sending", LostClaimError, NOT_MINE),
    ("end", LostClaimError, NOT_MINE - {"completed"}),
    *((call, LostClaimError, {*GONE}) for call in MONEY),
    ("claim late", None, {*ENDED, *GONE}),
    ("claim late by another", None, {*ENDED, *GONE}),
    ("let_go", None, {*GONE}),
    ("mark_announced", None, {*ACTIVE, *GONE}),
    ("note_returned", False, {*GONE}),
    ("cancel", None, {"completed", "failed", "announced", *GONE}),
    ("requeue", None, {*STATES} - {"announced"}),
    ("bury", LostClaimError, {"absent", *ACTIVE}),
    ("bury as if ended", LostClaimError, {"absent", *ACTIVE}),
)


@pytest.mark.parametrize("state", STATES)
def test_what_a_state_does_not_allow_has_no_effect(records: Store, state: str) -> None:
    generation = in_state(records, state)
    before = records.get(generation.id), records.tombstone(generation.id)
    for call, expected, states in REFUSED:
        if state in states:
            assert (call, outcome(call, records, generation)) == (call, expected)
            assert (call, (records.get(generation.id), records.tombstone(generation.id))) == (call, before)


@pytest.mark.parametrize("state", [*ACTIVE, *ENDED])
def test_a_record_takes_in_every_state_what_was_paid_for_and_returned_and_is_never_void(
    records: Store, state: str
) -> None:
    before = in_state(records, state)
    for money in (*MONEY, *MONEY):
        CALLS[money](records, before)
    call = replace(before.calls[0], refused=1, answer=ANSWER)
    paid = replace(before, calls=(call,), stored={before.image_ids[0]: IMAGE})
    assert records.get(before.id) == paid
    assert [records.note_returned(before, 2) for _ in range(2)] == [True, False]
    assert records.get(before.id) == replace(paid, returned=2)
    assert records.note_returned(replace(before, returned=2), 1)
    assert records.void(before.id, now=NOW) == records.get(before.id) == replace(paid, returned=3)


def test_of_many_that_note_the_same_return_at_once_one_does(records: Store) -> None:
    generation = in_state(records, "failed")
    assert sorted(at_once(8, lambda _: records.note_returned(generation, 2))) == [False] * 7 + [True]
    assert now_of(records, generation).returned == 2


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_an_end_is_announced_but_not_another(records: Store, state: str) -> None:
    ended = in_state(records, state)
    records.mark_announced(replace(ended, completed_at=NOW + 77))
    assert records.get(ended.id) == ended
    records.mark_announced(ended)
    assert records.get(ended.id) == replace(ended, announced=True)


@pytest.mark.parametrize("state", ACTIVE)
def test_what_has_not_ended_is_cancelled_and_cancelled_again_the_same(records: Store, state: str) -> None:
    before = in_state(records, state)
    expected = replace(before, status=Status.CANCELLED, completed_at=NOW + 1)
    for now in (NOW + 1, NOW + 2):
        assert records.cancel(before.id, now=now) == expected
        assert records.get(before.id) == expected


def test_what_failed_waits_again_with_all_that_is_known(records: Store) -> None:
    generation = claimed(records, n=3)
    for index, sent in enumerate((1, 2)):
        records.save_sending(generation.id, "me", index, sent)
    records.save_answer(generation.id, 0, ANSWER)
    records.save_refusal(generation.id, 1, 2)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    first, second, third = generation.calls
    for retries in (1, 2):
        failed = records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
        records.note_returned(failed, 1)
        records.mark_announced(failed)
        requeued = records.requeue(failed, now=NOW + retries)
        assert requeued == replace(
            generation,
            status=Status.QUEUED,
            owner=None,
            lease_until=0.0,
            calls=(replace(first, sent=1, answer=ANSWER), replace(second, sent=2, refused=1), third),
            stored={generation.image_ids[0]: IMAGE},
            retries=retries,
            reserved_at=NOW + retries,
        )
        assert records.get(generation.id) == requeued
        assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) is not None


def test_a_failure_lets_a_generation_wait_again_once(records: Store) -> None:
    failed = in_state(records, "announced")
    requeued = [each for each in at_once(8, lambda _: records.requeue(failed, now=NOW + 5)) if each]
    assert requeued == [records.get(failed.id)]
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    again = records.end(failed.id, "me", Status.FAILED, now=NOW + 9, failure=FAILURE)
    records.mark_announced(again)
    assert records.requeue(failed, now=NOW + 10) is None
    assert records.requeue(again, now=NOW + 10) is not None


@pytest.mark.parametrize("state", ENDED)
def test_what_is_buried_is_gone_and_stays_gone_with_a_tombstone(records: Store, state: str) -> None:
    generation = in_state(records, state)
    assert records.tombstone(generation.id) is None
    for at in (NOW + 20, NOW + 30):
        tombstone = records.bury(generation, now=at)
        assert tombstone == Tombstone(generation.id, "alice", generation.image_ids, at)
        assert (records.tombstone(generation.id), records.get(generation.id)) == (tombstone, None)
        for call in ("create", "void"):
            assert outcome(call, records, generation) == (IdTakenError, True, True)
    assert records.newest("alice", 10) == []


def test_what_has_ended_otherwise_meanwhile_is_not_buried(records: Store) -> None:
    failed = in_state(records, "announced")
    records.requeue(failed, now=NOW)
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    ended = records.end(failed.id, "me", Status.COMPLETED, now=NOW + 9)
    assert outcome("bury", records, failed) is LostClaimError
    assert records.get(failed.id) == ended


def test_what_is_void_was_never_written_and_never_will_be(records: Store) -> None:
    generation = new_generation()
    for _ in range(2):
        assert records.void(generation.id, now=NOW) is None
        assert outcome("create", records, generation) == (IdTakenError, True, False)
    assert (records.get(generation.id), records.tombstone(generation.id)) == (None, None)
    assert records.newest("alice", 10) == []


def test_of_a_record_and_its_voiding_at_once_one_comes_first(records: Store) -> None:
    def race(generation: Generation) -> list[object]:
        return at_once(2, lambda index: outcome(("create", "void")[index], records, generation))

    for generation in [new_generation() for _ in range(3)]:
        written, voided = race(generation)
        assert (written, voided) in [(None, generation), ((IdTakenError, True, False), None)]
        assert records.get(generation.id) == voided


# Lists.


def pages(records: Store, limit: int) -> list[Sequence[Generation]]:
    pages = [records.newest("alice", limit)]
    while pages[-1]:
        pages.append(records.newest("alice", limit, after=pages[-1][-1].id))
    return pages


def test_a_list_goes_on_after_an_id_with_the_newest_first(records: Store) -> None:
    by_age = [created(records, at=NOW + at) for at in (3, 1, 2, 0.5, 0)]
    newest_first = sorted(by_age, key=lambda generation: -generation.created_at)
    assert records.newest("alice", 10) == newest_first
    assert pages(records, 2) == [newest_first[:2], newest_first[2:4], newest_first[4:], []]


def test_generations_of_the_very_same_moment_are_all_listed(records: Store) -> None:
    same = [created(records).id for _ in range(5)]
    assert sorted(each.id for page in pages(records, 2) for each in page) == sorted(same)


def test_a_list_shows_one_status_also_behind_pages_of_others(records: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.aws.items._PAGE", 2)
    newest_first = [created(records, at=NOW - at).id for at in range(8)]
    cancelled = [newest_first[1], newest_first[7]]
    queued = [each for each in newest_first if each not in cancelled]
    for generation_id in cancelled:
        records.cancel(generation_id, now=NOW)
    assert [each.id for each in records.newest("alice", 10, status=Status.CANCELLED)] == cancelled
    assert [each.id for each in records.newest("alice", 1, status=Status.CANCELLED, after=cancelled[0])] == cancelled[
        1:
    ]
    assert [each.id for each in records.newest("alice", 2, status=Status.QUEUED)] == queued[:2]
    assert [each.id for each in records.newest("alice", 9, status=Status.QUEUED, after=queued[0])] == queued[1:]
    assert records.newest("alice", 10, status=Status.FAILED) == []


def test_a_list_never_shows_anothers(records: Store) -> None:
    own, others = created(records), created(records, new_generation(caller="bob", at=NOW + 1))
    assert records.newest("alice", 10) == [own]
    assert records.newest("alice", 10, after=others.id) == []
    assert records.newest("alic", 10) == []


def test_a_list_never_shows_what_is_buried(records: Store) -> None:
    older, gone, newer = (created(records, at=NOW + at) for at in range(3))
    records.cancel(gone.id, now=NOW)
    records.bury(now_of(records, gone), now=NOW)
    assert records.newest("alice", 10) == [newer, older]
    assert records.newest("alice", 10, after=gone.id) == []
    assert records.newest("alice", 10, after=NOBODY) == []


def test_a_list_shows_records_as_they_are_and_not_as_the_index_has_them(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = table.generations
    changed, gone, ended = (created(records, at=NOW + at) for at in range(3))
    stale = table.client.query(
        TableName=table.name,
        IndexName="by-caller",
        KeyConditionExpression="caller = :caller",
        ExpressionAttributeValues={":caller": {"S": "alice"}},
    )
    claimed = records.claim(changed.id, "me", now=NOW, lease_until=NOW + 60)
    for generation in (gone, ended):
        cancelled = records.cancel(generation.id, now=NOW)
    records.bury(now_of(records, gone), now=NOW)
    monkeypatch.setattr(table.client, "query", lambda **_: stale)
    assert records.newest("alice", 10) == [claimed, cancelled]
    assert records.newest("alice", 10, status=Status.IN_PROGRESS) == [claimed]
    assert records.newest("alice", 10, status=Status.QUEUED) == []


def test_what_an_answer_leaves_out_is_asked_for_again_after_a_pause(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DynamoDB leaves out what is beyond 16 MB, or beyond the table's throughput at that moment."""
    newest_first = [created(table.generations, at=NOW - at).id for at in range(8)]
    ask, pauses = table.client.batch_get_item, list[float]()

    def first_key_only(*, RequestItems: Any) -> Any:  # noqa: N803
        first, *others = RequestItems[table.name]["Keys"]
        answer = ask(RequestItems={table.name: RequestItems[table.name] | {"Keys": [first]}})
        return answer | {"UnprocessedKeys": {table.name: {"Keys": others, "ConsistentRead": True}} if others else {}}

    monkeypatch.setattr(table.client, "batch_get_item", first_key_only)
    monkeypatch.setattr("imagegen.aws.items.time", SimpleNamespace(sleep=pauses.append))
    assert [each.id for each in table.generations.newest("alice", 10)] == newest_first
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_work_on_a_generation_is_not_written_to_the_index(table: Table) -> None:
    records = table.generations
    generation = claimed(records)
    before = table.items(IndexName="by-caller")
    for call in ("renew", "save_sending", *MONEY, "note_returned", "let_go", "claim late by another"):
        held = records.get(generation.id)
        CALLS[call](records, generation)
        assert records.get(generation.id) != held
        assert table.items(IndexName="by-caller") == before


# What cannot be asked, and what expires.


@pytest.mark.parametrize("why", ["fake", "no client", "closed port", *JUDGES])
def test_a_store_that_cannot_be_asked_is_unavailable(
    connect: Connect, request: pytest.FixtureRequest, why: str
) -> None:
    records: Store
    generation = new_generation()
    if why == "fake":
        records = fake = FakeGenerationStore()
        created(records, generation)
        fake.failures += ["before"] * len(CALLS)
    elif why == "no client":
        records = DynamoGenerations(Mock(side_effect=OSError("no credentials")), "table", retention_seconds=1)
    else:  # a judge refuses, since there is no such table
        url = closed_url() if why == "closed port" else request.getfixturevalue(f"{why}_url")
        records = Table(connect("dynamodb", url), "no-such-table").generations
    outcomes = {call: outcome(call, records, generation) for call in CALLS}
    assert outcomes == dict.fromkeys(CALLS, RecordsUnavailableError)
    if why == "fake":
        assert [records.get(generation.id), *records.newest("alice", 10)] == [generation, generation]


def test_every_method_is_called() -> None:
    assert {call.partition(" ")[0] for call in CALLS} == {each for each in vars(Store) if each[0] != "_"}


def test_the_fake_fails_after_its_effect() -> None:
    records = FakeGenerationStore()
    generation = created(records)
    records.failures.append("after")
    assert outcome("cancel", records, generation) is RecordsUnavailableError
    assert now_of(records, generation).status is Status.CANCELLED


def test_all_that_is_written_expires(table: Table) -> None:
    kept, gone, void = (in_state(table.generations, state) for state in ("queued", "buried", "void"))
    hold(table.generations, kept.id)
    begin(table.generations, kept.id)
    kinds = {kept.id: "record", gone.id: "tombstone", void.id: "void"}
    expiries = {
        kinds.get(item["pk"]["S"], item["pk"]["S"].partition("#")[0]): int(item["expires_at"]["N"]) - int(NOW)
        for item in table.items()
    }
    marks = {"tombstone": 15 * DAY, "void": 15 * DAY, "key": DAY, "retry": DAY}
    assert expiries == marks | {"record": RETENTION_SECONDS}
