"""Work on a generation in the process that answers its request."""

import threading
from collections.abc import Callable

from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.ports import Journal


class FirstWork:
    """Work that goes on beside the wait of its request, and after it.

    `work` returns the record, or `None` if the generation was deleted. If it raises, the message behind the record
    brings a worker.
    """

    def __init__(self, generation_id: str, work: Callable[[], Generation | None], journal: Journal) -> None:
        self._generation_id = generation_id
        self._work = work
        self._journal = journal
        self._record: Generation | None = None
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)
        self._thread.start()

    def ended(self, until: Deadline) -> Generation | None:
        """The record if the work ends it by `until`."""
        self._thread.join(until.remaining())
        return self._record if self._record and self._record.ended else None

    def join(self) -> None:
        """Returns when the work is done."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._record = self._work()
        except Exception as error:  # noqa: BLE001
            self._journal.interrupted(redacted_traceback(error), generation_id=self._generation_id)
