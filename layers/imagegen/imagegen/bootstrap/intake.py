"""What the intake function works with."""

import os
import time
from dataclasses import dataclass
from functools import cache

from imagegen.allowance import Allowance
from imagegen.aws.allowance import DynamoAllowanceCounters
from imagegen.aws.dynamodb import DynamoGenerations
from imagegen.aws.sqs import SqsDeadLetters, SqsGenerations
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.authorizer import CLIENT_CACHE_SECONDS
from imagegen.bootstrap.workshop import event_bus
from imagegen.ports import DeadLetters, EventBus, GenerationQueue, Parameters
from imagegen.settings import IntakeSettings
from imagegen.submit import Desk


@dataclass(frozen=True, slots=True)
class Intake:
    """`messages` is the intake's own queue."""

    settings: IntakeSettings
    clients: Parameters
    desk: Desk
    bus: EventBus
    dead_letters: DeadLetters
    messages: GenerationQueue


@cache
def intake() -> Intake:
    """Raises SettingsError where the environment lacks something."""
    settings = IntakeSettings.from_env(os.environ)
    counters = DynamoAllowanceCounters(sdk.dynamodb, sdk.dynamodb_single_try, settings.generation_table)
    return Intake(
        settings=settings,
        clients=SsmParameters(sdk.ssm, cache_seconds=CLIENT_CACHE_SECONDS),
        desk=Desk(
            records=DynamoGenerations(
                sdk.dynamodb, settings.generation_table, retention_seconds=settings.record_days * 24 * 3600
            ),
            queue=SqsGenerations(sdk.sqs, settings.generation_queue_url),
            allowance=Allowance(counters, settings.images_per_client_per_day, settings.images_per_day),
            now=time.time,
            lease=settings.lease_seconds,
        ),
        bus=event_bus(settings.event_bus),
        dead_letters=SqsDeadLetters(sdk.sqs, settings.intake_dead_letters_url),
        messages=SqsGenerations(sdk.sqs, settings.intake_queue_url),
    )
