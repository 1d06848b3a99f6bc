"""What the authorizer function works with."""

import os
from dataclasses import dataclass
from functools import cache

from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.ports import Parameters, TokenVerifier
from imagegen.settings import AuthorizerSettings

# A key that was revoked is dead within five minutes: this and the gateway's cache (template.yaml) together.
CLIENT_CACHE_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Authorizer:
    settings: AuthorizerSettings
    clients: Parameters
    tokens: TokenVerifier | None


@cache
def authorizer() -> Authorizer:
    """Raises SettingsError where the environment lacks something."""
    settings = AuthorizerSettings.from_env(os.environ)
    return Authorizer(
        settings=settings,
        clients=SsmParameters(sdk.ssm, cache_seconds=CLIENT_CACHE_SECONDS),
        tokens=_tokens(settings) if settings.oidc_issuer else None,
    )


def _tokens(settings: AuthorizerSettings) -> TokenVerifier:
    from imagegen.outbound.issuer_keys import IssuerKeys  # noqa: PLC0415  # an HTTP client that few stacks need
    from imagegen.outbound.oidc import OidcTokens  # noqa: PLC0415
    from imagegen.outbound.pool import HttpPool  # noqa: PLC0415

    return OidcTokens(IssuerKeys(HttpPool(), settings.oidc_issuer), audience=settings.oidc_audience)
