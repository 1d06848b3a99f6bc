"""Wires the upstreams, and the worker that calls them."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import msgspec

from imagegen.aws.bucket import bucket_url
from imagegen.aws.image_store import S3ImageStore
from imagegen.aws.input_store import S3InputStore
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.bootstrap.inputs import input_store
from imagegen.bootstrap.records import Records
from imagegen.domain.configuration import Configuration
from imagegen.domain.deadline import Deadline
from imagegen.domain.generations import Generation
from imagegen.domain.models import MAX_IMAGES
from imagegen.domain.upstreams import Upstream
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import ImageConverter, ImageProvider
from imagegen.providers.first_party import first_party
from imagegen.providers.gemini_chat.models import PROVIDER as GEMINI_CHAT
from imagegen.providers.gemini_chat.provider import GeminiChatProvider
from imagegen.providers.ideogram.models import PROVIDER as IDEOGRAM
from imagegen.providers.ideogram.provider import IdeogramProvider
from imagegen.providers.kling.models import PROVIDER as KLING
from imagegen.providers.kling.provider import KlingProvider
from imagegen.providers.midjourney.models import PROVIDER as MIDJOURNEY
from imagegen.providers.midjourney.provider import MidjourneyProvider
from imagegen.providers.openai.models import PROVIDER as OPENAI
from imagegen.providers.openai.provider import OpenAIProvider
from imagegen.providers.upstream_api import Key, UpstreamApi
from imagegen.settings import (
    ImageSettings,
    RuntimeSettings,
    SettingsError,
    UpstreamSettings,
)
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.send_upstream_call import CallParts
from imagegen.usecases.upstream_routes import UpstreamAccess, UpstreamRoutes
from imagegen.usecases.upstream_slots import UpstreamLimits
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.answers import MAX_ANSWER_BYTES, base64_answer, base64_bytes

_PROVIDERS: Mapping[str, Callable[[UpstreamApi], ImageProvider]] = {
    OPENAI: OpenAIProvider,
    GEMINI_CHAT: GeminiChatProvider,
    IDEOGRAM: IdeogramProvider,
    KLING: KlingProvider,
    MIDJOURNEY: MidjourneyProvider,
}
SECRET_CACHE_SECONDS = 300  # a key that the upstream refuses is read again at once
_ANSWER_SECONDS = 60.0


def configured_upstreams(configuration: Configuration, settings: UpstreamSettings) -> Mapping[str, Upstream]:
    """The upstreams by name, with what the deployment sets. Raises SettingsError."""
    fields: dict[str, dict[str, str | int]] = {name: {} for name in configuration.upstreams}
    fields[configuration.default_upstream] = {"base_url": settings.upstream_base_url}
    for (name, field), value in settings.upstream_overrides.items():
        if name not in fields:
            raise SettingsError(f"UPSTREAM_OVERRIDES has {name!r}, which is no upstream in models.toml")
        fields[name][field] = value
    return {name: msgspec.structs.replace(each, **fields[name]) for name, each in configuration.upstreams.items()}


def _access(upstream: Upstream, settings: UpstreamSettings, http: HttpPool, secrets: SsmParameters) -> UpstreamAccess:
    parameter = f"{settings.upstream_keys_path}/{upstream.key}"
    return upstream_access(
        upstream,
        lambda fresh: secrets.get(parameter, fresh=fresh),
        http,
        timeout=settings.upstream_timeout_seconds,
        max_image_bytes=settings.max_image_bytes,
    )


def upstream_access(
    upstream: Upstream, key: Key, http: HttpPool, *, timeout: float, max_image_bytes: int
) -> UpstreamAccess:
    """`timeout` is in seconds, of a call to an upstream that has no `timeout_seconds`."""
    base_url, owner = upstream.base_url or "", first_party(upstream.base_url or "")
    timeout = upstream.timeout_seconds or timeout
    api = UpstreamApi(
        http,
        base_url=base_url,
        is_reseller=owner is None and len(upstream.protocols) > 1,
        key=key,
        key_header=owner.key_header if owner else "Authorization",
        timeout=timeout,
        max_image_bytes=max_image_bytes,
        refunds_failed_tasks=upstream.refunds_failed_tasks,
    )
    return UpstreamAccess(
        providers={protocol: _PROVIDERS[protocol](api) for protocol in upstream.protocols},
        source=HttpImageSource(http, UrlGuard(base_url), max_bytes=max_image_bytes),
        has_key=api.has_key,
        call_seconds=timeout,
        owner=owner.owner if owner else None,
    )


def _image_store(http: HttpPool, runtime: RuntimeSettings, images: ImageSettings) -> S3ImageStore:
    return S3ImageStore(
        http,
        bucket_url=bucket_url(images.image_bucket, runtime.region, runtime.s3_endpoint_url),
        region=runtime.region,
        credentials=sdk.credentials,
        link_seconds=images.link_seconds,
    )


class Workers(msgspec.Struct, frozen=True, eq=False):
    """A worker with the upstreams that it calls, and the connections and the pool of threads that it uses."""

    worker: GenerationWorker
    routes: UpstreamRoutes
    images: S3ImageStore
    inputs: S3InputStore
    deletion: DeleteImages
    http: HttpPool
    pool: Executor


def generation_worker(
    records: Records,
    runtime: RuntimeSettings,
    stored_in: ImageSettings,
    upstream: UpstreamSettings,
    configuration: Configuration,
    *,
    streaming: bool,
    converter: Callable[[], ImageConverter] | None = None,
) -> Workers:
    """`converter` is needed for calls with input images. Raises SettingsError if the settings do not fit."""
    http = HttpPool()
    secrets = SsmParameters(sdk.ssm, cache_seconds=SECRET_CACHE_SECONDS)
    images, inputs = _image_store(http, runtime, stored_in), input_store(http, runtime, stored_in)
    deletion = DeleteImages(images, inputs)
    pool = ThreadPoolExecutor(MAX_IMAGES, thread_name_prefix="image")

    @contextmanager
    def large_answer(generation: Generation) -> Iterator[tuple[int, Iterator[bytes]] | None]:
        if streaming or base64_bytes(generation) <= MAX_ANSWER_BYTES:
            yield None
            return
        with base64_answer(generation, images, Deadline.after(_ANSWER_SECONDS)) as answer:
            yield answer

    upstreams = {
        name: _access(each, upstream, http, secrets)
        for name, each in configured_upstreams(configuration, upstream).items()
    }
    routes = UpstreamRoutes(upstreams, configuration.default_upstream)
    calling = CallParts(
        routes=routes,
        limits=UpstreamLimits(records.slots, records.queue),
        inputs=OpenInputs(inputs, converter),
        records=records.generations,
        journal=records.journal,
        repeat_unknown=upstream.repeat_unknown_calls,
        now=time.time,
    )
    worker = GenerationWorker(
        records=records.generations,
        queue=records.queue,
        images=images,
        runner=UpstreamRunner(calling, images, pool),
        publisher=records.publisher,
        deletion=deletion,
        large_answer=large_answer,
        journal=records.journal,
        now=time.time,
        lease=upstream.lease_seconds,
    )
    return Workers(worker, routes, images, inputs, deletion, http, pool)
