"""Events → generations: each SQS message is a request that came by EventBridge."""

from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.authorize import own_images_per_day
from imagegen.bootstrap.intake import Intake, intake
from imagegen.errors import NothingSpentError, RecordsUnavailableError, SecretUnavailableError
from imagegen.generations import Origin
from imagegen.openai_wire.request_events import RequestEvent, read_event
from imagegen.reject import reject
from imagegen.silent_trace import silent_trace
from imagegen.submit import Attempt, submit

FAULT_SECONDS = 5.0  # after a fault of ours the message comes again

logger = Logger(service="intake")


class ComeAgainError(Exception):
    """The message is to come again, and is held until then."""


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Answers an SQS event with the messages that are to come again."""

    def handle(record: SQSRecord) -> None:
        wired = intake()
        try:
            _take(record.body, wired)
        except Exception as error:  # noqa: BLE001  # told without its words
            logger.error("interrupted", extra={"message_id": record.message_id, "trace": silent_trace(error)})  # noqa: TRY400
            wired.messages.hold(record.receipt_handle, FAULT_SECONDS)
            raise ComeAgainError from None

    processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
    return process_partial_response(event, record_handler=handle, processor=processor, context=context)


def _take(body: str, wired: Intake) -> None:
    """Begins the generation that a message asks for, or refuses it for good."""
    asked: RequestEvent | None = None
    try:
        asked = read_event(body)
        generation_id = _begin(asked, wired)
    except (RecordsUnavailableError, SecretUnavailableError):
        raise
    except NothingSpentError as error:
        reject(
            error,
            body,
            wired.dead_letters,
            wired.bus,
            event_id=asked.event_id if asked else None,
            client=asked.client if asked else None,
            custom_id=asked.custom_id if asked else None,
        )
        logger.info("rejected", extra={"event_id": asked.event_id if asked else None, "kind": type(error).__name__})
    else:
        logger.info("taken", extra={"event_id": asked.event_id, "generation_id": generation_id})


def _begin(asked: RequestEvent, wired: Intake) -> str:
    images = asked.read(prompt_cap=wired.settings.prompt_max_characters)
    submitted = submit(
        images.request,
        Attempt(images.idempotency_key),
        wired.desk,
        caller=images.client,
        base_url=wired.settings.base_url,
        work_here=False,
        images_per_day=own_images_per_day(images.client, clients=wired.clients, path=wired.settings.clients_path),
        origin=Origin(images.custom_id),
    )
    return submitted.generation.id
