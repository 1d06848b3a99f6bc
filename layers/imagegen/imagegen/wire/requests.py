"""Reads the body of `POST /v1/images/generations`, and refuses what OpenAI refuses in OpenAI's words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from imagegen.domain.errors import InvalidRequestError, RequestTooLargeError, UnsupportedMediaTypeError
from imagegen.domain.images import ImageRequest
from imagegen.domain.models import (
    CATALOG,
    DEFAULT_MODEL,
    MAX_IMAGES,
    MOST_COMPRESSION,
    RESPONSE_FORMATS,
    ImageModel,
    model_for,
)
from imagegen.wire.json_text import decoded

# The longest prompt, 32,000 characters, takes at most 12 bytes a character as JSON escapes.
MAX_BODY_BYTES = 512 * 1024
LONGEST_USER = 512  # characters; OpenAI names no limit, and a record has one
NO_ALIASES: Mapping[str, str] = MappingProxyType({})
# Values with which clients name a default, for models that do not know them too: LangChain, CrewAI, Haystack and Camel
# send a quality, others a style.
DEFAULT_QUALITIES = ("standard", "auto")
DEFAULT_STYLE = "vivid"

_LONGEST_NAME = 64  # characters of a model's name that are compared with the names of models

T = TypeVar("T", bound=str)


def read_image_request(
    body: bytes, content_type: str | None, *, prompt_cap: int, aliases: Mapping[str, str] = NO_ALIASES
) -> ImageRequest:
    """A request that the catalog allows. `prompt_cap` is in characters, for the models it applies to.

    `aliases` are the operator's further names of models. An explicit null is an absent field. Raises
    UnsupportedMediaTypeError, RequestTooLargeError, InvalidRequestError.
    """
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaTypeError("Unsupported content type: the request body must be application/json.")
    if len(body) > MAX_BODY_BYTES:
        raise RequestTooLargeError(f"The request body is over {MAX_BODY_BYTES} bytes.")
    return read_image_fields(_object(body), prompt_cap=prompt_cap, aliases=aliases)


def read_image_fields(
    body: Mapping[str, Any], *, prompt_cap: int, aliases: Mapping[str, str] = NO_ALIASES
) -> ImageRequest:
    """The same for a body that is decoded already. Raises InvalidRequestError."""
    fields = {name: value for name, value in body.items() if value is not None}
    model = _model(fields, aliases)
    request = ImageRequest(
        prompt=_prompt(fields, model.longest_prompt(prompt_cap)),
        model=model.id,
        n=_integer(fields, "n", 1, MAX_IMAGES) or 1,
        quality=_quality(fields, model),
        response_format=_choice(fields, "response_format", RESPONSE_FORMATS) or model.default_response_format,
        style=_style(fields, model),
        user=_identifier(fields, "user"),
        safety_identifier=_identifier(fields, "safety_identifier"),
        size=_size(fields, model),
        background=_choice(fields, "background", model.backgrounds),
        moderation=_choice(fields, "moderation", model.moderations),
        output_format=_choice(fields, "output_format", model.output_formats),
        output_compression=_integer(fields, "output_compression", 0, MOST_COMPRESSION)
        if model.output_formats
        else None,
    )
    _check_no_stream(fields, model)
    _check_no_unknown(fields)
    _check_output(request)
    return request


# Each of these takes its field out, so that what is left over at the end is what nobody knows.


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = decoded(body)
    except ValueError:
        raise InvalidRequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Invalid body: expected a JSON object, but got {_kind(value)} instead.")
    return value


def _model(fields: dict[str, Any], aliases: Mapping[str, str]) -> ImageModel:
    """The model of that name; without a name the default, or one that has the size if the default has not."""
    name = _text(fields, "model")
    if name is None:
        size = fields.get("size")
        return model_for(size) if isinstance(size, str) else CATALOG[DEFAULT_MODEL]
    model = CATALOG.get(name) or CATALOG.get(aliases.get(name, ""))
    if model is None:
        raise InvalidRequestError(unknown_model(name), param="model", code="model_not_found")
    return model


def unknown_model(name: str) -> str:
    """What to answer to a model's name that is not known."""
    closest = _closest_model(name)
    hint = f" Did you mean '{closest}'?" if closest else ""
    return f"The model '{_shown(name)}' does not exist.{hint} Supported models are: {_listed(CATALOG)}."


