"""What each function is told by its environment, read once and checked as a whole."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from imagegen.domain.models import CATALOG
from imagegen.outbound.web_address import read_web_address

T = TypeVar("T")


class SettingsError(Exception):
    """Names every variable that is missing or bad."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """What the runtime sets, under the SDK's own names. `s3_endpoint_url` is set where something stands in for AWS."""

    region: str
    s3_endpoint_url: str | None


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """What metrics are told with. `image_prices` are what an image of a model costs, in the deployer's currency."""

    image_prices: Mapping[str, float]
    stack_name: str


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where generations and images are kept. `record_days` is how long a record is.

    With `durable_urls` the `url` of an image is its durable link, else a presigned URL.
    """

    durable_urls: bool
    event_bus: str
    generation_queue_url: str
    generation_table: str
    image_bucket: str
    intake_queue_url: str
    link_seconds: int
    record_days: int


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """How the image models' API is called. `lease_seconds` is how long a claim holds without a heartbeat."""

    lease_seconds: int
    max_image_bytes: int
    repeat_unknown_calls: bool
    upstream_api_key_parameter: str
    upstream_base_url: str
    upstream_timeout_seconds: int


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`model_aliases` are further names of models, each with the model's own.

    `public_base_url` is empty where the address that a request came to is the public one.

    `cors_origin` is the one web origin whose pages may call, or `*`.

    `wait_seconds` is how long a request may wait; at most `most_waiters` do at once.
    """

    runtime: RuntimeSettings
    journal: JournalSettings
    store: StoreSettings
    upstream: UpstreamSettings
    api_is_first_worker: bool
    cors_origin: str
    images_per_client_per_day: int
    images_per_day: int
    most_waiters: int
    model_aliases: Mapping[str, str]
    prompt_max_characters: int
    public_base_url: str
    wait_seconds: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                store=_store(read),
                upstream=_upstream(read),
                api_is_first_worker=read("API_IS_FIRST_WORKER", _flag),
                cors_origin=read("CORS_ORIGIN", _text),
                images_per_client_per_day=read("IMAGES_PER_CLIENT_PER_DAY", _integer(0, 1_000_000_000)),
                images_per_day=read("IMAGES_PER_DAY", _integer(0, 1_000_000_000)),
                most_waiters=read("MOST_WAITERS", _integer(0, 10_000)),
                model_aliases=read("MODEL_ALIASES", _aliases, default=""),
                prompt_max_characters=read("PROMPT_MAX_CHARACTERS", _integer(1, 32_000)),
                public_base_url=read("PUBLIC_BASE_URL", lambda text: _http_url(text) if text else "", default=""),
                wait_seconds=read("WAIT_SECONDS", _integer(0, 25)),
            )
        )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    runtime: RuntimeSettings
    journal: JournalSettings
    store: StoreSettings
    upstream: UpstreamSettings
    batch_generation_queue_url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                store=_store(read),
                upstream=_upstream(read),
                batch_generation_queue_url=read("BATCH_GENERATION_QUEUE_URL", _text),
            )
        )


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """`base_url` is the one that clients reach the API by, for absolute links: an event does not come to any."""

    runtime: RuntimeSettings
    journal: JournalSettings
    base_url: str
    batch_generation_queue_url: str
    clients_path: str
    durable_urls: bool
    event_bus: str
    generation_queue_url: str
    generation_table: str
    images_per_client_per_day: int
    images_per_day: int
    inbox_bucket: str
    intake_dead_letters_url: str
    intake_queue_url: str
    lease_seconds: int
    model_aliases: Mapping[str, str]
    prompt_max_characters: int
    record_days: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        return read.checked(
            lambda: cls(
                runtime=_runtime(read),
                journal=_journal(read),
                base_url=read("BASE_URL", _http_url),
                batch_generation_queue_url=read("BATCH_GENERATION_QUEUE_URL", _text),
                clients_path=read("CLIENTS_PATH", _path),
                durable_urls=read("DURABLE_URLS", _flag),
                event_bus=read("EVENT_BUS", _text),
                generation_queue_url=read("GENERATION_QUEUE_URL", _text),
                generation_table=read("GENERATION_TABLE", _text),
                images_per_client_per_day=read("IMAGES_PER_CLIENT_PER_DAY", _integer(0, 1_000_000_000)),
                images_per_day=read("IMAGES_PER_DAY", _integer(0, 1_000_000_000)),
                inbox_bucket=read("INBOX_BUCKET", _text),
                intake_dead_letters_url=read("INTAKE_DEAD_LETTERS_URL", _text),
                intake_queue_url=read("INTAKE_QUEUE_URL", _text),
                lease_seconds=read("LEASE_SECONDS", _integer(1, 60)),
                model_aliases=read("MODEL_ALIASES", _aliases, default=""),
                prompt_max_characters=read("PROMPT_MAX_CHARACTERS", _integer(1, 32_000)),
                record_days=read("RECORD_DAYS", _integer(1, 36_500)),
            )
        )


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """`image_origin` is the web origin that a link to an image leads to.

    `cors_origin`, `prompt_max_characters` and `public_base_url` are those of the api function.
    """

    cors_origin: str
    image_origin: str
    prompt_max_characters: int
    public_base_url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        read = _Reader(environ)
        stand_in = _endpoint(read)
        return read.checked(
            lambda: cls(
                cors_origin=read("CORS_ORIGIN", _text),
                image_origin=read("IMAGE_ORIGIN", lambda text: _origin(stand_in or text)),
                prompt_max_characters=read("PROMPT_MAX_CHARACTERS", _integer(1, 32_000)),
                public_base_url=read("PUBLIC_BASE_URL", lambda text: _http_url(text) if text else "", default=""),
            )
        )


@dataclass(frozen=True, slots=True)
class AuthorizerSettings:
    """`clients_path` is the parameter path under which each client has its record.

    `oidc_issuer` is empty where no tokens are accepted; `oidc_audience` is who they must be made for.
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
    """Reads variables and gathers what is wrong with them, so that all is told at once."""

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
        return None  # type: ignore[return-value]  # `checked` raises before anybody sees it

    def checked(self, make: Callable[[], T]) -> T:
        made = make()
        if self._wrong:
            raise SettingsError("; ".join(self._wrong))
        return made


