"""The end of a generation is published at least once, without prompts, URLs and messages of the upstream."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from msgspec.structs import replace

from imagegen.domain import errors, generations
from imagegen.domain.errors import BatchCancelledError, BatchExpiredError, ImagegenError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import CallAnswer, Generation, Origin, Rejection, Status, StoredImage, UpstreamCall
from imagegen.domain.images import ImageRequest
from imagegen.wire.events import generation_event, rejection_event
from imagegen.wire.openapi import ERRORS
from imagegen.wire.request_events import read_event
from tests.conftest import ROOT
from tests.support.hooks import after, before
from tests.support.in_memory import NOW, InMemoryService, attempts
from tests.support.models import admitted, catalog, read_operation, read_request

REFUSED = failure_of(errors.UpstreamRateLimitedError("no"))
ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)

# Publishing. test_work_on_generation.py and test_manage_generation.py have the events of workers and callers.


def ended(service: InMemoryService, status: Status = Status.COMPLETED) -> Generation:
    """An ended generation with one attempt, which was not refused."""
    generation = service.admitted()
    service.left_behind(generation, UpstreamCall((), attempts(1)))
    return service.ended(generation, status)


@pytest.mark.parametrize("status", ENDS)
def test_an_end_is_published_once_and_marked(service: InMemoryService, status: Status) -> None:
    generation = ended(service, status)
    for _ in range(2):
        service.publish(service.record(generation))
        assert service.bus.ended == [generation]
        assert service.record(generation) == replace(generation, published=True)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS])
def test_nothing_is_published_before_the_end(service: InMemoryService, status: Status) -> None:
    service.publish(replace(ended(service), status=status))
    assert service.published == []
    assert "mark_published" not in service.records.asked


@pytest.mark.parametrize(
    ("port", "when", "published"),
    [("bus", "before", 1), ("bus", "after", 2), ("records", "before", 2), ("records", "after", 1)],
)
def test_an_end_that_cannot_be_published_or_marked_is_published_again(
    service: InMemoryService, port: str, when: str, published: int
) -> None:
    generation = ended(service)
    getattr(service, port).failures.append(when)
    with pytest.raises(errors.RecordsUnavailableError):
        service.publish(generation)
    assert service.record(generation).published is ((port, when) == ("records", "after"))
    service.publish(service.record(generation))
    assert service.published == [(generation.id, Status.COMPLETED)] * published
    assert service.record(generation).published


def test_an_end_is_published_even_if_the_record_was_deleted_meanwhile(service: InMemoryService) -> None:
    generation = ended(service)
    service.buried(generation)
    service.publish(generation)
    assert service.published == [(generation.id, Status.COMPLETED)]
    assert service.records.get(generation.id) is None


def test_the_end_of_a_retry_that_begins_during_a_publication_is_published_too(service: InMemoryService) -> None:
    """Another process may have marked the same end as published, so that an operator could retry it."""
    generation = ended(service, Status.FAILED)

    def begun_anew(published: Generation) -> None:
        if len(service.published) == 1:
            service.records.mark_published(published)
            assert service.records.requeue(published, now=service.now) is not None

    after(service.bus, "generation_ended", begun_anew)
    service.publish(generation)
    service.publish(service.ended(generation))
    assert service.published == [(generation.id, Status.FAILED), (generation.id, Status.COMPLETED)]
    assert service.record(generation).published


def test_quota_is_returned_before_the_line_ends_and_the_event_comes_last(service: InMemoryService) -> None:
    steps: list[str] = []
    before(service.counters, "give_back", lambda name, _, images, **__: steps.append(f"{images} to {name}"))
    before(service, "line_ended", lambda _: steps.append("line ended"))
    before(service.bus, "generation_ended", lambda _: steps.append("published"))
    generation = ended(service, Status.FAILED)
    service.records.save_failure(generation.id, 0, 1, REFUSED)
    current = service.record(generation)
    for _ in range(2):  # two processes may read the same end
        service.publish(current)
    assert steps[:4] == ["1 to alice", "1 to *", "line ended", "published"]
    assert steps[4:] == ["line ended", "published"]


def test_quota_is_returned_for_a_refusal_after_the_end_is_published(service: InMemoryService) -> None:
    generation = ended(service, Status.CANCELLED)
    service.publish(generation)
    assert service.used == {1}
    service.records.save_failure(generation.id, 0, 1, REFUSED)
    for _ in range(2):
        service.publish(service.record(generation))
    assert service.used == {0}
    assert service.published == [(generation.id, Status.CANCELLED)]


# The content of an event.

PROMPT, REVISED, USER = "an otter in a canary coat", "an otter, revised by a canary", "canary@example.org"
WORDS = "The canary's own words: you may not paint https://upstream.example/canary"
SIGNED = "https://images.example/canary.png?X-Amz-Signature=canary"
CANARIES = ("otter", "canary", "X-Amz")
EVENT, CUSTOM_ID = "7bf73129", "order-1234"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "events/schemas").glob("*.json"))}
EACH_SCHEMA = pytest.mark.parametrize("name", SCHEMAS)


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SCHEMAS[name], format_checker=FormatChecker())


def delivered(described: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The event of a subscriber: JSON in EventBridge's envelope. It is valid and has no canary."""
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
    validator(detail_type.lower().replace(" ", "-")).validate(event)
    assert [canary for canary in CANARIES if canary in json.dumps(event)] == []
    return event


