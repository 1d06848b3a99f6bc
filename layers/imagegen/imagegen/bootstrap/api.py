"""Wires the api function."""

import os
import time
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import cache
from typing import Any

import msgspec
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.places import DynamoPlaces
from imagegen.bootstrap import sdk
from imagegen.bootstrap.inputs import file_contents
from imagegen.bootstrap.models import configuration
from imagegen.bootstrap.records import Records
from imagegen.bootstrap.upstreams import generation_worker
from imagegen.domain.configuration import Configuration
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.outbound.input_source import HttpInputSource
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import Journal, Places
from imagegen.routes.batches import BatchRoutes
from imagegen.routes.files import FileRoutes
from imagegen.routes.generations import GenerationRoutes
from imagegen.routes.images import ImageRoutes
from imagegen.routes.middleware import Answer, ApiMiddleware, Handler, buffered, http_handler
from imagegen.routes.models import ModelRoutes
from imagegen.routes.results import Results
from imagegen.routes.uploads import UploadRoutes
from imagegen.settings import ApiSettings, SettingsError
from imagegen.streaming_runtime import StreamedResponse
from imagegen.usecases.begin_batch import BeginBatch
from imagegen.usecases.manage_files import ManageFiles
from imagegen.usecases.manage_generation import CancelGeneration, DeleteGeneration
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.image_requests import readers_of
from imagegen.wire.requests import ReadRequest

logger = Logger(service="api")


class Api(msgspec.Struct, frozen=True, eq=False):
    settings: ApiSettings
    handle: Handler
    journal: Journal
    worker: GenerationWorker
    pool: Executor


@cache
def api() -> Api:
    """Raises SettingsError if a variable of the environment is missing or bad."""
    settings = ApiSettings.from_env(os.environ)
    places = DynamoPlaces(
        sdk.dynamodb,
        settings.store.generation_table,
        most=settings.most_waiters,
        share=settings.caller_share_of_waiters,
    )
    configured = configuration(settings.disabled_models)
    records = Records.on_aws("api", settings.store, settings.journal, configured.upstreams)
    return wired(settings, configured, records, places)


def wired(settings: ApiSettings, configured: Configuration, records: Records, places: Places) -> Api:
    """The function over these models, records and places. Raises SettingsError if they do not fit the settings."""
    store, models = settings.store, configured.catalog
    workers = generation_worker(
        records, settings.runtime, settings.images, settings.upstream, configured, streaming=settings.streaming
    )
    results = Results(
        records=records.generations,
        images=workers.images,
        places=places,
        durable_urls=store.durable_urls,
        streaming=settings.streaming,
    )
    generations = GenerationRoutes(
        submission=records.submission(models, settings.quota, settings.upstream.lease_seconds),
        worker=workers.worker,
        cancellation=CancelGeneration(records.generations, records.publisher, time.time),
        deletion=DeleteGeneration(
            records=records.generations,
            queue=records.queue,
            publisher=records.publisher,
            batches=records.progress,
            deletion=workers.deletion,
            now=time.time,
        ),
        records=records.generations,
        places=places,
        results=results,
        journal=records.journal,
        read_request=ReadRequest(models),
        read_images=readers_of(models),
        inputs=TakeInputs(
            store=workers.inputs,
            source=HttpInputSource(workers.http, UrlGuard(settings.upstream.upstream_base_url)),
            objects=None,
            generations=records.generations,
            pool=workers.pool,
        ),
        public_base_url=settings.public_base_url,
        wait_seconds=settings.wait_seconds,
        api_is_first_worker=settings.api_is_first_worker,
        streaming=settings.streaming,
        router=Router(),
    )
    contents = file_contents(workers.http, settings.runtime, settings.images, settings.files)
    managed = ManageFiles(
        files=records.files,
        contents=contents,
        pool=workers.pool,
        file_seconds=settings.files.input_retention_days * 24 * 3600,
        now=time.time,
    )
    beginning = BeginBatch(
        batches=records.batches,
        files=managed,
        queue=records.batch_queue,
        keys=records.keys,
        window=settings.batch_window_seconds,
        lease=settings.upstream.lease_seconds,
        now=time.time,
    )
    batches = BatchRoutes(beginning, records.batches, records.lines, records.batch_queue, time.time, Router())
    files = FileRoutes(managed, contents, Router())
    listed = ModelRoutes(models, workers.routes.available, Router())
    images, uploads = ImageRoutes(workers.images, Router()), UploadRoutes(workers.inputs, Router())
    routers = [each.register() for each in (generations, files, batches, uploads, images, listed)]
    middleware = ApiMiddleware(logger, cors_origin=settings.cors_origin, public_base_url=settings.public_base_url)
    return Api(settings, http_handler(routers, middleware.chain), records.journal, workers.worker, workers.pool)


def handle(event: dict[str, Any], context: LambdaContext) -> StreamedResponse | Answer:
    """The function's handler. Answers with an error as long as the environment is not complete."""
    try:
        answer, journal, streaming = api().handle, api().journal, api().settings.streaming
    except SettingsError as error:
        answer, journal, streaming = _without_settings(error), None, os.environ.get("STREAMING") == "on"
    if not streaming:
        return buffered(answer, event, context)
    closing = ExitStack()
    try:
        metadata = answer(event, context, closing)
    except BaseException:
        closing.close()
        raise
    return streamed(metadata, closing, is_head=event["httpMethod"] == "HEAD", journal=journal)


def streamed(answer: Answer, closing: ExitStack, *, is_head: bool, journal: Journal | None) -> StreamedResponse:
    """The answer in the form that the streaming runtime sends."""
    body = answer.pop("body") or ""
    del answer["isBase64Encoded"]
    if isinstance(body, str):
        content = body.encode()
        answer["multiValueHeaders"]["Content-Length"] = [str(len(content))]
        body = iter([content])

    (generation_id,) = answer["multiValueHeaders"].get("x-generation-id", [""])

    def finish(broken: Exception | None) -> None:
        if broken is not None and journal is not None:
            journal.broke_off(redacted_traceback(broken), generation_id=generation_id)
        closing.close()

    return StreamedResponse(answer, iter(()) if is_head else body, finish)


def _without_settings(error: SettingsError) -> Handler:
    def refuse(*_: Any) -> Any:
        raise error

    middleware = ApiMiddleware(logger, cors_origin="", public_base_url="")
    return http_handler([], [*middleware.chain, refuse])
