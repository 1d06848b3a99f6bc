"""The models and requests of tests."""

from typing import Any

from imagegen.domain.generations import Generation, admit
from imagegen.domain.images import ImageRequest
from imagegen.providers.catalog import DEFAULT_MODEL, MODELS, catalog
from imagegen.wire.requests import ReadRequest

__all__ = ["DEFAULT_MODEL", "MODELS", "admitted", "catalog", "read_request"]


def admitted(request: ImageRequest, **fields: Any) -> Generation:
    """A new generation of this request."""
    return admit(request, MODELS[request.model], **fields)


def read_request(cap: int = 1_000, **aliases: str) -> ReadRequest:
    """A reader of requests. `cap` is the limit of a prompt in characters."""
    return ReadRequest(catalog(cap, aliases))
