"""Decodes the JSON of callers."""

from typing import Any

import msgspec

from imagegen.domain.file_lines import BYTE_ORDER_MARK
from imagegen.domain.lone_surrogates import without_lone_surrogates


def decoded(text: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, with or without a byte order mark.

    Half of a surrogate pair becomes U+FFFD. Raises ValueError if the text is not JSON.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        whole = without_lone_surrogates(text)
        if whole == text:
            raise ValueError("not JSON") from error
    try:
        return msgspec.json.decode(whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("not JSON") from error
