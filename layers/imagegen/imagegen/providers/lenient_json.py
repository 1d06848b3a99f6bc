"""Decodes what upstreams send as JSON."""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

# Escapes: a backslash, a surrogate pair, or half of one, which msgspec takes for invalid JSON.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
# msgspec's words. It counts bytes from one.
_SOMETHING_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")


def decoded(text: bytes | bytearray | memoryview, type_: type[T]) -> T | None:
    """The JSON value that a text begins with, whatever stands behind it. None if there is none of that type.

    Half of a surrogate pair is read as U+FFFD.
    """
    try:
        return _first_value(text, type_)
    except msgspec.ValidationError:
        return None
    except Exception:  # noqa: BLE001  # an answer is paid for: no text may end the reading
        whole = _ESCAPES.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], text)
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
