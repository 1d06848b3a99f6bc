"""The use case with fakes on all sides: what is bought, stored and noted, and what is told when it goes wrong."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import msgspec
import pytest

from imagegen.deadline import Deadline
from imagegen.errors import (
    AbandonedError,
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
    OutcomeUnknownError,
    PartialGenerationError,
    PromptRejectedError,
    RecordsUnavailableError,
    SecretMissingError,
    TryLaterError,
    UpstreamAnswerInvalidError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
    UpstreamTimeoutError,
    UpstreamTooFewImagesError,
    UpstreamUnreachableError,
)
from imagegen.failures import kept
from imagegen.generate import KEEP_TRIES, Tools, UnfinishedError, generate
from imagegen.generations import (
    AnsweredImage,
    Call,
    CallAnswer,
    Generation,
    LostClaimError,
    Status,
    StoredImage,
    admit,
    new_owner,
)
from imagegen.images import ImageBody, ImageRequest, ResponseFormat, UpstreamAnswer, UpstreamImage
from tests.fakes.generation_store import FakeGenerationStore, When
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import FakeProvider, png

BARRIER_SECONDS = 10  # only ever waited for in full where a test fails
LEASE = 60.0
FORMATS: tuple[ResponseFormat, ...] = ("url", "b64_json")
WHENS: tuple[When, ...] = ("before", "after")


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
    records: FakeGenerationStore = field(default_factory=FakeGenerationStore)
    repeat_unknown: bool = True
    may_send: bool = True
    call_seconds: float = 0.0
    now: float = 1_700_000_000

    def __post_init__(self) -> None:
        self.source = FakeImageSource(self.provider.files)

    def begun(self, n: int = 1, model: str = "dall-e-3", response_format: ResponseFormat = "url") -> Generation:
        """A new generation, claimed."""
        request = ImageRequest(prompt="a cat", model=model, response_format=response_format, n=n)
        generation = admit(request, caller="somebody", base_url="https://api.example", now=self.now)
        self.records.create(generation)
        return self.claimed(generation.id)

    def claimed(self, generation_id: str) -> Generation:
        """A generation as its next owner finds it, once the lease of the one before is gone."""
        self.now += 2 * LEASE
        claimed = self.records.claim(generation_id, new_owner(), now=self.now, lease_until=self.now + LEASE)
        assert claimed is not None
        return claimed

    def left_behind(
        self, generation: Generation, *calls: Call, stored: Sequence[str] = (), noted: Sequence[str] = ()
    ) -> Generation:
        """The generation as it is taken over from an owner who came so far and died.

        `stored` are the images that it had stored, `noted` those of which it could still say so.
        """
        assert generation.owner
        for index, call in enumerate(calls):
            for sending in range(1, call.sent + 1):
                self.records.save_sending(generation.id, generation.owner, index, sending)
            for sending in range(1, call.refused + 1):
                self.records.save_refusal(generation.id, index, sending)
            if call.answer:
                self.records.save_answer(generation.id, index, call.answer)
        for image_id in stored:
            self.store.saved[image_id] = ("image/png", png(image_id))
        for image_id in noted:
            image = StoredImage("image/png", len(png(image_id)))
            self.records.save_image(generation.id, image_id, image)
        return self.claimed(generation.id)

    def generate(self, generation: Generation, *, deadline: Deadline | None = None) -> Generation:
        """Gives the record afterwards."""
        tools = Tools(
            *(self.provider, self.source, self.store, self.records, self.pool),
            repeat_unknown=self.repeat_unknown,
            may_send=self.may_send,
            call_seconds=self.call_seconds,
        )
        assert generation.owner
        generate(generation, generation.owner, tools, deadline or Deadline.after(30))
        return self.record(generation)

    def failure(self, generation: Generation, *, deadline: Deadline | None = None) -> ImagegenError:
        with pytest.raises(ImagegenError) as caught:
            self.generate(generation, deadline=deadline)
        return caught.value

    def record(self, generation: Generation) -> Generation:
        record = self.records.get(generation.id)
        assert record is not None
        return record


@pytest.fixture
def world(pool: ThreadPoolExecutor) -> World:
    return World(pool)


class TestSuccess:
    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize(("model", "n"), [("dall-e-3", 1), ("dall-e-3", 10), ("dall-e-2", 1), ("dall-e-2", 10)])
    def test_every_image_asked_for_is_stored_under_its_id_and_on_the_record(
        self, world: World, model: str, n: int, response_format: ResponseFormat
    ) -> None:
        generation = world.begun(n, model, response_format)

        record = world.generate(generation)

        assert len(set(generation.image_ids)) == n
        assert record.image_ids == record.stored_ids == generation.image_ids
        assert set(world.store.saved) == set(generation.image_ids)
        assert len({content for _, content in world.store.saved.values()}) == n
        assert record.stored == {
            image_id: StoredImage(media_type, len(content))
            for image_id, (media_type, content) in world.store.saved.items()
        }

    def test_an_end_is_left_to_whoever_had_it_made(self, world: World) -> None:
        record = world.generate(world.begun())

        assert record.status is Status.IN_PROGRESS
        assert record.failure is None

    def test_the_order_holds_although_later_images_are_stored_first(self, world: World) -> None:
        generation = world.begun(4, "dall-e-2")
        turn = threading.Condition()
        waiting = list(reversed(generation.image_ids))

        class LastFirst(FakeImageStore):
            def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> bool:
                with turn:
                    assert turn.wait_for(lambda: waiting[0] == image_id, BARRIER_SECONDS)
                    saved = super().save(image_id, body, deadline)
                    waiting.pop(0)
                    turn.notify_all()
                    return saved

        world.store = LastFirst()

        record = world.generate(generation)

        assert list(world.store.saved) == list(reversed(generation.image_ids))
        assert record.stored_ids == generation.image_ids
        for index, image_id in enumerate(generation.image_ids, 1):
            assert record.revised_prompt(image_id) == f"a cat, 1-{index}"
            assert world.store.saved[image_id] == ("image/png", png(f"1-{index}"))

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("model", ["dall-e-3", "dall-e-2"])
    def test_a_revised_prompt_stays_with_its_image(
        self, world: World, model: str, response_format: ResponseFormat
    ) -> None:
        record = world.generate(world.begun(10, model, response_format))

        for image_id in record.image_ids:
            name = str(record.revised_prompt(image_id)).removeprefix("a cat, ")
            assert world.store.saved[image_id][1] == png(name)

    def test_bytes_that_came_with_the_answer_are_stored_and_nothing_is_downloaded(self, world: World) -> None:
        record = world.generate(world.begun(3, response_format="b64_json"))

        assert sorted(content for _, content in world.store.saved.values()) == sorted(
            png(f"{number}-1") for number in (1, 2, 3)
        )
        assert all(isinstance(source, bytes) for source in world.source.opened)
        assert [image.url for call in record.calls if call.answer for image in call.answer.images] == [None] * 3

    def test_an_image_that_came_by_url_is_stored_also_where_the_caller_asked_for_bytes(
        self, pool: ThreadPoolExecutor
    ) -> None:
        world = World(pool, ByUrlAllTheSame())

        record = world.generate(world.begun(response_format="b64_json"))

        assert world.source.opened == ["https://images.example/1-1.png"]
        assert world.store.saved == {record.image_ids[0]: ("image/png", png("1-1"))}

    def test_images_by_url_and_as_bytes_may_come_in_one_answer(self, world: World) -> None:
        class Mixed(FakeProvider):
            def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
                images = list(super().generate(request, n, deadline).images)
                images[1] = replace(images[1], source=png("1-2"))
                return UpstreamAnswer(tuple(images))

        world.provider = Mixed()
        world.source.files = world.provider.files

        record = world.generate(world.begun(3, "dall-e-2"))

        assert [world.store.saved[image_id][1] for image_id in record.image_ids] == [
            png("1-1"),
            png("1-2"),
            png("1-3"),
        ]
        assert record.stored_ids == record.image_ids

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_an_image_that_an_earlier_try_had_stored_stays(self, world: World, response_format: ResponseFormat) -> None:
        generation = world.begun(response_format=response_format)
        world.store.saved[generation.image_ids[0]] = ("image/png", png("1-1"))

        record = world.generate(generation)

        assert world.store.saved == {generation.image_ids[0]: ("image/png", png("1-1"))}
        assert record.stored == {generation.image_ids[0]: StoredImage("image/png", len(png("1-1")))}


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
        world.generate(world.begun(n, model))

        assert [call.n for call in world.provider.calls] == calls

    def test_ten_calls_run_side_by_side(self, world: World) -> None:
        world.provider.during_call = lambda: barrier.wait(BARRIER_SECONDS)
        barrier = threading.Barrier(10)

        assert len(world.generate(world.begun(10)).stored) == 10

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_ten_images_of_one_call_are_stored_side_by_side(
        self, world: World, response_format: ResponseFormat
    ) -> None:
        world.store.during_save = lambda: barrier.wait(BARRIER_SECONDS)
        barrier = threading.Barrier(10)

        assert len(world.generate(world.begun(10, "dall-e-2", response_format)).stored) == 10

    def test_an_image_is_stored_while_another_call_is_still_under_way(self, world: World) -> None:
        stored = threading.Event()
        first = threading.Lock()

        def wait_unless_first() -> None:
            if not first.acquire(blocking=False):
                assert stored.wait(BARRIER_SECONDS)

        world.provider.during_call = wait_unless_first
        world.store.during_save = stored.set

        assert len(world.generate(world.begun(2)).stored) == 2

    def test_everyone_is_given_the_same_deadline(self, world: World) -> None:
        deadline = Deadline.after(30)

        world.generate(world.begun(2), deadline=deadline)

        assert [call.deadline for call in world.provider.calls] == [deadline, deadline]


class TestWhatTheUpstreamSaid:
    def test_details_and_usage_of_one_call_are_passed_on(self, world: World) -> None:
        world.provider.details = {"background": "opaque", "size": "1024x1024"}
        world.provider.usage = {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

        record = world.generate(world.begun(2, "gpt-image-1", "b64_json"))

        assert record.details == {"background": "opaque", "size": "1024x1024"}
        assert record.usage == {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

    def test_usage_of_several_calls_is_summed_at_every_depth(self, world: World) -> None:
        world.provider.usage = {
            "total_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
        }

        record = world.generate(world.begun(3))

        assert record.usage == {
            "total_tokens": 150,
            "input_tokens_details": {"text_tokens": 30, "image_tokens": 0},
        }

    def test_the_usage_that_an_answer_carried_is_not_changed_by_summing(self, world: World) -> None:
        usage: dict[str, Any] = {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}
        world.provider.usage = usage

        world.generate(world.begun(3))

        assert usage == {"total_tokens": 50, "input_tokens_details": {"text_tokens": 10}}

    def test_without_usage_there_is_none(self, world: World) -> None:
        assert world.generate(world.begun(2)).usage is None


def same(error: BaseException | None, failure: ImagegenError) -> bool:
    """Whether it is the failure, which may have been on the record meanwhile."""
    return isinstance(error, ImagegenError) and kept(error) == kept(failure)


INTERRUPTED = ImageDownloadInterruptedError("broke off")
TRUNCATED = ImageTruncatedError("ends too early")
HICCUP = ImageStorageInterruptedError("not this time")


class TestKeepingWhatWasPaidFor:
    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("breaks", range(1, KEEP_TRIES))
    def test_a_storage_hiccup_is_tried_again_and_nothing_is_bought_again(
        self, world: World, breaks: int, response_format: ResponseFormat
    ) -> None:
        world.store.failures.extend([HICCUP] * breaks)
        generation = world.begun(response_format=response_format)

        record = world.generate(generation)

        assert world.store.saved == {generation.image_ids[0]: ("image/png", png("1-1"))}
        assert record.stored == {generation.image_ids[0]: StoredImage("image/png", len(png("1-1")))}
        assert len(world.store.tries) == breaks + 1
        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("failure", [INTERRUPTED, TRUNCATED])
    @pytest.mark.parametrize("breaks", range(1, KEEP_TRIES))
    @pytest.mark.parametrize("where", ["failures", "failures_in_body"])
    def test_a_broken_download_is_fetched_again_and_never_bought_again(
        self, world: World, where: str, breaks: int, failure: Exception
    ) -> None:
        getattr(world.source, where).extend([failure] * breaks)
        generation = world.begun()

        world.generate(generation)

        assert world.store.saved == {generation.image_ids[0]: ("image/png", png("1-1"))}
        assert world.source.opened == ["https://images.example/1-1.png"] * (breaks + 1)
        assert len(world.provider.calls) == 1

    def test_what_is_on_the_record_of_a_download_that_broke_off_is_the_whole_one(self, world: World) -> None:
        world.source.failures_in_body.append(INTERRUPTED)

        record = world.generate(world.begun())

        assert len(world.source.opened) == 2
        assert record.stored == {record.image_ids[0]: StoredImage("image/png", len(png("1-1")))}

    @pytest.mark.parametrize(("where", "failure"), [("source", INTERRUPTED), ("store", HICCUP)])
    def test_after_the_last_try_the_failure_is_told(self, world: World, where: str, failure: ImagegenError) -> None:
        getattr(world, where).failures.extend([failure] * KEEP_TRIES)

        assert world.failure(world.begun()) is failure
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

        assert world.failure(world.begun()) is failure
        assert len(world.source.opened) == 1
        assert len(world.provider.calls) == 1

    def test_bytes_that_end_too_early_are_not_looked_at_again(self, world: World) -> None:
        world.source.failures_in_body.append(TRUNCATED)

        assert same(world.failure(world.begun(response_format="b64_json")), TRUNCATED)
        assert len(world.source.opened) == 1

    def test_no_new_try_is_begun_whose_pause_would_outlast_the_deadline(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imagegen.generate._FIRST_PAUSE_SECONDS", 1000)
        world.store.failures.append(HICCUP)

        assert world.failure(world.begun(), deadline=Deadline.after(30)) is HICCUP
        assert len(world.store.tries) == 1

    def test_with_the_deadline_over_nothing_is_bought(self, world: World) -> None:
        assert isinstance(world.failure(world.begun(3), deadline=Deadline.after(0)), NothingSpentError)
        assert world.provider.calls == []

    def test_without_time_to_fetch_a_known_url_the_next_attempt_fetches_it_and_buys_nothing(self, world: World) -> None:
        over = threading.Event()
        world.provider.during_call = lambda: over.wait(0.1)
        generation = world.begun()

        with pytest.raises(UnfinishedError):
            world.generate(generation, deadline=Deadline.after(0.05))
        record = world.generate(world.claimed(generation.id))

        assert len(world.provider.calls) == 1
        assert record.stored_ids == generation.image_ids


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

        assert world.failure(world.begun(n)) is failure
        assert len(world.provider.calls) == n
        assert world.store.tries == []

    @pytest.mark.parametrize(("nothing_spent", "money_spent"), list(product(NOTHING_SPENT, MONEY_SPENT)))
    @pytest.mark.parametrize("order", list(permutations(range(3))))
    def test_one_call_that_may_have_been_paid_for_outweighs_those_that_were_not(
        self, world: World, nothing_spent: ImagegenError, money_spent: ImagegenError, order: tuple[int, ...]
    ) -> None:
        failures = (nothing_spent, money_spent, nothing_spent)
        world.provider.failures.extend(failures[at] for at in order)

        assert world.failure(world.begun(3)) is money_spent

    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    @pytest.mark.parametrize("failing", range(3))
    def test_one_failed_call_among_good_ones_is_a_partial_failure_that_carries_the_stored_images(
        self, world: World, failing: int, failure: ImagegenError
    ) -> None:
        world.provider.failures.extend(failure if at == failing else None for at in range(3))
        generation = world.begun(3)

        error = world.failure(generation)

        assert isinstance(error, PartialGenerationError)
        assert error.__cause__ is failure
        assert len(error.images) == 2
        assert set(error.images) == set(world.store.saved)
        assert tuple(error.images) == world.record(generation).stored_ids
        assert failure.message in error.message
        assert len(world.provider.calls) == 3

    @pytest.mark.parametrize(
        ("where", "failure"), [("source", NotAnImageError("HTML")), ("store", ImageStorageError("access denied"))]
    )
    @pytest.mark.parametrize("response_format", FORMATS)
    def test_one_image_that_cannot_be_kept_is_a_partial_failure_that_carries_the_others(
        self, world: World, response_format: ResponseFormat, where: str, failure: ImagegenError
    ) -> None:
        getattr(world, where).failures.append(failure)

        generation = world.begun(4, "dall-e-2", response_format)

        error = world.failure(generation)

        assert isinstance(error, PartialGenerationError)
        assert same(error.__cause__, failure)
        assert set(error.images) == set(world.store.saved)
        assert tuple(error.images) == world.record(generation).stored_ids
        assert len(error.images) == 3
        assert len(world.provider.calls) == 1

    def test_the_cause_of_a_partial_failure_is_the_one_that_may_have_cost_money(self, world: World) -> None:
        world.provider.failures.extend([RATE_LIMITED, None, FAILED])

        error = world.failure(world.begun(3))

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

        assert world.failure(world.begun(2)) is failure

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_images_of_a_partial_failure_are_in_the_order_they_were_asked_for(
        self, world: World, response_format: ResponseFormat
    ) -> None:
        world.provider.failures.extend([None] * 4 + [FAILED] + [None] * 5)
        generation = world.begun(10, response_format=response_format)

        error = world.failure(generation)

        assert isinstance(error, PartialGenerationError)
        assert len(error.images) == 9
        assert list(error.images) == [image_id for image_id in generation.image_ids if image_id in world.store.saved]

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("where", ["provider", "source", "store"])
    @pytest.mark.parametrize("bug", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
    def test_what_nobody_expected_may_have_cost_money(
        self, world: World, bug: Exception, where: str, response_format: ResponseFormat
    ) -> None:
        getattr(world, where).failures.append(bug)

        assert type(world.failure(world.begun(response_format=response_format))) is InternalError
        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("failure", NOTHING_SPENT, ids=lambda failure: type(failure).__name__)
    @pytest.mark.parametrize("order", list(permutations(range(2))))
    def test_what_nobody_expected_outweighs_a_call_that_bought_nothing(
        self, world: World, order: tuple[int, ...], failure: ImagegenError
    ) -> None:
        failures: tuple[Exception, Exception] = (failure, KeyError("a bug"))
        world.provider.failures.extend(failures[at] for at in order)

        assert type(world.failure(world.begun(2))) is InternalError

    def test_what_nobody_expected_among_good_images_leaves_these_stored_and_on_the_record(self, world: World) -> None:
        bug = KeyError("a bug")
        world.store.failures.append(bug)
        generation = world.begun(3)

        error = world.failure(generation)

        assert isinstance(error, PartialGenerationError)
        assert isinstance(error.__cause__, InternalError)
        assert error.__cause__.__cause__ is bug
        assert len(world.store.saved) == 2
        assert set(world.record(generation).stored_ids) == set(world.store.saved)

    def test_when_to_try_again_is_still_told(self, world: World) -> None:
        failure = UpstreamRateLimitedError("slow down")
        failure.retry_after = 7
        world.provider.failures.append(failure)

        error = world.failure(world.begun())

        assert isinstance(error, TryLaterError)
        assert error.retry_after == 7

    def test_a_failed_call_is_not_made_again(self, world: World) -> None:
        world.provider.failures.append(RATE_LIMITED)

        world.failure(world.begun())

        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("model", ["dall-e-3", "dall-e-2"])
    def test_fewer_images_than_asked_for_never_pass_for_success(self, world: World, model: str) -> None:
        class Short(FakeProvider):
            def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
                answer = super().generate(request, n, deadline)
                return UpstreamAnswer(answer.images[:-1])

        world.provider = Short()

        generation = world.begun(2, model)

        assert type(world.failure(generation)) is InternalError  # a provider that breaks its contract is a bug
        assert [call.answer for call in world.record(generation).calls] == [None] * len(generation.calls)

    def test_every_failure_after_a_success_says_that_money_was_spent(self, world: World) -> None:
        for failure in NOTHING_SPENT:
            world.provider.failures.extend([None, failure])
            assert isinstance(world.failure(world.begun(2)), MoneySpentError)


class WatchedRecords(FakeGenerationStore):
    """`before_noting` is called for each call whose answer is about to be noted."""

    def __init__(self) -> None:
        super().__init__()
        self.before_noting: Callable[[int], object] = lambda _: None

    def save_answer(self, generation_id: str, index: int, answer: CallAnswer) -> CallAnswer:
        self.before_noting(index)
        return super().save_answer(generation_id, index, answer)


class WatchedSource(FakeImageSource):
    """`before_opening` runs before each image is opened."""

    def __init__(self, files: dict[str, bytes], before_opening: Callable[[], object]) -> None:
        super().__init__(files)
        self._before_opening = before_opening

    @contextmanager
    def open(self, source: str | bytes, deadline: Deadline) -> Iterator[ImageBody]:
        self._before_opening()
        with super().open(source, deadline) as body:
            yield body


class TestWhatIsKnownIsNotedBeforeWhatIsNext:
    @pytest.mark.parametrize(("model", "n"), [("dall-e-3", 1), ("dall-e-3", 3), ("dall-e-2", 3)])
    def test_the_intent_is_on_the_record_before_the_upstream_is_asked(self, world: World, model: str, n: int) -> None:
        generation = world.begun(n, model)
        seen: list[int] = []
        world.provider.during_call = lambda: seen.append(sum(call.sent for call in world.record(generation).calls))

        world.generate(generation)

        assert len(seen) == len(generation.calls)
        # Each call sees at least its own intent, the last one every one.
        assert all(sent >= at for at, sent in enumerate(sorted(seen), 1))
        assert max(seen) == len(generation.calls)

    @pytest.mark.parametrize(("model", "n"), [("dall-e-3", 1), ("dall-e-3", 3), ("dall-e-2", 3)])
    def test_the_urls_are_on_the_record_before_any_is_fetched(self, world: World, model: str, n: int) -> None:
        generation = world.begun(n, model)
        known: list[set[str]] = []

        def look() -> None:
            answers = [call.answer for call in world.record(generation).calls if call.answer]
            known.append({image.url for answer in answers for image in answer.images if image.url})

        world.source = WatchedSource(world.provider.files, look)

        world.generate(generation)

        assert len(known) == n
        images_a_call = n // len(generation.calls)
        assert all(len(urls) >= images_a_call for urls in known)
        assert max(map(len, known)) == n

    @pytest.mark.parametrize(("model", "n"), [("gpt-image-1", 1), ("gpt-image-1", 3), ("dall-e-3", 3)])
    def test_bytes_are_stored_before_their_answer_is_noted(self, world: World, model: str, n: int) -> None:
        stored: list[bool] = []
        noted: list[bool] = []
        world.records = records = WatchedRecords()
        generation = world.begun(n, model, "b64_json")

        def look(index: int) -> None:
            image_ids = set(generation.calls[index].image_ids)
            stored.append(image_ids <= set(world.store.saved))
            noted.append(image_ids <= set(world.record(generation).stored))

        records.before_noting = look

        world.generate(generation)

        assert stored == noted == [True] * len(generation.calls)

    def test_what_an_answer_said_is_on_the_record(self, world: World) -> None:
        world.provider.details = {"quality": "high"}
        world.provider.usage = {"total_tokens": 50}
        generation = world.begun(2, "dall-e-2")

        record = world.generate(generation)

        assert record.calls == (
            Call(
                image_ids=generation.image_ids,
                sent=1,
                answer=CallAnswer(
                    images=(
                        AnsweredImage("https://images.example/1-1.png", "a cat, 1-1"),
                        AnsweredImage("https://images.example/1-2.png", "a cat, 1-2"),
                    ),
                    details={"quality": "high"},
                    usage={"total_tokens": 50},
                ),
            ),
        )
        assert record.repeated_calls == 0

    @pytest.mark.parametrize("failure", [NotAnImageError("HTML"), ImageStorageError("access denied")])
    def test_what_was_answered_stays_known_where_it_cannot_be_kept(self, world: World, failure: ImagegenError) -> None:
        (world.source if isinstance(failure, NotAnImageError) else world.store).failures.append(failure)
        generation = world.begun()

        assert world.failure(generation) is failure

        [call] = world.record(generation).calls
        assert call.answer == CallAnswer((AnsweredImage("https://images.example/1-1.png", "a cat, 1-1"),))

    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    def test_a_call_that_failed_has_its_sending_on_the_record_and_whether_it_was_refused(
        self, world: World, failure: ImagegenError
    ) -> None:
        world.provider.failures.append(failure)
        generation = world.begun()

        world.failure(generation)

        refused = int(isinstance(failure, NothingSpentError))
        assert world.record(generation).calls == (Call(generation.image_ids, sent=1, refused=refused),)

    def test_nothing_is_looked_for_where_nothing_can_be(self, world: World) -> None:
        world.generate(world.begun(4, "dall-e-2"))

        assert world.store.looked_for == []


def answer(*urls: str | None) -> CallAnswer:
    return CallAnswer(tuple(AnsweredImage(url, f"of {url}") for url in urls))


class TestTakeover:
    """By whoever claims a generation that its owner left behind."""

    def test_only_what_is_missing_is_fetched_and_nothing_is_bought(self, world: World) -> None:
        generation = world.begun(3, "dall-e-2")
        first, second, third = generation.image_ids
        urls = [f"https://images.example/{name}.png" for name in ("a", "b", "c")]
        world.source.files.update(zip(urls, [png("a"), png("b"), png("c")], strict=True))
        left = world.left_behind(
            generation, Call(generation.image_ids, sent=1, answer=answer(*urls)), stored=[second], noted=[second]
        )

        record = world.generate(left)

        assert world.provider.calls == []
        assert sorted(map(str, world.source.opened)) == [urls[0], urls[2]]
        assert [world.store.saved[image_id][1] for image_id in (first, second, third)] == [
            png("a"),
            png(second),
            png("c"),
        ]
        assert record.stored_ids == generation.image_ids
        assert record.calls == left.calls

    def test_where_all_is_stored_nothing_is_left_to_do(self, world: World) -> None:
        generation = world.begun(2, "dall-e-2")
        left = world.left_behind(
            generation,
            Call(generation.image_ids, sent=1, answer=answer("https://images.example/a", None)),
            stored=generation.image_ids,
            noted=generation.image_ids,
        )

        record = world.generate(left)

        assert (world.provider.calls, world.source.opened, world.store.tries) == ([], [], [])
        assert record == left

    def test_only_the_calls_that_were_never_sent_are_sent(self, world: World) -> None:
        generation = world.begun(3)
        first, second, third = generation.calls
        world.source.files["https://images.example/a"] = png("a")
        left = world.left_behind(
            generation,
            replace_call(first, sent=1, answer=answer("https://images.example/a")),
            second,
            replace_call(third, sent=1, answer=answer(None)),
            stored=third.image_ids,
            noted=third.image_ids,
        )

        record = world.generate(left)

        assert len(world.provider.calls) == 1
        assert world.store.saved[first.image_ids[0]][1] == png("a")
        assert world.store.saved[second.image_ids[0]][1] == png("1-1")
        assert record.stored_ids == generation.image_ids
        assert [call.sent for call in record.calls] == [1, 1, 1]

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_a_call_of_unknown_outcome_is_sent_once_more(self, world: World, response_format: ResponseFormat) -> None:
        generation = world.begun(2, "dall-e-2", response_format)
        left = world.left_behind(generation, Call(generation.image_ids, sent=1))
        sent: list[int] = []
        world.provider.during_call = lambda: sent.append(world.record(generation).calls[0].sent)

        record = world.generate(left)

        assert [call.n for call in world.provider.calls] == [2]
        assert sent == [2]
        assert world.store.looked_for == list(generation.image_ids)
        assert record.stored_ids == generation.image_ids
        assert record.repeated_calls == 1

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("noted", [0, 1, 2])
    def test_it_is_sent_only_for_the_images_that_nobody_stored(
        self, world: World, noted: int, response_format: ResponseFormat
    ) -> None:
        generation = world.begun(4, "dall-e-2", response_format)
        first, second, third, fourth = generation.image_ids
        left = world.left_behind(
            generation,
            Call(generation.image_ids, sent=1),
            stored=[second, fourth],
            noted=[second, fourth][:noted],
        )

        record = world.generate(left)

        assert [call.n for call in world.provider.calls] == [2]
        assert world.store.looked_for == [image_id for image_id in generation.image_ids if image_id not in left.stored]
        assert {image_id: content for image_id, (_, content) in world.store.saved.items()} == {
            first: png("1-1"),
            second: png(second),
            third: png("1-2"),
            fourth: png(fourth),
        }
        assert record.stored == {
            image_id: StoredImage(media_type, len(content))
            for image_id, (media_type, content) in world.store.saved.items()
        }
        assert [record.revised_prompt(image_id) for image_id in generation.image_ids] == [
            "a cat, 1-1",
            None,
            "a cat, 1-2",
            None,
        ]
        assert record.repeated_calls == 1

    @pytest.mark.parametrize("sent", [1, 2])
    @pytest.mark.parametrize("repeat_unknown", [True, False])
    def test_it_is_not_sent_where_all_its_images_turn_out_to_be_stored(
        self, world: World, repeat_unknown: bool, sent: int
    ) -> None:
        world.repeat_unknown = repeat_unknown
        generation = world.begun(2, "gpt-image-1", "b64_json")
        left = world.left_behind(generation, Call(generation.image_ids, sent=sent), stored=generation.image_ids)

        record = world.generate(left)

        assert world.provider.calls == []
        assert record.stored_ids == generation.image_ids
        assert record.calls == (Call(generation.image_ids, sent=sent, answer=CallAnswer((AnsweredImage(),) * 2)),)

    @pytest.mark.parametrize(("sent", "repeat_unknown"), [(2, True), (2, False), (1, False)])
    def test_it_is_not_sent_once_too_often(self, world: World, sent: int, repeat_unknown: bool) -> None:
        world.repeat_unknown = repeat_unknown
        generation = world.begun()
        left = world.left_behind(generation, Call(generation.image_ids, sent=sent))

        assert type(world.failure(left)) is OutcomeUnknownError
        assert world.provider.calls == []
        assert world.record(generation).calls == left.calls

    def test_what_a_call_sent_too_often_left_stored_is_told(self, world: World) -> None:
        generation = world.begun(2, "gpt-image-1", "b64_json")
        left = world.left_behind(generation, Call(generation.image_ids, sent=2), stored=generation.image_ids[1:])

        error = world.failure(left)

        assert isinstance(error, PartialGenerationError)
        assert isinstance(error.__cause__, OutcomeUnknownError)
        assert tuple(error.images) == generation.image_ids[1:] == world.record(generation).stored_ids
        assert world.provider.calls == []

    def test_a_call_that_was_never_sent_is_sent_although_none_may_be_repeated(self, world: World) -> None:
        world.repeat_unknown = False

        assert len(world.generate(world.begun(2)).stored) == 2

    def test_one_call_of_unknown_outcome_holds_no_other_back(self, world: World) -> None:
        world.repeat_unknown = False
        generation = world.begun(2)
        left = world.left_behind(generation, replace_call(generation.calls[0], sent=1))

        error = world.failure(left)

        assert isinstance(error, PartialGenerationError)
        assert isinstance(error.__cause__, OutcomeUnknownError)
        assert tuple(error.images) == generation.image_ids[1:]
        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("sent", [1, 2])
    def test_where_s3_cannot_be_asked_what_is_stored_the_generation_is_unfinished(
        self, world: World, sent: int
    ) -> None:
        generation = world.begun()
        left = world.left_behind(generation, Call(generation.image_ids, sent=sent), stored=generation.image_ids)
        world.store.failures_to_find.extend([HICCUP] * KEEP_TRIES)

        with pytest.raises(UnfinishedError):
            world.generate(left)
        assert world.generate(world.claimed(generation.id)).stored_ids == generation.image_ids
        assert world.provider.calls == []

    def test_where_the_bucket_hiccups_it_is_asked_again_what_is_stored(self, world: World) -> None:
        generation = world.begun()
        left = world.left_behind(generation, Call(generation.image_ids, sent=1), stored=generation.image_ids)
        world.store.failures_to_find.append(HICCUP)

        assert world.generate(left).stored_ids == generation.image_ids

    def test_bytes_whose_storing_could_not_be_noted_are_found_by_the_next_owner(self, world: World) -> None:
        generation = world.begun(response_format="b64_json")
        world.records.failures.extend([None, "before"])  # the intent, the image
        assert isinstance(world.failure(generation), RecordsUnavailableError)
        assert set(world.store.saved) == set(generation.image_ids)

        record = world.generate(world.claimed(generation.id))

        assert len(world.provider.calls) == 1
        assert record.stored == {generation.image_ids[0]: StoredImage("image/png", len(png("1-1")))}

    def test_an_image_whose_storing_could_not_be_noted_is_found_although_its_url_is_gone(self, world: World) -> None:
        generation = world.begun()
        world.records.failures.extend([None, None, "before"])  # the intent, the answer, the image
        assert isinstance(world.failure(generation), RecordsUnavailableError)
        world.source.files.clear()

        record = world.generate(world.claimed(generation.id))

        assert len(world.provider.calls) == 1
        assert record.stored == {generation.image_ids[0]: StoredImage("image/png", len(png("1-1")))}


def replace_call(call: Call, *, sent: int, answer: CallAnswer | None = None) -> Call:
    return msgspec.structs.replace(call, sent=sent, answer=answer)


class OneBroken(FakeProvider):
    """The second image of each answer is not usable."""

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        answer = super().generate(request, n, deadline)
        images = list(answer.images)
        images[1] = UpstreamImage(failure=INVALID)
        return replace(answer, images=tuple(images))


class TestOneBrokenImageAmongThree:
    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("where", ["answer", "storing"])
    def test_the_good_ones_are_kept_and_a_takeover_does_not_ask_again(
        self, world: World, where: str, response_format: ResponseFormat
    ) -> None:
        failure: ImagegenError = INVALID
        if where == "answer":
            world.provider = OneBroken()
            world.source.files = world.provider.files
        else:
            failure = ImageStorageError("access denied")
            world.store.failures.append(failure)
        generation = world.begun(3, "dall-e-2", response_format)

        error = world.failure(generation)
        kept_first = dict(world.store.saved)

        assert isinstance(error, PartialGenerationError)
        assert same(error.__cause__, failure)
        assert len(kept_first) == 2
        assert error.images == world.record(generation).stored_ids
        assert set(error.images) == set(kept_first)

        if where == "storing" and response_format == "url":  # its URL is known: a takeover can still fetch it
            assert world.generate(world.claimed(generation.id)).stored_ids == generation.image_ids
        else:
            again = world.failure(world.claimed(generation.id))
            assert isinstance(again, PartialGenerationError)
            assert same(again.__cause__, failure)
            assert world.store.saved == kept_first
        assert len(world.provider.calls) == 1

    def test_why_it_is_broken_is_noted_with_the_answer(self, world: World) -> None:
        world.provider = OneBroken()
        world.source.files = world.provider.files
        generation = world.begun(3, "dall-e-2")

        world.failure(generation)

        answered = world.record(generation).calls[0].answer
        assert answered is not None
        assert [image.failure for image in answered.images] == [None, kept(INVALID), None]


class Short(FakeProvider):
    """Answers with so many images a call, in turn; then with none that was asked for."""

    def __init__(self, *came: int) -> None:
        super().__init__()
        self._came = list(came)

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        answer = super().generate(request, n, deadline)
        came = self._came.pop(0) if self._came else 0
        few = UpstreamTooFewImagesError(f"The image model answered with {came} of {n} images.")
        if not came:
            raise few
        images = answer.images[:came] + (UpstreamImage(failure=few),) * (n - came)
        return replace(answer, images=images)


@pytest.mark.parametrize("response_format", FORMATS)
class TestFewerImagesThanAskedFor:
    def test_each_missing_image_is_asked_for_by_a_call_of_its_own(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1, 1, 1))
        record = world.generate(world.begun(3, "dall-e-2", response_format))

        assert sorted(record.stored) == sorted(record.image_ids)
        assert len({content for _, content in world.store.saved.values()}) == 3
        assert [call.n for call in world.provider.calls] == [3, 1, 1]
        assert (record.extra_calls, record.repeated_calls) == (2, 0)

    def test_what_is_still_missing_is_not_asked_for_again(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1, 1))
        generation = world.begun(3, "dall-e-2", response_format)

        for _ in range(3):  # and not by the next process either
            error = world.failure(generation)
            assert isinstance(error, PartialGenerationError)
            assert len(error.images) == 2
            generation = world.claimed(generation.id)

        assert [call.n for call in world.provider.calls] == [3, 1, 1]
        assert generation.extra_calls == 2
        assert generation.unreturned == 0  # the first call may have been charged for all three

    def test_why_the_rest_is_missing_is_what_its_own_call_came_to(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1))
        error = world.failure(world.begun(2, "dall-e-2", response_format))
        assert isinstance(error.__cause__, UpstreamTooFewImagesError)

        world = World(pool, Short(1))
        world.provider.failures.extend([None, PromptRejectedError("No.")])
        generation = world.begun(2, "dall-e-2", response_format)
        error = world.failure(generation)
        assert (type(error), type(error.__cause__)) == (PartialGenerationError, PromptRejectedError)
        assert world.record(generation).unreturned == 0

    def test_an_image_that_came_broken_is_not_asked_for_again(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        class Broken(FakeProvider):
            def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
                answer = super().generate(request, n, deadline)
                broken = UpstreamImage(failure=NotAnImageError("No image."))
                return replace(answer, images=(broken, *answer.images[1:]))

        world = World(pool, Broken())
        generation = world.begun(3, "dall-e-2", response_format)
        assert len(world.failure(generation).images) == 2  # type: ignore[attr-defined]
        assert (len(world.provider.calls), world.record(generation).extra_calls) == (1, 0)

    def test_an_extra_call_whose_outcome_is_unknown_is_not_repeated(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1, 1, 1))
        generation = world.begun(2, "dall-e-2", response_format)
        first = generation.image_ids[0]
        missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 2")))
        answered = replace_call(generation.calls[0], sent=1, answer=CallAnswer((AnsweredImage(), missing)))
        left = world.left_behind(generation, answered, stored=[first], noted=[first])
        assert left.owner
        world.records.save_sending(left.id, left.owner, left.calls[1].number, 1)
        left = world.claimed(left.id)

        error = world.failure(left)

        assert (type(error.__cause__), world.provider.calls) == (OutcomeUnknownError, [])

    def test_dead_letters_ask_for_nothing_more(self, pool: ThreadPoolExecutor, response_format: ResponseFormat) -> None:
        world = World(pool, Short(1), may_send=False)
        generation = world.begun(2, "dall-e-2", response_format)
        first = generation.image_ids[0]
        missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 2")))
        answered = replace_call(generation.calls[0], sent=1, answer=CallAnswer((AnsweredImage(), missing)))
        left = world.left_behind(generation, answered, stored=[first], noted=[first])

        error = world.failure(left)

        assert (type(error.__cause__), world.provider.calls) == (UpstreamTooFewImagesError, [])

    def test_what_a_late_answer_brought_is_not_asked_for(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1, 1))
        generation = world.begun(2, "dall-e-2", response_format)
        first, second = generation.image_ids
        missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 2")))
        answered = replace_call(generation.calls[0], sent=2, answer=CallAnswer((AnsweredImage(), missing)))
        left = world.left_behind(generation, answered, stored=[first, second], noted=[first])

        assert world.generate(left).stored_ids == (first, second)
        assert world.provider.calls == []

    def test_an_extra_call_is_not_sent_if_it_could_be_cut_off(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1, 1), call_seconds=100)
        generation = world.begun(2, "dall-e-2", response_format)

        with pytest.raises(UnfinishedError):
            world.generate(generation, deadline=Deadline.after(99))

        assert [call.n for call in world.provider.calls] == [2]
        record = world.generate(world.claimed(generation.id), deadline=Deadline.after(101))
        assert (len(record.stored), [call.n for call in world.provider.calls]) == (2, [2, 1])

    def test_what_only_a_later_answer_has_is_kept_and_not_asked_for(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool)
        generation = world.begun(2, "dall-e-2", response_format)
        missing = AnsweredImage(failure=kept(UpstreamTooFewImagesError("1 of 2")))
        world.provider.files["https://late.example/1"] = png("late 1")
        short = CallAnswer((AnsweredImage("https://late.example/1"), missing))
        world.provider.during_call = lambda: world.records.save_answer(generation.id, 0, short)

        record = world.generate(generation)

        assert record.stored_ids == generation.image_ids
        assert (len(world.provider.calls), record.extra_calls) == (1, 0)

    def test_an_answer_that_another_process_noted_first_counts(
        self, pool: ThreadPoolExecutor, response_format: ResponseFormat
    ) -> None:
        world = World(pool, Short(1))
        generation = world.begun(2, "dall-e-2", response_format)
        world.provider.files |= {"https://late.example/1": png("late 1"), "https://late.example/2": png("late 2")}
        late = CallAnswer((AnsweredImage("https://late.example/1"), AnsweredImage("https://late.example/2")))
        world.provider.during_call = lambda: world.records.save_answer(generation.id, 0, late)

        assert world.generate(generation).stored_ids == generation.image_ids
        assert len(world.provider.calls) == 1


class TestSendingAgain:
    @pytest.mark.parametrize("failure", NOTHING_SPENT, ids=lambda failure: type(failure).__name__)
    @pytest.mark.parametrize(("sent", "refused", "known"), [(0, 0, True), (1, 1, True), (1, 0, False), (2, 1, False)])
    def test_a_refusal_is_an_unknown_outcome_only_if_an_earlier_sending_is(
        self, world: World, sent: int, refused: int, known: bool, failure: ImagegenError
    ) -> None:
        generation = world.begun()
        left = world.left_behind(generation, Call(generation.image_ids, sent=sent, refused=refused))
        world.provider.failures.append(failure)

        error = world.failure(left)

        assert (error is failure) is known
        assert (type(error) is OutcomeUnknownError) is not known
        (call,) = world.record(generation).calls
        assert (call.sent, call.refused, call.charged) == (sent + 1, refused + 1, not known)

    @pytest.mark.parametrize(("sent", "refused"), [(2, 1), (5, 4), (3, 3)])
    def test_refused_sendings_leave_the_number_that_may_still_be_sent(
        self, world: World, sent: int, refused: int
    ) -> None:
        generation = world.begun()
        left = world.left_behind(generation, Call(generation.image_ids, sent=sent, refused=refused))

        assert world.generate(left).stored_ids == generation.image_ids
        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("repeat_unknown", [True, False])
    @pytest.mark.parametrize("retries", [0, 1, 2])
    def test_each_retry_of_an_operator_allows_one_more_sending(
        self, world: World, retries: int, repeat_unknown: bool
    ) -> None:
        world.repeat_unknown = repeat_unknown
        most = (2 if repeat_unknown else 1) + retries
        for sent in (most - 1, most):
            generation = world.begun()
            left = world.left_behind(generation, Call(generation.image_ids, sent=sent))
            left = msgspec.structs.replace(left, retries=retries)
            if sent < most:
                assert world.generate(left).calls[0].sent == most
            else:
                assert type(world.failure(left)) is OutcomeUnknownError
        assert len(world.provider.calls) == 1

    def test_without_leave_to_send_nothing_is_bought_but_what_is_known_is_fetched(self, world: World) -> None:
        world.may_send = False
        generation = world.begun(3)
        first, second, third = generation.calls
        world.source.files["https://images.example/a"] = png("a")
        left = world.left_behind(
            generation,
            replace_call(first, sent=1, answer=answer("https://images.example/a")),
            replace_call(second, sent=1),
            third,
            stored=second.image_ids,
        )

        error = world.failure(left)

        assert isinstance(error, PartialGenerationError)
        assert isinstance(error.__cause__, AbandonedError)
        assert error.images == (*first.image_ids, *second.image_ids)
        assert world.record(generation).calls[2] == third
        assert world.provider.calls == []


class TestLostClaim:
    def test_whoever_lost_the_generation_asks_nothing_of_the_upstream(self, world: World) -> None:
        generation = world.begun(3)
        world.claimed(generation.id)

        with pytest.raises(LostClaimError):
            world.generate(generation)

        assert world.provider.calls == []

    def test_what_has_ended_is_not_worked_on(self, world: World) -> None:
        generation = world.begun()
        world.records.cancel(generation.id, now=world.now)

        with pytest.raises(LostClaimError):
            world.generate(generation)

        assert (world.provider.calls, world.store.tries) == ([], [])

    def test_no_call_begins_after_the_loss(self) -> None:
        with ThreadPoolExecutor(1) as one_after_another:
            world = World(one_after_another)
            generation = world.begun(3)
            world.provider.during_call = lambda: world.records.cancel(generation.id, now=world.now)

            with pytest.raises(LostClaimError):
                world.generate(generation)

        assert len(world.provider.calls) == 1

    @pytest.mark.parametrize("response_format", FORMATS)
    def test_a_late_answer_and_its_images_are_noted_although_the_generation_was_cancelled(
        self, world: World, response_format: ResponseFormat
    ) -> None:
        generation = world.begun(3, "dall-e-2", response_format)
        world.provider.during_call = lambda: world.records.cancel(generation.id, now=world.now)

        record = world.generate(generation)

        assert record.status is Status.CANCELLED
        assert record.calls[0].answer is not None
        assert record.stored_ids == generation.image_ids == tuple(i for i in record.image_ids if i in world.store.saved)

    @pytest.mark.parametrize("failure", NOTHING_SPENT, ids=lambda failure: type(failure).__name__)
    def test_a_late_refusal_is_noted_although_the_generation_was_cancelled(
        self, world: World, failure: ImagegenError
    ) -> None:
        generation = world.begun()
        world.provider.during_call = lambda: world.records.cancel(generation.id, now=world.now)
        world.provider.failures.append(failure)

        assert world.failure(generation) is failure
        record = world.record(generation)
        assert (record.status, record.calls[0].charged, record.unreturned) == (Status.CANCELLED, False, 1)

    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    @pytest.mark.parametrize("order", list(permutations(range(2))))
    def test_a_deletion_outweighs_what_went_wrong(
        self, world: World, order: tuple[int, ...], failure: ImagegenError
    ) -> None:
        generation = world.begun(2)
        barrier = threading.Barrier(2)

        def delete() -> None:
            if barrier.wait(BARRIER_SECONDS) == 0:
                ended = world.records.cancel(generation.id, now=world.now)
                assert ended is not None
                world.records.bury(ended, now=world.now)
            barrier.wait(BARRIER_SECONDS)

        world.provider.during_call = delete
        failures = (failure, None)
        world.provider.failures.extend(failures[at] for at in order)

        with pytest.raises(LostClaimError):
            world.generate(generation)


class TestRecordsUnavailable:
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("when", WHENS)
    def test_without_an_intent_on_the_record_nothing_is_asked_of_the_upstream(
        self, world: World, when: When, n: int
    ) -> None:
        generation = world.begun(n)
        world.records.failures.extend([when] * n)

        assert isinstance(world.failure(generation), RecordsUnavailableError)
        assert world.provider.calls == []

    def test_an_image_whose_save_lost_its_answer_is_listed_though_its_link_has_died(self, world: World) -> None:
        generation = world.begun()

        class LosesItsAnswer(FakeImageStore):
            def save(self, image_id: str, body: ImageBody, deadline: Deadline) -> bool:
                super().save(image_id, body, deadline)
                world.provider.files.clear()
                raise ImageStorageInterruptedError("The answer was lost.")

        world.store = LosesItsAnswer()
        record = world.generate(generation)

        assert record.stored_ids == generation.image_ids

    @pytest.mark.parametrize("when", WHENS)
    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("written", range(1, 5))
    def test_what_cannot_be_noted_is_stored_all_the_same(
        self, world: World, written: int, response_format: ResponseFormat, when: When
    ) -> None:
        generation = world.begun(3, "dall-e-2", response_format)
        # The intent, then in some order the answer and the three images.
        world.records.failures.extend([None] * written + [when] * (5 - written))

        assert isinstance(world.failure(generation), RecordsUnavailableError)

        assert len(world.provider.calls) == 1
        assert {image_id: content for image_id, (_, content) in world.store.saved.items()} == {
            image_id: png(f"1-{index}") for index, image_id in enumerate(generation.image_ids, 1)
        }

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("unwritten", range(1, 5))
    def test_one_write_that_fails_stops_no_other(
        self, world: World, unwritten: int, response_format: ResponseFormat
    ) -> None:
        generation = world.begun(3, "dall-e-2", response_format)
        world.records.failures.extend([None] * unwritten + ["before"])

        assert isinstance(world.failure(generation), RecordsUnavailableError)

        record = world.record(generation)
        [call] = record.calls
        assert len(record.stored) + bool(call.answer) == 3
        assert set(world.store.saved) == set(generation.image_ids)

    def test_the_other_calls_of_one_without_an_intent_end_well(self, world: World) -> None:
        generation = world.begun(3)
        world.records.failures.append("before")

        assert isinstance(world.failure(generation), RecordsUnavailableError)

        assert len(world.provider.calls) == 2
        assert len(world.record(generation).stored) == 2

    @pytest.mark.parametrize("failure", NOTHING_SPENT + MONEY_SPENT, ids=names)
    def test_it_outweighs_what_went_wrong_since_another_attempt_may_end_well(
        self, world: World, failure: ImagegenError
    ) -> None:
        generation = world.begun(2)
        world.records.failures.append("before")
        world.provider.failures.append(failure)

        assert isinstance(world.failure(generation), RecordsUnavailableError)

    @pytest.mark.parametrize("response_format", FORMATS)
    @pytest.mark.parametrize("when", WHENS)
    @pytest.mark.parametrize("unwritten", range(1, 5))
    def test_the_next_owner_finds_all_that_was_stored_and_buys_nothing(
        self, world: World, unwritten: int, when: When, response_format: ResponseFormat
    ) -> None:
        generation = world.begun(3, "dall-e-2", response_format)
        world.records.failures.extend([None] * unwritten + [when] * (5 - unwritten))
        assert isinstance(world.failure(generation), RecordsUnavailableError)

        record = world.generate(world.claimed(generation.id))

        assert len(world.provider.calls) == 1
        assert record.stored_ids == generation.image_ids
