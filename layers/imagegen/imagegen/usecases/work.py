"""Works on a generation until its record has ended."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AbandonedError,
    ImagegenError,
    ImageStorageInterruptedError,
    OutcomeUnknownError,
    RecordsUnavailableError,
)
from imagegen.domain.failures import kept, raised_again
from imagegen.domain.generations import Call, Generation, LostClaimError, Status, new_owner
from imagegen.domain.models import CATALOG
from imagegen.domain.redacted_traceback import silent_trace
from imagegen.ports import (
    SILENT,
    AllowanceCounters,
    EventBus,
    GenerationQueue,
    GenerationStore,
    ImageProvider,
    ImageSource,
    ImageStore,
    Journal,
)
from imagegen.usecases.generate import Tools, generate, tried
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.manage import LEASE_SECONDS, LONGEST_WRITER_SECONDS, delete_images, sweep
from imagegen.usecases.publish import Settle, announce

# The JSON of an answer too large to be given directly: its length in bytes, and its blocks. None for any other.
LargeAnswer = Callable[[Generation], tuple[int, Iterator[bytes]] | None]


@dataclass(frozen=True, slots=True)
class Workshop:
    """All that work needs. `now` gives Unix seconds; `lease` is in seconds."""

    records: GenerationStore
    queue: GenerationQueue
    counters: AllowanceCounters
    bus: EventBus
    images: ImageStore
    source: ImageSource
    providers: Mapping[str, ImageProvider]
    pool: Executor
    large_answer: LargeAnswer
    now: Callable[[], float]
    repeat_unknown: bool = True
    call_seconds: float = 0.0
    lease: float = LEASE_SECONDS
    settle: Settle = lambda _: None
    journal: Journal = SILENT
    executor: Callable[[int], Executor] = ThreadPoolExecutor
    sleep: Callable[[float], None] = time.sleep
    heartbeat: Callable[[float, Callable[[], None]], AbstractContextManager[None]] = heartbeat


def work_on_message(
    generation_id: str, workshop: Workshop, deadline: Deadline, *, hold: Callable[[float], None]
) -> float | None:
    """Does what a message asks for. None: the message is done with; else seconds after which to look again.

    `hold` keeps the message from other workers for so many seconds. Raises RecordsUnavailableError, and whatever else
    is a fault of this service: then the message is to come again.
    """
    records, now = workshop.records, workshop.now()
    owner = new_owner()
    generation = records.claim(generation_id, owner, now=now, lease_until=now + workshop.lease)
    if generation is not None:
        workshop.journal.claimed(generation, age=now - generation.created_at)
        ended = work(generation, owner, workshop, deadline, hold)
        return _until_nobody_stores(ended, workshop.now()) if ended else None
    return _look_on(generation_id, workshop, deadline)


def _look_on(generation_id: str, workshop: Workshop, deadline: Deadline) -> float | None:
    """Does what is left to do for a generation that cannot be claimed."""
    current = workshop.records.get(generation_id)
    if current is None:
        tombstone = workshop.records.tombstone(generation_id)
        # Without a tombstone the message's writer died before it wrote the record: none comes any more.
        if tombstone is not None:
            sweep(tombstone, workshop.images, workshop.queue, workshop.now(), deadline)
        return None
    remaining = current.lease_until - workshop.now()
    if current.ended:
        _publish(current, workshop)  # the process that ended it may have died before
        if remaining <= 0 or current.status is not Status.CANCELLED:
            _list_stored(current, workshop, deadline)
            return _until_nobody_stores(current, workshop.now())
    return max(1.0, remaining)


def _until_nobody_stores(ended: Generation, now: float) -> float | None:
    """Seconds until every process that may still store an image has ended; None if there is none.

    A call that more than one process sent, or that ended without its sender, may leave one behind. If that process dies
    after it has stored an image, nobody else lists it. Nor does anybody list one whose storing seemed to break off.
    """
    if not any(_may_be_stored_later(call, ended) for call in ended.calls):
        return None
    left = (ended.completed_at or now) + LONGEST_WRITER_SECONDS - now
    return max(1.0, left) if left > 0 else None


def _may_be_stored_later(call: Call, ended: Generation) -> bool:
    if call.answer is None:
        failure = ended.failure and (ended.failure.cause or ended.failure)
        by_another = failure is not None and isinstance(raised_again(failure), OutcomeUnknownError | AbandonedError)
        return call.sent - call.refused > (0 if by_another else 1)
    return any(
        image.failure is not None
        and image.failure.kind == ImageStorageInterruptedError.__name__
        and image_id not in ended.stored
        for image_id, image in zip(call.image_ids, call.answer.images, strict=True)
    )


def _publish(generation: Generation, workshop: Workshop) -> None:
    announce(generation, workshop.records, workshop.counters, workshop.bus, workshop.settle)


def _list_stored(generation: Generation, workshop: Workshop, deadline: Deadline) -> None:
    """Notes the images that are stored and that a process died before it could note.

    Raises ImageStorageError, RecordsUnavailableError.
    """
    for call in generation.calls:
        for image_id in call.image_ids if call.charged else ():
            if image_id not in generation.stored:
                found = tried(partial(workshop.images.find, image_id, deadline), deadline, sleep=workshop.sleep)
                if found is not None:
                    with suppress(LostClaimError):  # deleted meanwhile
                        workshop.records.save_image(generation.id, image_id, found)


def work(
    generation: Generation,
    owner: str,
    workshop: Workshop,
    deadline: Deadline,
    hold: Callable[[float], None] = lambda _: None,
) -> Generation | None:
    """Works on a claimed generation until its record has ended, by this process or another, and publishes the end.

    Gives the record as it ended, None if it was deleted. Raises RecordsUnavailableError, UnfinishedError, and whatever
    else is a fault of this service: the generation then waits until the lease ends.
    """
    ended: Generation | None

    def beat() -> None:
        workshop.records.renew(generation.id, owner, workshop.now() + workshop.lease)
        hold(workshop.lease)

    with workshop.heartbeat(workshop.lease, beat):
        try:
            ended = _work(generation, owner, workshop, deadline)
        except LostClaimError:
            ended = _clean_up(generation, owner, workshop, deadline)
    if ended:
        _publish(ended, workshop)
    return ended


def _work(
    generation: Generation, owner: str, workshop: Workshop, deadline: Deadline, *, may_send: bool = True
) -> Generation:
    records = workshop.records
    tools = Tools(
        provider=workshop.providers[CATALOG[generation.request.model].provider],
        source=workshop.source,
        images=workshop.images,
        records=records,
        pool=workshop.pool,
        repeat_unknown=workshop.repeat_unknown,
        may_send=may_send,
        call_seconds=workshop.call_seconds,
        executor=workshop.executor,
        sleep=workshop.sleep,
        journal=workshop.journal,
    )
    try:
        generate(generation, owner, tools, deadline)
        if generation.request.response_format == "b64_json":
            _save_large_answer(generation.id, workshop, deadline)
    except RecordsUnavailableError:
        raise
    except ImagegenError as error:
        return records.end(generation.id, owner, Status.FAILED, now=workshop.now(), failure=kept(error))
    return records.end(generation.id, owner, Status.COMPLETED, now=workshop.now())


def _save_large_answer(generation_id: str, workshop: Workshop, deadline: Deadline) -> None:
    generation = workshop.records.get(generation_id)
    if generation is None or generation.ended:
        raise LostClaimError

    def save() -> None:
        large = workshop.large_answer(generation)
        if large is not None:
            workshop.images.save_answer(generation_id, *large, deadline)

    tried(save, deadline, sleep=workshop.sleep)


def _clean_up(generation: Generation, owner: str, workshop: Workshop, deadline: Deadline) -> Generation | None:
    """Deletes what was stored after the generation was deleted. Otherwise gives the record, on which it is noted."""
    current = workshop.records.get(generation.id)
    if current is None:
        delete_images(generation.id, generation.image_ids, workshop.images, deadline)
        return None
    workshop.records.let_go(generation.id, owner)
    return current


def give_up(generation_id: str, workshop: Workshop, deadline: Deadline) -> float | None:
    """Ends a generation whose message went to the dead letters, unless another process works on it.

    What is known to be paid for is fetched and listed first; nothing is bought. None: done; else seconds after which to
    look again. Raises RecordsUnavailableError, and ImageStorageError if a deleted generation's images are left.
    """
    owner, now = new_owner(), workshop.now()
    claimed = workshop.records.claim(generation_id, owner, now=now, lease_until=now + workshop.lease)
    if claimed is None:
        return _look_on(generation_id, workshop, deadline)
    try:
        ended = _work(claimed, owner, workshop, deadline, may_send=False)
    except LostClaimError:
        return 1.0
    except RecordsUnavailableError:
        raise
    except Exception as fault:  # noqa: BLE001  # the record has to end; what it knows stays for `make retry`
        workshop.journal.interrupted(silent_trace(fault), generation_id=generation_id)
        failure = kept(AbandonedError("The image could not be made: every attempt at it died."))
        try:
            ended = workshop.records.end(generation_id, owner, Status.FAILED, now=workshop.now(), failure=failure)
        except LostClaimError:
            return 1.0
    _publish(ended, workshop)
    return _until_nobody_stores(ended, workshop.now())
