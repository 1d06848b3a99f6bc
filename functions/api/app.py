"""The HTTP API behind API Gateway: parses, calls a use case, renders."""

import time
from base64 import b64decode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.api import Api, api, cors_origin
from imagegen.domain.batches import Batch, Counts, is_batch_id
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    AnswerTooLargeError,
    GenerationCancelledError,
    GenerationStillRunningError,
    InternalError,
    MoneySpentError,
    RecordsUnavailableError,
    UnknownImageError,
    UnknownRouteError,
)
from imagegen.domain.failures import raised_again
from imagegen.domain.generations import Generation, Status
from imagegen.domain.images import is_image_id
from imagegen.domain.models import CATALOG
from imagegen.domain.redacted_traceback import silent_trace
from imagegen.usecases.carry_on import cancel_batch, see_batch
from imagegen.usecases.manage import cancel, delete, see
from imagegen.usecases.submit import Submitted, submit
from imagegen.usecases.wait import wait
from imagegen.usecases.work import work
from imagegen.wire.answers import (
    MAX_ANSWER_BYTES,
    base64_bytes,
    generation_answer,
    generation_list_answer,
    images_answer,
    model_answer,
    models_answer,
)
from imagegen.wire.batches import batch_answer, batch_list_answer
from imagegen.wire.errors import answer_error
from imagegen.wire.headers import (
    Preference,
    allowance_headers,
    cors_headers,
    read_attempt,
    read_page,
    read_preference,
)
from imagegen.wire.links import Links
from imagegen.wire.paths import as_get, no_route, slashes_at_the_end, split_path
from imagegen.wire.requests import read_image_request

if TYPE_CHECKING:
    from imagegen.domain.quota import Standing

CLOSING_SECONDS = 5.0  # kept back from the function's time-out to tell what happened
READ_SECONDS = 20.0  # to read the images of one answer from S3, within the gateway's 29 s
MOST_HOPS = 16  # OpenAI's Python client gives up after 20 redirects
POLL_SECONDS = 2  # what a client that polls is told to wait
LAMBDA_ANSWER_BYTES = 6_291_556 - 8 * 1024  # 6 MB for the JSON that carries an answer, less its headers
FAILED_DEPENDENCY = 424  # from here on an answer is worth an operator's look

app = APIGatewayRestResolver(debug=False)  # POWERTOOLS_DEV would have it print every event
logger = Logger(service="api")


@app.post("/v1/images/generations")
def create_images() -> Response[str]:
    wired = api()
    waiting = Deadline.after(wired.settings.wait_seconds)
    headers = app.current_event.headers
    request = read_image_request(
        _body(),
        headers.get("Content-Type"),
        prompt_cap=wired.settings.prompt_max_characters,
        aliases=wired.settings.model_aliases,
    )
    attempt, preference = read_attempt(headers), read_preference(headers)
    work_here = (
        wired.settings.api_is_first_worker
        and CATALOG[request.model].is_quick(request.quality)
        and attempt.is_retried
        and not preference.respond_async
        and preference.wait is None
    )
    submitted = submit(
        request,
        attempt,
        wired.desk,
        caller=_caller(),
        base_url=_links().base_url,
        work_here=work_here,
        images_per_day=_own_images_per_day(),
    )
    app.append_context(generation=submitted.generation, standing=submitted.standing)
    if submitted.owner:
        _work_here(submitted, wired)
    if preference.wait is not None:
        waiting = waiting.sooner(preference.wait)
    elif preference.respond_async:
        waiting = Deadline.after(0)
    return _waited_for(submitted.generation.id, waiting, preference, hop=0)


def _work_here(submitted: Submitted, wired: Api) -> None:
    seconds = app.lambda_context.get_remaining_time_in_millis() / 1000 - CLOSING_SECONDS
    try:
        work(submitted.generation, submitted.owner or "", wired.workshop, Deadline.after(seconds))
    except Exception as error:  # noqa: BLE001  # a fault of ours: the message behind the record brings a worker
        wired.workshop.journal.interrupted(silent_trace(error), generation_id=submitted.generation.id)


