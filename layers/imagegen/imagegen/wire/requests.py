"""Reads the fields of a request for images. Refuses invalid requests with OpenAI's messages.

`wire.image_requests` reads the input images of a request.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from imagegen.domain.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.images import ImageRequest
from imagegen.domain.inputs import Operation
from imagegen.domain.models import Catalog, Choice, Decimal, ImageModel, RequestField, Structured, Text
from imagegen.wire.field_errors import missing
from imagegen.wire.json_text import decoded

# The longest prompt has 32,000 characters, which take at most 12 bytes each as JSON escapes.
MAX_BODY_BYTES = 512 * 1024
_LONGEST_NAME = 64  # only so many characters of an unknown model are compared with known names
_MOST_OPEN_BYTES = 32 * 1024  # of JSON; the record has 400 KB (DynamoDB developer guide, "Quotas in Amazon DynamoDB")
_MOST_NESTED = 32  # levels; processes with less stack must read them too
_MOST_PARTIAL_IMAGES = 3  # the limit of OpenAI
PATHS: Mapping[Operation, str] = {
    "generate": "/v1/images/generations",
    "edit": "/v1/images/edits",
    "variation": "/v1/images/variations",
    "describe": "/v1/images/descriptions",
}


class ReadRequest(msgspec.Struct, frozen=True, eq=False):
    """Reads the requests of one stack for an operation."""

    catalog: Catalog
    operation: Operation = "generate"

    def __call__(self, body: bytes, content_type: str | None) -> ImageRequest:
        """Returns a request that is valid for its model. A field with the value null counts as absent.

        Raises UnsupportedMediaTypeError, RequestTooLargeError, InvalidRequestError.
        """
        if media_type_of(content_type) != "application/json":
            raise UnsupportedMediaTypeError("Unsupported content type: the request body must be application/json.")
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLargeError(f"The request body is over {MAX_BODY_BYTES} bytes.")
        return self.fields(json_object(body))

    def fields(self, body: Mapping[str, Any], roles: Collection[str] = ()) -> ImageRequest:
        """Returns the same for a decoded body. `roles` are those of its input images. Raises InvalidRequestError."""
        left = {name: value for name, value in body.items() if value is not None}
        model = self.model(left)
        rules = model.inputs.get(self.operation)
        prompt = _prompt(left, model.prompt_limit, required=rules is None or rules.needs_prompt)
        values = {name: self._value(left, field) for name, field in model.fields.items()}
        values["response_format"] = values["response_format"] or model.default_response_format
        sent = {name for name, field in model.fields.items() if field.sent}
        request = ImageRequest(
            prompt=prompt,
            model=model.id,
            n=values["n"] or 1,
            response_format=values["response_format"],
            options={name: value for name, value in values.items() if name in sent and value is not None},
            operation=self.operation,
        )
        _check_exclusive(request.options, model)
        _check_fit(model.misfit(request.prompt, request.n, request.options))
        if rules:
            for name in (name for name in rules.needs if name not in request.options):
                raise missing(name)
            _check_fit(rules.misfit(request.options, roles))
        _check_no_stream(left, model)
        if model.open_fields:
            request = replace(request, options=_open_fields(left))
        else:
            _check_no_unknown(left)
            _check_output({**model.defaults_for(request.options), **request.options})
        return request

    def model(self, fields: dict[str, Any]) -> ImageModel:
        """Removes the name of the model from the fields, and returns the model with the fields of the operation.

        Without a name: the default, or the first with the size if the default lacks it.
        """
        name = _text(fields, "model")
        model = None if name is None else self.catalog.named(name)
        if model and self.operation in model.operations:
            return model.doing(self.operation)
        able = self.catalog.doing(self.operation)
        if not able.models:
            raise InvalidRequestError("No model of this service can do this.", param="model", code="model_not_found")
        if name is None:
            size = fields.get("size")
            return able.for_size(size) if isinstance(size, str) else able.models[able.default]
        if model is None:
            raise InvalidRequestError(unknown_model(name, able), param="model", code="model_not_found")
        message = _wrong_operation(model, self.operation, able)
        raise InvalidRequestError(message, param="model", code="invalid_value")

    def _value(self, fields: dict[str, Any], field: RequestField) -> Any:
        """Returns the value of a field, `None` if it is absent or means the model's default."""
        rule = field.rule
        if isinstance(rule, Choice):
            return self._choice(fields, field.name, rule)
        if isinstance(rule, Text):
            text = _text(fields, field.name)
            if text is not None and len(text) > rule.longest:
                raise _too_long(field.name, rule.longest, len(text))
            return text
        if isinstance(rule, Structured):
            value = fields.pop(field.name, None)
            if value is not None and not rule.fits(value):
                raise InvalidRequestError(
                    f"Invalid '{field.name}': expected {rule.summary}.", param=field.name, code="invalid_value"
                )
            return value
        if isinstance(rule, Decimal):
            return _number(fields, field.name, rule.least, rule.most)
        return _integer(fields, field.name, rule.least, rule.most)

    def _choice(self, fields: dict[str, Any], name: str, rule: Choice) -> str | None:
        value = _text(fields, name)
        if value is None or (value in rule.defaults and value not in rule.values):
            return None
        if rule.allows(value):
            return value
        raise _invalid_value(name, value, self._supported(name, rule, value))

    def _supported(self, name: str, rule: Choice, value: str) -> str:
        """Returns the supported values of a field, for an error message."""
        values = _listed(rule.accepted)
        if name != "size":
            return values
        free = rule.free
        also = (
            f", and any WIDTHxHEIGHT in multiples of {free.multiple_of}, at most {free.longest_edge} long and "
            f"{free.widest_ratio}:1, of {free.least_pixels} to {free.most_pixels} pixels"
            if free
            else ""
        )
        others = [other.id for other in self.catalog.doing(self.operation).models.values() if value in other.sizes]
        elsewhere = (
            f"Models with this size are: {_listed(others)}"
            if others
            else "GET /v1/models lists the sizes of all models"
        )
        return f"{values}{also}. {elsewhere}"