def full(status: Status, error: ImagegenError | None = None, *, stored: int = 2, **fields: Any) -> Generation:
    """A generation of two images, with a canary in every field that can have one."""
    request = ImageRequest(PROMPT, "dall-e-3", "url", 2, options={"size": "1024x1024", "user": USER})
    origin = Origin(CUSTOM_ID)
    generation = admitted(request, caller="shop", base_url="https://x.example/prod", now=NOW, origin=origin)
    answer = CallAnswer((generations.AnsweredImage(SIGNED, REVISED),), {"size": "canary"}, {"canary": 1}, "fake")
    ended = {
        "owner": "canary-owner",
        "calls": tuple(UpstreamCall(call.image_ids, attempts(2), answer) for call in generation.calls),
        "stored": {image_id: StoredImage("image/png", 7) for image_id in generation.image_ids[:stored]},
        "failure": failure_of(error) if error else None,
        "completed_at": NOW + 7,
    }
    return replace(generation, status=status, **(ended | fields))


def rejected(error: ImagegenError, client: str | None = "shop", custom_id: str | None = CUSTOM_ID) -> dict[str, Any]:
    return delivered(rejection_event(Rejection(EVENT, client, custom_id, failure_of(error))))


def part_refused() -> ImagegenError:
    error = errors.PartialGenerationError(f"1 of 2: {WORDS}")
    error.__cause__ = errors.PromptRejectedError(WORDS, param="prompt")
    return error


def test_the_event_of_a_completion_has_the_caller_the_model_and_the_images() -> None:
    generation = full(Status.COMPLETED)
    event = delivered(generation_event(generation))
    assert event["detail-type"] == "Image Generation Completed"
    link = "https://x.example/prod/v1/images/"
    assert event["detail"] == {
        "id": generation.id,
        "client": "shop",
        "custom_id": CUSTOM_ID,
        "batch_id": None,
        "model": "dall-e-3",
        "n": 2,
        "images": [
            {"id": image_id, "permalink": link + image_id, "media_type": "image/png"}
            for image_id in generation.image_ids
        ],
        "repeated_calls": 2,
        "extra_calls": 0,
        "upstream": "fake",
        "cost": {"usd": 0.16, "basis": "unknown"},  # each of two calls was answered and has one more attempt
        "created_at": int(NOW),
        "completed_at": int(NOW + 7),
        "error": None,
    }