@app.get("/v1/images/generations/<generation_id>/result")
def result(generation_id: str) -> Response[str]:
    return _result_of(generation_id)


@app.post("/v1/images/generations/<generation_id>/result")
def result_for_those_who_insist_on_post(generation_id: str) -> Response[str]:
    return _result_of(generation_id)


def _result_of(generation_id: str) -> Response[str]:
    wired = api()
    generation = see(generation_id, _caller(), wired.desk.records)
    app.append_context(generation=generation)
    hop = app.current_event.query_string_parameters.get("hop") or "1"
    return _waited_for(
        generation.id,
        Deadline.after(wired.settings.wait_seconds),
        Preference(),
        hop=int(hop) if hop.isdecimal() and len(hop) < 4 else MOST_HOPS,
    )


def _waited_for(generation_id: str, until: Deadline, preference: Preference, *, hop: int) -> Response[str]:
    """The result, if it is there by `until`; else where to look for it."""
    wired = api()
    try:
        generation, room = _look(generation_id, until, wired)
    except RecordsUnavailableError as error:  # the work goes on, and may be paid for
        raise InternalError("The generation goes on, but its record could not be read.") from error
    if generation is None:
        raise GenerationCancelledError("The generation was deleted meanwhile.")
    if generation.ended:
        return _result(generation, wired, preference, hop=hop)
    if preference.respond_async:
        headers = {"Location": _relative(f"generations/{generation_id}"), "Retry-After": str(POLL_SECONDS)}
        return _json(202, _generation_object(generation), headers | _applied(preference))
    if hop >= MOST_HOPS:
        raise GenerationStillRunningError(
            f"The image is still being made. Look for it at /v1/images/generations/{generation_id}."
        )
    return _redirect(303, _next_result(generation_id, hop), {} if room else {"Retry-After": "1"} | _applied(preference))


def _look(generation_id: str, until: Deadline, wired: Api) -> tuple[Generation | None, bool]:
    """The generation when it has ended or the time is up, and whether there was room to wait for it."""
    generation = wired.desk.records.get(generation_id)
    if generation is None or generation.ended or not until.remaining():
        return generation, True
    with wired.waiters.one() as room:
        return (wait(generation_id, wired.desk.records, until) if room else generation), room


def _next_result(generation_id: str, hop: int) -> str:
    """Where the wait goes on, relative to where it stands: so it holds under a stage and behind a proxy."""
    return f"generations/{generation_id}/result" if hop == 0 else f"result?hop={hop + 1}"


def _result(generation: Generation, wired: Api, preference: Preference, *, hop: int) -> Response[str]:
    if generation.status is Status.COMPLETED:
        return _images(generation, wired, preference, hop=hop)
    error = (
        raised_again(generation.failure)
        if generation.failure
        else GenerationCancelledError("The generation was cancelled.")
    )
    if isinstance(error, MoneySpentError):
        error.images = generation.stored_ids
    raise error


def _images(generation: Generation, wired: Api, preference: Preference, *, hop: int) -> Response[str]:
    """OpenAI's answer; where it does not fit into Lambda's, the way to where it is stored whole."""
    images = wired.workshop.images
    if generation.request.response_format == "b64_json" and base64_bytes(generation) > MAX_ANSWER_BYTES:
        if hop == 0:
            return _redirect(303, _next_result(generation.id, hop), {})
        if app.current_event.http_method == "GET":
            signed = images.signed_answer_url(generation.id, _method_to_sign_for())
            return _redirect(303, signed.url, {"Cache-Control": "no-store"})
    else:
        body = _encoded(
            images_answer(
                generation, images, Deadline.after(READ_SECONDS), durable_urls=wired.settings.store.durable_urls
            )
        )
        if _carried_bytes(body) <= LAMBDA_ANSWER_BYTES:
            return _answer(Response(200, "application/json", body, dict(_applied(preference))))
    error = AnswerTooLargeError(
        "All images were made and stored, but their base64 does not fit into one answer. "
        "Fetch them by their permalinks, or ask for response_format 'url'."
    )
    error.images = generation.image_ids
    raise error


