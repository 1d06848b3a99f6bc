"""What the api function works with."""

import os
from dataclasses import dataclass
from functools import cache

from imagegen.aws.waiters import DynamoWaiters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.workshop import journal, store_ledger, workshop
from imagegen.settings import ApiSettings, SettingsError
from imagegen.usecases.publish import Ledger
from imagegen.usecases.quota import Allowance
from imagegen.usecases.submit import Desk
from imagegen.usecases.work import Workshop


@dataclass(frozen=True, slots=True)
class Api:
    settings: ApiSettings
    desk: Desk
    workshop: Workshop
    waiters: DynamoWaiters
    ledger: Ledger


@cache
def api() -> Api:
    """Raises SettingsError where the environment lacks something."""
    settings = ApiSettings.from_env(os.environ)
    shop = workshop(settings.runtime, settings.store, settings.upstream, journal("api", settings.journal))
    return Api(
        settings=settings,
        desk=Desk(
            records=shop.records,
            queue=shop.queue,
            allowance=Allowance(shop.counters, settings.images_per_client_per_day, settings.images_per_day),
            now=shop.now,
            lease=shop.lease,
            journal=shop.journal,
        ),
        workshop=shop,
        ledger=store_ledger(settings.store),
        waiters=DynamoWaiters(sdk.dynamodb, settings.store.generation_table, most=settings.most_waiters),
    )


def cors_origin() -> str | None:
    """The web origin whose pages may read our answers; None where settings lack, which an answer must tell too."""
    try:
        return api().settings.cors_origin
    except SettingsError:
        return None
