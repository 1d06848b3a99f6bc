"""Counts the calls that an upstream works on at once, in DynamoDB, and keeps a waiting list of generations.

| pk | sk | |
|---|---|---|
| `slots#<at>` | `slots` | `slots`: each slot in use, with the time until which it is, even if its process dies |
| `waiting#<at>` | `<time>#<generation id>` | a generation that waits, and the message that brings it a worker |

`<at>` names an upstream and a protocol.

The size of the map `slots` is the number of slots in use, so there is no counter that could differ from it (DynamoDB
developer guide, "Condition and filter expressions": `size`). One conditional update takes, frees or hands over a slot.
A slot that is kept for a generation is in the map too. A call with several slots has an entry for each.
"""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from imagegen.aws.items import ConditionFailedError, Item, is_throttled, key, number, time_text, update_under
from imagegen.domain.slots import KEPT_SECONDS, SAVED_SECONDS, Slot, Waiter, call_name

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
    """Implements `ports.UpstreamSlots`. `limits` has the number of slots by their name, if there is a limit.

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

    def take(self, at: str, generation_id: str, call: int, *, until: float, count: int = 1) -> Slot | None:
        limit = self._limits.get(at)
        slot = Slot(at, call_name(generation_id, call), until, count if limit is None else min(count, limit))
        if limit is None:
            return slot
        try:
            return slot if self._take(slot, limit, _kept(generation_id)) else None
        except Exception as error:  # noqa: BLE001  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            # A call over the limit risks a 429, which buys nothing. Without the records nothing else works either. But
            # DynamoDB throttles the item only while a crowd asks, and a crowd must not get slots without being counted.
            return None if is_throttled(error) else slot

    def wait(self, at: str, waiter: Waiter, *, since: float, until: float) -> Sequence[Waiter]:
        with suppress(Exception):  # it comes by itself, after a pause
            self._put_on_list(_waiter_key(at, waiter.generation_id, since), waiter, int(until))
            # A slot that was freed before the generation was on the list has brought nobody.
            return _until_failure(self._hand_over(at, {}, waiter))
        return []

    def leave(self, at: str, generation_id: str, *, since: float, held: bool = False) -> Sequence[Waiter]:
        if at not in self._limits:
            return []
        with suppress(Exception):  # then a message brings it, and finds no work
            self._client().delete_item(TableName=self._table, Key=_waiter_key(at, generation_id, since))
            slots = self._read(at)
            freed = _of(_kept(generation_id), slots) | (_of(generation_id, slots) if held else {})
            if freed:
                return _until_failure(self._hand_over(at, freed))
        return []

    def free(self, slot: Slot) -> Sequence[Waiter]:
        # If it fails, the slot is free when its time has passed.
        return _until_failure(self._hand_over(slot.at, dict.fromkeys(_names(slot.call, slot.count), slot.until)))

    def _take(self, slot: Slot, limit: int, kept: str) -> bool:
        new = dict.fromkeys(_names(slot.call, slot.count), slot.until)
        gone: _Slots = {}
        renews = False
        for _ in range(_TRIES):
            most, none_of = (None, []) if renews else (limit, [kept])
            try:
                self._exchange(slot.at, gone, new, most=most, none_of=none_of)
            except _RefusedError as refused:
                slots = refused.slots
            else:
                return True
            renews = slots.get(slot.call, 0) >= self._now()
            if renews:
                gone = _of(slot.call, slots)
                continue
            gone = self._ended(slots) | _of(slot.call, slots) | _of(kept, slots)
            if len(slots) - len(gone) + slot.count > limit:
                return False
        return False

    def _hand_over(self, at: str, freed: _Slots, newest: Waiter | None = None) -> Iterator[Waiter]:
        """Frees these slots and those of dead processes. Keeps all free slots for the first waiters, and yields these.

        Yields the `newest` waiter also if its slots are kept: the message on its way may be of an earlier round.
        One that needs more slots than are free is not yielded yet, but these are saved for it. Otherwise calls that
        need fewer would take each slot that becomes free.

        A process that frees a slot looks at the list afterwards, and one that puts a generation on the list looks at
        the slots afterwards. So one of two that come at the same time sees the other.
        """
        most = self._limits.get(at)
        if most is None:
            return
        slots = self._read(at)
        if newest:
            names = _names(_kept(newest.generation_id), min(most, newest.count))
            if all(slots.get(name, 0) >= self._now() for name in names):
                yield newest
        for _ in range(_TRIES):
            gone = self._ended(slots) | dict(freed.items() & slots.items())
            waiters, saved = self._first_waiters(at, most, slots.keys() - gone.keys())
            if not gone and not waiters and not saved:
                return
            until = self._now() + KEPT_SECONDS
            kept = saved | {name: until for item in waiters for name in _kept_names(item, most)}
            gone |= {name: slots[name] for name in kept if name in slots}
            try:
                slots = self._exchange(at, gone, kept, most=most)
            except _RefusedError:
                for item in waiters:
                    self._put_on_list(_key_of(item), _waiter(item), int(item["expires_at"]["N"]))
                slots = self._read(at)
            else:
                yield from map(_waiter, waiters)
        if freed:
            self._exchange(at, freed, {}, most=None)

    def _put_on_list(self, place: Item, waiter: Waiter, until: int) -> None:
        with suppress(ConditionFailedError):  # a later round of the generation waits
            update_under(
                "attribute_not_exists(poll) OR poll <= :poll",
                self._client(),
                self._table,
                place,
                "SET poll = :poll, caller = :caller, queue = :queue, needed = :needed, expires_at = :until",
                names={},
                values={
                    ":poll": number(waiter.poll),
                    ":caller": {"S": waiter.caller},
                    ":queue": {"S": waiter.queue},
                    ":needed": number(waiter.count),
                    ":until": number(until),
                },
            )

    def _first_waiters(self, at: str, most: int, slots: set[str]) -> tuple[list[Item], _Slots]:
        """Removes the first waiters who lack some of these slots from the list, and returns them.

        They need at most what is left of `most` slots. Removes those whose time has passed too. Returns also the slots
        that are saved for the next one.
        """
        found: list[Item] = []
        saved: _Slots = {}
        room = min(most - len(slots), _AT_ONCE)
        if room <= 0:
            return found, saved
        with suppress(Exception):  # without the list, a slot can still be freed
            client = self._client()
            page = client.query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": _list(at)}},
                ConsistentRead=True,
                Limit=_LOOKED_AT,
            )
            for item in page["Items"]:
                names = _kept_names(item, most)
                lacking = [name for name in names if name not in slots]
                if not lacking:
                    continue
                if len(lacking) > room and float(item["expires_at"]["N"]) >= self._now():
                    out_of_reach = lacking[room:]
                    saved = {name: self._now() + SAVED_SECONDS for name in names if name not in out_of_reach}
                    break
                removed = client.delete_item(TableName=self._table, Key=_key_of(item), ReturnValues="ALL_OLD")
                # Another process has removed it, unless the SDK repeated a removal whose answer was lost.
                last = removed.get("Attributes") or (item if removed["ResponseMetadata"]["RetryAttempts"] else None)
                if last and float(last["expires_at"]["N"]) >= self._now():
                    found.append(last)
                    room -= sum(name not in slots for name in _kept_names(last, most))
        return found, saved

    def _exchange(self, at: str, gone: _Slots, new: _Slots, *, most: int | None, none_of: Sequence[str] = ()) -> _Slots:
        """Replaces the slots `gone` by `new`. Returns all slots afterwards. Recognises its own repetition.

        Raises _RefusedError if one of `gone` is not as it was seen, if a new one or one of `none_of` exists, or if
        there would be more than `most` slots.
        """
        path = {name: f"slots.#s{index}" for index, name in enumerate(dict.fromkeys([*gone, *new, *none_of]))}
        conditions = ["attribute_exists(slots)", *(f"{path[name]} = :old{index}" for index, name in enumerate(gone))]
        conditions += [f"attribute_not_exists({path[name]})" for name in (*new, *none_of) if name not in gone]
        if new and most is not None:
            conditions.append("size(slots) <= :room")
        added = [f"{path[name]} = :new{index}" for index, name in enumerate(new)]
        removed = [path[name] for name in gone if name not in new]
        changes = (("SET", added), ("REMOVE", removed))
        item_key = _slots_key(at)
        try:
            item = update_under(
                " AND ".join(conditions),
                self._client(),
                self._table,
                item_key,
                " ".join(f"{clause} {', '.join(actions)}" for clause, actions in changes if actions),
                names={each.removeprefix("slots."): name for name, each in path.items()},
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

    def _read(self, at: str) -> _Slots:
        answer = self._client().get_item(TableName=self._table, Key=_slots_key(at), ConsistentRead=True)
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


def _names(name: str, count: int) -> list[str]:
    """Returns the names of the entries of a call with `count` slots, or of those kept for a generation."""
    return [name, *(f"{name}#{index}" for index in range(1, count))]


def _of(name: str, slots: _Slots) -> _Slots:
    return {each: until for each, until in slots.items() if each == name or each.startswith(f"{name}#")}


def _waiter(item: Item) -> Waiter:
    queue: Any = item["queue"]["S"]
    return Waiter(_generation_id(item), item["caller"]["S"], int(item["poll"]["N"]), queue, int(item["needed"]["N"]))


def _kept_names(item: Item, most: int) -> list[str]:
    """Returns the names of the entries that are kept for a waiter."""
    return _names(_kept(_generation_id(item)), min(most, int(item["needed"]["N"])))


def _generation_id(item: Item) -> str:
    return str(item["sk"]["S"].partition("#")[2])


def _key_of(item: Item) -> Item:
    return {name: item[name] for name in ("pk", "sk")}


def _slots_key(at: str) -> Item:
    return key(f"slots#{at}", "slots")


def _waiter_key(at: str, generation_id: str, since: float) -> Item:
    return key(_list(at), f"{time_text(since)}#{generation_id}")


def _list(at: str) -> str:
    return f"waiting#{at}"


def _kept(generation_id: str) -> str:
    return f"kept#{generation_id}"