@pytest.mark.parametrize("error", [BatchCancelledError("no"), BatchExpiredError("no"), None])
def test_the_event_of_a_cancelled_generation_says_which_end_of_its_batch_it_met(error: ImagegenError | None) -> None:
    batch_id = f"batch_{'A' * 22}"
    stopped = full(Status.CANCELLED, error, origin=Origin(CUSTOM_ID, batch_id, 1))
    detail = delivered(generation_event(stopped))["detail"]
    assert (detail["batch_id"], detail["error"] and detail["error"]["code"]) == (batch_id, error and error.code)


def test_the_event_of_a_generation_without_a_custom_id_has_none() -> None:
    assert delivered(generation_event(full(Status.COMPLETED, origin=Origin())))["detail"]["custom_id"] is None


@pytest.mark.parametrize(
    ("error", "kind", "code", "param"),
    [
        (
            errors.PromptRejectedError(WORDS, param="prompt", code="moderation_blocked"),
            *("image_generation_user_error", "moderation_blocked", "prompt"),
        ),
        (
            errors.UpstreamRefusedRequestError(WORDS, param="size"),
            *("invalid_request_error", "upstream_refused_request", "size"),
        ),
        (errors.UpstreamFailedError(WORDS), "upstream_error", "upstream_failed", None),
        (part_refused(), "invalid_request_error", "content_policy_violation", "prompt"),
    ],
    ids=["blocked", "refused", "failed", "part"],
)
def test_the_event_of_a_failure_has_type_code_and_param_and_no_message(
    error: ImagegenError, kind: str, code: str, param: str | None
) -> None:
    generation = full(Status.FAILED, error, stored=1)
    event = delivered(generation_event(generation))
    assert event["detail-type"] == "Image Generation Failed"
    assert event["detail"]["error"] == {"type": kind, "code": code, "param": param}
    assert event["detail"]["custom_id"] == CUSTOM_ID
    assert [image["id"] for image in event["detail"]["images"]] == list(generation.stored_ids)


@pytest.mark.parametrize("stored", [0, 1])
def test_the_event_of_a_cancellation_names_the_stored_images(stored: int) -> None:
    event = delivered(generation_event(full(Status.CANCELLED, stored=stored)))
    assert event["detail-type"] == "Image Generation Cancelled"
    assert (len(event["detail"]["images"]), event["detail"]["error"]) == (stored, None)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_failure_can_be_published(kind: type[ImagegenError]) -> None:
    """The event is valid, so the failure has a code."""
    if kind is not errors.InvalidRequestError:  # its code is null, and it ends no generation
        delivered(generation_event(full(Status.FAILED, kind(WORDS))))
    rejected(kind("Words."))


def test_a_failure_with_an_unknown_code_can_be_published() -> None:
    failure = Failure("from_the_future", WORDS, money_spent=True, param="size")
    event = delivered(generation_event(full(Status.FAILED, failure=failure)))
    assert event["detail"]["error"] == {"type": "server_error", "code": "from_the_future", "param": "size"}


def test_the_event_of_a_rejection_names_its_event_and_has_the_error_with_its_message() -> None:
    message = "There are 3 images left for today."
    event = rejected(errors.QuotaExceededError(message))
    assert event["detail-type"] == "Image Generation Rejected"
    error = {"message": message, "type": "insufficient_quota", "code": "insufficient_quota", "param": None}
    assert event["detail"] == {"event_id": EVENT, "client": "shop", "custom_id": CUSTOM_ID, "error": error}


def test_a_rejection_without_a_caller_can_be_published() -> None:
    detail = rejected(errors.InvalidRequestError("No."), None, None)["detail"]
    assert (detail["client"], detail["custom_id"], detail["error"]["code"]) == (None, None, None)


