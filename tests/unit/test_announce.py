"""The end of a generation is published at least once, and without what does not belong on the bus."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from msgspec.structs import replace

from imagegen import errors
from imagegen.allowance import Allowance
from imagegen.announce import announce
from imagegen.deadline import Deadline
from imagegen.errors import (
    AllowanceSpentError,
    ImagegenError,
    InvalidRequestError,
    PartialGenerationError,
    PromptRejectedError,
    RecordsUnavailableError,
    UpstreamFailedError,
    UpstreamRefusedRequestError,
)
from imagegen.failures import kept
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Failure,
    Generation,
    Origin,
    Rejection,
    Status,
    StoredImage,
    admit,
)
from imagegen.images import ImageRequest
from imagegen.manage import LONGEST_WRITER_SECONDS
from imagegen.openai_wire.errors import ROWS
from imagegen.openai_wire.events import generation_event, rejection_event
from imagegen.openai_wire.requests import read_image_request
from imagegen.work import work
from tests.conftest import ROOT
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_store import FakeGenerationStore
from tests.unit import test_manage, test_work

NOW = 1_760_000_000.75
LEASE = 60.0
ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
SCHEMAS = sorted((ROOT / "events/schemas").glob("*.json"))

PROMPT, REVISED, USER = "an otter in a canary coat", "an otter, revised by a canary", "canary@example.org"
WORDS = "The canary's own words: you may not paint https://upstream.example/canary"
SIGNED = "https://images.example/canary.png?X-Amz-Signature=canary"
CANARIES = (PROMPT, REVISED, USER, WORDS, SIGNED, "canary", "X-Amz")


@pytest.fixture
def worker() -> Iterator[test_work.World]:
    with ThreadPoolExecutor(10) as pool:
        yield test_work.World(pool)


@pytest.fixture
def desk() -> test_manage.World:
    return test_manage.World()


def ids(bus: FakeEventBus) -> list[str]:
    return [generation.id for generation in bus.ended]


# Announcing.


def ended(records: FakeGenerationStore, status: Status = Status.COMPLETED) -> Generation:
    request = ImageRequest("a cat", "dall-e-3", "url")
    generation = admit(request, caller="alice", base_url="https://x.example", now=NOW)
    records.create(generation)
    records.claim(generation.id, "dead", now=NOW - LEASE, lease_until=NOW - 1)
    records.save_sending(generation.id, "dead", 0, 1)
    records.claim(generation.id, "me", now=NOW, lease_until=NOW + LEASE)
    return records.end(generation.id, "me", status, now=NOW + 1)


def publish(generation: Generation, records: FakeGenerationStore, bus: FakeEventBus) -> None:
    announce(generation, records, FakeAllowanceCounters(), bus, lambda _: None)


def now_of(records: FakeGenerationStore, generation: Generation) -> Generation:
    found = records.get(generation.id)
    assert found is not None
    return found


@pytest.mark.parametrize("status", ENDS)
def test_an_end_is_published_once_and_marked(status: Status) -> None:
    records, bus = FakeGenerationStore(), FakeEventBus()
    generation = ended(records, status)
    publish(generation, records, bus)
    publish(now_of(records, generation), records, bus)
    assert bus.ended == [generation]
    assert now_of(records, generation) == replace(generation, announced=True)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS])
def test_before_the_end_nothing_is_published(status: Status) -> None:
    records, bus = FakeGenerationStore(), FakeEventBus()
    publish(replace(ended(records), status=status), records, bus)
    assert bus.ended == []
    assert "mark_announced" not in records.asked


@pytest.mark.parametrize(("when", "published"), [("before", 1), ("after", 2)])
def test_a_bus_that_fails_leaves_the_end_to_be_published_again(when: Any, published: int) -> None:
    records, bus = FakeGenerationStore(), FakeEventBus()
    generation = ended(records)
    bus.failures.append(when)
    with pytest.raises(RecordsUnavailableError):
        publish(generation, records, bus)
    assert not now_of(records, generation).announced
    publish(now_of(records, generation), records, bus)
    assert ids(bus) == [generation.id] * published
    assert now_of(records, generation).announced


@pytest.mark.parametrize(("when", "published"), [("before", 2), ("after", 1)])
def test_what_could_not_be_marked_is_published_again(when: Any, published: int) -> None:
    records, bus = FakeGenerationStore(), FakeEventBus()
    generation = ended(records)
    records.failures.append(when)
    with pytest.raises(RecordsUnavailableError):
        publish(generation, records, bus)
    publish(now_of(records, generation), records, bus)
    assert ids(bus) == [generation.id] * published


def test_what_was_deleted_meanwhile_is_published_and_not_marked() -> None:
    records, bus = FakeGenerationStore(), FakeEventBus()
    generation = ended(records)
    records.bury(generation, now=NOW)
    publish(generation, records, bus)
    assert ids(bus) == [generation.id]
    assert records.get(generation.id) is None


def test_a_new_attempt_that_begins_while_its_failure_is_published_is_published_too() -> None:
    """Another process may have published and marked the same end, so an operator may have begun a new attempt."""
    records = FakeGenerationStore()
    generation = ended(records, Status.FAILED)

    class Bus(FakeEventBus):
        def generation_ended(self, generation: Generation) -> None:
            super().generation_ended(generation)
            if len(self.ended) == 1:
                records.mark_announced(generation)
                assert records.requeue(generation, now=NOW + 2) is not None

    bus = Bus()
    publish(generation, records, bus)
    records.claim(generation.id, "again", now=NOW, lease_until=NOW + LEASE)
    publish(records.end(generation.id, "again", Status.COMPLETED, now=NOW + 9), records, bus)
    assert [each.status for each in bus.ended] == [Status.FAILED, Status.COMPLETED]
    assert now_of(records, generation).announced


def test_the_batch_knows_before_the_bus_and_the_quota_is_returned_before_both() -> None:
    steps: list[str] = []

    class Counters(FakeAllowanceCounters):
        def give_back(self, who: str, day: str, images: int, *, token: str) -> None:
            steps.append(f"{images} to {who}")

    class Bus(FakeEventBus):
        def generation_ended(self, generation: Generation) -> None:
            steps.append("published")

    records = FakeGenerationStore()
    generation = ended(records, Status.FAILED)
    records.save_refusal(generation.id, 0, 1)
    current = now_of(records, generation)
    for _ in range(2):  # two processes may look at the same end
        announce(current, records, Counters(), Bus(), lambda _: steps.append("settled"))
    assert steps[:4] == ["1 to alice", "1 to *", "settled", "published"]
    assert steps[4:] == ["settled", "published"]


def test_quota_is_returned_too_for_a_call_that_is_refused_after_the_end_was_published() -> None:
    records, bus, counters = FakeGenerationStore(), FakeEventBus(), FakeAllowanceCounters()
    Allowance(counters, 1, 1).reserve("alice", 1, now=NOW, token="t", may_undo=lambda: True)
    generation = ended(records, Status.CANCELLED)
    announce(generation, records, counters, bus, lambda _: None)
    assert set(counters.used.values()) == {1}
    records.save_refusal(generation.id, 0, 1)
    for _ in range(2):
        announce(now_of(records, generation), records, counters, bus, lambda _: None)
    assert set(counters.used.values()) == {0}
    assert ids(bus) == [generation.id]


# The process that ends a generation publishes it.


def test_a_completion_is_published_with_all_that_is_stored(worker: test_work.World) -> None:
    generation = worker.admitted(n=3)
    assert worker.deliver(generation.id) is None
    (published,) = worker.bus.ended
    assert (published.id, published.status, published.stored_ids) == (
        generation.id,
        Status.COMPLETED,
        generation.image_ids,
    )
    assert worker.record(generation).announced


@pytest.mark.parametrize("failure", [PromptRejectedError("no"), UpstreamFailedError("no")])
def test_a_failure_is_published(worker: test_work.World, failure: ImagegenError) -> None:
    worker.provider.failures.append(failure)
    generation = worker.admitted()
    assert worker.deliver(generation.id) is None
    (published,) = worker.bus.ended
    assert (published.id, published.failure) == (generation.id, kept(failure))


@pytest.mark.parametrize("status", ENDS)
def test_a_message_for_what_has_ended_and_was_published_publishes_nothing(
    worker: test_work.World, status: Status
) -> None:
    generation = worker.admitted()
    worker.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    worker.records.end(generation.id, "other", status, now=NOW)
    worker.records.let_go(generation.id, "other")
    publish(worker.record(generation), worker.records, FakeEventBus())
    assert worker.deliver(generation.id) is None
    assert worker.give_up(generation.id) is None
    assert worker.bus.ended == []


@pytest.mark.parametrize("status", ENDS)
def test_a_message_for_what_has_ended_unpublished_publishes_it(worker: test_work.World, status: Status) -> None:
    """The process that ended it died right after."""
    generation = worker.admitted()
    worker.records.claim(generation.id, "other", now=NOW, lease_until=NOW + LEASE)
    worker.records.end(generation.id, "other", status, now=NOW)
    worker.records.let_go(generation.id, "other")
    for _ in range(2):
        assert worker.deliver(generation.id) is None
    assert [(each.id, each.status) for each in worker.bus.ended] == [(generation.id, status)]
    assert worker.provider.calls == []


@pytest.mark.parametrize("failure", [None, PromptRejectedError("no")])
@pytest.mark.parametrize(("when", "published"), [("before", 1), ("after", 2)])
def test_a_message_whose_end_could_not_be_published_comes_again_and_publishes_it(
    worker: test_work.World, failure: ImagegenError | None, when: Any, published: int
) -> None:
    generation = worker.admitted()
    worker.provider.failures.append(failure)
    worker.bus.failures.append(when)
    with pytest.raises(RecordsUnavailableError):
        worker.deliver(generation.id)
    assert worker.record(generation).ended
    assert worker.deliver(generation.id) is None
    assert ids(worker.bus) == [generation.id] * published
    assert len(worker.provider.calls) == 1


def test_however_long_the_bus_is_gone_the_message_is_not_done(worker: test_work.World) -> None:
    generation = worker.admitted()
    worker.bus.failures.extend(["before"] * 20)
    for _ in range(20):
        with pytest.raises(RecordsUnavailableError):
            worker.deliver(generation.id)
    assert worker.bus.ended == []
    assert worker.deliver(generation.id) is None
    assert (ids(worker.bus), len(worker.provider.calls)) == ([generation.id], 1)


def test_an_end_whose_answer_was_lost_is_published_by_the_next(worker: test_work.World) -> None:
    class Endless(FakeGenerationStore):
        def end(self, *arguments: Any, **more: Any) -> Generation:
            super().end(*arguments, **more)
            raise RecordsUnavailableError("The answer was lost.")

    worker.records = Endless()
    generation = worker.admitted()
    with pytest.raises(RecordsUnavailableError):
        worker.deliver(generation.id)
    assert worker.bus.ended == []
    assert worker.deliver(generation.id) is None
    assert ids(worker.bus) == [generation.id]


@pytest.mark.parametrize(("when", "published"), [("before", 1), ("after", 2)])
def test_a_first_worker_whose_end_could_not_be_published_leaves_it_to_the_message(
    worker: test_work.World, when: Any, published: int
) -> None:
    generation = worker.admitted()
    claimed = worker.records.claim(generation.id, "api", now=NOW, lease_until=NOW + LEASE)
    assert claimed is not None
    worker.bus.failures.append(when)
    with pytest.raises(RecordsUnavailableError):
        work(claimed, "api", worker.workshop, Deadline.after(test_work.AT_MOST_SECONDS))
    assert worker.record(generation).status is Status.COMPLETED
    assert worker.deliver(generation.id) is None
    assert ids(worker.bus) == [generation.id] * published


def test_a_generation_that_another_worker_has_taken_over_is_published_by_that_one(worker: test_work.World) -> None:
    generation = worker.admitted()

    def taken_over() -> None:
        worker.records.claim(generation.id, "other", now=NOW + LEASE + 1, lease_until=NOW + 3 * LEASE)

    worker.provider.during_call = taken_over
    worker.deliver(generation.id)
    assert worker.bus.ended == []


def test_what_is_cancelled_while_the_upstream_works_is_published_by_its_worker(worker: test_work.World) -> None:
    generation = worker.admitted()
    worker.provider.during_call = lambda: worker.records.cancel(generation.id, now=NOW)
    assert worker.deliver(generation.id) is None
    assert [(each.id, each.status) for each in worker.bus.ended] == [(generation.id, Status.CANCELLED)]


# Dead letters.


@pytest.mark.parametrize(("when", "published"), [(None, 1), ("before", 1), ("after", 2)])
def test_what_is_given_up_is_published_as_failed(worker: test_work.World, when: Any, published: int) -> None:
    generation = worker.admitted()
    worker.left(generation, Call(generation.image_ids, 1))
    worker.bus.failures.append(when)
    if when:
        with pytest.raises(RecordsUnavailableError):
            worker.give_up(generation.id)
    assert worker.give_up(generation.id) == LONGEST_WRITER_SECONDS
    assert {(each.id, each.status) for each in worker.bus.ended} == {(generation.id, Status.FAILED)}
    assert len(worker.bus.ended) == published


def test_what_somebody_works_on_is_not_published_as_given_up(worker: test_work.World) -> None:
    generation = worker.admitted()
    worker.records.claim(generation.id, "other", now=test_work.NOW, lease_until=test_work.NOW + LEASE)
    worker.give_up(generation.id)
    assert worker.bus.ended == []


# Cancelled and deleted.


def test_what_is_cancelled_is_published_at_once(desk: test_manage.World) -> None:
    generation = desk.created()
    cancelled = desk.cancel(generation.id)
    assert desk.bus.ended == [cancelled]  # as the caller is answered
    assert desk.see(generation.id).announced


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_bus_that_fails_hinders_no_cancelling_and_the_message_tells_it(worker: test_work.World, when: Any) -> None:
    desk = test_manage.World(records=worker.records, bus=worker.bus)
    generation = worker.admitted()
    worker.bus.failures.append(when)
    assert desk.cancel(generation.id).status is Status.CANCELLED
    assert worker.deliver(generation.id) is None
    assert worker.bus.ended[-1].status is Status.CANCELLED
    assert worker.record(generation).announced


def test_what_is_deleted_before_its_end_is_published_as_cancelled(desk: test_manage.World) -> None:
    generation = desk.created()
    desk.delete(generation.id)
    assert [(each.id, each.status) for each in desk.bus.ended] == [(generation.id, Status.CANCELLED)]


@pytest.mark.parametrize("status", ENDS)
def test_what_was_published_is_not_published_again_when_it_is_deleted(desk: test_manage.World, status: Status) -> None:
    generation = desk.ended(status, announced=True)
    desk.delete(generation.id)
    assert [(each.id, each.status) for each in desk.bus.ended] == [(generation.id, status)]


# What is in an event.


def schema(detail_type: str) -> dict[str, Any]:
    name = detail_type.lower().replace(" ", "-")
    read: dict[str, Any] = json.loads((ROOT / f"events/schemas/{name}.json").read_text())
    return read


def delivered(described: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """As a subscriber gets it: as JSON, in EventBridge's envelope, and valid."""
    detail_type, detail = described
    event: dict[str, Any] = {
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "detail-type": detail_type,
        "source": "imagegen",
        "account": "123456789012",
        "time": "2026-11-22T12:00:07Z",
        "region": "eu-central-1",
        "resources": [],
        "detail": json.loads(json.dumps(detail)),
    }
    Draft202012Validator(schema(detail_type), format_checker=FormatChecker()).validate(event)
    return event


