"""Tasks of upstreams: each is polled until it ends, for any order of deaths, cancellations and messages."""

import threading
from dataclasses import replace

import pytest

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation, Origin, Status, admit
from imagegen.domain.images import UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.models import DEADLINE_SECONDS
from imagegen.domain.upstreams import Route
from imagegen.usecases.delete_images import LONGEST_WRITER_SECONDS
from imagegen.usecases.tried import KEEP_TRIES
from tests.fakes.provider import FakeProvider
from tests.support.hooks import after, before, raising
from tests.support.in_memory import BASE_URL, LEASE, REQUEST, InMemoryService
from tests.support.models import MODELS
from tests.support.waiting import SECONDS

REFUNDED = errors.UpstreamTaskRefundedError("The task failed and is not charged.")
CHARGED = errors.UpstreamTaskFailedError("The task failed.")
UNKNOWN = errors.UpstreamTaskUnknownError("There is no such task.")
BY_TASK = "mj_imagine"
TWO_ROUTES = "mj_at_two_resellers"
SLOTS = "reseller/openai"  # the fake's protocol


@pytest.fixture
def tasks(service: InMemoryService) -> InMemoryService:
    """A service whose model answers with tasks, each with nine polls that find it running."""
    model = replace(MODELS["dall-e-3"], by_task=True, deadline_seconds=900)
    routes = tuple(Route(upstream, "name") for upstream in ("reseller", "other"))
    service.models = {BY_TASK: replace(model, id=BY_TASK), TWO_ROUTES: replace(model, id=TWO_ROUTES, routes=routes)}
    service.other_providers["other"] = FakeProvider()
    for provider in (service.provider, service.other_providers["other"]):
        provider.polls, provider.files = 10, service.provider.files
    return service


def polled(service: InMemoryService, generation: Generation, last: int = 0) -> int:
    """Delivers the messages of the rounds until the generation has ended, or up to round `last`. Returns the rounds."""
    while not service.record(generation).ended and (not last or service.record(generation).polls <= last):
        service.now += service.queue.sent[-1][1] if service.queue.sent else 0
        due = service.deliver(generation.id, service.record(generation).polls)
        assert due in (None, LONGEST_WRITER_SECONDS)
    return service.record(generation).polls


def test_the_pause_before_a_poll_grows_with_the_age_of_the_task(tasks: InMemoryService) -> None:
    tasks.provider.poll_seconds, tasks.provider.longest_pause, tasks.provider.polls = 2.0, 10.0, 30
    generation = tasks.admitted(model=BY_TASK)
    assert polled(tasks, generation) == 30
    pauses = [delay for _, delay in tasks.queue.sent]
    assert pauses[:2] == [2, 2]
    assert all(2 <= pause <= 10 for pause in pauses)
    assert len(set(pauses[-10:])) == 10  # with jitter
    assert min(pauses[-10:]) > 5
    assert tasks.provider.polled == ["task of " + tasks.provider.calls[0].reference] * 30


def test_polls_have_a_queue_of_their_own(tasks: InMemoryService) -> None:
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation)
    assert set(tasks.queue.queues) == {"polls"}
    tasks.submit(request=replace(generation.request))
    assert tasks.queue.queues[-1] == "requests"


def test_a_message_of_an_earlier_round_polls_nothing_and_sends_nothing(tasks: InMemoryService) -> None:
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation, 3)
    before_it = (len(tasks.provider.polled), len(tasks.queue.sent))
    for poll in range(4):
        assert tasks.deliver(generation.id, poll) is None
    assert (len(tasks.provider.polled), len(tasks.queue.sent)) == before_it


