"""Describes the bodies of the API as JSON Schemas, with the limits of the models."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, get_args

from imagegen.domain.batches import BatchStatus
from imagegen.domain.cost import Basis
from imagegen.domain.files import MOST_FILE_BYTES, Purpose
from imagegen.domain.generations import Status
from imagegen.domain.inputs import IMAGE, MASK, MEDIA_TYPES, MOST_BYTES, Operation
from imagegen.domain.models import (
    COMMON_TEXTS,
    LONGEST_PROMPT,
    MAX_IMAGES,
    MOST_COMPRESSION,
    Catalog,
    Choice,
    Decimal,
    ImageModel,
    RequestField,
    Structured,
    Text,
    Whole,
)
from imagegen.wire.batch_requests import ENDPOINTS, WINDOW
from imagegen.wire.files import LONGEST_FILENAME, LONGEST_SECONDS, PURPOSES, SHORTEST_SECONDS

Schema = dict[str, Any]

GENERATION_ID = r"^gen_[A-Za-z0-9_-]{22}$"
IMAGE_ID = r"^img_[A-Za-z0-9_-]{22}$"
BATCH_ID = r"^batch_[A-Za-z0-9_-]{22}$"
UPLOAD_ID = r"^upl_[A-Za-z0-9_-]{22}$"
FILE_ID = r"^file-[A-Za-z0-9_-]{22}$"
INPUT_ID = r"^(inp_|upl_|img_|file-)[A-Za-z0-9_-]{22}$"
# The bodies of requests with input images: OpenAI's JSON, and a form.
BODIES: dict[Operation, str] = {"edit": "Edit", "variation": "Variation", "describe": "Description"}
_FREE_SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
_NO_STREAM = "Streaming is not supported."
_MOST_PAIRS, _LONGEST_NAME, _LONGEST_VALUE = 16, 64, 512  # of metadata, as OpenAI


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(catalog: Catalog) -> dict[str, Schema]:
    """Returns all schemas, by name."""
    return {
        "CreateImagesRequest": _request(catalog.doing("generate")),
        **{f"Create{name}Request": _with_images(catalog, each) for each, name in BODIES.items()},
        **{f"Create{name}Form": _form(catalog, each) for each, name in BODIES.items()},
        "NamedImage": _named_image(),
        "Descriptions": _object(
            {
                "created": _time(),
                "id": _id(GENERATION_ID),
                "model": {"type": "string"},
                "data": {"type": "array", "items": ref("Description"), "minItems": 1},
            }
        ),
        "Description": _object({"text": {"type": "string"}}),
        "CreateUploadRequest": _object(
            {
                "bytes": {"type": "integer", "minimum": 1, "maximum": MOST_BYTES, "description": "The exact size."},
                "media_type": {"enum": list(MEDIA_TYPES)},
            }
        )
        | {"additionalProperties": False},
        "Upload": _object(
            {
                "id": _id(UPLOAD_ID) | {"description": "Names the image in a request, once it is uploaded."},
                "object": {"const": "image.upload"},
                **_signed_put(),
            }
        ),
        "InputImage": _object(
            {
                "id": _id(INPUT_ID),
                "field": {"type": "string", "description": "The field that it came in."},
                "media_type": {"enum": list(MEDIA_TYPES)},
                "bytes": _count(),
                "width": _count("Pixels."),
                "height": _count("Pixels."),
                "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            }
        ),
        "ImagesResponse": _images_response(),
        "Image": _image(),
        "Usage": _object(
            {
                **{name: _count() for name in ("input_tokens", "output_tokens", "total_tokens")},
                "input_tokens_details": ref("TokenDetails"),
            },
            {"output_tokens_details": ref("TokenDetails")},
            description="Token counts as the upstream reports them, summed over all of its calls.",
        ),
        "TokenDetails": _object({"text_tokens": _count(), "image_tokens": _count()}),
        "Generation": _generation(),
        "Cost": _object(
            {
                "usd": {
                    "type": ["number", "null"],
                    "minimum": 0,
                    "description": "US dollars. Null if the model has no price.",
                },
                "basis": {
                    "type": "string",
                    "enum": list(get_args(Basis)),
                    "description": (
                        "`image`: by the price of an image. `usage`: by the token counts of the upstream. `unknown`: "
                        "a part is not known and counts with its highest price."
                    ),
                },
            }
        ),
        "RunningGeneration": _generation(message={"type": "string", "description": "How to wait for the images."}),
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
        "ModelParameters": _model_parameters(catalog),
        **_files(),
        "CreateBatchRequest": _batch_request(),
        "Batch": _batch(),
        "BatchErrors": _batch_errors(),
        "BatchList": _list("Batch", BATCH_ID),
        "Health": _object({"status": {"const": "ok"}}),
        "ErrorObject": _error_object(),
        "ErrorResponse": _object({"error": ref("ErrorObject")}),
    }


def request_fields(catalog: Catalog) -> dict[str, Schema]:
    """Returns the fields of a request, by name. Each accepts the values of any model."""
    models = list(catalog.models.values())
    or_by_size = ", or the first model with the `size`" if any(model.sizes for model in models) else ""
    fields: dict[str, Schema] = {
        "prompt": _prompt(max((model.prompt_limit for model in models), default=LONGEST_PROMPT)),
        "model": _choice(
            catalog.models,
            f"Default `{catalog.default}`{or_by_size}. An operator may add aliases.",
        ),
    }
    return fields | {name: _any_of(variants) for name, variants in catalog.fields.items()}


def _with_images(catalog: Catalog, operation: Operation) -> Schema:
    """Returns the JSON of a request with images. It is one object: what each model accepts is in its own object."""
    able = catalog.doing(operation)
    most = _most_images(able, operation)
    fields = {f"{IMAGE}s": _several(ref("NamedImage"), most.pop(IMAGE))}
    for role, number in most.items():
        fields[role] = ref("NamedImage") if role == MASK else _several(ref("NamedImage"), number)
    return _fields_with(fields, able, operation) | {"required": [f"{IMAGE}s"]}


def _form(catalog: Catalog, operation: Operation) -> Schema:
    """Returns the form of a request with images. Numbers are text in it."""
    able = catalog.doing(operation)
    file: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
    most = _most_images(able, operation)
    image = file | {"description": "A file, or a text: an id, a data: URL or an https URL."}
    several = {f"{IMAGE}[]": _several(file, most[IMAGE])} if most[IMAGE] > 1 else {}
    files: dict[str, Schema] = {IMAGE: image} | several
    for role in (role for role in most if role != IMAGE):
        files[role] = file if role == MASK else _several(file, most[role])
    needed: Schema = (
        {"anyOf": [{"required": [name]} for name in (IMAGE, *several)]} if several else {"required": [IMAGE]}
    )
    return _fields_with(files, able, operation) | needed


def _several(image: Schema, most: int) -> Schema:
    return {"type": "array", "items": image, "minItems": 1, "maxItems": most}


def _fields_with(images: dict[str, Schema], catalog: Catalog, operation: Operation) -> Schema:
    fields = request_fields(catalog)
    is_needed = any(model.inputs[operation].needs_prompt for model in catalog.models.values())
    effect = "Required, unless the model needs none. Then it has no effect." if is_needed else "Has no effect."
    fields["prompt"] = {"type": ["string", "null"], "description": effect}
    is_open = any(model.open_fields for model in catalog.models.values())
    more = {"type": "null"} if not is_open else True
    return {
        "type": "object",
        "description": "`GET /v1/models` says which fields and how many images each model accepts.",
        "properties": images | fields,
        "additionalProperties": more,
    }


def _most_images(catalog: Catalog, operation: Operation) -> dict[str, int]:
    """Returns the fields of images, with the most images of each that any model accepts."""
    rules = [model.inputs[operation] for model in catalog.models.values()]
    roles = _all((IMAGE, *([MASK] if each.mask else []), *each.references) for each in rules) or [IMAGE]
    return {role: max((each.most_of(role) for each in rules), default=1) for role in roles}


def _named_image() -> Schema:
    url = {"type": "string", "description": "An https URL, or a data: URL in base64."}
    file = {
        "type": "string",
        "description": (
            "`upl_…` of an upload, `file-…` of a file with the purpose `vision`, or `img_…` of an image made here."
        ),
    }
    return {
        "oneOf": [
            _object({"image_url": url}) | {"additionalProperties": False},
            _object({"file_id": file}) | {"additionalProperties": False},
        ]
    }


def _request(catalog: Catalog) -> Schema:
    return {
        "description": "A field with the value null counts as absent.",
        "anyOf": list(_kinds(catalog)),
    }


def _prompt(longest: int) -> Schema:
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": longest,
        "pattern": r"\S",
        "description": "A description of the image. Must not be blank.",
    }


def _any_of(variants: Sequence[RequestField]) -> Schema:
    """Returns the schema of all values that any variant of a field accepts."""
    rules = [field.rule for field in variants]
    choices, bounds = [each for each in rules if isinstance(each, Choice)], [r for r in rules if isinstance(r, Whole)]
    texts, numbers = [each for each in rules if isinstance(each, Text)], [r for r in rules if isinstance(r, Decimal)]
    schema: Schema = {}
    if choices:
        free = next((each.free for each in choices if each.free), None)
        schema = _values(Choice(tuple(_all(each.accepted for each in choices)), free=free))
        schema["type"] = ["string", "null"]
    if bounds:
        schema = {"type": ["integer", "null"]}
        schema |= {"minimum": min(each.least for each in bounds), "maximum": max(each.most for each in bounds)}
    if numbers:
        schema = {"type": ["number", "null"]}
        schema |= {"minimum": min(each.least for each in numbers), "maximum": max(each.most for each in numbers)}
    if texts:
        schema = {"type": ["string", "null"], "maxLength": max(each.longest for each in texts)}
    for rule in rules:
        if isinstance(rule, Structured):
            schema = {"anyOf": [rule.schema, {"type": "null"}]}
    return schema | {"description": description_of(variants)}


def description_of(variants: Sequence[RequestField]) -> str:
    """Returns the description of a field: that of the first variant with one."""
    return next((field.description for field in variants if field.description), "")


def _values(choice: Choice) -> Schema:
    named: Schema = {"enum": [*choice.accepted, None]}
    return {"anyOf": [named, {"type": "string", "pattern": _FREE_SIZE}]} if choice.free else named


def _kinds(catalog: Catalog) -> Iterator[Schema]:
    """Yields the kinds of requests: each names a model, or names none and has a size that selects one.

    Models that accept the same are one kind. A kind is a whole object. With one object and conditions for each model,
    the combinations are too many for programs that generate requests.
    """
    groups: list[tuple[dict[str, Schema], list[ImageModel]]] = []
    for model in catalog.models.values():
        properties = _properties(model, catalog)
        group = next((models for known, models in groups if known == properties), None)
        if group is None:
            groups.append((properties, [model]))
        else:
            group.append(model)
    for properties, models in groups:
        names = [model.id for model in models]
        rules: Schema = {"allOf": _output_rules(models[0])} if "output_format" in models[0].fields else {}
        if models[0].open_fields:
            rules["additionalProperties"] = True
        own_sizes = _all([size for size in model.sizes if catalog.for_size(size) is model] for model in models)
        for variant in _one_of_each(models[0], properties):
            yield _kind(", ".join(names), variant | {"model": {"enum": names}}, "model", **rules)
            unnamed = variant | {"model": {"type": "null"}}
            if catalog.default in names:
                yield _kind("without a model", unnamed, **rules)
            elif own_sizes and "description" in variant["size"]:  # in this variant, it may have any value
                sized = unnamed | {"size": {"enum": own_sizes}}
                yield _kind("without a model, with a size", sized, "size", **rules)


def _kind(title: str, properties: dict[str, Schema], *required: str, **rules: Any) -> Schema:
    fields = {"type": "object", "properties": properties, "required": ["prompt", *required]}
    return {"title": title, **fields, "additionalProperties": {"type": "null"}, **rules}


def _properties(model: ImageModel, catalog: Catalog) -> dict[str, Schema]:
    """Returns the fields of a request for the model."""
    fields = model.fields
    properties = {"prompt": _prompt(model.prompt_limit)}
    for name, variants in catalog.fields.items():
        if field := fields.get(name):
            properties[name] = _any_of([field]) | {"description": description_of([field, *variants])}
            if field.default is not None:
                properties[name]["default"] = field.default
    properties["stream"] = {"type": ["boolean", "null"], "not": {"const": True}, "description": _NO_STREAM}
    if "output_format" in fields:
        properties["partial_images"] = {"type": ["integer", "null"], "minimum": 0, "maximum": 0}
        properties["partial_images"]["description"] = _NO_STREAM
    return properties


def _one_of_each(model: ImageModel, properties: dict[str, Schema]) -> Iterator[dict[str, Schema]]:
    """Yields the properties with one field of each exclusive group. The others of a group may mean the default."""
    groups = model.exclusive_fields
    for chosen in product(*groups):
        others = {name for group in groups for name in group} - {*chosen}
        defaults = {name: {"enum": [*model.choice(name).defaults, None]} for name in others}
        yield properties | defaults


def _output_rules(model: ImageModel) -> list[Schema]:
    compressed = {"properties": {"output_compression": {"type": "integer", "exclusiveMaximum": MOST_COMPRESSION}}}
    transparent = {"properties": {"background": {"const": "transparent"}}, "required": ["background"]}
    animated = {"properties": {"output_format": {"const": "gif"}}, "required": ["output_format"]}
    lossy = {"properties": {"output_format": {"enum": ["jpeg", "webp"]}}, "required": ["output_format"]}
    return [
        {"if": compressed | {"required": ["output_compression"]}, "then": lossy},
        {"if": transparent, "then": {"properties": {"output_format": {"enum": ["png", "webp", None]}}}},
        *(
            {"if": {"properties": {name: {"type": "integer"}}, "required": [name]}, "then": animated}
            for name in ("frame_count", "frame_duration_ms")
            if name in model.fields
        ),
    ]


def _images_response() -> Schema:
    details = {name: {"type": "string"} for name in ("background", "output_format", "quality", "size")}
    return _object(
        {
            "created": _time(),
            "id": _id(GENERATION_ID),
            "data": {"type": "array", "items": ref("Image"), "minItems": 1, "maxItems": MAX_IMAGES},
        },
        details | {"usage": ref("Usage")},
        description="OpenAI's object, with the details that a GPT image upstream reports.",
    )


def _image() -> Schema:
    return _object(
        {
            "id": _id(IMAGE_ID),
            "permalink": {
                "type": "string",
                "format": "uri",
                "description": "The durable link. It works as long as the image is kept.",
            },
        },
        {
            "url": {
                "type": "string",
                "format": "uri",
                "description": "A presigned URL, valid until `expires_at`. The `permalink` if the operator chose so.",
            },
            "expires_at": _time("Set with a presigned `url`."),
            "b64_json": {"type": "string", "contentEncoding": "base64", "description": "Instead of `url`."},
            "revised_prompt": {"type": "string"},
            "seed": {"type": "integer", "description": "As the upstream reports it, like the fields below."},
            "resolution": {"type": "string"},
            "style_type": {"type": "string"},
            "actions": {
                "type": "array",
                "items": _object({"name": {"type": "string"}, "label": {"type": ["string", "null"]}}),
                "description": "What the upstream can do with the image, with the text on its button.",
            },
        },
        description="An image has `url` or `b64_json`, never both.",
    )


def _generation(**more: Schema) -> Schema:
    return _object(
        {
            "id": _id(GENERATION_ID),
            "object": {"const": "image.generation"},
            "status": {"type": "string", "enum": [status.value for status in Status]},
            "created_at": _time(),
            "completed_at": _nullable(_time()),
            "model": {"type": "string"},
            "operation": {"type": "string", "enum": list(get_args(Operation))},
            "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES},
            "inputs": {"type": "array", "items": ref("InputImage"), "description": "The input images, in order."},
            "repeated_calls": _count(
                "Upstream calls with an unknown outcome that were sent again. Each may be paid twice."
            ),
            "extra_calls": _count("Upstream calls for images that were missing from an answer."),
            "upstream": {
                "type": ["string", "null"],
                "description": "The upstream that served, the first one if several did.",
            },
            "cost": {
                "anyOf": [ref("Cost"), {"type": "null"}],
                "description": "What it cost or may have cost, once it has ended.",
            },
            "data": {
                "type": "array",
                "items": {"anyOf": [ref("Image"), ref("Description")]},
                "description": "The images stored so far, with fresh URLs. For a description, its texts.",
            },
            "error": {"anyOf": [ref("ErrorObject"), {"type": "null"}]},
            **more,
        },
        {
            "progress": {
                "type": "integer",
                "minimum": 0,
                "maximum": 100,
                "description": "How far its tasks are together, if the upstream says it.",
            }
        },
    )


def _model() -> Schema:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": _time(),
            "owned_by": {"type": "string"},
            "default": {"type": "boolean", "description": "Whether it is the model of requests that name none."},
            "operations": {"type": "array", "items": {"enum": list(get_args(Operation))}},
            "images": _object({"min": _count(), "max": _count()})
            | {"description": "How many input images a request may have. `min` is 0 if the model also generates."},
            "available": {"type": "boolean", "description": "Whether at least one of its upstreams has a key."},
            "upstreams": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The upstreams with a key, in the order in which they are called.",
            },
            "quick": {"type": "boolean", "description": "Whether an image usually takes much less than 29 seconds."},
            "price": _price(),
            "parameters": ref("ModelParameters"),
        }
    )


def _price() -> Schema:
    usd = {"type": "number", "minimum": 0}
    return {
        "description": "In USD, by the operator's models.toml.",
        "oneOf": [
            _object(
                {
                    "basis": {"const": "image"},
                    "fields": {"type": "array", "items": {"type": "string"}},
                    "usd": {
                        "description": "The price of an image. A table for each of `fields`, by the field's value.",
                        "type": ["number", "object"],
                    },
                },
            ),
            _object(
                {
                    "basis": {"const": "usage"},
                    **dict.fromkeys(("text_input", "image_input", "output"), usd),
                    "max": usd | {"description": "The highest price that one image is expected to have."},
                },
                description="Of a million tokens.",
            ),
            {"type": "null", "description": "models.toml has no price."},
        ],
    }


def _model_parameters(catalog: Catalog) -> Schema:
    text, number = {"type": "string"}, {"type": "integer"}
    operations: Schema = {
        "type": "array",
        "items": {"enum": list(get_args(Operation))},
        "description": "Those that have the field. Without it, all of the model.",
    }

    def parameter(kind: str, own: dict[str, Schema], default: Schema, **more: Schema) -> Schema:
        return _object(
            {"type": {"const": kind}, **own, "description": text},
            {"default": default, "operations": operations, **more},
        )

    def values(**more: Schema) -> Schema:
        return parameter("string", {"values": {"type": "array", "items": text}}, text, **more)

    bounds = parameter("integer", {"min": _count(), "max": _count()}, number)
    limits = parameter("number", {"min": {"type": "number"}, "max": {"type": "number"}}, {"type": "number"})
    free = _object(
        {name: _count() for name in ("multiple_of", "longest_edge", "least_pixels", "most_pixels", "widest_ratio")}
    )
    longest = {"max_characters": _count()}
    of_rule = {Choice: values(), Whole: bounds, Decimal: limits, Text: parameter("string", longest, text)}
    a_schema = {"schema": {"type": "object", "description": "JSON Schema of the value."}}
    of_rule[Structured] = parameter("json", a_schema, {})
    own = {field.name: type(field.rule) for model in catalog.models.values() for field in model.own_fields}
    return _object(
        {
            "n": bounds,
            "response_format": values(),
        },
        {
            "prompt": _object({"type": {"const": "string"}, **longest}),
            "size": values(free=free | {"description": "Bounds of any other WIDTHxHEIGHT that the model accepts."}),
            **{
                name: of_rule[rule]
                for name, rule in own.items()
                if name not in ("size", *COMMON_TEXTS, "response_format")
            },
        },
        description="The request fields that have an effect for the model, with their values or bounds.",
    )


def _files() -> dict[str, Schema]:
    """Returns the schemas of files, by name."""
    purpose: Schema = {"type": "string", "enum": [each.value for each in PURPOSES]}
    filename: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_FILENAME}
    expires_at = _time("When the file is deleted. Null for a file in the inbox bucket.")
    return {
        "CreateFileForm": _file_form(purpose),
        "CreateFileUploadRequest": _object(
            {
                "purpose": purpose,
                "filename": filename | {"description": "Printable characters. Folders before the name are left out."},
                "bytes": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MOST_FILE_BYTES,
                    "description": f"The exact size. At most {MOST_BYTES} with the purpose `vision`.",
                },
            },
            {"expires_after": {"anyOf": [ref("ExpiresAfter"), {"type": "null"}]}},
        )
        | {
            "additionalProperties": {"type": "null"},
            "if": {"properties": {"purpose": {"const": Purpose.VISION.value}}, "required": ["purpose"]},
            "then": {"properties": {"bytes": {"maximum": MOST_BYTES}}},
        },
        "ExpiresAfter": _object(
            {"anchor": {"const": "created_at"}, "seconds": _expiry_seconds()},
            description="When the file is deleted, if that is before the end of the operator's retention.",
        ),
        "File": _object(
            {
                "id": _id(FILE_ID),
                "object": {"const": "file"},
                "bytes": _count(),
                "created_at": _time(),
                "expires_at": _nullable(expires_at),
                "filename": {"type": "string"},
                "purpose": {"type": "string", "enum": [each.value for each in Purpose]},
                "status": {"const": "processed"},
                "status_details": {"type": "null"},
            },
            description="OpenAI's File object.",
        ),
        "FileUpload": _object(
            {
                "id": _id(FILE_ID) | {"description": "The id of the file, which exists once it is uploaded."},
                "object": {"const": "file.upload"},
                "purpose": purpose,
                "filename": filename,
                "bytes": _count("The exact size that the PUT must have."),
                **_signed_put(),
            }
        ),
        "FileList": _list("File", FILE_ID, "Newest first, or oldest first if `order` is `asc`."),
        "DeletedFile": _object({"id": _id(FILE_ID), "object": {"const": "file"}, "deleted": {"const": True}}),
    }


def _file_form(purpose: Schema) -> Schema:
    """Returns the form of a request for a file. The seconds are text in it, as all values of a form."""
    file = {
        "type": "string",
        "contentMediaType": "application/octet-stream",
        "minLength": 1,
        "description": "A part with a file name, which becomes the `filename`. Must not be empty.",
    }
    anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
    return _object(
        {"file": file, "purpose": purpose},
        {anchor: {"const": "created_at"}, seconds: _expiry_seconds()},
    ) | {"additionalProperties": False, "dependentRequired": {anchor: [seconds], seconds: [anchor]}}


def _expiry_seconds() -> Schema:
    return {"type": "integer", "minimum": SHORTEST_SECONDS, "maximum": LONGEST_SECONDS}


def _signed_put() -> dict[str, Schema]:
    """Returns the fields of an upload that say how to send the content."""
    return {
        "method": {"const": "PUT"},
        "url": {"type": "string", "format": "uri"},
        "headers": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The headers that the PUT must have.",
        },
        "expires_at": _time("The PUT works once, until then."),
    }


def _batch_request() -> Schema:
    text: Schema = {"type": "string", "maxLength": _LONGEST_VALUE}
    return _object(
        {
            "input_file_id": _id(FILE_ID) | {"description": "A file with the purpose `batch`."},
            "endpoint": {"type": "string", "enum": list(ENDPOINTS), "description": "The `url` of every line."},
            "completion_window": {"const": WINDOW},
        },
        {
            "metadata": {
                "type": ["object", "null"],
                "maxProperties": _MOST_PAIRS,
                "propertyNames": {"maxLength": _LONGEST_NAME},
                "additionalProperties": text,
            }
        },
    ) | {"additionalProperties": {"type": "null"}}


def _batch() -> Schema:
    text = {"type": ["string", "null"]}
    file, time = _nullable(_id(FILE_ID)), _nullable(_time())
    return _object(
        {
            "id": _id(BATCH_ID),
            "object": {"const": "batch"},
            "endpoint": {
                "type": "string",
                "enum": list(ENDPOINTS),
                "description": "The `url` of every line. In a file of the inbox, each line may have its own.",
            },
            "errors": {
                "anyOf": [ref("BatchErrors"), {"type": "null"}],
                "description": "Why a batch failed before any line began.",
            },
            "input_file_id": _id(FILE_ID),
            "completion_window": {"const": WINDOW},
            "status": {"type": "string", "enum": [status.value for status in BatchStatus]},
            "output_file_id": file | {"description": "The lines that succeeded, once the batch has ended."},
            "error_file_id": file | {"description": "The lines that failed, once the batch has ended."},
            "created_at": _time(),
            "in_progress_at": time,
            "expires_at": _nullable(_time("No further line begins then. Null for a file of the inbox.")),
            "finalizing_at": time,
            "completed_at": time,
            "failed_at": time,
            "expired_at": time,
            "cancelling_at": time,
            "cancelled_at": time,
            "request_counts": _object({name: _count() for name in ("total", "completed", "failed")}),
            "metadata": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        },
        {
            "input_key": {"type": "string", "description": "The key of the file in the inbox bucket."},
            "output_key": text | {"description": "The key of the output file in the same bucket."},
            "error_key": text | {"description": "The key of the error file in the same bucket."},
        },
        description="OpenAI's Batch object. Only a batch of the inbox has the three keys.",
    )


def _batch_errors() -> Schema:
    problem = _object(
        {
            "code": {"type": "string", "description": "A stable code for programs."},
            "message": {"type": "string", "description": "A text for people. It may change."},
            "line": {"type": ["integer", "null"], "minimum": 1, "description": "Null if the whole file is meant."},
            "param": {"type": ["string", "null"], "description": "The field that caused the error."},
        }
    )
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": problem, "minItems": 1}})


def _error_object() -> Schema:
    text = {"type": ["string", "null"]}
    stored = _object({"id": _id(IMAGE_ID), "permalink": {"type": "string", "format": "uri"}})
    return _object(
        {
            "message": {"type": "string", "description": "A text for people. It may change."},
            "type": {"type": "string"},
            "param": text | {"description": "The field that caused the error."},
            "code": text | {"description": "A stable code for programs."},
        },
        {"images": {"type": "array", "items": stored, "description": "The images that were stored."}},
    )


def _list(of: str, id_pattern: str, order: str = "Newest first.") -> Schema:
    last = {"type": ["string", "null"], "pattern": id_pattern}
    return _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref(of)},
            "first_id": last,
            "last_id": last | {"description": "The value of `after` for the next page."},
            "has_more": {"type": "boolean"},
        },
        description=order,
    )


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, description: str = "") -> Schema:
    described = {"description": description} if description else {}
    return {"type": "object", **described, "properties": required | (optional or {}), "required": list(required)}


def _choice(values: Iterable[str], description: str = "", default: str | None = None) -> Schema:
    schema: Schema = {"type": ["string", "null"], "enum": [*values, None]}
    return (
        schema
        | ({"description": description} if description else {})
        | ({"default": default} if default is not None else {})
    )


def _all(of_each: Iterable[Iterable[str]]) -> list[str]:
    """Returns every value once, in order."""
    return list(dict.fromkeys(value for values in of_each for value in values))


def _id(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _time(description: str = "") -> Schema:
    return {"type": "integer", "description": f"Unix seconds. {description}".strip()}


def _count(description: str = "") -> Schema:
    return {"type": "integer", "minimum": 0} | ({"description": description} if description else {})


def _nullable(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