def full(status: Status, error: ImagegenError | None = None, *, stored: int = 2, n: int = 2) -> Generation:
    """A generation with a canary wherever one fits."""
    request = ImageRequest(PROMPT, "dall-e-3", "url", n, size="1024x1024", user=USER)
    generation = admit(
        request,
        caller="shop",
        base_url="https://x.example/prod",
        now=NOW,
        origin=Origin("order-1234"),
    )
    answer = CallAnswer((AnsweredImage(SIGNED, REVISED),), {"size": "canary"}, {"canary": 1})
    return replace(
        generation,
        status=status,
        owner="canary-owner",
        calls=tuple(Call(call.image_ids, 2, 0, answer) for call in generation.calls),
        stored={image_id: StoredImage("image/png", 7) for image_id in generation.image_ids[:stored]},
        failure=kept(error) if error else None,
        completed_at=NOW + 7,
    )


def refused(cause: ImagegenError) -> PartialGenerationError:
    partial = PartialGenerationError(f"1 of 2: {WORDS}")
    partial.__cause__ = cause
    return partial


def test_a_completion_tells_what_was_made_for_whom_and_where_it_is() -> None:
    generation = full(Status.COMPLETED)
    event = delivered(generation_event(generation))
    assert event["detail-type"] == "Image Generation Completed"
    assert event["detail"] == {
        "id": generation.id,
        "client": "shop",
        "custom_id": "order-1234",
        "model": "dall-e-3",
        "n": 2,
        "images": [
            {
                "id": image_id,
                "permalink": f"https://x.example/prod/v1/images/{image_id}",
                "media_type": "image/png",
            }
            for image_id in generation.image_ids
        ],
        "repeated_calls": 2,
        "extra_calls": 0,
        "created_at": int(NOW),
        "completed_at": int(NOW + 7),
        "error": None,
    }