def _wrong_operation(model: ImageModel, operation: Operation, able: Catalog) -> str:
    paths = _listed(PATHS[each] for each in model.operations)
    return f"The model '{model.id}' is for {paths}. Models for {PATHS[operation]} are: {_listed(able.models)}."


def unknown_model(name: str, catalog: Catalog) -> str:
    """Returns the message for an unknown model."""
    closest = _closest_model(name, catalog)
    hint = f" Did you mean '{closest}'?" if closest else ""
    return f"The model '{_shown(name)}' does not exist.{hint} Supported models are: {_listed(catalog.models)}."


def _closest_model(name: str, catalog: Catalog) -> str | None:
    """Returns the model that a name probably means: it may have a vendor, a date or a spelling mistake."""
    from difflib import get_close_matches  # noqa: PLC0415  # needed only for an error

    plain = re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", name[:_LONGEST_NAME].rpartition("/")[2].lower())
    close = [plain] if plain in catalog.models else get_close_matches(plain, catalog.models, n=1)
    return next(iter(close), None)


# Each of these functions removes its field from `fields`. Fields that are left at the end are unknown.


def media_type_of(content_type: str | None) -> str:
    """Returns the media type in a Content-Type, without its parameters, in lower case."""
    return (content_type or "").partition(";")[0].strip().lower()


def json_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body. Raises InvalidRequestError."""
    try:
        value = decoded(body)
    except ValueError:
        raise InvalidRequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Invalid body: expected a JSON object, but got {_kind(value)} instead.")
    return value


def _prompt(fields: dict[str, Any], longest: int, *, required: bool) -> str:
    """Returns the prompt. If none is required, it has no effect: OpenAI's clients always send one with an edit."""
    prompt = _text(fields, "prompt")
    if not required:
        return ""
    if prompt is None:
        raise missing("prompt")
    if not prompt.strip():
        raise InvalidRequestError(
            "Invalid 'prompt': expected a string that is not blank.", param="prompt", code="empty_string"
        )
    if len(prompt) > longest:
        raise _too_long("prompt", longest, len(prompt))
    return prompt


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.pop(name, None)
    if value is None or isinstance(value, str):
        return value
    raise _invalid_type(name, "a string", value)


