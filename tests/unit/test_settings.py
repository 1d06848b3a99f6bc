import re
from collections.abc import Callable
from typing import Any

import pytest

from imagegen.settings import (
    ApiSettings,
    AuthorizerSettings,
    IntakeSettings,
    JournalSettings,
    RuntimeSettings,
    SettingsError,
    SiteSettings,
    StoreSettings,
    UpstreamSettings,
    WorkerSettings,
)

BATCH_QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/batch-generations"
SHARED = {
    "AWS_REGION": "eu-central-1",
    "DURABLE_URLS": "true",
    "EVENT_BUS": "images",
    "GENERATION_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/generations",
    "GENERATION_TABLE": "generations-123",
    "IMAGE_BUCKET": "images-123",
    "INTAKE_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/intake",
    "LEASE_SECONDS": "45",
    "LINK_SECONDS": "3600",
    "MAX_IMAGE_BYTES": "26214400",
    "RECORD_DAYS": "90",
    "REPEAT_UNKNOWN_CALLS": "true",
    "STACK_NAME": "images-dev",
    "UPSTREAM_API_KEY_PARAMETER": "/imagegen/upstream/key",
    "UPSTREAM_BASE_URL": "https://upstream.example/v1",
    "UPSTREAM_TIMEOUT_SECONDS": "100",
}
WORKER = SHARED | {"BATCH_GENERATION_QUEUE_URL": BATCH_QUEUE}
GOOD = SHARED | {
    "API_IS_FIRST_WORKER": "false",
    "CORS_ORIGIN": "*",
    "IMAGES_PER_CLIENT_PER_DAY": "200",
    "IMAGES_PER_DAY": "1000",
    "MOST_WAITERS": "50",
    "PROMPT_MAX_CHARACTERS": "1000",
    "PUBLIC_BASE_URL": "https://images.example/prod",
    "WAIT_SECONDS": "20",
}
REQUIRED = sorted(GOOD.keys() - {"PUBLIC_BASE_URL"})
URLS = ["PUBLIC_BASE_URL", "UPSTREAM_BASE_URL"]
FLAGS = ["API_IS_FIRST_WORKER", "DURABLE_URLS", "REPEAT_UNKNOWN_CALLS"]
BOUNDS = [
    ("LEASE_SECONDS", 1, 60),
    ("LINK_SECONDS", 60, 604_800),
    ("MAX_IMAGE_BYTES", 1, 104_857_600),
    ("IMAGES_PER_CLIENT_PER_DAY", 0, 1_000_000_000),
    ("IMAGES_PER_DAY", 0, 1_000_000_000),
    ("MOST_WAITERS", 0, 10_000),
    ("PROMPT_MAX_CHARACTERS", 1, 32_000),
    ("RECORD_DAYS", 1, 36_500),
    ("UPSTREAM_TIMEOUT_SECONDS", 1, 800),
    ("WAIT_SECONDS", 0, 25),
]
RUNTIME = RuntimeSettings(region="eu-central-1", s3_endpoint_url=None)
JOURNAL = JournalSettings(image_prices={}, stack_name="images-dev")
STORE = StoreSettings(
    durable_urls=True,
    event_bus="images",
    generation_queue_url="https://sqs.eu-central-1.amazonaws.com/123456789012/generations",
    generation_table="generations-123",
    image_bucket="images-123",
    intake_queue_url="https://sqs.eu-central-1.amazonaws.com/123456789012/intake",
    link_seconds=3600,
    record_days=90,
)
UPSTREAM = UpstreamSettings(
    lease_seconds=45,
    max_image_bytes=26_214_400,
    repeat_unknown_calls=True,
    upstream_api_key_parameter="/imagegen/upstream/key",
    upstream_base_url="https://upstream.example/v1",
    upstream_timeout_seconds=100,
)

FromEnv = Callable[[dict[str, str]], object]


def what_is_wrong(environ: dict[str, str], from_env: FromEnv = ApiSettings.from_env) -> str:
    with pytest.raises(SettingsError) as error:
        from_env(environ)
    return str(error.value)


