"""What the intake does with a message: a request as an event, a file in the inbox, or a batch to continue."""

from collections.abc import Callable

import msgspec
from aws_lambda_powertools.logging import Logger

from imagegen.consumers.queue_consumer import Message
from imagegen.domain.batches import batch_id_of, line_generation_id
from imagegen.domain.credentials import Caller
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    FileUnavailableError,
    GenerationCancelledError,
    InputUnavailableError,
    NothingSpentError,
    RecordsUnavailableError,
    RequestTooLargeError,
    SecretUnavailableError,
)
from imagegen.domain.generations import Origin
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.ports import BatchStore, FileContents, FileStore
from imagegen.usecases.begin_batch import begin_inbox_batch
from imagegen.usecases.continue_batch import ContinueBatch
from imagegen.usecases.submit import RejectEvent, Submission, SubmitGeneration
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.wire.image_requests import ReadOperation
from imagegen.wire.inbox_messages import DroppedFile, read_inbox_message
from imagegen.wire.request_events import MOST_CUSTOM_ID, RequestEvent, read_event
from imagegen.wire.requests import MAX_BODY_BYTES, ReadRequest

READ_SECONDS = 30.0  # for a file with a single request


class IntakeMessages(msgspec.Struct, frozen=True, eq=False):
    """`caller_named` gives a caller with its own quota. `now` gives Unix seconds."""

    submission: SubmitGeneration
    rejection: RejectEvent
    batches: BatchStore
    continuation: ContinueBatch
    files: FileStore
    contents: FileContents
    inputs: TakeInputs
    read_request: ReadRequest
    read_operation: ReadOperation
    base_url: str
    caller_named: Callable[[str], Caller]
    now: Callable[[], float]
    logger: Logger

    def take(self, message: Message) -> float | None:
        """Returns `None` if the message is done, else the seconds until it must be received again."""
        content = read_inbox_message(message.body)
        if isinstance(content, str):
            return self._continue(content, message)
        if isinstance(content, DroppedFile):
            return self._take_file(content, message)
        self._take_event(message.body)
        return None

    def _continue(self, batch_id: str, message: Message) -> float | None:
        due = self.continuation.run(batch_id, message.until, message.extend_visibility)
        line = {"batch_id": batch_id, "age_seconds": message.age, "again_in_seconds": due}
        self.logger.info("continued", extra=line)
        return due

    def _take_file(self, dropped: DroppedFile, message: Message) -> float | None:
        """Begins the batch or the single generation of a file, or refuses it for good."""
        dropped = self._as_stored(dropped, message.until.sooner(READ_SECONDS))
        if dropped.is_folder:
            return None
        try:
            caller = dropped.owner()
            if dropped.is_batch:
                batch = begin_inbox_batch(dropped.bucket, dropped.file, caller, self.batches, self.files, self.now())
                return self._continue(batch.id, message)
            generation_id = self._submit_file(dropped, caller, message.until)
        except (RecordsUnavailableError, SecretUnavailableError, FileUnavailableError):
            raise
        except GenerationCancelledError:  # the file was taken before, and its generation was deleted
            return None
        except NothingSpentError as error:
            self._reject(error, message.body, dropped.event_id, dropped.caller, _custom_id(dropped))
        else:
            self.logger.info("taken", extra={"event_id": dropped.event_id, "generation_id": generation_id})
        return None

    def _as_stored(self, dropped: DroppedFile, until: Deadline) -> DroppedFile:
        """The file with its real key, whether S3's event has it URL-encoded or not: a version belongs to one key."""
        decoded = dropped.decoded()
        if decoded is None or self._has(dropped, until) or not self._has(decoded, until):
            return dropped
        return decoded

    def _has(self, dropped: DroppedFile, until: Deadline) -> bool:
        return self.contents.find(dropped.file.key, dropped.file.version, until) is not None

    def _submit_file(self, dropped: DroppedFile, caller: str, until: Deadline) -> str:
        file = dropped.file
        if file.size > MAX_BODY_BYTES:
            raise RequestTooLargeError(f"The file is over {MAX_BODY_BYTES} bytes.")
        body = self.contents.read(file, 0, file.size, until.sooner(READ_SECONDS)) if file.size else b""
        submission = Submission(
            self.read_request(body, "application/json"),
            self.caller_named(caller),
            self.base_url,
            origin=Origin(_custom_id(dropped)),
            generation_id=line_generation_id(batch_id_of(dropped.bucket, file.key, file.version), 1),
        )
        return self.submission.submit(submission).generation.id

    def _take_event(self, body: str) -> None:
        """Begins the generation of an event, or refuses it for good."""
        event: RequestEvent | None = None
        try:
            event = read_event(body)
            generation_id = self._submit_event(event)
        except (RecordsUnavailableError, SecretUnavailableError, InputUnavailableError):
            raise
        except NothingSpentError as error:
            if event is None:
                self._reject(error, body, None, None, None)
            else:
                self._reject(error, body, event.event_id, event.caller, event.custom_id)
        else:
            self.logger.info("taken", extra={"event_id": event.event_id, "generation_id": generation_id})

    def _submit_event(self, event: RequestEvent) -> str:
        read = event.read(self.read_operation.fields)
        request, caller = read.asked.request, self.caller_named(read.caller)
        model = self.read_request.catalog.models[request.model]
        submission = Submission(
            request,
            caller,
            self.base_url,
            identity=RetryIdentity(read.idempotency_key),
            origin=Origin(read.custom_id),
        )
        return self.submission.submit_with(
            lambda: self.inputs.of(read.asked, model, caller.name), submission
        ).generation.id

    def _reject(
        self, error: NothingSpentError, body: str, event_id: str | None, caller: str | None, custom_id: str | None
    ) -> None:
        self.rejection.reject(error, body, event_id=event_id, caller=caller, custom_id=custom_id)
        self.logger.info("rejected", extra={"event_id": event_id, "code": error.code})


def _custom_id(dropped: DroppedFile) -> str | None:
    """The key of a file with a single request is the caller's own name for it."""
    return dropped.file.key if len(dropped.file.key) <= MOST_CUSTOM_ID else None
