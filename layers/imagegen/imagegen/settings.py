"""Reads the settings of each function from its environment, and checks them together."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from imagegen.domain.queues import WorkQueue
from imagegen.domain.upstreams import MOST_UPSTREAM_SECONDS
from imagegen.outbound.web_address import read_web_address

T = TypeVar("T")

# Below API Gateway's 300 s without a byte, and 29 s for a buffered answer (API Gateway developer guide, "Stream the
# integration response ..." and "Quotas for configuring and running a REST API in API Gateway").
LONGEST_WAIT_SECONDS = 270
_LONGEST_BUFFERED_WAIT_SECONDS = 25


class SettingsError(Exception):
    """Raised with a message that names every missing or invalid variable."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The variables that the runtime sets. `s3_endpoint_url` is the address of a stand-in for S3, `None` for AWS."""

    region: str
    s3_endpoint_url: str | None


@dataclass(frozen=True, slots=True)
class JournalSettings:
    stack_name: str


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The places of records, messages and events. Lines of batches and polls have queues of their own.

    A record is kept for `record_days`. With `durable_urls`, the `url` of an image is its durable link, otherwise a
    presigned URL.
    """

    batch_generation_queue_url: str
    durable_urls: bool
    event_bus: str
    generation_queue_url: str
    generation_table: str
    intake_queue_url: str
    poll_queue_url: str
    record_days: int

    @property
    def generation_queues(self) -> Mapping[WorkQueue, str]:
        """The URLs of the queues of generations' messages."""
        return {
            "requests": self.generation_queue_url,
            "lines": self.batch_generation_queue_url,
            "polls": self.poll_queue_url,
        }


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """`link_seconds` is how long a presigned URL is valid."""

    image_bucket: str
    link_seconds: int