def test_what_did_not_come_as_an_event_has_no_custom_id() -> None:
    generation = replace(full(Status.COMPLETED), origin=Origin())
    assert delivered(generation_event(generation))["detail"]["custom_id"] is None


@pytest.mark.parametrize(
    ("error", "public"),
    [
        (
            PromptRejectedError(WORDS, param="prompt", code="content_policy_violation"),
            {"type": "invalid_request_error", "code": "content_policy_violation", "param": "prompt"},
        ),
        (
            PromptRejectedError(WORDS, param="prompt", code="moderation_blocked"),
            {"type": "image_generation_user_error", "code": "moderation_blocked", "param": "prompt"},
        ),
        (
            UpstreamRefusedRequestError(WORDS, param="size"),
            {"type": "invalid_request_error", "code": "upstream_refused_request", "param": "size"},
        ),
        (UpstreamFailedError(WORDS), {"type": "upstream_error", "code": "upstream_failed", "param": None}),
        (
            refused(PromptRejectedError(WORDS, param="prompt")),
            {"type": "invalid_request_error", "code": "content_policy_violation", "param": "prompt"},
        ),
    ],
)
def test_a_failure_tells_type_code_and_param_and_no_words(error: ImagegenError, public: dict[str, Any]) -> None:
    generation = full(Status.FAILED, error, stored=1)
    event = delivered(generation_event(generation))
    assert event["detail-type"] == "Image Generation Failed"
    assert event["detail"]["error"] == public
    assert event["detail"]["custom_id"] == "order-1234"
    assert [image["id"] for image in event["detail"]["images"]] == list(generation.stored_ids)


