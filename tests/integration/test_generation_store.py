"""Generations and idempotency keys: the fakes and the real stores, on each emulator, pass one contract."""

import dataclasses
import json
import threading
from bisect import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.json import encode
from msgspec.structs import replace

from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.idempotency_keys import DynamoIdempotencyKeys
from imagegen.domain.errors import MoneySpentError, RecordsUnavailableError, UpstreamTooFewImagesError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    IdTakenError,
    LostClaimError,
    Origin,
    Status,
    StoredImage,
    Supply,
    Tombstone,
    UpstreamAttempt,
    UpstreamCall,
)
from imagegen.domain.images import ImageAction, ImageRequest, ParentTask, UpstreamImages
from imagegen.domain.inputs import MOST_SIDE, InputImage
from imagegen.domain.models import LONGEST_USER, MAX_IMAGES
from imagegen.domain.money import Spending
from imagegen.domain.redaction import MOST_CHARACTERS
from imagegen.ports import GenerationStore as Store
from imagegen.ports import IdempotencyKeys as Keys
from imagegen.providers.openai.answers import read_answer
from imagegen.usecases.manage_generation import MOST_RETRIES
from imagegen.usecases.send_upstream_call import MOST_MESSAGE, MOST_SENT
from imagegen.wire.request_events import MOST_CUSTOM_ID
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.idempotency_keys import FakeIdempotencyKeys
from tests.support.models import MODELS, admitted, read_request
from tests.support.stores import JUDGES, NOW, RETENTION_SECONDS, Connect, Table, closed_url, new_generation

DAY = 24 * 3600
MOST_ITEM_BYTES = 400 * 1024  # DynamoDB's
# The longest quote of an upstream in a message, in the printable characters that take the most bytes.
QUOTED = f"The image model refused the request: {MOST_CHARACTERS * chr(0x1D518)}"
IMAGE = StoredImage("image/png", 1234)
ANSWERED = AnsweredImage("https://i.example/1", "a large cat")
ANSWER = CallAnswer((ANSWERED,), {"size": "1024x1024"})
ATTEMPT, SECOND_ATTEMPT = UpstreamAttempt("default", NOW + 0.25), UpstreamAttempt("ünother", NOW + 0.5)
REFUSAL = Failure("rate_limit_exceeded", "Später: 後で.", money_spent=False, retry_after=2.5)
CAUSE = Failure("image_truncated", "y", money_spent=True, retry=False, interrupted=True)
FAILURE = Failure(
    "partial_generation", "Es zerbrach: 壊れた.", money_spent=True, param="prompt", retry=False, cause=CAUSE
)
SPENDING, SETTLED = Spending(300, 300), Spending(300, 200, changes=1)
MISSING = "gen_AAAAAAAAAAAAAAAAAAAAAA"
INPUTS = (
    InputImage("image", "inp_AAAAAAAAAAAAAAAAAAAAAA", "0f" * 32, "image/png", 1234, 64, 32),
    InputImage("mask", "upl_AAAAAAAAAAAAAAAAAAAAAA", "f0" * 32, "image/webp", 99, 64, 32, has_alpha=True),
)
PARENT = ParentTask("reseller", "täsk 1", "account 1", (ImageAction("upscale_1", "U1", "MJ::JOB"), ImageAction("x")))


@pytest.fixture
def records(judged: Table | None) -> Store:
    return judged.generations if judged else FakeGenerationStore()


@pytest.fixture
def keys(judged: Table | None) -> Keys:
    return judged.keys if judged else FakeIdempotencyKeys()


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


def concurrently(number: int, call: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(number)

    def wait_and_call(index: int) -> Any:
        barrier.wait(60)
        return call(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_call, range(number)))


def hold(keys: Keys, generation_id: str, body: str = "body", caller: str = "alice", **how: Any) -> tuple[str, str]:
    times = {"now": how.pop("at", NOW), "expired_before": NOW - 1000}
    holder = keys.hold(caller, "k ~", generation_id, body, **times | how)
    return holder.generation_id, holder.fingerprint


def begin(keys: Keys, generation_id: str, retry: int = 0, *, at: float = NOW, **whose: str) -> None:
    whose = {"caller": "alice", "fingerprint": "body", **whose}
    keys.mark(generation_id=generation_id, retry=retry, now=at, **whose)


def attach(keys: Keys, retry: int, *, body: str = "body", since: float = NOW - 1000) -> str | None:
    return keys.attach("alice", body, retry, since=since)


