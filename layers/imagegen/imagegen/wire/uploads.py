"""Reads and answers requests for an upload."""

from typing import Any

from imagegen.domain.errors import RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.inputs import MEDIA_TYPES, MOST_BYTES, SignedUpload
from imagegen.wire.field_errors import invalid, missing, unknown
from imagegen.wire.requests import json_object, media_type_of

_MOST_BODY_BYTES = 4096


def read_upload_body(body: bytes, content_type: str | None, what: str) -> dict[str, Any]:
    """Returns the JSON of a request for an upload of an image or a file, which `what` says.

    Raises InvalidRequestError, UnsupportedMediaTypeError, and RequestTooLargeError if the body is larger than any valid
    one: it may be the content itself.
    """
    to_the_url = f"The {what} is sent to the URL in the answer."
    if media_type_of(content_type) != "application/json":
        raise UnsupportedMediaTypeError(
            f"Unsupported content type: the request body must be application/json. {to_the_url}"
        )
    if len(body) > _MOST_BODY_BYTES:
        raise RequestTooLargeError(f"The request body is too large: {to_the_url[0].lower()}{to_the_url[1:]}")
    return json_object(body)


def read_upload(body: bytes, content_type: str | None) -> tuple[str, int]:
    """Returns the media type and the bytes of the image. Raises what `read_upload_body` raises."""
    fields = read_upload_body(body, content_type, "image")
    length, media_type = fields.pop("bytes", None), fields.pop("media_type", None)
    for name in fields:
        raise unknown(name)
    for name, value in (("bytes", length), ("media_type", media_type)):
        if value is None:
            raise missing(name)
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MOST_BYTES:
        raise invalid("bytes", f"a whole number from 1 to {MOST_BYTES}")
    if media_type not in MEDIA_TYPES:
        raise invalid("media_type", f"one of {', '.join(MEDIA_TYPES)}")
    return media_type, length


def upload_answer(upload_id: str, upload: SignedUpload) -> dict[str, Any]:
    return {
        "id": upload_id,
        "object": "image.upload",
        "method": "PUT",
        "url": upload.url,
        "headers": dict(upload.headers),
        "expires_at": upload.expires_at,
    }
