"""The site function's real handler, on the events of events/."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from functions.site import app as site_app
from imagegen.bootstrap.site import site
from imagegen.openai_wire.openapi import openapi_document
from tests.conftest import ROOT

Event = dict[str, Any]
Example = Callable[[str], Event]
IMAGES = "https://images-123.s3.eu-central-1.amazonaws.com"
PAGES = {
    "playground": "text/html; charset=utf-8",
    "playground-script": "text/javascript; charset=utf-8",
    "playground-style": "text/css; charset=utf-8",
    "docs": "text/html; charset=utf-8",
    "docs-file": "text/javascript; charset=utf-8",
    "openapi": "application/json",
}


@dataclass
class Context:
    function_name: str = "site"
    aws_request_id: str = "request"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PUBLIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORS_ORIGIN", "https://app.example.com")
    monkeypatch.setenv("IMAGE_ORIGIN", IMAGES)
    monkeypatch.setenv("PROMPT_MAX_CHARACTERS", "1000")
    site.cache_clear()
    site_app._description.cache_clear()
    yield
    site.cache_clear()
    site_app._description.cache_clear()


def call(event: Event) -> tuple[int, dict[str, str], str]:
    answer = site_app.lambda_handler(event, Context())  # type: ignore[arg-type]
    headers = {name.lower(): values[-1] for name, values in answer["multiValueHeaders"].items()}
    return answer["statusCode"], headers, answer.get("body") or ""


def policy(headers: dict[str, str]) -> dict[str, str]:
    return dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))


@pytest.mark.parametrize("name", PAGES)
def test_the_request_id_is_the_one_that_no_caller_chooses(example_event: Example, name: str) -> None:
    _, headers, _ = call(example_event(name))
    assert headers["x-request-id"] == "JKJaXmPLvHcESHA="


def test_the_page_may_load_our_files_ask_our_api_and_show_our_images_and_nothing_else(example_event: Example) -> None:
    _, headers, _ = call(example_event("playground"))
    assert policy(headers) == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "connect-src": "'self'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",  # no other site can lay it under its own buttons
        "img-src": f"'self' {IMAGES} data:",
        "script-src": "'self'",
        "style-src": "'self'",
    }


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_it_says_and_tells_nobody_where_its_reader_came_from(example_event: Example, name: str) -> None:
    status, headers, body = call(example_event(name))
    assert (status, headers["content-type"]) == (200, PAGES[name])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert body


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_a_browser_has_already_is_not_sent_again(example_event: Example, name: str) -> None:
    event = example_event(name)
    _, headers, _ = call(event)
    assert headers["cache-control"] == ("public, max-age=86400" if name == "docs-file" else "no-cache")
    for known in (headers["etag"], f"W/{headers['etag']}", f'"other", {headers["etag"]}'):
        event["headers"]["If-None-Match"] = known
        event["multiValueHeaders"]["If-None-Match"] = [known]
        status, again, body = call(event)
        assert (status, body, again["etag"]) == (304, "", headers["etag"])
    event["multiValueHeaders"]["If-None-Match"] = ['"other"']
    event["headers"]["If-None-Match"] = '"other"'
    assert call(event)[0] == 200


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
def test_links_hold_wherever_the_page_is_served(
    example_event: Example, monkeypatch: pytest.MonkeyPatch, public: str, path: str, prefix: str
) -> None:
    monkeypatch.setenv("PUBLIC_BASE_URL", public)
    event = example_event("playground")
    event["requestContext"]["path"] = path
    _, _, body = call(event)
    links = re.findall(r'(?:href|src)="(/[^"]*)"', body)
    assert links == [f"{prefix}/playground.css", f"{prefix}/playground.js"]


def test_the_description_is_rendered_under_a_policy_as_tight(example_event: Example) -> None:
    _, page, _ = call(example_event("playground"))
    _, docs, _ = call(example_event("docs"))
    loosened = {"connect-src": f"'self' {IMAGES}", "img-src": f"'self' {IMAGES} data:"}
    assert policy(docs) == policy(page) | loosened


@pytest.mark.parametrize(("file", "beginning"), [("swagger-ui.min.css", ".swagger-ui"), ("docs.js", "//")])
def test_the_renderer_is_what_powertools_carries(example_event: Example, file: str, beginning: str) -> None:
    event = example_event("docs-file")
    event["requestContext"]["path"] = f"/prod/docs/{file}"
    status, _, body = call(event)
    assert (status, body.startswith(beginning)) == (200, True)


@pytest.mark.parametrize("file", ["app.py", "..", "%2e%2e", "oauth2.py", "playground.html"])
def test_nothing_else_is_served_from_where_it_is(example_event: Example, file: str) -> None:
    event = example_event("docs-file")
    event["requestContext"]["path"] = f"/prod/docs/{file}"
    assert call(event)[0] == 404


def test_the_description_is_of_where_it_is_and_a_page_of_the_configured_origin_may_read_it(
    example_event: Example,
) -> None:
    _, headers, body = call(example_event("openapi"))
    assert json.loads(body) == openapi_document("/prod", 1000)
    assert headers["access-control-allow-origin"] == "https://app.example.com"


@pytest.mark.parametrize("name", ["playground.html", "docs.html"])
def test_a_page_has_nothing_inline_and_loads_nothing_of_others(name: str) -> None:
    page = (ROOT / "functions/site" / name).read_text()
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:|<script(?![^>]*\ssrc=)|https?://", page)


def test_the_playground_makes_no_markup_of_what_it_is_told() -> None:
    script = (ROOT / "functions/site/playground.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", script)
    style = (ROOT / "functions/site/playground.css").read_text()
    assert not re.search(r"url\(|@import", style)


def test_a_route_that_only_sam_local_would_send_is_404(example_event: Example) -> None:
    event = example_event("playground") | {"resource": "/nowhere", "path": "/nowhere"}
    status, _, body = call(event)
    assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_url")


def test_a_function_without_its_settings_answers_in_openais_shape(
    example_event: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGE_ORIGIN")
    status, headers, body = call(example_event("playground"))
    assert status == 500
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert "IMAGE_ORIGIN" not in body
    assert headers["x-content-type-options"] == "nosniff"
