"""Reads the models of the stack."""

from collections.abc import Set as AbstractSet

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.domain.configuration import Configuration
from imagegen.settings import SettingsError


def configuration(disabled: AbstractSet[str]) -> Configuration:
    """What models.toml says, without the models that the deployment disables. Raises SettingsError."""
    catalog = CONFIGURATION.catalog
    if unknown := disabled - catalog.models.keys():
        raise SettingsError(f"DISABLED_MODELS has {min(unknown)!r}, which is no model in models.toml")
    if catalog.default in disabled:
        raise SettingsError(f"DISABLED_MODELS has {catalog.default!r}, which is the default model")
    return CONFIGURATION.without(disabled)
