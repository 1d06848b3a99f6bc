"""The pages behind API Gateway: the playground and the API's description, open to all.

They hold no secret and ask nobody.
"""

import hashlib
import html
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aws_lambda_powertools
import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.site import site
from imagegen.domain.errors import UnknownRouteError
from imagegen.domain.redacted_traceback import silent_trace
from imagegen.wire.errors import answer_error
from imagegen.wire.headers import cors_headers
from imagegen.wire.paths import as_get, no_route, split_path

HERE = Path(__file__).parent
# Swagger UI comes with Powertools. Its own module is not imported, since it wants pydantic.
SWAGGER_UI = Path(aws_lambda_powertools.__file__).parent / "event_handler/openapi/swagger_ui"
HTML, SCRIPT, STYLE = ("text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8")
# Nothing but our own files and our own API.
POLICY = {
    "default-src": "'none'",
    "base-uri": "'none'",
    "connect-src": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
}
REVALIDATED = {"Cache-Control": "no-cache"}  # asked for each time, so that a deployment shows at once
KEPT = {"Cache-Control": "public, max-age=86400"}
SAFE_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers older than frame-ancestors
}

app = APIGatewayRestResolver(debug=False)  # POWERTOOLS_DEV would have it print every event
logger = Logger(service="site")


@app.get("/")
def playground() -> Response[str]:
    return _page("playground.html", {"img-src": _images()})


@app.get("/playground.js")
def playground_script() -> Response[str]:
    return _file(_text(HERE / "playground.js"), SCRIPT)


@app.get("/playground.css")
def playground_style() -> Response[str]:
    return _file(_text(HERE / "playground.css"), STYLE)


@app.get("/docs")
def docs() -> Response[str]:
    # Swagger UI tries requests out, which may be redirected to an image.
    return _page("docs.html", {"connect-src": f"'self' {site().image_origin}", "img-src": _images()})


def _images() -> str:
    """Ours and the bucket's; the pages' own icon, which is none, and Swagger UI's are in the pages."""
    return f"'self' {site().image_origin} data:"


@app.get("/docs/<file>")
def docs_file(file: str) -> Response[str]:
    files = {
        "docs.js": (HERE / file, SCRIPT, REVALIDATED),
        "swagger-ui-bundle.min.js": (SWAGGER_UI / file, SCRIPT, KEPT),
        "swagger-ui.min.css": (SWAGGER_UI / file, STYLE, KEPT),
    }
    if file not in files:
        raise UnknownRouteError("Invalid URL.")
    path, content_type, caching = files[file]
    return _file(_text(path), content_type, caching)


@app.get("/openapi.json")
def openapi() -> Response[str]:
    return _file(_description(_prefix()), "application/json", REVALIDATED | cors_headers(site().cors_origin))


@cache
def _description(prefix: str) -> str:
    from imagegen.wire.openapi import openapi_document  # noqa: PLC0415  # few ask, and pages need not wait

    return msgspec.json.encode(openapi_document(prefix, site().prompt_max_characters)).decode()


@app.not_found
def unknown_route(_: Exception) -> Response[str]:
    routes = app._static_routes + app._dynamic_routes  # noqa: SLF001  # the resolver has no public name for them
    return _error(no_route(app.current_event.path, routes))


@app.exception_handler(Exception)
def failed(error: Exception) -> Response[str]:
    logger.error("failed", extra={"trace": silent_trace(error)})  # without its words
    return _error(error)


@cache
def _text(path: Path) -> str:
    return path.read_text()


def _page(name: str, policy: dict[str, str]) -> Response[str]:
    """A page whose links carry the prefix, since a stage's root may be called with a slash at its end and without."""
    directives = POLICY | policy
    told = "; ".join(f"{directive} {sources}" for directive, sources in directives.items())
    page = _text(HERE / name).replace("{prefix}", html.escape(_prefix()))
    return _file(page, HTML, REVALIDATED | {"Content-Security-Policy": told})


def _file(text: str, content_type: str, headers: dict[str, str] = REVALIDATED) -> Response[str]:
    """A file, or that the browser has it already."""
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    told = SAFE_HEADERS | {"ETag": tag} | headers
    known = app.current_event.headers.get("If-None-Match") or ""
    if tag in (each.strip() for each in known.replace("W/", "").split(",")):
        return _answer(Response(304, content_type, "", told))
    return _answer(Response(200, content_type, text, told))


def _prefix() -> str:
    """What stands before our own paths for a client: a stage, a base path, or what a proxy in front has there."""
    if configured := site().public_base_url:
        return urlsplit(configured).path.rstrip("/")
    prefix, _ = split_path(app.current_event.raw_event)
    return prefix


def _error(error: Exception) -> Response[str]:
    answer = answer_error(error, str)
    body = msgspec.json.encode(answer.body).decode()
    return _answer(Response(answer.status, "application/json", body, SAFE_HEADERS | answer.headers))


def _answer(response: Response[str]) -> Response[str]:
    event = app.current_event
    response.headers["x-request-id"] = (
        event.request_context.extended_request_id or ""
    )  # a caller can choose the other one
    route = f"{event.http_method} {event.raw_event['resource']}"
    logger.info("answered", extra={"route": route, "status": response.status_code})
    return response


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    _, path = split_path(event)
    return app.resolve({**as_get(event), "path": path}, context)
