"""Reads the event `Image Generation Requested`: a request for images in OpenAI's format, and its caller."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imagegen.domain.credentials import is_caller_name
from imagegen.domain.errors import InvalidRequestError
from imagegen.domain.images import AskedImages
from imagegen.wire.field_errors import invalid
from imagegen.wire.headers import read_idempotency_key
from imagegen.wire.json_text import decoded

DEFAULT_CALLER = "events"
MOST_CUSTOM_ID = 256  # characters


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """An event with an id. `fields` are its request, which is not checked yet."""

    event_id: str
    caller: str | None
    custom_id: str | None
    fields: Mapping[str, Any]

    def read(self, read_fields: Callable[[Mapping[str, Any]], AskedImages]) -> "ImagesByEvent":
        """Returns the checked request. Raises InvalidRequestError."""
        own = dict(self.fields)
        client = own.pop("client", None)
        if client is not None and self.caller is None:
            raise invalid("client", "1 to 32 of a-z, 0-9 and -, beginning with a letter or a digit")
        custom_id = own.pop("custom_id", None)
        if custom_id is not None and self.custom_id is None:
            raise invalid("custom_id", f"a string of 1 to {MOST_CUSTOM_ID} characters")
        key = own.pop("idempotency_key", None)
        if key is not None and not isinstance(key, str):
            raise invalid("idempotency_key", "a string")
        return ImagesByEvent(
            asked=read_fields(own),
            caller=self.caller or DEFAULT_CALLER,
            custom_id=self.custom_id,
            idempotency_key=read_idempotency_key(key, "idempotency_key") or self.event_id,
        )


@dataclass(frozen=True, slots=True)
class ImagesByEvent:
    asked: AskedImages
    caller: str
    custom_id: str | None
    idempotency_key: str


def read_event(body: str) -> RequestEvent:
    """Returns the event of EventBridge in an SQS message. Raises InvalidRequestError if it is not an event."""
    try:
        event = decoded(body.encode("utf-8", "surrogatepass"))
    except ValueError:
        raise InvalidRequestError("We could not parse the event as JSON.") from None
    detail = event.get("detail") if isinstance(event, dict) else None
    event_id = event.get("id") if isinstance(event, dict) else None
    if (
        not isinstance(detail, dict)
        or not isinstance(event_id, str)
        or not re.fullmatch(r"[\x20-\x7e]{1,255}", event_id)
    ):
        raise InvalidRequestError("Expected an EventBridge event with an id and a detail that is an object.")
    client, custom_id = detail.get("client"), detail.get("custom_id")
    return RequestEvent(
        event_id=event_id,
        caller=client if isinstance(client, str) and is_caller_name(client) else None,
        custom_id=custom_id if isinstance(custom_id, str) and 1 <= len(custom_id) <= MOST_CUSTOM_ID else None,
        fields=detail,
    )
