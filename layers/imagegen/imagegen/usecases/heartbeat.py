"""Renews a lease while the work under it runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imagegen.domain.generations import LostClaimError

HEARTBEATS_A_LEASE = 3


@contextmanager
def heartbeat(lease: float, beat: Callable[[], None]) -> Iterator[None]:
    """Calls `beat` three times a lease while the block runs, until the claim is lost. `lease` is in seconds."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(lease / HEARTBEATS_A_LEASE):
            try:
                beat()
            except LostClaimError:
                return
            except Exception:  # noqa: BLE001, S110  # the next beat tries again; two may be missed
                pass

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
