"""The bodies of the API as JSON Schemas, with the catalog's own limits."""

from collections.abc import Iterable
from typing import Any

from imagegen.domain.batches import BatchStatus
from imagegen.domain.generations import Status
from imagegen.domain.models import (
    CATALOG,
    DEFAULT_MODEL,
    MAX_IMAGES,
    MOST_COMPRESSION,
    RESPONSE_FORMATS,
    STYLES,
    ImageModel,
    model_for,
)
from imagegen.wire.requests import DEFAULT_QUALITIES, DEFAULT_STYLE, LONGEST_USER

Schema = dict[str, Any]

GENERATION_ID = r"^gen_[A-Za-z0-9_-]{22}$"
IMAGE_ID = r"^img_[A-Za-z0-9_-]{22}$"
BATCH_ID = r"^batch_[A-Za-z0-9_-]{22}$"
_FREE_SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
_NO_STREAM = "Streaming is not supported."
# Fields that only some models know; of the others they are an unknown parameter.
_SPECIAL = ("background", "moderation", "output_format", "output_compression", "partial_images")


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(prompt_cap: int) -> dict[str, Schema]:
    """By name. `prompt_cap` is the deployer's limit in characters, for the models that it applies to."""
    return {
        "CreateImagesRequest": _request(prompt_cap),
        "ImagesResponse": _images_response(),
        "Image": _image(),
        "Usage": _object(
            {
                **{name: _count() for name in ("input_tokens", "output_tokens", "total_tokens")},
                "input_tokens_details": ref("TokenDetails"),
            },
            {"output_tokens_details": ref("TokenDetails")},
            description="Token counts, as the upstream tells them, summed over all of its calls.",
        ),
        "TokenDetails": _object({"text_tokens": _count(), "image_tokens": _count()}),
        "Generation": _generation(),
        "GenerationList": _list("Generation", GENERATION_ID),
        "DeletedGeneration": _object(
            {
                "id": _id(GENERATION_ID),
                "object": {"const": "image.generation.deleted"},
                "deleted": {"const": True},
            }
        ),
        "Model": _model(),
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}}),
        "ModelParameters": _model_parameters(),
        "Batch": _batch(),
        "BatchList": _list("Batch", BATCH_ID),
        "Health": _object({"status": {"const": "ok"}}),
        "ErrorObject": _error_object(),
        "ErrorResponse": _object({"error": ref("ErrorObject")}),
    }


def _request(prompt_cap: int) -> Schema:
    models = list(CATALOG.values())
    longest = max(model.longest_prompt(prompt_cap) for model in models)
    free = any(model.free_sizes for model in models)
    fields = {
        "prompt": {
            "type": "string",
            "minLength": 1,
            "maxLength": longest,
            "pattern": r"\S",
            "description": "What the image shows. Not blank.",
        },
        "model": _choice(
            CATALOG,
            f"Without it `{DEFAULT_MODEL}`, or the first model that has the `size`. An operator may list aliases.",
        ),
        "n": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": MAX_IMAGES,
            "default": 1,
            "description": "For every model; always answered with exactly so many images.",
        },
        "size": {
            "type": ["string", "null"],
            "anyOf": [{"enum": [*_all(model.sizes for model in models), None]}]
            + ([{"type": "string", "pattern": _FREE_SIZE}] if free else []),
            "description": "By model; left to the upstream where it is not given. Some models take any size in bounds.",
        },
        "quality": _choice(
            _all((*(model.qualities for model in models), DEFAULT_QUALITIES)),
            "By model; left to the upstream likewise. `standard` and `auto` name the default of every model.",
        ),
        "response_format": _choice(
            RESPONSE_FORMATS, "Default `url` for DALL·E and Flux, `b64_json` for GPT image. For every model."
        ),
        "style": _choice(STYLES, f"`{DEFAULT_STYLE}` names the default of every model."),
        "user": _identifier(),
        "safety_identifier": _identifier(),
        "background": _choice(_all(model.backgrounds for model in models), "GPT image."),
        "moderation": _choice(_all(model.moderations for model in models), "GPT image."),
        "output_format": _choice(_all(model.output_formats for model in models), "GPT image."),
        "output_compression": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": MOST_COMPRESSION,
            "description": f"GPT image. Below {MOST_COMPRESSION} only for `jpeg` and `webp`.",
        },
        "stream": {"type": ["boolean", "null"], "not": {"const": True}, "description": _NO_STREAM},
        "partial_images": {"type": ["integer", "null"], "minimum": 0, "maximum": 0, "description": _NO_STREAM},
    }
    return {
        "type": "object",
        "description": "An explicit null is an absent field.",
        "properties": fields,
        "required": ["prompt"],
        "additionalProperties": False,
        "allOf": [*(_rule(model, prompt_cap) for model in models), *_output_rules()],
    }


