"""What generations are worked on with, in the api function and in the worker alike."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.batches import DynamoBatches, DynamoBatchLines
from imagegen.aws.bucket import bucket_url
from imagegen.aws.cloudwatch import CloudWatchJournal, JournalledBus
from imagegen.aws.events import EventBridgeBus
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.s3 import S3ImageStore
from imagegen.aws.sqs import SqsBatches, SqsGenerations
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.models import MAX_IMAGES
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.providers.openai_compatible import OpenAICompatibleProvider
from imagegen.settings import JournalSettings, RuntimeSettings, StoreSettings, UpstreamSettings
from imagegen.usecases.publish import Ledger
from imagegen.usecases.work import Workshop
from imagegen.wire.answers import MAX_ANSWER_BYTES, base64_bytes, streamed_images_answer
from imagegen.wire.batches import outcome_line
from imagegen.wire.events import generation_event, rejection_event

SECRET_CACHE_SECONDS = 300  # a key that the upstream refuses is read anew at once
_ANSWER_SECONDS = 60.0


def journal(service: str, settings: JournalSettings) -> CloudWatchJournal:
    """`service` is the name that the function logs under."""
    return CloudWatchJournal(service, settings.stack_name, settings.image_prices)


def event_bus(name: str, told: CloudWatchJournal) -> JournalledBus:
    return JournalledBus(EventBridgeBus(sdk.events, name, ended=generation_event, rejected=rejection_event), told)


def ledger(table: str, intake_queue_url: str, record_days: int, *, durable_urls: bool) -> Ledger:
    retention_seconds = record_days * 24 * 3600
    return Ledger(
        batches=DynamoBatches(sdk.dynamodb, table, retention_seconds=retention_seconds),
        lines=DynamoBatchLines(sdk.dynamodb, table, retention_seconds=retention_seconds),
        messages=SqsBatches(sdk.sqs, intake_queue_url),
        outcome=partial(outcome_line, durable_urls=durable_urls),
    )


def store_ledger(store: StoreSettings) -> Ledger:
    return ledger(store.generation_table, store.intake_queue_url, store.record_days, durable_urls=store.durable_urls)


def workshop(
    runtime: RuntimeSettings, store: StoreSettings, upstream: UpstreamSettings, told: CloudWatchJournal
) -> Workshop:
    http = HttpPool()
    secrets = SsmParameters(sdk.ssm, cache_seconds=SECRET_CACHE_SECONDS)
    images = S3ImageStore(
        http,
        bucket_url=bucket_url(store.image_bucket, runtime.region, runtime.s3_endpoint_url),
        region=runtime.region,
        credentials=sdk.credentials,
        link_seconds=store.link_seconds,
    )

    def large_answer(generation: Generation) -> tuple[int, Iterator[bytes]] | None:
        if base64_bytes(generation) <= MAX_ANSWER_BYTES:
            return None
        return streamed_images_answer(generation, images, Deadline.after(_ANSWER_SECONDS))

    return Workshop(
        records=DynamoGenerations(
            sdk.dynamodb, store.generation_table, retention_seconds=store.record_days * 24 * 3600
        ),
        queue=SqsGenerations(sdk.sqs, store.generation_queue_url),
        counters=DynamoAllowanceCounters(sdk.dynamodb, store.generation_table),
        bus=event_bus(store.event_bus, told),
        images=images,
        source=HttpImageSource(http, UrlGuard(upstream.upstream_base_url), max_bytes=upstream.max_image_bytes),
        providers={
            "openai_compatible": OpenAICompatibleProvider(
                http,
                base_url=upstream.upstream_base_url,
                key=lambda fresh: secrets.get(upstream.upstream_api_key_parameter, fresh=fresh),
                timeout=upstream.upstream_timeout_seconds,
                max_image_bytes=upstream.max_image_bytes,
            )
        },
        pool=ThreadPoolExecutor(MAX_IMAGES, thread_name_prefix="image"),
        large_answer=large_answer,
        now=time.time,
        repeat_unknown=upstream.repeat_unknown_calls,
        call_seconds=upstream.upstream_timeout_seconds,
        lease=upstream.lease_seconds,
        settle=store_ledger(store).settle,
        journal=told,
    )
