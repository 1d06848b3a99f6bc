"""Decodes what upstreams send as JSON."""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

# msgspec's words. It counts bytes from one.
_SOMETHING_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")


def decoded(text: bytes | bytearray | memoryview, type_: type[T]) -> T | None:
    """The JSON value that a text begins with, whatever stands behind it. None if there is none of that type."""
    try:
        return _first_value(text, type_)
    except Exception:  # noqa: BLE001  # an answer is paid for: no text may end the reading
        return None


def _first_value(text: bytes | bytearray | memoryview, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=type_)
    except msgspec.DecodeError as error:
        behind = _SOMETHING_BEHIND.search(str(error))
        if behind is None:
            raise
        return msgspec.json.decode(memoryview(text)[: int(behind[1]) - 1], type=type_)
