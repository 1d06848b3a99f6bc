"""Decodes the JSON that callers send."""

from typing import Any

import msgspec

from imagegen.domain.file_lines import BYTE_ORDER_MARK
from imagegen.domain.lone_surrogates import without_lone_surrogates


def decoded(text: bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Half of a surrogate pair becomes U+FFFD. Raises ValueError.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        whole = without_lone_surrogates(text)
        if whole == text:
            raise ValueError("no JSON") from error
    try:
        return msgspec.json.decode(whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no JSON") from error