def test_a_task_that_does_not_end_in_time_is_polled_again_by_a_retry(tasks: InMemoryService) -> None:
    tasks.provider.polls = 10**6
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert (failed.failure.code, failed.failure.money_spent) == ("upstream_task_unfinished", True)
    assert failed.calls[0].attempts[0].task_id in tasks.provider.tasks
    assert 900 <= tasks.now - generation.created_at < 920
    tasks.now += LONGEST_WRITER_SECONDS
    tasks.retry(generation.id)
    rounds = len(tasks.provider.polled)
    polled(tasks, generation, 1)
    tasks.provider.polls = 1
    polled(tasks, generation)
    record = tasks.record(generation)
    assert (record.status, len(tasks.provider.calls), len(tasks.provider.polled)) == (Status.COMPLETED, 1, rounds + 3)


def test_a_retry_buys_again_only_after_the_task_has_failed(tasks: InMemoryService) -> None:
    tasks.provider.polls = 10**6
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation)
    tasks.now += LONGEST_WRITER_SECONDS
    tasks.retry(generation.id)
    tasks.provider.polls, tasks.provider.fails = 1, CHARGED
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert (failed.failure.code, len(tasks.provider.calls)) == (CHARGED.code, 1)
    tasks.provider.fails = None
    tasks.retry(generation.id)
    polled(tasks, generation)
    assert (tasks.record(generation).status, len(tasks.provider.tasks)) == (Status.COMPLETED, 2)


@pytest.mark.parametrize(
    ("failure", "code", "used"),
    [
        (CHARGED, "upstream_task_failed", {1}),
        (REFUNDED, "upstream_task_refunded", {0}),
        (errors.ImageFilteredError("No."), "content_policy_violation", {1}),
        (errors.PromptRejectedError("No."), "content_policy_violation", {0}),
    ],
)
def test_the_quota_of_a_failed_task_returns_only_with_its_price(
    tasks: InMemoryService, failure: errors.ImagegenError, code: str, used: set[int]
) -> None:
    tasks.provider.polls, tasks.provider.fails = 1, failure
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert (failed.failure.code, tasks.used, len(tasks.provider.calls)) == (code, used, 1)


def test_a_task_is_unknown_only_some_time_after_its_begin(tasks: InMemoryService) -> None:
    tasks.provider.polls, tasks.provider.fails = 1, UNKNOWN
    generation = tasks.admitted(model=BY_TASK)
    polled(tasks, generation, 1)
    assert tasks.record(generation).status is Status.IN_PROGRESS
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert failed.failure.code == "upstream_task_unknown"
    assert 180 <= tasks.now - generation.created_at <= 180 + 15  # the longest pause


def test_a_task_of_an_upstream_that_is_no_longer_configured_stays_on_the_record(tasks: InMemoryService) -> None:
    tasks.provider.failures.append(errors.UpstreamRateLimitedError("full"))
    generation = tasks.admitted(model=TWO_ROUTES)
    polled(tasks, generation, 1)
    other = tasks.other_providers.pop("other")
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert (failed.failure.code, failed.failure.money_spent) == ("outcome_unknown", True)
    assert (other.polled, tasks.provider.polled) == (["task of " + other.calls[0].reference], [])
    tasks.now += LONGEST_WRITER_SECONDS
    tasks.other_providers["other"] = other
    tasks.retry(generation.id)
    polled(tasks, generation)
    assert (tasks.record(generation).status, len(other.calls), len(tasks.provider.calls)) == (Status.COMPLETED, 1, 1)


def test_a_repetition_of_an_unknown_call_goes_to_the_same_upstream(tasks: InMemoryService) -> None:
    """The process dies before it has recorded the task. The upstream is then full, and another one is not."""
    generation = tasks.admitted(model=TWO_ROUTES)
    fault = errors.RecordsUnavailableError("no answer")
    before(tasks.records, "save_task", raising(*[fault] * KEEP_TRIES))
    with pytest.raises(errors.RecordsUnavailableError):
        tasks.deliver(generation.id)
    tasks.now += 2 * LEASE
    tasks.provider.failures.append(errors.UpstreamRateLimitedError("full"))
    tasks.deliver(generation.id)
    assert tasks.record(generation).polls == 1
    polled(tasks, generation)
    record = tasks.record(generation)
    assert (record.status, len(tasks.provider.tasks)) == (Status.COMPLETED, 1)
    assert [call.repeats for call in tasks.provider.calls] == [False, True, True]
    assert tasks.other_providers["other"].calls == []


