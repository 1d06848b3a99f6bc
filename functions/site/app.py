"""The pages behind API Gateway: the playground. They hold no secret and ask nobody, so they are open to all."""

import hashlib
import html
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.site import site
from imagegen.errors import UnknownRouteError
from imagegen.openai_wire.errors import answer_error
from imagegen.silent_trace import silent_trace

HERE = Path(__file__).parent
HTML, SCRIPT, STYLE = ("text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8")
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
    """The page's links carry the prefix, since a stage's root may be called with a slash at its end and without."""
    page = _text("playground.html").replace("{prefix}", html.escape(_prefix()))
    return _file(page, HTML, _policy())


@app.get("/playground.js")
def playground_script() -> Response[str]:
    return _file(_text("playground.js"), SCRIPT)


@app.get("/playground.css")
def playground_style() -> Response[str]:
    return _file(_text("playground.css"), STYLE)


@app.not_found
def unknown_route(_: Exception) -> Response[str]:
    return _error(UnknownRouteError("Invalid URL or method."))


@app.exception_handler(Exception)
def failed(error: Exception) -> Response[str]:
    logger.error("failed", extra={"trace": silent_trace(error)})  # without its words
    return _error(error)


@cache
def _text(name: str) -> str:
    return (HERE / name).read_text()


def _policy() -> dict[str, str]:
    """Nothing but our own files, our own API, and images from where they are stored."""
    directives = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "connect-src": "'self'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "img-src": f"'self' {site().image_origin}",
        "script-src": "'self'",
        "style-src": "'self'",
    }
    return {"Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in directives.items())}


def _file(text: str, content_type: str, headers: dict[str, str] | None = None) -> Response[str]:
    """A file, or that the browser has it already: it asks each time, so that a deployment shows at once."""
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    told = SAFE_HEADERS | {"Cache-Control": "no-cache", "ETag": tag} | (headers or {})
    known = app.current_event.headers.get("If-None-Match") or ""
    if tag in re.split(r"\s*,\s*", known.replace("W/", "")):
        return _answer(Response(304, content_type, None, told))
    return _answer(Response(200, content_type, text, told))


def _prefix() -> str:
    """What stands before our own paths for a client: a stage, a base path, or what a proxy in front has there."""
    if configured := site().public_base_url:
        return urlsplit(configured).path.rstrip("/")
    event = app.current_event.raw_event
    segments = event["requestContext"]["path"].rstrip("/").split("/")
    ours = event["resource"].rstrip("/").count("/")
    return "/".join(segments[: len(segments) - ours])


def _error(error: Exception) -> Response[str]:
    answer = answer_error(error, str)
    body = msgspec.json.encode(answer.body).decode()
    return _answer(Response(answer.status, "application/json", body, SAFE_HEADERS | answer.headers))


def _answer(response: Response[str]) -> Response[str]:
    event = app.current_event
    response.headers["x-request-id"] = event.request_context.request_id
    route = f"{event.http_method} {event.raw_event['resource']}"
    logger.info("answered", extra={"route": route, "status": response.status_code})
    return response


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Routes are the template's, whatever stands before them; none of ours has a parameter."""
    return app.resolve({**event, "path": event["resource"]}, context)
