"""Wires the site function."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.bootstrap.models import configuration
from imagegen.routes.middleware import Handler, buffered, http_handler
from imagegen.routes.site import SiteMiddleware, SiteRoutes
from imagegen.settings import SettingsError, SiteSettings

logger = Logger(service="site")


@cache
def site(folder: Path) -> Handler:
    """The pages are in `folder`. Raises SettingsError if a variable of the environment is missing or bad."""
    settings = SiteSettings.from_env(os.environ)
    routes = SiteRoutes(
        folder=folder,
        cors_origin=settings.cors_origin,
        image_origin=settings.image_origin,
        catalog=configuration(settings.disabled_models).catalog,
        public_base_url=settings.public_base_url,
        router=Router(),
    )
    return http_handler([routes.register()], SiteMiddleware(logger).chain)


def handler(folder: Path) -> Callable[[dict[str, Any], LambdaContext], dict[str, Any]]:
    """The function's handler, for pages in `folder`."""

    def handle(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        try:
            answer = site(folder)
        except SettingsError as error:
            answer = _without_settings(error)
        return buffered(answer, event, context)

    return handle


def _without_settings(error: SettingsError) -> Handler:
    def refuse(*_: Any) -> Any:
        raise error

    return http_handler([], [*SiteMiddleware(logger).chain, refuse])