def _closest_model(name: str) -> str | None:
    """The model that a name probably means: without a vendor ahead or a date behind, or with another spelling."""
    from difflib import get_close_matches  # noqa: PLC0415  # only a refusal needs it

    plain = re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", name[:_LONGEST_NAME].rpartition("/")[2].lower())
    return next(iter([plain] if plain in CATALOG else get_close_matches(plain, CATALOG, n=1)), None)


def _prompt(fields: dict[str, Any], longest: int) -> str:
    prompt = _text(fields, "prompt")
    if prompt is None:
        raise InvalidRequestError(
            "Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter"
        )
    if not prompt.strip():
        raise InvalidRequestError(
            "Invalid 'prompt': expected a text that is not blank.", param="prompt", code="empty_string"
        )
    if len(prompt) > longest:
        raise _too_long("prompt", longest, len(prompt))
    return prompt


def _identifier(fields: dict[str, Any], name: str) -> str | None:
    """What the caller calls its own user."""
    user = _text(fields, name)
    if user is not None and len(user) > LONGEST_USER:
        raise _too_long(name, LONGEST_USER, len(user))
    return user


def _quality(fields: dict[str, Any], model: ImageModel) -> str | None:
    quality = _text(fields, "quality")
    if quality is None or quality in model.qualities:
        return quality
    if quality in DEFAULT_QUALITIES:
        return None
    raise _invalid_value("quality", quality, _listed(dict.fromkeys((*model.qualities, *DEFAULT_QUALITIES))))


def _style(fields: dict[str, Any], model: ImageModel) -> str | None:
    style = _text(fields, "style")
    if style is None or style in model.styles:
        return style
    if style == DEFAULT_STYLE:
        return None
    raise _invalid_value("style", style, _listed(model.styles or (DEFAULT_STYLE,)))


def _size(fields: dict[str, Any], model: ImageModel) -> str | None:
    size = _text(fields, "size")
    if size is None or model.allows_size(size):
        return size
    free = model.free_sizes
    also = (
        f", and any WIDTHxHEIGHT in multiples of {free.multiple_of}, at most {free.longest_edge} long and "
        f"{free.widest_ratio}:1, of {free.least_pixels} to {free.most_pixels} pixels"
        if free
        else ""
    )
    others = [other.id for other in CATALOG.values() if size in other.sizes]
    elsewhere = f"Models with this size are: {_listed(others)}" if others else "GET /v1/models lists all models' sizes"
    raise _invalid_value("size", size, f"{_listed(model.sizes)}{also}. {elsewhere}")


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


def _choice(fields: dict[str, Any], name: str, allowed: Sequence[T]) -> T | None:
    """One of the allowed values. A field that allows none is one that the model does not know: it stays."""
    if not allowed:
        return None
    value = _text(fields, name)
    if value is None:
        return None
    for known in allowed:
        if value == known:
            return known
    raise _invalid_value(name, value, _listed(allowed))


def _check_no_stream(fields: dict[str, Any], model: ImageModel) -> None:
    stream = fields.pop("stream", None)
    if stream is not None and not isinstance(stream, bool):
        raise _invalid_type("stream", "a boolean", stream)
    partial_images = _integer(fields, "partial_images", 0, 3) if model.output_formats else None
    for name, value in (("stream", stream), ("partial_images", partial_images)):
        if value:
            raise InvalidRequestError("Streaming is not supported here.", param=name, code="unsupported_value")


def _check_no_unknown(fields: dict[str, Any]) -> None:
    for name in fields:
        raise InvalidRequestError(f"Unknown parameter: '{_shown(name)}'.", param=_shown(name), code="unknown_parameter")


def _check_output(request: ImageRequest) -> None:
    if request.background == "transparent" and request.output_format == "jpeg":
        raise InvalidRequestError(
            "Transparent background is not supported for output_format 'jpeg'; use 'png' or 'webp'.",
            param="background",
            code="invalid_value",
        )
    if request.output_compression not in (None, 100) and request.output_format not in ("jpeg", "webp"):
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
    """What the caller sent, short enough to be sent back."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "a very large number"
    return text if len(text) <= 64 else f"{text[:64]}…"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
