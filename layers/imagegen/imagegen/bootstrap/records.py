"""Wires the stores, queues, bus and journal that functions share."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Self

import msgspec

from imagegen.aws.batches import DynamoBatches, DynamoBatchLines
from imagegen.aws.cloudwatch import CloudWatchJournal, JournalledBus
from imagegen.aws.events import EventBridgeBus
from imagegen.aws.file_records import DynamoFiles
from imagegen.aws.generations import DynamoGenerations
from imagegen.aws.idempotency_keys import DynamoIdempotencyKeys
from imagegen.aws.quota_counters import DynamoQuotaCounters
from imagegen.aws.slots import DynamoUpstreamSlots
from imagegen.aws.sqs import SqsBatches, SqsGenerations
from imagegen.bootstrap import sdk
from imagegen.domain.models import Catalog
from imagegen.domain.slots import slots_name
from imagegen.domain.upstreams import Upstream
from imagegen.ports import (
    BatchLines,
    BatchQueue,
    BatchStore,
    EventBus,
    FileStore,
    GenerationQueue,
    GenerationStore,
    IdempotencyKeys,
    QuotaCounters,
    UpstreamSlots,
)
from imagegen.settings import (
    JournalSettings,
    QuotaSettings,
    StoreSettings,
)
from imagegen.usecases.publish import BatchProgress, PublishGeneration
from imagegen.usecases.quota import Quota, QuotaReturns
from imagegen.usecases.submit import SubmitGeneration
from imagegen.wire.batches import outcome_line
from imagegen.wire.events import generation_event, rejection_event


class Records(msgspec.Struct, frozen=True, eq=False):
    """Everything that is kept in the table, sent to the queues, published or logged.

    `durable_urls` is whether the `url` of an image is its durable link.
    """

    generations: GenerationStore
    keys: IdempotencyKeys
    batches: BatchStore
    lines: BatchLines
    files: FileStore
    counters: QuotaCounters
    slots: UpstreamSlots
    queue: GenerationQueue
    batch_queue: BatchQueue
    bus: EventBus
    journal: CloudWatchJournal
    durable_urls: bool

    @classmethod
    def on_aws(
        cls, service: str, store: StoreSettings, journal: JournalSettings, upstreams: Mapping[str, Upstream]
    ) -> Self:
        """`service` is the name of the function in its log. `upstreams` are by name."""
        table, retention = store.generation_table, store.record_days * 24 * 3600
        lines = CloudWatchJournal(service, journal.stack_name)
        bus = EventBridgeBus(sdk.events, store.event_bus, ended=generation_event, rejected=rejection_event)
        return cls(
            generations=DynamoGenerations(sdk.dynamodb, table, retention_seconds=retention),
            keys=DynamoIdempotencyKeys(sdk.dynamodb, table),
            batches=DynamoBatches(sdk.dynamodb, table, retention_seconds=retention),
            lines=DynamoBatchLines(sdk.dynamodb, table, retention_seconds=retention),
            files=DynamoFiles(sdk.dynamodb, table, retention_seconds=retention),
            counters=DynamoQuotaCounters(sdk.dynamodb, table),
            slots=DynamoUpstreamSlots(
                sdk.dynamodb,
                table,
                {
                    slots_name(name, protocol): limit
                    for name, upstream in upstreams.items()
                    for protocol, limit in upstream.limits.items()
                },
            ),
            queue=SqsGenerations(sdk.sqs, store.generation_queues),
            batch_queue=SqsBatches(sdk.sqs, store.intake_queue_url),
            bus=JournalledBus(bus, lines),
            journal=lines,
            durable_urls=store.durable_urls,
        )

    @property
    def progress(self) -> BatchProgress:
        outcome = partial(outcome_line, durable_urls=self.durable_urls)
        return BatchProgress(self.batches, self.lines, self.batch_queue, outcome)

    @property
    def publisher(self) -> PublishGeneration:
        returns = QuotaReturns(self.counters, self.generations)
        return PublishGeneration(self.generations, returns, self.progress, self.bus)

    def submission(self, catalog: Catalog, quota: QuotaSettings, lease: float) -> SubmitGeneration:
        return SubmitGeneration(
            models=catalog.models,
            keys=self.keys,
            records=self.generations,
            queue=self.queue,
            quota=Quota(self.counters, quota.images_per_client_per_day, quota.images_per_day),
            journal=self.journal,
            now=time.time,
            lease=lease,
        )
