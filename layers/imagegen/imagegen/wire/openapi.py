"""The description of the API, in OpenAPI 3.1. Limits come from the catalog, errors from the one table of them."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from imagegen import VERSION
from imagegen.domain import errors
from imagegen.domain.errors import MoneySpentError
from imagegen.domain.generations import Status
from imagegen.wire.errors import ROWS
from imagegen.wire.headers import LISTED, MOST_LISTED
from imagegen.wire.schemas import BATCH_ID, GENERATION_ID, IMAGE_ID, ref, schemas

Fragment = dict[str, Any]
Failure = type[BaseException]
Told = tuple[int, str, str | None]  # an error as a client sees it: status, type and code

_BEARER = "bearer"

# What the gateway answers by itself, whatever the route. The template's GatewayResponses say the same.
GATEWAY: tuple[Told, ...] = (
    (400, "invalid_request_error", "bad_request"),
    (413, "invalid_request_error", "request_too_large"),
    (424, "server_error", "internal_error"),
    (424, "server_error", "request_not_answered"),
    (429, "rate_limit_error", "rate_limit_exceeded"),
    (504, "server_error", "gateway_timeout"),
)
GATEWAY_KEY: tuple[Told, ...] = (
    (401, "invalid_request_error", "invalid_api_key"),
    (503, "server_error", "authorizer_unavailable"),
)
# The codes of an InvalidRequestError, which has none of its own.
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
_OWN_FAULT: tuple[Failure, ...] = (Exception, errors.SecretMissingError, errors.SecretUnavailableError)
_READ: tuple[Failure, ...] = (*_OWN_FAULT, errors.RecordsUnavailableError, errors.UnknownGenerationError)
_READ_BATCH: tuple[Failure, ...] = (*_OWN_FAULT, errors.RecordsUnavailableError, errors.UnknownBatchError)
# What a generation may have come to.
_OUTCOME: tuple[Failure, ...] = (
    errors.InternalError,
    errors.PromptRejectedError,
    errors.UpstreamRefusedRequestError,
    errors.UpstreamKeyRefusedError,
    errors.UpstreamOutOfCreditError,
    errors.UpstreamMisconfiguredError,
    errors.UpstreamRateLimitedError,
    errors.UpstreamUnavailableError,
    errors.UpstreamUnreachableError,
    *(error for error in ROWS if issubclass(error, MoneySpentError)),
)
_NO_KEY: list[Fragment] = []

_HEADERS: dict[str, Fragment] = {
    "x-request-id": {"description": "What to name to the operator.", "schema": {"type": "string"}},
    "x-generation-id": {
        "description": "The generation, from admission on.",
        "schema": {"type": "string", "pattern": GENERATION_ID},
    },
    "x-should-retry": {
        "description": "What OpenAI's clients heed before the status.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "Location": {
        "description": "Relative to the request's own path, or where the bytes are.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Preference-Applied": {"description": "What of `Prefer` was honoured.", "schema": {"type": "string"}},
    "x-ratelimit-limit-images": {"description": "Images a day.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "x-ratelimit-remaining-images": {
        "description": "Of them, how many are left.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-ratelimit-reset-images": {
        "description": "Until the next day (UTC), such as `3h12m5s`.",
        "schema": {"type": "string", "pattern": "^[0-9]+h[0-9]+m[0-9]+s$"},
    },
    "Cache-Control": {"description": "Whether an answer may be kept.", "schema": {"type": "string"}},
    "ETag": {"description": "For `If-None-Match`.", "schema": {"type": "string"}},
}
_ALLOWANCE = ("x-ratelimit-limit-images", "x-ratelimit-remaining-images", "x-ratelimit-reset-images")

_GENERATION_EXAMPLE = {
    "id": "gen_Yk3nD0qkQH6mJc2vXr8s1A",
    "object": "image.generation",
    "status": "in_progress",
    "created_at": 1795348800,
    "completed_at": None,
    "model": "dall-e-3",
    "n": 1,
    "repeated_calls": 0,
    "extra_calls": 0,
    "data": [],
    "error": None,
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
    "data": [_IMAGE_EXAMPLE],
}
_REQUEST_EXAMPLE = {"model": "dall-e-3", "prompt": "A cute baby sea otter", "n": 1, "size": "1024x1024"}
_BATCH_EXAMPLE = {
    "id": "batch_3q2-7wAAAAAAAAAAAAAAAA",
    "object": "batch",
    "endpoint": "/v1/images/generations",
    "errors": None,
    "input_file_id": "inbox/web/otters.jsonl",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1795348800,
    "in_progress_at": 1795348800,
    "expires_at": None,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 100, "completed": 40, "failed": 1},
    "metadata": None,
}


def openapi_document(prefix: str, prompt_cap: int) -> Fragment:
    """`prefix` is what stands before our paths; `prompt_cap` is the deployer's limit, in characters."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imagegen",
            "version": VERSION,
            "summary": "An OpenAI-compatible image generation API.",
            "description": (
                "OpenAI's clients work unchanged with this server's `/v1` as their base URL. A 424 means that money "
                "may have been spent, so no client retries it unless `x-should-retry` is true: that retry attaches. "
                "Requests wait by redirects (303) for as long as a model takes."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{_BEARER: []}],
        "tags": [{"name": name} for name in ("Images", "Generations", "Batches", "Models", "Service")],
        "paths": _paths(),
        "components": {
            "schemas": schemas(prompt_cap),
            "headers": _HEADERS,
            "examples": {_example_name(told): _example(told) for told in sorted(_all_told(), key=str)},
            "securitySchemes": {
                _BEARER: {"type": "http", "scheme": "bearer", "description": "`ig_<client>_<secret>`, or a JWT."}
            },
        },
    }