def _rule(model: ImageModel, prompt_cap: int) -> Schema:
    """What holds for a request that names this model, or that names none and has a size that leads to this one."""
    named = {"properties": {"model": {"const": model.id}}, "required": ["model"]}
    own_sizes = [size for size in model.sizes if model_for(size) is model]
    unnamed: Schema = {"properties": {"model": {"const": None}, "size": {"enum": own_sizes}}, "required": ["size"]}
    if model.id == DEFAULT_MODEL:  # without "required" it holds too if there is no such field
        others = [size for size in _all(each.sizes for each in CATALOG.values()) if model_for(size) is not model]
        unnamed = {"properties": {"model": {"const": None}, "size": {"not": {"enum": others}}}}
    known = {"background": model.backgrounds, "moderation": model.moderations}
    allowed = {name: {"enum": [*values, None]} for name, values in known.items() if values}
    allowed["quality"] = {"enum": [*dict.fromkeys((*model.qualities, *DEFAULT_QUALITIES)), None]}
    allowed["style"] = {"enum": [*(model.styles or (DEFAULT_STYLE,)), None]}
    special = set(_SPECIAL) if model.output_formats else set()
    sizes: list[Schema] = [{"enum": [*model.sizes, None]}]
    if model.free_sizes:
        sizes.append({"type": "string", "pattern": _FREE_SIZE})
    return {
        "if": {"anyOf": [named, unnamed]} if own_sizes else named,
        "then": {
            "properties": {
                "prompt": {"maxLength": model.longest_prompt(prompt_cap)},
                "size": sizes[0] if len(sizes) == 1 else {"anyOf": sizes},
                **allowed,
                **{name: {"type": "null"} for name in _SPECIAL if name not in special},
            }
        },
    }


def _identifier() -> Schema:
    return {
        "type": ["string", "null"],
        "maxLength": LONGEST_USER,
        "description": "The caller's own user; sent to the upstreams that take it.",
    }


def _output_rules() -> list[Schema]:
    compressed = {"properties": {"output_compression": {"type": "integer", "exclusiveMaximum": MOST_COMPRESSION}}}
    transparent = {"properties": {"background": {"const": "transparent"}}, "required": ["background"]}
    lossy = {"properties": {"output_format": {"enum": ["jpeg", "webp"]}}, "required": ["output_format"]}
    return [
        {"if": compressed | {"required": ["output_compression"]}, "then": lossy},
        {"if": transparent, "then": {"properties": {"output_format": {"enum": ["png", "webp", None]}}}},
    ]


def _images_response() -> Schema:
    told = {name: {"type": "string"} for name in ("background", "output_format", "quality", "size")}
    return _object(
        {
            "created": _time(),
            "id": _id(GENERATION_ID),
            "data": {"type": "array", "items": ref("Image"), "minItems": 1, "maxItems": MAX_IMAGES},
        },
        told | {"usage": ref("Usage")},
        description="OpenAI's. What a GPT image upstream tells comes along.",
    )


def _image() -> Schema:
    return _object(
        {
            "id": _id(IMAGE_ID),
            "permalink": {
                "type": "string",
                "format": "uri",
                "description": "The durable link: it works as long as the image is kept.",
            },
        },
        {
            "url": {
                "type": "string",
                "format": "uri",
                "description": "Presigned, it works until `expires_at`; or the `permalink`, if the operator chose so.",
            },
            "expires_at": _time("Stands beside a presigned `url`."),
            "b64_json": {"type": "string", "contentEncoding": "base64", "description": "In place of a `url`."},
            "revised_prompt": {"type": "string"},
        },
        description="An image carries `url` or `b64_json`, never both.",
    )