def test_an_unknown_call_is_not_repeated_while_its_upstream_has_no_key(tasks: InMemoryService) -> None:
    tasks.provider.failures.append(errors.UpstreamConnectionLostError("lost"))
    generation = tasks.admitted(model=TWO_ROUTES)
    polled(tasks, generation)
    tasks.has_key["reseller"] = False
    tasks.retry(generation.id)
    polled(tasks, generation)
    failed = tasks.record(generation)
    assert failed.failure
    assert (failed.failure.code, tasks.other_providers["other"].calls) == ("outcome_unknown", [])
    tasks.has_key["reseller"] = True
    tasks.retry(generation.id)
    polled(tasks, generation)
    assert (tasks.record(generation).status, len(tasks.provider.tasks)) == (Status.COMPLETED, 1)


@pytest.mark.parametrize("way", ["forbidden", "given up", "died twice"])
def test_a_task_that_no_process_noted_is_found_where_it_must_not_be_bought_again(
    tasks: InMemoryService, way: str
) -> None:
    """The upstream can look for it, which costs nothing."""
    tasks.repeat_unknown = way != "forbidden"
    generation = tasks.admitted(model=BY_TASK)
    for _ in range(2 if way == "died twice" else 1):
        fault = errors.RecordsUnavailableError("no answer")
        before(tasks.records, "save_task", raising(*[fault] * KEEP_TRIES))
        with pytest.raises(errors.RecordsUnavailableError):
            tasks.deliver(generation.id)
        tasks.now += 2 * LEASE
    calls = len(tasks.provider.calls)
    tasks.provider.finds = True
    if way == "given up":
        tasks.give_up(generation.id)
    else:
        tasks.deliver(generation.id)
    polled(tasks, generation)
    assert (tasks.record(generation).status, len(tasks.provider.calls)) == (Status.COMPLETED, calls)


def test_an_image_that_cannot_be_fetched_is_not_asked_for_in_every_round_of_another_task(
    tasks: InMemoryService,
) -> None:
    tasks.provider.polls = 1
    generation = tasks.admitted(model=BY_TASK, n=2)
    tasks.deliver(generation.id)
    tasks.records.save_answer(generation.id, 0, tasks.answer("lost"))
    lost = next(iter(tasks.provider.files))
    del tasks.provider.files[lost]
    tasks.provider.polls = 40
    assert polled(tasks, generation) == 40
    assert tasks.source.opened.count(lost) == KEEP_TRIES * len([1, 2, 4, 8, 16, 32, "last"])
    assert tasks.record(generation).stored_ids == generation.image_ids[1:]


def test_the_progress_is_that_of_all_tasks_together(tasks: InMemoryService) -> None:
    tasks.provider.progress = 40
    generation = tasks.admitted(model=BY_TASK, n=2)
    assert tasks.record(generation).progress is None
    tasks.deliver(generation.id)
    assert tasks.record(generation).progress == 40
    tasks.records.save_answer(generation.id, 0, tasks.answer("first"))
    tasks.store(generation.image_ids[0])
    tasks.deliver(generation.id, 1)
    assert tasks.record(generation).progress == 70
    tasks.provider.progress = None
    tasks.deliver(generation.id, 2)
    assert tasks.record(generation).progress == 70


