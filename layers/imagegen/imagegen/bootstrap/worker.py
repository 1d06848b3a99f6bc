"""What the worker function works with."""

import os
from dataclasses import dataclass
from functools import cache

from imagegen.aws.sqs import SqsGenerations
from imagegen.bootstrap import sdk
from imagegen.bootstrap.workshop import journal, workshop
from imagegen.ports import GenerationQueue
from imagegen.settings import WorkerSettings
from imagegen.usecases.work import Workshop


@dataclass(frozen=True, slots=True)
class Worker:
    settings: WorkerSettings
    workshop: Workshop
    batches: GenerationQueue

    def queue(self, arn: str) -> GenerationQueue:
        """The one that a message came from."""
        _, _, batches = self.settings.batch_generation_queue_url.rpartition("/")
        return self.batches if arn.endswith(f":{batches}") else self.workshop.queue


@cache
def worker() -> Worker:
    """Raises SettingsError where the environment lacks something."""
    settings = WorkerSettings.from_env(os.environ)
    return Worker(
        settings,
        workshop(settings.runtime, settings.store, settings.upstream, journal("worker", settings.journal)),
        SqsGenerations(sdk.sqs, settings.batch_generation_queue_url),
    )
