"""Wires the store of input images."""

from imagegen.aws.bucket import bucket_url
from imagegen.aws.input_store import S3InputStore
from imagegen.bootstrap import sdk
from imagegen.outbound.pool import HttpPool
from imagegen.settings import ImageSettings, RuntimeSettings

UPLOAD_SECONDS = 3600  # to upload an image; a line of 1 Mbit/s takes seven minutes for 50 MB


def input_store(http: HttpPool, runtime: RuntimeSettings, images: ImageSettings) -> S3InputStore:
    return S3InputStore(
        http,
        bucket_url=bucket_url(images.image_bucket, runtime.region, runtime.s3_endpoint_url),
        region=runtime.region,
        credentials=sdk.credentials,
        upload_seconds=UPLOAD_SECONDS,
    )