KEY_CALLS: dict[str, Callable[[Keys], object]] = {
    "hold": lambda k: hold(k, MISSING),
    "find": lambda k: k.find("alice", "k ~", expired_before=NOW),
    "mark": lambda k: begin(k, MISSING),
    "attach": lambda k: attach(k, 1),
}
# Every method by its name, with variants.
CALLS: dict[str, Callable[[Store, Generation], object]] = {
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
    "release": lambda s, g: s.release(g.id, "me"),
    "await_poll": lambda s, g: s.await_poll(g.id, "me", 1),
    "await_poll by another": lambda s, g: s.await_poll(g.id, "other", 1),
    "save_attempt": lambda s, g: s.save_attempt(g.id, "me", 0, 1, ATTEMPT),
    "save_task": lambda s, g: s.save_task(g.id, 0, 1, "täsk 1"),
    "save_failure": lambda s, g: s.save_failure(g.id, 0, 1, REFUSAL, of_task=True),
    "save_failure of another kind": lambda s, g: s.save_failure(g.id, 0, 1, FAILURE, of_task=True),
    "save_answer": lambda s, g: s.save_answer(g.id, 0, ANSWER),
    "save_image": lambda s, g: s.save_image(g.id, g.image_ids[0], IMAGE),
    "end": lambda s, g: s.end(g.id, "me", Status.COMPLETED, now=NOW),
    "end as failed": lambda s, g: s.end(g.id, "me", Status.FAILED, now=NOW, failure=FAILURE),
    "mark_published": lambda s, g: s.mark_published(g),
    "cancel": lambda s, g: s.cancel(g.id, now=NOW),
    "cancel_unbegun": lambda s, g: s.cancel_unbegun(g, REFUSAL, now=NOW),
    "cancel_unbegun late": lambda s, g: s.cancel_unbegun(g, REFUSAL, now=NOW + 9999),
    "requeue": lambda s, g: s.requeue(g, now=NOW + 5),
    "void": lambda s, g: s.void(g.id, now=NOW),
    "note_returned": lambda s, g: s.note_returned(g, 1),
    "note_spending": lambda s, g: s.note_spending(g, SETTLED),
    "bury": lambda s, g: s.bury(g, now=NOW),
    "bury as if ended": lambda s, g: s.bury(replace(g, completed_at=NOW), now=NOW),
    "tombstone": lambda s, g: s.tombstone(g.id),
}
ATTEMPT_RESULTS = ("save_task", "save_failure")
PAID_RESULTS = (*ATTEMPT_RESULTS, "save_answer", "save_image")
SENT = ("create", "claim", "save_attempt")
STATES: dict[str, Sequence[str]] = {
    "absent": (),
    "void": ("void",),
    "queued": ("create",),
    "mine": SENT,
    "another's": (*SENT, "claim late by another"),
    "polled": (*SENT, "save_task", "await_poll"),
    "requeued": (*SENT, "end as failed", "mark_published", "requeue"),
    "completed": (*SENT, "end"),
    "failed": (*SENT, "end as failed"),
    "published": (*SENT, "end as failed", "mark_published"),
    "cancelled": (*SENT, "cancel"),
    "cancelled task": (*SENT, "save_task", "cancel"),
    "cancelled while polled": (*SENT, "save_task", "await_poll", "cancel"),
    "buried": (*SENT, "end", "bury"),
}
ACTIVE, ENDED, GONE = list(STATES)[2:7], list(STATES)[7:13], ["absent", "void", "buried"]
CANCELLED = {"cancelled", "cancelled task", "cancelled while polled"}


def in_state(records: Store, state: str) -> Generation:
    generation = replace(new_generation(), spending=SPENDING)
    for call in STATES[state]:
        CALLS[call](records, generation)
        generation = records.get(generation.id) or generation
    return generation


def outcome(call: str, records: Store, generation: Generation) -> object:
    return outcome_of(lambda: CALLS[call](records, generation))


def outcome_of(call: Callable[[], object]) -> object:
    try:
        return call()
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
        {"size": "1024x1024", "quality": "high", "user": "ユーザー", "output_format": "webp", "output_compression": 0},
    )
    origin = Origin("order-1", "batch_a", 7)
    begun = admitted(request, caller="alice", base_url="https://x.example/prod/v1", now=NOW, origin=origin)
    generation = replace(begun, status=Status.IN_PROGRESS, owner="first", lease_until=NOW + 60)
    assert records.get(created(records, generation).id) == generation


def edit(**fields: Any) -> Generation:
    request = ImageRequest("a hat", "gpt-image-1", "url", operation="edit", inputs=INPUTS)
    return admitted(request, caller="alice", base_url="https://x.example/v1", now=NOW, **fields)


def test_a_record_has_its_input_images_and_the_task_that_made_them(records: Store) -> None:
    for generation in (edit(), edit(parent=PARENT)):
        assert records.get(created(records, generation).id) == generation


def test_every_stored_part_is_read_back(records: Store) -> None:
    generation = claimed(records, n=2)
    answer = CallAnswer(
        (
            AnsweredImage("https://i.example/1?a=b&c=%20", "Ein „überarbeiteter“ Wunsch 🎈"),
            AnsweredImage(failure=FAILURE),
        ),
        {"size": "1024x1024", "quality": "hd"},
        {"input_tokens": 7, "input_tokens_details": {"text_tokens": 7, "image_tokens": 0}, "total_tokens": 1.5},
    )
    records.save_attempt(generation.id, "me", 0, 1, ATTEMPT)
    records.save_task(generation.id, 0, 1, "a task / 仕事")
    records.save_answer(generation.id, 0, answer)
    for number, failure in enumerate((REFUSAL, FAILURE), 1):
        records.save_attempt(generation.id, "me", 1, number, ATTEMPT)
        records.save_failure(generation.id, 1, number, failure)
    records.save_attempt(generation.id, "me", 1, 3, SECOND_ATTEMPT)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    ended = records.end(generation.id, "me", Status.FAILED, now=NOW + 9.5, failure=FAILURE)
    first, second = generation.calls
    failed = (replace(ATTEMPT, failure=REFUSAL), replace(ATTEMPT, failure=FAILURE))
    assert ended == replace(
        generation,
        status=Status.FAILED,
        calls=(
            replace(first, attempts=(replace(ATTEMPT, task_id="a task / 仕事"),), answer=answer),
            replace(second, attempts=(*failed, SECOND_ATTEMPT)),
        ),
        stored={generation.image_ids[0]: IMAGE},
        failure=FAILURE,
        completed_at=NOW + 9.5,
    )
    assert records.get(generation.id) == ended


def test_an_attempt_whose_task_was_found_fails_only_with_its_task(records: Store) -> None:
    """Its sender, which has lost its claim, notes its own failure late: the task runs nevertheless."""
    generation = created(records, new_generation())
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    records.save_attempt(generation.id, "me", 0, 1, ATTEMPT)
    records.save_task(generation.id, 0, 1, "task")
    for of_task, failure in ((False, None), (True, REFUSAL)):
        records.save_failure(generation.id, 0, 1, REFUSAL, of_task=of_task)
        found = records.get(generation.id)
        assert found
        assert found.calls[0].attempts == (replace(ATTEMPT, task_id="task", failure=failure),)


