"""The details of the events that we put on the bus: events/schemas/ has their schemas.

They hold no prompt, no signed URL and no words of an upstream: whoever may read the bus need not be let see them.
"""

from typing import Any

from imagegen.domain.failures import raised_again
from imagegen.domain.generations import Failure, Generation, Rejection, Status
from imagegen.wire.errors import error_object
from imagegen.wire.links import Links

_TYPES = {
    Status.COMPLETED: "Image Generation Completed",
    Status.FAILED: "Image Generation Failed",
    Status.CANCELLED: "Image Generation Cancelled",
}


def generation_event(generation: Generation) -> tuple[str, dict[str, Any]]:
    """The detail-type and the detail that tell how a generation ended."""
    links = Links(generation.base_url)
    detail = {
        "id": generation.id,
        "client": generation.caller,
        "custom_id": generation.origin.custom_id,
        "model": generation.request.model,
        "n": generation.request.n,
        "images": [
            {
                "id": image_id,
                "permalink": links.permalink(image_id),
                "media_type": generation.stored[image_id].media_type,
            }
            for image_id in generation.stored_ids
        ],
        "repeated_calls": generation.repeated_calls,
        "extra_calls": generation.extra_calls,
        "created_at": int(generation.created_at),
        "completed_at": None if generation.completed_at is None else int(generation.completed_at),
        "error": _told(generation.failure) if generation.failure else None,
    }
    return _TYPES[generation.status], detail


def rejection_event(rejection: Rejection) -> tuple[str, dict[str, Any]]:
    """The detail-type and the detail that tell why an event began no generation."""
    detail = {
        "event_id": rejection.event_id,
        "client": rejection.client,
        "custom_id": rejection.custom_id,
        "error": {**_told(rejection.failure), "message": rejection.failure.message},  # our own words
    }
    return "Image Generation Rejected", detail


def _told(failure: Failure) -> dict[str, Any]:
    error = error_object(raised_again(failure))
    return {"type": error["type"], "code": error["code"], "param": error["param"]}
