"""Wires the stores of input images and files."""

from imagegen.aws.bucket import S3Bucket, bucket_url
from imagegen.aws.files import S3FileContents
from imagegen.aws.input_store import S3InputStore
from imagegen.bootstrap import sdk
from imagegen.outbound.pool import HttpPool
from imagegen.settings import FileSettings, ImageSettings, RuntimeSettings

UPLOAD_SECONDS = 3600  # to upload an image or a file; a line of 1 Mbit/s takes half an hour for 200 MB


def input_store(http: HttpPool, runtime: RuntimeSettings, images: ImageSettings) -> S3InputStore:
    return S3InputStore(
        http,
        bucket_url=bucket_url(images.image_bucket, runtime.region, runtime.s3_endpoint_url),
        region=runtime.region,
        credentials=sdk.credentials,
        upload_seconds=UPLOAD_SECONDS,
    )


def file_contents(
    http: HttpPool, runtime: RuntimeSettings, images: ImageSettings, files: FileSettings
) -> S3FileContents:
    def bucket(name: str) -> S3Bucket:
        url = bucket_url(name, runtime.region, runtime.s3_endpoint_url)
        return S3Bucket(http, url=url, region=runtime.region, credentials=sdk.credentials)

    return S3FileContents(
        inbox=bucket(files.inbox_bucket),
        images=bucket(images.image_bucket),
        link_seconds=images.link_seconds,
        upload_seconds=UPLOAD_SECONDS,
    )
