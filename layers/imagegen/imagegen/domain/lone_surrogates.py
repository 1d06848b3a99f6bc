"""Half of a surrogate pair in JSON, as a program leaves behind that cuts a text in the middle of an emoji."""

import re

_TWO_BACKSLASHES, _STAND_IN = rb"\\", b"\0\0"  # no JSON holds a null byte
# The first half without the second, and the reverse. Fixed lengths and no callback: so megabytes take milliseconds.
_LONE_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_LONE_LOW = re.compile(rb"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def without_lone_surrogates(text: bytes) -> bytes:
    """The JSON text with U+FFFD in place of each half of a pair, which decoders take for invalid JSON."""
    if b"\0" in text:
        return text
    plain = text.replace(_TWO_BACKSLASHES, _STAND_IN)  # what is left of backslashes begins an escape
    for lone in (_LONE_HIGH, _LONE_LOW):
        plain = lone.sub(rb"\\ufffd", plain)
    return plain.replace(_STAND_IN, _TWO_BACKSLASHES)
