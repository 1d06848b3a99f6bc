"""Makes OpenAI's model objects, with the fields that each model accepts."""

from dataclasses import asdict
from typing import Any

from imagegen.domain.errors import UnknownModelError
from imagegen.domain.models import COMMON_TEXTS, Catalog, Choice, ImageModel, Structured, Text, Whole
from imagegen.wire.requests import unknown_model

_CREATED = 1767225600  # 2026-01-01: OpenAI's model object requires a time, and the models have none


def models_answer(catalog: Catalog) -> dict[str, Any]:
    """Returns OpenAI's list of models."""
    return {"object": "list", "data": [_model(model, catalog) for model in catalog.models.values()]}


def model_answer(name: str, catalog: Catalog) -> dict[str, Any]:
    """Returns OpenAI's model object for a model or an alias. Raises UnknownModelError."""
    model = catalog.named(name)
    if model is None:
        raise UnknownModelError(unknown_model(name, catalog), param="model")
    return _model(model, catalog)


def _model(model: ImageModel, catalog: Catalog) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": _CREATED,
        "owned_by": model.owned_by,
        "default": model.id == catalog.default,
        "parameters": _parameters(model, catalog),
    }


def _parameters(model: ImageModel, catalog: Catalog) -> dict[str, dict[str, Any]]:
    """Returns the fields that have an effect for the model, with their values or bounds."""
    parameters: dict[str, dict[str, Any]] = {"prompt": {"max_characters": catalog.longest_prompt(model)}}
    for name, field in model.fields.items():
        rule = field.rule
        if name in COMMON_TEXTS or (isinstance(rule, Choice) and not rule.values):
            continue
        match rule:
            case Choice():
                parameters[name] = {"values": rule.values} | ({"free": asdict(rule.free)} if rule.free else {})
            case Whole():
                parameters[name] = {"min": rule.least, "max": rule.most}
            case Text():
                parameters[name] = {"max_characters": rule.longest}
            case Structured():
                parameters[name] = {"schema": rule.schema}
    parameters["response_format"]["default"] = model.default_response_format
    return parameters
