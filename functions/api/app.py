"""The HTTP API behind API Gateway: parses, calls a use case, renders."""

import time
from base64 import b64decode
from typing import Any

import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.api import Api, api
from imagegen.catalog import CATALOG
from imagegen.deadline import Deadline
from imagegen.errors import (
    AnswerTooLargeError,
    ImagegenError,
    InternalError,
    UnknownImageError,
    UnknownRouteError,
)
from imagegen.generate import generate
from imagegen.generations import Generation
from imagegen.images import is_image_id
from imagegen.openai_wire.answers import images_answer, models_answer
from imagegen.openai_wire.errors import answer_error
from imagegen.openai_wire.links import Links
from imagegen.openai_wire.requests import read_image_request
from imagegen.silent_trace import silent_trace

# Lambda takes 6 MB (6,291,556 bytes) of the JSON that carries an answer; the rest is for headers and the envelope.
MAX_ANSWER_BYTES = 6_291_556 - 8_192
CLOSING_SECONDS = 5.0  # kept back from the function's time-out to tell what happened

FAILED_DEPENDENCY = 424  # from here on an answer is worth an operator's look

app = APIGatewayRestResolver()
logger = Logger(service="api")


@app.post("/v1/images/generations")
def create_images() -> Response[str]:
    wired = api()
    body, content_type = _body(), app.current_event.headers.get("Content-Type")
    request = read_image_request(body, content_type, prompt_cap=wired.settings.prompt_max_characters)
    generation = Generation.admit(request, caller=_caller(), now=time.time())
    app.append_context(generation=generation)
    try:
        return _generated(generation, wired)
    except ImagegenError:
        raise
    except Exception as error:
        raise InternalError("Something went wrong on our side after the image model may have been called.") from error


def _generated(generation: Generation, wired: Api) -> Response[str]:
    model = CATALOG[generation.request.model]
    outcome = generate(
        generation,
        model,
        provider=wired.providers[model.provider],
        source=wired.source,
        store=wired.store,
        pool=wired.pool,
        deadline=Deadline.after(app.lambda_context.get_remaining_time_in_millis() / 1000 - CLOSING_SECONDS),
    )
    # Base64 is a third longer than the image: what cannot fit is not even built.
    if sum(len(image.content or b"") for image in outcome.images) * 4 // 3 <= MAX_ANSWER_BYTES:
        response = _json(200, images_answer(generation, outcome, _links(), wired.store))
        if _carried_bytes(response.body or "") <= MAX_ANSWER_BYTES:
            return response
    error = AnswerTooLargeError(
        "All images were made and stored, but their base64 does not fit into one answer. "
        "Fetch them by their permalinks, or ask for response_format 'url'."
    )
    error.images = outcome.images
    raise error


@app.get("/v1/images/<image_id>")
def redirect_to_image(image_id: str) -> Response[str]:
    if not is_image_id(image_id):
        raise UnknownImageError("There is no such image.", param="image_id")
    url = api().store.signed_url(image_id).url
    return _answer(Response(status_code=302, headers={"Location": url, "Cache-Control": "no-store"}))


@app.get("/v1/models")
def list_models() -> Response[str]:
    return _json(200, models_answer())


@app.get("/health")
def health() -> Response[str]:
    return _json(200, {"status": "ok"})


@app.not_found
def unknown_route(_: Exception) -> Response[str]:
    # The gateway has only the template's routes; this answers where something else stands in front.
    method, path = app.current_event.http_method, app.current_event.path
    return _error(UnknownRouteError(f"Invalid URL ({method} {path[:100]})."))


@app.exception_handler(Exception)
def failed(error: Exception) -> Response[str]:
    return _error(error)


def _error(error: Exception) -> Response[str]:
    answer = answer_error(error, lambda image_id: _links().permalink(image_id))
    app.append_context(error=error, code=answer.body["error"]["code"])
    return _json(answer.status, answer.body, answer.headers)


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response[str]:
    encoded = msgspec.json.encode(body).decode()
    return _answer(Response(status, "application/json", encoded, dict(headers or {})))


def _answer(response: Response[str]) -> Response[str]:
    response.headers["x-request-id"] = app.current_event.request_context.request_id
    generation: Generation | None = app.context.get("generation")
    if generation is not None:
        response.headers["x-generation-id"] = generation.id
    _log(response.status_code, generation)
    return response


def _carried_bytes(body: str) -> int:
    """What a body weighs inside the JSON that carries it, where quotes and backslashes are escaped."""
    return len(body.encode()) + body.count('"') + body.count("\\")


def _body() -> bytes:
    event = app.current_event
    body = event.body or ""
    return b64decode(body) if event.is_base64_encoded else body.encode("utf-8", "surrogatepass")


def _caller() -> str:
    return str(app.current_event["requestContext"]["authorizer"]["principalId"])


def _links() -> Links:
    """Links under the public address: the deployer's, or the one that this request came to."""
    configured = api().settings.public_base_url
    if configured:
        return Links(configured)
    event = app.current_event
    scheme = event.headers.get("X-Forwarded-Proto", "https")
    prefix, _ = _split_path(event.raw_event)
    return Links(f"{scheme}://{event.request_context.domain_name}{prefix}")


def _split_path(event: dict[str, Any]) -> tuple[str, str]:
    """What stands before our own path (a stage, a custom domain's base path), and our own path.

    `resource` is our path as the template writes it, so it tells how many segments are ours.
    """
    segments = event["requestContext"]["path"].split("/")
    ours = event["resource"].count("/")
    return "/".join(segments[:-ours]), "/" + "/".join(segments[-ours:])


def _log(status: int, generation: Generation | None) -> None:
    """One line a request. It holds nothing that the caller or the upstream wrote."""
    event = app.current_event
    line: dict[str, Any] = {
        "request_id": event.request_context.request_id,
        "route": f"{event.http_method} {event.raw_event['resource']}",
        "status": status,
        "milliseconds": round((time.perf_counter() - app.context["started"]) * 1000),
    }
    if generation is not None:
        request = generation.request
        line |= {"generation_id": generation.id, "client": generation.caller, "model": request.model, "n": request.n}
    error: Exception | None = app.context.get("error")
    if error is None:
        logger.info("answered", extra=line)
    elif status < FAILED_DEPENDENCY:
        logger.info("answered", extra=line | {"code": app.context["code"]})
    else:
        logger.error("answered", extra=line | {"code": app.context["code"], "trace": silent_trace(error)})


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    _, path = _split_path(event)
    app.append_context(started=time.perf_counter())
    return app.resolve({**event, "path": path}, context)
