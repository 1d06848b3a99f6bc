"""`/v1/models`: the image models and what each accepts; and `/health`."""

from collections.abc import Callable, Sequence
from urllib.parse import unquote

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.models import Catalog, ImageModel
from imagegen.routes.response import Body, json_response
from imagegen.wire.models import model_answer, models_answer


class ModelRoutes(msgspec.Struct, frozen=True, eq=False):
    """`upstreams_of` returns the upstreams that can be called for a model. It raises SecretUnavailableError."""

    catalog: Catalog
    upstreams_of: Callable[[ImageModel], Sequence[str]]
    router: Router

    def register(self) -> Router:
        self.router.route("/v1/models", "GET")(self.list)
        self.router.route("/v1/models/<model>", "GET")(self.get)
        self.router.route("/health", "GET")(self.health)
        return self.router

    def list(self) -> Response[Body]:
        return json_response(200, models_answer(self.catalog, self.upstreams_of))

    def get(self, model: str) -> Response[Body]:
        return json_response(200, model_answer(unquote(model), self.catalog, self.upstreams_of))

    def health(self) -> Response[Body]:
        return json_response(200, {"status": "ok"})