@dataclass(frozen=True, slots=True)
class FileSettings:
    """A file that came or goes over HTTP is kept for `input_retention_days`. Others are in the inbox."""

    inbox_bucket: str
    input_retention_days: int


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    images_per_client_per_day: int
    images_per_day: int


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The settings of upstream calls. A claim is valid for `lease_seconds` without renewal.

    `upstream_base_url` is that of the default upstream. The keys of all upstreams are SSM parameters below
    `upstream_keys_path`. `upstream_overrides` are values of `Upstream`, by the upstream's name and the field.
    `upstream_timeout_seconds` is the limit of one call to an upstream without one of its own.
    """

    lease_seconds: int
    max_image_bytes: int
    repeat_unknown_calls: bool
    upstream_base_url: str
    upstream_keys_path: str
    upstream_overrides: Mapping[tuple[str, str], str | int]
    upstream_timeout_seconds: int


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`public_base_url` is empty if a request's own address is the public one.

    `cors_origin` is the one web origin whose pages may call, or `*`.

    `batch_window_seconds` is how long lines of a batch may begin.

    `wait_seconds` is how long a request may wait; at most `most_waiters` wait at once, and of one caller at most
    `caller_share_of_waiters` per cent of them. `streaming` is whether the function streams its answers.
    """

    runtime: RuntimeSettings
    journal: JournalSettings
    store: StoreSettings
    images: ImageSettings
    files: FileSettings
    quota: QuotaSettings
    upstream: UpstreamSettings
    api_is_first_worker: bool
    batch_window_seconds: int
    cors_origin: str
    caller_share_of_waiters: int
    disabled_models: frozenset[str]
    most_waiters: int
    public_base_url: str
    streaming: bool
    wait_seconds: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        streaming = read("STREAMING", _on_or_off)
        longest_wait = LONGEST_WAIT_SECONDS if streaming else _LONGEST_BUFFERED_WAIT_SECONDS
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                store=_store(read),
                images=_images(read),
                files=_files(read),
                quota=_quota(read),
                upstream=_upstream(read),
                batch_window_seconds=read("BATCH_WINDOW_SECONDS", _integer(1, 86_400)),
                api_is_first_worker=read("API_IS_FIRST_WORKER", _flag),
                cors_origin=read("CORS_ORIGIN", _text),
                caller_share_of_waiters=read("CALLER_SHARE_OF_WAITERS", _integer(1, 100)),
                most_waiters=read("MOST_WAITERS", _integer(1, 10_000)),
                disabled_models=read("DISABLED_MODELS", _names, default=""),
                public_base_url=read("PUBLIC_BASE_URL", lambda text: _http_url(text) if text else "", default=""),
                streaming=streaming,
                wait_seconds=min(longest_wait, read("WAIT_SECONDS", _integer(0, LONGEST_WAIT_SECONDS)) or 0),
            )
        )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`streaming` is that of the api function."""

    runtime: RuntimeSettings
    journal: JournalSettings
    store: StoreSettings
    images: ImageSettings
    upstream: UpstreamSettings
    streaming: bool

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                store=_store(read),
                images=_images(read),
                upstream=_upstream(read),
                streaming=read("STREAMING", _on_or_off),
            )
        )


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """`base_url` is the address of the API, for absolute links: an event has no address of its own.

    `event_image_buckets` are the buckets whose objects an event may name as input images. With
    `batch_waits_for_quota`, a line of a batch that exceeds a quota begins later, else it fails.
    """

    runtime: RuntimeSettings
    journal: JournalSettings
    store: StoreSettings
    quota: QuotaSettings
    images: ImageSettings
    files: FileSettings
    base_url: str
    batch_waits_for_quota: bool
    clients_path: str
    disabled_models: frozenset[str]
    event_image_buckets: frozenset[str]
    intake_dead_letters_url: str
    lease_seconds: int
    upstream_base_url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                store=_store(read),
                quota=_quota(read),
                images=_images(read),
                base_url=read("BASE_URL", _http_url),
                clients_path=read("CLIENTS_PATH", _path),
                files=_files(read),
                batch_waits_for_quota=read("BATCH_WAITS_FOR_QUOTA", _flag),
                intake_dead_letters_url=read("INTAKE_DEAD_LETTERS_URL", _text),
                lease_seconds=read("LEASE_SECONDS", _integer(1, 60)),
                disabled_models=read("DISABLED_MODELS", _names, default=""),
                event_image_buckets=read("EVENT_IMAGE_BUCKET_ARNS", _buckets, default=""),
                upstream_base_url=read("UPSTREAM_BASE_URL", _http_url),
            )
        )


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """`image_origin` is the web origin that a durable link redirects to.

    `cors_origin`, `disabled_models` and `public_base_url` are those of the api function.
    """

    cors_origin: str
    disabled_models: frozenset[str]
    image_origin: str
    public_base_url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        stand_in = _endpoint(read)
        return read.checked(
            lambda: cls(
                cors_origin=read("CORS_ORIGIN", _text),
                image_origin=read("IMAGE_ORIGIN", lambda text: _origin(stand_in or text)),
                disabled_models=read("DISABLED_MODELS", _names, default=""),
                public_base_url=read("PUBLIC_BASE_URL", lambda text: _http_url(text) if text else "", default=""),
            )
        )


@dataclass(frozen=True, slots=True)
class AuthorizerSettings:
    """`clients_path` is the parameter path of the callers' records.

    `oidc_issuer` is empty if no tokens are accepted. `oidc_audience` is the audience that tokens must have.
    """

    clients_path: str
    oidc_audience: str
    oidc_issuer: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        issuer = read("OIDC_ISSUER", _issuer, default="")
        return read.checked(
            lambda: cls(
                clients_path=read("CLIENTS_PATH", _path),
                oidc_audience=read("OIDC_AUDIENCE", _text if issuer else str, default=""),
                oidc_issuer=issuer,
            )
        )


class _Reader:
    """Reads variables and collects the names of those that are missing or invalid."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._wrong: list[str] = []

    def __call__(self, name: str, parse: Callable[[str], T], *, default: str | None = None) -> T:
        text = self._environ.get(name, default)
        if text is None:
            self._wrong.append(f"{name} is missing")
        else:
            try:
                return parse(text)
            except ValueError as error:
                self._wrong.append(f"{name} {error}")
        return None  # type: ignore[return-value]  # `checked` raises before it is used

    def checked(self, make: Callable[[], T]) -> T:
        made = make()
        if self._wrong:
            raise SettingsError("; ".join(self._wrong))
        return made


def _runtime(read: _Reader) -> RuntimeSettings:
    return RuntimeSettings(region=read("AWS_REGION", _text), s3_endpoint_url=_endpoint(read))


