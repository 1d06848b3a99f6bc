"""The public pages: the playground and the API's description. They hold no secret."""

import hashlib
import html
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aws_lambda_powertools
import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.logging import Logger

from imagegen.domain.errors import ImagegenError, UnknownRouteError
from imagegen.domain.models import Catalog
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.routes.middleware import Next
from imagegen.routes.request import request_id_of
from imagegen.routes.response import Body, json_response
from imagegen.wire.errors import answer_error
from imagegen.wire.headers import cors_headers
from imagegen.wire.request_path import split_path

# Swagger UI comes with Powertools. Its module is not imported, since it requires pydantic.
SWAGGER_UI = Path(aws_lambda_powertools.__file__).parent / "event_handler/openapi/swagger_ui"
HTML, SCRIPT, STYLE = ("text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8")
# Only this site's own files and its own API.
POLICY = {
    "default-src": "'none'",
    "base-uri": "'none'",
    "connect-src": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
}
REVALIDATED = {"Cache-Control": "no-cache"}  # a browser asks each time, so a deployment shows at once
KEPT = {"Cache-Control": "public, max-age=86400"}
SAFE_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers older than frame-ancestors
}


class SiteMiddleware(msgspec.Struct, frozen=True, eq=False):
    """Errors, ids and one log line a request."""

    logger: Logger

    @property
    def chain(self) -> list[Callable[..., Any]]:
        return [self.log, self.errors]

    def errors(self, app: APIGatewayRestResolver, next_middleware: Next) -> Response[Body]:
        try:
            return next_middleware(app)
        except Exception as error:  # noqa: BLE001  # every exception gets an answer
            if not isinstance(error, ImagegenError):
                trace = {"trace": redacted_traceback(error)}
                self.logger.error("failed", extra=trace)  # noqa: TRY400  # the exception's message stays out
            answer = answer_error(error, str)
            return json_response(answer.status, answer.body, SAFE_HEADERS | answer.headers)

    def log(self, app: APIGatewayRestResolver, next_middleware: Next) -> Response[Body]:
        response, event = next_middleware(app), app.current_event
        response.headers["x-request-id"] = request_id_of(event)
        route = f"{event.http_method} {event.raw_event['resource']}"
        self.logger.info("answered", extra={"route": route, "status": response.status_code})
        return response


class SiteRoutes(msgspec.Struct, frozen=True, eq=False):
    """`folder` holds the pages. `cors_origin` is the web origin whose pages may read the API's description.

    `image_origin` is the web origin that a durable link redirects to.
    """

    folder: Path
    cors_origin: str
    image_origin: str
    catalog: Catalog
    public_base_url: str
    router: Router
    descriptions: dict[str, str] = {}  # the API's, by prefix

    def register(self) -> Router:
        for path, handler in (
            ("/", self.playground),
            ("/playground.js", self.playground_script),
            ("/playground.css", self.playground_style),
            ("/docs", self.docs),
            ("/docs/<file>", self.docs_file),
            ("/openapi.json", self.openapi),
        ):
            self.router.route(path, "GET")(handler)
        return self.router

    def playground(self) -> Response[Body]:
        return self._page("playground.html", {"img-src": self._image_sources()})

    def playground_script(self) -> Response[Body]:
        return self._file(_text(self.folder / "playground.js"), SCRIPT)

    def playground_style(self) -> Response[Body]:
        return self._file(_text(self.folder / "playground.css"), STYLE)

    def docs(self) -> Response[Body]:
        # Swagger UI sends requests, which may be redirected to an image.
        policy = {"connect-src": f"'self' {self.image_origin}", "img-src": self._image_sources()}
        return self._page("docs.html", policy)

    def docs_file(self, file: str) -> Response[Body]:
        files = {
            "docs.js": (self.folder / file, SCRIPT, REVALIDATED),
            "swagger-ui-bundle.min.js": (SWAGGER_UI / file, SCRIPT, KEPT),
            "swagger-ui.min.css": (SWAGGER_UI / file, STYLE, KEPT),
        }
        if file not in files:
            raise UnknownRouteError("Invalid URL.")
        path, content_type, caching = files[file]
        return self._file(_text(path), content_type, caching)

    def openapi(self) -> Response[Body]:
        headers = REVALIDATED | cors_headers(self.cors_origin)
        prefix = self._prefix()
        if prefix not in self.descriptions:
            self.descriptions[prefix] = _description(prefix, self.catalog)
        return self._file(self.descriptions[prefix], "application/json", headers)

    def _image_sources(self) -> str:
        """The site itself, the bucket, and icons inside the pages."""
        return f"'self' {self.image_origin} data:"

    def _page(self, name: str, policy: dict[str, str]) -> Response[Body]:
        """A page whose links carry the prefix: a stage's root may be requested with and without a slash at its end."""
        directives = POLICY | policy
        sources = "; ".join(f"{directive} {allowed}" for directive, allowed in directives.items())
        page = _text(self.folder / name).replace("{prefix}", html.escape(self._prefix()))
        return self._file(page, HTML, REVALIDATED | {"Content-Security-Policy": sources})

    def _file(self, text: str, content_type: str, headers: dict[str, str] = REVALIDATED) -> Response[Body]:
        """The file, or 304 if the browser has it already."""
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        every = SAFE_HEADERS | {"ETag": tag} | headers
        known = self.router.current_event.headers.get("If-None-Match") or ""
        if tag in (each.strip() for each in known.replace("W/", "").split(",")):
            return Response(304, content_type, "", every)
        return Response(200, content_type, text, every)

    def _prefix(self) -> str:
        """What precedes the paths of this service for a client: a stage, a base path, or a proxy's path."""
        if self.public_base_url:
            return urlsplit(self.public_base_url).path.rstrip("/")
        prefix, _ = split_path(self.router.current_event.raw_event)
        return prefix


@cache
def _text(path: Path) -> str:
    return path.read_text()


def _description(prefix: str, catalog: Catalog) -> str:
    from imagegen.wire.openapi import openapi_document  # noqa: PLC0415  # rarely needed, and slow to import

    return msgspec.json.encode(openapi_document(prefix, catalog)).decode()
