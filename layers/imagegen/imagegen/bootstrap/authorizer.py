"""What the authorizer function works with."""

import os
from dataclasses import dataclass
from functools import cache

from imagegen.aws.ssm import SsmParameters
from imagegen.bootstrap import sdk
from imagegen.ports import Parameters
from imagegen.settings import AuthorizerSettings

# A key that was revoked is dead within five minutes: this and the gateway's cache (template.yaml) together.
CLIENT_CACHE_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Authorizer:
    settings: AuthorizerSettings
    clients: Parameters


@cache
def authorizer() -> Authorizer:
    """Raises SettingsError where the environment lacks something."""
    return Authorizer(
        settings=AuthorizerSettings.from_env(os.environ),
        clients=SsmParameters(sdk.ssm, cache_seconds=CLIENT_CACHE_SECONDS),
    )
