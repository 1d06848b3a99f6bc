"""Splits the prefix from the path of a request, and explains why a path has no route."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from imagegen.domain.errors import MethodNotAllowedError, UnknownRouteError


class Route(Protocol):
    """A route of a Powertools resolver."""

    @property
    def method(self) -> str: ...

    @property
    def rule(self) -> re.Pattern[str]: ...


def split_path(event: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the prefix (a stage, or a custom domain's base path) and the path of the API after it.

    `event` is API Gateway's proxy event. Its `resource` is the route in the template, in which `{proxy+}` stands for
    one or more segments. Slashes at the end are removed, because API Gateway ignores them.
    """
    segments = event["requestContext"]["path"].rstrip("/").split("/")
    resource, greedy = event["resource"].rstrip("/"), "/{proxy+}"
    count = resource.removesuffix(greedy).count("/")
    if resource.endswith(greedy):
        count += 1 + event["pathParameters"]["proxy"].strip("/").count("/")
    at = max(1, len(segments) - count)
    return "/".join(segments[:at]), "/" + "/".join(segments[at:])


def slashes_at_the_end(event: Mapping[str, Any]) -> int:
    path: str = event["requestContext"]["path"]
    return len(path) - len(path.rstrip("/"))


def as_get(event: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a HEAD request into the GET with the same headers. API Gateway drops the body of its answer."""
    return {**event, "httpMethod": "GET"} if event["httpMethod"] == "HEAD" else dict(event)


def no_route(path: str, routes: Iterable[Route]) -> UnknownRouteError | MethodNotAllowedError:
    """Returns the error for a request without a route: the path is unknown, or has other methods.

    The message does not repeat the path, which may contain a key or a signed URL by mistake.
    """
    methods = {route.method for route in routes if route.rule.match(path)}
    if not methods:
        return UnknownRouteError("Invalid URL: this path does not exist.")
    methods.add("OPTIONS")  # answered by API Gateway
    if "GET" in methods:
        methods.add("HEAD")
    allowed = sorted(methods)
    error = MethodNotAllowedError(f"This path supports only these methods: {', '.join(allowed)}.")
    error.allowed = allowed
    return error
