"""Reads API Gateway's proxy event."""

from base64 import b64decode
from typing import Any, Literal

from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent

from imagegen.domain.credentials import Caller
from imagegen.wire.links import Links
from imagegen.wire.request_path import split_path


def body_of(event: BaseProxyEvent) -> bytes:
    body = event.body or ""
    return b64decode(body) if event.is_base64_encoded else body.encode("utf-8", "surrogatepass")


def caller_of(event: BaseProxyEvent) -> Caller:
    """The caller that the authorizer identified, with its own quotas if it has any."""
    authorizer: dict[str, Any] = event["requestContext"]["authorizer"]
    images, usd = (authorizer.get(name) for name in ("images_per_day", "usd_per_day"))
    return Caller(
        str(authorizer["principalId"]), None if images is None else int(images), None if usd is None else int(usd)
    )


def request_id_of(event: BaseProxyEvent) -> str:
    """The id that a caller cannot choose. A caller can choose `requestId` by a header."""
    return str(event["requestContext"].get("extendedRequestId") or "")


def method_of(event: BaseProxyEvent) -> str:
    """The method as the client sent it: a HEAD is resolved as a GET."""
    return str(event["requestContext"]["httpMethod"])


def method_to_sign_for(event: BaseProxyEvent) -> Literal["GET", "HEAD"]:
    """S3 refuses HEAD for a URL that is signed for GET."""
    return "HEAD" if method_of(event) == "HEAD" else "GET"


def links_of(event: BaseProxyEvent, public_base_url: str) -> Links:
    """Links below `public_base_url`; if that is empty, below the address of this request."""
    if public_base_url:
        return Links(public_base_url)
    scheme = event.headers.get("X-Forwarded-Proto", "https")
    prefix, _ = split_path(event.raw_event)
    return Links(f"{scheme}://{event['requestContext']['domainName']}{prefix}")
