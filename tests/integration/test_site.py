"""The handler of the site function, with the example events in events/."""

import json
import re
from collections.abc import Iterator

import pytest

from functions.site import app as site_app
from imagegen.bootstrap.site import site
from imagegen.wire.openapi import openapi_document
from tests.conftest import ROOT
from tests.support.lambda_events import Event, example, over_http
from tests.support.models import catalog

IMAGES = "https://images-123.s3.eu-central-1.amazonaws.com"
PAGES = {
    "playground": "text/html; charset=utf-8",
    "playground-script": "text/javascript; charset=utf-8",
    "playground-style": "text/css; charset=utf-8",
    "docs": "text/html; charset=utf-8",
    "docs-file": "text/javascript; charset=utf-8",
    "openapi": "application/json",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PUBLIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORS_ORIGIN", "https://app.example.com")
    monkeypatch.setenv("IMAGE_ORIGIN", IMAGES)
    monkeypatch.setenv("PROMPT_MAX_CHARACTERS", "1000")
    site.cache_clear()
    yield
    site.cache_clear()


def call(event: str | Event, path: str | None = None) -> tuple[int, dict[str, str], str]:
    event = example(event) if isinstance(event, str) else event
    if path is not None:
        event["requestContext"]["path"] = path
    return over_http(site_app.lambda_handler, event, "site")


def policy(headers: dict[str, str]) -> dict[str, str]:
    return dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))


def test_the_policy_of_a_page_allows_only_its_origin_and_the_images() -> None:
    playground, docs = policy(call("playground")[1]), policy(call("docs")[1])
    assert playground == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "connect-src": "'self'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",  # no other site can frame it
        "img-src": f"'self' {IMAGES} data:",
        "script-src": "'self'",
        "style-src": "'self'",
    }
    assert docs == playground | {"connect-src": f"'self' {IMAGES}"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_type_and_can_be_cached(name: str) -> None:
    status, headers, body = call(name)
    assert (status, headers["content-type"]) == (200, PAGES[name])
    assert body
    safe = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
    assert safe.items() <= headers.items()
    assert headers["x-request-id"] == "JKJaXmPLvHcESHA="  # no caller can choose this one
    assert headers["cache-control"] == ("public, max-age=86400" if name == "docs-file" else "no-cache")
    tag = headers["etag"]
    for known, expected in ((tag, 304), (f"W/{tag}", 304), (f'"other", {tag}', 304), ('"other"', 200)):
        event = example(name)
        event["headers"]["If-None-Match"] = known
        event["multiValueHeaders"]["If-None-Match"] = [known]
        status, again, sent = call(event)
        assert (status, sent, again["etag"]) == (expected, "" if expected == 304 else body, tag)


@pytest.mark.parametrize(
    ("public", "path", "prefix"),
    [
        ("", "/prod/", "/prod"),
        ("", "/prod", "/prod"),
        ("", "/", ""),
        ("", "/pictures/", "/pictures"),  # a custom domain's base path
        ("https://cdn.example.com", "/prod/", ""),
        ("https://cdn.example.com/img/", "/prod/", "/img"),
        ("", '/"><script>/', "/&quot;&gt;&lt;script&gt;"),
    ],
)
def test_links_work_under_any_prefix(monkeypatch: pytest.MonkeyPatch, public: str, path: str, prefix: str) -> None:
    monkeypatch.setenv("PUBLIC_BASE_URL", public)
    links = re.findall(r'(?:href|src)="(/[^"]*)"', call("playground", path)[2])
    assert links == [f"{prefix}/playground.css", f"{prefix}/playground.js"]


def test_docs_serves_only_the_files_of_its_page() -> None:
    for file, beginning in (("swagger-ui.min.css", ".swagger-ui"), ("docs.js", "//")):
        status, _, body = call("docs-file", f"/prod/docs/{file}")
        assert (status, body.startswith(beginning)) == (200, True)
    for file in ("app.py", "..", "%2e%2e", "oauth2.py", "playground.html"):
        assert call("docs-file", f"/prod/docs/{file}")[0] == 404
    # Only `sam local` sends such an event.
    status, _, body = call(example("playground") | {"resource": "/nowhere", "path": "/nowhere"})
    assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_url")


def test_the_description_has_its_own_url_and_the_configured_cors_origin() -> None:
    _, headers, body = call("openapi")
    assert json.loads(body) == openapi_document("/prod", catalog(1000, {}))
    assert headers["access-control-allow-origin"] == "https://app.example.com"


UNSAFE_HTML = r"<style|\son\w+=|\sstyle=|javascript:|<script(?![^>]*\ssrc=)|https?://"


@pytest.mark.parametrize(
    ("file", "unsafe"),
    [
        *(("playground.html", UNSAFE_HTML), ("docs.html", UNSAFE_HTML)),
        # The script creates no markup from text.
        ("playground.js", r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage"),
        ("playground.css", r"url\(|@import"),
    ],
)
def test_a_page_has_no_inline_code_and_loads_nothing_from_elsewhere(file: str, unsafe: str) -> None:
    assert not re.search(unsafe, (ROOT / "functions/site" / file).read_text())


def test_without_its_settings_the_site_returns_an_error_in_openais_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_ORIGIN")
    status, headers, body = call("playground")
    assert (status, set(json.loads(body)["error"])) == (500, {"message", "type", "param", "code"})
    assert "IMAGE_ORIGIN" not in body
    assert headers["x-content-type-options"] == "nosniff"
