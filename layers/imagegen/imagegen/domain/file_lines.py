"""Splits a file of any size into lines, with no more than one block and one line in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imagegen.domain.batches import Checkpoint

MAX_LINE_BYTES = 512 * 1024
BLOCK_BYTES = 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it

ReadBytes = Callable[[int, int], bytes]  # the offset and the number of bytes


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1 and skips blank lines. `text` is `None` if the line is too long.

    `text` is empty if there is no line, but a block without a line has been read. So every block has a checkpoint,
    whatever the file contains.
    """

    number: int
    text: bytes | None
    after: Checkpoint


def lines_of(read: ReadBytes, size: int, start: Checkpoint) -> Iterator[Line]:
    """Yields the lines after `start`, which is the beginning of the file or a checkpoint."""
    number, at, yielded = start.line, start.offset, start.offset
    for raw, end, within in _raw_lines(read, size, at, too_long=start.in_long_line):
        text = raw if raw is None else (raw.removeprefix(BYTE_ORDER_MARK) if at == 0 else raw).strip(b" \t\r\n")
        at = end
        if text != b"":
            number += 1
        elif not within and end - yielded < BLOCK_BYTES:
            continue
        yielded = end
        yield Line(number, text, Checkpoint(end, number, within))


def _raw_lines(read: ReadBytes, size: int, at: int, *, too_long: bool) -> Iterator[tuple[bytes | None, int, bool]]:
    """Yields each line without its end (`None` if it is too long), and the offset of the next line.

    The third value is `True` within a line that is too long, for which an empty line is yielded after each block.
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
