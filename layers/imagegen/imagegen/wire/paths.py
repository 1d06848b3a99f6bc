"""Which part of a request's path is the API's own, and why it has no route."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from imagegen.domain.errors import MethodNotAllowedError, UnknownRouteError


class Route(Protocol):
    """A route as a resolver keeps it."""

    @property
    def method(self) -> str: ...

    @property
    def rule(self) -> re.Pattern[str]: ...


def split_path(event: Mapping[str, Any]) -> tuple[str, str]:
    """The prefix before the API's own path (a stage, a custom domain's base path), and that path.

    `event` is API Gateway's proxy event. Its `resource` is the route of the template, in which `{proxy+}` stands for
    one segment or more. Slashes at the end, which API Gateway ignores, are left out.
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
    """A HEAD request as the GET whose headers it asks for, others as they are. The gateway leaves the body out."""
    return {**event, "httpMethod": "GET"} if event["httpMethod"] == "HEAD" else dict(event)


def no_route(path: str, routes: Iterable[Route]) -> UnknownRouteError | MethodNotAllowedError:
    """Why none of the routes is that of a request: its path is unknown, or has other methods.

    The message does not repeat the path: a key or a signed URL may have got into it.
    """
    methods = {route.method for route in routes if route.rule.match(path)}
    if not methods:
        return UnknownRouteError("Invalid URL: there is no such path.")
    methods.add("OPTIONS")  # which the gateway itself answers
    if "GET" in methods:
        methods.add("HEAD")
    allowed = sorted(methods)
    error = MethodNotAllowedError(f"This path has other methods: {', '.join(allowed)}.")
    error.allowed = allowed
    return error