@app.get("/v1/images/generations")
def list_generations() -> Response[str]:
    wired = api()
    page = read_page(app.current_event.query_string_parameters or {})
    found = wired.desk.records.newest(_caller(), page.limit + 1, after=page.after, status=page.status)
    more = len(found) > page.limit
    durable = wired.settings.store.durable_urls
    answer = generation_list_answer(found[: page.limit], wired.workshop.images, more=more, durable_urls=durable)
    return _json(200, answer)


@app.get("/v1/images/generations/<generation_id>")
def get_generation(generation_id: str) -> Response[str]:
    return _json(200, _generation_object(see(generation_id, _caller(), api().desk.records)))


@app.post("/v1/images/generations/<generation_id>/cancel")
def cancel_generation(generation_id: str) -> Response[str]:
    shop = api().workshop
    cancelled = cancel(generation_id, _caller(), shop.records, shop.counters, shop.bus, shop.now, shop.settle)
    return _json(200, _generation_object(cancelled))


def _generation_object(generation: Generation) -> dict[str, Any]:
    wired = api()
    return generation_answer(generation, wired.workshop.images, durable_urls=wired.settings.store.durable_urls)


@app.delete("/v1/images/generations/<generation_id>")
def delete_generation(generation_id: str) -> Response[str]:
    wired = api()
    shop, until = wired.workshop, Deadline.after(READ_SECONDS)
    delete(
        generation_id,
        _caller(),
        shop.records,
        shop.queue,
        shop.counters,
        shop.bus,
        shop.images,
        shop.now,
        until,
        shop.settle,
    )
    return _json(200, {"id": generation_id, "object": "image.generation.deleted", "deleted": True})


@app.get("/v1/batches")
def list_batches() -> Response[str]:
    batches = api().ledger.batches
    page = read_page(app.current_event.query_string_parameters or {}, is_batch_id)
    found = batches.newest(_caller(), page.limit + 1, after=page.after)
    listed = [(batch, _counts(batch)) for batch in found[: page.limit]]
    return _json(200, batch_list_answer(listed, more=len(found) > page.limit))


@app.get("/v1/batches/<batch_id>")
def get_batch(batch_id: str) -> Response[str]:
    batch = see_batch(batch_id, _caller(), api().ledger.batches)
    return _json(200, batch_answer(batch, _counts(batch)))


@app.post("/v1/batches/<batch_id>/cancel")
def cancel_a_batch(batch_id: str) -> Response[str]:
    ledger = api().ledger
    batch = cancel_batch(batch_id, _caller(), ledger.batches, ledger.messages, api().desk.now())
    return _json(200, batch_answer(batch, _counts(batch)))


def _counts(batch: Batch) -> Counts:
    """Those of the record where they are final, else as they are now."""
    return batch.counts or api().ledger.lines.counts(batch.id)


@app.get("/v1/images/<image_id>")
def redirect_to_image(image_id: str) -> Response[str]:
    if not is_image_id(image_id):
        raise UnknownImageError("There is no such image.", param="image_id")
    signed = api().workshop.images.signed_url(image_id, _method_to_sign_for())
    return _redirect(302, signed.url, {"Cache-Control": "no-store"})


@app.get("/v1/models")
def list_models() -> Response[str]:
    return _json(200, models_answer(api().settings.prompt_max_characters))


@app.get("/v1/models/<model>")
def get_model(model: str) -> Response[str]:
    settings = api().settings
    return _json(200, model_answer(unquote(model), settings.model_aliases, settings.prompt_max_characters))


@app.get("/health")
def health() -> Response[str]:
    return _json(200, {"status": "ok"})


@app.get("/v1/images/edits")
@app.get("/v1/images/variations")
@app.post("/v1/images/edits")
@app.post("/v1/images/variations")
def not_supported() -> Response[str]:
    raise UnknownRouteError(f"{app.current_event.path} is not supported yet.")


@app.not_found
def unknown_route(_: Exception) -> Response[str]:
    return _error(no_route(app.current_event.path, _routes()))


