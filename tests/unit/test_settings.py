"""Each function reads its environment, and names missing and bad variables."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest

from imagegen.settings import (
    ApiSettings,
    AuthorizerSettings,
    IntakeSettings,
    SettingsError,
    SiteSettings,
    WorkerSettings,
)

URLS = ("PUBLIC_BASE_URL", "UPSTREAM_BASE_URL")
FLAGS = ("API_IS_FIRST_WORKER", "BATCH_WAITS_FOR_QUOTA", "DURABLE_URLS", "REPEAT_UNKNOWN_CALLS")
HERE = "http://[::1]"
BOUNDS = [
    ("BATCH_WINDOW_SECONDS", 1, 86_400),
    ("INPUT_RETENTION_DAYS", 1, 36_500),
    ("LEASE_SECONDS", 1, 60),
    ("LINK_SECONDS", 60, 604_800),
    ("MAX_IMAGE_BYTES", 1, 104_857_600),
    ("IMAGES_PER_CLIENT_PER_DAY", 0, 1_000_000_000),
    ("IMAGES_PER_DAY", 0, 1_000_000_000),
    ("CALLER_SHARE_OF_WAITERS", 1, 100),
    ("MOST_WAITERS", 1, 10_000),
    ("RECORD_DAYS", 1, 36_500),
    ("UPSTREAM_TIMEOUT_SECONDS", 1, 800),
    ("WAIT_SECONDS", 0, 270),
]


def only(names: str) -> dict[str, str]:
    """Variables with good values."""
    numbers = {name: str(most) for name, _, most in BOUNDS}
    urls = {name: f"https://{name.partition('_')[0].lower()}.example" for name in (*URLS, "BASE_URL", "IMAGE_ORIGIN")}
    special = numbers | urls | dict.fromkeys(FLAGS, "true") | {"STREAMING": "on"}
    return {name: special.get(name, f"/{name.lower()}") for name in names.upper().split()}


STORED = """aws_region batch_generation_queue_url durable_urls event_bus generation_queue_url generation_table
    lease_seconds poll_queue_url record_days stack_name"""
WORKER = only(
    f"""{STORED} image_bucket intake_queue_url link_seconds max_image_bytes
    repeat_unknown_calls streaming upstream_base_url upstream_keys_path upstream_timeout_seconds"""
)
LIMITS = "images_per_client_per_day images_per_day"
API = WORKER | only(
    f"""{LIMITS} api_is_first_worker batch_window_seconds caller_share_of_waiters cors_origin inbox_bucket
    input_retention_days most_waiters public_base_url wait_seconds"""
)
INTAKE = only(
    f"""{STORED} {LIMITS} base_url batch_waits_for_quota clients_path image_bucket inbox_bucket input_retention_days
    intake_dead_letters_url intake_queue_url link_seconds upstream_base_url"""
)
SITE = only("cors_origin image_origin public_base_url")

FromEnv = Callable[[Mapping[str, str]], Any]
FUNCTIONS: dict[str, tuple[FromEnv, dict[str, str]]] = {
    "api": (ApiSettings.from_env, API),
    "worker": (WorkerSettings.from_env, WORKER),
    "intake": (IntakeSettings.from_env, INTAKE),
    "site": (SiteSettings.from_env, SITE),
}
EACH_FUNCTION = pytest.mark.parametrize(("from_env", "environ"), FUNCTIONS.values(), ids=FUNCTIONS)
OPTIONAL: dict[str, Any] = {
    "disabled_models": frozenset(),
    "event_image_buckets": frozenset(),
    "s3_endpoint_url": None,
    "upstream_overrides": {},
}


def error_of(environ: Mapping[str, str], from_env: FromEnv = ApiSettings.from_env) -> str:
    with pytest.raises(SettingsError) as error:
        from_env(environ)
    return str(error.value)


PARTS = ("runtime", "journal", "store", "images", "files", "quota", "upstream")


def flat(settings: Any) -> dict[str, Any]:
    """All fields, including those of the parts."""
    fields: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        fields |= value if name in PARTS else {name: value}
    return fields


def setting(name: str, text: str) -> Any:
    """The value that each function with this variable reads."""
    settings = [from_env(environ | {name: text}) for from_env, environ in FUNCTIONS.values() if name in environ]
    first, *others = (flat(each)[name.lower()] for each in settings)
    assert all(value == first for value in others)
    return first


@EACH_FUNCTION
def test_a_function_reads_exactly_the_variables_that_it_needs(from_env: FromEnv, environ: dict[str, str]) -> None:
    values = {"true": True, "false": False, "on": True, "off": False} | {
        text: int(text) for text in environ.values() if text.isdigit()
    }
    required = {name.lower().removeprefix("aws_"): values.get(text, text) for name, text in environ.items()}
    read = flat(from_env(environ | {"PATH": "/usr/bin", "UNRELATED": ""}))
    assert read == {name: OPTIONAL[name] for name in OPTIONAL.keys() & read.keys()} | required


@EACH_FUNCTION
def test_all_missing_or_empty_variables_are_named_together(from_env: FromEnv, environ: dict[str, str]) -> None:
    required = sorted(environ.keys() - {"PUBLIC_BASE_URL"})
    assert sorted(error_of({}, from_env).split("; ")) == [f"{name} is missing" for name in required]
    for text in ("", " "):
        wrong = error_of(dict.fromkeys(required, text), from_env).split("; ")
        assert sorted(part.split(" is ")[0] for part in wrong) == required


def test_missing_and_bad_variables_are_named_together() -> None:
    environ = API | {"LINK_SECONDS": "an hour", "PUBLIC_BASE_URL": "ftp://images.example"}
    del environ["IMAGE_BUCKET"]
    assert sorted(error_of(environ).split("; ")) == [
        "IMAGE_BUCKET is missing",
        "LINK_SECONDS is not a whole number from 60 to 604800",
        "PUBLIC_BASE_URL is not an http or https URL",
    ]


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name: str) -> None:
    assert (setting(name, "true"), setting(name, "false")) == (True, False)
    for text in ("", " ", "True", "FALSE", "1", "0", "yes", "no", " true", "true\n", "truefalse"):
        for from_env, environ in FUNCTIONS.values():
            if name in environ:
                assert error_of(environ | {name: text}, from_env) == f"{name} is neither true nor false"


@pytest.mark.parametrize(("name", "least", "most"), BOUNDS)
def test_a_number_is_whole_and_within_its_bounds(name: str, least: int, most: int) -> None:
    assert (setting(name, str(least)), setting(name, str(most))) == (least, most)
    numbers = (least - 1, most + 1, -1, 10**15)
    texts = (" ", "many", "1e2", "100.0", "+100", "-100", " 100", "100 ", "100\n", "1_00", "0x64")
    for text in (*map(str, numbers), *texts):
        for from_env, environ in FUNCTIONS.values():
            if name in environ:
                expected = f"{name} is not a whole number from {least} to {most}"
                assert error_of(environ | {name: text}, from_env) == expected


OTHER_MACHINES = ["upstream.example", "169.254.169.254", "10.0.0.1", "0.0.0.0", "[2001:db8::1]", "notlocalhost"]
OTHER_MACHINES += ["localhost.example", "127.0.0.1.example"]
CREDENTIALS = ["user:hush", "user", ":hush", "", ":"]


@pytest.mark.parametrize(
    ("wrong", "urls"),
    [
        ("is plain http to another machine", [f"http://{host}/v1" for host in OTHER_MACHINES]),
        ("contains a query, a fragment or credentials", [f"https://{each}@upstream.example" for each in CREDENTIALS]),
        (
            "contains a query, a fragment or credentials",
            [f"https://x.example/v1{end}" for end in ("?key=hush", "#hush")],
        ),
        ("is not an http or https URL", ["x.example/v1", "ftp://x.example", "file:///etc/passwd", "https://", "//x"]),
        (
            "contains characters that are not allowed in a URL",
            [f"https://x.example/{end}" for end in (" ", "\n", "é", "a b")],
        ),
        ("has no usable port", ["https://upstream.example:0/v1"]),
        ("", ["https://x.example:https/v1", "https://x.example:99999/v1", "https://[::1/v1"]),
    ],
)
@pytest.mark.parametrize("name", URLS)
def test_an_unsafe_url_is_refused(name: str, wrong: str, urls: list[str]) -> None:
    for url in urls:
        message = error_of(API | {name: url})
        assert message.startswith(f"{name} {wrong}")
        assert "hush" not in message


@pytest.mark.parametrize("name", URLS)
def test_a_url_is_https_or_local_and_loses_its_trailing_slashes(name: str) -> None:
    for host in ("127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "localhost", "LOCALHOST:80", "[::1]:8000"):
        assert setting(name, f"http://{host}/v1") == f"http://{host}/v1"
    for path, trimmed in (("", ""), ("/", ""), ("/v1/", "/v1"), ("/v1//", "/v1")):
        assert setting(name, f"https://upstream.example{path}") == f"https://upstream.example{trimmed}"


def test_a_service_may_have_no_public_base_url() -> None:
    for from_env, environ in ((ApiSettings.from_env, API), (SiteSettings.from_env, SITE)):
        nameless = {name: text for name, text in environ.items() if name != "PUBLIC_BASE_URL"}
        assert from_env(nameless).public_base_url == from_env(nameless | {"PUBLIC_BASE_URL": ""}).public_base_url == ""


def test_models_are_disabled_by_name() -> None:
    for from_env, environ in (FUNCTIONS[name] for name in ("api", "intake", "site")):
        assert from_env(environ | {"DISABLED_MODELS": "flux,gpt-image-1"}).disabled_models == {"flux", "gpt-image-1"}


def test_the_buckets_of_events_are_named_by_their_arns() -> None:
    for text, buckets in (("", set()), ("arn:aws:s3:::a", {"a"}), ("arn:aws:s3:::a,arn:aws-cn:s3:::b.c", {"a", "b.c"})):
        assert IntakeSettings.from_env(INTAKE | {"EVENT_IMAGE_BUCKET_ARNS": text}).event_image_buckets == buckets


def test_an_upstream_may_have_another_address_or_time_limit() -> None:
    text = "google.timeout_seconds=60,gpu-box.base_url=http://127.0.0.1:9000/v1/"
    overrides = {("google", "timeout_seconds"): 60, ("gpu-box", "base_url"): "http://127.0.0.1:9000/v1"}
    for from_env, environ in (FUNCTIONS[name] for name in ("api", "worker")):
        assert from_env(environ | {"UPSTREAM_OVERRIDES": text}).upstream.upstream_overrides == overrides
    for text in ("google", "google.key=x", "google.timeout_seconds=801", "google.base_url=http://gpu.example", "x=1,"):
        assert error_of(API | {"UPSTREAM_OVERRIDES": text}).startswith("UPSTREAM_OVERRIDES ")


@pytest.mark.parametrize(
    ("for_all", "for_s3", "endpoint"),
    [("", "", None), (HERE, "", HERE), ("", f"{HERE}:1", f"{HERE}:1"), (HERE, f"{HERE}:1", f"{HERE}:1")],
)
def test_the_s3_endpoint_is_chosen_as_the_sdk_chooses_it(for_all: str, for_s3: str, endpoint: str | None) -> None:
    set_ones = {"AWS_ENDPOINT_URL": for_all, "AWS_ENDPOINT_URL_S3": for_s3}
    for environ in (set_ones, {name: url for name, url in set_ones.items() if url}):
        assert ApiSettings.from_env(API | environ).runtime.s3_endpoint_url == endpoint
        assert WorkerSettings.from_env(WORKER | environ).runtime.s3_endpoint_url == endpoint
        assert SiteSettings.from_env(SITE | environ).image_origin == (endpoint or SITE["IMAGE_ORIGIN"])


def test_a_site_takes_only_the_origin_of_a_url_and_none_that_would_loosen_its_policy() -> None:
    settings = SiteSettings.from_env(SITE | {"AWS_ENDPOINT_URL": "http://127.0.0.1:5000/x/"})
    assert settings.image_origin == "http://127.0.0.1:5000"
    for origin in ("*", "https://a.example; script-src *", "http://images.example", "data:"):
        assert error_of(SITE | {"IMAGE_ORIGIN": origin}, SiteSettings.from_env).startswith("IMAGE_ORIGIN ")


# The authorizer.

ISSUER = "https://login.example/tenant"


def authorizer(**environ: str) -> AuthorizerSettings:
    return AuthorizerSettings.from_env({"CLIENTS_PATH": "/clients", **environ})


def test_the_clients_path_is_required_and_loses_its_last_slash() -> None:
    for path in ("/imagegen/prod/clients", "/imagegen/prod/clients/"):
        assert authorizer(CLIENTS_PATH=path).clients_path == "/imagegen/prod/clients"
    assert error_of({}, AuthorizerSettings.from_env) == "CLIENTS_PATH is missing"
    for path in ("", "  "):
        assert error_of({"CLIENTS_PATH": path}, AuthorizerSettings.from_env) == "CLIENTS_PATH is empty"


def test_an_issuer_is_optional_and_unchanged_and_needs_an_audience() -> None:
    for environ in ({}, {"OIDC_ISSUER": "", "OIDC_AUDIENCE": ""}):
        assert authorizer(**environ) == AuthorizerSettings("/clients", oidc_audience="", oidc_issuer="")
    for issuer in (ISSUER, f"{ISSUER}/", "https://login.example", "http://127.0.0.1:9000/"):
        settings = authorizer(OIDC_ISSUER=issuer, OIDC_AUDIENCE="imagegen")
        assert (settings.oidc_issuer, settings.oidc_audience) == (issuer, "imagegen")
    for environ in ({}, {"OIDC_AUDIENCE": ""}, {"OIDC_AUDIENCE": " "}):
        with pytest.raises(SettingsError, match=r"^OIDC_AUDIENCE is empty$"):
            authorizer(OIDC_ISSUER=ISSUER, **environ)


@pytest.mark.parametrize(
    "issuer", [" ", f"{ISSUER}?tenant=1", "http://login.example", "https://user:hush@login.example"]
)
def test_the_refusal_of_a_bad_issuer_does_not_repeat_it(issuer: str) -> None:
    with pytest.raises(SettingsError, match=r"^OIDC_ISSUER ") as error:
        authorizer(OIDC_ISSUER=issuer, OIDC_AUDIENCE="imagegen")
    assert "hush" not in str(error.value)
