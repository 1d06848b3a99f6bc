"""Decodes the JSON that callers send."""

import re
from typing import Any

import msgspec

from imagegen.file_lines import BYTE_ORDER_MARK

# Each escape sequence in turn, so that a backslash is never taken for the beginning of one in whose middle it stands.
# The group is half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def decoded(text: bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Half of a surrogate pair, as a program leaves behind that cuts a text in the middle of an emoji, becomes U+FFFD.
    Raises ValueError.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        whole = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], text)
        if whole == text:
            raise ValueError("no JSON") from error
    try:
        return msgspec.json.decode(whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no JSON") from error
