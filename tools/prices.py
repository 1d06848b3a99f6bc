"""Lists the amounts of a price."""

from collections.abc import Iterator
from typing import Any

from imagegen.domain.money import ImagePrice, usd


def amounts(price: ImagePrice) -> list[tuple[dict[str, str], int]]:
    """Returns each amount in millionths of a dollar, with the values of the fields that lead to it."""
    return list(_amounts(price.table, price.fields))


def dollars(micros: int) -> str:
    return f"${usd(micros):g}"


def _amounts(table: Any, fields: tuple[str, ...]) -> Iterator[tuple[dict[str, str], int]]:
    if not isinstance(table, dict):
        yield {}, table
        return
    name, *rest = fields
    for value, below in table.items():
        for values, amount in _amounts(below, tuple(rest)):
            yield {name: value, **values}, amount
