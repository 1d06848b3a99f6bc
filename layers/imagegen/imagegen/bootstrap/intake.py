"""Wires the intake function."""

import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import msgspec
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.cloudwatch import JournalledBatchBus
from imagegen.aws.events import EventBridgeBatchBus
from imagegen.aws.objects import S3Objects
from imagegen.aws.sqs import SqsDeadLetters
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.authorizer import CALLER_CACHE_SECONDS
from imagegen.bootstrap.inputs import file_contents, input_store
from imagegen.bootstrap.models import configuration
from imagegen.bootstrap.records import Records
from imagegen.consumers.intake_messages import IntakeMessages
from imagegen.consumers.queue_consumer import QueueConsumer
from imagegen.domain.credentials import Caller
from imagegen.outbound.input_source import HttpInputSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.settings import IntakeSettings
from imagegen.usecases.authorize import recorded_caller
from imagegen.usecases.continue_batch import ContinueBatch
from imagegen.usecases.manage_generation import CancelGeneration
from imagegen.usecases.read_batch import CHUNK_THREADS, FetchingLines, ReadBatch
from imagegen.usecases.submit import RejectEvent
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.usecases.validate_batch import ValidateBatch
from imagegen.usecases.write_batch import WriteBatch
from imagegen.wire.batch_requests import check_batch_line, line_readers, read_batch_line
from imagegen.wire.batches import batch_event, refused_line
from imagegen.wire.image_requests import ReadImageRequest, ReadOperation, readers_of
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
    contents = file_contents(http, settings.runtime, settings.images, settings.files)
    pool = ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="line")
    inputs = _inputs(settings, records, http)
    read_request = ReadRequest(configured.catalog)
    read_edit = ReadImageRequest(ReadRequest(configured.catalog, "edit"))
    recorded = partial(
        recorded_caller,
        callers=SsmParameters(sdk.ssm, cache_seconds=CALLER_CACHE_SECONDS),
        path=settings.clients_path,
    )
    submission = records.submission(configured.catalog, settings.quota, settings.lease_seconds)
    reader = ReadBatch(
        batches=records.batches,
        lines=records.lines,
        generations=records.generations,
        submission=submission,
        models=configured.catalog.models,
        inputs=inputs,
        contents=contents,
        pool=pool,
        base_url=settings.base_url,
        read_line=partial(read_batch_line, read_fields=line_readers(read_request, read_edit)),
        refusal=refused_line,
        recorded_caller=recorded,
        waits_for_quota=settings.batch_waits_for_quota,
        fetching=FetchingLines(),
        now=time.time,
    )
    batch_bus = EventBridgeBatchBus(sdk.events, settings.store.event_bus, ended=batch_event)
    continuation = ContinueBatch(
        batches=records.batches,
        lines=records.lines,
        queue=records.batch_queue,
        validation=ValidateBatch(contents, check_batch_line),
        reader=reader,
        writer=WriteBatch(
            lines=records.lines,
            files=records.files,
            contents=contents,
            file_seconds=settings.files.input_retention_days * 24 * 3600,
            now=time.time,
        ),
        progress=records.progress,
        cancellation=CancelGeneration(records.generations, records.publisher, time.time),
        bus=JournalledBatchBus(batch_bus, records.journal),
        now=time.time,
        lease=settings.lease_seconds,
    )
    messages = IntakeMessages(
        submission=submission,
        rejection=RejectEvent(SqsDeadLetters(sdk.sqs, settings.intake_dead_letters_url), records.bus),
        batches=records.batches,
        continuation=continuation,
        files=records.files,
        contents=contents,
        inputs=inputs,
        read_request=read_request,
        read_operation=ReadOperation(read_request, readers_of(configured.catalog, from_s3=True)),
        base_url=settings.base_url,
        caller_named=lambda name: recorded(name) or Caller(name),
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


def _inputs(settings: IntakeSettings, records: Records, http: HttpPool) -> TakeInputs:
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
        # Lines that wait for their images must not take the threads that read these.
        pool=ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="input"),
    )


def handle(event: dict[str, Any], context: LambdaContext) -> Any:
    """The function's handler."""
    return intake().messages.handle(event, context)