@pytest.mark.parametrize("stored", [0, 1])
def test_a_cancellation_tells_what_is_stored(stored: int) -> None:
    event = delivered(generation_event(full(Status.CANCELLED, stored=stored)))
    assert event["detail-type"] == "Image Generation Cancelled"
    assert (len(event["detail"]["images"]), event["detail"]["error"]) == (stored, None)


@pytest.mark.parametrize(
    "kind", [kind for kind in ROWS if issubclass(kind, ImagegenError)], ids=lambda kind: kind.__name__
)
def test_every_failure_can_be_published(kind: type[ImagegenError]) -> None:
    """As the end of a generation, whatever it is, and with a code."""
    if kind is not InvalidRequestError:  # it names its code itself, and ends no generation
        delivered(generation_event(full(Status.FAILED, kind(WORDS))))
    delivered(rejection_event(Rejection("7bf73129", "shop", "order-1234", kept(kind("Our own words.")))))


def test_a_failure_that_this_version_does_not_know_can_be_published() -> None:
    generation = replace(full(Status.FAILED), failure=Failure("FromTheFutureError", WORDS, "size", None))
    assert not hasattr(errors, "FromTheFutureError")
    assert delivered(generation_event(generation))["detail"]["error"]["code"] == "internal_error"


def test_a_rejection_tells_which_event_and_why_in_our_own_words() -> None:
    error = AllowanceSpentError("There are 3 images left for today.")
    event = delivered(rejection_event(Rejection("7bf73129", "shop", "order-1234", kept(error))))
    assert event["detail-type"] == "Image Generation Rejected"
    assert event["detail"] == {
        "event_id": "7bf73129",
        "client": "shop",
        "custom_id": "order-1234",
        "error": {
            "message": "There are 3 images left for today.",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
            "param": None,
        },
    }


