"""What holds for every route: errors, ids, quota and CORS headers, and one log line a request."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.domain.failures import Failure, failure_of
from imagegen.domain.redacted_traceback import redacted_traceback
from imagegen.routes.request import links_of, method_of, request_id_of
from imagegen.routes.response import Body, json_response
from imagegen.wire.costs import cost_headers
from imagegen.wire.errors import MAY_BE_SPENT, answer_error, answer_failure
from imagegen.wire.headers import cors_headers, quota_headers
from imagegen.wire.request_path import as_get, no_route, split_path

Next = Callable[[APIGatewayRestResolver], Response[Body]]
Answer = dict[str, Any]  # API Gateway's proxy answer, whose `body` may also be an iterator of bytes
Handler = Callable[[Mapping[str, Any], LambdaContext, ExitStack], Answer]


class GenerationFailedError(Exception):
    """A route's answer is the failure of a generation. `images` are the ids of its stored images."""

    def __init__(self, failure: Failure, images: Sequence[str]) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.images = images


def http_handler(routers: Sequence[Router], middleware: Sequence[Callable[..., Any]]) -> Handler:
    """The handler of a function with these routes. The first middleware is the outermost.

    What a route enters into `closing`, which is in its context, ends when the body has been sent.
    """
    # Bodies are encoded already, or iterators. POWERTOOLS_DEV would have the resolver print every event.
    app = APIGatewayRestResolver(debug=False, serializer=_as_it_is)
    app.use(middlewares=list(middleware))
    for router in routers:
        app.include_router(router)

    @app.not_found
    def not_found(_: Exception) -> Response[Body]:
        raise no_route(app.current_event.path, routes_of(app))

    def handle(event: Mapping[str, Any], context: LambdaContext, closing: ExitStack) -> Answer:
        _, path = split_path(event)
        app.append_context(started=time.perf_counter(), closing=closing)
        return app.resolve({**as_get(event), "path": path}, context)

    return handle


def _as_it_is(body: Any) -> Any:
    return body


def buffered(handler: Handler, event: Mapping[str, Any], context: LambdaContext) -> Answer:
    """The whole answer, once everything that its route began has ended."""
    with ExitStack() as closing:
        return handler(event, context, closing)


def routes_of(app: APIGatewayRestResolver) -> list[Any]:
    """All routes. The resolver has no public name for them, and finds one by path and method together only."""
    return app._static_routes + app._dynamic_routes  # noqa: SLF001


class ApiMiddleware:
    """`cors_origin` is the web origin whose pages may read answers; empty if it is not known.

    A route adds `generation`, `standing` and `ended`, the generation whose end is answered, to the context. They appear
    in headers and in the log.
    """

    def __init__(self, logger: Logger, *, cors_origin: str, public_base_url: str) -> None:
        self._logger = logger
        self._cors_origin = cors_origin
        self._public_base_url = public_base_url

    @property
    def chain(self) -> list[Callable[..., Any]]:
        return [self.log, self.headers, self.errors]

    def errors(self, app: APIGatewayRestResolver, next_middleware: Next) -> Response[Body]:
        """Answers an exception with OpenAI's error object."""
        try:
            return next_middleware(app)
        except Exception as error:  # noqa: BLE001  # every exception gets an answer
            permalink = links_of(app.current_event, self._public_base_url).permalink
            if isinstance(error, GenerationFailedError):
                failure, answer = error.failure, answer_failure(error.failure, permalink, error.images)
            else:
                failure, answer = failure_of(error), answer_error(error, permalink)
            app.append_context(error=error, failure=failure)
            return json_response(answer.status, answer.body, answer.headers)

    def headers(self, app: APIGatewayRestResolver, next_middleware: Next) -> Response[Body]:
        response = next_middleware(app)
        response.headers["x-request-id"] = request_id_of(app.current_event)
        if (generation := app.context.get("generation")) is not None:
            response.headers["x-generation-id"] = generation.id
        if (ended := app.context.get("ended")) is not None:
            response.headers |= cost_headers(ended)
        if (standing := app.context.get("standing")) is not None:
            response.headers |= quota_headers(standing)
        if self._cors_origin:
            response.headers |= cors_headers(self._cors_origin)
        return response

    def log(self, app: APIGatewayRestResolver, next_middleware: Next) -> Response[Body]:
        """Writes one line a request. It holds nothing that the caller or the upstream wrote."""
        response = next_middleware(app)
        line: dict[str, Any] = {
            "request_id": request_id_of(app.current_event),
            "route": f"{method_of(app.current_event)} {_route(app)}",
            "status": response.status_code,
            "milliseconds": round((time.perf_counter() - app.context["started"]) * 1000),
        }
        if (generation := app.context.get("generation")) is not None:
            request = generation.request
            line |= {"generation_id": generation.id, "client": generation.caller}
            line |= {"model": request.model, "n": request.n}
        error: Exception | None = app.context.get("error")
        if error is None:
            self._logger.info("answered", extra=line)
            return response
        line["code"] = app.context["failure"].reason.code
        if response.status_code < MAY_BE_SPENT:
            self._logger.info("answered", extra=line)
        else:  # from 424 on, an answer deserves an operator's look
            self._logger.error("answered", extra=line | {"trace": redacted_traceback(error)})
        return response


def _route(app: APIGatewayRestResolver) -> str:
    """The matched route's path with the names of its parameters; the gateway's route if none matched."""
    matched = app.context["_route"]
    if matched not in routes_of(app):
        return str(app.current_event["resource"])
    return matched.path.replace("<", "{").replace(">", "}")  # type: ignore[no-any-return]
