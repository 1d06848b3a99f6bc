"""The models and requests of tests."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.generations import Generation, admit
from imagegen.domain.images import ImageRequest, UpstreamRequest
from imagegen.domain.inputs import Operation
from imagegen.domain.models import Catalog
from imagegen.providers.catalog import KNOWN_MODELS
from imagegen.wire.image_requests import ReadImageRequest, ReadOperation, readers_of
from imagegen.wire.requests import ReadRequest

MODELS = CONFIGURATION.catalog.models
# Those that make images from a prompt alone, with the fields that they then have.
GENERATING = CONFIGURATION.catalog.doing("generate").models
DEFAULT_MODEL = CONFIGURATION.catalog.default


def admitted(request: ImageRequest, **fields: Any) -> Generation:
    """A new generation of this request."""
    return admit(request, MODELS[request.model], **fields)


def catalog(cap: int, aliases: Mapping[str, str]) -> Catalog:
    """The models of models.toml with another limit of prompts in characters, and with these further names."""
    known = CONFIGURATION.catalog
    models = {
        name: replace(model, prompt_limit=min(cap, KNOWN_MODELS[model.like].prompt_limit))
        if model.prompt_capped
        else model
        for name, model in known.models.items()
    }
    return Catalog(models, known.default, {**known.aliases, **aliases}, known.defaults)


def read_request(cap: int = 1_000, operation: Operation = "generate", **aliases: str) -> ReadRequest:
    """A reader of requests for an operation. `cap` is the limit of a prompt in characters."""
    return ReadRequest(catalog(cap, aliases), operation)


def read_edit() -> ReadImageRequest:
    return ReadImageRequest(read_request(operation="edit"))


def read_operation(cap: int = 1_000) -> ReadOperation:
    """A reader of requests that name their operation, as events do."""
    return ReadOperation(read_request(cap), readers_of(catalog(cap, {}), from_s3=True))


def upstream_request(request: ImageRequest, n: int = 1, reference: str = "reference") -> UpstreamRequest:
    """One upstream call for `n` images of the request, by the model's own name."""
    return UpstreamRequest(request, request.model, request.model, n, reference)