def test_a_rejection_of_an_event_that_names_nobody_can_be_published() -> None:
    detail = delivered(rejection_event(Rejection("7bf73129", None, None, kept(InvalidRequestError("No.")))))["detail"]
    assert (detail["client"], detail["custom_id"], detail["error"]["code"]) == (None, None, None)


@pytest.mark.parametrize(
    "generation",
    [
        full(Status.COMPLETED),
        full(Status.FAILED, PromptRejectedError(WORDS, param="prompt", code="content_policy_violation")),
        full(Status.FAILED, UpstreamRefusedRequestError(WORDS, param="size")),
        full(Status.FAILED, UpstreamFailedError(WORDS), stored=0),
        full(Status.FAILED, refused(UpstreamRefusedRequestError(WORDS, param="size")), stored=1),
        full(Status.CANCELLED, stored=1),
    ],
    ids=lambda generation: f"{generation.status}-{generation.failure.kind if generation.failure else ''}",
)
def test_no_prompt_no_signed_url_and_no_words_of_an_upstream_are_in_an_event(generation: Generation) -> None:
    text = json.dumps(delivered(generation_event(generation)))
    assert [canary for canary in CANARIES if canary in text] == []
    assert "order-1234" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "7x7"},
        {"n": 99},
        {"model": "dall-e-4"},
        {"steps": 50},
        {"style": 7},
        {"prompt": PROMPT * 100},
        {"prompt": [PROMPT]},
        {"prompt": {"text": PROMPT}},
    ],
    ids=str,
)
def test_the_prompt_and_the_user_of_a_rejected_request_are_in_no_event(fields: dict[str, Any]) -> None:
    body = json.dumps({"prompt": PROMPT, "user": USER, **fields}).encode()
    with pytest.raises(InvalidRequestError) as refusal:
        read_image_request(body, "application/json", prompt_cap=1000)
    text = json.dumps(delivered(rejection_event(Rejection("7bf73129", "shop", "order-1234", kept(refusal.value)))))
    assert [canary for canary in CANARIES if canary in text] == []
    assert next(iter(fields)) in text


