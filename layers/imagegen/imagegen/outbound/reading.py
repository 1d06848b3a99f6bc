"""Reads an answer in blocks, under a limit and a deadline that a slow sender cannot stretch."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer

import urllib3

from imagegen.deadline import Deadline

BLOCK_BYTES = 256 * 1024


@contextmanager
def cut_off_at(deadline: Deadline, response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Ends a read that is under way when the deadline comes. A socket's own time-out starts anew with every byte."""

    def cut_off() -> None:
        with suppress(RuntimeError, ValueError):  # read to its end just now
            response.shutdown()

    timer = Timer(deadline.remaining(), cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