def test_a_task_holds_its_slot_until_its_answer_is_on_the_record(tasks: InMemoryService) -> None:
    tasks.concurrency[SLOTS] = 1
    first, second = tasks.admitted(model=BY_TASK), tasks.admitted(model=BY_TASK)
    for generation in (first, second):
        tasks.deliver(generation.id)
    answers: list[object] = []
    before(tasks.slots, "free", lambda _: answers.append(tasks.record(first).calls[0].answer))
    for poll in range(1, 10):
        tasks.deliver(first.id, poll)
        assert (answers, len(tasks.provider.calls)) == ([], 1)
    tasks.deliver(first.id, 10)
    assert answers[0] is not None
    # The poll that shows the slot free brings the next one at once, by the queue of polls.
    assert (tasks.queue.sent[-1], tasks.queue.queues[-1]) == ((second.id, 0), "polls")
    tasks.deliver(second.id, 1)
    assert len(tasks.provider.calls) == 2


@pytest.mark.parametrize("end", ["failed", "unfinished", "cancelled", "deleted", "given up"])
def test_no_slot_is_held_for_a_task_that_is_no_longer_polled(tasks: InMemoryService, end: str) -> None:
    tasks.concurrency[SLOTS] = 1
    generation = tasks.admitted(model=BY_TASK)
    tasks.provider.polls = 3
    tasks.deliver(generation.id)
    assert tasks.slots.used[SLOTS]
    match end:
        case "failed":
            tasks.provider.fails = CHARGED
        case "unfinished":
            tasks.now += 900
        case "cancelled":
            tasks.cancel(generation.id)
            tasks.deliver(generation.id, 1)
            assert tasks.slots.used[SLOTS]  # it is paid for, and still polled
        case "deleted":
            tasks.delete(generation.id)
            tasks.deliver(generation.id, 1)
        case "given up":
            tasks.now += 900
            tasks.give_up(generation.id, 1)
    if end != "deleted":
        for poll in range(1, 5):
            tasks.deliver(generation.id, poll)
    assert not tasks.slots.used[SLOTS]


def test_a_call_that_is_being_sent_keeps_its_slot_if_its_generation_is_cancelled(tasks: InMemoryService) -> None:
    tasks.concurrency[SLOTS] = 1
    tasks.provider.polls = 1
    generation = tasks.admitted(model=BY_TASK)

    def meanwhile() -> None:
        tasks.provider.during_call = lambda: None
        tasks.cancel(generation.id)
        assert tasks.deliver(generation.id) == LEASE  # a repeated message
        assert tasks.slots.used[SLOTS]

    tasks.provider.during_call = meanwhile
    tasks.deliver(generation.id)
    assert tasks.slots.used[SLOTS]
    tasks.deliver(generation.id, 1)
    assert not tasks.slots.used[SLOTS]


def test_a_process_that_dies_before_it_records_the_task_of_a_deleted_generation_holds_no_slot(
    tasks: InMemoryService,
) -> None:
    tasks.concurrency[SLOTS] = 1
    generation = tasks.admitted(model=BY_TASK)

    def dies(*_: object) -> None:
        raise SystemExit

    before(tasks.records, "save_task", dies)
    with pytest.raises(SystemExit):
        tasks.deliver(generation.id)
    assert tasks.slots.used[SLOTS]
    tasks.delete(generation.id)
    tasks.deliver(generation.id)
    assert not tasks.slots.used[SLOTS]


def test_a_message_that_comes_before_its_record_frees_no_slot(tasks: InMemoryService) -> None:
    """Its writer is slow, and takes a slot while the message finds no record."""
    tasks.concurrency[SLOTS] = 1
    before(tasks.records, "tombstone", lambda _: tasks.slots.take(SLOTS, "gen_late", 0, until=tasks.now + 900))
    assert tasks.deliver("gen_late") is None
    assert tasks.slots.used[SLOTS]


def test_a_process_that_dies_between_the_answer_and_its_end_holds_no_slot(tasks: InMemoryService) -> None:
    tasks.concurrency[SLOTS] = 1
    tasks.provider.polls = 1
    generation = tasks.admitted(model=BY_TASK)
    tasks.deliver(generation.id)
    before(tasks.slots, "free", raising(RuntimeError("dies")))
    with pytest.raises(RuntimeError, match="dies"):
        tasks.deliver(generation.id, 1)
    assert tasks.slots.used[SLOTS]
    tasks.now += 2 * LEASE
    tasks.deliver(generation.id, 1)
    assert (tasks.record(generation).status, tasks.slots.used[SLOTS]) == (Status.COMPLETED, {})


