"""Decodes the JSON of upstreams."""

import re
from codecs import BOM_UTF8
from typing import TypeVar

import msgspec

from imagegen.domain.lone_surrogates import without_lone_surrogates

T = TypeVar("T")

_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
# The message of msgspec, which counts bytes from one.
_SOMETHING_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")


def decoded(text: bytes | bytearray | memoryview, type_: type[T]) -> T | None:
    """Returns the JSON value at the beginning of a text, `None` if there is none of that type. Never raises.

    Ignores whatever follows the value, and a byte order mark. Half of a surrogate pair is read as U+FFFD.
    """
    if bytes(text[: len(BOM_UTF8)]) == BOM_UTF8:
        text = memoryview(text)[len(BOM_UTF8) :]
    try:
        return _first_value(text, type_)
    except msgspec.ValidationError:
        return None
    except Exception:  # noqa: BLE001  # the answer is paid for, so no text may end the reading
        if not _HALF_OF_A_PAIR.search(text):  # as in most event streams, which are large and not JSON
            return None
        whole = without_lone_surrogates(bytes(text))
    try:
        return _first_value(whole, type_)
    except Exception:  # noqa: BLE001  # as above
        return None


def _first_value(text: bytes | bytearray | memoryview, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=type_)
    except msgspec.DecodeError as error:
        behind = _SOMETHING_BEHIND.search(str(error))
        if behind is None:
            raise
        return msgspec.json.decode(memoryview(text)[: int(behind[1]) - 1], type=type_)