def test_each_image_missing_from_an_answer_gets_its_own_call(records: Store) -> None:
    generation = created(records, new_generation(n=3, model="dall-e-2"))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)
    records.save_attempt(generation.id, "me", 0, 1, ATTEMPT)
    missing = AnsweredImage(failure=failure_of(UpstreamTooFewImagesError("1 of 3")))
    answer = CallAnswer((missing, ANSWERED, missing), {"size": "1024x1024"})
    assert records.save_answer(generation.id, 0, answer) == answer
    assert records.save_answer(generation.id, 0, CallAnswer((ANSWERED, ANSWERED, ANSWERED))) == answer

    first, second, third = generation.image_ids
    extra = UpstreamCall((first,), number=10, extra=True), UpstreamCall((third,), number=12, extra=True)
    assert now_of(records, generation).calls == (UpstreamCall((second,), (ATTEMPT,), ANSWER), *extra)

    records.save_attempt(generation.id, "me", 10, 1, ATTEMPT)
    records.save_answer(generation.id, 10, ANSWER)
    records.save_attempt(generation.id, "me", 12, 1, ATTEMPT)
    records.save_failure(generation.id, 12, 1, REFUSAL)
    after = now_of(records, generation)
    refused = (replace(ATTEMPT, failure=REFUSAL),)
    assert after.calls[1:] == (
        replace(extra[0], attempts=(ATTEMPT,), answer=ANSWER),
        replace(extra[1], attempts=refused),
    )
    assert (after.extra_calls, after.repeated_calls, after.unreturned) == (2, 0, 0)


def _largest_answer(images: int) -> UpstreamImages:
    """The largest value of each field that the reader accepts."""

    def read(**fields: object) -> UpstreamImages:
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
    """The most that DynamoDB counts: a number has up to 38 digits, in 21 bytes."""
    return len(value["S"].encode()) if "S" in value else 21


@pytest.mark.parametrize("table", ["moto"], indirect=True)
@pytest.mark.parametrize(("calls", "extra"), [(1, 0), (10, 0), (1, 9)], ids=["one", "ten", "one and extra ones"])
@pytest.mark.parametrize(
    ("attempts", "message"),
    [(0, ""), (MOST_SENT + MOST_RETRIES, QUOTED[:MOST_MESSAGE])],
    ids=["no failures", "all failures"],
)
@pytest.mark.parametrize(
    ("model", "own", "of_image"),
    [
        ("gpt-image-2", {}, {}),
        (
            "ideogram-v3",
            {
                "negative_prompt": "\x01" * 2_000,
                "style_codes": ["0123abcd"] * 10,
                "color_palette": {"members": [{"color_hex": "#012345", "color_weight": 0.12345678901234567}] * 16},
            },
            {"seed": 2**32 - 1, "resolution": "x" * 98, "style_type": "x" * 98},
        ),
    ],
    ids=["gpt-image-2", "ideogram-v3"],
)
def test_the_largest_record_fits_an_item(
    table: Table,
    calls: int,
    extra: int,
    attempts: int,
    message: str,
    model: str,
    own: dict[str, Any],
    of_image: dict[str, str | int],
) -> None:
    """Each call has the maximum of failed attempts, with all retries of an operator."""
    records, n = table.generations, MAX_IMAGES // calls
    character = "\x01"  # JSON needs six bytes for it, the most
    users = dict.fromkeys(("user", "safety_identifier"), character * LONGEST_USER)
    body = {"model": model, "prompt": character * 32_000, "n": MAX_IMAGES, **users, **own}
    origin = Origin(character * MOST_CUSTOM_ID, "batch_AAAAAAAAAAAAAAAAAAAAAA", 10**9)
    rules = MODELS[model].inputs["edit"]
    roles = ["image"] * rules.most + ["mask"] * rules.mask
    roles += [name for name, most in rules.references.items() for _ in range(most)]
    large = (10**9, MOST_SIDE, MOST_SIDE, True)
    inputs = tuple(InputImage(role, f"inp_{'x' * 22}", "0f" * 32, "image/webp", *large) for role in roles)
    request = dataclasses.replace(read_request(32_000).fields(body), operation="edit", inputs=inputs)
    base_url = f"https://{'x' * 250}/v1"
    generation = admitted(request, caller="a" * 64, base_url=base_url, now=NOW, origin=origin)
    ids = generation.image_ids
    grouped = tuple(UpstreamCall(ids[index * n : (index + 1) * n], number=index) for index in range(calls))
    created(records, replace(generation, calls=grouped))
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60)

    answer = _largest_answer(n - extra)
    answered = tuple(
        AnsweredImage(str(image.source), image.revised_prompt, details=of_image) for image in answer.images
    )
    assert len(answered) == n - extra
    whole = CallAnswer(answered, answer.details, answer.usage)
    missing = AnsweredImage(
        failure=failure_of(UpstreamTooFewImagesError("The image model answered with 1 of 10 images."))
    )
    incomplete = replace(whole, images=answered + (missing,) * extra)
    refusal = Failure("x" * 30, message, money_spent=False, param="x" * 20, retry=False, retry_after=NOW)
    later = [MAX_IMAGES + place for place in range(1, extra + 1)]
    for number in (*range(calls), *later):
        records.save_answer(generation.id, number, incomplete if number < calls else whole)
        records.save_attempt(generation.id, "me", number, 1, UpstreamAttempt("u" * 32, NOW))
        records.save_task(generation.id, number, 1, "t" * 64)
        records.save_failure(generation.id, number, 1, refusal)
    for image_id in ids:
        records.save_image(generation.id, image_id, StoredImage("image/webp", 10**9))
    failure = replace(refusal, cause=refusal)
    records.end(generation.id, "me", Status.FAILED, now=NOW, failure=failure)

    found = now_of(records, generation)
    assert [call.answer for call in found.calls] == [whole] * (calls + extra)
    assert (len(found.stored), found.failure) == (MAX_IMAGES, failure)
    (item,) = table.items()
    sizes = {name: len(name) + _most_bytes(value) for name, value in item.items()}
    of_attempts = sum(1 + size for name, size in sizes.items() if name.startswith(("attempt_", "task_", "failure_")))
    assert sum(sizes.values()) + (attempts - 1) * of_attempts <= MOST_ITEM_BYTES


