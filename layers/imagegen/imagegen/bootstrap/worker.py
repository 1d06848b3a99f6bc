"""Wires the functions that work on generations: the worker, and the one behind its dead-letter queue."""

import os
from concurrent.futures import Executor
from functools import cache
from math import inf
from typing import Any

import msgspec
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.sqs import SqsGenerations
from imagegen.bootstrap import sdk
from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.records import Records
from imagegen.bootstrap.upstreams import generation_worker
from imagegen.consumers.generation_messages import GenerationMessages
from imagegen.consumers.queue_consumer import QueueConsumer
from imagegen.ports import GenerationQueue, ImageConverter
from imagegen.settings import WorkerSettings

CLOSING_SECONDS = 15.0  # of the function's time-out, kept free to note the outcome
DEAD_LETTER_CLOSING_SECONDS = 10.0  # likewise; that function has 60

logger = Logger(service="worker")


class Worker(msgspec.Struct, frozen=True, eq=False):
    messages: QueueConsumer
    dead_letters: QueueConsumer
    pool: Executor


@cache
def worker() -> Worker:
    """Raises SettingsError if a variable of the environment is missing or bad."""
    settings = WorkerSettings.from_env(os.environ)
    records = Records.on_aws("worker", settings.store, settings.journal, CONFIGURATION.upstreams)
    workers = generation_worker(
        records,
        settings.runtime,
        settings.images,
        settings.upstream,
        CONFIGURATION,
        streaming=settings.streaming,
        converter=_converter,
    )
    urls = settings.store.generation_queues
    queues = {url.rpartition("/")[2]: SqsGenerations(sdk.sqs, urls, name) for name, url in urls.items()}

    def queue(arn: str) -> GenerationQueue:
        return queues[arn.rpartition(":")[2]]

    messages = GenerationMessages(workers.worker, logger)
    return Worker(
        messages=QueueConsumer(
            take=messages.work,
            queue=queue,
            visibility=settings.upstream.lease_seconds,
            closing_seconds=CLOSING_SECONDS,
            turn_seconds=inf,
            journal=records.journal,
        ),
        dead_letters=QueueConsumer(
            take=messages.give_up,
            queue=None,
            visibility=settings.upstream.lease_seconds,
            closing_seconds=DEAD_LETTER_CLOSING_SECONDS,
            turn_seconds=inf,
            journal=records.journal,
        ),
        pool=workers.pool,
    )


@cache
def _converter() -> ImageConverter:
    from imagegen.imaging.converter import PillowConverter  # noqa: PLC0415  # few calls need Pillow

    return PillowConverter()


def handle(event: dict[str, Any], context: LambdaContext) -> Any:
    """The worker's handler."""
    return worker().messages.handle(event, context)


def handle_dead_letters(event: dict[str, Any], context: LambdaContext) -> Any:
    """The handler of the function behind the dead-letter queue."""
    return worker().dead_letters.handle(event, context)
