"""Decodes what upstreams send as JSON."""

import re
from codecs import BOM_UTF8
from typing import TypeVar

import msgspec

from imagegen.domain.lone_surrogates import without_lone_surrogates

T = TypeVar("T")

_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
# msgspec's words. It counts bytes from one.
_SOMETHING_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")


def decoded(text: bytes | bytearray | memoryview, type_: type[T]) -> T | None:
    """The JSON value that a text begins with, whatever stands behind it. None if there is none of that type.

    A byte order mark is passed over. Half of a surrogate pair is read as U+FFFD.
    """
    if bytes(text[: len(BOM_UTF8)]) == BOM_UTF8:
        text = memoryview(text)[len(BOM_UTF8) :]
    try:
        return _first_value(text, type_)
    except msgspec.ValidationError:
        return None
    except Exception:  # noqa: BLE001  # an answer is paid for: no text may end the reading
        if not _HALF_OF_A_PAIR.search(text):  # as in most event streams, which are large and no JSON
            return None
        whole = without_lone_surrogates(bytes(text))
    try:
        return _first_value(whole, type_)
    except Exception:  # noqa: BLE001  # likewise
        return None


def _first_value(text: bytes | bytearray | memoryview, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=type_)
    except msgspec.DecodeError as error:
        behind = _SOMETHING_BEHIND.search(str(error))
        if behind is None:
            raise
        return msgspec.json.decode(memoryview(text)[: int(behind[1]) - 1], type=type_)
