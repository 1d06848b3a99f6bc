"""Cuts a file of any size into its lines, of which no more than one block is in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagegen.batches import Checkpoint

MAX_LINE_BYTES = 512 * 1024
BLOCK_BYTES = 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

ReadBytes = Callable[[int, int], bytes]  # from an offset, so many


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1 and passes over blank lines. `text` is None where the line is too long."""

    number: int
    text: bytes | None
    after: Checkpoint


def lines_of(read: ReadBytes, size: int, start: Checkpoint) -> Iterator[Line]:
    """The lines behind `start`, which is the beginning or the checkpoint after a line."""
    number, at = start.line, start.offset
    for raw, end in _raw_lines(read, size, at):
        text = raw if raw is None else (raw.removeprefix(_BYTE_ORDER_MARK) if at == 0 else raw).strip(b" \t\r\n")
        at = end
        if text != b"":
            number += 1
            yield Line(number, text, Checkpoint(end, number))


def _raw_lines(read: ReadBytes, size: int, at: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line without its end, None in place of one that is too long, and where the next one begins."""
    held, too_long = b"", False
    while at < size:
        block = read(at, min(BLOCK_BYTES, size - at))
        pieces = block.split(b"\n")
        for piece in pieces[:-1]:
            at += len(piece) + 1
            whole = held + piece
            yield (None if too_long or len(whole) > MAX_LINE_BYTES else whole), at
            held, too_long = b"", False
        at += len(pieces[-1])
        held += pieces[-1]
        if len(held) > MAX_LINE_BYTES:
            held, too_long = b"", True
    if held or too_long:
        yield (None if too_long else held), at
