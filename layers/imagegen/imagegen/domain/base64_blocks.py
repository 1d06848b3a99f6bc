"""Encodes blocks of bytes as base64, without reading them all first."""

from base64 import b64encode
from collections.abc import Iterable, Iterator


def base64_length(length: int) -> int:
    """Returns the length of `length` bytes as base64."""
    return 4 * ((length + 2) // 3)


def base64_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        block = rest + block  # noqa: PLW2901
        whole = len(block) - len(block) % 3
        rest = block[whole:]
        yield b64encode(block[:whole])
    yield b64encode(rest)
