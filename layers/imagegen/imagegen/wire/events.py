"""Makes the published events. Their schemas are in events/schemas/.

An event contains no prompt, no signed URL and no message of an upstream, because readers of the bus may not be allowed
to see these.
"""

from typing import Any

from imagegen.domain.failures import Failure
from imagegen.domain.generations import Generation, Rejection, Status
from imagegen.wire.costs import cost_answer
from imagegen.wire.errors import error_object
from imagegen.wire.links import Links

_TYPES = {
    Status.COMPLETED: "Image Generation Completed",
    Status.FAILED: "Image Generation Failed",
    Status.CANCELLED: "Image Generation Cancelled",
}


def generation_event(generation: Generation) -> tuple[str, dict[str, Any]]:
    """Returns the detail-type and the detail of the event for the end of a generation."""
    links = Links(generation.base_url)
    detail = {
        "id": generation.id,
        "client": generation.caller,
        "custom_id": generation.origin.custom_id,
        "batch_id": generation.origin.batch_id,
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
        "upstream": generation.upstream,
        "cost": cost_answer(generation),
        "created_at": int(generation.created_at),
        "completed_at": None if generation.completed_at is None else int(generation.completed_at),
        "error": _error(generation.failure) if generation.failure else None,
    }
    return _TYPES[generation.status], detail


def rejection_event(rejection: Rejection) -> tuple[str, dict[str, Any]]:
    """Returns the detail-type and the detail of the event for a rejected request."""
    detail = {
        "event_id": rejection.event_id,
        "client": rejection.caller,
        "custom_id": rejection.custom_id,
        "error": {**_error(rejection.failure), "message": rejection.failure.message},  # written by this service
    }
    return "Image Generation Rejected", detail


def _error(failure: Failure) -> dict[str, Any]:
    error = error_object(failure)
    return {"type": error["type"], "code": error["code"], "param": error["param"]}
