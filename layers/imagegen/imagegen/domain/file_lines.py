"""Cuts a file of any size into its lines, of which no more than one block is in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagegen.domain.batches import Checkpoint

MAX_LINE_BYTES = 512 * 1024
BLOCK_BYTES = 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it

ReadBytes = Callable[[int, int], bytes]  # from an offset, so many


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1 and passes over blank lines. `text` is None where the line is too long.

    It is empty where there is no line, but a block's length of what is none has been read: so that there is a
    checkpoint in whatever a file may hold.
    """

    number: int
    text: bytes | None
    after: Checkpoint


def lines_of(read: ReadBytes, size: int, start: Checkpoint) -> Iterator[Line]:
    """The lines behind `start`, which is the beginning or the checkpoint after a line."""
    number, at, told = start.line, start.offset, start.offset
    for raw, end, within in _raw_lines(read, size, at, too_long=start.in_long_line):
        text = raw if raw is None else (raw.removeprefix(BYTE_ORDER_MARK) if at == 0 else raw).strip(b" \t\r\n")
        at = end
        if text != b"":
            number += 1
        elif not within and end - told < BLOCK_BYTES:
            continue
        told = end
        yield Line(number, text, Checkpoint(end, number, within))


def _raw_lines(read: ReadBytes, size: int, at: int, *, too_long: bool) -> Iterator[tuple[bytes | None, int, bool]]:
    """Each line without its end, None in place of one that is too long, and where the next one begins.

    The last tells that a line is not at its end yet, which is told once a block of one that is too long.
    """
    held = b""
    while at < size:
        block = read(at, min(BLOCK_BYTES, size - at))
        pieces = block.split(b"\n")
        for piece in pieces[:-1]:
            at += len(piece) + 1
            whole = held + piece
            yield (None if too_long or len(whole) > MAX_LINE_BYTES else whole), at, False
            held, too_long = b"", False
        at += len(pieces[-1])
        held += pieces[-1]
        if too_long or len(held) > MAX_LINE_BYTES:
            held, too_long = b"", True
            if at < size:
                yield b"", at, True
    if held or too_long:
        yield (None if too_long else held), at, False
