"""The invariants of routes, slots and money. Each function yields what breaks one."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from imagegen.domain.cost import cost_of
from imagegen.domain.errors import AbandonedError
from imagegen.domain.generations import Generation
from tests.explorer.upstreams import MOST, TASK_ENDS, Asked
from tests.explorer.world import World, images_wanted

MONEY = "usd:"  # of the names of counters


def _routes(world: World) -> Iterator[str]:
    """No call is paid more often than its record admits, at all upstreams together.

    After a failure that may be paid, only an operator's retry sends the call again. The record names the upstream of
    each attempt.
    """
    sent = _by_call(world)
    for record in _records(world):
        for call in record.calls:
            asked = sent[record.id, call.number]
            paid = {each.task.id if each.task else each.number for each in asked if each.paid}
            if len(paid) > call.sent - call.refused:
                yield f"{record.id}: paid {len(paid)} times, and the record admits {call.sent - call.refused}"
            for each in asked:
                if each.known_failures > each.retries:
                    yield f"{record.id}: {each.actor} sends it to {each.upstream} after a failure that may be paid"
                attempt = call.attempts[each.attempt - 1]
                if attempt.upstream != each.upstream:
                    yield f"{record.id}: attempt {each.attempt} was sent to {each.upstream}"
                is_noted = attempt.refused or record.id in world.concerned or record.id in world.buried
                if each.outcome == "refused" and not is_noted:
                    yield f"{record.id}: the refusal of attempt {each.attempt} is not on the record"
            answered = {each.upstream for each in asked if each.outcome == "answered"}
            if call.answer and call.answer.upstream not in {None, *answered}:
                yield f"{record.id}: {call.answer.upstream} did not answer"


def _repetitions(world: World) -> Iterator[str]:
    """A call with a task that may be paid for is not repeated at another upstream."""
    for asked in _by_call(world).values() if world.scenario.tasks else ():
        for number, each in enumerate(asked):
            for before in asked[:number]:
                ended_at = (
                    min(before.failed_at, before.refused_at) if before.task and before.task.reported else math.inf
                )
                if before.upstream != each.upstream and before.outcome != "refused" and ended_at > each.at:
                    yield f"{each.generation_id}: sent to {before.upstream}, and repeated at {each.upstream}"


def _slots(world: World) -> Iterator[str]:
    """Nothing is given up because it waits."""
    for record in _records(world) if world.scenario.certain else ():
        if record.failure and record.failure.reason.code == AbandonedError.code:
            yield f"{record.id} was given up, though no process died"


def _refused(world: World) -> Iterator[str]:
    """A generation of which every attempt was refused costs nothing and returns everything."""
    for record in world.store._records.values():
        if record is None or any(call.charged for call in record.calls):
            continue
        if record.supply.price and cost_of(record).micros:
            yield f"{record.id}: nothing was bought, and it costs {cost_of(record)}"
        if record.id in world.concerned:
            continue
        if record.returned != record.request.n:
            yield f"{record.id}: nothing was bought, and {record.returned} images are returned"
        if record.spending and record.spending.taken != record.spending.earlier:
            yield f"{record.id}: nothing was bought, and {record.spending} is taken"


def _spending(world: World) -> Iterator[str]:
    """A generation costs what its upstream calls cost or may have cost, and takes that from its caller's quota.

    If a process died, or a counter failed, more may stay taken. What was charged for tokens after a settlement may then
    be missing, since it can be more than an image is expected to cost.
    """
    sent = _by_call(world)
    for record in _records(world):
        if record.supply.price is None:
            continue
        cost, (least, most) = cost_of(record).micros or 0, _charged(record, sent)
        if not least <= cost <= most:
            yield f"{record.id} costs {cost}, and was charged {least} to {most}"
        if record.spending is None:
            continue
        taken, owed = record.spending.taken, max(cost, record.spending.earlier)
        is_settled = record.id not in world.concerned and record.id not in world.buried
        if taken > owed and is_settled:
            yield f"{record.id} owes {owed}, and {record.spending} is taken"
        if taken < owed and (is_settled or world.scenario.price == "image"):
            yield f"{record.id} owes {owed}, and only {record.spending} is taken"


def _counters(world: World) -> Iterator[str]:
    """The counter of each caller's money has what the records say is taken, or more if a process died."""
    taken: Counter[str] = Counter()
    more: Counter[str] = Counter()
    used: Counter[str] = Counter()
    sent = _by_call(world)
    for (name, _), amount in world.counters.used.items():
        if name.startswith(MONEY):
            used[name.removeprefix(MONEY)] += amount
    records = {record.id: record for record in _records(world)}
    for record in records.values():
        taken[record.caller] += record.spending.taken if record.spending else 0
    # What was charged for tokens beyond the reservation stays taken if the record is deleted meanwhile.
    for generation_id in world.concerned | (world.buried.keys() if world.scenario.price == "tokens" else set()):
        reserved = MOST * world.scenario.n
        concerned = records.get(generation_id)
        if concerned is None:
            more.update(dict.fromkeys(used, reserved))
        elif concerned.spending:
            _, charged = _charged(concerned, sent)
            reservations = 1 + concerned.retries + (generation_id in world.retried)
            more[concerned.caller] += reserved * reservations + 2 * charged
    for name in {*taken, *used}:
        if not taken[name] <= used[name] <= taken[name] + more[name]:
            yield f"{name}: {used[name]} of money taken, by the records {taken[name]} and at most {more[name]} more"


def _charged(record: Generation, sent: dict[tuple[str, int], list[Asked]]) -> tuple[int, int]:
    """The least and the most that a generation may cost, by what the upstreams did.

    What is not known counts as the highest price. More than that, by tokens, is known only from an answer.
    """
    least = most = 0
    for call in record.calls:
        asked = sent[record.id, call.number]
        all_images = MOST * images_wanted(record, call)
        most += (call.sent - len(asked)) * all_images  # recorded, and not sent
        known: set[str] = set()
        for each in asked:
            charge = each.task.charge if each.task else each.charge
            is_known = each.outcome == "answered" and not (each.task and each.task.fate in TASK_ENDS)
            if not each.paid:
                # Of an attempt whose task was not noted, nobody knows that it was the same task.
                is_noted = each.refused_at < math.inf and (
                    each.task is None or call.attempts[each.attempt - 1].task_id is not None
                )
                most += 0 if is_noted else all_images
                continue
            most += max(charge, all_images)
            if each.task is None or each.task.id not in known:
                least += min(charge, MOST * each.n) if is_known else MOST * each.n
            known |= {each.task.id} if each.task else set()
    return least, most


def _by_call(world: World) -> dict[tuple[str, int], list[Asked]]:
    sent: dict[tuple[str, int], list[Asked]] = defaultdict(list)
    for each in world.asked:
        sent[each.call].append(each)
    return sent


def _records(world: World) -> Sequence[Generation]:
    """All records, also those of deleted generations."""
    return [*(record for record in world.store._records.values() if record), *world.buried.values()]


UPSTREAM_CHECKS = (_routes, _repetitions, _slots, _refused, _spending, _counters)
