"""The upstream calls of a generation: their images are stored and recorded, or they fail."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import msgspec
import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import ImagegenError, PartialGenerationError, RecordsUnavailableError
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import (
    AnsweredImage,
    CallAnswer,
    Generation,
    LostClaimError,
    Status,
    StoredImage,
    UpstreamAttempt,
    UpstreamCall,
)
from imagegen.domain.images import ResponseFormat, UpstreamImage, UpstreamImages
from imagegen.usecases.send_upstream_call import UnfinishedError
from imagegen.usecases.tried import KEEP_TRIES
from tests.fakes.provider import png
from tests.support.hooks import after, before, changed, raising
from tests.support.in_memory import GenerationFailed, InMemoryService, StillDeadline, attempts
from tests.support.waiting import SECONDS

ONCE = attempts(1)
EACH_FORMAT = pytest.mark.parametrize("response_format", ["url", "b64_json"])

REFUSED, REJECTED = errors.UpstreamRefusedRequestError("no such size"), errors.PromptRejectedError("not that")
NO_SECRETS = errors.SecretUnavailableError("no answer")
FAILED, TIMED_OUT = errors.UpstreamFailedError("broke"), errors.UpstreamTimeoutError("too slow")
INVALID, TOO_FEW = errors.UpstreamAnswerInvalidError("no JSON"), errors.UpstreamTooFewImagesError("one of two")
NOTHING_SPENT, MONEY_SPENT = (REFUSED, REJECTED, NO_SECRETS), (FAILED, TIMED_OUT, INVALID, TOO_FEW)
INTERRUPTED, TRUNCATED = errors.ImageDownloadInterruptedError("broke off"), errors.ImageTruncatedError("too short")
HICCUP, DENIED = errors.ImageStorageInterruptedError("not this time"), errors.ImageStorageError("access denied")
HTML, BUG = errors.NotAnImageError("HTML"), KeyError("a bug")


def name_of(failure: Exception | None) -> str:
    return type(failure).__name__


def outcome(service: InMemoryService, generation: Generation, deadline: Deadline | None = None) -> Failure:
    with pytest.raises(GenerationFailed) as caught:
        service.generate(generation, deadline=deadline)
    return caught.value.failure


def saved(service: InMemoryService) -> dict[str, bytes]:
    return {image_id: content for image_id, (_, content) in service.images.saved.items()}


def stored(service: InMemoryService) -> dict[str, StoredImage]:
    """The stored images as the record must list them."""
    return {image_id: StoredImage("image/png", len(content)) for image_id, content in saved(service).items()}


def one_replaced(answer: UpstreamImages, image: UpstreamImage) -> UpstreamImages:
    """The answer of three images with another second one."""
    return replace(answer, images=(answer.images[0], image, answer.images[2]))


# Requests and images.


def revised_prompt(record: Generation, image_id: str) -> str | None:
    answered = record.answered(image_id)
    return answered.revised_prompt if answered else None


@pytest.mark.parametrize(
    ("model", "n", "response_format", "calls"),
    [
        ("dall-e-3", 1, "url", [1]),
        ("dall-e-3", 10, "b64_json", [1] * 10),
        ("dall-e-2", 10, "url", [10]),
        ("gpt-image-1", 10, "b64_json", [10]),
        ("flux-pro", 3, "url", [1] * 3),
    ],
)
def test_every_requested_image_is_stored_under_its_id_and_listed_on_the_record(
    service: InMemoryService, model: str, n: int, response_format: ResponseFormat, calls: list[int]
) -> None:
    generation = service.begun(n=n, model=model, response_format=response_format)
    record = service.generate(generation)
    assert [call.n for call in service.provider.calls] == calls
    assert len(set(generation.image_ids)) == len(set(saved(service).values())) == n
    assert record.image_ids == record.stored_ids == generation.image_ids
    assert record.stored == stored(service)
    revised = {image_id: str(revised_prompt(record, image_id)).removeprefix("a cat, ") for image_id in record.image_ids}
    assert saved(service) == {image_id: png(name) for image_id, name in revised.items()}
    assert (record.status, record.failure, record.repeated_calls) == (Status.IN_PROGRESS, None, 0)
    assert service.images.looked_for == []  # no image can be stored yet
    answered = [image.url for call in record.calls if call.answer for image in call.answer.images]
    by_url = response_format == "url"
    assert {type(source) for source in service.source.opened} == {str if by_url else bytes}
    assert [url is not None for url in answered] == [by_url] * n
    assert (record.details, record.usage) == ({}, None)


def test_an_image_by_url_is_accepted_in_place_of_bytes(service: InMemoryService) -> None:
    """As some resellers answer."""
    by_url = UpstreamImage(service.answer("other").images[0].url)
    changed(service.provider, "start", lambda answer: one_replaced(answer, by_url))
    record = service.generate(service.begun(n=3, model="dall-e-2", response_format="b64_json"))
    assert [saved(service)[image_id] for image_id in record.image_ids] == [png("1-1"), png("other"), png("1-3")]
    assert record.stored_ids == record.image_ids


def test_an_image_that_is_already_stored_is_kept_and_listed(service: InMemoryService) -> None:
    generation = service.begun()
    service.store(*generation.image_ids)  # another image than the upstream's
    record = service.generate(generation)
    assert saved(service) == {image_id: png(image_id) for image_id in generation.image_ids}
    assert record.stored == stored(service)


def test_ten_calls_run_concurrently_with_the_same_deadline(service: InMemoryService) -> None:
    barrier = threading.Barrier(10)
    service.provider.during_call = lambda: barrier.wait(SECONDS)
    deadline = StillDeadline(30)
    assert len(service.generate(service.begun(n=10), deadline=deadline).stored) == 10
    assert {id(call.deadline) for call in service.provider.calls} == {id(deadline)}


@EACH_FORMAT
def test_ten_images_of_one_call_are_stored_concurrently(service: InMemoryService, response_format: str) -> None:
    barrier = threading.Barrier(10)
    service.images.during_save = lambda: barrier.wait(SECONDS)
    record = service.generate(service.begun(n=10, model="dall-e-2", response_format=response_format))
    assert len(record.stored) == 10


def test_an_image_is_stored_while_another_call_is_running(service: InMemoryService) -> None:
    at_first, is_stored = threading.Lock(), threading.Event()
    service.provider.during_call = lambda: at_first.acquire(blocking=False) or is_stored.wait(SECONDS)
    service.images.during_save = is_stored.set
    assert len(service.generate(service.begun(n=2)).stored) == 2
    assert is_stored.is_set()


def test_the_record_has_the_details_and_the_summed_usage_of_all_calls(service: InMemoryService) -> None:
    service.provider.details = {"background": "opaque", "size": "1024x1024"}
    usage: dict[str, Any] = {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}
    service.provider.usage = usage
    record = service.generate(service.begun(n=2, model="gpt-image-1", response_format="b64_json"))
    assert (record.details, record.usage) == (service.provider.details, usage)
    record = service.generate(service.begun(n=3))
    tokens = {"text_tokens": 30, "image_tokens": 0}
    assert record.usage == {"total_tokens": 150, "input_tokens_details": tokens}
    assert usage == {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}


# Paid images are kept.


@pytest.mark.parametrize(
    ("port", "failures", "failure", "response_format"),
    [
        ("images", "failures", HICCUP, "url"),
        ("images", "failures", HICCUP, "b64_json"),
        ("source", "failures", INTERRUPTED, "url"),
        ("source", "failures", TRUNCATED, "url"),
        ("source", "failures_in_body", INTERRUPTED, "url"),
        ("source", "failures_in_body", TRUNCATED, "url"),
    ],
)
def test_an_interrupted_download_or_save_is_tried_again_after_a_pause_and_not_paid_again(
    service: InMemoryService, port: str, failures: str, failure: ImagegenError, response_format: str
) -> None:
    getattr(getattr(service, port), failures).extend([failure] * (KEEP_TRIES - 1))
    generation = service.begun(response_format=response_format)
    record = service.generate(generation)
    assert saved(service) == {generation.image_ids[0]: png("1-1")}
    assert record.stored == stored(service)
    assert (len(service.source.opened), len(service.slept), len(service.provider.calls)) == (KEEP_TRIES, 3, 1)
    assert all(0.1 * 2**at <= pause <= 0.2 * 2**at for at, pause in enumerate(service.slept))


@pytest.mark.parametrize(
    ("port", "failure", "tries"),
    [
        ("source", INTERRUPTED, KEEP_TRIES),
        ("images", HICCUP, KEEP_TRIES),
        ("source", errors.ImageUrlRefusedError("private"), 1),
        ("source", errors.ImageDownloadError("gone"), 1),
        ("source", HTML, 1),
        ("source", errors.ImageTooLargeError("huge"), 1),
        ("images", DENIED, 1),
        ("images", errors.ImageTooLargeError("huge, found out late"), 1),
    ],
)
def test_a_failure_is_final_after_the_last_try_or_at_once_if_a_retry_cannot_help(
    service: InMemoryService, port: str, failure: ImagegenError, tries: int
) -> None:
    getattr(service, port).failures.extend([failure] * tries)
    generation = service.begun()
    assert outcome(service, generation) == failure_of(failure)
    assert (len(service.source.opened), len(service.provider.calls), service.images.saved) == (tries, 1, {})
    (call,) = service.record(generation).calls  # the answer stays recorded
    assert call.answer == CallAnswer(
        (AnsweredImage("https://images.example/1-1.png", "a cat, 1-1"),), upstream="reseller"
    )


def test_truncated_bytes_are_not_read_again(service: InMemoryService) -> None:
    service.source.failures_in_body.append(TRUNCATED)
    assert outcome(service, service.begun(response_format="b64_json")) == failure_of(TRUNCATED)
    assert len(service.source.opened) == 1


def test_no_try_begins_if_its_pause_would_outlast_the_deadline(service: InMemoryService) -> None:
    service.images.failures.append(HICCUP)
    generation = service.begun(response_format="b64_json")
    assert outcome(service, generation, StillDeadline(0.1)) == failure_of(HICCUP)  # the shortest first pause
    assert (len(service.images.tries), service.slept) == (1, [])


def test_no_call_is_sent_after_the_deadline(service: InMemoryService) -> None:
    assert not outcome(service, service.begun(n=3), StillDeadline(0)).money_spent
    assert service.provider.calls == []


@pytest.mark.parametrize(("port", "failure"), [("source", INTERRUPTED), ("images", HICCUP)])
@pytest.mark.parametrize("seconds", [0.99, 1.0])
def test_with_less_than_a_second_left_a_known_url_is_left_to_the_next_worker(
    service: InMemoryService, port: str, failure: ImagegenError, seconds: float
) -> None:
    getattr(service, port).failures.extend([failure] * KEEP_TRIES)
    generation = service.begun()
    with pytest.raises(UnfinishedError if seconds < 1 else GenerationFailed):
        service.generate(generation, deadline=StillDeadline(seconds))
    assert service.generate(service.claimed(generation)).stored_ids == generation.image_ids
    assert len(service.provider.calls) == 1


def test_an_image_is_listed_if_the_answer_to_its_save_is_lost_and_its_link_is_dead(service: InMemoryService) -> None:
    after(service.images, "save", lambda *_, **__: service.provider.files.clear())
    after(service.images, "save", raising(HICCUP))
    generation = service.begun()
    assert service.generate(generation).stored_ids == generation.image_ids


@pytest.mark.parametrize(("response_format", "raised"), [("url", UnfinishedError), ("b64_json", GenerationFailed)])
def test_a_save_of_unknown_outcome_is_left_to_the_next_worker_only_if_the_image_has_a_url(
    service: InMemoryService, response_format: str, raised: type[Exception]
) -> None:
    after(service.images, "save", raising(*[HICCUP] * KEEP_TRIES))
    service.images.failures_to_find.append(DENIED)
    with pytest.raises(raised):
        service.generate(service.begun(response_format=response_format))


# Failures.


@pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=name_of)
@pytest.mark.parametrize("n", [1, 3])
def test_if_all_calls_fail_alike_that_is_the_failure_and_each_attempt_has_it(
    service: InMemoryService, n: int, failure: ImagegenError
) -> None:
    service.provider.failures.extend([failure] * n)
    generation = service.begun(n=n)
    assert outcome(service, generation) == failure_of(failure)
    assert (len(service.provider.calls), service.images.tries) == (n, [])
    (noted,) = {call.attempts for call in service.record(generation).calls}
    assert noted == (UpstreamAttempt("reseller", service.now, failure=failure_of(failure)),)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ((REFUSED, FAILED, REJECTED), FAILED),
        ((REFUSED, FAILED, None), FAILED),
        ((REFUSED, None, None), REFUSED),
        ((FAILED, None, None), FAILED),
        ((REFUSED, BUG, REJECTED), None),
        ((REFUSED, BUG, None), None),
    ],
    ids=["all", "two", "refused", "failed", "bug", "bug and refused"],
)
def test_a_failure_that_possibly_cost_money_outweighs_one_that_did_not_and_keeps_the_images(
    service: InMemoryService, failures: Sequence[Exception | None], order: Sequence[int], cause: ImagegenError | None
) -> None:
    service.provider.failures.extend(failures[at] for at in order)
    generation = service.begun(n=3)
    error = outcome(service, generation)
    assert (error.code == PartialGenerationError.code) is (None in failures)
    if error.cause:
        assert set(service.record(generation).stored_ids) == set(service.images.saved)
        assert error.message.startswith(f"{failures.count(None)} of 3 images were made and stored.")
        assert cause is None or cause.message in error.message
    assert error.reason == failure_of(cause) if cause else error.reason.code == errors.InternalError.code
    assert len(service.provider.calls) == 3


@pytest.mark.parametrize("order", [(REFUSED, None), (None, REFUSED)], ids=["first", "last"])
def test_a_paid_image_that_cannot_be_stored_outweighs_a_call_that_cost_nothing(
    service: InMemoryService, order: Sequence[Exception | None]
) -> None:
    service.provider.failures.extend(order)
    service.images.failures.append(DENIED)
    assert outcome(service, service.begun(n=2)) == failure_of(DENIED)


@pytest.mark.parametrize(
    ("port", "response_format"),
    [("provider", "url"), ("source", "url"), ("source", "b64_json"), ("images", "url"), ("images", "b64_json")],
)
def test_a_bug_becomes_an_internal_error_without_a_retry(
    service: InMemoryService, port: str, response_format: str
) -> None:
    getattr(service, port).failures.append(BUG)
    assert outcome(service, service.begun(response_format=response_format)).code == errors.InternalError.code
    assert len(service.provider.calls) == 1


@pytest.mark.parametrize("model", ["dall-e-3", "dall-e-2"])
def test_a_provider_that_returns_too_few_images_is_a_bug(service: InMemoryService, model: str) -> None:
    changed(service.provider, "start", lambda answer: UpstreamImages(answer.images[:-1]))
    generation = service.begun(n=2, model=model)
    assert outcome(service, generation).code == errors.InternalError.code
    assert {call.answer for call in service.record(generation).calls} == {None}


@EACH_FORMAT
@pytest.mark.parametrize(("port", "failure"), [("answer", INVALID), ("source", HTML), ("images", DENIED)])
def test_good_images_are_kept_beside_a_broken_one_and_a_takeover_sends_no_call(
    service: InMemoryService, port: str, failure: errors.MoneySpentError, response_format: str
) -> None:
    if port == "answer":
        broken = UpstreamImage(failure=failure)
        changed(service.provider, "start", lambda answer: one_replaced(answer, broken))
    else:
        getattr(service, port).failures.append(failure)
    generation = service.begun(n=3, model="dall-e-2", response_format=response_format)
    error = outcome(service, generation)
    assert error.code == PartialGenerationError.code
    assert error.cause == failure_of(failure)
    there = service.record(generation).stored_ids
    assert (len(there), set(there)) == (2, set(service.images.saved))
    if port == "answer":
        answered = service.record(generation).calls[0].answer
        assert answered is not None
        assert [image.failure for image in answered.images] == [None, failure_of(INVALID), None]

    good = dict(service.images.saved)
    if port != "answer" and response_format == "url":  # its URL is known: a takeover can still fetch it
        assert service.generate(service.claimed(generation)).stored_ids == generation.image_ids
    else:
        again = outcome(service, service.claimed(generation))
        assert again.code == PartialGenerationError.code
        assert again.cause == failure_of(failure)
        assert service.images.saved == good
    assert (len(service.provider.calls), service.record(generation).extra_calls) == (1, 0)


# The order of writes.


@pytest.mark.parametrize(("model", "n"), [("dall-e-3", 1), ("dall-e-3", 3), ("dall-e-2", 3)])
def test_attempts_are_recorded_before_their_calls_and_urls_before_their_downloads(
    service: InMemoryService, model: str, n: int
) -> None:
    generation = service.begun(n=n, model=model)
    sent: list[int] = []
    known: list[set[str]] = []

    def look(*_: object) -> None:
        answers = [call.answer for call in service.record(generation).calls if call.answer]
        known.append({image.url for answer in answers for image in answer.images if image.url})

    service.provider.during_call = lambda: sent.append(sum(call.sent for call in service.record(generation).calls))
    before(service.source, "open", look)
    service.generate(generation)
    calls = len(generation.calls)
    assert len(sent) == max(sent) == calls
    assert all(seen >= at for at, seen in enumerate(sorted(sent), 1))  # each call sees at least its own attempt
    assert len(known) == max(map(len, known)) == n
    assert all(len(urls) >= n // calls for urls in known)


@pytest.mark.parametrize(("model", "n"), [("gpt-image-1", 1), ("gpt-image-1", 3), ("dall-e-3", 3)])
def test_bytes_are_stored_before_their_answer_is_recorded(service: InMemoryService, model: str, n: int) -> None:
    generation = service.begun(n=n, model=model, response_format="b64_json")
    ready: list[bool] = []

    def look(_: str, index: int, __: CallAnswer) -> None:
        image_ids = set(generation.calls[index].image_ids)
        ready.append(image_ids <= set(service.images.saved) and image_ids <= set(service.record(generation).stored))

    before(service.records, "save_answer", look)
    service.generate(generation)
    assert ready == [True] * len(generation.calls)


# A takeover: another process claims a generation after its owner died.


def taken_over(
    service: InMemoryService, generation: Generation, *calls: UpstreamCall, **images: Sequence[str]
) -> Generation:
    service.left_behind(generation, *calls, **images)
    return service.claimed(generation)


def answer(*urls: str | None) -> CallAnswer:
    return CallAnswer(tuple(AnsweredImage(url, f"of {url}") for url in urls))


def answered(service: InMemoryService, *names: str) -> CallAnswer:
    return CallAnswer(tuple(service.answer(name).images[0] for name in names))


def test_a_takeover_fetches_only_missing_images_and_sends_no_call(service: InMemoryService) -> None:
    generation = service.admitted(n=3, model="dall-e-2")
    first, second, third = generation.image_ids
    known = answered(service, "a", "b", "c")
    left = taken_over(service, generation, UpstreamCall((), ONCE, known), stored=[second], listed=[second])
    record = service.generate(left)
    assert service.provider.calls == []
    assert sorted(map(str, service.source.opened)) == [str(known.images[0].url), str(known.images[2].url)]
    assert saved(service) == {first: png("a"), second: png(second), third: png("c")}
    assert (record.stored_ids, record.calls) == (generation.image_ids, left.calls)


def test_a_takeover_does_nothing_if_every_image_is_stored(service: InMemoryService) -> None:
    generation = service.admitted(n=2, model="dall-e-2")
    known, ids = answer("https://images.example/a", None), generation.image_ids
    left = taken_over(service, generation, UpstreamCall((), ONCE, known), stored=ids, listed=ids)
    service.images.tries.clear()
    assert service.generate(left) == left
    assert (service.provider.calls, service.source.opened, service.images.tries) == ([], [], [])


def test_a_takeover_sends_only_the_calls_that_were_never_sent(service: InMemoryService) -> None:
    generation = service.admitted(n=3)
    first, second, third = generation.image_ids
    calls = (UpstreamCall((), ONCE, answered(service, "a")), UpstreamCall(()), UpstreamCall((), ONCE, answer(None)))
    record = service.generate(taken_over(service, generation, *calls, stored=[third], listed=[third]))
    assert len(service.provider.calls) == 1
    assert saved(service) == {first: png("a"), second: png("1-1"), third: png(third)}
    assert record.stored_ids == generation.image_ids
    assert [call.sent for call in record.calls] == [1, 1, 1]


def test_answered_bytes_that_are_not_stored_are_not_paid_again(service: InMemoryService) -> None:
    left = taken_over(service, service.admitted(), UpstreamCall((), ONCE, answer(None)))
    assert outcome(service, left).code == errors.ImageStorageError.code
    assert service.provider.calls == []


@pytest.mark.parametrize(("listed", "response_format"), [(0, "url"), (1, "b64_json"), (2, "url")])
def test_a_call_of_unknown_outcome_is_repeated_only_for_images_that_are_not_stored(
    service: InMemoryService, listed: int, response_format: str
) -> None:
    generation = service.admitted(n=4, model="dall-e-2", response_format=response_format)
    first, second, third, fourth = generation.image_ids
    there = [second, fourth]
    left = taken_over(service, generation, UpstreamCall((), ONCE), stored=there, listed=there[:listed])
    sent: list[int] = []
    service.provider.during_call = lambda: sent.append(service.record(generation).calls[0].sent)
    record = service.generate(left)
    assert ([call.n for call in service.provider.calls], sent) == ([2], [2])
    assert service.images.looked_for == [image_id for image_id in generation.image_ids if image_id not in left.stored]
    assert saved(service) == {first: png("1-1"), second: png(second), third: png("1-2"), fourth: png(fourth)}
    assert record.stored == stored(service)
    revised = [revised_prompt(record, image_id) for image_id in generation.image_ids]
    assert revised == ["a cat, 1-1", None, "a cat, 1-2", None]
    assert record.repeated_calls == 1


@pytest.mark.parametrize(("sent", "repeat_unknown"), [(1, True), (2, True), (1, False)])
def test_a_call_of_unknown_outcome_is_not_repeated_if_all_its_images_are_stored(
    service: InMemoryService, repeat_unknown: bool, sent: int
) -> None:
    service.repeat_unknown = repeat_unknown
    generation = service.admitted(n=2, model="gpt-image-1", response_format="b64_json")
    record = service.generate(
        taken_over(service, generation, UpstreamCall((), attempts(sent)), stored=generation.image_ids)
    )
    assert (service.provider.calls, record.stored_ids) == ([], generation.image_ids)
    assert record.calls == (UpstreamCall(generation.image_ids, attempts(sent), CallAnswer((AnsweredImage(),) * 2)),)


@pytest.mark.parametrize(
    ("sent", "refused", "repeat_unknown", "retries", "allowed"),
    [
        (1, 0, True, 0, True),
        (2, 0, True, 0, False),
        (0, 0, False, 0, True),
        (1, 0, False, 0, False),
        (2, 0, True, 1, True),
        (3, 0, True, 1, False),
        (2, 0, False, 2, True),
        (3, 0, False, 2, False),
        (1, 1, True, 1, True),
        (3, 3, True, 3, True),
        (5, 3, True, 3, True),
        (2, 1, True, 0, False),
    ],
)
def test_a_call_has_two_attempts_at_most_and_one_more_for_each_retry_of_an_operator(
    service: InMemoryService, sent: int, refused: int, repeat_unknown: bool, retries: int, allowed: bool
) -> None:
    service.repeat_unknown = repeat_unknown
    left = taken_over(service, service.admitted(), UpstreamCall((), attempts(sent, refused)))
    left = msgspec.structs.replace(left, retries=retries)
    if allowed:
        record = service.generate(left)
        assert (record.stored_ids, record.calls[0].sent) == (left.image_ids, sent + 1)
    else:
        assert outcome(service, left).code == errors.OutcomeUnknownError.code
        assert service.record(left).calls == left.calls
    assert len(service.provider.calls) == allowed


def test_images_of_earlier_attempts_are_kept_if_no_further_attempt_is_allowed(service: InMemoryService) -> None:
    generation = service.admitted(n=2, model="gpt-image-1", response_format="b64_json")
    there = generation.image_ids[1:]
    error = outcome(service, taken_over(service, generation, UpstreamCall((), attempts(2)), stored=there))
    assert error.code == PartialGenerationError.code
    assert error.reason.code == errors.OutcomeUnknownError.code
    assert service.record(generation).stored_ids == there
    assert service.provider.calls == []


def test_a_call_of_unknown_outcome_stops_no_other_call(service: InMemoryService) -> None:
    service.repeat_unknown = False
    generation = service.admitted(n=2)
    error = outcome(service, taken_over(service, generation, UpstreamCall((), ONCE)))
    assert error.code == PartialGenerationError.code
    assert error.reason.code == errors.OutcomeUnknownError.code
    assert service.record(generation).stored_ids == generation.image_ids[1:]
    assert len(service.provider.calls) == 1


@pytest.mark.parametrize("sent", [1, 2])
@pytest.mark.parametrize("hiccups", [1, KEEP_TRIES])
def test_a_failing_look_up_in_s3_is_tried_again_and_then_leaves_the_generation_unfinished(
    service: InMemoryService, sent: int, hiccups: int
) -> None:
    generation = service.admitted()
    left = taken_over(service, generation, UpstreamCall((), attempts(sent)), stored=generation.image_ids)
    service.images.failures_to_find.extend([HICCUP] * hiccups)
    if hiccups == KEEP_TRIES:
        with pytest.raises(UnfinishedError):
            service.generate(left)
        left = service.claimed(generation)
    assert service.generate(left).stored_ids == generation.image_ids
    assert service.provider.calls == []


@pytest.mark.parametrize(("sent", "refused", "known"), [(0, 0, True), (1, 1, True), (1, 0, False), (2, 1, False)])
def test_a_refusal_leaves_the_outcome_unknown_only_if_an_earlier_attempt_does(
    service: InMemoryService, sent: int, refused: int, known: bool
) -> None:
    left = taken_over(service, service.admitted(), UpstreamCall((), attempts(sent, refused)))
    left = msgspec.structs.replace(left, retries=refused)
    service.provider.failures.append(REFUSED)
    error = outcome(service, left)
    assert error == failure_of(REFUSED) if known else error.code == errors.OutcomeUnknownError.code
    (call,) = service.record(left).calls
    assert (call.sent, call.refused, call.charged) == (sent + 1, refused + 1, not known)


# Fewer images than requested.

MISSING = AnsweredImage(failure=failure_of(errors.UpstreamTooFewImagesError("1 of 2")))


def short(service: InMemoryService, *came: int) -> None:
    """The upstream answers with so many images, one number a call. Later answers have no image."""
    left = list(came)

    def cut(answer: UpstreamImages) -> UpstreamImages:
        n, here = len(answer.images), left.pop(0) if left else 0
        few = errors.UpstreamTooFewImagesError(f"The image model answered with {here} of {n} images.")
        if not here:
            raise few
        return replace(answer, images=answer.images[:here] + (UpstreamImage(failure=few),) * (n - here))

    changed(service.provider, "start", cut)


def asked(service: InMemoryService) -> list[int]:
    return [call.n for call in service.provider.calls]


def one_of_two(service: InMemoryService, *, sent: int = 1, second_stored: bool = False) -> Generation:
    """A generation that is taken over with the first of its two images stored and listed."""
    generation = service.admitted(n=2, model="dall-e-2")
    call = UpstreamCall((), attempts(sent), answer=CallAnswer((AnsweredImage(), MISSING)))
    first, second = generation.image_ids
    there = [first, second] if second_stored else [first]
    return taken_over(service, generation, call, stored=there, listed=[first])


@EACH_FORMAT
def test_each_missing_image_is_requested_by_an_extra_call(service: InMemoryService, response_format: str) -> None:
    short(service, 1, 1, 1)
    record = service.generate(service.begun(n=3, model="dall-e-2", response_format=response_format))
    assert sorted(record.stored) == sorted(record.image_ids)
    assert len(set(saved(service).values())) == 3
    assert (asked(service), record.extra_calls, record.repeated_calls) == ([3, 1, 1], 2, 0)


def test_an_image_that_is_still_missing_is_not_requested_again(service: InMemoryService) -> None:
    short(service, 1, 1)
    generation = service.begun(n=3, model="dall-e-2")
    for _ in range(3):  # the next process does not request it either
        error = outcome(service, generation)
        assert error.code == PartialGenerationError.code
        assert len(service.record(generation).stored_ids) == 2
        generation = service.claimed(generation)
    assert (asked(service), generation.extra_calls) == ([3, 1, 1], 2)
    assert generation.unreturned == 0  # the first call was possibly charged for all three


@pytest.mark.parametrize(
    ("failures", "cause"), [([], errors.UpstreamTooFewImagesError), ([None, REJECTED], errors.PromptRejectedError)]
)
def test_the_cause_of_a_missing_image_is_the_failure_of_its_extra_call(
    service: InMemoryService, failures: list[Exception | None], cause: type[ImagegenError]
) -> None:
    short(service, 1)
    service.provider.failures.extend(failures)
    generation = service.begun(n=2, model="dall-e-2")
    error = outcome(service, generation)
    assert (error.code, error.reason.code) == (PartialGenerationError.code, cause.code)
    assert service.record(generation).unreturned == 0


def test_an_extra_call_of_unknown_outcome_is_not_repeated(service: InMemoryService) -> None:
    left = one_of_two(service)
    assert left.owner
    service.records.save_attempt(left.id, left.owner, left.calls[1].number, 1, *attempts())
    error = outcome(service, service.claimed(left))
    assert (error.reason.code, service.provider.calls) == (errors.OutcomeUnknownError.code, [])


def test_no_extra_call_is_sent_for_a_dead_letter(service: InMemoryService) -> None:
    service.may_send = False
    error = outcome(service, one_of_two(service))
    assert (error.reason.code, service.provider.calls) == (errors.UpstreamTooFewImagesError.code, [])


def test_an_image_of_a_late_answer_is_not_requested_again(service: InMemoryService) -> None:
    left = one_of_two(service, sent=2, second_stored=True)
    assert service.generate(left).stored_ids == left.image_ids
    assert service.provider.calls == []


def test_an_extra_call_is_not_sent_without_enough_time(service: InMemoryService) -> None:
    service.call_seconds = 100
    short(service, 1, 1)
    generation = service.begun(n=2, model="dall-e-2")
    with pytest.raises(UnfinishedError):
        service.generate(generation, deadline=StillDeadline(99.9))
    assert asked(service) == [2]
    record = service.generate(service.claimed(generation), deadline=StillDeadline(100))
    assert (len(record.stored), asked(service)) == (2, [2, 1])


@EACH_FORMAT
@pytest.mark.parametrize("names", [["late 1"], ["late 1", "late 2"]], ids=["short", "whole"])
def test_an_image_that_only_one_of_two_answers_has_is_kept_and_not_requested(
    service: InMemoryService, names: list[str], response_format: str
) -> None:
    """Another process records its answer first: a whole one if this one is short, else a short one."""
    generation = service.begun(n=2, model="dall-e-2", response_format=response_format)
    first = answered(service, *names)
    if len(names) == 2:
        short(service, 1)
    else:
        first = CallAnswer((*first.images, MISSING))
    service.provider.during_call = lambda: service.records.save_answer(generation.id, 0, first)
    record = service.generate(generation)
    assert record.stored_ids == generation.image_ids
    assert (len(service.provider.calls), record.extra_calls) == (1, 0)


# Lost claims.


@pytest.mark.parametrize("lost", [InMemoryService.claimed, InMemoryService.buried])
def test_a_worker_that_lost_its_claim_sends_no_call(
    service: InMemoryService, lost: Callable[[InMemoryService, Generation], object]
) -> None:
    generation = service.begun(n=3)
    lost(service, generation)
    with pytest.raises(LostClaimError):
        service.generate(generation)
    assert (service.provider.calls, service.images.tries) == ([], [])


@pytest.mark.parametrize("failures", [(REFUSED, None), (None, REFUSED), (FAILED, None), (None, FAILED)])
def test_a_deletion_outweighs_a_failure(service: InMemoryService, failures: Sequence[Exception | None]) -> None:
    generation = service.begun(n=2)
    barrier = threading.Barrier(2)

    def delete() -> None:
        if barrier.wait(SECONDS) == 0:
            service.buried(generation)
        barrier.wait(SECONDS)

    service.provider.during_call = delete
    service.provider.failures.extend(failures)
    with pytest.raises(LostClaimError):
        service.generate(generation)


# Failing writes of the record.


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_is_not_sent_if_its_attempt_cannot_be_recorded(service: InMemoryService, when: Any, n: int) -> None:
    generation = service.begun(n=n)
    service.records.failures.extend([when] * n)
    with pytest.raises(RecordsUnavailableError):
        service.generate(generation)
    assert service.provider.calls == []


@pytest.mark.parametrize("failure", [None, REFUSED, FAILED], ids=name_of)
def test_a_call_that_cannot_be_recorded_stops_no_other_call_and_outweighs_a_failure(
    service: InMemoryService, failure: ImagegenError | None
) -> None:
    """Another worker may succeed."""
    generation = service.begun(n=3)
    service.records.failures.append("before")
    service.provider.failures.append(failure)
    with pytest.raises(RecordsUnavailableError):
        service.generate(generation)
    assert (len(service.provider.calls), len(service.record(generation).stored)) == (2, 1 if failure else 2)


@EACH_FORMAT
@pytest.mark.parametrize("written", range(1, 5))
@pytest.mark.parametrize("unwritten", ["one", "before", "after"])
def test_an_image_is_stored_even_if_the_record_cannot_be_written_and_the_next_owner_finds_it(
    service: InMemoryService, written: int, unwritten: Any, response_format: str
) -> None:
    """One write fails and stops no other, or all later ones fail. They write the answer and the images."""
    generation = service.begun(n=3, model="dall-e-2", response_format=response_format)
    failures: list[Any] = ["before"] if unwritten == "one" else [unwritten] * (5 - written)
    service.records.failures.extend([*[None] * written, *failures])
    with pytest.raises(RecordsUnavailableError):
        service.generate(generation)
    assert saved(service) == {image_id: png(f"1-{i}") for i, image_id in enumerate(generation.image_ids, 1)}
    if unwritten == "one":
        record = service.record(generation)
        assert len(record.stored) + bool(record.calls[0].answer) == 3
    service.records.failures.clear()
    service.provider.files.clear()
    record = service.generate(service.claimed(generation))
    assert record.stored == stored(service)
    assert (record.stored_ids, len(service.provider.calls)) == (generation.image_ids, 1)
