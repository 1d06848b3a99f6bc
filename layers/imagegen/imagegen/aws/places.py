"""Counts the places to wait in DynamoDB.

An item counts a group of at most 100 places: the number in use, the number of each caller, and each place with the time
at which it is free even if its process has died. One conditional write takes or frees a place. A single item for
thousands of places would exceed the writes that DynamoDB accepts for one key.

Kept places may exceed a caller's share. Such places are not in the number in use: others could otherwise get no place
because of one caller. `beyond#<caller>` is their number.
"""

from __future__ import annotations

import random
import secrets
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imagegen.aws.items import is_throttled
from imagegen.domain.places import KEPT_SECONDS, PLACE_SECONDS, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from types_boto3_dynamodb import DynamoDBClient

_GROUP = 100  # places: an item of some 8 KB, of which DynamoDB writes more than 100 a second
_MOST_GROUPS_ASKED = 8  # so that a refusal stays quick
_FREEING_TRIES = 5  # between two writes, other places of the caller may end


class DynamoPlaces:
    """Implements `ports.Places`. `most` is the number of places, `share` the share of one caller in per cent."""

    def __init__(self, client: Callable[[], DynamoDBClient], table: str, *, most: int, share: int) -> None:
        self._client = client
        self._table = table
        self._most = most
        self._share = share
        self._groups = -(-most // _GROUP)

    def take(self, caller: str, generation_id: str | None = None) -> Place | None:
        place_id = secrets.token_urlsafe(9)
        try:
            if generation_id is not None:
                kept = self._group_of(generation_id)
                if self._take_kept(kept, place_id, caller, generation_id):
                    return Place(place_id, caller, kept)
            asked = random.sample(range(self._groups), min(self._groups, _MOST_GROUPS_ASKED))
            for group in asked:
                if self._take_in(group, place_id, caller):
                    return Place(place_id, caller, group)
        except Exception as error:  # noqa: BLE001  # the records answer as little, and report it
            # DynamoDB throttles the item only while a crowd asks for places. It must not get them uncounted.
            return None if is_throttled(error) else Place(place_id, caller, None)
        return None

    def renew(self, place: Place) -> None:
        if place.group is not None:
            self._update(
                place.group,
                "SET #place.#until = :until",
                "attribute_exists(#place)",
                {"#place": f"place#{place.id}", "#until": "until"},
                {":until": _number(time.time() + PLACE_SECONDS)},
            )

    def keep(self, caller: str, generation_id: str) -> None:
        group, name = self._group_of(generation_id), f"kept#{generation_id}"
        names = {"#place": name, "#caller": f"caller#{caller}"}
        values = {":place": _place(caller, KEPT_SECONDS), ":one": _number(1)}
        with suppress(Exception):  # the next wait then needs a free place
            refused = self._update(
                group,
                "SET #place = :place ADD #caller :one, used :one",
                "attribute_not_exists(#place) AND (attribute_not_exists(#caller) OR #caller < :share)",
                names,
                {**values, ":share": _number(self._share_of(self._most_in(group)))},
            )
            if refused is not None and name not in refused:
                self._update(
                    group,
                    "SET #place = :place ADD #caller :one, #beyond :one",
                    "attribute_not_exists(#place)",
                    {**names, "#beyond": f"beyond#{caller}"},
                    values,
                )

    def free(self, place: Place) -> None:
        if place.group is not None:
            with suppress(Exception):  # it is free when its time has passed
                self._free(place.group, f"place#{place.id}", place.caller)

    def _take_in(self, group: int, place_id: str, caller: str) -> bool:
        most = self._most_in(group)
        for _ in range(2):
            refused = self._update(
                group,
                "SET #place = :place ADD #caller :one, used :one",
                "attribute_not_exists(#place) AND (attribute_not_exists(used) OR used < :most) "
                "AND (attribute_not_exists(#caller) OR #caller < :share)",
                {"#place": f"place#{place_id}", "#caller": f"caller#{caller}"},
                {
                    ":place": _place(caller, PLACE_SECONDS),
                    ":one": _number(1),
                    ":most": _number(most),
                    ":share": _number(self._share_of(most)),
                },
            )
            if refused is None or f"place#{place_id}" in refused:  # the answer to the first try was lost
                return True
            if not self._free_the_dead(group, refused):
                return False
        return False

    def _take_kept(self, group: int, place_id: str, caller: str, generation_id: str) -> bool:
        refused = self._update(
            group,
            "SET #place = :place REMOVE #kept",
            "attribute_exists(#kept)",
            {"#place": f"place#{place_id}", "#kept": f"kept#{generation_id}"},
            {":place": _place(caller, PLACE_SECONDS)},
        )
        return refused is None or f"place#{place_id}" in refused

    def _free_the_dead(self, group: int, item: Mapping[str, Any]) -> bool:
        """Frees the places whose time has passed. Returns whether there were any."""
        now = time.time()
        dead = [
            (name, value["M"]["caller"]["S"])
            for name, value in item.items()
            if "M" in value and float(value["M"]["until"]["N"]) < now
        ]
        for name, caller in dead:
            self._free(group, name, caller, until=now)
        return bool(dead)

    def _free(self, group: int, name: str, caller: str, *, until: float | None = None) -> None:
        """Frees the place once, with `until` only if its time has passed by then."""
        names, values = {"#place": name, "#caller": f"caller#{caller}"}, {":less": _number(-1)}
        condition = "attribute_exists(#place)"
        if until is not None:
            condition, names["#until"], values[":until"] = "#place.#until < :until", "until", _number(until)
        beyond, none = {"#beyond": f"beyond#{caller}"}, {":none": _number(0)}
        ways = (
            ("used", "(attribute_not_exists(#beyond) OR #beyond = :none)"),
            ("#beyond", "#beyond > :none"),
        )
        for counted, which in ways * _FREEING_TRIES:
            refused = self._update(
                group,
                f"REMOVE #place ADD #caller :less, {counted} :less",
                f"{condition} AND {which}",
                names | beyond,
                values | none,
            )
            if refused is None or name not in refused:
                break
        self._update(
            group, "REMOVE #caller, #beyond", "#caller <= :none", {"#caller": f"caller#{caller}"} | beyond, none
        )

    def _update(
        self, group: int, update: str, condition: str, names: Mapping[str, str], values: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Returns `None` if the item was written, else the item that does not fulfil the condition."""
        client = self._client()
        try:
            client.update_item(
                TableName=self._table,
                Key={"pk": {"S": f"places#{group}"}, "sk": {"S": "places"}},
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=values,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except client.exceptions.ConditionalCheckFailedException as refused:
            item: Mapping[str, Any] = refused.response.get("Item", {})  # type: ignore[assignment]  # unknown to the stubs
            return item
        return None

    def _most_in(self, group: int) -> int:
        return self._most // self._groups + (group < self._most % self._groups)

    def _share_of(self, most: int) -> int:
        return max(1, most * self._share // 100)

    def _group_of(self, generation_id: str) -> int:
        return zlib.crc32(generation_id.encode()) % self._groups


def _place(caller: str, seconds: float) -> dict[str, Any]:
    return {"M": {"caller": {"S": caller}, "until": _number(time.time() + seconds)}}


def _number(value: float) -> dict[str, str]:
    return {"N": str(value)}
