"""Stores the counters of the daily quotas: one item a day for each caller and unit, and one for the stack.

A counter is changed by a conditional update and not by a transaction: DynamoDB cancels transactions that conflict.
"""

from __future__ import annotations

import calendar
import hashlib
import time
from typing import TYPE_CHECKING, Any

from imagegen.aws.items import ConditionFailedError, Item, number, update_under
from imagegen.domain.errors import RecordsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_dynamodb import DynamoDBClient

_KEPT_SECONDS = 3 * 24 * 3600  # after its day began; nothing is returned later
# Slots for the last changes. Forty of some 20 bytes keep the item within 1 KB, which costs one write request unit
# (DynamoDB developer guide, "DynamoDB on-demand capacity mode").
_SLOTS = 40


class DynamoQuotaCounters:
    """Implements `ports.QuotaCounters`.

    The SDK repeats an update whose answer was lost. The item keeps the tokens of the last updates, so a repetition is
    recognised. If another update has taken its slot in between, the repetition is counted twice.
    """

    def __init__(self, client: Callable[[], DynamoDBClient], table: str) -> None:
        self._client = client
        self._table = table

    def take(self, who: str, day: str, amount: int, limit: int, *, token: str) -> tuple[bool, int]:
        if amount > limit:
            return False, self._used(who, day)
        kept = _short(token)
        try:
            item = self._count(
                who,
                day,
                amount,
                kept,
                "attribute_not_exists(used) OR (used <= :bound AND (attribute_not_exists(#slot) OR #slot <> :token))",
                bound=limit - amount,
            )
        except ConditionFailedError as failed:
            found = failed.item or {}
            return found.get(_slot(kept)) == {"S": kept}, _used_in(found)
        except Exception as error:  # botocore is not imported for its exceptions: see bootstrap/sdk.py
            raise _unavailable() from error
        return True, _used_in(item)

    def give_back(self, who: str, day: str, amount: int, *, token: str) -> None:
        kept = f"-{_short(token)}"
        condition = "used >= :bound AND (attribute_not_exists(#slot) OR #slot <> :token)"
        try:
            self._count(who, day, -amount, kept, condition, bound=amount)
        except ConditionFailedError as failed:
            if (failed.item or {}).get(_slot(kept)) != {"S": kept}:
                raise _unavailable() from None
        except Exception as error:  # as above
            raise _unavailable() from error

    def _count(self, who: str, day: str, amount: int, token: str, condition: str, *, bound: int) -> Item:
        return update_under(
            condition,
            self._client(),
            self._table,
            _key(who, day),
            "ADD used :amount SET expires_at = :expires_at, #slot = :token",
            names={"#slot": _slot(token)},
            values={
                ":amount": number(amount),
                ":bound": number(bound),
                ":token": {"S": token},
                ":expires_at": number(_expires_at(day)),
            },
        )

    def _used(self, who: str, day: str) -> int:
        try:
            item = self._client().get_item(TableName=self._table, Key=_key(who, day), ConsistentRead=True)
        except Exception as error:  # as above
            raise _unavailable() from error
        return _used_in(item.get("Item", {}))


def _used_in(item: Any) -> int:
    return int(item.get("used", {"N": "0"})["N"])


def _short(token: str) -> str:
    """Returns twelve characters, enough that no two tokens of a day share them by chance."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


def _slot(token: str) -> str:
    """Returns the attribute of a change. Its reversal has the same, so that the change can be made again."""
    return f"last_{int(token.lstrip('-'), 16) % _SLOTS}"


def _key(who: str, day: str) -> dict[str, dict[str, str]]:
    return {"pk": {"S": f"quota#{day}#{who}"}, "sk": {"S": "quota"}}


def _expires_at(day: str) -> int:
    return calendar.timegm(time.strptime(day, "%Y-%m-%d")) + _KEPT_SECONDS


def _unavailable() -> RecordsUnavailableError:
    return RecordsUnavailableError("The quota of this service is temporarily unavailable.")