def _paths() -> Fragment:
    generation, image = _path_id("generation_id", GENERATION_ID), _path_id("image_id", IMAGE_ID)
    batch = _path_id("batch_id", BATCH_ID)
    return {
        "/v1/images/generations": {
            "post": _create(),
            "get": _operation(
                "listGenerations",
                "Generations",
                "The caller's own generations, newest first",
                {200: _answer("A page of them.", "GenerationList", _list_of(_COMPLETED_EXAMPLE))},
                (errors.InvalidRequestError, *_OWN_FAULT, errors.RecordsUnavailableError),
                parameters=[*_page(GENERATION_ID), _query("status", {"enum": [each.value for each in Status]})],
            ),
        },
        "/v1/images/generations/{generation_id}": {
            "get": _operation(
                "getGeneration",
                "Generations",
                "How a generation stands, and the images stored so far",
                {200: _answer("The generation.", "Generation", _COMPLETED_EXAMPLE)},
                _READ,
                parameters=[generation],
            ),
            "delete": _operation(
                "deleteGeneration",
                "Generations",
                "Deletes the record, the images and their links",
                {
                    200: _answer(
                        "It is deleted.",
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
                "No upstream call begins after it; images that are paid for stay, also those that still come",
                {
                    200: _answer(
                        "The generation, cancelled.", "Generation", _GENERATION_EXAMPLE | {"status": "cancelled"}
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
                "The durable link. The id is the capability, so no key is needed",
                {302: _redirect("To a fresh presigned URL.", "Cache-Control")},
                (Exception, errors.UnknownImageError),
                parameters=[image],
                is_open=True,
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "Models",
                "The image models, and what each takes",
                {200: _answer("All of them.", "ModelList")},
                _OWN_FAULT[:1],
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "getModel",
                "Models",
                "One image model, by its name or an alias of it",
                {200: _answer("The model.", "Model")},
                (errors.UnknownModelError, *_OWN_FAULT[:1]),
                parameters=[_path_id("model", r"\S")],
            )
        },
        "/v1/batches": {
            "get": _operation(
                "listBatches",
                "Batches",
                "The caller's own batches, newest first",
                {200: _answer("A page of them.", "BatchList", _list_of(_BATCH_EXAMPLE))},
                (errors.InvalidRequestError, *_OWN_FAULT, errors.RecordsUnavailableError),
                parameters=_page(BATCH_ID),
            )
        },
        "/v1/batches/{batch_id}": {
            "get": _operation(
                "getBatch",
                "Batches",
                "How a batch stands",
                {200: _answer("The batch.", "Batch", _BATCH_EXAMPLE)},
                _READ_BATCH,
                parameters=[batch],
            )
        },
        "/v1/batches/{batch_id}/cancel": {
            "post": _operation(
                "cancelBatch",
                "Batches",
                "No further line is begun, and what has not ended is cancelled",
                {200: _answer("The batch.", "Batch", _BATCH_EXAMPLE | {"status": "cancelling"})},
                (*_READ_BATCH, errors.BatchEndedError),
                parameters=[batch],
            )
        },
        "/health": {
            "get": _operation(
                "getHealth",
                "Service",
                "Whether the service answers",
                {200: _answer("It does.", "Health", {"status": "ok"})},
                (Exception,),
                is_open=True,
            )
        },
        "/": {"get": _page_of("getPlayground", "The playground", "text/html")},
        "/playground.js": {"get": _page_of("getPlaygroundScript", "Its script", "text/javascript")},
        "/playground.css": {"get": _page_of("getPlaygroundStyle", "Its style", "text/css")},
        "/docs": {"get": _page_of("getDocs", "This description, rendered", "text/html")},
        "/docs/{file}": {
            "get": _page_of(
                "getDocsFile",
                "What the rendering loads",
                "text/javascript",
                "text/css",
                parameters=[_parameter("file", "path", {"type": "string"})],
                failures=(errors.UnknownRouteError,),
            )
        },
        "/openapi.json": {"get": _page_of("getOpenapi", "This description", "application/json")},
    }


def _create() -> Fragment:
    operation = _operation(
        "createImages",
        "Images",
        "Makes images from a prompt",
        {
            200: _answer(
                "The images.",
                "ImagesResponse",
                _RESPONSE_EXAMPLE,
                headers=("x-generation-id", "Preference-Applied", *_ALLOWANCE),
            ),
            202: _answer(
                "With `Prefer: respond-async`: it is under way.",
                "Generation",
                _GENERATION_EXAMPLE,
                headers=("x-generation-id", "Location", "Retry-After", "Preference-Applied", *_ALLOWANCE),
            ),
            303: _redirect(
                "Not there yet. The wait goes on at `generations/{id}/result`; clients follow by themselves.",
                "Retry-After",
                "Preference-Applied",
                "x-generation-id",
                *_ALLOWANCE,
            ),
        },
        (
            errors.InvalidRequestError,
            errors.UnsupportedMediaTypeError,
            errors.RequestTooLargeError,
            errors.IdempotencyKeyReusedError,
            errors.AllowanceSpentError,
            errors.RecordsUnavailableError,
            *_OWN_FAULT,
            *_OUTCOME,
        ),
        parameters=[
            _header(
                "Idempotency-Key",
                {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"},
                "A retry with the same key attaches to the generation that it repeats.",
            ),
            _header(
                "Prefer",
                {"type": "string"},
                "`respond-async` answers at once with 202; `wait=N` waits at most N seconds.",
            ),
            _header(
                "x-stainless-retry-count", {"type": "string"}, "How OpenAI's clients count their retries, which attach."
            ),
        ],
        headers=("x-generation-id", *_ALLOWANCE),
    )
    body = {"schema": ref("CreateImagesRequest"), "examples": {"dall-e-3": {"value": _REQUEST_EXAMPLE}}}
    return operation | {"requestBody": {"required": True, "content": {"application/json": body}}}


def _result(operation_id: str, generation: Fragment) -> Fragment:
    return _operation(
        operation_id,
        "Generations",
        "Waits, then answers as the request for the images does",
        {
            200: _answer("The images.", "ImagesResponse", _RESPONSE_EXAMPLE, headers=("x-generation-id",)),
            303: _redirect(
                "To wait on, at most 16 times; or to an answer that is too large, where it is stored whole.",
                "Retry-After",
                "Cache-Control",
                "x-generation-id",
            ),
        },
        (*_READ, *_OUTCOME),
        parameters=[generation, _query("hop", {"type": "string"}, "How often the wait was redirected.")],
        headers=("x-generation-id",),
    )


def _page_of(
    operation_id: str,
    summary: str,
    *media_types: str,
    parameters: Iterable[Fragment] = (),
    failures: tuple[Failure, ...] = (),
) -> Fragment:
    headers = _header_refs(("x-request-id", "Cache-Control", "ETag"))
    content = {media_type: {"schema": {"type": "string"}} for media_type in media_types}
    if media_types == ("application/json",):
        content = {"application/json": {"schema": {"type": "object"}}}
    known = _header("If-None-Match", {"type": "string"}, "The ETag of what the client has.")
    return _operation(
        operation_id,
        "Service",
        summary,
        {
            200: {"description": "The file.", "headers": headers, "content": content},
            304: {"description": "The client has it already.", "headers": headers},
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
    failures: tuple[Failure, ...],
    *,
    parameters: Iterable[Fragment] = (),
    headers: tuple[str, ...] = (),
    is_open: bool = False,
) -> Fragment:
    """`headers` are those that a failure may carry besides what all carry."""
    told = {each for failure in failures for each in told_as(failure)} | set(GATEWAY)
    told |= set() if is_open else set(GATEWAY_KEY)
    found = sorted(told, key=str)
    failed = {
        status: _failure(status, [each for each in found if each[0] == status], headers)
        for status in sorted({status for status, _, _ in told})
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


def told_as(failure: Failure) -> set[Told]:
    """The status, type and codes under which a client may see a failure."""
    row = ROWS[failure]
    if failure is errors.InvalidRequestError:
        return {(row.status, row.type, code) for code in (*INVALID, None)}
    if failure is errors.PromptRejectedError:
        return {(row.status, row.type, row.code), (row.status, "image_generation_user_error", "moderation_blocked")}
    return {(row.status, row.type, row.code)}


def _all_told() -> set[Told]:
    of_rows = {told for failure in ROWS for told in told_as(failure)}
    return of_rows | set(GATEWAY) | set(GATEWAY_KEY)


def _failure(status: int, told: list[Told], headers: tuple[str, ...]) -> Fragment:
    examples = {_example_name(each): {"$ref": f"#/components/examples/{_example_name(each)}"} for each in told}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for _, _, code in told if code)}.",
        "headers": _header_refs(("x-request-id", "x-should-retry", "Retry-After", *headers)),
        "content": {"application/json": {"schema": ref("ErrorResponse"), "examples": examples}},
    }


def _example_name(told: Told) -> str:
    status, _, code = told
    return f"{code or 'invalid_request'}-{status}"


def _example(told: Told) -> Fragment:
    status, kind, code = told
    meanings = [failure.__doc__ or "" for failure in ROWS if told in told_as(failure) and failure is not Exception]
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


def _header_refs(names: Iterable[str]) -> Fragment:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _list_of(item: Fragment) -> Fragment:
    return {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}


def _page(id_pattern: str) -> list[Fragment]:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": LISTED}
    after = {"type": "string", "pattern": id_pattern}
    return [_query("limit", limit), _query("after", after, "The `last_id` of the page before.")]


def _path_id(name: str, pattern: str) -> Fragment:
    return _parameter(name, "path", {"type": "string", "pattern": pattern})


def _query(name: str, schema: Fragment, description: str = "") -> Fragment:
    return _parameter(name, "query", {"type": "string", **schema}, description)


def _header(name: str, schema: Fragment, description: str) -> Fragment:
    return _parameter(name, "header", schema, description)


def _parameter(name: str, where: str, schema: Fragment, description: str = "") -> Fragment:
    told = {"description": description} if description else {}
    return {"name": name, "in": where, "required": where == "path", "schema": schema, **told}