def test_a_call_takes_a_slot_for_each_image_where_the_upstream_counts_images(tasks: InMemoryService) -> None:
    model = replace(tasks.models[BY_TASK], slot_per_image=True, images_per_call=9)
    tasks.models = {BY_TASK: model}
    tasks.concurrency[SLOTS] = 10
    tasks.provider.polls = 1
    nine, two, one = (tasks.admitted(model=BY_TASK, n=n) for n in (9, 2, 1))
    for generation in (nine, two, one):
        tasks.deliver(generation.id)
        tasks.now += 0.001
    assert [call.n for call in tasks.provider.calls] == [9]  # what is free is saved for the first who waits
    tasks.deliver(nine.id, 1)
    assert {generation_id for generation_id, _ in tasks.queue.sent[-2:]} == {two.id, one.id}
    for generation in (two, one):
        tasks.deliver(generation.id, 1)
    assert [call.n for call in tasks.provider.calls] == [9, 2, 1]


def test_a_task_is_polled_even_if_recording_it_takes_as_long_as_it_may_run(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    before(service.records, "save_task", lambda *_: setattr(service, "now", service.now + DEADLINE_SECONDS))
    assert service.deliver(generation.id) is None
    assert service.record(generation).status is Status.IN_PROGRESS
    assert service.deliver(generation.id, 1) is None
    assert service.record(generation).status is Status.COMPLETED


def test_a_message_for_a_cancelled_task_is_received_again_if_its_lease_ends(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    service.deliver(generation.id)
    service.cancel(generation.id)
    service.records.claim(generation.id, "dies", now=service.now, lease_until=service.now + LEASE, poll=1)
    before(service.records, "get", lambda _: setattr(service, "now", service.now + 2 * LEASE), once=True)
    assert service.deliver(generation.id, 1) == 1.0
    assert service.provider.polled == []
    assert service.deliver(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.CANCELLED, generation.image_ids)


def test_a_cancellation_that_stops_one_call_leaves_the_task_of_another_to_a_poll(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted(n=2)
    noted = threading.Event()
    after(service.records, "save_task", lambda *_: noted.set())

    def cancel_the_second_call(generation_id: str, _owner: str, call: int, *_: object) -> None:
        if call == 1:
            assert noted.wait(SECONDS)
            service.cancel(generation_id)

    before(service.records, "save_attempt", cancel_the_second_call)
    assert service.deliver(generation.id) is None
    assert (service.queue.polls[-1], service.record(generation).polls) == (1, 1)
    assert service.deliver(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids) == (Status.CANCELLED, generation.image_ids[:1])


def test_giving_up_a_cancelled_generation_stores_the_images_of_its_task(service: InMemoryService) -> None:
    service.provider.polls = 1
    generation = service.admitted()
    service.deliver(generation.id)
    service.cancel(generation.id)
    assert service.give_up(generation.id, 1) is None
    record = service.record(generation)
    assert (record.status, record.stored_ids, record.lease_until) == (Status.CANCELLED, generation.image_ids, 0)


def test_a_task_that_two_attempts_began_fails_once(service: InMemoryService) -> None:
    """The first process records the task after the second: it is slow and has lost its claim."""
    service.provider.polls = 1
    generation = service.admitted()
    fault = errors.RecordsUnavailableError("no answer")
    before(service.records, "save_task", raising(*[fault] * KEEP_TRIES))
    for _ in range(2):
        try:
            service.deliver(generation.id)
        except errors.RecordsUnavailableError:
            service.now += 2 * LEASE
    (task,) = service.provider.tasks
    service.records.save_task(generation.id, 0, 1, task)
    service.provider.fails = REFUNDED
    assert service.deliver(generation.id, 1) is None
    failed = service.record(generation)
    assert failed.failure is not None
    assert (failed.failure.code, failed.calls[0].sent, service.used) == (REFUNDED.code, 2, {0})

    service.provider.fails = None
    service.retry(generation.id)
    service.deliver(generation.id)
    assert len(service.provider.tasks) == 2
    service.deliver(generation.id, 1)
    assert (service.record(generation).status, service.used) == (Status.COMPLETED, {1})


@pytest.mark.parametrize(
    ("status", "is_answered"), [(Status.FAILED, False), (Status.FAILED, True), (Status.CANCELLED, True)]
)
def test_images_that_a_process_without_a_claim_still_stores_are_listed(
    service: InMemoryService, status: Status, is_answered: bool
) -> None:
    """Another process sees the task run for too long, while the first, which is slow, already has the images."""
    service.provider.polls = 9
    generation = service.admitted()
    service.deliver(generation.id)
    service.now += DEADLINE_SECONDS
    if status is Status.CANCELLED:
        service.cancel(generation.id)

    def answer(*_: object) -> None:
        if is_answered:
            service.records.save_answer(generation.id, 0, service.answer("slow"))

    service.provider.during_call = answer
    assert service.deliver(generation.id, 1) == LONGEST_WRITER_SECONDS
    assert service.record(generation).status is status
    service.store(*generation.image_ids)
    service.now += LONGEST_WRITER_SECONDS
    assert service.deliver(generation.id, 1) is None
    assert service.record(generation).stored_ids == generation.image_ids


def test_a_retry_of_a_call_whose_answer_was_lost_finds_the_task_that_it_began(service: InMemoryService) -> None:
    service.provider.polls = 1
    service.provider.failures.append(errors.UpstreamConnectionLostError("lost"))
    generation = service.admitted()
    service.deliver(generation.id)
    assert service.record(generation).status is Status.FAILED
    service.retry(generation.id)
    service.deliver(generation.id)
    service.deliver(generation.id, 1)
    assert service.record(generation).status is Status.COMPLETED
    assert len(service.provider.tasks) == 1


def test_a_task_of_a_batch_line_is_waited_for_no_longer_than_another(service: InMemoryService) -> None:
    """Its line may wait for hours to be sent."""
    service.provider.polls = 9
    origin = Origin(batch_id="batch_1", line=1)
    model = MODELS[REQUEST.model]
    generation = admit(REQUEST, model, caller="alice", base_url=BASE_URL, now=service.now, origin=origin)
    service.records.create(generation)
    service.deliver(generation.id)
    service.now += DEADLINE_SECONDS
    service.deliver(generation.id, 1)
    failed = service.record(generation)
    assert failed.failure
    assert failed.failure.code == errors.UpstreamTaskUnfinishedError.code


@pytest.mark.parametrize(
    "refusal",
    [
        errors.UpstreamRateLimitedError("full"),
        errors.UpstreamUnavailableError("busy"),
        errors.UpstreamOutOfCreditError("empty"),
    ],
    ids=lambda refusal: refusal.code,
)
def test_refused_calls_are_not_sent_in_each_round_of_another_call_with_a_task(
    service: InMemoryService, refusal: errors.ImagegenError
) -> None:
    """Each attempt stays on the record, which has 400 KB: the paid images would not fit any more."""

    class Full(FakeProvider):
        """Has room for one task, which never ends."""

        def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
            del deadline
            if call.number:
                raise refusal
            return self._task("task")

        def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
            del call, deadline
            return self._task(task_id)

    service.provider = Full()
    generation = service.admitted(n=10)
    began, poll = service.now, 0
    while not service.record(generation).ended:
        service.deliver(generation.id, poll)
        service.now += service.queue.sent[-1][1]
        poll += 1
    record = service.record(generation)
    assert service.now - began >= DEADLINE_SECONDS
    assert poll > 100
    assert max(call.sent for call in record.calls) < 20