def _integer(fields: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid_type(name, "an integer", value)
    if value < least:
        raise InvalidRequestError(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {least}, but got {_shown(value)}.",
            param=name,
            code="integer_below_min_value",
        )
    if value > most:
        raise InvalidRequestError(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {most}, but got {_shown(value)}.",
            param=name,
            code="integer_above_max_value",
        )
    return value


def _number(fields: dict[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _invalid_type(name, "a number", value)
    if not least <= value <= most:
        raise InvalidRequestError(
            f"Invalid '{name}': expected a number from {least:g} to {most:g}, but got {_shown(value)}.",
            param=name,
            code="invalid_value",
        )
    return float(value)


def _check_no_stream(fields: dict[str, Any], model: ImageModel) -> None:
    stream = fields.pop("stream", None)
    if stream is not None and not isinstance(stream, bool):
        raise _invalid_type("stream", "a boolean", stream)
    knows_partial_images = "output_format" in model.fields
    partial_images = _integer(fields, "partial_images", 0, _MOST_PARTIAL_IMAGES) if knows_partial_images else None
    for name, value in (("stream", stream), ("partial_images", partial_images)):
        if value:
            raise InvalidRequestError("Streaming is not supported here.", param=name, code="unsupported_value")


def _check_no_unknown(fields: dict[str, Any]) -> None:
    for name in fields:
        raise InvalidRequestError(f"Unknown parameter: '{_shown(name)}'.", param=_shown(name), code="unknown_parameter")


def _open_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the fields that this service does not know, for a model that gets them as they come."""
    for name, value in fields.items():
        if _is_nested(value, _MOST_NESTED):
            raise InvalidRequestError(
                f"Invalid '{_shown(name)}': nested more than {_MOST_NESTED} levels deep.",
                param=_shown(name),
                code="invalid_value",
            )
    if len(msgspec.json.encode(fields)) > _MOST_OPEN_BYTES:
        raise InvalidRequestError(
            f"Invalid body: the fields other than the prompt are over {_MOST_OPEN_BYTES} bytes.", code="invalid_value"
        )
    return fields


def _is_nested(value: Any, levels: int) -> bool:
    """Returns whether a JSON value has more than this many levels of lists and objects."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            below
            for each in level
            if isinstance(each, list | dict)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _check_exclusive(options: Mapping[str, Any], model: ImageModel) -> None:
    for group in model.exclusive_fields:
        given = [name for name in group if name in options]
        for other in given[1:]:
            raise InvalidRequestError(
                f"Invalid '{other}': cannot be combined with '{given[0]}'.", param=other, code="invalid_value"
            )


def _check_fit(wrong: tuple[str, str] | None) -> None:
    if wrong:
        name, reason = wrong
        raise InvalidRequestError(f"Invalid '{name}': {reason}.", param=name, code="invalid_value")


def _check_output(options: Mapping[str, Any]) -> None:
    output_format = options.get("output_format")
    for name in ("frame_count", "frame_duration_ms"):
        if name in options and output_format != "gif":
            raise InvalidRequestError(
                f"Invalid '{name}': supported only for output_format 'gif'.", param=name, code="invalid_value"
            )
    if options.get("background") == "transparent" and output_format in ("jpeg", "gif"):
        raise InvalidRequestError(
            f"Transparent background is not supported for output_format '{output_format}'; use 'png' or 'webp'.",
            param="background",
            code="invalid_value",
        )
    if options.get("output_compression") not in (None, 100) and output_format not in ("jpeg", "webp"):
        raise InvalidRequestError(
            "Compression below 100 is supported only for output_format 'jpeg' and 'webp'.",
            param="output_compression",
            code="invalid_value",
        )


def _invalid_type(name: str, expected: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid type for '{name}': expected {expected}, but got {_kind(value)} instead.",
        param=name,
        code="invalid_type",
    )


def _too_long(name: str, longest: int, length: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{name}': string too long. Expected a string with maximum length {longest}, "
        f"but got a string with length {length} instead.",
        param=name,
        code="string_above_max_length",
    )


def _invalid_value(name: str, value: str, supported: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid value: '{_shown(value)}'. Supported values are: {supported}.", param=name, code="invalid_value"
    )


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "null")


def _shown(value: object) -> str:
    """Returns a value of the caller as text, cut for an error message."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a very large number"
    return text if len(text) <= 64 else f"{text[:64]}…"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