def setting(name: str, environ: dict[str, str]) -> Any:
    """What the api function reads from a variable, wherever it keeps it."""
    settings = ApiSettings.from_env(environ)
    [owner] = [
        part for part in (settings, settings.runtime, settings.store, settings.upstream) if hasattr(part, name.lower())
    ]
    return getattr(owner, name.lower())


def test_a_good_environment_is_read() -> None:
    assert ApiSettings.from_env(GOOD | {"PATH": "/usr/bin", "UNRELATED": ""}) == ApiSettings(
        runtime=RUNTIME,
        journal=JOURNAL,
        store=STORE,
        upstream=UPSTREAM,
        api_is_first_worker=False,
        cors_origin="*",
        images_per_client_per_day=200,
        images_per_day=1000,
        most_waiters=50,
        model_aliases={},
        prompt_max_characters=1000,
        public_base_url="https://images.example/prod",
        wait_seconds=20,
    )


def test_a_worker_reads_no_more_than_it_works_with() -> None:
    assert WorkerSettings.from_env(WORKER) == WorkerSettings(RUNTIME, JOURNAL, STORE, UPSTREAM, BATCH_QUEUE)


INTAKE = {
    "AWS_REGION": "eu-central-1",
    "BASE_URL": "https://images.example/prod/",
    "BATCH_GENERATION_QUEUE_URL": BATCH_QUEUE,
    "CLIENTS_PATH": "/imagegen/clients",
    "DURABLE_URLS": "false",
    "EVENT_BUS": "images",
    "GENERATION_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/generations",
    "GENERATION_TABLE": "generations-123",
    "IMAGES_PER_CLIENT_PER_DAY": "200",
    "IMAGES_PER_DAY": "1000",
    "INBOX_BUCKET": "inbox-123",
    "INTAKE_DEAD_LETTERS_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/dead",
    "INTAKE_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/intake",
    "LEASE_SECONDS": "45",
    "PROMPT_MAX_CHARACTERS": "1000",
    "RECORD_DAYS": "90",
    "STACK_NAME": "images-dev",
}


def test_an_intake_reads_no_more_than_it_works_with() -> None:
    assert IntakeSettings.from_env(INTAKE) == IntakeSettings(
        runtime=RUNTIME,
        journal=JOURNAL,
        base_url="https://images.example/prod",
        batch_generation_queue_url=BATCH_QUEUE,
        clients_path="/imagegen/clients",
        durable_urls=False,
        event_bus="images",
        generation_queue_url="https://sqs.eu-central-1.amazonaws.com/123456789012/generations",
        generation_table="generations-123",
        images_per_client_per_day=200,
        images_per_day=1000,
        inbox_bucket="inbox-123",
        intake_dead_letters_url="https://sqs.eu-central-1.amazonaws.com/123456789012/dead",
        intake_queue_url="https://sqs.eu-central-1.amazonaws.com/123456789012/intake",
        lease_seconds=45,
        model_aliases={},
        prompt_max_characters=1000,
        record_days=90,
    )


def test_all_that_an_intake_misses_is_told_at_once() -> None:
    told = what_is_wrong({}, IntakeSettings.from_env).split("; ")
    assert sorted(told) == [f"{name} is missing" for name in sorted(INTAKE)]


SITE = {
    "CORS_ORIGIN": "*",
    "IMAGE_ORIGIN": "https://images-123.s3.eu-central-1.amazonaws.com",
    "PROMPT_MAX_CHARACTERS": "1000",
    "PUBLIC_BASE_URL": "https://images.example/prod",
}


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ({}, "https://images-123.s3.eu-central-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:5000/"}, "http://127.0.0.1:5000"),
    ],
)
def test_a_site_shows_images_from_where_they_are(endpoint: dict[str, str], origin: str) -> None:
    assert SiteSettings.from_env(SITE | endpoint) == SiteSettings(
        cors_origin="*",
        image_origin=origin,
        prompt_max_characters=1000,
        public_base_url="https://images.example/prod",
    )


@pytest.mark.parametrize("origin", ["*", "https://a.example; script-src *", "http://images.example", "data:"])
def test_a_site_takes_no_origin_that_would_loosen_its_policy(origin: str) -> None:
    assert what_is_wrong(SITE | {"IMAGE_ORIGIN": origin}, SiteSettings.from_env).startswith("IMAGE_ORIGIN ")