def test_parts_saved_concurrently_are_all_kept(records: Store) -> None:
    generation = claimed(records, n=6)
    urls = [f"https://i.example/{index}" for index in range(6)]

    for call, number in ((call, number) for call in range(3) for number in (1, 2)):
        records.save_attempt(generation.id, "me", call, number, ATTEMPT)

    def save(index: int) -> None:
        if index > 2:
            records.save_attempt(generation.id, "me", index, 1, SECOND_ATTEMPT)
        records.save_task(generation.id, index % 3, 1 + index // 3, f"task {index}")
        records.save_failure(generation.id, (index + 1) % 3, 1 + index // 3, REFUSAL, of_task=True)
        records.save_answer(generation.id, index, CallAnswer((AnsweredImage(urls[index]),)))
        records.save_image(generation.id, generation.image_ids[index], StoredImage("image/png", index))

    concurrently(6, save)
    found = now_of(records, generation)
    tasks = [[attempt.task_id for attempt in call.attempts] for call in found.calls]
    assert tasks == [["task 0", "task 3"], ["task 1", "task 4"], ["task 2", "task 5"], [None], [None], [None]]
    assert [(call.sent, call.refused) for call in found.calls] == [(2, 2)] * 3 + [(1, 0)] * 3
    assert [call.answer and call.answer.images[0].url for call in found.calls] == urls
    assert [found.stored[image_id].length for image_id in generation.image_ids] == list(range(6))


def test_a_missing_record_is_none(records: Store) -> None:
    assert (records.get(MISSING), records.tombstone(MISSING), records.newest("alice", 10)) == (None, None, [])


def test_an_id_is_given_once_and_a_repeated_write_changes_nothing(records: Store) -> None:
    generation = claimed(records)
    records.create(replace(generation, status=Status.QUEUED))
    assert outcome("create", records, replace(new_generation(), id=generation.id)) == (IdTakenError, False, False)
    assert records.get(generation.id) == generation


# Idempotency keys.


def test_a_key_belongs_to_its_first_holder(keys: Keys) -> None:
    for generation_id, body in (("gen_a", "one"), ("gen_b", "two"), ("gen_a", "one")):
        assert hold(keys, generation_id, body) == ("gen_a", "one")
    assert hold(keys, "gen_b", caller="bob") == ("gen_b", "body")
    assert hold(keys, "gen_c") == ("gen_a", "one")


def test_a_replaced_or_expired_generation_loses_its_key(keys: Keys) -> None:
    hold(keys, "gen_a", "one")
    assert hold(keys, "gen_b", "two", replacing="gen_x") == ("gen_a", "one")
    assert hold(keys, "gen_b", "two", replacing="gen_a") == ("gen_b", "two")
    assert hold(keys, "gen_c", "three", replacing="gen_a") == ("gen_b", "two")
    assert hold(keys, "gen_c", at=NOW + 9, expired_before=NOW) == ("gen_b", "two")
    assert hold(keys, "gen_c", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_c", "body")
    assert hold(keys, "gen_d", at=NOW + 9, expired_before=NOW + 0.001) == ("gen_c", "body")


def test_the_holder_of_a_key_is_found_until_it_expires(keys: Keys) -> None:
    hold(keys, "gen_a")
    assert keys.find("alice", "k ~", expired_before=NOW) == "gen_a"
    assert keys.find("alice", "k ~", expired_before=NOW + 0.001) is None
    assert keys.find("alice", "k", expired_before=NOW) is None
    assert keys.find("bob", "k ~", expired_before=NOW) is None
    hold(keys, "gen_b", replacing="gen_a")
    assert keys.find("alice", "k ~", expired_before=NOW) == "gen_b"


@pytest.mark.parametrize("replacing", [None, "gen_before"])
def test_concurrent_holders_of_a_key_all_get_one_id(keys: Keys, replacing: str | None) -> None:
    if replacing:
        hold(keys, replacing)
    holders = set(concurrently(16, lambda index: hold(keys, f"gen_{index}", f"body {index}", replacing=replacing)))
    ((holder, body),) = holders
    assert body == f"body {holder.removeprefix('gen_')}"
    assert hold(keys, "gen_late") == (holder, body)


def test_the_table_holds_no_idempotency_key(table: Table) -> None:
    table.keys.hold("alice", "a-very-telling-key", "gen_a", "body", now=NOW, expired_before=NOW)
    (marker,) = table.items()
    assert "a-very-telling-key" not in json.dumps(marker)


# Retries that an HTTP client counts.


def test_each_retry_attaches_once_in_any_order(keys: Keys) -> None:
    for order in ((1, 2, 3), (3, 1, 2)):
        assert attach(keys, 1, body=f"{order}") is None
        begin(keys, "gen_a", fingerprint=f"{order}")
        assert [attach(keys, retry, body=f"{order}") for retry in order] == ["gen_a"] * 3
        assert [attach(keys, retry, body=f"{order}") for retry in (0, *order)] == [None] * 4


def test_two_identical_requests_that_both_retry_stay_two(keys: Keys) -> None:
    begin(keys, "gen_later", at=NOW + 1)
    begin(keys, "gen_first")
    for retry in (2, 1):
        assert [attach(keys, retry) for _ in range(3)] == ["gen_later", "gen_first", None]


def test_a_later_retry_attaches_to_a_generation_that_a_retry_began(keys: Keys) -> None:
    begin(keys, "gen_a", 1)
    assert [attach(keys, retry) for retry in (1, 2, 2)] == [None, "gen_a", None]


def test_concurrent_retries_attach_to_different_generations(keys: Keys) -> None:
    ids = [f"gen_{index}" for index in range(5)]
    for index, generation_id in enumerate(ids):
        begin(keys, generation_id, at=NOW + index)
    assert sorted(each for each in concurrently(8, lambda _: attach(keys, 1)) if each) == ids


def test_a_retry_attaches_only_to_a_recent_generation_of_its_body_and_caller(keys: Keys) -> None:
    begin(keys, "gen_old", at=NOW)
    begin(keys, "gen_fresh", at=NOW + 1)
    begin(keys, "gen_a", fingerprint="another")
    begin(keys, "gen_b", caller="bob")
    assert [attach(keys, 1, since=NOW) for _ in range(2)] == ["gen_fresh", None]


def test_a_retry_finds_its_generation_on_a_later_page(table: Table) -> None:
    for index in range(5):
        begin(table.keys, f"gen_{index}", at=NOW + index)
    for item in table.items():  # a page holds 1 MB
        table.client.put_item(TableName=table.name, Item={**item, "padding": {"S": "x" * 300_000}})
    assert "LastEvaluatedKey" in table.client.scan(TableName=table.name)
    found = [attach(table.keys, 1) for _ in range(6)]
    assert found == ["gen_4", "gen_3", "gen_2", "gen_1", "gen_0", None]


# Claims.


def test_a_lease_excludes_others_until_it_ends_and_the_next_owner_gets_all_results(records: Store) -> None:
    generation = created(records)
    mine = replace(generation, status=Status.IN_PROGRESS, owner="me", lease_until=NOW + 60)
    for _ in range(2):
        assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) == mine
        for now in (NOW, NOW + 60):
            assert records.claim(generation.id, "other", now=now, lease_until=now + 60) is None
        assert records.get(generation.id) == mine
    records.renew(generation.id, "me", NOW + 120)
    assert records.get(generation.id) == replace(mine, lease_until=NOW + 120)
    for call in ("save_attempt", "save_answer", "save_image"):
        CALLS[call](records, generation)
    assert records.claim(generation.id, "other", now=NOW + 120, lease_until=NOW + 200) is None
    known = (UpstreamCall(generation.calls[0].image_ids, (ATTEMPT,), ANSWER),)
    taken = replace(mine, owner="other", lease_until=NOW + 200, calls=known, stored={generation.image_ids[0]: IMAGE})
    assert records.claim(generation.id, "other", now=NOW + 120.001, lease_until=NOW + 200) == taken
    assert outcome("renew", records, generation) is LostClaimError


def test_a_released_lease_is_free_at_once(records: Store) -> None:
    generation = claimed(records)
    records.release(generation.id, "other")
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is None
    for _ in range(2):
        records.release(generation.id, "me")
    assert records.get(generation.id) == replace(generation, lease_until=0.0)
    assert records.claim(generation.id, "other", now=NOW, lease_until=NOW + 60) is not None
    records.release(generation.id, "me")
    assert now_of(records, generation).lease_until == NOW + 60


def test_an_owner_with_an_expired_lease_stays_the_owner_until_a_takeover(records: Store) -> None:
    generation = claimed(records, lease_until=NOW - 60)
    for call in ("save_attempt", "renew", "end"):
        CALLS[call](records, generation)
    assert now_of(records, generation).status is Status.COMPLETED


def test_an_end_can_be_written_twice_but_not_changed(records: Store) -> None:
    generation = claimed(records)
    for _ in range(2):
        ended = records.end(generation.id, "me", Status.COMPLETED, now=NOW)
        assert (ended.status, ended.failure, ended.completed_at) == (Status.COMPLETED, None, NOW)
    assert outcome("end as failed", records, generation) is LostClaimError
    assert records.get(generation.id) == ended


def test_the_owner_can_renew_the_lease_of_a_cancelled_generation(records: Store) -> None:
    generation = in_state(records, "cancelled")
    assert [outcome(call, records, generation) for call in ("renew", "renew by another")] == [None, LostClaimError]
    assert now_of(records, generation) == replace(generation, lease_until=NOW + 500)


# Tasks.


@pytest.mark.parametrize("state", ["mine", "cancelled task"])
def test_an_owner_that_waits_for_a_poll_has_no_lease_and_stays_the_owner(records: Store, state: str) -> None:
    generation = in_state(records, state)
    assert outcome("await_poll by another", records, generation) is LostClaimError
    for poll in (1, 1, 2):
        records.await_poll(generation.id, "me", poll)
        assert records.get(generation.id) == replace(generation, lease_until=0.0, polls=poll)
    records.renew(generation.id, "me", NOW + 500)


@pytest.mark.parametrize("poll", [1, 2])
@pytest.mark.parametrize("state", ["polled", "cancelled while polled"])
def test_a_message_of_an_earlier_poll_claims_nothing(records: Store, state: str, poll: int) -> None:
    waiting = in_state(records, state)
    assert (waiting.polls, waiting.lease_until) == (1, 0.0)
    for owner in ("me", "other"):
        assert records.claim(waiting.id, owner, now=NOW, lease_until=NOW + 60) is None
    assert records.get(waiting.id) == waiting
    claimed = replace(waiting, owner="other", lease_until=NOW + 60)
    for _ in range(2):
        assert records.claim(waiting.id, "other", now=NOW, lease_until=NOW + 60, poll=poll) == claimed
        assert records.get(waiting.id) == claimed
    assert records.claim(waiting.id, "me", now=NOW, lease_until=NOW + 60, poll=poll) is None
    assert outcome("await_poll", records, waiting) is LostClaimError


def test_a_cancelled_generation_is_claimed_only_for_its_task_and_stays_cancelled(records: Store) -> None:
    without, cancelled = (in_state(records, state) for state in ("cancelled", "cancelled task"))
    for generation, now in ((without, NOW + 999), (cancelled, NOW + 60)):
        assert records.claim(generation.id, "other", now=now, lease_until=NOW + 1999) is None
        assert records.get(generation.id) == generation
    claimed = records.claim(cancelled.id, "other", now=NOW + 60.001, lease_until=NOW + 120)
    assert claimed == records.get(cancelled.id) == replace(cancelled, owner="other", lease_until=NOW + 120)
    for call in ("save_attempt", "end", "end as failed"):
        assert outcome(call, records, cancelled) is LostClaimError


# States.

NOT_MINE = {*STATES} - {"mine", "polled"}
# The upstream call of a cancelled generation may still run. An end may be written twice.
REFUSED: Sequence[tuple[str, object, set[str]]] = (
    ("renew", LostClaimError, NOT_MINE - CANCELLED),
    ("await_poll", LostClaimError, NOT_MINE - CANCELLED),
    ("save_attempt", LostClaimError, NOT_MINE),
    ("end", LostClaimError, NOT_MINE - {"completed"}),
    *((call, LostClaimError, {*GONE}) for call in PAID_RESULTS),
    *((f"claim late{by}", None, {*ENDED, *GONE, "polled"} - {"cancelled task"}) for by in ("", " by another")),
    ("claim late", None, {"another's"}),
    ("release", None, {*GONE}),
    ("mark_published", None, {*ACTIVE, *GONE}),
    ("note_returned", False, {*GONE}),
    ("note_spending", False, {*GONE}),
    ("cancel", None, {"completed", "failed", "published", *GONE}),
    ("cancel_unbegun", None, {"mine", "another's", *ENDED, *GONE}),
    ("cancel_unbegun late", None, {"another's", *ENDED, *GONE}),
    ("requeue", None, {*STATES} - {"published"}),
    ("bury", LostClaimError, {"absent", *ACTIVE}),
    ("bury as if ended", LostClaimError, {"absent", *ACTIVE}),
)


@pytest.mark.parametrize("state", STATES)
def test_a_call_that_a_state_does_not_allow_has_no_effect(records: Store, state: str) -> None:
    generation = in_state(records, state)
    before = records.get(generation.id), records.tombstone(generation.id)
    for call, expected, states in REFUSED:
        if state in states:
            assert (call, outcome(call, records, generation)) == (call, expected)
            assert (call, (records.get(generation.id), records.tombstone(generation.id))) == (call, before)


@pytest.mark.parametrize("state", [*ACTIVE, *ENDED])
def test_a_record_in_any_state_takes_paid_results_and_returns_and_is_never_void(records: Store, state: str) -> None:
    before = in_state(records, state)
    attempts = before.calls[0].attempts
    if attempts:
        for change in (*ATTEMPT_RESULTS, *ATTEMPT_RESULTS, "save_failure of another kind"):
            CALLS[change](records, before)
        attempts = (replace(ATTEMPT, task_id="täsk 1", failure=REFUSAL),)
    for change in ("save_answer", "save_image") * 2:
        CALLS[change](records, before)
    call = replace(before.calls[0], attempts=attempts, answer=ANSWER)
    paid = replace(before, calls=(call,), stored={before.image_ids[0]: IMAGE})
    assert records.get(before.id) == paid
    assert [records.note_returned(before, 2) for _ in range(2)] == [True, False]
    assert records.get(before.id) == replace(paid, returned=2)
    assert records.note_returned(replace(before, returned=2), 1)
    assert records.void(before.id, now=NOW) == records.get(before.id) == replace(paid, returned=3)
    assert [records.note_spending(before, SETTLED) for _ in range(2)] == [True, False]
    assert records.get(before.id) == replace(paid, returned=3, spending=SETTLED)
    assert records.note_spending(replace(before, spending=SETTLED), SPENDING)
    assert records.get(before.id) == replace(paid, returned=3, spending=SPENDING)


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_only_the_same_end_is_marked_as_published(records: Store, state: str) -> None:
    ended = in_state(records, state)
    records.mark_published(replace(ended, completed_at=NOW + 77))
    assert records.get(ended.id) == ended
    records.mark_published(ended)
    assert records.get(ended.id) == replace(ended, published=True)


@pytest.mark.parametrize("state", ACTIVE)
def test_a_repeated_cancellation_of_an_active_generation_changes_nothing(records: Store, state: str) -> None:
    before = in_state(records, state)
    expected = replace(before, status=Status.CANCELLED, completed_at=NOW + 1)
    for now in (NOW + 1, NOW + 2):
        assert records.cancel(before.id, now=now) == expected
        assert records.get(before.id) == expected


@pytest.mark.parametrize("state", ["queued", "mine", "polled", "requeued"])
def test_a_generation_without_a_valid_lease_is_cancelled_for_a_reason(records: Store, state: str) -> None:
    before = in_state(records, state)
    if state == "mine":
        assert records.cancel_unbegun(before, REFUSAL, now=before.lease_until) is None
        assert records.get(before.id) == before
    now = before.lease_until + 0.001 if state == "mine" else NOW + 1
    cancelled = records.cancel_unbegun(before, REFUSAL, now=now)
    assert cancelled == replace(before, status=Status.CANCELLED, completed_at=now, failure=REFUSAL)
    for failure, at in ((FAILURE, now), (REFUSAL, now + 1)):
        assert records.cancel_unbegun(before, failure, now=at) is None
    assert records.cancel(before.id, now=now + 1) == records.get(before.id) == cancelled


@pytest.mark.parametrize("call", range(3))
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_generation_is_not_cancelled_for_a_reason_if_a_call_was_sent_meanwhile(
    records: Store, call: int, sent: int
) -> None:
    """The call may have been paid for since the generation was read."""
    generation = claimed(records, n=3)
    for number in range(1, sent + 1):
        records.save_attempt(generation.id, "me", call, number, ATTEMPT)
        records.save_failure(generation.id, call, number, REFUSAL)
    known = now_of(records, generation)
    records.save_attempt(generation.id, "me", call, sent + 1, SECOND_ATTEMPT)
    records.release(generation.id, "me")
    changed = now_of(records, generation)
    assert records.cancel_unbegun(known, REFUSAL, now=NOW + 1) is None
    assert records.get(generation.id) == changed
    cancelled = records.cancel_unbegun(changed, REFUSAL, now=NOW + 1)
    assert cancelled == replace(changed, status=Status.CANCELLED, completed_at=NOW + 1, failure=REFUSAL)


def test_no_call_of_a_generation_that_was_cancelled_for_a_reason_is_sent(records: Store) -> None:
    generation = claimed(records, n=3, lease_until=NOW)
    cancelled = records.cancel_unbegun(generation, REFUSAL, now=NOW + 1)
    for call in ("save_attempt", "end", "end as failed"):
        assert outcome(call, records, generation) is LostClaimError
    assert outcome("claim late by another", records, generation) is None
    assert cancelled == now_of(records, generation)


def test_a_requeued_generation_keeps_all_results(records: Store) -> None:
    generation = claimed(records, n=3)
    for call, number in ((0, 1), (1, 1), (1, 2)):
        records.save_attempt(generation.id, "me", call, number, ATTEMPT)
    records.save_answer(generation.id, 0, ANSWER)
    records.save_task(generation.id, 1, 1, "task")
    records.save_failure(generation.id, 1, 2, REFUSAL)
    records.save_image(generation.id, generation.image_ids[0], IMAGE)
    first, second, third = generation.calls
    known = (replace(ATTEMPT, task_id="task"), replace(ATTEMPT, failure=REFUSAL))
    for retries in (1, 2):
        records.await_poll(generation.id, "me", 3)
        failed = records.end(generation.id, "me", Status.FAILED, now=NOW, failure=FAILURE)
        records.note_returned(failed, 1)
        records.mark_published(failed)
        requeued = records.requeue(failed, now=NOW + retries)
        assert requeued == replace(
            generation,
            status=Status.QUEUED,
            owner=None,
            lease_until=0.0,
            calls=(replace(first, attempts=(ATTEMPT,), answer=ANSWER), replace(second, attempts=known), third),
            polls=0,
            stored={generation.image_ids[0]: IMAGE},
            retries=retries,
            reserved_at=NOW + retries,
        )
        assert records.get(generation.id) == requeued
        assert records.claim(generation.id, "me", now=NOW, lease_until=NOW + 60) is not None


@pytest.mark.parametrize("known", [SPENDING, SETTLED])
def test_a_requeued_generation_reserves_again_what_is_not_taken(records: Store, known: Spending) -> None:
    published = in_state(records, "published")
    records.note_spending(published, SETTLED)
    requeued = records.requeue(replace(published, spending=known), now=NOW + 5)
    if known == SETTLED:
        assert requeued is not None
        assert requeued.spending == SETTLED.reserved_again() == Spending(SPENDING.reserved, 300, 200, 2)
    else:  # it was settled in the meantime
        assert requeued is None
    assert now_of(records, published).spending == (requeued.spending if requeued else SETTLED)


def test_a_generation_without_a_spending_takes_none(records: Store) -> None:
    assert not records.note_spending(created(records), SETTLED)


@pytest.mark.parametrize(
    ("state", "call"),
    [
        ("queued", lambda s, g, index: s.claim(g.id, str(index), now=NOW, lease_until=NOW + 60)),
        ("queued", lambda s, g, index: s.cancel_unbegun(g, REFUSAL, now=NOW + index)),
        ("failed", lambda s, g, _: s.note_returned(g, 2)),
        ("failed", lambda s, g, _: s.note_spending(g, SETTLED)),
        ("published", lambda s, g, _: s.requeue(g, now=NOW + 5)),
    ],
    ids=["claim", "cancel_unbegun", "note_returned", "note_spending", "requeue"],
)
def test_of_concurrent_calls_one_has_an_effect(records: Store, state: str, call: Callable[..., object]) -> None:
    before = in_state(records, state)
    outcomes = concurrently(8, lambda index: call(records, before, index))
    (effect,) = [each for each in outcomes if each]
    after = now_of(records, before)
    assert effect in (after, True)
    assert (state, after.returned, after.spending == SETTLED) in [
        *(("queued", 0, False), ("failed", 2, False), ("failed", 0, True), ("published", 0, False)),
    ]


def test_a_failure_can_be_requeued_once(records: Store) -> None:
    failed = in_state(records, "published")
    assert records.requeue(failed, now=NOW + 5) is not None
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    again = records.end(failed.id, "me", Status.FAILED, now=NOW + 9, failure=FAILURE)
    records.mark_published(again)
    assert records.requeue(failed, now=NOW + 10) is None
    assert records.requeue(again, now=NOW + 10) is not None


@pytest.mark.parametrize("state", ENDED)
def test_a_buried_generation_stays_gone_with_a_tombstone(records: Store, state: str) -> None:
    generation = in_state(records, state)
    assert records.tombstone(generation.id) is None
    for at in (NOW + 20, NOW + 30):
        tombstone = records.bury(generation, now=at)
        assert tombstone == Tombstone(generation.id, "alice", generation.image_ids, at)
        assert (records.tombstone(generation.id), records.get(generation.id)) == (tombstone, None)
        for call in ("create", "void"):
            assert outcome(call, records, generation) == (IdTakenError, True, True)
    assert records.newest("alice", 10) == []


def test_a_tombstone_names_the_inputs_that_came_inside_the_request(records: Store) -> None:
    generation = created(records, edit())
    records.cancel(generation.id, now=NOW)
    buried = records.bury(now_of(records, generation), now=NOW + 1)
    assert buried.input_ids == (INPUTS[0].id,)
    assert records.tombstone(generation.id) == buried


def test_a_generation_with_another_end_is_not_buried(records: Store) -> None:
    failed = in_state(records, "published")
    records.requeue(failed, now=NOW)
    records.claim(failed.id, "me", now=NOW, lease_until=NOW + 60)
    ended = records.end(failed.id, "me", Status.COMPLETED, now=NOW + 9)
    assert outcome("bury", records, failed) is LostClaimError
    assert records.get(failed.id) == ended


def test_a_void_id_can_never_be_created(records: Store) -> None:
    generation = new_generation()
    for _ in range(2):
        assert records.void(generation.id, now=NOW) is None
        assert outcome("create", records, generation) == (IdTakenError, True, False)
    assert (records.get(generation.id), records.tombstone(generation.id)) == (None, None)
    assert records.newest("alice", 10) == []


def test_either_a_creation_or_a_concurrent_voiding_wins(records: Store) -> None:
    def race(generation: Generation) -> list[object]:
        return concurrently(2, lambda index: outcome(("create", "void")[index], records, generation))

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


def test_a_list_is_newest_first_and_continues_after_an_id(records: Store) -> None:
    by_age = [created(records, at=NOW + at) for at in (3, 1, 2, 0.5, 0)]
    newest_first = sorted(by_age, key=lambda generation: -generation.created_at)
    assert records.newest("alice", 10) == newest_first
    assert pages(records, 2) == [newest_first[:2], newest_first[2:4], newest_first[4:], []]


def test_generations_of_one_moment_are_all_listed(records: Store) -> None:
    same = [created(records).id for _ in range(5)]
    assert sorted(each.id for page in pages(records, 2) for each in page) == sorted(same)


def test_a_list_can_be_limited_to_one_status_across_pages(records: Store, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_list_shows_only_the_callers_generations_and_no_buried_one(records: Store) -> None:
    older, gone, newer = (created(records, at=NOW + at) for at in range(3))
    others = created(records, new_generation(caller="bob", at=NOW + 3))
    records.cancel(gone.id, now=NOW)
    records.bury(now_of(records, gone), now=NOW)
    assert records.newest("alice", 10) == [newer, older]
    assert [records.newest("alice", 10, after=after) for after in (others.id, gone.id, MISSING)] == [[], [], []]
    assert records.newest("alic", 10) == []


def test_a_list_shows_current_records_not_the_stale_index(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_keys_left_out_of_an_answer_are_read_after_a_pause(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamoDB leaves out keys beyond 16 MB or beyond the table's throughput."""
    newest_first = [created(table.generations, at=NOW - at).id for at in range(8)]
    read, pauses = table.client.batch_get_item, list[float]()

    def first_key_only(*, RequestItems: Any) -> Any:  # noqa: N803
        first, *others = RequestItems[table.name]["Keys"]
        answer = read(RequestItems={table.name: RequestItems[table.name] | {"Keys": [first]}})
        return answer | {"UnprocessedKeys": {table.name: {"Keys": others, "ConsistentRead": True}} if others else {}}

    monkeypatch.setattr(table.client, "batch_get_item", first_key_only)
    monkeypatch.setattr("imagegen.aws.items.time", SimpleNamespace(sleep=pauses.append))
    assert [each.id for each in table.generations.newest("alice", 10)] == newest_first
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_work_on_a_generation_is_not_written_to_the_index(table: Table) -> None:
    records = table.generations
    generation = claimed(records)
    before = table.items(IndexName="by-caller")
    owned = ("renew", "save_attempt", *PAID_RESULTS, "note_returned", "release")
    for call in (*owned, "claim late by another", "await_poll by another"):
        held = records.get(generation.id)
        CALLS[call](records, generation)
        assert records.get(generation.id) != held
        assert table.items(IndexName="by-caller") == before


# Errors and expiry.


@pytest.mark.parametrize("why", ["fake", "no client", "closed port", *JUDGES])
def test_an_unreachable_store_is_unavailable(connect: Connect, request: pytest.FixtureRequest, why: str) -> None:
    records: Store
    keys: Keys
    generation = new_generation()
    if why == "fake":
        records, keys = fakes = FakeGenerationStore(), FakeIdempotencyKeys()
        created(records, generation)
        for fake in fakes:
            fake.failures += ["before"] * len(CALLS)
    elif why == "no client":
        client = Mock(side_effect=OSError("no credentials"))
        records, keys = DynamoGenerations(client, "table", retention_seconds=1), DynamoIdempotencyKeys(client, "table")
    else:  # an emulator answers that the table does not exist
        url = closed_url() if why == "closed port" else request.getfixturevalue(f"{why}_url")
        table = Table(connect("dynamodb", url), "no-such-table")
        records, keys = table.generations, table.keys
    outcomes = {call: outcome(call, records, generation) for call in CALLS}
    assert outcomes == dict.fromkeys(CALLS, RecordsUnavailableError)
    outcomes = {name: outcome_of(partial(call, keys)) for name, call in KEY_CALLS.items()}
    assert outcomes == dict.fromkeys(KEY_CALLS, RecordsUnavailableError)
    if why == "fake":
        assert [records.get(generation.id), *records.newest("alice", 10)] == [generation, generation]


@pytest.mark.parametrize("state", ["queued", "cancelled task"])
def test_a_record_of_a_later_version_is_refused_and_unchanged(table: Table, state: str) -> None:
    records = table.generations
    generation = in_state(records, state)
    (item,) = table.items()
    later = item | {"version": {"N": "4"}}
    table.client.put_item(TableName=table.name, Item=later)
    for call in ("get", "newest", "claim", "claim late by another", "cancel", "cancel_unbegun late", "void"):
        with pytest.raises(RecordsUnavailableError, match="later version"):
            CALLS[call](records, generation)
        assert (call, table.items()) == (call, [later])


def test_only_a_record_with_input_images_has_the_version_that_older_processes_refuse(table: Table) -> None:
    """They would make images from its prompt alone."""
    for generation, version in ((new_generation(), "2"), (edit(), "3")):
        created(table.generations, generation)
        (item,) = (item for item in table.items() if item["pk"]["S"] == generation.id)
        assert item["version"] == {"N": version}


def test_a_record_of_version_1_has_a_provider_and_no_routes(table: Table) -> None:
    generation = created(table.generations)
    (item,) = table.items()
    del item["supply"]
    table.client.put_item(TableName=table.name, Item={**item, "version": {"N": "1"}, "provider": {"S": "openai"}})
    found = table.generations.get(generation.id)
    assert found is not None
    assert found.supply == Supply("openai", generation.request.model)
    assert table.generations.cancel(generation.id, now=1) is not None


def test_every_method_is_called() -> None:
    for calls, port in ((CALLS, Store), (KEY_CALLS, Keys)):
        assert {call.partition(" ")[0] for call in calls} == {each for each in vars(port) if each[0] != "_"}


def test_the_fake_fails_after_its_effect() -> None:
    records = FakeGenerationStore()
    generation = created(records)
    records.failures.append("after")
    assert outcome("cancel", records, generation) is RecordsUnavailableError
    assert now_of(records, generation).status is Status.CANCELLED


def test_every_item_expires(table: Table) -> None:
    kept, gone, void = (in_state(table.generations, state) for state in ("queued", "buried", "void"))
    hold(table.keys, kept.id)
    begin(table.keys, kept.id)
    kinds = {kept.id: "record", gone.id: "tombstone", void.id: "void"}
    expiries = {
        kinds.get(item["pk"]["S"], item["pk"]["S"].partition("#")[0]): int(item["expires_at"]["N"]) - int(NOW)
        for item in table.items()
    }
    markers = {"tombstone": 15 * DAY, "void": 15 * DAY, "key": DAY, "retry": DAY}
    assert expiries == markers | {"record": RETENTION_SECONDS}