def _generation() -> Schema:
    return _object(
        {
            "id": _id(GENERATION_ID),
            "object": {"const": "image.generation"},
            "status": {"type": "string", "enum": [status.value for status in Status]},
            "created_at": _time(),
            "completed_at": _nullable(_time()),
            "model": {"type": "string"},
            "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES},
            "repeated_calls": _count("Upstream calls of unknown outcome that were sent again: each may be paid twice."),
            "extra_calls": _count("Upstream calls for images that were missing from an answer."),
            "data": {
                "type": "array",
                "items": ref("Image"),
                "description": "The images stored so far, freshly signed.",
            },
            "error": {"anyOf": [ref("ErrorObject"), {"type": "null"}]},
        }
    )


def _model() -> Schema:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": _time(),
            "owned_by": {"type": "string"},
            "default": {"type": "boolean", "description": "Whether it is used where a request names none."},
            "parameters": ref("ModelParameters"),
        }
    )


def _model_parameters() -> Schema:
    def values(**more: Schema) -> Schema:
        return _object({"values": {"type": "array", "items": {"type": "string"}}}, more)

    bounds = _object({"min": _count(), "max": _count()})
    free = _object(
        {name: _count() for name in ("multiple_of", "longest_edge", "least_pixels", "most_pixels", "widest_ratio")}
    )
    optional = ("quality", "style", "background", "moderation", "output_format")
    return _object(
        {
            "prompt": _object({"max_characters": _count()}),
            "n": bounds,
            "size": values(free=free | {"description": "Bounds of any other WIDTHxHEIGHT that the model takes."}),
            "response_format": values(default={"type": "string", "enum": list(RESPONSE_FORMATS)}),
        },
        {name: values() for name in optional} | {"output_compression": bounds},
        description="What makes a difference to the model, by field of the request.",
    )


def _batch() -> Schema:
    text, null = {"type": ["string", "null"]}, {"type": "null"}
    time = _nullable(_time())
    return _object(
        {
            "id": _id(BATCH_ID),
            "object": {"const": "batch"},
            "endpoint": {"const": "/v1/images/generations"},
            "errors": null,
            "input_file_id": {"type": "string", "description": "A key in the inbox bucket, as are the other two."},
            "completion_window": {"type": "string"},
            "status": {"type": "string", "enum": [status.value for status in BatchStatus]},
            "output_file_id": text,
            "error_file_id": text,
            "created_at": _time(),
            "in_progress_at": _time(),
            "expires_at": null,
            "finalizing_at": time,
            "completed_at": time,
            "failed_at": null,
            "expired_at": null,
            "cancelling_at": time,
            "cancelled_at": time,
            "request_counts": _object({name: _count() for name in ("total", "completed", "failed")}),
            "metadata": null,
        },
        description="OpenAI's Batch object, of a file that was dropped into the inbox.",
    )


def _error_object() -> Schema:
    text = {"type": ["string", "null"]}
    stored = _object({"id": _id(IMAGE_ID), "permalink": {"type": "string", "format": "uri"}})
    return _object(
        {
            "message": {"type": "string", "description": "For people; it may change."},
            "type": {"type": "string"},
            "param": text | {"description": "The field that is wrong."},
            "code": text | {"description": "For programs; it does not change."},
        },
        {"images": {"type": "array", "items": stored, "description": "What was stored all the same."}},
    )


def _list(of: str, id_pattern: str) -> Schema:
    last = {"type": ["string", "null"], "pattern": id_pattern}
    return _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref(of)},
            "first_id": last,
            "last_id": last | {"description": "The `after` of the next page."},
            "has_more": {"type": "boolean"},
        },
        description="Newest first.",
    )


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, description: str = "") -> Schema:
    told = {"description": description} if description else {}
    return {"type": "object", **told, "properties": required | (optional or {}), "required": list(required)}


def _choice(values: Iterable[str], description: str = "", default: str | None = None) -> Schema:
    schema: Schema = {"type": ["string", "null"], "enum": [*values, None]}
    return (
        schema
        | ({"description": description} if description else {})
        | ({"default": default} if default is not None else {})
    )


def _all(of_each: Iterable[Iterable[str]]) -> list[str]:
    """Every value once, in order."""
    return list(dict.fromkeys(value for values in of_each for value in values))


def _id(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _time(description: str = "") -> Schema:
    return {"type": "integer", "description": f"Unix seconds. {description}".strip()}


def _count(description: str = "") -> Schema:
    return {"type": "integer", "minimum": 0} | ({"description": description} if description else {})


def _nullable(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
