"""Wires the intake function."""

import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import msgspec
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.bucket import S3Bucket, bucket_url
from imagegen.aws.cloudwatch import JournalledBatchBus
from imagegen.aws.events import EventBridgeBatchBus
from imagegen.aws.inbox import S3Inbox, S3Outbox
from imagegen.aws.objects import S3Objects
from imagegen.aws.sqs import SqsDeadLetters
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.authorizer import CALLER_CACHE_SECONDS
from imagegen.bootstrap.inputs import input_store
from imagegen.bootstrap.models import configuration
from imagegen.bootstrap.records import Records
from imagegen.consumers.intake_messages import IntakeMessages
from imagegen.consumers.queue_consumer import QueueConsumer
from imagegen.outbound.input_source import HttpInputSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.settings import IntakeSettings
from imagegen.usecases.authorize import caller_named
from imagegen.usecases.continue_batch import ContinueBatch
from imagegen.usecases.manage_generation import CancelGeneration
from imagegen.usecases.read_batch import CHUNK_THREADS, ReadBatch
from imagegen.usecases.submit import RejectEvent
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.wire.batches import batch_event, read_batch_line, refused_line
from imagegen.wire.image_requests import ReadOperation, readers_of
from imagegen.wire.requests import ReadRequest

CLOSING_SECONDS = 60.0  # of the function's time-out, kept free to end the work at hand
TURN_SECONDS = 60.0  # then the rest of a file goes to the end of the queue: a large one does not delay others

logger = Logger(service="intake")


class Intake(msgspec.Struct, frozen=True, eq=False):
    messages: QueueConsumer
    pool: Executor


@cache
def intake() -> Intake:
    """Raises SettingsError if a variable of the environment is missing or bad."""
    settings = IntakeSettings.from_env(os.environ)
    configured = configuration(settings.disabled_models)
    records = Records.on_aws("intake", settings.store, settings.journal, configured.upstreams)
    http = HttpPool()
    bucket = S3Bucket(
        http,
        url=bucket_url(settings.inbox_bucket, settings.runtime.region, settings.runtime.s3_endpoint_url),
        region=settings.runtime.region,
        credentials=sdk.credentials,
    )
    inbox, pool = S3Inbox(bucket), ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="line")
    read_request = ReadRequest(configured.catalog)
    caller = partial(
        caller_named,
        callers=SsmParameters(sdk.ssm, cache_seconds=CALLER_CACHE_SECONDS),
        path=settings.clients_path,
    )
    reader = ReadBatch(
        batches=records.batches,
        lines=records.lines,
        generations=records.generations,
        submission=records.submission(configured.catalog, settings.quota, settings.lease_seconds),
        inbox=inbox,
        pool=pool,
        base_url=settings.base_url,
        read_line=partial(read_batch_line, read_fields=read_request.fields),
        refusal=refused_line,
        caller_named=caller,
        now=time.time,
    )
    batch_bus = EventBridgeBatchBus(sdk.events, settings.store.event_bus, ended=batch_event)
    continuation = ContinueBatch(
        batches=records.batches,
        lines=records.lines,
        queue=records.batch_queue,
        reader=reader,
        progress=records.progress,
        generations=records.generations,
        cancellation=CancelGeneration(records.generations, records.publisher, time.time),
        outbox=S3Outbox(bucket),
        bus=JournalledBatchBus(batch_bus, records.journal),
        now=time.time,
        lease=settings.lease_seconds,
    )
    messages = IntakeMessages(
        submission=records.submission(configured.catalog, settings.quota, settings.lease_seconds),
        rejection=RejectEvent(SqsDeadLetters(sdk.sqs, settings.intake_dead_letters_url), records.bus),
        batches=records.batches,
        continuation=continuation,
        inbox=inbox,
        inputs=_inputs(settings, records, http, pool),
        read_request=read_request,
        read_operation=ReadOperation(read_request, readers_of(configured.catalog, from_s3=True)),
        base_url=settings.base_url,
        caller_named=caller,
        now=time.time,
        logger=logger,
    )
    consumer = QueueConsumer(
        take=messages.take,
        queue=lambda _: records.batch_queue,
        visibility=settings.lease_seconds,
        closing_seconds=CLOSING_SECONDS,
        turn_seconds=TURN_SECONDS,
        journal=records.journal,
    )
    return Intake(consumer, pool)


def _inputs(settings: IntakeSettings, records: Records, http: HttpPool, pool: Executor) -> TakeInputs:
    return TakeInputs(
        store=input_store(http, settings.runtime, settings.images),
        source=HttpInputSource(http, UrlGuard(settings.upstream_base_url)),
        objects=S3Objects(
            http,
            buckets=settings.event_image_buckets,
            region=settings.runtime.region,
            endpoint_url=settings.runtime.s3_endpoint_url,
            credentials=sdk.credentials,
        ),
        generations=records.generations,
        pool=pool,
    )


def handle(event: dict[str, Any], context: LambdaContext) -> Any:
    """The function's handler."""
    return intake().messages.handle(event, context)
