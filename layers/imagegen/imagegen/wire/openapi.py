"""Describes the API in OpenAPI 3.1. The limits come from the catalog, the errors from the table in `wire.errors`."""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from imagegen import VERSION
from imagegen.domain import errors
from imagegen.domain.errors import ImagegenError, MoneySpentError
from imagegen.domain.files import Purpose
from imagegen.domain.generations import Status
from imagegen.domain.inputs import Operation
from imagegen.domain.models import Catalog
from imagegen.wire.errors import answer_error
from imagegen.wire.files import MOST_LISTED_FILES
from imagegen.wire.headers import LISTED, MOST_LISTED
from imagegen.wire.requests import PATHS
from imagegen.wire.schemas import BATCH_ID, BODIES, FILE_ID, GENERATION_ID, IMAGE_ID, ref, schemas

Fragment = dict[str, Any]
ErrorClass = type[Exception]
ErrorShape = tuple[int, str, str | None]  # an error in an answer: status, type and code

_BEARER = "bearer"

# The errors of API Gateway itself, for all routes. The GatewayResponses of the template define the same.
GATEWAY: tuple[ErrorShape, ...] = (
    (400, "invalid_request_error", "bad_request"),
    (413, "invalid_request_error", "request_too_large"),
    (424, "server_error", "internal_error"),
    (424, "server_error", "request_not_answered"),
    (429, "rate_limit_error", "rate_limit_exceeded"),
    (504, "server_error", "gateway_timeout"),
)
GATEWAY_KEY: tuple[ErrorShape, ...] = (
    (401, "invalid_request_error", "invalid_api_key"),
    (503, "server_error", "authorizer_unavailable"),
)
# The codes of an InvalidRequestError.
INVALID = (
    "invalid_type",
    "invalid_value",
    "unknown_parameter",
    "missing_required_parameter",
    "empty_string",
    "string_above_max_length",
    "integer_below_min_value",
    "integer_above_max_value",
    "model_not_found",
    "unsupported_value",
)


def _concrete(base: type[ImagegenError]) -> Iterator[type[ImagegenError]]:
    for error in base.__subclasses__():
        if hasattr(error, "code") and error.__module__ == errors.__name__:
            yield error
        yield from _concrete(error)


ERRORS: tuple[type[ImagegenError], ...] = tuple(_concrete(ImagegenError))
_OWN_FAULT: tuple[ErrorClass, ...] = (Exception, errors.SecretMissingError, errors.SecretUnavailableError)
_READ: tuple[ErrorClass, ...] = (*_OWN_FAULT, errors.RecordsUnavailableError, errors.UnknownGenerationError)
_READ_BATCH: tuple[ErrorClass, ...] = (*_OWN_FAULT, errors.RecordsUnavailableError, errors.UnknownBatchError)
_STORED_FILE: tuple[ErrorClass, ...] = (Exception, errors.RecordsUnavailableError, errors.FileUnavailableError)
_READ_FILE: tuple[ErrorClass, ...] = (*_STORED_FILE, errors.UnknownFileError)
_OF_INPUTS: tuple[ErrorClass, ...] = (errors.InvalidImageError, errors.InputUnavailableError)
# The outcomes of a generation.
_OUTCOME: tuple[ErrorClass, ...] = (
    errors.InternalError,
    errors.PromptRejectedError,
    errors.UpstreamRefusedRequestError,
    errors.UpstreamKeyRefusedError,
    errors.UpstreamOutOfCreditError,
    errors.UpstreamMisconfiguredError,
    errors.UpstreamRateLimitedError,
    errors.UpstreamUnavailableError,
    errors.UpstreamUnreachableError,
    errors.UpstreamTaskRefundedError,
    *_OF_INPUTS,  # also of a result
    *(error for error in ERRORS if issubclass(error, MoneySpentError)),
)
# Further outcomes of a generation that a line of a batch began.
_OUTCOME_OF_LINE: tuple[ErrorClass, ...] = (errors.BatchCancelledError, errors.BatchExpiredError)
# Only a line of an error file has these. An answer has the code for a key that API Gateway refuses.
_ONLY_OF_LINE: tuple[ErrorClass, ...] = (errors.CallerRemovedError,)
_NO_KEY: list[Fragment] = []

