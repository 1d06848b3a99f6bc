"""Works on a generation until its record has ended."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial

import msgspec

from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AbandonedError,
    ImagegenError,
    ImageStorageError,
    OutcomeUnknownError,
    RecordsUnavailableError,
)
from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.generations import Generation, LostClaimError, Status, UpstreamCall, new_owner
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.ports import GenerationQueue, GenerationStore, ImageStore, Journal
from imagegen.usecases.delete_images import LONGEST_WRITER_SECONDS, DeleteImages
from imagegen.usecases.heartbeat import heartbeat
from imagegen.usecases.publish import PublishGeneration
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.send_upstream_call import Waiting
from imagegen.usecases.tried import tried

# The JSON of an answer that is too large for Lambda: its length in bytes, and its blocks. `None` for any other.
LargeAnswer = Callable[[Generation], AbstractContextManager[tuple[int, Iterator[bytes]] | None]]
# Renews a lease, given in seconds, while its block runs: `usecases.heartbeat`.
Heartbeat = Callable[[float, Callable[[], None]], AbstractContextManager[None]]


class GenerationWorker(msgspec.Struct, frozen=True, eq=False):
    """`now` gives Unix seconds; `lease` is in seconds. `queue` takes the messages of later rounds of polling."""

    records: GenerationStore
    queue: GenerationQueue
    images: ImageStore
    runner: UpstreamRunner
    publisher: PublishGeneration
    deletion: DeleteImages
    large_answer: LargeAnswer
    journal: Journal
    now: Callable[[], float]
    lease: float
    heartbeat: Heartbeat = heartbeat

    def on_message(
        self, generation_id: str, poll: int, deadline: Deadline, *, extend_visibility: Callable[[float], None]
    ) -> float | None:
        """Does the work that a message of the round of polling `poll` asks for.

        Returns `None` if the message is done, else the seconds after which it must be received again.
        `extend_visibility` hides the message from other workers for a number of seconds. Raises RecordsUnavailableError
        and unexpected exceptions: the message must then be received again.
        """
        now, owner = self.now(), new_owner()
        generation = self.records.claim(generation_id, owner, now=now, lease_until=now + self.lease, poll=poll)
        if generation is None:
            return self._without_claim(generation_id, poll, deadline)
        if not generation.polls:
            self.journal.claimed(generation, age=now - generation.created_at)
        ended = self.work(generation, owner, deadline, poll=poll, extend_visibility=extend_visibility)
        return _until_nobody_stores(ended, self.now()) if ended and ended.ended else None

    def work(
        self,
        generation: Generation,
        owner: str,
        deadline: Deadline,
        *,
        poll: int,
        extend_visibility: Callable[[float], None],
    ) -> Generation | None:
        """Works on a claimed generation and publishes its end.

        Returns the record, which has ended or waits for the next round of polling; `None` if it was deleted. Raises
        RecordsUnavailableError, UnfinishedError and unexpected exceptions: the generation then waits until the lease
        ends.
        """

        def renew() -> None:
            self.records.renew(generation.id, owner, self.now() + self.lease)
            extend_visibility(self.lease)

        ended: Generation | None
        with self.heartbeat(self.lease, renew):
            try:
                ended = self._run(generation, owner, deadline, poll, may_send=True)
            except LostClaimError:
                ended = self._leave(generation, owner, deadline)
        if ended:
            self._finish(ended, owner)
        return ended

    def give_up(self, generation_id: str, poll: int, deadline: Deadline) -> float | None:
        """Ends a generation whose message is in the dead-letter queue, unless another process works on it.

        First fetches what is known to be paid for, and polls its open tasks. Buys nothing. Returns `None` if the
        message is done, else the seconds after which it must be received again. Raises RecordsUnavailableError, and
        ImageStorageError if images of a deleted generation remain.
        """
        owner, now = new_owner(), self.now()
        claimed = self.records.claim(generation_id, owner, now=now, lease_until=now + self.lease, poll=poll)
        if claimed is None:
            return self._without_claim(generation_id, poll, deadline)
        ended: Generation | None
        try:
            ended = self._run(claimed, owner, deadline, poll, may_send=False)
        except LostClaimError:
            return 1.0
        except RecordsUnavailableError:
            raise
        except Exception as fault:  # noqa: BLE001  # the record must end; what it knows remains for `make retry`
            self.journal.interrupted(redacted_traceback(fault), generation_id=generation_id)
            failure = failure_of(AbandonedError("The image could not be made: every process that worked on it died."))
            try:
                ended = self.records.end(generation_id, owner, Status.FAILED, now=self.now(), failure=failure)
            except LostClaimError:
                return 1.0
        if ended:
            self._finish(ended, owner)
        return _until_nobody_stores(ended, self.now()) if ended and ended.ended else None

    def _finish(self, generation: Generation, owner: str | None = None) -> None:
        """Publishes a generation that has ended, and lets others have its slots.

        A cancellation does not stop the process that works on the generation. If that is not `owner`, it keeps its
        slots: it may be sending a call.
        """
        if generation.ended:
            is_over = generation.status is not Status.CANCELLED or generation.lease_until <= self.now()
            self.runner.calling.limits.leave(generation, held=is_over or generation.owner == owner)
            self.publisher.publish(generation)

    def _run(
        self, generation: Generation, owner: str, deadline: Deadline, poll: int, *, may_send: bool
    ) -> Generation | None:
        """Runs the upstream calls and ends the record, or sends the message of the next round of polling.

        Returns the record, `None` if it was deleted.
        """
        cancelled = generation.status is Status.CANCELLED  # only its open tasks are polled: they are paid for
        outcome = self.runner.run(generation, owner, deadline, may_send=may_send and not cancelled)
        if isinstance(outcome, Waiting):
            # The message goes first: if this process dies in between, the message at hand polls again.
            seconds = max(1.0, outcome.seconds)
            to = generation.queue(poll + 1)
            self.queue.send(generation.id, generation.caller, delay=seconds, poll=poll + 1, to=to)
            self.records.await_poll(generation.id, owner, poll + 1, outcome.progress)
            self.runner.calling.limits.wait(generation, poll + 1, outcome.slots, now=self.now())
            return generation
        if cancelled:
            return self._leave(generation, owner, deadline)
        if outcome is None and generation.request.response_format == "b64_json":
            outcome = self._save_large_answer(generation.id, deadline)
        status = Status.FAILED if outcome else Status.COMPLETED
        return self.records.end(generation.id, owner, status, now=self.now(), failure=outcome)

    def _save_large_answer(self, generation_id: str, deadline: Deadline) -> Failure | None:
        generation = self.records.get(generation_id)
        if generation is None or generation.ended:
            raise LostClaimError

        def save() -> None:
            with self.large_answer(generation) as large:
                if large is not None:
                    self.images.save_answer(generation_id, *large, deadline)

        try:
            tried(save, deadline, sleep=self.runner.calling.sleep)
        except RecordsUnavailableError:
            raise
        except ImagegenError as error:
            return failure_of(error)
        return None

    def _leave(self, generation: Generation, owner: str, deadline: Deadline) -> Generation | None:
        """Releases the claim and returns the record. Deletes what was stored after the generation was deleted."""
        current = self.records.get(generation.id)
        if current is None:
            self.deletion.delete(generation.id, generation.image_ids, generation.own_input_ids, deadline)
            return None
        self.records.release(generation.id, owner)
        return current

    def _without_claim(self, generation_id: str, poll: int, deadline: Deadline) -> float | None:
        """Does the rest of the work for a generation that cannot be claimed."""
        current = self.records.get(generation_id)
        if current is None:
            tombstone = self.records.tombstone(generation_id)
            # Without a tombstone, the writer of the message died before it wrote the record, or will still write it.
            if tombstone is not None:
                self.runner.calling.limits.hand_over(generation_id, self.runner.calling.routes.slots_names)
                self.deletion.sweep(tombstone, self.queue, self.now(), deadline)
            return None
        remaining = current.lease_until - self.now()
        if current.ended:
            self._finish(current)  # the process that ended it may have died before
            # If the lease has ended since the claim was refused, this message must claim again and poll the open task.
            is_polled = current.polls <= poll and any(call.open_task for call in current.calls)
            if current.status is not Status.CANCELLED or (remaining <= 0 and not is_polled):
                self._list_stored(current, deadline)
                return _until_nobody_stores(current, self.now())
        elif current.polls > poll:
            return None  # the message of the later round was sent before the record counted it
        return max(1.0, remaining)

    def _list_stored(self, generation: Generation, deadline: Deadline) -> None:
        """Notes images that were stored by a process that died before it noted them.

        Raises ImageStorageError, RecordsUnavailableError.
        """
        for call in generation.calls:
            # Another answer to the call before an extra one may have brought its image.
            for image_id in call.image_ids if call.charged or call.extra else ():
                if image_id not in generation.stored:
                    found = tried(
                        partial(self.images.find, image_id, deadline), deadline, sleep=self.runner.calling.sleep
                    )
                    if found is not None:
                        with suppress(LostClaimError):  # it was deleted in the meantime
                            self.records.save_image(generation.id, image_id, found)


def _until_nobody_stores(ended: Generation, now: float) -> float | None:
    """Seconds until every process that may still store an image has ended; `None` if there is none.

    A call that was sent by more than one process, or that ended without its sender, may still store an image. If that
    process then dies, nobody else lists the image. Nor does anybody list one whose storing seemed to break off. A task
    may have been polled by a process that had lost its claim, and that still stores the images.
    """
    if not any(_may_be_stored_later(call, ended) for call in ended.calls):
        return None
    left = (ended.completed_at or now) + LONGEST_WRITER_SECONDS - now
    return max(1.0, left) if left > 0 else None


def _may_be_stored_later(call: UpstreamCall, ended: Generation) -> bool:
    if call.answer is None:
        reason = ended.failure.reason.code if ended.failure else None
        by_another = reason in (OutcomeUnknownError.code, AbandonedError.code)
        timed_out = ended.status is Status.FAILED and call.open_task is not None
        return timed_out or call.sent - call.refused > (0 if by_another else 1)
    extra = {image_id for other in ended.calls if other.extra for image_id in other.image_ids}
    if call.sent - call.refused > 1 and not extra <= ended.stored.keys():
        return True  # another answer may have an image that this one lacks
    has_task = any(attempt.task_id for attempt in call.attempts)
    images = zip(call.image_ids, call.answer.images, strict=True)
    unlisted = [image.failure for image_id, image in images if image_id not in ended.stored and not image.texts]
    # Then its owner may not have fetched the images.
    by_another = has_task or ended.status is Status.CANCELLED or call.sent - call.refused > 1
    return any(
        failure.interrupted and failure.code == ImageStorageError.code if failure else by_another
        for failure in unlisted
    )