# The schemas.


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_schema_is_one_and_its_examples_are_valid(path: Any) -> None:
    read = json.loads(path.read_text())
    Draft202012Validator.check_schema(read)
    assert (read["$id"], path.stem) == (path.name, read["title"].lower().replace(" ", "-"))
    assert read["properties"]["detail-type"] == {"const": read["title"]}
    assert read["examples"]
    for example in read["examples"]:
        Draft202012Validator(read, format_checker=FormatChecker()).validate(example)


def test_there_is_a_schema_for_every_event() -> None:
    types = {generation_event(full(status))[0] for status in ENDS} | {
        "Image Generation Rejected",
        "Image Batch Completed",
    }
    assert {json.loads(path.read_text())["title"] for path in SCHEMAS} == types | {"Image Generation Requested"}


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_schema_knows_no_field_but_those_it_names(path: Any) -> None:
    read = json.loads(path.read_text())
    (example, *_) = read["examples"]
    validator = Draft202012Validator(read)
    assert not validator.is_valid(example | {"prompt": PROMPT})
    assert not validator.is_valid(example | {"detail": example["detail"] | {"url": SIGNED}})
    for name in read["required"]:
        assert not validator.is_valid({key: value for key, value in example.items() if key != name}), name


def test_the_examples_of_the_page_are_valid() -> None:
    page = (ROOT / "docs/events.md").read_text()
    completed, failed, rejected, batch = (
        json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    )
    assert delivered((completed["detail-type"], completed["detail"])) == completed
    delivered(("Image Generation Failed", completed["detail"] | failed))
    delivered(("Image Generation Rejected", rejected))
    delivered(("Image Batch Completed", batch))
    (requested,) = re.findall(r'"Detail": (".*")\n', page)
    (example,) = schema("Image Generation Requested")["examples"]
    asked = example | {"detail": json.loads(json.loads(requested))}
    Draft202012Validator(schema("Image Generation Requested")).validate(asked)
    assert all(f"(../events/schemas/{path.name})" in page for path in SCHEMAS)


def test_a_request_by_event_has_the_fields_of_a_request() -> None:
    detail = schema("Image Generation Requested")["properties"]["detail"]
    assert set(detail["properties"]) == {*ImageRequest.__dataclass_fields__, "custom_id", "client", "idempotency_key"}
    (example,) = schema("Image Generation Requested")["examples"]
    own = {"custom_id", "client", "idempotency_key"}
    body = json.dumps({key: value for key, value in example["detail"].items() if key not in own}).encode()
    assert read_image_request(body, "application/json", prompt_cap=1000).prompt == example["detail"]["prompt"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": 7},
        {"n": 0},
        {"n": 11},
        {"style": "noir"},
        {"steps": 50},
        {"client": "Shop"},
        {"client": "-shop"},
        {"client": "s" * 33},
        {"custom_id": ""},
        {"custom_id": "x" * 257},
        {"idempotency_key": ""},
        {"idempotency_key": "x" * 256},
        {"idempotency_key": "ключ"},
    ],
    ids=str,
)
def test_a_bad_request_by_event_is_not_valid(fields: dict[str, Any]) -> None:
    read = schema("Image Generation Requested")
    (example,) = read["examples"]
    assert not Draft202012Validator(read).is_valid(example | {"detail": example["detail"] | fields})
