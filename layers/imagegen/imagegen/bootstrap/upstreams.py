"""Wires the upstreams, and the worker that calls them."""

import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from imagegen.aws.bucket import bucket_url
from imagegen.aws.image_store import S3ImageStore
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.records import Records
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.models import MAX_IMAGES
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.providers.gemini_chat.models import PROVIDER as GEMINI_CHAT
from imagegen.providers.gemini_chat.provider import GeminiChatProvider
from imagegen.providers.ideogram.models import PROVIDER as IDEOGRAM
from imagegen.providers.ideogram.provider import IdeogramProvider
from imagegen.providers.openai.models import PROVIDER as OPENAI
from imagegen.providers.openai.provider import OpenAIProvider
from imagegen.providers.upstream_api import UpstreamApi
from imagegen.settings import (
    ImageSettings,
    RuntimeSettings,
    UpstreamSettings,
)
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.answers import MAX_ANSWER_BYTES, base64_answer, base64_bytes

SECRET_CACHE_SECONDS = 300  # a key that the upstream refuses is read again at once
_ANSWER_SECONDS = 60.0


def _image_store(http: HttpPool, runtime: RuntimeSettings, images: ImageSettings) -> S3ImageStore:
    return S3ImageStore(
        http,
        bucket_url=bucket_url(images.image_bucket, runtime.region, runtime.s3_endpoint_url),
        region=runtime.region,
        credentials=sdk.credentials,
        link_seconds=images.link_seconds,
    )


class Workers(msgspec.Struct, frozen=True, eq=False):
    """A worker, and the pool of threads that it uses."""

    worker: GenerationWorker
    images: S3ImageStore
    pool: Executor


def generation_worker(
    records: Records,
    runtime: RuntimeSettings,
    stored_in: ImageSettings,
    upstream: UpstreamSettings,
    *,
    streaming: bool,
) -> Workers:
    http = HttpPool()
    secrets = SsmParameters(sdk.ssm, cache_seconds=SECRET_CACHE_SECONDS)
    images = _image_store(http, runtime, stored_in)
    pool = ThreadPoolExecutor(MAX_IMAGES, thread_name_prefix="image")

    @contextmanager
    def large_answer(generation: Generation) -> Iterator[tuple[int, Iterator[bytes]] | None]:
        if streaming or base64_bytes(generation) <= MAX_ANSWER_BYTES:
            yield None
            return
        with base64_answer(generation, images, Deadline.after(_ANSWER_SECONDS)) as answer:
            yield answer

    api = UpstreamApi(
        http,
        base_url=upstream.upstream_base_url,
        key=lambda fresh: secrets.get(upstream.upstream_api_key_parameter, fresh=fresh),
        timeout=upstream.upstream_timeout_seconds,
        max_image_bytes=upstream.max_image_bytes,
    )
    runner = UpstreamRunner(
        providers={
            OPENAI: OpenAIProvider(api),
            GEMINI_CHAT: GeminiChatProvider(api),
            IDEOGRAM: IdeogramProvider(api),
        },
        source=HttpImageSource(http, UrlGuard(upstream.upstream_base_url), max_bytes=upstream.max_image_bytes),
        images=images,
        records=records.generations,
        journal=records.journal,
        pool=pool,
        repeat_unknown=upstream.repeat_unknown_calls,
        call_seconds=upstream.upstream_timeout_seconds,
        now=time.time,
    )
    worker = GenerationWorker(
        records=records.generations,
        queue=records.queue,
        images=images,
        runner=runner,
        publisher=records.publisher,
        deletion=DeleteImages(images),
        large_answer=large_answer,
        journal=records.journal,
        now=time.time,
        lease=upstream.lease_seconds,
    )
    return Workers(worker, images, pool)
