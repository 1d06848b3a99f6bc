"""The invariants after every run. Each function yields what breaks one."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from imagegen.domain.batches import Batch, BatchStatus, Counts
from imagegen.domain.errors import OutcomeUnknownError, UpstreamTaskUnfinishedError
from imagegen.domain.generations import Generation, Status
from imagegen.usecases.send_upstream_call import MOST_SENT
from imagegen.wire.batches import batch_answer
from tests.explorer.upstream_invariants import MONEY, UPSTREAM_CHECKS
from tests.explorer.world import BatchWorld, World, images_wanted


def broken(world: World) -> list[str]:
    if not world.quiet:
        return ["it never becomes quiet", *_crashes(world), *world.wrong]
    checks = (
        _crashes,
        _on_the_way,
        _ends,
        _money,
        _one_generation,
        _images,
        _inputs,
        _tasks,
        _polling,
        _quota,
        *UPSTREAM_CHECKS,
    )
    return [wrong for check in checks for wrong in check(world)]


def _crashes(world: World) -> Iterator[str]:
    """No actor raises an error that its handler does not know."""
    for crash in world.schedule.crashes:
        yield f"an actor crashed: {crash}"


def _on_the_way(world: World) -> Iterator[str]:
    """No upstream works on more calls than it has slots, and each round of polling is counted once."""
    yield from world.wrong


def _ends(world: World) -> Iterator[str]:
    """Every record ends, and each end is published at least once."""
    published = {(ended.id, ended.completed_at) for ended in world.bus.ended}
    for record in _live(world):
        if not record.ended:
            yield f"{record.id} never ends: {record.status}"
        elif not record.published:
            yield f"{record.id} is not marked as published"
    for generation_id, completed_at in sorted(world.ends - published):
        yield f"{generation_id} ended at {completed_at}, which was never published"


def _money(world: World) -> Iterator[str]:
    """Each upstream call is on its record: none is sent, and none paid twice, without an attempt on the record."""
    asked = defaultdict(list)
    for each in world.asked:
        asked[each.generation_id, each.index].append(each)
    for record in (*_live(world), *world.buried.values()):
        for call in record.calls:
            wanted = images_wanted(record, call)
            sent = asked.pop((record.id, call.number), [])
            paid = [each for each in sent if each.paid]
            if len(sent) > call.sent:
                yield f"{record.id}: {len(sent)} calls sent, {call.sent} recorded"
            if sum(each.n for each in sent) > wanted * max(1, call.sent):
                yield f"{record.id}: more images requested than wanted and counted as repeated"
            if any(each.n + each.stored_before > wanted for each in sent):
                yield f"{record.id}: an image that was stored is requested again"
            if len(paid) > (1 if call.extra else MOST_SENT) + record.retries:
                yield f"{record.id}: paid {len(paid)} times"
            if paid and not call.charged:
                yield f"{record.id}: paid, and not recorded as charged"
    for generation_id, _ in asked:
        yield f"{generation_id} has no record, but was sent"


def _one_generation(world: World) -> Iterator[str]:
    """A request and its retries are paid in one generation.

    Exceptions: it was deleted, or an operator retried it. Two clients with the same request may share one.
    """
    excepted = world.buried.keys() | world.retried
    paid = {each.generation_id for each in world.asked if each.paid} - excepted
    caller = {record.id: record.caller for record in _live(world)}
    by_caller = Counter(caller[generation_id] for generation_id in paid if generation_id in caller)
    requests = Counter(client.caller for client in world.clients if client.actor)
    if isinstance(world, BatchWorld):
        requests["alice"] = world.size
    if world.clients and world.clients[0].key:
        requests = Counter(dict.fromkeys(requests, 1))  # the same key is the same request
    for name, generations in by_caller.items():
        if generations > requests[name]:
            yield f"{name}: {requests[name]} requests paid in {generations} generations"


def _images(world: World) -> Iterator[str]:
    """A stored image is listed on its record and is its own. After a deletion no image is stored."""
    owner = {image_id: record for record in _live(world) for image_id in record.image_ids}
    for image_id, (_, content) in world.images.saved.items():
        record = owner.get(image_id)
        if record is None:
            yield f"{image_id} is stored, and on no record"
        elif image_id not in record.stored:
            yield f"{record.id} ({record.status}): an image is stored, but not listed"
        elif record.id.encode() not in content:
            yield f"{record.id}: an image has the bytes of another generation"
    for record in _live(world):
        if any(image_id not in world.images.saved for image_id in record.stored):
            yield f"{record.id}: an image is listed, but not stored"
        if record.status is Status.COMPLETED and len(record.stored) != len(record.image_ids):
            yield f"{record.id} is completed without all of its images"
    living = {record.id for record in _live(world)}
    for generation_id in world.images.answers.keys() - living:
        yield f"{generation_id}: an answer is stored, but there is no record"
    for generation_id in world.deleted & living:
        yield f"{generation_id} exists, though its deletion succeeded"


def _inputs(world: World) -> Iterator[str]:
    """The input images of a record are stored, and those of a deleted one are not.

    An input without a record is left by a process that died or met a failure; the bucket's rule deletes it.
    """
    used = {record.id: set(record.own_input_ids) for record in _live(world)}
    for generation_id, inputs in used.items():
        if inputs - world.inputs.saved.keys():
            yield f"{generation_id}: an input image is not stored"
    for generation_id in world.deleted:
        if set(world.buried[generation_id].own_input_ids) & world.inputs.saved.keys():
            yield f"{generation_id} is deleted, and an input image is not"
    unused = world.inputs.saved.keys() - set[str]().union(*used.values())
    if unused and world.scenario.certain:
        yield f"{len(unused)} input images are stored, and on no record"


def _tasks(world: World) -> Iterator[str]:
    """No call has a second task, unless the first is known to have failed or the upstream recognises no repetition.

    A task is on its record, unless the upstream's answer was lost, or its process died or could not write. It has
    failed there only if a poll found that.
    """
    records = {record.id: record for record in (*world.buried.values(), *_live(world))}
    begun = Counter((task.generation_id, task.index) for task in world.tasks.values())
    failed = {(record.id, call.number): call.failed_tasks for record in records.values() for call in record.calls}
    for (generation_id, index), tasks in begun.items():
        if tasks > 1 + failed[generation_id, index] and world.scenario.recognises:
            yield f"{generation_id}: {tasks} tasks for one call"
    attempts = (attempt for record in records.values() for call in record.calls for attempt in call.attempts)
    for attempt in attempts:
        if attempt.task_id and attempt.failure and not world.tasks[attempt.task_id].reported:
            yield f"{attempt.task_id} has failed on the record, and not at the upstream"
    for task in world.tasks.values():
        if task.again:
            yield f"{task.id} is begun, though the call has the task {task.again}"
    for each in world.asked:
        record = world.store._records.get(each.generation_id)
        if each.task and each.outcome == "answered" and record and record.id not in world.concerned:
            known = {attempt.task_id for call in record.calls for attempt in call.attempts}
            if each.task.id not in known:
                yield f"{each.task.id} was begun, and is not on the record"


def _polling(world: World) -> Iterator[str]:
    """A task that is on a record is polled until it ends or its time is over, and then its images are stored.

    Exceptions, which an operator's retry polls: the generation was given up, or failed before a process that had lost
    its claim recorded the task, or its upstream was not configured.
    """
    for record in _live(world):
        calls = record.calls if world.tasks else ()
        for call in calls:
            if attempt := call.open_task:
                task = world.tasks[attempt.task_id or ""]
                since = max(attempt.sent_at, record.reserved_at or 0)
                is_over = task.pending_at - since >= record.supply.task_seconds
                is_removed = world.scenario.removed and (
                    _reason(record) == OutcomeUnknownError.code or record.status is Status.CANCELLED
                )
                is_disowned = task.disowned and record.status is Status.FAILED
                is_left = _reason(record) == "abandoned" or is_disowned or is_removed
                if not is_over and not is_left:
                    yield f"{task.id} is no longer polled ({record.status}), and its time is not over"
                if record.status is Status.COMPLETED:
                    yield f"{task.id} may still run, but its generation is completed"
                is_other = len(calls) > 1 or is_left or _reason(record) == UpstreamTaskUnfinishedError.code
                if record.status is Status.FAILED and not is_other:
                    yield f"{record.id} failed with {_reason(record)}, but its task did not end in time"
            elif call.answer and record.id not in world.unfetched:
                images = zip(call.image_ids, call.answer.images, strict=True)
                if any(image_id not in record.stored for image_id, image in images if not image.failure):
                    yield f"{record.id} ({record.status}): a task gave an image that is not stored"


def _reason(record: Generation) -> str:
    return record.failure.reason.code if record.failure else ""


def _quota(world: World) -> Iterator[str]:
    """The quotas of each caller and of the stack are taken for all images that were charged or possibly charged.

    They may be higher by the images of generations at which an actor died or a counter failed. A call was possibly
    charged if its generation was deleted while it ran.
    """
    charged: Counter[str] = Counter()
    possibly: Counter[str] = Counter()
    for record in (*_live(world), *world.buried.values()):
        deleted_at = world.deletions.get(record.id, float("inf"))
        for call in record.calls:
            if call.extra:  # paid with the call before
                continue
            of_this = (record.id, call.number)
            sent = [each for each in world.asked if (each.generation_id, each.index) == of_this]
            n = images_wanted(record, call)
            if any(each.paid for each in sent):
                charged[record.caller] += n
            elif record.id in world.buried and any(each.refused_at >= deleted_at for each in sent):
                possibly[record.caller] += n
    slack = sum(_size(world, generation_id) for generation_id in world.concerned)
    used: Counter[str] = Counter()
    for (name, _), images in world.counters.used.items():
        if not name.startswith(MONEY):
            used[name] += images
    for name in {*charged, *possibly, *used} - {"*"}:
        yield from _taken(name, used[name], charged[name], possibly[name] + slack)
    yield from _taken("all", used["*"], charged.total(), possibly.total() + slack)


def _taken(name: str, used: int, least: int, more: int) -> Iterator[str]:
    if not least <= used <= least + more:
        yield f"quota of {name}: {used} taken, {least} to {least + more} charged"


def _size(world: World, generation_id: str) -> int:
    """The images of a generation, with or without a record. Each retry of an operator takes them again."""
    record = world.store._records.get(generation_id) or world.buried.get(generation_id)
    return (len(record.image_ids) * (1 + record.retries + (record.id in world.retried))) if record else world.scenario.n


def _live(world: World) -> list[Generation]:
    return [record for record in world.store._records.values() if record is not None]


def broken_in_batch(world: BatchWorld) -> list[str]:
    """Checks the invariants of its generations and those of the batch."""
    wrong = broken(world)
    return wrong + list(_batch(world)) if world.quiet else wrong


def _batch(world: BatchWorld) -> Iterator[str]:
    """The batch ends and is published. None of its lines is pending."""
    if world.batch_mailbox.dead:
        yield "a message of the batch is a dead letter"
    if len(world.batches._records) > 1:
        yield "a client that repeats its request has created two batches"
    batch = world.batches._records.get(str(world.batch_id))
    if batch is None and world.scenario.http:
        if not world.creator.failed or world.store._records:
            yield "the client was answered, or a line began, and there is no batch"
        return
    if batch is None or not batch.ended:
        yield f"the batch never ends: {batch and batch.status}"
        return
    if not batch.published or batch.id not in {ended.id for ended in world.batch_bus.ended}:
        yield "the end of the batch was never published"
    if world.batch_lines._pending:
        yield "a line is pending after the end"
    if batch.status is BatchStatus.FAILED:
        if not world.is_file_deleted or world.store._records or world.box.there:
            yield f"the batch failed: {batch.problems}"
        return
    yield from _files_of(batch, world)
    yield from _lines_of(batch, world)


def _files_of(batch: Batch, world: BatchWorld) -> Iterator[str]:
    """The files are those that the batch names, and have records. None is empty."""
    files, records = world.box.there, world.file_records.records
    answer = batch_answer(batch, batch.counts or Counts(0, 0))
    named = {batch.output_key: answer["output_file_id"], batch.errors_key: answer["error_file_id"]}
    existing = {key: file_id for key, file_id in named.items() if file_id}
    if files.keys() != existing.keys():
        yield f"the files are {sorted(files)}, the batch names {sorted(existing)}"
    if not all(files.values()):
        yield "a file has no line"
    for key, file_id in existing.items():
        record = records.get(file_id)
        if record is None or (record.object.key, record.object.size) != (key, len(files.get(key, b""))):
            yield f"{file_id} has no record, or that of another file"


def _lines_of(batch: Batch, world: BatchWorld) -> Iterator[str]:
    """Each line is in the files once, as the counts say, and with its own custom_id."""
    lines = [json.loads(text) for content in world.box.there.values() for text in content.splitlines()]
    numbers = sorted(line["line"] for line in lines)
    if numbers != list(range(1, world.size + 1)) and batch.is_valid:
        yield f"the files have the lines {numbers} of {world.size}"
    wrong = [line["line"] for line in lines if line["custom_id"] not in (f"c{line['line'] - 1}", None)]
    unknown = [line["line"] for line in lines if line["custom_id"] is None]
    if wrong or (unknown and not world.is_file_deleted):
        yield f"the lines {wrong + unknown} have the custom_id of another, or none"
    completed = {line["custom_id"] for line in lines if (line["response"] or {}).get("status_code") == 200}
    if batch.counts != Counts(len(completed), len(lines) - len(completed)):
        yield f"the counts are {batch.counts}, the files have {len(completed)} completed of {len(lines)}"
    for record in _live(world):
        if record.status is Status.COMPLETED and record.origin.custom_id not in completed:
            yield f"{record.id} is completed, and not in the output"
    stopped = {line["error"]["code"] for line in lines if line["error"]}
    reasons = {"batch_cancelled": batch.cancelling_at, "batch_expired": batch.expiring_at}
    if not stopped <= {code for code, at in reasons.items() if at}:
        yield f"lines ended as {stopped}"
