"""Works on a generation until its record has ended."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from imagegen.allowance import nothing_was_sent, release
from imagegen.announce import Settle, announce
from imagegen.catalog import CATALOG
from imagegen.deadline import Deadline
from imagegen.errors import AbandonedError, ImagegenError, NothingSpentError, RecordsUnavailableError
from imagegen.failures import kept
from imagegen.generate import Tools, generate, tried
from imagegen.generations import Generation, LostClaimError, Status, fingerprint, new_owner
from imagegen.heartbeat import heartbeat
from imagegen.manage import delete_images, finish_deletion
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

LEASE_SECONDS = 60.0  # a dead worker's generation is taken over after it
# A message is sent before its record is written, so a young message may come first; an old one has lost its writer.
ORPHAN_SECONDS = 180.0  # longer than the api function may run
YOUNG_SECONDS = 15.0  # until then a young one comes again, fewer times than would make it a dead letter

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
    lease: float = LEASE_SECONDS
    settle: Settle = lambda _: None
    journal: Journal = SILENT


def work_on_message(
    generation_id: str, workshop: Workshop, deadline: Deadline, *, sent_at: float, hold: Callable[[float], None]
) -> float | None:
    """Does what a message asks for. None: the message has done its duty; else seconds after which to look again.

    `hold` keeps the message to ourselves for so many seconds. Raises RecordsUnavailableError, and whatever else is a
    fault of ours: then the message is to come again.
    """
    records, now = workshop.records, workshop.now()
    owner = new_owner()
    generation = records.claim(generation_id, owner, now=now, lease_until=now + workshop.lease)
    if generation is not None:
        workshop.journal.claimed(generation, age=now - generation.created_at)
        work(generation, owner, workshop, deadline, hold)
        return None
    current = records.get(generation_id)
    if current is None:
        return _without_record(generation_id, workshop, deadline, age=now - sent_at)
    if current.ended:
        announce(current, records, workshop.bus, workshop.settle)  # whoever ended it may have died before
        return None
    return max(1.0, current.lease_until - now)


def _without_record(generation_id: str, workshop: Workshop, deadline: Deadline, *, age: float) -> float | None:
    """The message came before its record, or after its writer died; or the generation was deleted."""
    tombstone = workshop.records.tombstone(generation_id)
    if tombstone is None:
        return None if age > ORPHAN_SECONDS else YOUNG_SECONDS
    finish_deletion(tombstone, workshop.records, workshop.images, deadline)
    return None


def work(
    generation: Generation,
    owner: str,
    workshop: Workshop,
    deadline: Deadline,
    hold: Callable[[float], None] = lambda _: None,
) -> None:
    """Works on a claimed generation until its record has ended, by our hand or another's, and tells it.

    Raises RecordsUnavailableError, and whatever else is a fault of ours: the generation then waits for the lease to go.
    """
    ended: Generation | None

    def beat() -> None:
        workshop.records.renew(generation.id, owner, workshop.now() + workshop.lease)
        hold(workshop.lease)

    with heartbeat(workshop.lease, beat):
        try:
            ended = _work(generation, owner, workshop, deadline)
        except LostClaimError:
            ended = _clean_up(generation, workshop, deadline)
    if ended:
        announce(ended, workshop.records, workshop.bus, workshop.settle)


def _work(generation: Generation, owner: str, workshop: Workshop, deadline: Deadline) -> Generation:
    records = workshop.records
    tools = Tools(
        provider=workshop.providers[CATALOG[generation.request.model].provider],
        source=workshop.source,
        images=workshop.images,
        records=records,
        pool=workshop.pool,
        repeat_unknown=workshop.repeat_unknown,
        journal=workshop.journal,
    )
    try:
        generate(generation, owner, tools, deadline)
        _save_large_answer(generation.id, workshop, deadline)
    except RecordsUnavailableError:
        raise
    except ImagegenError as error:
        ended = records.end(generation.id, owner, Status.FAILED, now=workshop.now(), failure=kept(error))
        if isinstance(error, NothingSpentError):
            records.release(generation, fingerprint(generation.request))
            release(generation, records, workshop.counters)
    else:
        ended = records.end(generation.id, owner, Status.COMPLETED, now=workshop.now())
    return ended


def _save_large_answer(generation_id: str, workshop: Workshop, deadline: Deadline) -> None:
    generation = workshop.records.get(generation_id)
    if generation is None or generation.ended:
        raise LostClaimError
    if generation.request.response_format != "b64_json":
        return

    def save() -> None:
        large = workshop.large_answer(generation)
        if large is not None:
            workshop.images.save_answer(generation_id, *large, deadline)

    tried(save, deadline)


def _clean_up(generation: Generation, workshop: Workshop, deadline: Deadline) -> Generation | None:
    """What was stored after the generation was deleted goes too; of any other loss it stays. Gives what is there."""
    current = workshop.records.get(generation.id)
    if current is None:
        delete_images(generation.id, generation.image_ids, workshop.images, deadline)
    return current


def give_up(generation_id: str, workshop: Workshop) -> float | None:
    """Fails a generation whose message went to the dead letters, unless somebody still works on it.

    None: done; else seconds after which to look again.
    """
    error = AbandonedError("The image could not be made: every attempt at it died.")
    now = workshop.now()
    failed = workshop.records.fail_abandoned(generation_id, kept(error), now=now)
    current = workshop.records.get(generation_id)
    if failed and current and nothing_was_sent(current):
        release(current, workshop.records, workshop.counters)
    if current is None or current.ended:
        if current:
            announce(current, workshop.records, workshop.bus, workshop.settle)
        return None
    return max(1.0, current.lease_until - now)