@pytest.mark.parametrize("name", sorted(WORKER))
def test_what_a_worker_misses_is_named(name: str) -> None:
    environ = {key: value for key, value in WORKER.items() if key != name}
    assert what_is_wrong(environ, WorkerSettings.from_env) == f"{name} is missing"


def test_all_that_a_worker_misses_is_told_at_once() -> None:
    told = what_is_wrong({}, WorkerSettings.from_env).split("; ")
    assert sorted(told) == [f"{name} is missing" for name in sorted(WORKER)]


def test_aliases_are_names_of_models() -> None:
    text = "openai/gpt-image-1=gpt-image-1,dalle=dall-e-3"
    aliases = {"openai/gpt-image-1": "gpt-image-1", "dalle": "dall-e-3"}
    assert ApiSettings.from_env(GOOD | {"MODEL_ALIASES": text}).model_aliases == aliases
    assert IntakeSettings.from_env(INTAKE | {"MODEL_ALIASES": text}).model_aliases == aliases
    for wrong in (
        "x",
        "x=",
        "x=dall-e-9",
        "=dall-e-3",
        "a b=dall-e-3",
        f"{'x' * 65}=dall-e-3",
        "x=dall-e-3,",
        "dall-e-2=dall-e-3",
    ):
        assert what_is_wrong(GOOD | {"MODEL_ALIASES": wrong}).startswith("MODEL_ALIASES has '")


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        ("", {}),
        ("dall-e-3:0.04", {"dall-e-3": 0.04}),
        ("dall-e-3:0.04,flux-pro-1.1:0,gpt-image-1:12", {"dall-e-3": 0.04, "flux-pro-1.1": 0, "gpt-image-1": 12}),
    ],
)
def test_prices_are_by_model(text: str, prices: dict[str, float]) -> None:
    for environ, from_env in ((GOOD, ApiSettings.from_env), (WORKER, WorkerSettings.from_env)):
        assert from_env(environ | {"IMAGE_PRICES": text}).journal.image_prices == prices
    assert IntakeSettings.from_env(INTAKE | {"IMAGE_PRICES": text}).journal.image_prices == prices


@pytest.mark.parametrize(
    "text",
    [
        "dall-e-3",
        "dall-e-3:",
        "dall-e-3:1e3",
        "dall-e-3:-1",
        "dall-e-9:1",
        ":1",
        ",",
        "dall-e-3:1,",
        "dall-e-3: 1",
        "{}",
    ],
)
def test_what_is_no_price_of_a_model_of_ours_is_named(text: str) -> None:
    assert what_is_wrong(GOOD | {"IMAGE_PRICES": text}).startswith("IMAGE_PRICES has '")


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_a_flag_is_true_or_false(name: str, text: str, value: bool) -> None:
    assert setting(name, GOOD | {name: text}) is value


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("text", ["", " ", "True", "FALSE", "1", "0", "yes", "no", " true", "true\n", "truefalse"])
def test_what_is_no_flag_is_named(name: str, text: str) -> None:
    assert what_is_wrong(GOOD | {name: text}) == f"{name} is neither true nor false"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_named(name: str) -> None:
    assert what_is_wrong({key: value for key, value in GOOD.items() if key != name}) == f"{name} is missing"


@pytest.mark.parametrize("name", REQUIRED)
def test_an_empty_variable_is_named(name: str) -> None:
    wrong = what_is_wrong(GOOD | {name: ""})
    assert wrong.startswith(f"{name} is ")
    assert ";" not in wrong


@pytest.mark.parametrize("environ", [{}, {"PUBLIC_BASE_URL": ""}, dict.fromkeys(REQUIRED, " ")])
def test_all_that_is_wrong_is_told_at_once(environ: dict[str, str]) -> None:
    assert sorted(part.split()[0] for part in what_is_wrong(environ).split("; ")) == REQUIRED