def _endpoint(read: _Reader) -> str | None:
    """Returns the address of a stand-in for S3, if there is one."""
    return read("AWS_ENDPOINT_URL_S3", str, default="") or read("AWS_ENDPOINT_URL", str, default="") or None


def _journal(read: _Reader) -> JournalSettings:
    return JournalSettings(stack_name=read("STACK_NAME", _text))


def _store(read: _Reader) -> StoreSettings:
    return StoreSettings(
        batch_generation_queue_url=read("BATCH_GENERATION_QUEUE_URL", _text),
        durable_urls=read("DURABLE_URLS", _flag),
        event_bus=read("EVENT_BUS", _text),
        generation_queue_url=read("GENERATION_QUEUE_URL", _text),
        generation_table=read("GENERATION_TABLE", _text),
        intake_queue_url=read("INTAKE_QUEUE_URL", _text),
        poll_queue_url=read("POLL_QUEUE_URL", _text),
        record_days=read("RECORD_DAYS", _integer(1, 36_500)),
    )


def _images(read: _Reader) -> ImageSettings:
    return ImageSettings(
        image_bucket=read("IMAGE_BUCKET", _text),
        # At most seven days (S3 API reference, "Authenticating Requests: Using Query Parameters").
        link_seconds=read("LINK_SECONDS", _integer(60, 604_800)),
    )


def _files(read: _Reader) -> FileSettings:
    return FileSettings(
        inbox_bucket=read("INBOX_BUCKET", _text),
        input_retention_days=read("INPUT_RETENTION_DAYS", _integer(1, 36_500)),
    )


def _quota(read: _Reader) -> QuotaSettings:
    return QuotaSettings(
        images_per_client_per_day=read("IMAGES_PER_CLIENT_PER_DAY", _integer(0, 1_000_000_000)),
        images_per_day=read("IMAGES_PER_DAY", _integer(0, 1_000_000_000)),
    )


def _upstream(read: _Reader) -> UpstreamSettings:
    return UpstreamSettings(
        lease_seconds=read("LEASE_SECONDS", _integer(1, 60)),
        max_image_bytes=read("MAX_IMAGE_BYTES", _integer(1, 100 * 1024 * 1024)),
        repeat_unknown_calls=read("REPEAT_UNKNOWN_CALLS", _flag),
        upstream_base_url=read("UPSTREAM_BASE_URL", _http_url),
        upstream_keys_path=read("UPSTREAM_KEYS_PATH", _path),
        upstream_overrides=read("UPSTREAM_OVERRIDES", _overrides, default=""),
        upstream_timeout_seconds=read("UPSTREAM_TIMEOUT_SECONDS", _integer(1, MOST_UPSTREAM_SECONDS)),
    )


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("is neither on nor off")
    return text == "on"


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text == "true"


def _names(text: str) -> frozenset[str]:
    """Reads names, separated by commas."""
    return frozenset(filter(None, text.split(",")))


def _buckets(text: str) -> frozenset[str]:
    """Reads the names of buckets from their ARNs."""
    return frozenset(arn.rpartition(":")[2] for arn in _names(text))


def _overrides(text: str) -> Mapping[tuple[str, str], str | int]:
    """Reads `<upstream>.<field>=<value>` pairs, separated by commas."""
    overrides: dict[tuple[str, str], str | int] = {}
    for each in text.split(",") if text else ():
        name, _, value = each.partition("=")
        upstream, _, field = name.partition(".")
        if field == "base_url":
            overrides[upstream, field] = _http_url(value)
        elif field == "timeout_seconds":
            overrides[upstream, field] = _integer(1, MOST_UPSTREAM_SECONDS)(value)
        else:
            raise ValueError(f"has {name[:64]!r}, which is not UPSTREAM.base_url or UPSTREAM.timeout_seconds")
    return overrides


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _path(text: str) -> str:
    return _text(text).rstrip("/")


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _http_url(text: str) -> str:
    """Reads a base URL. It must be trusted, because every call carries a key."""
    read_web_address(_text(text))
    return text.rstrip("/")


def _origin(text: str) -> str:
    """Returns scheme, host and port of a web address."""
    address = read_web_address(_text(text))
    return f"{address.scheme}://{address.netloc}"


def _issuer(text: str) -> str:
    """Returns the issuer unchanged, because tokens must name it exactly so. Empty if there is none."""
    if text:
        read_web_address(text)
    return text
