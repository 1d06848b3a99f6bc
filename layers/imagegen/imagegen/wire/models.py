"""Makes OpenAI's model objects, with the fields that each model accepts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from imagegen.domain.errors import UnknownModelError
from imagegen.domain.models import COMMON_TEXTS, Catalog, Choice, Decimal, ImageModel, Structured, Text, Whole
from imagegen.domain.money import Price, TokenPrice, usd
from imagegen.wire.requests import unknown_model

UpstreamsOf = Callable[[ImageModel], Sequence[str]]  # the upstreams that can be called for a model

_CREATED = 1767225600  # 2026-01-01: OpenAI's model object requires a time, and the models have none


def models_answer(catalog: Catalog, upstreams_of: UpstreamsOf) -> dict[str, Any]:
    """Returns OpenAI's list of models."""
    return {"object": "list", "data": [_model(model, catalog, upstreams_of) for model in catalog.models.values()]}


def model_answer(name: str, catalog: Catalog, upstreams_of: UpstreamsOf) -> dict[str, Any]:
    """Returns OpenAI's model object for a model or an alias. Raises UnknownModelError."""
    model = catalog.named(name)
    if model is None:
        raise UnknownModelError(unknown_model(name, catalog), param="model")
    return _model(model, catalog, upstreams_of)


def _model(model: ImageModel, catalog: Catalog, upstreams_of: UpstreamsOf) -> dict[str, Any]:
    upstreams = upstreams_of(model)
    return {
        "id": model.id,
        "object": "model",
        "created": _CREATED,
        "owned_by": model.owned_by,
        "default": model.id == catalog.default,
        "operations": model.operations,
        "images": _images(model),
        "available": bool(upstreams),
        "upstreams": upstreams,
        "quick": model.quick,
        "price": price_answer(model.price),
        "parameters": _parameters(model),
    }


def _images(model: ImageModel) -> dict[str, int]:
    """Returns how many input images a request may have, over all operations."""
    least = 0 if model.generates else min(rules.least for rules in model.inputs.values())
    return {"min": least, "max": max((rules.most for rules in model.inputs.values()), default=0)}


def price_answer(price: Price | None) -> dict[str, Any] | None:
    """Returns a price in USD: of an image, by the fields on which it depends, or of a million tokens by kind."""
    if price is None:
        return None
    if isinstance(price, TokenPrice):
        kinds = {name: usd(getattr(price, name)) for name in ("text_input", "image_input", "output")}
        return {"basis": "usage", **kinds, "max": usd(price.most)}
    return {"basis": "image", "fields": price.fields, "usd": _table_in_usd(price.table)}


def _table_in_usd(table: Any) -> Any:
    return {key: _table_in_usd(row) for key, row in table.items()} if isinstance(table, dict) else usd(table)


def _parameters(model: ImageModel) -> dict[str, dict[str, Any]]:
    """Returns the fields that have an effect for the model, with their values or bounds."""
    parameters: dict[str, dict[str, Any]] = {}
    if model.generates or any(rules.needs_prompt for rules in model.inputs.values()):
        parameters["prompt"] = {"type": "string", "max_characters": model.prompt_limit}
    defaults = {"response_format": model.default_response_format, **model.defaults}
    for name, field in model.fields.items():
        rule = field.rule
        if name in COMMON_TEXTS or (isinstance(rule, Choice) and not rule.values):
            continue
        match rule:
            case Choice():
                shown: dict[str, Any] = {"type": "string", "values": rule.values}
                shown |= {"free": asdict(rule.free)} if rule.free else {}
            case Whole():
                shown = {"type": "integer", "min": rule.least, "max": rule.most}
            case Decimal():
                shown = {"type": "number", "min": rule.least, "max": rule.most}
            case Text():
                shown = {"type": "string", "max_characters": rule.longest}
            case Structured():
                shown = {"type": "json", "schema": rule.schema}
        default = defaults.get(name, field.default)
        shown |= {"description": field.description} | ({} if default is None else {"default": default})
        parameters[name] = shown | ({"operations": field.operations} if field.operations else {})
    return parameters