def _runtime(read: _Reader) -> RuntimeSettings:
    return RuntimeSettings(region=read("AWS_REGION", _text), s3_endpoint_url=_endpoint(read))


def _endpoint(read: _Reader) -> str | None:
    """Where something stands in for S3."""
    return read("AWS_ENDPOINT_URL_S3", str, default="") or read("AWS_ENDPOINT_URL", str, default="") or None


def _journal(read: _Reader) -> JournalSettings:
    return JournalSettings(image_prices=read("IMAGE_PRICES", _prices, default=""), stack_name=read("STACK_NAME", _text))


def _store(read: _Reader) -> StoreSettings:
    return StoreSettings(
        durable_urls=read("DURABLE_URLS", _flag),
        event_bus=read("EVENT_BUS", _text),
        generation_queue_url=read("GENERATION_QUEUE_URL", _text),
        generation_table=read("GENERATION_TABLE", _text),
        image_bucket=read("IMAGE_BUCKET", _text),
        intake_queue_url=read("INTAKE_QUEUE_URL", _text),
        link_seconds=read("LINK_SECONDS", _integer(60, 604_800)),
        record_days=read("RECORD_DAYS", _integer(1, 36_500)),
    )


def _upstream(read: _Reader) -> UpstreamSettings:
    return UpstreamSettings(
        lease_seconds=read("LEASE_SECONDS", _integer(1, 60)),
        max_image_bytes=read("MAX_IMAGE_BYTES", _integer(1, 100 * 1024 * 1024)),
        repeat_unknown_calls=read("REPEAT_UNKNOWN_CALLS", _flag),
        upstream_api_key_parameter=read("UPSTREAM_API_KEY_PARAMETER", _text),
        upstream_base_url=read("UPSTREAM_BASE_URL", _http_url),
        upstream_timeout_seconds=read("UPSTREAM_TIMEOUT_SECONDS", _integer(1, 800)),
    )


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text == "true"


def _prices(text: str) -> Mapping[str, float]:
    """`<model>:<price>`, separated by commas."""
    prices = {}
    for each in text.split(",") if text else ():
        model, _, price = each.partition(":")
        if model not in CATALOG or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", price):
            raise ValueError(f"has {each[:64]!r}, which is not a model of ours, a colon and a price")
        prices[model] = float(price)
    return prices


def _aliases(text: str) -> Mapping[str, str]:
    """`<alias>=<model>`, separated by commas."""
    aliases = {}
    for each in text.split(",") if text else ():
        alias, _, model = each.partition("=")
        if model not in CATALOG or alias in CATALOG or not re.fullmatch(r"[\x21-\x7e]{1,64}", alias):
            raise ValueError(f"has {each[:64]!r}, which is not a name of no model, an equals sign and a known model")
        aliases[alias] = model
    return aliases


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
    """A base URL: a key travels with every call."""
    read_web_address(_text(text))
    return text.rstrip("/")


def _origin(text: str) -> str:
    """Scheme, host and port of a web address."""
    address = read_web_address(_text(text))
    return f"{address.scheme}://{address.netloc}"


def _issuer(text: str) -> str:
    """Exactly as it is given, since tokens must name it so; empty where there is none."""
    if text:
        read_web_address(text)
    return text
