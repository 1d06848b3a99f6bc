"""What holds after every run, whatever happened in it. Each function gives what is wrong."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from imagegen.domain.batches import Counts
from imagegen.domain.generations import Call, Generation, Status
from imagegen.domain.models import MAX_IMAGES
from imagegen.usecases.generate import MOST_SENT
from imagegen.wire.batches import batch_answer
from tests.explorer.world import BatchWorld, World


def broken(world: World) -> list[str]:
    if not world.quiet:
        return ["it never comes to rest"]
    checks = (_crashes, _ends, _money, _one_generation, _images, _quota)
    return [wrong for check in checks for wrong in check(world)]


def _crashes(world: World) -> Iterator[str]:
    """No actor meets an error that its handler does not know."""
    for crash in world.schedule.crashes:
        yield f"an actor crashed: {crash}"


def _ends(world: World) -> Iterator[str]:
    """Every record ends, and each end is published at least once."""
    published = {(ended.id, ended.completed_at) for ended in world.bus.ended}
    for record in _live(world):
        if not record.ended:
            yield f"{record.id} never ends: {record.status}"
        elif not record.announced:
            yield f"{record.id} is not noted as announced"
    for generation_id, completed_at in sorted(world.ends - published):
        yield f"{generation_id} ended at {completed_at}, which was never published"


def _money(world: World) -> Iterator[str]:
    """What was asked of the upstream is on the record: no call is sent, and none paid twice, without a note of it."""
    asked = defaultdict(list)
    for each in world.upstream.asked:
        asked[each.generation_id, each.index].append(each)
    for record in (*_live(world), *world.buried.values()):
        for call in record.calls:
            wanted = _wanted(record, call)
            sent = asked.pop((record.id, call.number), [])
            paid = [each for each in sent if each.paid]
            if len(sent) > call.sent:
                yield f"{record.id}: {len(sent)} calls sent, {call.sent} noted"
            if sum(each.n for each in sent) > wanted * max(1, call.sent):
                yield f"{record.id}: more images asked for than wanted and counted as repeated"
            if any(each.n + each.stored_before > wanted for each in sent):
                yield f"{record.id}: an image that was stored is asked for again"
            if len(paid) > (1 if call.extra else MOST_SENT) + record.retries:
                yield f"{record.id}: paid {len(paid)} times"
            if paid and not call.charged:
                yield f"{record.id}: paid, and not noted as charged"
    for generation_id, _ in asked:
        yield f"{generation_id} has no record, but was sent"


def _wanted(record: Generation, call: Call) -> int:
    """The images that a call was for, those of its extra calls included."""
    later = [each for each in record.calls if each.extra and each.number // MAX_IMAGES == call.number + 1]
    return len(call.image_ids) + (0 if call.extra else len(later))


def _one_generation(world: World) -> Iterator[str]:
    """A request is paid for in one generation, its retries included.

    Unless that was deleted, or an operator asked for a failed one again. Two clients that send the same may share one.
    """
    excepted = world.buried.keys() | world.retried
    paid = {each.generation_id for each in world.upstream.asked if each.paid} - excepted
    caller = {record.id: record.caller for record in _live(world)}
    by_caller = Counter(caller[generation_id] for generation_id in paid if generation_id in caller)
    requests = Counter(client.caller for client in world.clients if client.attempt)
    if isinstance(world, BatchWorld):
        requests["alice"] = world.size
    if world.clients and world.clients[0].key:
        requests = Counter(dict.fromkeys(requests, 1))  # the same key is the same request
    for who, generations in by_caller.items():
        if generations > requests[who]:
            yield f"{who}: {requests[who]} requests paid for in {generations} generations"


def _images(world: World) -> Iterator[str]:
    """A stored image is on its record and its own, until it is deleted; then nothing of it is stored."""
    owner = {image_id: record for record in _live(world) for image_id in record.image_ids}
    for image_id, (_, content) in world.images.saved.items():
        record = owner.get(image_id)
        if record is None:
            yield f"{image_id} is stored, and on no record"
        elif image_id not in record.stored:
            yield f"{record.id} ({record.status}): an image is stored, but not listed"
        elif record.id.encode() not in content:
            yield f"{record.id}: an image holds another generation's bytes"
    for record in _live(world):
        if any(image_id not in world.images.saved for image_id in record.stored):
            yield f"{record.id}: an image is listed, but not stored"
        if record.status is Status.COMPLETED and len(record.stored) != len(record.image_ids):
            yield f"{record.id} is completed without all of its images"
    living = {record.id for record in _live(world)}
    for generation_id in world.images.answers.keys() - living:
        yield f"{generation_id}: an answer is stored, but there is no record"
    for generation_id in world.deleted & living:
        yield f"{generation_id} is there, though its deletion was answered 200"


def _quota(world: World) -> Iterator[str]:
    """The quota is taken for what was charged or possibly charged, for each caller and for all.

    It may be more for what an actor died at or a counter failed for, by at most the images of these generations. If a
    generation was deleted while its call ran, that possibly was charged.
    """
    charged: Counter[str] = Counter()
    possibly: Counter[str] = Counter()
    for record in (*_live(world), *world.buried.values()):
        deleted_at = world.deletions.get(record.id, float("inf"))
        for call in record.calls:
            if call.extra:  # paid for by the call before
                continue
            of_this = (record.id, call.number)
            sent = [each for each in world.upstream.asked if (each.generation_id, each.index) == of_this]
            n = _wanted(record, call)
            if any(each.paid for each in sent):
                charged[record.caller] += n
            elif record.id in world.buried and any(each.refused_at >= deleted_at for each in sent):
                possibly[record.caller] += n
    slack = sum(_size(world, generation_id) for generation_id in world.concerned)
    used: Counter[str] = Counter()
    for (who, _), images in world.counters.used.items():
        used[who] += images
    for who in {*charged, *possibly, *used} - {"*"}:
        yield from _taken(who, used[who], charged[who], possibly[who] + slack)
    yield from _taken("all", used["*"], charged.total(), possibly.total() + slack)


def _taken(who: str, used: int, least: int, more: int) -> Iterator[str]:
    if not least <= used <= least + more:
        yield f"quota of {who}: {used} taken, {least} to {least + more} charged"


def _size(world: World, generation_id: str) -> int:
    """The images of a generation, of which there may be no record; each retry of an operator takes them again."""
    record = world.store._records.get(generation_id) or world.buried.get(generation_id)
    return (len(record.image_ids) * (1 + record.retries + (record.id in world.retried))) if record else world.scenario.n


def _live(world: World) -> list[Generation]:
    return [record for record in world.store._records.values() if record is not None]


def broken_in_batch(world: BatchWorld) -> list[str]:
    """The invariants of its generations, and those of the batch."""
    wrong = broken(world)
    return wrong + list(_batch(world)) if world.quiet else wrong


def _batch(world: BatchWorld) -> Iterator[str]:
    """The batch ends and that is published; each line is in its files once, as the counts say; nothing is pending."""
    batch = world.batches._records.get(world.batch_id)
    if world.batch_mailbox.dead:
        yield "a message of the batch went to the dead letters"
    if batch is None or not batch.ended:
        yield f"the batch never ends: {batch and batch.status}"
        return
    if not batch.announced or batch.id not in {ended.id for ended in world.batch_bus.ended}:
        yield "the end of the batch was never published"
    if world.batch_lines._pending:
        yield "a line is pending after the end"
    files = world.box.there
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    yield from _files(files, {answer["output_file_id"], answer["error_file_id"]} - {None})
    lines = [json.loads(text) for content in files.values() for text in content.splitlines()]
    names = [line["custom_id"] for line in lines]
    if len(set(names)) != len(names):
        yield "a line is in the files twice"
    wanted = {f"c{number}" for number in range(world.size)}
    if not set(names) <= wanted or (batch.cancelling_at is None and set(names) != wanted):
        yield f"the files have the lines {names} of {world.size}"
    completed = {line["custom_id"] for line in lines if line["response"]["status_code"] == 200}
    if batch.counts != Counts(len(completed), len(lines) - len(completed)):
        yield f"the counts are {batch.counts}, the files have {len(completed)} completed of {len(lines)}"
    for record in _live(world):
        if record.status is Status.COMPLETED and record.origin.custom_id not in completed:
            yield f"{record.id} is completed, and not in the output"


def _files(files: Mapping[str, bytes], named: set[str]) -> Iterator[str]:
    """The files are those that the batch names, and none is empty."""
    if files.keys() != named:
        yield f"the files are {sorted(files)}, the batch names {sorted(named)}"
    if not all(files.values()):
        yield "a file has no line"
