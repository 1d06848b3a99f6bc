"""What the intake function works with."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.bucket import S3Bucket, bucket_url
from imagegen.aws.cloudwatch import JournalledBatchBus
from imagegen.aws.events import EventBridgeBatchBus
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.inbox import S3Inbox, S3Outbox
from imagegen.aws.sqs import SqsDeadLetters, SqsGenerations
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.authorizer import CLIENT_CACHE_SECONDS
from imagegen.bootstrap.workshop import event_bus, journal, ledger
from imagegen.outbound.pool import HttpPool
from imagegen.ports import BatchQueue, DeadLetters, EventBus, Inbox, Journal
from imagegen.settings import IntakeSettings
from imagegen.usecases.authorize import own_images_per_day
from imagegen.usecases.carry_on import BatchShop
from imagegen.usecases.quota import Allowance
from imagegen.usecases.read_batch import CHUNK_THREADS, Reader
from imagegen.usecases.submit import Desk
from imagegen.wire.batches import batch_event, read_batch_line, refused_line


@dataclass(frozen=True, slots=True)
class Intake:
    """`messages` is the intake's own queue. `own_images_per_day` is a client's own allowance."""

    settings: IntakeSettings
    desk: Desk
    bus: EventBus
    dead_letters: DeadLetters
    messages: BatchQueue
    inbox: Inbox
    batches: BatchShop
    own_images_per_day: Callable[[str], int | None]
    journal: Journal


@cache
def intake() -> Intake:
    """Raises SettingsError where the environment lacks something."""
    settings = IntakeSettings.from_env(os.environ)
    table = settings.generation_table
    counters = DynamoAllowanceCounters(sdk.dynamodb, table)
    clients = SsmParameters(sdk.ssm, cache_seconds=CLIENT_CACHE_SECONDS)
    told = journal("intake", settings.journal)
    own = partial(own_images_per_day, clients=clients, path=settings.clients_path)
    desk = Desk(
        records=DynamoGenerations(sdk.dynamodb, table, retention_seconds=settings.record_days * 24 * 3600),
        queue=SqsGenerations(sdk.sqs, settings.generation_queue_url),
        allowance=Allowance(counters, settings.images_per_client_per_day, settings.images_per_day),
        now=time.time,
        lease=settings.lease_seconds,
        journal=told,
    )
    bucket = S3Bucket(
        HttpPool(),
        url=bucket_url(settings.inbox_bucket, settings.runtime.region, settings.runtime.s3_endpoint_url),
        region=settings.runtime.region,
        credentials=sdk.credentials,
    )
    inbox = S3Inbox(bucket)
    books = ledger(table, settings.intake_queue_url, settings.record_days, durable_urls=settings.durable_urls)
    reader = Reader(
        # A queue of their own, so that ten thousand lines keep no client waiting.
        desk=replace(desk, queue=SqsGenerations(sdk.sqs, settings.batch_generation_queue_url)),
        ledger=books,
        inbox=inbox,
        pool=ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="line"),
        base_url=settings.base_url,
        read_line=partial(read_batch_line, prompt_cap=settings.prompt_max_characters, aliases=settings.model_aliases),
        refusal=refused_line,
        own_images_per_day=own,
    )
    bus = event_bus(settings.event_bus, told)
    return Intake(
        settings=settings,
        desk=desk,
        bus=bus,
        dead_letters=SqsDeadLetters(sdk.sqs, settings.intake_dead_letters_url),
        messages=books.messages,
        inbox=inbox,
        batches=BatchShop(
            reader=reader,
            counters=counters,
            bus=bus,
            batch_bus=JournalledBatchBus(EventBridgeBatchBus(sdk.events, settings.event_bus, ended=batch_event), told),
            outbox=S3Outbox(bucket),
        ),
        own_images_per_day=own,
        journal=told,
    )
