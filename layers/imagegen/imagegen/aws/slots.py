"""Counts the calls that an upstream works on at once, in DynamoDB, and keeps a waiting list of generations.

| pk | sk | |
|---|---|---|
| `slots#<upstream>` | `slots` | `slots`: each slot in use, with the time until which it is, even if its process dies |
| `waiting#<upstream>` | `<time>#<generation id>` | a generation that waits, and the message that brings it a worker |

The size of the map `slots` is the number of slots in use, so there is no counter that could differ from it (DynamoDB
developer guide, "Condition and filter expressions": `size`). One conditional update takes, frees or hands over a slot.
A slot that is kept for a generation is in the map too.
"""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from imagegen.aws.items import ConditionFailedError, Item, is_throttled, key, number, time_text, update_under
from imagegen.domain.slots import KEPT_SECONDS, Slot, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

_Slots = dict[str, float]  # by name, the time until which each is in use
_NO_SLOTS: Item = {"slots": {"M": {}}}
# A change is refused if another one comes in between. So this many others were faster before a change is given up.
_TRIES = 20
_AT_ONCE = 25  # slots of one update: its expressions have at most 4 KB (DynamoDB developer guide, "Quotas")
_LOOKED_AT = 50  # waiters of one query: some 8 KB, two read units


class _RefusedError(Exception):
    """Another change came first. `slots` are those in use now."""

    def __init__(self, slots: _Slots) -> None:
        super().__init__()
        self.slots = slots


