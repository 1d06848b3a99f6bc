"""SQS: one message, one generation."""

import json
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.worker import worker
from imagegen.consumers.retry_delay import ComeAgainError, pause_after_fault
from imagegen.domain.deadline import Deadline
from imagegen.domain.redacted_traceback import silent_trace
from imagegen.usecases.work import give_up, work_on_message

CLOSING_SECONDS = 15.0  # kept back from the function's time-out to note what happened
DEAD_LETTER_CLOSING_SECONDS = 10.0  # likewise; that function has 60

logger = Logger(service="worker")


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Answers an SQS event with the messages that are to come again."""
    until = Deadline.after(context.get_remaining_time_in_millis() / 1000 - CLOSING_SECONDS)

    def handle(record: SQSRecord) -> None:
        wired = worker()
        shop, receipt = wired.workshop, record.receipt_handle
        queue = wired.queue(record.event_source_arn)
        # First of all: were we to die, the message would otherwise be gone for the queue's own time-out.
        queue.hold(receipt, shop.lease)
        generation_id = json.loads(record.body)["generation_id"]
        again: float | None = pause_after_fault(int(record.attributes.approximate_receive_count or 1))
        try:
            again = work_on_message(
                generation_id,
                shop,
                until,
                hold=lambda seconds: queue.hold(receipt, seconds),
            )
        except Exception as error:  # noqa: BLE001  # told without its words
            shop.journal.interrupted(silent_trace(error), generation_id=generation_id)
        logger.info("looked at", extra={"generation_id": generation_id, "again_in_seconds": again})
        if again is not None:
            queue.hold(receipt, again)
            raise ComeAgainError

    return _each(event, context, handle)


def dead_letter_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Ends the generations whose messages no worker could deal with."""
    until = Deadline.after(context.get_remaining_time_in_millis() / 1000 - DEAD_LETTER_CLOSING_SECONDS)

    def handle(record: SQSRecord) -> None:
        generation_id = json.loads(record.body)["generation_id"]
        again = give_up(generation_id, worker().workshop, until)
        if again is not None:
            raise ComeAgainError
        logger.error("gave up", extra={"generation_id": generation_id})

    return _each(event, context, handle)


def _each(event: dict[str, Any], context: LambdaContext, handle: Any) -> Any:
    processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
    return process_partial_response(event, record_handler=handle, processor=processor, context=context)
