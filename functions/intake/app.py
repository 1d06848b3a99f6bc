"""Events and files → generations: each SQS message is a request, a file that was dropped, or a batch to carry on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.intake import Intake, intake
from imagegen.consumers.retry_delay import ComeAgainError, pause_after_fault
from imagegen.domain.attempts import Attempt
from imagegen.domain.batches import batch_id_of, line_generation_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    GenerationCancelledError,
    NothingSpentError,
    RecordsUnavailableError,
    RequestTooLargeError,
    SecretUnavailableError,
)
from imagegen.domain.generations import Origin
from imagegen.domain.redacted_traceback import silent_trace
from imagegen.usecases.carry_on import begin, carry_on
from imagegen.usecases.submit import reject, submit
from imagegen.wire.inbox_messages import DroppedFile, read_inbox_message
from imagegen.wire.request_events import MOST_CUSTOM_ID, RequestEvent, read_event
from imagegen.wire.requests import MAX_BODY_BYTES, read_image_request

CLOSING_SECONDS = 60.0  # kept back from the function's time-out to end what is under way
TURN_SECONDS = 60.0  # then the rest of a file goes to the end of the queue: a large one holds up no other
READ_SECONDS = 30.0  # to read a single request

logger = Logger(service="intake")


@dataclass(frozen=True, slots=True)
class Message:
    """`hold` keeps it to ourselves for so many seconds; `until` is by when to leave the rest to another."""

    body: str
    until: Deadline
    hold: Callable[[float], None]


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Answers an SQS event with the messages that are to come again."""
    remaining = context.get_remaining_time_in_millis() / 1000
    until = Deadline.after(min(TURN_SECONDS, remaining - CLOSING_SECONDS))

    def handle(record: SQSRecord) -> None:
        wired = intake()

        def hold(seconds: float) -> None:
            wired.messages.hold(record.receipt_handle, seconds)

        # First of all: were we to die, the message would otherwise be gone for the queue's own time-out.
        hold(wired.desk.lease)
        again: float | None = pause_after_fault(int(record.attributes.approximate_receive_count or 1))
        try:
            again = _take(Message(record.body, until, hold), wired)
        except Exception as error:  # noqa: BLE001  # told without its words
            wired.journal.interrupted(silent_trace(error), message_id=record.message_id)
        if again is not None:
            hold(again)
            raise ComeAgainError

    processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
    return process_partial_response(event, record_handler=handle, processor=processor, context=context)


def _take(message: Message, wired: Intake) -> float | None:
    """Does what a message asks for. None: it has done its duty; else seconds after which to look again."""
    told = read_inbox_message(message.body)
    if isinstance(told, str):
        return _carry_on(told, message, wired)
    if isinstance(told, DroppedFile):
        return _take_file(told, message, wired)
    _take_event(message.body, wired)
    return None


def _carry_on(batch_id: str, message: Message, wired: Intake) -> float | None:
    again = carry_on(batch_id, wired.batches, message.until, message.hold)
    logger.info("carried on", extra={"batch_id": batch_id, "again_in_seconds": again})
    return again


def _take_file(dropped: DroppedFile, message: Message, wired: Intake) -> float | None:
    """Begins the batch, or the one generation, that a file asks for, or refuses it for good."""
    dropped = _as_it_is_stored(dropped, message.until.sooner(READ_SECONDS), wired)
    if dropped.is_folder:
        return None
    try:
        client = dropped.owner()
        if dropped.is_batch:
            batches, now = wired.batches.reader.ledger.batches, wired.desk.now()
            batch = begin(dropped.bucket, dropped.file, client, batches, now)
            return _carry_on(batch.id, message, wired)
        generation_id = _begin_by_file(dropped, client, message.until, wired)
    except (RecordsUnavailableError, SecretUnavailableError):
        raise
    except GenerationCancelledError:  # the file was taken before, and its generation was deleted
        return None
    except NothingSpentError as error:
        _reject(error, message.body, wired, dropped.event_id, dropped.client, _name(dropped))
    else:
        logger.info("taken", extra={"event_id": dropped.event_id, "generation_id": generation_id})
    return None


def _as_it_is_stored(dropped: DroppedFile, until: Deadline, wired: Intake) -> DroppedFile:
    """The file by its own name, whether S3 sends that as it is or URL-encoded: a version belongs to one name alone."""
    decoded = dropped.decoded()
    if decoded is None or wired.inbox.has(dropped.file, until) or not wired.inbox.has(decoded.file, until):
        return dropped
    return decoded


def _begin_by_file(dropped: DroppedFile, client: str, until: Deadline, wired: Intake) -> str:
    file = dropped.file
    if file.size > MAX_BODY_BYTES:
        raise RequestTooLargeError(f"The file is over {MAX_BODY_BYTES} bytes.")
    body = wired.inbox.read(file, 0, file.size, until.sooner(READ_SECONDS)) if file.size else b""
    submitted = submit(
        read_image_request(
            body,
            "application/json",
            prompt_cap=wired.settings.prompt_max_characters,
            aliases=wired.settings.model_aliases,
        ),
        Attempt(),
        wired.desk,
        caller=client,
        base_url=wired.settings.base_url,
        work_here=False,
        images_per_day=wired.own_images_per_day(client),
        origin=Origin(_name(dropped)),
        generation_id=line_generation_id(batch_id_of(dropped.bucket, file.key, file.version), 1),
    )
    return submitted.generation.id


def _name(dropped: DroppedFile) -> str | None:
    """The sender's own name for a single request is its file's."""
    return dropped.file.key if len(dropped.file.key) <= MOST_CUSTOM_ID else None


def _take_event(body: str, wired: Intake) -> None:
    """Begins the generation that an event asks for, or refuses it for good."""
    asked: RequestEvent | None = None
    try:
        asked = read_event(body)
        generation_id = _begin_by_event(asked, wired)
    except (RecordsUnavailableError, SecretUnavailableError):
        raise
    except NothingSpentError as error:
        if asked is None:
            _reject(error, body, wired, None, None, None)
        else:
            _reject(error, body, wired, asked.event_id, asked.client, asked.custom_id)
    else:
        logger.info("taken", extra={"event_id": asked.event_id, "generation_id": generation_id})


def _begin_by_event(asked: RequestEvent, wired: Intake) -> str:
    images = asked.read(prompt_cap=wired.settings.prompt_max_characters, aliases=wired.settings.model_aliases)
    submitted = submit(
        images.request,
        Attempt(images.idempotency_key),
        wired.desk,
        caller=images.client,
        base_url=wired.settings.base_url,
        work_here=False,
        images_per_day=wired.own_images_per_day(images.client),
        origin=Origin(images.custom_id),
    )
    return submitted.generation.id


def _reject(
    error: NothingSpentError,
    body: str,
    wired: Intake,
    event_id: str | None,
    client: str | None,
    custom_id: str | None,
) -> None:
    reject(error, body, wired.dead_letters, wired.bus, event_id=event_id, client=client, custom_id=custom_id)
    logger.info("rejected", extra={"event_id": event_id, "kind": type(error).__name__})