class DynamoUpstreamSlots:
    """Implements `ports.UpstreamSlots`. `limits` has the number of slots of each upstream that has a limit.

    `now` gives Unix seconds.
    """

    def __init__(
        self,
        client: Callable[[], DynamoDBClient],
        table: str,
        limits: Mapping[str, int],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._table = table
        self._limits = limits
        self._now = now

    def take(self, upstream: str, generation_id: str, call: int, *, seconds: float) -> Slot | None:
        slot = Slot(upstream, f"{generation_id}#{call}", self._now() + seconds)
        if upstream not in self._limits:
            return slot
        try:
            return slot if self._take(slot, _kept(generation_id)) else None
        except Exception as error:  # noqa: BLE001  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            # A call over the limit risks a 429, which buys nothing. Without the records nothing else works either. But
            # DynamoDB throttles the item only while a crowd asks, and a crowd must not get slots without being counted.
            return None if is_throttled(error) else slot

    def wait(self, upstream: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        with suppress(Exception):  # it comes by itself, after a pause
            self._put_on_list(_waiter_key(upstream, waiter.generation_id, since), waiter, int(until))
            # A slot that was freed before the generation was on the list has brought nobody.
            return _until_failure(self._hand_over(upstream, {}))
        return []

    def leave(self, upstream: str, generation_id: str, *, since: float) -> Sequence[Waiter]:
        if upstream not in self._limits:
            return []
        with suppress(Exception):  # it is brought in vain
            self._client().delete_item(TableName=self._table, Key=_waiter_key(upstream, generation_id, since))
            slots, kept = self._read(upstream), _kept(generation_id)
            if kept in slots:
                return _until_failure(self._hand_over(upstream, {kept: slots[kept]}))
        return []

    def free(self, slot: Slot) -> Sequence[Waiter]:
        # If it fails, the slot is free when its time has passed.
        return _until_failure(self._hand_over(slot.upstream, {slot.call: slot.until}))

    def _take(self, slot: Slot, kept: str) -> bool:
        limit, new = self._limits[slot.upstream], {slot.call: slot.until}
        gone: _Slots = {}
        renews = False
        for _ in range(_TRIES):
            most, none_of = (None, []) if renews else (limit, [kept])
            try:
                self._exchange(slot.upstream, gone, new, most=most, none_of=none_of)
            except _RefusedError as refused:
                slots = refused.slots
            else:
                return True
            renews = slots.get(slot.call, 0) >= self._now()
            if renews:
                gone = {slot.call: slots[slot.call]}
                continue
            gone = self._ended(slots) | {name: slots[name] for name in (slot.call, kept) if name in slots}
            if len(slots) - len(gone) >= limit:
                return False
        return False

    def _hand_over(self, upstream: str, freed: _Slots) -> Iterator[Waiter]:
        """Frees these slots and those of dead processes. Keeps all free slots for the first waiters, and yields these.

        A process that frees a slot looks at the list afterwards, and one that puts a generation on the list looks at
        the slots afterwards. So one of two that come at the same time sees the other.
        """
        most = self._limits.get(upstream)
        if most is None:
            return
        slots = self._read(upstream)
        for _ in range(_TRIES):
            gone = self._ended(slots) | dict(freed.items() & slots.items())
            left = slots.keys() - gone.keys()
            waiters = self._first_waiters(upstream, most - len(left), left)
            if not gone and not waiters:
                return
            until = self._now() + KEPT_SECONDS
            kept = {_kept(_generation_id(waiter)): until for waiter in waiters}
            try:
                slots = self._exchange(upstream, gone, kept, most=most)
            except _RefusedError:
                for item in waiters:
                    self._put_on_list(_key_of(item), _waiter(item), int(item["expires_at"]["N"]))
                slots = self._read(upstream)
            else:
                yield from map(_waiter, waiters)
        if freed:
            self._exchange(upstream, freed, {}, most=None)

    def _put_on_list(self, place: Item, waiter: Waiter, until: int) -> None:
        with suppress(ConditionFailedError):  # a later round of the generation waits
            update_under(
                "attribute_not_exists(poll) OR poll <= :poll",
                self._client(),
                self._table,
                place,
                "SET poll = :poll, caller = :caller, of_batch = :of_batch, expires_at = :until",
                names={},
                values={
                    ":poll": number(waiter.poll),
                    ":caller": {"S": waiter.caller},
                    ":of_batch": {"BOOL": waiter.of_batch},
                    ":until": number(until),
                },
            )

    def _first_waiters(self, upstream: str, count: int, slots: set[str]) -> list[Item]:
        """Removes at most `count` waiters from the list, the first ones with none of these slots, and returns them.

        Removes those whose time has passed too.
        """
        found: list[Item] = []
        if count <= 0:
            return found
        with suppress(Exception):  # without the list, a slot can still be freed
            client = self._client()
            page = client.query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": _list(upstream)}},
                ConsistentRead=True,
                Limit=_LOOKED_AT,
            )
            for item in page["Items"]:
                if _kept(_generation_id(item)) in slots:
                    continue
                removed = client.delete_item(TableName=self._table, Key=_key_of(item), ReturnValues="ALL_OLD")
                # Another process has removed it, unless the SDK repeated a removal whose answer was lost.
                last = removed.get("Attributes") or (item if removed["ResponseMetadata"]["RetryAttempts"] else None)
                if last and float(last["expires_at"]["N"]) >= self._now():
                    found.append(last)
                if len(found) == min(count, _AT_ONCE):
                    break
        return found

    def _exchange(
        self, upstream: str, gone: _Slots, new: _Slots, *, most: int | None, none_of: Sequence[str] = ()
    ) -> _Slots:
        """Replaces the slots `gone` by `new`. Returns all slots afterwards. Recognises its own repetition.

        Raises _RefusedError if one of `gone` is not as it was seen, if a new one or one of `none_of` exists, or if
        there would be more than `most` slots.
        """
        at = {name: f"slots.#s{index}" for index, name in enumerate(dict.fromkeys([*gone, *new, *none_of]))}
        conditions = ["attribute_exists(slots)", *(f"{at[name]} = :old{index}" for index, name in enumerate(gone))]
        conditions += [f"attribute_not_exists({at[name]})" for name in (*new, *none_of) if name not in gone]
        if new and most is not None:
            conditions.append("size(slots) <= :room")
        added = [f"{at[name]} = :new{index}" for index, name in enumerate(new)]
        removed = [at[name] for name in gone if name not in new]
        changes = (("SET", added), ("REMOVE", removed))
        item_key = _slots_key(upstream)
        try:
            item = update_under(
                " AND ".join(conditions),
                self._client(),
                self._table,
                item_key,
                " ".join(f"{clause} {', '.join(actions)}" for clause, actions in changes if actions),
                names={path.removeprefix("slots."): name for name, path in at.items()},
                values={
                    **{f":old{index}": number(until) for index, until in enumerate(gone.values())},
                    **{f":new{index}": number(until) for index, until in enumerate(new.values())},
                    ":room": number((most or 0) + len(gone) - len(new)),
                },
            )
        except ConditionFailedError as failed:
            slots = _slots_of(failed.item)
            if new.items() <= slots.items() and not (gone.items() - new.items()) & slots.items():
                return slots
            if failed.item is None:
                self._begin(item_key)
            raise _RefusedError(slots) from None
        return _slots_of(item)

    def _begin(self, item_key: Item) -> None:
        with suppress(ConditionFailedError):
            update_under(
                "attribute_not_exists(slots)",
                self._client(),
                self._table,
                item_key,
                "SET slots = :none",
                names={},
                values={":none": {"M": {}}},
            )

    def _read(self, upstream: str) -> _Slots:
        answer = self._client().get_item(TableName=self._table, Key=_slots_key(upstream), ConsistentRead=True)
        return _slots_of(answer.get("Item"))

    def _ended(self, slots: _Slots) -> _Slots:
        """The slots whose time has passed: their processes have died, or their generations did not come."""
        now = self._now()
        return dict(islice(((name, until) for name, until in slots.items() if until < now), _AT_ONCE))


def _until_failure(waiters: Iterator[Waiter]) -> list[Waiter]:
    """Those who have a kept slot must be brought, also if DynamoDB then fails."""
    found = []
    with suppress(Exception):
        for waiter in waiters:
            found.append(waiter)  # noqa: PERF402  # `list` would lose them all
    return found


def _slots_of(item: Item | None) -> _Slots:
    return {name: float(until["N"]) for name, until in (item or _NO_SLOTS)["slots"]["M"].items()}


def _waiter(item: Item) -> Waiter:
    of_batch = bool(item["of_batch"]["BOOL"])
    return Waiter(_generation_id(item), item["caller"]["S"], int(item["poll"]["N"]), of_batch)


def _generation_id(item: Item) -> str:
    return str(item["sk"]["S"].partition("#")[2])


def _key_of(item: Item) -> Item:
    return {name: item[name] for name in ("pk", "sk")}


def _slots_key(upstream: str) -> Item:
    return key(f"slots#{upstream}", "slots")


def _waiter_key(upstream: str, generation_id: str, since: float) -> Item:
    return key(_list(upstream), f"{time_text(since)}#{generation_id}")


def _list(upstream: str) -> str:
    return f"waiting#{upstream}"


def _kept(generation_id: str) -> str:
    return f"kept#{generation_id}"