def test_what_is_missing_and_what_is_bad_are_told_together() -> None:
    environ = GOOD | {"LINK_SECONDS": "an hour", "PUBLIC_BASE_URL": "ftp://images.example"}
    del environ["IMAGE_BUCKET"]
    assert sorted(what_is_wrong(environ).split("; ")) == [
        "IMAGE_BUCKET is missing",
        "LINK_SECONDS is not a whole number from 60 to 604800",
        "PUBLIC_BASE_URL is not an http or https URL",
    ]


@pytest.mark.parametrize(("name", "least", "most"), BOUNDS)
def test_a_number_may_be_the_least_and_the_most(name: str, least: int, most: int) -> None:
    for number in (least, most):
        assert setting(name, GOOD | {name: str(number)}) == number


@pytest.mark.parametrize(("name", "least", "most"), BOUNDS)
def test_a_number_out_of_bounds_is_named_with_its_bounds(name: str, least: int, most: int) -> None:
    for number in (least - 1, most + 1, -1, 10**15):
        assert what_is_wrong(GOOD | {name: str(number)}) == f"{name} is not a whole number from {least} to {most}"


@pytest.mark.parametrize(("name", "least", "most"), BOUNDS)
@pytest.mark.parametrize("text", [" ", "many", "1e2", "100.0", "+100", "-100", " 100", "100 ", "100\n", "1_00", "0x64"])
def test_what_is_no_plain_whole_number_is_named(name: str, least: int, most: int, text: str) -> None:
    assert what_is_wrong(GOOD | {name: text}) == f"{name} is not a whole number from {least} to {most}"


@pytest.mark.parametrize(
    "host",
    [
        "upstream.example",
        "169.254.169.254",
        "10.0.0.1",
        "0.0.0.0",
        "[2001:db8::1]",
        "localhost.example",
        "127.0.0.1.example",
        "notlocalhost",
    ],
)
@pytest.mark.parametrize("name", URLS)
def test_plain_http_to_another_machine_is_refused(name: str, host: str) -> None:
    assert what_is_wrong(GOOD | {name: f"http://{host}/v1"}) == f"{name} is plain http to another machine"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "localhost", "LOCALHOST:80", "[::1]:8000"]
)
@pytest.mark.parametrize("name", URLS)
def test_plain_http_to_this_machine_is_allowed(name: str, host: str) -> None:
    assert setting(name, GOOD | {name: f"http://{host}/v1"}) == f"http://{host}/v1"


@pytest.mark.parametrize("userinfo", ["user:hush@", "user@", ":hush@", "@", ":@"])
@pytest.mark.parametrize("name", URLS)
def test_credentials_in_a_url_are_refused_and_not_repeated(name: str, userinfo: str) -> None:
    wrong = what_is_wrong(GOOD | {name: f"https://{userinfo}upstream.example/v1"})
    assert wrong == f"{name} carries a query, a fragment or credentials"


@pytest.mark.parametrize("end", ["?key=hush", "#hush"])
@pytest.mark.parametrize("name", URLS)
def test_a_query_or_a_fragment_in_a_url_is_refused(name: str, end: str) -> None:
    wrong = what_is_wrong(GOOD | {name: f"https://upstream.example/v1{end}"})
    assert wrong == f"{name} carries a query, a fragment or credentials"


@pytest.mark.parametrize(
    "url", ["upstream.example/v1", "ftp://upstream.example", "file:///etc/passwd", "https://", "//x"]
)
@pytest.mark.parametrize("name", URLS)
def test_what_is_no_web_address_is_named(name: str, url: str) -> None:
    assert what_is_wrong(GOOD | {name: url}) == f"{name} is not an http or https URL"


@pytest.mark.parametrize(
    "url",
    [
        "https://upstream.example:https/v1",
        "https://upstream.example:99999/v1",
        "https://[::1/v1",
        "https://upstream.example/v1 ",
        "https://upstream.example/v1\n",
        "https://upstream .example/v1",
    ],
)
@pytest.mark.parametrize("name", URLS)
def test_a_web_address_that_nothing_can_connect_to_is_named(name: str, url: str) -> None:
    assert what_is_wrong(GOOD | {name: url}).startswith(f"{name} ")