_USD = r"^[0-9]+(\.[0-9]{1,6})?$"
_HEADERS: dict[str, Fragment] = {
    "x-request-id": {
        "description": "The id of the request, for a report to the operator.",
        "schema": {"type": "string"},
    },
    "x-generation-id": {
        "description": "The id of the generation, once it has begun.",
        "schema": {"type": "string", "pattern": GENERATION_ID},
    },
    "x-imagegen-cost": {
        "description": "What an ended generation cost or may have cost, in USD. Absent if its model has no price.",
        "schema": {"type": "string", "pattern": _USD},
    },
    "x-should-retry": {
        "description": "Whether to retry. It has precedence over the status for OpenAI's clients.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "Retry-After": {"description": "The seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "Location": {
        "description": "An address relative to the path of the request, or the URL of the stored content.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Preference-Applied": {"description": "The preferences that were applied.", "schema": {"type": "string"}},
    "x-ratelimit-limit-images": {
        "description": "The caller's quota in images a day.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-ratelimit-remaining-images": {
        "description": "The number of images that are left today.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-ratelimit-reset-images": {
        "description": "The time until the next day (UTC), such as `3h12m5s`.",
        "schema": {"type": "string", "pattern": "^[0-9]+h[0-9]+m[0-9]+s$"},
    },
    "x-ratelimit-limit-usd": {
        "description": "The caller's quota in USD a day, if it has one.",
        "schema": {"type": "string", "pattern": _USD},
    },
    "x-ratelimit-remaining-usd": {
        "description": "The USD that are left today. The highest price of the request is already taken.",
        "schema": {"type": "string", "pattern": _USD},
    },
    "Cache-Control": {"description": "Whether the answer may be cached.", "schema": {"type": "string"}},
    "ETag": {"description": "The value for `If-None-Match`.", "schema": {"type": "string"}},
    "Content-Disposition": {
        "description": "Under which name a browser stores the file (RFC 6266).",
        "schema": {"type": "string"},
    },
    "X-Content-Type-Options": {
        "description": "Keeps a browser from guessing the type of the file.",
        "schema": {"const": "nosniff"},
    },
}
_RESULT = ("x-generation-id", "x-imagegen-cost")
_QUOTA = (
    "x-ratelimit-limit-images",
    "x-ratelimit-remaining-images",
    "x-ratelimit-reset-images",
    "x-ratelimit-limit-usd",
    "x-ratelimit-remaining-usd",
)

_GENERATION_EXAMPLE = {
    "id": "gen_Yk3nD0qkQH6mJc2vXr8s1A",
    "object": "image.generation",
    "status": "in_progress",
    "created_at": 1795348800,
    "completed_at": None,
    "model": "dall-e-3",
    "operation": "generate",
    "n": 1,
    "inputs": [],
    "repeated_calls": 0,
    "extra_calls": 0,
    "upstream": None,
    "cost": None,
    "data": [],
    "error": None,
}
_RUNNING_EXAMPLE = _GENERATION_EXAMPLE | {
    "message": (
        "The image is still being made. GET https://images.example.com/v1/images/generations/"
        "gen_Yk3nD0qkQH6mJc2vXr8s1A/result with the same key to wait for it."
    )
}
_IMAGE_EXAMPLE = {
    "id": "img_sOXJz-3nbhQ4buPuOcOonA",
    "permalink": "https://images.example.com/v1/images/img_sOXJz-3nbhQ4buPuOcOonA",
    "url": "https://images-123.s3.eu-central-1.amazonaws.com/images/img_sOXJz-3nbhQ4buPuOcOonA?X-Amz-Expires=3600",
    "expires_at": 1795352400,
    "revised_prompt": "A cute baby sea otter, floating on its back",
}
_RESPONSE_EXAMPLE = {"created": 1795348800, "id": _GENERATION_EXAMPLE["id"], "data": [_IMAGE_EXAMPLE]}
_COMPLETED_EXAMPLE = _GENERATION_EXAMPLE | {
    "status": "completed",
    "completed_at": 1795348812,
    "upstream": "reseller",
    "cost": {"usd": 0.04, "basis": "image"},
    "data": [_IMAGE_EXAMPLE],
}
_REQUEST_EXAMPLE = {"model": "dall-e-3", "prompt": "A cute baby sea otter", "n": 1, "size": "1024x1024"}
_EXAMPLES_WITH_IMAGES: dict[Operation, Fragment] = {
    "edit": {
        "model": "gpt-image-1.5",
        "prompt": "Put the otter on a beach",
        "images": [{"file_id": _IMAGE_EXAMPLE["id"]}, {"image_url": "https://www.example.com/beach.jpg"}],
    },
    "variation": {"model": "dall-e-2", "images": [{"file_id": "upl_h1Rj2c4TQ0y8mVx6Lw9sKg"}], "n": 2},
    "describe": {"model": "mj_describe", "images": [{"file_id": _IMAGE_EXAMPLE["id"]}]},
}
_DESCRIPTIONS_EXAMPLE = {
    "created": 1795348800,
    "id": _GENERATION_EXAMPLE["id"],
    "model": "mj_describe",
    "data": [{"text": "a sea otter floating on its back, morning light --ar 1:1"}],
}
_UPLOAD_EXAMPLE = {
    "id": "upl_h1Rj2c4TQ0y8mVx6Lw9sKg",
    "object": "image.upload",
    "method": "PUT",
    "url": "https://images-123.s3.eu-central-1.amazonaws.com/inputs/5d41402a/upl_h1Rj2c4TQ0y8mVx6Lw9sKg?X-Amz-Expires=3600",
    "headers": {"Content-Type": "image/jpeg", "If-None-Match": "*"},
    "expires_at": 1795352400,
}
_FILE_EXAMPLE = {
    "id": "file-pV8sZ0bWqT3kYxJr5nLu7A",
    "object": "file",
    "bytes": 24_500,
    "created_at": 1795348700,
    "expires_at": 1797940700,
    "filename": "otters.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}
_FILE_UPLOAD_REQUEST_EXAMPLE = {"purpose": "batch", "filename": "otters.jsonl", "bytes": 50_000_000}
_FILE_UPLOAD_EXAMPLE = {
    "id": _FILE_EXAMPLE["id"],
    "object": "file.upload",
    **_FILE_UPLOAD_REQUEST_EXAMPLE,
    "method": "PUT",
    "url": "https://images-123.s3.eu-central-1.amazonaws.com/files/5d41402a/file-pV8sZ0bWqT3kYxJr5nLu7A?X-Amz-Expires=3600",
    "headers": {"Content-Type": "application/octet-stream", "If-None-Match": "*"},
    "expires_at": 1795352300,
}
_BATCH_REQUEST_EXAMPLE = {
    "input_file_id": _FILE_EXAMPLE["id"],
    "endpoint": "/v1/images/generations",
    "completion_window": "24h",
    "metadata": {"campaign": "spring"},
}
_BATCH_EXAMPLE = {
    "id": "batch_3q2-7wAAAAAAAAAAAAAAAA",
    "object": "batch",
    "endpoint": "/v1/images/generations",
    "errors": None,
    "input_file_id": _FILE_EXAMPLE["id"],
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1795348800,
    "in_progress_at": 1795348802,
    "expires_at": 1795435200,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 100, "completed": 40, "failed": 1},
    "metadata": {"campaign": "spring"},
}
_BEGUN_BATCH_EXAMPLE = _BATCH_EXAMPLE | {
    "status": "validating",
    "in_progress_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
}


def openapi_document(prefix: str, catalog: Catalog) -> Fragment:
    """Returns the document. `prefix` is the part before the paths of this service, such as a stage."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imagegen",
            "version": VERSION,
            "summary": "An OpenAI-compatible image generation API.",
            "description": (
                "OpenAI's clients work unchanged with this server's `/v1` as their base URL. Status 424 means that "
                "money may have been spent: retry it only if `x-should-retry` is `true`. Such a retry attaches to the "
                "same generation. A request waits for its images; a wait of minutes continues after a redirect (303)."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{_BEARER: []}],
        "tags": [{"name": name} for name in ("Images", "Generations", "Files", "Batches", "Models", "Service")],
        "paths": _paths(),
        "components": {
            "schemas": schemas(catalog),
            "headers": _HEADERS,
            "examples": {_example_name(each): _example(each) for each in sorted(_all_shapes(), key=str)},
            "securitySchemes": {
                _BEARER: {"type": "http", "scheme": "bearer", "description": "`ig_<client>_<secret>`, or a JWT."}
            },
        },
    }


def _paths() -> Fragment:
    generation, image = _path_id("generation_id", GENERATION_ID), _path_id("image_id", IMAGE_ID)
    return {
        "/v1/images/generations": {
            "post": _create(),
            "get": _operation(
                "listGenerations",
                "Generations",
                "Lists the generations of the caller, newest first",
                {200: _answer("A page of generations.", "GenerationList", _list_of(_COMPLETED_EXAMPLE))},
                (errors.InvalidRequestError, *_OWN_FAULT, errors.RecordsUnavailableError),
                parameters=[*_page(GENERATION_ID), _query("status", {"enum": [each.value for each in Status]})],
            ),
        },
        **{path: {"post": _create_from_images(each)} for each, path in PATHS.items() if each != "generate"},
        "/v1/images/uploads": {
            "post": _operation(
                "createUpload",
                "Images",
                "Prepares the upload of an input image that is too large for a request",
                {200: _answer("Where to upload the image.", "Upload", _UPLOAD_EXAMPLE)},
                (
                    errors.InvalidRequestError,
                    errors.UnsupportedMediaTypeError,
                    errors.RequestTooLargeError,
                    *_OWN_FAULT[:1],
                ),
            )
            | _body({"application/json": ("CreateUploadRequest", {"bytes": 8_000_000, "media_type": "image/jpeg"})})
        },
        "/v1/images/generations/{generation_id}": {
            "get": _operation(
                "getGeneration",
                "Generations",
                "Returns a generation with its status and the images stored so far",
                {200: _answer("The generation.", "Generation", _COMPLETED_EXAMPLE)},
                _READ,
                parameters=[generation],
            ),
            "delete": _operation(
                "deleteGeneration",
                "Generations",
                "Deletes a generation, its images and their links",
                {
                    200: _answer(
                        "The generation is deleted.",
                        "DeletedGeneration",
                        {"id": _GENERATION_EXAMPLE["id"], "object": "image.generation.deleted", "deleted": True},
                    )
                },
                (*_READ, errors.DeletionUnfinishedError),
                parameters=[generation],
            ),
        },
        "/v1/images/generations/{generation_id}/cancel": {
            "post": _operation(
                "cancelGeneration",
                "Generations",
                "Cancels a generation. No further upstream call begins. Paid images are kept, even if they come later",
                {
                    200: _answer(
                        "The cancelled generation.",
                        "Generation",
                        _GENERATION_EXAMPLE | {"status": "cancelled", "cost": {"usd": 0.04, "basis": "unknown"}},
                    )
                },
                (*_READ, errors.GenerationEndedError),
                parameters=[generation],
            )
        },
        "/v1/images/generations/{generation_id}/result": {
            "get": _result("getResult", generation),
            "post": _result("postResult", generation),
        },
        "/v1/images/{image_id}": {
            "get": _operation(
                "redirectToImage",
                "Images",
                "Redirects to an image. This is the durable link. It needs no key, only the id",
                {302: _redirect("A redirect to a fresh presigned URL.", "Cache-Control")},
                (Exception, errors.UnknownImageError),
                parameters=[image],
                is_open=True,
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "Models",
                "Lists the image models and the fields that each accepts",
                {200: _answer("All models.", "ModelList")},
                _OWN_FAULT[:1],
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "getModel",
                "Models",
                "Returns an image model, by its name or an alias",
                {200: _answer("The model.", "Model")},
                (errors.UnknownModelError, *_OWN_FAULT[:1]),
                parameters=[_path_id("model", r"\S")],
            )
        },
        **_file_paths(),
        **_batch_paths(),
        "/health": {
            "get": _operation(
                "getHealth",
                "Service",
                "Checks whether the service answers",
                {200: _answer("The service answers.", "Health", {"status": "ok"})},
                (Exception,),
                is_open=True,
            )
        },
        "/": {"get": _page_of("getPlayground", "Serves the playground", "text/html")},
        "/playground.js": {
            "get": _page_of("getPlaygroundScript", "Serves the script of the playground", "text/javascript")
        },
        "/playground.css": {
            "get": _page_of("getPlaygroundStyle", "Serves the style sheet of the playground", "text/css")
        },
        "/docs": {"get": _page_of("getDocs", "Serves this description as a web page", "text/html")},
        "/docs/{file}": {
            "get": _page_of(
                "getDocsFile",
                "Serves the files of that web page",
                "text/javascript",
                "text/css",
                parameters=[_parameter("file", "path", {"type": "string"})],
                failures=(errors.UnknownRouteError,),
            )
        },
        "/openapi.json": {"get": _page_of("getOpenapi", "Serves this description", "application/json")},
    }


def _file_paths() -> Fragment:
    file = _path_id("file_id", FILE_ID)
    return {
        "/v1/files": {
            "post": _operation(
                "createFile",
                "Files",
                "Stores a file: requests for a batch, or an input image",
                {200: _answer("The file.", "File", _FILE_EXAMPLE)},
                (errors.InvalidRequestError, errors.UnsupportedMediaTypeError, *_STORED_FILE),
            )
            | _body({"multipart/form-data": ("CreateFileForm", None)}),
            "get": _operation(
                "listFiles",
                "Files",
                "Lists the files of the caller, also those that batches have written",
                {200: _answer("A page of files.", "FileList", _list_of(_FILE_EXAMPLE))},
                (errors.InvalidRequestError, *_STORED_FILE),
                parameters=[
                    *_page(FILE_ID, MOST_LISTED_FILES, f"A page has at most {MOST_LISTED} files."),
                    _query("purpose", {"enum": [each.value for each in Purpose]}),
                    _query("order", {"enum": ["asc", "desc"], "default": "desc"}, "By `created_at`."),
                ],
            ),
        },
        "/v1/files/uploads": {
            "post": _operation(
                "createFileUpload",
                "Files",
                "Prepares the upload of a file that is too large for a request",
                {200: _answer("Where to upload the file.", "FileUpload", _FILE_UPLOAD_EXAMPLE)},
                (
                    errors.InvalidRequestError,
                    errors.UnsupportedMediaTypeError,
                    errors.RequestTooLargeError,
                    errors.RecordsUnavailableError,
                    *_OWN_FAULT[:1],
                ),
            )
            | _body({"application/json": ("CreateFileUploadRequest", _FILE_UPLOAD_REQUEST_EXAMPLE)})
        },
        "/v1/files/{file_id}": {
            "get": _operation(
                "getFile",
                "Files",
                "Returns a file without its content",
                {200: _answer("The file.", "File", _FILE_EXAMPLE)},
                _READ_FILE,
                parameters=[file],
            ),
            "delete": _operation(
                "deleteFile",
                "Files",
                "Deletes a file",
                {
                    200: _answer(
                        "The file is deleted.",
                        "DeletedFile",
                        {"id": _FILE_EXAMPLE["id"], "object": "file", "deleted": True},
                    )
                },
                _READ_FILE,
                parameters=[file],
            ),
        },
        "/v1/files/{file_id}/content": {
            "get": _operation(
                "getFileContent",
                "Files",
                "Returns the content of a file, or redirects to it",
                {
                    200: {
                        "description": "The content, if it is text in UTF-8 of at most 4,000,000 bytes.",
                        "headers": _header_refs(("x-request-id", "Content-Disposition", "X-Content-Type-Options")),
                        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
                    },
                    302: _redirect("A redirect to a presigned URL of any other content.", "Cache-Control"),
                },
                _READ_FILE,
                parameters=[file],
            )
        },
    }


def _batch_paths() -> Fragment:
    batch = _path_id("batch_id", BATCH_ID)
    return {
        "/v1/batches": {
            "post": _operation(
                "createBatch",
                "Batches",
                "Begins a batch: each line of a file is a request for images",
                {200: _answer("The batch.", "Batch", _BEGUN_BATCH_EXAMPLE)},
                (
                    errors.InvalidRequestError,
                    errors.UnsupportedMediaTypeError,
                    errors.IdempotencyKeyReusedError,
                    errors.SubmissionUncertainError,
                    *_READ_FILE,
                ),
                parameters=_identifying("batch"),
            )
            | _body({"application/json": ("CreateBatchRequest", _BATCH_REQUEST_EXAMPLE)}),
            "get": _operation(
                "listBatches",
                "Batches",
                "Lists the batches of the caller, newest first",
                {200: _answer("A page of batches.", "BatchList", _list_of(_BATCH_EXAMPLE))},
                (errors.InvalidRequestError, *_OWN_FAULT, errors.RecordsUnavailableError),
                parameters=_page(BATCH_ID),
            ),
        },
        "/v1/batches/{batch_id}": {
            "get": _operation(
                "getBatch",
                "Batches",
                "Returns a batch with its status",
                {200: _answer("The batch.", "Batch", _BATCH_EXAMPLE)},
                _READ_BATCH,
                parameters=[batch],
            )
        },
        "/v1/batches/{batch_id}/cancel": {
            "post": _operation(
                "cancelBatch",
                "Batches",
                "Cancels a batch. No further line begins. Lines that have begun are waited for",
                {
                    200: _answer(
                        "The batch.",
                        "Batch",
                        _BATCH_EXAMPLE | {"status": "cancelling", "cancelling_at": 1795348900},
                    )
                },
                (*_READ_BATCH, errors.BatchEndedError),
                parameters=[batch],
            )
        },
    }


def _create() -> Fragment:
    operation = _creating("createImages", "Creates images from a prompt", _images_answer())
    return operation | _body({"application/json": ("CreateImagesRequest", _REQUEST_EXAMPLE)})


def _create_from_images(operation: Operation) -> Fragment:
    name = BODIES[operation]
    summaries = {
        "edit": "Creates images from input images and a prompt",
        "variation": "Creates variations of an image",
        "describe": "Describes an image",
    }
    answer = (
        _answer("The texts.", "Descriptions", _DESCRIPTIONS_EXAMPLE, headers=(*_RESULT, "Preference-Applied", *_QUOTA))
        if operation == "describe"
        else _images_answer()
    )
    bodies: dict[str, tuple[str, Fragment | None]] = {
        "multipart/form-data": (f"Create{name}Form", None),
        "application/json": (f"Create{name}Request", _EXAMPLES_WITH_IMAGES[operation]),
    }
    return _creating(f"create{name}", summaries[operation], answer) | _body(bodies)


def _images_answer() -> Fragment:
    headers = (*_RESULT, "Preference-Applied", *_QUOTA)
    return _answer("The images.", "ImagesResponse", _RESPONSE_EXAMPLE, headers=headers)


def _body(of_type: dict[str, tuple[str, Fragment | None]]) -> Fragment:
    """Returns the request body, with a schema and an example for each media type."""
    content: Fragment = {}
    for media_type, (schema, example) in of_type.items():
        shown = {"examples": {schema: {"value": example}}} if example else {}
        content[media_type] = {"schema": ref(schema), **shown}
    return {"requestBody": {"required": True, "content": content}}


def _creating(operation_id: str, summary: str, answer: Fragment) -> Fragment:
    return _operation(
        operation_id,
        "Images",
        summary,
        {
            200: answer,
            202: _answer(
                "The generation has begun (with `Prefer: respond-async`).",
                "RunningGeneration",
                _RUNNING_EXAMPLE,
                headers=("x-generation-id", "Location", "Retry-After", "Preference-Applied", *_QUOTA),
            ),
            303: _to_wait_further(
                "The images are not ready. Follow the redirect to `generations/{id}/result` to wait further.",
                "Preference-Applied",
                *_QUOTA,
            ),
        },
        (
            errors.InvalidRequestError,
            errors.UnsupportedMediaTypeError,
            errors.RequestTooLargeError,
            errors.IdempotencyKeyReusedError,
            errors.ModelHasNoPriceError,
            errors.QuotaExceededError,
            errors.NoPlaceToBeginError,
            errors.RecordsUnavailableError,
            *_OWN_FAULT,
            *_OUTCOME,
        ),
        parameters=[
            *_identifying("generation"),
            _header(
                "Prefer",
                {"type": "string"},
                "`respond-async` answers at once with 202; `wait=N` waits at most N seconds.",
            ),
        ],
        headers=(*_RESULT, *_QUOTA),
    )


def _identifying(begun: str) -> list[Fragment]:
    """Returns the headers by which a request attaches to what an earlier one has begun."""
    return [
        _header(
            "Idempotency-Key",
            {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"},
            f"A retry with the same key attaches to the same {begun}.",
        ),
        _header(
            "x-stainless-retry-count",
            {"type": "string"},
            f"The retry count of OpenAI's clients. A retry attaches to the same {begun}.",
        ),
    ]


def _result(operation_id: str, generation: Fragment) -> Fragment:
    answer = _answer("The images, or the texts of a description.", "ImagesResponse", _RESPONSE_EXAMPLE, headers=_RESULT)
    answer["content"]["application/json"]["schema"] = {"anyOf": [ref("ImagesResponse"), ref("Descriptions")]}
    return _operation(
        operation_id,
        "Generations",
        "Waits for the images and answers like the request that began the generation",
        {
            200: answer,
            303: _to_wait_further(
                "A redirect to wait further, at most 16 times. Without streaming, also to an answer that is too large.",
                "Cache-Control",
            ),
        },
        (*_READ, *_OUTCOME, *_OUTCOME_OF_LINE),
        parameters=[generation, _query("hop", {"type": "string"}, "How many times the wait has been redirected.")],
        headers=_RESULT,
    )


def _page_of(
    operation_id: str,
    summary: str,
    *media_types: str,
    parameters: Iterable[Fragment] = (),
    failures: tuple[ErrorClass, ...] = (),
) -> Fragment:
    headers = _header_refs(("x-request-id", "Cache-Control", "ETag"))
    content = {media_type: {"schema": {"type": "string"}} for media_type in media_types}
    if media_types == ("application/json",):
        content = {"application/json": {"schema": {"type": "object"}}}
    known = _header("If-None-Match", {"type": "string"}, "The ETag of the version that the client has.")
    return _operation(
        operation_id,
        "Service",
        summary,
        {
            200: {"description": "The file.", "headers": headers, "content": content},
            304: {"description": "The client has this version.", "headers": headers},
        },
        (Exception, *failures),
        parameters=[*parameters, known],
        is_open=True,
    )


def _operation(
    operation_id: str,
    tag: str,
    summary: str,
    responses: dict[int, Fragment],
    failures: tuple[ErrorClass, ...],
    *,
    parameters: Iterable[Fragment] = (),
    headers: tuple[str, ...] = (),
    is_open: bool = False,
) -> Fragment:
    """Returns an operation. `headers` are the further headers of its failures."""
    shapes = {each for failure in failures for each in shapes_of(failure)} | set(GATEWAY)
    shapes |= set() if is_open else set(GATEWAY_KEY)
    ordered = sorted(shapes, key=str)
    failed = {
        status: _failure(status, [each for each in ordered if each[0] == status], headers)
        for status in sorted({status for status, _, _ in shapes})
    }
    listed = list(parameters)
    return {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        **({"security": _NO_KEY} if is_open else {}),
        **({"parameters": listed} if listed else {}),
        "responses": {str(status): answer for status, answer in (responses | failed).items()},
    }


def shapes_of(failure: ErrorClass) -> set[ErrorShape]:
    """Returns the combinations of status, type and code with which a failure may be answered."""
    shown: list[Exception] = [failure("")]
    if failure is errors.InvalidRequestError:
        shown += [errors.InvalidRequestError("", code=code) for code in INVALID]
    if failure is errors.PromptRejectedError:
        shown.append(errors.PromptRejectedError("", code="moderation_blocked"))
    answers = [answer_error(error, str) for error in shown]
    return {(answer.status, answer.body["error"]["type"], answer.body["error"]["code"]) for answer in answers}


def _all_shapes() -> set[ErrorShape]:
    failures: tuple[ErrorClass, ...] = (Exception, *ERRORS)
    of_errors = {shape for failure in failures for shape in shapes_of(failure)}
    return of_errors | set(GATEWAY) | set(GATEWAY_KEY)


def _failure(status: int, shapes: list[ErrorShape], headers: tuple[str, ...]) -> Fragment:
    examples = {_example_name(each): {"$ref": f"#/components/examples/{_example_name(each)}"} for each in shapes}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for _, _, code in shapes if code)}.",
        "headers": _header_refs(("x-request-id", "x-should-retry", "Retry-After", *headers)),
        "content": {"application/json": {"schema": ref("ErrorResponse"), "examples": examples}},
    }


def _example_name(shape: ErrorShape) -> str:
    status, _, code = shape
    return f"{code or 'invalid_request'}-{status}"


def _example(shape: ErrorShape) -> Fragment:
    status, kind, code = shape
    answered = (failure for failure in ERRORS if failure not in _ONLY_OF_LINE)
    meanings = [failure.__doc__ or "" for failure in answered if shape in shapes_of(failure)]
    meaning = next((each.partition("\n")[0] for each in meanings), "") or HTTPStatus(status).phrase
    message = {"message": meaning, "type": kind, "param": None, "code": code}
    return {"summary": meaning, "value": {"error": message}}


def _answer(description: str, schema: str, example: Fragment | None = None, headers: tuple[str, ...] = ()) -> Fragment:
    shown = {"examples": {schema: {"value": example}}} if example else {}
    return {
        "description": description,
        "headers": _header_refs(("x-request-id", *headers)),
        "content": {"application/json": {"schema": ref(schema), **shown}},
    }


def _redirect(description: str, *headers: str) -> Fragment:
    return {"description": description, "headers": _header_refs(("Location", "x-request-id", *headers))}


def _to_wait_further(description: str, *headers: str) -> Fragment:
    content = {"application/json": {"schema": ref("RunningGeneration"), "example": _RUNNING_EXAMPLE}}
    return _redirect(description, *_RESULT, *headers) | {"content": content}


def _header_refs(names: Iterable[str]) -> Fragment:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _list_of(item: Fragment) -> Fragment:
    return {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}


def _page(id_pattern: str, most: int = MOST_LISTED, description: str = "") -> list[Fragment]:
    """Returns the parameters of a page. `most` is the highest limit, which `description` may explain."""
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": LISTED}
    after = {"type": "string", "pattern": id_pattern}
    return [_query("limit", limit, description), _query("after", after, "The `last_id` of the previous page.")]


def _path_id(name: str, pattern: str) -> Fragment:
    return _parameter(name, "path", {"type": "string", "pattern": pattern})


def _query(name: str, schema: Fragment, description: str = "") -> Fragment:
    return _parameter(name, "query", {"type": "string", **schema}, description)


def _header(name: str, schema: Fragment, description: str) -> Fragment:
    return _parameter(name, "header", schema, description)


def _parameter(name: str, where: str, schema: Fragment, description: str = "") -> Fragment:
    described = {"description": description} if description else {}
    return {"name": name, "in": where, "required": where == "path", "schema": schema, **described}
