"""The use case with fakes on all sides: what is bought, stored and answered, and what is told when it goes wrong."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import pytest

from imagegen.catalog import CATALOG
from imagegen.deadline import Deadline
from imagegen.errors import (
    ImageDownloadError,
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageError,
    ImageStorageInterruptedError,
    ImageTooLargeError,
    ImageTruncatedError,
    ImageUrlRefusedError,
    InternalError,
    MoneySpentError,
    NotAnImageError,
    NothingSpentError,
    PartialGenerationError,
    PromptRejectedError,
    SecretMissingError,
    TryLaterError,
    UpstreamAnswerInvalidError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
    UpstreamTimeoutError,
    UpstreamTooFewImagesError,
    UpstreamUnreachableError,
)
from imagegen.generate import KEEP_TRIES, Outcome, generate
from imagegen.generations import Generation
from imagegen.images import ImageBody, ImageRequest, ResponseFormat, UpstreamAnswer
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider, png

BARRIER_SECONDS = 10  # only ever waited for in full where a test fails


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.generate._FIRST_PAUSE_SECONDS", 0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as executor:
        yield executor


class ByUrlAllTheSame(FakeProvider):
    """Answers with URLs whatever was asked for, as some resellers do."""

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        return super().generate(replace(request, response_format="url"), n, deadline)


@dataclass
class World:
    pool: ThreadPoolExecutor
    provider: FakeProvider = field(default_factory=FakeProvider)
    store: FakeImageStore = field(default_factory=FakeImageStore)

    def __post_init__(self) -> None:
        self.source = FakeImageSource(self.provider.files)

    def generate(self, generation: Generation, *, deadline: Deadline | None = None) -> Outcome:
        return generate(
            generation,
            CATALOG[generation.request.model],
            provider=self.provider,
            source=self.source,
            store=self.store,
            pool=self.pool,
            deadline=deadline or Deadline.after(30),
        )

    def failure(self, generation: Generation, *, deadline: Deadline | None = None) -> ImagegenError:
        with pytest.raises(ImagegenError) as caught:
            self.generate(generation, deadline=deadline)
        return caught.value


@pytest.fixture
def world(pool: ThreadPoolExecutor) -> World:
    return World(pool)


def a_generation(n: int = 1, model: str = "dall-e-3", response_format: ResponseFormat = "url") -> Generation:
    request = ImageRequest(prompt="a cat", model=model, response_format=response_format, n=n)
    return Generation.admit(request, caller="somebody", now=1_700_000_000)


class TestSuccess:
    @pytest.mark.parametrize("response_format", ["url", "b64_json"])
    @pytest.mark.parametrize(("model", "n"), [("dall-e-3", 1), ("dall-e-3", 10), ("dall-e-2", 1), ("dall-e-2", 10)])
    def test_every_image_asked_for_is_answered_in_the_order_of_its_id_and_stored_under_it(
        self, world: World, model: str, n: int, response_format: ResponseFormat
    ) -> None:
        generation = a_generation(n, model, response_format)

        outcome = world.generate(generation)

        assert tuple(image.id for image in outcome.images) == generation.image_ids
        assert set(world.store.saved) == set(generation.image_ids)
        assert len({content for _, content in world.store.saved.values()}) == n

    def test_the_order_holds_although_later_images_are_stored_first(self, world: World) -> None:
        generation = a_generation(4, "dall-e-2")
        turn = threading.Condition()
        waiting = list(reversed(generation.image_ids))

        class LastFirst(FakeImageStore):
            def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> None:
                with turn:
                    assert turn.wait_for(lambda: waiting[0] == image_id, BARRIER_SECONDS)
                    super().save(image_id, body, deadline)
                    waiting.pop(0)
                    turn.notify_all()

        world.store = LastFirst()

        outcome = world.generate(generation)

        assert list(world.store.saved) == list(reversed(generation.image_ids))
        assert [image.revised_prompt for image in outcome.images] == [f"a cat, 1-{index}" for index in (1, 2, 3, 4)]
        for index, image in enumerate(outcome.images, 1):
            assert world.store.saved[image.id] == ("image/png", png(f"1-{index}"))

    def test_a_revised_prompt_stays_with_its_image(self, world: World) -> None:
        outcome = world.generate(a_generation(10))

        for image in outcome.images:
            name = str(image.revised_prompt).removeprefix("a cat, ")
            assert world.store.saved[image.id][1] == png(name)

    def test_content_is_kept_where_the_caller_asked_for_bytes(self, world: World) -> None:
        outcome = world.generate(a_generation(3, response_format="b64_json"))

        assert [image.content for image in outcome.images] == [
            world.store.saved[image.id][1] for image in outcome.images
        ]

    def test_content_of_an_image_that_came_by_url_is_kept_where_the_caller_asked_for_bytes(
        self, pool: ThreadPoolExecutor
    ) -> None:
        world = World(pool, ByUrlAllTheSame())

        outcome = world.generate(a_generation(response_format="b64_json"))

        assert world.source.opened == ["https://images.example/1-1.png"]
        assert outcome.images[0].content == png("1-1")

    def test_no_content_is_kept_where_the_caller_asked_for_urls(self, world: World) -> None:
        outcome = world.generate(a_generation(3))

        assert [image.content for image in outcome.images] == [None] * 3

    def test_content_is_whole_where_an_earlier_try_had_stored_the_image_and_its_answer_was_lost(
        self, world: World
    ) -> None:
        generation = a_generation(response_format="b64_json")
        world.store.saved[generation.image_ids[0]] = ("image/png", png("1-1"))

        outcome = world.generate(generation)

        assert outcome.images[0].content == png("1-1")


class TestCalls:
    @pytest.mark.parametrize(
        ("model", "n", "calls"),
        [
            ("dall-e-3", 1, [1]),
            ("dall-e-3", 10, [1] * 10),
            ("dall-e-2", 10, [10]),
            ("gpt-image-1", 4, [4]),
            ("flux-pro", 3, [1] * 3),
        ],
    )
    def test_the_upstream_is_called_as_often_as_the_model_needs(
        self, world: World, model: str, n: int, calls: list[int]
    ) -> None:
        world.generate(a_generation(n, model))

        assert [call.n for call in world.provider.calls] == calls

    def test_ten_calls_run_side_by_side(self, world: World) -> None:
        world.provider.during_call = lambda: barrier.wait(BARRIER_SECONDS)
        barrier = threading.Barrier(10)

        assert len(world.generate(a_generation(10)).images) == 10

    def test_ten_images_of_one_call_are_stored_side_by_side(self, world: World) -> None:
        world.store.during_save = lambda: barrier.wait(BARRIER_SECONDS)
        barrier = threading.Barrier(10)

        assert len(world.generate(a_generation(10, "dall-e-2")).images) == 10

    def test_an_image_is_stored_while_another_call_is_still_under_way(self, world: World) -> None:
        stored = threading.Event()
        first = threading.Lock()

        def wait_unless_first() -> None:
            if not first.acquire(blocking=False):
                assert stored.wait(BARRIER_SECONDS)

        world.provider.during_call = wait_unless_first
        world.store.during_save = stored.set

        assert len(world.generate(a_generation(2)).images) == 2

    def test_everyone_is_given_the_same_deadline(self, world: World) -> None:
        deadline = Deadline.after(30)

        world.generate(a_generation(2), deadline=deadline)

        assert [call.deadline for call in world.provider.calls] == [deadline, deadline]


class TestWhatTheUpstreamSaid:
    def test_details_and_usage_of_one_call_are_passed_on(self, world: World) -> None:
        world.provider.details = {"background": "opaque", "size": "1024x1024"}
        world.provider.usage = {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

        outcome = world.generate(a_generation(2, "gpt-image-1", "b64_json"))

        assert outcome.details == {"background": "opaque", "size": "1024x1024"}
        assert outcome.usage == {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

    def test_usage_of_several_calls_is_summed_at_every_depth(self, world: World) -> None:
        world.provider.usage = {
            "total_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
            "tier": "default",
        }

        outcome = world.generate(a_generation(3))

        assert outcome.usage == {
            "total_tokens": 150,
            "input_tokens_details": {"text_tokens": 30, "image_tokens": 0},
            "tier": "default",
        }

    def test_the_usage_that_an_answer_carried_is_not_changed_by_summing(self, world: World) -> None:
        usage: dict[str, Any] = {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}
        world.provider.usage = usage

        world.generate(a_generation(3))

        assert usage == {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

    def test_without_usage_there_is_none(self, world: World) -> None:
        assert world.generate(a_generation(2)).usage is None


INTERRUPTED = ImageDownloadInterruptedError("broke off")
TRUNCATED = ImageTruncatedError("ends too early")
HICCUP = ImageStorageInterruptedError("not this time")


class TestKeepingWhatWasPaidFor:
    @pytest.mark.parametrize("response_format", ["url", "b64_json"])
    @pytest.mark.parametrize("breaks", range(1, KEEP_TRIES))
    def test_a_storage_hiccup_is_tried_again_and_nothing_is_bought_again(
        self, world: World, breaks: int, response_format: ResponseFormat
    ) -> None:
        world.store.failures.extend([HICCUP] * breaks)
        generation = a_generation(response_format=response_format)

        outcome = world.generate(generation)

        assert world.store.saved == {generation.image_ids[0]: ("image/png", png("1-1"))}
        assert outcome.images[0].content == (png("1-1") if response_format == "b64_json" else None)
        assert len(world.store.tries) == breaks + 1
        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("failure", [INTERRUPTED, TRUNCATED])
    @pytest.mark.parametrize("breaks", range(1, KEEP_TRIES))
    @pytest.mark.parametrize("where", ["failures", "failures_in_body"])
    def test_a_broken_download_is_fetched_again_and_never_bought_again(
        self, world: World, where: str, breaks: int, failure: Exception
    ) -> None:
        getattr(world.source, where).extend([failure] * breaks)
        generation = a_generation()

        world.generate(generation)

        assert world.store.saved == {generation.image_ids[0]: ("image/png", png("1-1"))}
        assert world.source.opened == ["https://images.example/1-1.png"] * (breaks + 1)
        assert len(world.provider.calls) == 1

    def test_content_of_a_download_that_broke_off_holds_nothing_of_the_broken_one(
        self, pool: ThreadPoolExecutor
    ) -> None:
        world = World(pool, ByUrlAllTheSame())
        world.source.failures_in_body.append(INTERRUPTED)

        outcome = world.generate(a_generation(response_format="b64_json"))

        assert len(world.source.opened) == 2
        assert outcome.images[0].content == png("1-1")

    @pytest.mark.parametrize(("where", "failure"), [("source", INTERRUPTED), ("store", HICCUP)])
    def test_after_the_last_try_the_failure_is_told(self, world: World, where: str, failure: ImagegenError) -> None:
        getattr(world, where).failures.extend([failure] * KEEP_TRIES)

        assert world.failure(a_generation()) is failure
        assert len(world.source.opened) == KEEP_TRIES
        assert len(world.provider.calls) == 1
        assert world.store.saved == {}

    @pytest.mark.parametrize(
        ("where", "failure"),
        [
            ("source", ImageUrlRefusedError("private")),
            ("source", ImageDownloadError("gone")),
            ("source", NotAnImageError("HTML")),
            ("source", ImageTooLargeError("huge")),
            ("store", ImageStorageError("access denied")),
            ("store", ImageTooLargeError("huge, found out late")),
        ],
    )
    def test_what_another_try_cannot_cure_is_told_at_once(
        self, world: World, where: str, failure: ImagegenError
    ) -> None:
        getattr(world, where).failures.append(failure)

        assert world.failure(a_generation()) is failure
        assert len(world.source.opened) == 1
        assert len(world.provider.calls) == 1

    def test_bytes_that_end_too_early_are_not_looked_at_again(self, world: World) -> None:
        world.source.failures_in_body.append(TRUNCATED)

        assert world.failure(a_generation(response_format="b64_json")) is TRUNCATED
        assert len(world.source.opened) == 1

    def test_no_new_try_is_begun_whose_pause_would_outlast_the_deadline(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imagegen.generate._FIRST_PAUSE_SECONDS", 1000)
        world.store.failures.append(HICCUP)

        assert world.failure(a_generation(), deadline=Deadline.after(30)) is HICCUP
        assert len(world.store.tries) == 1

    def test_with_the_deadline_over_nothing_is_bought(self, world: World) -> None:
        assert isinstance(world.failure(a_generation(3), deadline=Deadline.after(0)), NothingSpentError)
        assert world.provider.calls == []

    def test_with_the_deadline_over_after_the_answer_the_failure_says_that_money_was_spent(self, world: World) -> None:
        over = threading.Event()
        deadline = Deadline.after(0.05)
        world.provider.during_call = lambda: over.wait(0.1)

        assert isinstance(world.failure(a_generation(), deadline=deadline), ImageDownloadInterruptedError)
        assert len(world.provider.calls) == 1


RATE_LIMITED = UpstreamRateLimitedError("slow down")
UNREACHABLE = UpstreamUnreachableError("no connection")
REJECTED = PromptRejectedError("not that")
NO_KEY = SecretMissingError("no key")
FAILED = UpstreamFailedError("broke")
TIMED_OUT = UpstreamTimeoutError("too slow")
INVALID = UpstreamAnswerInvalidError("no JSON")
TOO_FEW = UpstreamTooFewImagesError("one of two")
NOTHING_SPENT = (RATE_LIMITED, UNREACHABLE, REJECTED, NO_KEY)
MONEY_SPENT = (FAILED, TIMED_OUT, INVALID, TOO_FEW)
names = [type(failure).__name__ for failure in NOTHING_SPENT + MONEY_SPENT]


class TestFailure:
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    def test_where_all_calls_fail_alike_the_failure_comes_through_bare(
        self, world: World, n: int, failure: ImagegenError
    ) -> None:
        world.provider.failures.extend([failure] * n)

        assert world.failure(a_generation(n)) is failure
        assert len(world.provider.calls) == n
        assert world.store.tries == []

    @pytest.mark.parametrize(("nothing_spent", "money_spent"), list(product(NOTHING_SPENT, MONEY_SPENT)))
    @pytest.mark.parametrize("order", list(permutations(range(3))))
    def test_one_call_that_may_have_been_paid_for_outweighs_those_that_were_not(
        self, world: World, nothing_spent: ImagegenError, money_spent: ImagegenError, order: tuple[int, ...]
    ) -> None:
        failures = (nothing_spent, money_spent, nothing_spent)
        world.provider.failures.extend(failures[at] for at in order)

        assert world.failure(a_generation(3)) is money_spent

    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    @pytest.mark.parametrize("failing", range(3))
    def test_one_failed_call_among_good_ones_is_a_partial_failure_that_carries_the_stored_images(
        self, world: World, failing: int, failure: ImagegenError
    ) -> None:
        world.provider.failures.extend(failure if at == failing else None for at in range(3))
        generation = a_generation(3)

        error = world.failure(generation)

        assert isinstance(error, PartialGenerationError)
        assert error.__cause__ is failure
        assert len(error.images) == 2
        assert {image.id for image in error.images} == set(world.store.saved)
        assert [image.id for image in error.images] == [id_ for id_ in generation.image_ids if id_ in world.store.saved]
        assert failure.message in error.message
        assert len(world.provider.calls) == 3

    @pytest.mark.parametrize(
        ("where", "failure"), [("source", NotAnImageError("HTML")), ("store", ImageStorageError("access denied"))]
    )
    def test_one_image_that_cannot_be_kept_is_a_partial_failure_that_carries_the_others(
        self, world: World, where: str, failure: ImagegenError
    ) -> None:
        getattr(world, where).failures.append(failure)

        error = world.failure(a_generation(4, "dall-e-2"))

        assert isinstance(error, PartialGenerationError)
        assert error.__cause__ is failure
        assert {image.id for image in error.images} == set(world.store.saved)
        assert len(error.images) == 3
        assert len(world.provider.calls) == 1

    def test_the_cause_of_a_partial_failure_is_the_one_that_may_have_cost_money(self, world: World) -> None:
        world.provider.failures.extend([RATE_LIMITED, None, FAILED])

        error = world.failure(a_generation(3))

        assert isinstance(error, PartialGenerationError)
        assert error.__cause__ is FAILED
        assert len(error.images) == 1

    @pytest.mark.parametrize("order", list(permutations(range(2))))
    def test_a_paid_image_that_could_not_be_kept_outweighs_a_call_where_nothing_was_spent(
        self, world: World, order: tuple[int, ...]
    ) -> None:
        world.provider.failures.extend((RATE_LIMITED, None)[at] for at in order)
        failure = ImageStorageError("access denied")
        world.store.failures.append(failure)

        assert world.failure(a_generation(2)) is failure

    def test_images_of_a_partial_failure_carry_their_content_where_bytes_were_asked_for(self, world: World) -> None:
        world.provider.failures.extend([None, FAILED])

        error = world.failure(a_generation(2, response_format="b64_json"))

        assert isinstance(error, PartialGenerationError)
        assert [image.content for image in error.images] == [content for _, content in world.store.saved.values()]

    @pytest.mark.parametrize("where", ["provider", "source", "store"])
    def test_what_nobody_expected_is_an_internal_error_that_remembers_why(self, world: World, where: str) -> None:
        bug = KeyError("a bug")
        getattr(world, where).failures.append(bug)

        error = world.failure(a_generation())

        assert type(error) is InternalError
        assert error.__cause__ is bug
        assert "a bug" not in error.message

    def test_what_nobody_expected_outweighs_a_call_where_nothing_was_spent(self, world: World) -> None:
        world.provider.failures.extend([RATE_LIMITED, KeyError("a bug")])

        assert type(world.failure(a_generation(2))) is InternalError

    def test_what_nobody_expected_among_good_images_is_a_partial_failure(self, world: World) -> None:
        bug = KeyError("a bug")
        world.store.failures.append(bug)

        error = world.failure(a_generation(2))

        assert isinstance(error, PartialGenerationError)
        assert isinstance(error.__cause__, InternalError)
        assert error.__cause__.__cause__ is bug
        assert len(error.images) == 1

    def test_when_to_try_again_is_still_told(self, world: World) -> None:
        failure = UpstreamRateLimitedError("slow down")
        failure.retry_after = 7
        world.provider.failures.append(failure)

        error = world.failure(a_generation())

        assert isinstance(error, TryLaterError)
        assert error.retry_after == 7

    def test_a_failed_call_is_not_made_again(self, world: World) -> None:
        world.provider.failures.append(RATE_LIMITED)

        world.failure(a_generation())

        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("model", ["dall-e-3", "dall-e-2"])
    def test_fewer_images_than_asked_for_never_pass_for_success(self, world: World, model: str) -> None:
        class Short(FakeProvider):
            def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
                answer = super().generate(request, n, deadline)
                return UpstreamAnswer(answer.images[:-1])

        world.provider = Short()

        with pytest.raises(Exception):  # noqa: B017, PT011  # a provider that breaks its contract is a bug
            world.generate(a_generation(2, model))

    def test_every_failure_after_a_success_says_that_money_was_spent(self, world: World) -> None:
        for failure in NOTHING_SPENT:
            world.provider.failures.extend([None, failure])
            assert isinstance(world.failure(a_generation(2)), MoneySpentError)
