"""Reads and answers requests for an upload."""

from typing import Any

from imagegen.domain.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.inputs import MEDIA_TYPES, MOST_BYTES, SignedUpload
from imagegen.wire.requests import json_object, media_type_of

_MOST_BODY_BYTES = 4096


def read_upload(body: bytes, content_type: str | None) -> tuple[str, int]:
    """Returns the media type and the bytes of the image. Raises InvalidRequestError, UnsupportedMediaTypeError.

    Raises RequestTooLargeError if the body is larger than any valid one: it may be the image itself.
    """
    if media_type_of(content_type) != "application/json":
        raise UnsupportedMediaTypeError(
            "Unsupported content type: the request body must be application/json. The image is sent to the URL in the "
            "answer."
        )
    if len(body) > _MOST_BODY_BYTES:
        raise RequestTooLargeError("The request body is too large: the image is sent to the URL in the answer.")
    fields = json_object(body)
    length, media_type = fields.pop("bytes", None), fields.pop("media_type", None)
    for name in fields:
        raise InvalidRequestError(f"Unknown parameter: '{name[:64]}'.", param=name[:64], code="unknown_parameter")
    for name, value in (("bytes", length), ("media_type", media_type)):
        if value is None:
            raise InvalidRequestError(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MOST_BYTES:
        raise InvalidRequestError(
            f"Invalid 'bytes': expected a whole number from 1 to {MOST_BYTES}.", param="bytes", code="invalid_value"
        )
    if media_type not in MEDIA_TYPES:
        raise InvalidRequestError(
            f"Invalid 'media_type': expected one of {', '.join(MEDIA_TYPES)}.", param="media_type", code="invalid_value"
        )
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
