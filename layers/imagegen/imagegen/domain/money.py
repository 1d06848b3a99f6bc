"""Defines prices. Amounts are whole numbers of millionths of a dollar."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

MICROS = 1_000_000  # millionths of a dollar in a dollar

# An amount, or the amounts by the value of a field of the request.
PriceTable = int | dict[str, "PriceTable"]


def usd(micros: int) -> float:
    return micros / MICROS


def usd_text(micros: int) -> str:
    """Returns an amount from 0 up as exact decimal text, such as "0.034" or "5"."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


class ImagePrice(msgspec.Struct, frozen=True, tag="image"):
    """The price of one image. `table` has a level for each of `fields`, in this order, down to an amount."""

    table: Any  # PriceTable: msgspec cannot decode a type that refers to itself
    fields: tuple[str, ...] = ()

    def narrowed(self, values: Mapping[str, Any]) -> "ImagePrice":
        """The price under these values of fields. A value that is absent or not listed leaves its level as it is."""
        return ImagePrice(*_narrowed(self.table, self.fields, values))

    @property
    def most(self) -> int:
        """The highest amount."""
        return max(_amounts(self.table))

    @property
    def exact(self) -> bool:
        """Whether all fields on which it depends are known. A size that is not listed may have another price."""
        return not isinstance(self.table, dict)


class TokenPrice(msgspec.Struct, frozen=True, tag="usage"):
    """Prices of a million tokens, by kind. `most` is the highest price that one image is expected to have."""

    text_input: int
    image_input: int
    output: int
    most: int


Price = ImagePrice | TokenPrice


class Spending(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a generation takes from its caller's quota in money. Amounts are in millionths of a dollar.

    `reserved` was taken at admission. `taken` is what the counters hold for the generation now. `earlier` is the part
    of it that was charged before an operator's last retry, and stays. `changes` counts the changes of `taken`.
    """

    reserved: int
    taken: int
    earlier: int = 0
    changes: int = 0

    def settled(self, cost: int) -> "Spending":
        """The spending once the counters hold the cost. The same if they do."""
        owed = max(cost, self.earlier)
        return self if owed == self.taken else Spending(self.reserved, owed, self.earlier, self.changes + 1)

    @property
    def returned(self) -> int:
        """What was reserved and is not taken any more."""
        return max(0, self.reserved - self.taken)

    def reserved_again(self) -> "Spending":
        """The spending once the counters hold again what was returned."""
        return Spending(self.reserved, self.taken + self.returned, self.taken, self.changes + 1)


def _narrowed(table: Any, fields: tuple[str, ...], values: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    if not isinstance(table, dict) or not fields:
        return table, ()
    name, *rest = fields
    value = values.get(name)
    if isinstance(value, str) and value in table:
        return _narrowed(table[value], tuple(rest), values)
    rows = {value: _narrowed(row, tuple(rest), values) for value, row in table.items()}
    return {value: row for value, (row, _) in rows.items()}, (name, *max((left for _, left in rows.values()), key=len))


def _amounts(table: Any) -> Iterator[int]:
    if isinstance(table, dict):
        for each in table.values():
            yield from _amounts(each)
    else:
        yield table
