"""The handler of every queue: visibility, age, retry delay and partial failures."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.domain.deadline import Deadline
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.ports import Journal, MessageQueue
from imagegen.wire.queue_messages import ids_in_message

FAULT_SECONDS = 5.0
MOST_FAULT_SECONDS = 120.0
_QUICK_RECEIPTS = 8  # a message is also received while another worker has its generation, and each receipt counts


class ReceiveAgainError(Exception):
    """The message stays in its queue, hidden until it is due again."""


class Message(msgspec.Struct, frozen=True):
    """`until` is when the work on the message must end. `age` is in seconds since the message was sent.

    `extend_visibility` hides the message from other consumers for a number of seconds.
    """

    id: str
    body: str
    age: int
    until: Deadline
    extend_visibility: Callable[[float], None]


class QueueConsumer(msgspec.Struct, frozen=True, eq=False):
    """`take` does the work of a message. It returns `None` if the message is done, else the seconds until it is due.

    `queue` gives the queue of an ARN. Without it, a message that is not done is hidden for the queue's own visibility
    time-out. `visibility` is in seconds, for the begin of the work. `closing_seconds` of the function's time-out are
    kept free; `turn_seconds` is the longest time for one message.
    """

    take: Callable[[Message], float | None]
    queue: Callable[[str], MessageQueue] | None
    visibility: float
    closing_seconds: float
    turn_seconds: float
    journal: Journal

    def handle(self, event: Mapping[str, Any], context: LambdaContext) -> Any:
        """Answers an SQS event with the messages that must be received again."""
        remaining = context.get_remaining_time_in_millis() / 1000 - self.closing_seconds
        until = Deadline.after(min(self.turn_seconds, remaining))
        return process_partial_response(
            dict(event),
            record_handler=lambda record: self._handle(record, until),
            processor=BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False),
            context=context,
        )

    def _handle(self, record: SQSRecord, until: Deadline) -> None:
        def extend_visibility(seconds: float) -> None:
            if self.queue is not None:
                self.queue(record.event_source_arn).extend_visibility(record.receipt_handle, seconds)

        # First of all: if this process died, the message would be hidden for the queue's own visibility time-out.
        extend_visibility(self.visibility)
        due: float | None = retry_delay(int(record.attributes.approximate_receive_count or 1))
        sent = int(record.attributes.sent_timestamp or 0) / 1000
        message = Message(record.message_id, record.body, round(time.time() - sent), until, extend_visibility)
        try:
            due = self.take(message)
        except Exception as error:  # noqa: BLE001  # logged without its message
            about = {"message_id": message.id, **ids_in_message(message.body)}
            self.journal.interrupted(redacted_traceback(error), **about)
        if due is not None:
            extend_visibility(due)
            raise ReceiveAgainError


def retry_delay(receipts: int) -> float:
    """Seconds until a message that met an unexpected exception is due again, by the number of its receipts.

    Short at first, then longer and longer: the 20 receipts of a queue outlast an outage of a quarter of an hour.
    """
    doublings = min(10, max(0, receipts - _QUICK_RECEIPTS))
    return min(MOST_FAULT_SECONDS, FAULT_SECONDS * 2.0**doublings)
