"""Replaces halves of surrogate pairs in JSON. A program that cuts a text inside an emoji leaves such a half."""

import re

_TWO_BACKSLASHES, _STAND_IN = rb"\\", b"\0\0"  # no JSON contains a null byte
# The first half without the second, and the reverse. Fixed lengths, and no callback, so megabytes take milliseconds.
_LONE_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_LONE_LOW = re.compile(rb"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def without_lone_surrogates(text: bytes) -> bytes:
    """Returns the JSON text with U+FFFD in place of each half of a pair, which decoders refuse."""
    if b"\0" in text:
        return text
    plain = text.replace(_TWO_BACKSLASHES, _STAND_IN)  # now each backslash begins an escape
    for lone in (_LONE_HIGH, _LONE_LOW):
        plain = lone.sub(rb"\\ufffd", plain)
    return plain.replace(_STAND_IN, _TWO_BACKSLASHES)
