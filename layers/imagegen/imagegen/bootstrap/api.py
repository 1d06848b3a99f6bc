"""What the api function works with."""

import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from imagegen.aws.s3 import S3ImageStore, bucket_url
from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.catalog import MAX_IMAGES
from imagegen.outbound.image_source import HttpImageSource
from imagegen.outbound.pool import HttpPool
from imagegen.outbound.url_guard import UrlGuard
from imagegen.ports import ImageProvider, ImageSource, ImageStore
from imagegen.providers.openai_compatible import OpenAICompatibleProvider
from imagegen.settings import ApiSettings

SECRET_CACHE_SECONDS = 300  # a key that the upstream refuses is read anew at once


@dataclass(frozen=True, slots=True)
class Api:
    settings: ApiSettings
    providers: Mapping[str, ImageProvider]  # by the catalog's name for the protocol
    source: ImageSource
    store: ImageStore
    pool: Executor


@cache
def api() -> Api:
    """Raises SettingsError where the environment lacks something."""
    settings = ApiSettings.from_env(os.environ)
    http = HttpPool()
    secrets = SsmParameters(sdk.ssm, cache_seconds=SECRET_CACHE_SECONDS)
    provider = OpenAICompatibleProvider(
        http,
        base_url=settings.upstream_base_url,
        key=lambda fresh: secrets.get(settings.upstream_api_key_parameter, fresh=fresh),
        timeout=settings.upstream_timeout_seconds,
        max_image_bytes=settings.max_image_bytes,
    )
    store = S3ImageStore(
        http,
        bucket_url=bucket_url(settings.image_bucket, settings.region, settings.s3_endpoint_url),
        region=settings.region,
        credentials=sdk.credentials,
        link_seconds=settings.link_seconds,
    )
    return Api(
        settings=settings,
        providers={"openai_compatible": provider},
        source=HttpImageSource(http, UrlGuard(settings.upstream_base_url), max_bytes=settings.max_image_bytes),
        store=store,
        pool=ThreadPoolExecutor(MAX_IMAGES, thread_name_prefix="image"),
    )