BAD_REQUESTS: dict[str, list[Any]] = {
    "size": ["7x7"],
    "n": [99],
    "model": ["dall-e-4"],
    "steps": [50],
    "style": [7],
    "prompt": [PROMPT * 100, [PROMPT], {"text": PROMPT}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in BAD_REQUESTS for value in BAD_REQUESTS[field]]
)
def test_no_rejection_contains_the_prompt_or_the_user(field: str, value: Any) -> None:
    body = json.dumps({"prompt": PROMPT, "user": USER, field: value}).encode()
    with pytest.raises(errors.InvalidRequestError) as refusal:
        read_request(1000)(body, "application/json")
    assert field in json.dumps(rejected(refusal.value))


# The schemas.


@EACH_SCHEMA
def test_a_schema_is_valid_accepts_its_examples_and_rejects_other_fields(name: str) -> None:
    schema, valid = SCHEMAS[name], validator(name)
    Draft202012Validator.check_schema(schema)
    assert (schema["$id"], name) == (f"{name}.json", schema["title"].lower().replace(" ", "-"))
    assert schema["properties"]["detail-type"] == {"const": schema["title"]}
    assert schema["examples"]
    for example in schema["examples"]:
        valid.validate(example)
        assert not valid.is_valid(example | {"prompt": PROMPT})
        assert not valid.is_valid(example | {"detail": example["detail"] | {"url": SIGNED}})
        for field in schema["required"]:
            assert not valid.is_valid({key: value for key, value in example.items() if key != field}), field


def test_there_is_a_schema_for_every_event() -> None:
    others = {"Image Generation Rejected", "Image Batch Completed", "Image Generation Requested"}
    assert {schema["title"] for schema in SCHEMAS.values()} == {generation_event(full(end))[0] for end in ENDS} | others


def test_the_examples_of_the_documentation_are_valid() -> None:
    page = (ROOT / "docs/events.md").read_text()
    completed, failed, rejection, batch, edit = map(json.loads, re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert delivered((completed["detail-type"], completed["detail"])) == completed
    delivered(("Image Generation Failed", completed["detail"] | failed))
    delivered(("Image Generation Rejected", rejection))
    delivered(("Image Batch Completed", batch))
    (requested,) = re.findall(r'"Detail": (".*")\n', page)
    for detail in (json.loads(json.loads(requested)), edit):
        validator(REQUESTED).validate(REQUEST | {"detail": detail})
        read_event(json.dumps(REQUEST | {"detail": detail})).read(read_operation(1000).fields)
    assert all(f"(../events/schemas/{name}.json)" in page for name in SCHEMAS)


REQUESTED = "image-generation-requested"
(REQUEST,) = SCHEMAS[REQUESTED]["examples"]


IMAGE_FIELDS = {"images", "mask", "style_reference_images", "character_reference_images"}


def test_a_request_by_event_has_the_fields_of_a_request() -> None:
    own = {"custom_id", "client", "idempotency_key"}
    assert set(SCHEMAS[REQUESTED]["properties"]["detail"]["properties"]) == {
        "prompt",
        "model",
        *catalog(1000, {}).fields,
        "operation",
        *IMAGE_FIELDS,
        *own,
    }
    body = json.dumps({key: value for key, value in REQUEST["detail"].items() if key not in own}).encode()
    assert read_request(1000)(body, "application/json").prompt == REQUEST["detail"]["prompt"]


BAD_DETAILS: dict[str, list[Any]] = {
    "prompt": ["", " \n", 7],
    "n": [0, 11],
    "style": ["noir"],
    "steps": [50],
    "client": ["Shop", "-shop", "s" * 33],
    "custom_id": ["", "x" * 257],
    "idempotency_key": ["", "x" * 256, "ключ"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD_DETAILS for value in BAD_DETAILS[field]])
def test_a_bad_request_by_event_is_not_valid(field: str, value: Any) -> None:
    assert not validator(REQUESTED).is_valid(REQUEST | {"detail": REQUEST["detail"] | {field: value}})