@pytest.mark.parametrize("name", URLS)
def test_slashes_at_the_end_of_a_url_are_trimmed(name: str) -> None:
    for url, trimmed in {
        "https://upstream.example": "https://upstream.example",
        "https://upstream.example/": "https://upstream.example",
        "https://upstream.example/v1/": "https://upstream.example/v1",
        "https://upstream.example/v1//": "https://upstream.example/v1",
    }.items():
        assert setting(name, GOOD | {name: url}) == trimmed


@pytest.mark.parametrize("environ", [{}, {"PUBLIC_BASE_URL": ""}])
def test_a_service_may_have_no_public_address_of_its_own(environ: dict[str, str]) -> None:
    nameless = {key: value for key, value in GOOD.items() if key != "PUBLIC_BASE_URL"}
    assert ApiSettings.from_env(nameless | environ).public_base_url == ""


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:5000"}, "http://127.0.0.1:5000"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:5001"}, "http://127.0.0.1:5001"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:5000", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:5001"},
            "http://127.0.0.1:5001",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:5000", "AWS_ENDPOINT_URL_S3": ""}, "http://127.0.0.1:5000"),
    ],
)
def test_what_stands_in_for_s3_is_found_as_the_sdk_finds_it(environ: dict[str, str], endpoint: str | None) -> None:
    assert ApiSettings.from_env(GOOD | environ).runtime.s3_endpoint_url == endpoint
    assert WorkerSettings.from_env(WORKER | environ).runtime.s3_endpoint_url == endpoint


@pytest.mark.parametrize("path", ["/imagegen/prod/clients", "/imagegen/prod/clients/"])
def test_the_clients_path_is_read_without_a_slash_at_the_end(path: str) -> None:
    assert AuthorizerSettings.from_env({"CLIENTS_PATH": path}).clients_path == "/imagegen/prod/clients"


@pytest.mark.parametrize(
    ("environ", "wrong"),
    [
        ({}, "CLIENTS_PATH is missing"),
        ({"CLIENTS_PATH": ""}, "CLIENTS_PATH is empty"),
        ({"CLIENTS_PATH": "  "}, "CLIENTS_PATH is empty"),
    ],
)
def test_an_authorizer_without_a_clients_path_names_it(environ: dict[str, str], wrong: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(wrong)}$"):
        AuthorizerSettings.from_env(environ)


ISSUER = "https://login.example/tenant"


def authorizer(**environ: str) -> AuthorizerSettings:
    return AuthorizerSettings.from_env({"CLIENTS_PATH": "/clients", **environ})


@pytest.mark.parametrize("environ", [{}, {"OIDC_ISSUER": "", "OIDC_AUDIENCE": ""}])
def test_without_an_issuer_no_tokens_are_accepted(environ: dict[str, str]) -> None:
    assert authorizer(**environ) == AuthorizerSettings("/clients", oidc_audience="", oidc_issuer="")


@pytest.mark.parametrize("issuer", [ISSUER, f"{ISSUER}/", "https://login.example", "http://127.0.0.1:9000/"])
def test_an_issuer_is_taken_exactly_as_it_is_given(issuer: str) -> None:
    settings = authorizer(OIDC_ISSUER=issuer, OIDC_AUDIENCE="imagegen")
    assert (settings.oidc_issuer, settings.oidc_audience) == (issuer, "imagegen")


@pytest.mark.parametrize("environ", [{}, {"OIDC_AUDIENCE": ""}, {"OIDC_AUDIENCE": " "}])
def test_an_issuer_without_an_audience_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^OIDC_AUDIENCE is empty$"):
        authorizer(OIDC_ISSUER=ISSUER, **environ)


@pytest.mark.parametrize(
    "issuer",
    [
        " ",
        "login.example",
        "ftp://login.example",
        "https://",
        "https://user:hush@login.example",
        f"{ISSUER}?tenant=1",
        f"{ISSUER}#x",
        "http://login.example",
        "http://10.0.0.1",
        f"{ISSUER}\n",
        "https://login.example:0",
        "https://login.example:port",
    ],
)
def test_what_is_no_issuer_is_named_and_not_repeated(issuer: str) -> None:
    with pytest.raises(SettingsError, match=r"^OIDC_ISSUER ") as error:
        authorizer(OIDC_ISSUER=issuer, OIDC_AUDIENCE="imagegen")
    assert "hush" not in str(error.value)