@app.exception_handler(Exception)
def failed(error: Exception) -> Response[str]:
    return _error(error)


def _error(error: Exception) -> Response[str]:
    answer = answer_error(error, lambda image_id: _links().permalink(image_id))
    app.append_context(error=error, code=answer.body["error"]["code"])
    return _json(answer.status, answer.body, answer.headers)


def _json(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response[str]:
    return _answer(Response(status, "application/json", _encoded(body), dict(headers or {})))


def _encoded(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body).decode()


def _redirect(status: int, location: str, headers: Mapping[str, str]) -> Response[str]:
    return _answer(Response(status, headers={"Location": _relative(location), **headers}))


def _relative(location: str) -> str:
    """A relative location, also as seen from a path with slashes at its end."""
    is_absolute = "://" in location
    return location if is_absolute else "../" * slashes_at_the_end(app.current_event.raw_event) + location


def _applied(preference: Preference) -> dict[str, str]:
    return {"Preference-Applied": preference.applied} if preference.applied else {}


def _answer(response: Response[str]) -> Response[str]:
    response.headers["x-request-id"] = _request_id()
    generation: Generation | None = app.context.get("generation")
    if generation is not None:
        response.headers["x-generation-id"] = generation.id
    standing: Standing | None = app.context.get("standing")
    if standing is not None:
        response.headers |= allowance_headers(standing)
    if origin := cors_origin():
        response.headers |= cors_headers(origin)
    _log(response.status_code)
    return response


def _request_id() -> str:
    """The one that a caller cannot choose: `requestId` may be a header of theirs."""
    return app.current_event.request_context.extended_request_id or ""


def _carried_bytes(body: str) -> int:
    """What a body weighs inside the JSON that carries it, where quotes and backslashes are escaped."""
    return len(body.encode()) + body.count('"') + body.count("\\")


def _body() -> bytes:
    event = app.current_event
    body = event.body or ""
    return b64decode(body) if event.is_base64_encoded else body.encode("utf-8", "surrogatepass")


def _caller() -> str:
    return str(app.current_event["requestContext"]["authorizer"]["principalId"])


def _own_images_per_day() -> int | None:
    """The caller's own allowance, where its record has one: the authorizer hands it on."""
    own = app.current_event["requestContext"]["authorizer"].get("images_per_day")
    return None if own is None else int(own)


def _links() -> Links:
    """Links under the public address: the deployer's, or the one that this request came to."""
    configured = api().settings.public_base_url
    if configured:
        return Links(configured)
    event = app.current_event
    scheme = event.headers.get("X-Forwarded-Proto", "https")
    prefix, _ = split_path(event.raw_event)
    return Links(f"{scheme}://{event.request_context.domain_name}{prefix}")


def _method() -> str:
    """As the client sent it: a HEAD is resolved as a GET."""
    return str(app.current_event["requestContext"]["httpMethod"])


def _log(status: int) -> None:
    """One line a request. It holds nothing that the caller or the upstream wrote."""
    line: dict[str, Any] = {
        "request_id": _request_id(),
        "route": f"{_method()} {_route()}",
        "status": status,
        "milliseconds": round((time.perf_counter() - app.context["started"]) * 1000),
    }
    generation: Generation | None = app.context.get("generation")
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


def _method_to_sign_for() -> Literal["GET", "HEAD"]:
    """S3 refuses HEAD for a URL that is signed for GET."""
    return "HEAD" if _method() == "HEAD" else "GET"


def _route() -> str:
    """The matched route's path with its parameters' names; the gateway's route if none matched."""
    matched = app.context["_route"]
    if matched not in _routes():
        return str(app.current_event["resource"])
    return matched.path.replace("<", "{").replace(">", "}")  # type: ignore[no-any-return]


def _routes() -> list[Any]:
    """All routes. The resolver has no public name for them, and finds one by path and method together only."""
    return app._static_routes + app._dynamic_routes  # noqa: SLF001


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    _, path = split_path(event)
    app.append_context(started=time.perf_counter())
    return app.resolve({**as_get(event), "path": path}, context)
