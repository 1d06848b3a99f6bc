"""Makes responses of routes. The middleware adds what every response has."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent

from imagegen.wire.headers import Preference
from imagegen.wire.request_path import slashes_at_the_end

Body = str | Iterator[bytes]  # blocks are sent as they come


def encoded(body: Mapping[str, Any]) -> str:
    return msgspec.json.encode(body).decode()


def json_response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response[Body]:
    return Response(status, "application/json", encoded(body), dict(headers or {}))


def redirect(event: BaseProxyEvent, status: int, location: str, headers: Mapping[str, str]) -> Response[Body]:
    return Response(status, headers={"Location": relative(event, location), **headers})


def relative(event: BaseProxyEvent, location: str) -> str:
    """A relative location as seen from the path of the request, which may end in slashes."""
    is_absolute = "://" in location
    return location if is_absolute else "../" * slashes_at_the_end(event.raw_event) + location


def applied(preference: Preference) -> dict[str, str]:
    return {"Preference-Applied": preference.applied} if preference.applied else {}
