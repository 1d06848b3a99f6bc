"""Wires the api function."""

import os
import time
from concurrent.futures import Executor
from functools import cache
from typing import Any

import msgspec
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.waiting_requests import DynamoWaiters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.records import Records
from imagegen.bootstrap.upstreams import generation_worker
from imagegen.providers.catalog import catalog
from imagegen.routes.batches import BatchRoutes
from imagegen.routes.generations import GenerationRoutes
from imagegen.routes.images import ImageRoutes
from imagegen.routes.middleware import ApiMiddleware, Handler, http_handler
from imagegen.routes.models import ModelRoutes
from imagegen.routes.results import Results
from imagegen.settings import ApiSettings, SettingsError
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.manage_generation import CancelGeneration, DeleteGeneration
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.requests import ReadRequest

logger = Logger(service="api")


class Api(msgspec.Struct, frozen=True, eq=False):
    settings: ApiSettings
    handle: Handler
    worker: GenerationWorker
    pool: Executor


@cache
def api() -> Api:
    """Raises SettingsError if a variable of the environment is missing or bad."""
    settings = ApiSettings.from_env(os.environ)
    return wired(settings, Records.on_aws("api", settings.store, settings.journal))


def wired(settings: ApiSettings, records: Records) -> Api:
    """The function over these records."""
    store, models = settings.store, catalog(settings.prompt_max_characters, settings.model_aliases)
    workers = generation_worker(records, settings.runtime, settings.images, settings.upstream)
    results = Results(
        records=records.generations,
        images=workers.images,
        waiters=DynamoWaiters(sdk.dynamodb, store.generation_table, most=settings.most_waiters),
        durable_urls=store.durable_urls,
    )
    generations = GenerationRoutes(
        submission=records.submission(settings.quota, settings.upstream.lease_seconds, records.queue),
        worker=workers.worker,
        cancellation=CancelGeneration(records.generations, records.publisher, time.time),
        deletion=DeleteGeneration(
            records=records.generations,
            queue=records.queue,
            publisher=records.publisher,
            batches=records.progress,
            deletion=DeleteImages(workers.images),
            now=time.time,
        ),
        records=records.generations,
        results=results,
        journal=records.journal,
        read_request=ReadRequest(models),
        public_base_url=settings.public_base_url,
        wait_seconds=settings.wait_seconds,
        api_is_first_worker=settings.api_is_first_worker,
        router=Router(),
    )
    batches = BatchRoutes(records.batches, records.lines, records.batch_queue, time.time, Router())
    routers = [
        each.register()
        for each in (generations, batches, ImageRoutes(workers.images, Router()), ModelRoutes(models, Router()))
    ]
    middleware = ApiMiddleware(logger, cors_origin=settings.cors_origin, public_base_url=settings.public_base_url)
    return Api(settings, http_handler(routers, middleware.chain), workers.worker, workers.pool)


def handle(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """The function's handler. Answers with an error as long as the environment is not complete."""
    try:
        answer = api().handle
    except SettingsError as error:
        answer = _without_settings(error)
    return answer(event, context)


def _without_settings(error: SettingsError) -> Handler:
    def refuse(*_: Any) -> Any:
        raise error

    middleware = ApiMiddleware(logger, cors_origin="", public_base_url="")
    return http_handler([], [*middleware.chain, refuse])
