"""What the workers do with the messages of generations."""

import msgspec
from aws_lambda_powertools.logging import Logger

from imagegen.consumers.queue_consumer import Message
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.queue_messages import read_generation_message


class GenerationMessages(msgspec.Struct, frozen=True, eq=False):
    worker: GenerationWorker
    logger: Logger

    def work(self, message: Message) -> float | None:
        generation_id, poll = read_generation_message(message.body)
        due = self.worker.on_message(generation_id, poll, message.until, extend_visibility=message.extend_visibility)
        line = {"generation_id": generation_id, "age_seconds": message.age, "again_in_seconds": due}
        self.logger.info("looked at", extra=line)
        return due

    def give_up(self, message: Message) -> float | None:
        """Ends the generation of a message that no worker could complete."""
        generation_id, poll = read_generation_message(message.body)
        due = self.worker.give_up(generation_id, poll, message.until)
        if due is None:
            self.logger.error("gave up", extra={"generation_id": generation_id})
        return due
