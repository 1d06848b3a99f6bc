"""Wires the authorizer function."""

import os
from functools import cache
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.ports import TokenVerifier
from imagegen.routes.authorizer import Authorizer
from imagegen.settings import AuthorizerSettings

# A revoked key stops working within five minutes: this and API Gateway's cache (template.yaml) together.
CALLER_CACHE_SECONDS = 150

logger = Logger(service="authorizer")


@cache
def authorizer() -> Authorizer:
    """Raises SettingsError if a variable of the environment is missing or bad."""
    settings = AuthorizerSettings.from_env(os.environ)
    return Authorizer(
        callers=SsmParameters(sdk.ssm, cache_seconds=CALLER_CACHE_SECONDS),
        path=settings.clients_path,
        tokens=_tokens(settings) if settings.oidc_issuer else None,
        logger=logger,
    )


def _tokens(settings: AuthorizerSettings) -> TokenVerifier:
    from imagegen.outbound.issuer_keys import IssuerKeys  # noqa: PLC0415  # an HTTP client that few stacks need
    from imagegen.outbound.oidc import OidcTokens  # noqa: PLC0415
    from imagegen.outbound.pool import HttpPool  # noqa: PLC0415

    return OidcTokens(IssuerKeys(HttpPool(), settings.oidc_issuer), audience=settings.oidc_audience)


def handle(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """The function's handler."""
    return authorizer().policy(event)
